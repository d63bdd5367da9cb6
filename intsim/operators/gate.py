"""Gate (SPEC 5.8): (forward + reversed backward) / 2, times silu(z)."""

from __future__ import annotations

import numpy as np

from intsim.arithmetic import Int64, requantize, saturate, wrap
from intsim.operators.base import (
    ACCUMULATOR_BITS,
    Bound,
    ConstSpec,
    Kind,
    PortSpec,
    View,
    format_limits,
    offsets,
    rounding_constant,
)
from intsim.program import Tensor


class Gate(Kind):
    """y [L, E] token order, y_b [L, E] processing order, g [L, E] -> acc, out [L, E]."""

    name = "gate"
    inputs = ("y", "y_b", "g")
    outputs = ("acc", "out")
    narrowable = ("acc",)

    def ports(self, v: View) -> dict[str, PortSpec]:
        y, y_b, g = v.activation("y"), v.activation("y_b"), v.activation("g")
        v.no_groups(y, "channel")
        v.no_groups(y_b, "channel")
        v.no_groups(g, "token")
        v.require(y.shape == y_b.shape == g.shape, "inputs y, y_b and g differ in shape")
        return {"out": PortSpec(("token", "channel"), y.shape, 8, group_axes=("token", "channel"))}

    def derived_attributes(self, v: View) -> dict[str, int]:
        e_y, e_y_b = v.exponent("y"), v.exponent("y_b")
        low = min(e_y, e_y_b)
        v.require(max(e_y, e_y_b) - low <= 31, f"exponents of y ({e_y}) and y_b ({e_y_b}) differ by more than 31")
        return {"y_align": e_y - low, "y_b_align": e_y_b - low}

    def sum_exponent(self, v: View) -> int:
        return min(v.exponent("y"), v.exponent("y_b")) - 1

    def derived_constants(self, v: View) -> dict[str, tuple[ConstSpec, Int64]]:
        shift = v.out_exponents("out") - (self.sum_exponent(v) + v.exponents("g"))
        v.check_shifts("shift + group shift of out", shift, v.out_shifts("out", "token"))
        return {"shift": (offsets("channel", len(shift)), shift)}

    def derived_tensors(self, v: View) -> dict[str, Tensor]:
        g = v.input("g")
        exponent = self.sum_exponent(v) + v.exponent("g")
        axes = ("token", "channel")
        return {"acc": v.declare("acc", "accumulator", axes, g.shape, ACCUMULATOR_BITS, True, exponent, g.terms)}

    def bounds(self, v: View) -> dict[str, Bound]:
        attributes = v.op.attributes
        low = high = 0  # of the sum of the two directions
        for port, align in (("y", attributes["y_align"]), ("y_b", attributes["y_b_align"])):
            smallest, largest = format_limits(v.input(port))
            shift = align + int(v.shifts(port, "token").max())
            low += smallest << shift
            high += largest << shift
        g_low, g_high = format_limits(v.input("g"))
        products = [low * g_low, low * g_high, high * g_low, high * g_high]
        if max(map(abs, products)) >= 1 << 62:
            v.fail(f"acc needs more than 62 bits, {ACCUMULATOR_BITS} are allowed (alignment shifts {attributes})")
        after = rounding_constant(v.array("shift") + v.out_shifts("out", "token").max())
        return {"acc": Bound(np.array([min(products)]), max(products) + after)}

    def run(self, v: View, x: dict[str, Int64]) -> dict[str, Int64]:
        y_shift = v.op.attributes["y_align"] + v.shifts("y", "token")
        y_b_shift = v.op.attributes["y_b_align"] + v.shifts("y_b", "token")
        forward = x["y"] << y_shift[:, None]
        backward = (x["y_b"] << y_b_shift[:, None])[::-1]
        acc = (forward + backward) * x["g"]
        if v.narrow("acc"):
            acc = self.narrow_product(v, forward, backward, x["g"])
        out = v.output("out")
        shift = v.array("shift")[None, :] + v.out_shifts("out", "token")[:, None]
        return {"acc": acc, "out": requantize(acc, shift, out.bits, out.signed, v.rounding)}

    def narrow_product(self, v: View, forward: Int64, backward: Int64, g: Int64) -> Int64:
        """(forward + backward) * g with sum and product in the narrow accumulator (SPEC section 13)."""
        register = v.output("acc")
        exact = (forward + backward) * g
        result = wrap(exact, register.bits)
        if register.overflow == "saturate":
            total = saturate(saturate(forward, register.bits, True) + backward, register.bits, True)
            result = saturate(total * g, register.bits, True)
        v.count("acc", result, exact)
        return result
