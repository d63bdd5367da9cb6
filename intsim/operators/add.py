"""Saturating addition on the residual stream (SPEC 5.9)."""

from __future__ import annotations

from intsim.arithmetic import Int64, saturate
from intsim.operators.base import Kind, PortSpec, View


class Add(Kind):
    """x, y [L, D] in the residual format -> out [L, D]."""

    name = "add"
    inputs = ("x", "y")
    outputs = ("out",)

    def ports(self, v: View) -> dict[str, PortSpec]:
        x, y = v.input("x"), v.input("y")
        v.require(x.axes == ("token", "channel") and x.shape == y.shape, "inputs x and y differ in shape")
        v.require(x.bits <= 16 and x.signed and not x.terms, "input x must be a residual tensor")
        same = (x.bits, x.signed, x.exponent, x.terms) == (y.bits, y.signed, y.exponent, y.terms)
        v.require(same, f"inputs differ in format: {x.name} and {y.name}")
        return {"out": PortSpec(("token", "channel"), x.shape, 16, bits=x.bits, exponent=x.exponent)}

    def run(self, v: View, x: dict[str, Int64]) -> dict[str, Int64]:
        out = v.output("out")
        return {"out": saturate(x["x"] + x["y"], out.bits, out.signed)}
