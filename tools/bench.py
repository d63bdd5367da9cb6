"""How fast everything is, against the float model and against what the machine can do, in one run.

    python tools/bench.py --json bench.json --plot bench.png        # all of it, some ten minutes
    python tools/bench.py --quick                                   # the essential, within two minutes
    python tools/bench.py --from bench.json                         # measure nothing: the tables of a report

What is compared is run in turns (A B A B ...) after a warm-up, and every figure is a median.  A ratio is the median
time of the one over the median time of the other.  Vim-Tiny, Small and Base are random Programs of those dimensions
(`--program tiny=FILE` takes a real one); the float model has the official initial weights and the sequential scan of
`bitexact/vim.py`, gets its images already normalised, and of several ways to use the cores the fastest is taken.

Sections (`--only`), in order: matmul, speed, scan, operators, start, golden, sequence, scaling, memory.  Combinations
that would take too long are left out, and named.  The bars are data in `bench_report.py`.
Exit status: 0 measured; 1 with `--check` if a bar is not met; 2 unusable input.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import bench_report
import click
import numpy as np
from rich.console import Console

from intsim import embedded
from intsim.engine import Engine, available_threads, bind, bind_operator, rare
from intsim.errors import UserError
from intsim.files import write_atomically
from intsim.plan import Plan as Steps
from intsim.plan import Workers
from intsim.program import Array, Operator, Program
from intsim.program_file import load_program, program_bytes
from intsim.synthetic import VIM, Size, random_program

if TYPE_CHECKING:
    from bench_peak import Team

SECTIONS = ("matmul", "speed", "scan", "operators", "start", "golden", "sequence", "scaling", "memory")
MIB = 1 << 20
SAMPLE = 4e-3  # seconds that one sample lasts at least: a shorter call is repeated
LEAD = 20e-3  # seconds: a call that is shorter than this is not timed the first time after a pause
AGAIN = 0.5  # seconds: a first call that is shorter may have been slow for having been the first
STEPS = 3_000_000  # of the peak loop, ten ms: waking the threads takes a tenth of one
PAUSE = 25e-3  # seconds between samples: after torch, OpenMP's threads spin on for many ms, on the next one's cores
SLOW = 4  # a call that takes so many times the seconds of its comparison is sampled once
CACHE_BYTES, MEMORY_BYTES = 128 << 10, 32 << 20  # one array of the copy loop
PHASES = 50  # of one operator in one call, for its time in a run: the call itself is then a small part
SCAN_MACS = 3  # multiplications of a state update: delta u B, A-bar h, h C
TOY = Size((32, 32, 3), 8, 8, 24, 2, 48, 8, 3, 4, 10)
EMBEDDED = "embedded"


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    models: name -> batches, the embedded model among them; seconds: given to each candidate of a comparison;
    limit: seconds of one call above which a candidate is left out; rounds: of every comparison, at least; deadline:
    seconds after which no section is begun.
    """

    mode: str
    models: Mapping[str, tuple[int, ...]]
    sizes: Mapping[str, Size]
    seconds: float
    limit: float
    rounds: int
    deadline: float
    cold: bool
    repeats: int  # of whole commands
    images: tuple[int, int]  # in the bundles whose memory is compared
    sides: tuple[int, ...]  # of images, for the length of the sequence
    depth: int | None  # of the network in that comparison; None: as it is


VIM_NAMES = {EMBEDDED: "embedded", "tiny": "Vim-Tiny", "small": "Vim-Small", "base": "Vim-Base"}
PLANS = {
    "full": Plan(
        mode="full",
        models={EMBEDDED: (1, 8, 32), "tiny": (1, 8, 32), "small": (1, 8, 32), "base": (1, 8, 32)},
        sizes=VIM,
        seconds=4,
        limit=15,
        rounds=5,
        deadline=float("inf"),
        cold=True,
        repeats=5,
        images=(8, 64),
        sides=(128, 224, 448),
        depth=None,
    ),
    "quick": Plan(
        mode="quick",
        models={EMBEDDED: (1, 8), "tiny": (1, 8)},
        sizes=VIM,
        seconds=0.7,
        limit=4,
        rounds=3,
        deadline=95,
        cold=True,
        repeats=2,
        images=(8, 64),
        sides=(128, 224, 448),
        depth=6,
    ),
    "smoke": Plan(
        mode="smoke",
        models={"tiny": (1, 3)},
        sizes={"tiny": TOY},
        seconds=0.01,
        limit=5,
        rounds=2,
        deadline=float("inf"),
        cold=False,
        repeats=1,
        images=(1, 2),
        sides=(32, 64),
        depth=1,
    ),
}


