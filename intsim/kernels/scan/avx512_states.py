# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators
"""The states of 16 channels of a scan, which stay in registers from token to token.

In memory their stores would stand in the way of the loads from the table of A-bar: the CPU tells the two apart by 12
bits of their addresses.  `Words` are 16 vectors (vector.int32x16), the states of a channel in each.  `Bytes` are 4,
h + 128 of four channels in each, a byte a state, ordered as vector.pack_bytes puts them: in each quarter four states of
each channel.  These are the operations of scan.scan_avx512 on all of them.  Needs AVX-512 and its VNNI.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic as numba_intrinsic

from intsim.kernels import cpu
from intsim.kernels.dot import place
from intsim.kernels.vector import (
    I8,
    I8X64,
    I16X32,
    I32,
    I32X16,
    I64,
    add_byte_products_value,
    add_pairs_at,
    add_pairs_value,
    average_bytes_value,
    call,
    clamp_value,
    int32x16,
    pack_bytes_value,
    pack_words_value,
    shift_left_value,
    shift_right_value,
    shift_words_right_value,
    splat_value,
)

intrinsic: Any = numba_intrinsic

CHANNELS = 16
Words = types.UniTuple(int32x16, CHANNELS)
Bytes = types.UniTuple(int32x16, CHANNELS // 4)


def _vectors(builder: Any, states: Any) -> list[Any]:
    return [builder.extract_value(states, j) for j in range(states.type.count)]


def _states(context: Any, builder: Any, kind: Any, vectors: list[Any]) -> Any:
    result = ir.Constant(context.get_value_type(kind), ir.Undefined)
    for j, vector in enumerate(vectors):
        result = builder.insert_value(result, vector, j)
    return result


def _splat_byte(value: int) -> Any:
    """0 .. 255 in every byte."""
    return ir.Constant(I32X16, [int.from_bytes(bytes([value] * 4), "little", signed=True)] * 16)


def _number(builder: Any, address: Any, i: int, j: int) -> Any:
    """Element [i, j] of int32 [n, 16] at an address, in all lanes."""
    return splat_value(builder, builder.load(place(builder, address, 64 * i + 4 * j, I32), align=4))


def _address(builder: Any, addresses: Any, j: int) -> Any:
    """Element j of int64 [16] at an address."""
    return builder.load(place(builder, addresses, 8 * j, I64), align=8)


@intrinsic
def find_rows(typing: Any, delta: Any, table: Any, row: Any, out: Any) -> Any:
    """Writes the address of each channel's row of -A-bar for its code, int64 [16], to the address `out`.

    delta: address of the codes, uint8 [16]; table: address of int32 [16, row / 4], rows of 16 for each code.
    """

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        delta, table, row, out = args
        vector = ir.VectorType(I64, CHANNELS)
        numbers = ir.Constant(vector, list(range(CHANNELS)))
        begins = builder.mul(splat_value(builder, row, vector), numbers)
        begins = builder.add(begins, splat_value(builder, table, vector))
        codes = builder.load(place(builder, delta, 0, ir.VectorType(I8, CHANNELS)), align=1)
        at = builder.shl(builder.zext(codes, vector), ir.Constant(vector, [6] * CHANNELS))
        builder.store(builder.add(begins, at), place(builder, out, 0, vector), align=8)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), generate


# --- 16 bits ---


@intrinsic
def no_words(typing: Any) -> Any:
    """All states 0."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _states(context, builder, Words, [ir.Constant(I32X16, None)] * CHANNELS)

    return Words(), generate


@intrinsic
def words_right(typing: Any, states: Any, half: Any, count: Any) -> Any:
    """(h + half) >> count, count > 0: nothing leaves its range."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        states, half, count = args
        shifted = [builder.ashr(builder.add(h, half), count) for h in _vectors(builder, states)]
        return _states(context, builder, Words, shifted)

    return Words(states, int32x16, int32x16), generate


@intrinsic
def words_left(typing: Any, states: Any, count: Any, low: Any, high: Any) -> Any:
    """h << count, clamped."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        states, count, low, high = args
        shifted = [clamp_value(builder, builder.shl(h, count), low, high) for h in _vectors(builder, states)]
        return _states(context, builder, Words, shifted)

    return Words(states, int32x16, int32x16, int32x16), generate


