"""Rounding, saturation and widths in NumPy int64: the definitions of SPEC.md sections 1 and 2.

These are the oracle's primitives, written to be read beside the specification.  The Numba kernels and the torch
path have their own, written from the specification and not from here.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]

ROUNDINGS = ("half_up", "half_even", "half_away", "floor")


def int64(values: object) -> Int64:
    """`values` as int64; anything that is not an integer or bool array is refused (no silent float)."""
    array = np.asarray(values)
    if array.dtype.kind not in "iub":
        raise TypeError(f"expected integers, got dtype {array.dtype}")
    if array.dtype == np.uint64:
        raise TypeError("uint64 does not fit int64")
    return array.astype(np.int64)


def round_shift(v: object, s: object, mode: str) -> Int64:
    """v / 2^s rounded to an integer by `mode` (SPEC section 2); exact left shift for s <= 0.

    v, s: integers or integer arrays that broadcast; |v| << max(-s, 0) must fit int64, s <= 62.
    """
    if mode not in ROUNDINGS:
        raise ValueError(f"rounding mode {mode!r} is not one of {', '.join(ROUNDINGS)}")
    v, s = np.broadcast_arrays(int64(v), int64(s))
    right = np.maximum(s, 0)
    left = np.maximum(-s, 0)
    exact = v << left
    half = np.int64(1) << np.maximum(right - 1, 0)
    if mode == "floor":
        rounded = v >> right
    elif mode == "half_up":
        rounded = (v + half) >> right
    elif mode == "half_away":
        rounded = (v + half - (v < 0).astype(np.int64)) >> right
    else:
        down = v >> right
        rest = v - (down << right)
        up = (rest > half) | ((rest == half) & ((down & 1) == 1))
        rounded = down + up.astype(np.int64)
    return np.where(s > 0, rounded, exact)


def limits(bits: int, signed: bool) -> tuple[int, int]:
    """Smallest and largest integer of a format."""
    if signed:
        return -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    return 0, (1 << bits) - 1


def saturate(v: object, bits: int, signed: bool) -> Int64:
    """v clamped to the range of a format of `bits` bits (SPEC section 2)."""
    low, high = limits(bits, signed)
    return np.clip(int64(v), np.int64(low), np.int64(high))


def wrap(v: object, bits: int) -> Int64:
    """v modulo 2^bits, in the range of a signed format of `bits` bits (SPEC section 13)."""
    half = np.int64(1) << np.int64(bits - 1)
    return ((int64(v) + half) & (2 * half - 1)) - half


def requantize(v: object, s: object, bits: int, signed: bool, mode: str) -> Int64:
    """One rounding, then one saturation: sat(round_shift(v, s)) (SPEC section 2)."""
    return saturate(round_shift(v, s, mode), bits, signed)


def isqrt(v: object) -> Int64:
    """Largest r with r*r <= v, element by element, for v >= 0 below 2^63."""
    values = int64(v)
    return np.array([math.isqrt(int(x)) for x in values.reshape(-1)], dtype=np.int64).reshape(values.shape)


def bit_length(v: object) -> Int64:
    """Number of significant bits of v >= 0, element by element."""
    values = int64(v)
    return np.array([int(x).bit_length() for x in values.reshape(-1)], dtype=np.int64).reshape(values.shape)


def bits_needed(low: int, high: int) -> int:
    """Two's-complement bits that hold every integer of [low, high]."""
    positive = int(high).bit_length() + 1 if high >= 0 else 1
    negative = (-int(low) - 1).bit_length() + 1 if low < 0 else 1
    return max(positive, negative)


def container(bits: int, signed: bool) -> np.dtype:
    """Smallest NumPy integer dtype that holds `bits` bits."""
    for width in (8, 16, 32, 64):
        if bits <= width:
            return np.dtype(f"{'i' if signed else 'u'}{width // 8}")
    raise ValueError(f"{bits} bits do not fit a 64-bit integer")
