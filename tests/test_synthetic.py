"""Random Programs: the same seed gives the same bytes, and their activations exercise what they are meant to."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from intsim.arithmetic import limits
from intsim.oracle import Oracle
from intsim.program import Program
from intsim.program_file import parse_program, program_bytes
from intsim.synthetic import VIM, Size, random_program

ORDER = ["conv1d", "silu", "x_proj", "dt_proj", "softplus", "scan"]


def test_the_same_arguments_give_the_same_bytes() -> None:
    made = [
        program_bytes(random_program(seed, state_bits=bits, rounding=mode, k=k))
        for seed, bits, mode, k in ((1, 8, "half_up", 4), (2, 8, "half_up", 4), (1, 16, "floor", 1))
    ]
    assert len(set(made)) == 3
    assert made[0] == program_bytes(random_program(1, state_bits=8, rounding="half_up", k=4))
    assert parse_program(made[2]).profile == "wide-state"


def run(program: Program, seeds: range) -> dict[str, np.ndarray]:
    images = [np.random.default_rng(s).integers(0, 256, program.image, dtype=np.uint8) for s in seeds]
    return Oracle(program).run(np.stack(images), ["*"])


@pytest.mark.parametrize("state_bits", [8, 16])
@pytest.mark.parametrize("seed", range(5))
def test_activations_are_not_degenerate(seed: int, state_bits: int) -> None:
    """No tensor is constant, none is saturated in more than 60 % of its elements (default size, no extremes)."""
    program = random_program(seed, extreme=0.0, state_bits=state_bits)
    for name, v in run(program, range(3)).items():
        t = program.tensors[name]
        low, high = limits(t.bits, t.signed)
        assert v.min() < v.max(), f"{name} is constant"
        ends = (v == high) | (v == low) if t.signed else v == high
        assert ends.mean() <= 0.6, f"{name}: {ends.mean():.0%} saturated"
        if t.role in ("state", "output"):
            assert len(np.unique(v)) >= 8, f"{name} takes {len(np.unique(v))} values"


def test_extremes_are_planted() -> None:
    """Over some seeds: -128 and 127 as weights, dead rows, 16-bit D, eps 1, the largest fractions."""
    seen: Counter[str] = Counter()
    for seed in range(12):
        program = random_program(seed, extreme=0.3)
        for op in program.operators:
            c = {role: program.arrays[name] for role, name in op.constants.items()}
            if "weight" in c:
                seen["weight at an end"] += int((c["weight"] == -128).any() and (c["weight"] == 127).any())
                seen["dead channel"] += int((c["weight"] == 0).all(axis=1).any())
            if op.kind == "scan":
                seen["D at an end"] += int((c["D"] == -(1 << 15)).any())
                seen["fraction 31"] += int((c["A_fraction"] == 31).any())
                seen["fraction 0"] += int((c["A_fraction"] == 0).any())
                seen["A 0 and 255"] += int((c["A"] == 0).any() and (c["A"] == 255).any())
                seen["token shift steps"] += int(np.ptp(c["state_token_shift"]) > 0)
            if op.kind == "rmsnorm":
                seen["eps 1"] += int(op.attributes["eps_q"] == 1)
    assert len(seen) == 8 and all(seen.values()), seen


@pytest.mark.parametrize("k", [1, 2, 4])
def test_sizes_and_structure(k: int) -> None:
    """The network of SPEC section 4, in its order, with its shapes."""
    size = Size(image=(9, 14, 3), patch=4, stride=3, width=6, depth=2, inner=10, states=5, dt_rank=3, taps=2, classes=7)
    program = random_program(0, size, k=k)
    assert size.patches == 2 * 4
    wanted = ["patch_embed.proj", "tokens"]
    for i in range(size.depth):
        p = f"layers.{i}"
        wanted += [f"{p}.norm", *(f"{p}.mixer.{n}" for n in ("in_proj", "silu_z"))]
        wanted += [f"{p}.mixer.{n}{suffix}" for suffix in ("", "_b") for n in ORDER]
        wanted += [f"{p}.mixer.gate", f"{p}.mixer.out_proj", f"{p}.residual"]
    assert [op.name for op in program.operators] == [*wanted, "class_token", "norm_f", "head"]
    shapes = {n: t.shape for n, t in program.tensors.items()}
    assert shapes["tokens.out"] == (9, 6) and shapes["layers.1.mixer.in_proj.acc"] == (9, 20)
    assert shapes["layers.0.mixer.x_proj_b.acc"] == (9, 13) and shapes["layers.0.mixer.x_proj.dt"] == (9, 3)
    assert shapes["layers.1.mixer.scan.h"] == (9, 10, 5)
    assert shapes["head.out"] == (1, 7) and program.logits == "head.out"
    assert program.tensors["head.out"].bits == 32 and len(program.classes) == 7
    assert program.arrays["layers.0.mixer.conv1d.weight"].shape == (10, 2)
    grouped = {n: t.terms[0] for n, t in program.tensors.items() if t.group("token") or t.group("channel")}
    assert bool(grouped) == (k > 1)
    for name, term in grouped.items():
        assert len(term.shifts or ()) == k or name.endswith(".acc"), name


def test_the_named_sizes_are_those_of_vim() -> None:
    for name, width, rank in (("tiny", 192, 12), ("small", 384, 24), ("base", 768, 48)):
        s = VIM[name]
        assert (s.width, s.inner, s.dt_rank, s.depth, s.states, s.taps) == (width, 2 * width, rank, 24, 16, 4)
        assert s.patches == 196 and s.classes == 1000
