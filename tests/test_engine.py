"""The Numba engine against the oracle, and its promises: integers only, the same for any threads, taps and batches.

INTSIM_RANDOM_PROGRAMS=500 runs that many random Programs instead of 60.
"""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from math import isqrt
from typing import Any

import numba
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import intsim.kernels.base
from intsim import kernels
from intsim.engine import Engine
from intsim.errors import UserError
from intsim.kernels import common, dot, exp2, scan
from intsim.oracle import Oracle
from intsim.program import Array, Program
from intsim.synthetic import Size, random_program

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


def test_wide_group_shifts() -> None:
    """Group shifts over 8 need a second plane of weights."""
    program = random_program(3, SIZE, k=4)
    name = "layers.0.norm.out"
    (term,) = program.tensors[name].terms
    terms = (dataclasses.replace(term, shifts=(0, 8, 9, 15)),)
    program.tensors[name] = dataclasses.replace(program.tensors[name], terms=terms)
    program.arrays["layers.0.mixer.in_proj.weight"] //= 16  # keep the accumulator within 32 bits
    engine = Engine(program)
    (step,) = (s for s in engine._steps if s.op.name == "layers.0.mixer.in_proj")
    assert [shift for shift, _ in step.kernel.dot.planes] == [0, 8]  # type: ignore[attr-defined]
    check(program, images_for(program, 2))


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("less", [6, 20, 28])
def test_scan_with_large_left_shifts(rounding: str, less: int) -> None:
    """Left shifts that clamp b; beyond LARGEST_LEFT scan_traced runs also when nothing is tapped."""
    program = random_program(4, SIZE, rounding=rounding)
    for op in program.operators:
        if op.kind == "scan":
            program.arrays[op.constants["b_shift"]] -= less
    scans = [s.kernel for s in Engine(program)._steps if s.op.kind == "scan"]
    assert any(k.clamps for k in scans)  # type: ignore[attr-defined]
    assert all(k.fast for k in scans) == (less < 28)  # type: ignore[attr-defined]
    got = check(program, images_for(program, 2))
    if less > 10:
        assert max(abs(int(got["layers.0.mixer.scan.b"].min())), int(got["layers.0.mixer.scan.b"].max())) == 2**30 - 1


# --- threads, taps, batches ---


@pytest.fixture(scope="module")
def program() -> Program:
    return random_program(11, SIZE, state_bits=16)


@pytest.mark.parametrize("threads", [2, 3, 7])
def test_threads(program: Program, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intsim.kernels.base, "GRAIN", 1)  # share even the smallest operator
    monkeypatch.setattr(intsim.kernels.base, "TILE", 64)  # and cut it into many tiles
    images = images_for(program, 3)
    alone = Engine(program, threads=1)
    assert_same(alone.run(images, ["*"]), Engine(program, threads=threads).run(images, ["*"]))
    assert_same(alone.run(images), Engine(program, threads=threads).run(images))
    assert_same(alone.run(images[:1]), Engine(program, threads=threads).run(images[:1]))


def test_many_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks of channels in the scan, shared over images and threads."""
    monkeypatch.setattr(intsim.kernels.base, "GRAIN", 1)
    program = random_program(8, dataclasses.replace(SIZE, inner=5 * scan.BLOCK + 3, depth=1))
    images = images_for(program, 3)
    wanted = Oracle(program).run(images, ["*.y", "*.gate.out"])
    for threads in (1, 2, 4):
        assert_same(wanted, Engine(program, threads=threads).run(images, ["*.y", "*.gate.out"]))


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


def test_memory_is_freed(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without taps no accumulator and nothing with a state axis is made, and no array outlives its last reader."""
    made: list[str] = []
    whole = intsim.kernels.base.Kernel.empty

    def empty(self: Any, port: str, batch: int) -> Array:
        made.append(port)
        return whole(self, port, batch)

    monkeypatch.setattr(intsim.kernels.base.Kernel, "empty", empty)
    engine = Engine(program)
    engine.run(images_for(program, 1))
    assert not {"acc", "abar", "b", "h", "normed"} & set(made)
    dropped = [name for step in engine._steps for name in step.last]
    assert sorted(dropped) == sorted({name for op in program.operators for name in op.inputs.values()})


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


