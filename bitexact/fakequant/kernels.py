"""Triton kernels of the fast form: the layers of a Vim on integer codes, with every intermediate that is asked for.

Codes are int8 (uint8 for delta), int16 in the residual stream.  Matrix products run on bfloat16 operands with float32
accumulators, and only where the rule of exactness holds for every partial sum; everything else is integer arithmetic
in 32 bits (64 in the norm).  Rows are `image * tokens + token`; both directions of a layer are one launch, the
leading axis of 2 of their buffers.  `TRITON_INTERPRET=1` runs the same kernels on a CPU.
"""

from __future__ import annotations

import triton
import triton.language as tl

FLOOR = tl.constexpr(0)
HALF_UP = tl.constexpr(1)
HALF_AWAY = tl.constexpr(2)
MODES = {"floor": 0, "half_up": 1, "half_away": 2, "half_even": 3}


@triton.jit
def _round(v, s, MODE: tl.constexpr):
    """v / 2^s rounded by the mode, s >= 0, both of one integer type (SPEC 2)."""
    if MODE == FLOOR:
        return v >> s
    one = (s * 0 + 1).to(v.dtype)
    half = tl.where(s > 0, one << tl.maximum(s - 1, 0), 0).to(v.dtype)
    if MODE == HALF_UP:
        return (v + half) >> s
    if MODE == HALF_AWAY:
        return (v + half - ((v < 0) & (s > 0)).to(v.dtype)) >> s
    below = v >> s
    rest = v - (below << s)
    up = (s > 0) & ((rest > half) | ((rest == half) & ((below & 1) == 1)))
    return below + up.to(v.dtype)


@triton.jit
def _clamp(v, low, high):
    return tl.minimum(tl.maximum(v, low), high)


@triton.jit
def _requantize(v, s, low, high, MODE: tl.constexpr):
    """requantize to at most 16 bits (SPEC 2), v and s int32, s of either sign.

    A left shift never wraps: what would leave 16 bits is first cut to where it saturates all the same.
    """
    right = _round(v, tl.maximum(s, 0), MODE)
    left = _clamp(v, -32768, 32768) << tl.minimum(tl.maximum(-s, 0), 15)
    return _clamp(tl.where(s < 0, left, right), low, high)


@triton.jit
def norm(
    x,
    gamma,
    shift,
    out,
    square_sums,
    rsqrts,
    normeds,
    rows,
    width,
    eps_q,
    d_norm,
    d_shift,
    low,
    high,
    MODE: tl.constexpr,
    TAP: tl.constexpr,
    BM: tl.constexpr,
    BW: tl.constexpr,
):
    """rmsnorm (SPEC 5.3): x int16 [rows, width] -> out int8; taps int64 [rows], int32 [rows], int32 [rows, width]."""
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    c = tl.arange(0, BW)
    live = (row < rows)[:, None] & (c < width)[None, :]
    at = row[:, None] * width + c[None, :]
    q = tl.load(x + at, live, 0).to(tl.int64)
    square_sum = tl.sum(q * q, 1) + eps_q
    bits = (square_sum.to(tl.float64).to(tl.int64, bitcast=True) >> 52) - 1022  # exact: below 2^53
    k = (32 - bits) >> 1
    w = tl.where(k >= 0, square_sum << tl.maximum(2 * k, 0), square_sum >> tl.maximum(-2 * k, 0))
    top = (d_norm + square_sum * 0) << 52
    # an estimate that is off by at most one, then the definition: the largest r with r * r * w <= d_norm * 2^52
    r = tl.sqrt(top.to(tl.float64) / w.to(tl.float64)).to(tl.int64)
    r = tl.where(r * r * w > top, r - 1, r)
    r = tl.where((r + 1) * (r + 1) * w <= top, r + 1, r)
    s = (14 + d_shift - k)[:, None]
    product = q * r[:, None]
    normed = tl.where(s < 0, product << tl.maximum(-s, 0), _round(product, tl.maximum(s, 0), MODE)).to(tl.int32)
    g = tl.load(gamma + c, c < width, 0)
    steps = tl.load(shift + c, c < width, 0)
    y = _requantize(normed * g[None, :], steps[None, :], low, high, MODE)
    tl.store(out + at, y.to(out.dtype.element_ty), live)
    if TAP:
        tl.store(square_sums + row, square_sum, row < rows)
        tl.store(rsqrts + row, r.to(tl.int32), row < rows)
        tl.store(normeds + at, normed, live)


