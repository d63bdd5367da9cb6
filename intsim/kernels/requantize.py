# mypy: allow-untyped-defs
"""Requantization of accumulators, 16 lanes at a time (SPEC 2): shared by `linear`, `patch_embed`, `conv1d`, `gate`."""

from __future__ import annotations

import numpy as np

from intsim.arithmetic import limits
from intsim.kernels import vector as v
from intsim.kernels.common import kernel
from intsim.kernels.memory import int8_at, int16_at, int32_at
from intsim.program import Array, Tensor


class Requantize:
    """The step from an int32 accumulator to an output tensor, bound to its shifts.

    shift [C] for each channel, row_shift [L or 1] for each token, both added; together within -31 .. 31.  `narrow`: no
    shift is negative, so that 32 bits are enough, because the proof of SPEC 7 includes the rounding constant.
    `rounding` [C]: the rounding constants of `shift`, for tokens that have no shift.  Both padded to whole vectors.
    """

    def __init__(self, tensor: Tensor, shift: Array, row_shift: Array, mode: int):
        padded = -(-len(shift) // v.LANES) * v.LANES
        self.shift = np.zeros(padded, dtype=np.int32)
        self.shift[: len(shift)] = shift
        self.rounding = np.where(self.shift > 0, 1 << np.maximum(self.shift - 1, 0), 0).astype(np.int32) * (mode & 1)
        self.row_shift = np.array(row_shift, dtype=np.int64)
        self.narrow = int(shift.min() + row_shift.min() >= 0)
        self.low, self.high = limits(tensor.bits, tensor.signed)
        self.size = tensor.dtype.itemsize
        self.mode = mode


@kernel
def half_lanes(s, mode):
    """The rounding constants 2^(s-1) (0 for s = 0, or if the mode adds none) of shifts 0 .. 31."""
    one = v.splat(np.int32(1))
    half = v.lshr(v.shl(one, s), one)
    return v.bit_and(half, v.splat(np.int32(-(mode & 1))))


@kernel
def round_lanes(x, s, half, mode):
    """round_shift(x, s) for 0 <= s <= 31, half = half_lanes(s, mode); x + half must fit 32 bits."""
    y = v.add(x, half)
    if mode > 1:
        y = v.sub(y, ties_down(x, s, mode))
    return v.ashr(y, s)


@kernel
def ties_down(x, s, mode):
    """1 where a tie of x at this shift would go down (half_away, half_even), 0 elsewhere and for s = 0."""
    away = v.bit_and(v.splat(np.int32((mode >> 1) & 1)), v.ashr(x, v.splat(np.int32(31))))
    floor = v.bit_xor(v.ashr(x, s), v.splat(np.int32(-1)))
    tie = v.bit_or(away, v.bit_and(v.splat(np.int32((mode >> 2) & 1)), floor))
    return v.bit_and(tie, v.minimum(s, v.splat(np.int32(1))))


@kernel
def clamp_lanes(x, low, high):
    return v.maximum(v.minimum(x, v.splat(np.int32(high))), v.splat(np.int32(low)))


@kernel
def wide_lanes(x, s, low, high, mode):
    """saturate(round_shift(x, s)) as in 64 bits, for any x and shifts -31 .. 31."""
    zero, one, sign = v.splat(np.int32(0)), v.splat(np.int32(1)), v.splat(np.int32(31))
    right, left = v.maximum(s, zero), v.maximum(v.sub(zero, s), zero)
    # the floor, plus 1 if what it leaves out is at least half of a unit, without a sum that would need 33 bits
    floor = v.ashr(x, right)
    rest = v.sub(v.sub(x, v.shl(floor, right)), ties_down(x, right, mode))
    below = v.lshr(v.sub(v.shl(one, right), one), one)  # the most that is less than half
    up = v.bit_and(v.lshr(v.sub(below, rest), sign), v.splat(np.int32(mode & 1)))
    x = v.add(floor, up)
    y = v.shl(x, left)
    lost = v.bit_xor(v.ashr(y, left), x)  # not 0 where 32 bits are not enough: then what the sign says
    beyond = v.ashr(v.bit_or(lost, v.sub(zero, lost)), sign)
    extreme = v.bit_xor(v.ashr(x, sign), v.splat(np.int32(0x7FFFFFFF)))
    return clamp_lanes(v.bit_xor(y, v.bit_and(v.bit_xor(y, extreme), beyond)), low, high)


@kernel
def requantize_lanes(x, s, half, mode, low, high, narrow):
    """requantize(x, s) (SPEC 2)."""
    if narrow:
        return clamp_lanes(round_lanes(x, s, half, mode), low, high)
    return wide_lanes(x, s, low, high, mode)


BYTE, WORD, DOUBLE = np.int64(1), np.int64(2), np.int64(4)  # sizes; for each literal it would be compiled anew


@kernel
def store_lanes(address, size, n, x):
    """The first n lanes as consecutive integers of `size` bytes, 1, 2 or 4."""
    if size == 1:
        bytes_ = int8_at(address, 16)
        if n >= 16:
            v.store_int8(bytes_, 0, x)
        else:
            v.store_some_int8(bytes_, 0, n, x)
    elif size == 2:
        words = int16_at(address, 16)
        if n >= 16:
            v.store_int16(words, 0, x)
        else:
            v.store_some_int16(words, 0, n, x)
    else:
        doubles = int32_at(address, 16)
        if n >= 16:
            v.store_int32(doubles, 0, x)
        else:
            v.store_some_int32(doubles, 0, n, x)
