"""The example RTL: equal to the golden vectors at sizes and modes of all kinds, and not equal when a fault is planted.

`make rtl` runs whole layers and whole domains; here small Programs and few lines do.  Each test names the simulator
that it needs and skips without it.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from click.testing import CliRunner

from golden.cli import cli
from intsim.arithmetic import ROUNDINGS
from intsim.program_file import save_program
from intsim.synthetic import Size, random_program

ROOT = Path(__file__).resolve().parent.parent
RTL = ROOT / "tools" / "rtl"


def load(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location("rtl_run", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["rtl_run"] = module
    spec.loader.exec_module(module)
    return module


rtl = load(RTL / "run.py")


def needs(simulator: str) -> pytest.MarkDecorator:
    lacking = rtl.missing([simulator])
    return pytest.mark.skipif(bool(lacking), reason="; ".join(lacking))


def intsim(*args: object) -> None:
    done = CliRunner().invoke(cli, [str(a) for a in args])
    assert done.exit_code == 0, done.output


@pytest.fixture(scope="module")
def plan_of(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(rounding, state bits) -> a plan with package and bundle of a small random Program and three frames."""
    made: dict[tuple[str, int], Any] = {}

    def plan(rounding: str, state_bits: int = 8) -> Any:
        key = rounding, state_bits
        if key not in made:
            folder = tmp_path_factory.mktemp("rtl")
            size = Size((10, 11, 3), patch=3, stride=3, width=12, depth=1, inner=24, states=(16, 5)[state_bits == 16])
            seed = ROUNDINGS.index(rounding) + 1
            program = random_program(seed, size, k=4, rounding=rounding, state_bits=state_bits, extreme=0.2)
            save_program(program, folder / "model.safetensors")
            (folder / "images").mkdir()
            pixels = np.random.default_rng(1).integers(0, 256, (3, *program.image), dtype=np.uint8)
            pixels[1] = 255
            for i, image in enumerate(pixels):
                PIL.Image.fromarray(image).save(folder / "images" / f"{i}.png")
            model = ["--model", str(folder / "model.safetensors")]
            made[key] = rtl.Plan(folder, [0], 3, "real", 1000, model)
            intsim("headers", "--out", folder / "headers", *model)
            layers = [part for name in ("scan*", "softplus*", "silu*", "x_proj*") for part in ("--layers", f"*{name}")]
            intsim("golden", "--out", folder / "bundle", *layers, "--images", folder / "images", *model)
        return made[key]

    return plan


def scan(plan: Any, simulator: str, frames: int, stalls: int, units: Path = RTL / "rtl") -> str:
    """Builds and runs scan_tb; what it printed."""
    text = plan.package.read_text()
    plain = {
        name: 1
        for name, side in (("PLAIN_FORWARD", "SCAN"), ("PLAIN_BACKWARD", "SCAN_B"))
        if f" LAYERS_0_MIXER_{side}_Y_GROUP_TABLE " not in text
    }
    tag = f"_{frames}_{stalls}_{units.parent.name}"
    bench = plan.bench("scan_tb", simulator, tag, LAYER="LAYERS_0_MIXER", FRAMES=frames, STALLS=stalls, **plain)
    done: str = rtl.call(bench.compile(simulator, units))
    return done


@needs("icarus")
@pytest.mark.parametrize("state_bits", [8, 16])
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_scan(plan_of: Any, rounding: str, state_bits: int) -> None:
    """All tensors of both directions, frames back to back, with gaps and stalls and without."""
    plan = plan_of(rounding, state_bits)
    for frames, stalls in ((3, 1), (1, 0)):
        said = scan(plan, "icarus", frames, stalls)
        assert said.count(f"24 channels x {frames} frames x ") == said.count(" 0 wrong integers") == 2


@needs("verilator")
def test_scan_in_verilator(plan_of: Any) -> None:
    said = scan(plan_of("half_even"), "verilator", 3, 1)
    assert said.count("24 channels x 3 frames x ") == said.count(" 0 wrong integers") == 2


