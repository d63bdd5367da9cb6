# mypy: allow-untyped-defs
"""rmsnorm (SPEC 5.3)."""

from __future__ import annotations

import numpy as np

from intsim.arithmetic import limits
from intsim.kernels import vector as v
from intsim.kernels.base import In, Kernel, Out, pad
from intsim.kernels.common import ROOTS, bit_length, find_roots, kernel, round_shift
from intsim.kernels.memory import int8_at, int16_at, int32_at, int64_at
from intsim.kernels.requantize import BYTE, Requantize, requantize_lanes, store_lanes
from intsim.program import Operator, Program


class RmsNorm(Kernel):
    """Input x [L, D]; `square_sum`, `rsqrt` [L]; `normed`, `out` [L, D]."""

    code = 8
    aligned = ("x",)

    def __init__(self, program: Program, op: Operator):
        super().__init__(program, op)
        x, out = self.input("x"), self.tensor("out")
        self.tokens, width = out.shape
        gamma = pad(self.constant("gamma", np.int32), v.LANES)
        step = Requantize(out, self.constant("shift", np.int64), np.zeros(1, dtype=np.int64), self.mode)
        assert [self.tensor(p).dtype.itemsize for p in ("square_sum", "rsqrt", "normed")] == [8, 4, 4]
        self.numbers = [
            *(In("x"), Out("square_sum"), Out("rsqrt"), Out("normed"), Out("out"), x.dtype.itemsize, width),
            *(int(op.attributes[name]) for name in ("eps_q", "d_norm", "d_shift")),
            *(self.keep(gamma), self.keep(step.shift), self.keep(step.rounding)),
            *(self.mode, *limits(out.bits, out.signed), step.narrow),  # |normed * gamma| is at most 2^29
        ]
        self.row_cost = 30 + width // 6
        self.scratch = 24 * ROOTS + 4 * (1 + ROOTS) * len(gamma)

    def inner(self) -> tuple[str, ...]:
        return ("square_sum", "rsqrt", "normed")


X, SQUARE_SUM, RSQRT, NORMED, OUT, SIZE, WIDTH, EPS_Q, D_NORM, D_SHIFT, GAMMA, SHIFT, ROUNDING = range(13)
MODE, LOW, HIGH, NARROW = range(13, 17)


@kernel
def rmsnorm(a, start, stop, scratch):
    """Rows start .. stop - 1 of all images.  a: RmsNorm.arguments()."""
    for first in range(start, stop, ROOTS):
        norm_rows(a, first, min(ROOTS, stop - first), scratch)


@kernel
def norm_rows(a, first, rows, scratch):
    """`rows` rows, at most ROOTS, from `first` on: their roots are found together."""
    x, size, width, mode = a[X] + first * a[WIDTH] * a[SIZE], a[SIZE], a[WIDTH], a[MODE]
    padded = (width + 15) // 16 * 16
    gamma, shift, rounding = int32_at(a[GAMMA], padded), int32_at(a[SHIFT], padded), int32_at(a[ROUNDING], padded)
    found, n = int64_at(scratch, 3 * ROOTS), int32_at(scratch + 24 * ROOTS, padded)
    quotients, roots, ks = found[:ROOTS], found[ROOTS : 2 * ROOTS], found[2 * ROOTS :]
    q_rows = scratch + 24 * ROOTS + 4 * padded
    for i in range(rows):
        q = int32_at(q_rows + 4 * padded * i, padded)
        read_row(x + i * width * size, size, width, q)
        squares = a[EPS_Q]
        for d in range(width):
            squares += np.int64(np.int32(q[d] * q[d]))  # at most 2^30
        k = (32 - bit_length(squares)) >> 1
        w = squares << (2 * k) if k >= 0 else squares >> (-2 * k)
        quotients[i], ks[i] = (a[D_NORM] << 52) // w, k
        if a[SQUARE_SUM]:
            int64_at(a[SQUARE_SUM] + 8 * (first + i), 1)[0] = squares
    find_roots(quotients, roots)  # behind the rows, of whatever is there
    for i in range(rows):
        q = int32_at(q_rows + 4 * padded * i, padded)
        root, s = roots[i], 14 + a[D_SHIFT] - ks[i]
        if mode <= 1 and s >= 0:
            half = ((np.int64(1) << s) >> 1) & -mode
            for d in range(0, padded, 16):
                v.store_int32(n, d, v.scaled(v.load_int32(q, d), root, half, s))
        else:
            for d in range(width):
                n[d] = round_shift(q[d] * root, s, mode)
        if a[RSQRT]:
            int32_at(a[RSQRT] + 4 * (first + i), 1)[0] = root
        if a[NORMED]:
            target = int32_at(a[NORMED] + 4 * (first + i) * width, width)
            for d in range(width):
                target[d] = n[d]
        if a[OUT]:
            out = a[OUT] + (first + i) * width
            for d in range(0, padded, 16):
                product = v.mul(v.load_int32(n, d), v.load_int32(gamma, d))
                count, unit = v.load_int32(shift, d), v.load_int32(rounding, d)
                y = requantize_lanes(product, count, unit, mode, a[LOW], a[HIGH], a[NARROW])
                store_lanes(out + d, BYTE, min(16, width - d), y)


@kernel
def read_row(address, size, width, q):
    """q[d] = the integers of `size` bytes, 1 or 2, at an address."""
    if size == 1:
        octets = int8_at(address, width)
        for d in range(width):
            q[d] = octets[d]
    else:
        words = int16_at(address, width)
        for d in range(width):
            q[d] = words[d]
