"""rom (SPEC 5.6): SiLU and softplus as a gather from a table of real values."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import torch

from bitexact.fakequant.common import Reals, Step, magnitude, power_of_two
from intsim.program import Operator, Program

ENTRIES = 256
FIRST = -128  # the code that entry 0 belongs to


class Rom(Step):
    """x [n, L, E] -> out [n, L, E]."""

    kind = "rom"

    def __init__(self, program: Program, op: Operator, device: torch.device):
        super().__init__(program, op, device)
        channels = self.source("x").shape[1]
        self.bound_input("x")
        self.exact.value("x", 1, -self.e_in("x"))
        self.exact.value("out", magnitude(self.made("out")), self.e_out("out"))
        self.settle()
        table = self.integers("rom")[self.integers("rom_index")]  # [E, 256]
        scale = np.broadcast_to(self.e_out("out"), (1, channels)).reshape(channels, 1)
        self.table = self.real(table, scale).flatten()
        self.row = torch.arange(channels, device=device) * ENTRIES
        self.down = power_of_two(-self.e_in("x"), self.dtype, device)

    def __call__(self, inputs: Reals, wanted: Collection[str]) -> Reals:
        entry = (inputs["x"].to(self.dtype) * self.down).to(torch.int64) - FIRST
        return {"out": self.table[self.row + entry]}
