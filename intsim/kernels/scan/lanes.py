# mypy: allow-untyped-defs
"""The scan in portable operations on 16 lanes, for any CPU and rounding."""

from __future__ import annotations

import numpy as np

from intsim.kernels import vector as v
from intsim.kernels.common import kernel, round_shift, saturate
from intsim.kernels.exp2 import exp2, exp2_row
from intsim.kernels.memory import int8_at, int16_at, int32_at, int64_at, uint8_at, uint16_at
from intsim.kernels.scan.arguments import (
    B_SHIFT,
    BLOCK,
    CHANNELS,
    CLAMPS,
    DELTA,
    DX,
    FRACTION,
    H_HIGH,
    H_LOW,
    IMAGES,
    LIMIT,
    MODE,
    ROM,
    STATES,
    TOKEN_SHIFT,
    TOKENS,
    Y_ACC,
    Y_HIGH,
    Y_LOW,
    Y_ROW_SHIFT,
    Y_SHIFT,
    A,
    B,
    C,
    D,
    M,
    U,
    Y,
)


@kernel
def scan_lanes(a, start, stop, scratch):
    """`y` and, if wanted, `dx` and `y_acc` for the channels start .. stop - 1, at most BLOCK, of all images.

    Needs b_shift + token_shift >= -LARGEST_LEFT; CLAMPS: 1 if it goes below -HARMLESS_LEFT, so that b may reach its
    limits.  A left shift by s is then clamped before it, to -2^(30-s) .. 2^(30-s), and after it.
    """
    batch, tokens, channels, states = a[IMAGES], a[TOKENS], a[CHANNELS], a[STATES]
    padded = (states + 15) // 16 * 16
    block = stop - start
    m, mode, h_low, h_high, y_low, y_high, clamps = a[M], a[MODE], a[H_LOW], a[H_HIGH], a[Y_LOW], a[Y_HIGH], a[CLAMPS]
    a_flat, fraction = int32_at(a[A], channels * padded), int64_at(a[FRACTION], channels)
    rom, d = int32_at(a[ROM], 129), int32_at(a[D], channels)
    b_shift, token_shift = int32_at(a[B_SHIFT], channels), int64_at(a[TOKEN_SHIFT], tokens)
    y_shift, y_row_shift = int32_at(a[Y_SHIFT], channels), int64_at(a[Y_ROW_SHIFT], tokens)
    table, at = uint16_at(scratch, BLOCK * 256 * padded), scratch + BLOCK * 512 * padded
    seen, at = uint8_at(at, BLOCK * 256), at + BLOCK * 256
    h, at = int32_at(at, BLOCK * padded), at + BLOCK * padded * 4
    row_b, row_c, at = int32_at(at, padded), int32_at(at + 4 * padded, padded), at + 8 * padded
    dx, half, right, total = int32_at(at, 16), int32_at(at + 64, 16), int32_at(at + 128, 16), int32_at(at + 192, 16)
    some, up = int32_at(at + 256, 16), int32_at(at + 320, 16)  # some: 1 where something is shifted out
    most, least = int32_at(at + 384, 16), int32_at(at + 448, 16)  # 2^(30-up) and its negative
    seen[:] = 0
    row_b[:] = 0
    row_c[:] = 0
    use = np.int32(-(mode & 1))
    exact = mode > 1  # half_away, half_even: some ties go down
    away = v.splat(np.int32((mode >> 1) & 1))
    even = v.splat(np.int32((mode >> 2) & 1))
    ones = v.splat(np.int32(-1))
    one = v.splat(np.int32(1))
    sign = v.splat(np.int32(31))
    low = v.splat(np.int32(h_low))
    high = v.splat(np.int32(h_high))
    h_right = v.splat(np.int32(m))
    h_half = v.splat(np.int32(((1 << m) >> 1) & use))
    zero = v.splat(np.int32(0))
    b_high = v.splat(np.int32(LIMIT))
    b_low = v.splat(np.int32(-LIMIT))
    for i in range(batch):
        h[:] = 0
        for t in range(tokens):
            left = token_shift[t]
            step = left - token_shift[max(t - 1, 0)]
            row_of = i * tokens + t
            b_row, c_row = int8_at(a[B] + row_of * states, states), int8_at(a[C] + row_of * states, states)
            for n in range(states):
                row_b[n] = b_row[n]
                row_c[n] = c_row[n]
            delta_row = uint8_at(a[DELTA] + row_of * channels + start, block)
            u_row = int8_at(a[U] + row_of * channels + start, block)
            shift_row = b_shift[start:stop]
            if step != 0 or t == 0:
                for j in range(block):
                    shift = np.int64(shift_row[j]) + left
                    r = max(shift, 0)
                    up[j] = max(-shift, 0)
                    most[j] = 1 << (30 - up[j])
                    least[j] = -most[j]
                    right[j] = r
                    half[j] = ((1 << r) >> 1) & use
                    some[j] = min(r, 1)
            for j in range(block):
                dx[j] = np.int32(delta_row[j]) * np.int32(u_row[j])
            if a[DX]:
                dx_row = int16_at(a[DX] + 2 * (row_of * channels + start), block)
                for j in range(block):
                    dx_row[j] = dx[j]
            if not clamps:
                for j in range(block):
                    dx[j] = dx[j] << (up[j] & 31)
            for j in range(block):
                code = np.int64(delta_row[j])
                row = (j * 256 + code) * padded
                if seen[j * 256 + code] == 0:
                    seen[j * 256 + code] = 1
                    f = fraction[start + j]
                    if f >= 4:
                        exp2_row(code, a_flat, (start + j) * padded, padded, f, rom, m, mode, table, row)
                    else:
                        for n in range(padded):
                            table[row + n] = exp2(code * np.int64(a_flat[(start + j) * padded + n]), f, rom, m, mode)
            if step > 0:
                s = v.splat(np.int32(step))
                add = v.splat(np.int32(((1 << step) >> 1) & use))
                for q in range(0, block * padded, 16):
                    x = v.load_int32(h, q)
                    y = v.add(x, add)
                    if exact:
                        tie = v.bit_or(v.bit_and(away, v.ashr(x, sign)), v.bit_and(even, v.bit_xor(v.ashr(x, s), ones)))
                        y = v.sub(y, v.bit_and(tie, one))
                    v.store_int32(h, q, v.maximum(v.minimum(v.ashr(y, s), high), low))
            elif step < 0:
                s = v.splat(np.int32(-step))
                for q in range(0, block * padded, 16):
                    y = v.shl(v.load_int32(h, q), s)
                    v.store_int32(h, q, v.maximum(v.minimum(y, high), low))
            for j in range(block):
                dx_all = v.splat_element(dx, j)
                b_half = v.splat_element(half, j)
                b_right = v.splat_element(right, j)
                b_some = v.splat_element(some, j)
                b_up = v.splat_element(up, j)
                b_most = v.splat_element(most, j)
                b_least = v.splat_element(least, j)
                sums = zero
                row = (j * 256 + np.int64(delta_row[j])) * padded
                at = j * padded
                for n in range(0, padded, 16):
                    x = v.mul(dx_all, v.load_int32(row_b, n))
                    if clamps:
                        x = v.shl(v.maximum(v.minimum(x, b_most), b_least), b_up)
                    b = v.add(x, b_half)
                    if exact:
                        tie = v.bit_and(away, v.ashr(x, sign))
                        tie = v.bit_or(tie, v.bit_and(even, v.bit_xor(v.ashr(x, b_right), ones)))
                        b = v.sub(b, v.bit_and(tie, b_some))
                    b = v.ashr(b, b_right)
                    if clamps:
                        b = v.maximum(v.minimum(b, b_high), b_low)
                    acc = v.mul(v.load_uint16(table, row + n), v.load_int32(h, at + n))
                    acc = v.add(acc, b)
                    y = v.add(acc, h_half)
                    if exact:
                        tie = v.bit_and(away, v.ashr(acc, sign))
                        tie = v.bit_or(tie, v.bit_and(even, v.bit_xor(v.ashr(acc, h_right), ones)))
                        y = v.sub(y, v.bit_and(tie, one))
                    y = v.maximum(v.minimum(v.ashr(y, h_right), high), low)
                    v.store_int32(h, at + n, y)
                    sums = v.add(sums, v.mul(y, v.load_int32(row_c, n)))
                total[j] = v.total(sums)
            target = int8_at(a[Y] + row_of * channels + start, block)
            d_row = d[start:stop]
            y_shift_row = y_shift[start:stop]
            for j in range(block):
                y_acc = np.int32(np.int32(d_row[j] * np.int32(u_row[j])) + np.int32(total[j] << left))
                if a[Y_ACC]:
                    int32_at(a[Y_ACC] + 4 * (row_of * channels + start), block)[j] = y_acc
                s64 = np.int64(y_shift_row[j]) + y_row_shift[t]
                target[j] = saturate(round_shift(np.int64(y_acc), s64, mode), y_low, y_high)
