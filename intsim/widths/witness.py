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
from intsim.widths.proof import Proof, Register, windows
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
    """All channels at once, each over the first tokens that are processed: as many as reach furthest."""
    v = p.v
    weight = v.array("weight")[:, -v.input("x").shape[0] :]
    vectors = pick(weight, p.x["x"][:, None])
    seen = windows(Range.of(weight, weight) * p.x["x"][:, None])
    channels = np.arange(len(weight))
    got = []
    for rows, last in zip(vectors, (seen.low.argmin(axis=1), seen.high.argmax(axis=1)), strict=True):
        x = np.zeros(rows.T.shape, dtype=np.int64)
        for token in range(len(x)):  # token `last` sees the taps from J - 1 - last on
            here = token <= last
            x[token, here] = rows[here, (rows.shape[1] - 1 - last + token)[here]]
        ordered = x[::-1] if v.op.attributes["reverse"] else x
        got.append(run(bench(v, {"x": x.shape}, {}), x=ordered)["acc"][last, channels])
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


def corner(u: Int64, b_in: Int64, sign: int) -> tuple[int, int]:
    """The u and B (two ends each) whose product is largest in the direction of `sign`."""
    return max(((int(x), int(y)) for x in u for y in b_in), key=lambda pair: sign * pair[0] * pair[1])


@dataclass
class Step:
    """A token of a sequence that ends here: its shift, its code of delta, what it makes, and the token before."""

    shift: int
    code: int
    acc: int
    h: int
    before: Step | None


def furthest(scan: Scan, s_l: Int64, end: int) -> dict[int, Step]:
    """For each token shift the step, with all before it, that takes acc of one channel and state furthest.

    As a step rises with the state, the furthest sequence is that of the furthest state of each shift that may come
    before.  Rounds over the shifts until nothing goes further, or STEPS of them.  end: 0 down, 1 up.
    """
    sign = 1 if end else -1
    pairs = sorted(steps_of(s_l))
    abar, codes = scan.abar[0, 0], scan.codes[0]
    b = {s: scan.b(s)[end][0, 0] for s in sorted({s for s, _ in pairs})}

    def step(s: int, before: Step | None) -> Step:
        state = 0
        if before is not None:
            state = int(scan.state(before.h, s - before.shift)) if s != before.shift else before.h
        acc = abar * state + b[s]
        best = int((sign * acc).argmax())
        made = int(scan.state(acc[best], scan.m))
        return Step(s, int(codes[best]), int(acc[best]), made, before)

    found = {s: step(s, None) for s in b}
    for _ in range(STEPS):
        further = False
        for r, s in pairs:
            new = step(s, found[r])
            if sign * new.acc > sign * found[s].acc:
                found[s], further = new, True
        if not further:
            break
    return found


def of_scan(p: Proof, register: Register) -> Witness:
    """acc of the widest channel and state, driven to both ends."""
    v = p.v
    needed = register.needed
    size = np.maximum(-needed.low, needed.high + 1)
    c, n = (int(i) for i in np.unravel_index(int(size.argmax()), size.shape))
    ends = (int(register.range.low[c, n]), int(register.range.high[c, n]))
    whole = Scan.of(v, p.x["delta"], p.x["u"], p.x["B"], slice(c, c + 1))
    scan = replace(whole, abar=whole.abar[:, n : n + 1], product=whole.product[:, n : n + 1])
    reached: list[int] = []
    lengths: dict[str, int] = {}
    inputs: dict[str, dict[str, list[Any]]] = {}
    for end, sign, key in ((0, -1, "low"), (1, 1, "high")):
        last: Step | None = max(furthest(scan, v.array("state_token_shift"), end).values(), key=lambda s: sign * s.acc)
        steps: list[Step] = []
        while last is not None:
            steps.append(last)
            last = last.before
        codes, path = [s.code for s in steps[::-1]], [s.shift for s in steps[::-1]]
        u_ends, b_ends = (np.array([r.low[i], r.high[i]]) for r, i in ((p.x["u"], c), (p.x["B"], n)))
        u, b_in = corner(u_ends, b_ends, sign)
        tokens = len(codes)
        reached.append(int(drive(v, c, [n], codes, path, [u] * tokens, [[b_in]] * tokens, [0])["acc"][-1, 0, 0]))
        lengths[key] = tokens
        inputs[key] = {"delta": runs(codes), "state_token_shift": runs(path), "u": [u], "B": [b_in]}
    exact = tuple(reached) == ends
    return Witness(register.name, 2, exact, c, *ends, reached[0], reached[1], inputs, n, lengths)


