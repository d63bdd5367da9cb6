# mypy: allow-untyped-defs
"""The scan in registers of 512 bits (AVX-512 and its VNNI)."""

from __future__ import annotations

import numpy as np

from intsim.kernels import vector as v
from intsim.kernels.common import kernel
from intsim.kernels.exp2 import LEAST_FRACTION, MOST_FRACTION, exp2_rows, exp2_rows_by_words
from intsim.kernels.memory import int8_at, int32_at, int64_at, uint8_at
from intsim.kernels.requantize import half_lanes
from intsim.kernels.scan.arguments import (
    B_SHIFT,
    BLOCK,
    BYTE_ROM,
    CHANNELS,
    DELTA,
    FRACTION,
    H_HIGH,
    H_LOW,
    H_SIZE,
    IMAGES,
    LEAST_LEFT,
    MODE,
    MOST_LEFT,
    PACKED,
    RIGHTS,
    SHIFTS,
    SOME,
    TABLE,
    TOKEN_SHIFT,
    TOKENS,
    A,
    M,
)
from intsim.kernels.scan.avx512_states import (
    byte_sums,
    bytes_left,
    bytes_right,
    bytes_right_half_up,
    bytes_updated,
    bytes_updated_right,
    find_rows,
    no_bytes,
    no_words,
    spread_tables,
    word_sums,
    words_left,
    words_right,
    words_updated,
)
from intsim.kernels.scan.blocks import (
    COPIES,
    dx_of,
    dx_rows,
    inputs_of,
    range_of_shifts,
    shifted,
    shifts_at,
    shifts_from,
    write_y,
)


@kernel
def scan_avx512(a, start, stop, scratch):
    """`y`, and `dx` and `y_acc` if wanted, for the channels start .. stop - 1, at most BLOCK, of all images.

    At most 16 states, half_up or floor.  The products of an update are sums of two 16-bit products (vector.add_pairs):

    * dx * B << s: (low 8 bits of dx << s) * B + (the bits above) * (B << 8); see `write_factors`.
    * A-bar reaches 2^15 and does not fit, but -A-bar does; so it is -acc = -A-bar * h - b that is summed, and
      h = (half - (-acc)) >> m = ~((-acc - half - 1) >> m).  For a shift s > 0, -b = (-dx * B + c) >> s with
      c = half - 1 (half_up) or 2^s - 1 (floor).

    Some tokens at a time: first what their updates need of dx, then the updates and nothing else, then what their sums
    make of y, so that no update waits for the way to or from another token's.
    """
    images, tokens = a[IMAGES], a[TOKENS]
    block = stop - start
    at = scratch + BLOCK * TABLE * 4
    factors, sums, copies = at, at + SOME * 16 * 4, at + 2 * SOME * 16 * 4
    at = copies + COPIES
    rows, at = at, at + 8 * SOME * 16
    seen, codes, shifts = int32_at(at, 8 * 16), int32_at(at + 8 * 16 * 4, 256 + 32), at + (8 * 16 + 256 + 32) * 4
    fill_table(a, start, block, int32_at(scratch, BLOCK * TABLE), seen, codes)
    write_shifts(a, start, shifts)
    least, most = range_of_shifts(a, start)
    bytes_ = a[H_SIZE] == 1
    for i in range(images):
        h, words = no_bytes(), no_words()
        for first in range(0, tokens, SOME):
            count = min(SOME, tokens - first)
            row = i * tokens + first
            delta, u, width, b, c = inputs_of(a, start, block, row, count, copies)
            write_factors(a, start, block, row, first, count, delta, u, width, shifts, least, factors)
            for k in range(count):
                find_rows(delta + width * k, scratch, np.int64(TABLE * 4), rows + 8 * 16 * k)
            if bytes_:
                h = update_bytes(a, h, first, count, rows, b, c, factors, shifts, most, sums)
            else:
                words = update_words(a, words, first, count, rows, b, c, factors, shifts, sums)
            write_y(a, start, block, row, first, count, u, width, int32_at(sums, SOME * 16))


