"""What images use: the least and the largest integer of every register in runs of the engine, and what saturates.

    usage = measure(program, images)            # images: an iterable of uint8 [n, H, W, C]
    usage["layers.0.mixer.scan.acc"].high

Operators are run one after another on a batch, with all of their outputs; what no later operator reads is dropped at
once, so memory is that of one operator (MEMORY bytes, or one image where that needs more), whatever the network's
depth and the number of images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from intsim.arithmetic import Int64, bit_length, int64, limits, round_shift
from intsim.engine import run_operator
from intsim.operators.base import View
from intsim.operators.scan import B_LIMIT
from intsim.program import Array, Operator, Program
from intsim.widths.proof import segments

MEMORY = 256 << 20


@dataclass
class Used:
    """low, high: extremes seen; elements: integers seen; saturated: how many of them saturation changed, or None."""

    low: int
    high: int
    elements: int = 0
    saturated: int | None = None

    def see(self, low: int, high: int) -> None:
        self.low, self.high = min(self.low, low), max(self.high, high)


class Meter:
    """Collects for one operator of the Program, batch after batch.

    x: its inputs by port, out: its outputs by port; [batch, *shape] in their containers.
    """

    def __init__(self, program: Program, op: Operator, usage: dict[str, Used], threads: int | None):
        self.v, self.op, self.usage, self.threads = View(program, op), op, usage, threads
        self.x: Mapping[str, Array] = {}
        self.out: Mapping[str, Array] = {}

    def range(self, name: str, *values: object) -> None:
        """Integers of what no tensor holds."""
        for each in values:
            array = int64(each)
            self._see(f"{self.op.name}:{name}", int(array.min()), int(array.max()))

    def alone(self, weight: Int64) -> Array:
        """acc of the operator on its inputs, with other weights and no bias."""
        arrays = dict(self.v.program.arrays)
        for role, values in (("weight", weight), ("bias", np.zeros(len(weight), dtype=np.int64))):
            name = self.op.constants[role]
            arrays[name] = values.astype(arrays[name].dtype)
        changed = replace(self.v.program, arrays=arrays)
        inputs = {self.op.inputs[port]: array for port, array in self.x.items()}
        return run_operator(changed, self.op, inputs, ["acc"], self.threads)[self.op.tensor("acc")]

    def product(self, name: str, a: tuple[Any, Any], b: tuple[Any, Any]) -> None:
        """All products of a member of one list of intervals with one of the other: their ends broadcast."""
        corners = [int64(p) * int64(q) for p in a for q in b]
        self.range(name, *corners)

    def _see(self, name: str, low: int, high: int) -> None:
        found = self.usage.get(name)
        if found is None:
            self.usage[name] = Used(low, high)
        else:
            found.see(low, high)

    def tensors(self) -> None:
        for port, array in self.out.items():
            name = self.op.tensor(port)
            self._see(name, int(array.min()), int(array.max()))
            self.usage[name].elements += array.size

    def saturated(self, name: str, count: int, elements: int = 0) -> None:
        found = self.usage[name]
        found.saturated = (found.saturated or 0) + count
        found.elements += elements

    def clipped(self, port: str, before: Callable[[tuple[Array, ...]], Int64], ends: tuple[int, int]) -> None:
        """Counts where an output is at an end of its range because its value before saturation lies beyond.

        before(index): that value, for the elements of the output at an index of NumPy.
        """
        values = self.out[port]
        low, high = ends
        index = np.unravel_index(np.flatnonzero((values <= low) | (values >= high)), values.shape)
        exact = before(index)
        self.saturated(self.op.tensor(port), int(((exact < low) | (exact > high)).sum()))

    def requantized(self, port: str, acc: Array, shift: Int64, token_shift: Int64) -> None:
        """Counts the saturated of an output [batch, L, C] from acc, the shift of each channel and of each token."""
        t = self.v.output(port)

        def before(index: tuple[Array, ...]) -> Int64:
            _, token, channel = index
            return round_shift(int64(acc[index]), shift[channel] + token_shift[token], self.v.rounding)

        self.clipped(port, before, limits(t.bits, t.signed))


def extremes(array: Array, axis: int | tuple[int, ...]) -> tuple[Int64, Int64]:
    return int64(array.min(axis=axis)), int64(array.max(axis=axis))


def see_patch_embed(m: Meter) -> None:
    v = m.v
    patch, stride = v.op.attributes["patch"], v.op.attributes["stride"]
    height, width, channels = v.input("image").shape
    rows, columns = (height - patch) // stride + 1, (width - patch) // stride + 1
    ends = [np.empty((channels, patch, patch), dtype=np.int64) for _ in range(2)]
    for i in range(patch):
        for j in range(patch):
            seen = m.x["image"][:, i::stride, j::stride][:, :rows, :columns]
            ends[0][:, i, j], ends[1][:, i, j] = (end - 128 for end in extremes(seen, (0, 1, 2)))
    weight = v.array("weight")
    m.product("product", (weight, weight), (ends[0].reshape(-1), ends[1].reshape(-1)))
    m.requantized("out", m.out["acc"], v.array("shift"), np.zeros(rows * columns, dtype=np.int64))
    m.range("shift", v.array("shift"))


def see_insert_token(m: Meter) -> None:
    v, x = m.v, int64(m.x["x"])
    position = v.op.attributes["position"]
    token = np.broadcast_to(v.array("cls_token"), (len(x), 1, x.shape[2]))
    total = np.concatenate([x[:, :position], token, x[:, position:]], axis=1) + v.array("pos_embed")
    m.range("sum", total)
    m.clipped("out", lambda index: total[index], limits(v.output("out").bits, True))


def see_rmsnorm(m: Meter) -> None:
    v, x = m.v, int64(m.x["x"])
    a = v.op.attributes["d_shift"]
    total, root, normed = (int64(m.out[port]) for port in ("square_sum", "rsqrt", "normed"))
    k = (32 - bit_length(total)) // 2
    m.range("square", x * x)
    m.range("w", np.where(k >= 0, total << 2 * np.maximum(k, 0), total >> -2 * np.minimum(k, 0)))
    m.range("normed_shift", 14 + a - k)
    m.range("scaled", x * root[:, :, None])
    product = normed * v.array("gamma")
    m.range("product", product)
    m.range("shift", v.array("shift"))
    m.requantized("out", product, v.array("shift"), np.zeros(x.shape[1], dtype=np.int64))


def see_linear(m: Meter) -> None:
    v = m.v
    weight, shift = v.array("weight"), v.array("shift")
    low, high = extremes(m.x["x"], (0, 1))
    m.product("product", (weight, weight), (low, high))
    m.range("shift", shift)
    channel, token = v.shifts("x", "channel"), v.shifts("x", "token")
    if token.any():
        m.range("group_sum", (int64(m.out["acc"]) - v.array("bias")) >> token[:, None])
    elif channel.any():
        for group in np.unique(channel):
            m.range("group_sum", m.alone(np.where(channel == group, weight, 0)) >> group)
    for port, start, stop in segments(v.op):
        none = np.zeros(m.out["acc"].shape[1], dtype=np.int64)
        m.requantized(port, m.out["acc"][..., start:stop], shift[start:stop], none)


def see_conv1d(m: Meter) -> None:
    v, x = m.v, m.x["x"]
    if v.op.attributes["reverse"]:
        x = x[:, ::-1]
    weight, shift = v.array("weight"), v.array("shift")
    taps, tokens = weight.shape[1], x.shape[1]
    for j in range(max(0, taps - tokens), taps):
        back = taps - 1 - j
        low, high = extremes(x[:, : tokens - back], (0, 1))
        m.product("product", (weight[:, j], weight[:, j]), (low, high))
        if back:
            m.range("product", 0)  # the padding
    m.range("shift", shift)
    m.requantized("out", m.out["acc"], shift, np.zeros(tokens, dtype=np.int64))


def see_rom(m: Meter) -> None:
    m.range("address", *extremes(m.x["x"], (0, 1, 2)))


def see_scan(m: Meter) -> None:
    v = m.v
    delta, u, b_in, c_in = (int64(m.x[port]) for port in ("delta", "u", "B", "C"))
    dx, b, acc, h, y_acc = (m.out[port] for port in ("dx", "b", "acc", "h", "y_acc"))
    a, d, fraction, mode = v.array("A"), v.array("D"), v.array("A_fraction"), v.rounding
    m_bits, s_l, b_shift = v.op.attributes["abar_fraction"], v.array("state_token_shift"), v.array("b_shift")
    h_low, h_high = limits(v.output("h").bits, True)

    for end in extremes(delta, (0, 1)):
        p = end[:, None] * a
        m.range("p", p)
        f = fraction[:, None]
        t = np.where(f <= 19, p << np.maximum(19 - f, 0), p >> np.maximum(f - 19, 0))
        m.range("abar_shift", np.minimum(29 - m_bits + (t >> 19), 31))
    m.product("dxb", extremes(dx, 2), extremes(b_in, 2))
    m.range("b_shift", *(b_shift + s for s in np.unique(s_l)))
    steps = np.diff(s_l, prepend=s_l[0])
    m.range("step", steps)
    m.range("du", d * extremes(u, (0, 1))[0], d * extremes(u, (0, 1))[1])
    m.range("y_shift", *(v.array("y_shift") + g for g in np.unique(v.out_shifts("y", "token"))))
    m.product("hc", extremes(h, 2), extremes(c_in[:, :, None], 2))
    m.range("sum", (int64(y_acc) - d * u) >> s_l[:, None])

    lost = 0
    m.range("rescaled", 0)
    m.range("decayed", 0)
    for token, step in enumerate(steps.tolist()[1:], start=1):
        read = h[:, token - 1]
        if step:
            exact = round_shift(int64(read), step, mode)
            lost += int(((exact < h_low) | (exact > h_high)).sum())
            read = np.clip(exact, h_low, h_high)
        m.range("rescaled", read.min(), read.max())
        decayed = acc[:, token] - b[:, token]  # abar h', which int32 holds
        m.range("decayed", decayed.min(), decayed.max())
    name = f"{m.op.name}:rescaled"
    m.saturated(name, lost, h.size)

    def aligned(index: tuple[Array, ...]) -> Int64:
        i, t, c, n = index
        return round_shift(int64(dx[i, t, c]) * b_in[i, t, n], b_shift[c] + s_l[t], mode)

    m.clipped("b", aligned, (-B_LIMIT, B_LIMIT))
    m.clipped("h", lambda index: round_shift(int64(acc[index]), m_bits, mode), (h_low, h_high))
    m.requantized("y", y_acc, v.array("y_shift"), v.out_shifts("y", "token"))


def see_gate(m: Meter) -> None:
    v = m.v
    y = int64(m.x["y"]) << (v.op.attributes["y_align"] + v.shifts("y", "token"))[:, None]
    y_b = int64(m.x["y_b"]) << (v.op.attributes["y_b_align"] + v.shifts("y_b", "token"))[:, None]
    m.range("sum", y + y_b[:, ::-1])
    group = v.out_shifts("out", "token")
    m.range("shift", *(v.array("shift") + g for g in np.unique(group)))
    m.requantized("out", m.out["acc"], v.array("shift"), group)


def see_add(m: Meter) -> None:
    total = int64(m.x["x"]) + int64(m.x["y"])
    m.range("sum", total)
    m.clipped("out", lambda index: total[index], limits(m.v.output("out").bits, True))


METERS: dict[str, Callable[[Meter], None]] = {
    "patch_embed": see_patch_embed,
    "insert_token": see_insert_token,
    "rmsnorm": see_rmsnorm,
    "linear": see_linear,
    "conv1d": see_conv1d,
    "rom": see_rom,
    "scan": see_scan,
    "gate": see_gate,
    "add": see_add,
    "select_token": lambda m: None,
}


def batch_size(program: Program) -> int:
    """Images at a time, so that the tensors of one operator stay within MEMORY; at least one."""
    largest = 1
    for op in program.operators:
        tensors = [program.tensors[op.tensor(port)] for port in op.outputs]
        largest = max(largest, sum(int(np.prod(t.shape, dtype=object)) * 8 for t in tensors))
    return max(1, min(64, MEMORY // largest))


def measure(
    program: Program,
    images: Iterable[Array],
    threads: int | None = None,
    progress: Callable[[int], None] = lambda done: None,
    watch: Callable[[Operator, Mapping[str, Array], Mapping[str, Array]], None] = lambda op, x, out: None,
) -> dict[str, Used]:
    """What each register held while the Program ran on `images`, by the register's name.

    images: arrays uint8 [n, H, W, C], each run as one batch (`batch_size` says how many images are sensible).
    progress: called with the number of images done.
    watch: called with each operator and its inputs and outputs by port, [batch, *shape], when it has run.
    """
    usage: dict[str, Used] = {}
    meters = [Meter(program, op, usage, threads) for op in program.operators]
    last = {name: op.name for op in program.operators for name in op.inputs.values()}
    done = 0
    for batch in images:
        values: dict[str, Array] = {"image": batch}
        for op, meter in zip(program.operators, meters, strict=True):
            made = run_operator(program, op, values, op.outputs, threads)
            meter.x = {port: values[name] for port, name in op.inputs.items()}
            meter.out = {port: made[op.tensor(port)] for port in op.outputs}
            meter.tensors()
            METERS[op.kind](meter)
            watch(op, meter.x, meter.out)
            meter.x = meter.out = {}
            values.update({name: array for name, array in made.items() if name in last})
            for name in op.inputs.values():
                if last[name] == op.name:
                    values.pop(name, None)
        done += len(batch)
        progress(done)
    for name, array in program.arrays.items():
        usage[name] = Used(int(array.min()), int(array.max()), array.size)
    return usage