def climb(scan: Scan, s: int, weight: Int64) -> tuple[list[int], Int64]:
    """(codes, states at the end) of the greedy sequence of one channel at the token shift s, u and B unchanging.

    Each token has the code that makes the sum over states of h times `weight` [states] largest, until the states
    rest or STEPS are done.
    """
    abar, codes, b = scan.abar[0], scan.codes[0], scan.b(s)[0][0]
    state = np.zeros(len(abar), dtype=np.int64)
    taken: list[int] = []
    for _ in range(STEPS):
        acc = abar * state[:, None] + b
        found = scan.state(acc, scan.m)
        best = int((weight @ found).argmax())
        taken.append(int(codes[best]))
        before, state = state, found[:, best]
        if np.array_equal(before, state):
            break
    return taken, state


def of_scan_y(p: Proof, register: Register) -> Witness:
    """y_acc of the widest channel: all states share delta and u, so the end may be out of reach.

    The states are driven towards the ends that their C takes furthest, by the code that helps their sum most; at the
    last token u turns to the end that D takes furthest, if that gains more than it loses.
    """
    v = p.v
    assert p.recurrence is not None
    c = widest(register)
    states, c_in, d = v.array("A").shape[1], p.x["C"], int(v.array("D")[c])
    ends = (int(register.range.low[c]), int(register.range.high[c]))
    u_ends = [int(p.x["u"].low[c]), int(p.x["u"].high[c])]
    scan = Scan.of(v, p.x["delta"], p.x["u"], p.x["B"], slice(c, c + 1))
    abar, all_codes = scan.abar[0], scan.codes[0]
    pairs = steps_of(v.array("state_token_shift"))
    reached: list[int] = []
    lengths: dict[str, int] = {}
    inputs: dict[str, dict[str, list[Any]]] = {}
    for end, sign, key in ((0, -1, "low"), (1, 1, "high")):
        best: tuple[int, list[int], list[int], list[int], list[Int64], Int64] | None = None
        for last, h in p.recurrence.h.items():
            four = np.array([a * b for a in (h.low[c], h.high[c]) for b in (c_in.low, c_in.high)]) * sign
            skip = max(sign * d * u for u in u_ends)
            if sign * (skip + (int(four.max(axis=0).sum()) << last)) != ends[end]:
                continue  # not the token shift that gives the interval's end
            choice = four.argmax(axis=0)
            c_row = np.where(choice % 2 == 1, c_in.high, c_in.low)
            points = {}  # with u at either end, each state's B drives it to the wanted end
            for u in u_ends:
                row = np.where((choice >= 2) == (u >= 0), p.x["B"].high, p.x["B"].low)
                points[u] = (row, replace(scan, product=Range.of((u * row)[None, :], (u * row)[None, :])))
            for first in sorted({r for r, to in pairs if to == last}):
                for u, (row, point) in points.items():
                    codes, state = climb(point, first, sign * c_row)
                    state = scan.state(state, last - first)
                    for turn, (turned, at_last) in points.items():
                        acc = abar * state[:, None] + at_last.b(last)[0][0]
                        y_acc = d * turn + ((c_row @ scan.state(acc, scan.m)) << last)
                        i = int((sign * y_acc).argmax())
                        if best is None or sign * int(y_acc[i]) > sign * best[0]:
                            path = [first] * len(codes) + [last]
                            best = (int(y_acc[i]), [*codes, int(all_codes[i])], path, [u, turn], [row, turned], c_row)
        assert best is not None
        _, codes, path, u_two, b_two, c_row = best
        before = len(codes) - 1
        u_all, b_all = [u_two[0]] * before + u_two[1:], [b_two[0]] * before + b_two[1:]
        reached.append(int(drive(v, c, np.arange(states), codes, path, u_all, b_all, c_row)["y_acc"][-1, 0]))
        lengths[key] = len(codes)
        inputs[key] = {
            "delta": runs(codes), "state_token_shift": runs(path), "u": u_two,
            "B": [row.tolist() for row in b_two], "C": c_row.tolist(),
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
    alone.program.tensors[name] = replace(alone.program.tensors[name], shape=flat)
    if group is not None and group.index is not None:
        alone.program.arrays[group.index] = np.zeros(tokens, dtype=np.uint8)
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
