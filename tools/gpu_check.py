"""Checks the torch path on a CUDA machine and writes one JSON report: integer for integer, then how fast.

    python tools/gpu_check.py --out tests/reports/gpu.json --data cifar10.npz --photos FOLDER
    python tools/gpu_check.py --device cpu --count 4 --quick --out report.json

Stages (`--stages`):

* `tests`: the tests that need CUDA, by pytest;
* `embedded`: the embedded model (or `--model`), `--count` test images, every tensor, plain and fast form;
  of each of these, and of `random`, the engine also runs without another tap inside its operators, on its fused
  kernels: what operators read, and a scan's dx and y_acc, must be the same (`untapped` in the report, not counted among
  `elements`);
* `logits`: the same images through the whole-batch CUDA graph, against the engine's logits;
* `random`: random Programs of Vim-Tiny, Small and Base at 224, `--photos-count` images, every tensor: Tiny in both
  profiles and all rounding modes, Small and Base in both profiles with two modes each, so that all occur;
* `speed`: images a second of eval, Vim-Tiny at 224, and the scan's share of what the card can do.

The report is rewritten after each piece of work; with `--resume` a later call goes on where an earlier one of the
same commit and Program stopped, so that a limit on the time of one command (`--seconds`) does no harm.  Several calls
may share the work, each with stages and random Programs (`--programs`) of its own; `--join` makes one report of theirs:

    python tools/gpu_check.py --out a.json --stages random --programs 0-3 &
    python tools/gpu_check.py --out b.json --stages random --programs 4-11
    python tools/gpu_check.py --out tests/reports/gpu.json --join a.json b.json

Exit status: 0 no mismatch, 1 mismatches or a failed test, 2 unusable input.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np
import torch

from bitexact.compare import Report, compare
from bitexact.fakequant import FakeQuant
from intsim.engine import Engine
from intsim.errors import UserError
from intsim.files import write_atomically
from intsim.program import Array, Program
from intsim.program_file import load_program, program_bytes
from intsim.synthetic import VIM, Size, random_program

ROUNDINGS = ("half_up", "half_even", "half_away", "floor")
PROFILES = {"int8": 8, "wide-state": 16}
STAGES = ("tests", "embedded", "logits", "random", "speed")
HELD = 4 << 30  # bytes of the engine's tensors of one piece of work
# what is the same in all reports that can be joined
FACTS = (
    *("card", "device", "torch", "cuda", "python", "numpy", "threads", "commit", "triton", "numba"),
    *("program", "model"),
)
UNTAPPED = "untapped"  # the engine's fused kernels, which keep the insides of operators to themselves
QUICK = Size((32, 32, 3), 8, 8, 24, 2, 48, 8, 3, 4, 10)
INT32_LANES = 64  # 32-bit integer operations a multiprocessor of an H100 starts in a cycle
# 32-bit integer operations of `kernels.scan` for one state in the default profile and mode, counted from its text
SCAN_OPERATIONS = {"A-bar": 19, "b": 8, "state": 6, "y": 2}


class Check:
    """The report, its file and the time that is left."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.started = time.monotonic()
        self.device = args.device
        self.out = Path(args.out)
        self.report: dict[str, Any] = {**machine(args.device), "finished": False, "runs": [], "speed": []}
        self.unfinished = False

    def resume(self, program: Program) -> None:
        self.report["program"] = program.digest
        self.report["model"] = program.name
        if not (self.args.resume and self.out.exists()):
            return
        old = json.loads(self.out.read_text())
        same = all(old.get(key) == self.report[key] for key in ("commit", "program", "card"))
        if same:
            self.report.update({key: old[key] for key in ("runs", "speed", "tests") if key in old})

    def late(self) -> bool:
        late = time.monotonic() - self.started > self.args.seconds
        self.unfinished = self.unfinished or late
        return late

    def entry(self, title: str, **facts: Any) -> dict[str, Any]:
        """The report's run of that title, made if it is not there."""
        for run in self.report["runs"]:
            if run["title"] == title:
                found: dict[str, Any] = run
                return found
        made = {"title": title, **facts, "images": 0, "elements": 0, "mismatches": 0, "guilty": None, "seconds": 0.0}
        self.report["runs"].append(made)
        return made

    def save(self) -> None:
        self.report["finished"] = not self.unfinished
        write_report(self.out, self.report)


