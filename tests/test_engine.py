"""The Numba engine against the oracle, and its promises: integers only, the same for any threads, taps and batches.

INTSIM_RANDOM_PROGRAMS=500 runs that many random Programs instead of 60.
"""

from __future__ import annotations

import dataclasses
import heapq
import multiprocessing
import os
import re
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from math import isqrt
from types import SimpleNamespace
from typing import Any, cast

import numba
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numba import types
from numba.extending import intrinsic as numba_intrinsic

from intsim import kernels, plan
from intsim.builder import Builder, Out
from intsim.engine import Engine, bind, rare, run_operator
from intsim.errors import UserError
from intsim.kernels import cache as kernel_cache
from intsim.kernels import common, cpu, dot, exp2, memory, requantize, run, scan, tiles
from intsim.kernels import vector as v
from intsim.kernels.scan import arguments, avx2
from intsim.operators import KINDS, View
from intsim.oracle import Oracle
from intsim.program import Array, Program, Tensor, Term
from intsim.synthetic import Size, random_program

intrinsic: Any = numba_intrinsic
COUNT = int(os.environ.get("INTSIM_RANDOM_PROGRAMS", "60"))
ROUNDINGS = ("half_up", "half_even", "half_away", "floor")

SIZE = Size(image=(9, 13, 3), patch=4, stride=3, width=17, depth=2, inner=33, states=5, dt_rank=3, taps=4, classes=7)


def images_for(program: Program, batch: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (batch, *program.image), dtype=np.uint8)


def assert_same(wanted: dict[str, Array], got: dict[str, Array]) -> None:
    """The same tensors in the same order, with the same containers, shapes and integers."""
    assert list(got) == list(wanted)
    for name, tensor in wanted.items():
        assert got[name].dtype == tensor.dtype, name
        assert got[name].shape == tensor.shape, name
        assert np.array_equal(got[name], tensor), f"{name}: {np.argwhere(got[name] != tensor)[:3].tolist()}"


def check(program: Program, images: Array, threads: int = 2) -> dict[str, Array]:
    """The oracle and the engine agree on every tensor, and the untapped run on the logits."""
    wanted = Oracle(program).run(images, ["*"])
    engine = Engine(program, threads=threads)
    got = engine.run(images, ["*"])
    assert_same(wanted, got)
    assert_same({program.logits: wanted[program.logits]}, engine.run(images))
    return got


# --- oracle == engine ---


@st.composite
def cases(draw: st.DrawFn) -> tuple[dict[str, Any], int, int | None]:
    """Arguments of random_program, a batch, and a grey level for all pixels (None: random pixels)."""
    patch = draw(st.integers(1, 6))
    size = Size(
        image=(patch + draw(st.integers(0, 9)), patch + draw(st.integers(0, 9)), draw(st.integers(1, 4))),
        patch=patch,
        stride=draw(st.integers(1, patch)),
        width=draw(st.sampled_from([1, 2, 3, 5, 8, 16, 17, 31, 33])),
        depth=draw(st.integers(1, 2)),
        inner=draw(st.sampled_from([1, 2, 3, 8, 16, 17, 32, 35, 70])),
        states=draw(st.integers(1, 20)),
        dt_rank=draw(st.integers(1, 5)),
        taps=draw(st.integers(1, 5)),
        classes=draw(st.integers(1, 12)),
    )
    arguments = {
        "seed": draw(st.integers(0, 2**32 - 1)),
        "size": size,
        "rounding": draw(st.sampled_from(ROUNDINGS)),
        "k": draw(st.integers(1, 4)),
        "state_bits": draw(st.sampled_from([8, 16])),
        "abar_fraction": draw(st.sampled_from([8, 15, 15, 1])),
        "activation_bits": draw(st.integers(4, 8)),
        "extreme": draw(st.sampled_from([0.0, 0.05, 0.05, 0.5, 1.0])),
    }
    return arguments, draw(st.integers(1, 3)), draw(st.sampled_from([None, None, None, 0, 255]))


@settings(max_examples=COUNT, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None)
@given(cases())
def test_random_programs(case: tuple[dict[str, Any], int, int | None]) -> None:
    arguments, batch, level = case
    program = random_program(**arguments)
    images = images_for(program, batch, arguments["seed"])
    if level is not None:
        images[:] = level
    check(program, images, threads=1 + batch % 2)


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("state_bits", [8, 16])
@pytest.mark.parametrize("level", [0, 255])
def test_extremes(rounding: str, state_bits: int, level: int) -> None:
    program = random_program(5, SIZE, rounding=rounding, state_bits=state_bits, extreme=1.0)
    check(program, np.full((2, *program.image), level, dtype=np.uint8))


@pytest.mark.parametrize("path", cpu.available())
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_paths(path: str, rounding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole vectors, blocks of 64 channels and what is left of them, on every path that this CPU can run."""
    monkeypatch.setenv(cpu.VARIABLE, path)
    seed = ROUNDINGS.index(rounding)
    for inner, width, states, bits in ((130, 64, 16, 8), (64, 81, 16, 16), (16, 200, 17, 8)):
        layers = {"inner": inner, "width": width, "states": states, "depth": 1, "classes": 70}
        size = dataclasses.replace(SIZE, image=(17, 21, 3), **layers)  # 31 tokens: one and two tiles, not all of them
        program = random_program(seed, size, rounding=rounding, state_bits=bits)
        got = check(program, images_for(program, 2))
        tiled = [isinstance(getattr(k, "weights", None), tiles.TileWeights) for k in Engine(program)._kernels]
        assert any(tiled) == (path == "amx")
        # an accumulator that is wanted takes a matrix product off its fastest way: once more without them
        rest = [name for name in got if not name.endswith("acc")]
        assert_same({name: got[name] for name in rest}, Engine(program, threads=2).run(images_for(program, 2), rest))


def test_the_choice_of_a_path(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cpu.available()[-1] == "plain"
    monkeypatch.delenv(cpu.VARIABLE, raising=False)
    assert cpu.choose() == cpu.available()[0]
    monkeypatch.setattr(cpu, "features", lambda: frozenset({"avx2"}))
    assert cpu.available() == ["avx2", "plain"]
    assert not cpu.has_byte_permutation()
    monkeypatch.setenv(cpu.VARIABLE, "avx512vnni")
    with pytest.raises(UserError, match="INTSIM_KERNELS is 'avx512vnni'; this CPU can run avx2, plain"):
        Engine(program)


def test_a_generic_cpu_has_the_plain_path_only() -> None:
    code = "from intsim.kernels import cpu; assert cpu.available() == ['plain'] and cpu.choose() == 'plain'"
    env = {**os.environ, "NUMBA_CPU_NAME": "generic"}
    env.pop(cpu.VARIABLE, None)
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, env=env)


REFUSED = """
import ctypes, errno, struct, sys

# a filter for this process's calls: arch_prctl(ARCH_REQ_XCOMP_PERM) fails as on a system that does not allow AMX
code = [(0x20, 0, 0, 0), (0x15, 0, 3, 158), (0x20, 0, 0, 16), (0x15, 0, 1, 0x1023), (6, 0, 0, 0x50000 | errno.EPERM),
        (6, 0, 0, 0x7FFF0000)]
text = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in code))
rules = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(code), ctypes.addressof(text)))
libc = ctypes.CDLL(None)
if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, ctypes.c_void_p(ctypes.addressof(rules)), 0, 0):
    sys.exit(77)
