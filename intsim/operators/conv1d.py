"""Causal depthwise convolution over tokens, forward or from the last token back (SPEC 5.5)."""

from __future__ import annotations

import numpy as np

from intsim.arithmetic import Int64, requantize
from intsim.operators.base import (
    ACCUMULATOR_BITS,
    Bound,
    ConstSpec,
    Kind,
    PortSpec,
    View,
    dot_bound,
    format_limits,
    offsets,
)
from intsim.program import Tensor


class Conv1d(Kind):
    """x [L, E] in token order -> acc, out [L, E] in processing order."""

    name = "conv1d"
    inputs = ("x",)
    outputs = ("acc", "out")
    attributes = ("reverse",)
    narrowable = ("acc",)

    def ports(self, v: View) -> dict[str, PortSpec]:
        x = v.activation("x")
        v.no_groups(x, "token")
        v.attribute("reverse", 0, 1)
        return {"out": PortSpec(("token", "channel"), x.shape, 8, group_axes=("channel",))}

    def given(self, v: View) -> dict[str, ConstSpec]:
        x = v.input("x")
        channels = x.shape[1]
        weight = v.array("weight")
        v.require(weight.ndim == 2 and 1 <= weight.shape[1] <= 16, "weight must be [channels, taps], 1 to 16 taps")
        term = v.offset_term("channel", "weight_exponent")
        return {
            "weight": ConstSpec(("channel", "tap"), (channels, weight.shape[1]), 8, True, 0, (term,)),
            "weight_exponent": offsets("channel", channels),
            "bias": ConstSpec(("channel",), (channels,), 32, True, x.exponent, (*x.terms, term)),
        }

    def derived_constants(self, v: View) -> dict[str, tuple[ConstSpec, Int64]]:
        shift = v.out_exponents("out") - (v.exponents("x") + v.array("weight_exponent"))
        v.check_shifts("shift", shift)
        return {"shift": (offsets("channel", len(shift)), shift)}

    def derived_tensors(self, v: View) -> dict[str, Tensor]:
        x = v.input("x")
        terms = (*x.terms, v.offset_term("channel", "weight_exponent"))
        axes = ("token", "channel")
        return {"acc": v.declare("acc", "accumulator", axes, x.shape, ACCUMULATOR_BITS, True, x.exponent, terms)}

    def bounds(self, v: View) -> dict[str, Bound]:
        low, high = format_limits(v.input("x"))
        zero = np.zeros((1, 1), dtype=np.int64)
        return {"acc": dot_bound(v.array("weight"), low, high, zero, v.array("bias"), v.array("shift"))}

    def run(self, v: View, x: dict[str, Int64]) -> dict[str, Int64]:
        rows = x["x"][::-1] if v.op.attributes["reverse"] else x["x"]
        weight = v.array("weight")
        taps = weight.shape[1]
        padded = np.concatenate([np.zeros((taps - 1, rows.shape[1]), dtype=np.int64), rows])
        acc = np.broadcast_to(v.array("bias"), rows.shape)
        products = [weight[:, j] * padded[j : j + len(rows)] for j in range(taps)]
        acc = v.accumulate("acc", acc, products) if v.narrow("acc") else acc + sum(products)
        out = v.output("out")
        return {"acc": acc, "out": requantize(acc, v.array("shift"), out.bits, out.signed, v.rounding)}
