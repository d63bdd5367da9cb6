"""insert_token (SPEC 5.2): the class token goes into the middle, the position embedding on top."""

from __future__ import annotations

from collections.abc import Collection

import torch

from bitexact.fakequant.common import Reals, Step, magnitude
from intsim.program import Operator, Program


class InsertToken(Step):
    """x [n, P, D] -> out [n, P + 1, D]: the class token goes to `position`, then the positions are added."""

    kind = "insert_token"

    def __init__(self, program: Program, op: Operator, device: torch.device):
        super().__init__(program, op, device)
        self.bound_requantize("out", 2 * magnitude(self.made("out")), self.e_out("out"))
        self.settle()
        self.cls_token = self.constant("cls_token")
        self.pos_embed = self.constant("pos_embed")
        self.out = self.grid("out")
        self.position = int(op.attributes["position"])

    def __call__(self, inputs: Reals, wanted: Collection[str]) -> Reals:
        x = inputs["x"].to(self.dtype)
        token = self.cls_token.expand(len(x), 1, -1)
        u = torch.cat([x[:, : self.position], token, x[:, self.position :]], 1)
        return {"out": self.out(u + self.pos_embed)}
