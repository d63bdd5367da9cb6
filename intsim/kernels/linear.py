"""linear (SPEC 5.4): y = W x + bias on each token."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from intsim.kernels.base import AccumulatorKernel, Array, Requantize, rows_of
from intsim.kernels.dot import make_dot
from intsim.program import Operator, Program


class Linear(AccumulatorKernel):
    """Inputs x [L, I]; `acc` int32 [L, O]; each segment [L, stop - start]."""

    def __init__(self, program: Program, op: Operator):
        super().__init__(program, op)
        weight = self.constant("weight", np.int8)
        self.width, inputs = weight.shape
        x = self.input("x")
        self.tokens = x.shape[0]
        self.dot = make_dot(weight, self.constant("bias", np.int32), program.shifts(x.name, "channel"))
        self.padded = self.dot.padded
        self.x_row_shift = np.zeros(1, dtype=np.int64)
        if x.group("token") is not None:
            self.x_row_shift = program.shifts(x.name, "token")
        self.cost = 100 + self.width * inputs // 100
        shift = self.constant("shift", np.int64)
        self.outputs = {}
        for segment in op.attributes["segments"]:
            port, start, stop = segment["port"], segment["start"], segment["stop"]
            step = Requantize(self.tensor(port), shift[start:stop], self.row_shift(port), self.mode)
            self.outputs[port] = (start, step)

    def accumulate(self, inputs: Mapping[str, Array], first: int, rows: int, acc: Array) -> None:
        x = rows_of(inputs["x"])
        self.dot(x[first : first + rows], self.x_row_shift, first, acc)
