# mypy: allow-untyped-defs
"""add (SPEC 5.9): the residual's saturating addition."""

from __future__ import annotations

from intsim.arithmetic import limits
from intsim.kernels.base import In, Kernel, Out
from intsim.kernels.common import kernel
from intsim.kernels.insert_token import insert_row
from intsim.kernels.memory import int8_at, int16_at
from intsim.program import Operator, Program


class Add(Kernel):
    """Inputs x, y [L, D]; `out` [L, D]."""

    code = 3
    aligned = ("x", "y")

    def __init__(self, program: Program, op: Operator):
        super().__init__(program, op)
        out = self.tensor("out")
        self.tokens, width = out.shape
        self.numbers = [
            *(In("x"), In("y"), Out("out"), out.dtype.itemsize, width, *limits(out.bits, out.signed)),
        ]
        self.row_cost = width // 8


@kernel
def add(a, start, stop):
    """Rows start .. stop - 1 of all images.  a: Add.arguments()."""
    x, y, out, size, width, low, high = a[:7]
    n = (stop - start) * width
    at = start * width * size
    if size == 1:
        insert_row(int8_at(x + at, n), int8_at(y + at, n), low, high, size, out + at)
    else:
        insert_row(int16_at(x + at, n), int16_at(y + at, n), low, high, size, out + at)
