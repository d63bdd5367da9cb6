"""Each operator's oracle against a scalar re-implementation of SPEC section 5, written here from the page.

`Naive` works on nested lists of Python integers, one element at a time.  It takes from a Program only what a designer
would take: declarations, given constants and attributes; every shift is recomputed from the exponents and must equal
the stored one.
"""

from __future__ import annotations

import re
from dataclasses import replace
from math import isqrt
from typing import Any

import numpy as np
import pytest

from intsim.arithmetic import ROUNDINGS
from intsim.builder import Builder, Out
from intsim.errors import ProgramError
from intsim.operators import KINDS, View
from intsim.oracle import Oracle
from intsim.program import Operator, Program, Tensor, Term
from intsim.roms import exp2_rom
from intsim.synthetic import Size, random_program
from intsim.validate import validate

Values = dict[str, Any]


# --- SPEC section 2 --------------------------------------------------------------------------------------------------


def rs(v: int, s: int, mode: str) -> int:
    """round_shift with divmod."""
    if s <= 0:
        return v * 2**-s
    below, rest = divmod(v, 2**s)
    tie = 2 ** (s - 1)
    up = {
        "floor": False,
        "half_up": rest >= tie,
        "half_away": rest > tie or (rest == tie and v > 0),
        "half_even": rest > tie or (rest == tie and below % 2 == 1),
    }
    return below + int(up[mode])


def clamp(v: int, low: int, high: int) -> int:
    return max(low, min(high, v))


# --- SPEC section 5 --------------------------------------------------------------------------------------------------


