"""The torch path against the oracle and the engine, its rule of exactness, its independence, and `compare`.

INTSIM_RANDOM_PROGRAMS=500 runs that many random Programs instead of 32.  The fused kernels run on CUDA if there is
any, and on a few small Programs in Triton's interpreter if triton is installed.
"""

from __future__ import annotations

import ast
import copy
import json
import os
import subprocess
import sys
from fractions import Fraction
from math import floor, isqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import gpu_check  # noqa: E402

import bitexact.fakequant  # noqa: E402
from bitexact.compare import compare, plan  # noqa: E402
from bitexact.fakequant import FakeQuant, InexactError  # noqa: E402
from bitexact.fakequant.common import Exactness, round_to_integer, storage  # noqa: E402
from bitexact.fakequant.rmsnorm import RMSNorm  # noqa: E402
from intsim.engine import Engine  # noqa: E402
from intsim.errors import UserError  # noqa: E402
from intsim.oracle import Oracle  # noqa: E402
from intsim.program import Array, Program  # noqa: E402
from intsim.synthetic import Size, random_program  # noqa: E402

COUNT = int(os.environ.get("INTSIM_RANDOM_PROGRAMS", "32"))
ROUNDINGS = ("half_up", "half_even", "half_away", "floor")
SIZE = Size((9, 11, 3), patch=3, stride=2, width=12, depth=2, inner=20, states=8, dt_rank=3, taps=4, classes=5)

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="this torch finds no CUDA device")


def images_for(program: Program, count: int = 3, seed: int = 0) -> Array:
    """Random images, then one of zeros and one of 255."""
    images = np.random.default_rng(seed).integers(0, 256, (count + 2, *program.image), dtype=np.uint8)
    images[-2], images[-1] = 0, 255
    return images


def assert_same(expected: dict[str, Array], got: dict[str, Any]) -> None:
    assert list(expected) == list(got)
    for name, array in expected.items():
        own = got[name].cpu().numpy()
        assert own.dtype.kind in "iu" and own.shape == array.shape, name
        wrong = np.argwhere(own.astype(np.int64) != array.astype(np.int64))
        assert len(wrong) == 0, f"{name}{wrong[0].tolist()}: {own[tuple(wrong[0])]}, oracle {array[tuple(wrong[0])]}"


