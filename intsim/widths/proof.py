"""The proof: for every register of a Program, an interval that holds its integer for every possible image (SPEC 12).

    for register in prove(program):
        register.name, register.declared, register.proven      # bits

Operators are walked in execution order, from the image's 0 .. 255.  Each has a function here that takes the ranges of
its inputs, one interval for each channel, and states those of its registers with the actual weights, ROMs and shifts.
An operator's outputs are the next one's inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from intsim.arithmetic import Int64, bit_length, limits, round_shift
from intsim.operators.base import View, rounding_constant
from intsim.program import Operator, Program
from intsim.widths.ranges import Range, bits_of, hull
from intsim.widths.recurrence import Recurrence, solve

KINDS = ("accumulator", "product", "state", "internal", "output", "shift", "rom", "constant")
NO_SHIFT = np.zeros(1, dtype=np.int64)
SHIFT_BITS = 6  # every effective shift lies within -31 .. 31 (SPEC section 8)


@dataclass
class Register:
    """Something of the hardware that holds an integer, and what is proven of it.

    name: the tensor's or constant's; for what no tensor of the Program holds, the operator's, a colon and a name of
    SPEC 12.2.  kind: one of KINDS.  declared: bits; for what is not declared, those that the formats of its operands
    imply.  range: proven interval for each channel (and state).  rounding: what the unit that requantizes it adds
    before it shifts, for each channel.  any_order: of a sum, whether the interval also holds every partial sum.
    clamped: of a scan's b and acc, the interval where b is clamped to it, which changes no state (SPEC 12.4).
    """

    name: str
    operator: str
    operator_kind: str
    kind: str
    signed: bool
    declared: int
    range: Range
    rounding: Int64 = field(default_factory=lambda: np.zeros(1, dtype=np.int64))
    any_order: bool | None = None
    clamped: Range | None = None

    @property
    def needed(self) -> Range:
        """The interval that the register and the adder of its rounding constant need."""
        shape = self.rounding.reshape(self.rounding.shape + (1,) * (self.range.low.ndim - self.rounding.ndim))
        return Range.of(self.range.low, self.range.high + shape)

    @property
    def proven(self) -> int:
        """Bits that hold every value for every possible input."""
        return bits_of(*self.needed.whole, self.signed)

    @property
    def enough(self) -> int | None:
        """Bits that are enough if the scan's b is clamped to them; None for every other register."""
        if self.clamped is None:
            return None
        low, high = self.clamped.whole
        return min(self.proven, bits_of(low, high + int(self.rounding.max()), self.signed))

    @property
    def channels(self) -> list[int]:
        """Proven bits of each channel, over all its states."""
        needed = self.needed
        axes = tuple(range(1, needed.low.ndim))
        ends = zip(needed.low.min(axis=axes).tolist(), needed.high.max(axis=axes).tolist(), strict=True)
        return [bits_of(low, high, self.signed) for low, high in ends]


