# mypy: allow-untyped-defs
"""The scan in registers of 256 bits (AVX2)."""

from __future__ import annotations

import numpy as np

from intsim.kernels import vector as v
from intsim.kernels.common import kernel
from intsim.kernels.memory import int8_at, int32_at, int64_at, uint8_at
from intsim.kernels.requantize import half_lanes
from intsim.kernels.scan.arguments import (
    B_SHIFT,
    BIT_PLACES,
    BLOCK,
    CHANNELS,
    CLAMPS,
    DELTA,
    ENTRY_BYTES,
    FRACTION,
    H_HIGH,
    H_LOW,
    H_SIZE,
    IMAGES,
    LEAST_LEFT,
    MODE,
    MOST_LEFT,
    SHIFTS,
    SOME,
    TABLE,
    TOKEN_SHIFT,
    TOKENS,
    A,
    M,
)
from intsim.kernels.scan.avx2_states import (
    HALF,
    bytes_updated,
    bytes_updated_right,
    halved,
    list_codes,
    no_states,
    shifted_left,
    shifted_right,
    small_shifted_left,
    state_sums,
    store_words,
    words_updated,
    words_updated_clamped,
    write_two_rows,
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

MOST_UP = 8  # left shift that a word of B can hold
LOWER, UPPER = np.int64(0), np.int64(HALF)  # as literals they would be compiled twice
WORDS = 32  # bytes of 16 states as words
ROW = (MOST_UP + 2) * WORDS  # bytes for a token: B << 0 .. B << MOST_UP, and C
SCRATCH = BLOCK * (TABLE * 2 + 256) + SOME * (2 * 16 * 4 + ROW) + COPIES + (256 + 8) * 4


@kernel
def scan_avx2(a, start, stop, scratch):
    """`y`, and `dx` and `y_acc` if wanted, for the channels start .. stop - 1, at most BLOCK, of all images.

    At most 16 states, half_up or floor; for states of 8 bits m of LEAST_M or more and right shifts of b up to
    LARGEST_RIGHT_BYTES.  Of these, acc = A-bar * h + dx * B << s is one sum of two 16-bit products of each state:

    * for s >= 0 B << s fits a word up to s = MOST_UP, and what is left of s shifts dx (see `write_factors`);
    * for s < 0, r = -s, floor((N + floor(z / 2^r)) / 2^m) is floor((N * 2^r + z) / 2^(m + r)), so h * 2^r takes the
      place of h, and b is not shifted by itself.

    Half of the channels at a time have their states in registers.

    Some tokens at a time: first what their updates need of dx, B and C, then the updates and nothing else, then what
    their sums make of y.
    """
    images, tokens = a[IMAGES], a[TOKENS]
    block = stop - start
    seen, at = scratch + BLOCK * TABLE * 2, scratch + BLOCK * (TABLE * 2 + 256)
    factors, sums, copies, words = at, at + SOME * 64, at + SOME * 128, at + SOME * 128 + COPIES
    codes = words + SOME * ROW
    shifts = codes + (256 + 8) * 4
    fill_table(a, start, block, scratch, seen, codes)
    write_shifts(a, start, shifts)
    least, most = range_of_shifts(a, start)
    upper = HALF * TABLE * 2
    for i in range(images):
        h, h_upper = no_states(), no_states()
        for first in range(0, tokens, SOME):
            count = min(SOME, tokens - first)
            row = i * tokens + first
            delta, u, width, b, c = inputs_of(a, start, block, row, count, copies)
            write_factors(a, start, block, row, first, count, delta, u, width, shifts, least, factors)
            write_words(a, first, count, b, c, least, most, words)
            h = update(a, h, first, count, delta, width, scratch, factors, words, shifts, LOWER, most, sums)
            if block > HALF:
                delta += HALF
                h_upper = update(
                    a, h_upper, first, count, delta, width, scratch + upper, factors, words, shifts, UPPER, most, sums
                )
            write_y(a, start, block, row, first, count, u, width, int32_at(sums, SOME * 16))


@kernel
def fill_table(a, start, block, table, seen, codes_at):
    """Rows of -A-bar, int16 [BLOCK, TABLE] at the address `table`, for each channel and every code of delta.

    seen: address of bytes [BLOCK, 256]; codes_at: of int32 [256 + 8]; scratch.
    """
    channels, rows = a[CHANNELS], a[IMAGES] * a[TOKENS]
    found = uint8_at(seen, BLOCK * 256)
    found[:] = 0
    for row in range(rows):
        delta = uint8_at(a[DELTA] + row * channels + start, block)
        for j in range(block):
            found[j * 256 + np.int64(delta[j])] = 1
    a_rows, fraction = int32_at(a[A], (start + BLOCK) * 16), int64_at(a[FRACTION], start + BLOCK)
    codes = int32_at(codes_at, 256 + 8)
    for j in range(block):
        count = list_codes(seen + j * 256, a[BIT_PLACES], codes_at)
        codes[count] = codes[count - 1]
        factor = v.load_int32(a_rows, (start + j) * 16)
        write_rows(a, factor, fraction[start + j], codes, count, table + 2 * TABLE * j)


@kernel
def write_rows(a, factor, f, codes, count, table):
    """Rows of -A-bar (SPEC 5.7) of one channel for `count` codes, to the address `table`, 32 bytes for each code.

    codes: followed by one more, because they go in twos.  Where the last rounding is by s bits, p = code * A is in 16
    bits and its fraction in f, the line between two entries of the ROM is summed with k = f - 7 bits more than the ROM
    has, not 12: the others are 0.  The fraction's upper 7 bits are the entry's number.
    """
    over, f = max(f - 19, 0), min(f, 19)
    k, up = max(f - 7, 0), max(7 - f, 0)
    base = 17 - a[M] - a[MODE] + k  # half_up: (value >> (s - 1)) + 1 >> 1
    for i in range(0, count, 2):
        write_two_rows(factor, codes, i, over, f, up, k, base, a[MODE], a[ENTRY_BYTES], table)


@kernel
def write_shifts(a, start, shifts):
    """For each shift of a token, from the least on, what 16 channels' b needs, at the address `shifts`.

    int32 [5, 16]: a constant, right shift, limit, -limit, left shift; int64 [16]: the offset of B << s; int32 [16]: 2^r
    for the right shift r, twice.  What of a left shift B does not take is left for dx, for states of 8 bits, or for
    dx * B, for others, with its limits before it.  For states of 8 bits the right shift has m - 8 in it.
    """
    b_shift, mode = v.load_int32(int32_at(a[B_SHIFT], start + 16), start), a[MODE]
    zero, most_up = v.splat(np.int32(0)), v.splat(np.int32(MOST_UP))
    top, more = (v.splat(np.int32(15)), a[M] - 8) if a[H_SIZE] == 1 else (v.splat(np.int32(30)), 0)
    for left in range(a[LEAST_LEFT], a[MOST_LEFT] + 1):
        at = shifts_at(a, shifts, left)
        row, offsets = int32_at(at, SHIFTS), int64_at(at + 5 * 64, 16)
        shift = v.add(b_shift, v.splat(np.int32(left)))
        right, up = v.maximum(shift, zero), v.maximum(v.sub(zero, shift), zero)
        inside = v.minimum(up, most_up)
        up = v.minimum(v.sub(up, inside), top)
        limit = v.shl(v.splat(np.int32(1)), v.sub(top, up))
        v.store_int32(row, 0, inside)
        for j in range(16):
            offsets[j] = WORDS * np.int64(row[j])
        v.store_int32(row, 0, half_lanes(right, mode))
        v.store_int32(row, 16, v.add(right, v.splat(np.int32(more))))
        v.store_int32(row, 32, limit)
        v.store_int32(row, 48, v.sub(zero, limit))
        v.store_int32(row, 64, up)
        unit = v.shl(v.splat(np.int32(1)), v.bit_and(right, v.splat(np.int32(15))))
        v.store_int32(row, 112, v.bit_or(unit, v.shl(unit, v.splat(np.int32(16)))))


@kernel
def write_factors(a, start, block, row, first, count, delta, u, width, shifts, least, factors):
    """dx of 16 channels, twice in each of int32 [count, 16], for each of `count` tokens from `first` on.  `dx`, if
    wanted, of `block` channels, in the rows from `row` on.

    For states of 8 bits it is dx << s that is shifted, s what is over MOST_UP of b's left shift, saturated to 16 bits,
    which changes no state: |A-bar * h| is at most 2^22, and if |dx << s| is 2^15 - 1 or more, |b| is 2^23 - 2^8 or
    more, or B = 0, so acc is beyond what a state of 8 bits can hold, in the same direction.  least: the least b_shift
    of the 16.
    """
    token_shift = int64_at(a[TOKEN_SHIFT] + 8 * first, count)
    enough = a[LEAST_LEFT] if a[H_SIZE] > 1 else -MOST_UP - least  # from this shift of a token on there is no s
    target = int32_at(factors, count * 16)
    out, pitch = dx_rows(a, start, row)
    above, word, highest = v.splat(np.int32(16)), v.splat(np.int32(65535)), v.splat(np.int32((1 << 15) - 1))
    for k in range(count):
        left = token_shift[k]
        dx = dx_of(delta + width * k, u + width * k, block, out + pitch * k)
        if left < enough:
            rows = int32_at(shifts_at(a, shifts, left), SHIFTS)
            dx = shifted(dx, rows, highest)
        v.store_int32(target, 16 * k, v.bit_or(v.shl(dx, above), v.bit_and(dx, word)))


@kernel
def write_words(a, first, count, b_rows, c_rows, least, most, words):
    """B << s for each s that the 16 channels need, and C, or -C for states of 8 bits, of `count` tokens.

    b_rows, c_rows: addresses of int8 [count, 16]; words: of [count, ROW] bytes (see `ROW`).
    """
    token_shift = int64_at(a[TOKEN_SHIFT] + 8 * first, count)
    zero = v.splat(np.int32(0))
    for k in range(count):
        at = words + ROW * k
        b, c = v.load_int8(int8_at(b_rows + 16 * k, 16), 0), v.load_int8(int8_at(c_rows + 16 * k, 16), 0)
        lowest = min(max(-most - token_shift[k], 0), MOST_UP)
        highest = min(max(-least - token_shift[k], 0), MOST_UP)
        b = v.shl(b, v.splat(np.int32(lowest)))
        for s in range(lowest, highest + 1):
            store_words(at + WORDS * s, b)
            b = v.add(b, b)
        store_words(at + WORDS * (MOST_UP + 1), v.sub(zero, c) if a[H_SIZE] == 1 else c)


@kernel
def update(a, h, first, count, codes, width, table, factors, words, shifts, upper, most, sums):
    """Updates the states of 8 channels with `count` tokens from `first` on; writes sums of h * C, int32 [count, 16].

    codes: address of delta, rows `width` bytes apart; table: of the channels' rows of -A-bar; factors, words, shifts:
    see `write_factors`, `write_words`, `write_shifts`; upper: 0, or 8 for the upper half of the channels, from which
    on `factors`, `shifts` and `sums` are; most: the largest b_shift of the 16.
    """
    m, mode, bytes_, low, high = a[M], a[MODE], a[H_SIZE] == 1, a[H_LOW], a[H_HIGH]
    token_shift, before = shifts_from(a, first, count)
    half8, half = np.int64(128 * mode), ((np.int64(1) << m) >> 1) * mode
    for k in range(count):
        left = token_shift[k]
        step, before = left - before, left
        at = shifts_at(a, shifts, left) + 4 * upper
        offsets = at + 5 * 64 + 4 * upper
        code, factor, b = codes + width * k, factors + 64 * k + 4 * upper, words + ROW * k
        if bytes_:
            if step > 0:
                by = min(step, 8)  # by 8 or more nothing is left but what floor makes of a sign
                h = shifted_right(h, (1 << by) - 1 - ((1 << by) >> 1) * mode, by)
            elif step < 0:
                h = small_shifted_left(h, min(-step, 7), -high, -low)  # by 7 all but 0 is at its limit
            if most + left > 0:
                h = bytes_updated_right(h, code, table, factor, b, offsets, at, m - 8, half8)
            else:
                h = bytes_updated(h, code, table, factor, b, offsets, at, m - 8, half8)
        else:
            if step > 0:
                h = halved(shifted_right(h, 0, step - 1)) if mode else shifted_right(h, 0, step)
            elif step < 0:
                h = shifted_left(h, -step, low, high)
            if a[CLAMPS]:
                h = words_updated_clamped(h, code, table, factor, b, offsets, at, m, half, low, high)
            else:
                h = words_updated(h, code, table, factor, b, offsets, at, m, half, low, high)
        state_sums(h, b + WORDS * (MOST_UP + 1), sums + 64 * k + 4 * upper)
    return h
