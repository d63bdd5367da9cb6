"""add (SPEC 5.9): the residual addition."""

from __future__ import annotations

from collections.abc import Collection

import torch

from bitexact.fakequant.common import Reals, Step, magnitude
from intsim.program import Operator, Program


class Add(Step):
    """x, y [n, L, D] -> out [n, L, D], saturated."""

    kind = "add"

    def __init__(self, program: Program, op: Operator, device: torch.device):
        super().__init__(program, op, device)
        bound = magnitude(self.source("x")) + magnitude(self.source("y"))
        self.bound_requantize("out", bound, self.e_out("out"))
        self.settle()
        self.out = self.grid("out")

    def __call__(self, inputs: Reals, wanted: Collection[str]) -> Reals:
        return {"out": self.out(inputs["x"].to(self.dtype) + inputs["y"].to(self.dtype))}
