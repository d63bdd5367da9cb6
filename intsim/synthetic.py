"""Random but valid Programs of any size: for tests, benchmarks and checks of other back ends.

The integers are drawn, not trained; exponents are chosen so that activations neither vanish nor saturate
everywhere.  Extremes (-128, the largest shifts, dead channels) are planted with the given probability.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from intsim.arithmetic import Int64
from intsim.builder import Builder, Out
from intsim.program import Program
from intsim.roms import exp2_rom


@dataclass(frozen=True)
class Size:
    """Dimensions of a Vim.  `tokens` are counted from image, patch and stride."""

    image: tuple[int, int, int] = (8, 8, 3)
    patch: int = 4
    stride: int = 4
    width: int = 8
    depth: int = 1
    inner: int = 16
    states: int = 4
    dt_rank: int = 2
    taps: int = 4
    classes: int = 3

    @property
    def patches(self) -> int:
        height, width, _ = self.image
        return ((height - self.patch) // self.stride + 1) * ((width - self.patch) // self.stride + 1)


VIM = {
    "tiny": Size((224, 224, 3), 16, 16, 192, 24, 384, 16, 12, 4, 1000),
    "small": Size((224, 224, 3), 16, 16, 384, 24, 768, 16, 24, 4, 1000),
    "base": Size((224, 224, 3), 16, 16, 768, 24, 1536, 16, 48, 4, 1000),
}


def random_program(
    seed: int,
    size: Size = Size(),
    *,
    rounding: str = "half_up",
    k: int = 4,
    state_bits: int = 8,
    abar_fraction: int = 15,
    activation_bits: int = 8,
    extreme: float = 0.05,
) -> Program:
    """A random Program.  The same arguments give the same Program.

    k: number of groups of every k-scaled tensor (1: none); extreme: share of weights at -128 or 127, and the
    chance of a planted extreme elsewhere.
    """
    rng = np.random.default_rng(seed)
    return _Maker(rng, size, rounding, k, state_bits, abar_fraction, activation_bits, extreme).make()


class _Maker:
    def __init__(
        self,
        rng: np.random.Generator,
        size: Size,
        rounding: str,
        k: int,
        state_bits: int,
        abar_fraction: int,
        activation_bits: int,
        extreme: float,
    ):
        self.rng, self.size, self.k, self.extreme = rng, size, k, extreme
        self.state_bits, self.abar_fraction, self.activation_bits = state_bits, abar_fraction, activation_bits
        profile = {8: "int8", 16: "wide-state"}.get(state_bits, "custom")
        self.b = Builder(
            "random",
            profile=profile,
            rounding=rounding,
            image=size.image,
            classes=[f"class{i}" for i in range(size.classes)],
            provenance={"made_by": "intsim.synthetic"},
        )
        self.residual = Out(bits=16, exponent=-9)

    def chance(self) -> bool:
        return bool(self.rng.random() < self.extreme)

    def integers(self, low: int, high: int, shape: int | tuple[int, ...]) -> Int64:
        """Integers of [low, high], some of them at the ends."""
        rng = self.rng
        drawn = rng.integers(low, high + 1, size=shape)
        ends = np.where(rng.random(shape) < 0.5, low, high)
        return np.where(rng.random(shape) < self.extreme, ends, drawn).astype(np.int64)

    def weights(self, rows: int, columns: int) -> Int64:
        w = np.clip(np.rint(self.rng.normal(0, 30, (rows, columns))), -128, 127).astype(np.int64)
        ends = np.where(self.rng.random(w.shape) < 0.5, -128, 127)
        w = np.where(self.rng.random(w.shape) < self.extreme / 4, ends, w)
        if self.chance():
            w[self.rng.integers(rows)] = 0
        return w

    def activation(self, channels: int, exponent: int, *, axis: str = "channel", signed: bool = True) -> Out:
        """Format of an activation: k groups along `axis` (of `channels` positions) unless k is 1."""
        if self.k == 1:
            return Out(bits=self.activation_bits, exponent=exponent, signed=signed)
        shifts = (0, *(int(s) for s in self.rng.integers(0, 5, self.k - 1)))
        index = self.rng.integers(0, self.k, channels)
        return Out(self.activation_bits, exponent, signed, axis, shifts, index)

    def exponents(self, out: Out, n: int) -> Int64:
        """Exponent of each of n channels of an output."""
        if out.axis != "channel":
            return np.full(n, out.exponent, dtype=np.int64)
        return out.exponent + np.array(out.shifts, dtype=np.int64)[np.asarray(out.index)]

    def weight_exponent(self, out: Int64, x: Int64 | int, spread: float) -> Int64:
        """Weight exponents that make the requantization shift fit an accumulator of standard deviation `spread`."""
        wanted = round(float(np.log2(max(spread, 2.0) / 40))) + self.rng.integers(-1, 2, len(out))
        return out - x - wanted

    def bias(self, n: int, spread: float) -> Int64:
        return np.rint(self.rng.normal(0, spread / 2, n)).astype(np.int64)

    def skip(self, states: int, n: int) -> Int64:
        """D: about as large as the states' part of y, with planted extremes of 16 bits."""
        spread = np.sqrt(states) * (30 if self.state_bits == 8 else 6000) / 2
        d = np.rint(self.rng.normal(0, spread, n)).astype(np.int64)
        ends = np.where(self.rng.random(n) < 0.5, -(1 << 15), (1 << 15) - 1)
        return np.clip(np.where(self.rng.random(n) < self.extreme / 2, ends, d), -(1 << 15), (1 << 15) - 1)

    def make(self) -> Program:
        s, b = self.size, self.b
        k = s.image[2] * s.patch**2
        spread = np.sqrt(k) * 74 * 30
        residual = np.full(s.width, self.residual.exponent)
        # the residual has 16 bits: aim for 2^10, not for 40
        exponent = self.weight_exponent(residual, 0, spread / 2**5)
        b.add(
            "patch_embed",
            "patch_embed.proj",
            {"image": "image"},
            {"weight": self.weights(s.width, k), "weight_exponent": exponent, "bias": self.bias(s.width, spread)},
            {"patch": s.patch, "stride": s.stride},
            {"out": self.residual},
        )
        b.add(
            "insert_token",
            "tokens",
            {"x": "patch_embed.proj.out"},
            {
                "cls_token": self.integers(-2000, 2000, s.width),
                "pos_embed": self.integers(-300, 300, (s.patches + 1, s.width)),
            },
            {"position": s.patches // 2},
            {"out": self.residual},
        )
        stream = "tokens.out"
        for i in range(s.depth):
            stream = self.layer(f"layers.{i}", stream)
        b.add("select_token", "class_token", {"x": stream}, {}, {"position": s.patches // 2}, {"out": self.residual})
        self.norm("norm_f", "class_token.out")
        self.linear("head", "norm_f.out", s.classes, [("out", 0, s.classes, Out(32, -12))])
        return b.finish()

    def norm(self, name: str, x: str) -> None:
        width = self.size.width
        out = self.activation(width, -4)
        gamma = self.integers(-2048, 2047, width) if self.chance() else self.rng.integers(500, 2048, width)
        # normed is about 2^12, gamma about 2^10: shift of 17 leaves about 32
        exponent = self.exponents(out, width) + 12 - 17 + self.rng.integers(-1, 2, width)
        constants = {"gamma": gamma, "gamma_exponent": exponent}
        eps = 1 if self.chance() else int(self.rng.integers(1, 200))
        self.b.add("rmsnorm", name, {"x": x}, constants, {"eps_q": eps}, {"out": out})

    def linear(self, name: str, x: str, rows: int, segments: list[tuple[str, int, int, Out]]) -> None:
        program = self.b.program
        declared = program.tensors[x]
        columns = declared.shape[1]
        groups = program.shifts(x, "channel").astype(float)
        tokens = program.shifts(x, "token").astype(float)
        spread = float(np.sqrt(np.sum((30 * 60 * 2.0**groups) ** 2)) * 2.0 ** tokens.mean())
        out = np.concatenate([self.exponents(o, stop - start) for _, start, stop, o in segments])
        bits = segments[0][3].bits
        exponent = self.weight_exponent(out, declared.exponent or 0, spread / 2 ** (5 if bits == 16 else 0))
        if bits == 32:
            exponent = out - (declared.exponent or 0) - self.rng.integers(-2, 3, rows)
        self.b.add(
            "linear",
            name,
            {"x": x},
            {"weight": self.weights(rows, columns), "weight_exponent": exponent, "bias": self.bias(rows, spread)},
            {"segments": [{"port": p, "start": a, "stop": z} for p, a, z, _ in segments]},
            {p: o for p, _, _, o in segments},
        )

    def rom(self, name: str, x: str, function: int) -> None:
        """A ROM for each group, with random contents; its output has the input's groups."""
        program = self.b.program
        declared = program.tensors[x]
        channels = declared.shape[1]
        signed = function == 0
        group = declared.group("channel")
        index = np.zeros(channels, dtype=np.int64)
        out = Out(self.activation_bits, -6, signed)
        if group is not None:
            index = program.arrays[group.index or ""].astype(np.int64)
            shifts = (0, *(int(n) for n in self.rng.integers(0, 4, len(group.shifts or ()) - 1)))
            out = Out(self.activation_bits, -6, signed, "channel", shifts, index)
        low, high = (-(1 << (out.bits - 1)), (1 << (out.bits - 1)) - 1) if signed else (0, (1 << out.bits) - 1)
        rom = np.sort(self.integers(low, high, (int(index.max()) + 1, 256)), axis=1)
        self.b.add("rom", name, {"x": x}, {"rom": rom, "rom_index": index}, {"function": function}, {"out": out})

    def layer(self, p: str, stream: str) -> str:
        s = self.size
        self.norm(f"{p}.norm", stream)
        m = f"{p}.mixer"
        segments = [
            ("x", 0, s.inner, self.activation(s.inner, -4)),
            ("z", s.inner, 2 * s.inner, self.activation(s.inner, -4)),
        ]
        self.linear(f"{m}.in_proj", f"{p}.norm.out", 2 * s.inner, segments)
        self.rom(f"{m}.silu_z", f"{m}.in_proj.z", 0)
        for suffix in ("", "_b"):
            self.branch(m, suffix)
        axis = "token" if self.rng.random() < 0.5 else "channel"
        out = self.activation(s.patches + 1 if axis == "token" else s.inner, -3, axis=axis)
        program = self.b.program
        ports = {"y": f"{m}.scan.y", "y_b": f"{m}.scan_b.y", "g": f"{m}.silu_z.out"}
        e_sum = min(program.tensors[ports["y"]].exponent or 0, program.tensors[ports["y_b"]].exponent or 0) - 1
        wanted = e_sum + (program.tensors[ports["g"]].exponent or 0) + 7
        out = replace(out, exponent=wanted)
        self.b.add("gate", f"{m}.gate", ports, {}, {}, {"out": out})
        self.linear(f"{m}.out_proj", f"{m}.gate.out", s.width, [("out", 0, s.width, self.residual)])
        self.b.add("add", f"{p}.residual", {"x": stream, "y": f"{m}.out_proj.out"}, {}, {}, {"out": self.residual})
        return f"{p}.residual.out"

    def branch(self, m: str, suffix: str) -> None:
        s, b, rng = self.size, self.b, self.rng
        program = b.program
        x = f"{m}.in_proj.x"
        out = self.activation(s.inner, -4)
        e_x = program.exponents(x, "channel")
        weight = self.weights(s.inner, s.taps)
        spread = float(np.sqrt(s.taps)) * 30 * 60
        exponent = self.weight_exponent(self.exponents(out, s.inner), e_x, spread)
        constants = {"weight": weight, "weight_exponent": exponent, "bias": self.bias(s.inner, spread)}
        b.add("conv1d", f"{m}.conv1d{suffix}", {"x": x}, constants, {"reverse": int(suffix == "_b")}, {"out": out})
        self.rom(f"{m}.silu{suffix}", f"{m}.conv1d{suffix}.out", 0)
        u = f"{m}.silu{suffix}.out"
        r, n = s.dt_rank, s.states
        narrow = self.activation_bits
        segments = [
            ("dt", 0, r, Out(narrow, -4)),
            ("B", r, r + n, Out(narrow, -5)),
            ("C", r + n, r + 2 * n, Out(narrow, -5)),
        ]
        self.linear(f"{m}.x_proj{suffix}", u, r + 2 * n, segments)
        self.linear(
            f"{m}.dt_proj{suffix}",
            f"{m}.x_proj{suffix}.dt",
            s.inner,
            [("out", 0, s.inner, self.activation(s.inner, -5))],
        )
        self.rom(f"{m}.softplus{suffix}", f"{m}.dt_proj{suffix}.out", 1)
        delta = f"{m}.softplus{suffix}.out"
        tokens = s.patches + 1
        e_delta, e_u = program.exponents(delta, "channel"), program.exponents(u, "channel")
        low = int((e_delta + e_u).min()) - 5  # exponent of b before it is aligned, at least
        e_h = low + 15 + (-4 if self.state_bits == 16 else 4) - 8
        e_b = e_delta + e_u - 5
        channel = np.clip(e_b - low + rng.integers(0, 3, s.inner), 0, 127)
        steps = 5 if self.state_bits == 16 else 8
        token = rng.integers(0, steps, tokens) if self.chance() or self.k > 1 else np.zeros(tokens)
        fraction = self.integers(0, 31, s.inner) if self.chance() else rng.integers(12, 20, s.inner)
        e_h_c = e_h + channel
        constants = {
            "A": self.integers(0, 255, (s.inner, n)),
            "A_exponent": -fraction - e_delta,
            "D": self.skip(n, s.inner),
            "state_channel_shift": channel,
            "state_token_shift": token.astype(np.int64),
            "exp2_rom": np.array(exp2_rom()),
        }
        y = self.activation(tokens, 0, axis="token")
        spread = np.sqrt(n) * 30 * (30 if self.state_bits == 8 else 6000)
        e_y = int(np.median(e_h_c)) - 5 + round(float(np.log2(spread / 20)))
        b.add(
            "scan",
            f"{m}.scan{suffix}",
            {"delta": delta, "u": u, "B": f"{m}.x_proj{suffix}.B", "C": f"{m}.x_proj{suffix}.C"},
            constants,
            {"abar_fraction": self.abar_fraction},
            {"h": Out(self.state_bits, e_h), "y": Out(y.bits, e_y, True, y.axis, y.shifts, y.index)},
        )
