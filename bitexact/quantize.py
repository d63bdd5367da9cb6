"""From a float checkpoint and calibration images to a Program (DESIGN: calibrate, then lower).

The network is walked operator by operator.  For each: its exponents are chosen on the integers that its quantized
predecessors really give (they are run by the integer engine), judged by the similarity of its output to the float
model's, and the operator is added to the Program; the shifts and the proof of its accumulators follow.

Techniques of arXiv 2501.16738, each with a switch: similarity search (`search`), k-scaled groups (`k`),
reparameterized hidden state (`reparameterize`), factors fused into x_proj (`fuse`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bitexact.inference import FloatModel, in_threads
from bitexact.search import (
    Choice,
    choose,
    choose_weights,
    cover,
    covering_exponent,
    fake_quantize,
    integers,
    similarity_table,
)
from bitexact.state import Factors, StateStatistics, fit_rank1
from bitexact.vim import Block
from intsim import __version__
from intsim.arithmetic import ROUNDINGS
from intsim.builder import Builder, Out
from intsim.engine import run_operator
from intsim.errors import UserError
from intsim.operators.rom import FUNCTIONS
from intsim.program import Array, Program
from intsim.roms import exp2_rom, rom_table

PROFILES = {"int8": 8, "wide-state": 16}
ROWS = 8192  # rows (image, token) on which exponents are searched
SCAN_IMAGES = 16  # images on which the state's exponents are searched
GATE_IMAGES = 128  # images on which the gate's output format is searched: its channels have rare large values
CHUNK = 16  # images that the float model runs at a time
GATE_AXES = ("channel", "token")  # both are tried
MAX_STATE_TOKEN_SHIFT = 4
STATE_STEPS = (1, 0, -1, -2, -3)  # candidates for a channel's state exponent, against the one that covers it

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Settings:
    """How to quantize; see `quantize`."""

    profile: str = "int8"
    k: int = 4
    search: str = "cosine"
    reparameterize: bool = True
    fuse: bool = True
    rounding: str = "half_up"
    seed: int = 0
    activation_bits: int = 8

    def __post_init__(self) -> None:
        if self.profile not in PROFILES:
            raise UserError(f"profile is {self.profile!r}, allowed are {', '.join(PROFILES)}")
        if not 1 <= self.k <= 4:
            raise UserError(f"k is {self.k}, allowed are 1 .. 4")
        if not 2 <= self.activation_bits <= 8:
            raise UserError(f"activation_bits is {self.activation_bits}, allowed are 2 .. 8")
        if self.search not in ("cosine", "minmax"):
            raise UserError(f"search is {self.search!r}, allowed are cosine and minmax")
        if self.rounding not in ROUNDINGS:
            raise UserError(f"rounding is {self.rounding!r}, allowed are {', '.join(ROUNDINGS)}")


def quantize(
    checkpoint: str | os.PathLike[str],
    images: Array,
    *,
    profile: str = "int8",
    k: int = 4,
    search: str = "cosine",
    reparameterize: bool = True,
    fuse: bool = True,
    rounding: str = "half_up",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    seed: int = 0,
    activation_bits: int = 8,
    classes: Sequence[str] | None = None,
    name: str | None = None,
    progress: Progress | None = None,
) -> Program:
    """Quantizes a Vim checkpoint into a checked Program.

    images: calibration images, uint8 [n, H, W, C], of the network's size.
    profile: "int8" (state h in 8 bits) or "wide-state" (16 bits).
    k: groups of the k-scaled tensors, 1 .. 4.
    search: "cosine" (similarity search) or "minmax" (cover the largest value).
    reparameterize: per-channel and per-token state exponents instead of one for the tensor.
    fuse: per-state factors fused into x_proj (needs reparameterize to have an effect).
    mean, std: per image channel, on pixels / 255; default: the checkpoint's metadata, else ImageNet's.
    seed: for the choice of rows on which exponents are searched.
    activation_bits: width of every activation (weights keep 8, the state has its profile's).
    progress(done, total, operator): called after each operator.

    The same bytes in give the same Program.  Raises UserError (checkpoint, images or settings unusable).
    """
    settings = Settings(profile, k, search, reparameterize, fuse, rounding, seed, activation_bits)
    if images.dtype != np.uint8 or images.ndim != 4 or len(images) == 0:
        raise UserError(f"calibration images are {images.dtype} {list(images.shape)}, must be uint8 [n, H, W, C]")
    model = FloatModel(
        checkpoint, image_size=(images.shape[1], images.shape[2]), mean=mean, std=std, classes=classes
    )
    if images.shape[3] != model.cfg.channels:
        raise UserError(f"calibration images have {images.shape[3]} channels, the checkpoint has {model.cfg.channels}")
    label = name or os.path.splitext(os.path.basename(os.fspath(checkpoint)))[0]
    with torch.inference_mode():
        return _Lowering(model, images, settings, label, progress).lower()


def relative_weight(target: Tensor) -> Tensor:
    """Importance that makes each channel's error relative to its own power; target [samples, channels]."""
    return 1 / target.square().mean(dim=0).clamp(min=1e-12)


class _Lowering:
    """One walk through the network.  `x` are real float tensors of the float model, `q` integers of the Program."""

    def __init__(
        self,
        float_model: FloatModel,
        images: Array,
        settings: Settings,
        name: str,
        progress: Progress | None,
    ):
        self.float_model, self.model, self.cfg = float_model, float_model.model, float_model.cfg
        self.settings = settings
        self.images, self.progress = images, progress
        self.mode = settings.rounding
        self.bits = settings.activation_bits
        self.done, self.total = 0, 5 + self.cfg.depth * 18
        self.q: dict[str, Array] = {"image": images}  # integers by tensor name, [n, *shape]
        self.taps: dict[str, Tensor] = {}  # the float model's tensors by name, [n, token, channel]
        rng = np.random.default_rng(settings.seed)
        rows = len(images) * self.cfg.tokens
        self.rows = torch.from_numpy(np.sort(rng.permutation(rows)[:ROWS]))
        self.some = np.sort(rng.permutation(len(images))[:SCAN_IMAGES])
        self.many = np.sort(rng.permutation(len(images))[:GATE_IMAGES])
        c = self.cfg
        self.b = Builder(
            name,
            profile=settings.profile,
            rounding=settings.rounding,
            image=(c.image_height, c.image_width, c.channels),
            classes=float_model.classes,
            provenance={
                "tool": f"intsim {__version__}",
                "calibration_images": len(images),
                "k": settings.k,
                "search": settings.search,
                "reparameterize": settings.reparameterize,
                "fuse": settings.fuse,
                "seed": settings.seed,
                "mean": list(float_model.mean),
                "std": list(float_model.std),
                **({} if settings.activation_bits == 8 else {"activation_bits": settings.activation_bits}),
            },
        )

    # ---- the walk ----

    def lower(self) -> Program:
        stream = self.float_model.normalise(self.images)
        top = self.residual_range(stream)
        # one bit of headroom above what calibration saw
        exponent = int(covering_exponent(torch.tensor([2 * top]), 16, True)[0])
        self.residual = Out(bits=16, exponent=exponent)
        x = self.embed(stream)
        residual = "tokens.out"
        for i, block in enumerate(self.model.blocks):
            x = self.float_block(block, x, i)
            residual = self.layer(f"layers.{i}", block, residual)
            self.taps.clear()
        self.head(x, residual)
        return self.b.finish()

    def chunks(self, x: Tensor) -> list[Tensor]:
        return list(x.split(CHUNK))

    def residual_range(self, images: Tensor) -> float:
        """Largest magnitude on the float model's residual stream."""

        def largest(part: Tensor) -> float:
            taps: dict[str, Tensor] = {}
            x = self.model.embed(part, taps)
            top = max(float(t.abs().max()) for t in taps.values())
            for block in self.model.blocks:
                mixed = block.mixer(block.norm(x))
                x = x + mixed
                top = max(top, float(x.abs().max()), float(mixed.abs().max()))
            return top

        return max(in_threads(largest, self.chunks(images)))

    def float_block(self, block: Block, x: Tensor, index: int) -> Tensor:
        """Runs one block of the float model on all images; fills `taps` and `states`."""
        scans = [f"layers.{index}.mixer.scan{s}" for s in ("", "_b")]

        def run(part: Tensor) -> tuple[Tensor, dict[str, Tensor], dict[str, StateStatistics]]:
            taps: dict[str, Tensor] = {}
            states = {name: StateStatistics(self.cfg.tokens) for name in scans}
            out = block(part, taps, lambda name, t, h: states[name].on_state(t, h))
            return out, taps, states

        made = in_threads(run, self.chunks(x))
        self.taps.update({tap: torch.cat([taps[tap] for _, taps, _ in made]) for tap in made[0][1]})
        self.states = {name: StateStatistics.merge([states[name] for _, _, states in made]) for name in scans}
        return torch.cat([out for out, _, _ in made])

    def embed(self, images: Tensor) -> Tensor:
        """Adds the patch embedding and the tokens; returns the float model's tokens."""
        c, proj = self.cfg, self.model.patch_embed.proj

        def run(part: Tensor) -> tuple[Tensor, Tensor]:
            taps: dict[str, Tensor] = {}
            return self.model.embed(part, taps), taps["patch_embed.proj.out"]

        made = in_threads(run, self.chunks(images))
        target = torch.cat([patches for _, patches in made]).flatten(0, 1).double()
        mean, std = (torch.tensor(v, dtype=torch.float64) for v in (self.float_model.mean, self.float_model.std))
        scale = (255 * std).repeat_interleave(c.patch**2)
        weight = proj.weight.flatten(1).double()
        offset = ((128 / 255 - mean) / std).repeat_interleave(c.patch**2)
        assert proj.bias is not None
        bias = proj.bias.double() + weight @ offset
        weight = weight / scale
        pixels = torch.from_numpy(self.images).permute(0, 3, 1, 2).float() - 128
        inputs = F.unfold(pixels, c.patch, stride=c.stride).transpose(1, 2).flatten(0, 1).double()
        rows = self.rows[self.rows < len(inputs)]
        inputs, target = inputs[rows], target[rows]
        exponent = choose_weights(weight, lambda w: inputs @ w.T + bias, target, search=self.searching)
        out = np.full(c.width, self.residual.exponent, dtype=np.int64)
        constants = self.rows_as_integers(weight, bias, exponent, 0, out, np.zeros(weight.shape[1], dtype=np.int64))
        attributes = {"patch": c.patch, "stride": c.stride}
        self.add("patch_embed", "patch_embed.proj", {"image": "image"}, constants, attributes, {"out": self.residual})
        constants = {
            "cls_token": integers(self.model.cls_token[0, 0], self.residual.exponent, 16),
            "pos_embed": integers(self.model.pos_embed[0], self.residual.exponent, 16),
        }
        position = {"position": c.n_patches // 2}
        self.add("insert_token", "tokens", {"x": "patch_embed.proj.out"}, constants, position, {"out": self.residual})
        return torch.cat([tokens for tokens, _ in made])

    def layer(self, p: str, block: Block, residual: str) -> str:
        m, mixer, inner = f"{p}.mixer", block.mixer, self.cfg.d_inner
        in_weight, out_weight = mixer.in_proj.weight.double(), mixer.out_proj.weight.double()
        self.norm(f"{p}.norm", residual, block.norm.weight, in_weight.square().sum(dim=0))
        self.linear(
            f"{m}.in_proj",
            f"{p}.norm.out",
            in_weight,
            None,
            {"x": slice(0, inner), "z": slice(inner, 2 * inner)},
            functions={"z": F.silu},
        )
        self.rom(f"{m}.silu_z", f"{m}.in_proj.z", "silu")
        gain = self.target(f"{m}.silu_z.out").square().mean(dim=0) * out_weight.square().sum(dim=0)
        for suffix in ("", "_b"):
            self.branch(m, mixer, suffix, gain)
        self.gate(m, out_weight.square().sum(dim=0))
        whole = {"out": slice(0, self.cfg.width)}
        self.linear(f"{m}.out_proj", f"{m}.gate.out", out_weight, None, whole, self.residual)
        ports = {"x": residual, "y": f"{m}.out_proj.out"}
        self.add("add", f"{p}.residual", ports, {}, {}, {"out": self.residual})
        self.forget(f"{p}.residual.out")
        return f"{p}.residual.out"

    def branch(self, m: str, mixer: Any, suffix: str, gain: Tensor) -> None:
        c = self.cfg
        conv, x_proj, dt_proj = (getattr(mixer, n + suffix) for n in ("conv1d", "x_proj", "dt_proj"))
        scan = f"{m}.scan{suffix}"
        self.conv(f"{m}.conv1d{suffix}", f"{m}.in_proj.x", conv, reverse=bool(suffix))
        self.rom(f"{m}.silu{suffix}", f"{m}.conv1d{suffix}.out", "silu")
        factors = fit_rank1(self.states[scan].rms())
        fused = self.settings.reparameterize and self.settings.fuse
        r_d = torch.exp2(factors.state) if fused else torch.ones(c.d_state, dtype=torch.float64)
        r, n = c.dt_rank, c.d_state
        scale = torch.cat([torch.ones(r, dtype=torch.float64), 1 / r_d, r_d])
        for port, factor in (("B", 1 / r_d), ("C", r_d)):
            tap = f"{m}.x_proj{suffix}.{port}"
            self.taps[tap] = (self.taps[tap].double() * factor).float()
        segments = {"dt": slice(0, r), "B": slice(r, r + n), "C": slice(r + n, r + 2 * n)}
        weight = x_proj.weight.double() * scale[:, None]
        self.linear(f"{m}.x_proj{suffix}", f"{m}.silu{suffix}.out", weight, None, segments, groups=False)
        self.linear(
            f"{m}.dt_proj{suffix}",
            f"{m}.x_proj{suffix}.dt",
            dt_proj.weight.double(),
            dt_proj.bias.double(),
            {"out": slice(0, c.d_inner)},
            functions={"out": F.softplus},
        )
        self.rom(f"{m}.softplus{suffix}", f"{m}.dt_proj{suffix}.out", "softplus")
        a = torch.exp(getattr(mixer, f"A{suffix}_log").double()) / np.log(2)
        self.scan(m, suffix, a, getattr(mixer, f"D{suffix}").double(), factors, r_d, gain)

    def head(self, x: Tensor, residual: str) -> None:
        taps: dict[str, Tensor] = {}
        self.model.head_out(x, taps)
        self.taps.update({name: value.reshape(len(x), 1, -1) for name, value in taps.items()})
        position = {"position": self.cfg.n_patches // 2}
        self.add("select_token", "class_token", {"x": residual}, {}, position, {"out": self.residual})
        head = self.model.head
        weight, bias = head.weight.double(), head.bias.double()
        self.norm("norm_f", "class_token.out", self.model.norm_f.weight, weight.square().sum(dim=0))
        self.linear("head", "norm_f.out", weight, bias, {"out": slice(0, self.cfg.classes)}, Out(32, 0))

    # ---- operators ----

    def norm(self, name: str, x: str, gamma: Tensor, importance: Tensor) -> None:
        width = self.cfg.width
        gamma = gamma.double()
        e_gamma = np.clip(covering_exponent(gamma.abs().reshape(1, -1).amax(dim=0), 12, True), -40, 20)
        g = integers(gamma, e_gamma, 12)
        q = self.flat(x)
        e = self.residual.exponent
        eps_q = max(1, round(self.model.norm_f.eps * width / 2.0 ** (2 * e)))
        real = q / (q.square().mean(dim=1, keepdim=True) + eps_q / width).sqrt()
        real = real * torch.from_numpy(g * np.exp2(e_gamma))
        choice = self.choice(real, self.target(f"{name}.out", len(q)), self.bits, True, weight=importance)
        shift = choice.exponents(width) - (e_gamma - 12)
        e_gamma = e_gamma + np.minimum(shift - -24, 0) + np.maximum(shift - 24, 0)  # a gamma of 0, say
        g = integers(gamma, e_gamma, 12)
        constants = {"gamma": g, "gamma_exponent": e_gamma}
        self.add("rmsnorm", name, {"x": x}, constants, {"eps_q": eps_q}, {"out": self.out(choice, self.bits)})

    def linear(
        self,
        name: str,
        x: str,
        weight: Tensor,
        bias: Tensor | None,
        segments: dict[str, slice],
        fixed: Out | None = None,
        *,
        functions: dict[str, Callable[[Tensor], Tensor]] | None = None,
        groups: bool = True,
    ) -> None:
        """A linear on tensor x; `weight` [O, I] and `bias` [O] real; output formats are searched unless `fixed`.

        functions: what follows an output and judges it; groups: whether outputs are k-scaled by channel.
        """
        rows = len(weight)
        offset = torch.zeros(rows, dtype=torch.float64) if bias is None else bias
        inputs = self.real(x)
        target = torch.cat([self.target(f"{name}.{port}", len(inputs)) for port in segments], dim=1)
        exponent = choose_weights(weight, lambda w: inputs @ w.T + offset, target, search=self.searching)
        quantized = fake_quantize(weight, torch.from_numpy(exponent)[:, None], 8, True, "half_even")
        made = inputs @ quantized.T + offset
        made, offset = self.corrected(made, target, offset)
        formats: dict[str, Out] = {}
        wanted = np.zeros(rows, dtype=np.int64)
        e_x = self.exponent(x)
        for port, part in segments.items():
            if fixed is None:
                function = (functions or {}).get(port)
                k = self.settings.k if groups else 1
                weight_of = relative_weight(function(target[:, part])) if function is F.softplus else None
                columns = made[:, part], target[:, part]
                choice = self.choice(*columns, self.bits, True, function=function, k=k, weight=weight_of)
                formats[port] = self.out(choice, self.bits)
                wanted[part] = choice.exponents(part.stop - part.start)
            elif fixed.bits == 32:  # logits: one exponent, the finest, so that no bit of any class is rounded away
                formats[port] = Out(32, e_x + int(exponent.min()))
                wanted[part] = formats[port].exponent
            else:
                formats[port] = fixed
                wanted[part] = fixed.exponent
        program = self.b.program
        shift = program.shifts(x, "channel") + program.shifts(x, "token").max()
        constants = self.rows_as_integers(weight, offset, exponent, e_x, wanted, shift)
        listed = [{"port": p, "start": s.start, "stop": s.stop} for p, s in segments.items()]
        self.add("linear", name, {"x": x}, constants, {"segments": listed}, formats)

    def conv(self, name: str, x: str, conv: Any, reverse: bool) -> None:
        taps, inner = self.cfg.d_conv, self.cfg.d_inner
        weight, bias = conv.weight[:, 0].double(), conv.bias.double()
        q = self.q[x][:, ::-1] if reverse else self.q[x]
        e_x = self.b.program.exponents(x, "channel")
        inputs = torch.from_numpy(q.astype(np.float64) * np.exp2(e_x.astype(np.float64)))
        padded = F.pad(inputs, (0, 0, taps - 1, 0))
        windows = padded.unfold(1, taps, 1).flatten(0, 1)[self.rows]  # [rows, channel, tap]
        target = self.target(f"{name}.out")
        exponent = choose_weights(
            weight, lambda w: (windows * w).sum(dim=2) + bias, target, search=self.searching
        )
        quantized = fake_quantize(weight, torch.from_numpy(exponent)[:, None], 8, True, "half_even")
        made = (windows * quantized).sum(dim=2) + bias
        made, bias = self.corrected(made, target, bias)
        choice = self.choice(made, target, self.bits, True, function=F.silu)
        wanted = choice.exponents(inner)
        constants = self.rows_as_integers(weight, bias, exponent, e_x, wanted, np.zeros(taps, dtype=np.int64))
        self.add("conv1d", name, {"x": x}, constants, {"reverse": int(reverse)}, {"out": self.out(choice, self.bits)})

    def rom(self, name: str, x: str, function: str) -> None:
        """A ROM for each group of x; its output has the same groups, with exponents of their own."""
        program = self.b.program
        declared = program.tensors[x]
        channels, signed = declared.shape[1], function == "silu"
        term = declared.group("channel")
        index = np.zeros(channels, dtype=np.int64)
        levels = [self.exponent(x)]
        if term is not None and term.shifts is not None:
            index = program.arrays[term.index or ""].astype(np.int64)
            levels = [self.exponent(x) + s for s in term.shifts]
        values = (F.silu if function == "silu" else F.softplus)(self.real(x))
        target = self.target(f"{name}.out")
        weight = relative_weight(target) if function == "softplus" else None
        exponents = np.zeros(channels, dtype=np.int64)
        for group in range(len(levels)):
            members = np.flatnonzero(index == group)
            if len(members) == 0:
                continue
            part = None if weight is None else weight[members]
            choice = self.choice(values[:, members], target[:, members], self.bits, signed, k=1, weight=part)
            exponents[members] = choice.exponent
        empty = int(exponents.min())
        outs = [int(exponents[index == g][0]) if (index == g).any() else empty for g in range(len(levels))]
        base = max(min(outs), max(outs) - 15)
        outs = [max(e, base) for e in outs]
        rom = rom_table(function, list(zip(levels, outs, strict=True)), self.bits, signed, self.mode)
        out = Out(self.bits, base, signed)
        if term is not None:
            out = Out(self.bits, base, signed, "channel", tuple(e - base for e in outs), index)
        constants = {"rom": rom, "rom_index": index}
        self.add("rom", name, {"x": x}, constants, {"function": FUNCTIONS.index(function)}, {"out": out})

    def scan(
        self, m: str, suffix: str, a: Tensor, d: Tensor, factors: Factors, r_d: Tensor, gain: Tensor
    ) -> None:
        name = f"{m}.scan{suffix}"
        program = self.b.program
        ports = {
            "delta": f"{m}.softplus{suffix}.out",
            "u": f"{m}.silu{suffix}.out",
            "B": f"{m}.x_proj{suffix}.B",
            "C": f"{m}.x_proj{suffix}.C",
        }
        tokens, channels = self.cfg.tokens, self.cfg.d_inner
        e_delta, e_u = program.exponents(ports["delta"], "channel"), program.exponents(ports["u"], "channel")
        e_a = covering_exponent(a.amax(dim=1), 8, False)
        e_a = np.clip(e_a, -31 - e_delta, -e_delta)
        bits = PROFILES[self.settings.profile]
        largest = self.states[name].maximum() / r_d
        fixed = {
            "A": integers(a, e_a[:, None], 8, signed=False),
            "A_exponent": e_a,
            "exp2_rom": np.array(exp2_rom(), dtype=np.int64),
        }
        plan = _ScanPlan(self, name, ports, fixed, d, bits, e_delta + e_u, e_u)
        if not self.settings.reparameterize:
            e_h = np.full(channels, covering_exponent(largest.amax().reshape(1), bits, True)[0])
            best = plan.search(e_h, np.zeros(tokens, dtype=np.int64), together=True)
        else:
            flat = np.zeros(tokens, dtype=np.int64)
            best = plan.search(self.state_exponents(largest, flat, bits), flat)
            steps = self.state_token_shift(factors)
            if self.searching and steps.any():
                stepped = plan.search(self.state_exponents(largest, steps, bits), steps)
                best = min(best, stepped, key=lambda trial: trial.error)
        y_acc, target = best.y_acc, self.taps[f"{name}.y"][self.some].double()
        values, wanted, weight = self.along("token", y_acc, target, gain)
        choice = self.choice(values, wanted, self.bits, True, weight=weight)
        outputs = {"h": Out(bits, best.base), "y": self.out(choice, self.bits, "token")}
        self.add("scan", name, ports, best.constants, {"abar_fraction": 15}, outputs)

    def state_exponents(self, largest: Tensor, token_shift: np.ndarray, bits: int) -> np.ndarray:
        """Exponent of each channel's state (at token shift 0) that covers it at every token."""
        scaled = largest / torch.exp2(torch.from_numpy(token_shift).double())[:, None, None]
        return covering_exponent(scaled.amax(dim=(0, 2)), bits, True)

    def state_token_shift(self, factors: Factors) -> np.ndarray:
        """r_L as left shifts 0 .. MAX_STATE_TOKEN_SHIFT, from the largest token down."""
        level = torch.round(factors.token - factors.token.amax()) + MAX_STATE_TOKEN_SHIFT
        return (level.clamp(0, MAX_STATE_TOKEN_SHIFT) - level.clamp(min=0).amin()).clamp(min=0).to(torch.int64).numpy()

    def gate(self, m: str, importance: Tensor) -> None:
        name = f"{m}.gate"
        program = self.b.program
        ports = {"y": f"{m}.scan.y", "y_b": f"{m}.scan_b.y", "g": f"{m}.silu_z.out"}
        real = {}
        for port, tensor in ports.items():
            grid = np.exp2(program.exponent_grid(tensor).astype(np.float64))
            real[port] = torch.from_numpy(self.q[tensor][self.many].astype(np.float64) * grid)
        made = (real["y"] + real["y_b"].flip(1)) / 2 * real["g"]
        target = self.taps[f"{name}.out"][self.many].double()
        axis, choice = "token", Choice(0)
        if self.searching and self.settings.k > 1:  # both axes are tried
            best = -np.inf
            for tried in GATE_AXES:
                values, wanted, weight = self.along(tried, made, target, importance)
                table = similarity_table(values, wanted, self.bits, True, self.mode, weight=weight)
                found, cosine = choose(table, self.settings.k)
                if cosine > best:
                    best, axis, choice = cosine, tried, found
        else:
            values, wanted, weight = self.along(axis, made, target, importance)
            choice = self.choice(values, wanted, self.bits, True, weight=weight)
        self.add("gate", name, ports, {}, {}, {"out": self.out(choice, self.bits, axis)})

    def along(self, axis: str, made: Tensor, target: Tensor, importance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(values, target, weight) with the positions of an axis as columns, from [images, token, channel] tensors."""
        if axis == "channel":
            return made.flatten(0, 1), target.flatten(0, 1), importance[None, :]
        columns = [x.permute(0, 2, 1).flatten(0, 1) for x in (made, target)]
        return columns[0], columns[1], importance.repeat(len(made))[:, None]

    # ---- helpers ----

    @property
    def searching(self) -> bool:
        return self.settings.search == "cosine"

    def choice(
        self,
        values: Tensor,
        target: Tensor,
        bits: int,
        signed: bool,
        *,
        k: int | None = None,
        function: Callable[[Tensor], Tensor] | None = None,
        weight: Tensor | None = None,
    ) -> Choice:
        """Exponents of an output, searched or covering; `values`, `target` [samples, positions]."""
        k = self.settings.k if k is None else k
        if not self.searching:
            return cover(values, bits, signed, k)
        if function is not None:
            target = function(target)
        table = similarity_table(values, target, bits, signed, self.mode, function=function, weight=weight)
        return choose(table, k)[0]

    def corrected(self, made: Tensor, target: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """(made, bias) without the mean error of each channel: every accumulator has a bias, so this costs nothing.

        made: output of the quantized layer, target: the float model's, both [rows, channels].
        """
        if not self.searching:
            return made, bias
        error = (target - made).mean(dim=0)
        return made + error, bias + error

    def out(self, choice: Choice, bits: int, axis: str = "channel") -> Out:
        if choice.index is None:
            return Out(bits, choice.exponent)
        return Out(bits, choice.exponent, True, axis, choice.shifts, choice.index)

    def exponent(self, tensor: str) -> int:
        exponent = self.b.program.tensors[tensor].exponent
        assert exponent is not None
        return exponent

    def flat(self, tensor: str) -> Tensor:
        """Integers of a tensor at the searched rows, float64 [rows, channel] (all rows if it has one token)."""
        q = self.q[tensor]
        flat = q.reshape(-1, q.shape[-1])
        if q.shape[1] == self.cfg.tokens:
            flat = flat[self.rows.numpy()]
        return torch.from_numpy(flat.astype(np.float64))

    def real(self, tensor: str) -> Tensor:
        """Real values of a quantized tensor at the searched rows, float64 [rows, channel]."""
        q = self.q[tensor]
        grid = np.exp2(self.b.program.exponent_grid(tensor).astype(np.float64))
        grid = np.broadcast_to(grid[None], q.shape).reshape(-1, q.shape[-1])
        if q.shape[1] == self.cfg.tokens:
            grid = grid[self.rows.numpy()]
        return self.flat(tensor) * torch.from_numpy(np.ascontiguousarray(grid))

    def target(self, tap: str, rows: int | None = None) -> Tensor:
        """The float model's tensor at the searched rows, float64 [rows, channel]."""
        value = self.taps[tap]
        flat = value.flatten(0, 1)
        return (flat[self.rows] if value.shape[1] == self.cfg.tokens else flat).double()

    def rows_as_integers(
        self,
        weight: Tensor,
        bias: Tensor,
        exponent: np.ndarray,
        e_x: np.ndarray | int,
        wanted: np.ndarray,
        input_shift: np.ndarray,
    ) -> dict[str, np.ndarray]:
        """Weights, exponents and bias of a row-wise operator, such that every accumulator fits 31 bits.

        weight [O, I], bias [O] real; e_x: input exponent (per row for a convolution); wanted: output exponent of
        each row; input_shift: left shift of each input inside the accumulator.  Rows that need it (large spread
        between groups, tiny or zero weights) get a coarser or finer exponent.
        """
        e_x = np.broadcast_to(np.asarray(e_x), exponent.shape)
        exponent = np.clip(exponent, wanted - e_x - 28, wanted - e_x + 24)
        dead = (weight.abs().amax(dim=1) == 0).numpy()
        exponent = np.where(dead, np.clip(wanted - e_x, -100, 100), exponent)
        while True:
            w = integers(weight, exponent[:, None], 8)
            real_bias = bias.double() / torch.exp2(torch.from_numpy(e_x + exponent).double())
            total = real_bias.abs().numpy() + (np.abs(w) * 128.0 * np.exp2(input_shift)).sum(axis=1)
            over = total + np.exp2(np.maximum(wanted - e_x - exponent, 1) - 1) >= 2.0**31 - 2
            if not over.any():
                break
            exponent = exponent + over
        b = torch.round(real_bias).to(torch.int64).numpy()
        return {"weight": w, "weight_exponent": exponent, "bias": b}

    def add(
        self,
        kind: str,
        name: str,
        inputs: dict[str, str],
        constants: dict[str, Any],
        attributes: dict[str, Any],
        outputs: dict[str, Out],
    ) -> None:
        """Adds the operator, runs it on every calibration image and keeps its outputs."""
        op = self.b.add(kind, name, inputs, constants, attributes, outputs)
        self.q.update(run_operator(self.b.program, op, {n: self.q[n] for n in inputs.values()}, tuple(outputs)))
        self.done += 1
        if self.progress is not None:
            self.progress(self.done, self.total, name)

    def forget(self, keep: str) -> None:
        """Drops the integers that no later operator reads."""
        self.q = {keep: self.q[keep]}


@dataclass
class _Trial:
    """A choice of state exponents, with the y accumulator it gives on some images and its error."""

    constants: dict[str, Any]
    base: int
    y_acc: Tensor
    error: float


class _ScanPlan:
    """Tries state exponents of one scan on a few images."""

    def __init__(
        self,
        lowering: _Lowering,
        name: str,
        ports: dict[str, str],
        fixed: dict[str, Any],
        d: Tensor,
        bits: int,
        e_dx: np.ndarray,
        e_u: np.ndarray,
    ):
        self.lowering, self.name, self.ports, self.fixed, self.d, self.bits = lowering, name, ports, fixed, d, bits
        self.e_dx, self.e_u = e_dx, e_u
        self.inputs = {n: lowering.q[n][lowering.some] for n in ports.values()}
        self.target = lowering.taps[f"{name}.y"][lowering.some].double()

    def search(self, e_h: np.ndarray, token_shift: np.ndarray, together: bool = False) -> _Trial:
        """The best exponent of each channel near e_h by the similarity of y; `together`: one step for all."""
        if not self.lowering.searching:
            return self.trial(e_h, token_shift)[0]
        errors, steps = [], list(STATE_STEPS)
        for step in steps:
            _, error, saturated = self.trial(e_h + step, token_shift)
            errors.append(np.where(saturated > 0.003, np.inf, error) if step < 0 else error)
        table = np.stack(errors)
        if together:
            picked = np.full(len(e_h), int(np.argmin(table.sum(axis=1))))
        else:
            picked = np.argmin(table, axis=0)
        return self.trial(e_h + np.array(steps)[picked], token_shift)[0]

    def trial(self, e_h: np.ndarray, token_shift: np.ndarray) -> tuple[_Trial, np.ndarray, np.ndarray]:
        """Runs the scan with these exponents: (trial, squared error and saturated share of h by channel)."""
        low = self.lowering
        program = low.b.program
        e_b, e_c = low.exponent(self.ports["B"]), low.exponent(self.ports["C"])
        top = int(token_shift.max())
        # b_shift within -31 .. 31 less the token shift, and D within 22 bits
        e_h = np.clip(e_h, self.e_dx + e_b + 15 - 31, self.e_dx + e_b + 15 + 31 - top)
        d = np.abs(self.d.numpy())
        finest = np.ceil(np.log2(np.maximum(d, 1e-30) / 2.0**21)).astype(np.int64) - e_c + self.e_u
        e_h = np.maximum(e_h, finest)
        base = int(e_h.min())
        scale = np.exp2((e_h + e_c - self.e_u).astype(np.float64))
        constants = {
            **self.fixed,
            "D": torch.round(self.d / torch.from_numpy(scale)).to(torch.int64).numpy(),
            "state_channel_shift": e_h - base,
            "state_token_shift": token_shift,
        }
        middle = int(np.median(e_h)) + e_c + 8
        e_y = int(np.clip(middle, e_h.max() + e_c - 31, e_h.min() + e_c + 31))
        outputs = {"h": Out(self.bits, base), "y": Out(low.bits, e_y)}
        trial = Builder("trial", rounding=low.mode, image=program.image, classes=[])
        trial.program.tensors = dict(program.tensors)
        trial.program.constants = dict(program.constants)
        trial.program.arrays = dict(program.arrays)
        op = trial.add("scan", self.name, self.ports, constants, {"abar_fraction": 15}, outputs)
        made = run_operator(trial.program, op, self.inputs, ("y_acc", "h"))
        y_acc = torch.from_numpy(made[f"{self.name}.y_acc"].astype(np.float64))
        y_acc = y_acc * torch.from_numpy(np.exp2((e_h + e_c).astype(np.float64)))
        h = made[f"{self.name}.h"]
        edge = 1 << (self.bits - 1)
        saturated = ((h == edge - 1) | (h == -edge)).mean(axis=(0, 1, 3))
        error = (y_acc - self.target).square().sum(dim=(0, 1)).numpy()
        scale = self.target.square().sum(dim=(0, 1)).clamp(min=1e-30).numpy()
        return _Trial(constants, base, y_acc, float((error / scale).sum())), error, saturated
