"""Triton kernels for training a Vim: both directions of a mixer in one launch each, forward and backward.

``mixer(n, module, batch, dtype)`` is the whole of ``bitexact.vim.Mixer`` as one autograd function and
``add_norm`` is a residual add with RMSNorm. Matrix products run in ``dtype`` (bfloat16 in training);
delta, A, the state and every sum run in float32. Tokens stay in their natural order: the backward
direction reads them from the end. Rows are ``batch * tokens``; buffers that hold both directions have a
leading axis of 2.

With ``TRITON_INTERPRET=1`` the kernels run on the CPU, which is how ``check`` is run without a GPU:

    TRITON_INTERPRET=1 python tools/triton_scan.py
"""

import sys
from pathlib import Path

import torch
import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
CHANNELS = 32  # channels of one scan program


@triton.jit
def _softplus(x):
    return tl.where(x > 20.0, x, tl.log(1.0 + tl.exp(x)))


@triton.jit
def _add_norm_fwd(
    x, o, scale, w, x_out, n, rstd, rows, tokens, width, eps, HAS_O: tl.constexpr, BM: tl.constexpr, BW: tl.constexpr
):
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    c = tl.arange(0, BW)
    live = (m < rows)[:, None] & (c < width)[None, :]
    at = m[:, None] * width + c[None, :]
    value = tl.load(x + at, live, 0.0)
    if HAS_O:
        s = tl.load(scale + m // tokens, m < rows, 0.0)
        value += s[:, None] * tl.load(o + at, live, 0.0).to(tl.float32)
        tl.store(x_out + at, value, live)
    r = 1.0 / tl.sqrt(tl.sum(value * value, 1) / width + eps)
    weight = tl.load(w + c, c < width, 0.0)
    tl.store(n + at, (value * r[:, None] * weight[None, :]).to(n.dtype.element_ty), live)
    tl.store(rstd + m, r, m < rows)


@triton.jit
def _add_norm_bwd(
    dx_out,
    dn,
    x,
    rstd,
    scale,
    w,
    dx,
    do,
    dw,
    rows,
    tokens,
    width,
    HAS_O: tl.constexpr,
    BM: tl.constexpr,
    BW: tl.constexpr,
    STEPS: tl.constexpr,
):
    c = tl.arange(0, BW)
    weight = tl.load(w + c, c < width, 0.0)
    acc = tl.zeros([BM, BW], tl.float32)
    for i in range(STEPS):
        m = (tl.program_id(0) * STEPS + i) * BM + tl.arange(0, BM)
        live = (m < rows)[:, None] & (c < width)[None, :]
        at = m[:, None] * width + c[None, :]
        r = tl.load(rstd + m, m < rows, 0.0)
        hat = tl.load(x + at, live, 0.0) * r[:, None]
        g = tl.load(dn + at, live, 0.0).to(tl.float32)
        acc += g * hat
        g = g * weight[None, :]
        inner = tl.sum(g * hat, 1) / width
        out = tl.load(dx_out + at, live, 0.0) + r[:, None] * (g - hat * inner[:, None])
        tl.store(dx + at, out, live)
        if HAS_O:
            s = tl.load(scale + m // tokens, m < rows, 0.0)
            tl.store(do + at, (s[:, None] * out).to(do.dtype.element_ty), live)
    tl.store(dw + tl.program_id(0) * width + c, tl.sum(acc, 0), c < width)


@triton.jit
def _conv_fwd(xz, w, b, u, rows, tokens, inner, K: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr):
    m = (tl.program_id(0) * BM + tl.arange(0, BM)).to(tl.int64)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    t = m % tokens
    ok = m < rows
    forward = tl.zeros([BM, BC], tl.float32) + tl.load(b + c)[None, :]
    backward = tl.zeros([BM, BC], tl.float32) + tl.load(b + inner + c)[None, :]
    for s in tl.static_range(K):
        wf = tl.load(w + (K - 1 - s) * inner + c)
        wb = tl.load(w + (2 * K - 1 - s) * inner + c)
        before = tl.load(xz + (m - s)[:, None] * (2 * inner) + c[None, :], (ok & (t >= s))[:, None], 0.0)
        after = tl.load(xz + (m + s)[:, None] * (2 * inner) + c[None, :], (ok & (t + s < tokens))[:, None], 0.0)
        forward += wf[None, :] * before.to(tl.float32)
        backward += wb[None, :] * after.to(tl.float32)
    at = m[:, None] * inner + c[None, :]
    tl.store(u + at, (forward * tl.sigmoid(forward)).to(u.dtype.element_ty), ok[:, None])
    tl.store(u + rows.to(tl.int64) * inner + at, (backward * tl.sigmoid(backward)).to(u.dtype.element_ty), ok[:, None])


@triton.jit
def _conv_bwd_weight(
    xz, w, b, du, dw, db, rows, tokens, inner, K: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr, STEPS: tl.constexpr
):
    """Replaces du by the gradient before SiLU; sums of the weights' gradients over this program's rows.

    Axis 2 of the grid is the direction: 0 looks at tokens before, 1 at tokens after.
    """
    side = tl.program_id(2)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    bias = tl.load(b + side * inner + c)
    sum_b = tl.zeros([BM, BC], tl.float32)
    sum_0 = tl.zeros([BM, BC], tl.float32)
    sum_1 = tl.zeros([BM, BC], tl.float32)
    sum_2 = tl.zeros([BM, BC], tl.float32)
    sum_3 = tl.zeros([BM, BC], tl.float32)
    sign = 2 * side - 1
    for i in range(STEPS):
        m = ((tl.program_id(0) * STEPS + i) * BM + tl.arange(0, BM)).to(tl.int64)
        t = m % tokens
        room = tl.where(side == 0, t, tokens - 1 - t)
        ok = m < rows
        x0 = tl.load(xz + m[:, None] * (2 * inner) + c[None, :], ok[:, None], 0.0).to(tl.float32)
        x1 = tl.load(xz + (m + sign)[:, None] * (2 * inner) + c[None, :], (ok & (room >= 1))[:, None], 0.0).to(
            tl.float32
        )
        x2 = tl.load(xz + (m + 2 * sign)[:, None] * (2 * inner) + c[None, :], (ok & (room >= 2))[:, None], 0.0).to(
            tl.float32
        )
        x3 = tl.load(xz + (m + 3 * sign)[:, None] * (2 * inner) + c[None, :], (ok & (room >= 3))[:, None], 0.0).to(
            tl.float32
        )
        wat = w + side * K * inner + c
        pre = x0 * tl.load(wat + 3 * inner)[None, :] + x1 * tl.load(wat + 2 * inner)[None, :] + bias[None, :]
        pre += x2 * tl.load(wat + inner)[None, :] + x3 * tl.load(wat)[None, :]
        at = du + (side * rows.to(tl.int64) + m)[:, None] * inner + c[None, :]
        sig = tl.sigmoid(pre)
        g = tl.load(at, ok[:, None], 0.0).to(tl.float32) * (sig * (1.0 + pre * (1.0 - sig)))
        tl.store(at, g.to(du.dtype.element_ty), ok[:, None])
        sum_b += g
        sum_0 += g * x0
        sum_1 += g * x1
        sum_2 += g * x2
        sum_3 += g * x3
    out = (tl.program_id(0) * 2 + side) * inner + c
    tl.store(db + out, tl.sum(sum_b, 0))
    out = (tl.program_id(0) * 2 + side) * K * inner + c
    tl.store(dw + out + 3 * inner, tl.sum(sum_0, 0))
    tl.store(dw + out + 2 * inner, tl.sum(sum_1, 0))
    tl.store(dw + out + inner, tl.sum(sum_2, 0))
    tl.store(dw + out, tl.sum(sum_3, 0))


@triton.jit
def _conv_bwd_input(dpre, w, dxz, rows, tokens, inner, K: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr):
    m = (tl.program_id(0) * BM + tl.arange(0, BM)).to(tl.int64)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    t = m % tokens
    ok = m < rows
    acc = tl.zeros([BM, BC], tl.float32)
    for s in tl.static_range(K):
        wf = tl.load(w + (K - 1 - s) * inner + c)
        wb = tl.load(w + (2 * K - 1 - s) * inner + c)
        after = tl.load(dpre + (m + s)[:, None] * inner + c[None, :], (ok & (t + s < tokens))[:, None], 0.0)
        before = tl.load(dpre + (rows + m - s)[:, None] * inner + c[None, :], (ok & (t >= s))[:, None], 0.0)
        acc += wf[None, :] * after.to(tl.float32) + wb[None, :] * before.to(tl.float32)
    tl.store(dxz + m[:, None] * (2 * inner) + c[None, :], acc.to(dxz.dtype.element_ty), ok[:, None])


@triton.jit
def _scan_fwd(
    u, dt, dbc, A, D, bias, y, states, batch, tokens, inner, RANK: tl.constexpr, N: tl.constexpr, BD: tl.constexpr
):
    side = tl.program_id(2)
    c = tl.program_id(1) * BD + tl.arange(0, BD)
    n = tl.arange(0, N)
    A2 = tl.load(A + (side * inner + c)[:, None] * N + n[None, :]) * LOG2E
    skip = tl.load(D + side * inner + c)
    offset = tl.load(bias + side * inner + c)
    step = 1 - 2 * side
    row = ((side * batch + tl.program_id(0)).to(tl.int64)) * tokens + side * (tokens - 1)
    h = tl.zeros([BD, N], tl.float32)
    u_next = tl.load(u + row * inner + c)
    p_next = tl.load(dt + row * inner + c)
    b_next = tl.load(dbc + row * (RANK + 2 * N) + RANK + n)
    c_next = tl.load(dbc + row * (RANK + 2 * N) + RANK + N + n)
    for i in range(tokens):
        uv = u_next.to(tl.float32)
        p = p_next.to(tl.float32) + offset
        bv = b_next.to(tl.float32)
        cv = c_next.to(tl.float32)
        here = row
        row += step * tl.minimum(tokens - 1 - i, 1)
        u_next = tl.load(u + row * inner + c)
        p_next = tl.load(dt + row * inner + c)
        b_next = tl.load(dbc + row * (RANK + 2 * N) + RANK + n)
        c_next = tl.load(dbc + row * (RANK + 2 * N) + RANK + N + n)
        delta = _softplus(p)
        h = tl.exp2(delta[:, None] * A2) * h + (delta * uv)[:, None] * bv[None, :]
        out = tl.sum(h * cv[None, :], 1) + skip * uv
        tl.store(y + here * inner + c, out.to(y.dtype.element_ty))
        tl.store(states + (here * inner + c)[:, None] * N + n[None, :], h.to(states.dtype.element_ty))


@triton.jit
def _scan_bwd(
    dy,
    u,
    dt,
    dbc,
    A,
    D,
    bias,
    states,
    du,
    ddt,
    dbc_part,
    dA,
    dD,
    dbias,
    batch,
    tokens,
    inner,
    RANK: tl.constexpr,
    N: tl.constexpr,
    BD: tl.constexpr,
):
    side = tl.program_id(2)
    which = side * batch + tl.program_id(0)
    c = tl.program_id(1) * BD + tl.arange(0, BD)
    n = tl.arange(0, N)
    A2 = tl.load(A + (side * inner + c)[:, None] * N + n[None, :]) * LOG2E
    skip = tl.load(D + side * inner + c)
    offset = tl.load(bias + side * inner + c)
    step = 2 * side - 1  # from the scan's last token to its first
    t = (1 - side) * (tokens - 1)
    base = which.to(tl.int64) * tokens
    dy_base = tl.program_id(0).to(tl.int64) * tokens
    part = dbc_part + (tl.program_id(1).to(tl.int64) * 2 * batch * tokens) * (2 * N)
    dh = tl.zeros([BD, N], tl.float32)
    sum_A = tl.zeros([BD, N], tl.float32)
    sum_D = tl.zeros([BD], tl.float32)
    sum_p = tl.zeros([BD], tl.float32)
    h = tl.load(states + ((base + t) * inner + c)[:, None] * N + n[None, :]).to(tl.float32)
    for i in range(tokens):
        row = base + t
        uv = tl.load(u + row * inner + c).to(tl.float32)
        p = tl.load(dt + row * inner + c).to(tl.float32) + offset
        g = tl.load(dy + (dy_base + t) * inner + c).to(tl.float32)
        bv = tl.load(dbc + row * (RANK + 2 * N) + RANK + n).to(tl.float32)
        cv = tl.load(dbc + row * (RANK + 2 * N) + RANK + N + n).to(tl.float32)
        more = tl.minimum(tokens - 1 - i, 1)
        t += step * more
        earlier = tl.load(states + ((base + t) * inner + c)[:, None] * N + n[None, :]).to(tl.float32)
        earlier *= more.to(tl.float32)
        delta = _softplus(p)
        decay = tl.exp2(delta[:, None] * A2)
        dh += g[:, None] * cv[None, :]
        d_c = tl.sum(g[:, None] * h, 0)
        d_b = tl.sum(dh * (delta * uv)[:, None], 0)
        through_b = tl.sum(dh * bv[None, :], 1)
        dh = dh * decay
        flow = dh * earlier
        sum_A += flow * delta[:, None]
        d_delta = tl.sum(flow * A2, 1) * LN2 + uv * through_b
        d_p = d_delta * tl.sigmoid(p)
        sum_D += g * uv
        sum_p += d_p
        tl.store(du + row * inner + c, (delta * through_b + skip * g).to(du.dtype.element_ty))
        tl.store(ddt + row * inner + c, d_p.to(ddt.dtype.element_ty))
        tl.store(part + row * (2 * N) + n, d_b)
        tl.store(part + row * (2 * N) + N + n, d_c)
        h = earlier
    out = which.to(tl.int64) * inner + c
    tl.store(dA + out[:, None] * N + n[None, :], sum_A)
    tl.store(dD + out, sum_D)
    tl.store(dbias + out, sum_p)


@triton.jit
def _gate_fwd(y, xz, g, rows, inner, BM: tl.constexpr, BC: tl.constexpr):
    m = (tl.program_id(0) * BM + tl.arange(0, BM)).to(tl.int64)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    ok = (m < rows)[:, None]
    at = m[:, None] * inner + c[None, :]
    z = tl.load(xz + m[:, None] * (2 * inner) + inner + c[None, :], ok, 0.0).to(tl.float32)
    both = tl.load(y + at, ok, 0.0).to(tl.float32) + tl.load(y + rows.to(tl.int64) * inner + at, ok, 0.0).to(tl.float32)
    tl.store(g + at, (0.5 * both * z * tl.sigmoid(z)).to(g.dtype.element_ty), ok)


@triton.jit
def _gate_bwd(dg, y, xz, dy, dxz, rows, inner, BM: tl.constexpr, BC: tl.constexpr):
    m = (tl.program_id(0) * BM + tl.arange(0, BM)).to(tl.int64)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    ok = (m < rows)[:, None]
    at = m[:, None] * inner + c[None, :]
    at_z = m[:, None] * (2 * inner) + inner + c[None, :]
    z = tl.load(xz + at_z, ok, 0.0).to(tl.float32)
    both = tl.load(y + at, ok, 0.0).to(tl.float32) + tl.load(y + rows.to(tl.int64) * inner + at, ok, 0.0).to(tl.float32)
    grad = 0.5 * tl.load(dg + at, ok, 0.0).to(tl.float32)
    sig = tl.sigmoid(z)
    tl.store(dy + at, (grad * z * sig).to(dy.dtype.element_ty), ok)
    tl.store(dxz + at_z, (grad * both * sig * (1.0 + z * (1.0 - sig))).to(dxz.dtype.element_ty), ok)


def _power_of_two(value):
    return 1 << (value - 1).bit_length()


class _AddNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, o, scale, weight, eps, tokens, dtype):
        rows, width = x.shape
        n = torch.empty(rows, width, dtype=dtype, device=x.device)
        rstd = torch.empty(rows, dtype=torch.float32, device=x.device)
        x_out = x if o is None else torch.empty_like(x)
        block = _power_of_two(width)
        _add_norm_fwd[(triton.cdiv(rows, 16),)](
            x, x if o is None else o, x if o is None else scale, weight, x_out, n, rstd,
            rows, tokens, width, eps, HAS_O=o is not None, BM=16, BW=block, num_warps=4,
        )  # fmt: skip
        ctx.save_for_backward(x_out, rstd, weight, scale)
        ctx.meta = tokens, o is not None, dtype
        if o is None:
            return n
        return x_out, n

    @staticmethod
    def backward(ctx, *grads):
        x, rstd, weight, scale = ctx.saved_tensors
        tokens, has_o, dtype = ctx.meta
        rows, width = x.shape
        dx_out = grads[0].contiguous() if has_o else torch.zeros_like(x)
        dn = grads[-1].contiguous()
        dx = torch.empty_like(x)
        do = torch.empty(rows, width, dtype=dtype, device=x.device) if has_o else None
        steps = 8
        programs = triton.cdiv(rows, 16 * steps)
        dw = torch.empty(programs, width, dtype=torch.float32, device=x.device)
        _add_norm_bwd[(programs,)](
            dx_out, dn, x, rstd, scale if has_o else x, weight, dx, do if has_o else dx, dw,
            rows, tokens, width, HAS_O=has_o, BM=16, BW=_power_of_two(width), STEPS=steps, num_warps=4,
        )  # fmt: skip
        return dx, do, None, dw.sum(0), None, None, None


def add_norm(x, o, scale, weight, eps, tokens, dtype):
    """``x + scale * o`` and its RMSNorm; x float32 [rows, width], o [rows, width], scale float32 [batch].

    Returns (x_new float32, normed of ``dtype``); with ``o`` None, x itself and its norm.
    """
    if o is None:
        return x, _AddNorm.apply(x, None, None, weight, eps, tokens, dtype)
    return _AddNorm.apply(x, o, scale, weight, eps, tokens, dtype)


def _weight_grad(d_out, x, chunks):
    """``d_out^T x`` over the rows (last but one axis) in float32, by chunks, since the product is long and thin."""
    lead = d_out.shape[:-2]
    count = lead.numel() if lead else 1
    rows = d_out.shape[-2]
    a = d_out.view(count * chunks, rows // chunks, d_out.shape[-1])
    b = x.view(count * chunks, rows // chunks, x.shape[-1])
    part = torch.bmm(a.transpose(1, 2), b)
    return part.view(count, chunks, *part.shape[1:]).sum(1, dtype=torch.float32)


class _Mixer(torch.autograd.Function):
    @staticmethod
    def forward(ctx, n, batch, w_in, conv_w, conv_b, w_x, w_dt, bias, a_log, D, w_out, dtype):
        rows = n.shape[0]
        tokens, inner = rows // batch, D.shape[1]
        state, rank = a_log.shape[2], w_dt.shape[2]
        w_in, w_x, w_dt, w_out = (w.to(dtype) for w in (w_in, w_x, w_dt, w_out))
        A = -torch.exp(a_log)

        def new(*shape, dtype=dtype):
            return torch.empty(*shape, dtype=dtype, device=n.device)

        xz = n @ w_in.t()
        u, y, g = new(2, rows, inner), new(2, rows, inner), new(rows, inner)
        _conv_fwd[(triton.cdiv(rows, 32), inner // 32)](
            xz, conv_w, conv_b, u, rows, tokens, inner, K=conv_w.shape[1], BM=32, BC=32, num_warps=4
        )
        dbc = torch.bmm(u, w_x.transpose(1, 2))
        dt = torch.bmm(dbc[:, :, :rank], w_dt.transpose(1, 2))
        states = new(2, rows, inner, state)
        _scan_fwd[(batch, inner // CHANNELS, 2)](
            u, dt, dbc, A, D, bias, y, states, batch, tokens, inner, RANK=rank, N=state, BD=CHANNELS, num_warps=1
        )
        _gate_fwd[(triton.cdiv(rows, 32), inner // 32)](y, xz, g, rows, inner, BM=32, BC=32, num_warps=4)
        ctx.save_for_backward(n, xz, u, dbc, dt, states, y, g, w_in, conv_w, conv_b, w_x, w_dt, bias, A, D, w_out)
        ctx.batch = batch
        return g @ w_out.t()

    @staticmethod
    def backward(ctx, do):
        n, xz, u, dbc, dt, states, y, g, w_in, conv_w, conv_b, w_x, w_dt, bias, A, D, w_out = ctx.saved_tensors
        batch, rows = ctx.batch, n.shape[0]
        tokens, inner = rows // batch, D.shape[1]
        state, rank, taps = A.shape[2], w_dt.shape[2], conv_w.shape[1]
        assert taps == 4
        chunks = next(k for k in (32, 16, 8, 4, 2, 1) if batch % k == 0)
        do = do.contiguous()

        def new(*shape, dtype=n.dtype):
            return torch.empty(*shape, dtype=dtype, device=n.device)

        d_w_out = _weight_grad(do, g, chunks)[0]
        dg = do @ w_out
        dy, dxz = new(rows, inner), new(rows, 2 * inner)
        _gate_bwd[(triton.cdiv(rows, 32), inner // 32)](dg, y, xz, dy, dxz, rows, inner, BM=32, BC=32, num_warps=4)
        du, ddt = new(2, rows, inner), new(2, rows, inner)
        blocks = inner // CHANNELS
        part = new(blocks, 2, rows, 2 * state, dtype=torch.float32)
        dA = new(2, batch, inner, state, dtype=torch.float32)
        dD, dbias = new(2, batch, inner, dtype=torch.float32), new(2, batch, inner, dtype=torch.float32)
        _scan_bwd[(batch, blocks, 2)](
            dy, u, dt, dbc, A, D, bias, states, du, ddt, part, dA, dD, dbias,
            batch, tokens, inner, RANK=rank, N=state, BD=CHANNELS, num_warps=1,
        )  # fmt: skip
        ddbc = new(2, rows, rank + 2 * state)
        ddbc[:, :, :rank] = torch.bmm(ddt, w_dt)
        ddbc[:, :, rank:] = part.sum(0)
        d_w_dt = _weight_grad(ddt, dbc[:, :, :rank], chunks)
        d_w_x = _weight_grad(ddbc, u, chunks)
        du = torch.baddbmm(du, ddbc, w_x)
        steps = 16
        programs = triton.cdiv(rows, 16 * steps)
        dw = new(programs, 2, taps, inner, dtype=torch.float32)
        db = new(programs, 2, inner, dtype=torch.float32)
        _conv_bwd_weight[(programs, inner // 32, 2)](
            xz, conv_w, conv_b, du, dw, db, rows, tokens, inner, K=taps, BM=16, BC=32, STEPS=steps, num_warps=2
        )
        _conv_bwd_input[(triton.cdiv(rows, 32), inner // 32)](
            du, conv_w, dxz, rows, tokens, inner, K=taps, BM=32, BC=32, num_warps=4
        )
        d_w_in = _weight_grad(dxz, n, chunks)[0]
        dn = dxz @ w_in
        d_a_log = dA.sum(1) * A
        return dn, None, d_w_in, dw.sum(0), db.sum(0), d_w_x, d_w_dt, dbias.sum(1), d_a_log, dD.sum(1), d_w_out, None


def mixer(n, module, batch, dtype):
    """``bitexact.vim.Mixer`` on rows: n of ``dtype`` [batch * tokens, width] to the same shape.

    Needs a ``d_inner`` that is a multiple of 32, a power of two for ``d_state`` and ``d_conv`` 4.
    """

    def pair(name, kind=""):
        one, two = name, name + "_b" if name != "A_log" else "A_b_log"
        values = [getattr(module, one), getattr(module, two)]
        return torch.stack([getattr(v, kind) if kind else v for v in values])

    return _Mixer.apply(
        n,
        batch,
        module.in_proj.weight,
        pair("conv1d", "weight").squeeze(2).transpose(1, 2).contiguous(),
        pair("conv1d", "bias"),
        pair("x_proj", "weight"),
        pair("dt_proj", "weight"),
        pair("dt_proj", "bias"),
        pair("A_log"),
        pair("D"),
        module.out_proj.weight,
        dtype,
    )


def vim_forward(model, images, drop_scale=None, dtype=torch.bfloat16):
    """``bitexact.vim.Vim.forward`` with these kernels; images float [batch, channels, height, width].

    ``drop_scale`` float32 [depth, batch] multiplies each block's output (stochastic depth), default ones.
    Returns float32 logits [batch, classes].
    """
    cfg, batch = model.cfg, len(images)
    if drop_scale is None:
        drop_scale = torch.ones(cfg.depth, batch, device=images.device)
    proj = model.patch_embed.proj
    patches = torch.nn.functional.unfold(images, cfg.patch, stride=cfg.stride).transpose(1, 2).to(dtype)
    patches = patches @ proj.weight.flatten(1).t().to(dtype)
    patches = patches.float() + proj.bias
    middle = cfg.cls_position
    cls = model.cls_token.expand(batch, -1, -1)
    x = torch.cat([patches[:, :middle], cls, patches[:, middle:]], 1) + model.pos_embed
    x, out, scale = x.reshape(batch * cfg.tokens, cfg.width), None, None
    for index, block in enumerate(model.layers):
        x, n = add_norm(x, out, scale, block.norm.weight, cfg.eps, cfg.tokens, dtype)
        out, scale = mixer(n, block.mixer, batch, dtype), drop_scale[index]
    shape = (batch, cfg.tokens, cfg.width)
    last = x.view(shape)[:, middle] + scale[:, None] * out.view(shape)[:, middle].float()
    return model.head(model.norm_f(last))


def check(device, dtype, batch=2, depth=2, tolerance=None):
    """Compare loss and every gradient with the plain Vim in float64; returns the worst relative error."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from bitexact.vim import Vim, VimConfig

    cfg = VimConfig(12, 16, 3, 4, 4, 48, depth, 96, 16, 5, 4, 10)
    torch.manual_seed(1)
    model = Vim(cfg).to(device)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm" in name or "D" in name or "A_" in name or "A_b" in name:
                p.add_(0.1 * torch.randn_like(p))
    images = torch.randn(batch, 3, 12, 16, device=device)
    goal = torch.randn(batch, 10, device=device)
    drop = torch.ones(depth, batch, device=device)
    (vim_forward(model, images, drop, dtype) * goal).sum().backward()
    exact = Vim(cfg).double().to(device)
    exact.load_state_dict(model.state_dict())
    (exact(images.double()) * goal.double()).sum().backward()
    worst = 0.0
    for (name, p), q in zip(model.named_parameters(), exact.parameters(), strict=True):
        error = ((p.grad.double() - q.grad).norm() / q.grad.norm().clamp(min=1e-12)).item()
        worst = max(worst, error)
        if tolerance is not None and not error < tolerance:
            raise AssertionError(f"gradient of {name} is off by {error:.2e}")
    return worst


if __name__ == "__main__":
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = False
    # The states are saved for the backward pass in the matrix products' dtype, so float32 is near exact.
    print("float32, worst relative error of a gradient:", check(device, torch.float32, tolerance=1e-3))
    if device == "cuda":
        print("bfloat16:", check(device, torch.bfloat16, batch=32))
