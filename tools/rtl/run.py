"""Runs the example RTL against golden vectors, under Icarus Verilog, Verilator and cocotb; `make rtl` calls it.

    python tools/rtl/run.py                          everything
    python tools/rtl/run.py --simulator verilator    one simulator
    python tools/rtl/run.py --layers 0,5,11 --frames 4 --stimulus real,repeat,random:4
    python tools/rtl/run.py --model vim.safetensors --images photographs/ --only scan

Every unit: `intsim vectors | simulator | intsim judge`.  The scan: a bench that reads a bundle's hex files and the
generated package.  The scan once more in cocotb, with driver, monitor, model and checker.

Installs nothing.  Exit status: 0 all is equal, 1 something differs or does not build, 2 a tool is missing.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
MODES = ("half_up", "half_even", "half_away", "floor")  # in the order of the package's codes
SIMULATORS = ("icarus", "verilator", "cocotb")
STIMULUS = "real,repeat,zeros,extremes"
LIMIT = 900  # seconds of one step
COCOTB = f"the Python package cocotb: {shlex.quote(sys.executable)} -m pip install 'cocotb>=2'"
NEEDS = {  # simulator -> (what must be there, the package that has it)
    "icarus": (("iverilog", "the Debian package iverilog"), ("vvp", "the Debian package iverilog")),
    "verilator": (
        ("verilator", "the Debian package verilator"),
        ("g++", "the Debian package g++"),
        ("make", "the Debian package make"),
    ),
    "cocotb": (("iverilog", "the Debian package iverilog"), ("cocotb_tools", COCOTB)),
}


class Failed(Exception):
    """A step that went wrong; the text is what to show."""


@dataclass(frozen=True)
class Job:
    name: str
    run: Callable[[], str]  # returns what was compared; raises Failed


def missing(simulators: list[str]) -> list[str]:
    """A sentence for each thing that is not there."""
    found = {}
    for simulator in simulators:
        for tool, package in NEEDS[simulator]:
            there = importlib.util.find_spec(tool) if tool == "cocotb_tools" else shutil.which(tool)
            if there is None:
                found[tool] = f"{tool} is missing: install {package}"
    return list(found.values())


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}


def intsim(*args: object) -> list[str]:
    return [sys.executable, "-m", "golden.cli", *map(str, args)]


def call(command: list[str], log: Path | None = None) -> str:
    """Runs a command in ROOT and returns what it printed.  Raises Failed with the end of that if it fails."""
    done = subprocess.run(
        command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=LIMIT
    )
    if log is not None:
        log.write_text(done.stdout)
    if done.returncode:
        raise Failed(f"{shlex.join(command)}\n{done.stdout[-4000:]}")
    return done.stdout.strip()


def loop(unit: str, options: list[str], dut: list[str]) -> str:
    """intsim vectors UNIT | DUT | intsim judge UNIT --complete; the judge's sentence."""
    stages = [intsim("vectors", unit, *options), dut, intsim("judge", unit, "--complete", *options)]
    running: list[subprocess.Popen[bytes]] = []
    source = None
    for stage in stages:
        last = stage is stages[-1]
        started = subprocess.Popen(
            stage,
            cwd=ROOT,
            env=environment(),
            stdin=source,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if last else None,
        )
        if source is not None:
            source.close()
        source = started.stdout
        running.append(started)
    try:
        said = running[-1].communicate(timeout=LIMIT)[0].decode().strip()
    finally:
        for stage_run in running:
            stage_run.kill()
            stage_run.wait()
    if running[-1].returncode:
        raise Failed(said)
    return said


@dataclass(frozen=True)
class Bench:
    """A build of one test bench: top module, its sources, its macros."""

    top: str
    build: Path
    package: Path
    macros: dict[str, str]

    def compile(self, simulator: str, units: Path = HERE / "rtl") -> list[str]:
        """Compiles under a simulator, with the units in the folder `units`; the command that runs the result."""
        more = [HERE / "tb" / "scan_bench.sv"] if self.top == "scan_tb" else []
        sources = [self.package, *sorted(units.glob("*.sv")), *more, HERE / "tb" / f"{self.top}.sv"]
        macros = [f"-D{name}={value}" for name, value in self.macros.items()]
        log = self.build.with_suffix(".log")
        if simulator == "icarus":
            program = self.build.with_suffix(".vvp")
            call(["iverilog", "-g2012", *macros, "-s", self.top, "-o", str(program), *map(str, sources)], log)
            return ["vvp", "-n", str(program)]
        options = ["--binary", "--timing", "-j", "1", "-O3", "-CFLAGS", "-O1", "--top", self.top, "-Mdir"]
        call(["verilator", *options, str(self.build), *macros, *map(str, sources)], log)
        return [str(self.build / f"V{self.top}")]


