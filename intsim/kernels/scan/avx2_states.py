# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators
"""The states of 8 channels of a scan in registers of 256 bits, for scan.avx2.

A channel has one register, 16 words of 16 bits, a word a state; two of them are one value here (vector.int32x16), and
four such values are the states of 8 channels.  The products of an update are sums of two 16-bit products (VPMADDWD),
of A-bar with the state and of dx with B, the words of state and B by turns in two registers.  Interleaving and packing
undo each other, so the states, and B and C as words in memory, are in their own order.

States of 8 bits are kept with the sign changed, g = -h, because -A-bar fits 16 bits and A-bar, up to 2^15, does not.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic as numba_intrinsic

from intsim.kernels import cpu
from intsim.kernels.dot import place
from intsim.kernels.scan.arguments import TABLE
from intsim.kernels.vector import (
    I8,
    I8X32,
    I16X16,
    I32,
    I32X8,
    I64,
    call,
    clamp_value,
    halves_of,
    int32x16,
    joined,
    splat_value,
)

intrinsic: Any = numba_intrinsic

HALF = 8  # of the channels of a block
Words = types.UniTuple(int32x16, HALF // 2)
I32X4 = ir.VectorType(I32, 4)


def _has() -> bool:
    return "avx2" in cpu.available()


def _registers(builder: Any, states: Any) -> list[Any]:
    """The states of each channel, <16 x i16>."""
    pairs = [halves_of(builder, builder.extract_value(states, i)) for i in range(HALF // 2)]
    return [builder.bitcast(half, I16X16) for pair in pairs for half in pair]


def _states(context: Any, builder: Any, registers: list[Any]) -> Any:
    result = ir.Constant(context.get_value_type(Words), ir.Undefined)
    for i in range(HALF // 2):
        result = builder.insert_value(result, joined(builder, *registers[2 * i : 2 * i + 2]), i)
    return result


def _splat(builder: Any, vector: Any, value: Any) -> Any:
    """The low bits of an int64 in every element."""
    return splat_value(builder, builder.trunc(value, vector.element), vector)


def _element(builder: Any, address: Any, j: int) -> Any:
    """int32 [j] at an address, in every lane."""
    return splat_value(builder, builder.load(place(builder, address, 4 * j, I32), align=4), I32X8)


def _count(builder: Any, value: Any) -> Any:
    """An int64 as the count of a shift."""
    counts = ir.Constant(ir.VectorType(I64, 2), [0, 0])
    return builder.insert_element(counts, value, ir.Constant(I32, 0))


def _shift(builder: Any, name: str, value: Any, count: Any) -> Any:
    """A shift of all elements by the same count, any: psra.d, psra.w, psrl.w or psll.w."""
    counts = ir.VectorType(value.type.element, 128 // value.type.element.width)
    return call(builder, f"llvm.x86.avx2.{name}", value.type, value, builder.bitcast(count, counts))


def _pairs(builder: Any, a: Any, b: Any) -> list[Any]:
    """The elements of two registers by turns, in two registers: of the lower and of the upper parts of their halves."""
    part = a.type.count // 4
    firsts = [[2 * part * q + part * upper + i for q in range(2) for i in range(part)] for upper in range(2)]
    orders = ([place for first in half for place in (first, 4 * part + first)] for half in firsts)
    return [builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, 4 * part), order)) for order in orders]


def _products(builder: Any, a: Any, b: Any) -> Any:
    """Sums of the two products of each lane."""
    return call(builder, "llvm.x86.avx2.pmadd.wd", I32X8, builder.bitcast(a, I16X16), builder.bitcast(b, I16X16))


@intrinsic
def no_states(typing: Any) -> Any:
    """All states 0."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _states(context, builder, [ir.Constant(I16X16, None)] * HALF)

    return Words(), generate


