"""tools/bench.py: figures are what they say they are, bars are judged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import bench
import bench_peak
import bench_report

from intsim.errors import UserError
from intsim.synthetic import random_program

COMMAND = [sys.executable, "tools/bench.py"]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    line = [*COMMAND, *map(str, arguments)]
    return subprocess.run(line, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The report of a run on toy sizes."""
    out = tmp_path_factory.mktemp("bench") / "bench.json"
    done = run("--smoke", "--json", out)
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(out.read_text())
    assert "Bars (toy sizes" in done.stdout and found["machine"]["cpu"] in done.stdout
    return found


def test_every_section_is_in_the_report(report: dict[str, Any]) -> None:
    parts = {*bench.SECTIONS, "mode", "machine", "peaks", "bars", "skipped", "seconds"}
    assert parts - set(report) == set()
    assert report["skipped"] == []
    missing = {bar.key for bar in bench_report.BARS if report[bar.key] is None}
    # toy sizes have no batch of 8 and do not compile everything anew
    assert missing == {"vim_tiny_b8_ratio", "cold_start_s", "cold_start_announced"}
    for key in {bar.key for bar in bench_report.BARS} - missing:
        assert report[key] > 0
    assert {row["engine"] for row in report["speed"]} == set(bench_report.ENGINES)
    assert [row["tokens"] for row in report["sequence"]] == [17, 65]
    assert all(row["min"] <= row["median"] <= row["max"] and row["samples"] >= 1 for row in report["speed"])
    assert {"cpu", "threads", "torch", "numba", "commit", "busy"} <= set(report["machine"])


def test_figures_follow_from_the_measurements(report: dict[str, Any]) -> None:
    speed = {(row["batch"], row["engine"]): row["seconds_per_image"] for row in report["speed"]}
    assert report["vim_tiny_b1_ratio"] == speed[1, "float32"] / speed[1, "intsim"]
    assert report["vim_tiny_b3_ratio"] == speed[3, "float32"] / speed[3, "intsim"]
    first = report["matmul"][0]
    assert first["operator"] == "mixer.in_proj" and first["shape"] == [17, 24, 96]
    assert first["gmac_per_s"] == pytest.approx(17 * 24 * 96 / first["seconds"] / 1e9)
    assert report["matmul_in_a_run_vs_torch_int_mm"] == first["in_a_run_gmac_per_s"] / first["torch_gmac_per_s"]
    assert report["matmul_vs_torch_int_mm"] == first["gmac_per_s"] / first["torch_gmac_per_s"]
    assert report["matmul_fraction_of_peak"] == pytest.approx(first["gmac_per_s"] / first["peak_gmac_per_s"])
    updates = 17 * 48 * 8
    assert report["scan"]["shape"] == [17, 48, 8]
    assert report["scan_ns_per_update"] == pytest.approx(1e9 * report["scan"]["median"] / updates)
    assert report["sequence_x4_ratio"] == report["sequence"][1]["seconds"] / report["sequence"][0]["seconds"]
    assert report["memory_64_over_8"] == report["memory"][1]["peak_mib"] / report["memory"][0]["peak_mib"]
    assert report["golden_tiny_s"] == report["golden"]["seconds"]
    assert report["hex_mb_per_s"] == min(report["golden"]["hex_mb_per_s"].values())


def test_operators_cover_the_network(report: dict[str, Any]) -> None:
    program = random_program(0, bench.TOY)
    rows = {row["operator"]: row for row in report["operators"]["rows"]}
    assert sum(row["count"] for row in rows.values()) == len(program.operators)
    assert rows["mixer.scan"]["count"] == 2 * bench.TOY.depth and rows["head"]["count"] == 1
    assert sum(row["share"] for row in rows.values()) == pytest.approx(1)
    scan = rows["mixer.scan"]
    assert scan["rate"] == pytest.approx(3 * 17 * 48 * 8 / scan["seconds"] / 1e9)
    residual = rows["residual"]  # two int16 tensors in, one out
    assert residual["rate"] == pytest.approx(3 * 2 * 17 * 24 / residual["seconds"] / 1e9)


def test_matmuls_together_are_weighted_by_their_number() -> None:
    rows: list[dict[str, Any]] = [
        {
            "count": 1,
            "seconds": 1.0,
            "gmac_per_s": 100.0,
            "in_a_run_gmac_per_s": 150.0,
            "torch_gmac_per_s": 50.0,
            "fraction_of_peak": 0.5,
        },
        {"count": 3, "seconds": 1.0, "gmac_per_s": 20.0, "torch_gmac_per_s": None, "fraction_of_peak": 0.1},
    ]
    assert bench.matmul_figures(rows) == {
        "matmul_vs_torch_int_mm": 2.0,
        "matmul_in_a_run_vs_torch_int_mm": 3.0,
        "matmul_fraction_of_peak": 0.5,
        "matmul_network_fraction": 0.4,  # 160 GMAC in 4 s
        "matmul_worst_fraction": 0.2,
    }


