"""What every kernel's binding has in common."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import DTypeLike

from intsim.kernels import cpu
from intsim.kernels.common import MODES
from intsim.kernels.memory import address_of, aligned
from intsim.program import Array, Operator, Program, Tensor


class In(str):
    """In a kernel's arguments: the address of the input at this port."""


class Out(str):
    """The address of the output at this port, 0 if it is not wanted."""


BATCH = Out("")  # in a kernel's arguments: the number of images

Argument = int | In | Out


class Kernel:
    """One operator of a Program, bound once: its constants packed, its formats looked up.

    code: which step of `intsim.kernels.run` computes it.
    tokens: rows of its output for each image; by_channel: its work is shared by channels instead.
    aligned: inputs of which row r of the output needs no row but r.
    row_cost: nanoseconds of a row, roughly.
    scratch: bytes of working memory that a thread needs.
    """

    code: int
    tokens: int
    by_channel = False
    channels = 0
    aligned: Collection[str] = ()
    row_cost: int
    scratch = 0
    numbers: list[Argument]

    def __init__(self, program: Program, op: Operator):
        self.program, self.op = program, op
        self.mode = MODES[program.rounding]
        self.path = cpu.choose()
        self.kept: list[Array] = []  # what the arguments point to

    def arguments(self) -> list[Argument]:
        """The step's arguments, without the code."""
        return self.numbers

    def inner(self) -> Collection[str]:
        """Ports that are made only if they are wanted."""
        return ()

    def keep(self, array: Array) -> int:
        """Address, a multiple of 64, of a copy of an array that lives as long as this kernel."""
        copy = aligned(array)
        self.kept.append(copy)
        return address_of(copy)

    def constant(self, role: str, dtype: DTypeLike) -> Array:
        """The integers of a constant, as a new contiguous array."""
        return np.array(self.program.arrays[self.op.constants[role]], dtype=dtype, order="C")

    def tensor(self, port: str) -> Tensor:
        """Declaration of an output."""
        return self.program.tensors[self.op.tensor(port)]

    def input(self, port: str) -> Tensor:
        """Declaration of an input."""
        return self.program.tensors[self.op.inputs[port]]

    def row_shift(self, port: str) -> Array:
        """Group shift of each token of an output, [L] (one zero if it has no token groups)."""
        if self.tensor(port).group("token") is None:
            return np.zeros(1, dtype=np.int64)
        return self.program.shifts(self.op.tensor(port), "token")


def pad(array: Array, multiple: int) -> Array:
    """A vector with zeros behind it up to a multiple."""
    return np.pad(array, (0, -len(array) % multiple))
