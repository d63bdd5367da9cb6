"""The primitives of SPEC sections 1 and 2 against exact rationals, written here from the page."""

from __future__ import annotations

from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intsim.arithmetic import (
    ROUNDINGS,
    bit_length,
    bits_needed,
    container,
    int64,
    isqrt,
    limits,
    requantize,
    round_shift,
    saturate,
)

QUICK = settings(database=None, deadline=None, derandomize=True, max_examples=400)


def exact(v: int, s: int, mode: str) -> int:
    """v / 2^s as a rational, rounded to an integer: what the words of SPEC section 2 say, without a shift."""
    value = Fraction(v) / Fraction(2) ** s
    below = value.numerator // value.denominator
    rest = value - below
    if mode == "floor" or rest < Fraction(1, 2):
        return below
    if rest > Fraction(1, 2) or mode == "half_up":
        return below + 1
    if mode == "half_away":
        return below + 1 if v > 0 else below
    return below + below % 2


def exact_sat(v: int, bits: int, signed: bool) -> int:
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    return low if v < low else high if v > high else v


@pytest.mark.parametrize("mode", ROUNDINGS)
def test_round_shift_every_small_value(mode: str) -> None:
    v = np.arange(-300, 301)
    for s in range(-4, 12):
        assert round_shift(v, s, mode).tolist() == [exact(int(x), s, mode) for x in v], (s, mode)


@pytest.mark.parametrize("mode", ROUNDINGS)
def test_round_shift_at_every_power_of_two(mode: str) -> None:
    """v next to +-2^k and next to every tie, up to 2^62, at every right shift."""
    near = [sign * (2**k + d) for k in range(63) for d in (-1, 0, 1) for sign in (-1, 1) if k < 62 or d <= 0]
    pairs = [(v, s) for v in near for s in range(63)]
    pairs += [(sign * (3 * 2 ** (s - 1) + d), s) for s in range(1, 61) for d in (-1, 0, 1) for sign in (-1, 1)]
    v, s = (np.array(column, dtype=np.int64) for column in zip(*pairs, strict=True))
    assert round_shift(v, s, mode).tolist() == [exact(a, b, mode) for a, b in pairs]


@QUICK
@given(st.integers(-(2**31), 2**31 - 1), st.integers(-31, 31), st.sampled_from(ROUNDINGS))
def test_round_shift_of_int32(v: int, s: int, mode: str) -> None:
    assert int(round_shift(v, s, mode)) == exact(v, s, mode)


@QUICK
@given(st.integers(-(2**62), 2**62), st.integers(0, 62), st.sampled_from(ROUNDINGS))
def test_round_shift_of_int63(v: int, s: int, mode: str) -> None:
    assert int(round_shift(v, s, mode)) == exact(v, s, mode)


def test_round_shift_ties_by_hand() -> None:
    """-2.5, -1.5, -0.5, 0.5, 1.5, 2.5 in each mode."""
    v = np.array([-5, -3, -1, 1, 3, 5])
    assert round_shift(v, 1, "half_up").tolist() == [-2, -1, 0, 1, 2, 3]
    assert round_shift(v, 1, "half_away").tolist() == [-3, -2, -1, 1, 2, 3]
    assert round_shift(v, 1, "half_even").tolist() == [-2, -2, 0, 0, 2, 2]
    assert round_shift(v, 1, "floor").tolist() == [-3, -2, -1, 0, 1, 2]


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64])
def test_narrow_containers_do_not_wrap(dtype: type[np.integer]) -> None:
    """The container of an argument is no limit on the result; neither is that of the shift."""
    v = np.array([np.iinfo(dtype).max if dtype != np.int64 else 2**31 - 1, 1], dtype=dtype)
    assert round_shift(v, np.int8(-31), "half_up").tolist() == [int(x) * 2**31 for x in v]
    assert requantize(v, np.int8(-31), 8, True, "half_up").tolist() == [127, 127]
    assert saturate(np.array([200], dtype=np.uint8), 8, True).tolist() == [127]


