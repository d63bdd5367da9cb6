"""Properties that hold for every Program, image and integer (hypothesis draws them).

Stated elsewhere, and not again here:

* round_shift against exact fractions, all modes and widths: test_arithmetic.py; the engine's: test_engine.py
* A-bar over every product, exponent and mode: test_exp2.py
* reversed tokens with exchanged branches mirror the network: test_operators.py
* the scan over 10,000 tokens of adversaries; its recurrence against a search: test_width_proof.py
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import intsim.plan
import intsim.widths.witness
from intsim.arithmetic import ROUNDINGS, limits, requantize, saturate
from intsim.builder import Builder, Out
from intsim.engine import Engine
from intsim.operators import KINDS, View
from intsim.operators.exp2 import exp2
from intsim.oracle import Oracle
from intsim.program import Array, Operator, Program
from intsim.program_file import load_program, program_bytes, save_program
from intsim.synthetic import Size, random_program
from intsim.validate import GROUP_SUFFIX, validate
from intsim.widths import proofs, witnesses

FEW = settings(database=None, deadline=None, derandomize=True, max_examples=12)
MANY = settings(database=None, deadline=None, derandomize=True, max_examples=300)

SIZES = st.builds(
    Size,
    image=st.tuples(st.integers(4, 7), st.integers(4, 9), st.just(3)),
    patch=st.integers(2, 4),
    stride=st.integers(2, 4),
    width=st.integers(1, 9),
    depth=st.integers(1, 2),
    inner=st.integers(1, 9),
    states=st.integers(1, 4),
    dt_rank=st.integers(1, 3),
    taps=st.integers(1, 5),
    classes=st.integers(1, 4),
)
PROGRAMS = st.builds(
    random_program,
    st.integers(0, 1 << 32),
    SIZES,
    rounding=st.sampled_from(ROUNDINGS),
    k=st.integers(1, 4),
    state_bits=st.sampled_from([8, 16]),
    abar_fraction=st.sampled_from([15, 8]),
    activation_bits=st.integers(5, 8),
    extreme=st.sampled_from([0.05, 0.3]),
)


def images_for(program: Program, seed: int) -> Array:
    """Random pixels, and images of nothing but 0 and 255."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (3, *program.image), dtype=np.uint8)
    images[1], images[2] = rng.integers(0, 2, program.image) * 255, 255
    return images


def same(a: dict[str, Array], b: dict[str, Array]) -> None:
    assert list(a) == list(b)
    for name, values in a.items():
        assert values.dtype == b[name].dtype and np.array_equal(values, b[name]), name


# --- widths ----------------------------------------------------------------------------------------------------------


@FEW
@given(PROGRAMS, st.integers(0, 1 << 32))
def test_no_register_overflows(program: Program, seed: int) -> None:
    """Every tensor of every image is within its proven range, hence its declared width; so are the witnesses."""
    found = proofs(program)
    ranges = {r.name: r.range for proof in found for r in proof.registers}
    for proof in found:
        for r in proof.registers:
            assert r.proven <= r.declared, r.name
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(intsim.widths.witness, "STEPS", 300)  # of a slow state
            found_here = witnesses(proof)
        for witness in found_here:
            assert witness.low <= witness.reached_low and witness.reached_high <= witness.high, witness.register
            assert witness.exact or ".scan" in witness.register
            assert -(1 << 31) <= witness.reached_low and witness.reached_high < 1 << 31
    for image in images_for(program, seed):
        for name, values in Oracle(program).run_one(image).items():
            if name != "image":
                assert (values >= ranges[name].low).all() and (values <= ranges[name].high).all(), name


# --- arithmetic ------------------------------------------------------------------------------------------------------


@MANY
@given(st.integers(-(1 << 62), 1 << 62), st.integers(1, 32), st.booleans())
def test_saturation_is_idempotent_and_keeps_what_fits(v: int, bits: int, signed: bool) -> None:
    once = saturate(v, bits, signed)
    low, high = limits(bits, signed)
    assert low <= once <= high and saturate(once, bits, signed) == once
    assert (once == v) == (low <= v <= high)


@MANY
@given(
    st.integers(-(1 << 31), (1 << 31) - 1), st.integers(0, 1 << 20), st.integers(-31, 31), st.integers(1, 32),
    st.booleans(), st.sampled_from(ROUNDINGS),
)  # fmt: skip
def test_requantization_is_monotone(v: int, more: int, s: int, bits: int, signed: bool, mode: str) -> None:
    assert requantize(v, s, bits, signed, mode) <= requantize(v + more, s, bits, signed, mode)


