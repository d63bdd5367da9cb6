"""How a tensor follows from its operator's inputs, and how it would if a design did one thing wrong (SPEC section 5).

    requantization(scene)  the accumulator and shift behind a requantized tensor
    accumulators(scene)    (what is wrong, its kind, the accumulator then), for the accumulator of an operator

These are deliberate re-statements of SPEC in small pieces, so that one piece can be wrong; what is right is only ever
taken from the bundle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from golden.verdict.scene import Scene, unsigned
from intsim.arithmetic import Int64, bit_length, int64, limits, round_shift
from intsim.operators.scan import B_LIMIT

SIGN, GROUP, REVERSED = "sign extension", "group shift missing", "tokens reversed"


@dataclass(frozen=True)
class Requantization:
    """out = clamp(round_shift(acc, shift)).  group: the tensor's own group shift that is part of `shift`, or None."""

    acc: Int64
    shift: Int64
    low: int
    high: int
    bits: int
    signed: bool
    group: Int64 | None = None

    def rounded(self, mode: str, acc: Int64 | None = None, shift: Int64 | None = None) -> Int64:
        return round_shift(self.acc if acc is None else acc, self.shift if shift is None else shift, mode)

    def out(self, mode: str, acc: Int64 | None = None, shift: Int64 | None = None) -> Int64:
        return np.clip(self.rounded(mode, acc, shift), self.low, self.high)


def requantization(scene: Scene) -> Requantization | None:
    """The requantization that makes the tensor; None for tensors that are not requantized."""
    op = scene.op
    if op is None:
        return None
    make = {
        "patch_embed": _linear_like,
        "conv1d": _linear_like,
        "linear": _linear,
        "rmsnorm": _rmsnorm,
        "scan": _scan,
        "gate": _gate,
        "add": _sum,
        "insert_token": _insert,
    }.get(op.kind)
    return make(scene) if make else None


def _of(scene: Scene, acc: Int64, shift: Int64) -> Requantization:
    """With the tensor's own range and group shifts."""
    tensor = scene.tensor
    low, high = limits(tensor.bits, tensor.signed)
    group = None
    for number, axis in enumerate(tensor.axes):
        if tensor.group(axis) is not None:
            shifts = scene.program.shifts(tensor.name, axis)
            group = shifts.reshape([-1 if i == number else 1 for i in range(len(tensor.axes))])
    return Requantization(acc, shift, low, high, tensor.bits, tensor.signed, group)


def _linear_like(scene: Scene) -> Requantization | None:
    if scene.port != "out":
        return None
    return _of(scene, scene.output("acc"), scene.array("shift")[None, :])


def rows_of(scene: Scene) -> slice:
    """The rows of a linear's accumulator that a port has."""
    op = scene.op
    assert op is not None
    for segment in op.attributes["segments"]:
        if segment["port"] == scene.port:
            return slice(segment["start"], segment["stop"])
    return slice(None)


def _linear(scene: Scene) -> Requantization | None:
    if scene.port == "acc":
        return None
    rows = rows_of(scene)
    return _of(scene, scene.output("acc")[:, rows], scene.array("shift")[None, rows])


def _rmsnorm(scene: Scene) -> Requantization | None:
    if scene.port == "out":
        return _of(scene, scene.output("normed") * scene.array("gamma"), scene.array("shift")[None, :])
    if scene.port == "normed":
        op = scene.op
        assert op is not None
        k = (32 - bit_length(scene.output("square_sum"))) // 2
        shift = (14 + op.attributes["d_shift"] - k)[:, None]
        return _of(scene, scene.input("x") * scene.output("rsqrt")[:, None], shift)
    return None


def _gate(scene: Scene) -> Requantization | None:
    if scene.port != "out":
        return None
    shift = scene.array("shift")[None, :] + scene.view.out_shifts("out", "token")[:, None]
    return _of(scene, scene.output("acc"), shift)


def _sum(scene: Scene) -> Requantization:
    return _of(scene, scene.input("x") + scene.input("y"), int64(0))


def _insert(scene: Scene) -> Requantization:
    op = scene.op
    assert op is not None
    x, position = scene.input("x"), op.attributes["position"]
    tokens = np.concatenate([x[:position], scene.array("cls_token")[None], x[position:]])
    return _of(scene, tokens + scene.array("pos_embed"), int64(0))