# --- Timing ----------------------------------------------------------------------------------------------------------


@dataclass
class Timing:
    """Seconds of one call, a sample each."""

    samples: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    def to_json(self, per: int = 1) -> dict[str, Any]:
        """median, least and greatest; per: images in a call."""
        low, high = min(self.samples), max(self.samples)
        return {"median": self.median / per, "min": low / per, "max": high / per, "samples": len(self.samples)}


def timed(call: Callable[[], Any], times: int = 1) -> float:
    """Seconds of one of `times` calls."""
    start = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - start) / times


def interleave(calls: Mapping[str, Callable[[], Any]], seconds: float, rounds: int) -> dict[str, Timing]:
    """Times the calls in turns: each gets about `seconds` but at least `rounds` samples, or one if it is very slow.

    Every call is warmed up first.  A sample of a short call is the mean of several in a row, after as many that are
    not timed: they wake the threads and bring back what the others have driven out of the caches.
    """
    times, wanted, shortest = {}, {}, {}
    for name, call in calls.items():
        estimate = timed(call)
        if estimate < seconds:  # the first call may have compiled or allocated
            estimate = timed(call)
        shortest[name] = estimate
        times[name] = max(1, round(SAMPLE / max(estimate, 1e-9)))
        least = rounds if estimate < SLOW * seconds else 1
        wanted[name] = max(least, round(seconds / (max(estimate, 2 * SAMPLE) + PAUSE)))
    found = {name: Timing() for name in calls}
    for turn in range(max(wanted.values())):
        for name, call in calls.items():
            # candidates with fewer samples take part in evenly spread turns
            if turn * wanted[name] // max(wanted.values()) < len(found[name].samples):
                continue
            time.sleep(PAUSE)
            if shortest[name] < LEAD:
                timed(call, times[name])
            found[name].samples.append(timed(call, times[name]))
    return found


# --- The run ---------------------------------------------------------------------------------------------------------