# One line each that a designer could get wrong: (unit, right, wrong).
SCAN_FAULTS = [
    ("scan_pe", "first ? '0 : rescaled", "rescaled"),  # the state of the frame before
    ("scan_pe", "first ? '0 : rescaled", "first ? '0 : h[n*STATE_BITS+:STATE_BITS]"),  # the token's exponent steps
    ("scan_pe", "6'(shift_t) - 6'(shift_before)", "6'(shift_before) - 6'(shift_t)"),
    ("scan_pe", "b_shift + 8'(shift_t)", "b_shift"),
    ("scan_pe", "(sum <<< shift_t)", "sum"),
    ("scan_pe", "y_shift + 8'(group_t)", "y_shift"),
    ("scan_pe", "if (out_ready) out_valid", "out_valid"),  # a result that does not wait
    ("scan_pe", "!running && !out_valid", "!out_valid"),  # a token is waved through while one runs
    ("scan_pe", "16'($signed({1'b0, delta_t}))", "16'($signed(delta_t))"),
    ("scan_pe", ".shift(6'(M))", ".shift(6'(M - 1))"),
    ("scan_pe", "if (n == COUNT'(N - 1))", "if (n == COUNT'(N - 2))"),  # the last state left out
    ("exp2", "(here - next) * 32'(rest)", "32'd0"),  # no interpolation
    ("requantize", "exact > HIGH ? HIGH[OUT_BITS-1:0] : ", ""),  # wraps where it should saturate
]
UNIT_FAULTS = [
    ("exp2", "35'(p) >> (fraction - 5'd19)", "35'(p)"),
    ("exp2", "6'(16'(29 - M) + whole)", "6'(16'(30 - M) + whole)"),
    ("exp2", "? 6'sd31", "? 6'sd30"),
    ("requantize", "0: up = dropped;", "0: up = 1'b0;"),
    ("requantize", "1: up = dropped && (behind || odd);", "1: up = dropped;"),
    ("requantize", "2: up = dropped && (behind || !negative);", "2: up = dropped;"),
    ("requantize", "exact < LOW ? LOW[OUT_BITS-1:0] : ", ""),
    ("mac8", "(enable) acc <= (first ? bias", "(enable) acc <= (first ? '0"),
    ("mac8", "shift[i*4+:4]", "shift[3:0]"),
    ("mac8", "$signed(w[i*W_BITS+:W_BITS])", "w[i*W_BITS+:W_BITS]"),
    ("rom", "~x[7]", "x[7]"),
    ("rsqrt", "s_next <= TARGET", "s_next < TARGET"),
    ("rsqrt", ">>> 1", ">>> 0"),
    ("rsqrt", "place <= 5'd16;", "place <= 5'd14;"),
]


def planted(folder: Path, unit: str, right: str, wrong: str) -> Path:
    """A copy of the units with one line changed."""
    units = folder / "units"
    shutil.copytree(RTL / "rtl", units)
    text = (units / f"{unit}.sv").read_text()
    assert text.count(right) == 1
    (units / f"{unit}.sv").write_text(text.replace(right, wrong))
    return units


@needs("icarus")
@pytest.mark.parametrize(("unit", "right", "wrong"), SCAN_FAULTS)
def test_a_fault_in_the_scan_is_seen(plan_of: Any, tmp_path: Path, unit: str, right: str, wrong: str) -> None:
    units = planted(tmp_path, unit, right, wrong)
    with pytest.raises(rtl.Failed, match=r"expected [0-9a-f]+, actual [0-9a-fx]+"):
        scan(plan_of("half_up"), "icarus", 3, 1, units)


