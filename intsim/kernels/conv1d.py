# mypy: allow-untyped-defs
"""conv1d (SPEC 5.5): causal, depthwise, and the reversal of the backward branch."""

from __future__ import annotations

import numpy as np

from intsim.kernels import cpu
from intsim.kernels import vector as v
from intsim.kernels.base import In, Kernel, Out, pad
from intsim.kernels.common import kernel
from intsim.kernels.memory import int8_at, int32_at
from intsim.kernels.requantize import BYTE, DOUBLE, Requantize, half_lanes, requantize_lanes, store_lanes
from intsim.program import Array, Operator, Program

BYTES = 64  # channels in a block
HAS_BYTES = cpu.AVX512 <= cpu.features()


class Conv1d(Kernel):
    """Input x [L, E] in token order; `acc` int32 [L, E], `out` [L, E] in processing order."""

    code = 6
    scratch = 64

    def __init__(self, program: Program, op: Operator):
        super().__init__(program, op)
        weight = self.constant("weight", np.int8)
        self.tokens, self.width = self.tensor("out").shape
        step = Requantize(self.tensor("out"), self.constant("shift", np.int64), self.row_shift("out"), self.mode)
        taps = weight.shape[1]
        padded = np.zeros((taps, len(step.shift)), dtype=np.int8)
        padded[:, : self.width] = weight.T
        bias = pad(self.constant("bias", np.int32), v.LANES)
        fast = self.path != "plain" and self.mode <= 1 and step.narrow and taps <= 4
        wide = self.path in cpu.WIDE
        block = BYTES if wide else v.LANES
        whole = self.width // block * block if fast else 0  # channels in blocks; the rest goes 16 at a time
        # In a block lane 4q + i of vector k holds the channel 16q + 4k + i, a byte of it for each tap.
        order = np.arange(BYTES).reshape(4, 4, 4).transpose(1, 0, 2).reshape(-1) if wide else np.array(v.TURNS)
        order = (np.arange(0, whole, block)[:, None] + order).reshape(-1)
        pieces: Array = np.zeros((whole, 4), dtype=np.int8)
        pieces[:, 4 - min(taps, 4) :] = weight[order, max(taps - 4, 0) :]
        rounded = (bias.astype(np.int64) + step.rounding)[order]
        if wide:
            rounded -= 128 * pieces.astype(np.int64).sum(axis=1)  # the inputs are x + 128
        else:  # words, of two taps after each other: first all of the first two
            pieces = pieces.reshape(-1, 16, 2, 2).transpose(0, 2, 1, 3).astype(np.int16)
        self.numbers = [
            *(In("x"), Out("acc"), Out("out"), self.tokens, self.width, int(op.attributes["reverse"]), taps),
            *(self.keep(padded), self.keep(bias), self.keep(step.shift)),
            *(self.mode, step.low, step.high, step.narrow, whole, self.keep(pieces.reshape(-1))),
            *(self.keep(rounded.astype(np.int32)), self.keep(step.shift[order]), int(wide)),
        ]
        self.row_cost = self.width // (32 if fast else 2)

    def inner(self) -> tuple[str, ...]:
        return ("acc",)


@kernel
def conv1d(a, start, stop, scratch):
    """Rows start .. stop - 1 of all images.  a: Conv1d.arguments()."""
    x, acc_out, out, tokens, width, reverse, taps, weight_at, bias_at, shift_at, mode, low, high, narrow = a[:14]
    whole = 0
    if not acc_out:
        whole = a[14]
        if HAS_BYTES:  # known when it is compiled
            if a[18]:
                convolve_bytes(a, start, stop, scratch)
        if not a[18]:
            convolve_words(a, start, stop, scratch)
    padded = (width + 15) // 16 * 16
    weight = int8_at(weight_at, taps * padded)
    bias, shift = int32_at(bias_at, padded), int32_at(shift_at, padded)
    edge = int8_at(scratch, 16)
    for c in range(whole, padded, 16):
        lanes = min(16, width - c)
        s = v.load_int32(shift, c)
        half = half_lanes(v.maximum(s, v.splat(np.int32(0))), mode)
        first = v.load_int32(bias, c)
        for r in range(start, stop):
            image, t = divmod(r, tokens)
            acc = first
            for j in range(max(0, taps - 1 - t), taps):
                token = t - (taps - 1) + j
                if reverse:
                    token = tokens - 1 - token
                row = int8_at(x + (image * tokens + token) * width, width)
                if lanes == 16:
                    source = v.load_int8(row, c)
                else:
                    for i in range(lanes):
                        edge[i] = row[c + i]
                    source = v.load_int8(edge, 0)
                acc = v.add(acc, v.mul(v.load_int8(weight, j * padded + c), source))
            place = r * width + c
            if acc_out:
                store_lanes(acc_out + 4 * place, DOUBLE, lanes, acc)
            if out:
                store_lanes(out + place, BYTE, lanes, requantize_lanes(acc, s, half, mode, low, high, narrow))