@intrinsic
def words_updated(
    typing: Any, states: Any, factors: Any, shifts: Any, rows: Any, b: Any, half: Any, right: Any, low: Any, high: Any
) -> Any:
    """The next states: (half - ((-b) - A-bar * h)) >> right, clamped to low .. high.

    -b is constant + factor * b, clamped to -limit .. limit, shifted left or right, clamped to -(2^30 - 1) .. 2^30 - 1.
    factors: address of int32 [16], of each channel; shifts: address of int32 [5, 16], constant, right shift, limit,
    -limit and left shift of each; rows: address of what `find_rows` wrote; b, and factors with it, as pairs of 16 bits
    (vector.add_pairs); -A-bar in 16 bits, twice (exp2.exp2_rows).
    """

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        states, factors, shifts, rows, b, half, right, low, high = args
        if "avx512vnni" not in cpu.available():
            return states
        most, least = (splat_value(builder, I32(limit)) for limit in ((1 << 30) - 1, 1 - (1 << 30)))
        low_word = splat_value(builder, I32(65535))
        found = []
        for j, h in enumerate(_vectors(builder, states)):
            acc = add_pairs_at(builder, _number(builder, shifts, 0, j), b, factors, 4 * j, True)
            acc = clamp_value(builder, acc, _number(builder, shifts, 3, j), _number(builder, shifts, 2, j))
            acc = shift_left_value(builder, acc, _number(builder, shifts, 4, j))
            acc = clamp_value(builder, shift_right_value(builder, acc, _number(builder, shifts, 1, j)), least, most)
            acc = add_pairs_at(builder, acc, builder.and_(h, low_word), _address(builder, rows, j))
            found.append(clamp_value(builder, shift_right_value(builder, builder.sub(half, acc), right), low, high))
        return _states(context, builder, Words, found)

    return Words(states, *[types.int64] * 3, *[int32x16] * 5), generate


# --- 8 bits ---

Spread = types.UniTuple(int32x16, 5)


@intrinsic
def spread_tables(typing: Any) -> Any:
    """What `bytes_updated` takes the states of four channels apart with, to be made once before a loop."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        orders = [ir.Constant(I32X16, [4 * k + i % 4 for i in range(16)]) for k in range(4)]
        tables = [*orders, ir.Constant(I32X16, [-128 << 16] * 16)]
        if "avx512vnni" in cpu.available():
            # no constants any more for LLVM, which makes those anew for each token
            function = ir.FunctionType(I32X16, [I32X16])
            tables = [builder.asm(function, "", "=v,0", [table], False) for table in tables]
        return _states(context, builder, Spread, tables)

    return Spread(), generate


@intrinsic
def no_bytes(typing: Any) -> Any:
    """All states 0."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _states(context, builder, Bytes, [_splat_byte(128)] * len(Bytes))

    return Bytes(), generate


def _bytes_right(half_up: bool) -> Any:
    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        states, count, mask, offset = args
        if "avx512vnni" not in cpu.available():
            return states
        zero = ir.Constant(I32X16, None)
        shifted = []
        for h in _vectors(builder, states):
            h = builder.and_(shift_words_right_value(builder, h, count), mask)
            if half_up:
                h = average_bytes_value(builder, h, zero)
            h = builder.add(builder.bitcast(h, I8X64), builder.bitcast(offset, I8X64))
            shifted.append(builder.bitcast(h, I32X16))
        return _states(context, builder, Bytes, shifted)

    @intrinsic
    def right(typing: Any, states: Any, count: Any, mask: Any, offset: Any) -> Any:
        return Bytes(states, int32x16, int32x16, int32x16), generate

    return right


# offset + ((h + 128) >> count & mask); and of those shifted a half, rounded up, before the offset is added.  count in
# both halves of every lane, mask and offset in every byte
bytes_right, bytes_right_half_up = _bytes_right(False), _bytes_right(True)


