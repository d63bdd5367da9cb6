# mypy: allow-untyped-defs
"""exp2 (SPEC 5.7): 2^-(p / 2^f) as an unsigned fraction of m bits, by a ROM and a linear interpolation."""

from __future__ import annotations

import numpy as np

from intsim.kernels import vector as v
from intsim.kernels.common import kernel, round_shift
from intsim.program import Array


@kernel
def exp2(p, f, rom, m, mode):
    """p int64 0 .. 65535; f 0 .. 31; rom int32 [129]; returns int64 0 .. 2^m."""
    t = p << (19 - f) if f <= 19 else p >> (f - 19)
    whole = t >> 19
    j = (t >> 12) & 127
    upper = np.int64(rom[j])
    value = (upper << 12) - (upper - np.int64(rom[j + 1])) * (t & 4095)
    return round_shift(value, min(29 - m + whole, 31), mode)


@kernel
def exp2_row(delta, a, at, states, f, rom, m, mode, table, row):
    """table[row + n] = exp2(delta * a[at + n]) for n < states, a multiple of 16.

    a int32, 8 bits each; table uint16; f >= 4, so that everything fits 31 bits.
    """
    left = v.splat(np.int32(max(19 - f, 0)))
    right = v.splat(np.int32(max(f - 19, 0)))
    one = v.splat(np.int32(1))
    for n in range(0, states, 16):
        p = v.mul(v.splat(np.int32(delta)), v.load_int32(a, at + n))
        t = v.ashr(v.shl(p, left), right)
        j = v.bit_and(v.ashr(t, v.splat(np.int32(12))), v.splat(np.int32(127)))
        upper = v.gather(rom, j)
        step = v.sub(upper, v.gather(rom, v.add(j, one)))
        fraction = v.bit_and(t, v.splat(np.int32(4095)))
        value = v.sub(v.shl(upper, v.splat(np.int32(12))), v.mul(step, fraction))
        shift = v.minimum(v.add(v.ashr(t, v.splat(np.int32(19))), v.splat(np.int32(29 - m))), v.splat(np.int32(31)))
        # round_shift: the value is not negative and the shift at least 14
        half = v.bit_and(v.shl(one, v.sub(shift, one)), v.splat(np.int32(-(mode & 1))))
        even = v.bit_and(v.bit_xor(v.ashr(value, shift), v.splat(np.int32(-1))), v.splat(np.int32((mode >> 2) & 1)))
        v.store_int16(table, row + n, v.ashr(v.sub(v.add(value, half), even), shift))


def packed_rom(rom: Array) -> Array | None:
    """int32 [128]: low half rom[j] - rom[j + 1], high half 98304 - rom[j]; None if 16 signed bits do not hold them."""
    wide = rom.astype(np.int64)
    step, rest = wide[:-1] - wide[1:], 98304 - wide[:-1]
    if min(step.min(), rest.min()) < -(1 << 15) or max(step.max(), rest.max()) >= 1 << 15:
        return None
    return ((rest << 16) | (step & 65535)).astype(np.int32)


@kernel
def exp2_rows(codes, count, a, f, packed, m, mode, table, at):
    """table[at + code * 16 + n] = -exp2(code * a[n]) in 16 bits, twice, for 16 states n and `count` codes.

    codes int32, each in both halves; a: 16 lanes of 8 bits; packed: packed_rom; modes half_up and floor.  With s the
    shift of the last rounding, value' = -value - 1 is summed, 4096 * (98304 - rom[j]) + (rom[j] - rom[j + 1]) * r -
    4096 * 98304 - 1, and s itself sits above the fraction of the product, so that one shift brings it down.
    """
    over, f = max(f - 19, 0), min(f, 19)
    right = v.splat(np.int32(over))
    left, fraction = v.splat(np.int32(19 - f)), v.splat(np.int32(f))
    twelve, low_bits, place = v.splat(np.int32(12)), v.splat(np.int32(4095)), v.splat(np.int32(4096 << 16))
    offset, one = v.splat(np.int32(-(98304 << 12) - 1)), v.splat(np.int32(1))
    # half_up: -((value + half) >> s) = ((value' >> (s-1)) + 1) >> 1; floor: -(value >> s) = (value' >> s) + 1
    base, last = v.splat(np.int32((29 - mode - m) << f)), v.splat(np.int32(mode))
    zero = v.splat(np.int32(0))
    for i in range(count):
        if over:
            p = v.add(v.lshr(v.add_pairs(zero, v.splat_element(codes, i), a), right), base)
        else:
            p = v.add_pairs(base, v.splat_element(codes, i), a)
        t = v.shl(p, left)
        pair = v.look_up_128(packed, v.lshr(t, twelve))
        value = v.add_pairs(offset, pair, v.bit_or(v.bit_and(t, low_bits), place))
        value = v.shift_right(value, v.ashr(p, fraction))
        value = v.shift_right(v.add(value, one), last)
        v.store_int32(table, at + (np.int64(codes[i]) & 255) * 16, v.twice(value))


