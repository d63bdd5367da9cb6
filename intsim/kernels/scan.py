# mypy: allow-untyped-defs
"""scan (SPEC 5.7): the selective scan.

Three kernels give the same integers.  `scan_traced` is SPEC 5.7 line by line in 64 bits and can store every internal
tensor; it also runs what the others cannot.  `scan_lanes` stores nothing that has an element for each state: 16 states
in a vector, a block of channels for each token, so that consecutive updates do not wait for each other, and rows of
A-bar kept for each (channel, delta code) that has occurred.  `scan_avx512` does the same with far fewer instructions,
where the CPU and the Program allow it.
"""

from __future__ import annotations

import numpy as np

from intsim.arithmetic import limits
from intsim.kernels import cpu
from intsim.kernels import vector as v
from intsim.kernels.base import BATCH, In, Kernel, Out, pad
from intsim.kernels.common import kernel, round_shift, saturate
from intsim.kernels.exp2 import (
    LEAST_FRACTION,
    MOST_FRACTION,
    byte_rom,
    exp2,
    exp2_row,
    exp2_rows,
    exp2_rows_by_words,
    packed_rom,
)
from intsim.kernels.memory import int8_at, int16_at, int32_at, int64_at, uint8_at, uint16_at
from intsim.kernels.requantize import BYTE, DOUBLE, WORD, clamp_lanes, half_lanes, store_lanes, wide_lanes
from intsim.kernels.states import (
    byte_sums,
    bytes_left,
    bytes_right,
    bytes_right_half_up,
    bytes_updated,
    bytes_updated_right,
    find_rows,
    no_bytes,
    no_words,
    spread_tables,
    word_sums,
    words_left,
    words_right,
    words_updated,
)
from intsim.program import Array, Operator, Program

BLOCK = 16  # channels in a block
LIMIT = (1 << 30) - 1  # b is clamped to -LIMIT .. LIMIT
# Largest left shift of dx * B that cannot reach LIMIT: 255 * 128 * 128 * 2^8 < 2^30 - 1.
HARMLESS_LEFT = 8
LARGEST_LEFT = 30  # of scan_lanes
LARGEST_RIGHT = 16  # of scan_avx512
SOME = 32  # tokens of scan_avx512 at a time
TABLE = (256 + 5) * 16  # from channel to channel in the table of A-bar: not all rows of a code in one set of the cache
SHIFTS = 5 * 16  # what scan_avx512 knows of each shift of a token; see `write_shifts`
TRACED, VECTOR, AVX512 = 0, 1, 2  # which kernel
INNER = ("dx", "abar", "b", "acc", "h", "y_acc")