class Bench:
    """One run: the plan, the programs, what was found so far."""

    def __init__(self, plan: Plan, programs: Mapping[str, Path], say: Callable[[str], None]):
        self.plan, self.say = plan, say
        self.threads = available_threads()
        self.started = time.monotonic()
        self.result: dict[str, Any] = {"mode": plan.mode, "skipped": [], "machine": machine(self.threads)}
        self.result.update({bar.key: None for bar in bench_report.BARS})
        self.files = programs
        self._programs: dict[str, Program] = {}

    def run(self, sections: Collection[str]) -> dict[str, Any]:
        """All of `sections`; returns the report."""
        before = self.result["machine"]["busy"]
        if before > bench_report.BUSY:
            self.say(f"other processes take {100 * before:.0f} % of the machine: the figures will suffer")
        for section in SECTIONS:
            if section not in sections:
                continue
            if time.monotonic() - self.started > self.plan.deadline:
                self.skip(f"{section} (no time left)")
                continue
            self.say(f"{time.monotonic() - self.started:4.0f} s  {section}")
            getattr(self, section)()
        self.result["machine"]["busy"] = max(before, busy())
        self.result["seconds"] = round(time.monotonic() - self.started, 1)
        self.result["bars"] = bench_report.judge(self.result)
        return self.result

    def skip(self, what: str) -> None:
        self.say(f"        left out: {what}")
        self.result["skipped"].append(what)

    def interleave(self, calls: Mapping[str, Callable[[], Any]], seconds: float | None = None) -> dict[str, Timing]:
        return interleave(calls, self.plan.seconds if seconds is None else seconds, self.plan.rounds)

    def program(self, name: str) -> Program:
        if name not in self._programs:
            if name in self.files:
                self._programs[name] = load_program(self.files[name])
            elif name == EMBEDDED:
                self._programs[name] = embedded.program()
            else:
                self._programs[name] = random_program(0, self.plan.sizes[name])
        return self._programs[name]

    def images(self, name: str, count: int) -> Array:
        """uint8 [count, H, W, C]: the embedded images, or noise."""
        if name == EMBEDDED:
            return embedded.images()[0][:count]
        shape = self.program(name).image
        return np.random.default_rng(0).integers(0, 256, (count, *shape), dtype=np.uint8)

    # --- sections ---

    def matmul(self) -> None:
        """The machine's peaks, and every matmul of Vim-Tiny against torch._int_mm, in turns."""
        import torch
        from bench_peak import Multiplier, Team

        team, peak = Team(self.threads), Multiplier()
        multiplied = peak.macs(STEPS, team) / 1e9
        torch.set_num_threads(self.threads)
        program = self.program("tiny")
        rows = []
        for op, shape in matmuls(program):
            bound = Bound(program, op, self.images("tiny", 1), self.threads)
            m, k, n = shape
            rng = np.random.default_rng(0)
            x = torch.from_numpy(rng.integers(-128, 128, (m, k), dtype=np.int8))
            w = torch.from_numpy(rng.integers(-128, 128, (n, k), dtype=np.int8)).t()
            flat = w.contiguous()

            calls = {
                "intsim": bound,
                "in a run": InARun(program, op, bound, self.threads),
                "peak": lambda: peak.run(STEPS, team),
                "torch": lambda x=x, w=w: torch._int_mm(x, w),
                "torch, contiguous": lambda x=x, w=flat: torch._int_mm(x, w),
            }
            try:
                calls["torch"]()
            except RuntimeError as problem:
                self.skip(f"torch._int_mm on {m} x {k} x {n} ({str(problem).splitlines()[0]})")
                del calls["torch"], calls["torch, contiguous"]
            found = self.interleave(calls, self.plan.seconds / 2)
            torches = [t.median for label, t in found.items() if label.startswith("torch")]
            work = m * k * n / 1e9
            rows.append(
                {
                    "operator": plain_name(op.name),
                    "count": sum(plain_name(other.name) == plain_name(op.name) for other in program.operators),
                    "shape": list(shape),
                    "seconds": found["intsim"].median,
                    "gmac_per_s": work / found["intsim"].median,
                    "in_a_run_gmac_per_s": work * PHASES / found["in a run"].median,
                    "torch_gmac_per_s": work / min(torches) if torches else None,
                    "peak_gmac_per_s": multiplied / found["peak"].median,
                    "fraction_of_peak": work / found["intsim"].median / (multiplied / found["peak"].median),
                }
            )
        peaks = statistics.median(row["peak_gmac_per_s"] for row in rows)
        self.result["peaks"] = {"instruction": peak.instruction, "gmac_per_s": peaks, **self.copying(team)}
        self.result["matmul"] = rows
        self.result.update(matmul_figures(rows))

    def copying(self, team: Team) -> dict[str, float]:
        """GB/s read and written by the copy loop in the caches and in memory."""
        from bench_peak import Copier

        near, far = Copier(CACHE_BYTES, team), Copier(MEMORY_BYTES, team)
        turns = (1 << 30) // (2 * CACHE_BYTES)
        found = self.interleave({"near": lambda: near.run(turns), "far": lambda: far.run(1)})
        return {
            "cache_kib": 2 * CACHE_BYTES // 1024,
            "cache_gb_per_s": near.bytes(turns) / found["near"].median / 1e9,
            "memory_mib": 2 * MEMORY_BYTES // MIB,
            "memory_gb_per_s": far.bytes(1) / found["far"].median / 1e9,
        }

    def speed(self) -> None:
        """An image's time: intsim, the float model and the fake-quant path, by model and batch."""
        self.result["speed"] = rows = []
        for model, batches in self.plan.models.items():
            runners = self.runners(model, max(batches))
            last: dict[str, float] = {}  # engine -> seconds an image at the batch before
            for batch in batches:
                if time.monotonic() - self.started > self.plan.deadline:
                    self.skip(f"{VIM_NAMES[model]} at batch {batch} (no time left)")
                    continue
                self.say(f"        {VIM_NAMES[model]}, batch {batch}")
                calls = {}
                for engine, runner in runners.items():
                    # what a call takes, from the batch before or, at the first, from one image
                    expected = (last[engine] if engine in last else runner.choose(1)) * batch
                    if engine != "intsim" and expected > self.plan.limit:
                        what = f"{bench_report.ENGINES[engine]}, {VIM_NAMES[model]} at batch {batch}"
                        self.skip(f"{what} (about {expected:.0f} s a call)")
                        last.setdefault(engine, expected / batch)
                        continue
                    if batch > 1:
                        runner.choose(batch)
                    calls[engine] = lambda runner=runner, batch=batch: runner(batch)
                for engine, timing in self.interleave(calls).items():
                    last[engine] = timing.median / batch
                    rows.append(
                        {
                            "model": VIM_NAMES[model],
                            "batch": batch,
                            "engine": engine,
                            "seconds_per_image": timing.median / batch,
                            "threads": runners[engine].threads,
                            **timing.to_json(batch),
                        }
                    )
            if model != "tiny":
                self._programs.pop(model, None)
        self.result.update(speed_figures(rows))

    def runners(self, model: str, batch: int) -> dict[str, Runner]:
        """The three engines on `batch` images of a model, ready to run any number of them."""
        import torch

        from bitexact.fakequant import FakeQuant
        from bitexact.inference import IMAGENET_MEAN, FloatModel
        from bitexact.vim import Vim, VimConfig

        program, images = self.program(model), self.images(model, batch)
        if model == EMBEDDED:
            loaded = FloatModel(embedded.checkpoint_path())
            network, pixels = loaded.model, loaded.normalise(images)
        else:
            s = self.plan.sizes[model]
            height, width, channels = s.image
            torch.manual_seed(0)
            network = Vim(
                VimConfig(
                    height, width, channels, s.patch, s.stride, s.width, s.depth, s.inner, s.states, s.dt_rank, s.taps,
                    s.classes,
                )
            ).eval()  # fmt: skip
            mean = torch.tensor(IMAGENET_MEAN)[:, None, None]
            pixels = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous() / 255 - mean
        engine, fake = Engine(program, self.threads), FakeQuant(program)
        return {
            "intsim": Runner(lambda n: engine.run(images[:n]), self.threads),
            "float32": TorchRunner(lambda n: network(pixels[:n]), self.threads),
            "fakequant": TorchRunner(lambda n: fake.run(images[:n]), self.threads),
        }

    def scan(self) -> None:
        """One scan of Vim-Tiny: rounding, saturation and output included."""
        program = self.program("tiny")
        op = next(op for op in program.operators if op.kind == "scan")
        updates = int(np.prod(program.tensors[op.tensor("h")].shape))
        found = self.interleave({"scan": Bound(program, op, self.images("tiny", 1), self.threads)})["scan"]
        self.result["scan"] = {"shape": list(program.tensors[op.tensor("h")].shape), **found.to_json()}
        self.result["scan_ns_per_update"] = 1e9 * found.median / updates

    def operators(self) -> None:
        """Every operator of Vim-Tiny by itself, at batch 1, and its share of the network."""
        if not self.result.get("peaks"):
            self.skip("operators (their peaks are measured by the section matmul)")
            return
        program, images = self.program("tiny"), self.images("tiny", 1)
        first: dict[str, Operator] = {}
        for op in program.operators:
            first.setdefault(plain_name(op.name), op)
        values = inputs_of(program, first.values(), images)
        bounds = {name: Bound(program, op, images, self.threads, values) for name, op in first.items()}
        seconds = self.plan.seconds / 8
        found = self.interleave(bounds, seconds)
        engine = Engine(program, self.threads)
        whole = self.interleave({"run": lambda: engine.run(images)})["run"].median
        peaks = self.result["peaks"]
        rows = []
        for name, op in first.items():
            each = found[name].median
            macs = macs_of(program, op)
            rate = (macs or bounds[name].bytes) / each / 1e9
            rows.append(
                {
                    "operator": name,
                    "kind": op.kind,
                    "shape": list(program.tensors[op.tensor("acc" if macs else bounds[name].ports[0])].shape),
                    "count": sum(plain_name(other.name) == name for other in program.operators),
                    "seconds": each,
                    "rate": rate,
                    "unit": "GMAC/s" if macs else "GB/s",
                    "fraction_of_peak": rate / peaks["gmac_per_s" if macs else "cache_gb_per_s"],
                }
            )
        total = sum(row["count"] * row["seconds"] for row in rows)
        for row in rows:
            row["share"] = row["count"] * row["seconds"] / total
        self.result["operators"] = {
            "model": VIM_NAMES["tiny"], "rows": rows, "sum_seconds": total, "run_seconds": whole,
        }  # fmt: skip

    def start(self) -> None:
        """`intsim run` on one embedded image, as a process: with an empty Numba cache, and again."""
        image = next(iter(sorted(embedded.images_path().glob("*.png"))))
        with tempfile.TemporaryDirectory(prefix="intsim-bench-") as folder:
            cache = {"NUMBA_CACHE_DIR": folder} if self.plan.cold else {}
            first = command(["run", str(image)], cache)
            if self.plan.cold:
                self.result["cold_start_s"] = first.seconds
                self.result["cold_start_announced"] = "compil" in first.errors
            warm = [command(["run", str(image)], cache) for _ in range(self.plan.repeats)]
        self.result["warm_start_s"] = statistics.median(run.seconds for run in warm)
        self.result["start"] = {
            "warm_s": [run.seconds for run in warm],
            "cold_s": first.seconds if self.plan.cold else None,
            "cold_says": first.errors.strip() if self.plan.cold else None,
            "peak_mib": statistics.median(run.peak / MIB for run in warm),
        }

    def golden(self) -> None:
        """A bundle of one Vim-Tiny image by the command; hexadecimal text in memory."""
        from golden import hexfile

        with self.vim_tiny_files() as (model, image, folder):
            runs = []
            for i in range(1 + self.plan.repeats):  # the first is the warm-up
                out = folder / f"bundle{i}"  # all stay until the end: ext4 makes files slowly where many were removed
                os.sync()  # or the system would still write the last one while this one is timed
                runs.append(command(["golden", "--model", str(model), "--images", str(image), "--out", str(out)]))
            written = [path.stat().st_size for path in out.rglob("*") if path.is_file()]
        size = self.plan.sizes["tiny"]
        shape = (size.patches + 1, size.inner, size.states)
        rng = np.random.default_rng(0)
        calls, sizes = {}, {}
        for bits in (8, 16, 32):
            values = rng.integers(-(1 << (bits - 1)), 1 << (bits - 1), shape).astype(f"int{bits}")
            calls[str(bits)] = lambda values=values, bits=bits: hexfile.encode(values, bits, True)
            sizes[str(bits)] = len(hexfile.encode(values, bits, True))
        found = self.interleave(calls)
        rates = {bits: sizes[bits] / timing.median / 1e6 for bits, timing in found.items()}
        seconds = statistics.median(run.seconds for run in runs[1:])
        self.result["golden"] = {
            "model": VIM_NAMES["tiny"],
            "seconds": seconds,
            "bytes": sum(written),
            "files": len(written),
            "peak_mib": statistics.median(run.peak / MIB for run in runs[1:]),
            "hex_mb_per_s": rates,
        }
        self.result["golden_tiny_s"] = seconds
        self.result["hex_mb_per_s"] = min(rates.values())

    @contextmanager
    def vim_tiny_files(self) -> Iterator[tuple[Path, Path, Path]]:
        """(Program file, image file, folder for output) of Vim-Tiny, removed afterwards."""
        from PIL import Image

        with tempfile.TemporaryDirectory(prefix="intsim-bench-") as name:
            folder = Path(name)
            (folder / "model.safetensors").write_bytes(program_bytes(self.program("tiny")))
            Image.fromarray(self.images("tiny", 1)[0]).save(folder / "image.png")
            yield folder / "model.safetensors", folder / "image.png", folder

    def sequence(self) -> None:
        """Vim-Tiny's width and depth on images of other sides, batch 1."""
        size = self.plan.sizes["tiny"]
        depth = self.plan.depth or size.depth
        calls, tokens = {}, {}
        for side in self.plan.sides:
            other = replace(size, image=(side, side, 3), depth=depth)
            program = random_program(0, other)
            engine, image = Engine(program, self.threads), np.full((1, *program.image), 77, dtype=np.uint8)
            image[:] = np.random.default_rng(0).integers(0, 256, image.shape)
            calls[str(side)] = lambda engine=engine, image=image: engine.run(image)
            tokens[str(side)] = other.patches + 1
        found = self.interleave(calls)
        rows = [{"tokens": tokens[side], "depth": depth, "seconds": timing.median} for side, timing in found.items()]
        self.result["sequence"] = rows
        self.result["sequence_x4_ratio"] = rows[-1]["seconds"] / rows[-2]["seconds"]

    def scaling(self) -> None:
        """Vim-Tiny at batch 1 and 8 by the number of threads."""
        counts = sorted({self.threads, *(1 << i for i in range(self.threads.bit_length()) if 1 << i <= self.threads)})
        program = self.program("tiny")
        engines = {count: Engine(program, count) for count in counts}
        self.result["scaling"] = rows = []
        for batch in self.plan.models["tiny"][:2]:
            images = self.images("tiny", batch)
            calls = {str(n): lambda engine=engine, images=images: engine.run(images) for n, engine in engines.items()}
            for count, timing in self.interleave(calls).items():
                rows.append({"batch": batch, "threads": int(count), "seconds_per_image": timing.median / batch})

    def memory(self) -> None:
        """Peak memory of processes: bundles of few and of many images of the embedded model, and of one Vim-Tiny."""
        rows = []
        for count in self.plan.images:
            with tempfile.TemporaryDirectory(prefix="intsim-bench-") as folder:
                run = command(["golden", "--count", str(count), "--out", str(Path(folder) / "bundle")])
            rows.append({"what": f"bundle of {count} embedded", "peak_mib": run.peak / MIB})
        self.result["memory_64_over_8"] = rows[1]["peak_mib"] / rows[0]["peak_mib"]
        with self.vim_tiny_files() as (model, image, _):
            run = command(["run", "--model", str(model), str(image)])
        rows.append({"what": f"run of one {VIM_NAMES['tiny']}", "peak_mib": run.peak / MIB})
        if self.result.get("golden"):
            rows.append({"what": f"bundle of one {VIM_NAMES['tiny']}", "peak_mib": self.result["golden"]["peak_mib"]})
        self.result["memory"] = rows


