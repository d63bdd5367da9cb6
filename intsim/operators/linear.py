"""Linear (SPEC 5.4): int8 x int8, groups shifted inside the accumulator, one requantization."""

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


class Linear(Kind):
    """x [L, I] -> acc [L, O] and one output for each segment of rows."""

    name = "linear"
    inputs = ("x",)
    outputs = ()
    attributes = ("segments",)
    narrowable = ("acc",)

    def segments(self, v: View) -> list[tuple[str, int, int]]:
        """(port, start, stop) of each segment; they must cover the rows without a gap."""
        found: list[tuple[str, int, int]] = []
        end = 0
        listed = v.op.attributes.get("segments")
        if not isinstance(listed, list) or not listed:
            v.fail("attribute segments must be a list")
        for item in listed:
            v.require(
                isinstance(item, dict)
                and set(item) == {"port", "start", "stop"}
                and isinstance(item["port"], str)
                and type(item["start"]) is int
                and type(item["stop"]) is int,
                f"segment {item!r} must have port, start and stop",
            )
            port, start, stop = item["port"], item["start"], item["stop"]
            v.require(start == end < stop, f"segment {port} covers rows {start} .. {stop}, must start at {end}")
            v.require(port != "acc" and port not in [p for p, _, _ in found], f"segment port {port!r} is taken")
            found.append((port, start, stop))
            end = stop
        return found

    def order(self, v: View) -> tuple[str, ...]:
        return ("acc", *(port for port, _, _ in self.segments(v)))

    def ports(self, v: View) -> dict[str, PortSpec]:
        x = v.activation("x")
        segments = self.segments(v)
        rows = len(v.array("bias"))
        v.require(segments[-1][2] == rows, f"segments end at row {segments[-1][2]}, weight has {rows} rows")
        axes = ("token", "channel")
        return {p: PortSpec(axes, (x.shape[0], b - a), 32, group_axes=("channel",)) for p, a, b in segments}

    def given(self, v: View) -> dict[str, ConstSpec]:
        x = v.input("x")
        rows = self.segments(v)[-1][2]
        term = (v.offset_term("channel", "weight_exponent"),)
        return {
            "weight": ConstSpec(("channel", "input"), (rows, x.shape[1]), 8, True, 0, term),
            "weight_exponent": offsets("channel", rows),
            "bias": ConstSpec(("channel",), (rows,), 32, True, x.exponent, term),
        }

    def derived_constants(self, v: View) -> dict[str, tuple[ConstSpec, Int64]]:
        wanted = np.concatenate([v.out_exponents(port) for port, _, _ in self.segments(v)])
        for port, _, _ in self.segments(v):
            bits = v.output(port).bits
            v.require(bits <= 16 or bits == 32, f"output {port} has {bits} bits, allowed are up to 16, or 32")
        shift = wanted - (v.exponent("x") + v.array("weight_exponent"))
        v.check_shifts("shift", shift)
        return {"shift": (offsets("channel", len(shift)), shift)}

    def derived_tensors(self, v: View) -> dict[str, Tensor]:
        x = v.input("x")
        shape = (x.shape[0], self.segments(v)[-1][2])
        term = (v.offset_term("channel", "weight_exponent"),)
        axes = ("token", "channel")
        return {"acc": v.declare("acc", "accumulator", axes, shape, ACCUMULATOR_BITS, True, x.exponent, term)}

    def bounds(self, v: View) -> dict[str, Bound]:
        low, high = format_limits(v.input("x"))
        shift = v.shifts("x", "channel")[None, :] + v.shifts("x", "token").max()
        return {"acc": dot_bound(v.array("weight"), low, high, shift, v.array("bias"), v.array("shift"))}

    def channels_in_order(self, v: View) -> list[int]:
        """Input channels in the order in which they are added: groups ascending, channels ascending in a group."""
        x = v.input("x")
        group = x.group("channel")
        if group is None:
            return list(range(x.shape[1]))
        return [int(c) for c in np.argsort(v.program.arrays[group.index or ""], kind="stable")]

    def run(self, v: View, x: dict[str, Int64]) -> dict[str, Int64]:
        weight, bias, shift = v.array("weight"), v.array("bias"), v.array("shift")
        channel_shift, token_shift = v.shifts("x", "channel"), v.shifts("x", "token")
        acc = np.zeros((len(x["x"]), len(weight)), dtype=np.int64)
        if v.narrow("acc"):
            products = (
                (x["x"][:, c, None] * weight[:, c]) << (token_shift[:, None] + channel_shift[c])
                for c in self.channels_in_order(v)
            )
            acc = v.accumulate("acc", acc + bias, products)
        else:
            for s in np.unique(channel_shift):
                members = channel_shift == s
                acc += (x["x"][:, members] @ weight[:, members].T) << s
            acc = (acc << token_shift[:, None]) + bias
        made = {"acc": acc}
        for port, start, stop in self.segments(v):
            out = v.output(port)
            part = acc[:, start:stop]
            made[port] = requantize(part, shift[start:stop], out.bits, out.signed, v.rounding)
        return made
