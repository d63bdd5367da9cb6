# mypy: allow-untyped-defs
"""exp2 (SPEC 5.7): 2^-(p / 2^f) as an unsigned fraction of m bits, by a ROM and a linear interpolation."""

from __future__ import annotations

import numpy as np

from intsim.kernels import vector as v
from intsim.kernels.common import kernel, round_shift


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
        v.store_uint16(table, row + n, v.ashr(v.sub(v.add(value, half), even), shift))
