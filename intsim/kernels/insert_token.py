# mypy: allow-untyped-defs
"""insert_token (SPEC 5.2): the class token in the middle, and the position embedding."""

from __future__ import annotations

import numpy as np

from intsim.arithmetic import limits
from intsim.kernels.base import In, Kernel, Out
from intsim.kernels.common import kernel, saturate
from intsim.kernels.memory import int8_at, int16_at
from intsim.program import Operator, Program


class InsertToken(Kernel):
    """Input x [P, D]; `out` [P + 1, D]."""

    code = 2

    def __init__(self, program: Program, op: Operator):
        super().__init__(program, op)
        out = self.tensor("out")
        self.tokens, width = out.shape
        token, embedding = (self.constant(role, out.dtype) for role in ("cls_token", "pos_embed"))
        position = int(op.attributes["position"])
        self.numbers = [
            *(In("x"), Out("out"), out.dtype.itemsize, self.tokens, width, position),
            *(self.keep(token), self.keep(embedding), *limits(out.bits, out.signed)),
        ]
        self.row_cost = width // 4


@kernel
def insert_token(a, start, stop):
    """Rows start .. stop - 1 of all images.  a: InsertToken.arguments()."""
    x, out, size, tokens, width, position, token, embedding, low, high = a[:10]
    for r in range(start, stop):
        image, t = divmod(r, tokens)
        source = x + (image * (tokens - 1) + t - (t > position)) * width * size
        if t == position:
            source = token
        at, target = embedding + t * width * size, out + r * width * size
        if size == 1:
            insert_row(int8_at(source, width), int8_at(at, width), low, high, size, target)
        else:
            insert_row(int16_at(source, width), int16_at(at, width), low, high, size, target)


@kernel
def insert_row(x, y, low, high, size, out):
    """x + y, saturated, to the address `out`, as integers of `size` bytes.  x, y [D], at most 16 bits."""
    width = y.shape[0]
    if size == 1:
        target8 = int8_at(out, width)
        for d in range(width):
            target8[d] = saturate(np.int64(x[d]) + y[d], low, high)
    else:
        target16 = int16_at(out, width)
        low32, high32 = np.int32(low), np.int32(high)
        for d in range(width):
            target16[d] = min(max(np.int32(np.int32(x[d]) + np.int32(y[d])), low32), high32)
