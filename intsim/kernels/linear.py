# mypy: allow-untyped-defs
"""linear (SPEC 5.4): y = W x + bias on each token."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

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
    TILE,
    VECTORS,
    WIDEST,
    Weights,
    begin_tiles,
    end_tiles,
    finished_rows,
    finished_tile,
    pack_rows,
    products,
    tile_sums,
)  # fmt: skip
from intsim.kernels.memory import int32_at, int64_at
from intsim.kernels.requantize import Requantize, half_lanes, requantize_lanes, store_lanes
from intsim.program import Array, Operator, Program

BLOCK = 64  # rows that are packed at a time
SEGMENT = 8  # numbers of a segment among the arguments


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
        for port, start, stop in segments:
            step = Requantize(self.tensor(port), shift[start:stop], self.row_shift(port), self.mode)
            first = sum(len(c) for c in columns) // v.LANES
            columns.append(np.concatenate([np.arange(start, stop), np.full(-(stop - start) % v.LANES, -1)]))
            shifts.append(step.shift)
            width = stop - start
            numbers += [first, width, Out(port), step.size, step.low, step.high, step.narrow, start]
        bias = self.constant("bias", np.int32)
        w = self.weights = Weights(self.path, weight, bias, column_shift, np.concatenate(columns))
        self.kept += [w.order, w.packed, w.start, w.ends, w.bias, w.bytes_order, w.masks]
        whole_shift = np.concatenate(shifts)
        half = np.where(whole_shift > 0, np.int64(1) << np.maximum(whole_shift - 1, 0), 0) * (self.mode & 1)
        self.numbers = [
            *w.arguments(),
            x,
            self.keep(np.array(row_shift, dtype=np.int64)),
            len(row_shift),
            self.keep(whole_shift),
            self.keep((w.bias + half).astype(np.int32)),
            self.mode,
            Out("acc"),
            len(weight),
            *numbers,
            w.columns,  # the first vector of no segment: more than there are
        ]
        self.row_cost = 50 + weight.size // 200
        self.scratch = BLOCK * w.depth * 4 + w.inputs + 256 + 64 * v.LANES * 4 + 256

    def inner(self) -> tuple[str, ...]:
        return ("acc",)


X, ROW_SHIFT, PERIOD, SHIFT, ROUNDED_BIAS, MODE, ACC, WIDTH, SEGMENTS = range(ARGUMENTS, ARGUMENTS + 9)
FIRST, COLUMNS, OUT, SIZE, LOW, HIGH, NARROW, BEGIN = range(SEGMENT)


@kernel
def linear(a, start, stop, scratch):
    """The rows start .. stop - 1 of all images.  a: Linear.arguments()."""
    for first in range(start, stop, BLOCK):
        rows = min(BLOCK, stop - first)
        linear_block(a, a[X] + first * a[INPUTS], first, rows, scratch)


@kernel
def linear_block(a, x, first, rows, scratch):
    """`rows` rows, at most BLOCK, from the address x; `first` counts the rows before, of all images."""
    stride = a[DEPTH] * 4
    lefts_at, tile, packed = scratch, scratch + 256, scratch + 256 + 64 * 16 * 4
    pack_rows(a, x, rows, packed)
    row_shift = int64_at(a[ROW_SHIFT], a[PERIOD])
    lefts = int64_at(lefts_at, TILE)
    if a[PATH] == 0:
        begin_tiles(lefts_at)
    segment = SEGMENTS
    vector = 0
    while vector < a[VECTORS]:
        while a[segment + SEGMENT] <= vector:
            segment += SEGMENT
        column = (vector - a[segment + FIRST]) * 16
        size, width = a[segment + SIZE], a[segment + COLUMNS]
        if (
            a[PATH] <= 1 and a[MODE] <= 1 and a[segment + NARROW] and size <= 2 and not a[ACC]
            and column + 16 * WIDEST <= width
        ):  # fmt: skip
            weights = a[DEPTH] * 64
            target = a[segment + OUT] + (first * width + column) * size
            height = TILE if a[PATH] == 0 else ROWS
            for r in range(0, rows, height):
                for i in range(height):
                    lefts[i] = row_shift[(first + r + i) % a[PERIOD]] if a[PERIOD] > 1 else row_shift[0]
                if height == TILE:
                    tile_sums(
                        packed + r * stride, stride, a[PACKED] + vector * weights, weights, a[ENDS], a[GROUPS],
                        a[START] + vector * 64, tile,
                    )  # fmt: skip
                    finished_rows(
                        tile, lefts_at, a[ROUNDED_BIAS] + vector * 64, a[SHIFT] + vector * 64, a[segment + LOW],
                        a[segment + HIGH], size, min(TILE, rows - r), target + r * width * size, width * size,
                    )  # fmt: skip
                    continue
                finished_tile(
                    packed + r * stride, a[PACKED] + vector * weights, weights, a[DEPTH], a[ENDS], a[GROUPS],
                    a[START] + vector * 64, lefts_at, a[ROUNDED_BIAS] + vector * 64, a[SHIFT] + vector * 64,
                    a[segment + LOW], a[segment + HIGH], size, min(ROWS, rows - r), target + r * width * size,
                    width * size,
                )  # fmt: skip
            vector += WIDEST
        else:
            done = 0
            for r in range(0, rows, ROWS):
                done = products(a, packed + r * stride, vector, tile)
                finish_tile(a, tile, vector, done, first + r, min(ROWS, rows - r))
            vector += done
    if a[PATH] == 0:
        end_tiles()


@kernel
def finish_tile(a, tile, vector, done, first, rows):
    """Bias, shifts, requantization: a tile of int32 [ROWS, 16 * done] to the outputs, rows first .. of all images."""
    sums = int32_at(tile, ROWS * done * 16)
    shift_of, bias_of = int32_at(a[SHIFT], a[VECTORS] * 16), int32_at(a[BIAS], a[VECTORS] * 16)
    row_shift = int64_at(a[ROW_SHIFT], a[PERIOD])
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
            acc = v.load_int32(sums, (r * done + q) * 16)
            left = row_shift[(first + r) % a[PERIOD]]
            acc = v.add(v.shl(acc, v.splat(np.int32(left))), bias)
            if a[ACC]:
                place = (first + r) * a[WIDTH] + a[segment + BEGIN] + column
                store_lanes(a[ACC] + 4 * place, 4, lanes, acc)
            y = requantize_lanes(acc, shift, half, mode, a[segment + LOW], a[segment + HIGH], a[segment + NARROW])
            if a[segment + OUT]:
                place = (first + r) * a[segment + COLUMNS] + column
                store_lanes(a[segment + OUT] + size * place, size, lanes, y)