class Naive:
    """One operator of a Program; call it with its inputs as nested lists, by port."""

    def __init__(self, program: Program, op: Operator):
        self.p, self.op, self.mode = program, op, program.rounding

    def c(self, role: str) -> Any:
        return self.p.arrays[self.op.constants[role]].tolist()

    def a(self, name: str) -> Any:
        return self.op.attributes[name]

    def t(self, port: str) -> Tensor:
        """The tensor at an input port, or, with a dot before it, at an output port (`in_proj` has an `x` of both)."""
        return self.p.tensors[self.op.name + port if port.startswith(".") else self.op.inputs[port]]

    def e(self, port: str, channel: int | None = None) -> int:
        """e(T), or e(T, c) with the terms on `channel`."""
        t = self.t(port)
        assert t.exponent is not None
        total = t.exponent
        if channel is not None:
            for term in t.terms:
                if term.axis == "channel" and term.offset is not None:
                    total += int(self.p.arrays[term.offset][channel])
            total += self.shift(port, "channel", channel)
        return total

    def shift(self, port: str, axis: str, i: int) -> int:
        """T.shift[i]: the group term on an axis, 0 without one."""
        for term in self.t(port).terms:
            if term.shifts is not None and term.axis == axis:
                return term.shifts[int(self.p.arrays[str(term.index)][i])]
        return 0

    def sat(self, v: int, port: str) -> int:
        t = self.t(port)
        return clamp(v, -(2 ** (t.bits - 1)), 2 ** (t.bits - 1) - 1) if t.signed else clamp(v, 0, 2**t.bits - 1)

    def requantize(self, v: int, s: int, port: str) -> int:
        return self.sat(rs(v, s, self.mode), port)

    def derived(self, role: str, values: list[int]) -> list[int]:
        assert self.c(role) == values, f"{self.op.name}: stored {role} is not what the exponents imply"
        return values

    def __call__(self, x: Values) -> Values:
        return getattr(self, self.op.kind)(**x)

    def patch_embed(self, image: Any) -> Values:
        height, width, channels = self.t("image").shape
        patch, stride = self.a("patch"), self.a("stride")
        w, we, bias = self.c("weight"), self.c("weight_exponent"), self.c("bias")
        ph, pw = (height - patch) // stride + 1, (width - patch) // stride + 1
        shift = self.derived("shift", [self.e(".out") - e for e in we])
        acc = []
        for p in range(ph * pw):
            row = []
            for d in range(len(bias)):
                total = bias[d]
                for ch in range(channels):
                    for i in range(patch):
                        for j in range(patch):
                            pixel = image[(p // pw) * stride + i][(p % pw) * stride + j][ch]
                            total += (pixel - 128) * w[d][(ch * patch + i) * patch + j]
                row.append(total)
            acc.append(row)
        out = [[self.requantize(v, shift[d], ".out") for d, v in enumerate(row)] for row in acc]
        return {"acc": acc, "out": out}

    def insert_token(self, x: Any) -> Values:
        cls, pos = self.c("cls_token"), self.c("pos_embed")
        position = len(x) // 2
        assert self.a("position") == position
        out = []
        for t in range(len(x) + 1):
            u = x[t] if t < position else cls if t == position else x[t - 1]
            out.append([self.sat(u[d] + pos[t][d], ".out") for d in range(len(cls))])
        return {"out": out}

    def rmsnorm(self, x: Any) -> Values:
        width = len(x[0])
        a = 0
        while width * 4 ** (a + 1) < 1024:
            a += 1
        assert (self.a("d_shift"), self.a("d_norm")) == (a, width * 4**a)
        gamma, ge = self.c("gamma"), self.c("gamma_exponent")
        shift = self.derived("shift", [self.e(".out", d) - (ge[d] - 12) for d in range(width)])
        made: Values = {"square_sum": [], "rsqrt": [], "normed": [], "out": []}
        for q in x:
            square_sum = self.a("eps_q") + sum(v * v for v in q)
            k = (32 - len(f"{square_sum:b}")) // 2
            w = square_sum * 4**k if k >= 0 else square_sum // 4**-k
            quotient = (width * 4**a * 2**52) // w
            r = 0
            for bit in reversed(range(20)):  # the root, bit by bit
                if (r + 2**bit) ** 2 <= quotient:
                    r += 2**bit
            normed = [rs(v * r, 14 + a - k, self.mode) for v in q]
            made["square_sum"].append(square_sum)
            made["rsqrt"].append(r)
            made["normed"].append(normed)
            made["out"].append([self.requantize(normed[d] * gamma[d], shift[d], ".out") for d in range(width)])
        return made

    def linear(self, x: Any) -> Values:
        w, we, bias = self.c("weight"), self.c("weight_exponent"), self.c("bias")
        acc = []
        for t in range(len(x)):
            row = []
            for o in range(len(bias)):
                total = bias[o]
                for c in range(len(x[0])):
                    total += x[t][c] * w[o][c] * 2 ** (self.shift("x", "channel", c) + self.shift("x", "token", t))
                row.append(total)
            acc.append(row)
        made: Values = {"acc": acc}
        shift = []
        for segment in self.a("segments"):
            port, start = segment["port"], segment["start"]
            part = [self.e("." + port, o - start) - (self.e("x") + we[o]) for o in range(start, segment["stop"])]
            made[port] = [[self.requantize(row[start + i], s, "." + port) for i, s in enumerate(part)] for row in acc]
            shift += part
        self.derived("shift", shift)
        return made

    def conv1d(self, x: Any) -> Values:
        w, we, bias = self.c("weight"), self.c("weight_exponent"), self.c("bias")
        tokens, channels, taps = len(x), len(x[0]), len(w[0])
        shift = self.derived("shift", [self.e(".out", c) - (self.e("x", c) + we[c]) for c in range(channels)])
        acc = []
        for t in range(tokens):
            row = list(bias)
            for c in range(channels):
                for j in range(taps):
                    s = t - (taps - 1) + j
                    if s >= 0:
                        row[c] += w[c][j] * x[tokens - 1 - s if self.a("reverse") else s][c]
            acc.append(row)
        return {"acc": acc, "out": [[self.requantize(v, shift[c], ".out") for c, v in enumerate(row)] for row in acc]}

    def rom(self, x: Any) -> Values:
        rom, index = self.c("rom"), self.c("rom_index")
        return {"out": [[rom[index[c]][v + 128] for c, v in enumerate(row)] for row in x]}

    def exp2(self, p: int, f: int, m: int) -> int:
        rom = self.c("exp2_rom")
        t = p * 2 ** (19 - f) if f <= 19 else p // 2 ** (f - 19)
        whole, rest = divmod(t, 2**19)
        j, r = divmod(rest, 4096)
        return rs(rom[j] * 4096 - (rom[j] - rom[j + 1]) * r, min(29 - m + whole, 31), self.mode)

    def scan(self, delta: Any, u: Any, B: Any, C: Any) -> Values:  # noqa: N803 - the specification's names
        a, ae, d = self.c("A"), self.c("A_exponent"), self.c("D")
        s_c, s_l, m = self.c("state_channel_shift"), self.c("state_token_shift"), self.a("abar_fraction")
        tokens, channels, states = len(u), len(u[0]), len(B[0])
        every = range(channels)
        f = self.derived("A_fraction", [-(self.e("delta", c) + ae[c]) for c in every])
        b_shift = self.derived(
            "b_shift",
            [(self.e(".h") + s_c[c] - m) - (self.e("delta", c) + self.e("u", c) + self.e("B")) for c in every],
        )
        y_shift = self.derived("y_shift", [self.e(".y") - (self.e(".h") + s_c[c] + self.e("C")) for c in every])
        limit = 2**30 - 1
        made: Values = {port: [] for port in ("dx", "abar", "b", "acc", "h", "y_acc", "y")}
        for t in range(tokens):
            row: Values = {port: [] for port in made}
            for c in every:
                dx = delta[t][c] * u[t][c]
                cell: Values = {port: [] for port in ("abar", "b", "acc", "h")}
                y_sum = 0
                for n in range(states):
                    abar = self.exp2(delta[t][c] * a[c][n], f[c], m)
                    b = clamp(rs(dx * B[t][n], b_shift[c] + s_l[t], self.mode), -limit, limit)
                    before = 0
                    if t > 0:
                        before = self.requantize(made["h"][t - 1][c][n], s_l[t] - s_l[t - 1], ".h")
                    acc = abar * before + b
                    h = self.requantize(acc, m, ".h")
                    y_sum += h * C[t][n]
                    for port, v in (("abar", abar), ("b", b), ("acc", acc), ("h", h)):
                        cell[port].append(v)
                y_acc = d[c] * u[t][c] + y_sum * 2 ** s_l[t]
                y = self.requantize(y_acc, y_shift[c] + self.shift(".y", "token", t), ".y")
                for port, v in (*cell.items(), ("dx", dx), ("y_acc", y_acc), ("y", y)):
                    row[port].append(v)
            for port, v in row.items():
                made[port].append(v)
        return made

    def gate(self, y: Any, y_b: Any, g: Any) -> Values:
        tokens, channels = len(g), len(g[0])
        e_s = min(self.e("y"), self.e("y_b"))
        assert self.a("y_align") == self.e("y") - e_s and self.a("y_b_align") == self.e("y_b") - e_s
        shift = self.derived("shift", [self.e(".out", c) - (e_s + self.e("g", c) - 1) for c in range(channels)])
        acc, out = [], []
        for t in range(tokens):
            s = tokens - 1 - t
            left = 2 ** (self.e("y") - e_s + self.shift("y", "token", t))
            left_b = 2 ** (self.e("y_b") - e_s + self.shift("y_b", "token", s))
            row = [(y[t][c] * left + y_b[s][c] * left_b) * g[t][c] for c in range(channels)]
            acc.append(row)
            group = self.shift(".out", "token", t)
            out.append([self.requantize(v, shift[c] + group, ".out") for c, v in enumerate(row)])
        return {"acc": acc, "out": out}

    def add(self, x: Any, y: Any) -> Values:
        return {"out": [[self.sat(v + y[t][c], ".out") for c, v in enumerate(row)] for t, row in enumerate(x)]}

    def select_token(self, x: Any) -> Values:
        return {"out": [x[self.a("position")]]}


def run_naive(program: Program, image: np.ndarray) -> Values:
    values: Values = {"image": image.tolist()}
    for op in program.operators:
        made = Naive(program, op)({port: values[name] for port, name in op.inputs.items()})
        assert set(made) == set(op.outputs)
        values.update({f"{op.name}.{port}": v for port, v in made.items()})
    return values


def same(got: dict[str, Any], wanted: Values) -> None:
    assert list(got) == list(wanted)
    for name, v in wanted.items():
        assert np.array_equal(np.asarray(got[name]), np.asarray(v)), f"{name} differs"


# --- whole networks, every tensor ------------------------------------------------------------------------------------

ODD = Size(image=(7, 10, 2), patch=3, stride=2, width=5, depth=2, inner=6, states=3, dt_rank=1, taps=3, classes=4)
ONE = Size(image=(3, 4, 1), patch=3, stride=4, width=1, depth=1, inner=1, states=1, dt_rank=1, taps=1, classes=1)
NETWORKS: list[dict[str, Any]] = [
    {"state_bits": 8, "extreme": 0.0},
    {"state_bits": 16, "extreme": 0.0},
    {"size": ODD, "state_bits": 8, "extreme": 0.3, "abar_fraction": 8},
    {"size": ODD, "state_bits": 16, "extreme": 0.3},
    {"size": ONE, "state_bits": 4, "extreme": 0.5, "abar_fraction": 1, "k": 2},
    {"size": ODD, "k": 1, "extreme": 0.3, "activation_bits": 5},
]


@pytest.mark.parametrize("mode", ROUNDINGS)
@pytest.mark.parametrize("network", range(len(NETWORKS)))
def test_whole_network(network: int, mode: str) -> None:
    program = random_program(100 * network + ROUNDINGS.index(mode), rounding=mode, **NETWORKS[network])
    rng = np.random.default_rng(network)
    noise = rng.integers(0, 256, program.image, dtype=np.uint8)
    for image in (noise, np.where(noise > 127, 255, 0).astype(np.uint8)):
        got = Oracle(program).run_one(image)
        same(got, run_naive(program, image))
        for name, array in got.items():
            assert array.dtype == program.tensors[name].dtype


# --- single operators, any input -------------------------------------------------------------------------------------


class Bench:
    """A Builder with planted input tensors, so that an operator can be given any integers."""

    def __init__(self, mode: str = "half_up"):
        self.b = Builder("bench", rounding=mode, image=(1, 1, 1), classes=["one"])

    def plant(
        self, name: str, shape: tuple[int, ...], exponent: int, *, bits: int = 8, signed: bool = True,
        axis: str | None = None, shifts: tuple[int, ...] = (), index: Any = None,
    ) -> str:  # fmt: skip
        terms: tuple[Term, ...] = ()
        if axis is not None:
            self.b.program.arrays[f"{name}.group"] = np.array(index, dtype=np.uint8)
            terms = (Term(axis, shifts=shifts, index=f"{name}.group"),)
        tensor = Tensor(name, "output", ("token", "channel"), shape, bits, signed, exponent, terms)
        self.b.program.tensors[name] = tensor
        return name

    def run(self, op: Operator, **x: Any) -> dict[str, Any]:
        """The oracle's outputs, compared with the naive ones."""
        arrays = {port: np.asarray(v, dtype=np.int64) for port, v in x.items()}
        got = KINDS[op.kind].run(View(self.b.program, op), arrays)
        wanted = Naive(self.b.program, op)({port: v.tolist() for port, v in arrays.items()})
        same({port: got[port] for port in wanted}, wanted)
        for port, v in got.items():
            low, high = (Naive(self.b.program, op).sat(v, "." + port) for v in (-(2**62), 2**62))
            assert low <= v.min() and v.max() <= high, f"{port} leaves its declared width"
        return got


def test_patch_order_stride_and_image_shape() -> None:
    """Input k = (ch * patch + i) * patch + j, patches row by row, stride below patch, pixels left over."""
    height, width, patch, stride = 5, 8, 3, 2
    k = 2 * patch * patch
    b = Builder("order", image=(height, width, 2), classes=["one"] * k)
    op = b.add(
        "patch_embed",
        "p",
        {"image": "image"},
        {"weight": np.eye(k, dtype=np.int64), "weight_exponent": np.zeros(k, int), "bias": np.zeros(k, int)},
        {"patch": patch, "stride": stride},
        {"out": Out(16, 0)},
    )
    image = np.random.default_rng(0).integers(0, 256, (height, width, 2), dtype=np.uint8)
    out = Oracle(b.finish()).run_one(image)["p.out"]
    assert out.shape == (2 * 3, k) and op.outputs == ("acc", "out")
    for p, ch, i, j in ((0, 0, 0, 0), (1, 0, 2, 1), (4, 1, 1, 2), (5, 1, 2, 2), (2, 1, 0, 1)):
        at = (ch * patch + i) * patch + j
        assert out[p, at] == int(image[(p // 3) * stride + i, (p % 3) * stride + j, ch]) - 128
    image[:, 7, :] = 0  # no patch covers the last column
    assert np.array_equal(Oracle(b.program).run_one(image)["p.out"], out)


@pytest.mark.parametrize(("patches", "position"), [(1, 0), (2, 1), (5, 2), (6, 3)])
def test_class_token_position(patches: int, position: int) -> None:
    bench = Bench()
    x = bench.plant("x", (patches, 2), -9, bits=16)
    pos_embed = np.arange(2 * patches + 2).reshape(-1, 2) * 100
    constants = {"cls_token": [7, -7], "pos_embed": pos_embed}
    formats = {"out": Out(16, -9)}
    op = bench.b.add("insert_token", "tokens", {"x": x}, constants, {"position": position}, formats)
    rows = np.arange(2 * patches).reshape(patches, 2) + 20
    out = bench.run(op, x=rows)["out"]
    assert (out[position] - pos_embed[position]).tolist() == [7, -7]
    others = np.delete(out - pos_embed, position, axis=0)
    assert np.array_equal(others, rows)
    rows[:, 0] = 32767
    rows[:, 1] = -32768
    saturated = bench.run(op, x=rows)["out"]
    assert saturated[-1].tolist() == [32767, -32768 + 100 * (2 * patches + 1)]


def rmsnorm(width: int, mode: str, eps: int = 1, seed: int = 0) -> tuple[Bench, Operator]:
    rng = np.random.default_rng(seed)
    bench = Bench(mode)
    x = bench.plant("x", (8, width), -9, bits=16)
    gamma = rng.integers(-2048, 2048, width)
    gamma[: min(4, width)] = [-2048, 2047, 0, 1][: min(4, width)]
    constants = {"gamma": gamma, "gamma_exponent": rng.integers(-12, 0, width)}
    group = (0, 3, 15, 1) if width > 1 else (0,)
    out = Out(8, -10, True, "channel", group, rng.integers(0, len(group), width))
    return bench, bench.b.add("rmsnorm", "n", {"x": x}, constants, {"eps_q": eps}, {"out": out})


@pytest.mark.parametrize("mode", ROUNDINGS)
@pytest.mark.parametrize("width", [1, 2, 3, 255, 256, 1023, 1024, 2047])
def test_rmsnorm_extremes(width: int, mode: str) -> None:
    """Rows of zeros, of +-32767 and -32768, of one 1, of noise: widths that hold, and the stated sizes of rsqrt."""
    rng = np.random.default_rng(width)
    rows = np.zeros((8, width), dtype=np.int64)
    rows[1] = 32767
    rows[2] = -32768
    rows[3] = np.where(rng.random(width) < 0.5, -32767, 32767)
    rows[4, 0] = 1
    rows[5, -1] = -32768
    rows[6] = rng.integers(-3, 4, width)
    rows[7] = rng.integers(-20000, 20000, width)
    for eps in (1, 1 << 40):
        bench, op = rmsnorm(width, mode, eps)
        got = bench.run(op, x=rows)
        assert got["square_sum"].max() < 2**42
        assert 2**14 <= got["rsqrt"].min() and got["rsqrt"].max() < 2 ** (16 if width < 1024 else 17)
        assert np.abs(got["normed"]).max() <= 2**12 * np.sqrt(width) + 1
    assert got["normed"][0].tolist() == [0] * width
    got = rmsnorm(width, mode)[0].run(rmsnorm(width, mode)[1], x=rows)
    if width <= 256:  # a single 1 among zeros, eps 1: 2^12 sqrt(D / 2)
        assert abs(int(got["normed"][4, 0]) - 2**12 * np.sqrt(width / 2)) <= 1
    assert np.abs(np.abs(got["normed"][1:4]) - 2**12).max() <= 1  # equal magnitudes: +-1


@pytest.mark.parametrize("width", [1, 3, 300, 2047])
def test_rmsnorm_on_the_edge(width: int) -> None:
    """The last square_sum with root r, and the next one: floors of the normalisation, the quotient and the root."""
    d_norm = width
    while d_norm * 4 < 1024:
        d_norm *= 4
    low, high = isqrt((d_norm << 52) // (2**32 - 1)) + 2, isqrt((d_norm << 52) // 2**30) - 2
    for r, cut in ((low, 0), ((low + high) // 2, 1), (high, 2), (low + 5, 4), (high - 5, 3)):
        w = (d_norm << 52) // (r * r)  # the largest w with r * r <= (d_norm << 52) / w
        assert 2**30 <= w < 2**32 - 1
        last = (w << 2 * cut) + 4**cut - 1
        for square_sum, root in ((last, r), (last + 1, r - 1)):
            bench, op = rmsnorm(width, "half_up", square_sum)
            assert set(bench.run(op, x=np.zeros((8, width)))["rsqrt"].tolist()) == {root}


@pytest.mark.parametrize("mode", ROUNDINGS)
@pytest.mark.parametrize("axis", ["channel", "token", None])
def test_linear_groups(axis: str | None, mode: str) -> None:
    """Input groups on channel, on token, or none; extremes; three segments with formats of their own."""
    rng = np.random.default_rng(4)
    tokens, columns, rows = 6, 9, 8
    bench = Bench(mode)
    positions = {"channel": columns, "token": tokens, None: 0}[axis]
    index = rng.permutation(np.arange(positions) % 4)
    x = bench.plant("x", (tokens, columns), -3, axis=axis, shifts=(2, 0, 15, 7), index=index)
    weight = rng.integers(-128, 128, (rows, columns))
    weight[0], weight[1] = -128, 0
    if axis == "token":
        weight //= 8
    bias = rng.integers(-(2**20), 2**20, rows)
    segments = [{"port": p, "start": a, "stop": z} for p, a, z in (("dt", 0, 3), ("B", 3, 4), ("C", 4, 8))]
    constants = {"weight": weight, "weight_exponent": rng.integers(-9, 3, rows), "bias": bias}
    formats = {"dt": Out(8, 2, True, "channel", (0, 5), [0, 1, 1]), "B": Out(4, -7), "C": Out(32, -9)}
    op = bench.b.add("linear", "l", {"x": x}, constants, {"segments": segments}, formats)
    values = rng.integers(-128, 128, (tokens, columns))
    values[0], values[1], values[2] = -128, 127, 0
    got = bench.run(op, x=values)
    assert np.array_equal(got["acc"][2], bias)
    assert np.array_equal(got["acc"][:, 1], np.full(tokens, bias[1]))


@pytest.mark.parametrize("reverse", [0, 1])
def test_conv1d_is_causal_in_processing_order(reverse: int) -> None:
    """An impulse at token 2 of 6, taps 1, 10, 100: it reaches 3 rows of processing order, newest tap last."""
    bench = Bench()
    x = bench.plant("x", (6, 1), 0)
    constants = {"weight": [[100, 10, 1]], "weight_exponent": [0], "bias": [1000]}
    op = bench.b.add("conv1d", "c", {"x": x}, constants, {"reverse": reverse}, {"out": Out(8, 3)})
    acc = bench.run(op, x=np.eye(6, dtype=int)[2][:, None])["acc"]
    assert (acc[:, 0] - 1000).tolist() == ([0, 0, 0, 1, 10, 100] if reverse else [0, 0, 1, 10, 100, 0])


def test_conv1d_with_more_taps_than_tokens() -> None:
    rng = np.random.default_rng(8)
    bench = Bench("half_even")
    x = bench.plant("x", (3, 4), -2, axis="channel", shifts=(0, 15), index=[0, 1, 1, 0])
    constants = {
        "weight": rng.integers(-128, 128, (4, 16)),
        "weight_exponent": [0, -20, 3, 1],
        "bias": [2**31 - 2**19, -(2**31) + 2**19, 0, 1],
    }
    op = bench.b.add("conv1d", "c", {"x": x}, constants, {"reverse": 1}, {"out": Out(8, -4)})
    bench.run(op, x=[[-128, 127, -128, 127]] * 3)


def scan(
    mode: str, tokens: int, channels: int, states: int, *, e_h: int, s_l: Any, bits: int = 8, m: int = 15, seed: int = 0
) -> tuple[Bench, Operator]:
    rng = np.random.default_rng(seed)
    bench = Bench(mode)
    index = np.arange(channels) % 3
    delta = bench.plant("delta", (tokens, channels), -6, signed=False, axis="channel", shifts=(0, 2, 1), index=index)
    u = bench.plant("u", (tokens, channels), -4, axis="channel", shifts=(1, 0, 9), index=index)
    big_b, big_c = bench.plant("B", (tokens, states), -5), bench.plant("C", (tokens, states), -5)
    a = rng.integers(0, 256, (channels, states))
    a[:, 0] = 0  # no decay
    constants = {
        "A": a,
        "A_exponent": 6 - np.array([0, 2, 1])[index] - rng.permutation([0, 8, 19, 20, 14, 31])[:channels],
        "D": rng.integers(-(2**15), 2**15, channels),
        "state_channel_shift": np.arange(channels) % 4,
        "state_token_shift": s_l,
        "exp2_rom": np.array(exp2_rom()),
    }
    formats = {"h": Out(bits, e_h), "y": Out(8, e_h + 5, True, "token", (0, 4, 2), np.arange(tokens) % 3)}
    ports = {"delta": delta, "u": u, "B": big_b, "C": big_c}
    return bench, bench.b.add("scan", "s", ports, constants, {"abar_fraction": m}, formats)


@pytest.mark.parametrize("mode", ROUNDINGS)
@pytest.mark.parametrize(("bits", "e_h"), [(8, -4), (16, -12), (16, -1), (8, -18), (1, -4)])
def test_scan_extremes(bits: int, e_h: int, mode: str) -> None:
    """Saturated states, the clamp of b, and token shifts that step up and down by up to 15."""
    rng = np.random.default_rng(bits - e_h)
    tokens, channels, states = 9, 6, 3
    s_l = [0, 15, 0, 3, 2, 15, 14, 1, 1] if bits < 16 else [0, 5, 0, 3, 2, 5, 4, 1, 1]
    bench, op = scan(mode, tokens, channels, states, e_h=e_h, s_l=s_l, bits=bits)
    seen: set[str] = set()
    for case in range(4):
        delta, u = rng.integers(0, 256, (tokens, channels)), rng.integers(-128, 128, (tokens, channels))
        big_b, big_c = rng.integers(-128, 128, (tokens, states)), rng.integers(-128, 128, (tokens, states))
        if case == 1:
            delta[:], u[:], big_b[:], big_c[:] = 255, -128, -128, -128
        elif case == 2:
            delta[:], u[:] = 255, 127
            big_b = np.where(rng.random(big_b.shape) < 0.5, -128, 127)
        elif case == 3:
            delta[2:] = 0  # abar = 1: the state stays, but for its token shift
        got = bench.run(op, delta=delta, u=u, B=big_b, C=big_c)
        low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        seen |= {"high"} if (got["h"] == high).any() else set()
        seen |= {"low"} if (got["h"] == low).any() else set()
        seen |= {"b high"} if (got["b"] == 2**30 - 1).any() else set()
        seen |= {"b low"} if (got["b"] == -(2**30) + 1).any() else set()
        assert got["acc"].min() >= -(2**31) + 1 and got["acc"].max() + 2**14 < 2**31
        if case == 3:
            assert (got["abar"][2:] == 2**15).all() and (got["b"][2:] == 0).all()
    assert {"high", "low"} <= seen
    if e_h == -18:
        assert {"b high", "b low"} <= seen


def test_scan_token_shift_by_hand() -> None:
    """One channel, one state, A-bar = 1: h = 100; divided by 8 (one rounding) where the shift steps from 0 to 3."""
    bench = Bench("half_up")
    delta, u = bench.plant("delta", (5, 1), 0, signed=False), bench.plant("u", (5, 1), 0)
    b, c = bench.plant("B", (5, 1), 0), bench.plant("C", (5, 1), 0)
    constants = {
        "A": [[0]], "A_exponent": [0], "D": [3], "state_channel_shift": [0], "state_token_shift": [0, 3, 2, 0, 0],
        "exp2_rom": np.array(exp2_rom()),
    }  # fmt: skip
    formats = {"h": Out(8, 0), "y": Out(8, 2)}
    ports = {"delta": delta, "u": u, "B": b, "C": c}
    op = bench.b.add("scan", "s", ports, constants, {"abar_fraction": 15}, formats)
    got = bench.run(op, delta=[[10], [0], [0], [0], [1]], u=[[10], [1], [1], [1], [-1]], B=[[1]] * 5, C=[[1]] * 5)
    assert got["h"].reshape(-1).tolist() == [100, 13, 26, 104, 103]  # 100/8 = 12.5 -> 13; 13*2; 26*4; 104 - 1
    assert got["y_acc"].reshape(-1).tolist() == [130, 3 + 13 * 8, 3 + 26 * 4, 107, 100]
    assert got["y"].reshape(-1).tolist() == [33, 27, 27, 27, 25]
    assert got["b"].reshape(-1).tolist() == [100 << 15, 0, 0, 0, -1 << 15]


def test_gate_alignment_by_hand() -> None:
    """y at 2^-3 with token shifts 0, 1; y_b at 2^-1 with shifts 2, 0 in processing order; halved by the exponent."""
    bench = Bench("half_up")
    y = bench.plant("y", (2, 2), -3, axis="token", shifts=(0, 1), index=[0, 1])
    y_b = bench.plant("y_b", (2, 2), -1, axis="token", shifts=(0, 2), index=[1, 0])
    g = bench.plant("g", (2, 2), -6, axis="channel", shifts=(1, 0), index=[0, 1])
    out = Out(8, -4, True, "token", (0, 2), [1, 0])
    op = bench.b.add("gate", "gate", {"y": y, "y_b": y_b, "g": g}, {}, {}, {"out": out})
    assert op.attributes == {"y_align": 0, "y_b_align": 2}
    assert bench.b.program.arrays["gate.shift"].tolist() == [5, 6]
    got = bench.run(op, y=[[1, 2], [3, 4]], y_b=[[5, 6], [7, -8]], g=[[64, 64], [-128, 127]])
    # token 0 meets row 1 of y_b: 1 + 7 * 4; token 1 meets row 0: 3 * 2 + 5 * 4 * 4
    assert got["acc"].tolist() == [[29 * 64, (2 - 32) * 64], [86 * -128, (8 + 96) * 127]]
    assert got["out"].tolist() == [[15, -7], [-128, 127]]  # 1856 / 2^7 = 14.5; -1920 / 2^8 = -7.5; then saturation


@pytest.mark.parametrize("mode", ROUNDINGS)
def test_gate_extremes(mode: str) -> None:
    rng = np.random.default_rng(3)
    bench = Bench(mode)
    y = bench.plant("y", (8, 5), -3, axis="token", shifts=(0, 9, 1, 3), index=rng.integers(0, 4, 8))
    y_b = bench.plant("y_b", (8, 5), -5, bits=6, axis="token", shifts=(3, 0), index=rng.integers(0, 2, 8))
    g = bench.plant("g", (8, 5), -6, axis="channel", shifts=(0, 1, 4), index=rng.integers(0, 3, 5))
    out = Out(8, -4, True, "token", (0, 5, 2), rng.integers(0, 3, 8))
    op = bench.b.add("gate", "gate", {"y": y, "y_b": y_b, "g": g}, {}, {}, {"out": out})
    for sign in (-1, 1, 0):
        a, b, c = (rng.integers(-(2**n), 2**n, (8, 5)) for n in (7, 5, 7))
        if sign:
            a[:4], b[4:] = (-128, -32) if sign < 0 else (127, 31)
            c[::2] = -128
        bench.run(op, y=a, y_b=b, g=c)


def test_residual_add_saturates() -> None:
    bench = Bench()
    for name in ("x", "y"):
        bench.plant(name, (1, 5), -9, bits=16)
    op = bench.b.add("add", "r", {"x": "x", "y": "y"}, {}, {}, {"out": Out(16, -9)})
    got = bench.run(op, x=[[32767, -32768, 30000, -30000, 5]], y=[[1, -1, 30000, -30000, -7]])
    assert got["out"].tolist() == [[32767, -32768, 32767, -32768, -2]]


def test_rom_addresses() -> None:
    """Entry 0 belongs to -128; each channel reads the row of its rom_index."""
    bench = Bench()
    x = bench.plant("x", (2, 3), -2, axis="channel", shifts=(0, 1), index=[0, 1, 0])
    rom = np.stack([np.arange(256), 255 - np.arange(256)])
    out = Out(8, -6, False, "channel", (0, 3), [0, 1, 0])
    op = bench.b.add("rom", "f", {"x": x}, {"rom": rom, "rom_index": [0, 1, 0]}, {"function": 1}, {"out": out})
    assert bench.run(op, x=[[-128, -128, 0], [127, 127, -1]])["out"].tolist() == [[0, 255, 128], [255, 0, 127]]


def test_channels_of_one_rom_have_one_exponent() -> None:
    """On the input side and on the output side: a ROM holds one function."""
    for shifts, out_shifts in (((0, 1), (0, 0)), ((0, 0), (0, 1)), ((0, 0), (0, 0))):
        bench = Bench()
        x = bench.plant("x", (1, 2), -2, axis="channel", shifts=shifts, index=[0, 1])
        constants = {"rom": [[0] * 256], "rom_index": [0, 0]}
        formats = {"out": Out(8, -6, True, "channel", out_shifts, [0, 1])}
        if any(shifts + out_shifts):
            with pytest.raises(ProgramError, match="rom 0 differ in input or output exponent"):
                bench.b.add("rom", "f", {"x": x}, constants, {"function": 0}, formats)
        else:
            bench.b.add("rom", "f", {"x": x}, constants, {"function": 0}, formats)


# --- the two directions ----------------------------------------------------------------------------------------------

BRANCH = re.compile(r"\.mixer\.(conv1d|silu|x_proj|dt_proj|softplus|scan)(_b)?(?=\.|$)")


def other(name: str | None) -> Any:
    """The name with the direction swapped."""
    return name and BRANCH.sub(lambda m: f".mixer.{m[1]}{'' if m[2] else '_b'}", name)


def mirrored(program: Program) -> Program:
    """The network that sees the tokens from last to first, with its two branches exchanged."""
    made = replace(program, tensors={}, constants={}, arrays={}, operators=[])

    def terms(declared: Any) -> tuple[Term, ...]:
        return tuple(replace(t, index=other(t.index), offset=other(t.offset)) for t in declared.terms)

    for name, constant in program.constants.items():
        made.constants[other(name)] = replace(constant, name=other(name), terms=terms(constant))
        in_token_order = "token" in constant.axes and ("pos_embed" in name or ".gate.out" in name)
        array = program.arrays[name]
        made.arrays[other(name)] = np.ascontiguousarray(array[::-1]) if in_token_order else array
    for name, tensor in program.tensors.items():
        made.tensors[other(name)] = replace(tensor, name=other(name), terms=terms(tensor))
    for op in program.operators:
        inputs = {port: other(name) for port, name in op.inputs.items()}
        attributes = dict(op.attributes)
        if op.kind == "gate":
            inputs["y"], inputs["y_b"] = inputs["y_b"], inputs["y"]
            attributes["y_align"], attributes["y_b_align"] = attributes["y_b_align"], attributes["y_align"]
        if op.kind == "conv1d":
            attributes["reverse"] = 1 - attributes["reverse"]
        constants = {role: other(name) for role, name in op.constants.items()}
        made.operators.append(Operator(other(op.name), op.kind, inputs, constants, attributes, op.outputs))
    validate(made)
    return made


@pytest.mark.parametrize("mode", ROUNDINGS)
def test_reversed_tokens_with_exchanged_branches_mirror_the_network(mode: str) -> None:
    size = Size(image=(4, 12, 3), patch=4, stride=4, depth=2, classes=2)  # 3 patches: class token off the centre
    size = replace(size, image=(8, 12, 3))  # 6 patches: class token at 3 of 7
    program = random_program(21, size, rounding=mode, extreme=0.1)
    mirror = mirrored(program)
    image = np.random.default_rng(5).integers(0, 256, size.image, dtype=np.uint8)
    blocks = image.reshape(2, 4, 3, 4, 3).transpose(0, 2, 1, 3, 4).reshape(6, 4, 4, 3)[::-1]
    turned = blocks.reshape(2, 3, 4, 4, 3).transpose(0, 2, 1, 3, 4).reshape(size.image)
    got, wanted = Oracle(mirror).run_one(np.ascontiguousarray(turned)), Oracle(program).run_one(image)
    for name, v in wanted.items():
        if name != "image":
            processing_order = other(name) != name
            assert np.array_equal(got[other(name)], v if processing_order else v[::-1]), name
    assert not np.array_equal(wanted["layers.0.mixer.scan.y"], wanted["layers.0.mixer.scan_b.y"])