# --- Engines ---------------------------------------------------------------------------------------------------------


class Runner:
    """An engine on images that it has: `runner(batch)` runs the first `batch` of them, on `threads` threads."""

    def __init__(self, work: Callable[[int], Any], threads: int):
        self.work, self.threads = work, threads

    def __call__(self, batch: int) -> Any:
        return self.work(batch)

    def choose(self, batch: int) -> float:
        """Settles how this batch is run; returns the seconds of a call."""
        return timed(lambda: self(batch))


class TorchRunner(Runner):
    """Runs torch without gradients, on one thread or on all: whichever is faster at this batch."""

    def __init__(self, work: Callable[[int], Any], threads: int):
        super().__init__(work, threads)
        self.all = threads

    def __call__(self, batch: int) -> Any:
        import torch

        torch.set_num_threads(self.threads)
        with torch.inference_mode():
            return self.work(batch)

    def choose(self, batch: int) -> float:
        seconds = {}
        for threads in sorted({1, self.all}):
            self.threads = threads
            seconds[threads] = timed(lambda: self(batch))
            if seconds[threads] < AGAIN:
                seconds[threads] = timed(lambda: self(batch))
        self.threads = min(seconds, key=lambda threads: seconds[threads])
        return seconds[self.threads]


class Bound:
    """One operator of a Program on the inputs that the images give it, bound once: `bound()` runs it.

    values: the operator's inputs, if there already.  ports: the outputs that a run of the network keeps.
    """

    def __init__(
        self, program: Program, op: Operator, images: Array, threads: int, values: Mapping[str, Array] | None = None
    ):
        read = {name for other in program.operators for name in other.inputs.values()} | {program.logits}
        self.ports = [port for port in op.outputs if op.tensor(port) in read]
        values = inputs_of(program, [op], images) if values is None else values
        self.values = {name: values[name] for name in op.inputs.values()}
        self._call = bind_operator(program, op, self.ports, threads)
        made = self._call(self.values)
        self.bytes = sum(array.nbytes for array in (*self.values.values(), *made.values()))

    def __call__(self) -> dict[str, Array]:
        return self._call(self.values)


