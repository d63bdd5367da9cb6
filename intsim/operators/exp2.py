"""A-bar = 2^-(p / 2^f): a 129-entry ROM, linear interpolation, one rounding (SPEC 5.7)."""

from __future__ import annotations

from intsim.arithmetic import Int64, int64, round_shift

ROM_SIZE = 129


def exp2(p: object, fraction: object, m: int, rom: object, mode: str) -> Int64:
    """2^-(p / 2^fraction) as an unsigned fraction of m bits, 0 .. 2^m.

    p: integers 0 .. 65535; fraction: integers 0 .. 31 that broadcast against p; rom: 129 integers, entry j the
    nearest to 2^(17 - j/128); mode: rounding mode.
    """
    import numpy as np

    p, f, table = int64(p), int64(fraction), int64(rom)
    t = np.where(f <= 19, p << np.maximum(19 - f, 0), p >> np.maximum(f - 19, 0))
    whole = t >> 19
    j = (t >> 12) & 127
    rest = t & 4095
    v = (table[j] << 12) - (table[j] - table[j + 1]) * rest
    return round_shift(v, np.minimum(29 - m + whole, 31), mode)
