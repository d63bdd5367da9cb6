"""The fast form: eight launches a layer, both directions in one, the whole batch in one CUDA graph.

Everything is derived from the exponents of the Program, as in the plain form, and by the same rule: a matrix product
runs on bfloat16 operands with float32 accumulators where every partial sum stays below 2^24 units, in parts that go
over to int32 where only the parts do, and is refused where neither holds.  The patch embedding, the final norm and
the head are the plain form's.  The integers are those of the plain form, which stays as the check.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bitexact.fakequant import kernels
from bitexact.fakequant.common import Step, code_range, exponents, magnitude, term_sum
from intsim.errors import UserError
from intsim.program import Operator, Program

SUFFIXES = ("", "_b")
BRANCH = {"conv1d": "conv1d", "silu": "rom", "x_proj": "linear", "dt_proj": "linear", "softplus": "rom", "scan": "scan"}
LAYER = {  # operators of a layer in execution order, behind "layers.N.", with their kinds
    "norm": "rmsnorm",
    "mixer.in_proj": "linear",
    "mixer.silu_z": "rom",
    **{f"mixer.{name}{suffix}": kind for suffix in SUFFIXES for name, kind in BRANCH.items()},
    "mixer.gate": "gate",
    "mixer.out_proj": "linear",
    "residual": "add",
}
ENTRIES, FIRST = 256, -128
EXACT = 1 << 24  # of float32
B_LIMIT = (1 << 30) - 1
FRACTION = 19
INPUT_BLOCKS = (64, 32, 16)  # inputs summed in float32 before they go over to int32, the most that is exact

Sink = Callable[[str, Tensor], None]


def interpreted() -> bool:
    """Whether Triton runs kernels in its interpreter."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on")


