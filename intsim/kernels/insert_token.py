# mypy: allow-untyped-defs
"""insert_token (SPEC 5.2): the class token in the middle, and the position embedding."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from intsim.arithmetic import limits
from intsim.kernels.base import Array, Kernel, Workers, rows_of
from intsim.kernels.common import kernel, saturate
from intsim.program import Operator, Program


class InsertToken(Kernel):
    """Input x [P, D]; `out` [P + 1, D]."""

    def __init__(self, program: Program, op: Operator):
        super().__init__(program, op)
        self.cls_token = self.constant("cls_token", np.int32)
        self.pos_embed = self.constant("pos_embed", np.int32)
        self.position = int(op.attributes["position"])
        out = self.tensor("out")
        self.low, self.high = limits(out.bits, out.signed)

    def run(self, workers: Workers, inputs: Mapping[str, Array], wanted: Collection[str]) -> dict[str, Array]:
        x = inputs["x"]
        out = self.empty("out", x.shape[0])
        flat = rows_of(out)

        def part(start: int, stop: int) -> None:
            insert(x, self.cls_token, self.pos_embed, self.position, start, stop, self.low, self.high, flat)

        workers.split(len(flat), out.size // 2, part)
        return {"out": out}


@kernel
def insert(x, cls_token, pos_embed, position, start, stop, low, high, out):
    """Rows start .. stop - 1 of out [batch * L, D]; x [batch, P, D]; cls_token int32 [D]; pos_embed int32 [L, D]."""
    tokens = pos_embed.shape[0]
    for r in range(start, stop):
        image = r // tokens
        t = r % tokens
        target = out[r]
        embedding = pos_embed[t]
        if t == position:
            for d in range(target.shape[0]):
                target[d] = saturate(cls_token[d] + embedding[d], low, high)
        else:
            source = x[image, t if t < position else t - 1]
            for d in range(target.shape[0]):
                target[d] = saturate(source[d] + embedding[d], low, high)
