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

    codes int32; a: 16 lanes of 8 bits; packed: packed_rom; modes half_up and floor.  With s the shift of the last
    rounding, value' = -value - 1 is summed, 4096 * (98304 - rom[j]) + (rom[j] - rom[j + 1]) * r - 4096 * 98304 - 1,
    and s itself sits above the fraction of the product, so that one shift brings it down.
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
        v.store_int32(table, at + np.int64(codes[i]) * 16, v.twice(value))