def write_report(out: Path, report: dict[str, Any]) -> None:
    """Adds up the report's runs and writes it."""
    runs = report["runs"]
    report["elements"] = sum(run["elements"] for run in runs if run["form"] != UNTAPPED)
    report["untapped"] = sum(run["elements"] for run in runs if run["form"] == UNTAPPED)
    report["mismatches"] = sum(run["mismatches"] for run in runs)
    rates = [s["images_per_second"] for s in report["speed"]]
    report["images_per_second"] = max(rates) if rates else None
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, (json.dumps(report, indent=1) + "\n").encode())


def join(paths: list[str], out: Path) -> dict[str, Any]:
    """Writes one report of several, of different runs on one machine, commit and Program; returns it."""
    parts = []
    for path in paths:
        try:
            part = json.loads(Path(path).read_text())
            needed = {key: part[key] for key in (*FACTS, "date", "runs", "speed", "finished")}
            parts.append({**needed, "tests": part.get("tests")})
        except (OSError, ValueError, KeyError, TypeError) as problem:
            raise UserError(f"{path} is not a report of this tool: {problem!r}") from problem
    whole: dict[str, Any] = {key: parts[0][key] for key in (*FACTS, "date")}
    whole.update(runs=[], speed=[], finished=all(part["finished"] for part in parts))
    done: set[str] = set()
    for path, part in zip(paths, parts, strict=True):
        for key in FACTS:
            if part[key] != whole[key]:
                raise UserError(f"{path}: {key} is {part[key]!r}, in {paths[0]} it is {whole[key]!r}")
        for title in (*(run["title"] for run in part["runs"]), *(key for key in ("tests", "speed") if part[key])):
            if title in done:
                raise UserError(f"{path}: '{title}' is also in an earlier report")
            done.add(title)
        whole["runs"] += part["runs"]
        whole["speed"] += part["speed"]
        if part["tests"]:
            whole["tests"] = part["tests"]
    place = {random_title(*combination): i for i, combination in enumerate(combinations(False))}
    whole["runs"].sort(key=lambda run: place.get(run["title"].rpartition(", ")[0], -1))
    write_report(out, whole)
    return whole


def machine(device: str) -> dict[str, Any]:
    """Card, versions and commit."""
    cuda = torch.device(device).type == "cuda" and torch.cuda.is_available()
    facts: dict[str, Any] = {
        "card": torch.cuda.get_device_name(device) if cuda else "none",
        "device": device,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "threads": os.cpu_count(),
        "commit": commit(),
    }
    for module in ("triton", "numba"):
        try:
            facts[module] = __import__(module).__version__
        except ImportError:
            facts[module] = None
    return facts


def commit() -> str | None:
    """INTSIM_COMMIT (a copy of the checkout knows it from its sender), else git's, with `+` if tracked files differ."""
    if "INTSIM_COMMIT" in os.environ:
        return os.environ["INTSIM_COMMIT"]
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
        dirty = subprocess.run(["git", "status", "--porcelain", "-uno"], cwd=ROOT, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "")


# --- Images and Programs ---------------------------------------------------------------------------------------------


def embedded_program(args: argparse.Namespace) -> Program:
    """`--model`, the embedded Program, or (quick) a small random one."""
    if args.model:
        return load_program(args.model)
    from intsim import embedded

    if embedded.program_path().exists():
        return embedded.program()
    if args.quick:
        return hashed(random_program(0, QUICK))
    raise UserError(f"{embedded.program_path()}: there is no embedded Program; name one with --model")


def hashed(program: Program) -> Program:
    """The Program with its hash."""
    program_bytes(program)
    return program


