# mypy: allow-untyped-defs
"""rmsnorm (SPEC 5.3)."""

from __future__ import annotations

import numpy as np

from intsim.arithmetic import limits
from intsim.kernels import vector as v
from intsim.kernels.base import In, Kernel, Out, pad
from intsim.kernels.common import bit_length, isqrt, kernel, round_shift
from intsim.kernels.memory import int8_at, int16_at, int32_at, int64_at
from intsim.kernels.requantize import BYTE, Requantize, half_lanes, requantize_lanes, store_lanes
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
        # 32 bits hold |normed * gamma| < 2^29 and half a unit of a shift up to 30
        narrow = int(step.narrow and step.shift.max() <= 30)
        assert [self.tensor(p).dtype.itemsize for p in ("square_sum", "rsqrt", "normed")] == [8, 4, 4]
        self.numbers = [
            *(In("x"), Out("square_sum"), Out("rsqrt"), Out("normed"), Out("out"), x.dtype.itemsize, width),
            *(int(op.attributes[name]) for name in ("eps_q", "d_norm", "d_shift")),
            *(self.keep(gamma), self.keep(step.shift), self.mode, *limits(out.bits, out.signed), narrow),
        ]
        self.row_cost = 100 + width // 2
        self.scratch = 8 * len(gamma)

    def inner(self) -> tuple[str, ...]:
        return ("square_sum", "rsqrt", "normed")


@kernel
def rmsnorm(a, start, stop, scratch):
    """Rows start .. stop - 1 of all images.  a: RmsNorm.arguments()."""
    x, squares_out, root_out, normed_out, out, size, width, eps_q, d_norm, d_shift = a[:10]
    gamma_at, shift_at, mode, low, high, narrow = a[10:16]
    padded = (width + 15) // 16 * 16
    gamma, shift = int32_at(gamma_at, padded), int32_at(shift_at, padded)
    q, n = int32_at(scratch, padded), int32_at(scratch + 4 * padded, padded)
    for d in range(width, padded):
        n[d] = 0
    for r in range(start, stop):
        if size == 1:
            row8 = int8_at(x + r * width, width)
            for d in range(width):
                q[d] = row8[d]
        else:
            row16 = int16_at(x + 2 * r * width, width)
            for d in range(width):
                q[d] = row16[d]
        squares = eps_q
        for d in range(width):
            squares += np.int64(np.int32(q[d] * q[d]))  # at most 2^30
        k = (32 - bit_length(squares)) >> 1
        w = squares << (2 * k) if k >= 0 else squares >> (-2 * k)
        root = isqrt((d_norm << 52) // w)
        if squares_out:
            int64_at(squares_out, r + 1)[r] = squares
        if root_out:
            int32_at(root_out, r + 1)[r] = root
        s = 14 + d_shift - k
        factor = np.int32(root)
        if mode <= 1 and s > 0:
            half = (np.int64(1) << (s - 1)) & -mode
            for d in range(width):
                n[d] = (np.int64(q[d]) * np.int64(factor) + half) >> s
        else:
            for d in range(width):
                n[d] = round_shift(np.int64(q[d]) * root, s, mode)
        if normed_out:
            target = int32_at(normed_out + 4 * r * width, width)
            for d in range(width):
                target[d] = n[d]
        if out:
            for d in range(0, padded, 16):
                product = v.mul(v.load_int32(n, d), v.load_int32(gamma, d))
                count = v.load_int32(shift, d)
                half_of = half_lanes(v.maximum(count, v.splat(np.int32(0))), mode)
                y = requantize_lanes(product, count, half_of, mode, low, high, narrow)
                store_lanes(out + r * width + d, BYTE, min(16, width - d), y)
