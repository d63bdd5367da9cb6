"""A-bar (SPEC 5.7): every product, every fraction, every mode, against a table of exact thresholds.

The correctly rounded value of 2^(m - x) is the number of integers n >= 1 whose threshold it reaches: n - 1/2 in the
modes that round to nearest, n in `floor`.  2^(m - x) >= a just if x <= m - log2(a), and every x = p / 2^f is a
multiple of 2^-31, so one integer for each n decides: K[n] = floor(2^31 * (m - log2(a))).  log2 comes from `decimal`
(whose ln is correctly rounded) with 50 digits; the test refuses to go on if a K[n] is nearer than 10^-30 to an
integer without being one exactly, which only powers of two are.
"""

from __future__ import annotations

from decimal import Decimal, localcontext
from functools import lru_cache

import numpy as np
import pytest
from numpy.typing import NDArray

from intsim.arithmetic import ROUNDINGS
from intsim.operators.exp2 import exp2
from intsim.roms import exp2_rom

P = np.arange(65536, dtype=np.int64)
ROM = np.array(exp2_rom())


@lru_cache(maxsize=4)
def thresholds(m: int, doubled_offset: int) -> NDArray[np.int64]:
    """K[n] for n = 1 .. 2^m + 1, largest first; a = n - doubled_offset / 2."""
    found = []
    with localcontext() as context:
        context.prec = 50
        ln2, scale, margin = Decimal(2).ln(), Decimal(2**31), Decimal("1e-30")
        for n in range(1, 2**m + 2):
            twice = 2 * n - doubled_offset
            if twice & (twice - 1) == 0:
                found.append((m + 1 - (twice.bit_length() - 1)) << 31)  # a is a power of two: exact
                continue
            value = scale * (m + 1 - Decimal(twice).ln() / ln2)
            whole = value.to_integral_value(rounding="ROUND_FLOOR")
            assert margin < value - whole < 1 - margin
            found.append(int(whole))
    return np.array(found, dtype=np.int64)


def correctly_rounded(p: NDArray[np.int64], f: int, m: int, mode: str) -> NDArray[np.int64]:
    """2^(m - p / 2^f) rounded once to an integer by `mode`."""
    table = thresholds(m, 0 if mode == "floor" else 1).copy()
    if mode == "half_even":
        table[0] -= 1  # the only tie is 2^(m - x) = 1/2; 0 is even
    return np.searchsorted(-table, -(p << (31 - f)), side="right").astype(np.int64)


def test_the_reference_by_hand() -> None:
    """2^15, 2^14.5 = 23170.475, 2^14 and the tie 2^-1."""
    p = np.array([0, 1, 2, 32])
    assert correctly_rounded(p, 1, 15, "half_up").tolist() == [32768, 23170, 16384, 1]
    assert correctly_rounded(p, 1, 15, "half_away").tolist() == [32768, 23170, 16384, 1]
    assert correctly_rounded(p, 1, 15, "half_even").tolist() == [32768, 23170, 16384, 0]
    assert correctly_rounded(p, 1, 15, "floor").tolist() == [32768, 23170, 16384, 0]
    assert correctly_rounded(np.array([1]), 31, 15, "half_up").tolist() == [32768]
    assert correctly_rounded(np.array([1]), 31, 15, "floor").tolist() == [32767]


@pytest.mark.parametrize("mode", ROUNDINGS)
@pytest.mark.parametrize("m", [15, 8, 1])
def test_the_formula_bit_for_bit(m: int, mode: str) -> None:
    """SPEC 5.7 again in Python integers: near the multiples of 2^12, where fraction bits are cut off, and elsewhere."""
    rng = np.random.default_rng(m)
    near = [4096 * i + d for i in (1, 2, 7, 15, 16) for d in (-2, -1, 0, 1) if 4096 * i + d < 65536]
    products = sorted({*range(130), *near, *rng.integers(0, 65536, 150).tolist(), 65535})
    for f in range(32):
        wanted = []
        for p in products:
            t = p * 2 ** (19 - f) if f <= 19 else p // 2 ** (f - 19)
            whole, rest = divmod(t, 2**19)
            j, r = divmod(rest, 2**12)
            a, b = int(ROM[j]), int(ROM[j + 1])
            v, s = a * 4096 - (a - b) * r, min(29 - m + whole, 31)
            down, left = divmod(v, 2**s)
            up = mode != "floor" and (2 * left > 2**s or (2 * left == 2**s and (mode != "half_even" or down % 2 == 1)))
            wanted.append(down + up)
        assert exp2(products, f, m, ROM, mode).tolist() == wanted, f


# Share of the 65,536 x 32 results that are the correctly rounded value itself, measured; never less.
EXACT = {
    (15, "half_up"): 0.9655,
    (15, "half_even"): 0.9658,
    (15, "half_away"): 0.9655,
    (15, "floor"): 0.9612,
    (8, "half_up"): 0.9997,
    (8, "half_even"): 0.9997,
    (8, "half_away"): 0.9997,
    (8, "floor"): 0.9958,
}


@pytest.mark.parametrize("mode", ROUNDINGS)
@pytest.mark.parametrize("m", [15, 8])
def test_every_product_and_fraction(m: int, mode: str) -> None:
    same = 0
    for f in range(32):
        got = exp2(P, f, m, ROM, mode)
        error = got - correctly_rounded(P, f, m, mode)
        assert np.abs(error).max() <= 1, f"p = {int(np.abs(error).argmax())}, f = {f}"
        assert got[0] == 2**m
        assert got.max() == 2**m and got.min() >= 0
        assert (np.diff(got) <= 0).all(), f"not monotone at f = {f}"
        same += int((error == 0).sum())
    share = same / (32 * 65536)
    print(f"m = {m}, {mode}: {share:.6f} are the correctly rounded value")
    assert share >= EXACT[m, mode]
