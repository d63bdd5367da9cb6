"""Class token in the middle and position embedding (SPEC 5.2)."""

from __future__ import annotations

import numpy as np

from intsim.arithmetic import Int64, saturate
from intsim.operators.base import ConstSpec, Kind, PortSpec, View


class InsertToken(Kind):
    """x [P, D] -> out [P + 1, D], both in the residual format."""

    name = "insert_token"
    inputs = ("x",)
    outputs = ("out",)
    attributes = ("position",)

    def ports(self, v: View) -> dict[str, PortSpec]:
        x = v.input("x")
        v.require(x.axes == ("token", "channel") and x.bits <= 16 and x.signed, "input x must be a residual tensor")
        v.require(not x.terms and x.exponent is not None, "input x must have one exponent")
        tokens, width = x.shape
        v.attribute("position", tokens // 2, tokens // 2)
        return {"out": PortSpec(("token", "channel"), (tokens + 1, width), 16, bits=x.bits, exponent=x.exponent)}

    def given(self, v: View) -> dict[str, ConstSpec]:
        out = v.output("out")
        tokens, width = out.shape
        return {
            "cls_token": ConstSpec(("channel",), (width,), out.bits, True, out.exponent),
            "pos_embed": ConstSpec(("token", "channel"), (tokens, width), out.bits, True, out.exponent),
        }

    def run(self, v: View, x: dict[str, Int64]) -> dict[str, Int64]:
        position = v.op.attributes["position"]
        rows = np.concatenate([x["x"][:position], v.array("cls_token")[None, :], x["x"][position:]])
        out = v.output("out")
        return {"out": saturate(rows + v.array("pos_embed"), out.bits, out.signed)}