@kernel
def update_bytes(a, h, first, count, rows, b_rows, c_rows, factors, shifts, most, sums):
    """Updates states of 8 bits with `count` tokens from `first` on; writes the sums of h * C, int32 [count, 16].

    rows: address of int64 [count, 16], see `find_rows`; b_rows, c_rows: addresses of int8 [count, 16]; factors: see
    `write_factors`; shifts: see `write_shifts`; most: the largest b_shift of the 16.
    """
    m, mode = a[M], a[MODE]
    token_shift, before = shifts_from(a, first, count)
    written = int32_at(sums, count * 16)
    right = v.splat(np.int32(m))
    begin = v.bit_xor(half_lanes(right, mode), v.splat(np.int32(-1)))
    tables, rights = spread_tables(), int32_at(a[RIGHTS], 9 * 4)
    for k in range(count):
        left = token_shift[k]
        step, before = left - before, left
        if step > 0:
            by = 4 * min(step, 8)
            counts, mask = v.splat_words(v.element(rights, by)), v.splat_bytes(v.element(rights, by + 1))
            offset = v.splat_bytes(v.element(rights, by + 2))
            h = bytes_right_half_up(h, counts, mask, offset) if mode else bytes_right(h, counts, mask, offset)
        elif step < 0:
            h = bytes_left(h, min(-step, 8))
        b = pairs_of(b_rows + 16 * k)
        if most + left > 0:
            at = shifts_at(a, shifts, left)
            h = bytes_updated_right(h, tables, factors + 64 * k, at, rows + 128 * k, b, begin, right)
        else:
            h = bytes_updated(h, tables, factors + 64 * k, 0, rows + 128 * k, b, begin, right)
        v.store_int32(written, 16 * k, byte_sums(h, v.load_quarters(c_rows + 16 * k)))
    return h


@kernel
def update_words(a, h, first, count, rows, b_rows, c_rows, factors, shifts, sums):
    """`update_bytes` for states of more than 8 bits."""
    m, mode = a[M], a[MODE]
    token_shift, before = shifts_from(a, first, count)
    written = int32_at(sums, count * 16)
    low, high, right = v.splat(np.int32(a[H_LOW])), v.splat(np.int32(a[H_HIGH])), v.splat(np.int32(m))
    half = half_lanes(right, mode)
    for k in range(count):
        left = token_shift[k]
        step, before = left - before, left
        if step > 0:
            by = v.splat(np.int32(step))
            h = words_right(h, half_lanes(by, mode), by)
        elif step < 0:
            h = words_left(h, v.splat(np.int32(-step)), low, high)
        b, at = pairs_of(b_rows + 16 * k), shifts_at(a, shifts, left)
        h = words_updated(h, factors + 64 * k, at, rows + 128 * k, b, half, right, low, high)
        v.store_int32(written, 16 * k, word_sums(h, v.load_quarters(c_rows + 16 * k)))
    return h


@kernel
def fill_table(a, start, block, table, seen, codes):
    """Rows of -A-bar (exp2.exp2_rows) in int32 [BLOCK, TABLE], for each channel and every delta code that occurs.

    seen int32 [8, 16], a bit for each code of each channel, codes int32 [256 + 32]: scratch.
    """
    see_codes(a, start, block, seen)
    a_rows, fraction = int32_at(a[A], (start + BLOCK) * 16), int64_at(a[FRACTION], start + BLOCK)
    packed, by_bytes = int32_at(a[PACKED], 128), int8_at(a[BYTE_ROM], 512)
    for j in range(block):
        count = np.int64(0)
        for word in range(8):
            bits = np.int64(seen[word * 16 + j])
            count += v.list_bits(bits, word * 32, codes, count)
            count += v.list_bits(bits >> 16, word * 32 + 16, codes, count)
        row = v.load_int32(a_rows, (start + j) * 16)
        f = fraction[start + j]
        if a[BYTE_ROM] and LEAST_FRACTION <= f <= MOST_FRACTION:
            exp2_rows_by_words(codes, count, row, f, by_bytes, a[M], table, j * TABLE)
        else:
            exp2_rows(codes, count, row, f, packed, a[M], a[MODE], table, j * TABLE)


@kernel
def see_codes(a, start, block, seen):
    """Sets bit c mod 32 of seen[c / 32, j] for each delta code c of channel start + j."""
    channels, rows = a[CHANNELS], a[IMAGES] * a[TOKENS]
    one, low, five = v.splat(np.int32(1)), v.splat(np.int32(31)), v.splat(np.int32(5))
    zero = v.splat(np.int32(0))
    s0, s1, s2, s3, s4, s5, s6, s7 = zero, zero, zero, zero, zero, zero, zero, zero
    if block == 16:
        for row in range(rows):
            code = v.load_uint8(uint8_at(a[DELTA] + row * channels + start, 16), 0)
            bit, word = v.shl(one, v.bit_and(code, low)), v.lshr(code, five)
            s0, s1 = v.bit_or_where(s0, word, 0, bit), v.bit_or_where(s1, word, 1, bit)
            s2, s3 = v.bit_or_where(s2, word, 2, bit), v.bit_or_where(s3, word, 3, bit)
            s4, s5 = v.bit_or_where(s4, word, 4, bit), v.bit_or_where(s5, word, 5, bit)
            s6, s7 = v.bit_or_where(s6, word, 6, bit), v.bit_or_where(s7, word, 7, bit)
    v.store_int32(seen, 0, s0)
    v.store_int32(seen, 16, s1)
    v.store_int32(seen, 32, s2)
    v.store_int32(seen, 48, s3)
    v.store_int32(seen, 64, s4)
    v.store_int32(seen, 80, s5)
    v.store_int32(seen, 96, s6)
    v.store_int32(seen, 112, s7)
    if block < 16:
        for row in range(rows):
            delta = uint8_at(a[DELTA] + row * channels + start, block)
            for j in range(block):
                code = np.int64(delta[j])
                seen[(code >> 5) * 16 + j] |= np.int32(np.int64(1) << (code & 31))


