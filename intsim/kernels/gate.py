# mypy: allow-untyped-defs
"""gate (SPEC 5.8): (y + reversed y_b) * silu(z)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from intsim.kernels.base import AccumulatorKernel, Array, Requantize, rows_of
from intsim.kernels.common import kernel
from intsim.program import Operator, Program


class Gate(AccumulatorKernel):
    """Inputs y, g [L, E] in token order, y_b [L, E] in processing order; `acc` int32, `out` [L, E]."""

    def __init__(self, program: Program, op: Operator):
        super().__init__(program, op)
        self.tokens, self.width = self.tensor("out").shape
        self.padded = self.width
        self.left = program.shifts(self.op.inputs["y"], "token") + int(op.attributes["y_align"])
        self.left_b = program.shifts(self.op.inputs["y_b"], "token") + int(op.attributes["y_b_align"])
        self.cost = self.width
        step = Requantize(self.tensor("out"), self.constant("shift", np.int64), self.row_shift("out"), self.mode)
        self.outputs = {"out": (0, step)}

    def accumulate(self, inputs: Mapping[str, Array], first: int, rows: int, acc: Array) -> None:
        y, y_b, g = (rows_of(inputs[port]) for port in ("y", "y_b", "g"))
        multiply(y, y_b, g, self.left, self.left_b, first, rows, acc)


@kernel
def multiply(y, y_b, g, left, left_b, first, rows, acc):
    """acc int32 [rows, E] for the rows first .. of y, y_b, g [batch * L, E]; left, left_b int64 [L]."""
    tokens = left.shape[0]
    for r in range(rows):
        t = (first + r) % tokens
        s = tokens - 1 - t
        forward = y[first + r]
        backward = y_b[first + r - t + s]
        factor = g[first + r]
        a = np.int32(left[t])
        b = np.int32(left_b[s])
        target = acc[r]
        for c in range(target.shape[0]):
            both = np.int32(np.int32(np.int32(forward[c]) << (a & 31)) + np.int32(np.int32(backward[c]) << (b & 31)))
            target[c] = np.int32(both * np.int32(factor[c]))
