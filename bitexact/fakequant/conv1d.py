"""conv1d (SPEC 5.5): causal and depthwise, in token order or reversed."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import torch

from bitexact.fakequant.common import Reals, Step
from intsim.program import Operator, Program


class Conv1d(Step):
    """x [n, L, E] -> acc, out [n, L, E], in processing order if `reverse`.

    The taps are summed one by one: a library's convolution may use transforms that are not exact.
    """

    kind = "conv1d"

    def __init__(self, program: Program, op: Operator, device: torch.device):
        super().__init__(program, op, device)
        weight, bias = self.integers("weight"), self.integers("bias")
        bound = np.abs(bias) + self.bound_input("x") * np.abs(weight).sum(1)
        scale = self.e_out("acc")
        self.exact.value("weight", np.abs(weight), self.constant_exponents("weight"))
        self.bound_register("acc", bound)
        self.bound_requantize("out", bound, scale)
        self.settle()
        self.weight = self.constant("weight")
        self.bias = self.constant("bias")
        self.out = self.grid("out")
        self.narrow = self.register("acc")
        self.reverse = bool(op.attributes["reverse"])
        self.lead = weight.shape[1] - 1  # zeros before the first token

    def __call__(self, inputs: Reals, wanted: Collection[str]) -> Reals:
        x = inputs["x"].to(self.dtype)
        if self.reverse:
            x = x.flip(1)
        tokens = x.shape[1]
        padded = torch.cat([x.new_zeros(len(x), self.lead, x.shape[2]), x], 1)
        acc = self.bias.expand_as(x)
        products = (self.weight[:, j] * padded[:, j : j + tokens] for j in range(self.weight.shape[1]))
        if self.narrow is not None:
            acc = self.narrow.sum(acc, products)
        else:
            acc = acc.clone()
            for product in products:
                acc += product
        return {"acc": acc, "out": self.out(acc)}
