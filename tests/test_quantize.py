"""Calibration and lowering: the searches against brute force, and whole Programs from small checkpoints."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from bitexact.checkpoint import save_checkpoint
from bitexact.inference import FloatModel
from bitexact.quantize import quantize
from bitexact.search import choose, cluster_up, cover, covering_exponent, fake_quantize, similarity_table
from bitexact.state import StateStatistics, fit_rank1
from bitexact.vim import Vim, VimConfig, selective_scan
from intsim.arithmetic import ROUNDINGS, limits, round_shift
from intsim.engine import Engine
from intsim.errors import UserError
from intsim.program import Program
from intsim.program_file import program_bytes

CONFIG = VimConfig(12, 8, 3, 4, 4, 16, 2, 32, 5, 3, 4, 4)
METADATA = {"image_size": [12, 8], "stride": 4, "mean": [0.5, 0.4, 0.45], "std": [0.25, 0.2, 0.3]}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    model = Vim(CONFIG)
    with torch.no_grad():  # states of very different size, and a dead channel
        for block in model.blocks:
            block.mixer.conv1d.weight.mul_(torch.exp2(torch.linspace(-6, 3, CONFIG.d_inner))[:, None, None])
            block.mixer.in_proj.weight[5] = 0
    path = tmp_path_factory.mktemp("checkpoint") / "small.safetensors"
    save_checkpoint(path, model.state_dict(), METADATA, torch.float32)
    return path


@pytest.fixture(scope="module")
def images() -> Any:
    smooth = np.random.default_rng(0).integers(0, 256, (24, 3, 2, 3), dtype=np.uint8)
    return smooth.repeat(4, axis=1).repeat(4, axis=2)


# --- searches ---


@given(st.lists(st.integers(-9, 9), min_size=1, max_size=9), st.integers(1, 4))
@settings(deadline=None)
def test_clustering_is_the_best_of_all(needed: list[int], k: int) -> None:
    level = cluster_up(np.array(needed), k)
    assert len(np.unique(level)) <= k and (level >= needed).all()
    best = min(
        sum(min(x - n for x in levels if x >= n) for n in needed)
        for size in range(1, k + 1)
        for levels in combinations(sorted(set(needed)), min(size, len(set(needed))))
        if max(levels) >= max(needed)
    )
    assert (level - needed).sum() == best


def test_searched_groups_are_the_most_similar_of_all() -> None:
    generator = torch.Generator().manual_seed(0)
    spread = torch.exp2(torch.tensor([0.0, 0.3, 2.2, 5.1, 4.9, 2.0]))
    values = torch.randn(400, 6, generator=generator, dtype=torch.float64) * spread
    for k in (1, 2, 3, 4):
        found, cosine = choose(similarity_table(values, values, 8, True, "half_up"), k)
        made = fake_quantize(values, torch.from_numpy(found.exponents(6)), 8, True, "half_up")
        assert float(torch.cosine_similarity(made.flatten(), values.flatten(), 0)) == pytest.approx(cosine, abs=1e-12)
        assert len(found.shifts) <= k and min(found.shifts) == 0
        simple = cover(values, 8, True, k)
        plain = fake_quantize(values, torch.from_numpy(simple.exponents(6)), 8, True, "half_up")
        assert cosine >= float(torch.cosine_similarity(plain.flatten(), values.flatten(), 0)) - 1e-12


def test_covering_exponent_is_the_smallest_that_covers() -> None:
    largest = torch.tensor([1.0, 127.0, 128.0, 3e-5, 0.0])
    assert covering_exponent(largest, 8, True).tolist() == [-6, 0, 1, -22, -22]


@pytest.mark.parametrize("mode", ROUNDINGS)
def test_rounding_of_real_values_is_that_of_the_specification(mode: str) -> None:
    eighths = np.arange(-100, 101)
    made = fake_quantize(torch.from_numpy(eighths / 8.0), 0, 8, True, mode)
    assert np.array_equal(made.numpy().astype(int), round_shift(eighths, 3, mode))


def test_rank_one_states_are_found_exactly() -> None:
    generator = torch.Generator().manual_seed(1)
    token, channel, state = (torch.randn(n, generator=generator, dtype=torch.float64) * 3 for n in (5, 7, 4))
    token, state = token - token.mean(), state - state.mean()
    factors = fit_rank1(torch.exp2(token[:, None, None] + channel[:, None] + state))
    for found, wanted in ((factors.token, token), (factors.channel, channel), (factors.state, state)):
        assert float((found - wanted).abs().max()) < 1e-9


def test_fused_factors_change_no_output() -> None:
    """B / r_D and C * r_D give the same y; the states are divided by r_D."""
    generator = torch.Generator().manual_seed(2)

    def draw(*shape: int) -> Any:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    u, delta, a, b, c, d = draw(2, 9, 3), draw(2, 9, 3).abs(), -draw(3, 4).abs(), draw(2, 9, 4), draw(2, 9, 4), draw(3)
    r = torch.tensor([0.25, 1.0, 8.0, 64.0], dtype=torch.float64)  # powers of two: exact
    plain, fused = StateStatistics(9), StateStatistics(9)
    y = selective_scan(u, delta, a, b, c, d, plain.on_state)
    assert torch.equal(selective_scan(u, delta, a, b / r, c * r, d, fused.on_state), y)
    assert torch.equal(fused.maximum() * r, plain.maximum())


# --- whole Programs ---


def similarity(program: Program, checkpoint: Path, images: Any) -> float:
    logits = Engine(program).classify(images).astype(np.float64)
    wanted = FloatModel(checkpoint).classify(images).astype(np.float64)
    exponent = program.tensors[program.logits].exponent
    assert exponent is not None
    scaled = logits * 2.0**exponent
    return float((scaled * wanted).sum() / np.sqrt((scaled**2).sum() * (wanted**2).sum()))


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"profile": "wide-state"},
        {"search": "minmax"},
        {"k": 1, "reparameterize": False, "fuse": False},
        {"fuse": False, "rounding": "floor"},
        {"search": "minmax", "k": 1, "reparameterize": False, "rounding": "half_even"},
        {"rounding": "half_away", "k": 2},
    ],
    ids=str,
)
def test_every_switch_gives_a_faithful_program(checkpoint: Path, images: Any, changed: dict[str, Any]) -> None:
    program = quantize(checkpoint, images, **changed)
    assert similarity(program, checkpoint, images) > (0.9 if changed.get("search") == "minmax" else 0.98)
    assert program.rounding == changed.get("rounding", "half_up")
    bits = 16 if changed.get("profile") == "wide-state" else 8
    groups = set()
    for name, tensor in program.tensors.items():
        assert not name.endswith(".h") or tensor.bits == bits
        groups.add(max((len(t.shifts) for t in tensor.terms if t.shifts is not None), default=1))
    assert max(groups) <= changed.get("k", 4)
    if not changed.get("reparameterize", True):
        assert not any(program.arrays[n].any() for n in program.arrays if "state_token_shift" in n)


def test_little_is_saturated(checkpoint: Path, images: Any) -> None:
    program = quantize(checkpoint, images)
    for name, values in Engine(program).run(images, ["*"]).items():
        tensor = program.tensors[name]
        low, high = limits(tensor.bits, tensor.signed)
        if tensor.role in ("output", "state"):
            at_end = (values == high) | ((values == low) & (low != 0))
            assert at_end.mean() <= 0.01, name


def test_the_same_in_gives_the_same_bytes(checkpoint: Path, images: Any) -> None:
    assert program_bytes(quantize(checkpoint, images)) == program_bytes(quantize(checkpoint, images))


def test_progress_counts_every_operator(checkpoint: Path, images: Any) -> None:
    calls: list[tuple[int, int, str]] = []
    program = quantize(checkpoint, images[:2], progress=lambda *call: calls.append(call))
    names = [op.name for op in program.operators]
    assert calls == [(i + 1, len(names), name) for i, name in enumerate(names)]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"profile": "int4"}, "int8, wide-state"),
        ({"k": 5}, r"1 \.\. 4"),
        ({"search": "mse"}, "cosine and minmax"),
        ({"rounding": "up"}, "half_up"),
        ({"mean": (0.5, 0.5)}, "mean"),
        ({"mean": (0.5, 0.5, float("nan"))}, "mean"),
        ({"std": (0.5, 0.0, 0.5)}, "std"),
        ({"classes": ["one"]}, "4 classes"),
    ],
    ids=str,
)
def test_unusable_settings_are_refused(checkpoint: Path, images: Any, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        quantize(checkpoint, images, **changed)


def test_unusable_images_are_refused(checkpoint: Path, images: Any) -> None:
    for bad in (images[:0], images.astype(np.float32), images[0], images[..., :1], images[:, :8]):
        with pytest.raises(UserError):
            quantize(checkpoint, bad)