def _scan(scene: Scene) -> Requantization | None:
    token_shift = scene.array("state_token_shift")
    if scene.port == "b":
        acc = scene.output("dx")[:, :, None] * scene.input("B")[:, None, :]
        shift = (scene.array("b_shift")[None, :] + token_shift[:, None])[:, :, None]
        return Requantization(acc, shift, -B_LIMIT, B_LIMIT, 31, True)
    if scene.port == "h":
        op = scene.op
        assert op is not None
        known = scene.dumped(op.tensor("acc"))
        # else from the DUT's own state at the token before, so that one error does not hide the next
        acc = scene.output("abar") * earlier_state(scene, True) + scene.output("b") if known is None else known
        return _of(scene, acc, int64(op.attributes["abar_fraction"]))
    if scene.port == "y":
        token = scene.view.out_shifts("y", "token")[:, None]
        return _of(scene, scene.output("y_acc"), scene.array("y_shift")[None, :] + token)
    return None


def earlier_state(scene: Scene, stepped: bool) -> Int64:
    """h' of SPEC 5.7 at each token, from the DUT's h if it was dumped; stepped: rescaled where the exponent steps."""
    op = scene.op
    assert op is not None
    h = scene.output("h")
    before = np.concatenate([np.zeros_like(h[:1]), h[:-1]])
    if not stepped:
        return before
    shift = scene.array("state_token_shift")
    step = np.concatenate([[0], np.diff(shift)])[:, None, None]
    tensor = scene.program.tensors[op.tensor("h")]
    low, high = limits(tensor.bits, tensor.signed)
    return np.clip(round_shift(before, step, scene.program.rounding), low, high)


Variant = tuple[str, str, Callable[[], Int64]]


def accumulators(scene: Scene) -> Iterator[Variant]:
    """(kind, what is wrong, the accumulator then) for `acc`, `y_acc`, `dx` and `b`'s product of the operator."""
    op = scene.op
    if op is None:
        return
    make = {"linear": _linear_acc, "patch_embed": _patch_acc, "conv1d": _conv_acc, "gate": _gate_acc}.get(op.kind)
    if make:
        yield from make(scene)
    elif op.kind == "scan":
        yield from _scan_acc(scene)


def _linear_acc(scene: Scene) -> Iterator[Variant]:
    x, weight, bias = scene.input("x"), scene.array("weight"), scene.array("bias")
    by_channel, by_token = scene.view.shifts("x", "channel"), scene.view.shifts("x", "token")[:, None]

    def acc(x: Int64, weight: Int64, channel: Int64, token: Int64) -> Int64:
        return bias + (((x << channel) @ weight.T) << token)

    bits = scene.input_bits("x")
    if by_channel.any() or by_token.any():
        zero = int64(0)
        yield GROUP, "the inputs' group shifts are not applied in the sum", lambda: acc(x, weight, zero, zero)
    told = f"input x is taken as unsigned {bits} bits"
    yield SIGN, told, lambda: acc(unsigned(x, bits), weight, by_channel, by_token)
    yield SIGN, "the weight is taken as unsigned", lambda: acc(x, unsigned(weight, 8), by_channel, by_token)


def _patch_acc(scene: Scene) -> Iterator[Variant]:
    op = scene.op
    assert op is not None
    pixels, weight, bias = scene.input("image"), scene.array("weight"), scene.array("bias")
    patch, stride = op.attributes["patch"], op.attributes["stride"]
    windows = np.lib.stride_tricks.sliding_window_view(pixels, (patch, patch), axis=(0, 1))[::stride, ::stride]
    inputs = windows.reshape(-1, weight.shape[1])  # [patches, channel row column]

    yield SIGN, "pixel - 128 is taken as unsigned", lambda: bias + unsigned(inputs - 128, 8) @ weight.T
    yield "pixel offset missing", "128 is not subtracted from the pixels", lambda: bias + inputs @ weight.T
    yield SIGN, "the weight is taken as unsigned", lambda: bias + (inputs - 128) @ unsigned(weight, 8).T


def _conv_acc(scene: Scene) -> Iterator[Variant]:
    op = scene.op
    assert op is not None
    x, weight, bias = scene.input("x"), scene.array("weight"), scene.array("bias")
    bits, reverse = scene.input_bits("x"), bool(op.attributes["reverse"])

    def acc(x: Int64, weight: Int64, reverse: bool) -> Int64:
        taps = weight.shape[1]
        rows = x[::-1] if reverse else x
        padded = np.concatenate([np.zeros((taps - 1, x.shape[1]), dtype=np.int64), rows])
        return bias + sum(weight[:, j] * padded[j : j + len(x)] for j in range(taps))

    told = "the input is not reversed" if reverse else "the input is reversed"
    yield REVERSED, told, lambda: acc(x, weight, not reverse)
    yield SIGN, f"input x is taken as unsigned {bits} bits", lambda: acc(unsigned(x, bits), weight, reverse)
    yield SIGN, "the weight is taken as unsigned", lambda: acc(x, unsigned(weight, 8), reverse)
    yield "taps reversed", "the taps are in the opposite order", lambda: acc(x, weight[:, ::-1], reverse)


