# mypy: allow-untyped-defs
"""conv1d (SPEC 5.5): causal, depthwise, and the reversal of the backward branch."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from intsim.kernels.base import AccumulatorKernel, Array, Requantize, rows_of
from intsim.kernels.common import kernel
from intsim.program import Operator, Program


class Conv1d(AccumulatorKernel):
    """Input x [L, E] in token order; `acc` int32 [L, E], `out` [L, E] in processing order."""

    def __init__(self, program: Program, op: Operator):
        super().__init__(program, op)
        weight = self.constant("weight", np.int32)
        self.weight = np.ascontiguousarray(weight.T)
        self.bias = self.constant("bias", np.int32)
        self.reverse = int(op.attributes["reverse"])
        self.tokens, self.width = self.tensor("out").shape
        self.padded = self.width
        self.cost = self.width * (1 + len(self.weight)) // 2
        step = Requantize(self.tensor("out"), self.constant("shift", np.int64), self.row_shift("out"), self.mode)
        self.outputs = {"out": (0, step)}

    def accumulate(self, inputs: Mapping[str, Array], first: int, rows: int, acc: Array) -> None:
        convolve(rows_of(inputs["x"]), self.weight, self.bias, self.tokens, self.reverse, first, rows, acc)


@kernel
def convolve(x, weight, bias, tokens, reverse, first, rows, acc):
    """acc int32 [rows, E] for the rows first .. of x [batch * L, E]; weight int32 [J, E]; bias int32 [E]."""
    taps = weight.shape[0]
    for r in range(rows):
        t = (first + r) % tokens
        start = first + r - t  # the image's first row
        target = acc[r]
        for c in range(target.shape[0]):
            target[c] = bias[c]
        for j in range(taps):
            s = t - (taps - 1) + j
            if s >= 0:
                source = x[start + (tokens - 1 - s if reverse else s)]
                w = weight[j]
                for c in range(target.shape[0]):
                    target[c] = np.int32(target[c] + np.int32(w[c] * np.int32(source[c])))