class InARun:
    """One operator as it runs in a network: PHASES times in one call, each after all threads are done with the last.

    The inputs lie where `bound` has them, and each phase of a call writes the same outputs.
    """

    def __init__(self, program: Program, op: Operator, bound: Bound, threads: int):
        kernel = bind(program, op)
        self.values = bound.values
        made = [op.tensor(port) for port in bound.ports]
        self.steps = Steps(program, [kernel], len(next(iter(self.values.values()))), made, threads)
        count = len(self.steps.tasks)
        self.steps.tasks = np.tile(self.steps.tasks, (PHASES, 1))
        self.steps.phases = np.arange(PHASES + 1, dtype=np.int64) * count
        self.steps.ahead = np.tile(self.steps.ahead, (PHASES, 1))
        self.steps.seal()
        self.workers = Workers(threads, rare([kernel]))

    def __call__(self) -> None:
        self.steps.run(self.workers, self.values)


def inputs_of(program: Program, ops: Collection[Operator], images: Array) -> dict[str, Array]:
    """What these operators read when the Program runs on the images."""
    names = {name for op in ops for name in op.inputs.values()}
    found = Engine(program).run(images, taps=sorted(names - {"image"}))
    return {**found, "image": np.array(images)}


def plain_name(name: str) -> str:
    """An operator's name without its layer and direction: `layers.3.mixer.scan_b` is `mixer.scan`."""
    parts = name.split(".")
    if parts[0] == "layers" and len(parts) > 2:
        parts = parts[2:]
    return ".".join(part.removesuffix("_b") for part in parts)