@intrinsic
def bytes_left(typing: Any, states: Any, count: Any) -> Any:
    """h << count, saturated, count int64: doubled so many times, which is 1 or 2 for most tokens."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        states, count = args
        if "avx512vnni" not in cpu.available():
            return states
        flip = _splat_byte(128)
        doubled = [cgutils.alloca_once_value(builder, builder.xor(h, flip)) for h in _vectors(builder, states)]
        with cgutils.for_range(builder, count, intp=I64):
            for h in doubled:
                value = builder.bitcast(builder.load(h), I8X64)
                value = call(builder, "llvm.sadd.sat.v64i8", I8X64, value, value)
                builder.store(builder.bitcast(value, I32X16), h)
        return _states(context, builder, Bytes, [builder.xor(builder.load(h), flip) for h in doubled])

    return Bytes(states, types.int64), generate


def _byte_update(kind: str) -> Any:
    """The next states: ~((start + (-b) - A-bar * h) >> right), saturated; start: -half - 1.

    -b is factor * b; or, kind "right", start + (-b) is constant + factor * b, shifted right.  -A-bar * h is
    -A-bar * (h + 128) and -A-bar * -128.  factors, shifts, rows, b: see `words_updated`; tables: see `spread_tables`.
    """

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        states, tables, factors, shifts, rows, b, start, right = args
        if "avx512vnni" not in cpu.available():
            return states
        flip = _splat_byte(127)
        *orders, rest = _vectors(builder, tables)  # a pair is h + 128, from a byte, and -128, from rest
        lowest = ir.Constant(I64, 0x1111111111111111)
        spread = ir.FunctionType(I32X16, [I32X16, I32X16, I32X16, I64])
        found = []
        for group, packed in enumerate(_vectors(builder, states)):
            new = []
            for k in range(4):
                j = 4 * group + k
                h = builder.asm(
                    spread, "vpshufb $3, $2, $0 {$4}", "=v,0,v,v,^Yk", [rest, packed, orders[k], lowest], False
                )
                acc = _number(builder, shifts, 0, j) if kind == "right" else start
                acc = add_pairs_at(builder, acc, b, factors, 4 * j, True)
                if kind == "right":
                    acc = shift_right_value(builder, acc, _number(builder, shifts, 1, j))
                acc = add_pairs_at(builder, acc, h, _address(builder, rows, j))
                new.append(shift_right_value(builder, acc, right))
            words = (pack_words_value(builder, *new[i : i + 2]) for i in (0, 2))
            found.append(builder.xor(pack_bytes_value(builder, *words), flip))
        return _states(context, builder, Bytes, found)

    @intrinsic
    def updated(
        typing: Any, states: Any, tables: Any, factors: Any, shifts: Any, rows: Any, b: Any, start: Any, right: Any
    ) -> Any:
        return Bytes(states, tables, *[types.int64] * 3, *[int32x16] * 3), generate

    return updated


bytes_updated, bytes_updated_right = _byte_update("left"), _byte_update("right")


def _shuffled(builder: Any, a: Any, b: Any, order: list[int]) -> Any:
    return builder.shuffle_vector(a, b, ir.Constant(I32X16, order))


def _totals(builder: Any, vectors: list[Any], runs: list[int]) -> Any:
    """One vector; each round adds neighbours, in runs of so many lanes, of two vectors."""
    for run in runs:
        even = [i for i in range(32) if i // run % 2 == 0]
        odd = [i for i in range(32) if i // run % 2 == 1]
        vectors = [
            builder.add(_shuffled(builder, a, b, even), _shuffled(builder, a, b, odd))
            for a, b in zip(vectors[::2], vectors[1::2], strict=True)
        ]
    return vectors[0]


@intrinsic
def byte_sums(typing: Any, states: Any, c: Any) -> Any:
    """Lane j: sum of h * c over the states of channel j; c: in each quarter its four states, 4 times."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        h, c = _vectors(builder, args[0]), args[1]
        if "avx512vnni" not in cpu.available():
            return c
        zero = ir.Constant(I32X16, None)
        start = builder.sub(zero, add_byte_products_value(builder, zero, _splat_byte(128), c))  # for 128 of h + 128
        return _totals(builder, [add_byte_products_value(builder, start, packed, c) for packed in h], [4, 4])

    return int32x16(states, int32x16), generate


@intrinsic
def word_sums(typing: Any, states: Any, c: Any) -> Any:
    """Lane j: sum of h * c over the states of channel j, 16 bits each; c: see `byte_sums`."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        h, c = _vectors(builder, args[0]), args[1]
        if "avx512vnni" not in cpu.available():
            return c
        # in each quarter its four states as words, twice
        bytes_ = builder.bitcast(c, I8X64)
        order = ir.Constant(ir.VectorType(I32, 32), [16 * (i // 8) + i % 4 for i in range(32)])
        words = builder.bitcast(builder.sext(builder.shuffle_vector(bytes_, bytes_, order), I16X32), I32X16)
        zero = ir.Constant(I32X16, None)
        packed = [pack_words_value(builder, *h[j : j + 2]) for j in range(0, CHANNELS, 2)]
        return _totals(builder, [add_pairs_value(builder, zero, pair, words) for pair in packed], [1, 2, 2])

    return int32x16(states, int32x16), generate