def _gate_acc(scene: Scene) -> Iterator[Variant]:
    op = scene.op
    assert op is not None
    y, y_b, g = scene.input("y"), scene.input("y_b"), scene.input("g")
    first = op.attributes["y_align"] + scene.view.shifts("y", "token")[:, None]
    second = op.attributes["y_b_align"] + scene.view.shifts("y_b", "token")[:, None]

    def acc(y: Int64, y_b: Int64, g: Int64, first: Int64, second: Int64, reverse: bool = True) -> Int64:
        backward = y_b << second
        return ((y << first) + (backward[::-1] if reverse else backward)) * g

    zero = np.zeros_like(first)
    if scene.view.shifts("y", "token").any() or scene.view.shifts("y_b", "token").any():
        told = "the token groups' shifts of y and y_b are not applied"
        aligns = zero + op.attributes["y_align"], zero + op.attributes["y_b_align"]
        yield GROUP, told, lambda: acc(y, y_b, g, *aligns)
    if first.any() or second.any():
        yield GROUP, "y and y_b are added without alignment", lambda: acc(y, y_b, g, zero, zero)
    yield REVERSED, "y_b is not reversed", lambda: acc(y, y_b, g, first, second, False)
    yield REVERSED, "y_b comes in token order", lambda: acc(y, y_b[::-1], g, first, second)
    for port, values in (("y", y), ("y_b", y_b), ("g", g)):
        bits = scene.input_bits(port)
        loose = unsigned(values, bits)
        args = {"y": (loose, y_b, g), "y_b": (y, loose, g), "g": (y, y_b, loose)}[port]

        def make(args: tuple[Int64, Int64, Int64] = args) -> Int64:
            return acc(*args, first, second)

        yield SIGN, f"input {port} is taken as unsigned {bits} bits", make


def _scan_acc(scene: Scene) -> Iterator[Variant]:
    op = scene.op
    assert op is not None
    token_shift = scene.array("state_token_shift")
    if scene.port == "dx":
        bits = scene.input_bits("u")
        told = f"input u is taken as unsigned {bits} bits"
        yield SIGN, told, lambda: scene.input("delta") * unsigned(scene.input("u"), bits)
    if scene.port in ("acc", "h"):
        if np.diff(token_shift).any():
            told = "h is not rescaled where the token's exponent steps"
            yield GROUP, told, lambda: scene.output("abar") * earlier_state(scene, False) + scene.output("b")
        state_bits = scene.program.tensors[op.tensor("h")].bits

        def loose() -> Int64:
            return scene.output("abar") * unsigned(earlier_state(scene, True), state_bits) + scene.output("b")

        yield SIGN, f"the state is taken as unsigned {state_bits} bits", loose
        yield "state not kept", "the earlier state is taken as 0", lambda: scene.output("b")
        image = scene.row.dump.image
        if image > 0:
            told = f"the state of image {image - 1} is still there at token 0"
            yield "state not cleared", told, lambda: _stale(scene)
    if scene.port in ("y_acc", "y"):
        d, u, h, c = scene.array("D"), scene.input("u"), scene.output("h"), scene.input("C")

        def acc(u: Int64, h: Int64, c: Int64, shift: Int64) -> Int64:
            return d * u + (np.einsum("tcn,tn->tc", h, c) << shift)

        rows = token_shift[:, None]
        if token_shift.any():
            yield GROUP, "the token's shift of the state is not applied", lambda: acc(u, h, c, np.zeros_like(rows))
        u_bits, c_bits = scene.input_bits("u"), scene.input_bits("C")
        h_bits = scene.program.tensors[op.tensor("h")].bits
        yield SIGN, f"input u is taken as unsigned {u_bits} bits", lambda: acc(unsigned(u, u_bits), h, c, rows)
        yield SIGN, f"input C is taken as unsigned {c_bits} bits", lambda: acc(u, h, unsigned(c, c_bits), rows)
        yield SIGN, f"the state is taken as unsigned {h_bits} bits", lambda: acc(u, unsigned(h, h_bits), c, rows)
        yield "D missing", "D * u is not added", lambda: acc(np.zeros_like(u), h, c, rows)
    if scene.port == "b":
        bits = scene.input_bits("B")

        def product() -> Int64:
            return scene.output("dx")[:, :, None] * unsigned(scene.input("B"), bits)[:, None, :]

        yield SIGN, f"input B is taken as unsigned {bits} bits", product


def _stale(scene: Scene) -> Int64:
    """The scan's accumulator with the last state of the image before in place of zeros at the first token."""
    op = scene.op
    assert op is not None
    h = earlier_state(scene, True)
    h[0] = scene.golden(op.tensor("h"), scene.row.dump.image - 1)[-1]
    return scene.output("abar") * h + scene.output("b")
