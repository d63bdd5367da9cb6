"""gate (SPEC 5.8): half the sum of both directions, times silu(z)."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import torch

from bitexact.fakequant.common import Reals, Register, Step
from intsim.program import Operator, Program


class Gate(Step):
    """y, y_b, g [n, L, E] -> acc, out [n, L, E]; y_b comes in processing order."""

    kind = "gate"

    def __init__(self, program: Program, op: Operator, device: torch.device):
        super().__init__(program, op, device)
        y, y_b = self.e_in("y"), self.e_in("y_b")  # [1 or L, 1]
        e_sum = min((self.source(p).exponent or 0) for p in ("y", "y_b"))
        total = np.ldexp(float(self.bound_input("y")), y - e_sum)
        total = total + np.ldexp(float(self.bound_input("y_b")), y_b[::-1] - e_sum)
        bound = total * self.bound_input("g")
        scale = e_sum + self.e_in("g") - 1
        self.exact.value("sum", total, e_sum)
        self.bound_register("acc", bound)
        self.bound_requantize("out", bound, scale)
        self.settle()
        self.narrow = self.register("acc")
        if self.narrow is not None:  # the sum before the product has the accumulator's width, and units of its own
            acc = self.made("acc")
            self.narrow_sum = Register(acc.bits, str(acc.overflow), e_sum, self.dtype, device)
        self.out = self.grid("out")

    def __call__(self, inputs: Reals, wanted: Collection[str]) -> Reals:
        y, y_b, g = (inputs[p].to(self.dtype) for p in ("y", "y_b", "g"))
        if self.narrow is not None and self.narrow.overflow == "saturate":
            acc = self.narrow.clamp(self.narrow_sum.sum(y, [y_b.flip(1)]) * g * 0.5)
        else:
            acc = (y + y_b.flip(1)) * g * 0.5
            if self.narrow is not None:
                acc = self.narrow.wrap(acc)
        return {"acc": acc, "out": self.out(acc)}
