# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators
"""The states of 16 channels of a scan, 16 in a vector for each channel, which stay in registers from token to token.

`States` is a tuple of 16 vectors (vector.int32x16); these are the operations of scan.scan_avx512 on all of them.  In
memory their stores would stand in the way of the loads from the table of A-bar: the CPU tells the two apart by 12 bits
of their addresses.  Needs AVX-512 and its VNNI.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic as numba_intrinsic

from intsim.kernels import cpu
from intsim.kernels.dot import place
from intsim.kernels.vector import (
    I8,
    I32,
    I32X16,
    I64,
    add_byte_products_value,
    add_pairs_value,
    int32x16,
    pack_bytes_value,
    pack_words_value,
    shift_right_value,
    splat_value,
)

intrinsic: Any = numba_intrinsic

CHANNELS = 16
States = types.UniTuple(int32x16, CHANNELS)


def _vectors(builder: Any, states: Any) -> list[Any]:
    return [builder.extract_value(states, j) for j in range(CHANNELS)]


def _states(context: Any, builder: Any, vectors: list[Any]) -> Any:
    result = ir.Constant(context.get_value_type(States), ir.Undefined)
    for j, vector in enumerate(vectors):
        result = builder.insert_value(result, vector, j)
    return result


def _clamp(builder: Any, x: Any, low: Any, high: Any) -> Any:
    x = builder.select(builder.icmp_signed("<", x, high), x, high)
    return builder.select(builder.icmp_signed(">", x, low), x, low)


@intrinsic
def no_states(typing: Any) -> Any:
    """All states 0."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _states(context, builder, [ir.Constant(I32X16, None)] * CHANNELS)

    return States(), generate


@intrinsic
def shifted_right(typing: Any, states: Any, half: Any, count: Any) -> Any:
    """(h + half) >> count, count > 0: nothing leaves its range."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        states, half, count = args
        return _states(
            context, builder, [builder.ashr(builder.add(h, half), count) for h in _vectors(builder, states)]
        )

    return States(states, int32x16, int32x16), generate


@intrinsic
def shifted_left(typing: Any, states: Any, count: Any, low: Any, high: Any) -> Any:
    """h << count, clamped."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        states, count, low, high = args
        shifted = [_clamp(builder, builder.shl(h, count), low, high) for h in _vectors(builder, states)]
        return _states(context, builder, shifted)

    return States(states, int32x16, int32x16, int32x16), generate


@intrinsic
def updated(
    typing: Any, states: Any, numbers: Any, delta: Any, table: Any, row: Any, b: Any, half: Any, right: Any, low: Any,
    high: Any,
) -> Any:  # fmt: skip
    """The next states: (half - ((constant + dx * b) >> shift) - (-A-bar) * h) >> right, clamped.

    numbers: address of int32 [3, 16], dx, constant and shift of each channel; delta: address of uint8 [16]; table:
    address of int32 [16, row / 4], rows of -A-bar, 16 each, for each code of delta; b, and dx and -A-bar with it, as
    pairs of 16 bits (vector.add_pairs).
    """

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        states, numbers, delta, table, row, b, half, right, low, high = args
        if "avx512vnni" not in cpu.available():
            return states
        found = []
        for j, h in enumerate(_vectors(builder, states)):
            dx, constant, shift = (
                splat_value(builder, builder.load(place(builder, numbers, 64 * i + 4 * j, I32), align=4))
                for i in range(3)
            )
            acc = shift_right_value(builder, add_pairs_value(builder, constant, dx, b), shift)
            code = builder.zext(builder.load(place(builder, delta, j, I8), align=1), I64)
            at = builder.add(builder.add(table, builder.mul(row, ir.Constant(I64, j))), builder.shl(code, I64(6)))
            acc = add_pairs_value(builder, acc, builder.load(place(builder, at, 0, I32X16), align=4), h)
            found.append(_clamp(builder, shift_right_value(builder, builder.sub(half, acc), right), low, high))
        return _states(context, builder, found)

    return States(states, *[types.int64] * 4, *[int32x16] * 5), generate


def _shuffled(builder: Any, a: Any, b: Any, order: list[int]) -> Any:
    return builder.shuffle_vector(a, b, ir.Constant(I32X16, order))


def _totals(builder: Any, vectors: list[Any], run: int) -> Any:
    """Lane j: the sum of the lanes of vector j.  Each round adds neighbours in runs of `run` lanes of two vectors."""
    while len(vectors) > 1:
        even = [i for i in range(32) if i // run % 2 == 0]
        odd = [i for i in range(32) if i // run % 2 == 1]
        vectors = [
            builder.add(_shuffled(builder, a, b, even), _shuffled(builder, a, b, odd))
            for a, b in zip(vectors[::2], vectors[1::2], strict=True)
        ]
    return vectors[0]


@intrinsic
def byte_sums(typing: Any, states: Any, c: Any) -> Any:
    """Lane j: sum of (h + 128) * c over the 8-bit states of channel j; c: in each quarter its four states, 4 times."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        h, c = _vectors(builder, args[0]), args[1]
        if "avx512vnni" not in cpu.available():
            return c
        flip = splat_value(builder, I32(-2139062144))  # 0x80 in each byte
        quarters = []
        for j in range(0, CHANNELS, 4):
            words = [pack_words_value(builder, h[i], h[i + 1]) for i in (j, j + 2)]
            packed = builder.xor(pack_bytes_value(builder, *words), flip)
            quarters.append(add_byte_products_value(builder, ir.Constant(I32X16, None), packed, c))
        return _totals(builder, quarters, 4)

    return int32x16(states, int32x16), generate


@intrinsic
def word_sums(typing: Any, states: Any, c: Any) -> Any:
    """Lane j: sum of h * c over the states of channel j, 16 bits each."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        h, c = _vectors(builder, args[0]), args[1]
        if "avx512vnni" not in cpu.available():
            return c
        zero = ir.Constant(I32X16, None)
        c = builder.and_(c, splat_value(builder, I32(65535)))  # or the signs of h and c, above, would be multiplied too
        return _totals(builder, [add_pairs_value(builder, zero, state, c) for state in h], 1)

    return int32x16(states, int32x16), generate