@kernel
def convolve_bytes(a, start, stop, scratch):
    """The same for the channels in whole blocks of BYTES and at most 4 taps, with byte products (vector.py)."""
    x, out, tokens, width, reverse, low, high = a[0], a[2], a[3], a[4], a[5], a[11], a[12]
    whole, weight_at, bias_at, shift_at = a[14:18]
    weight, bias, shift = int8_at(weight_at, whole * 4), int32_at(bias_at, whole), int32_at(shift_at, whole)
    nothing = int8_at(scratch, BYTES)
    nothing[:] = 0
    flip = v.splat(np.int32(-2139062144))  # 0x80 in each byte
    for c in range(0, whole, BYTES):
        w0, w1 = v.load_bytes(weight, 4 * c), v.load_bytes(weight, 4 * c + 64)
        w2, w3 = v.load_bytes(weight, 4 * c + 128), v.load_bytes(weight, 4 * c + 192)
        b0, b1 = v.load_int32(bias, c), v.load_int32(bias, c + 16)
        b2, b3 = v.load_int32(bias, c + 32), v.load_int32(bias, c + 48)
        s0, s1 = v.load_int32(shift, c), v.load_int32(shift, c + 16)
        s2, s3 = v.load_int32(shift, c + 32), v.load_int32(shift, c + 48)
        for r in range(start, stop):
            t = r % tokens
            newest = x + (r - t + (tokens - 1 - t if reverse else t)) * width + c
            step = -width if reverse else width
            x0 = v.load_bytes(int8_at(newest - 3 * step if t >= 3 else scratch, BYTES), 0)
            x1 = v.load_bytes(int8_at(newest - 2 * step if t >= 2 else scratch, BYTES), 0)
            x2 = v.load_bytes(int8_at(newest - step if t >= 1 else scratch, BYTES), 0)
            x3 = v.load_bytes(int8_at(newest, BYTES), 0)
            x0, x1, x2, x3 = v.bit_xor(x0, flip), v.bit_xor(x1, flip), v.bit_xor(x2, flip), v.bit_xor(x3, flip)
            low_01, high_01 = v.unpack_low_bytes(x0, x1), v.unpack_high_bytes(x0, x1)
            low_23, high_23 = v.unpack_low_bytes(x2, x3), v.unpack_high_bytes(x2, x3)
            y0 = v.shift_right(v.add_byte_products(b0, v.unpack_low_words(low_01, low_23), w0), s0)
            y1 = v.shift_right(v.add_byte_products(b1, v.unpack_high_words(low_01, low_23), w1), s1)
            y2 = v.shift_right(v.add_byte_products(b2, v.unpack_low_words(high_01, high_23), w2), s2)
            y3 = v.shift_right(v.add_byte_products(b3, v.unpack_high_words(high_01, high_23), w3), s3)
            y = v.clamp_bytes(v.pack_bytes(v.pack_words(y0, y1), v.pack_words(y2, y3)), low, high)
            v.store_bytes(int8_at(out + r * width + c, BYTES), 0, y)


@kernel
def convolve_words(a, start, stop, scratch):
    """The same for the channels in whole blocks of 16, with products of words (vector.py)."""
    x, out, tokens, width, reverse, low, high = a[0], a[2], a[3], a[4], a[5], a[11], a[12]
    whole, weight_at, bias_at, shift_at = a[14:18]
    weight, bias, shift = int32_at(weight_at, whole * 2), int32_at(bias_at, whole), int32_at(shift_at, whole)
    nothing = int8_at(scratch, 16)
    nothing[:] = 0
    step = -width if reverse else width
    for c in range(0, whole, 16):
        w01, w23 = v.load_int32(weight, 2 * c), v.load_int32(weight, 2 * c + 16)
        first, count = v.load_int32(bias, c), v.load_int32(shift, c)
        for r in range(start, stop):
            t = r % tokens
            newest = x + (r - t + (tokens - 1 - t if reverse else t)) * width + c
            x01 = v.load_turns(newest - 3 * step if t >= 3 else scratch, newest - 2 * step if t >= 2 else scratch)
            x23 = v.load_turns(newest - step if t >= 1 else scratch, newest)
            acc = v.add_pairs(v.add_pairs(first, x01, w01), x23, w23)
            v.store_turns(out + r * width + c, v.shift_right(acc, count), low, high)
