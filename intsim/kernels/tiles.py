# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators
"""Integer matrix products in the tile registers of AMX (TDPBSSD), for `linear` and `patch_embed`.

A tile register has 16 rows of 64 bytes.  A step multiplies 16 rows of 64 inputs, as they lie in memory, by 16 outputs'
weights for them, and adds to 16 x 16 sums.

Groups of channels are no steps of their own: an input's shift is in its weights, w * 2^s.  Where these need more than 8
bits each is 256 high + low, two planes of weights, and the sums of the high plane are shifted by 8 when they are
added.  Sums wrap at 32 bits, because the final value fits (SPEC 7).

Weights are packed once, [outputs / 16][plane][inputs / 64][16 pieces of 4 inputs][16 outputs][4 bytes].
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic as numba_intrinsic

from intsim.kernels import cpu
from intsim.kernels.dot import START, WIDE, add_bias, finish_row, place, shift_left
from intsim.kernels.memory import address_of, aligned
from intsim.kernels.vector import I8X64, I32X16, I64
from intsim.program import Array

intrinsic: Any = numba_intrinsic

SIDE = 16  # rows of a tile register, and 32-bit pieces of a row
BYTES = 64  # of a row of a tile register
TALL = 2 * SIDE  # rows of a step
BLOCK_TILE = SIDE * BYTES  # bytes of a tile
PLANES, LEVEL = WIDE, START  # what TileWeights has in these places of Weights.arguments()


class TileWeights:
    """Weights packed for tiles; the arguments are those of dot.Weights.

    level: a shift of all sums, what the shifts of the inputs have in common.
    """

    def __init__(self, weight: Array, bias: Array, column_shift: Array, columns: Array):
        self.level = int(column_shift.min())
        planes = planes_of(weight, column_shift)
        assert planes is not None
        self.planes = len(planes)
        self.inputs = weight.shape[1]
        self.depth = -(-self.inputs // BYTES)
        self.columns = len(columns)
        real = columns >= 0
        vectors = self.columns // SIDE
        vectors += vectors * self.planes % 2  # whole pairs of blocks
        whole = np.zeros((vectors * SIDE, self.planes, self.depth * BYTES), dtype=np.int8)
        for i, plane in enumerate(planes):
            whole[: self.columns, i, : self.inputs][real] = plane[columns[real]]
        packed = whole.reshape(vectors, SIDE, self.planes, self.depth, SIDE, 4).transpose(0, 2, 3, 4, 1, 5)
        self.packed = aligned(packed)
        self.bias = aligned(np.zeros(self.columns, dtype=np.int32))
        self.bias[real] = bias[columns[real]]
        self.kept = [self.packed, self.bias]
        self.row_bytes = self.depth * BYTES

    def arguments(self) -> list[int]:
        """In the places of Weights.arguments()."""
        bias, vectors = address_of(self.bias), self.columns // SIDE
        return [
            *(cpu.PATHS.index("amx"), self.planes, self.inputs, self.depth, 0, address_of(self.packed), self.level),
            *(0, 0, vectors, bias, 0, 0, 0),
        ]


def planes_of(weight: Array, column_shift: Array) -> list[Array] | None:
    """The weights with their inputs' shifts in them: one or two planes of 8 bits, the higher first; None: too large."""
    shifted = weight.astype(np.int64) << (column_shift - column_shift.min())
    low = ((shifted + 128) & 255) - 128
    high = (shifted - low) >> 8
    if not high.any():
        return [low]
    return [high, low] if high.min() >= -128 and high.max() <= 127 else None


def _emit(builder: Any, instruction: str, *args: Any) -> None:
    """Emits an instruction on tile registers, as assembly: LLVM would want to allocate them."""
    function = ir.FunctionType(ir.VoidType(), [I64] * len(args))
    builder.asm(function, instruction, ",".join(["r"] * len(args) + ["~{memory}"]), list(args), True)