def test_calls_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a warm-up: A B A B, one sample of what is very slow, many calls in a sample of what is short."""
    now = 0.0
    order: list[str] = []

    def call(name: str, seconds: float) -> Any:
        def work() -> None:
            nonlocal now
            now += seconds
            order.append(name)

        return work

    monkeypatch.setattr(bench.time, "perf_counter", lambda: now)
    monkeypatch.setattr(bench.time, "sleep", lambda seconds: None)
    found = bench.interleave({"a": call("a", 1), "b": call("b", 2)}, seconds=1, rounds=3)
    assert order == ["a", "b"] * 4  # the first of each is the warm-up
    assert found["a"].samples == [1] * 3 and found["b"].samples == [2] * 3
    order.clear()
    found = bench.interleave({"short": call("short", 1e-4), "slow": call("slow", 10)}, seconds=1, rounds=3)
    assert len(found["slow"].samples) == 1 and len(found["short"].samples) > 10
    assert found["short"].median == pytest.approx(1e-4)
    assert order.count("short") > 40 * len(found["short"].samples)


@pytest.mark.parametrize("instruction", bench_peak.available(), ids=lambda i: i.name)
def test_the_peak_loop_does_its_work(instruction: bench_peak.Instruction) -> None:
    """Every multiply-accumulate that is counted is executed: the sum of the accumulators is that of NumPy."""
    loop = bench_peak.compiled(instruction)
    rng = np.random.default_rng(0)
    for count in (1, 2, 5, 33):
        seed, a, b = (int(v) for v in rng.integers(-(1 << 31), 1 << 31, 3))
        b &= 0x3F3F3F3F  # two products of an unsigned byte and this never leave int16
        acc = np.repeat(np.arange(instruction.chains, dtype=np.int64) + seed, instruction.lanes).astype(np.int32)
        a32, b32 = (np.full(acc.size, v, dtype=np.int64).astype(np.int32) for v in (a, b))
        for _ in range(count):
            left = acc if instruction.name.startswith("vpmadd") else a32
            if instruction.products == 4:
                products = left.view(np.uint8).astype(np.int32) * b32.view(np.int8)
                acc = acc + products.reshape(-1, 4).sum(axis=1, dtype=np.int32)
            else:
                acc = acc * a32 + b32
        assert loop(count, seed, a, b) == acc.sum(dtype=np.int32)


def test_the_copy_loop_copies() -> None:
    copier = bench_peak.Copier(1 << 10, bench_peak.Team(3))
    copier.run(4)
    assert len(copier.arrays) == 3 and copier.bytes(4) == 4 * 3 * 2 * 1024
    assert all(np.array_equal(target, source ^ 3) for source, target in copier.arrays)


def test_peak_memory_is_the_commands_own() -> None:
    ballast = np.ones(400 << 20, dtype=np.uint8)
    assert bench.command(["--version"]).peak < ballast.nbytes // 2
    with pytest.raises(UserError, match="status 2"):
        bench.command(["run", "no_such_image.png"])


def test_bars_are_judged_at_their_bounds() -> None:
    figures: dict[str, Any] = {bar.key: bar.bound for bar in bench_report.BARS}
    assert all(row["met"] is True for row in bench_report.judge(figures))
    for bar in bench_report.BARS:
        worse = bar.bound * (0.999 if bar.sense == "at least" else 1.001)
        (row,) = (row for row in bench_report.judge({**figures, bar.key: worse}) if row["met"] is not True)
        assert row["key"] == bar.key and row["met"] is False
        (row,) = (row for row in bench_report.judge({**figures, bar.key: None}) if row["met"] is not True)
        assert row["key"] == bar.key and row["met"] is None


def test_plot_and_text_of_a_report(report: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    source, png = tmp_path / "bench.json", tmp_path / "bench.png"
    source.write_text(json.dumps(report))
    done = run("--from", source, "--plot", png, "--check")
    assert done.returncode == 1, done.stderr  # bars that were not measured are not met
    assert png.read_bytes().startswith(b"\x89PNG") and "Operators of Vim-Tiny" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--from", "absent.json"], "absent.json: cannot be read"),
        (["--json", "absent/bench.json"], "absent/bench.json: must be a file in a folder that exists"),
        (["--from", "pyproject.toml"], "cannot be read as a report"),
        (["--program", "huge=x.safetensors"], "is not NAME=FILE"),
        (["--quick", "--smoke"], "exclude each other"),
    ],
)
def test_unusable_input(arguments: list[str], message: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr


def test_the_bars_of_the_report_are_judged() -> None:
    report = json.loads((ROOT / "tests/reports/bench.json").read_text())
    assert report["bars"] == bench_report.judge(report)