from intsim.kernels import cpu
assert cpu.has_tiles() and "amx" not in cpu.available() and cpu.choose() == "avx512vnni", cpu.available()
import numpy as np
from intsim.engine import Engine
from intsim.oracle import Oracle
from intsim.synthetic import random_program
program = random_program(1)
images = np.random.default_rng(1).integers(0, 256, (2, *program.image), dtype=np.uint8)
assert np.array_equal(Engine(program).run(images)[program.logits], Oracle(program).run(images)[program.logits])
"""


@pytest.mark.skipif("amx" not in cpu.available(), reason="needs AMX")
def test_a_system_that_refuses_tiles() -> None:
    """Compiled code that holds tile instructions is there, and none of them is executed."""
    env = {name: value for name, value in os.environ.items() if name != cpu.VARIABLE}
    done = subprocess.run([sys.executable, "-c", REFUSED], env=env, timeout=120, stderr=subprocess.PIPE, text=True)
    if done.returncode == 77:
        pytest.skip("the system does not let a process filter its calls")
    assert done.returncode == 0, done.stderr


@intrinsic
def tile_configuration(typing: Any, address: Any) -> Any:
    """Stores this thread's configuration of the tile registers, 64 bytes; zeros if they are released."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        tiles._emit(builder, "sttilecfg ($0)", args[0])
        return context.get_dummy_value()

    return types.void(types.int64), generate


@numba.njit
def configured(address: int, begin: bool) -> None:
    if begin:
        tiles.begin_tiles(address)
    tile_configuration(address)
    if begin:
        tiles.end_tiles()


