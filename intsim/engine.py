"""The Numba engine: runs a Program on batches of images, with the same integers as the oracle.

    engine = Engine(program)
    result = engine.run(images, taps=["layers.3.*"])      # {tensor name: [batch, *shape]}, always with the logits
    logits = engine.classify(images)                      # int32 [n, classes], in batches

A tensor that is not asked for is kept only until its last reader has run, and the large internal ones (accumulators,
everything with a state axis) are then never made at all.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from intsim.errors import ProgramError, UserError
from intsim.kernels import KERNELS
from intsim.kernels.base import Kernel, Workers
from intsim.program import Array, Operator, Program
from intsim.taps import select


@dataclass
class _Step:
    op: Operator
    kernel: Kernel
    needed: set[str]  # output ports that a later operator reads
    last: list[str] = field(default_factory=list)  # tensors that nothing after this operator reads


def available_threads() -> int:
    """Number of CPUs that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


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
        self._workers = Workers(self.threads)
        read = {name for op in program.operators for name in op.inputs.values()}
        self._steps = []
        for op in program.operators:
            if op.kind not in KERNELS:
                raise ProgramError(f"operator {op.name}: there is no kernel for the kind {op.kind!r}")
            needed = {port for port in op.outputs if op.tensor(port) in read}
            self._steps.append(_Step(op, KERNELS[op.kind](program, op), needed))
        last_reader = {name: step for step in self._steps for name in step.op.inputs.values()}
        for name, step in last_reader.items():
            step.last.append(name)

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
        tapped = set(names)
        pixels = np.array(images, order="C")  # a copy: contiguous, writeable, and the caller's stays the caller's
        values: dict[str, Array] = {"image": pixels}
        for step in self._steps:
            op = step.op
            wanted = step.needed | {port for port in op.outputs if op.tensor(port) in tapped}
            inputs = {port: values[name] for port, name in op.inputs.items()}
            made = step.kernel.run(self._workers, inputs, wanted)
            for port in wanted:
                values[op.tensor(port)] = made[port]
            for name in step.last:
                if name not in tapped:
                    del values[name]
        return {name: values[name] for name in names}


Bound = Callable[[Mapping[str, Array], Collection[str]], dict[str, Array]]


def bind_operator(program: Program, op: Operator, threads: int | None = None) -> Bound:
    """One operator of a Program, which need not be complete, bound to its kernel once, to be called many times.

    The call takes its inputs by tensor name ([batch, *shape], contiguous, in their containers) and the ports that are
    wanted, and returns those by tensor name.  Arrays of an earlier call may be written again.
    """
    kernel = KERNELS[op.kind](program, op)
    workers = Workers(available_threads() if threads is None else threads)

    def call(values: Mapping[str, Array], ports: Collection[str]) -> dict[str, Array]:
        made = kernel.run(workers, {port: values[name] for port, name in op.inputs.items()}, set(ports))
        return {op.tensor(port): made[port] for port in ports}

    return call


def run_operator(
    program: Program, op: Operator, values: Mapping[str, Array], ports: Collection[str], threads: int | None = None
) -> dict[str, Array]:
    """Runs one operator of a Program, which need not be complete, on a batch.

    values: its inputs by tensor name, [batch, *shape] in their containers.  Returns the outputs named in `ports`, by
    tensor name.
    """
    inputs = {name: np.array(values[name], order="C") for name in op.inputs.values()}
    return bind_operator(program, op, threads)(inputs, ports)
