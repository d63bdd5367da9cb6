# mypy: allow-untyped-defs
"""scan (SPEC 5.7): the selective scan.

Two kernels give the same integers.  `scan_traced` is SPEC 5.7 line by line in 64 bits and can store every internal
tensor; it also runs what the fast one cannot.  `scan_fast` makes only `y`: 16 states in a vector, a block of channels
for each token, so that consecutive updates do not wait for each other, and rows of A-bar kept for each (channel,
delta code) that has occurred.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from intsim.arithmetic import limits
from intsim.kernels import vector as v
from intsim.kernels.base import Array, Kernel, Workers, signed
from intsim.kernels.common import kernel, round_shift, saturate
from intsim.kernels.exp2 import exp2, exp2_row
from intsim.program import Operator, Program

BLOCK = 32  # channels in a block
LIMIT = (1 << 30) - 1  # b is clamped to -LIMIT .. LIMIT
# Largest left shift of dx * B that cannot reach LIMIT: 255 * 128 * 128 * 2^8 < 2^30 - 1.
HARMLESS_LEFT = 8
LARGEST_LEFT = 30  # of the fast kernel

# How scan_traced stores the internal tensors; the engine converts to the declared container.
STORED = {"dx": np.int16, "abar": np.uint16, "b": np.int32, "acc": np.int32, "h": np.int16, "y_acc": np.int32}


class Scan(Kernel):
    """Inputs delta, u [L, E], B, C [L, N]; `y` [L, E].

    If wanted `dx`, `y_acc` [L, E] and `abar`, `b`, `acc`, `h` [L, E, N].
    """

    def __init__(self, program: Program, op: Operator):
        super().__init__(program, op)
        a = self.constant("A", np.int32)
        self.channels, self.states = a.shape
        self.padded = -(-self.states // v.LANES) * v.LANES
        self.a = np.zeros((self.channels, self.padded), dtype=np.int32)
        self.a[:, : self.states] = a
        self.a_flat = self.a.reshape(-1)
        self.fraction = self.constant("A_fraction", np.int64)
        self.rom = self.constant("exp2_rom", np.int32)
        self.d = self.constant("D", np.int32)
        self.b_shift = self.constant("b_shift", np.int64)
        self.token_shift = self.constant("state_token_shift", np.int64)
        self.y_shift = self.constant("y_shift", np.int64)
        self.y_row_shift = np.broadcast_to(self.row_shift("y"), self.token_shift.shape).copy()
        h, y = self.tensor("h"), self.tensor("y")
        ranges = (*limits(h.bits, h.signed), *limits(y.bits, y.signed))
        self.numbers = (int(op.attributes["abar_fraction"]), self.mode, *ranges)
        self.fast = (
            int(self.b_shift.min() + self.token_shift.min()) >= -LARGEST_LEFT
            and self.rom.min() >= 0
            and self.rom.max() <= 1 << 17
        )
        self.clamps = int(self.b_shift.min() + self.token_shift.min() < -HARMLESS_LEFT)

    def run(self, workers: Workers, inputs: Mapping[str, Array], wanted: Collection[str]) -> dict[str, Array]:
        batch, tokens, channels = inputs["u"].shape
        arrays = [inputs[port] for port in ("delta", "u", "B", "C")]
        constants = (
            self.fraction, self.rom, self.d, self.b_shift, self.token_shift, self.y_shift, self.y_row_shift
        )  # fmt: skip
        cost = batch * tokens * channels * self.states
        y = self.empty("y", batch)
        extra = {port for port in wanted if port in STORED}
        if extra or not self.fast:
            made = {port: self._store(port, batch, port in extra) for port in STORED}
            keep = [int(port in extra) for port in STORED]

            def traced(start: int, stop: int) -> None:
                scan_traced(*arrays, self.a, *constants, *self.numbers, *made.values(), *keep, start, stop, signed(y))

            workers.split(channels, cost * 4, traced)
            result = {port: made[port].astype(self.tensor(port).dtype, copy=False) for port in extra}
            return {**result, "y": y}

        blocks = -(-channels // BLOCK)
        parts = 1 if blocks % workers.threads == 0 or blocks >= 4 * workers.threads else min(workers.threads, batch)

        def fast(start: int, stop: int) -> None:
            table = np.empty(BLOCK * 256 * self.padded, dtype=np.uint16)
            for task in range(start, stop):
                part, block = divmod(task, blocks)
                images = slice(batch * part // parts, batch * (part + 1) // parts)
                here = slice(block * BLOCK, (block + 1) * BLOCK)
                scan_fast(
                    *(array[images] for array in arrays), self.a_flat, *constants, *self.numbers,
                    self.clamps, table, here.start, min(here.stop, channels), signed(y)[images],
                )  # fmt: skip

        workers.split(blocks * parts, cost // 2, fast)
        return {"y": y}

    def _store(self, port: str, batch: int, wanted: bool) -> Array:
        shape = self.tensor(port).shape
        return np.empty((batch, *shape) if wanted else (0,) * (1 + len(shape)), dtype=STORED[port])


@kernel
def scan_traced(
    delta, u, b_in, c_in, a, fraction, rom, d, b_shift, token_shift, y_shift, y_row_shift,
    m, mode, h_low, h_high, y_low, y_high, dx_out, abar_out, b_out, acc_out, h_out, y_acc_out,
    keep_dx, keep_abar, keep_b, keep_acc, keep_h, keep_y_acc, start, stop, y_out,
):  # fmt: skip
    """SPEC 5.7 for the channels start .. stop - 1 of all images.

    delta uint8, u int8 [batch, L, E]; b_in, c_in int8 [batch, L, N]; a int32 [E, N or more]; the other constants as in
    the SPEC.  *_out as in STORED, filled where keep_* is 1, otherwise empty; y_out int8.
    """
    batch, tokens, _ = u.shape
    states = b_in.shape[2]
    h = np.empty((stop - start, states), dtype=np.int64)
    for i in range(batch):
        h[:] = 0
        for t in range(tokens):
            left = token_shift[t]
            step = left - token_shift[max(t - 1, 0)]
            for c in range(start, stop):
                code = np.int64(delta[i, t, c])
                factor = np.int64(u[i, t, c])
                dx = code * factor
                shift = b_shift[c] + left
                total = np.int64(0)
                for n in range(states):
                    abar = exp2(code * np.int64(a[c, n]), fraction[c], rom, m, mode)
                    b = saturate(round_shift(dx * np.int64(b_in[i, t, n]), shift, mode), -LIMIT, LIMIT)
                    previous = saturate(round_shift(h[c - start, n], step, mode), h_low, h_high)
                    acc = abar * previous + b
                    new = saturate(round_shift(acc, m, mode), h_low, h_high)
                    h[c - start, n] = new
                    total += new * np.int64(c_in[i, t, n])
                    if keep_abar:
                        abar_out[i, t, c, n] = abar
                    if keep_b:
                        b_out[i, t, c, n] = b
                    if keep_acc:
                        acc_out[i, t, c, n] = acc
                    if keep_h:
                        h_out[i, t, c, n] = new
                y_acc = np.int64(d[c]) * factor + (total << left)
                y_out[i, t, c] = saturate(round_shift(y_acc, y_shift[c] + y_row_shift[t], mode), y_low, y_high)
                if keep_dx:
                    dx_out[i, t, c] = dx
                if keep_y_acc:
                    y_acc_out[i, t, c] = y_acc


@kernel
def scan_fast(
    delta, u, b_in, c_in, a_flat, fraction, rom, d, b_shift, token_shift, y_shift, y_row_shift,
    m, mode, h_low, h_high, y_low, y_high, clamps, table, start, stop, y_out,
):  # fmt: skip
    """`y` for the channels start .. stop - 1, at most BLOCK, of all images; arguments as in scan_traced.

    a_flat: A padded with zeros to a multiple of 16 states, as one axis; table: uint16 scratch [BLOCK * 256 * padded].
    Needs b_shift + token_shift >= -LARGEST_LEFT; clamps: 1 if it goes below -HARMLESS_LEFT, so that b may reach its
    limits.  A left shift by s is then clamped before it, to -2^(30-s) .. 2^(30-s), and after it.
    """
    batch, tokens, _ = u.shape
    states = b_in.shape[2]
    padded = (states + 15) // 16 * 16
    block = stop - start
    seen = np.zeros((block, 256), dtype=np.uint8)
    h = np.empty(block * padded, dtype=np.int32)
    row_b = np.zeros(padded, dtype=np.int32)
    row_c = np.zeros(padded, dtype=np.int32)
    dx = np.empty(block, dtype=np.int32)
    half = np.empty(block, dtype=np.int32)
    right = np.empty(block, dtype=np.int32)
    some = np.empty(block, dtype=np.int32)  # 1 where something is shifted out
    total = np.empty(block, dtype=np.int32)
    up = np.empty(block, dtype=np.int32)
    most = np.empty(block, dtype=np.int32)  # 2^(30-up)
    least = np.empty(block, dtype=np.int32)
    use = np.int32(-(mode & 1))
    exact = mode > 1  # half_away, half_even: some ties go down
    away = v.splat(np.int32((mode >> 1) & 1))
    even = v.splat(np.int32((mode >> 2) & 1))
    ones = v.splat(np.int32(-1))
    one = v.splat(np.int32(1))
    sign = v.splat(np.int32(31))
    low = v.splat(np.int32(h_low))
    high = v.splat(np.int32(h_high))
    h_right = v.splat(np.int32(m))
    h_half = v.splat(np.int32(((1 << m) >> 1) & use))
    zero = v.splat(np.int32(0))
    b_high = v.splat(np.int32(LIMIT))
    b_low = v.splat(np.int32(-LIMIT))
    for i in range(batch):
        h[:] = 0
        for t in range(tokens):
            left = token_shift[t]
            step = left - token_shift[max(t - 1, 0)]
            for n in range(states):
                row_b[n] = b_in[i, t, n]
                row_c[n] = c_in[i, t, n]
            delta_row = delta[i, t, start:stop]
            u_row = u[i, t, start:stop]
            shift_row = b_shift[start:stop]
            if step != 0 or t == 0:
                for j in range(block):
                    shift = shift_row[j] + left
                    r = max(shift, 0)
                    up[j] = max(-shift, 0)
                    most[j] = 1 << (30 - up[j])
                    least[j] = -most[j]
                    right[j] = r
                    half[j] = ((1 << r) >> 1) & use
                    some[j] = min(r, 1)
            for j in range(block):
                dx[j] = np.int32(delta_row[j]) * np.int32(u_row[j])
            if not clamps:
                for j in range(block):
                    dx[j] = dx[j] << (up[j] & 31)
            for j in range(block):
                code = np.int64(delta_row[j])
                row = (j * 256 + code) * padded
                if seen[j, code] == 0:
                    seen[j, code] = 1
                    f = fraction[start + j]
                    if f >= 4:
                        exp2_row(code, a_flat, (start + j) * padded, padded, f, rom, m, mode, table, row)
                    else:
                        for n in range(padded):
                            table[row + n] = exp2(code * np.int64(a_flat[(start + j) * padded + n]), f, rom, m, mode)
            if step > 0:
                s = v.splat(np.int32(step))
                add = v.splat(np.int32(((1 << step) >> 1) & use))
                for q in range(0, block * padded, 16):
                    x = v.load_int32(h, q)
                    y = v.add(x, add)
                    if exact:
                        tie = v.bit_or(v.bit_and(away, v.ashr(x, sign)), v.bit_and(even, v.bit_xor(v.ashr(x, s), ones)))
                        y = v.sub(y, v.bit_and(tie, one))
                    v.store_int32(h, q, v.maximum(v.minimum(v.ashr(y, s), high), low))
            elif step < 0:
                s = v.splat(np.int32(-step))
                for q in range(0, block * padded, 16):
                    y = v.shl(v.load_int32(h, q), s)
                    v.store_int32(h, q, v.maximum(v.minimum(y, high), low))
            for j in range(block):
                dx_all = v.splat_element(dx, j)
                b_half = v.splat_element(half, j)
                b_right = v.splat_element(right, j)
                b_some = v.splat_element(some, j)
                b_up = v.splat_element(up, j)
                b_most = v.splat_element(most, j)
                b_least = v.splat_element(least, j)
                sums = zero
                row = (j * 256 + np.int64(delta_row[j])) * padded
                at = j * padded
                for n in range(0, padded, 16):
                    x = v.mul(dx_all, v.load_int32(row_b, n))
                    if clamps:
                        x = v.shl(v.maximum(v.minimum(x, b_most), b_least), b_up)
                    b = v.add(x, b_half)
                    if exact:
                        tie = v.bit_and(away, v.ashr(x, sign))
                        tie = v.bit_or(tie, v.bit_and(even, v.bit_xor(v.ashr(x, b_right), ones)))
                        b = v.sub(b, v.bit_and(tie, b_some))
                    b = v.ashr(b, b_right)
                    if clamps:
                        b = v.maximum(v.minimum(b, b_high), b_low)
                    acc = v.mul(v.load_uint16(table, row + n), v.load_int32(h, at + n))
                    acc = v.add(acc, b)
                    y = v.add(acc, h_half)
                    if exact:
                        tie = v.bit_and(away, v.ashr(acc, sign))
                        tie = v.bit_or(tie, v.bit_and(even, v.bit_xor(v.ashr(acc, h_right), ones)))
                        y = v.sub(y, v.bit_and(tie, one))
                    y = v.maximum(v.minimum(v.ashr(y, h_right), high), low)
                    v.store_int32(h, at + n, y)
                    sums = v.add(sums, v.mul(y, v.load_int32(row_c, n)))
                total[j] = v.total(sums)
            target = y_out[i, t, start:stop]
            d_row = d[start:stop]
            y_shift_row = y_shift[start:stop]
            for j in range(block):
                y_acc = np.int32(np.int32(d_row[j] * np.int32(u_row[j])) + np.int32(total[j] << left))
                s64 = y_shift_row[j] + y_row_shift[t]
                target[j] = saturate(round_shift(np.int64(y_acc), s64, mode), y_low, y_high)