@pytest.mark.parametrize(("bits", "signed"), [(1, True), (1, False), (8, True), (8, False), (16, True), (31, True)])
def test_saturate_and_requantize(bits: int, signed: bool) -> None:
    v = np.unique(np.concatenate([np.arange(-70_000, 70_000, 37), [-(2**31), -(2**30), 2**30, 2**31 - 1]]))
    once = saturate(v, bits, signed)
    assert once.tolist() == [exact_sat(int(x), bits, signed) for x in v]
    assert np.array_equal(saturate(once, bits, signed), once)
    assert (int(once.min()), int(once.max())) <= limits(bits, signed)
    for mode, s in product(ROUNDINGS, (-31, -9, 0, 1, 7, 30, 31)):
        made = requantize(v, s, bits, signed, mode)
        assert made.tolist() == [exact_sat(exact(int(x), s, mode), bits, signed) for x in v]
        assert (np.diff(made) >= 0).all(), "requantize is not monotone"


def test_modes_are_odd_or_even_as_stated() -> None:
    """half_away and half_even are odd functions; half_up and floor commute with a shift of the origin."""
    v = np.arange(-4096, 4097)
    for mode in ("half_away", "half_even"):
        assert np.array_equal(round_shift(-v, 5, mode), -round_shift(v, 5, mode))
    for mode in ("half_up", "floor"):
        assert np.array_equal(round_shift(v + 3 * 32, 5, mode), round_shift(v, 5, mode) + 3)


def test_isqrt_and_bit_length() -> None:
    roots = [0, 1, 2, 3, 255, 256, 46340, 46341, 2**31 - 1, 2**31, 3037000498, 3037000499]
    squares = sorted({r * r + d for r in roots for d in (-1, 0, 1) if 0 <= r * r + d < 2**63} | {2**63 - 1})
    for v, r in zip(squares, isqrt(squares).tolist(), strict=True):
        assert r * r <= v < (r + 1) * (r + 1)
    assert isqrt(np.arange(10).reshape(2, 5)).shape == (2, 5)
    values = [0, 1, 2, 3, 4, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53 - 1, 2**53, 2**62, 2**63 - 1]
    assert bit_length(values).tolist() == [len(f"{v:b}") if v else 0 for v in values]


def test_bits_needed_is_the_smallest_width() -> None:
    edges = [*range(-18, 19), *(s * 2**k + d for k in (7, 15, 31, 32, 40) for d in (-1, 0, 1) for s in (-1, 1))]
    for low, high in product(edges, edges):
        if low <= high:
            b = bits_needed(low, high)
            assert -(2 ** (b - 1)) <= low and high <= 2 ** (b - 1) - 1
            assert b == 1 or low < -(2 ** (b - 2)) or high > 2 ** (b - 2) - 1
    assert bits_needed(-(2**31), 2**31 - 1) == 32
    assert bits_needed(0, 2**31) == bits_needed(-(2**31) - 1, 0) == 33


def test_container_is_the_smallest_that_holds_the_bits() -> None:
    for bits, signed in product(range(1, 65), (True, False)):
        info = np.iinfo(container(bits, signed))
        low, high = limits(bits, signed)
        assert info.min <= low and high <= info.max and (info.bits == 8 or info.bits < 2 * bits)
    with pytest.raises(ValueError, match="65"):
        container(65, True)


NOT_INTEGERS = [1.0, 0.5, [1, 2.0], np.float32(1), np.array([1.0]), np.float16(3), 1j, "1", None, 2**63, 2**64]


@pytest.mark.parametrize("value", [*NOT_INTEGERS, np.array([1], np.uint64), np.array([1], object)], ids=repr)
def test_floats_are_refused_at_the_door(value: object) -> None:
    for call in (
        lambda: int64(value),
        lambda: round_shift(value, 1, "half_up"),
        lambda: round_shift(1, value, "floor"),
        lambda: saturate(value, 8, True),
        lambda: requantize(value, 0, 8, True, "floor"),
        lambda: isqrt(value),
        lambda: bit_length(value),
    ):
        with pytest.raises(TypeError):
            call()


def test_integers_pass_the_door() -> None:
    for value in (5, True, np.uint32(7), [1, 2], np.zeros((2, 0), np.int8)):
        assert int64(value).dtype == np.int64
    with pytest.raises(ValueError, match="half_down"):
        round_shift(1, 1, "half_down")