@intrinsic
def store_words(typing: Any, address: Any, x: Any) -> Any:
    """The low words of 16 lanes as int16 [16] at an address."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.store(builder.trunc(args[1], I16X16), place(builder, args[0], 0, I16X16), align=2)
        return context.get_dummy_value()

    return types.void(types.int64, int32x16), generate


@intrinsic
def list_codes(typing: Any, seen: Any, places: Any, out: Any) -> Any:
    """Writes the codes c for which byte c of 256 at the address `seen` is not 0, in both halves of int32 each, rising.

    places: address of `places_of_bits`; out: address of int32 [256 + 8].  Returns how many.
    """

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        seen, places, out = args
        octets = ir.VectorType(I8, 8)
        count = cgutils.alloca_once_value(builder, ir.Constant(I64, 0))
        with cgutils.for_range(builder, ir.Constant(I64, 8), intp=I64) as loop:
            first = builder.mul(loop.index, ir.Constant(I64, 32))
            given = builder.load(place(builder, builder.add(seen, first), 0, I8X32), align=1)
            bits = builder.bitcast(builder.icmp_signed("!=", given, ir.Constant(I8X32, None)), I32)
            for part in range(4):
                some = builder.and_(builder.lshr(bits, ir.Constant(I32, 8 * part)), ir.Constant(I32, 255))
                entry = builder.add(places, builder.mul(builder.zext(some, I64), ir.Constant(I64, 8)))
                number = builder.zext(builder.load(place(builder, entry, 0, octets), align=8), I32X8)
                begin = builder.trunc(builder.add(first, ir.Constant(I64, 8 * part)), I32)
                number = builder.add(number, splat_value(builder, begin, I32X8))
                number = builder.or_(number, builder.shl(number, ir.Constant(I32X8, [16] * 8)))
                done = builder.load(count)
                target = builder.add(out, builder.mul(done, ir.Constant(I64, 4)))
                builder.store(number, place(builder, target, 0, I32X8), align=4)
                more = builder.zext(call(builder, "llvm.ctpop.i32", I32, some), I64)
                builder.store(builder.add(done, more), count)
        return builder.load(count)

    return types.int64(*[types.int64] * 3), generate


@intrinsic
def state_sums(typing: Any, states: Any, c: Any, out: Any) -> Any:
    """Sums of state * c of each channel to the address `out`, int32 [8]; c: address of what `store_words` wrote."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if not _has():
            return context.get_dummy_value()
        states, c, out = args
        factor = builder.load(place(builder, c, 0, I16X16), align=2)
        found = [_products(builder, words, factor) for words in _registers(builder, states)]
        for order in ([0, 8, 1, 9], [0, 1, 8, 9]):  # neighbours of two registers, in pieces of one lane and then of two
            lower = ir.Constant(I32X8, [i + at for at in (0, 4) for i in order])
            upper = ir.Constant(I32X8, [i + at + 2 for at in (0, 4) for i in order])
            found = [
                builder.add(builder.shuffle_vector(a, b, lower), builder.shuffle_vector(a, b, upper))
                for a, b in zip(found[::2], found[1::2], strict=True)
            ]
        for i, four in enumerate(found):
            low, high = (
                builder.shuffle_vector(four, four, ir.Constant(I32X4, list(range(at, at + 4)))) for at in (0, 4)
            )
            builder.store(builder.add(low, high), place(builder, out, 16 * i, I32X4), align=4)
        return context.get_dummy_value()

    return types.void(states, types.int64, types.int64), generate


# --- from token to token ---


@intrinsic
def shifted_right(typing: Any, states: Any, add: Any, count: Any) -> Any:
    """(state + add) >> count, int64; the sum may not leave 16 bits."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if not _has():
            return args[0]
        states, add, count = args
        count, add = _count(builder, count), _splat(builder, I16X16, add)
        found = [_shift(builder, "psra.w", builder.add(words, add), count) for words in _registers(builder, states)]
        return _states(context, builder, found)

    return Words(states, *[types.int64] * 2), generate


@intrinsic
def halved(typing: Any, states: Any) -> Any:
    """state / 2, a half rounded up."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        one = ir.Constant(I16X16, [1] * 16)
        both = ((builder.ashr(words, one), builder.and_(words, one)) for words in _registers(builder, args[0]))
        return _states(context, builder, [builder.add(half, rest) for half, rest in both])

    return Words(states), generate


