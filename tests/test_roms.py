"""ROM contents (SPEC section 6) against `decimal` with 300 digits: another library, another formula, written here.

The reference works on intervals: an open interval of rationals that surely holds f(x) / 2^eo, both ends of which must
round to the same integer.  Beyond |x| = 300 all that is used is 0 < |x| exp(-|x|) < 2^-400.
"""

from __future__ import annotations

from decimal import Decimal, localcontext
from fractions import Fraction
from functools import cache

import numpy as np
import pytest

from intsim.arithmetic import ROUNDINGS
from intsim.roms import exp2_rom, function_rom, rom_table

pytest.importorskip("mpmath")

RELATIVE = Fraction(1, 10**160)
TINY = Fraction(1, 2**5000)  # nearer to a breakpoint than any other breakpoint is: which tiny does not matter


@cache
def interval(function: str, code: int, exponent: int) -> tuple[Fraction, Fraction]:
    """Rationals around f(code * 2^exponent); equal if the value is rational."""
    x = Fraction(code) * Fraction(2) ** exponent
    if x == 0 and function == "silu":
        return x, x
    if abs(x) > 300:
        near, far = TINY, Fraction(1, 2**400)
        if function == "silu":  # x - tiny and 0 - tiny
            return (x - far, x - near) if x > 0 else (-far, -near)
        return (x + near, x + far) if x > 0 else (near, far)
    with localcontext() as context:
        context.prec = 300
        at = Decimal(x.numerator) / Decimal(x.denominator)  # exact: at most 135 bits of fraction
        if function == "silu":
            y = at * at.exp() / (at.exp() + 1)
        elif x <= 0:
            y = (1 + at.exp()).ln()
        else:
            y = at + (1 + (-at).exp()).ln()
    value = Fraction(y)
    slack = abs(value) * RELATIVE  # 1 + exp(-300) still has 169 correct digits behind its 1
    return value - slack, value + slack


def rounded(v: Fraction, mode: str) -> int:
    below = v.numerator // v.denominator
    return below if mode == "floor" or v - below < Fraction(1, 2) else below + 1


def reference(function: str, ei: int, eo: int, bits: int, signed: bool, mode: str) -> list[int]:
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    entries = []
    for code in range(-128, 128):
        lower, upper = (end / Fraction(2) ** eo for end in interval(function, code, ei))
        entry = min(max(rounded(lower, mode), low), high)
        assert entry == min(max(rounded(upper, mode), low), high), "the reference is not sure"
        entries.append(entry)
    return entries


# every input exponent from -12 to 6, each with output exponents on both sides of what it needs
PAIRS = [(ei, eo) for ei in range(-12, 7) for eo in (max(-12, ei - 1 - ei % 3), min(6, -6 + ei // 2))]


@pytest.mark.parametrize("function", ["silu", "softplus"])
@pytest.mark.parametrize("mode", ROUNDINGS)
def test_every_entry(function: str, mode: str) -> None:
    signed = function == "silu"
    table = rom_table(function, PAIRS, 8, signed, mode)
    assert table.shape == (len(PAIRS), 256)
    for row, (ei, eo) in zip(table.tolist(), PAIRS, strict=True):
        assert row == reference(function, ei, eo, 8, signed, mode), (ei, eo)


# beyond any use, but within the limits of SPEC section 8
EXTREME = [(-127, -127), (-127, 127), (127, 127), (127, -127), (0, -127), (0, -95), (1, -127), (-20, -30), (3, 0)]


@pytest.mark.parametrize("function", ["silu", "softplus"])
@pytest.mark.parametrize(("ei", "eo"), EXTREME)
def test_extreme_exponents(function: str, ei: int, eo: int) -> None:
    signed = function == "silu"
    for mode in ROUNDINGS:
        got = list(function_rom(function, ei, eo, 8, signed, mode))
        assert got == reference(function, ei, eo, 8, signed, mode), mode


def test_saturation_and_known_values() -> None:
    silu = function_rom("silu", 0, -2, 8, True, "half_up")
    assert silu[128] == 0 and silu[0] == 0 and silu[127] == -1 and max(silu) == 127 == silu[255]
    assert silu[128 + 1] == 3  # silu(1) = 0.7311, times 4 = 2.92
    assert function_rom("silu", 0, 0, 8, True, "floor")[0] == -1  # -128 e^-128 is below 0
    assert function_rom("silu", 0, 0, 8, True, "floor")[255] == 126  # 127 / (1 + e^-127) is below 127
    softplus = function_rom("softplus", 0, -2, 8, False, "floor")
    assert softplus[0] == 0 and softplus[128] == 2  # 4 ln 2 = 2.77
    assert softplus[128 + 64] == 255 and softplus[128 + 63] == 252  # 63 * 4, a little more
    narrow = function_rom("silu", -4, -4, 4, True, "half_even")
    assert (min(narrow), max(narrow)) == (-4, 7)  # the minimum of silu is -0.2785 = -4.46 / 16


def test_exp2_rom() -> None:
    """Nearest to 2^(17 - j/128): (2n-1)^128 < 2^(18 * 128 - j) < (2n+1)^128, exactly."""
    rom = exp2_rom()
    assert len(rom) == 129 and rom[0] == 131072 and rom[128] == 65536
    for j, n in enumerate(rom):
        assert (2 * n - 1) ** 128 < 2 ** (18 * 128 - j) < (2 * n + 1) ** 128
    assert (np.diff(rom) < 0).all()


def test_an_unknown_function_is_refused() -> None:
    with pytest.raises(ValueError, match="relu"):
        function_rom("relu", 0, 0, 8, True, "half_up")