class Scan(Kernel):
    """Inputs delta, u [L, E], B, C [L, N]; `y` [L, E].

    If wanted `dx`, `y_acc` [L, E] and `abar`, `b`, `acc`, `h` [L, E, N].
    """

    code = 9
    by_channel = True

    def __init__(self, program: Program, op: Operator):
        super().__init__(program, op)
        a = self.constant("A", np.int32)
        self.channels, states = a.shape
        padded = -(-states // v.LANES) * v.LANES
        whole = np.zeros((-(-self.channels // BLOCK) * BLOCK, padded), dtype=np.int32)
        whole[: self.channels, :states] = a
        rom = self.constant("exp2_rom", np.int32)
        b_shift, token_shift = self.constant("b_shift", np.int64), self.constant("state_token_shift", np.int64)
        y_shift = self.constant("y_shift", np.int64)
        self.tokens = len(token_shift)
        y_row_shift = np.broadcast_to(self.row_shift("y"), token_shift.shape).copy()
        h, y = self.tensor("h"), self.tensor("y")
        m = int(op.attributes["abar_fraction"])
        least, most = (int(f(b_shift) + f(token_shift)) for f in (np.min, np.max))
        packed = packed_rom(rom)
        by_bytes = byte_rom(rom) if self.mode == 1 and cpu.has_byte_permutation() else None
        self.method = TRACED
        if least >= -LARGEST_LEFT and rom.min() >= 0 and rom.max() <= 1 << 17:
            self.method = VECTOR
            simple = states <= 16 and self.mode <= 1 and packed is not None and most <= LARGEST_RIGHT
            whole_bytes = h.bits > 8 or limits(h.bits, h.signed) == (-128, 127)
            if self.path in cpu.WIDE and simple and whole_bytes:
                self.method = AVX512
        self.clamps = int(least < -HARMLESS_LEFT)
        self.numbers = [
            *(In("delta"), In("u"), In("B"), In("C"), Out("y")),
            *(Out(port) for port in INNER),
            *(BATCH, self.tokens, self.channels, states, self.method, self.clamps),
            *(self.keep(whole.reshape(-1)), self.keep(pad(self.constant("A_fraction", np.int64), BLOCK))),
            *(self.keep(rom), self.keep(rom if packed is None else packed)),
            0 if by_bytes is None else self.keep(by_bytes),
            *(self.keep(pad(self.constant("D", np.int32), BLOCK)), self.keep(pad(b_shift.astype(np.int32), BLOCK))),
            *(self.keep(token_shift), int(token_shift.min()), int(token_shift.max())),
            *(self.keep(pad(y_shift.astype(np.int32), BLOCK)), self.keep(y_row_shift)),
            *(m, self.mode, *limits(h.bits, h.signed), *limits(y.bits, y.signed)),
            *(self.tensor("abar").dtype.itemsize, h.dtype.itemsize, int(y_shift.min() + y_row_shift.min() >= 0)),
            self.keep(rights_of(self.mode)),
        ]
        self.row_cost = self.tokens * states // 4
        lefts = int(token_shift.max() - token_shift.min()) + 1
        self.scratch = BLOCK * ((TABLE + 256 * (padded - 16)) * 4 + 16 * 4 + 256) + (3 * 4 + 8) * SOME * 16 + 4096
        self.scratch += lefts * SHIFTS * 4

    def inner(self) -> tuple[str, ...]:
        return INNER


def rights_of(mode: int) -> Array:
    """For right shifts of 0 .. 8 of states of 8 bits, half_up or floor, what states.bytes_right needs, int32 [9 * 4].

    That is count, mask, offset, 0.  (h + 128) >> s is h >> s and 128 >> s; half_up is the average with 0 of what a
    shift less by 1 gives.  By 8 bits or more half_up gives 0, and floor what it gives for 7.
    """
    rows = []
    for step in range(9):
        by = step if mode else min(step, 7)
        count = max(by - mode, 0)
        rows += [count, (255 >> count) * (by < 8), 128 - (128 >> by), 0]
    return np.array(rows, dtype=np.int32)


(
    DELTA, U, B, C, Y, DX, ABAR, B_OUT, ACC, H, Y_ACC, IMAGES, TOKENS, CHANNELS, STATES, METHOD, CLAMPS, A, FRACTION,
    ROM, PACKED, BYTE_ROM, D, B_SHIFT, TOKEN_SHIFT, LEAST_LEFT, MOST_LEFT, Y_SHIFT, Y_ROW_SHIFT, M, MODE, H_LOW, H_HIGH,
    Y_LOW, Y_HIGH, ABAR_SIZE, H_SIZE, NARROW, RIGHTS,
) = range(39)  # fmt: skip


@kernel
def scan(a, start, stop, scratch, lanes):
    """The channels start .. stop - 1 of all images, start a multiple of BLOCK.

    a: Scan.arguments(); lanes: None if no scan has the method VECTOR, whose kernel is then not compiled.
    """
    for first in range(start, stop, BLOCK):
        last = min(first + BLOCK, stop)
        if a[METHOD] == TRACED or not a[Y] or a[ABAR] or a[B_OUT] or a[ACC] or a[H]:
            scan_traced(a, first, last)
        elif a[METHOD] == AVX512:
            scan_avx512(a, first, last, scratch)
        elif lanes is not None:
            scan_lanes(a, first, last, scratch)


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


@kernel
def scan_lanes(a, start, stop, scratch):
    """`y` and, if wanted, `dx` and `y_acc` for the channels start .. stop - 1, at most BLOCK, of all images.

    Needs b_shift + token_shift >= -LARGEST_LEFT; CLAMPS: 1 if it goes below -HARMLESS_LEFT, so that b may reach its
    limits.  A left shift by s is then clamped before it, to -2^(30-s) .. 2^(30-s), and after it.
    """
    batch, tokens, channels, states = a[IMAGES], a[TOKENS], a[CHANNELS], a[STATES]
    padded = (states + 15) // 16 * 16
    block = stop - start
    m, mode, h_low, h_high, y_low, y_high, clamps = a[M], a[MODE], a[H_LOW], a[H_HIGH], a[Y_LOW], a[Y_HIGH], a[CLAMPS]
    a_flat, fraction = int32_at(a[A], channels * padded), int64_at(a[FRACTION], channels)
    rom, d = int32_at(a[ROM], 129), int32_at(a[D], channels)
    b_shift, token_shift = int32_at(a[B_SHIFT], channels), int64_at(a[TOKEN_SHIFT], tokens)
    y_shift, y_row_shift = int32_at(a[Y_SHIFT], channels), int64_at(a[Y_ROW_SHIFT], tokens)
    table, at = uint16_at(scratch, BLOCK * 256 * padded), scratch + BLOCK * 512 * padded
    seen, at = uint8_at(at, BLOCK * 256), at + BLOCK * 256
    h, at = int32_at(at, BLOCK * padded), at + BLOCK * padded * 4
    row_b, row_c, at = int32_at(at, padded), int32_at(at + 4 * padded, padded), at + 8 * padded
    dx, half, right, total = int32_at(at, 16), int32_at(at + 64, 16), int32_at(at + 128, 16), int32_at(at + 192, 16)
    some, up = int32_at(at + 256, 16), int32_at(at + 320, 16)  # some: 1 where something is shifted out
    most, least = int32_at(at + 384, 16), int32_at(at + 448, 16)  # 2^(30-up) and its negative
    seen[:] = 0
    row_b[:] = 0
    row_c[:] = 0
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
            row_of = i * tokens + t
            b_row, c_row = int8_at(a[B] + row_of * states, states), int8_at(a[C] + row_of * states, states)
            for n in range(states):
                row_b[n] = b_row[n]
                row_c[n] = c_row[n]
            delta_row = uint8_at(a[DELTA] + row_of * channels + start, block)
            u_row = int8_at(a[U] + row_of * channels + start, block)
            shift_row = b_shift[start:stop]
            if step != 0 or t == 0:
                for j in range(block):
                    shift = np.int64(shift_row[j]) + left
                    r = max(shift, 0)
                    up[j] = max(-shift, 0)
                    most[j] = 1 << (30 - up[j])
                    least[j] = -most[j]
                    right[j] = r
                    half[j] = ((1 << r) >> 1) & use
                    some[j] = min(r, 1)
            for j in range(block):
                dx[j] = np.int32(delta_row[j]) * np.int32(u_row[j])
            if a[DX]:
                dx_row = int16_at(a[DX] + 2 * (row_of * channels + start), block)
                for j in range(block):
                    dx_row[j] = dx[j]
            if not clamps:
                for j in range(block):
                    dx[j] = dx[j] << (up[j] & 31)
            for j in range(block):
                code = np.int64(delta_row[j])
                row = (j * 256 + code) * padded
                if seen[j * 256 + code] == 0:
                    seen[j * 256 + code] = 1
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
            target = int8_at(a[Y] + row_of * channels + start, block)
            d_row = d[start:stop]
            y_shift_row = y_shift[start:stop]
            for j in range(block):
                y_acc = np.int32(np.int32(d_row[j] * np.int32(u_row[j])) + np.int32(total[j] << left))
                if a[Y_ACC]:
                    int32_at(a[Y_ACC] + 4 * (row_of * channels + start), block)[j] = y_acc
                s64 = np.int64(y_shift_row[j]) + y_row_shift[t]
                target[j] = saturate(round_shift(np.int64(y_acc), s64, mode), y_low, y_high)


@kernel
def fill_table(a, start, block, table, seen, codes):
    """Rows of -A-bar (exp2.exp2_rows) in int32 [BLOCK, TABLE], for each channel and every delta code that occurs.

    seen int32 [8, 16], a bit for each code of each channel, codes int32 [256 + 32]: scratch.
    """
    see_codes(a, start, block, seen)
    a_rows, fraction = int32_at(a[A], (start + BLOCK) * 16), int64_at(a[FRACTION], start + BLOCK)
    packed, by_bytes = int32_at(a[PACKED], 128), int8_at(a[BYTE_ROM], 512)
    for j in range(block):
        count = np.int64(0)
        for word in range(8):
            bits = np.int64(seen[word * 16 + j])
            count += v.list_bits(bits, word * 32, codes, count)
            count += v.list_bits(bits >> 16, word * 32 + 16, codes, count)
        row = v.load_int32(a_rows, (start + j) * 16)
        f = fraction[start + j]
        if a[BYTE_ROM] and LEAST_FRACTION <= f <= MOST_FRACTION:
            exp2_rows_by_words(codes, count, row, f, by_bytes, a[M], table, j * TABLE)
        else:
            exp2_rows(codes, count, row, f, packed, a[M], a[MODE], table, j * TABLE)


@kernel
def see_codes(a, start, block, seen):
    """Sets bit c mod 32 of seen[c / 32, j] for each delta code c of channel start + j."""
    channels, rows = a[CHANNELS], a[IMAGES] * a[TOKENS]
    one, low, five = v.splat(np.int32(1)), v.splat(np.int32(31)), v.splat(np.int32(5))
    zero = v.splat(np.int32(0))
    s0, s1, s2, s3, s4, s5, s6, s7 = zero, zero, zero, zero, zero, zero, zero, zero
    if block == 16:
        for row in range(rows):
            code = v.load_uint8(uint8_at(a[DELTA] + row * channels + start, 16), 0)
            bit, word = v.shl(one, v.bit_and(code, low)), v.lshr(code, five)
            s0, s1 = v.bit_or_where(s0, word, 0, bit), v.bit_or_where(s1, word, 1, bit)
            s2, s3 = v.bit_or_where(s2, word, 2, bit), v.bit_or_where(s3, word, 3, bit)
            s4, s5 = v.bit_or_where(s4, word, 4, bit), v.bit_or_where(s5, word, 5, bit)
            s6, s7 = v.bit_or_where(s6, word, 6, bit), v.bit_or_where(s7, word, 7, bit)
    v.store_int32(seen, 0, s0)
    v.store_int32(seen, 16, s1)
    v.store_int32(seen, 32, s2)
    v.store_int32(seen, 48, s3)
    v.store_int32(seen, 64, s4)
    v.store_int32(seen, 80, s5)
    v.store_int32(seen, 96, s6)
    v.store_int32(seen, 112, s7)
    if block < 16:
        for row in range(rows):
            delta = uint8_at(a[DELTA] + row * channels + start, block)
            for j in range(block):
                code = np.int64(delta[j])
                seen[(code >> 5) * 16 + j] |= np.int32(np.int64(1) << (code & 31))


@kernel
def scan_avx512(a, start, stop, scratch):
    """`y`, and `dx` and `y_acc` if wanted, for the channels start .. stop - 1, at most BLOCK, of all images.

    At most 16 states, half_up or floor.  The products of an update are sums of two 16-bit products (vector.add_pairs):

    * dx * B << s: (low 8 bits of dx << s) * B + (the bits above) * (B << 8); see `write_factors`.
    * A-bar reaches 2^15 and does not fit, but -A-bar does; so it is -acc = -A-bar * h - b that is summed, and
      h = (half - (-acc)) >> m = ~((-acc - half - 1) >> m).  For a shift s > 0, -b = (-dx * B + c) >> s with
      c = half - 1 (half_up) or 2^s - 1 (floor).

    Some tokens at a time: first what their updates need of dx, then the updates and nothing else, then what their sums
    make of y, so that no update waits for the way to or from another token's.
    """
    images, tokens, channels, states = a[IMAGES], a[TOKENS], a[CHANNELS], a[STATES]
    block = stop - start
    at = scratch + BLOCK * TABLE * 4
    factors, sums, copies = at, at + SOME * 16 * 4, at + 2 * SOME * 16 * 4
    at = copies + 4 * SOME * 16
    rows, at = at, at + 8 * SOME * 16
    seen, codes, shifts = int32_at(at, 8 * 16), int32_at(at + 8 * 16 * 4, 256 + 32), at + (8 * 16 + 256 + 32) * 4
    fill_table(a, start, block, int32_at(scratch, BLOCK * TABLE), seen, codes)
    write_shifts(a, start, shifts)
    b_shift = int32_at(a[B_SHIFT], start + 16)
    least = most = np.int64(b_shift[start])
    for j in range(start + 1, start + 16):
        least, most = min(least, np.int64(b_shift[j])), max(most, np.int64(b_shift[j]))
    bytes_ = a[H_SIZE] == 1
    for i in range(images):
        h, words = no_bytes(), no_words()
        for first in range(0, tokens, SOME):
            count = min(SOME, tokens - first)
            row = i * tokens + first
            delta, u, width = a[DELTA] + row * channels + start, a[U] + row * channels + start, channels
            if block < 16:
                delta = widened(delta, channels, block, count, copies)
                u = widened(u, channels, block, count, copies + SOME * 16)
                width = 16
            b, c = a[B] + row * states, a[C] + row * states
            if states < 16:
                b = widened(b, states, states, count, copies + 2 * SOME * 16)
                c = widened(c, states, states, count, copies + 3 * SOME * 16)
            write_factors(a, start, block, row, first, count, delta, u, width, shifts, least, factors)
            for k in range(count):
                find_rows(delta + width * k, scratch, np.int64(TABLE * 4), rows + 8 * 16 * k)
            if bytes_:
                h = update_bytes(a, h, first, count, rows, b, c, factors, shifts, most, sums)
            else:
                words = update_words(a, words, first, count, rows, b, c, factors, shifts, sums)
            write_y(a, start, block, row, first, count, u, width, int32_at(sums, SOME * 16))


@kernel
def update_bytes(a, h, first, count, rows, b_rows, c_rows, factors, shifts, most, sums):
    """Updates states of 8 bits with `count` tokens from `first` on; writes the sums of h * C, int32 [count, 16].

    rows: address of int64 [count, 16], see `find_rows`; b_rows, c_rows: addresses of int8 [count, 16]; factors: see
    `write_factors`; shifts: see `write_shifts`; most: the largest b_shift of the 16.
    """
    m, mode = a[M], a[MODE]
    token_shift, before = shifts_from(a, first, count)
    written = int32_at(sums, count * 16)
    right = v.splat(np.int32(m))
    begin = v.bit_xor(half_lanes(right, mode), v.splat(np.int32(-1)))
    tables, rights = spread_tables(), int32_at(a[RIGHTS], 9 * 4)
    for k in range(count):
        left = token_shift[k]
        step, before = left - before, left
        if step > 0:
            by = 4 * min(step, 8)
            counts, mask = v.splat_words(v.element(rights, by)), v.splat_bytes(v.element(rights, by + 1))
            offset = v.splat_bytes(v.element(rights, by + 2))
            h = bytes_right_half_up(h, counts, mask, offset) if mode else bytes_right(h, counts, mask, offset)
        elif step < 0:
            h = bytes_left(h, min(-step, 8))
        b = pairs_of(b_rows + 16 * k)
        if most + left > 0:
            at = shifts_at(a, shifts, left)
            h = bytes_updated_right(h, tables, factors + 64 * k, at, rows + 128 * k, b, begin, right)
        else:
            h = bytes_updated(h, tables, factors + 64 * k, 0, rows + 128 * k, b, begin, right)
        v.store_int32(written, 16 * k, byte_sums(h, v.load_quarters(c_rows + 16 * k)))
    return h


@kernel
def update_words(a, h, first, count, rows, b_rows, c_rows, factors, shifts, sums):
    """`update_bytes` for states of more than 8 bits."""
    m, mode = a[M], a[MODE]
    token_shift, before = shifts_from(a, first, count)
    written = int32_at(sums, count * 16)
    low, high, right = v.splat(np.int32(a[H_LOW])), v.splat(np.int32(a[H_HIGH])), v.splat(np.int32(m))
    half = half_lanes(right, mode)
    for k in range(count):
        left = token_shift[k]
        step, before = left - before, left
        if step > 0:
            by = v.splat(np.int32(step))
            h = words_right(h, half_lanes(by, mode), by)
        elif step < 0:
            h = words_left(h, v.splat(np.int32(-step)), low, high)
        b, at = pairs_of(b_rows + 16 * k), shifts_at(a, shifts, left)
        h = words_updated(h, factors + 64 * k, at, rows + 128 * k, b, half, right, low, high)
        v.store_int32(written, 16 * k, word_sums(h, v.load_quarters(c_rows + 16 * k)))
    return h


@kernel
def shifts_from(a, first, count):
    """The shifts of `count` tokens from `first` on, and that of the token before them, or of the first."""
    return int64_at(a[TOKEN_SHIFT] + 8 * first, count), int64_at(a[TOKEN_SHIFT], a[TOKENS])[max(first - 1, 0)]


@kernel
def pairs_of(row):
    """The 16 bytes B at the address `row` as pairs of words, B and B << 8 (vector.add_pairs)."""
    b = v.load_int8(int8_at(row, 16), 0)
    return v.bit_or(v.bit_and(b, v.splat(np.int32(65535))), v.shl(b, v.splat(np.int32(24))))


@kernel
def widened(source, width, n, count, target):
    """Copies n < 16 bytes each of `count` rows that are `width` apart; zeros follow to 16.  Returns `target`."""
    source, copy = int8_at(source, count * width), int8_at(target, count * 16)
    copy[:] = 0
    for k in range(count):
        for j in range(n):
            copy[16 * k + j] = source[width * k + j]
    return target


@kernel
def shifts_at(a, shifts, left):
    """The address of what `write_shifts` wrote for a token's shift."""
    return shifts + (left - a[LEAST_LEFT]) * SHIFTS * 4


@kernel
def write_shifts(a, start, shifts):
    """For each shift of a token, from the least on, int32 [5, 16]: of 16 channels what their b needs.

    At the address `shifts`: a constant, right shift, limit, -limit, left shift.  For states of 8 bits the left shift
    and the limits before it are those of -dx (`write_factors`), and the constant has -half - 1 of the state's rounding,
    shifted left, in it; for others they are those of -dx * B.
    """
    b_shift, mode = v.load_int32(int32_at(a[B_SHIFT], start + 16), start), a[MODE]
    zero, one = v.splat(np.int32(0)), v.splat(np.int32(1))
    begin, top, most = zero, 30, 30
    if a[H_SIZE] == 1:
        begin, top, most = v.bit_xor(half_lanes(v.splat(np.int32(a[M])), mode), v.splat(np.int32(-1))), 23, 23
    for left in range(a[LEAST_LEFT], a[MOST_LEFT] + 1):
        row = int32_at(shifts_at(a, shifts, left), SHIFTS)
        shift = v.add(b_shift, v.splat(np.int32(left)))
        right, up = v.maximum(shift, zero), v.maximum(v.sub(zero, shift), zero)
        up = v.minimum(up, v.splat(np.int32(most)))
        constant = v.sub(half_lanes(right, 1), v.minimum(right, one))
        if not mode:
            constant = v.sub(v.shl(one, right), one)
        limit = v.shl(one, v.sub(v.splat(np.int32(top)), up))
        v.store_int32(row, 0, v.add(constant, v.shl(begin, right)))
        v.store_int32(row, 16, right)
        v.store_int32(row, 32, limit)
        v.store_int32(row, 48, v.sub(zero, limit))
        v.store_int32(row, 64, up)


@kernel
def write_factors(a, start, block, row, first, count, delta, u, width, shifts, least, factors):
    """-dx << s of 16 channels, in two words (vector.add_pairs), for each of `count` tokens from `first` on.  `dx`, if
    wanted, of `block` channels, in the rows from `row` on.

    s = 0 for states of more than 8 bits, else max(-b_shift - token_shift, 0); and then it is clamped to -2^23 ..
    2^23 - 1, which changes no state: |A-bar * h| is at most 2^22, and if |dx << s|, and so also |b| but for B = 0, is
    2^23 - 1 or more, acc is beyond what a state of 8 bits can hold, in the same direction.  Where no channel has an s,
    -dx is one word and the other is 0.  least: the least b_shift of the 16.
    """
    token_shift = int64_at(a[TOKEN_SHIFT] + 8 * first, count)
    enough = a[LEAST_LEFT] if a[H_SIZE] > 1 else -least  # from this shift of a token on there is no s
    target = int32_at(factors, count * 16)
    zero, byte, above = v.splat(np.int32(0)), v.splat(np.int32(255)), v.splat(np.int32(-256))
    eight, word, highest = v.splat(np.int32(8)), v.splat(np.int32(65535)), v.splat(np.int32((1 << 23) - 1))
    for k in range(count):
        left = token_shift[k]
        dx = v.mul(v.load_uint8(uint8_at(delta + width * k, 16), 0), v.load_int8(int8_at(u + width * k, 16), 0))
        if a[DX]:
            store_lanes(a[DX] + 2 * ((row + k) * a[CHANNELS] + start), WORD, block, dx)
        dx = v.sub(zero, dx)
        if left >= enough:
            v.store_int32(target, 16 * k, v.bit_and(dx, word))
        else:
            rows = int32_at(shifts_at(a, shifts, left), SHIFTS)
            dx = v.maximum(v.minimum(dx, v.load_int32(rows, 32)), v.load_int32(rows, 48))
            dx = v.minimum(v.shl(dx, v.load_int32(rows, 64)), highest)
            v.store_int32(target, 16 * k, v.bit_or(v.shl(v.bit_and(dx, above), eight), v.bit_and(dx, byte)))


@kernel
def write_y(a, start, block, row, first, count, u, width, sums):
    """`y`, and `y_acc` if wanted, of `count` tokens from `first` on, in the rows from `row` on.

    sums: of h * C, int32 [count, 16].
    """
    channels, mode = a[CHANNELS], a[MODE]
    token_shift, y_row_shift = int64_at(a[TOKEN_SHIFT] + 8 * first, count), int64_at(a[Y_ROW_SHIFT] + 8 * first, count)
    y_shift = v.load_int32(int32_at(a[Y_SHIFT], start + 16), start)
    d = v.load_int32(int32_at(a[D], start + 16), start)
    low, high = a[Y_LOW], a[Y_HIGH]
    row_shift = y_row_shift[0]
    shift = v.add(y_shift, v.splat(np.int32(row_shift)))
    half = half_lanes(shift, mode)
    for k in range(count):
        factor = v.load_int8(int8_at(u + width * k, 16), 0)
        sum_ = v.shift_left(v.load_int32(sums, 16 * k), v.splat(np.int32(token_shift[k])))
        acc = v.add(v.mul(d, factor), sum_)
        if a[Y_ACC]:
            store_lanes(a[Y_ACC] + 4 * ((row + k) * channels + start), DOUBLE, block, acc)
        if y_row_shift[k] != row_shift:
            row_shift = y_row_shift[k]
            shift = v.add(y_shift, v.splat(np.int32(row_shift)))
            half = half_lanes(shift, mode)
        if a[NARROW]:
            y = clamp_lanes(v.shift_right(v.add(acc, half), shift), low, high)
        else:
            y = wide_lanes(acc, shift, low, high, mode)
        store_lanes(a[Y] + (row + k) * channels + start, BYTE, block, y)