def test_images(args: argparse.Namespace, program: Program) -> Array:
    """`--count` images of the embedded model's size, uint8 [n, H, W, C]: spread over the test set, or random."""
    if args.data:
        from tools.prepare_cifar10 import read_cifar10

        images = read_cifar10(args.data, ("test",))["test"][0]
        picks = np.arange(min(args.count, len(images))) * len(images) // min(args.count, len(images))
        return images[picks]
    return np.random.default_rng(0).integers(0, 256, (args.count, *program.image), dtype=np.uint8)


def photos(args: argparse.Namespace, size: tuple[int, int, int]) -> Array:
    """`--photos-count` images of the random Programs' size, from `--photos` (centre crop) or random."""
    if args.photos:
        from golden.images import open_images

        return open_images(args.photos, size, count=args.photos_count, center_crop=True).stack()
    return np.random.default_rng(1).integers(0, 256, (args.photos_count, *size), dtype=np.uint8)


def combinations(quick: bool) -> list[tuple[str, str, str]]:
    """(size, profile, rounding) of the random stage."""
    if quick:
        return [("quick", "int8", "half_up"), ("quick", "wide-state", "floor")]
    every = [("tiny", profile, rounding) for profile in PROFILES for rounding in ROUNDINGS]
    some = [("int8", "half_up"), ("wide-state", "half_even"), ("int8", "floor"), ("wide-state", "half_away")]
    every += [("small", *pair) for pair in some[:2]]
    every += [("base", *pair) for pair in some[2:]]
    return every


def random_title(size: str, profile: str, rounding: str) -> str:
    """What the random stage calls the runs of one of `combinations`, before their form."""
    return f"random Vim-{size}, {profile}, {rounding}"


# --- Stages ----------------------------------------------------------------------------------------------------------


def add(run: dict[str, Any], found: Report, first: int) -> None:
    """One comparison joins a run; its images started at number `first`."""
    run["images"] += found.images
    run["elements"] += found.elements
    run["mismatches"] += found.mismatches
    run["seconds"] = round(run["seconds"] + found.seconds, 3)
    if found.guilty and run["guilty"] is None:
        run["guilty"] = found.guilty.to_json()
        run["guilty"]["first"]["image"] += first


def add_untapped(run: dict[str, Any], engine: Engine, piece: Array, expected: dict[str, Array]) -> None:
    """The tensors of a run of the engine with no other tap, against those that it gave with all taps."""
    started = time.perf_counter()
    for name, values in engine.run(piece, list(expected)).items():
        different = int((values != expected[name]).sum())
        run["elements"] += values.size
        run["mismatches"] += different
        if different and run["guilty"] is None:
            run["guilty"] = {"tensor": name, "mismatches": different}
    run["images"] += len(piece)
    run["seconds"] = round(run["seconds"] + time.perf_counter() - started, 3)


class Given:
    """The engine, with its results for one piece of the images at hand."""

    def __init__(self, engine: Engine, piece: Array, results: dict[str, Array]):
        self.engine, self.piece, self.results = engine, piece, results

    def run(self, images: Array, taps: Iterable[str] = ()) -> dict[str, Array]:
        if len(images) == len(self.piece) and np.array_equal(images, self.piece):
            return {name: self.results[name] for name in taps}
        return self.engine.run(images, taps)


