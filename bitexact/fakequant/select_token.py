"""select_token (SPEC 5.10): the class token's row."""

from __future__ import annotations

from collections.abc import Collection

import torch

from bitexact.fakequant.common import Reals, Step
from intsim.program import Operator, Program


class SelectToken(Step):
    """x [n, L, D] -> out [n, 1, D]."""

    kind = "select_token"

    def __init__(self, program: Program, op: Operator, device: torch.device):
        super().__init__(program, op, device)
        self.position = int(op.attributes["position"])

    def __call__(self, inputs: Reals, wanted: Collection[str]) -> Reals:
        return {"out": inputs["x"][:, self.position : self.position + 1].clone()}
