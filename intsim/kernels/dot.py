# mypy: allow-untyped-defs
"""Integer matrix products for `linear` and `patch_embed`: acc = bias + sum of groups (SPEC 5.1, 5.4).

A `Dot` is one way to compute them; `make_dot` chooses.  A faster one (say, with 8-bit VNNI instructions) is one more
class here with the same three members, and must give the same integers.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from intsim.kernels import vector as v
from intsim.kernels.common import kernel

Array = NDArray[Any]

LARGEST = 8  # an 8-bit weight shifted left by this still fits 16 bits


class Dot(Protocol):
    """Products with fixed weights."""

    padded: int  # columns that `acc` must have, at least the number of outputs

    def __call__(self, x: Array, row_shift: Array, first: int, acc: Array) -> None:
        """acc[r, o] = bias[o] + ((sum_c x[r, c] * (weight[o, c] << column_shift[c])) << row_shift[(first + r) mod L]).

        x [rows, K] int8 or uint8, contiguous; row_shift int64 [L]; acc int32 [rows or more, padded], with a multiple
        of 4 rows; what it holds beyond the rows of x and the outputs is undefined.
        """
        ...


def make_dot(weight: Array, bias: Array, column_shift: Array) -> Dot:
    """The fastest implementation.  weight [O, K], 8 bits; bias [O], 32 bits; column_shift [K], 0 .. 15."""
    return PairDot(weight, bias, column_shift)


class PairDot:
    """Works on pairs of 16-bit integers, for any CPU.

    The groups' shifts are multiplied into the weights: (x * w) << s = x * (w << s).  That is 16 bits for s <= 8; the
    channels with a larger shift go to a second plane, whose sum is shifted by 8 once more.  Sums wrap at 32 bits and
    may be formed in any order, because the final value fits 32 bits (SPEC 7).

    A plane is packed [outputs / 16][K / 2][16][2]: one vector holds a pair of inputs' weights for 16 outputs.
    """

    def __init__(self, weight: Array, bias: Array, column_shift: Array):
        outputs, inputs = weight.shape
        self.pairs = -(-inputs // 2)
        self.padded = -(-outputs // 32) * 32
        self.bias = np.zeros(self.padded, dtype=np.int32)
        self.bias[:outputs] = bias
        self.planes: list[tuple[int, Array]] = []
        for plane, shift in enumerate((0, LARGEST)):
            chosen = (column_shift > LARGEST) == bool(plane)
            if plane and not chosen.any():
                continue
            shifted = np.where(chosen, weight.astype(np.int64) << np.maximum(column_shift - shift, 0), 0)
            whole = np.zeros((self.padded, self.pairs * 2), dtype=np.int16)
            whole[:outputs, :inputs] = shifted
            packed = whole.reshape(self.padded // 16, 16, self.pairs, 2).transpose(0, 2, 1, 3)
            self.planes.append((shift, np.ascontiguousarray(packed).reshape(-1)))

    def __call__(self, x: Array, row_shift: Array, first: int, acc: Array) -> None:
        rows = -(-x.shape[0] // 4) * 4
        wide = np.empty(rows * self.pairs * 2, dtype=np.int16)
        widen(x, self.pairs * 2, wide)
        flat = acc.reshape(-1)
        for i, (shift, packed) in enumerate(self.planes):
            pair_products(wide, packed, self.bias, row_shift, first, shift, int(i > 0), rows, self.pairs * 2, flat)


@kernel
def widen(x, stride, out):
    """out[r * stride + c] = x[r, c] as int16, then zeros up to the stride.  x [rows, K], 8 bits."""
    rows, columns = x.shape
    for r in range(rows):
        source = x[r]
        target = out[r * stride : (r + 1) * stride]
        for c in range(columns):
            target[c] = source[c]
        for c in range(columns, stride):
            target[c] = 0


@kernel
def pair_products(x, packed, bias, row_shift, first, shift, more, rows, depth, flat):
    """One plane of PairDot: 4 rows by 32 outputs at a time.

    x int16 [rows * depth]; packed int16; bias int32 [padded]; row_shift int64 [L]; flat: the accumulators, int32
    [rows or more, padded] as one axis.  more: adds to them instead of to the bias.
    """
    padded = bias.shape[0]
    period = row_shift.shape[0]
    zero = v.splat(np.int32(0))
    for o in range(0, padded, 32):
        w0 = o * depth
        w1 = w0 + 16 * depth
        for r in range(0, rows, 4):
            a0, a1, a2, a3 = zero, zero, zero, zero
            b0, b1, b2, b3 = zero, zero, zero, zero
            x0 = r * depth
            x1 = x0 + depth
            x2 = x1 + depth
            x3 = x2 + depth
            for k in range(0, depth, 2):
                wa = w0 + k * 16
                wb = w1 + k * 16
                a0 = v.add_pair_products(a0, packed, wa, x, x0 + k)
                b0 = v.add_pair_products(b0, packed, wb, x, x0 + k)
                a1 = v.add_pair_products(a1, packed, wa, x, x1 + k)
                b1 = v.add_pair_products(b1, packed, wb, x, x1 + k)
                a2 = v.add_pair_products(a2, packed, wa, x, x2 + k)
                b2 = v.add_pair_products(b2, packed, wb, x, x2 + k)
                a3 = v.add_pair_products(a3, packed, wa, x, x3 + k)
                b3 = v.add_pair_products(b3, packed, wb, x, x3 + k)
            for i in range(4):
                if i == 0:
                    a, b = a0, b0
                elif i == 1:
                    a, b = a1, b1
                elif i == 2:
                    a, b = a2, b2
                else:
                    a, b = a3, b3
                left = v.splat(np.int32(row_shift[(first + r + i) % period] + shift))
                at = (r + i) * padded + o
                if more:
                    v.store_int32(flat, at, v.add(v.load_int32(flat, at), v.shl(a, left)))
                    v.store_int32(flat, at + 16, v.add(v.load_int32(flat, at + 16), v.shl(b, left)))
                else:
                    v.store_int32(flat, at, v.add(v.load_int32(bias, o), v.shl(a, left)))
                    v.store_int32(flat, at + 16, v.add(v.load_int32(bias, o + 16), v.shl(b, left)))
