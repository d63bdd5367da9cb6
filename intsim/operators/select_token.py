"""One row of the residual stream: the class token's (SPEC 5.10)."""

from __future__ import annotations

from intsim.arithmetic import Int64
from intsim.operators.base import Kind, PortSpec, View


class SelectToken(Kind):
    """x [L, D] -> out [1, D] = x[position]."""

    name = "select_token"
    inputs = ("x",)
    outputs = ("out",)
    attributes = ("position",)

    def ports(self, v: View) -> dict[str, PortSpec]:
        x = v.input("x")
        v.require(x.axes == ("token", "channel") and x.bits <= 16 and x.signed, "input x must be a residual tensor")
        v.require(not x.terms and x.exponent is not None, "input x must have one exponent")
        v.attribute("position", 0, x.shape[0] - 1)
        return {"out": PortSpec(("token", "channel"), (1, x.shape[1]), 16, bits=x.bits, exponent=x.exponent)}

    def run(self, v: View, x: dict[str, Int64]) -> dict[str, Int64]:
        position = v.op.attributes["position"]
        return {"out": x["x"][position : position + 1]}