def unit_loop(plan: Any, unit: str, units: Path) -> set[str]:
    """What the judge said of a unit under Icarus, in every mode it has."""

    def run(top: str, stream: str, options: list[str], arguments: tuple[str, ...] = (), **macros: object) -> str:
        command = plan.bench(top, "icarus", f"_{units.parent.name}", **macros).compile("icarus", units)
        said: str = rtl.loop(stream, options, [*command, *arguments])
        return said

    count = ["--count", "3000"]
    if unit in ("requantize", "exp2"):
        return {
            run(f"{unit}_tb", unit, ["--rounding", mode, *count], (f"+rounding={code}",), FIRST=code, LAST=code)
            for code, mode in enumerate(ROUNDINGS)
        }
    if unit == "mac8":
        return {run("mac8_tb", "dot_k", ["--k", "16", *count], K=16)}
    if unit == "rsqrt":
        options = ["--operator", "layers.0.norm", *plan.model, *count]
        return {run("rsqrt_tb", "rsqrt", options, D_NORM="LAYERS_0_NORM_D_NORM")}
    options = ["--operator", "layers.0.mixer.silu", *plan.model]
    return {run("rom_tb", "rom", options, OPERATOR="LAYERS_0_MIXER_SILU")}


@needs("icarus")
@pytest.mark.parametrize("unit", ["requantize", "exp2", "mac8", "rsqrt", "rom"])
def test_units(plan_of: Any, unit: str) -> None:
    said = unit_loop(plan_of("half_up"), unit, RTL / "rtl")
    assert len(said) == 1 and said.pop().endswith("lines, no error")


@needs("icarus")
@pytest.mark.parametrize(("unit", "right", "wrong"), UNIT_FAULTS)
def test_a_fault_in_a_unit_is_seen(plan_of: Any, tmp_path: Path, unit: str, right: str, wrong: str) -> None:
    with pytest.raises(rtl.Failed, match="line [0-9]+: .* must be .*, the DUT gave"):
        unit_loop(plan_of("half_up"), unit, planted(tmp_path, unit, right, wrong))


@needs("cocotb")
def test_cocotb(plan_of: Any, tmp_path: Path) -> None:
    """Driver, monitors, model and checker around the scan element; and they see a fault."""
    plan = plan_of("half_away", 16)
    command = [sys.executable, str(RTL / "cocotb_scan" / "run.py"), str(plan.bundle), str(tmp_path / "build"), "0", "3"]
    assert rtl.call(command).splitlines()[-1] == "4 cocotb tests on 3 channels, 0 failed"
    folder = tmp_path / "faulty"
    shutil.copytree(RTL / "cocotb_scan", folder / "cocotb_scan")
    shutil.move(planted(tmp_path, *SCAN_FAULTS[4]), folder / "rtl")
    command = [sys.executable, str(folder / "cocotb_scan" / "run.py"), *command[2:]]
    with pytest.raises(rtl.Failed, match="FAIL=[1-4] "):
        rtl.call(command)


@needs("icarus")
def test_the_bench_in_the_readme(tmp_path: Path) -> None:
    """The bench for a unit of one's own, as printed."""
    bench = (RTL / "README.md").read_text().split("```systemverilog\n")[1].split("```")[0]
    (tmp_path / "loop.sv").write_text(bench)
    unit = RTL / "rtl" / "requantize.sv"
    rtl.call(["iverilog", "-g2012", "-o", str(tmp_path / "loop.vvp"), str(tmp_path / "loop.sv"), str(unit)])
    said = rtl.loop("requantize", ["--count", "2000"], ["vvp", "-n", str(tmp_path / "loop.vvp")])
    assert said == "requantize: 2,000 lines, no error"


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    """Nothing is installed and nothing made: a sentence for each tool, status 2."""
    environment = {**os.environ, "PATH": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(RTL / "run.py"), "--build", str(tmp_path / "build")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    for tool in ("iverilog", "verilator", "g++", "make"):
        assert f"{tool} is missing: install the Debian package {tool}\n" in done.stderr
    assert not (tmp_path / "build").exists()