@dataclass
class Plan:
    """What to run."""

    build: Path
    layers: list[int]
    images: int
    stimulus: str
    count: int
    model: list[str]

    @property
    def bundle(self) -> Path:
        return self.build / "bundle"

    @property
    def package(self) -> Path:
        return self.build / "headers" / "intsim_pkg.sv"

    def prepare(self, images: list[str]) -> None:
        """Package and bundle, made anew."""
        for made in (self.bundle, self.package.parent):
            shutil.rmtree(made, ignore_errors=True)
        call(intsim("headers", "--out", self.package.parent, *self.model))
        globs = []
        for layer in self.layers:
            for name in ("scan*", "softplus*", "silu*", "x_proj*"):
                globs += ["--layers", f"layers.{layer}.mixer.{name}"]
        frames = ["--stimulus", self.stimulus, "--count", self.images]
        call(intsim("golden", "--out", self.bundle, *frames, *globs, *images, *self.model))

    @property
    def frames(self) -> int:
        """Images of the bundle."""
        return sum(1 for _ in (self.bundle / "images").iterdir())

    def bench(self, top: str, simulator: str, tag: str = "", **macros: object) -> Bench:
        texts = {name: str(value) for name, value in macros.items()}
        texts["BUNDLE"] = f'"{self.bundle}"'
        return Bench(top, self.build / f"{simulator}_{top}{tag}", self.package, texts)

    def unit_jobs(self, simulator: str) -> Iterator[Job]:
        layer = self.layers[0]
        prefix, macro = f"layers.{layer}", f"LAYERS_{layer}"
        modes = list(enumerate(MODES))
        counted = ["--count", str(self.count)]
        of_model = self.model

        def in_modes(unit: str, top: str, options: Callable[[str], list[str]]) -> Iterator[Job]:
            """Verilator builds all modes in one bench, Icarus one each: there a DUT costs time and a build none."""
            if simulator == "verilator":
                def every() -> str:
                    run = self.bench(top, simulator, FIRST=0, LAST=len(MODES) - 1).compile(simulator)
                    said = [loop(unit, options(mode), [*run, f"+rounding={code}"]) for code, mode in modes]
                    return f"{', '.join(MODES)}: {said[0].partition(': ')[2]}"

                yield Job(unit, every)
                return
            for code, mode in modes:
                def one(code: int = code, mode: str = mode) -> str:
                    run = self.bench(top, simulator, f"_{mode}", FIRST=code, LAST=code).compile(simulator)
                    return loop(unit, options(mode), [*run, f"+rounding={code}"]).partition(": ")[2]

                yield Job(f"{unit} {mode}", one)

        def exp2_options(mode: str) -> list[str]:
            """The whole domain; under Icarus, which is slow, in the first mode only."""
            return ["--rounding", mode, *([] if simulator == "verilator" or mode == MODES[0] else counted)]

        yield from in_modes("requantize", "requantize_tb", lambda mode: ["--rounding", mode, "--level", "2", *counted])
        yield from in_modes("exp2", "exp2_tb", exp2_options)

        def mac(k: int, tag: str, options: list[str]) -> str:
            run = self.bench("mac8_tb", simulator, tag, K=k).compile(simulator)
            return loop("dot_k", [*options, *counted], run).partition(": ")[2]

        yield Job("dot_k by mac8, K = 64, groups 0 1 2 3", lambda: mac(64, "_64", ["--k", "64", "--level", "2"]))
        width = self.number(f"{macro}_MIXER_IN_PROJ_WEIGHT_INPUTS")
        operator = f"{prefix}.mixer.in_proj"
        if width % 8 == 0:
            yield Job(f"dot_k by mac8, {operator}", lambda: mac(width, "_in", ["--operator", operator, *of_model]))

        def rsqrt() -> str:
            run = self.bench("rsqrt_tb", simulator, D_NORM=f"{macro}_NORM_D_NORM").compile(simulator)
            return loop("rsqrt", ["--operator", f"{prefix}.norm", *of_model, *counted], run).partition(": ")[2]

        yield Job("rsqrt", rsqrt)

        def rom(operator: str) -> str:
            name = operator.upper().replace(".", "_")
            run = self.bench("rom_tb", simulator, f"_{name}", OPERATOR=name).compile(simulator)
            return loop("rom", ["--operator", operator, *of_model], run).partition(": ")[2]

        for kind in ("silu", "softplus"):
            yield Job(f"rom {prefix}.mixer.{kind}", lambda kind=kind: rom(f"{prefix}.mixer.{kind}"))  # type: ignore[misc]

    def number(self, name: str) -> int:
        """An integer of the generated package."""
        for line in self.package.read_text().splitlines():
            words = line.split()
            if words[:1] == ["localparam"] and name in words:
                return int(words[words.index("=") + 1].rstrip(";"))
        raise Failed(f"{self.package}: has no {name}")

    def scan_jobs(self, simulator: str) -> Iterator[Job]:
        """Icarus runs one frame, Verilator all of them back to back."""
        frames = self.frames if simulator == "verilator" else 1
        text = self.package.read_text()
        for layer in self.layers:
            macro = f"LAYERS_{layer}_MIXER"
            sides = {"PLAIN_FORWARD": "SCAN", "PLAIN_BACKWARD": "SCAN_B"}
            plain = {name: 1 for name, side in sides.items() if f" {macro}_{side}_Y_GROUP_TABLE " not in text}

            def scan(layer: int = layer, macro: str = macro, plain: dict[str, int] = plain) -> str:
                bench = self.bench(
                    "scan_tb", simulator, f"_{macro}", LAYER=macro, FRAMES=frames, STALLS=1, **plain
                )
                dumps = bench.build.with_suffix(".dumps")
                shutil.rmtree(dumps, ignore_errors=True)
                for frame in range(frames):
                    (dumps / f"{frame:04d}").mkdir(parents=True)
                run = [*bench.compile(simulator), f"+dump={dumps}"]
                whole = ["--require", f"layers.{layer}.mixer.scan*"] if frames == self.frames else []
                verify = intsim("verify", self.bundle, dumps, *whole)
                try:
                    said = call(run).splitlines()
                except Failed as problem:
                    raise Failed(f"{problem}\n{self.verdict(verify)}") from None
                results = [line for line in said if line.endswith(" 0 wrong integers")]
                if len(results) != 2:
                    raise Failed("\n".join(said))
                compared = call(verify).splitlines()[-1].rpartition(".dumps: ")[2]
                return "; ".join([*results, f"intsim verify: {compared}"])

            yield Job(f"scan and scan_b of layer {layer}", scan)

    @staticmethod
    def verdict(verify: list[str]) -> str:
        """What `intsim verify` says of a DUT that is wrong."""
        try:
            return call(verify)
        except Failed as problem:
            return str(problem)

    def cocotb_job(self) -> Job:
        def run() -> str:
            script, build = HERE / "cocotb_scan" / "run.py", self.build / "cocotb"
            command = [sys.executable, str(script), str(self.bundle), str(build), str(self.layers[0])]
            return call(command, self.build / "cocotb.log").splitlines()[-1]

        return Job(f"scan_pe of layer {self.layers[0]}", run)


