# mypy: allow-untyped-defs
"""insert_token (SPEC 5.2): the class token in the middle, and the position embedding."""

from __future__ import annotations

import numpy as np

from intsim.arithmetic import limits
from intsim.kernels.base import In, Kernel, Out
from intsim.kernels.common import kernel, saturate
from intsim.kernels.memory import int8_at, int16_at, int32_at
from intsim.program import Operator, Program


class InsertToken(Kernel):
    """Input x [P, D]; `out` [P + 1, D]."""

    code = 2

    def __init__(self, program: Program, op: Operator):
        super().__init__(program, op)
        out = self.tensor("out")
        self.tokens, width = out.shape
        token, embedding = self.constant("cls_token", np.int32), self.constant("pos_embed", np.int32)
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
        position_row = int32_at(embedding + t * width * 4, width)
        source = x + (image * (tokens - 1) + t - (t > position)) * width * size
        if t == position:
            insert_row(int32_at(token, width), position_row, low, high, size, out + r * width * size)
        elif size == 1:
            insert_row(int8_at(source, width), position_row, low, high, size, out + r * width * size)
        else:
            insert_row(int16_at(source, width), position_row, low, high, size, out + r * width * size)


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