@kernel
def pairs_of(row):
    """The 16 bytes B at the address `row` as pairs of words, B and B << 8 (vector.add_pairs)."""
    b = v.load_int8(int8_at(row, 16), 0)
    return v.bit_or(v.bit_and(b, v.splat(np.int32(65535))), v.shl(b, v.splat(np.int32(24))))


@kernel
def write_shifts(a, start, shifts):
    """For each shift of a token, from the least on, int32 [5, 16]: of 16 channels what their b needs.

    At the address `shifts`: a constant, right shift, limit, -limit, left shift.  For states of 8 bits the left shift
    and the limits before it are those of -dx (`write_factors`), and the constant has -half - 1 of the state's rounding,
    shifted left, in it; for others they are those of -dx * B.
    """
    b_shift, mode = v.load_int32(int32_at(a[B_SHIFT], start + 16), start), a[MODE]
    zero, one = v.splat(np.int32(0)), v.splat(np.int32(1))
    begin, top, most = zero, 30, 30
    if a[H_SIZE] == 1:
        begin, top, most = v.bit_xor(half_lanes(v.splat(np.int32(a[M])), mode), v.splat(np.int32(-1))), 23, 23
    for left in range(a[LEAST_LEFT], a[MOST_LEFT] + 1):
        row = int32_at(shifts_at(a, shifts, left), SHIFTS)
        shift = v.add(b_shift, v.splat(np.int32(left)))
        right, up = v.maximum(shift, zero), v.maximum(v.sub(zero, shift), zero)
        up = v.minimum(up, v.splat(np.int32(most)))
        constant = v.sub(half_lanes(right, 1), v.minimum(right, one))
        if not mode:
            constant = v.sub(v.shl(one, right), one)
        limit = v.shl(one, v.sub(v.splat(np.int32(top)), up))
        v.store_int32(row, 0, v.add(constant, v.shl(begin, right)))
        v.store_int32(row, 16, right)
        v.store_int32(row, 32, limit)
        v.store_int32(row, 48, v.sub(zero, limit))
        v.store_int32(row, 64, up)


@kernel
def write_factors(a, start, block, row, first, count, delta, u, width, shifts, least, factors):
    """-dx << s of 16 channels, in two words (vector.add_pairs), for each of `count` tokens from `first` on.  `dx`, if
    wanted, of `block` channels, in the rows from `row` on.

    s = 0 for states of more than 8 bits, else max(-b_shift - token_shift, 0); and then it is clamped to -2^23 ..
    2^23 - 1, which changes no state: |A-bar * h| is at most 2^22, and if |dx << s|, and so also |b| but for B = 0, is
    2^23 - 1 or more, acc is beyond what a state of 8 bits can hold, in the same direction.  Where no channel has an s,
    -dx is one word and the other is 0.  least: the least b_shift of the 16.
    """
    token_shift = int64_at(a[TOKEN_SHIFT] + 8 * first, count)
    enough = a[LEAST_LEFT] if a[H_SIZE] > 1 else -least  # from this shift of a token on there is no s
    target = int32_at(factors, count * 16)
    out, pitch = dx_rows(a, start, row)
    zero, byte, above = v.splat(np.int32(0)), v.splat(np.int32(255)), v.splat(np.int32(-256))
    eight, word, highest = v.splat(np.int32(8)), v.splat(np.int32(65535)), v.splat(np.int32((1 << 23) - 1))
    for k in range(count):
        left = token_shift[k]
        dx = v.sub(zero, dx_of(delta + width * k, u + width * k, block, out + pitch * k))
        if left >= enough:
            v.store_int32(target, 16 * k, v.bit_and(dx, word))
        else:
            rows = int32_at(shifts_at(a, shifts, left), SHIFTS)
            dx = shifted(dx, rows, highest)
            v.store_int32(target, 16 * k, v.bit_or(v.shl(v.bit_and(dx, above), eight), v.bit_and(dx, byte)))