def integers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of layers, such as 0,5,11") from None


def main() -> int:
    parser = argparse.ArgumentParser(description="Runs the example RTL against golden vectors.")
    parser.add_argument("--simulator", action="append", choices=SIMULATORS, help="may be repeated; default: all")
    parser.add_argument("--only", choices=("units", "scan"), help="default: both")
    parser.add_argument("--layers", type=integers, default=[0], help="layers whose scans run: 0,5,11; default 0")
    parser.add_argument("--frames", type=int, default=2, help="real images; Icarus runs the first only; default 2")
    parser.add_argument("--stimulus", default=STIMULUS, help=f"frames, as of 'intsim golden'; default {STIMULUS}")
    parser.add_argument("--count", type=int, default=100_000, help="lines for each unit; default 100000")
    parser.add_argument("--model", help="Program file; default: the embedded model")
    parser.add_argument("--images", help="images of the Program's size; default: the embedded ones")
    parser.add_argument("--build", type=Path, default=ROOT / "build" / "rtl", help="folder for everything that is made")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    simulators = args.simulator or list(SIMULATORS)
    lacking = missing(simulators)
    if lacking:
        print("\n".join(lacking), file=sys.stderr)
        print("nothing was installed; --simulator NAME runs what is there", file=sys.stderr)
        return 2
    args.build.mkdir(parents=True, exist_ok=True)
    model = ["--model", str(Path(args.model).resolve())] if args.model else []
    images = ["--images", str(Path(args.images).resolve())] if args.images else []
    plan = Plan(args.build.resolve(), args.layers, args.frames, args.stimulus, args.count, model)
    try:
        plan.prepare(images)
        jobs: list[tuple[str, Job]] = []
        for simulator in simulators:
            if simulator == "cocotb":
                jobs += [(simulator, plan.cocotb_job())] if args.only != "units" else []
                continue
            jobs += [(simulator, job) for job in plan.scan_jobs(simulator)] if args.only != "units" else []
            jobs += [(simulator, job) for job in plan.unit_jobs(simulator)] if args.only != "scan" else []
    except Failed as problem:
        print(problem, file=sys.stderr)
        return 1

    def timed(item: tuple[str, Job]) -> bool:
        simulator, job = item
        start = time.monotonic()
        try:
            said, good = job.run(), True
        except (Failed, subprocess.TimeoutExpired) as problem:
            said, good = str(problem), False
        mark = "ok   " if good else "WRONG"
        print(f"{mark} {simulator:<9} {job.name}: {said} ({time.monotonic() - start:.0f} s)", flush=True)
        return good

    with ThreadPoolExecutor(args.jobs) as pool:
        good = list(pool.map(timed, jobs))
    print(f"{sum(good)} passed, {len(good) - sum(good)} failed")
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