@intrinsic
def small_shifted_left(typing: Any, states: Any, count: Any, low: Any, high: Any) -> Any:
    """state << count, saturated to low .. high, all int64; no bit may leave the 16."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if not _has():
            return args[0]
        states, count, low, high = args
        count, low, high = _count(builder, count), *(_splat(builder, I16X16, limit) for limit in (low, high))
        found = (_shift(builder, "psll.w", words, count) for words in _registers(builder, states))
        return _states(context, builder, [clamp_value(builder, words, low, high) for words in found])

    return Words(states, *[types.int64] * 3), generate


@intrinsic
def shifted_left(typing: Any, states: Any, count: Any, low: Any, high: Any) -> Any:
    """state << count, saturated to low .. high, all int64: doubled so many times."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        states, count, low, high = args
        low, high = (_splat(builder, I16X16, limit) for limit in (low, high))
        doubled = [cgutils.alloca_once_value(builder, words) for words in _registers(builder, states)]
        with cgutils.for_range(builder, count, intp=I64):
            for words in doubled:
                value = builder.load(words)
                builder.store(call(builder, "llvm.sadd.sat.v16i16", I16X16, value, value), words)
        return _states(
            context, builder, [clamp_value(builder, builder.load(words), low, high) for words in doubled]
        )

    return Words(states, *[types.int64] * 3), generate


# --- updates ---


def _updates(context: Any, builder: Any, args: list[Any], update: Any) -> Any:
    """The states that update(j, states, row of -A-bar, dx, B) makes of each channel j: words, 16 of each.

    args: states; addresses of the delta codes, uint8 [8], of the channels' rows of -A-bar, int16 [8, TABLE], of
    dx, twice in each of int32 [8], of B as words, and of the offset from there for each channel, int64 [8].
    """
    states, codes, table, factors, b, offsets = args
    found = []
    for j, words in enumerate(_registers(builder, states)):
        code = builder.zext(builder.load(place(builder, codes, j, I8), align=1), I64)
        row = builder.add(table, builder.shl(code, ir.Constant(I64, 5)))
        row = builder.load(place(builder, row, 2 * TABLE * j, I16X16), align=32)
        offset = builder.load(place(builder, offsets, 8 * j, I64), align=8)
        factor = builder.load(place(builder, builder.add(b, offset), 0, I16X16), align=2)
        dx = builder.bitcast(_element(builder, factors, j), I16X16)
        found.append(update(j, words, row, dx, factor))
    return _states(context, builder, found)


def _bytes_update(right: bool) -> Any:
    """The next states of 8 bits: -(sat16(acc >> m8) + half, saturated, >> 8), acc = A-bar * h + dx * B.

    right: acc = A-bar * h * 2^r + dx * B + constant, shifted by m8 + r, of each channel.
    """

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if not _has():
            return args[0]
        *given, shifts, m8, half = args
        m8, half = _count(builder, m8), _splat(builder, I16X16, half)
        above = down = ir.Constant(I16X16, [-256] * 16)  # -(x >> 8) is ((x & -256) * -256) >> 16

        def number(i: int, j: int) -> Any:
            return builder.load(place(builder, shifts, 64 * i + 4 * j, I32), align=4)

        def update(j: int, g: Any, row: Any, dx: Any, b: Any) -> Any:
            count = m8
            if right:
                count = _count(builder, builder.zext(number(1, j), I64))
                g = builder.mul(g, builder.bitcast(splat_value(builder, number(7, j), I32X8), I16X16))
            both = zip(_pairs(builder, row, dx), _pairs(builder, g, b), strict=True)
            acc = [_products(builder, *pairs) for pairs in both]
            if right:
                constant = splat_value(builder, number(0, j), I32X8)
                acc = [builder.add(value, constant) for value in acc]
            acc = [_shift(builder, "psra.d", value, count) for value in acc]
            words = call(builder, "llvm.x86.avx2.packssdw", I16X16, *acc)
            words = builder.and_(call(builder, "llvm.sadd.sat.v16i16", I16X16, words, half), above)
            return call(builder, "llvm.x86.avx2.pmulh.w", I16X16, words, down)

        return _updates(context, builder, given, update)

    @intrinsic
    def updated(
        typing: Any, states: Any, codes: Any, table: Any, factors: Any, b: Any, offsets: Any, shifts: Any, m8: Any,
        half: Any,
    ) -> Any:  # fmt: skip
        return Words(states, *[types.int64] * 8), generate

    return updated