def matmuls(program: Program) -> list[tuple[Operator, tuple[int, int, int]]]:
    """A matmul of each name and its tokens, inputs and outputs; in_proj, the largest of Vim-Tiny's, first."""
    found: dict[str, tuple[Operator, tuple[int, int, int]]] = {}
    for op in program.operators:
        if op.kind in ("linear", "patch_embed"):
            outputs, *inputs = program.arrays[op.constants["weight"]].shape
            tokens = program.tensors[op.tensor("acc")].shape[0]
            found.setdefault(plain_name(op.name), (op, (tokens, int(np.prod(inputs)), outputs)))
    return sorted(found.values(), key=lambda pair: not pair[0].name.endswith("in_proj"))


def macs_of(program: Program, op: Operator) -> int | None:
    """Multiply-accumulates of an operator; None for those that only move and look up."""
    if op.kind in ("linear", "patch_embed", "conv1d"):
        return program.tensors[op.tensor("acc")].shape[0] * program.arrays[op.constants["weight"]].size
    if op.kind == "scan":
        return SCAN_MACS * int(np.prod(program.tensors[op.tensor("h")].shape))
    return None


# --- Figures ---------------------------------------------------------------------------------------------------------


def matmul_figures(rows: list[dict[str, Any]]) -> dict[str, float | None]:
    """The bars' figures: of the first shape, of the slowest, and of all by their numbers in the network."""
    first = rows[0]
    torch_rate = first["torch_gmac_per_s"]
    work = sum(row["count"] * row["gmac_per_s"] * row["seconds"] for row in rows)
    together = work / sum(row["count"] * row["seconds"] for row in rows)
    return {
        "matmul_vs_torch_int_mm": first["gmac_per_s"] / torch_rate if torch_rate else None,
        "matmul_in_a_run_vs_torch_int_mm": first["in_a_run_gmac_per_s"] / torch_rate if torch_rate else None,
        "matmul_fraction_of_peak": first["fraction_of_peak"],
        "matmul_network_fraction": together / first["gmac_per_s"],
        "matmul_worst_fraction": min(row["gmac_per_s"] for row in rows) / first["gmac_per_s"],
    }


