"""rmsnorm (SPEC 5.3): square root and quotient are exact in float64, by comparison instead of division."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import torch
from torch import Tensor

from bitexact.fakequant.common import Reals, Step, magnitude, power_of_two
from intsim.errors import UserError
from intsim.program import Operator, Program

POWERS = 64  # 2^i is tabulated for |i| <= POWERS: no pow() whose rounding a library decides
HALF = 16  # bits in the lower part of w in `admits`


class RMSNorm(Step):
    """x [n, L, D] -> square_sum, rsqrt [n, L], normed, out [n, L, D].

    `rsqrt` is given as the integer of SPEC 5.3 (its scale changes from token to token).
    """

    kind = "rmsnorm"

    def __init__(self, program: Program, op: Operator, device: torch.device):
        super().__init__(program, op, device)
        x, scale = self.source("x"), self.e_in("x")
        if scale.size != 1:
            raise UserError(f"operator {op.name}: its input has terms, which rmsnorm does not allow")
        self.e = int(scale.flat[0])
        width = x.shape[1]
        self.eps_q, self.d_norm, self.d_shift = (int(op.attributes[a]) for a in ("eps_q", "d_norm", "d_shift"))
        self.exact.value("square_sum", self.eps_q + width * magnitude(x) ** 2, 2 * self.e)
        self.exact.value("w", 1 << 32, 0)
        self.exact.value("a part of r * r * w", 1 << 50, 0)
        # q * r in units that change with k: 14 + a - k is -1 .. 24 + a; rounded to multiples of 2^-12
        self.exact.rounding("q * rsqrt", magnitude(x) << 17, 0, np.arange(-2, 32), None)
        normed = magnitude(self.made("normed"))
        gamma = self.integers("gamma")
        self.bound_requantize("out", np.abs(gamma) * normed, self.constant_exponents("gamma") + self.e_out("normed"))
        self.settle()
        if self.dtype != torch.float64:
            raise AssertionError("rmsnorm is computed in float64")
        self.gamma = self.constant("gamma")
        self.normed = self.grid("normed", saturate=False)
        self.out = self.grid("out")
        self.powers = power_of_two(np.arange(-POWERS, POWERS + 1), self.dtype, device)

    def power(self, i: Tensor) -> Tensor:
        """2^i for an integer tensor i."""
        return self.powers[i + POWERS]

    def normalise(self, square_sum: Tensor) -> tuple[Tensor, Tensor]:
        """(k, w): an even shift that leaves 31 or 32 significant bits.  square_sum: integers as float64."""
        _, bits = torch.frexp(square_sum)  # m * 2^bits with 1/2 <= m < 1: the bit length
        k = torch.div(32 - bits.to(torch.int64), 2, rounding_mode="floor")
        return k, torch.floor(square_sum * self.power(2 * k))

    def admits(self, r: Tensor, w: Tensor) -> Tensor:
        """Whether r * r * w <= d_norm * 2^52, that is r * r <= floor(d_norm * 2^52 / w).  Every value is exact.

        w = high * 2^16 + low: both products stay below 2^50, and low's part only matters rounded up.
        """
        high = torch.floor(w * 2.0**-HALF)
        low = w - high * 2.0**HALF
        square = r * r
        return square * high + torch.ceil(square * low * 2.0**-HALF) <= self.d_norm * 2.0 ** (52 - HALF)

    def root(self, w: Tensor) -> Tensor:
        """The largest integer r with r * r <= floor(d_norm * 2^52 / w): an estimate, off by at most 1, corrected."""
        r = torch.floor(torch.sqrt(self.d_norm * 2.0**52 / w))
        r = torch.where(self.admits(r, w), r, r - 1)
        return torch.where(self.admits(r + 1, w), r + 1, r)

    def __call__(self, inputs: Reals, wanted: Collection[str]) -> Reals:
        x = inputs["x"].to(self.dtype)
        square_sum = (x * x).sum(-1) + self.eps_q * 2.0 ** (2 * self.e)
        k, w = self.normalise(square_sum * 2.0 ** (-2 * self.e))
        rsqrt = self.root(w)
        # the real value of rsqrt is sqrt(D / square_sum): r * 2^(k - 26 - d_shift) in units of x
        scale = rsqrt * self.power(k - 26 - self.d_shift) * 2.0**-self.e
        normed = self.normed(x * scale[..., None])
        return {"square_sum": square_sum, "rsqrt": rsqrt, "normed": normed, "out": self.out(normed * self.gamma)}
