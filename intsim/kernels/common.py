# mypy: allow-untyped-defs, allow-untyped-calls, allow-subclassing-any
"""What the kernels share: how they are compiled, and the arithmetic of SPEC section 2 as jitted functions.

Everything is int64 or int32.  Numba turns a uint64 with a signed literal, `/` and `math.sqrt` into floats: none of
these occurs, and a test inspects the compiled code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic as numba_intrinsic

from intsim.kernels.cache import cache_for

intrinsic: Any = numba_intrinsic  # its stub does not know what it returns

# A rounding mode as bits: 1 adds half a unit, 2 sends negative ties down, 4 sends ties to the even neighbour.
MODES = {"floor": 0, "half_up": 1, "half_away": 3, "half_even": 5}


def kernel(function: Callable[..., Any]) -> Any:
    """Marks a kernel: compiled when first called with given dtypes, without the GIL, kept on disk if possible."""
    jitted: Any = njit(nogil=True, boundscheck=False, error_model="numpy")(function)
    jitted._cache = cache_for(function)
    return jitted


@kernel
def round_shift(v, s, mode):
    """v / 2^s, rounded (SPEC 2).  v, s int64, -31 <= s <= 31, mode one of MODES; without a branch."""
    left = max(-s, 0)
    right = max(s, 0)
    v = v << left
    half = ((1 << right) >> 1) & -(mode & 1)
    # one less just where a tie must go down: negative (half_away), or where the floor is even (half_even)
    down = ((mode >> 1) & (v >> 63)) | ((mode >> 2) & ~(v >> right))
    return (v + half - (down & min(right, 1))) >> right


@kernel
def saturate(v, low, high):
    """v clamped to low .. high.  All int64."""
    return min(max(v, low), high)


@intrinsic
def leading_zeros(typing: Any, value: Any) -> Any:
    """Number of zeros above the highest 1 of an int64; 64 for 0."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.ctlz(args[0], ir.Constant(ir.IntType(1), 0))

    return types.int64(types.int64), generate


@kernel
def bit_length(v):
    """Number of bits of v >= 0, 0 for 0.  int64."""
    return 64 - leading_zeros(v)


ROOTS = 16  # that are found at a time


@kernel
def find_roots(values, roots):
    """roots[i] = the largest r with r*r <= values[i], bit by bit, of all at once.  int64 [ROOTS], values < 2^34."""
    for i in range(ROOTS):
        roots[i] = 0
    for place in range(16, -1, -1):
        for i in range(ROOTS):
            larger = (roots[i] | (1 << place)) & 0x1FFFF  # as it is anyway: LLVM then multiplies 32 by 32 bits
            roots[i] = larger if larger * larger <= values[i] else roots[i]


@kernel
def requantize_rows(acc, start, shift, row_shift, first, mode, low, high, narrow, out):
    """out[r, c] = requantize(acc[r, start + c], shift[c] + row_shift[(first + r) mod L]) (SPEC 2).

    acc int32 [rows or more, columns or more]; out [rows, C]; shift int32 [C]; row_shift int32 [L]; `first` is the
    token of row 0; low, high: range of the output.  narrow: no shift is negative, so that 32 bits are enough, because
    the proof of SPEC 7 includes the rounding constant.
    """
    rows, columns = out.shape
    period = row_shift.shape[0]
    low32, high32 = np.int32(low), np.int32(high)
    use = np.int32(0x7FFFFFFF) if mode & 1 else np.int32(0)  # 31 bits: 2^31 >> 1 is 2^30
    away = np.int32((mode >> 1) & 1)
    even = np.int32((mode >> 2) & 1)
    for r in range(rows):
        extra = row_shift[(first + r) % period]
        source = acc[r, start : start + columns]
        target = out[r]
        if narrow:
            for c in range(columns):
                v = source[c]
                s = np.int32(shift[c] + extra)
                half = np.int32(np.int32(np.int32(1) << (s & 31)) >> 1) & use
                down = np.int32(np.int32(away & np.int32(v >> 31)) | np.int32(even & ~np.int32(v >> (s & 31))))
                down = np.int32(down & min(s, np.int32(1)))
                v = np.int32(np.int32(np.int32(v + half) - down) >> (s & 31))
                target[c] = min(max(v, low32), high32)
        else:
            for c in range(columns):
                w = round_shift(np.int64(source[c]), np.int64(shift[c]) + np.int64(extra), mode)
                target[c] = saturate(w, low, high)