def speed_figures(rows: list[dict[str, Any]]) -> dict[str, float]:
    """The float model's time over intsim's, for every model and batch that has both: `vim_tiny_b1_ratio` and so on."""
    seconds = {(row["model"], row["batch"], row["engine"]): row["seconds_per_image"] for row in rows}
    found = {}
    for (model, batch, engine), mine in seconds.items():
        other = seconds.get((model, batch, "float32"))
        if engine == "intsim" and other is not None:
            found[f"{model.lower().replace('-', '_')}_b{batch}_ratio"] = other / mine
    return found


# --- Processes and the machine ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Finished:
    """A command that ended well: wall time, peak memory in bytes, what it wrote to standard error."""

    seconds: float
    peak: int
    errors: str


# A process's peak counts its parent's memory up to `exec`: a small process has to start it.
LAUNCHER = """
import json, os, subprocess, sys, time
start = time.perf_counter()
child = subprocess.Popen(sys.argv[2:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(child.pid, 0)
found = [time.perf_counter() - start, usage.ru_maxrss, os.waitstatus_to_exitcode(status)]
open(sys.argv[1], "w").write(json.dumps(found))
"""


def command(arguments: list[str], environment: Mapping[str, str] | None = None) -> Finished:
    """Runs `intsim ARGUMENTS` of this checkout as a process.  Raises UserError if it fails."""
    with tempfile.TemporaryDirectory(prefix="intsim-bench-") as folder:
        report = Path(folder) / "report.json"
        line = [sys.executable, "-c", LAUNCHER, str(report), sys.executable, "-m", "golden.cli", *arguments]
        # as for most users, Python keeps what it compiles, or each start would compile the package's own files
        variables = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        variables.update(environment or {})
        run = subprocess.run(line, cwd=ROOT, env=variables, capture_output=True, text=True)
        if not report.exists():
            raise UserError(f"intsim {shlex.join(arguments)} could not be started: {run.stderr}")
        seconds, peak, status = json.loads(report.read_text())
    if status:
        raise UserError(f"intsim {shlex.join(arguments)} ended with status {status}: {run.stderr.strip()}")
    return Finished(seconds, peak * (1 if sys.platform == "darwin" else 1024), run.stderr)


