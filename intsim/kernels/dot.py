# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators
"""Integer matrix products for `linear` and `patch_embed`: acc = bias + sum of groups (SPEC 5.1, 5.4).

These are the products of vector registers; `intsim.kernels.tiles` has those of tile registers.

Weights are packed once, [outputs / 16][depth][16 outputs][32 bits] on 64-byte boundaries; 32 bits are four 8-bit or
two 16-bit weights, and a row of inputs is packed to 32-bit pieces alike.  A tile of 6 rows by up to 64 outputs is
summed in registers:

* 8 bits (VPDPBUSD): the instruction multiplies unsigned by signed, so the inputs are x + 128, and 128 times the sum of
  an output's weights is subtracted beforehand.
* 16 bits (VPMADDWD, and portable): as they are; an input's shift is in its weights, w * 2^s, if all of them fit.

Else channels are sorted by their group's shift, the largest first, each group padded to whole pieces.  Between two
groups the sums so far are shifted by the difference (Horner's rule), after the last by its shift.  Sums wrap at 32
bits and may be formed in any order, because the final value fits 32 bits (SPEC 7).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic as numba_intrinsic

from intsim.kernels import cpu
from intsim.kernels.common import kernel
from intsim.kernels.memory import address_of, aligned, int8_at, int16_at, int32_at
from intsim.kernels.vector import (
    I1,
    I8,
    I8X64,
    I16,
    I16X16,
    I16X32,
    I32,
    I32X8,
    I32X16,
    I64,
    call,
    clamp_pieces,
    clamp_value,
    shift_left_value,
    splat_value,
)
from intsim.program import Array

intrinsic: Any = numba_intrinsic

ROWS = 6  # of a tile: 24 vectors of sums, 4 of weights and one of inputs are what 32 registers hold
HALF = 3  # rows of a tile that is made of the last rows, if they are no more
WIDEST = 4  # vectors of 16 outputs in a tile
EIGHT_BITS = ("avx512vnni", "avxvnni")


class Weights:
    """Weights packed for one path.

    weight [O, K], 8 bits; bias [O], 32 bits; column_shift [K], 0 .. 15; columns [padded]: the output in each column of
    the packed weights, -1 for none; half [padded]: rounding constants, if `finished_64` or `finished_16` is to be used.
    """

    def __init__(
        self,
        path: str,
        weight: Array,
        bias: Array,
        column_shift: Array,
        columns: Array,
        half: Array | None = None,
    ):
        self.path = cpu.PATHS.index(path)
        self.eight_bits = path in EIGHT_BITS
        pieces = 4 if self.eight_bits else 2
        if not self.eight_bits:
            shifted = weight.astype(np.int64) << column_shift
            if -(1 << 15) <= shifted.min() and shifted.max() < 1 << 15:  # then groups are no steps of their own
                weight, column_shift = shifted, np.zeros_like(column_shift)
        order: list[int] = []  # position in a packed row -> input, -1 for padding
        ends: list[tuple[int, int]] = []  # of each group: pieces so far, shift of the sums after it
        levels = sorted({int(s) for s in column_shift}, reverse=True)
        for level, following in zip(levels, [*levels[1:], 0], strict=True):
            order += np.flatnonzero(column_shift == level).tolist()
            order += [-1] * (-len(order) % pieces)
            ends.append((len(order) // pieces, level - following))
        self.inputs = weight.shape[1]
        self.depth = len(order) // pieces
        self.order = np.array(order, dtype=np.int32)
        self.permuted = int(len(levels) > 1)
        self.ends = np.array(ends, dtype=np.int64)
        self.columns = len(columns)
        bits = np.int8 if self.eight_bits else np.int16
        whole = np.zeros((self.columns, len(order)), dtype=bits)
        real_rows, real_columns = columns >= 0, self.order >= 0
        whole[np.ix_(real_rows, real_columns)] = weight[np.ix_(columns[real_rows], self.order[real_columns])]
        self.bias = np.zeros(self.columns, dtype=np.int32)
        self.bias[real_rows] = bias[columns[real_rows]]
        self.start = np.zeros(self.columns, dtype=np.int32)  # the sums' first values
        if self.eight_bits:
            if len(levels) == 1:
                correction = weight.astype(np.int64).sum(axis=1)
            else:
                correction = weight.astype(np.int64) @ (np.int64(1) << column_shift.astype(np.int64))
            # more groups than one: no token is shifted, so the correction may join the bias
            target = self.start if len(levels) == 1 else self.bias
            target[real_rows] = (target[real_rows] - 128 * correction[columns[real_rows]]).astype(np.int32)
        self.whole_start = self._whole_start(whole, levels, half) if path != "plain" and half is not None else None
        packed = whole.reshape(self.columns // 16, 16, self.depth, pieces).transpose(0, 2, 1, 3)
        self.packed = aligned(packed)
        self.vectorised = int(
            path == "avx512vnni" and bool(self.permuted) and self.inputs >= 64 and cpu.has_byte_permutation()
        )
        self.bytes_order, self.masks = np.zeros(0, dtype=np.uint8), np.zeros(0, dtype=np.int64)
        if self.vectorised:
            self.bytes_order, self.masks = pieces_of_order(self.order, self.inputs)
        self.start, self.bias, self.bytes_order = aligned(self.start), aligned(self.bias), aligned(self.bytes_order)
        self.kept = [self.order, self.packed, self.start, self.ends, self.bias, self.bytes_order, self.masks]
        if self.whole_start is not None:
            self.whole_start = aligned(self.whole_start)
            self.kept.append(self.whole_start)
        self.row_bytes = self.depth * 4

    def _whole_start(self, whole: Array, levels: list[int], half: Array) -> Array | None:
        """First values of the sums [padded] with bias and rounding constant in them, so that neither is added later.

        What the shifts between the groups would push out of it becomes a weight of the last place of `whole` [padded,
        padded inputs], if that is padding, for which `pack_rows` of bytes has a 1.  None if there is no such way.
        """
        final = self.start.astype(np.int64) + self.bias + half
        if levels == [0]:
            return final.astype(np.int32)
        if not self.eight_bits or levels[-1] or levels[0] > 7 or self.order[-1] >= 0:
            return None
        rest = final & ((1 << levels[0]) - 1)
        whole[:, -1] = rest
        self.bias = (self.bias - rest).astype(np.int32)
        return ((final - rest) >> levels[0]).astype(np.int32)

    def arguments(self) -> list[int]:
        """For `pack_rows` and `products`, in the order of the names below."""
        return [
            self.path,
            int(not self.eight_bits),
            self.inputs,
            self.depth,
            address_of(self.order) if self.permuted or len(self.order) < self.inputs else 0,
            address_of(self.packed),
            address_of(self.start),
            address_of(self.ends),
            len(self.ends),
            self.columns // 16,
            address_of(self.bias),
            address_of(self.bytes_order) if self.vectorised else 0,
            address_of(self.masks),
            0 if self.whole_start is None else address_of(self.whole_start),
        ]


def pieces_of_order(order: Array, inputs: int) -> tuple[Array, Array]:
    """For permute_rows: order [padded], -1 for none, in pieces of 64 bytes, of which the last ends with its row.

    padded, inputs: at least 64.
    Returns uint8 [blocks, 2, 64], the place of each packed byte in its piece of the inputs and what it is changed by,
    and int64 [blocks, pieces], the bytes of a block that come from each piece.
    """
    ends = np.minimum(np.arange(64, len(order) + 64, 64), len(order))
    blocks = order[ends[:, None] + np.arange(-64, 0)].astype(np.int64)
    piece = np.where(blocks < 0, -1, blocks // 64)
    pieces = -(-inputs // 64)
    place_in_piece = blocks - np.minimum(64 * piece, inputs - 64)
    given = piece[:, None] == np.arange(pieces)[:, None]
    masks = np.packbits(given, axis=2, bitorder="little").reshape(-1).view(np.int64)
    place_in_piece = np.where(blocks < 0, 0, place_in_piece)
    return np.stack([place_in_piece, np.where(blocks < 0, 1, 128)], axis=1).astype(np.uint8), masks


PATH, WIDE, INPUTS, DEPTH, ORDER, PACKED, START, ENDS, GROUPS, VECTORS, BIAS, BYTES_ORDER, MASKS = range(13)
WHOLE_START = 13
ARGUMENTS = 14


@kernel
def rows_of(rows):
    """Rows that are packed: whole tiles."""
    return (rows + ROWS - 1) // ROWS * ROWS


@kernel
def pack_rows(w, x, rows, out):
    """Packs `rows` rows of int8 inputs at the address x to the address `out`, where there is room for whole tiles.

    w: Weights.arguments().  Padding between groups is 1, of bytes.  Behind the last row may be anything.
    """
    inputs, depth, order = w[INPUTS], w[DEPTH], w[ORDER]
    if w[BYTES_ORDER]:
        for r in range(0, rows, ROWS):
            permute_rows(x + r * inputs, inputs, rows - 1 - r, w[BYTES_ORDER], w[MASKS], out + r * depth * 4, depth * 4)
        return
    if not order and inputs == depth * (2 if w[WIDE] else 4):  # rows without padding are one long row
        inputs, depth, rows = inputs * rows, depth * rows, 1
    for r in range(rows):
        source = int8_at(x + r * inputs, inputs)
        if w[WIDE]:
            words = int16_at(out + r * depth * 4, depth * 2)
            if order:
                at = int32_at(order, depth * 2)
                for k in range(depth * 2):
                    words[k] = source[max(at[k], 0)]
            else:
                for k in range(inputs):
                    words[k] = source[k]
                for k in range(inputs, depth * 2):
                    words[k] = 0
        else:
            octets = int8_at(out + r * depth * 4, depth * 4)
            if order:
                at = int32_at(order, depth * 4)
                for k in range(depth * 4):
                    octets[k] = source[at[k]] ^ np.int8(-128) if at[k] >= 0 else np.int8(1)
            else:
                for k in range(inputs):
                    octets[k] = source[k] ^ np.int8(-128)
                for k in range(inputs, depth * 4):
                    octets[k] = 0


def _multiply_add(builder: Any, path: str, acc: Any, x: Any, w: Any) -> Any:
    """acc + the products of x, one 32-bit piece, and w, a piece for each lane of acc."""
    lanes = acc.type.count
    vector = ir.VectorType(I32, lanes)
    halves = ir.VectorType(I16, 2 * lanes)
    spread = splat_value(builder, x, vector)
    if path in EIGHT_BITS:
        return call(builder, f"llvm.x86.avx512.vpdpbusd.{32 * lanes}", vector, acc, spread, w)
    if path == "avx2":
        both = [builder.bitcast(value, halves) for value in (w, spread)]
        return builder.add(acc, call(builder, "llvm.x86.avx2.pmadd.wd", vector, *both))
    wide = ir.VectorType(I32, 2 * lanes)
    products = builder.mul(*(builder.sext(builder.bitcast(value, halves), wide) for value in (w, spread)))
    even, odd = (
        builder.shuffle_vector(products, products, ir.Constant(vector, list(range(start, 2 * lanes, 2))))
        for start in (0, 1)
    )
    return builder.add(acc, builder.add(even, odd))


def _sums(
    builder: Any, path: str, vectors: int, args: list[Any], pairs: bool = False, height: int = ROWS
) -> dict[tuple[int, int, int], Any]:
    """Emits the sums of a tile of `height` rows by 16 * vectors outputs; (row, vector, half) -> pointer to a sum.

    pairs: two pieces of the rows a step: fewer instructions, in longer code.  args: addresses of the packed rows and
    weights, bytes from vector to vector of the weights, depth, address and number of the groups' ends, address of the
    sums' first values.
    """
    lanes = 8 if path in ("avxvnni", "avx2") else 16
    vector = ir.VectorType(I32, lanes)
    parts = [(q, half) for q in range(vectors) for half in range(16 // lanes)]
    x, w, w_stride, depth, ends, groups, start = args
    sums = {}
    for q, half in parts:
        first = builder.load(place(builder, start, 64 * q + 32 * half, vector), align=4)
        for r in range(height):
            sums[r, q, half] = cgutils.alloca_once_value(builder, first)
    columns = [builder.add(w, builder.mul(w_stride, ir.Constant(I64, q))) for q in range(vectors)]
    rows = [builder.add(x, builder.mul(depth, ir.Constant(I64, 4 * r))) for r in range(height)]
    done = cgutils.alloca_once_value(builder, ir.Constant(I64, 0))

    def add_piece(piece: Any, following: int) -> None:
        offset, place_in_row = (builder.mul(piece, ir.Constant(I64, size)) for size in (64, 4))
        weights = {}
        for q, half in parts:
            column = builder.add(columns[q], offset)
            weights[q, half] = builder.load(place(builder, column, 64 * following + 32 * half, vector), align=32)
        for r in range(height):
            row = builder.add(rows[r], place_in_row)
            value = builder.load(place(builder, row, 4 * following, I32), align=4)
            for part in parts:
                total = sums[(r, *part)]
                builder.store(_multiply_add(builder, path, builder.load(total), value, weights[part]), total)

    with cgutils.for_range(builder, groups) as loop:
        entry = builder.add(ends, builder.mul(loop.index, ir.Constant(I64, 16)))
        end = builder.load(place(builder, entry, 0, I64), align=8)
        shift = builder.load(place(builder, entry, 8, I64), align=8)
        first = builder.load(done)
        if pairs:
            odd = builder.and_(builder.sub(end, first), ir.Constant(I64, 1))
            with builder.if_then(builder.icmp_signed("!=", odd, ir.Constant(I64, 0))):
                add_piece(first, 0)
            first = builder.add(first, odd)
        at_once = 2 if pairs else 1
        bounds = first, end, ir.Constant(I64, at_once)
        with cgutils.for_range_slice(builder, *bounds, intp=I64, inc=True) as (piece, _):
            for following in range(at_once):
                add_piece(piece, following)
        builder.store(end, done)
        with builder.if_else(builder.icmp_signed("==", shift, ir.Constant(I64, 1))) as (by_one, otherwise):
            with by_one:  # the commonest; twice as many additions as shifts fit into a cycle
                for total in sums.values():
                    value = builder.load(total)
                    builder.store(builder.add(value, value), total)
            with otherwise, builder.if_then(builder.icmp_signed("!=", shift, ir.Constant(I64, 0))):
                for total in sums.values():
                    builder.store(shift_left(builder, builder.load(total), shift), total)
    return sums


def shift_left(builder: Any, value: Any, count: Any) -> Any:
    """value << count, the same int64 for every lane, below 32."""
    counts = splat_value(builder, builder.trunc(count, I32), value.type)
    if value.type == I32X16 and cpu.AVX512 <= cpu.features():
        return shift_left_value(builder, value, counts)
    return builder.shl(value, counts)


def place(builder: Any, address: Any, offset: int, kind: Any) -> Any:
    return builder.inttoptr(builder.add(address, ir.Constant(I64, offset)), kind.as_pointer())


def _tile(path: str, vectors: int, height: int = ROWS) -> Any:
    @intrinsic
    def tile(
        typing: Any, x: Any, w: Any, w_stride: Any, depth: Any, ends: Any, groups: Any, start: Any, out: Any
    ) -> Any:  # fmt: skip
        """Sums to the address `out`, int32 [height, 16 * vectors]."""

        def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            if path in cpu.available():
                *given, out = args
                for (r, q, half), total in _sums(builder, path, vectors, given, height=height).items():
                    value = builder.load(total)
                    builder.store(value, place(builder, out, 64 * (r * vectors + q) + 32 * half, value.type), align=4)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 8), generate

    return tile


def add_bias(builder: Any, value: Any, bias: Any, q: int) -> Any:
    """value + the vector q of the biases at an address."""
    return builder.add(value, builder.load(place(builder, bias, 64 * q, I32X16), align=4))


def finish_row(
    builder: Any, sums: list[Any], shift: Any, low: Any, high: Any, size: Any, target: Any
) -> None:
    """Emits the requantization of 64 sums of a row, rounding constants included, and their stores to `target`."""
    values = []
    for q, value in enumerate(sums):
        count = builder.load(place(builder, shift, 64 * q, I32X16), align=4)
        values.append(call(builder, "llvm.x86.avx512.psrav.d.512", I32X16, value, count))
    words = [call(builder, "llvm.x86.avx512.packssdw.512", I16X32, a, b) for a, b in (values[:2], values[2:])]
    with builder.if_else(builder.icmp_signed("==", size, ir.Constant(I64, 1))) as (bytes_, pairs):
        with bytes_:
            packed = call(builder, "llvm.x86.avx512.packsswb.512", I8X64, *words)
            order = ir.Constant(I32X16, [i % 4 * 4 + i // 4 for i in range(16)])
            packed = builder.bitcast(packed, I32X16)
            packed = builder.shuffle_vector(packed, packed, order)
            result = cgutils.alloca_once_value(builder, packed)
            higher = builder.icmp_signed(">", low, ir.Constant(I64, -128))
            lower = builder.icmp_signed("<", high, ir.Constant(I64, 127))
            with builder.if_then(builder.or_(higher, lower)):  # than where the instruction saturates
                builder.store(clamp_pieces(builder, 8, packed, low, high), result)
            builder.store(builder.load(result), place(builder, target, 0, I32X16), align=1)
        with pairs:
            for i, word in enumerate(words):
                order = ir.Constant(ir.VectorType(I32, 8), [i % 4 * 2 + i // 4 for i in range(8)])
                word = builder.bitcast(word, ir.VectorType(I64, 8))
                word = builder.shuffle_vector(word, word, order)
                word = clamp_pieces(builder, 16, word, low, high)
                builder.store(word, place(builder, target, 64 * i, I32X16), align=1)


def add_lefts(builder: Any, sums: dict[tuple[int, int, int], Any], lefts: Any, bias: Any) -> None:
    """Emits the left shift of each row's sums and the addition of the bias, if `lefts` is not 0 (see finished_64)."""
    with builder.if_then(builder.icmp_signed("!=", lefts, ir.Constant(I64, 0))):
        for (r, q, half), total in sums.items():
            left = builder.load(place(builder, lefts, 8 * r, I64), align=8)
            value = shift_left(builder, builder.load(total), left)
            more = builder.load(place(builder, bias, 64 * q + 32 * half, value.type), align=4)
            builder.store(builder.add(value, more), total)


