"""Teeth: faults planted in one side, each of which `compare` must catch and pin on the operator that has it.

Every fault is one line that a designer could get wrong.  It is planted in one operator of the fake-quant path (or in
the Program that this path is given), the oracle stays as it is, and the report must name exactly that operator, both
as the first that differs and as the only one that differs on the oracle's inputs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache
from types import MethodType
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from bitexact.compare import compare  # noqa: E402
from bitexact.fakequant import STEPS, FakeQuant  # noqa: E402
from bitexact.fakequant.common import round_to_integer  # noqa: E402
from intsim.oracle import Oracle  # noqa: E402
from intsim.program import Array, Program  # noqa: E402
from intsim.synthetic import Size, random_program  # noqa: E402

SIZE = Size((10, 11, 3), patch=3, stride=3, width=12, depth=2, inner=24, states=8, dt_rank=3, taps=4, classes=5)
RESIDUAL_BITS = 12  # narrow, so that the residual stream saturates
# Small random Programs, tried in this order until one shows the fault: a saturated norm, a clamped b, a tie that the
# modes round apart or an aligned gate is not in every one of them.
SEEDS = (1, 4, 2, 3, 5, 6, 7, 8)

Plant = Callable[[Any], None]


class Remembered:
    """The oracle's results for one batch of images, handed out by name."""

    def __init__(self, program: Program, images: Array):
        self.images = images
        self.results = Oracle(program).run(images, ["*"])

    def run(self, images: Array, taps: Iterable[str] = ()) -> dict[str, Array]:
        rows = [next(i for i, known in enumerate(self.images) if np.array_equal(known, image)) for image in images]
        return {name: self.results[name][rows] for name in taps}


@dataclass
class Bench:
    program: Program
    images: Array
    oracle: Remembered
    fake: FakeQuant


@cache
def bench(seed: int) -> Bench:
    """A small Program with every corner in it, images with extremes, and both sides ready."""
    program = random_program(seed, SIZE, k=4, state_bits=(8, 16)[seed % 2], extreme=0.3)
    for name, tensor in program.tensors.items():
        if tensor.bits == 16 and tensor.signed and tensor.role == "output":
            program.tensors[name] = replace(tensor, bits=RESIDUAL_BITS)
    images = np.random.default_rng(seed).integers(0, 256, (4, *program.image), dtype=np.uint8)
    images[2], images[3] = 0, 255
    return Bench(program, images, Remembered(program, images), FakeQuant(program))


# --- The list of faults ----------------------------------------------------------------------------------------------


@dataclass
class Fault:
    title: str
    where: str
    plant: Callable[..., None]
    edits_program: bool = False
    shared: bool = False  # the edited constant is also read by the operators behind


FAULTS: list[Fault] = []


def fault(where: str, title: str) -> Callable[[Plant], Plant]:
    """Registers `plant(step)`, which spoils a copy of the operator's step."""

    def register(plant: Plant) -> Plant:
        FAULTS.append(Fault(title, where, plant))
        return plant

    return register


def edit(where: str, title: str, role: str) -> Callable[[Callable[[Array], Array]], None]:
    """Registers `change(array)` of a constant: the operator is made from the Program with that constant changed."""

    def register(change: Callable[[Array], Array]) -> None:
        def plant(program: Program) -> None:
            name = program.operator(where).constants[role]
            program.arrays[name] = change(program.arrays[name].copy())

        FAULTS.append(Fault(title, where, plant, True, role.endswith(".group")))

    return register


def broken(fault: Fault, ready: Bench) -> FakeQuant:
    """A FakeQuant with the fault in it."""
    fake = copy.copy(ready.fake)
    fake.steps = dict(fake.steps)
    if fault.edits_program:
        program = copy.copy(ready.program)
        program.arrays = dict(program.arrays)
        fault.plant(program)
        if fault.shared:
            return FakeQuant(program)
        op = program.operator(fault.where)
        fake.steps[op.name] = STEPS[op.kind](program, op, fake.device)
        return fake
    step = copy.copy(fake.steps[fault.where])
    for name, value in vars(step).items():
        if name in ("out", "normed", "h_grid", "b_grid", "y_grid"):
            setattr(step, name, copy.deepcopy(value))
    fault.plant(step)
    fake.steps[fault.where] = step
    return fake


