# mypy: allow-untyped-defs
"""Narrow accumulators (SPEC 13): the operators whose accumulator wraps or saturates, step by step and in its order.

Plain loops, apart from the fast kernels.  Each counts the elements of its accumulator that are not the exact sum.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from intsim.arithmetic import limits
from intsim.kernels.base import Argument, In, Kernel, Out
from intsim.kernels.common import kernel, round_shift, saturate
from intsim.kernels.exp2 import exp2
from intsim.kernels.memory import address_of, fetch_add, int8_at, int16_at, int32_at, int64_at, uint8_at
from intsim.kernels.scan import Scan
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
)  # fmt: skip
from intsim.kernels.scan.traced import store_byte_or_word
from intsim.operators import KINDS, View
from intsim.program import Operator, Program

FULL, WRAP, SATURATE = 0, 1, 2
HOW = {None: FULL, "wrap": WRAP, "saturate": SATURATE}


class Narrow(Kernel):
    """What the kernels here share.

    overflows int64 [1 or 2]: elements of the accumulators at `registers` that were not the exact sum, over all runs.
    """

    registers: tuple[str, ...] = ("acc",)

    def __init__(self, program: Program, op: Operator):
        super().__init__(program, op)
        self.overflows = np.zeros(len(self.registers), dtype=np.int64)

    def register(self, port: str) -> list[Argument]:
        """[bits, how, bytes, address of the count] of an accumulator."""
        declared = self.tensor(port)
        count = address_of(self.overflows) + 8 * self.registers.index(port)
        return [declared.bits, HOW[declared.overflow], declared.dtype.itemsize, count]

    def inner(self) -> Collection[str]:
        return self.registers


@kernel
def fit(v, bits, how):
    """A value in a register: as it is, modulo 2^bits, or clamped.  int64."""
    if how == FULL:
        return v
    half = np.int64(1) << (bits - 1)
    if how == WRAP:
        return ((v + half) & (2 * half - 1)) - half
    return saturate(v, -half, half - 1)


@kernel
def store(address, i, size, value):
    """An integer of 1, 2 or 4 bytes."""
    if size == 1:
        int8_at(address, i + 1)[i] = value
    elif size == 2:
        int16_at(address, i + 1)[i] = value
    else:
        int32_at(address, i + 1)[i] = value


class Dot(Narrow):
    """A sum over inputs: `linear` and `patch_embed`.  Weights are laid out input by input, in the order of addition."""

    def lay_out(self, x: Argument, order: list[int], column_shift: np.ndarray, row_shift: np.ndarray) -> None:
        """column_shift: left shift of each input (of its own index); row_shift [L or 1]: of each token."""
        v = View(self.program, self.op)
        weight, shift = self.constant("weight", np.int64), self.constant("shift", np.int64)
        bound = KINDS[self.op.kind].bounds(v)["acc"]  # of the exact sum, and so of every partial sum
        wide = int(max(-bound.low.min(), bound.high.max()) >= 1 << 31)
        dtype = np.int64 if wide else np.int32
        segments = self.segments()
        laid = np.ascontiguousarray(weight.T[order], dtype=dtype)
        self.numbers = [
            *(x, len(order), len(weight), wide),
            *(self.keep(np.array(order, dtype=np.int64)), self.keep(laid)),
            *(self.keep(np.ascontiguousarray(column_shift, dtype=np.int64)), self.keep(row_shift), len(row_shift)),
            *(self.keep(self.constant("bias", np.int64)), self.keep(shift), self.mode),
            *(Out("acc"), *self.register("acc"), len(segments)),
        ]
        for port, start, stop in segments:
            out = self.tensor(port)
            self.numbers += [Out(port), out.dtype.itemsize, start, stop, *limits(out.bits, out.signed)]
        self.row_cost = 50 + weight.size // 4
        self.scratch = 8 * (len(order) + 3 * len(weight))

    def segments(self) -> list[tuple[str, int, int]]:
        raise NotImplementedError


INPUTS, OUTPUTS, WIDE, ORDER, WEIGHT, COLUMN_SHIFT, ROW_SHIFT, PERIOD, BIAS, SHIFT, DOT_MODE = range(1, 12)
DOT_ACC, BITS, HOW_, SIZE, COUNT, SEGMENTS = range(12, 18)
SEGMENT = 6


class NarrowLinear(Dot):
    """As `Linear`."""

    code = 10
    aligned = ("x",)

    def __init__(self, program: Program, op: Operator):
        super().__init__(program, op)
        x = self.input("x")
        self.tokens, width = x.shape
        group = x.group("channel")
        order = list(range(width))
        if group is not None:
            groups = program.arrays[group.index or ""]
            order.sort(key=lambda c: int(groups[c]))  # stable: channels ascending in a group
        row_shift = program.shifts(x.name, "token") if x.group("token") is not None else np.zeros(1, dtype=np.int64)
        self.lay_out(In("x"), order, program.shifts(x.name, "channel"), np.array(row_shift, dtype=np.int64))

    def segments(self) -> list[tuple[str, int, int]]:
        return [(s["port"], s["start"], s["stop"]) for s in self.op.attributes["segments"]]


class NarrowPatchEmbed(Dot):
    """As `PatchEmbed`."""

    code = 11

    def __init__(self, program: Program, op: Operator):
        super().__init__(program, op)
        height, width, channels = self.input("image").shape
        patch, stride = int(op.attributes["patch"]), int(op.attributes["stride"])
        across = (width - patch) // stride + 1
        self.tokens = ((height - patch) // stride + 1) * across
        inputs = channels * patch * patch
        zeros = np.zeros(inputs, dtype=np.int64)
        self.lay_out(In("image"), list(range(inputs)), zeros, zeros[:1].copy())
        self.numbers += [patch, stride, across, self.tokens, height, width, channels]

    def segments(self) -> list[tuple[str, int, int]]:
        return [("out", 0, self.tensor("out").shape[1])]


@kernel
def narrow_linear(a, start, stop, scratch):
    """Rows start .. stop - 1 of all images.  a: NarrowLinear.arguments()."""
    inputs = a[INPUTS]
    values = int64_at(scratch, inputs)
    for r in range(start, stop):
        x = int8_at(a[0] + r * inputs, inputs)
        for i in range(inputs):
            values[i] = x[i]
        dot_row(a, values, r, scratch + 8 * a[INPUTS])


@kernel
def narrow_patch_embed(a, start, stop, scratch):
    """The patches start .. stop - 1 of all images.  a: NarrowPatchEmbed.arguments()."""
    values = int64_at(scratch, a[INPUTS])
    patch, stride, across, patches, height, width, channels = a[-7:]
    for r in range(start, stop):
        image, p = divmod(r, patches)
        pixels = uint8_at(a[0] + image * height * width * channels, height * width * channels)
        corner = (p // across * stride * width + p % across * stride) * channels
        k = 0
        for ch in range(channels):
            for i in range(patch):
                for j in range(patch):
                    values[k] = np.int64(pixels[corner + (i * width + j) * channels + ch]) - 128
                    k += 1
        dot_row(a, values, r, scratch + 8 * a[INPUTS])


@kernel
def dot_row(a, values, r, scratch):
    """Row r of all images: sums, count, requantization.  values int64 [I]."""
    outputs = a[OUTPUTS]
    bias, acc = int64_at(a[BIAS], outputs), int64_at(scratch, outputs)
    rest, more = scratch + 8 * outputs, scratch + 16 * outputs
    if a[WIDE]:
        acc64 = int64_at(more, outputs)
        wrong = sums(a, values, r, int64_at(a[WEIGHT], a[INPUTS] * outputs), bias, int64_at(rest, outputs), acc64)
        for o in range(outputs):
            acc[o] = acc64[o]
    else:
        acc32 = int32_at(more, outputs)
        wrong = sums(a, values, r, int32_at(a[WEIGHT], a[INPUTS] * outputs), bias, int32_at(rest, outputs), acc32)
        for o in range(outputs):
            acc[o] = acc32[o]
    if wrong:
        fetch_add(int64_at(a[COUNT], 1), 0, wrong)
    if a[DOT_ACC]:
        for o in range(outputs):
            store(a[DOT_ACC], r * outputs + o, a[SIZE], acc[o])
    shift = int64_at(a[SHIFT], outputs)
    for s in range(a[SEGMENTS]):
        at = SEGMENTS + 1 + s * SEGMENT
        out, size, start, stop, low, high = a[at : at + SEGMENT]
        if out:
            for o in range(start, stop):
                y = saturate(round_shift(acc[o], shift[o], a[DOT_MODE]), low, high)
                store(out, r * (stop - start) + o - start, size, y)


@kernel
def sums(a, values, r, weight, bias, exact, acc):
    """Fills `acc` with the narrow sums; returns how many differ from the exact ones.  exact, acc: of the weights' type.

    That type holds every exact partial sum, and a clamped one is nearer to 0.
    """
    outputs, bits, how = a[OUTPUTS], a[BITS], a[HOW_]
    order, column_shift = int64_at(a[ORDER], a[INPUTS]), int64_at(a[COLUMN_SHIFT], a[INPUTS])
    row_shift = int64_at(a[ROW_SHIFT], a[PERIOD])[r % a[PERIOD]]
    kind = exact.dtype.type
    low, high = kind(-(np.int64(1) << (bits - 1))), kind((np.int64(1) << (bits - 1)) - 1)
    for o in range(outputs):
        exact[o] = bias[o]
        acc[o] = min(max(exact[o], low), high)
    for i in range(a[INPUTS]):
        c = order[i]
        x = kind(values[c] << (column_shift[c] + row_shift))
        row = weight[i * outputs : (i + 1) * outputs]
        if x == 0:
            continue
        if how == SATURATE:
            for o in range(outputs):
                product = kind(row[o] * x)
                exact[o] = kind(exact[o] + product)
                acc[o] = min(max(kind(acc[o] + product), low), high)
        else:
            for o in range(outputs):
                exact[o] = kind(exact[o] + kind(row[o] * x))
    wrong = 0
    for o in range(outputs):
        if how == WRAP:
            acc[o] = fit(np.int64(exact[o]), bits, WRAP)
        wrong += acc[o] != exact[o]
    return wrong


class NarrowConv1d(Narrow):
    """As `Conv1d`."""

    code = 12

    def __init__(self, program: Program, op: Operator):
        super().__init__(program, op)
        out = self.tensor("out")
        self.tokens, width = out.shape
        weight = self.constant("weight", np.int64)
        self.numbers = [
            *(In("x"), Out("acc"), Out("out"), self.tokens, width, int(op.attributes["reverse"]), weight.shape[1]),
            *(self.keep(weight), self.keep(self.constant("bias", np.int64))),
            self.keep(self.constant("shift", np.int64)),
            *(self.mode, *limits(out.bits, out.signed), *self.register("acc")),
        ]
        self.row_cost = width * weight.shape[1]


@kernel
def narrow_conv1d(a, start, stop):
    """Rows start .. stop - 1 of all images.  a: NarrowConv1d.arguments()."""
    x, acc_out, out, tokens, width, reverse, taps, weight_at, bias_at, shift_at, mode, low, high = a[:13]
    bits, how, size, count = a[13:17]
    weight = int64_at(weight_at, width * taps)
    bias, shift = int64_at(bias_at, width), int64_at(shift_at, width)
    wrong = 0
    for r in range(start, stop):
        image, t = divmod(r, tokens)
        for c in range(width):
            exact = bias[c]
            acc = fit(exact, bits, how)
            for j in range(max(0, taps - 1 - t), taps):
                token = t - (taps - 1) + j
                if reverse:
                    token = tokens - 1 - token
                at = (image * tokens + token) * width + c
                product = weight[c * taps + j] * np.int64(int8_at(x, at + 1)[at])
                exact += product
                acc = fit(acc + product, bits, how)
            wrong += acc != exact
            if acc_out:
                store(acc_out, r * width + c, size, acc)
            if out:
                store(out, r * width + c, 1, saturate(round_shift(acc, shift[c], mode), low, high))
    if wrong:
        fetch_add(int64_at(count, 1), 0, wrong)


class NarrowGate(Narrow):
    """As `Gate`."""

    code = 13
    aligned = ("y", "g")

    def __init__(self, program: Program, op: Operator):
        super().__init__(program, op)
        out = self.tensor("out")
        self.tokens, width = out.shape
        left = program.shifts(self.op.inputs["y"], "token") + int(op.attributes["y_align"])
        left_b = program.shifts(self.op.inputs["y_b"], "token") + int(op.attributes["y_b_align"])
        row_shift = np.array(self.row_shift("out"), dtype=np.int64)
        self.numbers = [
            *(In("y"), In("y_b"), In("g"), Out("acc"), Out("out"), self.tokens, width),
            *(self.keep(np.ascontiguousarray(left)), self.keep(np.ascontiguousarray(left_b))),
            *(self.keep(self.constant("shift", np.int64)), self.keep(row_shift), len(row_shift)),
            *(self.mode, *limits(out.bits, out.signed), *self.register("acc")),
        ]
        self.row_cost = width * 2


@kernel
def narrow_gate(a, start, stop):
    """Rows start .. stop - 1 of all images.  a: NarrowGate.arguments()."""
    y, y_b, g, acc_out, out, tokens, width, left_at, left_b_at, shift_at, row_shift_at, period = a[:12]
    mode, low, high, bits, how, size, count = a[12:19]
    left, left_b = int64_at(left_at, tokens), int64_at(left_b_at, tokens)
    shift, row_shift = int64_at(shift_at, width), int64_at(row_shift_at, period)
    wrong = 0
    for r in range(start, stop):
        t = r % tokens
        s = tokens - 1 - t
        forward, backward = int8_at(y + r * width, width), int8_at(y_b + (r - t + s) * width, width)
        factors = int8_at(g + r * width, width)
        for c in range(width):
            one, other = np.int64(forward[c]) << left[t], np.int64(backward[c]) << left_b[s]
            factor = np.int64(factors[c])
            exact = (one + other) * factor
            if how == SATURATE:
                acc = fit(fit(fit(one, bits, how) + other, bits, how) * factor, bits, how)
            else:
                acc = fit(exact, bits, how)
            wrong += acc != exact
            if acc_out:
                store(acc_out, r * width + c, size, acc)
            if out:
                total = shift[c] + row_shift[t % period]
                store(out, r * width + c, 1, saturate(round_shift(acc, total, mode), low, high))
    if wrong:
        fetch_add(int64_at(count, 1), 0, wrong)


class NarrowScan(Scan, Narrow):
    """As `Scan`, of which it has the arguments and, behind them, those of its two accumulators."""

    code = 14
    registers = ("acc", "y_acc")

    def __init__(self, program: Program, op: Operator):
        super().__init__(program, op)
        self.numbers = [*self.numbers, *self.register("acc"), *self.register("y_acc")]
        self.row_cost = self.tokens * self.tensor("h").shape[2] * 8


@kernel
def narrow_scan(a, start, stop):
    """SPEC 5.7 for the channels start .. stop - 1 of all images, with SPEC 13's accumulators."""
    images, tokens, channels, states = a[IMAGES], a[TOKENS], a[CHANNELS], a[STATES]
    padded = (states + 15) // 16 * 16
    m, mode, h_low, h_high = a[M], a[MODE], a[H_LOW], a[H_HIGH]
    bits, how, size, count, y_bits, y_how, y_size, y_count = a[-8:]
    delta = uint8_at(a[DELTA], images * tokens * channels)
    u = int8_at(a[U], images * tokens * channels)
    b_in, c_in = int8_at(a[B], images * tokens * states), int8_at(a[C], images * tokens * states)
    a_of, fraction = int32_at(a[A], channels * padded), int64_at(a[FRACTION], channels)
    rom, d_of = int32_at(a[ROM], 129), int32_at(a[D], channels)
    b_shift, token_shift = int32_at(a[B_SHIFT], channels), int64_at(a[TOKEN_SHIFT], tokens)
    y_shift, y_row_shift = int32_at(a[Y_SHIFT], channels), int64_at(a[Y_ROW_SHIFT], tokens)
    table = np.zeros((256, states), dtype=np.int64)  # A-bar of one channel by code of delta
    state, b = np.empty(states, dtype=np.int64), np.empty(states, dtype=np.int64)
    decayed, acc = np.empty(states, dtype=np.int64), np.empty(states, dtype=np.int64)
    cubes = a[ABAR] != 0 or a[B_OUT] != 0 or a[ACC] != 0 or a[H] != 0
    wrong = y_wrong = 0
    for c in range(start, stop):
        for code in range(256):
            for n in range(states):
                table[code, n] = exp2(code * np.int64(a_of[c * padded + n]), fraction[c], rom, m, mode)
        for i in range(images):
            for n in range(states):
                state[n] = 0
            for t in range(tokens):
                row = i * tokens + t
                left = token_shift[t]
                step = left - token_shift[max(t - 1, 0)]
                at = row * channels + c
                factor = np.int64(u[at])
                dx = np.int64(delta[at]) * factor
                shift = np.int64(b_shift[c]) + left
                abar = table[np.int64(delta[at])]
                for n in range(states):
                    b[n] = saturate(round_shift(dx * np.int64(b_in[row * states + n]), shift, mode), -LIMIT, LIMIT)
                    decayed[n] = abar[n] * saturate(round_shift(state[n], step, mode), h_low, h_high)
                sum_of_two(b, decayed, acc, bits, how)
                y_exact = np.int64(d_of[c]) * factor
                y_acc = fit(y_exact, y_bits, y_how)
                for n in range(states):
                    wrong += acc[n] != b[n] + decayed[n]
                    state[n] = saturate(round_shift(acc[n], m, mode), h_low, h_high)
                    decayed[n] = (state[n] * np.int64(c_in[row * states + n])) << left
                    y_exact += decayed[n]
                if y_how == SATURATE:
                    for n in range(states):
                        y_acc = fit(y_acc + decayed[n], y_bits, SATURATE)
                else:
                    y_acc = fit(y_exact, y_bits, y_how)
                y_wrong += y_acc != y_exact
                for n in range(states if cubes else 0):
                    cell = at * states + n
                    if a[ABAR]:
                        store_byte_or_word(a[ABAR], cell, a[ABAR_SIZE], abar[n])
                    if a[B_OUT]:
                        int32_at(a[B_OUT], cell + 1)[cell] = b[n]
                    if a[ACC]:
                        store(a[ACC], cell, size, acc[n])
                    if a[H]:
                        store_byte_or_word(a[H], cell, a[H_SIZE], state[n])
                if a[Y]:
                    total = np.int64(y_shift[c]) + y_row_shift[t]
                    int8_at(a[Y], at + 1)[at] = saturate(round_shift(y_acc, total, mode), a[Y_LOW], a[Y_HIGH])
                if a[DX]:
                    int16_at(a[DX], at + 1)[at] = dx
                if a[Y_ACC]:
                    store(a[Y_ACC], at, y_size, y_acc)
    if wrong:
        fetch_add(int64_at(count, 1), 0, wrong)
    if y_wrong:
        fetch_add(int64_at(y_count, 1), 0, y_wrong)


@kernel
def sum_of_two(first, second, out, bits, how):
    """first + second in narrow accumulators, element by element.  int64 [N]."""
    half = np.int64(1) << (bits - 1)
    n = first.shape[0]
    if how == FULL:
        for i in range(n):
            out[i] = first[i] + second[i]
    elif how == WRAP:
        for i in range(n):
            out[i] = ((first[i] + second[i] + half) & (2 * half - 1)) - half
    else:
        for i in range(n):
            out[i] = saturate(saturate(first[i], -half, half - 1) + second[i], -half, half - 1)


NARROW: dict[str, type[Narrow]] = {
    "linear": NarrowLinear,
    "patch_embed": NarrowPatchEmbed,
    "conv1d": NarrowConv1d,
    "gate": NarrowGate,
    "scan": NarrowScan,
}