# shifts: address of int32 [8, 16], [0], [1] and [7] of each channel: constant, m8 + r, and 2^r twice; m8: m - 8; half:
# 128 (half_up) or 0
bytes_updated, bytes_updated_right = _bytes_update(False), _bytes_update(True)


def _words_update(clamps: bool) -> Any:
    """The next states of more than 8 bits: (A-bar * h + b + half) >> m, clamped to low .. high.

    b is (constant + dx * B) >> count; `clamps`: (constant + dx * B clamped to -limit .. limit, << left) >> count,
    clamped to -(2^30 - 1) .. 2^30 - 1.
    """

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if not _has():
            return args[0]
        *given, shifts, m, half, low, high = args
        m, half = _count(builder, m), _splat(builder, I32X8, half)
        low, high = (_splat(builder, I16X16, limit) for limit in (low, high))
        most, least = (splat_value(builder, I32(limit), I32X8) for limit in ((1 << 30) - 1, 1 - (1 << 30)))
        nothing = ir.Constant(I16X16, None)

        def update(j: int, h: Any, row: Any, dx: Any, factor: Any) -> Any:
            def number(i: int) -> Any:
                return builder.load(place(builder, shifts, 64 * i + 4 * j, I32), align=4)

            constant, count = splat_value(builder, number(0), I32X8), _count(builder, builder.zext(number(1), I64))
            pairs = _pairs(builder, h, factor)
            b = [_products(builder, dx, pair) for pair in _pairs(builder, nothing, factor)]
            b = [builder.add(value, constant) for value in b]
            if clamps:
                limit, less, left = (splat_value(builder, number(i), I32X8) for i in (2, 3, 4))
                b = [clamp_value(builder, value, less, limit) for value in b]
                b = [builder.shl(value, left) for value in b]
            b = [_shift(builder, "psra.d", value, count) for value in b]
            if clamps:
                b = [clamp_value(builder, value, least, most) for value in b]
            decayed = [_products(builder, *both) for both in zip(_pairs(builder, row, nothing), pairs, strict=True)]
            acc = [builder.sub(builder.add(value, half), less) for value, less in zip(b, decayed, strict=True)]
            acc = [_shift(builder, "psra.d", value, m) for value in acc]
            words = call(builder, "llvm.x86.avx2.packssdw", I16X16, *acc)
            return clamp_value(builder, words, low, high)

        return _updates(context, builder, given, update)

    @intrinsic
    def updated(
        typing: Any, states: Any, codes: Any, table: Any, factors: Any, b: Any, offsets: Any, shifts: Any, m: Any,
        half: Any, low: Any, high: Any,
    ) -> Any:  # fmt: skip
        return Words(states, *[types.int64] * 10), generate

    return updated


# shifts: address of int32 [5, 16], constant, right shift, limit, -limit and left shift of each channel
words_updated, words_updated_clamped = _words_update(False), _words_update(True)


# --- rows of -A-bar ---


