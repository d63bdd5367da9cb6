# mypy: allow-untyped-defs
"""linear (SPEC 5.4): y = W x + bias on each token."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from intsim.kernels import cpu
from intsim.kernels import vector as v
from intsim.kernels.base import Argument, In, Kernel, Out
from intsim.kernels.common import kernel
from intsim.kernels.dot import (
    ARGUMENTS,
    BIAS,
    DEPTH,
    ENDS,
    GROUPS,
    INPUTS,
    PACKED,
    PATH,
    ROWS,
    START,
    VECTORS,
    WHOLE_START,
    WIDEST,
    Weights,
    finished_16,
    finished_64,
    pack_rows,
    products,
    rows_of,
)  # fmt: skip
from intsim.kernels.memory import LINE, int8_at, int32_at, int64_at
from intsim.kernels.requantize import DOUBLE, Requantize, half_lanes, requantize_lanes, store_lanes
from intsim.kernels.tiles import (
    BLOCK_TILE,
    BYTES,
    LEVEL,
    PLANES,
    SIDE,
    TALL,
    TileWeights,
    begin_tiles,
    end_tiles,
    finished_1,
    finished_2,
    planes_of,
    sum_16,
    sum_32,
)
from intsim.program import Array, Operator, Program

BLOCK = 11 * ROWS  # most rows that are packed at a time, whole tiles of vector registers
SEGMENT = 8  # numbers of a segment among the arguments
WIDE_BLOCK, NARROW_BLOCK = np.int64(16 * WIDEST), np.int64(16)  # as literals they would be compiled twice
HAS_TILES = cpu.has_tiles()
FEW_INPUTS = 32  # for which tiles are not worth it: most of a tile would be padding


class Linear(Kernel):
    """Input x [L, I]; `acc` int32 [L, O]; each segment [L, stop - start].

    In the packed weights each segment begins with a vector of its own, so that a vector has one format.
    """

    code = 0
    aligned: Collection[str] = ("x",)

    def __init__(self, program: Program, op: Operator):
        super().__init__(program, op)
        x = self.input("x")
        self.tokens = x.shape[0]
        row_shift = program.shifts(x.name, "token") if x.group("token") is not None else np.zeros(1, dtype=np.int64)
        segments = [(s["port"], s["start"], s["stop"]) for s in op.attributes["segments"]]
        weight = self.constant("weight", np.int8)
        self.bind(In("x"), weight, program.shifts(x.name, "channel"), row_shift, segments)

    def bind(
        self, x: Argument, weight: Array, column_shift: Array, row_shift: Array, segments: list[tuple[str, int, int]]
    ) -> None:
        """Packs the weights [O, I].  segments: (port, first row of the weights, behind the last)."""
        shift = self.constant("shift", np.int64)
        columns: list[Array] = []
        numbers: list[Argument] = []
        shifts: list[Array] = []
        roundings: list[Array] = []
        for port, start, stop in segments:
            step = Requantize(self.tensor(port), shift[start:stop], self.row_shift(port), self.mode)
            first = sum(len(c) for c in columns) // v.LANES
            columns.append(np.concatenate([np.arange(start, stop), np.full(-(stop - start) % v.LANES, -1)]))
            shifts.append(step.shift)
            roundings.append(step.rounding)
            width = stop - start
            numbers += [first, width, Out(port), step.size, step.low, step.high, step.narrow, start]
        bias = self.constant("bias", np.int32)
        half = np.concatenate(roundings)
        values = (weight, bias, column_shift, np.concatenate(columns))
        w: TileWeights | Weights
        if self.path == "amx":
            tiled = weight.shape[1] > FEW_INPUTS and self.tokens >= SIDE and planes_of(weight, column_shift) is not None
            w = TileWeights(*values) if tiled else Weights("avx512vnni", *values, half)
        else:
            w = Weights(self.path, *values, half)
        self.weights = w
        self.kept += w.kept
        self.numbers = [
            *w.arguments(),
            x,
            self.keep(np.array(row_shift, dtype=np.int64)),
            len(row_shift),
            self.keep(np.concatenate(shifts)),
            self.keep(w.bias + half),
            self.mode,
            Out("acc"),
            len(weight),
            0,
            *numbers,
            w.columns,  # the first vector of no segment: more than there are
        ]
        self.row_cost = 50 + weight.size // 200
        self.scratch = BLOCK * w.row_bytes + SUMS + LEFTS

    def inner(self) -> tuple[str, ...]:
        return ("acc",)


LEFTS, SUMS = -(-8 * BLOCK // LINE) * LINE, TALL * 2 * BYTES * WIDEST  # bytes of scratch
X, ROW_SHIFT, PERIOD, SHIFT, ROUNDED_BIAS, MODE, ACC, WIDTH, PATCHES, SEGMENTS = range(ARGUMENTS, ARGUMENTS + 10)
FIRST, COLUMNS, OUT, SIZE, LOW, HIGH, NARROW, BEGIN = range(SEGMENT)


@kernel
def linear(a, start, stop, scratch):
    """The rows start .. stop - 1 of all images.  a: Linear.arguments(), or PatchEmbed's: then rows are patches."""
    inputs, block = a[INPUTS], block_of(a)
    for first in range(start, stop, block):
        rows = min(block, stop - first)
        x, rest = a[X] + first * inputs, scratch
        if a[PATCHES]:
            take_patches(a, first, rows, scratch)
            x, rest = scratch, scratch + a[PATCHES]
        linear_block(a, x, first, rows, rest)


