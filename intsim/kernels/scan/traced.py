# mypy: allow-untyped-defs
"""The scan as SPEC 5.7 says it, with all its tensors."""

from __future__ import annotations

import numpy as np

from intsim.kernels.common import kernel, round_shift, saturate
from intsim.kernels.exp2 import exp2
from intsim.kernels.memory import int8_at, int16_at, int32_at, int64_at, uint8_at
from intsim.kernels.scan.arguments import (
    ABAR,
    ABAR_SIZE,
    ACC,
    B_OUT,
    B_SHIFT,
    CHANNELS,
    DELTA,
    DX,
    FRACTION,
    H_HIGH,
    H_LOW,
    H_SIZE,
    IMAGES,
    LIMIT,
    MODE,
    ROM,
    STATES,
    TOKEN_SHIFT,
    TOKENS,
    Y_ACC,
    Y_HIGH,
    Y_LOW,
    Y_ROW_SHIFT,
    Y_SHIFT,
    A,
    B,
    C,
    D,
    H,
    M,
    U,
    Y,
)


@kernel
def store_byte_or_word(address, i, size, value):
    if size == 1:
        int8_at(address, i + 1)[i] = value
    else:
        int16_at(address, i + 1)[i] = value


@kernel
def scan_traced(a, start, stop):
    """SPEC 5.7 for the channels start .. stop - 1 of all images, with every output that is wanted."""
    images, tokens, channels, states = a[IMAGES], a[TOKENS], a[CHANNELS], a[STATES]
    padded = (states + 15) // 16 * 16
    m, mode, h_low, h_high = a[M], a[MODE], a[H_LOW], a[H_HIGH]
    delta = uint8_at(a[DELTA], images * tokens * channels)
    u = int8_at(a[U], images * tokens * channels)
    b_in, c_in = int8_at(a[B], images * tokens * states), int8_at(a[C], images * tokens * states)
    a_of, fraction = int32_at(a[A], channels * padded), int64_at(a[FRACTION], channels)
    rom = int32_at(a[ROM], 129)
    b_shift, token_shift = int32_at(a[B_SHIFT], channels), int64_at(a[TOKEN_SHIFT], tokens)
    h = np.empty((stop - start, states), dtype=np.int64)
    for i in range(images):
        h[:] = 0
        for t in range(tokens):
            row = i * tokens + t
            left = token_shift[t]
            step = left - token_shift[max(t - 1, 0)]
            for c in range(start, stop):
                at = row * channels + c
                code = np.int64(delta[at])
                factor = np.int64(u[at])
                dx = code * factor
                shift = np.int64(b_shift[c]) + left
                total = np.int64(0)
                for n in range(states):
                    abar = exp2(code * np.int64(a_of[c * padded + n]), fraction[c], rom, m, mode)
                    b = saturate(round_shift(dx * np.int64(b_in[row * states + n]), shift, mode), -LIMIT, LIMIT)
                    previous = saturate(round_shift(h[c - start, n], step, mode), h_low, h_high)
                    acc = abar * previous + b
                    new = saturate(round_shift(acc, m, mode), h_low, h_high)
                    h[c - start, n] = new
                    total += new * np.int64(c_in[row * states + n])
                    cell = at * states + n
                    if a[ABAR]:
                        store_byte_or_word(a[ABAR], cell, a[ABAR_SIZE], abar)
                    if a[B_OUT]:
                        int32_at(a[B_OUT], cell + 1)[cell] = b
                    if a[ACC]:
                        int32_at(a[ACC], cell + 1)[cell] = acc
                    if a[H]:
                        store_byte_or_word(a[H], cell, a[H_SIZE], new)
                y_acc = np.int64(int32_at(a[D], channels)[c]) * factor + (total << left)
                if a[Y]:
                    shift = np.int64(int32_at(a[Y_SHIFT], channels)[c]) + int64_at(a[Y_ROW_SHIFT], tokens)[t]
                    y = saturate(round_shift(y_acc, shift, mode), a[Y_LOW], a[Y_HIGH])
                    int8_at(a[Y], at + 1)[at] = y
                if a[DX]:
                    int16_at(a[DX], at + 1)[at] = dx
                if a[Y_ACC]:
                    int32_at(a[Y_ACC], at + 1)[at] = y_acc