# --- permuted channels -----------------------------------------------------------------------------------------------


def role_of(name: str) -> str:
    """Name of an operator without layer and direction."""
    return name.removesuffix("_b").split(".")[-1] if name != "patch_embed.proj" else "patch_embed"


def permuted(program: Program, d: Array, e: Array) -> tuple[Program, dict[str, Array]]:
    """The Program whose residual channels are taken in the order `d` and inner channels in the order `e`.

    Also the order of each tensor's channels in the new one, by name.
    """
    inner = len(e)
    rows = {
        **dict.fromkeys(("patch_embed", "tokens", "norm", "norm_f", "out_proj", "residual", "class_token"), d),
        **dict.fromkeys(("silu_z", "conv1d", "silu", "dt_proj", "softplus", "scan", "gate"), e),
        "in_proj": np.concatenate([e, inner + e]),
    }
    inputs = {"in_proj": d, "head": d, "x_proj": e, "out_proj": e}
    order: dict[str, Array] = {}
    arrays = dict(program.arrays)
    for op in program.operators:
        role = role_of(op.name)
        for port in op.outputs:
            t = program.tensors[op.tensor(port)]
            length = t.shape[t.axes.index("channel")] if "channel" in t.axes else 0
            order[t.name] = rows.get(role, np.arange(length))[:length]  # x and z of in_proj: both as e
        for constant, name in op.constants.items():
            axes = program.constants[name].axes
            if name == "exp2.rom":
                continue
            array = program.arrays[name]
            if "channel" in axes and role in rows:
                port = constant.removesuffix(GROUP_SUFFIX)
                wanted = order[op.tensor(port)] if constant.endswith(GROUP_SUFFIX) else rows[role]
                array = np.take(array, wanted, axis=axes.index("channel"))
            if "input" in axes and role in inputs:
                array = np.take(array, inputs[role], axis=axes.index("input"))
            arrays[name] = np.ascontiguousarray(array)
    return replace(program, arrays=arrays), order


@FEW
@given(PROGRAMS, st.data())
def test_permuting_channels_permutes_their_outputs_alone(program: Program, data: Any) -> None:
    width, inner = program.tensors["tokens.out"].shape[1], program.tensors["layers.0.mixer.gate.out"].shape[1]
    d, e = (np.array(data.draw(st.permutations(range(n)))) for n in (width, inner))
    other, order = permuted(program, d, e)
    validate(other)
    image = images_for(program, 1)[0]
    got, wanted = Oracle(other).run_one(image), Oracle(program).run_one(image)
    for name, values in wanted.items():
        axes = program.tensors[name].axes
        if name != "image" and "channel" in axes:
            values = np.take(values, order[name], axis=axes.index("channel"))
        assert np.array_equal(got[name], values), name


# --- groups ----------------------------------------------------------------------------------------------------------

GROUPED = ("norm", "norm_f", "in_proj", "silu_z", "conv1d", "silu", "dt_proj", "softplus", "scan", "gate")


def rebuilt(program: Program, shifts: tuple[int, ...], rng: np.random.Generator) -> Program:
    """The Program built again, with a group of these shifts for every tensor that may have one."""
    b = Builder(program.name, profile=program.profile, rounding=program.rounding, image=program.image,
                classes=program.classes)  # fmt: skip
    for op in program.operators:
        kind, v = KINDS[op.kind], View(program, op)
        outs = {}
        for port, spec in kind.ports(v).items():
            t = v.output(port)
            assert t.exponent is not None
            out = Out(t.bits, t.exponent, t.signed)
            if spec.group_axes and role_of(op.name) in GROUPED:
                axis = spec.group_axes[int(rng.integers(len(spec.group_axes)))]
                positions = t.shape[t.axes.index(axis)]
                out = replace(out, axis=axis, shifts=shifts, index=rng.integers(0, len(shifts), positions))
            outs[port] = out
        given_constants = {role: v.array(role) for role in kind.given(v)}
        attributes = {n: a for n, a in op.attributes.items() if n not in kind.derived_attributes(v)}
        b.add(op.kind, op.name, op.inputs, given_constants, attributes, outs)
    return b.finish()