def drawn(seed: int) -> Program:
    """A random Program of a random kind: every mode, k, width of the state, odd sizes, extremes."""
    rng = np.random.default_rng(seed)
    patch = int(rng.integers(1, 5))
    size = Size(
        image=(int(rng.integers(patch, 12)), int(rng.integers(patch, 12)), int(rng.integers(1, 4))),
        patch=patch,
        stride=int(rng.integers(1, patch + 2)),
        width=int(rng.integers(1, 40)),
        depth=int(rng.integers(1, 3)),
        inner=int(rng.integers(1, 48)),
        states=int(rng.choice([1, 3, 4, 8, 16])),
        dt_rank=int(rng.integers(1, 6)),
        taps=int(rng.integers(1, 6)),
        classes=int(rng.integers(1, 12)),
    )
    return random_program(
        seed,
        size,
        rounding=ROUNDINGS[seed % 4],
        k=1 + seed // 4 % 4,
        state_bits=(8, 16)[seed // 2 % 2],
        abar_fraction=int(rng.choice([15, 15, 12, 7, 1])),
        activation_bits=int(rng.choice([8, 8, 8, 6, 4])),
        extreme=float(rng.choice([0.05, 0.3, 0.9])),
    )


# --- The same integers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(COUNT))
def test_every_tensor_of_a_random_program(seed: int) -> None:
    program = drawn(seed)
    images = images_for(program, seed=seed)
    assert_same(Oracle(program).run(images, ["*"]), FakeQuant(program).run(images, ["*"]))


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("state_bits", [8, 16])
def test_a_wide_program_where_some_operators_need_float64(rounding: str, state_bits: int) -> None:
    size = Size((32, 32, 3), 8, 8, 96, 1, 200, 16, 6, 4, 10)
    program = random_program(5, size, rounding=rounding, state_bits=state_bits, extreme=0.9)
    images = images_for(program, 1)
    fake = FakeQuant(program)
    assert {step.dtype for step in fake.steps.values()} == {torch.float32, torch.float64}
    assert_same(Oracle(program).run(images, ["*"]), fake.run(images, ["*"]))


def test_taps_choose_tensors_and_the_logits_always_come() -> None:
    program = random_program(2, SIZE)
    images = images_for(program)
    fake = FakeQuant(program)
    every = fake.run(images, ["*"])
    assert list(every) == list(program.tensors)
    for globs in ([], ["image"], ["*.h"], ["layers.1.*.acc", "tokens.out"], [program.logits]):
        got = fake.run(torch.from_numpy(images), globs)
        assert list(got) == list(Oracle(program).run(images[:1], globs))
        assert all(torch.equal(value, every[name]) for name, value in got.items())
    with pytest.raises(UserError, match="no tensor matches"):
        fake.run(images, ["nothing.*"])


def test_classify_does_not_depend_on_the_batch() -> None:
    program = random_program(3, SIZE)
    images = images_for(program, 5)
    logits = Oracle(program).run(images)[program.logits].reshape(len(images), -1)
    for batch in (1, 3, 64):
        assert np.array_equal(FakeQuant(program).classify(images, batch).numpy(), logits)
    assert FakeQuant(program).classify(images[:0]).shape == (0, SIZE.classes)


def test_one_operator_on_integers() -> None:
    program = random_program(4, SIZE, rounding="half_even")
    values = Oracle(program).run(images_for(program), ["*"])
    fake = FakeQuant(program)
    for op in program.operators:
        got = fake.run_operator(op, {name: values[name] for name in op.inputs.values()})
        assert_same({op.tensor(port): values[op.tensor(port)] for port in op.outputs}, got)


def test_settings_of_torch_are_put_back() -> None:
    program = random_program(4, SIZE)
    torch.set_float32_matmul_precision("medium")
    try:
        images = images_for(program)
        assert_same(Oracle(program).run(images), FakeQuant(program).run(images))
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


# --- The arithmetic it rests on --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ROUNDINGS)
def test_rounding_against_fractions(mode: str) -> None:
    values = [n / 8 for n in range(-40, 41)] + [2**22 + 0.5, -(2**22) - 0.5, 2**22 + 1.5, 0.49999997]
    for dtype in (torch.float32, torch.float64):
        got = round_to_integer(torch.tensor(values, dtype=dtype), mode).tolist()
        for v, rounded in zip(torch.tensor(values, dtype=dtype).tolist(), got, strict=True):
            x = Fraction(v)
            below = floor(x)
            rest = x - below
            up = {
                "floor": False,
                "half_up": rest >= Fraction(1, 2),
                "half_away": rest > Fraction(1, 2) or (rest == Fraction(1, 2) and x > 0),
                "half_even": rest > Fraction(1, 2) or (rest == Fraction(1, 2) and below % 2 == 1),
            }[mode]
            if v == torch.tensor(0.49999997, dtype=dtype).item() and dtype == torch.float32 and mode == "half_up":
                assert rounded == 1  # why the rule counts the rounding constant: v + 1/2 needs 25 bits
            elif v != torch.tensor(0.49999997, dtype=dtype).item():
                assert rounded == below + up, (v, mode)


def test_the_square_root_is_exact() -> None:
    program = random_program(0, SIZE)
    step = FakeQuant(program).steps["layers.0.norm"]
    assert isinstance(step, RMSNorm)
    rng = np.random.default_rng(0)
    for d_norm in (256, 576, 768, 1023, 1024, 2047):
        step.d_norm = d_norm
        w = [int(n) for n in rng.integers(1 << 30, 1 << 32, 300)] + [1 << 30, (1 << 31) - 1, 1 << 31, (1 << 32) - 1]
        # quotients that are squares, and just beside them
        for r in rng.integers(1 << 14, 1 << 16, 300):
            near = (d_norm << 52) // int(r) ** 2
            w += [n for n in (near - 1, near, near + 1) if 1 << 30 <= n < 1 << 32]
        got = step.root(torch.tensor(w, dtype=torch.float64)).tolist()
        assert got == [isqrt((d_norm << 52) // n) for n in w]


def test_the_rule_is_where_float32_stops() -> None:
    exact = Exactness("x")
    exact.value("acc", (1 << 24) - 1, -7)
    assert exact.choose() == torch.float32
    exact.value("acc", 1 << 24, -7)
    assert exact.choose() == torch.float64
    exact.value("acc", 1 << 53, 0)
    with pytest.raises(UserError, match="operator x: acc can need 53 bits"):
        exact.choose()
    for shift, fits in ((1, True), (24, True), (25, False)):
        exact = Exactness("x")
        exact.rounding("acc", (1 << 22) - 1, 0, shift, 127)
        assert exact.holds(torch.float32) is fits, shift
    # a left shift needs only the bits that survive saturation
    exact = Exactness("x")
    exact.rounding("acc", 1000, 0, -20, 127)
    assert exact.holds(torch.float32)
    exact.rounding("acc", 1000, 0, -20, None)
    assert not exact.holds(torch.float32)
    # scales that float32 cannot hold
    for exponent in (-130, 125):
        exact = Exactness("x")
        exact.value("acc", 100, exponent)
        assert exact.choose() == torch.float64


def test_the_rule_is_needed() -> None:
    """Forced into float32, an operator that the rule gives float64 differs."""
    program = random_program(1, Size((32, 32, 3), 8, 8, 96, 1, 200, 16, 6, 4, 10), state_bits=16, extreme=0.9)
    images = images_for(program)

    class Forced(FakeQuant):
        pass

    fake = Forced(program)
    op = program.operator("layers.0.mixer.scan")
    step = fake.steps[op.name]
    assert step.dtype == torch.float64
    step.dtype = torch.float32
    for name, value in list(vars(step).items()):
        if name in ("D", "table", "A_counts"):
            setattr(step, name, value.float())
        if name.endswith("_grid"):
            value.down, value.up = value.down.float(), value.up.float()
    values = Oracle(program).run(images, ["*"])
    try:
        made = fake.run_operator(op, {name: values[name] for name in op.inputs.values()})
    except InexactError:
        return
    assert any(not np.array_equal(made[n].numpy(), values[n].astype(np.int64)) for n in made)


def test_exponents_at_the_edge_of_float32() -> None:
    """Scales of 2^-127 and steps beyond: the operators concerned move to float64, nothing changes."""
    program = random_program(6, SIZE)
    images = images_for(program)
    moved = copy.deepcopy(program)
    # the whole residual stream and what makes it, scaled by 2^-118: SPEC allows exponents down to -127
    for name in list(moved.tensors):
        if storage(program, name) is torch.float32 and program.tensors[name].exponent == -9:
            object.__setattr__(moved.tensors[name], "exponent", -127)
    assert storage(moved, "tokens.out") is None
    for table in (moved.constants,):
        for constant in table.values():
            if constant.name in ("tokens.cls_token", "tokens.pos_embed"):
                object.__setattr__(constant, "exponent", -127)
    for op in moved.operators:
        if op.name == "patch_embed.proj" or op.name.endswith("out_proj"):
            role = op.constants["weight_exponent"]
            moved.arrays[role] = (moved.arrays[role].astype(np.int64) - 118).astype(np.int16)
    for name, tensor in moved.tensors.items():
        if name.endswith("square_sum"):
            object.__setattr__(tensor, "exponent", -254)
    assert_same(Oracle(program).run(images, ["*"]), FakeQuant(moved).run(images, ["*"]))


# --- Refusals --------------------------------------------------------------------------------------------------------


def test_a_program_that_cannot_be_exact_is_refused() -> None:
    program = copy.deepcopy(random_program(0, SIZE))
    name = program.operator("layers.0.mixer.in_proj").constants["weight"]
    program.arrays[name] = program.arrays[name].astype(np.int64) << 45
    with pytest.raises(UserError, match=r"operator layers\.0\.mixer\.in_proj: .* bits"):
        FakeQuant(program)


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((2, 9, 11, 3), dtype=np.int64),
        np.zeros((2, 9, 12, 3), dtype=np.uint8),
        np.zeros((9, 11, 3), dtype=np.uint8),
        torch.zeros((2, 3, 9, 11), dtype=torch.uint8),
    ],
)
def test_images_of_another_kind_are_refused(images: Any) -> None:
    with pytest.raises(UserError, match="must be uint8"):
        FakeQuant(random_program(0, SIZE)).run(images)


def test_devices_that_are_not_there_are_refused() -> None:
    program = random_program(0, SIZE)
    for device in ("nonsense", "meta"):
        with pytest.raises(UserError, match="device"):
            FakeQuant(program, device)
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="no CUDA"):
            FakeQuant(program, "cuda")


