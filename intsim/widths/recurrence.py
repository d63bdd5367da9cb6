"""The scan's recurrence: the least interval that its state never leaves, whatever its inputs and length (SPEC 12.4).

For one channel and state, and one code d of delta, a step is F_d(h) = sat(round_shift(abar_d h + b_d, m)).  It rises
with h and with b, so the largest state comes from the largest of both; and F_d(H) <= H is a linear inequality in H,
which all H from some H_d on satisfy.  The state starts at 0 and some sequence of inputs climbs to the least H >= 0
that satisfies every d: the largest H_d.  No number of steps is in it.  The smallest state likewise.

Where state_token_shift steps, the state is rescaled first; the intervals of the tokens with each shift are raised
together until no step that the Program takes leaves them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from intsim.arithmetic import Int64, limits, requantize, round_shift
from intsim.operators.base import View
from intsim.operators.exp2 import exp2
from intsim.operators.scan import B_LIMIT
from intsim.widths.ranges import Range, hull

CHUNK = 1 << 17  # elements [channels, states, codes] at a time, so that temporaries stay in the cache
MAX_ROUNDS = 64


@dataclass
class Recurrence:
    """Ranges [channels, states], those of `b` to `h` for each distinct state_token_shift s.

    before: h', the state that a step reads; acc, h: what it makes; decayed: abar * h'; abar_shift: the shift of exp2.
    """

    abar: Range
    abar_shift: Int64
    b: dict[int, Range]
    before: dict[int, Range]
    decayed: Range
    acc: dict[int, Range]
    h: dict[int, Range]


@dataclass(frozen=True)
class Scan:
    """What a scan's steps need, for some of its channels: abar [C, N, codes], codes of delta [C, codes]."""

    m: int
    mode: str
    bits: int
    codes: Int64
    abar: Int64
    whole: Int64  # integer part of exp2's exponent, in the shift of A-bar
    product: Range  # u * B, [C, N]
    b_shift: Int64

    @classmethod
    def of(cls, v: View, delta: Range, u: Range, b_in: Range, part: slice) -> Scan:
        """The channels `part` of a scan; every code of delta between its ends occurs."""
        m = v.op.attributes["abar_fraction"]
        low, high = delta.low[part], delta.high[part]
        span = np.arange(int((high - low).max()) + 1, dtype=np.int64)
        codes = np.minimum(low[:, None] + span, high[:, None])
        p = codes[:, None, :] * v.array("A")[part, :, None]
        f = v.array("A_fraction")[part, None, None]
        whole = np.where(f <= 19, p << np.maximum(19 - f, 0), p >> np.maximum(f - 19, 0)) >> 19
        abar = exp2(p, f, m, v.array("exp2_rom"), v.rounding)
        return cls(m, v.rounding, v.output("h").bits, codes, abar, np.minimum(29 - m + whole, 31),
                   u[part][:, None] * b_in[None, :], v.array("b_shift")[part])  # fmt: skip

    def b(self, s: int) -> tuple[Int64, Int64]:
        """(smallest, largest) b of each code at a token of shift s, [C, N, codes]."""
        shift = (self.b_shift + s)[:, None, None]
        ends = (self.codes[:, None, :] * end[:, :, None] for end in (self.product.low, self.product.high))
        low, high = (np.clip(round_shift(end, shift, self.mode), -B_LIMIT, B_LIMIT) for end in ends)
        return low, high

    def acc(self, b: tuple[Int64, Int64], before: Range) -> Range:
        """abar h' + b over every code; abar >= 0, so each end comes from the like end of h'."""
        low = (self.abar * before.low[..., None] + b[0]).min(axis=-1)
        return Range.of(low, (self.abar * before.high[..., None] + b[1]).max(axis=-1))

    def state(self, value: object, shift: int) -> Int64:
        """A value requantized to the state's format: acc by m, or h by a step of the token shift."""
        return requantize(value, shift, self.bits, True, self.mode)

    def h(self, acc: Range) -> Range:
        return Range.of(self.state(acc.low, self.m), self.state(acc.high, self.m))

    def rest(self, b: tuple[Int64, Int64]) -> Range:
        """The least interval about 0 that no number of steps leaves while the shift stays, [C, N].

        F_d(H) <= H  if and only if  (2^m - abar) H >= b + up - 2^m + 1     with round_shift(v, m) <= (v + up) >> m
        F_d(L) >= L  if and only if  (2^m - abar) L <= b + down             with round_shift(v, m) >= (v + down) >> m

        but in half_even, where at a tie an even H or L holds that is one unit (and by 1 of the right side) nearer.
        """
        half, one = 1 << (self.m - 1), 1 << self.m
        up = 0 if self.mode == "floor" else half
        down = {"floor": 0, "half_up": half}.get(self.mode, half - 1)
        smallest, largest = limits(self.bits, True)
        slack = one - self.abar
        divisor = np.maximum(slack, 1)
        even = self.mode == "half_even"
        need = b[1] + up - one + 1
        high = -(-need // divisor)
        high -= even & (high % 2 == 1) & (slack * (high - 1) == need - 1)
        high = np.where(slack > 0, high, np.where(need > even, largest, 0)).max(axis=-1)
        high += even & ((slack == 0) & (need == 1)).any(axis=-1) & (high % 2 == 1)
        need = b[0] + down
        low = need // divisor
        low += even & (low % 2 == 1) & (slack * (low + 1) == need + 1)
        low = np.where(slack > 0, low, np.where(need < -even, smallest, 0)).min(axis=-1)
        low -= even & ((slack == 0) & (need == -1)).any(axis=-1) & (low % 2 == 1)
        return Range.of(np.clip(low, smallest, 0), np.clip(high, 0, largest))

    def rescaled(self, h: Range, step: int) -> Range:
        return Range.of(self.state(h.low, step), self.state(h.high, step))


def steps_of(s_l: Int64) -> set[tuple[int, int]]:
    """The pairs of state_token_shift of consecutive tokens: those that occur, and each with itself."""
    values = s_l.tolist()
    return {(s, s) for s in values} | set(zip(values[:-1], values[1:], strict=True))


def solve(v: View, delta: Range, u: Range, b_in: Range) -> Recurrence:
    """The recurrence of a scan whose inputs lie in these ranges (delta, u [channels], b_in [states])."""
    channels, states = v.array("A").shape
    size = max(1, CHUNK // (states * (int((delta.high - delta.low).max()) + 1)))
    parts = [solve_part(v, delta, u, b_in, slice(c, c + size)) for c in range(0, channels, size)]

    def joined(take: Callable[[Recurrence], Range]) -> Range:
        return Range.of(
            np.concatenate([take(part).low for part in parts]), np.concatenate([take(part).high for part in parts])
        )

    def each(take: Callable[[Recurrence], dict[int, Range]]) -> dict[int, Range]:
        return {s: joined(lambda part, s=s: take(part)[s]) for s in parts[0].h}  # type: ignore[misc]

    return Recurrence(
        joined(lambda r: r.abar),
        np.concatenate([part.abar_shift for part in parts]),
        each(lambda r: r.b),
        each(lambda r: r.before),
        joined(lambda r: r.decayed),
        each(lambda r: r.acc),
        each(lambda r: r.h),
    )


def solve_part(v: View, delta: Range, u: Range, b_in: Range, part: slice) -> Recurrence:
    scan = Scan.of(v, delta, u, b_in, part)
    s_l = v.array("state_token_shift")
    pairs = steps_of(s_l)
    shifts = sorted({s for s, _ in pairs})
    b = {s: scan.b(s) for s in shifts}
    before = {s: scan.rest(b[s]) for s in shifts}
    acc = {s: scan.acc(b[s], before[s]) for s in shifts}
    h = {s: scan.h(acc[s]) for s in shifts}
    for round_ in range(MAX_ROUNDS + 1):
        changed = False
        for s in shifts:
            reads = [before[s], *(scan.rescaled(h[r], s - r) for r, to in pairs if to == s)]
            found = hull(reads)
            grown = (found.low < before[s].low) | (found.high > before[s].high)
            if not grown.any():
                continue
            changed = True
            if round_ == MAX_ROUNDS:  # slow to settle: the whole format is a bound too
                whole = Range.of(*limits(scan.bits, True))
                found = Range.of(np.where(grown, whole.low, found.low), np.where(grown, whole.high, found.high))
            before[s] = found
            acc[s] = scan.acc(b[s], found)
            h[s] = scan.h(acc[s])
        if not changed:
            break
    else:  # some grew in the last round, and others may read them
        for s in shifts:
            before[s] = Range.of(*(np.full_like(before[s].low, end) for end in limits(scan.bits, True)))
            acc[s] = scan.acc(b[s], before[s])
            h[s] = scan.h(acc[s])
    extremes = hull([before[s] for s in shifts])
    decayed = Range.of(
        (scan.abar * extremes.low[..., None]).min(axis=-1), (scan.abar * extremes.high[..., None]).max(axis=-1)
    )
    return Recurrence(
        Range.of(scan.abar.min(axis=-1), scan.abar.max(axis=-1)),
        np.array([scan.whole.min(), scan.whole.max()]),
        {s: Range.of(low.min(axis=-1), high.max(axis=-1)) for s, (low, high) in b.items()},
        before,
        decayed,
        acc,
        h,
    )