class Proof:
    """One operator: its view, the ranges of its inputs by port, and the registers found so far."""

    def __init__(self, program: Program, op: Operator, ranges: dict[str, Range]):
        self.v = View(program, op)
        self.op = op
        self.x = {port: ranges[name] for port, name in op.inputs.items()}
        self.registers: list[Register] = []
        self.recurrence: Recurrence | None = None

    def _add(self, name: str, kind: str, signed: bool, declared: int, found: Range, **more: Any) -> Range:
        self.registers.append(Register(name, self.op.name, self.op.kind, kind, signed, declared, found, **more))
        return found

    def tensor(self, port: str, found: Range, **more: Any) -> Range:
        """A tensor of the Program."""
        t = self.v.output(port)
        return self._add(t.name, t.role, t.signed, t.bits, found, **more)

    def inner(self, name: str, kind: str, found: Range, declared: Range | int, signed: bool = True) -> Range:
        """Something that no tensor holds.  declared: bits, or the range that the formats of its operands give it."""
        bits = bits_of(*declared.whole, signed) if isinstance(declared, Range) else declared
        return self._add(f"{self.op.name}:{name}", kind, signed, bits, found)

    def shift(self, name: str, *parts: Int64) -> None:
        """An effective shift: the sum of one entry of each part, in any combination."""
        low, high = sum(int(p.min()) for p in parts), sum(int(p.max()) for p in parts)
        self.inner(name, "shift", Range.of(low, high), SHIFT_BITS)

    def format(self, port: str) -> Range:
        """The declared format of an input, one entry."""
        return Range.format(self.v.input(port), 1)

    def requantized(self, port: str, acc: Range, shift: Int64) -> Range:
        """An output from its accumulator: every channel's shift, with each group shift of the output's tokens."""
        steps = np.unique(self.v.out_shifts(port, "token"))
        out, mode = self.v.output(port), self.v.rounding
        return self.tensor(port, hull([acc.requantized(shift + s, out, mode) for s in steps]))


def dot(p: Proof, terms: Range, shift: Int64, tokens: Int64) -> Range:
    """A sum of products and its bias: the registers `group_sum`, where anything is shifted, and `acc`.

    terms: the products [O, I]; shift: the left shift of each term [I]; tokens: the distinct left shifts of the sum.
    """
    v = p.v
    if shift.any() or tokens.any():
        parts = []
        for s in np.unique(shift):
            members = shift == s
            parts.append(Range.of(terms.low[:, members].sum(axis=1), terms.high[:, members].sum(axis=1)))
        p.inner("group_sum", "accumulator", hull(parts), v.output("acc").bits)
    placed = terms << shift
    total = Range.of(placed.low.sum(axis=1), placed.high.sum(axis=1))
    bias = Range.of(v.array("bias"), v.array("bias"))
    # each token shift for itself: of an interval without 0, the largest shift does not give both ends
    acc = hull([(total << s) + bias for s in tokens])
    order = bool((terms.low <= 0).all() and (terms.high >= 0).all())
    return p.tensor("acc", acc, rounding=rounding_constant(v.array("shift")), any_order=order)


def prove_patch_embed(p: Proof) -> None:
    v = p.v
    pixel = Range.of(-128, 127)  # less 128, for every image
    weight = Range.of(v.array("weight"), v.array("weight"))
    terms = weight * pixel
    p.inner("product", "product", terms, Range.of(-128, 127) * pixel)
    acc = dot(p, terms, np.zeros(terms.low.shape[1], dtype=np.int64), NO_SHIFT)
    p.requantized("out", acc, v.array("shift"))
    p.shift("shift", v.array("shift"))


def prove_insert_token(p: Proof) -> None:
    v, out = p.v, p.v.output("out")
    position, embed, token = v.op.attributes["position"], v.array("pos_embed"), v.array("cls_token")
    others = np.delete(embed, position, axis=0)
    total = p.x["x"] + Range.of(others.min(axis=0), others.max(axis=0))
    total = total | Range.of(token + embed[position], token + embed[position])
    p.inner("sum", "internal", total, p.format("x") + p.format("x"))
    p.tensor("out", total.saturated(out))


