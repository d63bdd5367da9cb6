"""The Numba engine: runs a Program on batches of images, with the same integers as the oracle.

    engine = Engine(program)
    result = engine.run(images, taps=["layers.3.*"])      # {tensor name: [batch, *shape]}, always with the logits
    logits = engine.classify(images)                      # int32 [n, classes], in batches

A tensor that is not asked for has a place in a buffer only until its last reader has run, and the internal ones
(accumulators, everything with a state axis) are then never made at all.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from intsim.errors import ProgramError, UserError
from intsim.kernels import KERNELS
from intsim.kernels.base import Kernel
from intsim.kernels.narrow import NARROW, Narrow
from intsim.kernels.scan import Scan
from intsim.kernels.scan.arguments import AVX2, AVX512, LANES
from intsim.plan import Plan, Rare, Workers, allowed_cpus
from intsim.program import Array, Operator, Program
from intsim.taps import select

MOST_PLANS = 8  # kept for another run of as many images and the same taps


def available_threads() -> int:
    """Number of CPUs that this process may use."""
    return len(allowed_cpus()) or os.cpu_count() or 1


class Engine:
    """A Program, bound to its kernels once.

    threads: how many threads share the work of one operator (default: the CPUs this process may use).  The integers
    do not depend on it.  One engine may be used from several threads at a time.
    """

    def __init__(self, program: Program, threads: int | None = None):
        if threads is not None and threads < 1:
            raise UserError(f"threads is {threads}, must be at least 1")
        self.program = program
        self.threads = available_threads() if threads is None else threads
        self._kernels = [bind(program, op) for op in program.operators]
        self._workers = Workers(self.threads, rare(self._kernels))
        self._plans: dict[tuple[int, frozenset[str]], Plan] = {}
        self._lock = threading.Lock()

    @property
    def overflows(self) -> dict[str, int]:
        """Narrow accumulator -> elements that were not the exact sum, over all images so far (SPEC section 13)."""
        counted: dict[str, int] = {}
        for k in self._kernels:
            if isinstance(k, Narrow):
                counted.update(zip(map(k.op.tensor, k.registers), map(int, k.overflows), strict=True))
        return {name: counted[name] for name in self.program.narrowed}

    def run(self, images: Array, taps: Iterable[str] = ()) -> dict[str, Array]:
        """The logits and every tensor that a glob in `taps` names, in execution order.

        images: uint8 [batch, H, W, C].  Each tensor is [batch, *shape] in its declared container.
        Raises UserError if the images are not that, or a glob names no tensor.
        """
        return self._run(self._check(images), select(self.program, taps))

    def stream(self, images: Array, taps: Iterable[str] = (), batch: int = 16) -> Iterator[dict[str, Array]]:
        """As `run`, for `batch` images at a time (the last chunk may have fewer), so that memory stays flat."""
        images = self._check(images)
        names = select(self.program, taps)
        if batch < 1:
            raise UserError(f"batch is {batch}, must be at least 1")
        return (self._run(images[i : i + batch], names) for i in range(0, len(images), batch))

    def classify(self, images: Array, batch: int = 64) -> Array:
        """Logits int32 [n, classes] of images uint8 [n, H, W, C], `batch` at a time.

        The class is the index of the largest, the lowest index on a tie: `logits.argmax(axis=1)`.
        """
        images = self._check(images)
        name = self.program.logits
        logits = np.empty((len(images), self.program.tensors[name].shape[-1]), dtype=np.int32)
        at = 0
        for chunk in self.stream(images, batch=batch):
            part = chunk[name]
            logits[at : at + len(part)] = part.reshape(len(part), -1)
            at += len(part)
        return logits

    def _check(self, images: Any) -> Array:
        wanted = list(self.program.image)
        if not isinstance(images, np.ndarray):
            raise UserError(f"images are a {type(images).__name__}, must be a NumPy array, uint8 [batch, *{wanted}]")
        if images.dtype != np.uint8 or list(images.shape[1:]) != wanted or images.ndim != 4:
            raise UserError(f"images are {images.dtype} {list(images.shape)}, must be uint8 [batch, *{wanted}]")
        return images

    def _run(self, images: Array, names: list[str]) -> dict[str, Array]:
        tapped = frozenset(names) - {"image"}
        # a copy where the caller gets it: contiguous, and the caller's stays the caller's
        pixels = np.array(images, order="C") if "image" in names else np.ascontiguousarray(images)
        if len(images):
            key = (len(images), tapped)
            with self._lock:  # a plan's buffers serve one run at a time
                plan = self._plans.pop(key, None)
            if plan is None:
                plan = Plan(self.program, self._kernels, len(images), tapped, self.threads)
            made = plan.run(self._workers, {"image": pixels})
            with self._lock:
                self._plans[key] = plan
                while len(self._plans) > MOST_PLANS:
                    del self._plans[next(iter(self._plans))]
        else:
            made = empty(self.program, tapped)
        return {name: pixels if name == "image" else made[name] for name in names}


def empty(program: Program, names: Iterable[str]) -> dict[str, Array]:
    """These tensors of no image, [0, *shape]."""
    return {name: np.empty((0, *program.tensors[name].shape), program.tensors[name].dtype) for name in names}


def bind(program: Program, op: Operator) -> Kernel:
    """The kernel of an operator.  Raises ProgramError if there is none."""
    if op.kind not in KERNELS:
        raise ProgramError(f"operator {op.name}: there is no kernel for the kind {op.kind!r}")
    kinds = NARROW if any(program.tensors[op.tensor(port)].overflow is not None for port in op.outputs) else KERNELS
    return kinds[op.kind](program, op)


def rare(kernels: Sequence[Kernel]) -> Rare:
    """Of `Workers`: whether one of these has a narrow accumulator, and which of its kernels a scan needs."""
    narrow = any(isinstance(k, Narrow) for k in kernels)
    methods = {k.method for k in kernels if isinstance(k, Scan)}
    lanes, avx2, avx512 = (1 if method in methods else None for method in (LANES, AVX2, AVX512))
    return 1 if narrow else None, lanes, avx2, avx512


Bound = Callable[[Mapping[str, Array]], dict[str, Array]]


def bind_operator(program: Program, op: Operator, ports: Collection[str], threads: int | None = None) -> Bound:
    """One operator of a Program, which need not be complete, bound to its kernel once, to be called many times.

    The call takes its inputs by tensor name ([batch, *shape], contiguous, in their containers) and returns the outputs
    named in `ports`, by tensor name.
    """
    kernel = bind(program, op)
    workers = Workers(available_threads() if threads is None else threads, rare([kernel]))
    plans: dict[int, Plan] = {}
    first, names = next(iter(op.inputs.values())), [op.tensor(port) for port in ports]

    def call(values: Mapping[str, Array]) -> dict[str, Array]:
        batch = len(values[first])
        plan = plans.get(batch)
        if plan is None:
            if not batch:
                return empty(program, names)
            plan = plans[batch] = Plan(program, [kernel], batch, names, workers.threads)
        return plan.run(workers, values)

    return call


def run_operator(
    program: Program, op: Operator, values: Mapping[str, Array], ports: Collection[str], threads: int | None = None
) -> dict[str, Array]:
    """Runs one operator of a Program, which need not be complete, on a batch.

    values: its inputs by tensor name, [batch, *shape] in their containers.  Returns the outputs named in `ports`, by
    tensor name.
    """
    inputs = {name: np.array(values[name], order="C") for name in op.inputs.values()}
    return bind_operator(program, op, ports, threads)(inputs)