def test_a_value_off_its_grid_is_never_rounded_away() -> None:
    program = random_program(0, SIZE)
    fake = FakeQuant(program)
    with pytest.raises(InexactError, match="tokens.out"):
        fake.integers("tokens.out", torch.full((1, *program.tensors["tokens.out"].shape), 2.0**-10))


# --- Independence ----------------------------------------------------------------------------------------------------


def test_it_shares_no_arithmetic_with_intsim() -> None:
    allowed = {"program", "program_file", "taps", "errors", "files"}
    folder = Path(bitexact.fakequant.__file__).parent
    files = sorted(folder.glob("**/*.py"))
    assert len(files) >= 12
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{file.name}: relative import"
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            for name in names:
                parts = name.split(".")
                if parts[0] == "intsim":
                    assert len(parts) > 1 and parts[1] in allowed, f"{file.name} imports {name}"
                else:
                    assert parts[0] not in ("golden", "numba", "importlib"), f"{file.name} imports {name}"
                    assert parts[0] != "bitexact" or parts[1] == "fakequant", f"{file.name} imports {name}"


# --- compare ---------------------------------------------------------------------------------------------------------


def test_compare_reports_every_tensor_and_no_mismatch() -> None:
    program = random_program(7, SIZE, k=3)
    images = images_for(program, 5)
    seen = []
    for reference in ("engine", "oracle", Engine(program)):
        report = compare(
            program, images, batch=3, reference=reference, progress=lambda done, total: seen.append((done, total))
        )
        assert report.mismatches == 0 and report.guilty is None
        assert [t.name for t in report.tensors] == list(program.tensors)
        assert report.elements == len(images) * sum(int(np.prod(t.shape)) for t in program.tensors.values())
    assert seen[-1] == (7, 7)
    text = json.loads(json.dumps(report.to_json()))
    assert text["mismatches"] == 0 and text["elements"] == report.elements and text["guilty"] is None
    assert {"name", "elements", "mismatches", "first", "largest_difference"} <= set(text["tensors"][0])
    assert "no mismatch" in report.sentence()