def before(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Plant:
    """A fault in what the operator is fed."""

    def plant(step: Any) -> None:
        original = step.__class__.__call__
        spoiled = type("Spoiled", (step.__class__,), {"__call__": lambda s, i, w: original(s, change(dict(i)), w)})
        step.__class__ = spoiled

    return plant


def after(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Plant:
    """A fault in what the operator hands out."""

    def plant(step: Any) -> None:
        original = step.__class__.__call__
        spoiled = type("Spoiled", (step.__class__,), {"__call__": lambda s, i, w: change(original(s, i, w))})
        step.__class__ = spoiled

    return plant


def grids(step: Any, port: str) -> Any:
    """The grid of an output, by port."""
    if step.kind == "scan":
        return getattr(step, f"{port}_grid")
    if step.kind == "linear":
        return step.out[port]
    return getattr(step, port)


def with_mode(port: str, mode: str = "floor") -> Plant:
    return lambda step: setattr(grids(step, port), "mode", mode)


def unsaturated(port: str) -> Plant:
    def plant(step: Any) -> None:
        grids(step, port).low = None

    return plant


def wrapping(port: str) -> Plant:
    """Two's complement instead of saturation."""

    def plant(step: Any) -> None:
        grid = grids(step, port)
        low, high = grid.low, grid.high
        spoiled = type("Wrapping", (type(grid),), {})
        spoiled.codes = lambda g, v: (round_to_integer(v, g.mode) - low) % (high - low + 1) + low
        grid.__class__ = spoiled

    return plant


def shifted(port: str, by: int, channel: int | None = None) -> Plant:
    """The requantization shift of one channel, or of all, off by `by`."""

    def plant(step: Any) -> None:
        grid = grids(step, port)
        down = grid.down.expand(*grid.down.shape[:-1], SIZE.inner).clone() if channel is not None else grid.down.clone()
        part = down if channel is None else down[..., channel]
        part *= 2.0**-by
        grid.down = down

    return plant


def roll(name: str, dim: int) -> Plant:
    """An array of the step with its lanes moved on by one."""
    return lambda step: setattr(step, name, getattr(step, name).roll(1, dim))


def zero(name: str) -> Plant:
    return lambda step: setattr(step, name, torch.zeros_like(getattr(step, name)))


def method(name: str, function: Callable[..., Any]) -> Plant:
    """Replaces a method; the function gets the original as its first argument, then the step."""

    def plant(step: Any) -> None:
        original = getattr(step.__class__, name)
        setattr(step, name, MethodType(lambda s, *args: function(original, s, *args), step))

    return plant


def swapped(array: Array, i: int, j: int) -> Array:
    array[[i, j]] = array[[j, i]]
    return array


def codes(port: str, change: Callable[[Any], Any]) -> Plant:
    """A fault in the integers of one input, whatever their exponents."""

    def plant(step: Any) -> None:
        scale = torch.from_numpy(np.ldexp(1.0, step.e_in(port)))
        channels(port, lambda x: change(x.double() / scale) * scale)(step)

    return plant


def channels(port: str, change: Callable[[Any], Any]) -> Plant:
    """A fault in one input."""
    return before(lambda inputs: {**inputs, port: change(inputs[port])})


# --- patch_embed

PATCH = "patch_embed.proj"
fault(PATCH, "requantization shift off by one")(shifted("out", 1))
fault(PATCH, "floor for half_up")(with_mode("out"))
fault(PATCH, "dropped saturation")(unsaturated("out"))
fault(PATCH, "wraps instead of saturating")(wrapping("out"))
fault(PATCH, "pixel - 127")(channels("image", lambda x: x.double() + 1))
fault(PATCH, "B, G, R for R, G, B")(channels("image", lambda x: x.flip(-1)))
fault(PATCH, "bias dropped")(zero("bias"))
fault(PATCH, "no rows left out at the bottom: patches start one pixel too low")(
    channels("image", lambda x: x.roll(-1, 1))
)


@fault(PATCH, "i and j swapped inside a patch")
def _(step: Any) -> None:
    shape = (len(step.weight), 3, SIZE.patch, SIZE.patch)
    step.weight = step.weight.reshape(shape).transpose(2, 3).flatten(1)


@fault(PATCH, "patches numbered column by column")
def _(step: Any) -> None:
    # the 3 x 3 patches of 10 x 11 pixels
    method("patches", lambda original, s, x: original(s, x).unflatten(1, (3, 3)).transpose(1, 2).flatten(1, 2))(step)


@fault(PATCH, "pixel fastest: k ordered row, column, channel")
def _(step: Any) -> None:
    shape = (len(step.weight), 3, SIZE.patch, SIZE.patch)
    step.weight = step.weight.reshape(shape).permute(0, 2, 3, 1).flatten(1)


# --- insert_token

TOKENS = "tokens"
fault(TOKENS, "missing class token: zeros in its place")(zero("cls_token"))
fault(TOKENS, "class token first instead of in the middle")(lambda step: setattr(step, "position", 0))
fault(TOKENS, "class token one position late")(lambda step: setattr(step, "position", step.position + 1))
fault(TOKENS, "position embedding off by one token")(roll("pos_embed", 0))
fault(TOKENS, "position embedding dropped")(zero("pos_embed"))
fault(TOKENS, "wraps instead of saturating")(wrapping("out"))

# --- rmsnorm

NORM = "layers.1.norm"
fault(NORM, "epsilon dropped")(lambda step: setattr(step, "eps_q", 0))
fault(NORM, "rsqrt one too large")(method("root", lambda original, s, w: original(s, w) + 1))
fault(NORM, "rsqrt rounded to nearest instead of down")(
    method("root", lambda original, s, w: torch.round(torch.sqrt(s.d_norm * 2.0**52 / w)))
)
fault(NORM, "w cut to 16 significant bits")(
    method("root", lambda original, s, w: original(s, torch.floor(w * 2.0**-16) * 2.0**16))
)
fault(NORM, "normed: floor for half_up")(with_mode("normed"))
fault(NORM, "out: floor for half_up")(with_mode("out"))
fault(NORM, "out: dropped saturation")(unsaturated("out"))
fault(NORM, "gamma: swapped lanes")(roll("gamma", 0))
fault(NORM, "a token's sum misses its last channel")(
    method("normalise", lambda original, s, total: original(s, torch.floor(total * (1 - 1 / SIZE.width))))
)


@fault(NORM, "one rounding instead of two: normed is not rounded")
def _(step: Any) -> None:
    original = type(step).__call__

    def spoiled(s: Any, inputs: Any, wanted: Any) -> Any:
        made = original(s, inputs, wanted)
        k, _ = s.normalise(made["square_sum"] * 2.0 ** (-2 * s.e))
        exact = inputs["x"].double() * (made["rsqrt"] * s.power(k - 26 - s.d_shift) * 2.0**-s.e)[..., None]
        return {**made, "out": s.out(exact * s.gamma)}

    step.__class__ = type("Spoiled", (type(step),), {"__call__": spoiled})


@fault(NORM, "normalised by an odd shift")
def _(step: Any) -> None:
    def spoiled(original: Any, s: Any, total: Any) -> Any:
        k, w = original(s, total)
        return k, torch.floor(w / 2)

    method("normalise", spoiled)(step)


edit("layers.0.norm", "gamma negated in one lane", "gamma")(
    lambda a: np.where(np.arange(len(a)) == 3, -a, a).astype(a.dtype)
)

# --- linear

IN_PROJ = "layers.0.mixer.in_proj"
OUT_PROJ = "layers.1.mixer.out_proj"
X_PROJ = "layers.1.mixer.x_proj_b"
DT_PROJ = "layers.0.mixer.dt_proj"
fault(IN_PROJ, "bias dropped")(zero("bias"))
edit(IN_PROJ, "two weight rows swapped", "weight")(lambda a: swapped(a, 3, 4))
fault(IN_PROJ, "x: floor for half_up")(with_mode("x"))
fault("layers.1.mixer.in_proj", "z: ties to even for half_up")(with_mode("z", "half_even"))
fault(IN_PROJ, "x: dropped saturation")(unsaturated("x"))
fault(IN_PROJ, "z: shift of one channel off by one")(shifted("z", 1, channel=5))
fault(OUT_PROJ, "requantization shift off by one")(shifted("out", -1))
fault(OUT_PROJ, "ties away from zero for half_up")(with_mode("out", "half_away"))
fault(OUT_PROJ, "the last input channel left out")(
    channels("x", lambda x: torch.where(torch.arange(x.shape[-1]) == x.shape[-1] - 1, 0.0, x))
)
fault(X_PROJ, "B and C swapped: the segments' starts")(after(lambda made: {**made, "B": made["C"], "C": made["B"]}))
fault(X_PROJ, "dt: dropped saturation")(unsaturated("dt"))
fault(DT_PROJ, "floor for half_up")(with_mode("out"))
fault("head", "bias dropped")(zero("bias"))
edit("head", "two logits swapped", "weight")(lambda a: swapped(a, 0, 4))


@fault(IN_PROJ, "group shifts of the input ignored")
def _(step: Any) -> None:
    shift = torch.from_numpy(np.ldexp(1.0, -(step.e_in("x") - step.source("x").exponent)))
    channels("x", lambda x: x * shift)(step)


@fault(OUT_PROJ, "token shifts of the input ignored")
def _(step: Any) -> None:
    shift = torch.from_numpy(np.ldexp(1.0, -(step.e_in("x") - step.source("x").exponent)))
    channels("x", lambda x: x * shift)(step)


@fault(X_PROJ, "groups of the input: every channel in its neighbour's group")
def _(step: Any) -> None:
    shift = step.e_in("x") - step.source("x").exponent
    wrong = torch.from_numpy(np.ldexp(1.0, np.roll(shift, 1, -1) - shift))
    channels("x", lambda x: x * wrong)(step)


edit(IN_PROJ, "output in the wrong groups", "x.group")(lambda a: np.roll(a, 1))
edit(DT_PROJ, "one weight off by one", "weight")(lambda a: a + (np.indices(a.shape).sum(0) == 0).astype(a.dtype))
edit("head", "exponent of one row's weights off by one", "weight_exponent")(
    lambda a: a + (np.arange(len(a)) == 2).astype(a.dtype)
)

# --- conv1d

CONV = "layers.0.mixer.conv1d"
CONV_B = "layers.1.mixer.conv1d_b"
fault(CONV_B, "unflipped backward branch")(lambda step: setattr(step, "reverse", False))
fault(CONV, "reversed token order")(lambda step: setattr(step, "reverse", True))
fault(CONV, "not causal: looks one token ahead")(
    channels("x", lambda x: torch.cat([x[:, 1:], torch.zeros_like(x[:, :1])], 1))
)
fault(CONV, "late by one token")(lambda step: setattr(step, "lead", step.lead + 1))
fault(CONV_B, "taps in reversed order")(lambda step: setattr(step, "weight", step.weight.flip(1)))
fault(CONV, "bias dropped")(zero("bias"))
edit(CONV, "two channels' weights swapped", "weight")(lambda a: swapped(a, 0, 1))
fault(CONV_B, "floor for half_up")(with_mode("out"))
fault(CONV, "wraps instead of saturating")(wrapping("out"))
fault(CONV_B, "flipped twice: the result turned back to token order")(
    after(lambda made: {port: value.flip(1) for port, value in made.items()})
)
edit(CONV_B, "output in the wrong groups", "out.group")(lambda a: np.roll(a, 1))

# --- rom

SILU = "layers.0.mixer.silu"
SOFTPLUS = "layers.1.mixer.softplus_b"
fault(SILU, "index off by one")(
    lambda step: setattr(step, "table", step.table.unflatten(0, (-1, 256)).roll(1, 1).flatten())
)
fault(SILU, "index not offset by 128")(
    lambda step: setattr(step, "table", step.table.unflatten(0, (-1, 256)).roll(128, 1).flatten())
)
edit("layers.0.mixer.silu_z", "every channel reads its neighbour's ROM", "rom_index")(lambda a: np.roll(a, 1))


@fault(SOFTPLUS, "output taken for signed: saturated at 127")
def _(step: Any) -> None:
    unit = torch.from_numpy(np.ldexp(1.0, step.e_out("out"))).expand(1, SIZE.inner).T
    step.table = torch.minimum(step.table.unflatten(0, (-1, 256)), 127 * unit).flatten()


fault(SOFTPLUS, "input saturated at 0")(channels("x", lambda x: x.clamp(min=0)))
edit(SILU, "one entry of one ROM off by one", "rom")(
    lambda a: np.where(np.indices(a.shape)[1] == 128, a + np.where(a < 127, 1, -1), a).astype(a.dtype)
)
edit(SOFTPLUS, "channels in the wrong ROM", "rom_index")(lambda a: (a + 1) % (a.max() + 1))

# --- scan

SCAN = "layers.0.mixer.scan"
SCAN_B = "layers.1.mixer.scan_b"


def tables(change: Callable[[Any], Any]) -> Plant:
    """A-bar's table changed."""
    return lambda step: setattr(step, "table", change(step.table.clone()))


def exp2_with(**names: Any) -> Plant:
    """A-bar's table made anew after attributes of the step were replaced (function of the step)."""

    def plant(step: Any) -> None:
        for name, change in names.items():
            setattr(step, name, change(step))
        step.table = step.make_table()

    return plant


def token_shift(step: Any, part: slice) -> Any:
    """2^-sL of the tokens `part`, for [n, t, E, N]."""
    shifts = step.integers("state_token_shift")[part]
    return torch.from_numpy(np.ldexp(1.0, -shifts))[:, None, None]


def states_after(part: slice) -> Any:
    """0 for the first token, 1 for the others, for [n, t, E, N]."""
    return (torch.arange(part.start, part.stop) > 0).double()[:, None, None]


def without_tokens(grid: Any, exponents: Array) -> Any:
    """A grid whose codes are those of the lowest token exponent (its real values still land on their own grid)."""
    step = torch.from_numpy(np.ldexp(1.0, exponents - exponents.min()))[:, None, None]
    return replace(grid, down=grid.down * step)


fault(SCAN, "A-bar of 32767 for 1.0")(tables(lambda t: t.clamp(max=32767 / 32768)))
fault(SCAN, "A-bar: floor for half_up")(exp2_with(abar_mode=lambda s: "floor"))
fault(SCAN_B, "A-bar: ROM index off by one")(exp2_with(rom=lambda s: torch.cat([s.rom[1:], s.rom[-1:]])))
fault(SCAN_B, "A-bar: no interpolation")(exp2_with(fine=lambda s: 0.0))
fault(SCAN, "A-bar: the product one too large")(tables(lambda t: t.roll(1)))
edit(SCAN, "A-bar: fraction bits of one channel off by one", "A_exponent")(
    lambda a: a + (np.arange(len(a)) == 7).astype(a.dtype)
)
fault(SCAN_B, "A-bar of the token before")(method("abar", lambda original, s, delta: original(s, delta.roll(1, 1))))
fault(SCAN, "b: floor for half_up")(with_mode("b"))
fault(SCAN, "b: clamp missing")(unsaturated("b"))
fault(SCAN, "b: clamped to -2^30, two's complement")(lambda step: setattr(step.b_grid, "low", -(2**30)))
fault(SCAN_B, "b: shift of one channel off by one")(lambda step: step.b_grid.down[:, 3].mul_(2.0))
fault(SCAN, "h: dropped saturation")(unsaturated("h"))
fault(SCAN, "h: floor for half_up")(with_mode("h"))
fault(SCAN_B, "state not rescaled where the token's exponent steps")(
    method(
        "rescaled", lambda original, s, h, t: h * 2.0 ** float(s.steps[t] - s.steps[t - 1]) if t else original(s, h, t)
    )
)
fault(SCAN_B, "state rescaled the wrong way")(
    method(
        "rescaled",
        lambda original, s, h, t: (
            torch.zeros_like(h) if t == 0 else s.h_grid.part(t)(h * 2.0 ** float(2 * (s.steps[t] - s.steps[t - 1])))
        ),
    )
)
fault(SCAN_B, "token shift ignored in y")(
    method("readout", lambda original, s, h, C, part: original(s, h * token_shift(s, part), C, part))
)
fault(SCAN, "one state left out of y")(
    method("readout", lambda original, s, h, C, part: original(s, h[..., 1:], C[..., 1:], part))
)
fault(SCAN_B, "y reads the state before the token")(
    method("readout", lambda original, s, h, C, part: original(s, h.roll(1, 1) * states_after(part), C, part))
)
fault(SCAN_B, "token shift ignored in b")(lambda step: setattr(step, "b_grid", without_tokens(step.b_grid, step.steps)))
fault(SCAN, "state not cleared before the first token")(
    method("rescaled", lambda original, s, h, t: original(s, h, t) if t else torch.ones_like(h) * s.h_grid.up[0])
)
fault(SCAN, "D dropped")(zero("D"))
edit(SCAN, "two channels of D swapped", "D")(lambda a: swapped(a, 2, 3))
fault(SCAN_B, "reversed token order")(before(lambda inputs: {port: value.flip(1) for port, value in inputs.items()}))
fault(SCAN, "B and C swapped")(before(lambda inputs: {**inputs, "B": inputs["C"], "C": inputs["B"]}))
fault(SCAN, "C: swapped state lanes")(channels("C", lambda x: x.roll(1, -1)))
fault(SCAN, "delta: swapped channel lanes")(codes("delta", lambda x: x.roll(1, -1)))
fault(SCAN, "y: floor for half_up")(with_mode("y"))
fault(SCAN_B, "y: dropped saturation")(unsaturated("y"))
fault(SCAN_B, "y: token groups off by one token")(
    lambda step: setattr(step.y_grid, "down", step.y_grid.down.roll(1, 0))
)
edit(SCAN, "one row of A swapped with the next", "A")(lambda a: swapped(a, 0, 1))

# --- gate

GATE = "layers.1.mixer.gate"
fault(GATE, "backward branch not turned back")(channels("y_b", lambda x: x.flip(1)))


@fault(GATE, "alignment of the two directions missing")
def _(step: Any) -> None:
    e = {port: step.source(port).exponent for port in ("y", "y_b")}
    for port in e:
        channels(port, lambda x, by=e[port]: x * 2.0 ** (min(e.values()) - by))(step)


fault(GATE, "halving missing")(after(lambda made: {"acc": made["acc"] * 2, "out": made["out"]}))
fault(GATE, "silu(z) of the neighbouring channel")(codes("g", lambda x: x.roll(1, -1)))
fault(GATE, "floor for half_up")(with_mode("out"))
fault(GATE, "dropped saturation")(unsaturated("out"))
fault(GATE, "forward branch only")(channels("y_b", torch.zeros_like))


@fault(GATE, "token shifts of y_b in token order instead of processing order")
def _(step: Any) -> None:
    e = step.e_in("y_b")
    wrong = torch.from_numpy(np.ldexp(1.0, e[::-1] - e))
    channels("y_b", lambda x: x * wrong)(step)


@fault(GATE, "token shifts of y ignored")
def _(step: Any) -> None:
    wrong = torch.from_numpy(np.ldexp(1.0, step.source("y").exponent - step.e_in("y")))
    channels("y", lambda x: x * wrong)(step)


edit(GATE, "output in the wrong token groups", "out.group")(lambda a: np.roll(a, 1))

# --- add, select_token

ADD = "layers.1.residual"
fault(ADD, "wraps instead of saturating")(wrapping("out"))
fault(ADD, "dropped saturation")(unsaturated("out"))
fault(ADD, "residual dropped")(channels("x", torch.zeros_like))
fault(ADD, "out_proj subtracted")(channels("y", torch.neg))
fault("class_token", "the first token instead of the middle one")(lambda step: setattr(step, "position", 0))
fault("class_token", "position off by one")(lambda step: setattr(step, "position", step.position + 1))


# --- The tests -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_without_a_fault_nothing_differs(seed: int) -> None:
    ready = bench(seed)
    report = compare(ready.program, ready.images, reference=ready.oracle, candidate=ready.fake)
    assert report.mismatches == 0 and report.guilty is None and report.faulty == []
    assert report.elements == 4 * sum(int(np.prod(t.shape)) for t in ready.program.tensors.values())


def test_there_are_enough_faults_for_every_kind() -> None:
    assert len(FAULTS) >= 40
    assert len({(f.where, f.title) for f in FAULTS}) == len(FAULTS)
    program = bench(SEEDS[0]).program
    kinds = {program.operator(f.where).kind for f in FAULTS}
    assert kinds == {op.kind for op in program.operators}


@pytest.mark.parametrize("planted", FAULTS, ids=[f"{f.where}: {f.title}" for f in FAULTS])
def test_a_planted_fault_is_caught_and_located(planted: Fault) -> None:
    for seed in SEEDS:
        ready = bench(seed)
        report = compare(ready.program, ready.images, reference=ready.oracle, candidate=broken(planted, ready))
        if report.mismatches:
            break
    assert report.mismatches > 0, "not caught"
    assert report.guilty is not None and report.guilty.operator == planted.where
    assert report.faulty[0] == planted.where
    assert report.faulty == [planted.where] or planted.shared
    assert report.guilty.first.reference != report.guilty.first.candidate
