# mypy: allow-untyped-defs
"""select_token (SPEC 5.10): the class token's row."""

from __future__ import annotations

from intsim.kernels.base import In, Kernel, Out
from intsim.kernels.common import kernel
from intsim.kernels.memory import int8_at
from intsim.program import Operator, Program


class SelectToken(Kernel):
    """Input x [L, D]; `out` [1, D]."""

    code = 4
    tokens = 1
    row_cost = 20

    def __init__(self, program: Program, op: Operator):
        super().__init__(program, op)
        x = self.input("x")
        bytes_ = x.shape[1] * x.dtype.itemsize
        self.numbers = [In("x"), Out("out"), x.shape[0], int(op.attributes["position"]), bytes_]


@kernel
def select_token(a, start, stop):
    """Images start .. stop - 1.  a: SelectToken.arguments()."""
    x, out, tokens, position, size = a[:5]
    for image in range(start, stop):
        source = int8_at(x + (image * tokens + position) * size, size)
        target = int8_at(out + image * size, size)
        for i in range(size):
            target[i] = source[i]
