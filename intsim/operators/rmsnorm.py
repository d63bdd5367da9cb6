"""RMSNorm with an exact integer square root (SPEC 5.3)."""

from __future__ import annotations

import numpy as np

from intsim.arithmetic import Int64, bit_length, isqrt, requantize, round_shift
from intsim.operators.base import ConstSpec, Kind, PortSpec, View, offsets
from intsim.program import Tensor

NORMED_EXPONENT = -12
NORMED_BITS = 19
SQUARE_SUM_BITS = 48


class RmsNorm(Kind):
    """x [L, D] residual -> square_sum [L], rsqrt [L], normed [L, D], out [L, D]."""

    name = "rmsnorm"
    inputs = ("x",)
    outputs = ("square_sum", "rsqrt", "normed", "out")
    attributes = ("eps_q",)

    def ports(self, v: View) -> dict[str, PortSpec]:
        x = v.input("x")
        v.require(x.axes == ("token", "channel") and x.bits <= 16 and x.signed, "input x must be a residual tensor")
        v.require(not x.terms and x.exponent is not None, "input x must have one exponent")
        v.require(x.shape[1] <= 2047, f"width {x.shape[1]} is above 2047")
        v.attribute("eps_q", 1, 1 << 40)
        return {"out": PortSpec(("token", "channel"), x.shape, 8, group_axes=("channel",))}

    def given(self, v: View) -> dict[str, ConstSpec]:
        width = v.input("x").shape[1]
        term = (v.offset_term("channel", "gamma_exponent"),)
        return {
            "gamma": ConstSpec(("channel",), (width,), 12, True, 0, term),
            "gamma_exponent": offsets("channel", width),
        }

    def derived_attributes(self, v: View) -> dict[str, int]:
        d_norm, a = normalised_width(v.input("x").shape[1])
        return {"d_norm": d_norm, "d_shift": a}

    def derived_constants(self, v: View) -> dict[str, tuple[ConstSpec, Int64]]:
        shift = v.out_exponents("out") - (v.array("gamma_exponent") + NORMED_EXPONENT)
        v.check_shifts("shift", shift)
        return {"shift": (offsets("channel", len(shift)), shift)}

    def derived_tensors(self, v: View) -> dict[str, Tensor]:
        tokens, width = v.input("x").shape
        return {
            "square_sum": v.declare(
                "square_sum", "accumulator", ("token",), (tokens,), SQUARE_SUM_BITS, True, 2 * v.exponent("x")
            ),
            "rsqrt": v.declare("rsqrt", "internal", ("token",), (tokens,), 17, False, None),
            "normed": v.declare(
                "normed", "internal", ("token", "channel"), (tokens, width), NORMED_BITS, True, NORMED_EXPONENT
            ),
        }

    def run(self, v: View, x: dict[str, Int64]) -> dict[str, Int64]:
        q = x["x"]
        d_norm, a = v.op.attributes["d_norm"], v.op.attributes["d_shift"]
        square_sum = (q * q).sum(axis=1) + v.op.attributes["eps_q"]
        rsqrt, k = reciprocal_root(square_sum, d_norm)
        normed = round_shift(q * rsqrt[:, None], (14 + a - k)[:, None], v.rounding)
        out = v.output("out")
        y = requantize(normed * v.array("gamma"), v.array("shift"), out.bits, out.signed, v.rounding)
        return {"square_sum": square_sum, "rsqrt": rsqrt, "normed": normed, "out": y}


def normalised_width(width: int) -> tuple[int, int]:
    """(d_norm, a): width * 4^a with the largest a >= 0 that keeps it below 1024 (SPEC 5.3)."""
    a = 0
    while width * 4 ** (a + 1) < 1024:
        a += 1
    return width * 4**a, a


def reciprocal_root(square_sum: Int64, d_norm: int) -> tuple[Int64, Int64]:
    """(rsqrt, k) of each square_sum >= 1: the root of d_norm * 2^52 / w, w = square_sum * 2^2k (SPEC 5.3)."""
    k = (32 - bit_length(square_sum)) // 2
    w = np.where(k >= 0, square_sum << 2 * np.maximum(k, 0), square_sum >> -2 * np.minimum(k, 0))
    return isqrt((np.int64(d_norm) << np.int64(52)) // w), k