@intrinsic
def begin_tiles(typing: Any, memory: Any) -> Any:
    """Configures this thread's eight tile registers, 16 rows of 64 bytes each; memory: address of 64 bytes."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if cpu.has_tiles():
            config = [1, *[0] * 15, *[BYTES, 0] * 8, *[0] * 16, *[SIDE] * 8, *[0] * 8]
            builder.store(ir.Constant(I8X64, config), place(builder, args[0], 0, I8X64), align=1)
            _emit(builder, "ldtilecfg ($0)", args[0])
        return context.get_dummy_value()

    return types.void(types.int64), generate


@intrinsic
def end_tiles(typing: Any) -> Any:
    """Gives the tile registers back."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if cpu.has_tiles():
            _emit(builder, "tilerelease")
        return context.get_dummy_value()

    return types.void(), generate


def _sums(halves: int) -> Any:
    sums = [(i, j) for i in range(halves) for j in range(2)]

    @intrinsic
    def sum_rows(typing: Any, x: Any, x_stride: Any, w: Any, depth: Any, out: Any, out_stride: Any) -> Any:
        """Sums of 16 * halves rows, x_stride bytes apart, by two blocks of weights, `depth` tiles each.

        out: address of int32 [16 * halves, 32], rows out_stride bytes apart.  Needs `begin_tiles`.
        """

        def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            if not cpu.has_tiles():
                return context.get_dummy_value()
            x, x_stride, w, depth, out, out_stride = args
            number = lambda value: ir.Constant(I64, value)  # noqa: E731
            second = builder.add(w, builder.mul(depth, number(BLOCK_TILE)))
            xs = [builder.add(x, builder.mul(x_stride, number(SIDE * i))) for i in range(halves)]
            for i, j in sums:  # all first: a register that is cleared among products waits for them
                _emit(builder, f"tilezero %tmm{2 * i + j}")
            with cgutils.for_range(builder, depth, intp=I64) as loop:
                piece, tile = (builder.mul(loop.index, number(size)) for size in (BYTES, BLOCK_TILE))
                for i in range(halves):
                    _emit(builder, f"tileloadd ($0,$1), %tmm{4 + i}", builder.add(xs[i], piece), x_stride)
                for j, block in enumerate((w, second)):
                    _emit(builder, f"tileloadd ($0,$1), %tmm{6 + j}", builder.add(block, tile), number(BYTES))
                for i, j in sums:
                    _emit(builder, f"tdpbssd %tmm{6 + j}, %tmm{4 + i}, %tmm{2 * i + j}")
            for i, j in sums:
                target = builder.add(out, builder.add(builder.mul(out_stride, number(SIDE * i)), number(BYTES * j)))
                _emit(builder, f"tilestored %tmm{2 * i + j}, ($0,$1)", target, out_stride)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 6), generate

    return sum_rows


sum_16, sum_32 = _sums(1), _sums(2)


def _finished(planes: int) -> Any:
    @intrinsic
    def finished(
        typing: Any, sums: Any, lefts: Any, bias: Any, shift: Any, low: Any, high: Any, size: Any, rows: Any, out: Any,
        out_stride: Any,
    ) -> Any:  # fmt: skip
        """The requantization of dot.finished_64, of sums at an address, int32 [rows, 4, planes, 16]."""

        def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            if not cpu.has_tiles():
                return context.get_dummy_value()
            sums, lefts, bias, shift, low, high, size, rows, out, out_stride = args
            with cgutils.for_range(builder, rows, intp=I64) as loop:
                row = builder.add(sums, builder.mul(loop.index, ir.Constant(I64, 256 * planes)))
                left = builder.add(lefts, builder.mul(loop.index, ir.Constant(I64, 8)))
                left = builder.load(place(builder, left, 0, I64), align=8)
                parts = [
                    builder.load(place(builder, row, 64 * i, I32X16), align=4) for i in range(4 * planes)
                ]
                if planes == 2:
                    eight = ir.Constant(I32X16, [8] * 16)
                    parts = [builder.add(builder.shl(parts[i], eight), parts[i + 1]) for i in range(0, 8, 2)]
                parts = [add_bias(builder, shift_left(builder, part, left), bias, q) for q, part in enumerate(parts)]
                target = builder.add(out, builder.mul(out_stride, loop.index))
                finish_row(builder, parts, shift, low, high, size, target)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 10), generate

    return finished


finished_1, finished_2 = _finished(1), _finished(2)
