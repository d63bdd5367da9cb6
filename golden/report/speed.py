"""Time and work of each operator."""

from __future__ import annotations

import contextlib
import functools
import platform
import time
from collections.abc import Callable, Mapping

import numpy as np

from intsim.engine import Engine, available_threads, run_operator
from intsim.program import Array, Operator, Program

BATCH = 8  # images of a timed run
SECONDS, FEWEST, MOST = 0.04, 3, 20  # how often a run is timed: as often as fits into so many seconds


def multiplications(program: Program, op: Operator) -> int:
    """Multiplications of two variables or of a variable and a constant that SPEC section 5 states, for one image."""

    def size(port: str) -> int:
        return int(np.prod(program.tensors[op.tensor(port)].shape, dtype=np.int64))

    def shape(role: str) -> tuple[int, ...]:
        return program.constants[op.constants[role]].shape

    if op.kind in ("patch_embed", "linear", "conv1d"):
        return size("acc") * shape("weight")[1]
    if op.kind == "rmsnorm":
        return 3 * size("out")  # q^2, q rsqrt, normed gamma
    if op.kind == "scan":
        return 5 * size("h") + 2 * size("dx")  # delta A, exp2's slope, dx B, abar h, h C; delta u, D u
    return size("acc") if op.kind == "gate" else 0


def seconds(program: Program, op: Operator, inputs: Mapping[str, Array], threads: int | None) -> float:
    """Seconds of one operator for one image: the slope between runs of 1 and of BATCH images.

    The slope leaves out what happens once a run, such as the packing of weights.  inputs: by port, of at least one
    image; only what later operators read is made.
    """
    read = {name for later in program.operators for name in later.inputs.values()} | {program.logits}
    ports = [port for port in op.outputs if op.tensor(port) in read]
    best = []
    for batch in (1, BATCH):
        values = {op.inputs[port]: np.resize(array, (batch, *array.shape[1:])) for port, array in inputs.items()}
        best.append(_best(functools.partial(run_operator, program, op, values, ports, threads)))
    return max(0.0, (best[1] - best[0]) / (BATCH - 1))


def network_seconds(program: Program, images: Array, threads: int | None) -> float:
    """Seconds of a whole run for one image, in a batch of BATCH."""
    engine = Engine(program, threads)
    batch = np.resize(images, (BATCH, *images.shape[1:]))
    return _best(lambda: engine.run(batch)) / BATCH


def _best(work: Callable[[], object]) -> float:
    """Seconds of the fastest of several runs, after one that does not count."""
    work()
    found: list[float] = []
    while len(found) < FEWEST or (len(found) < MOST and sum(found) < SECONDS):
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return min(found)


def machine(threads: int | None) -> str:
    """The processor and the threads used, in words."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
                break
    count = available_threads() if threads is None else threads
    return f"{name}, {count} thread{'s' if count > 1 else ''}"