def test_compare_names_the_first_difference() -> None:
    program = random_program(7, SIZE, k=3)
    images = images_for(program, 4)
    good = Oracle(program)

    class Wrong:
        def run(self, images: Array, taps: Any = ()) -> dict[str, Array]:
            made = good.run(images, taps)
            changed = [i for i, image in enumerate(images) if image.max() == 255 and image.min() == 255]
            for i in changed:
                if "layers.1.mixer.dt_proj.out" in made:
                    made["layers.1.mixer.dt_proj.out"][i, 4, 7] ^= 8
            return made

    for layers, memory in ((["*"], 1 << 30), (["layers.1.*", "head.*"], 1 << 17)):
        report = compare(program, images, layers=layers, batch=2, reference=Wrong(), memory=memory)
        assert report.mismatches == 1 and report.guilty is not None
        first = report.guilty.first
        assert (report.guilty.operator, first.image, first.index) == ("layers.1.mixer.dt_proj", len(images) - 1, (4, 7))
        assert abs(first.reference - first.candidate) == 8
        named = [t for t in report.tensors if t.mismatches]
        assert [t.name for t in named] == ["layers.1.mixer.dt_proj.out"] and named[0].largest_difference == 8
        assert report.faulty[0] == "layers.1.mixer.dt_proj"
        assert "layers.1.mixer.dt_proj.out[4, 7]" in report.sentence()


def test_compare_holds_no_more_than_it_may() -> None:
    program = random_program(7, SIZE)
    names = list(program.tensors)
    size, parts = plan(program, names, None, 1 << 30)
    assert size == 64 and parts == [names]
    size, parts = plan(program, names, None, 1 << 15)
    assert size == 1 and len(parts) > 2 and sum(parts, []) == names
    report = compare(program, images_for(program), memory=1 << 15)
    assert report.mismatches == 0 and report.elements == 5 * sum(
        int(np.prod(t.shape)) for t in program.tensors.values()
    )


def test_compare_refuses_an_unknown_reference() -> None:
    with pytest.raises(UserError, match="engine or oracle"):
        compare(random_program(0, SIZE), images_for(random_program(0, SIZE)), reference="paper")


# --- Elsewhere -------------------------------------------------------------------------------------------------------