def roots(d_norm: int, sums: Int64) -> tuple[Int64, Int64, Int64]:
    """(k, w, rsqrt) of SPEC 5.3 for each square sum."""
    k = (32 - bit_length(sums)) // 2
    w = np.where(k >= 0, sums << 2 * np.maximum(k, 0), sums >> -2 * np.minimum(k, 0))
    r = [math.isqrt((d_norm << 52) // int(value)) for value in w.reshape(-1)]
    return k, w, np.array(r, dtype=np.int64).reshape(w.shape)


def class_ends(low: int, high: int) -> Int64:
    """The square sums in [low, high] at which something of SPEC 5.3 is largest or smallest.

    k is constant, w rises and rsqrt falls from 4^i to 4^(i+1) - 1; so the ends of the interval and of these classes.
    """
    edges = {4**i + d for i in range(25) for d in (-1, 0)}
    return np.array(sorted({low, high} | {s for s in edges if low <= s <= high}), dtype=np.int64)


def prove_rmsnorm(p: Proof) -> None:
    v, x = p.v, p.x["x"]
    eps, d_norm, a = v.op.attributes["eps_q"], v.op.attributes["d_norm"], v.op.attributes["d_shift"]
    residual = p.format("x")
    most = np.maximum(-x.low, x.high)
    least = np.where((x.low <= 0) & (x.high >= 0), 0, np.minimum(np.abs(x.low), np.abs(x.high)))
    p.inner("square", "product", Range.of(least**2, most**2), residual * residual)
    low, high = eps + int((least**2).sum()), eps + int((most**2).sum())
    p.tensor("square_sum", Range.of(low, high))
    k, w, r = roots(d_norm, class_ends(low, high))
    p.inner("w", "internal", Range.values(w), 32, signed=False)
    p.tensor("rsqrt", Range.values(r))
    p.shift("normed_shift", 14 + a - k)
    root = Range.values(r)
    p.inner("scaled", "product", x * root, residual * Range.of(0, (1 << 17) - 1))

    # The largest of normed for each |q|: the others add to the square sum, and normed falls as it grows, but for the
    # half unit of rsqrt that may be gained where the next class begins.
    q = np.arange(int(most.max()) + 1, dtype=np.int64)
    sums = eps + q * q
    edge = np.int64(1) << 2 * -(-bit_length(sums) // 2)  # the next 4^i
    up, down = np.zeros_like(q), np.zeros_like(q)
    for s in (sums, edge):
        k, _, r = roots(d_norm, s)
        up = np.maximum(up, round_shift(q * r, 14 + a - k, v.rounding))
        down = np.minimum(down, round_shift(-q * r, 14 + a - k, v.rounding))
    up, down = np.maximum.accumulate(up), np.minimum.accumulate(down)
    normed = p.tensor("normed", Range.of(down[np.maximum(-x.low, 0)], up[np.maximum(x.high, 0)]))
    gamma = v.array("gamma")
    product = normed * Range.of(gamma, gamma)
    declared = Range.of(-(1 << 18), (1 << 18) - 1) * Range.of(-(1 << 11), (1 << 11) - 1)
    p.inner("product", "product", product, declared)
    p.requantized("out", product, v.array("shift"))
    p.shift("shift", v.array("shift"))


def prove_linear(p: Proof) -> None:
    v, x = p.v, p.x["x"]
    weight = v.array("weight")
    terms = Range.of(weight, weight) * x[None, :]
    p.inner("product", "product", terms, Range.of(-128, 127) * p.format("x"))
    acc = dot(p, terms, v.shifts("x", "channel"), np.unique(v.shifts("x", "token")))
    acc_shift = v.array("shift")
    for port, start, stop in segments(v.op):
        rows = slice(start, stop)
        p.requantized(port, acc[rows], acc_shift[rows])
    p.shift("shift", acc_shift)


def segments(op: Operator) -> list[tuple[str, int, int]]:
    """(port, start, stop) of a linear operator's outputs."""
    return [(s["port"], s["start"], s["stop"]) for s in op.attributes["segments"]]


def windows(terms: Range) -> Range:
    """Sums of the last 1, 2, ... taps of a convolution [E, taps in use]: what its first tokens see, and then all."""
    return Range.of(np.cumsum(terms.low[:, ::-1], axis=1), np.cumsum(terms.high[:, ::-1], axis=1))


def prove_conv1d(p: Proof) -> None:
    v, x = p.v, p.x["x"]
    weight = v.array("weight")[:, -v.input("x").shape[0] :]  # a tap before the first token of every position: none
    terms = Range.of(weight, weight) * x[:, None]
    p.inner("product", "product", terms.with_zero(), Range.of(-128, 127) * p.format("x"))
    seen = windows(terms)
    bias = Range.of(v.array("bias"), v.array("bias"))
    acc = bias + Range.of(seen.low.min(axis=1), seen.high.max(axis=1))
    order = bool((terms.low <= 0).all() and (terms.high >= 0).all())
    p.tensor("acc", acc, rounding=rounding_constant(v.array("shift")), any_order=order)
    p.requantized("out", acc, v.array("shift"))
    p.shift("shift", v.array("shift"))


def prove_rom(p: Proof) -> None:
    v, x = p.v, p.x["x"]
    rom, index = v.array("rom"), v.array("rom_index")
    ends = [
        (part.min(), part.max())
        for part in (rom[r, low + 128 : high + 129] for r, low, high in zip(index, x.low, x.high, strict=True))
    ]
    low, high = (np.array(end, dtype=np.int64) for end in zip(*ends, strict=True))
    p.inner("address", "internal", x, 8)
    p.tensor("out", Range.of(low, high))


def prove_scan(p: Proof) -> None:
    v = p.v
    delta, u, b_in, c_in = (p.x[port] for port in ("delta", "u", "B", "C"))
    formats = {port: p.format(port) for port in p.op.inputs}
    a, d, m = v.array("A"), v.array("D"), v.op.attributes["abar_fraction"]
    s_l = v.array("state_token_shift")
    h_format = Range.of(*limits(v.output("h").bits, True))

    p.inner("p", "product", delta[:, None] * Range.of(a, a), formats["delta"] * Range.of(0, 255), signed=False)
    p.tensor("dx", delta * u)
    product = (delta * u)[:, None] * b_in[None, :]
    p.inner("dxb", "product", product, formats["delta"] * formats["u"] * formats["B"])
    found = p.recurrence = solve(v, delta, u, b_in)
    p.tensor("abar", found.abar)
    p.shift("abar_shift", found.abar_shift)
    b, acc = hull(list(found.b.values())), hull(list(found.acc.values()))
    (smallest, largest), one = h_format.whole, 1 << m
    few = Range.of(  # beyond these, b saturates h whatever the state was
        np.maximum(b.low, np.minimum(smallest * one - found.decayed.high, b.high)),
        np.minimum(b.high, np.maximum(largest * one - found.decayed.low, b.low)),
    )
    p.tensor("b", b, clamped=few)
    p.shift("b_shift", v.array("b_shift"), s_l)
    p.inner("rescaled", "state", hull(list(found.before.values())), v.output("h").bits)
    p.shift("step", np.diff(s_l, prepend=s_l[0]))
    p.inner("decayed", "product", found.decayed, h_format * Range.of(0, 1 << m))
    both = found.decayed + few
    less = Range.of(np.maximum(acc.low, both.low), np.minimum(acc.high, both.high))
    p.tensor("acc", acc, rounding=np.array([1 << (m - 1)], dtype=np.int64), clamped=less)
    p.tensor("h", hull(list(found.h.values())))
    products = {s: h * c_in[None, :] for s, h in found.h.items()}
    p.inner("hc", "product", hull(list(products.values())), h_format * formats["C"])
    sums = {s: Range.of(t.low.sum(axis=1), t.high.sum(axis=1)) for s, t in products.items()}
    p.inner("sum", "accumulator", hull(list(sums.values())), v.output("y_acc").bits)
    skip = u * Range.of(d, d)
    p.inner("du", "product", skip, Range.of(-(1 << 23), (1 << 23) - 1) * formats["u"])
    y_shift, y_group = v.array("y_shift"), v.out_shifts("y", "token")
    y_acc = {s: skip + (total << s) for s, total in sums.items()}
    p.tensor("y_acc", hull(list(y_acc.values())), rounding=rounding_constant(y_shift + y_group.max()))
    pairs = sorted(set(zip(s_l.tolist(), y_group.tolist(), strict=True)))
    out = v.output("y")
    p.tensor("y", hull([y_acc[s].requantized(y_shift + g, out, v.rounding) for s, g in pairs]))
    p.shift("y_shift", y_shift, y_group)


def prove_gate(p: Proof) -> None:
    v = p.v
    y_shift = v.op.attributes["y_align"] + v.shifts("y", "token")
    y_b_shift = v.op.attributes["y_b_align"] + v.shifts("y_b", "token")
    pairs = sorted(set(zip(y_shift.tolist(), y_b_shift[::-1].tolist(), strict=True)))
    total = hull([(p.x["y"] << s) + (p.x["y_b"] << t) for s, t in pairs])
    widest = (p.format("y") << y_shift.max()) + (p.format("y_b") << y_b_shift.max())
    p.inner("sum", "internal", total, widest)
    group, shift = v.out_shifts("out", "token"), v.array("shift")
    acc = p.tensor("acc", total * p.x["g"], rounding=rounding_constant(shift + group.max()))
    p.requantized("out", acc, shift)
    p.shift("shift", shift, group)


def prove_add(p: Proof) -> None:
    total = p.x["x"] + p.x["y"]
    p.inner("sum", "internal", total, p.format("x") + p.format("y"))
    p.tensor("out", total.saturated(p.v.output("out")))


def prove_select_token(p: Proof) -> None:
    p.tensor("out", p.x["x"])


PROOFS: dict[str, Callable[[Proof], None]] = {
    "patch_embed": prove_patch_embed,
    "insert_token": prove_insert_token,
    "rmsnorm": prove_rmsnorm,
    "linear": prove_linear,
    "conv1d": prove_conv1d,
    "rom": prove_rom,
    "scan": prove_scan,
    "gate": prove_gate,
    "add": prove_add,
    "select_token": prove_select_token,
}


def constants(program: Program, op: Operator, seen: set[str]) -> list[Register]:
    """The constants of an operator that no earlier one has: their integers are known, so what they need is too.

    A shift of the arithmetic is in the proof of its operator, in its effective width; the stored ones are constants.
    """
    made = []
    for name in op.constants.values():
        if name in seen:
            continue
        seen.add(name)
        declared = program.constants[name]
        kind = "rom" if name == "exp2.rom" or name.endswith(".rom") else "constant"
        found = Range.values(program.arrays[name])
        made.append(Register(name, op.name, op.kind, kind, declared.signed, declared.bits, found))
    return made


def prove_operator(program: Program, op: Operator, ranges: dict[str, Range]) -> Proof:
    """The proof of one operator, given the ranges of its inputs by tensor name."""
    proof = Proof(program, op, ranges)
    PROOFS[op.kind](proof)
    return proof


def prove(program: Program, progress: Callable[[int], None] = lambda done: None) -> list[Register]:
    """Every register of a valid Program with its proven range, in execution order.

    progress: called with the number of operators done.
    """
    registers: list[Register] = []
    for proof in proofs(program, progress):
        registers += proof.registers
    seen: set[str] = set()
    for op in program.operators:
        registers += constants(program, op, seen)
    return registers


def proofs(program: Program, progress: Callable[[int], None] = lambda done: None) -> list[Proof]:
    """The proof of each operator, in execution order.  UserError for a Program with a narrow accumulator."""
    program.require_full_width("its ranges cannot be proven")
    channels = program.image[2]
    ranges = {"image": Range.of(np.zeros(channels, dtype=np.int64), np.full(channels, 255))}
    found = []
    for done, op in enumerate(program.operators, start=1):
        proof = prove_operator(program, op, ranges)
        outputs = {op.tensor(port) for port in op.outputs}
        ranges.update({r.name: r.range for r in proof.registers if r.name in outputs})
        found.append(proof)
        progress(done)
    return found


__all__ = ["KINDS", "Proof", "Register", "prove", "prove_operator", "proofs"]