LEAST_FRACTION, MOST_FRACTION = 7, 19  # of exp2_rows_by_words


def byte_rom(rom: Array) -> Array | None:
    """int8 [512]: low and high bytes of rom[128 - i] - 65536, low and high bytes of rom[127 - i] - rom[128 - i].

    None if the entries do not fall, or not from 2^17 to 2^16.
    """
    wide = rom.astype(np.int64)[::-1]
    value, step = wide[:-1] - (1 << 16), wide[1:] - wide[:-1]
    if wide[0] != 1 << 16 or wide[-1] != 1 << 17 or step.min() < 0:
        return None
    halves = [x >> at & 255 for x in (value, step) for at in (0, 8)]
    return np.array(halves, dtype=np.uint8).view(np.int8).reshape(-1)


@kernel
def exp2_rows_by_words(codes, count, a, f, rom, m, table, at):
    """`exp2_rows` for half_up and LEAST_FRACTION <= f <= MOST_FRACTION, 32 values in a vector.  Needs AVX-512 VBMI.

    codes int32 [count + 3], each in both halves, rising; rom: byte_rom.  Counted from the other side, everything
    has 16 bits.  With -p = q - w * 2^f, 0 <= q < 2^f, the entries of SPEC 5.7 are those of 2^-w * 2^(q / 2^f): with i
    the upper 7 bits of q and r the others, the line from rom[128 - i] to rom[127 - i] is at
    rom[128 - i] + ((rom[127 - i] - rom[128 - i]) * r >> (f - 7)), 2^16 and more, less than 2^17.  This floor changes
    nothing, as 16 + w - m more bits are rounded away, 2 or more for w > 0.  p = 0, where w = 0, is set apart.
    """
    ones, zero = v.splat(np.int32(-1)), v.splat(np.int32(0))
    lowest = v.splat_words(-(1 << m))
    negative = v.sub(zero, a)
    factor = v.low_lanes_twice(v.pack_words(negative, negative))
    to_index = v.splat_words(f - 7)
    index_bits = v.splat_words(127)
    above = v.splat_words(128 - (1 << min(23 - f, 7)))  # bits of q above the 16 of a product: ones
    to_rest, to_whole = v.splat_words(23 - f), v.splat_words(f)
    most = v.splat_words(14 - m + (1 << max(16 - f, 0)))
    v0, v1, v2, v3 = v.load_bytes(rom, 0), v.load_bytes(rom, 64), v.load_bytes(rom, 128), v.load_bytes(rom, 192)
    s0, s1, s2, s3 = v.load_bytes(rom, 256), v.load_bytes(rom, 320), v.load_bytes(rom, 384), v.load_bytes(rom, 448)
    for i in range(count, count + 3):
        codes[i] = codes[count - 1]
    for i in range(0, count, 4):
        p0 = v.mul_words(factor, v.splat_two(codes, i))
        p1 = v.mul_words(factor, v.splat_two(codes, i + 2))
        i0 = v.bit_or(v.bit_and(v.shr_words(p0, to_index), index_bits), above)
        i1 = v.bit_or(v.bit_and(v.shr_words(p1, to_index), index_bits), above)
        index = v.pack_bytes(i0, i1)
        low, high = v.look_up_128_bytes(v0, v1, index), v.look_up_128_bytes(v2, v3, index)
        step_low, step_high = v.look_up_128_bytes(s0, s1, index), v.look_up_128_bytes(s2, s3, index)
        for half in range(2):
            if half:
                p, value, step = p1, v.unpack_high_bytes(low, high), v.unpack_high_bytes(step_low, step_high)
            else:
                p, value, step = p0, v.unpack_low_bytes(low, high), v.unpack_low_bytes(step_low, step_high)
            value = v.add_words(value, v.mul_high_words(step, v.shl_words(p, to_rest)))
            value = v.average_words(value, ones)  # the 17th bit is in, the lowest out
            value = v.shr_words(value, v.sub_words(most, v.shr_words(p, to_whole)))
            value = v.sub_words_where(factor, zero, v.average_words(value, zero), lowest)
            one, two = v.low_byte(codes, i + 2 * half), v.low_byte(codes, i + 2 * half + 1)
            v.store_int32(table, at + one * 16, v.even_lanes_twice(value))
            v.store_int32(table, at + two * 16, v.odd_lanes_twice(value))
    if count and codes[0] == 0:
        v.store_int32(table, at, lowest)
