"""Accumulator widths (SPEC section 7): the proven interval is right, reached where it can be, and enforced.

The formulas are written here again, in Python integers.  "Reached": an input that drives the accumulator to each end
of the interval exactly, the rounding constant of the next requantization aside.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from intsim.arithmetic import ROUNDINGS
from intsim.builder import Builder, Out
from intsim.errors import ProgramError
from intsim.operators import KINDS, View
from intsim.operators.base import Bound
from intsim.oracle import Oracle
from intsim.program import Operator, Program, Tensor, Term
from intsim.roms import exp2_rom
from intsim.synthetic import Size, random_program
from intsim.validate import check_operator, validate


class Bench:
    """A Builder with planted input tensors, so that an operator can be given any format."""

    def __init__(self) -> None:
        self.b = Builder("bench", image=(1, 1, 1), classes=["one"])

    def plant(self, name: str, shape: tuple[int, int], exponent: int, bits: int = 8, signed: bool = True,
              axis: str | None = None, shifts: tuple[int, ...] = (), index: Any = None) -> str:  # fmt: skip
        terms: tuple[Term, ...] = ()
        if axis is not None:
            self.b.program.arrays[f"{name}.group"] = np.array(index, dtype=np.uint8)
            terms = (Term(axis, shifts=shifts, index=f"{name}.group"),)
        tensor = Tensor(name, "output", ("token", "channel"), shape, bits, signed, exponent, terms)
        self.b.program.tensors[name] = tensor
        return name

    def bound(self, op: Operator, port: str = "acc") -> list[tuple[int, int]]:
        return ends(check_operator(self.b.program, op)[port])

    def run(self, op: Operator, **x: Any) -> dict[str, np.ndarray]:
        return KINDS[op.kind].run(View(self.b.program, op), {k: np.asarray(v, dtype=np.int64) for k, v in x.items()})


def ends(bound: Bound) -> list[tuple[int, int]]:
    low, high = np.broadcast_arrays(bound.low, bound.high)
    return [(int(a), int(b)) for a, b in zip(low, high, strict=True)]


def constant(shift: int) -> int:
    """What a rounding unit adds before it shifts right."""
    return 2 ** (shift - 1) if shift > 0 else 0


def linear(bench: Bench, x: str, weight: Any, bias: Any, exponent: Any, out: Out | None = None) -> Operator:
    rows = len(bias)
    constants = {"weight": weight, "weight_exponent": exponent, "bias": bias}
    segments = [{"port": "out", "start": 0, "stop": rows}]
    return bench.b.add("linear", "l", {"x": x}, constants, {"segments": segments}, {"out": out or Out(8, 0)})


# --- the bound is reached --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [8, 5, 1])
@pytest.mark.parametrize("axis", ["channel", "token", None])
def test_linear_reaches_its_bound(axis: str | None, bits: int) -> None:
    rng = np.random.default_rng(bits)
    columns, rows, tokens = 9, 6, 3
    bench = Bench()
    positions = {"channel": columns, "token": tokens, None: 0}[axis]
    x = bench.plant("x", (tokens, columns), 0, bits, axis=axis, shifts=(0, 3, 9), index=np.arange(positions) % 3)
    weight = rng.integers(-128, 128, (rows, columns))
    weight[0], weight[1, :] = 0, -128
    bias = rng.integers(-(2**24), 2**24, rows)
    exponent = np.array([3, -3, 0, 1, -20, -9])
    op = linear(bench, x, weight, bias, exponent)
    low_x, high_x = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    shift = [[0, 3, 9][c % 3] if axis == "channel" else 9 if axis == "token" else 0 for c in range(columns)]
    worst = 2 if axis == "token" else 0  # the token with the largest shift
    for o, (low, high) in enumerate(bench.bound(op)):
        up = np.where(weight[o] > 0, high_x, low_x)
        down = np.where(weight[o] > 0, low_x, high_x)
        for vector, end in ((up, high - constant(-int(exponent[o]))), (down, low)):
            total = int(bias[o]) + sum(int(v) * int(w) * 2**s for v, w, s in zip(vector, weight[o], shift, strict=True))
            assert total == end, f"channel {o}: the bound is not tight"
            acc = bench.run(op, x=np.tile(vector, (tokens, 1)))["acc"]
            assert int(acc[worst, o]) == end
            assert (acc[:, o] <= high).all() and (acc[:, o] >= low).all()


def test_conv1d_and_patch_embed_reach_their_bounds() -> None:
    rng = np.random.default_rng(2)
    bench = Bench()
    x = bench.plant("x", (4, 5), -1, axis="channel", shifts=(0, 15), index=[0, 1, 0, 1, 1])
    weight, bias = rng.integers(-128, 128, (5, 4)), rng.integers(-(2**20), 2**20, 5)
    exponent = np.array([0, -8, 0, -16, -31])
    constants = {"weight": weight, "weight_exponent": exponent, "bias": bias}
    op = bench.b.add("conv1d", "c", {"x": x}, constants, {"reverse": 0}, {"out": Out(8, -1)})
    shift = [-int(e) - [0, 15, 0, 15, 15][c] for c, e in enumerate(exponent)]
    up, down = np.where(weight > 0, 127, -128).T, np.where(weight > 0, -128, 127).T
    for c, (low, high) in enumerate(bench.bound(op)):
        assert int(bench.run(op, x=up)["acc"][3, c]) == high - constant(shift[c])
        assert int(bench.run(op, x=down)["acc"][3, c]) == low

    b = Builder("patch", image=(2, 2, 3), classes=["one"])
    weight, bias = rng.integers(-128, 128, (1, 12)), np.array([12345])
    constants = {"weight": weight, "weight_exponent": np.array([-7]), "bias": bias}
    op = b.add("patch_embed", "p", {"image": "image"}, constants, {"patch": 2, "stride": 1}, {"out": Out(16, 0)})
    ((low, high),) = ends(check_operator(b.program, op)["acc"])
    for wanted, positive, negative in ((high - 64, 255, 0), (low, 0, 255)):
        pixels = np.where(weight[0] > 0, positive, negative).reshape(3, 2, 2).transpose(1, 2, 0).astype(np.uint8)
        assert int(Oracle(b.program).run_one(pixels)["p.acc"][0, 0]) == wanted


def test_gate_reaches_its_bound() -> None:
    bench = Bench()
    y = bench.plant("y", (2, 1), -3, axis="token", shifts=(0, 5), index=[0, 1])
    y_b = bench.plant("y_b", (2, 1), -1, bits=6, axis="token", shifts=(4, 0), index=[0, 1])
    g = bench.plant("g", (2, 1), 0)
    op = bench.b.add("gate", "gate", {"y": y, "y_b": y_b, "g": g}, {}, {}, {"out": Out(8, 3)})
    ((low, high),) = bench.bound(op)
    after = constant(3 + 4)
    ys, ys_b = (-128 * 2**5, 127 * 2**5), (-32 * 2**6, 31 * 2**6)  # token 1 meets row 0 of y_b
    products = [(a + b) * v for a, b in zip(ys, ys_b, strict=True) for v in (-128, 127)]
    assert (low, high) == (min(products), max(products) + after)
    extremes = [
        int(bench.run(op, y=[[0], [a]], y_b=[[b], [0]], g=[[0], [v]])["acc"][1, 0])
        for a in (-128, 127) for b in (-32, 31) for v in (-128, 127)
    ]  # fmt: skip
    assert min(extremes) == low and max(extremes) == high - after


def scan(tokens: int, states: int, bits: int, m: int, d: int, s_l: Any, e_h: int) -> tuple[Bench, Operator]:
    bench = Bench()
    ports = {
        "delta": bench.plant("delta", (tokens, 1), 0, signed=False),
        "u": bench.plant("u", (tokens, 1), 0),
        "B": bench.plant("B", (tokens, states), 0),
        "C": bench.plant("C", (tokens, states), 0),
    }
    constants = {
        "A": [[0] * states], "A_exponent": [-19], "D": [d], "state_channel_shift": [0], "state_token_shift": s_l,
        "exp2_rom": np.array(exp2_rom()),
    }  # fmt: skip
    formats = {"h": Out(bits, e_h), "y": Out(8, 0)}
    return bench, bench.b.add("scan", "s", ports, constants, {"abar_fraction": m}, formats)


@pytest.mark.parametrize(("bits", "m"), [(16, 15), (8, 15), (8, 8), (1, 1), (16, 1)])
def test_scan_reaches_its_bounds(bits: int, m: int) -> None:
    """A-bar 1, the state at its end, b at its clamp; then y from a full state, C = -128 and D u."""
    e_h, d, states = -14 if m == 15 else -29 + m, -(2**15), 3
    bench, op = scan(6, states, bits, m, d, [0, 0, 0, 0, 0, 2], e_h)
    ((low, high),) = bench.bound(op, "acc")
    top, bottom, clamp = 2 ** (bits - 1) - 1, -(2 ** (bits - 1)), 2**30 - 1
    assert (low, high) == (bottom * 2**m - clamp, top * 2**m + clamp + 2 ** (m - 1))
    assert low >= -(2**31) and high < 2**31
    ((y_low, y_high),) = bench.bound(op, "y_acc")
    after = constant(-e_h)
    assert y_high == 2**15 * 128 + states * bottom * -128 * 4 + after
    assert y_low == -(2**15) * 127 - states * max(top * 128, -bottom * 127) * 4
    big = np.full((6, states), 127)
    for sign, end, y_end in ((-1, low, y_high - after), (1, high - 2 ** (m - 1), y_low)):
        u = np.full((6, 1), 127)
        u[5] = -128 if sign < 0 else 127
        b_in = sign * big
        b_in[5] *= -1 if u[5] < 0 else 1
        c = np.full((6, states), -128 if sign < 0 or top * 128 >= -bottom * 127 else 127)
        got = bench.run(op, delta=np.full((6, 1), 255), u=u, B=b_in, C=c)
        assert (np.abs(got["b"][:5]) == clamp).all(), "the clamp is not reached"
        assert (got["h"][2:] == (bottom if sign < 0 else top)).all()
        assert int(got["acc"][4].min() if sign < 0 else got["acc"][4].max()) == end
        reached = int(got["y_acc"][5, 0])
        if sign < 0 or top * 128 >= -bottom * 127:
            assert reached == y_end
        assert y_low <= reached <= y_high


@pytest.mark.parametrize("mode", ROUNDINGS)
def test_scan_bound_holds_for_adversaries_of_2000_tokens(mode: str) -> None:
    """Signs that flip when the state is full, token shifts that jump, A-bar near 1 and near 0: 2,000 tokens."""
    tokens, channels, states = 2000, 4, 2
    for bits, seed in ((16, 0), (8, 1)):
        rng = np.random.default_rng(seed)
        bench = Bench()
        bench.b.program.rounding = mode
        ports = {
            "delta": bench.plant("delta", (tokens, channels), 0, signed=False),
            "u": bench.plant("u", (tokens, channels), 0),
            "B": bench.plant("B", (tokens, states), 0),
            "C": bench.plant("C", (tokens, states), 0),
        }
        s_l = rng.integers(0, 6, tokens) if bits == 16 else rng.integers(0, 16, tokens)
        constants = {
            "A": [[0, 1], [3, 255], [0, 0], [255, 0]],
            "A_exponent": [-19, -10, 0, -31],
            "D": [2**20, -(2**20), 0, 1],
            "state_channel_shift": [0, 1, 2, 3],
            "state_token_shift": s_l,
            "exp2_rom": np.array(exp2_rom()),
        }
        formats = {"h": Out(bits, -16), "y": Out(8, 0)}
        op = bench.b.add("scan", "s", ports, constants, {"abar_fraction": 15}, formats)
        period = np.repeat(np.where(rng.random(tokens // 20) < 0.5, -1, 1), 20)[:, None]
        got = bench.run(
            op,
            delta=np.where(rng.random((tokens, channels)) < 0.8, 255, rng.integers(0, 256, (tokens, channels))),
            u=np.where(rng.random((tokens, channels)) < 0.8, -128, 127),
            B=np.clip(period * np.where(rng.random((tokens, states)) < 0.9, 128, -128), -128, 127),
            C=np.where(rng.random((tokens, states)) < 0.5, -128, 127),
        )
        bounds = check_operator(bench.b.program, op)
        ((low, high),) = ends(bounds["acc"])
        assert low <= got["acc"].min() and got["acc"].max() + 2**14 <= high < 2**31
        assert got["acc"].min() < low * 0.99 and got["acc"].max() > high * 0.99, "not adversarial"
        for c, (y_low, y_high) in enumerate(ends(bounds["y_acc"])):
            assert y_low <= got["y_acc"][:, c].min() and got["y_acc"][:, c].max() <= y_high
        assert np.abs(got["b"]).max() == 2**30 - 1


# --- the formulas, and random networks -------------------------------------------------------------------------------


def formula(p: Program, op: Operator) -> dict[str, list[tuple[int, int]]]:
    """SPEC section 7 in Python integers, for each channel."""
    c = {role: p.arrays[name].tolist() for role, name in op.constants.items()}
    shape = {port: p.tensors[name] for port, name in op.inputs.items()}

    def fmt(bits: int, signed: bool = True) -> tuple[int, int]:
        return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)

    def group(tensor: str, axis: str) -> list[int]:
        t = p.tensors[tensor]
        for term in t.terms:
            if term.axis == axis and term.shifts is not None:
                return [term.shifts[i] for i in p.arrays[str(term.index)].tolist()]
        return [0] * t.shape[t.axes.index(axis)]

    if op.kind in ("linear", "conv1d", "patch_embed"):
        low_x, high_x = (-128, 127) if op.kind == "patch_embed" else fmt(shape["x"].bits)
        columns = len(c["weight"][0])
        shift = [0] * columns
        if op.kind == "linear":
            most = max(group(op.inputs["x"], "token"))
            shift = [s + most for s in group(op.inputs["x"], "channel")]
        found = []
        for o, row in enumerate(c["weight"]):
            low = c["bias"][o] + sum(min(w * low_x, w * high_x) * 2**s for w, s in zip(row, shift, strict=True))
            high = c["bias"][o] + sum(max(w * low_x, w * high_x) * 2**s for w, s in zip(row, shift, strict=True))
            found.append((low, high + constant(c["shift"][o])))
        return {"acc": found}
    if op.kind == "scan":
        m, (h_low, h_high) = op.attributes["abar_fraction"], fmt(p.tensors[f"{op.name}.h"].bits)
        (c_low, c_high), (u_low, u_high) = fmt(shape["C"].bits), fmt(shape["u"].bits)
        states, most = shape["B"].shape[1], max(c["state_token_shift"])
        products = [h * v for h in (h_low, h_high) for v in (c_low, c_high)]
        after = max(group(f"{op.name}.y", "token"))
        found = [
            (
                min(d * u_low, d * u_high) + states * min(products) * 2**most,
                max(d * u_low, d * u_high) + states * max(products) * 2**most + constant(s + after),
            )
            for d, s in zip(c["D"], c["y_shift"], strict=True)
        ]
        clamp = 2**30 - 1
        return {"acc": [(h_low * 2**m - clamp, h_high * 2**m + clamp + 2 ** (m - 1))], "y_acc": found}
    if op.kind == "gate":
        low = high = 0
        for port in ("y", "y_b"):
            most = op.attributes[f"{port}_align"] + max(group(op.inputs[port], "token"))
            low += fmt(shape[port].bits)[0] * 2**most
            high += fmt(shape[port].bits)[1] * 2**most
        products = [v * w for v in (low, high) for w in fmt(shape["g"].bits)]
        after = max(group(f"{op.name}.out", "token"))
        return {"acc": [(min(products), max(products) + constant(s + after)) for s in c["shift"]]}
    return {}


@pytest.mark.parametrize("seed", range(8))
def test_observed_within_proven_within_declared(seed: int) -> None:
    size = Size(image=(6, 9, 3), patch=3, stride=3, width=5, depth=2, inner=7, states=3)
    program = random_program(
        seed, size, state_bits=(8, 16)[seed % 2], k=(4, 1)[seed % 3 == 0], rounding=ROUNDINGS[seed % 4],
        activation_bits=8 - seed % 3, extreme=0.2,
    )  # fmt: skip
    rng = np.random.default_rng(seed)
    images = [rng.integers(0, 256, size.image), rng.integers(0, 2, size.image) * 255, np.full(size.image, 255)]
    runs = [Oracle(program).run_one(image.astype(np.uint8)) for image in images]
    proven = 0
    for op in program.operators:
        wanted = formula(program, op)
        bounds = check_operator(program, op)
        assert set(bounds) == set(wanted)
        for port, bound in bounds.items():
            assert ends(bound) == wanted[port], f"{op.name}.{port}"
            assert program.tensors[f"{op.name}.{port}"].bits == 32
            low, high = np.broadcast_arrays(bound.low, bound.high)
            assert low.min() >= -(2**31) and high.max() < 2**31
            proven += 1
            for got in runs:
                values = got[f"{op.name}.{port}"].astype(np.int64)
                channels = np.moveaxis(values, 1, 0).reshape(values.shape[1], -1)
                assert (channels.min(axis=1) >= low).all() and (channels.max(axis=1) <= high).all()
    assert proven == 2 + size.depth * 13


def test_every_accumulator_has_a_bound() -> None:
    """All tensors of that role but `square_sum`, whose 48 bits are enough by construction."""
    program = random_program(3)
    for op in program.operators:
        accumulators = {p for p in op.outputs if program.tensors[op.tensor(p)].role == "accumulator"}
        assert set(check_operator(program, op)) == accumulators - {"square_sum"}


# --- the bound is enforced, to the last unit -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weight", "bias", "exponent", "bits"),
    [
        ([[127, 127]], [2**31 - 1 - 2 * 127 * 127], [0], None),
        ([[127, 127]], [2**31 - 2 * 127 * 127], [0], 33),
        ([[127, 127]], [2**31 - 1 - 2 * 127 * 127 - 4], [-3], None),
        ([[127, 127]], [2**31 - 1 - 2 * 127 * 127 - 3], [-3], 33),  # the rounding constant does not fit
        ([[-128, 127]], [-(2**31) + 128 * 127 + 127 * 128], [0], None),
        ([[-128, 127]], [-(2**31) + 128 * 127 + 127 * 128 - 1], [0], 33),
        ([[0, 0]], [2**31 - 1], [0], None),
    ],
)
def test_refused_to_the_last_unit(weight: Any, bias: list[int], exponent: list[int], bits: int | None) -> None:
    bench = Bench()
    x = bench.plant("x", (1, 2), 0)
    if bits is None:
        linear(bench, x, weight, bias, exponent)
        return
    with pytest.raises(ProgramError, match=rf"operator l \(linear\): accumulator acc, channel 0, needs {bits} bits"):
        linear(bench, x, weight, bias, exponent)


def test_the_refusal_names_operator_channel_and_bits() -> None:
    bench = Bench()
    x = bench.plant("x", (1, 4), 0, axis="channel", shifts=(0, 15), index=[1, 1, 1, 1])
    with pytest.raises(ProgramError, match=r"operator l \(linear\): accumulator acc, channel 2, needs 33 bits, 32 are"):
        linear(bench, x, [[-128, 0, 0, 0], [1, 1, 1, 1], [-128] * 4], [0, 0, 0], [0, 0, 0])
    with pytest.raises(ProgramError, match=r"operator s \(scan\): accumulator y_acc, channel 0, needs 33 bits"):
        scan(2, 256, 16, 15, 0, [0, 1], -14)
    scan(2, 256, 16, 15, 0, [0, 0], -14)
    y, g = bench.plant("y", (1, 1), 20), bench.plant("g", (1, 1), 0)
    y_b = bench.plant("y_b", (1, 1), 0)
    with pytest.raises(ProgramError, match=r"operator gate \(gate\): accumulator acc, channel 0, needs 36 bits"):
        bench.b.add("gate", "gate", {"y": y, "y_b": y_b, "g": g}, {}, {}, {"out": Out(8, 0)})
    bench.plant("y", (1, 1), 32)
    with pytest.raises(ProgramError, match=r"operator gate"):
        bench.b.add("gate", "gate", {"y": "y", "y_b": y_b, "g": g}, {}, {}, {"out": Out(8, 0)})


def test_a_program_with_larger_weights_is_refused_whole() -> None:
    program = random_program(5)
    validate(program)
    name = "layers.0.mixer.out_proj.bias"
    program.arrays[name] = program.arrays[name].copy()
    program.arrays[name][3] = 2**31 - 1
    with pytest.raises(ProgramError, match=r"out_proj \(linear\): accumulator acc, channel 3, needs 33 bits"):
        validate(program)
