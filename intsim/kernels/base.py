"""What every kernel's binding has in common, and the threads that share its work."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from intsim.arithmetic import limits
from intsim.kernels.common import MODES, requantize_rows
from intsim.program import Operator, Program, Tensor

Array = NDArray[Any]

GRAIN = 50_000  # nanoseconds of work that are worth a thread of their own
TILE = 1 << 16  # accumulators in one tile: 256 KiB, half of a small second-level cache


class Workers:
    """`threads` threads for the tasks of one operator.  Which thread runs a task never changes its result."""

    def __init__(self, threads: int):
        self.threads = threads
        self._pool: ThreadPoolExecutor | None = None
        self._process = 0

    def split(self, tasks: int, cost: int, part: Callable[[int, int], None]) -> None:
        """Calls part(start, stop) for consecutive ranges that cover 0 .. tasks - 1, at the same time.

        cost: nanoseconds that all tasks take on one thread, roughly.  The caller's thread takes the first range.
        """
        parts = min(self.threads, tasks, 1 + cost // GRAIN)
        if parts <= 1:
            part(0, tasks)
            return
        if self._pool is None or self._process != os.getpid():  # a fork has no threads
            self._pool = ThreadPoolExecutor(self.threads - 1, thread_name_prefix="intsim")
            self._process = os.getpid()
        bounds = [tasks * i // parts for i in range(parts + 1)]
        others = [self._pool.submit(part, bounds[i], bounds[i + 1]) for i in range(1, parts)]
        try:
            part(bounds[0], bounds[1])
        finally:
            errors = [other.exception() for other in others]
        for error in errors:
            if error is not None:
                raise error


class Requantize:
    """The step from an int32 accumulator to an output tensor (SPEC 2), bound to its shifts.

    shift [C] for each channel, row_shift [L] for each token, both added; together within -31 .. 31.
    """

    def __init__(self, tensor: Tensor, shift: Array, row_shift: Array, mode: int):
        self.shift = np.array(shift, dtype=np.int32)
        self.row_shift = np.array(row_shift, dtype=np.int32)
        self.narrow = int(self.shift.min() + self.row_shift.min() >= 0)
        self.low, self.high = limits(tensor.bits, tensor.signed)
        self.mode = mode

    def __call__(self, acc: Array, start: int, first: int, out: Array) -> None:
        """out [rows, C] from the columns start .. of acc int32; `first` counts the rows before, of all images."""
        requantize_rows(
            acc, start, self.shift, self.row_shift, first, self.mode, self.low, self.high, self.narrow, signed(out)
        )


class Kernel:
    """One operator of a Program, bound once: its constants packed, its formats looked up."""

    def __init__(self, program: Program, op: Operator):
        self.program, self.op = program, op
        self.mode = MODES[program.rounding]

    def constant(self, role: str, dtype: DTypeLike) -> Array:
        """The integers of a constant, as a new contiguous array."""
        return np.array(self.program.arrays[self.op.constants[role]], dtype=dtype, order="C")

    def tensor(self, port: str) -> Tensor:
        """Declaration of an output."""
        return self.program.tensors[self.op.tensor(port)]

    def input(self, port: str) -> Tensor:
        """Declaration of an input."""
        return self.program.tensors[self.op.inputs[port]]

    def empty(self, port: str, batch: int) -> Array:
        """[batch, *shape] in an output's container, not yet filled."""
        tensor = self.tensor(port)
        return np.empty((batch, *tensor.shape), dtype=tensor.dtype)

    def row_shift(self, port: str) -> Array:
        """Group shift of each token of an output, [L] (one zero if it has no token groups)."""
        if self.tensor(port).group("token") is None:
            return np.zeros(1, dtype=np.int64)
        return self.program.shifts(self.op.tensor(port), "token")

    def run(self, workers: Workers, inputs: Mapping[str, Array], wanted: Collection[str]) -> dict[str, Array]:
        """Runs the operator on a batch.

        inputs: port -> [batch, *shape], contiguous, in the tensor's container.  Returns at least the ports in
        `wanted`, each [batch, *shape] in its container; ports that are large and not wanted are never made.
        """
        raise NotImplementedError


class AccumulatorKernel(Kernel):
    """An operator with an int32 accumulator `acc` [tokens, width] that is requantized to one or more outputs.

    Works on tiles of rows (a row is one token of one image), so that the accumulator is never a whole tensor unless
    it is wanted.
    """

    width: int  # columns of `acc`
    padded: int  # columns that a tile has room for
    tokens: int
    cost: int  # nanoseconds of one row, roughly
    outputs: dict[str, tuple[int, Requantize]]  # port -> first column in `acc`, requantization

    def accumulate(self, inputs: Mapping[str, Array], first: int, rows: int, acc: Array) -> None:
        """Fills acc int32 [rows or more, padded] with the rows first .. first + rows - 1."""
        raise NotImplementedError

    def run(self, workers: Workers, inputs: Mapping[str, Array], wanted: Collection[str]) -> dict[str, Array]:
        batch = next(iter(inputs.values())).shape[0]
        made = {port: self.empty(port, batch) for port in self.outputs}
        flat = {port: rows_of(array) for port, array in made.items()}
        if "acc" in wanted:
            made["acc"] = self.empty("acc", batch)
            whole = made["acc"].reshape(batch * self.tokens, self.width)
        step = max(4, TILE // self.padded // 4 * 4)

        def part(start: int, stop: int) -> None:
            acc = np.empty((min(step, -(-(stop - start) // 4) * 4), self.padded), dtype=np.int32)
            for first in range(start, stop, step):
                rows = min(step, stop - first)
                self.accumulate(inputs, first, rows, acc)
                if "acc" in wanted:
                    whole[first : first + rows] = acc[:rows, : self.width]
                for port, (column, requantize) in self.outputs.items():
                    requantize(acc, column, first, flat[port][first : first + rows])

        workers.split(batch * self.tokens, batch * self.tokens * self.cost, part)
        return made


def signed(array: Array) -> Array:
    """A uint8 array as int8, the same bytes: a store is the same, and kernels need one version less."""
    return array.view(np.int8) if array.dtype == np.uint8 else array


def rows_of(array: Array) -> Array:
    """[batch, tokens, channels] as [batch * tokens, channels]."""
    return array.reshape(-1, array.shape[-1])