@triton.jit
def linear(
    x,
    w,
    bias,
    shift,
    lows,
    highs,
    x_tokens,
    rom,
    rom_row,
    residual,
    out,
    accs,
    plain,
    rows,
    tokens,
    inputs,
    outputs,
    x_row,
    x_direction,
    padded,
    res_low,
    res_high,
    MODE: tl.constexpr,
    SPLIT: tl.constexpr,
    TOKEN_SHIFT: tl.constexpr,
    ROM: tl.constexpr,
    RESIDUAL: tl.constexpr,
    TAP: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """linear (SPEC 5.4) of one or two directions, with the ROM or the residual addition behind it.

    x int8, rows `x_row` apart, directions `x_direction`; w [directions, outputs, padded] with the group shifts of x
    folded in, exact in its float type; out [directions, rows, outputs]; taps: accs int32 and `plain`, the output
    before the ROM or the addition, int32.  SPLIT: partial sums go over to int32 after every BK inputs.
    """
    d = tl.program_id(2)
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    o = tl.program_id(1) * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    x_at = x + d * x_direction + row[:, None] * x_row + k[None, :]
    w_at = w + d * outputs * padded + o[None, :] * padded + k[:, None]
    real_row, real_o = (row < rows)[:, None], (o < outputs)[None, :]
    total = tl.zeros([BM, BN], tl.int32)
    part = tl.zeros([BM, BN], tl.float32)
    for start in range(0, padded, BK):
        a = tl.load(x_at + start, real_row & (start + k < inputs)[None, :], 0)
        b = tl.load(w_at + start, real_o, 0.0)
        if SPLIT:
            total += tl.dot(a.to(b.dtype), b, out_dtype=tl.float32).to(tl.int32)
        else:
            part = tl.dot(a.to(b.dtype), b, part, out_dtype=tl.float32)
    if not SPLIT:
        total = part.to(tl.int32)
    oo = d * outputs + o
    known = o < outputs
    if TOKEN_SHIFT:
        total = total << tl.load(x_tokens + row % tokens)[:, None]
    acc = total + tl.load(bias + oo, known, 0)[None, :]
    q = _requantize(
        acc,
        tl.load(shift + oo, known, 0)[None, :],
        tl.load(lows + oo, known, 0)[None, :],
        tl.load(highs + oo, known, 0)[None, :],
        MODE,
    )
    live = real_row & real_o
    at = (d * rows + row)[:, None] * outputs + o[None, :]
    if TAP:
        tl.store(accs + at, acc, live)
        tl.store(plain + at, q, live)
    if ROM:
        q = tl.load(rom + tl.load(rom_row + oo, known, 0)[None, :] + q + 128, live, 0)
    if RESIDUAL:
        q = _clamp(q + tl.load(residual + at, live, 0).to(tl.int32), res_low, res_high)
    tl.store(out + at, q.to(out.dtype.element_ty), live)


@triton.jit
def conv(
    x,
    w,
    bias,
    shift,
    lows,
    highs,
    rom,
    rom_row,
    reverse,
    out,
    accs,
    plain,
    rows,
    tokens,
    channels,
    x_row,
    MODE: tl.constexpr,
    TAPS: tl.constexpr,
    TAP: tl.constexpr,
    BM: tl.constexpr,
    BC: tl.constexpr,
):
    """conv1d (SPEC 5.5) and its SiLU ROM (5.6), both directions: x int8 -> out int8 [2, rows, channels]."""
    d = tl.program_id(2)
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    known = c < channels
    live = (row < rows)[:, None] & known[None, :]
    t = row % tokens
    first = row - t
    backward = tl.load(reverse + d)
    cc = d * channels + c
    acc = tl.zeros([BM, BC], tl.int32) + tl.load(bias + cc, known, 0)[None, :]
    for j in tl.static_range(TAPS):
        step = t - (TAPS - 1) + j
        source = first + tl.where(backward != 0, tokens - 1 - step, step)
        there = live & (step >= 0)[:, None]
        value = tl.load(x + source[:, None] * x_row + c[None, :], there, 0).to(tl.int32)
        acc += value * tl.load(w + cc * TAPS + j, known, 0)[None, :]
    q = _requantize(
        acc,
        tl.load(shift + cc, known, 0)[None, :],
        tl.load(lows + d),
        tl.load(highs + d),
        MODE,
    )
    at = (d * rows + row)[:, None] * channels + c[None, :]
    if TAP:
        tl.store(accs + at, acc, live)
        tl.store(plain + at, q, live)
    y = tl.load(rom + tl.load(rom_row + cc, known, 0)[None, :] + q + 128, live, 0)
    tl.store(out + at, y.to(out.dtype.element_ty), live)


@triton.jit
def scan(
    delta,
    u,
    projected,
    A,
    fraction,
    D,
    b_shift,
    y_shift,
    state_shift,
    y_tokens,
    y_low,
    y_high,
    rom,
    y,
    dxs,
    abars,
    bs,
    accs,
    hs,
    y_accs,
    first_direction,
    images,
    tokens,
    channels,
    states,
    columns,
    b_at,
    c_at,
    h_low,
    h_high,
    M: tl.constexpr,
    MODE: tl.constexpr,
    LEFT: tl.constexpr,
    CLAMP: tl.constexpr,
    STEPS: tl.constexpr,
    COARSE: tl.constexpr,
    TAP: tl.constexpr,
    BN: tl.constexpr,
    BC: tl.constexpr,
):
    """scan (SPEC 5.7): a program runs one image, one direction and BC channels through all tokens.

    The state is [BN, BC] in registers, states along a thread's own registers and channels along its lanes.  `rom`
    holds value << 10 | difference to the next entry.  LEFT: some b is shifted to the left; CLAMP: some b can reach
    its clamp; STEPS: some token's exponent differs from the one before; COARSE: some A has more than 19 fraction
    bits.  Taps: dx, y_acc int32 [2, rows, channels], the others int32 [2, rows, channels, states].
    """
    image = tl.program_id(0)
    d = tl.program_id(2) + first_direction
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    n = tl.arange(0, BN)
    known = c < channels
    real = n < states
    cc = d * channels + c
    live = real[:, None] & known[None, :]
    a = tl.load(A + cc[None, :] * states + n[:, None], live, 0).to(tl.int32)
    f = tl.load(fraction + cc, known, 0)[None, :]
    to_left = tl.maximum(19 - f, 0)
    to_right = tl.maximum(f - 19, 0)
    skip = tl.load(D + cc, known, 0)
    align = tl.load(b_shift + cc, known, 0)
    y_by = tl.load(y_shift + cc, known, 0)
    low, high = tl.load(y_low + d), tl.load(y_high + d)
    h = tl.zeros([BN, BC], tl.int32)
    before = tl.load(state_shift + d * tokens)
    row = (d * images + image) * tokens
    for t in range(0, tokens):
        at = row.to(tl.int64) + t
        here = tl.load(state_shift + d * tokens + t)
        step = tl.load(delta + at * channels + c, known, 0).to(tl.int32)
        value = tl.load(u + at * channels + c, known, 0).to(tl.int32)
        b_row = tl.load(projected + at * columns + b_at + n, real, 0).to(tl.int32)
        c_row = tl.load(projected + at * columns + c_at + n, real, 0).to(tl.int32)
        # A-bar
        p = a * step[None, :]
        whole = p >> f
        rest = (p - (whole << f)) << to_left
        if COARSE:
            rest = rest >> to_right
        entry = tl.load(rom + (rest >> 12))
        v = ((entry >> 10) << 12) - (entry & 1023) * (rest & 4095)
        abar = _round(v, tl.minimum(whole + (29 - M), 31), MODE)
        # b
        dx = step * value
        product = b_row[:, None] * dx[None, :]
        s = (align + here)[None, :]
        b = _round(product, tl.maximum(s, 0), MODE)
        if LEFT:
            left = tl.maximum(-s, 0)
            if CLAMP:
                most = 1073741823 >> left
                held = tl.where(product > most, 1073741823, tl.where(product < -most, -1073741823, product << left))
                b = tl.where(s < 0, held, b)
            else:
                b = tl.where(s < 0, product << left, b)
        # the state, on this token's exponent
        if STEPS:
            h = _requantize(h, here - before + h * 0, h_low, h_high, MODE)
            before = here
        acc = abar * h + b
        h = _clamp(_round(acc, M + acc * 0, MODE), h_low, h_high)
        y_acc = skip * value + (tl.sum(h * c_row[:, None], 0) << here)
        q = _requantize(y_acc, y_by + tl.load(y_tokens + d * tokens + t), low, high, MODE)
        tl.store(y + at * channels + c, q.to(y.dtype.element_ty), known)
        if TAP:
            tl.store(dxs + at * channels + c, dx, known)
            tl.store(y_accs + at * channels + c, y_acc, known)
            cube = (at * channels + c[None, :]) * states + n[:, None]
            tl.store(abars + cube, abar, live)
            tl.store(bs + cube, b, live)
            tl.store(accs + cube, acc, live)
            tl.store(hs + cube, h, live)


@triton.jit
def gate(
    y,
    z,
    rom,
    rom_row,
    shift,
    y_tokens,
    out_tokens,
    out,
    accs,
    gs,
    rows,
    tokens,
    channels,
    z_row,
    y_align,
    y_b_align,
    low,
    high,
    MODE: tl.constexpr,
    TAP: tl.constexpr,
    BM: tl.constexpr,
    BC: tl.constexpr,
):
    """silu_z (SPEC 5.6) and gate (5.8): y int8 [2, rows, channels], z int8 -> out int8 [rows, channels]."""
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    known = c < channels
    live = (row < rows)[:, None] & known[None, :]
    t = row % tokens
    other = tokens - 1 - t
    at = row[:, None] * channels + c[None, :]
    back = (rows + row - t + other)[:, None] * channels + c[None, :]
    forward = tl.load(y + at, live, 0).to(tl.int32)
    backward = tl.load(y + back, live, 0).to(tl.int32)
    code = tl.load(z + row[:, None] * z_row + c[None, :], live, 0).to(tl.int32)
    g = tl.load(rom + tl.load(rom_row + c, known, 0)[None, :] + code + 128, live, 0).to(tl.int32)
    total = forward << (y_align + tl.load(y_tokens + t))[:, None]
    total += backward << (y_b_align + tl.load(y_tokens + tokens + other))[:, None]
    acc = total * g
    s = tl.load(shift + c, known, 0)[None, :] + tl.load(out_tokens + t)[:, None]
    q = _requantize(acc, s, low, high, MODE)
    tl.store(out + at, q.to(out.dtype.element_ty), live)
    if TAP:
        tl.store(accs + at, acc, live)
        tl.store(gs + at, g, live)