@intrinsic
def finished_64(
    typing: Any, x: Any, w: Any, w_stride: Any, depth: Any, ends: Any, groups: Any, start: Any, lefts: Any,
    bias: Any, shift: Any, low: Any, high: Any, size: Any, rows: Any, out: Any, out_stride: Any,
) -> Any:  # fmt: skip
    """A tile of 64 outputs, requantized without leaving the registers: `rows` rows, 1 .. ROWS, to the address `out`.

    lefts: address of int64 [ROWS], a left shift for each row, after which bias, with the rounding constant, an address
    of int32 [64], is added; or 0: the sums' first values include it.  shift: address of int32 [64]; size: bytes of an
    output, 1 or 2; out_stride: bytes from row to row.
    """

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if "avx512vnni" not in cpu.available():
            return context.get_dummy_value()
        lefts, bias, shift, low, high, size, rows, out, out_stride = args[7:]

        def emit(height: int) -> None:
            sums = _sums(builder, "avx512vnni", WIDEST, args[:7], pairs=True, height=height)
            add_lefts(builder, sums, lefts, bias)
            for r in range(height):
                with builder.if_then(builder.icmp_signed("<", ir.Constant(I64, r), rows)):
                    values = [builder.load(sums[r, q, 0]) for q in range(WIDEST)]
                    target = builder.add(out, builder.mul(out_stride, ir.Constant(I64, r)))
                    finish_row(builder, values, shift, low, high, size, target)

        with builder.if_else(builder.icmp_signed(">", rows, ir.Constant(I64, HALF))) as (whole, half):
            with whole:
                emit(ROWS)
            with half:
                emit(HALF)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 16), generate