def test_an_error_in_a_worker_is_raised() -> None:
    def part(start: int, stop: int) -> None:
        if start:
            raise ValueError("worker")

    with pytest.raises(ValueError, match="worker"):
        intsim.kernels.base.Workers(2).split(2, 10**9, part)


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


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32])
def test_requantize_rows(rounding: str, dtype: type) -> None:
    """Every shift -31 .. 31, split over channel and token, in the 32 bits of `narrow` and in 64."""
    low, high = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max) - 1
    for s in range(-31, 32):
        # the proof keeps room for the rounding constant
        values = [v for v in VALUES if s <= 0 or v + 2 ** (s - 1) < 2**31]
        wanted = [min(max(spec_round_shift(v, s, rounding), low), high) for v in values]
        acc = np.array([[0, 0, 0, *values], [0, 0, 0, *values]], dtype=np.int32)
        row_shift = np.array([0, 3, 9], dtype=np.int32)
        for narrow in {0, int(s >= 0)}:
            shift = np.full(len(values), s - 3, dtype=np.int32)
            out: Array = np.zeros((1, len(values)), dtype=dtype)
            common.requantize_rows(acc, 3, shift, row_shift, 4, common.MODES[rounding], low, high, narrow, out)
            assert out[0].tolist() == wanted, s


def test_isqrt_and_bit_length() -> None:
    roots = [*range(70), *(2**e + d for e in range(7, 31) for d in (-1, 0, 1)), 2**31 - 1]
    values = [v for r in roots for v in (r * r - 1, r * r, r * r + 1, r * r + 2 * r) if 0 <= v < 2**62]
    assert [common.isqrt(v) for v in values] == [isqrt(v) for v in values]
    assert [common.bit_length(v) for v in values] == [v.bit_length() for v in values]


@pytest.mark.parametrize("m", [1, 8, 15])
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_exp2(m: int, rounding: str) -> None:
    """exp2 and exp2_row on every product of two 8-bit integers and every fraction, by SPEC 5.7 in NumPy int64."""
    rom = np.array([round(2 ** (17 - j / 128)) for j in range(129)], dtype=np.int32)
    a = np.arange(256, dtype=np.int32)
    p = np.arange(256, dtype=np.int64)[:, None] * a
    mode = common.MODES[rounding]
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
        for delta, n in ((0, 0), (1, 1), (255, 255), (128, 3), (17, 200), (255, 1), (3, 85)):
            assert exp2.exp2(delta * n, f, rom, m, mode) == wanted[delta, n], f


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("lowest", [-scan.HARMLESS_LEFT, -scan.LARGEST_LEFT])
def test_both_scans(rounding: str, lowest: int) -> None:
    """scan_fast equals scan_traced up to its largest left shift, with extremes of every input."""
    rng = np.random.default_rng(6)
    batch, tokens, channels, states, padded = 2, 9, 21, 18, 32

    def ends(low: int, high: int, shape: tuple[int, ...], dtype: type) -> Array:
        drawn = rng.integers(low, high + 1, shape)
        return np.where(rng.random(shape) < 0.5, rng.choice([low, high], shape), drawn).astype(dtype)

    rom = np.array([round(2 ** (17 - j / 128)) for j in range(129)], dtype=np.int32)
    a = np.zeros((channels, padded), dtype=np.int32)
    a[:, :states] = ends(0, 255, (channels, states), np.int32)
    arrays = (
        ends(0, 255, (batch, tokens, channels), np.uint8),
        ends(-128, 127, (batch, tokens, channels), np.int8),
        ends(-128, 127, (batch, tokens, states), np.int8),
        ends(-128, 127, (batch, tokens, states), np.int8),
        a,
        ends(0, 31, (channels,), np.int64),
        rom,
        ends(-(2**20), 2**20, (channels,), np.int32),
        ends(lowest, 22, (channels,), np.int64),
        ends(0, 4, (tokens,), np.int64),
        ends(0, 12, (channels,), np.int64),
        ends(0, 9, (tokens,), np.int64),
    )
    for m, bits in ((15, 16), (15, 8), (8, 16), (1, 8)):
        numbers = (m, common.MODES[rounding], -(2 ** (bits - 1)), 2 ** (bits - 1) - 1, -128, 127)
        traced = np.zeros((batch, tokens, channels), dtype=np.int8)
        fast = np.ones((batch, tokens, channels), dtype=np.int8)
        outputs = [np.zeros((0,) * (3 if port in ("dx", "y_acc") else 4), t) for port, t in scan.STORED.items()]
        scan.scan_traced(*arrays, *numbers, *outputs, *[0] * len(outputs), 2, channels, traced)
        table = np.empty(scan.BLOCK * 256 * padded, dtype=np.uint16)
        for clamps in (0, 1)[lowest < -scan.HARMLESS_LEFT :]:
            scan.scan_fast(*arrays[:4], a.reshape(-1), *arrays[5:], *numbers, clamps, table, 2, channels, fast)
            assert np.array_equal(traced[:, :, 2:], fast[:, :, 2:])
        assert (fast[:, :, :2] == 1).all()


