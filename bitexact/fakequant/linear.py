"""linear (SPEC 5.4): y = W x + bias on each token, one requantization for each segment of the rows."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import torch

from bitexact.fakequant.common import Reals, Step, summed
from intsim.program import Operator, Program


class Linear(Step):
    """x [n, L, I] -> acc [n, L, O] and each segment [n, L, stop - start].

    Groups need no step of their own: the real value of a grouped input carries its shift.
    """

    kind = "linear"

    def __init__(self, program: Program, op: Operator, device: torch.device):
        super().__init__(program, op, device)
        x = self.source("x")
        weight, bias = self.integers("weight"), self.integers("bias")
        shifts = self.e_in("x") - (x.exponent or 0)  # [1 or L, 1 or I], groups only
        spread = np.abs(weight) @ np.broadcast_to(np.int64(1) << shifts.max(0), (weight.shape[1],))
        bound = np.abs(bias) + self.bound_input("x") * spread  # [O], in units of acc
        scale = self.e_out("acc")[0]
        self.exact.value("weight", np.abs(weight), self.constant_exponents("weight"))
        self.bound_register("acc", bound)
        self.segments = [(s["port"], int(s["start"]), int(s["stop"])) for s in op.attributes["segments"]]
        for port, start, stop in self.segments:
            self.bound_requantize(port, bound[start:stop], scale[start:stop])
        self.settle()
        self.weight = self.constant("weight")
        self.bias = self.constant("bias")
        self.out = {port: self.grid(port) for port, _, _ in self.segments}
        self.narrow = self.register("acc")
        self.order = self.channels_in_order() if self.narrow is not None else []

    def channels_in_order(self) -> list[int]:
        """The input channels, group after group, ascending in each: the order in which a narrow accumulator adds."""
        x = self.source("x")
        group = next((t.index for t in x.terms if t.axis == "channel" and t.index is not None), None)
        groups = [0] * x.shape[1] if group is None else [int(g) for g in self.program.arrays[group]]
        return sorted(range(x.shape[1]), key=lambda c: (groups[c], c))

    def __call__(self, inputs: Reals, wanted: Collection[str]) -> Reals:
        acc = summed(inputs["x"].to(self.dtype), self.weight, self.bias, self.narrow, self.order)
        made = {"acc": acc}
        for port, start, stop in self.segments:
            made[port] = self.out[port](acc[..., start:stop])
        return made