@kernel
def take_patches(a, first, rows, out):
    """The pixels, less 128, of `rows` patches to the address `out`; `first` counts those before, of all images."""
    patch, stride, across, patches, height, width, channels = a[-7:]
    size = patch * channels
    for r in range(rows):
        image, p = divmod(first + r, patches)
        corner = (p // across * stride * width + p % across * stride) * channels
        corner += a[X] + image * height * width * channels
        for i in range(patch):
            pixels = int8_at(corner + i * width * channels, size)
            row = int8_at(out + r * a[INPUTS] + i * size, size)
            for k in range(size):
                row[k] = pixels[k] ^ np.int8(-128)


@kernel
def block_of(a):
    """Rows of a block: whole tiles of the registers that are used."""
    return 2 * TALL if a[PATH] == 0 else BLOCK


@kernel
def linear_block(a, x, first, rows, scratch):
    """`rows` rows, at most block_of(a), from the address x; `first` counts the rows before, of all images."""
    if HAS_TILES:  # known when it is compiled
        if a[PATH] == 0:
            linear_tiles(a, x, first, rows, scratch)
            return
    stride = a[DEPTH] * 4
    lefts, sums, packed = scratch, scratch + LEFTS, scratch + LEFTS + SUMS
    pack_rows(a, x, rows, packed)
    find_lefts(a, first, rows_of(rows), np.int64(0), lefts)
    apart = a[WHOLE_START] == 0 or a[PERIOD] > 1 or int64_at(lefts, 1)[0] != 0  # the bias is not in the first values
    start = a[START] if apart else a[WHOLE_START]
    segment = SEGMENTS
    vector = np.int64(0)
    while vector < a[VECTORS]:
        while a[segment + SEGMENT] <= vector:
            segment += SEGMENT
        column = (vector - a[segment + FIRST]) * 16
        size, width = a[segment + SIZE], a[segment + COLUMNS]
        weights = a[DEPTH] * 64
        target = a[segment + OUT] + (first * width + column) * size
        if a[PATH] == 1 and whole_block(a, segment, column, WIDE_BLOCK):
            at, bias, shift = a[PACKED] + vector * weights, a[ROUNDED_BIAS] + vector * 64, a[SHIFT] + vector * 64
            for r in range(0, rows, ROWS):
                finished_64(
                    packed + r * stride, at, weights, a[DEPTH], a[ENDS], a[GROUPS], start + vector * 64,
                    lefts + 8 * r if apart else 0, bias, shift, a[segment + LOW], a[segment + HIGH], size,
                    min(ROWS, rows - r), target + r * width * size, width * size,
                )  # fmt: skip
            vector += WIDEST
        elif 2 <= a[PATH] <= 3 and whole_block(a, segment, column, NARROW_BLOCK):
            at, bias, shift = a[PACKED] + vector * weights, a[ROUNDED_BIAS] + vector * 64, a[SHIFT] + vector * 64
            for r in range(0, rows, ROWS):
                finished_16(
                    a[PATH], packed + r * stride, at, a[DEPTH], a[ENDS], a[GROUPS], start + vector * 64,
                    lefts + 8 * r if apart else 0, bias, shift, a[segment + LOW], a[segment + HIGH], size,
                    min(ROWS, rows - r), target + r * width * size, width * size,
                )  # fmt: skip
            vector += 1
        else:
            done = 0
            for r in range(0, rows, ROWS):
                many = min(ROWS, rows - r)
                done = products(a, packed + r * stride, many, vector, sums)
                finish_tile(a, sums, done, np.int64(1), lefts + 8 * r, vector, done, first + r, many)
            vector += done


@kernel
def linear_tiles(a, x, first, rows, scratch):
    """The same in tile registers, TALL rows by up to 64 outputs at a time."""
    lefts, sums, packed = scratch, scratch + LEFTS, scratch + LEFTS + SUMS
    begin_tiles(sums)
    inputs, planes, depth, stride = a[INPUTS], a[PLANES], a[DEPTH], a[INPUTS]
    if rows % SIDE or inputs % BYTES or x % BYTES:  # tiles would reach over the end, or across lines of the cache
        stride = depth * BYTES
        for r in range(rows):
            source, target = int8_at(x + r * inputs, inputs), int8_at(packed + r * stride, inputs)
            for k in range(inputs):
                target[k] = source[k]
        x = packed
    find_lefts(a, first, rows, a[LEVEL], lefts)
    pitch = WIDEST * planes * BYTES
    for r in range(0, rows, TALL):
        height = min(TALL, rows - r)
        segment = SEGMENTS
        for vector in range(0, a[VECTORS], WIDEST):
            while a[segment + SEGMENT] <= vector:
                segment += SEGMENT
            vectors = min(WIDEST, a[VECTORS] - vector)
            weights = a[PACKED] + vector * planes * depth * BLOCK_TILE
            for pair in range((vectors * planes + 1) // 2):
                if height > SIDE:
                    sum_32(x + r * stride, stride, weights, depth, sums + 2 * BYTES * pair, pitch)
                else:
                    sum_16(x + r * stride, stride, weights, depth, sums + 2 * BYTES * pair, pitch)
                weights += 2 * depth * BLOCK_TILE
            column = (vector - a[segment + FIRST]) * 16
            if whole_block(a, segment, column, WIDE_BLOCK):
                size, width = a[segment + SIZE], a[segment + COLUMNS]
                target = a[segment + OUT] + ((first + r) * width + column) * size
                bias, shift = a[ROUNDED_BIAS] + vector * 64, a[SHIFT] + vector * 64
                low, high = a[segment + LOW], a[segment + HIGH]
                if planes == 1:
                    finished_1(sums, lefts + 8 * r, bias, shift, low, high, size, height, target, width * size)
                else:
                    finished_2(sums, lefts + 8 * r, bias, shift, low, high, size, height, target, width * size)
            else:
                finish_tile(a, sums, np.int64(WIDEST), planes, lefts + 8 * r, vector, vectors, first + r, height)
    end_tiles()


@kernel
def whole_block(a, segment, column, outputs):
    """Whether so many outputs from this column of a segment on are requantized without leaving the registers."""
    return (
        a[MODE] <= 1 and a[segment + NARROW] != 0 and a[segment + SIZE] <= 2 and a[ACC] == 0
        and column + outputs <= a[segment + COLUMNS]
    )  # fmt: skip


@kernel
def find_lefts(a, first, rows, level, lefts):
    """The left shifts of the sums of `rows` rows from `first` on, plus `level`, to the address int64 [rows]."""
    row_shift, found = int64_at(a[ROW_SHIFT], a[PERIOD]), int64_at(lefts, rows)
    place = first % a[PERIOD] if a[PERIOD] > 1 else 0
    for r in range(rows):
        found[r] = row_shift[place] + level
        place += 1
        if place == a[PERIOD]:
            place = 0


@kernel
def finish_tile(a, tile, pitch, planes, lefts_at, vector, done, first, rows):
    """Bias, shifts, requantization: sums int32 [rows, pitch, planes, 16], of which `done` in a row, to the outputs.

    vector: the first of the outputs; first: the first row of all images; two planes are 256 high + low.
    """
    sums = int32_at(tile, rows * pitch * planes * 16)
    shift_of, bias_of = int32_at(a[SHIFT], a[VECTORS] * 16), int32_at(a[BIAS], a[VECTORS] * 16)
    lefts = int64_at(lefts_at, rows)
    mode = a[MODE]
    segment = SEGMENTS
    for q in range(done):
        while a[segment + SEGMENT] <= vector + q:
            segment += SEGMENT
        shift = v.load_int32(shift_of, (vector + q) * 16)
        bias = v.load_int32(bias_of, (vector + q) * 16)
        column = (vector + q - a[segment + FIRST]) * 16
        lanes = min(a[segment + COLUMNS] - column, 16)
        size = a[segment + SIZE]
        half = half_lanes(v.maximum(shift, v.splat(np.int32(0))), mode)
        for r in range(rows):
            place = (r * pitch + q) * planes * 16
            acc = v.load_int32(sums, place)
            if planes == 2:
                acc = v.add(v.shl(acc, v.splat(np.int32(8))), v.load_int32(sums, place + 16))
            acc = v.add(v.shl(acc, v.splat(np.int32(lefts[r]))), bias)
            if a[ACC]:
                place = (first + r) * a[WIDTH] + a[segment + BEGIN] + column
                store_lanes(a[ACC] + 4 * place, DOUBLE, lanes, acc)
            y = requantize_lanes(acc, shift, half, mode, a[segment + LOW], a[segment + HIGH], a[segment + NARROW])
            if a[segment + OUT]:
                place = (first + r) * a[segment + COLUMNS] + column
                store_lanes(a[segment + OUT] + size * place, size, lanes, y)