def test_fused_kernels_in_the_interpreter() -> None:
    """The CUDA kernels, run by Triton's interpreter in a process of their own."""
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, __file__], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def run_fused() -> None:
    """Eight small Programs through the fused kernels on the CPU, every tensor; run by the test above."""
    for seed in range(8):
        program = random_program(
            seed,
            Size(
                (9, 11, 3), patch=4, stride=3, width=12, depth=1, inner=20, states=(8, 5)[seed % 2], dt_rank=3, taps=4
            ),
            rounding=ROUNDINGS[seed % 4],
            k=(4, 1)[seed // 4],
            state_bits=(8, 16)[seed // 2 % 2],
            abar_fraction=(15, 7)[seed // 4],
            extreme=0.3,
        )
        images = images_for(program, 1, seed)
        fake = FakeQuant(program, "cpu", fast=True)
        expected = Oracle(program).run(images, ["*"])
        got = fake.run(images, ["*"])
        assert_same(expected, {name: got[name] for name in expected})
        logits = expected[program.logits].reshape(len(images), -1)
        assert np.array_equal(fake.classify(images, 2).numpy(), logits)


def test_the_fast_form_says_where_it_cannot_run() -> None:
    program = random_program(0, SIZE)
    if os.environ.get("TRITON_INTERPRET", "0") == "0":
        pytest.importorskip("triton")
        with pytest.raises(UserError, match="fast form needs CUDA"):
            FakeQuant(program, "cpu", fast=True)


def test_gpu_check_writes_its_report(tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    command = [sys.executable, "tools/gpu_check.py", "--device", "cpu", "--count", "3", "--quick", "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    report = json.loads(out.read_text())
    assert report["mismatches"] == 0 and report["finished"] is True and report["program"]
    untapped = [r["elements"] for r in report["runs"] if r["form"] == "untapped"]
    assert len(untapped) == 3 and report["untapped"] == sum(untapped) and min(untapped) > 0
    assert report["elements"] == sum(r["elements"] for r in report["runs"]) - report["untapped"] > 0
    assert report["images_per_second"] > 0
    assert {"card", "torch", "commit"} <= set(report)
    again = subprocess.run([*command, "--resume"], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert [r["images"] for r in json.loads(out.read_text())["runs"]] == [r["images"] for r in report["runs"]]


def test_gpu_check_joins_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Parts of one check, made one beside the other, become the report of the whole, in its order; others do not."""
    whole = {**gpu_check.machine("cpu"), "finished": True, "program": "1", "model": "m", "speed": [], "runs": []}
    form = {"form": "plain", "elements": 7, "mismatches": 0, "images": 1}
    titles = ["embedded model, plain", *(f"random Vim-{size}, int8, half_up, plain" for size in ("tiny", "small"))]
    tests = {"passed": 24, "failed": 0, "skipped": 0, "error": 0}
    speed = [{"images_per_second": 3}]
    parts = [
        {**whole, "runs": [{**form, "title": titles[2]}], "tests": tests},
        {**whole, "runs": [{**form, "title": title, "mismatches": 1} for title in titles[:2]], "speed": speed},
    ]
    paths = [tmp_path / f"{i}.json" for i in range(2)]
    out = tmp_path / "whole.json"

    def joined(*parts: dict[str, Any]) -> tuple[int, str]:
        for path, part in zip(paths, parts, strict=True):
            path.write_text(json.dumps(part))
        out.unlink(missing_ok=True)
        status = gpu_check.main(["--out", str(out), "--join", *map(str, paths)])
        assert out.exists() == (status != 2)
        return status, capsys.readouterr().err

    assert joined(*parts) == (1, "")
    report = json.loads(out.read_text())
    assert [run["title"] for run in report["runs"]] == titles
    assert (report["elements"], report["mismatches"], report["images_per_second"]) == (21, 2, 3)
    assert (report["tests"], report["finished"]) == (tests, True)
    assert joined(parts[0], {**parts[1], "finished": False})[0] == 1
    assert json.loads(out.read_text())["finished"] is False
    for other, words in (
        ({**parts[1], "commit": "another"}, "1.json: commit is 'another', in"),
        ({**parts[1], "runs": parts[0]["runs"]}, "1.json: 'random Vim-small, int8, half_up, plain' is also in an"),
        ({**parts[1], "tests": tests}, "1.json: 'tests' is also in an earlier report"),
        ({"runs": []}, "1.json is not a report of this tool"),
    ):
        status, error = joined(parts[0], other)
        assert status == 2 and words in error and error.count("\n") == 1
    assert gpu_check.numbers("0-2,8") == {0, 1, 2, 8}


@needs_cuda
@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_cuda_gives_the_same_integers(seed: int, fast: bool) -> None:
    program = drawn(seed)
    images = images_for(program, seed=seed)
    expected, got = Oracle(program).run(images, ["*"]), FakeQuant(program, "cuda", fast).run(images, ["*"])
    assert_same(expected, {name: got[name] for name in expected})  # the fast form makes them in another order


@needs_cuda
@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("state_bits", [8, 16])
def test_cuda_fast_at_a_real_size(rounding: str, state_bits: int) -> None:
    program = random_program(
        9, Size((64, 64, 3), 8, 8, 192, 2, 384, 16, 12, 4, 100), rounding=rounding, state_bits=state_bits
    )
    images = images_for(program, 4)
    assert compare(program, images, "cuda", fast=True).mismatches == 0
    logits = Engine(program).classify(images)
    assert np.array_equal(FakeQuant(program, "cuda", fast=True).classify(images, 4).numpy(), logits)


if __name__ == "__main__":
    run_fused()
