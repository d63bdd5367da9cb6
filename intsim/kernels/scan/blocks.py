# mypy: allow-untyped-defs
"""What the scans of a block of channels share, `avx512` and `avx2`."""

from __future__ import annotations

import numpy as np

from intsim.kernels import vector as v
from intsim.kernels.common import kernel
from intsim.kernels.memory import int8_at, int32_at, int64_at, uint8_at
from intsim.kernels.requantize import BYTE, DOUBLE, WORD, clamp_lanes, half_lanes, store_lanes, wide_lanes
from intsim.kernels.scan.arguments import (
    B_SHIFT,
    CHANNELS,
    DELTA,
    DX,
    LEAST_LEFT,
    MODE,
    NARROW,
    SHIFTS,
    SOME,
    STATES,
    TOKEN_SHIFT,
    TOKENS,
    Y_ACC,
    Y_HIGH,
    Y_LOW,
    Y_ROW_SHIFT,
    Y_SHIFT,
    B,
    C,
    D,
    U,
    Y,
)

COPIES = 4 * SOME * 16  # bytes that `inputs_of` may need


@kernel
def range_of_shifts(a, start):
    """The least and the largest b_shift of the 16 channels from `start` on."""
    b_shift = int32_at(a[B_SHIFT], start + 16)
    least = most = np.int64(b_shift[start])
    for j in range(start + 1, start + 16):
        least, most = min(least, np.int64(b_shift[j])), max(most, np.int64(b_shift[j]))
    return least, most


@kernel
def shifts_at(a, shifts, left):
    """The address of what `write_shifts` wrote for a token's shift."""
    return shifts + (left - a[LEAST_LEFT]) * SHIFTS * 4


@kernel
def shifts_from(a, first, count):
    """The shifts of `count` tokens from `first` on, and that of the token before them, or of the first."""
    return int64_at(a[TOKEN_SHIFT] + 8 * first, count), int64_at(a[TOKEN_SHIFT], a[TOKENS])[max(first - 1, 0)]


@kernel
def inputs_of(a, start, block, row, count, copies):
    """Where delta and u of the 16 channels from `start` on are, and B and C, of `count` tokens, in the rows from `row`
    on.

    Returns the addresses of delta and u, the bytes from one of their rows to the next, and the addresses of B and C,
    rows of 16 bytes.  Of a block of fewer channels, and of fewer than 16 states, they are copies with zeros behind.
    copies: address of COPIES bytes.
    """
    channels, states = a[CHANNELS], a[STATES]
    delta, u, width = a[DELTA] + row * channels + start, a[U] + row * channels + start, channels
    if block < 16:
        delta = widened(delta, channels, block, count, copies)
        u = widened(u, channels, block, count, copies + SOME * 16)
        width = 16
    b, c = a[B] + row * states, a[C] + row * states
    if states < 16:
        b = widened(b, states, states, count, copies + 2 * SOME * 16)
        c = widened(c, states, states, count, copies + 3 * SOME * 16)
    return delta, u, width, b, c


@kernel
def widened(source, width, n, count, target):
    """Copies n < 16 bytes each of `count` rows that are `width` apart; zeros follow to 16.  Returns `target`."""
    source, copy = int8_at(source, count * width), int8_at(target, count * 16)
    copy[:] = 0
    for k in range(count):
        for j in range(n):
            copy[16 * k + j] = source[width * k + j]
    return target


@kernel
def dx_of(delta, u, block, out):
    """dx of 16 channels of one token; of `block` channels also to the address `out`, int16, if it is not 0.

    delta, u: addresses of the token's bytes.
    """
    dx = v.mul(v.load_uint8(uint8_at(delta, 16), 0), v.load_int8(int8_at(u, 16), 0))
    if out:
        store_lanes(out, WORD, block, dx)
    return dx


@kernel
def dx_rows(a, start, row):
    """Where `dx` of the channels from `start` on goes, from this row on, and the bytes from row to row; or 0, 0.

    To be asked once before a loop: a call with `a` in it, and a branch in that, counts references for each token.
    """
    if a[DX]:
        return a[DX] + 2 * (row * a[CHANNELS] + start), 2 * a[CHANNELS]
    return np.int64(0), np.int64(0)


@kernel
def shifted(dx, rows, highest):
    """dx << s of each channel, saturated: limits and s from what `write_shifts` wrote for the token's shift."""
    dx = v.maximum(v.minimum(dx, v.load_int32(rows, 32)), v.load_int32(rows, 48))
    return v.minimum(v.shl(dx, v.load_int32(rows, 64)), highest)


@kernel
def write_y(a, start, block, row, first, count, u, width, sums):
    """`y`, and `y_acc` if wanted, of `count` tokens from `first` on, in the rows from `row` on.

    sums: of h * C, int32 [count, 16].
    """
    channels, mode = a[CHANNELS], a[MODE]
    token_shift, y_row_shift = int64_at(a[TOKEN_SHIFT] + 8 * first, count), int64_at(a[Y_ROW_SHIFT] + 8 * first, count)
    y_shift = v.load_int32(int32_at(a[Y_SHIFT], start + 16), start)
    d = v.load_int32(int32_at(a[D], start + 16), start)
    low, high = a[Y_LOW], a[Y_HIGH]
    row_shift, shift, half = np.int64(1 << 20), y_shift, y_shift  # of no token
    for k in range(count):
        factor = v.load_int8(int8_at(u + width * k, 16), 0)
        sum_ = v.shift_left(v.load_int32(sums, 16 * k), v.splat(np.int32(token_shift[k])))
        acc = v.add(v.mul(d, factor), sum_)
        if a[Y_ACC]:
            store_lanes(a[Y_ACC] + 4 * ((row + k) * channels + start), DOUBLE, block, acc)
        if y_row_shift[k] != row_shift:
            row_shift = y_row_shift[k]
            shift = v.add(y_shift, v.splat(np.int32(row_shift)))
            half = half_lanes(shift, mode)
        if a[NARROW]:
            y = clamp_lanes(v.shift_right(v.add(acc, half), shift), low, high)
        else:
            y = wide_lanes(acc, shift, low, high, mode)
        store_lanes(a[Y] + (row + k) * channels + start, BYTE, block, y)