def machine(threads: int) -> dict[str, Any]:
    """What the figures belong to."""
    import llvmlite
    import numba
    import torch
    from gpu_check import commit

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": cpu_name(),
        "cpus": os.cpu_count(),
        "threads": threads,
        "memory_gib": round(memory / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "numpy": np.__version__,
        "numba": numba.__version__,
        "llvmlite": llvmlite.__version__,
        "torch": torch.__version__,
        "commit": commit(),
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "busy": busy(),
    }


def busy() -> float:
    """Share of all CPUs' time that is taken while this process only waits: the least of up to three looks."""

    def ticks() -> tuple[int, int]:
        user, nice, system, idle, *others = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:])
        return idle, user + nice + system + idle + sum(others)

    try:
        least = 1.0
        for _ in range(3):  # what has just ended may still be being cleared away
            idle, total = ticks()
            time.sleep(0.5)
            still, now = ticks()
            least = min(least, 1 - (still - idle) / max(1, now - total))
            if least <= bench_report.BUSY:
                break
        return round(least, 2)
    except OSError:  # not Linux: the mean of the last minute must do
        return round(min(1.0, os.getloadavg()[0] / (os.cpu_count() or 1)), 2)


def cpu_name() -> str:
    """The CPU as the system calls it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


# --- The command -----------------------------------------------------------------------------------------------------


def program_option(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, Path]:
    """NAME=FILE of each `--program`."""
    found = {}
    for value in values:
        name, equals, file = value.partition("=")
        if not equals or name not in VIM:
            raise click.BadParameter(f"{value!r} is not NAME=FILE with a NAME of {', '.join(VIM)}")
        found[name] = Path(file)
    return found


@click.command(help=(__doc__ or "").replace("\n    ", "\n\b\n    ", 1))
@click.option("--quick", is_flag=True, help="The essential, within two minutes on two cores.")
@click.option("--smoke", is_flag=True, help="Every part on toy sizes, in seconds: is the tool in order?")
@click.option("--only", multiple=True, type=click.Choice(SECTIONS), help="This section; may be repeated.")
@click.option("--program", "programs", multiple=True, metavar="NAME=FILE", callback=program_option,
              help="Program of tiny, small or base.")  # fmt: skip
@click.option("--json", "json_to", type=click.Path(path_type=Path), help="Write the figures here.")
@click.option("--plot", "plot_to", type=click.Path(path_type=Path), help="Write the plot (PNG) here.")
@click.option("--from", "read", type=click.Path(path_type=Path), help="Measure nothing; show this JSON.")
@click.option("--check", is_flag=True, help="Exit status 1 if a bar is not met.")
def main(
    quick: bool, smoke: bool, only: tuple[str, ...], programs: dict[str, Path], json_to: Path | None,
    plot_to: Path | None, read: Path | None, check: bool,
) -> None:  # fmt: skip
    try:
        if quick and smoke:
            raise UserError("--quick and --smoke exclude each other")
        if plot_to is not None and importlib.util.find_spec("matplotlib") is None:
            raise UserError("--plot needs matplotlib: pip install '.[bench]'")
        for path in (json_to, plot_to):
            if path is not None and (path.is_dir() or not path.parent.is_dir()):
                raise UserError(f"{path}: must be a file in a folder that exists")
        errors = Console(stderr=True, markup=False, highlight=False)
        if read is not None:
            result = read_report(read)
        else:
            if importlib.util.find_spec("torch") is None:
                raise UserError("the float model needs torch: pip install '.[torch]'")
            plan = PLANS["quick" if quick else "smoke" if smoke else "full"]
            result = Bench(plan, programs, errors.print).run(only or SECTIONS)
            result["programs"] = {name: str(path) for name, path in programs.items()}
        if json_to is not None:
            write_atomically(json_to, (json.dumps(result, indent=1) + "\n").encode())
        if plot_to is not None:
            bench_report.plot(result, plot_to)
        console = Console(markup=False, highlight=False)
        if not console.is_terminal:
            console.width = 140
        bench_report.show(result, console)
    except UserError as problem:
        click.echo(f"bench: {' '.join(str(problem).split())}", err=True)
        sys.exit(2)
    if check and any(row["met"] is not True for row in bench_report.judge(result)):
        sys.exit(1)


def read_report(path: Path) -> dict[str, Any]:
    """A report that `--json` wrote."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as problem:
        raise UserError(f"{path}: cannot be read as a report: {problem}") from None
    if not isinstance(found, dict) or not {"mode", "machine", "bars"} <= set(found):
        raise UserError(f"{path}: is not a report of tools/bench.py")
    return found


if __name__ == "__main__":
    main()