def test_pair_products() -> None:
    """PairDot against NumPy int64: odd sizes, unsigned inputs, shifts of both planes, sums that wrap on the way."""
    rng = np.random.default_rng(7)
    for rows, inputs, outputs in ((1, 1, 1), (5, 3, 33), (9, 64, 7), (4, 129, 64)):
        weight = rng.integers(-128, 128, (outputs, inputs)).astype(np.int8)
        bias = rng.integers(-(2**31), 2**31, outputs).astype(np.int32)
        column_shift = rng.choice([0, 3, 8, 9, 15], inputs)
        row_shift = rng.integers(0, 5, 3)
        product = dot.make_dot(weight, bias, column_shift)
        for x in (rng.integers(-128, 128, (rows, inputs)).astype(np.int8), np.full((rows, inputs), 255, np.uint8)):
            acc = np.empty((-(-rows // 4) * 4, product.padded), dtype=np.int32)
            product(x, row_shift, 2, acc)
            sums = x.astype(np.int64) @ (weight.astype(np.int64).T << column_shift[:, None])
            wanted = bias + (sums << row_shift[(2 + np.arange(rows)) % 3][:, None])
            assert np.array_equal(acc[:rows, :outputs], wanted.astype(np.int32))


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
    Engine(program).run(images_for(program, 2), ["*"])
    Engine(program).run(images_for(program, 2))
    checked = 0
    for name, dispatcher in dispatchers().items():
        for signature in dispatcher.signatures:
            assert not re.search(r"float|complex", str(signature)), f"{name}{signature}"
            text = llvm(dispatcher, signature)
            body = text[text.index("define ") :]
            assert re.search(r"= (add|sub|mul|ashr|shl|icmp)\b", body), f"{name}: the text has no instructions"
            assert not FLOAT.search(text), f"{name}{signature}: {FLOAT.search(text)}"
            checked += 1
    assert checked >= 12


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
    bound = [a for step in engine._steps for a in arrays_of(step.kernel, set())]
    assert len(bound) > 100
    results = engine.run(images_for(program, 2), ["*"])
    for array in (*bound, *program.arrays.values(), *results.values()):
        assert array.dtype.kind in "iu", array.dtype


# --- compiling ---


def test_import_compiles_nothing() -> None:
    code = (
        "import sys, intsim.engine\n"
        "assert 'torch' not in sys.modules\n"
        "from intsim.kernels import common, dot, scan\n"
        "assert not any(f.signatures for f in (common.round_shift, dot.pair_products, scan.scan_fast))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_cache_key_has_every_source(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that calls a changed function of another file is compiled anew."""
    cache = scan.scan_fast._cache
    codegen = next(iter(scan.scan_fast.overloads.values())).library.codegen if scan.scan_fast.overloads else None
    if codegen is None:
        pytest.skip("nothing compiled yet")
    before = cache._index_key("signature", codegen)
    monkeypatch.setattr(common, "source_digest", lambda: "another")
    assert cache._index_key("signature", codegen) != before


def test_every_kind_has_a_kernel(program: Program) -> None:
    assert {op.kind for op in program.operators} == set(kernels.KERNELS)
