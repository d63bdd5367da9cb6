"""ROM contents, correctly rounded, made once when a Program is built (SPEC section 6).

Needs mpmath (an extra); a run never comes here.  The 129 entries for A-bar need nothing but Python integers.
"""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache

import numpy as np

from intsim.arithmetic import Int64, limits

FAR = 64  # beyond |x| = 64 + n, silu and softplus are within 2^-(n + 80) of their asymptotes


@lru_cache(maxsize=1)
def exp2_rom() -> tuple[int, ...]:
    """Entry j = the integer nearest to 2^(17 - j/128), j = 0 .. 128, by exact integer comparison."""
    entries = []
    for j in range(129):
        power = 1 << (17 * 128 - j)  # (2^(17 - j/128))^128
        low, high = 65536, 131072
        while low < high:  # the largest n with (n - 1/2)^128 <= power
            middle = (low + high + 1) // 2
            if (2 * middle - 1) ** 128 <= power << 128:
                low = middle
            else:
                high = middle - 1
        entries.append(low)
    return tuple(entries)


@lru_cache(maxsize=4096)
def function_rom(
    function: str, input_exponent: int, output_exponent: int, bits: int, signed: bool, mode: str
) -> tuple[int, ...]:
    """256 entries of silu or softplus for the input codes -128 .. 127.

    Entry i is f((i - 128) * 2^input_exponent) / 2^output_exponent, rounded once by `mode` and saturated.
    """
    low, high = limits(bits, signed)
    entries = []
    for code in range(-128, 128):
        value, side = _value(function, Fraction(code) * _power(input_exponent), output_exponent)
        entries.append(min(max(_round(value / _power(output_exponent), side, mode), low), high))
    return tuple(entries)


def rom_table(
    function: str, pairs: list[tuple[int, int]], bits: int, signed: bool, mode: str
) -> Int64:
    """[len(pairs), 256] ROMs, one for each (input exponent, output exponent)."""
    return np.array([function_rom(function, i, o, bits, signed, mode) for i, o in pairs], dtype=np.int64)


def _power(exponent: int) -> Fraction:
    return Fraction(2) ** exponent


def _value(function: str, x: Fraction, output_exponent: int) -> tuple[Fraction, int]:
    """f(x) as (rational, side): the exact value is the rational, or infinitely near on the given side of it."""
    import mpmath

    if function not in ("silu", "softplus"):
        raise ValueError(f"function {function!r} is not silu or softplus")
    if x == 0 and function == "silu":
        return Fraction(0), 0
    if abs(x) >= FAR + max(-output_exponent, 0):  # x - tiny and 0 - tiny for silu, x + tiny and 0 + tiny for softplus
        return (x if x > 0 else Fraction(0)), (-1 if function == "silu" else 1)
    precision = 160
    while True:
        with mpmath.workprec(precision):
            at = mpmath.mpf(x.numerator) / mpmath.mpf(x.denominator)
            y = at / (1 + mpmath.exp(-at)) if function == "silu" else mpmath.log1p(mpmath.exp(at))
            sign, mantissa, exponent, _ = y._mpf_
        value = Fraction(int(mantissa)) * _power(int(exponent)) * (-1 if sign else 1)
        halves = value / _power(output_exponent) * 2
        distance = abs(halves - round(halves))  # every mode changes only at multiples of 1/2
        if distance > abs(halves) * _power(-precision + 20) + _power(-precision + 20):
            return value, 0
        precision *= 2


def _round(value: Fraction, side: int, mode: str) -> int:
    """`value`, infinitely little moved towards `side`, rounded to an integer."""
    down = value.numerator // value.denominator
    rest = value - down
    if mode == "floor":
        return down - 1 if rest == 0 and side < 0 else down
    if rest == Fraction(1, 2) and side == 0:
        if mode == "half_up":
            return down + 1
        if mode == "half_away":
            return down + 1 if value > 0 else down
        return down + (down & 1)
    return down + 1 if rest > Fraction(1, 2) or (rest == Fraction(1, 2) and side > 0) else down