@intrinsic
def finished_16(
    typing: Any, path: Any, x: Any, w: Any, depth: Any, ends: Any, groups: Any, start: Any, lefts: Any, bias: Any,
    shift: Any, low: Any, high: Any, size: Any, rows: Any, out: Any, out_stride: Any,
) -> Any:  # fmt: skip
    """As `finished_64`, for 16 outputs in registers of 256 bits; path: 2 or 3, in `cpu.PATHS`."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        path, *rest = args
        for name in cpu.NARROW:
            if name in cpu.available():
                with builder.if_then(builder.icmp_signed("==", path, ir.Constant(I64, cpu.PATHS.index(name)))):
                    _finish_16(builder, name, rest)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 16), generate


def _finish_16(builder: Any, path: str, args: list[Any]) -> None:
    """Emits `finished_16` for a path."""
    x, w, depth, ends, groups, start, lefts, bias, shift, low, high, size, rows, out, out_stride = args
    sums = _sums(builder, path, 1, [x, w, ir.Constant(I64, 0), depth, ends, groups, start], pairs=True)
    add_lefts(builder, sums, lefts, bias)
    limits = [splat_value(builder, builder.trunc(limit, I16), I16X16) for limit in (low, high)]
    parts = [ir.Constant(ir.VectorType(I32, 8), list(range(at, at + 8))) for at in (0, 8)]
    for r in range(ROWS):
        with builder.if_then(builder.icmp_signed("<", ir.Constant(I64, r), rows)):
            shifted = []
            for half in range(2):
                count = builder.load(place(builder, shift, 32 * half, I32X8), align=4)
                total = builder.load(sums[r, 0, half])
                shifted.append(call(builder, "llvm.x86.avx2.psrav.d.256", I32X8, total, count))
            words = call(builder, "llvm.x86.avx2.packssdw", I16X16, *shifted)  # 0-3, 8-11, 4-7, 12-15
            words = clamp_value(builder, words, *limits)
            target = builder.add(out, builder.mul(out_stride, ir.Constant(I64, r)))
            order = ir.Constant(ir.VectorType(I32, 4), [0, 2, 1, 3])
            with builder.if_else(builder.icmp_signed("==", size, ir.Constant(I64, 1))) as (bytes_, whole):
                with bytes_:
                    both = [builder.shuffle_vector(words, words, part) for part in parts]
                    packed = call(builder, "llvm.x86.sse2.packsswb.128", ir.VectorType(I8, 16), *both)
                    packed = builder.bitcast(packed, ir.VectorType(I32, 4))
                    packed = builder.shuffle_vector(packed, packed, order)
                    builder.store(packed, place(builder, target, 0, packed.type), align=1)
                with whole:
                    quarters = builder.bitcast(words, ir.VectorType(I64, 4))
                    quarters = builder.shuffle_vector(quarters, quarters, order)
                    builder.store(quarters, place(builder, target, 0, quarters.type), align=1)


@intrinsic
def permute_rows(typing: Any, x: Any, inputs: Any, last: Any, order: Any, masks: Any, out: Any, size: Any) -> Any:
    """out[r, i] = x[min(r, last), order[i]] ^ 0x80, or 1 where order[i] is -1, for ROWS rows.

    x: address of bytes [last + 1, inputs]; out: of bytes [ROWS, size]; order, masks: of what `pieces_of_order` made;
    inputs, size: at least 64.  Needs AVX-512 VBMI.
    """

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if not cpu.has_byte_permutation():
            return context.get_dummy_value()
        x, inputs, last, order, masks, out, size = args
        rows = []
        for r in range(ROWS):
            row = ir.Constant(I64, r)
            row = builder.select(builder.icmp_signed("<", row, last), row, last)
            rows.append(builder.add(x, builder.mul(row, inputs)))
        nothing = ir.Constant(I8X64, None)
        found = [cgutils.alloca_once_value(builder, nothing) for _ in rows]
        blocks, pieces = count_pieces(builder, size), count_pieces(builder, inputs)
        with cgutils.for_range(builder, blocks, intp=I64) as loop:
            entry = builder.add(order, builder.mul(loop.index, ir.Constant(I64, 128)))
            index, change = (builder.load(place(builder, entry, at, I8X64), align=1) for at in (0, 64))
            for total in found:
                builder.store(nothing, total)
            with cgutils.for_range(builder, pieces, intp=I64) as inner:
                entry = builder.add(builder.mul(loop.index, pieces), inner.index)
                entry = builder.add(masks, builder.mul(entry, ir.Constant(I64, 8)))
                given = builder.bitcast(builder.load(place(builder, entry, 0, I64), align=8), ir.VectorType(I1, 64))
                offset = piece_offset(builder, inner.index, inputs)
                for row, total in zip(rows, found, strict=True):
                    piece = builder.load(place(builder, builder.add(row, offset), 0, I8X64), align=1)
                    moved = call(builder, "llvm.x86.avx512.permvar.qi.512", I8X64, piece, index)
                    builder.store(builder.select(given, moved, builder.load(total)), total)
            offset = builder.add(out, piece_offset(builder, loop.index, size))
            for r, total in enumerate(found):
                changed = builder.xor(builder.load(total), change)
                target = builder.add(offset, builder.mul(size, ir.Constant(I64, r)))
                builder.store(changed, place(builder, target, 0, I8X64), align=1)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 7), generate


def count_pieces(builder: Any, size: Any) -> Any:
    """Of 64 bytes in `size` bytes, the last perhaps overlapping the one before."""
    return builder.lshr(builder.add(size, ir.Constant(I64, 63)), ir.Constant(I64, 6))


def piece_offset(builder: Any, i: Any, size: Any) -> Any:
    """Where piece i of `size` bytes begins."""
    begin, last = builder.mul(i, ir.Constant(I64, 64)), builder.sub(size, ir.Constant(I64, 64))
    return builder.select(builder.icmp_signed("<", begin, last), begin, last)


zmm_1, zmm_2, zmm_3, zmm_4 = (_tile("avx512vnni", n) for n in (1, 2, 3, 4))
zmm_4_half = _tile("avx512vnni", 4, HALF)
ymm_1 = _tile("avxvnni", 1)
pairs_1 = _tile("avx2", 1)
plain_2, plain_1 = _tile("plain", 2), _tile("plain", 1)


@kernel
def products(w, x, rows, first, out):
    """Sums of `rows` packed rows at the address x with the vectors first .. of the weights, to the address `out`.

    rows: 1 .. ROWS; of the others up to ROWS may be anything.  Returns the number of vectors done: out is int32 [ROWS,
    16 * number].
    """
    path, depth = w[PATH], w[DEPTH]
    left = w[VECTORS] - first
    stride = depth * 64
    packed = w[PACKED] + first * stride
    start = w[START] + first * 64
    ends, groups = w[ENDS], w[GROUPS]
    if path == 1:
        if left >= 4:
            if rows > HALF:
                zmm_4(x, packed, stride, depth, ends, groups, start, out)
            else:
                zmm_4_half(x, packed, stride, depth, ends, groups, start, out)
            return 4
        if left == 3:
            zmm_3(x, packed, stride, depth, ends, groups, start, out)
            return 3
        if left == 2:
            zmm_2(x, packed, stride, depth, ends, groups, start, out)
            return 2
        zmm_1(x, packed, stride, depth, ends, groups, start, out)
        return 1
    if path == 2:
        ymm_1(x, packed, stride, depth, ends, groups, start, out)
        return 1
    if path == 3:
        pairs_1(x, packed, stride, depth, ends, groups, start, out)
        return 1
    if left >= 2:
        plain_2(x, packed, stride, depth, ends, groups, start, out)
        return 2
    plain_1(x, packed, stride, depth, ends, groups, start, out)
    return 1