@pytest.mark.skipif("amx" not in cpu.available(), reason="needs AMX")
def test_tiles_are_released(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a run the caller's thread has no tile state that the system would save at each switch of threads."""
    monkeypatch.setenv(cpu.VARIABLE, "amx")
    program = random_program(1, dataclasses.replace(SIZE, image=(17, 21, 3), inner=64, width=64))
    engine = Engine(program, threads=1)
    assert any(isinstance(getattr(k, "weights", None), tiles.TileWeights) for k in engine._kernels)
    state = memory.aligned(np.zeros(64, dtype=np.int8))
    configured(memory.address_of(state), True)
    assert state.any()
    engine.run(images_for(program, 1))
    configured(memory.address_of(state), False)
    assert not state.any()


def test_wide_group_shifts() -> None:
    """Groups far apart: the sums are shifted between them."""
    program = random_program(3, SIZE, k=4)
    name = "layers.0.norm.out"
    (term,) = program.tensors[name].terms
    terms = (dataclasses.replace(term, shifts=(0, 8, 9, 15)),)
    program.tensors[name] = dataclasses.replace(program.tensors[name], terms=terms)
    program.arrays["layers.0.mixer.in_proj.weight"] //= 16  # keep the accumulator within 32 bits
    (kernel,) = (k for k in Engine(program)._kernels if k.op.name == "layers.0.mixer.in_proj")
    assert isinstance(kernel.weights, dot.Weights)  # type: ignore[attr-defined]
    assert kernel.weights.ends[:, 1].tolist() == [6, 1, 8, 0]  # type: ignore[attr-defined]
    check(program, images_for(program, 2))


@pytest.mark.parametrize("path", cpu.available())
@pytest.mark.parametrize("rounding", ["half_up", "floor"])
def test_linear_without_accumulators(path: str, rounding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs made in registers: widths of 8 bits and others, groups with and without room for the bias' low bits."""
    monkeypatch.setenv(cpu.VARIABLE, path)
    rng = np.random.default_rng(5)
    inside = set()
    formats = {"dt": Out(8, 0), "B": Out(5, 2), "C": Out(16, -8)}
    for axis, shifts, counts in (
        ("channel", (0,), (64,)),
        ("channel", (2,), (66,)),
        ("channel", (0, 1), (30, 39)),
        ("channel", (0, 1), (32, 37)),
        ("channel", (7, 0), (67, 63)),
        ("channel", (8, 0), (67, 63)),
        ("channel", (1, 3), (33, 33)),
        ("channel", (0, 2, 7, 3), (1, 40, 41, 50)),
        ("token", (3, 0, 7), (2, 6, 5)),
    ):
        b = Builder("linear", rounding=rounding, image=(1, 1, 1), classes=["one"])
        tokens, inputs = 13, sum(counts) if axis == "channel" else 70
        index = rng.permutation(np.repeat(np.arange(len(counts)), counts))
        b.program.arrays["x.group"] = index.astype(np.uint8)
        terms = (Term(axis, shifts=shifts, index="x.group"),)
        b.program.tensors["x"] = Tensor("x", "output", ("token", "channel"), (tokens, inputs), 8, True, -6, terms)
        weight = rng.choice([-128, -128, 127, -1, 1, 0, 77], (198, inputs))
        bias = rng.integers(-(2**24), 2**24, 198)
        constants = {"weight": weight, "weight_exponent": rng.integers(-14, -8, 198), "bias": bias}
        segments = [{"port": p, "start": 66 * i, "stop": 66 * i + 66} for i, p in enumerate(formats)]
        op = b.add("linear", "l", {"x": "x"}, constants, {"segments": segments}, formats)
        values = rng.choice([-128, -128, 127, 127, 0, 1, -1, 50], (6, tokens, inputs)).astype(np.int8)
        # the last tile has 1 to 6 of the rows if one thread has them all
        runs = [run_operator(b.program, op, {"x": values[:n]}, list(formats), threads=1) for n in range(1, 7)]
        runs.append(run_operator(b.program, op, {"x": values}, list(formats), threads=2))
        for i in range(6):
            wanted = KINDS["linear"].run(View(b.program, op), {"x": values[i].astype(np.int64)})
            for port in formats:
                assert len(np.unique(wanted[port])) > 10
                for got in runs[i:]:
                    assert np.array_equal(got[op.tensor(port)][i], wanted[port]), (shifts, port)
        weights = bind(b.program, op).weights  # type: ignore[attr-defined]
        if isinstance(weights, dot.Weights):
            inside.add((len(counts) if axis == "channel" else 1, weights.whole_start is not None))
    if path == "avx512vnni":
        assert inside == {(1, True), (1, False), (2, True), (2, False), (4, True)}


@pytest.mark.parametrize("path", cpu.available())
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_norm(path: str, rounding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every shift of a token: rows from zeros to the largest; whole vectors or not; 16 rows at a time, and fewer."""
    monkeypatch.setenv(cpu.VARIABLE, path)
    rng = np.random.default_rng(6)
    ks: set[int] = set()
    for width, bits, eps_q, exponent in (
        (1, 16, 1, 0), (15, 8, 3, -3), (16, 16, 1 << 40, 7), (192, 16, 7, -6), (200, 8, 1, -22), (2047, 16, 1, -5)
    ):  # fmt: skip
        b = Builder("norm", rounding=rounding, image=(1, 1, 1), classes=["one"])
        tokens = 37
        b.program.tensors["x"] = Tensor("x", "residual", ("token", "channel"), (tokens, width), bits, True, -8)
        constants = {
            "gamma": rng.choice([-2048, 2047, 1, 0, -1, 300], width),
            "gamma_exponent": rng.integers(-12, -4, width),
        }
        op = b.add("rmsnorm", "n", {"x": "x"}, constants, {"eps_q": eps_q}, {"out": Out(8, exponent)})
        top = 1 << (bits - 1)
        scale = np.linspace(0, bits - 1, tokens)[:, None]
        values = np.clip(np.round(rng.normal(size=(2, tokens, width)) * 2**scale), -top, top - 1)
        values[0, -3:] = [[-top], [top - 1], [0]]
        values = values.astype(b.program.tensors["x"].dtype)
        every = list(op.outputs)
        got, alone = (run_operator(b.program, op, {"x": values}, ports) for ports in (every, ["out"]))
        for i in range(2):
            wanted = KINDS["rmsnorm"].run(View(b.program, op), {"x": values[i].astype(np.int64)})
            for port in every:
                assert np.array_equal(got[op.tensor(port)][i], wanted[port]), (width, port)
            assert np.array_equal(alone[op.tensor("out")][i], wanted["out"]), width
            ks.update((32 - int(v).bit_length()) // 2 for v in wanted["square_sum"])
    assert ks == set(range(-5, 16))


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("less", [0, 6, 20, 28])
def test_scan_with_large_left_shifts(rounding: str, less: int) -> None:
    """Left shifts that clamp b; beyond LARGEST_LEFT scan_traced runs also when nothing is tapped."""
    program = random_program(4, SIZE, rounding=rounding)
    for op in program.operators:
        if op.kind == "scan":
            program.arrays[op.constants["b_shift"]] -= less
    scans = [k for k in Engine(program)._kernels if k.op.kind == "scan"]
    methods = {k.method for k in scans}  # type: ignore[attr-defined]
    fast = cpu.choose() != "plain" and rounding in ("half_up", "floor")
    fastest = arguments.AVX512 if cpu.choose() in cpu.WIDE else arguments.AVX2
    assert methods == {arguments.TRACED if less == 28 else fastest if fast else arguments.LANES}
    assert all(k.clamps for k in scans) == (less > 0)  # type: ignore[attr-defined]
    got = check(program, images_for(program, 2))
    if less > 10:
        assert max(abs(int(got["layers.0.mixer.scan.b"].min())), int(got["layers.0.mixer.scan.b"].max())) == 2**30 - 1


@pytest.mark.parametrize("path", cpu.available())
@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("state_bits", [8, 16])
def test_every_bit_of_a_scans_sum(path: str, rounding: str, state_bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small states and little shift behind them: one or two more or less in the sum over the states is seen in `y`."""
    monkeypatch.setenv(cpu.VARIABLE, path)
    program = random_program(4, dataclasses.replace(SIZE, states=16), rounding=rounding, state_bits=state_bits)
    for op in program.operators:
        if op.kind == "scan":
            b_shift, token_shift = (program.arrays[op.constants[c]] for c in ("b_shift", "state_token_shift"))
            b_shift += 6 - (b_shift.max() + token_shift.max())
            program.arrays[op.constants["D"]][:] = 0
            program.arrays[op.constants["y_shift"]][:] = 3
    wanted = Oracle(program).run(images_for(program, 3), ["*.scan*.y"])
    for name, y in wanted.items():
        if name != program.logits:
            assert ((y > -128) & (y < 127) & (y != 0)).mean() > 0.05, name
    assert_same(wanted, Engine(program).run(images_for(program, 3), ["*.scan*.y"]))


# --- threads, taps, batches ---


@pytest.fixture(scope="module")
def program() -> Program:
    return random_program(11, SIZE, state_bits=16)


@pytest.mark.parametrize("threads", [2, 3, 7])
def test_threads(program: Program, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "GRAIN", 1)  # share even the smallest operator
    images = images_for(program, 5)
    alone = Engine(program, threads=1)
    shared = Engine(program, threads=threads)
    assert_same(alone.run(images, ["*"]), shared.run(images, ["*"]))
    assert_same(alone.run(images), shared.run(images))
    assert_same(alone.run(images[:1]), shared.run(images[:1]))
    assert max(p.threads for p in shared._plans.values()) == threads


def test_many_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks of channels in the scan, shared over threads."""
    monkeypatch.setattr(plan, "GRAIN", 1)
    program = random_program(8, dataclasses.replace(SIZE, inner=9 * arguments.BLOCK + 3, depth=1))
    images = images_for(program, 3)
    wanted = Oracle(program).run(images, ["*.y", "*.gate.out"])
    for threads in (1, 2, 4):
        assert_same(wanted, Engine(program, threads=threads).run(images, ["*.y", "*.gate.out"]))


def test_the_tasks_of_a_phase_cover_every_row_once() -> None:
    for batch, inner, threads in ((1, 33, 2), (3, 200, 7), (7, 64, 1)):
        program = random_program(8, dataclasses.replace(SIZE, inner=inner))
        p = plan.Plan(program, Engine(program)._kernels, batch, {program.logits}, threads)
        done: dict[int, list[tuple[int, int]]] = {}
        for first, last, start, stop in p.tasks.tolist():
            for step in p.chains[first:last].tolist():
                done.setdefault(step, []).append((start, stop))
        for step, kernel in enumerate(Engine(program)._kernels):
            total = kernel.channels if kernel.by_channel else batch * kernel.tokens
            covered = [row for start, stop in sorted(done[step]) for row in range(start, stop)]
            assert covered == list(range(total)), kernel.op.name


def test_one_engine_in_several_threads(program: Program) -> None:
    engine = Engine(program, threads=2)
    batches = [images_for(program, 2, seed) for seed in range(6)]
    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(lambda images: engine.run(images, ["*"]), batches))
    for images, result in zip(batches, results, strict=True):
        assert_same(Engine(program, threads=1).run(images, ["*"]), result)


@pytest.mark.parametrize("port", ["acc", "abar", "b", "h", "dx", "y_acc", "y", "normed", "square_sum", "rsqrt", "out"])
def test_subset_of_taps(program: Program, port: str) -> None:
    """Taps change which kernels run, never the integers."""
    images = images_for(program, 2)
    full = Engine(program).run(images, ["*"])
    some = Engine(program).run(images, [f"*.{port}"])
    assert len(some) > 1
    assert_same({name: full[name] for name in full if name in some}, some)


def test_single_taps(program: Program) -> None:
    images = images_for(program, 1)
    engine = Engine(program)
    full = engine.run(images, ["*"])
    for name in program.tensors:
        assert_same({n: full[n] for n in full if n in (name, program.logits)}, engine.run(images, [name]))


def test_batch_stream_classify(program: Program) -> None:
    images = images_for(program, 7)
    engine = Engine(program)
    full = engine.run(images, ["*"])
    for i in range(7):
        assert_same({name: t[i : i + 1] for name, t in full.items()}, engine.run(images[i : i + 1], ["*"]))
    chunks = list(engine.stream(images, ["*"], batch=3))
    assert [len(chunk[program.logits]) for chunk in chunks] == [3, 3, 1]
    assert_same(full, {name: np.concatenate([chunk[name] for chunk in chunks]) for name in full})
    logits = engine.classify(images, batch=2)
    assert logits.dtype == np.int32
    assert np.array_equal(logits, full[program.logits][:, 0])
    assert engine.classify(images[:0]).shape == (0, SIZE.classes)
    assert engine.run(images[:0], ["*"])["image"].shape == (0, *program.image)


def test_images_are_not_touched(program: Program) -> None:
    images = images_for(program, 2)
    strided = np.repeat(images, 2, axis=2)[:, :, ::2]
    images.flags.writeable = False
    result = Engine(program).run(images, ["image"])
    assert result["image"] is not images
    assert_same(result, Engine(program).run(strided, ["image"]))


def test_places_of_buffers(program: Program) -> None:
    """Without taps no accumulator and nothing of each state is made; tensors that share bytes never live together."""
    bound = Engine(program)._kernels
    p = plan.Plan(program, bound, 2, {program.logits}, 2)
    assert not {"acc", "abar", "b", "h", "normed", "y_acc"} & {name.rsplit(".", 1)[1] for name in p.places}
    first = {k.op.tensor(port): level for k, level in zip(bound, p.levels, strict=True) for port in k.op.outputs}
    last = dict(first)
    for k, level in zip(bound, p.levels, strict=True):
        for name in k.op.inputs.values():
            assert first.get(name, -1) <= level
            last[name] = max(last.get(name, -1), level)
    for a, (at_a, size_a) in p.places.items():
        assert size_a >= 2 * program.tensors[a].dtype.itemsize * int(np.prod(program.tensors[a].shape))
        for b, (at_b, size_b) in p.places.items():
            if a < b and at_a < at_b + size_b and at_b < at_a + size_a:
                assert last[a] < first[b] or last[b] < first[a], f"{a} and {b} share bytes"
    assert len(p.arena) < sum(size for _, size in p.places.values()) // 2


def test_phases_follow_the_rows(program: Program) -> None:
    """What reads other rows, or all of them, comes in a later phase than what makes them."""
    level = dict(zip([op.name for op in program.operators], plan.levels_of(Engine(program)._kernels), strict=True))
    m = "layers.0.mixer"
    assert level["layers.0.norm"] == level[f"{m}.in_proj"] == level[f"{m}.silu_z"]
    assert level[f"{m}.conv1d"] == level[f"{m}.conv1d_b"] == level[f"{m}.in_proj"] + 1
    assert level[f"{m}.softplus"] == level[f"{m}.conv1d"]
    assert level[f"{m}.scan"] == level[f"{m}.scan_b"] == level[f"{m}.conv1d"] + 1
    assert level[f"{m}.gate"] == level["layers.1.norm"] == level[f"{m}.scan"] + 1


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((1, 9, 13, 3)),
        np.zeros((1, 9, 13, 3), np.int8),
        np.zeros((9, 13, 3), np.uint8),
        np.zeros((1, 13, 9, 3), np.uint8),
        np.zeros((1, 9, 13, 3, 1), np.uint8),
        [[[0, 0, 0]]],
    ],
)
def test_bad_images(program: Program, images: Any) -> None:
    engine = Engine(program)
    with pytest.raises(UserError, match=r"must be .*uint8 \[batch, \*\[9, 13, 3\]\]"):
        engine.run(images)
    with pytest.raises(UserError):
        engine.classify(images)
    with pytest.raises(UserError):
        engine.stream(images)


def test_bad_arguments(program: Program) -> None:
    with pytest.raises(UserError, match="threads is 0"):
        Engine(program, threads=0)
    with pytest.raises(UserError, match="batch is 0"):
        Engine(program).stream(images_for(program, 1), batch=0)
    with pytest.raises(UserError, match="no tensor matches"):
        Engine(program).run(images_for(program, 1), ["nothing"])


def test_a_late_helper_finds_the_door_closed(program: Program) -> None:
    """It touches nothing: neither tasks nor its memory."""
    allowed = plan.allowed_cpus()
    images = images_for(program, 1)
    bound = Engine(program, threads=1)._kernels
    needed = rare(bound)
    p = plan.Plan(program, bound, 1, {program.logits}, 2)
    group = run.make_group(allowed, [memory.make_lock()])

    class Alone:
        def run(self, ticket: int, threads: int) -> None:
            run.run(memory.address_of(group), ticket, 0, *needed)

    logits = p.run(cast(plan.Workers, Alone()), {"image": images})[program.logits]
    assert np.array_equal(logits, Engine(program).run(images)[program.logits])
    logits[:] = 7
    p.memory[:] = 7
    marks = p.marks.copy()
    with ThreadPoolExecutor(1) as pool:  # it may leave this thread's CPU
        helper = pool.submit(run.run, memory.address_of(group), 0, 1, *needed)
        assert until(lambda: bool(group[run.SEATS + run.SEAT + run.ASLEEP]))
        assert until(lambda: group[run.AWAKE] == 0)
        assert not helper.done()
        plan.dismiss(group, needed)
        helper.result(60)
    assert (logits == 7).all() and (p.memory == 7).all() and np.array_equal(p.marks, marks)
    assert plan.allowed_cpus() == allowed and group[run.AWAKE] == 0


def test_runs_side_by_side(program: Program) -> None:
    """One leads the helpers, the others work alone; each has its own integers, again and again."""
    engine = Engine(program, threads=3)
    images = images_for(program, 3)
    expected = [Engine(program, threads=1).run(images[i : i + 1])[program.logits] for i in range(3)]

    def many(i: int) -> bool:
        return all(np.array_equal(engine.run(images[i : i + 1])[program.logits], expected[i]) for _ in range(200))

    with ThreadPoolExecutor(3) as pool:
        assert all(pool.map(many, range(3)))
    assert engine._workers._group[0][run.LEADERS] == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_has_helpers_of_its_own(program: Program) -> None:
    engine = Engine(program, threads=2)
    images = images_for(program, 1)
    expected = engine.run(images)[program.logits]
    context = multiprocessing.get_context("fork")
    found = context.Queue()
    child = context.Process(target=lambda: found.put(engine.run(images)[program.logits]))
    child.start()
    assert np.array_equal(found.get(timeout=60), expected)
    child.join(60)
    assert child.exitcode == 0


@numba.njit(nogil=True)
def seated(group: Array, thread: int) -> None:
    run.take_seat(group, thread)


@pytest.mark.skipif(len(plan.allowed_cpus()) < 2, reason="needs two CPUs, and a system that says which")
def test_a_helper_leaves_the_cpu_of_another_thread() -> None:
    allowed = plan.allowed_cpus()
    seats = [run.SEATS + run.SEAT * thread for thread in range(3)]

    def helper(taken: int, group: Array) -> tuple[int, set[int]]:
        os.sched_setaffinity(0, {taken})
        group[seats[0]] = taken + 1
        seated(group, 1)
        return int(group[seats[1]]) - 1, os.sched_getaffinity(0)

    for cpu_ in allowed:
        with ThreadPoolExecutor(1) as pool:
            seat, left = pool.submit(helper, cpu_, run.make_group(allowed, [0, 0])).result()
        assert seat in left and left == allowed - {cpu_}
        with ThreadPoolExecutor(1) as pool:  # nowhere to go
            assert pool.submit(helper, cpu_, run.make_group({cpu_}, [0, 0])).result() == (cpu_, {cpu_})
    assert plan.allowed_cpus() == allowed  # the caller's thread is never moved


def until(true: Callable[[], bool], seconds: float = 60) -> bool:
    """Whether it becomes true; it may be false again, as when a helper wakes late."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(1e-3)
    return True


def test_helpers_sleep_and_are_woken(program: Program) -> None:
    """Also when they are just going to sleep as they are rung for, over and over."""
    images = images_for(program, 1)
    expected = Engine(program, threads=1).run(images)[program.logits]
    bound = Engine(program, threads=1)._kernels
    workers = plan.Workers(3, rare(bound))
    p = plan.Plan(program, bound, 1, [program.logits], 3)
    p.run(workers, {"image": images})
    group, _ = workers._group
    flags = group[run.SEATS + run.SEAT + run.ASLEEP :: run.SEAT]
    assert p.threads == len(flags) + 1 == 3
    assert until(lambda: bool((flags == 1).all() and group[run.AWAKE] == 0))
    for i in range(3000):
        if i % 100 == 0:
            assert until(lambda: group[run.AWAKE] == 0)
        end = time.perf_counter() + i % 300 * 1e-6
        while time.perf_counter() < end:
            pass
        assert np.array_equal(p.run(workers, {"image": images})[program.logits], expected)


@pytest.mark.parametrize("asleep", [False, True])
def test_threads_end_with_their_workers(program: Program, asleep: bool) -> None:
    """Those that sleep, and those that are just looking for a run."""
    bound = Engine(program, threads=1)._kernels
    p = plan.Plan(program, bound, 1, {program.logits}, 1)
    images = images_for(program, 1)
    for _ in range(5 if asleep else 500):
        before = set(threading.enumerate())  # some may end meanwhile
        workers = plan.Workers(3, rare(bound))
        p.run(workers, {"image": images})
        workers.run(p.ticket, 3)
        started = set(threading.enumerate()) - before
        group, _ = workers._group
        locks = set(map(int, group[run.SEATS + run.SEAT + run.LOCK :: run.SEAT]))
        assert len(started) == len(locks) == 2 and not locks & set(plan.spare_locks)
        if asleep:
            assert until(lambda group=group: bool(group[run.AWAKE] == 0))
        else:
            workers.run(p.ticket, 3)
        del workers
        for thread in started:
            thread.join(timeout=60)
            assert not thread.is_alive()
        assert locks <= set(plan.spare_locks) and len(set(plan.spare_locks)) == len(plan.spare_locks)


# --- the shared arithmetic, against the text of SPEC 2 in exact fractions ---


def spec_round_shift(v: int, s: int, rounding: str) -> int:
    exact = Fraction(v) / Fraction(2) ** s
    floor = exact.numerator // exact.denominator
    rest = exact - floor
    if rounding == "floor" or rest == 0:
        return floor
    if rest != Fraction(1, 2):
        return floor + (rest > Fraction(1, 2))
    return floor + {"half_up": 1, "half_away": int(v > 0), "half_even": floor % 2}[rounding]


VALUES = sorted({sign * (m * 2**e + d) for sign in (1, -1) for m in (1, 3) for e in range(30) for d in (-1, 0, 1)})
VALUES = [v for v in (-(2**31), 2**31 - 1, *VALUES) if -(2**31) <= v < 2**31]


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_round_shift(rounding: str) -> None:
    mode = common.MODES[rounding]
    for s in range(-31, 32):
        assert [common.round_shift(v, s, mode) for v in VALUES] == [spec_round_shift(v, s, rounding) for v in VALUES]


@numba.njit
def requantized(values: Array, shifts: Array, mode: int, low: int, high: int, narrow: int, out: Array) -> None:
    for i in range(0, len(values), 16):
        x, s = v.load_int32(values, i), v.load_int32(shifts, i)
        half = requantize.half_lanes(v.maximum(s, v.splat(np.int32(0))), mode)
        v.store_int32(out, i, requantize.requantize_lanes(x, s, half, mode, low, high, narrow))


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("bits", [8, 16, 32])
def test_requantize_lanes(rounding: str, bits: int) -> None:
    """Every value at every shift -31 .. 31, beside others in a vector; as `narrow` too where 32 bits are enough."""
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 2
    pairs = [(x, s) for x in VALUES for s in range(-31, 32)]
    # the proof keeps room for the rounding constant
    enough = [(x, s) for x, s in pairs if s == 0 or (s > 0 and x + 2 ** (s - 1) < 2**31)]
    for narrow, some in enumerate((pairs, enough)):
        some += [(0, 0)] * (-len(some) % 16)
        values, shifts = (np.array(column, dtype=np.int32) for column in zip(*some, strict=True))
        out = np.zeros(len(some), dtype=np.int32)
        requantized(values, shifts, common.MODES[rounding], low, high, narrow, out)
        assert out.tolist() == [min(max(spec_round_shift(x, s, rounding), low), high) for x, s in some]


@numba.njit
def all_roots(values: Array, roots: Array) -> None:
    for i in range(0, len(values), common.ROOTS):
        common.find_roots(values[i : i + common.ROOTS], roots[i : i + common.ROOTS])


def test_roots_and_bit_length() -> None:
    """Every root there is, for the first and the last value that has it: nothing in between can differ."""
    root = np.arange(1 << 17)
    first, last = root**2, (root + 1) ** 2 - 1
    for values in (first, last, last[::-1].copy()):
        found = np.full(len(values), -1)
        all_roots(values, found)
        assert np.array_equal(found, [isqrt(v) for v in values.tolist()])
    values = [0, *(2**e + d for e in range(63) for d in (-1, 0, 1)), 2**63 - 1]
    assert [common.bit_length(v) for v in values] == [v.bit_length() for v in values]


@numba.njit
def negative_rows(codes: Array, a: Array, f: int, packed: Array, m: int, mode: int, table: Array) -> None:
    """exp2_rows of 256 codes and 256 factors, 16 factors at a time."""
    for i in range(0, 256, 16):
        exp2.exp2_rows(codes, 256, v.load_int32(a, i), f, packed, m, mode, table, i * 256)


@numba.njit
def negative_rows_by_words(codes: Array, a: Array, f: int, rom: Array, m: int, table: Array) -> None:
    """The same of exp2_rows_by_words."""
    for i in range(0, 256, 16):
        exp2.exp2_rows_by_words(codes, 256, v.load_int32(a, i), f, rom, m, table, i * 256)


@numba.njit
def negative_rows_by_halves(codes: Array, factors: Array, f: int, a: Array, table: int) -> None:
    """The same of avx2.write_rows, in 16 bits; a: arguments of a scan."""
    for i in range(0, 256, 16):
        avx2.write_rows(a, v.load_int32(factors, i), f, codes, 256, table + i * 512)


ROM = np.array([round(2 ** (17 - j / 128)) for j in range(129)], dtype=np.int32)
STEEP = np.array([131072, *np.sort(np.random.default_rng(2).integers(65536, 131073, 127))[::-1], 65536], dtype=np.int32)
STEEP[40:80] = STEEP[40]  # level, and then down by a quarter


@pytest.mark.parametrize("m", [1, 8, 15])
@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("rom", [ROM, STEEP], ids=["rom", "steep"])
def test_exp2(m: int, rounding: str, rom: Array) -> None:
    """exp2 and its rows on every product of two 8-bit integers and every fraction, by SPEC 5.7 in NumPy int64."""
    a = np.arange(256, dtype=np.int32)
    p = np.arange(256, dtype=np.int64)[:, None] * a
    mode = common.MODES[rounding]
    packed, by_bytes = exp2.packed_rom(rom), exp2.byte_rom(rom)
    assert packed is not None and by_bytes is not None
    codes = np.append(a * 65537, [0, 0, 0]).astype(np.int32)
    entries = memory.aligned(scan.entry_bytes(packed))
    for f in range(32):
        t = p << 19 - f if f <= 19 else p >> f - 19
        j, r = (t >> 12) & 127, t & 4095
        value = (rom[j].astype(np.int64) << 12) - (rom[j] - rom[j + 1]).astype(np.int64) * r
        s = np.minimum(29 - m + (t >> 19), 31)
        floor, half = value >> s, np.int64(1) << (s - 1)
        rest = value - (floor << s)
        up = {"floor": rest < 0, "half_even": (rest > half) | ((rest == half) & (floor & 1 == 1))}
        wanted = floor + up.get(rounding, rest >= half)
        table = np.zeros(256 * 256, dtype=np.uint16)
        if f >= 4:
            for delta in range(256):
                exp2.exp2_row(delta, a, 0, 256, f, rom, m, mode, table, delta * 256)
            assert np.array_equal(table.reshape(256, 256), wanted), f
        # -A-bar of 16 bits in both halves of each element; 16 factors of all codes, then the next
        negative = (-wanted & 65535) * 65537
        negative = negative.astype(np.uint32).view(np.int32).reshape(256, 16, 16).transpose(1, 0, 2).reshape(-1)
        if mode <= 1 and cpu.choose() in cpu.WIDE:
            rows = np.zeros(256 * 256, dtype=np.int32)
            negative_rows(codes, a, f, packed, m, mode, rows)
            assert np.array_equal(rows, negative), f
        by_words = mode == 1 and exp2.LEAST_FRACTION <= f <= exp2.MOST_FRACTION
        if by_words and cpu.choose() in cpu.WIDE and cpu.has_byte_permutation():
            rows = np.zeros(256 * 256, dtype=np.int32)
            negative_rows_by_words(codes, a, f, by_bytes, m, rows)
            assert np.array_equal(rows, negative), f
        if mode <= 1 and "avx2" in cpu.available():
            halves = memory.aligned(np.zeros(16 * 256 * 16, dtype=np.int16))
            numbers = np.zeros(arguments.ARGUMENTS, dtype=np.int64)
            numbers[[arguments.M, arguments.MODE, arguments.ENTRY_BYTES]] = m, mode, memory.address_of(entries)
            negative_rows_by_halves(codes, a, f, numbers, memory.address_of(halves))
            assert np.array_equal(halves, negative.astype(np.int16)), f
        for delta, n in ((0, 0), (1, 1), (255, 255), (128, 3), (17, 200), (255, 1), (3, 85)):
            assert exp2.exp2(delta * n, f, rom, m, mode) == wanted[delta, n], f


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("lowest", [-arguments.HARMLESS_LEFT, -arguments.LARGEST_LEFT])
@pytest.mark.parametrize(("states", "channels"), [(16, 21), (5, 32), (18, 7)])
def test_scans(rounding: str, lowest: int, states: int, channels: int) -> None:
    """All kernels that are chosen give the same up to their largest shifts, with extremes of every input."""
    rng = np.random.default_rng(6)
    batch, tokens = 2, arguments.SOME + 7
    padded, room = -(-states // 16) * 16, -(-channels // 16) * 16
    mode = common.MODES[rounding]
    packed, by_bytes = exp2.packed_rom(ROM), exp2.byte_rom(ROM)
    assert packed is not None and by_bytes is not None
    kept = [scan.rights_of(mode & 1), scan.places_of_bits(), scan.entry_bytes(packed)]
    kept = list(map(memory.aligned, kept))
    tables = list(map(memory.address_of, kept))

    def draw(low: int, high: int, shape: tuple[int, ...], dtype: type, *often: int) -> int:
        """Address of drawn integers, half of them at the ends, or among `often`."""
        drawn = rng.integers(low, high + 1, shape)
        kept.append(np.where(rng.random(shape) < 0.5, rng.choice([low, high, *often], shape), drawn).astype(dtype))
        return memory.address_of(kept[-1])

    by_words = cpu.has_byte_permutation() and mode == 1
    a = np.zeros((room, padded), dtype=np.int32)
    draw(0, 255, (channels, states), np.int32)
    a[:channels, :states] = kept[-1]
    inputs = [
        *(draw(0, 255, (batch, tokens, channels), np.uint8, 1), draw(-128, 127, (batch, tokens, channels), np.int8, 1)),
        *(draw(-128, 127, (batch, tokens, states), np.int8, -1, 1), draw(-128, 127, (batch, tokens, states), np.int8)),
    ]
    scratch = np.zeros(arguments.BLOCK * (arguments.TABLE + 256 * padded) * 4 + 65536, dtype=np.uint8)
    # bits of A-bar's fraction and the state, the largest shift of a token, with which y_acc has 32 bits, and that of b
    right, less = arguments.LARGEST_RIGHT, arguments.LARGEST_RIGHT_BYTES
    cases = [(15, 16, 4, right), (15, 8, 12, right), (8, 16, 4, right), (1, 8, 12, right), (15, 8, 12, less)]
    cases += [(arguments.LEAST_M, 8, 4, less), (arguments.LEAST_M - 1, 8, 4, less), (15, 8, 4, 0)]
    for m, bits, most, right in cases:
        h = Tensor("h", "state", (), (), bits, True, None)
        paths = {path: scan.method_of(path, mode, states, m, h, ROM, lowest, right) for path in cpu.available()}
        if mode <= 1 and states <= 16 and bits > 8:
            registers = {**dict.fromkeys(cpu.WIDE, arguments.AVX512), **dict.fromkeys(cpu.NARROW, arguments.AVX2)}
            assert paths == {path: registers.get(path, arguments.LANES) for path in paths}
        methods = {arguments.LANES, *paths.values()}
        constants = [
            *(memory.address_of(a), draw(0, 31, (room,), np.int64), memory.address_of(ROM), memory.address_of(packed)),
            memory.address_of(by_bytes) if by_words else 0,
            *(draw(-(2**20), 2**20, (room,), np.int32), draw(lowest, right - most, (room,), np.int32)),
            *(draw(0, most, (tokens,), np.int64, 1), 0, most),
            *(draw(0, 12, (room,), np.int32), draw(0, 9, (tokens,), np.int64)),
        ]
        ranges = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1, -128, 127)
        found = []
        for method in (arguments.TRACED, *methods):
            for clamps in (0, 1)[lowest < -arguments.HARMLESS_LEFT :]:
                made = [np.ones((batch, tokens, channels), dtype=t) for t in (np.int8, np.int16, np.int32)]
                sizes = [batch, tokens, channels, states, method, clamps]
                y, dx, y_acc = map(memory.address_of, made)
                outputs = [y, dx, 0, 0, 0, 0, y_acc]
                numbers = [*inputs, *outputs, *sizes, *constants, m, mode, *ranges, 2, bits // 8, 1, *tables]
                step = np.array([scan.Scan.code, *numbers], dtype=np.int64)
                one = [np.array(n, dtype=np.int64) for n in ([0, len(step)], [0], [[0, 1, 0, channels]], [0, 1])]
                marks, group = np.zeros(run.COUNTERS, dtype=np.int64), run.make_group((), ())
                at, ahead = memory.address_of(scratch), np.zeros(3, dtype=np.int64)
                counters = [memory.address_of(marks), memory.address_of(ahead)]
                addresses = [*map(memory.address_of, (step, *one)), 1, *counters, at + -at % 64]
                ticket = np.array([1, *addresses], dtype=np.int64)
                run.run(memory.address_of(group), memory.address_of(ticket), 0, None, 1, 1, 1)
                found.append(made)
        assert not any((array == 1).all() for array in found[0])
        for made in found[1:]:
            for wanted, array in zip(found[0], made, strict=True):
                assert np.array_equal(wanted, array)


@numba.njit
def sums_of(w: Array, x: int, rows: int, packed: int, tile: int, out: Array) -> None:
    """All products of int8 rows at the address x, without bias, to int32 [rows, columns]."""
    dot.pack_rows(w, x, rows, packed)
    sums = memory.int32_at(tile, dot.ROWS * 64)
    first = 0
    while first < w[dot.VECTORS]:
        done = 0
        for r in range(0, rows, dot.ROWS):
            many = min(dot.ROWS, rows - r)
            done = dot.products(w, packed + r * w[dot.DEPTH] * 4, many, first, tile)
            for i in range(many):
                for c in range(done * 16):
                    out[r + i, first * 16 + c] = sums[i * done * 16 + c]
        first += done


@numba.njit
def tile_sums_of(w: Array, x: int, rows: int, sums: int, out: Array) -> None:
    """All products of int8 rows [TALL, whole tiles] at the address x, without bias, to int32 [rows, columns]."""
    tiles.begin_tiles(sums)
    planes, depth = w[tiles.PLANES], w[dot.DEPTH]
    found = memory.int32_at(sums, 32 * 32)
    for pair in range((w[dot.VECTORS] * planes + 1) // 2):
        weights = w[dot.PACKED] + pair * 2 * depth * 1024
        if rows > 16:
            tiles.sum_32(x, depth * 64, weights, depth, sums, 128)
        else:
            tiles.sum_16(x, depth * 64, weights, depth, sums, 128)
        for i in range(rows):
            for c in range(32):
                column = pair * 32 + c if planes == 1 else pair * 16 + c % 16
                if column < out.shape[1]:
                    out[i, column] += found[i * 32 + c] << (w[tiles.LEVEL] + (8 if planes == 2 and c < 16 else 0))
    tiles.end_tiles()


@pytest.mark.skipif("amx" not in cpu.available(), reason="needs AMX")
def test_products_in_tiles() -> None:
    """As test_products: one and two planes, the largest shifts of two, halves of the rows, an odd block at the end."""
    rng = np.random.default_rng(7)
    planes = set()
    for rows, inputs, outputs in ((1, 1, 1), (5, 65, 33), (16, 64, 7), (17, 129, 64), (32, 200, 130)):
        for shifts in ([0], [2], [3, 4], [0, 3, 7, 8], [8, 15]):
            weight = rng.choice([-128, -128, -1, 0, 5, 127], (outputs, inputs)).astype(np.int8)
            x = np.zeros((32, -(-inputs // 64) * 64), dtype=np.int8)
            x[:, :inputs] = rng.choice([-128, -128, 127, 1, 0], (32, inputs))
            bias = rng.integers(-(2**31), 2**31, outputs).astype(np.int32)
            column_shift = rng.choice(shifts, inputs)
            columns = np.concatenate([rng.permutation(outputs), np.full(-outputs % 16, -1)])
            w = tiles.TileWeights(weight, bias, column_shift, columns)
            planes.add(w.planes)
            out, sums = (
                np.zeros((rows, len(columns)), dtype=np.int32),
                memory.aligned(np.zeros(32 * 32 * 4, dtype=np.int8)),
            )
            numbers = np.array(w.arguments(), dtype=np.int64)
            tile_sums_of(numbers, memory.address_of(x), rows, memory.address_of(sums), out)
            wanted = bias + x[:rows, :inputs].astype(np.int64) @ (weight.astype(np.int64).T << column_shift[:, None])
            real = columns >= 0
            assert np.array_equal((out + w.bias)[:, real], wanted.astype(np.int32)[:, columns[real]]), (inputs, shifts)
    assert planes == {1, 2}


def test_planes_hold_every_weight() -> None:
    """256 high + low is w * 2^s for every weight and shift that two planes can hold, and no other is taken."""
    weight = np.arange(-128, 128, dtype=np.int8)[:, None]
    for s in range(16):
        shift = np.array([0, s])
        both = tiles.planes_of(np.repeat(weight, 2, axis=1), shift)
        assert (both is not None) == (s <= 8)
        if both is not None:
            assert all(-128 <= plane.min() and plane.max() <= 127 for plane in both)
            total = sum(plane << (8 * i) for i, plane in enumerate(reversed(both)))
            assert np.array_equal(total, weight.astype(np.int64) << shift)


@pytest.mark.parametrize("path", [path for path in cpu.available() if path != "amx"])
def test_products(path: str) -> None:
    """Weights of each path against NumPy int64: odd sizes, extremes, groups, sums that wrap on the way."""
    rng = np.random.default_rng(7)
    for rows, inputs, outputs in ((1, 1, 1), (5, 3, 33), (9, 64, 7), (4, 129, 64), (13, 200, 130)):
        for shifts in ([0], [2], [0, 3, 8, 9, 15]):
            weight = rng.choice([-128, -128, -1, 0, 5, 127], (outputs, inputs)).astype(np.int8)
            x = rng.choice([-128, -128, 127, 1, 0], (rows, inputs)).astype(np.int8)
            bias = rng.integers(-(2**31), 2**31, outputs).astype(np.int32)
            column_shift = rng.choice(shifts, inputs)
            columns = np.concatenate([rng.permutation(outputs), np.full(-outputs % 16, -1)])
            w = dot.Weights(path, weight, bias, column_shift, columns)
            numbers = np.array(w.arguments(), dtype=np.int64)
            sizes = 18 * w.depth * 4, dot.ROWS * 64 * 4
            packed, tile = (memory.aligned(np.zeros(size, dtype=np.int8)) for size in sizes)
            out = np.zeros((rows, len(columns)), dtype=np.int32)
            sums_of(numbers, memory.address_of(x), rows, memory.address_of(packed), memory.address_of(tile), out)
            wanted = bias + x.astype(np.int64) @ (weight.astype(np.int64).T << column_shift[:, None])
            real = columns >= 0
            assert np.array_equal((out + w.bias)[:, real], wanted.astype(np.int32)[:, columns[real]]), (inputs, shifts)


# --- integers only ---

FLOAT = re.compile(
    r"\b(fadd|fsub|fmul|fdiv|frem|fneg|fcmp|sitofp|uitofp|fptosi|fptoui|fpext|fptrunc|double|float|x86_fp80)\b"
)


def dispatchers() -> dict[str, Any]:
    """Every kernel of intsim.kernels, by name."""
    found = {}
    for module_name in [m for m in sys.modules if m.startswith("intsim.kernels.")]:
        for name, value in vars(sys.modules[module_name]).items():
            if hasattr(value, "py_func") and value.py_func.__module__ == module_name:
                found[f"{module_name}.{name}"] = value
    return found


def llvm(dispatcher: Any, signature: Any) -> str:
    """The optimized LLVM code of one version, compiled anew: a version from the disk cache has no text."""
    options = {name: value for name, value in dispatcher.targetoptions.items() if name != "nopython"}
    fresh = numba.njit(**options)(dispatcher.py_func)
    fresh.compile(signature)
    return str(fresh.inspect_llvm(fresh.signatures[0]))


def test_no_float_instruction(program: Program) -> None:
    """In `run`, the one function that is called from Python: its library has all kernels in it, the narrow ones too."""
    Engine(program).run(images_for(program, 2), ["*"])
    for name, dispatcher in dispatchers().items():
        for signature in dispatcher.signatures:
            assert not re.search(r"float|complex", str(signature)), f"{name}{signature}"
    text = llvm(run.run, (numba.int64,) * 7)
    body = text[text.index("define ") :]
    for name in ("add", "mul", "ashr", "shl", "icmp", "atomicrmw"):
        assert re.search(rf"= {name}\b", body), f"the text has no {name}"
    assert body.count("<16 x i32>") > 1000
    assert not FLOAT.search(text), FLOAT.search(text)


@pytest.mark.parametrize(
    "function",
    [lambda v: v / 2, lambda v: int(np.sqrt(v)), lambda v: np.uint64(v + 1) < v, lambda v: int(v * 0.5)],
    ids=["true division", "sqrt", "uint64 against int64", "float literal"],
)
def test_the_float_check_finds_floats(function: Any) -> None:
    jitted = numba.njit(function)
    jitted(9)
    assert FLOAT.search(llvm(jitted, jitted.signatures[0]))


def arrays_of(value: Any, seen: set[int]) -> list[Array]:
    """Every array that hangs on a kernel, a Program or a container of them."""
    if id(value) in seen or isinstance(value, str | bytes | type):
        return []
    seen.add(id(value))
    if isinstance(value, np.ndarray):
        return [value]
    if isinstance(value, dict):
        return [a for v in value.values() for a in arrays_of(v, seen)]
    if isinstance(value, list | tuple | set):
        return [a for v in value for a in arrays_of(v, seen)]
    assert not isinstance(value, float | np.floating)
    return arrays_of(vars(value), seen) if type(value).__module__.startswith("intsim.") else []


def test_no_float_array(program: Program) -> None:
    engine = Engine(program)
    bound = [a for kernel in engine._kernels for a in arrays_of(kernel, set())]
    assert len(bound) > 100
    results = engine.run(images_for(program, 2), ["*"])
    for array in (*bound, *program.arrays.values(), *results.values()):
        assert array.dtype.kind in "iu", array.dtype


# --- compiling ---


def test_import_compiles_nothing() -> None:
    code = (
        "import sys, intsim.engine\n"
        "assert 'torch' not in sys.modules\n"
        "from intsim.kernels import common, run, scan\n"
        "assert not any(f.signatures for f in (common.round_shift, run.run, scan.scan_avx2, scan.scan_avx512))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_cache_key_has_every_source(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that calls a changed function of another file is compiled anew."""
    cache = run.run._cache
    codegen = next(iter(run.run.overloads.values())).library.codegen if run.run.overloads else None
    if codegen is None:
        pytest.skip("nothing compiled yet")
    before = cache._index_key("signature", codegen)
    monkeypatch.setattr(kernel_cache, "source_digest", lambda: "another")
    assert cache._index_key("signature", codegen) != before


def test_every_kind_has_a_kernel(program: Program) -> None:
    assert {op.kind for op in program.operators} == set(kernels.KERNELS)


def test_tasks_share_all_rows() -> None:
    """Each row is in one task, in order; threads that take tasks of rows alike from both ends are done together."""
    for path, tile in (("amx", 16), ("avx512vnni", 3), ("avx2", 6)):
        for row_cost in (0, 1, 200, 800, 40_000):
            part: Any = SimpleNamespace(by_channel=False, path=path, row_cost=row_cost, tokens=1)
            worth = min(plan.GRAIN // max(2 * row_cost, 1) + 1, plan.ROWS)  # rows that are worth a task of their own
            for threads in (1, 2, 3, 8, 64):
                for total in (*range(1, 200), 1576, 6304):
                    ranges = plan.split([part, part], total, threads)
                    starts, stops = zip(*ranges, strict=True)
                    assert (0, *stops) == (*starts, total) and all(a < b for a, b in ranges)
                    sizes = deque(b - a for a, b in ranges)
                    assert max(sizes) < plan.ROWS + tile
                    done = [(0, thread) for thread in range(threads)]
                    while sizes:
                        rows, thread = heapq.heappop(done)
                        more = sizes.pop() if thread % 2 else sizes.popleft()
                        heapq.heappush(done, (rows + more, thread))
                    assert max(done)[0] < -(-total // threads) + max(tile, worth)


def test_tasks_share_all_channels() -> None:
    """Each block of channels is in one task; what a thread takes, they being equally fast, lies side by side."""
    for channels, threads in ((384, 1), (384, 2), (384, 3), (384, 4), (391, 2), (16, 2), (5, 3), (70, 2), (200, 64)):
        part: Any = SimpleNamespace(by_channel=True, channels=channels)
        ranges = plan.split([part], 1, threads)
        blocks = range(0, channels, arguments.BLOCK)
        assert sorted(ranges) == [(start, min(start + arguments.BLOCK, channels)) for start in blocks]
        left, taken = deque(start // arguments.BLOCK for start, _ in ranges), [[] for _ in range(threads)]
        while left:
            for thread in range(min(threads, len(left))):
                taken[thread].append(left.pop() if thread % 2 else left.popleft())
        for mine in taken if len(blocks) % threads == 0 else ():
            assert mine == list(range(mine[0], mine[0] + len(mine)))


def test_constants_of_the_next_phase_are_fetched() -> None:
    """All of some size, in the order in which they are read, up to a part of a cache; by every thread, in good time."""
    program = random_program(8, dataclasses.replace(SIZE, width=192, inner=384))
    bound = Engine(program)._kernels
    for threads in (1, 2, 5):
        p = plan.Plan(program, bound, 2, {program.logits}, threads)
        fetched = set()
        for phase, (first, behind, some) in enumerate(p.ahead.tolist()):
            first, behind = ((at - memory.address_of(p.chunks)) // run.CHUNK for at in (first, behind))
            spans = [(at, at + memory.LINE * lines) for at, lines in p.chunks[first:behind].tolist()]
            assert sum(stop - start for start, stop in spans) <= plan.FETCHED
            next_ones = [k for k, level in zip(bound, p.levels, strict=True) if level == phase + 1]
            kept = [(memory.address_of(a), a.nbytes) for k in next_ones for a in k.kept if a.nbytes >= 1024]
            for start, stop in spans:
                assert stop - start <= plan.CHUNK_LINES * memory.LINE
                assert any(at <= start and stop <= at + size for at, size in kept)
            if sum(size for _, size in kept) <= plan.FETCHED:
                assert sum(stop - start for start, stop in spans) == sum(size // 64 * 64 for _, size in kept)
            tasks = p.tasks[p.phases[phase] : p.phases[phase + 1]]
            assert some * (tasks[:, 1] - tasks[:, 0]).sum() >= p.threads * len(spans)
            fetched |= {k.op.kind for k in next_ones if spans}
        assert {"linear", "scan"} <= fetched and p.ahead[-1, 0] == p.ahead[-1, 1]