@intrinsic
def write_two_rows(
    typing: Any, factor: Any, codes: Any, i: Any, over: Any, fraction: Any, up: Any, k: Any, base: Any, half_up: Any,
    entries: Any, table: Any,
) -> Any:  # fmt: skip
    """Writes the rows of -A-bar for the codes i and i + 1, int16 [16] each, to the address `table` + 32 * code.

    p = (factor * code) >> over, 16 bits.  The entry of the ROM is the one at ((p << up) >> k) & 127; with r = p mod 2^k
    its step and 98304 - rom (exp2.packed_rom) give value = 98304 * 2^k - ((98304 - rom) * 2^k + step * r), which is
    shifted by base + (p >> fraction), and, half_up, halved and rounded up.

    factor: 16 lanes of 8 bits; codes: int32 array, each in both halves; entries: address of `scan.entry_bytes`.  All
    bytes of one kind, for 16 states and two codes, are looked up together (VPSHUFB), in 16 entries at a time.  A place
    below the first of these is negative then and finds 0; any other finds the exclusive or of two bytes of the ROM, 16
    entries apart, and so of all that it finds its own byte is left.
    """

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if not _has():
            return context.get_dummy_value()
        factor, codes, i, over, fraction, up, k, base, half_up, entries, table = args
        over, fraction, up, down = (_count(builder, count) for count in (over, fraction, up, k))
        factor = builder.trunc(factor, I16X16)
        data = context.make_array(sig.args[1])(context, builder, codes).data
        both = [builder.load(builder.gep(data, [builder.add(i, ir.Constant(I64, n))]), align=4) for n in range(2)]
        products, places = [], []
        for code in both:
            p = builder.mul(factor, builder.bitcast(splat_value(builder, code, I32X8), I16X16))
            p = _shift(builder, "psrl.w", p, over)
            products.append(p)
            p = _shift(builder, "psrl.w", _shift(builder, "psll.w", p, up), down)
            places.append(builder.and_(p, ir.Constant(I16X16, [127] * 16)))
        # in each half the bytes of 8 states for one code, then of the same states for the other
        place_ = call(builder, "llvm.x86.avx2.packuswb", I8X32, *places)
        found = [ir.Constant(I8X32, None)] * 4
        for part in range(8):
            for plane in range(4):
                piece = builder.load(place(builder, entries, 64 * part + 16 * plane, ir.VectorType(I8, 16)), align=16)
                piece = builder.shuffle_vector(piece, piece, ir.Constant(ir.VectorType(I32, 32), [*range(16)] * 2))
                piece = call(builder, "llvm.x86.avx2.pshuf.b", I8X32, piece, place_)
                found[plane] = builder.xor(found[plane], piece)
            place_ = builder.sub(place_, ir.Constant(I8X32, [16] * 32))
        unit = builder.shl(ir.Constant(I64, 1), k)
        low, unit_word = (_splat(builder, I16X16, n) for n in (builder.sub(unit, ir.Constant(I64, 1)), unit))
        begin, nothing = _splat(builder, I16X16, base), ir.Constant(I16X16, None)
        all_ = _splat(builder, I32X8, builder.mul(unit, ir.Constant(I64, 98304)))
        steps, others = (_pairs(builder, found[at], found[at + 1]) for at in (0, 2))
        for code, p, *entry in zip(both, products, steps, others, strict=True):
            step, rest = (builder.bitcast(low_and_high, I16X16) for low_and_high in entry)
            rests = _pairs(builder, builder.and_(p, low), unit_word)
            counts = _pairs(builder, builder.add(_shift(builder, "psrl.w", p, fraction), begin), nothing)
            values = []
            for pair, r, count in zip(_pairs(builder, step, rest), rests, counts, strict=True):
                value = builder.sub(all_, _products(builder, pair, r))
                count = builder.bitcast(count, I32X8)
                values.append(call(builder, "llvm.x86.avx2.psrlv.d.256", I32X8, value, count))
            words = call(builder, "llvm.x86.avx2.packusdw", I16X16, *values)
            wide = ir.VectorType(I32, 16)
            rounded = builder.add(builder.zext(words, wide), ir.Constant(wide, [1] * 16))  # becomes VPAVGW
            rounded = builder.trunc(builder.lshr(rounded, ir.Constant(wide, [1] * 16)), I16X16)
            words = builder.select(builder.icmp_signed("!=", half_up, ir.Constant(I64, 0)), rounded, words)
            row = builder.and_(builder.zext(code, I64), ir.Constant(I64, 255))
            row = builder.add(table, builder.shl(row, ir.Constant(I64, 5)))
            builder.store(builder.sub(nothing, words), place(builder, row, 0, I16X16), align=32)
        return context.get_dummy_value()

    return types.void(factor, codes, *[types.int64] * 9), generate