def blocks(n: int, size: int) -> int:
    """How many blocks of `size` cover n."""
    return -(-n // size)


def power_above(n: int) -> int:
    """The least power of two that is at least n."""
    return 1 << max(0, n - 1).bit_length()


class Source:
    """What a launch needs to know of some operators (one, or both directions of a branch), stacked."""

    def __init__(self, program: Program, device: torch.device, names: list[str]):
        self.program, self.device = program, device
        self.ops = [program.operator(name) for name in names]
        self.mode = kernels.MODES[program.rounding]

    def array(self, parts: list[Any], dtype: Any = np.int32) -> Tensor:
        """[operators, ...] on the device."""
        return torch.from_numpy(np.ascontiguousarray(np.stack([np.asarray(p) for p in parts]).astype(dtype))).to(
            self.device
        )

    def codes(self, role: str, dtype: Any = np.int32) -> Tensor:
        """A constant's integers."""
        return self.array([self.integers(op, role) for op in self.ops], dtype)

    def integers(self, op: Operator, role: str) -> np.ndarray:
        return np.asarray(self.program.arrays[op.constants[role]]).astype(np.int64)

    def channel(self, tensor: str) -> np.ndarray:
        """Base exponent plus the terms along the channels: int64 [channels]."""
        return (self.program.tensors[tensor].exponent or 0) + term_sum(self.program, tensor, "channel")

    def tokens(self, tensor: str) -> np.ndarray:
        """The terms along the tokens: int64 [tokens]."""
        return term_sum(self.program, tensor, "token")

    def limits(self, tensor: str) -> tuple[int, int]:
        return code_range(self.program.tensors[tensor])

    def rom(self) -> tuple[Tensor, Tensor]:
        """(contents of all ROMs of the operators, offset of each channel's ROM [operators, channels])."""
        contents, offsets, start = [], [], 0
        for op in self.ops:
            rom = self.integers(op, "rom")
            contents.append(rom.reshape(-1))
            offsets.append(start + self.integers(op, "rom_index") * ENTRIES)
            start += rom.size
        out = self.program.tensors[self.ops[0].tensor("out")]
        flat = np.concatenate(contents).astype(np.int8 if out.signed else np.uint8)
        return torch.from_numpy(flat).to(self.device), self.array(offsets)


class LinearLaunch(Source):
    """One linear, or both directions' twins, with a ROM or the residual addition behind it."""

    def __init__(
        self,
        program: Program,
        device: torch.device,
        names: list[str],
        rom: list[str] | None = None,
        residual: str | None = None,
    ):
        super().__init__(program, device, names)
        weights, shifts, lows, highs, token = [], [], [], [], []
        self.segments = [(s["port"], int(s["start"]), int(s["stop"])) for s in self.ops[0].attributes["segments"]]
        whole, parts = 0, dict.fromkeys(INPUT_BLOCKS, 0)
        for op in self.ops:
            x = program.tensors[op.inputs["x"]]
            group = term_sum(program, x.name, "channel")
            token.append(self.tokens(x.name))
            weight = self.integers(op, "weight") << group  # [O, I]: a power of two times 8 bits
            weights.append(weight)
            terms = magnitude(x) * np.abs(weight)
            whole = max(whole, int(terms.sum(1).max()))
            for size in INPUT_BLOCKS:
                sums = np.add.reduceat(terms, np.arange(0, terms.shape[1], size), axis=1)
                parts[size] = max(parts[size], int(sums.max()))
            e_acc = self.channel(op.tensor("acc"))
            shift, low, high = np.zeros_like(e_acc), np.zeros_like(e_acc), np.zeros_like(e_acc)
            for port, start, stop in self.segments:
                name = op.tensor(port)
                shift[start:stop] = self.channel(name) - e_acc[start:stop]
                low[start:stop], high[start:stop] = self.limits(name)
            shifts.append(shift)
            lows.append(low)
            highs.append(high)
        self.outputs, self.inputs = weights[0].shape
        exact = [size for size in INPUT_BLOCKS if parts[size] < EXACT]
        self.split = whole >= EXACT
        self.fits = bool(exact) or not self.split
        self.block = exact[0] if self.split and exact else INPUT_BLOCKS[0]
        self.block = min(self.block, max(16, power_above(self.inputs)))
        self.padded = blocks(self.inputs, self.block) * self.block
        filled = np.zeros((len(weights), self.outputs, self.padded))
        filled[:, :, : self.inputs] = np.stack(weights)
        self.weight = torch.from_numpy(filled).to(device, torch.float32 if interpreted() else torch.bfloat16)
        self.bias = self.codes("bias")
        self.shift, self.low, self.high = self.array(shifts), self.array(lows), self.array(highs)
        self.token = self.array(token)
        self.token_shift = bool(self.token.any())
        if self.token_shift and len(self.ops) > 1:
            raise UserError(f"operator {names[0]}: the fast form has no token groups at the input of a branch")
        self.tables = Source(program, device, rom).rom() if rom else None
        self.residual = self.limits(f"{residual}.out") if residual else None

    def __call__(
        self,
        x: Tensor,
        x_row: int,
        x_direction: int,
        rows: int,
        tokens: int,
        out: Tensor,
        residual: Tensor | None = None,
        taps: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        grid = (blocks(rows, 128), blocks(self.outputs, 64), len(self.ops))
        rom, rom_row = self.tables if self.tables else (x, self.bias)
        accs, plain = taps if taps else (self.bias, self.bias)
        low, high = self.residual if self.residual else (0, 0)
        kernels.linear[grid](
            x,
            self.weight,
            self.bias,
            self.shift,
            self.low,
            self.high,
            self.token,
            rom,
            rom_row,
            residual if residual is not None else x,
            out,
            accs,
            plain,
            rows,
            tokens,
            self.inputs,
            self.outputs,
            x_row,
            x_direction,
            self.padded,
            low,
            high,
            MODE=self.mode,
            SPLIT=self.split,
            TOKEN_SHIFT=self.token_shift,
            ROM=self.tables is not None,
            RESIDUAL=residual is not None,
            TAP=taps is not None,
            BM=128,
            BN=64,
            BK=self.block,
            num_warps=4,
        )


class ScanLaunch(Source):
    """Both directions' scans; one launch if their formats agree, else one for each."""

    def __init__(self, program: Program, device: torch.device, names: list[str]):
        super().__init__(program, device, names)
        fraction, b_shift, y_shift, state, y_tokens, lows, highs = [], [], [], [], [], [], []
        self.formats = []
        largest = 0
        for op in self.ops:
            h, y, y_acc = (op.tensor(p) for p in ("h", "y", "y_acc"))
            e_delta, e_u = self.channel(op.inputs["delta"]), self.channel(op.inputs["u"])
            m = int(op.attributes["abar_fraction"])
            fraction.append(-(e_delta + exponents(program, op.constants["A"])[:, 0]))
            product = e_delta + e_u + (program.tensors[op.inputs["B"]].exponent or 0)
            b_shift.append(self.channel(h) - m - product)
            y_shift.append(self.channel(y) - self.channel(y_acc))
            state.append(self.tokens(h))
            y_tokens.append(self.tokens(y))
            low, high = self.limits(y)
            lows.append(low)
            highs.append(high)
            self.formats.append((m, *self.limits(h)))
            factors = [magnitude(program.tensors[op.inputs[port]]) for port in ("delta", "u", "B")]
            largest = max(largest, factors[0] * factors[1] * factors[2])
        self.channels, self.states = self.integers(self.ops[0], "A").shape
        self.A = self.codes("A", np.uint8)
        self.D = self.codes("D")
        self.fraction, self.b_shift, self.y_shift = self.array(fraction), self.array(b_shift), self.array(y_shift)
        self.state, self.y_tokens = self.array(state), self.array(y_tokens)
        self.low, self.high = self.array(lows), self.array(highs)
        least = int(min(s.min() + t.min() for s, t in zip(b_shift, state, strict=True)))
        self.left = least < 0
        self.clamp = self.left and (largest << -least) > B_LIMIT
        self.steps = any(bool((np.diff(t) != 0).any()) for t in state)
        self.coarse = bool((np.stack(fraction) > FRACTION).any())
        rom = self.integers(self.ops[0], "exp2_rom")
        packed = np.append((rom[:-1] << 10) | (rom[:-1] - rom[1:]), 0)
        self.exp2 = self.array([packed])
        self.columns = int(program.tensors[program.operator(x_proj(self.ops[0])).tensor("acc")].shape[1])
        self.b_at = segment_start(program, self.ops[0].inputs["B"])
        self.c_at = segment_start(program, self.ops[0].inputs["C"])

    def __call__(
        self,
        delta: Tensor,
        u: Tensor,
        projected: Tensor,
        images: int,
        tokens: int,
        y: Tensor,
        taps: dict[str, Tensor] | None = None,
    ) -> None:
        ports = ("dx", "abar", "b", "acc", "h", "y_acc")
        made = [taps[p] for p in ports] if taps else [self.D] * len(ports)
        together = len(set(self.formats)) == 1
        wide = min(32, power_above(self.channels))
        for first in (0,) if together else range(len(self.ops)):
            m, low, high = self.formats[first]
            grid = (images, blocks(self.channels, wide), len(self.ops) if together else 1)
            kernels.scan[grid](
                delta,
                u,
                projected,
                self.A,
                self.fraction,
                self.D,
                self.b_shift,
                self.y_shift,
                self.state,
                self.y_tokens,
                self.low,
                self.high,
                self.exp2,
                y,
                *made,
                first,
                images,
                tokens,
                self.channels,
                self.states,
                self.columns,
                self.b_at,
                self.c_at,
                low,
                high,
                M=m,
                MODE=self.mode,
                LEFT=self.left,
                CLAMP=self.clamp,
                STEPS=self.steps,
                COARSE=self.coarse,
                TAP=taps is not None,
                BN=power_above(self.states),
                BC=wide,
                num_warps=1,
            )


def x_proj(scan: Operator) -> str:
    """Name of the operator that makes a scan's B."""
    return scan.inputs["B"].rpartition(".")[0]


def segment_start(program: Program, tensor: str) -> int:
    """First row of a linear's output segment."""
    name, _, port = tensor.rpartition(".")
    return next(int(s["start"]) for s in program.operator(name).attributes["segments"] if s["port"] == port)


class Layer(Source):
    """The launches of one layer."""

    def __init__(self, program: Program, device: torch.device, index: int):
        p = f"layers.{index}"
        m = f"{p}.mixer"
        super().__init__(program, device, [f"{p}.norm"])
        self.prefix = p
        norm = self.ops[0]
        self.width = program.tensors[norm.inputs["x"]].shape[1]
        self.tokens_count = program.tensors[norm.inputs["x"]].shape[0]
        self.gamma = self.codes("gamma")
        e_gamma = exponents(program, norm.constants["gamma"])
        e_normed = program.tensors[norm.tensor("normed")].exponent or 0
        self.norm_shift = self.array([self.channel(norm.tensor("out")) - (e_gamma + e_normed)])
        self.norm_limits = self.limits(norm.tensor("out"))
        self.norm = norm

        def both(name: str) -> list[str]:
            return [f"{m}.{name}{suffix}" for suffix in SUFFIXES]

        self.in_proj = LinearLaunch(program, device, [f"{m}.in_proj"])
        self.conv = Source(program, device, both("conv1d"))
        self.conv_rom = Source(program, device, both("silu")).rom()
        conv = self.conv
        self.conv_w, self.conv_bias = conv.codes("weight"), conv.codes("bias")
        self.conv_shift = conv.array(
            [conv.channel(op.tensor("out")) - conv.channel(op.tensor("acc")) for op in conv.ops]
        )
        limits = [conv.limits(op.tensor("out")) for op in conv.ops]
        self.conv_low, self.conv_high = conv.array([a for a, _ in limits]), conv.array([b for _, b in limits])
        self.reverse = conv.array([int(op.attributes["reverse"]) for op in conv.ops])
        self.x_proj = LinearLaunch(program, device, both("x_proj"))
        self.dt_proj = LinearLaunch(program, device, both("dt_proj"), rom=both("softplus"))
        self.dt_at = segment_start(program, f"{m}.x_proj.dt")
        self.scan = ScanLaunch(program, device, both("scan"))
        self.channels = self.scan.channels
        gate = program.operator(f"{m}.gate")
        self.gate = gate
        self.z_rom = Source(program, device, [f"{m}.silu_z"]).rom()
        y, y_b = (program.tensors[gate.inputs[port]].exponent or 0 for port in ("y", "y_b"))
        self.align = (y - min(y, y_b), y_b - min(y, y_b))
        self.gate_shift = self.array([self.channel(gate.tensor("out")) - self.channel(gate.tensor("acc"))])
        self.gate_tokens = self.array([self.tokens(gate.tensor("out"))])
        self.gate_limits = self.limits(gate.tensor("out"))
        self.z_at = segment_start(program, f"{m}.in_proj.z")
        self.out_proj = LinearLaunch(program, device, [f"{m}.out_proj"], residual=f"{p}.residual")


class Fused:
    """Runs a Program of SPEC section 4 with fused kernels.

    fake: the FakeQuant whose plain operators run what is not fused, and whose scales convert.
    """

    def __init__(self, fake: Any):
        self.fake = fake
        self.program: Program = fake.program
        self.device: torch.device = fake.device
        if self.device.type != "cuda" and not interpreted():
            raise UserError(f"device {str(self.device)!r}: the fast form needs CUDA; use the plain form there")
        self.program.require_full_width("the fast form cannot compute that, use the plain form")
        self.depth = check_topology(self.program)
        self.layers = [Layer(self.program, self.device, i) for i in range(self.depth)]
        self.tokens = self.layers[0].tokens_count if self.layers else 0
        self.graphs: dict[int, tuple[Any, Tensor, Tensor]] = {}

    # --- one batch ---

    def stream(self, images: Tensor, names: Collection[str], sink: Sink) -> None:
        """images uint8 [n, H, W, C] on the device -> each named tensor's integers to `sink`."""
        with torch.no_grad():
            self._run(images, frozenset(names), sink)

    def _run(self, images: Tensor, names: frozenset[str], sink: Sink) -> Tensor:
        """Runs everything; returns the real values of the logits [n, 1, classes]."""
        program, n = self.program, len(images)
        if "image" in names:
            sink("image", images.to(torch.int32))
        head, tail = program.operators[:2], program.operators[-3:]
        values: dict[str, Tensor] = {"image": images}
        for op in head:
            self._plain(op, values, names, sink)
        stream = head[-1].tensor("out")
        residual = self.fake.scaled(stream, values[stream]).to(torch.int16).reshape(n * self.tokens, -1)
        for layer in self.layers:
            residual = self._layer(layer, residual, n, names, sink)
        last = tail[0].inputs["x"]
        values = {last: self.fake.reals(last, residual.reshape(n, self.tokens, -1))}
        for op in tail:
            self._plain(op, values, names, sink)
        return values[program.logits]

    def _plain(self, op: Operator, values: dict[str, Tensor], names: frozenset[str], sink: Sink) -> None:
        """One operator of the plain form."""
        step: Step = self.fake.steps[op.name]
        made = step({port: values[name] for port, name in op.inputs.items()}, set(op.outputs))
        for port in op.outputs:
            values[op.tensor(port)] = made[port]
            if op.tensor(port) in names:
                sink(op.tensor(port), self.fake.integers(op.tensor(port), made[port]))

    def _linear(self, launch: LinearLaunch, *args: Any, **options: Any) -> None:
        if not launch.fits:
            raise UserError(
                f"operator {launch.ops[0].name}: group shifts so far apart need more than {INPUT_BLOCKS[-1]} inputs' "
                "sums of 24 bits; the fast form does not split further, use the plain form"
            )
        launch(*args, **options)

    def _layer(self, layer: Layer, x: Tensor, n: int, names: frozenset[str], sink: Sink) -> Tensor:
        """One layer: x int16 [rows, D] -> the next residual; taps go to `sink` on the way."""
        p, m = layer.prefix, f"{layer.prefix}.mixer"
        L, E, D, S = self.tokens, layer.channels, layer.width, layer.scan.states
        rows, mode = n * L, layer.mode
        tap = any(name.startswith(p + ".") for name in names)

        def empty(dtype: torch.dtype, *shape: int) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=self.device)

        def give(name: str, value: Tensor) -> None:
            if name in names:
                sink(name, value.reshape(n, *self.program.tensors[name].shape).to(torch.int32, copy=True))

        def give_both(name: str, port: str, value: Tensor) -> None:
            for direction, suffix in enumerate(SUFFIXES):
                give(f"{m}.{name}{suffix}.{port}", value[direction])

        none = layer.gamma
        # norm
        normed = empty(torch.int8, rows, D)
        taps = (empty(torch.int64, rows), empty(torch.int32, rows), empty(torch.int32, rows, D)) if tap else (none,) * 3
        a = layer.norm.attributes
        kernels.norm[(blocks(rows, 4),)](
            x,
            layer.gamma,
            layer.norm_shift,
            normed,
            *taps,
            rows,
            D,
            a["eps_q"],
            a["d_norm"],
            a["d_shift"],
            *layer.norm_limits,
            MODE=mode,
            TAP=tap,
            BM=4,
            BW=power_above(D),
            num_warps=4,
        )
        if tap:
            if f"{p}.norm.square_sum" in names:
                sink(f"{p}.norm.square_sum", taps[0].reshape(n, L))
            give(f"{p}.norm.rsqrt", taps[1])
            give(f"{p}.norm.normed", taps[2])
            give(f"{p}.norm.out", normed)
        # in_proj
        xz = empty(torch.int8, rows, 2 * E)
        pair = (empty(torch.int32, rows, 2 * E), empty(torch.int32, rows, 2 * E)) if tap else None
        self._linear(layer.in_proj, normed, D, 0, rows, L, xz, taps=pair)
        if pair:
            give(f"{m}.in_proj.acc", pair[0])
            for port, start, stop in layer.in_proj.segments:
                give(f"{m}.in_proj.{port}", pair[1][:, start:stop])
        # conv1d and silu
        u = empty(torch.int8, 2, rows, E)
        pair = (empty(torch.int32, 2, rows, E), empty(torch.int32, 2, rows, E)) if tap else None
        wide = min(128, power_above(E))
        kernels.conv[(blocks(rows, 16), blocks(E, wide), 2)](
            xz,
            layer.conv_w,
            layer.conv_bias,
            layer.conv_shift,
            layer.conv_low,
            layer.conv_high,
            *layer.conv_rom,
            layer.reverse,
            u,
            *(pair or (none, none)),
            rows,
            L,
            E,
            2 * E,
            MODE=mode,
            TAPS=layer.conv_w.shape[2],
            TAP=tap,
            BM=16,
            BC=wide,
            num_warps=4,
        )
        if pair:
            give_both("conv1d", "acc", pair[0])
            give_both("conv1d", "out", pair[1])
            give_both("silu", "out", u)
        # x_proj
        columns = layer.x_proj.outputs
        projected = empty(torch.int8, 2, rows, columns)
        pair = (empty(torch.int32, 2, rows, columns), empty(torch.int32, 2, rows, columns)) if tap else None
        self._linear(layer.x_proj, u, E, rows * E, rows, L, projected, taps=pair)
        if pair:
            give_both("x_proj", "acc", pair[0])
            for port, start, stop in layer.x_proj.segments:
                give_both("x_proj", port, pair[1][:, :, start:stop])
        # dt_proj and softplus
        delta = empty(torch.uint8, 2, rows, E)
        pair = (empty(torch.int32, 2, rows, E), empty(torch.int32, 2, rows, E)) if tap else None
        dt = projected.view(-1)[layer.dt_at :]
        self._linear(layer.dt_proj, dt, columns, rows * columns, rows, L, delta, taps=pair)
        if pair:
            give_both("dt_proj", "acc", pair[0])
            give_both("dt_proj", "out", pair[1])
            give_both("softplus", "out", delta)
        # scan
        y = empty(torch.int8, 2, rows, E)
        cubes: dict[str, Tensor] = {}
        if tap and any(name.startswith(f"{m}.scan") for name in names):
            cubes = {port: empty(torch.int32, 2, rows, E, S) for port in ("abar", "b", "acc", "h")}
            cubes |= {port: empty(torch.int32, 2, rows, E) for port in ("dx", "y_acc")}
        layer.scan(delta, u, projected, n, L, y, cubes or None)
        for port, value in cubes.items():
            give_both("scan", port, value)
        give_both("scan", "y", y)
        del cubes
        # silu_z and gate
        gated = empty(torch.int8, rows, E)
        pair = (empty(torch.int32, rows, E), empty(torch.int32, rows, E)) if tap else None
        kernels.gate[(blocks(rows, 16), blocks(E, wide))](
            y,
            xz[:, layer.z_at :],
            *layer.z_rom,
            layer.gate_shift,
            layer.scan.y_tokens,
            layer.gate_tokens,
            gated,
            *(pair or (none, none)),
            rows,
            L,
            E,
            2 * E,
            *layer.align,
            *layer.gate_limits,
            MODE=mode,
            TAP=tap,
            BM=16,
            BC=wide,
            num_warps=4,
        )
        if pair:
            give(f"{m}.silu_z.out", pair[1])
            give(f"{m}.gate.acc", pair[0])
            give(f"{m}.gate.out", gated)
        # out_proj and the residual addition
        after = torch.empty_like(x)
        pair = (empty(torch.int32, rows, D), empty(torch.int32, rows, D)) if tap else None
        self._linear(layer.out_proj, gated, E, 0, rows, L, after, residual=x, taps=pair)
        if pair:
            give(f"{m}.out_proj.acc", pair[0])
            give(f"{m}.out_proj.out", pair[1])
            give(f"{p}.residual.out", after)
        return after

    # --- batches ---

    def classify(self, images: Any, batch: int) -> Tensor:
        """images uint8 [n, H, W, C] -> logits int64 [n, classes] on the CPU; on CUDA one graph replay a batch."""
        classes = self.program.tensors[self.program.logits].shape[-1]
        logits = torch.zeros((len(images), classes), dtype=torch.int64)
        for start in range(0, len(images), batch):
            part = self.fake.images(images[start : start + batch])
            logits[start : start + len(part)] = self.logits(part, batch).to(torch.int64)[: len(part)].cpu()
        return logits

    def logits(self, images: Tensor, batch: int) -> Tensor:
        """Logits [n or batch, classes] on the device; CUDA: by the graph for `batch`, whose output is reused."""
        if self.device.type != "cuda":
            return self._eager(images)
        if batch not in self.graphs:
            self.graphs[batch] = self._capture(batch)
        graph, inputs, outputs = self.graphs[batch]
        inputs[: len(images)].copy_(images)
        graph.replay()
        return outputs

    def _eager(self, images: Tensor) -> Tensor:
        """Logits [n, classes] as float64 integers, without a check that would have to wait for the device."""
        with torch.no_grad():
            real = self._run(images, frozenset(), lambda name, value: None)
        return self.fake.scaled(self.program.logits, real).flatten(1)

    def _capture(self, batch: int) -> tuple[Any, Tensor, Tensor]:
        """The graph of a whole batch: (graph, its images uint8 [batch, H, W, C], its logits [batch, classes])."""
        inputs = torch.zeros((batch, *self.program.image), dtype=torch.uint8, device=self.device)
        side = torch.cuda.Stream(self.device)
        side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(side):
            for _ in range(2):
                self._eager(inputs)
        torch.cuda.current_stream(self.device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = self._eager(inputs)
        return graph, inputs, outputs


def check_topology(program: Program) -> int:
    """The depth of a Program that is the network of SPEC section 4; UserError if it is another."""
    names = [op.name for op in program.operators]
    kinds = {op.name: op.kind for op in program.operators}
    depth = len({m[1] for name in names if (m := re.match(r"layers\.(\d+)\.", name))})
    expected = ["patch_embed.proj", "tokens"]
    expected += [f"layers.{i}.{part}" for i in range(depth) for part in LAYER]
    expected += ["class_token", "norm_f", "head"]
    other = [name for i in range(depth) for name, kind in LAYER.items() if kinds.get(f"layers.{i}.{name}") != kind]
    if names != expected or other:
        raise UserError("the fast form runs the network of SPEC section 4 only; use the plain form for this Program")
    for name, tensor in program.tensors.items():
        allowed = {"channel"}
        if tensor.role == "output" and re.search(r"\.(scan|scan_b|gate)\.\w+$", name):
            allowed = {"token"} if "scan" in name else {"token", "channel"}
        if any(term.shifts is not None and term.axis not in allowed for term in tensor.terms):
            raise UserError(f"{name}: the fast form has no groups along this axis; use the plain form for this Program")
    return depth
