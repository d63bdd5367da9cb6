"""Selective scan of one direction, in processing order (SPEC 5.7)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from intsim.arithmetic import Int64, requantize, round_shift
from intsim.operators.base import (
    ACCUMULATOR_BITS,
    Bound,
    ConstSpec,
    Kind,
    PortSpec,
    View,
    offsets,
    rounding_constant,
)
from intsim.operators.exp2 import ROM_SIZE, exp2
from intsim.program import Tensor, Term

B_LIMIT = (1 << 30) - 1


class Scan(Kind):
    """delta [L, E] unsigned, u [L, E], B [L, N], C [L, N] -> dx, abar, b, acc, h, y_acc, y."""

    name = "scan"
    inputs = ("delta", "u", "B", "C")
    outputs = ("dx", "abar", "b", "acc", "h", "y_acc", "y")
    attributes = ("abar_fraction",)
    narrowable = ("acc", "y_acc")

    def sizes(self, v: View) -> tuple[int, int, int]:
        tokens, channels = v.input("u").shape
        return tokens, channels, v.input("B").shape[1]

    def ports(self, v: View) -> dict[str, PortSpec]:
        delta, u = v.activation("delta", signed=False), v.activation("u")
        b, c = v.activation("B"), v.activation("C")
        v.no_groups(delta, "token")
        v.no_groups(u, "token")
        v.require(not b.terms and not c.terms, "inputs B and C may not have groups")
        v.require(delta.shape == u.shape, f"delta is {list(delta.shape)}, u is {list(u.shape)}")
        v.require(b.shape == c.shape and b.shape[0] == u.shape[0], "B and C differ in shape, or in tokens from u")
        v.attribute("abar_fraction", 1, 15)
        tokens, channels, states = self.sizes(v)
        v.require(states <= 256, f"{states} states, at most 256 are allowed")
        return {
            "h": PortSpec(("token", "channel", "state"), (tokens, channels, states), 16, role="state"),
            "y": PortSpec(("token", "channel"), (tokens, channels), 8, group_axes=("token",)),
        }

    def given(self, v: View) -> dict[str, ConstSpec]:
        tokens, channels, states = self.sizes(v)
        a_term = (v.offset_term("channel", "A_exponent"),)
        return {
            "A": ConstSpec(("channel", "state"), (channels, states), 8, False, 0, a_term),
            "A_exponent": offsets("channel", channels),
            "D": ConstSpec(("channel",), (channels,), 24, True, None),
            "state_channel_shift": ConstSpec(("channel",), (channels,), 8, True, low=0, high=127),
            "state_token_shift": ConstSpec(("token",), (tokens,), 8, True, low=0, high=15),
            "exp2_rom": ConstSpec(("entry",), (ROM_SIZE,), 32, True, low=65536, high=131072),
        }

    def derived_constants(self, v: View) -> dict[str, tuple[ConstSpec, Int64]]:
        _, channels, _ = self.sizes(v)
        m = v.op.attributes["abar_fraction"]
        base, s_c, s_l = v.out_exponent("h"), v.array("state_channel_shift"), v.array("state_token_shift")
        fraction = -(v.exponents("delta") + v.array("A_exponent"))
        v.require(
            bool((fraction >= 0).all() and (fraction <= 31).all()),
            f"A_fraction spans {fraction.min()} .. {fraction.max()}, allowed are 0 .. 31",
        )
        b_shift = (base + s_c - m) - (v.exponents("delta") + v.exponents("u") + v.exponent("B"))
        y_shift = v.out_exponent("y") - (base + s_c + v.exponent("C"))
        v.check_shifts("b_shift + state_token_shift", b_shift, s_l)
        v.check_shifts("y_shift + group shift of y", y_shift, v.out_shifts("y", "token"))
        return {
            "A_fraction": (ConstSpec(("channel",), (channels,), 8, True, low=0, high=31), fraction),
            "b_shift": (offsets("channel", channels), b_shift),
            "y_shift": (offsets("channel", channels), y_shift),
        }

    def state_terms(self, v: View) -> tuple[Term, Term]:
        return v.offset_term("channel", "state_channel_shift"), v.offset_term("token", "state_token_shift")

    def derived_tensors(self, v: View) -> dict[str, Tensor]:
        tokens, channels, states = self.sizes(v)
        m = v.op.attributes["abar_fraction"]
        cube, cube_axes = (tokens, channels, states), ("token", "channel", "state")
        flat, flat_axes = (tokens, channels), ("token", "channel")
        terms = self.state_terms(v)
        base = v.out_exponent("h")
        delta, u = v.input("delta"), v.input("u")
        e_dx = v.exponent("delta") + v.exponent("u")
        return {
            "dx": v.declare("dx", "internal", flat_axes, flat, 16, True, e_dx, delta.terms + u.terms),
            "abar": v.declare("abar", "internal", cube_axes, cube, m + 1, False, -m),
            "b": v.declare("b", "internal", cube_axes, cube, 31, True, base - m, terms),
            "acc": v.declare("acc", "accumulator", cube_axes, cube, ACCUMULATOR_BITS, True, base - m, terms),
            "y_acc": v.declare(
                "y_acc", "accumulator", flat_axes, flat, ACCUMULATOR_BITS, True, base + v.exponent("C"), terms[:1]
            ),
        }

    def bounds(self, v: View) -> dict[str, Bound]:
        m = v.op.attributes["abar_fraction"]
        h_low, h_high = -(1 << (v.output("h").bits - 1)), (1 << (v.output("h").bits - 1)) - 1
        acc_low = (h_low << m) - B_LIMIT
        acc_high = (h_high << m) + B_LIMIT + (1 << (m - 1))
        states = v.input("C").shape[1]
        c_low = -(1 << (v.input("C").bits - 1))
        shift = int(v.array("state_token_shift").max())
        u_low, u_high = -(1 << (v.input("u").bits - 1)), (1 << (v.input("u").bits - 1)) - 1
        d = v.array("D")
        sum_high = (states * h_low * c_low) << shift  # (-2^(b-1)) * (-2^(b-1)) is the largest product
        sum_low = (states * max(h_high * -c_low, -h_low * (-c_low - 1)) * -1) << shift
        after = rounding_constant(v.array("y_shift") + v.out_shifts("y", "token").max())
        return {
            "acc": Bound(np.array([acc_low]), np.array([acc_high])),
            "y_acc": Bound(
                np.minimum(d * u_low, d * u_high) + sum_low, np.maximum(d * u_low, d * u_high) + sum_high + after
            ),
        }

    def run(self, v: View, x: dict[str, Int64]) -> dict[str, Int64]:
        tokens, channels, states = self.sizes(v)
        mode, m = v.rounding, v.op.attributes["abar_fraction"]
        a, fraction, rom = v.array("A"), v.array("A_fraction"), v.array("exp2_rom")
        s_l, b_shift, y_shift = v.array("state_token_shift"), v.array("b_shift"), v.array("y_shift")
        d, y_group = v.array("D"), v.out_shifts("y", "token")
        h_bits, y_bits = v.output("h").bits, v.output("y").bits
        delta, u, b_in, c_in = x["delta"], x["u"], x["B"], x["C"]

        dx = delta * u
        cube = np.zeros((tokens, channels, states), dtype=np.int64)
        made = {"dx": dx, "abar": cube, "b": cube.copy(), "acc": cube.copy(), "h": cube.copy()}
        made |= {"y_acc": np.zeros_like(dx), "y": np.zeros_like(dx)}
        state = np.zeros((channels, states), dtype=np.int64)

        def narrow(b: Int64, decayed: Int64) -> Int64:
            return v.accumulate("acc", b, [decayed])

        add = narrow if v.narrow("acc") else np.add
        for t in range(tokens):
            if t > 0:
                state = requantize(state, s_l[t] - s_l[t - 1], h_bits, True, mode)
            abar = exp2(delta[t, :, None] * a, fraction[:, None], m, rom, mode)
            now = step(abar, dx[t], b_in[t], state, b_shift + s_l[t], m, h_bits, mode, add)
            products = (now["h"] * c_in[t]) << s_l[t]
            if v.narrow("y_acc"):
                now["y_acc"] = v.accumulate("y_acc", d * u[t], products.T)
            else:
                now["y_acc"] = d * u[t] + products.sum(axis=1)
            now["y"] = requantize(now["y_acc"], y_shift + y_group[t], y_bits, True, mode)
            state = now["h"]
            for port, value in now.items():
                made[port][t] = value
        return made


def step(
    abar: Int64,
    dx: Int64,
    b_in: Int64,
    state: Int64,
    shift: object,
    m: int,
    h_bits: int,
    mode: str,
    add: Callable[[Int64, Int64], Int64] = np.add,
) -> dict[str, Int64]:
    """One token's abar, b, acc and h (SPEC 5.7).

    abar [..., N]; dx [...]; b_in [N] or [..., N]; state [..., N], already at this token's exponent; shift [...], the
    channel's and the token's together.  add(b, abar h'): acc, by another rule where it is narrow (SPEC section 13).
    """
    aligned = round_shift(dx[..., None] * b_in, np.asarray(shift)[..., None], mode)
    b = np.clip(aligned, -B_LIMIT, B_LIMIT)
    acc = add(b, abar * state)
    return {"abar": abar, "b": b, "acc": acc, "h": requantize(acc, m, h_bits, True, mode)}
