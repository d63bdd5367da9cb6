"""Intervals of integers, one for each channel (or channel and state), and what operators do to them (SPEC 12.1).

Everything is exact: an operation of two intervals gives the smallest interval that holds every result of two
independent members.  int64 holds all of it, because the inputs are at most 16 bits, constants at most 32, and every
accumulator of a Program is proven to fit 32 (SPEC section 7).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from intsim.arithmetic import Int64, int64, limits, requantize, saturate
from intsim.program import Tensor


@dataclass(frozen=True)
class Range:
    """low <= value <= high: int64 arrays of one shape, [channels] or [channels, states]."""

    low: Int64
    high: Int64

    @classmethod
    def of(cls, low: object, high: object) -> Range:
        a, b = np.broadcast_arrays(int64(low), int64(high))
        if bool((a > b).any()):
            raise ValueError("an interval's low end is above its high end")
        return cls(np.atleast_1d(a).copy(), np.atleast_1d(b).copy())

    @classmethod
    def values(cls, array: object) -> Range:
        """The interval that holds every integer of an array: one entry."""
        values = int64(array)
        return cls.of(values.min(), values.max())

    @classmethod
    def format(cls, tensor: Tensor, channels: int) -> Range:
        """The ends of a tensor's declared format."""
        low, high = limits(tensor.bits, tensor.signed)
        return cls.of(np.full(channels, low), np.full(channels, high))

    def __add__(self, other: Range) -> Range:
        return Range.of(self.low + other.low, self.high + other.high)

    def __mul__(self, other: Range) -> Range:
        corners = [a * b for a in (self.low, self.high) for b in (other.low, other.high)]
        low = np.minimum(np.minimum(corners[0], corners[1]), np.minimum(corners[2], corners[3]))
        high = np.maximum(np.maximum(corners[0], corners[1]), np.maximum(corners[2], corners[3]))
        return Range.of(low, high)

    def __lshift__(self, by: object) -> Range:
        return Range.of(self.low << int64(by), self.high << int64(by))

    def __or__(self, other: Range) -> Range:
        """The hull of both."""
        return Range.of(np.minimum(self.low, other.low), np.maximum(self.high, other.high))

    def __getitem__(self, index: Any) -> Range:
        return Range.of(self.low[index], self.high[index])

    @property
    def whole(self) -> tuple[int, int]:
        """The interval that holds all entries."""
        return int(self.low.min()), int(self.high.max())

    def with_zero(self) -> Range:
        return Range.of(np.minimum(self.low, 0), np.maximum(self.high, 0))

    def saturated(self, tensor: Tensor) -> Range:
        return Range.of(
            saturate(self.low, tensor.bits, tensor.signed), saturate(self.high, tensor.bits, tensor.signed)
        )

    def requantized(self, shift: object, tensor: Tensor, mode: str) -> Range:
        """What requantization by one shift of each channel makes of it; rounding and saturation are monotone."""
        return Range.of(
            requantize(self.low, shift, tensor.bits, tensor.signed, mode),
            requantize(self.high, shift, tensor.bits, tensor.signed, mode),
        )


def hull(ranges: list[Range]) -> Range:
    """The hull of several ranges of one shape."""
    found = ranges[0]
    for other in ranges[1:]:
        found = found | other
    return found


def bits_of(low: int, high: int, signed: bool) -> int:
    """Fewest bits that hold every integer of [low, high]: two's complement, or unsigned (then low >= 0)."""
    if not signed:
        return max(1, high.bit_length())
    positive = high.bit_length() + 1 if high >= 0 else 1
    negative = (-low - 1).bit_length() + 1 if low < 0 else 1
    return max(positive, negative)