@FEW
@given(st.integers(0, 1 << 32), SIZES, st.integers(2, 4), st.sampled_from(ROUNDINGS))
def test_groups_of_one_exponent_are_no_groups(seed: int, size: Size, k: int, mode: str) -> None:
    program = random_program(seed, size, k=1, rounding=mode)
    grouped = rebuilt(program, (0,) * k, np.random.default_rng(seed))
    assert not program.tensors["layers.0.norm.out"].terms and grouped.tensors["layers.0.norm.out"].terms
    images = images_for(program, seed)
    same(Oracle(program).run(images[:1], ["*"]), Oracle(grouped).run(images[:1], ["*"]))
    same(Engine(program).run(images, ["*"]), Engine(grouped).run(images, ["*"]))


# --- fused factors ---------------------------------------------------------------------------------------------------

FACTORS = st.lists(st.fractions(Fraction(1, 50), 50), min_size=3, max_size=3).map(tuple)


@FEW
@given(st.integers(0, 1 << 32), FACTORS)
def test_fused_factors_change_nothing_before_rounding(seed: int, r: tuple[Fraction, ...]) -> None:
    """Rows of x_proj that give B divided by r_D, those that give C multiplied: the same y, states divided by r_D.

    In exact rationals, on the constants of a Program; r_D are any positive numbers, no powers of two.
    """
    program = random_program(seed, Size(inner=3, states=3, width=3, image=(4, 8, 3)))
    linear, scan = (program.operator(f"layers.0.mixer.{name}") for name in ("x_proj", "scan"))
    rng = np.random.default_rng(seed)
    u, delta = rng.integers(-128, 128, (3, 3)).tolist(), rng.integers(0, 256, (3, 3)).tolist()
    weight, bias, rows = rational(program, linear, "weight"), rational(program, linear, "bias"), {}
    for s in linear.attributes["segments"]:
        rows[s["port"]] = range(s["start"], s["stop"])

    def network(divide: tuple[Fraction, ...]) -> tuple[list[list[Fraction]], list[Fraction]]:
        """(y [token][channel], the last states) with the factors fused into the rows."""
        factors = {row: 1 / divide[n] for n, row in enumerate(rows["B"])}
        factors |= {row: divide[n] for n, row in enumerate(rows["C"])}
        fused = {row: [w * f for w in weight[row]] for row, f in factors.items()}
        fused_bias = {row: bias[row] * f for row, f in factors.items()}
        view = View(program, scan)
        a, fraction, rom = view.array("A"), view.array("A_fraction"), view.array("exp2_rom")
        states = [[Fraction(0)] * 3 for _ in range(3)]
        y = []
        for t in range(3):
            made = {
                row: sum((w * x for w, x in zip(fused[row], u[t], strict=True)), fused_bias[row]) for row in factors
            }
            out = []
            for c in range(3):
                for n in range(3):
                    abar = Fraction(int(exp2(delta[t][c] * a[c, n], fraction[c], 15, rom, "floor")), 1 << 15)
                    states[c][n] = abar * states[c][n] + delta[t][c] * u[t][c] * made[rows["B"][n]]
                out.append(sum((states[c][n] * made[rows["C"][n]] for n in range(3)), Fraction(0)))
            y.append(out)
        return y, [h for row in states for h in row]

    plain, states = network((Fraction(1),) * 3)
    fused, divided = network(r)
    assert fused == plain
    assert [h * r[i % 3] for i, h in enumerate(divided)] == states


def rational(program: Program, op: Operator, role: str) -> Any:
    """A constant as the exact numbers that it stands for."""
    name = op.constants[role]
    scale = np.broadcast_to(program.exponent_grid(name), program.arrays[name].shape)
    values = np.vectorize(lambda q, e: Fraction(int(q)) * Fraction(2) ** int(e), otypes=[object])
    return values(program.arrays[name].astype(np.int64), scale).tolist()


# --- files and threads -----------------------------------------------------------------------------------------------


@FEW
@given(program=PROGRAMS)
def test_a_program_survives_its_file(program: Program, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = Path(tmp_path_factory.mktemp("p")) / "p.safetensors"
    save_program(program, path)
    read = load_program(path)
    assert program_bytes(read) == path.read_bytes() == program_bytes(program)
    images = images_for(program, 0)
    same(Engine(program).run(images, ["*"]), Engine(read).run(images, ["*"]))


@settings(FEW, max_examples=3)
@given(program=PROGRAMS, seed=st.integers(0, 1 << 32))
def test_threads_do_not_matter(program: Program, seed: int) -> None:
    images = images_for(program, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(intsim.plan, "GRAIN", 1)  # share even the smallest operator
        wanted = Engine(program, threads=1).run(images, ["*"])
        for threads in range(2, 9):
            same(wanted, Engine(program, threads=threads).run(images, ["*"]))