def every_tensor(check: Check, title: str, program: Program, images: Array) -> bool:
    """Compares every tensor of `images` in all forms with one run of the engine; False if time ran out.

    What the engine's fused kernels make (what operators read, and a scan's dx and y_acc) is also compared with a run
    that has no other tap.  The engine works on the next piece while this one is compared.
    """
    args = check.args
    held = sum(int(np.prod(t.shape)) * t.dtype.itemsize for t in program.tensors.values())
    step = int(np.clip(HELD // held, 1, 64))
    facts = {"name": program.name, "profile": program.profile, "rounding": program.rounding, "program": program.digest}
    runs = {form: check.entry(f"{title}, {form}", **facts, form=form) for form in (*args.forms, UNTAPPED)}
    first = min(run["images"] for run in runs.values())
    starts = range(first, len(images), step)
    if not starts or check.late():
        return not starts
    fakes = {form: FakeQuant(program, args.device, fast=form == "fast") for form in args.forms}
    engine = Engine(program)
    names = list(program.tensors)
    fused = {name for op in program.operators for name in op.inputs.values()} | {program.logits}
    fused |= {op.tensor(port) for op in program.operators if op.kind == "scan" for port in ("dx", "y_acc")}
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(engine.run, images[first : first + step], names)
        for start in starts:
            piece, results = images[start : start + step], pending.result()
            if start + step < len(images):
                pending = pool.submit(engine.run, images[start + step : start + 2 * step], names)
            for form, run in runs.items():
                if run["images"] != start:
                    continue
                if form == UNTAPPED:
                    add_untapped(run, engine, piece, {name: results[name] for name in names if name in fused})
                else:
                    given = Given(engine, piece, results)
                    found = compare(program, piece, batch=step, reference=given, candidate=fakes[form], memory=2 * HELD)
                    add(run, found, start)
            check.save()
            if check.late():
                break
    for run in runs.values():
        print(f"{run['title']}: {run['images']} images, {run['mismatches']} mismatches", flush=True)
    return min(run["images"] for run in runs.values()) >= len(images)


def tests_stage(check: Check) -> None:
    """Runs the tests marked as needing CUDA; the report gets how many passed, failed and were skipped."""
    if "tests" in check.report or check.late():
        return
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-k", "cuda", "tests/test_fakequant.py"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    counts = dict.fromkeys(("passed", "failed", "skipped", "error"), 0)
    for number, word in re.findall(r"(\d+) (passed|failed|skipped|error)", run.stdout.splitlines()[-1]):
        counts[word] = int(number)
    if run.returncode not in (0, 1) or not any(counts.values()):
        raise UserError(f"the tests could not be run: {(run.stdout + run.stderr).strip()[-500:]}")
    check.report["tests"] = counts
    check.save()
    print(f"tests that need CUDA: {counts}", flush=True)


def embedded_stage(check: Check, program: Program) -> None:
    every_tensor(check, "embedded model", program, test_images(check.args, program))


def logits_stage(check: Check, program: Program) -> None:
    args = check.args
    if check.late():
        return
    images = test_images(args, program)
    started = time.perf_counter()
    for form in args.forms:
        run = check.entry(f"embedded model, logits of eval, {form}", name=program.name, form=form)
        if run["images"]:
            continue
        own = FakeQuant(program, args.device, fast=form == "fast").classify(images, 256).numpy()
        expected = Engine(program).classify(images).astype(np.int64)
        run["images"], run["elements"] = len(images), int(expected.size)
        run["mismatches"] = int((own != expected).sum())
        run["top1_differs"] = int((own.argmax(1) != expected.argmax(1)).sum())
        run["seconds"] = round(time.perf_counter() - started, 3)
        check.save()
        print(f"{run['title']}: {run['mismatches']} mismatches", flush=True)


def random_stage(check: Check) -> None:
    args = check.args
    sizes = {**VIM, "quick": QUICK}
    for number, (size, profile, rounding) in enumerate(combinations(args.quick)):
        if args.programs is not None and number not in args.programs:
            continue
        title = random_title(size, profile, rounding)
        titles = [f"{title}, {form}" for form in (*args.forms, UNTAPPED)]
        done = [run["images"] for run in check.report["runs"] if run["title"] in titles]
        if len(done) == len(titles) and min(done) >= args.photos_count:
            continue
        if check.late():
            return
        program = random_program(number, sizes[size], rounding=rounding, state_bits=PROFILES[profile])
        program.name = f"Vim-{size}"
        if not every_tensor(check, title, hashed(program), photos(args, program.image)):
            return


def speed_stage(check: Check) -> None:
    args = check.args
    if check.late():
        return
    size = QUICK if args.quick else VIM["tiny"]
    program = hashed(random_program(0, size))
    batches = (4,) if args.quick else (64, 128, 256)
    count = 8 if args.quick else 4096
    images = np.tile(photos(args, program.image), (-(-count // args.photos_count), 1, 1, 1))[:count]
    check.report["speed"] = []
    for form in args.forms:
        for batch in batches:
            fake = FakeQuant(program, args.device, fast=form == "fast")
            share = images if form == "fast" else images[: max(4, count // 32)]
            fake.classify(share[:batch], batch)  # compiles, captures
            started = time.perf_counter()
            fake.classify(share, batch)
            seconds = time.perf_counter() - started
            facts = {
                "name": "quick" if args.quick else "Vim-tiny",
                "profile": program.profile,
                "rounding": program.rounding,
                "form": form,
                "batch": batch,
                "images": len(share),
                "images_per_second": round(len(share) / seconds, 2),
            }
            if form == "fast" and torch.device(args.device).type == "cuda":
                facts.update(limits(program, fake, size, batch, len(share) / seconds))
            check.report["speed"].append(facts)
            check.save()
            print(json.dumps(facts), flush=True)


def limits(program: Program, fake: FakeQuant, size: Size, batch: int, rate: float) -> dict[str, Any]:
    """The card's limits and the shares that eval and its scans reach.

    Operations: 32-bit integer ones of the scan's kernel for each state, against the lanes of all multiprocessors at
    the clock that the driver states as the highest.  Bytes: what the scans must read and write once (delta, u, B, C,
    y, one byte each), against a device copy measured here.
    """
    properties = torch.cuda.get_device_properties(fake.device)
    tokens = size.patches + 1
    updates = 2 * size.depth * tokens * size.inner * size.states  # of one image
    moved = 2 * size.depth * tokens * (3 * size.inner + 2 * size.states)
    operations = updates * sum(SCAN_OPERATIONS.values())
    milliseconds = time_scans(fake, batch, tokens)
    scans = batch / milliseconds * 1000  # images a second, scans alone
    facts: dict[str, Any] = {
        "scan_updates_per_image": updates,
        "scan_operations_per_image": operations,
        "scan_bytes_per_image": moved,
        "scan_milliseconds_per_batch": round(milliseconds, 3),
        "scan_share_of_time": round(rate / scans, 4),
        "macs_per_image": macs(size),
    }
    clock = highest_clock(fake.device)
    if clock:
        peak = properties.multi_processor_count * INT32_LANES * clock
        facts["int32_operations_per_second_peak"] = peak
        facts["scan_fraction_of_int32_peak"] = round(scans * operations / peak, 4)
        facts["eval_fraction_of_int32_peak"] = round(rate * operations / peak, 4)
    copy = copy_rate(fake.device)
    facts["copy_bytes_per_second"] = round(copy)
    facts["scan_fraction_of_copy_rate"] = round(scans * moved / copy, 4)
    return facts


def macs(size: Size) -> int:
    """Multiplications of 8-bit integers in the matrix products of one image."""
    tokens, e = size.patches + 1, size.inner
    layer = size.width * 2 * e + 2 * e * (size.dt_rank + 2 * size.states) + 2 * size.dt_rank * e + e * size.width
    return size.patches * size.image[2] * size.patch**2 * size.width + size.depth * tokens * layer


def highest_clock(device: torch.device) -> float | None:
    """The highest clock of the multiprocessors, in Hz, by nvidia-smi."""
    query = ["nvidia-smi", "--query-gpu=clocks.max.sm", "--format=csv,noheader,nounits", f"--id={device.index or 0}"]
    try:
        return float(subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0]) * 1e6
    except (OSError, ValueError, IndexError, subprocess.CalledProcessError):
        return None


def timed(run: Callable[[], Any], repeat: int) -> float:
    """Milliseconds of one `run` on the device."""
    run()
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    for _ in range(repeat):
        run()
    end.record()
    torch.cuda.synchronize()
    milliseconds: float = begin.elapsed_time(end) / repeat
    return milliseconds


def copy_rate(device: torch.device) -> float:
    """Bytes a second that a copy within the device reads and writes."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / (timed(lambda: target.copy_(source), 10) / 1000)


def time_scans(fake: FakeQuant, batch: int, tokens: int) -> float:
    """Milliseconds of all scans of one batch, on random codes."""
    layers = fake._fused.layers
    rows, channels, columns = batch * tokens, layers[0].channels, layers[0].x_proj.outputs
    generator = torch.Generator(fake.device).manual_seed(0)

    def codes(low: int, high: int, dtype: torch.dtype, *shape: int) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=generator, device=fake.device).to(dtype)

    delta = codes(0, 256, torch.uint8, 2, rows, channels)
    u = codes(-128, 128, torch.int8, 2, rows, channels)
    projected = codes(-128, 128, torch.int8, 2, rows, columns)
    y = torch.empty_like(u)

    def run() -> None:
        for layer in layers:
            layer.scan(delta, u, projected, batch, tokens, y)

    return timed(run, 5)


def numbers(text: str) -> set[int]:
    """The numbers of a list such as 0-3,8."""
    found: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.partition("-")
        found |= set(range(int(first), int(last if dash else first) + 1))
    return found


def checked(args: argparse.Namespace) -> dict[str, Any]:
    """Does the work and returns the report."""
    check = Check(args)
    program = embedded_program(args)
    check.resume(program)
    if "tests" in args.stages and not args.quick:
        tests_stage(check)
    if "embedded" in args.stages:
        embedded_stage(check, program)
    if "logits" in args.stages:
        logits_stage(check, program)
    if "random" in args.stages:
        random_stage(check)
    if "speed" in args.stages:
        speed_stage(check)
    check.save()
    return check.report


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="the JSON report")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--model", help="Program of the embedded stage; default: the embedded one")
    parser.add_argument("--data", help="npz with CIFAR-10 (see tools/prepare_cifar10.py); default: random images")
    parser.add_argument("--photos", help="folder of photographs for the random stage; default: random images")
    parser.add_argument("--count", type=int, default=10_000, help="images of the embedded stage")
    parser.add_argument("--photos-count", type=int, default=64, help="images of the random stage")
    parser.add_argument("--stages", default=",".join(STAGES))
    parser.add_argument("--forms", default=None, help="plain,fast; default: both on CUDA, plain elsewhere")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start nothing new after that")
    parser.add_argument("--resume", action="store_true", help="go on with the report that --out names")
    parser.add_argument("--programs", type=numbers, help="of the random stage, such as 0-3,8; default: all")
    parser.add_argument("--join", nargs="+", metavar="REPORT", help="check nothing: write one report of these")
    parser.add_argument("--quick", action="store_true", help="small Programs: to test this tool")
    args = parser.parse_args(argv)
    args.stages = args.stages.split(",")
    cuda = torch.device(args.device).type == "cuda"
    args.forms = args.forms.split(",") if args.forms else (["plain", "fast"] if cuda else ["plain"])
    if args.quick:
        args.photos_count = min(args.photos_count, args.count)
    try:
        for stage in args.stages:
            if stage not in STAGES:
                raise UserError(f"--stages: {stage!r} is none of {', '.join(STAGES)}")
        report = join(args.join, Path(args.out)) if args.join else checked(args)
    except UserError as problem:
        print(f"gpu_check: {problem}", file=sys.stderr)
        return 2
    print(
        f"{report['mismatches']} mismatches in {report['elements']:,} integers, {len(report['runs'])} runs on "
        f"{report['card']}{'' if report['finished'] else ', not finished'}; {args.out}"
    )
    failed = report.get("tests", {})
    return int(report["mismatches"] > 0 or failed.get("failed", 0) > 0 or failed.get("error", 0) > 0)


if __name__ == "__main__":
    sys.exit(main())
