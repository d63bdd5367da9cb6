"""Witnesses: inputs of an operator, within their proven ranges, that drive its accumulator to an end of its interval.

Each is run through the operator's definition (`intsim.operators`), and the integer that comes out is compared.  For
patch_embed, linear, conv1d and gate both ends of every channel are reached exactly.  For the scan the widest state
and channel are driven as far as a greedy sequence goes (SPEC 12.5): `exact` says whether that is the end itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from intsim.arithmetic import Int64, int64
from intsim.operators import KINDS
from intsim.operators.base import View
from intsim.widths.proof import Proof, Register
from intsim.widths.ranges import Range
from intsim.widths.recurrence import Scan, steps_of

STEPS = 10_000  # tokens of an adversarial sequence, at most


@dataclass
class Witness:
    """What was run.

    register: name.  checked: ends of channels that were run; exact: all of them came out exactly.  channel: the widest
    one (and for a scan its state), with the interval's ends and what came out: low, reached_low, high, reached_high.
    inputs: for "low" and "high" the inputs by port of that channel, as nested lists; tokens: for a scan, how many.
    """

    register: str
    checked: int
    exact: bool
    channel: int
    low: int
    high: int
    reached_low: int
    reached_high: int
    inputs: dict[str, dict[str, list[Any]]] = field(default_factory=dict)
    state: int | None = None
    tokens: dict[str, int] | None = None

    def to_json(self) -> dict[str, Any]:
        found = {
            "checked": self.checked,
            "exact": self.exact,
            "channel": self.channel,
            "low": self.low,
            "reached_low": self.reached_low,
            "high": self.high,
            "reached_high": self.reached_high,
            "inputs": self.inputs,
        }
        if self.state is not None:
            found["state"] = self.state
        if self.tokens is not None:
            found["tokens"] = self.tokens
        return found


def bench(v: View, shapes: dict[str, tuple[int, ...]], arrays: dict[str, Int64]) -> View:
    """The operator on inputs of other shapes (port -> shape) and with other constants (role -> integers)."""
    program, op = v.program, v.op
    tensors, held = dict(program.tensors), dict(program.arrays)
    for port, shape in shapes.items():
        name = op.inputs[port]
        tensors[name] = replace(tensors[name], shape=shape)
    held.update({op.constants[role]: values for role, values in arrays.items()})
    return View(replace(program, tensors=tensors, arrays=held), op)


def run(v: View, **x: Int64) -> dict[str, Int64]:
    return KINDS[v.op.kind].run(v, x)


def widest(register: Register) -> int:
    return int(np.argmax(register.channels))


def pick(weight: Int64, x: Range) -> tuple[Int64, Int64]:
    """(inputs that make the sum of weight * x smallest, largest), each in the shape of weight."""
    low, high = np.broadcast_to(x.low, weight.shape), np.broadcast_to(x.high, weight.shape)
    return np.where(weight > 0, low, high), np.where(weight > 0, high, low)


def told(register: Register, got: tuple[Int64, Int64], vectors: tuple[Int64, Int64], port: str) -> Witness:
    """The witness of both ends of all channels; got: integers [O] that came out, vectors [O, ...] that went in."""
    c = widest(register)
    low, high = register.range.low, register.range.high
    exact = bool(np.array_equal(got[0], low) and np.array_equal(got[1], high))
    inputs = {end: {port: x[c].tolist()} for end, x in zip(("low", "high"), vectors, strict=True)}
    ends = [int(e[c]) for e in (low, high, *got)]
    return Witness(register.name, 2 * len(low), exact, c, ends[0], ends[1], ends[2], ends[3], inputs)


def of_linear(p: Proof, register: Register) -> Witness:
    v, weight, x = p.v, p.v.array("weight"), p.x["x"]
    vectors = pick(weight, x)
    token = v.shifts("x", "token")
    group = v.input("x").group("token")
    got = []
    for rows, sign in zip(vectors, (-1, 1), strict=True):
        found = []
        for t in np.unique(token, return_index=True)[1]:  # a token of each shift, as many times as there are rows
            placed = bench(v, {"x": rows.shape}, {})
            if group is not None and group.index is not None:
                held = placed.program.arrays
                held[group.index] = np.full(len(rows), held[group.index][t])
            found.append(np.diagonal(run(placed, x=rows)["acc"]) * sign)
        got.append(np.max(found, axis=0) * sign)
    return told(register, (got[0], got[1]), vectors, "x")


def of_patch_embed(p: Proof, register: Register) -> Witness:
    """Whole images: every patch of one that does not overlap is the vector."""
    v, weight = p.v, p.v.array("weight")
    patch, channels = v.op.attributes["patch"], v.input("image").shape[2]
    vectors = pick(weight, Range.of(-128, 127))
    got = []
    for rows in vectors:
        blocks = (rows + 128).reshape(-1, channels, patch, patch).transpose(0, 2, 3, 1)
        tall = blocks.reshape(-1, patch, channels)  # the patches below each other
        placed = bench(v, {"image": tall.shape}, {})
        attributes = {**v.op.attributes, "stride": patch}
        got.append(np.diagonal(run(View(placed.program, replace(v.op, attributes=attributes)), image=tall)["acc"]))
    pixels = tuple((rows + 128).reshape(-1, channels, patch, patch).transpose(0, 2, 3, 1) for rows in vectors)
    return told(register, (got[0], got[1]), (pixels[0], pixels[1]), "image")


def of_conv1d(p: Proof, register: Register) -> Witness:
    """The last token that is processed sees the window; all channels at once."""
    v, weight = p.v, p.v.array("weight")
    tokens, taps = v.input("x").shape[0], weight.shape[1]
    used = weight[:, max(0, taps - tokens) :]
    low, high = (np.broadcast_to(end[:, None], used.shape).copy() for end in (p.x["x"].low, p.x["x"].high))
    inside = Range.of(low, high)
    vectors = pick(used, inside)
    got = []
    for rows, best in zip(vectors, (np.minimum, np.maximum), strict=True):
        ordered = rows.T[::-1] if v.op.attributes["reverse"] else rows.T
        acc = run(bench(v, {"x": ordered.shape}, {}), x=ordered)["acc"]
        # an input range without 0: the padding, of a token before the window is full, may reach further
        got.append(best.reduce(acc, axis=0))
    return told(register, (got[0], got[1]), vectors, "x")


def of_gate(p: Proof, register: Register) -> Witness:
    """All channels at once, at the token whose shifts reach furthest."""
    v = p.v
    tokens, channels = v.input("y").shape
    low, high = np.full(channels, 1 << 40), np.full(channels, -(1 << 40))
    inputs: dict[str, list[Any]] = {"low": [None] * channels, "high": [None] * channels}
    for y in (p.x["y"].low, p.x["y"].high):
        for y_b in (p.x["y_b"].low, p.x["y_b"].high):
            for g in (p.x["g"].low, p.x["g"].high):
                rows = [np.broadcast_to(end, (tokens, channels)) for end in (y, y_b, g)]
                acc = run(v, y=rows[0], y_b=rows[1], g=rows[2])["acc"]
                for c in range(channels):
                    here = [int(y[c]), int(y_b[c]), int(g[c])]
                    if acc[:, c].min() < low[c]:
                        low[c], inputs["low"][c] = acc[:, c].min(), here
                    if acc[:, c].max() > high[c]:
                        high[c], inputs["high"][c] = acc[:, c].max(), here
    vectors = (int64(inputs["low"]), int64(inputs["high"]))
    found = told(register, (low, high), vectors, "y, y_b, g")
    for end in found.inputs.values():
        end.update(zip(("y", "y_b", "g"), ([value] for value in end.pop("y, y_b, g")), strict=True))
    return found


# The scan


def climb(
    scan: Scan, first: int, last: int, end: int, weight: Int64, on_h: bool
) -> tuple[list[int], list[int]]:
    """(codes, token shifts) of the greedy sequence of one channel.

    It stays at the shift `first` until the states rest or STEPS are done, and takes one more token of shift `last`,
    each time with the code that makes the sum over states of acc (of h, if on_h) times `weight` [states] largest.
    end: 0 for the smallest b of each code, 1 for the largest.
    """
    abar, codes = scan.abar[0], scan.codes[0]
    state = np.zeros(len(abar), dtype=np.int64)
    taken: list[int] = []

    def take(s: int) -> Int64:
        acc = abar * state[:, None] + scan.b(s)[end][0]
        found = scan.h(Range.of(acc, acc)).low
        best = int((weight @ (found if on_h else acc)).argmax())
        taken.append(int(codes[best]))
        return found[:, best]

    for _ in range(STEPS):
        before, state = state, take(first)
        if np.array_equal(before, state):
            break
    state = scan.rescaled(Range.of(state, state), last - first).low
    take(last)
    return taken, [first] * (len(taken) - 1) + [last]


def corner(u: Int64, b_in: Int64, sign: int) -> tuple[int, int]:
    """The u and B (two ends each) whose product is largest in the direction of `sign`."""
    return max(((int(x), int(y)) for x in u for y in b_in), key=lambda pair: sign * pair[0] * pair[1])


def of_scan(p: Proof, register: Register) -> Witness:
    """acc of the widest channel and state: from each shift that may come before, the greedy sequence; the best of them.

    A step rises with the state, so to go furthest at each step goes furthest in the end.
    """
    v = p.v
    assert p.recurrence is not None
    needed = register.needed
    size = np.maximum(-needed.low, needed.high + 1)
    c, n = (int(i) for i in np.unravel_index(int(size.argmax()), size.shape))
    ends = (int(register.range.low[c, n]), int(register.range.high[c, n]))
    whole = Scan.of(v, p.x["delta"], p.x["u"], p.x["B"], slice(c, c + 1))
    scan = replace(whole, abar=whole.abar[:, n : n + 1], product=whole.product[:, n : n + 1])
    pairs = steps_of(v.array("state_token_shift"))
    reached: list[int] = []
    lengths: dict[str, int] = {}
    inputs: dict[str, dict[str, list[Any]]] = {}
    for end, sign, key in ((0, -1, "low"), (1, 1, "high")):
        x, y = (np.array([r.low[i], r.high[i]]) for r, i in ((p.x["u"], c), (p.x["B"], n)))
        u, b_in = corner(x, y, sign)
        best = None
        for s, found in p.recurrence.acc.items():
            if int((found.low, found.high)[end][c, n]) != ends[end]:
                continue
            for first in sorted({r for r, to in pairs if to == s}):
                codes, path = climb(scan, first, s, end, np.array([sign]), False)
                got = drive(v, c, [n], codes, path, [u] * len(codes), [[b_in]] * len(codes), [0])["acc"][-1, 0, 0]
                if best is None or sign * got > sign * best[0]:
                    best = (int(got), codes, path)
        assert best is not None
        reached.append(best[0])
        lengths[key] = len(best[1])
        inputs[key] = {"delta": runs(best[1]), "state_token_shift": runs(best[2]), "u": [u], "B": [b_in]}
    exact = tuple(reached) == ends
    return Witness(register.name, 2, exact, c, *ends, reached[0], reached[1], inputs, n, lengths)


def of_scan_y(p: Proof, register: Register) -> Witness:
    """y_acc of the widest channel: all states share delta and u, so the end may be out of reach.

    The states are driven towards the ends that their C takes furthest, by the code that helps their sum most; at the
    last token u turns to the end that D takes furthest, if that gains more than it loses.
    """
    v = p.v
    assert p.recurrence is not None
    c = widest(register)
    states, c_in = v.array("A").shape[1], p.x["C"]
    ends = (int(register.range.low[c]), int(register.range.high[c]))
    u_ends, b_ends = np.array([p.x["u"].low[c], p.x["u"].high[c]]), np.array([p.x["B"].low, p.x["B"].high])
    scan = Scan.of(v, p.x["delta"], p.x["u"], p.x["B"], slice(c, c + 1))
    pairs = steps_of(v.array("state_token_shift"))
    everywhere = np.arange(states)
    reached: list[int] = []
    lengths: dict[str, int] = {}
    inputs: dict[str, dict[str, list[Any]]] = {}
    for sign, key in ((-1, "low"), (1, "high")):
        best = None
        for last, h in p.recurrence.h.items():
            four = np.array([a * b for a in (h.low[c], h.high[c]) for b in (c_in.low, c_in.high)]) * sign
            choice = four.argmax(axis=0)
            up = choice >= 2  # the state's end
            c_row = np.where(choice % 2 == 1, c_in.high, c_in.low)
            for first in sorted({r for r, to in pairs if to == last}):
                for u in u_ends:
                    b_row = np.where(up == (u >= 0), b_ends[1], b_ends[0])
                    point = replace(scan, product=Range.of((u * b_row)[None, :], (u * b_row)[None, :]))
                    codes, path = climb(point, first, last, 0, sign * c_row, True)
                    for turn in u_ends:
                        b_last = np.where(up == (turn >= 0), b_ends[1], b_ends[0])
                        u_all, b_all = [u] * (len(codes) - 1) + [turn], [b_row] * (len(codes) - 1) + [b_last]
                        got = int(drive(v, c, everywhere, codes, path, u_all, b_all, c_row)["y_acc"][-1, 0])
                        if best is None or sign * got > sign * best[0]:
                            best = (got, codes, path, [int(u), int(turn)], [b_row, b_last], c_row)
        assert best is not None
        reached.append(best[0])
        lengths[key] = len(best[1])
        inputs[key] = {
            "delta": runs(best[1]), "state_token_shift": runs(best[2]), "u": best[3],
            "B": [row.tolist() for row in best[4]], "C": best[5].tolist(),
        }  # fmt: skip
    exact = tuple(reached) == ends
    return Witness(register.name, 2, exact, c, *ends, reached[0], reached[1], inputs, None, lengths)


def drive(
    v: View, c: int, n: object, codes: object, path: object, u: object, b_in: object, c_in: object
) -> dict[str, Int64]:
    """The scan's definition on channel c and the states n alone.

    codes, path, u [tokens]; b_in [tokens, states]; c_in [states], the same at each token.
    """
    tokens, states = len(int64(codes)), len(int64(n))
    arrays = {role: v.array(role)[c : c + 1] for role in ("A_fraction", "D", "b_shift", "y_shift")}
    arrays["A"] = v.array("A")[c : c + 1, int64(n)]
    arrays["state_token_shift"] = int64(path)
    flat, wide = (tokens, 1), (tokens, states)
    shapes: dict[str, tuple[int, ...]] = {"delta": flat, "u": flat, "B": wide, "C": wide}
    alone = bench(v, shapes, arrays)
    name, group = v.op.tensor("y"), v.output("y").group("token")
    if group is not None and group.index is not None:
        alone.program.arrays[group.index] = np.zeros(tokens, dtype=np.uint8)
        alone.program.tensors[name] = replace(alone.program.tensors[name], shape=(tokens, 1))
    c_all = np.broadcast_to(int64(c_in), wide)
    x = {"delta": int64(codes)[:, None], "u": int64(u)[:, None], "B": int64(b_in), "C": c_all}
    return run(alone, **x)


def runs(values: list[int]) -> list[list[int]]:
    """A sequence as [value, how often] of its runs."""
    found: list[list[int]] = []
    for value in values:
        if found and found[-1][0] == value:
            found[-1][1] += 1
        else:
            found.append([value, 1])
    return found


WITNESSES: dict[str, dict[str, Callable[[Proof, Register], Witness]]] = {
    "patch_embed": {"acc": of_patch_embed},
    "linear": {"acc": of_linear},
    "conv1d": {"acc": of_conv1d},
    "gate": {"acc": of_gate},
    "scan": {"acc": of_scan, "y_acc": of_scan_y},
}


def witnesses(p: Proof) -> list[Witness]:
    """The witnesses of an operator's accumulators, each run."""
    registers = {r.name: r for r in p.registers}
    return [find(p, registers[p.op.tensor(port)]) for port, find in WITNESSES.get(p.op.kind, {}).items()]
