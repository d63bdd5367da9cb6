"""What is left when runs are killed, interrupted, crowded, out of space or given a broken cache: a table.

    python tests/faults.py                       every row, 200 kills by the clock among them (`make faults`)
    python tests/faults.py --kills 8 --seed 3    fewer
    python tests/faults.py --only kill --but clock   rows whose name has the one in it and not the other

Each row makes its faults with small Programs, in processes of their own, and says what was not as it must be: output
absent or whole, nothing else beside it but what the next run clears away, and a rerun that succeeds.  Whole is: the
same content as an undisturbed run, and `intsim verify` finds nothing.  `tests/test_faults.py` runs a short version.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.util
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from fault_report import origin, write_report

from golden.sweep import content_digest
from golden.verify import verify
from intsim.program_file import load_program, save_program
from intsim.synthetic import Size, random_program

LIMIT = 300  # seconds for one process
CAPABILITIES = "-dac_override,-dac_read_search"  # by which root writes where nobody may

# A child that kills itself just before its n-th operation on files in the folder it works in.
STEPPER = """
import os, signal, sys
left, place = int(sys.argv[1]), os.getcwd()
def hook(event, args):
    global left
    if event in ("open", "os.mkdir", "os.rename", "os.chmod", "os.remove", "os.rmdir", "os.scandir") and left:
        if isinstance(args[0], (str, os.PathLike)) and os.path.abspath(os.fspath(args[0])).startswith(place + os.sep):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
sys.argv[1:2] = []
sys.path.insert(0, sys.argv.pop(1))
import atexit
atexit.register(lambda: print("STEPS", int(os.environ["STEPS"]) - left, file=sys.stderr))
sys.addaudithook(hook)
from golden.cli import main
main()
"""


@dataclass
class Found:
    """What a row did and what was wrong."""

    tried: int = 0
    seen: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Task:
    """A command that writes one thing."""

    name: str
    arguments: Callable[[Bench], list[object]]  # without --out
    out: str  # name of what it writes
    content: Callable[[Path], str]  # a hash of what was written; raises if it is not whole
    resumes: bool = False  # the output may be there in part, and a rerun does the rest


def bundle_content(out: Path) -> str:
    problems = verify(out)
    if problems:
        raise ValueError(problems[0])
    content: str = json.loads((out / "manifest.json").read_text())["content_sha256"]
    return content


def program_content(out: Path) -> str:
    return load_program(out).digest or ""


def sweep_content(out: Path) -> str:
    """Of all its results but for the seconds that they took, each sealed; raises if a file is strange or missing."""
    found = {}
    for path in sorted(out.iterdir()):
        if path.suffix == ".safetensors":
            found[path.name] = program_content(path)
        elif path.suffix == ".png":
            found[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            content = json.loads(path.read_text())
            if path.name != "sweep.json" and content["content_sha256"] != content_digest(content):
                raise ValueError(f"{path.name} is not sealed")
            content.pop("content_sha256", None)
            for row in (content, content.get("reference", {}), *content.get("rows", [])):
                row.pop("seconds", None)
            found[path.name] = content
    if "sweep.json" not in found:
        raise ValueError("there is no sweep.json")
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


TASKS = [
    Task(
        "golden",
        lambda bench: ["golden", "--model", bench.model, "--images", bench.images, "--state"],
        "bundle",
        bundle_content,
    ),
    Task(
        "quantize",
        lambda bench: ["quantize", bench.checkpoint, "--calibration", bench.images],
        "program.safetensors",
        program_content,
    ),
    Task(
        "sweep",
        lambda bench: [
            *("sweep", "--what", "accumulator-bits", "--values", "9,12", "--no-plot", "--batch", "4"),
            *("--model", bench.model, "--data", bench.images),
        ],
        "swept",
        sweep_content,
        resumes=True,
    ),
    Task(
        "sweep anew",
        lambda bench: [
            *("sweep", "--what", "rounding", "--values", "half_even", "--no-plot", "--batch", "4"),
            *("--checkpoint", bench.checkpoint, "--calibration", bench.images, "--data", bench.images),
        ],
        "swept",
        sweep_content,
        resumes=True,
    ),
]
NEED_TORCH = ("quantize", "sweep anew")
WITH_WORKERS = Task(
    "golden with workers",
    lambda bench: [*TASKS[0].arguments(bench), "--workers", "2"],
    TASKS[0].out,
    bundle_content,
)


class Bench:
    """A folder with a small Program, a checkpoint and images.  Kernels are kept where they always are."""

    def __init__(self, folder: Path, seed: int):
        self.folder = folder
        self.random = random.Random(seed)
        self.model, self.images = folder / "model.safetensors", folder / "images.npz"
        self.checkpoint = folder / "checkpoint.safetensors"
        save_program(random_program(7, Size(depth=2)), self.model)
        images = np.random.default_rng(seed).integers(0, 256, (24, 8, 8, 3), dtype=np.uint8)
        np.savez(self.images, images=images, labels=np.arange(24) % 3)
        self.expected: dict[str, str] = {}
        self.seconds: dict[str, float] = {}  # of an undisturbed run
        self.writing: dict[str, float] = {}  # seconds of it after its temporary output has appeared
        self.bytes: dict[str, int] = {}  # on disk, of what it writes
        self.steps: dict[str, int] = {}  # operations on files of it
        self.count = 0

    def tasks(self, count: int) -> list[Task]:
        """The first `count` of those that can run here, after one undisturbed run of each."""
        try:
            import torch
        except ImportError:
            return [self.known(task) for task in TASKS if task.name not in NEED_TORCH][:count]
        if not self.checkpoint.exists():
            from bitexact.checkpoint import save_checkpoint
            from bitexact.vim import Vim, VimConfig

            torch.manual_seed(5)
            model = Vim(VimConfig(8, 8, 3, 4, 4, 8, 2, 16, 4, 2, 4, 3))
            save_checkpoint(self.checkpoint, model.state_dict(), {"image_size": [8, 8], "stride": 4}, torch.float32)
        return [self.known(task) for task in TASKS[:count]]

    def golden(self) -> Task:
        return self.known(TASKS[0])

    def known(self, task: Task) -> Task:
        """Runs a task undisturbed, once, for its content and its length."""
        if task.name not in self.expected:
            status, error = self.finish(self.start(task, self.place(), step=10**9))  # compiles too
            assert status == 0, error
            self.steps[task.name] = int(re.findall(r"STEPS (\d+)", error)[0])
            place = self.place()
            begin = time.monotonic()
            child = self.start(task, place)
            appeared = begin
            while child.poll() is None:
                if appeared == begin and os.listdir(place):
                    appeared = time.monotonic()
                time.sleep(0.002)
            end = time.monotonic()
            status, error = self.finish(child)
            assert status == 0, error
            self.expected[task.name] = task.content(place / task.out)
            self.bytes[task.name] = sum(file.stat().st_blocks * 512 for file in place.rglob("*") if file.is_file())
            self.seconds[task.name] = end - begin
            self.writing[task.name] = end - appeared if appeared > begin else 0.0
        return task

    def place(self) -> Path:
        """A new empty folder to write into."""
        self.count += 1
        made = self.folder / f"place{self.count}"
        made.mkdir()
        return made

    def start(
        self,
        task: Task,
        place: Path,
        *,
        step: int = 0,
        wrap: tuple[str, ...] = (),
        before: Callable[[], None] = lambda: None,
        env: dict[str, str] | None = None,
    ) -> subprocess.Popen[str]:
        """Starts a command in `place`.  step: it kills itself before that operation on files."""
        arguments = [*map(str, task.arguments(self)), "--out", str(place / task.out)]
        how = ["-c", STEPPER, str(step), str(ROOT)] if step else ["-m", "golden.cli"]

        def prepare() -> None:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # which a job in the background of a script ignores
            before()

        return subprocess.Popen(
            [*wrap, sys.executable, *how, *arguments],
            cwd=place,
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "PYTHONDONTWRITEBYTECODE": "1",
                "STEPS": str(step),
                **(env or {}),
            },
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=prepare,
        )

    def finish(self, child: subprocess.Popen[str]) -> tuple[int, str]:
        """Waits for a child; its status and what it said."""
        try:
            _, error = child.communicate(timeout=LIMIT)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.communicate()
            return -999, "it hangs"
        return child.returncode, error

    def whole(self, task: Task, place: Path) -> str:
        """What is wrong with the output in `place`; nothing may be beside it."""
        names = sorted(os.listdir(place))
        if names != [task.out]:
            return f"the folder has {names}"
        try:
            content = task.content(place / task.out)
        except Exception as problem:
            return f"not whole: {problem}"
        return "" if content == self.expected[task.name] else "other content than an undisturbed run"

    def strange(self, task: Task, place: Path, killed: bool) -> list[str]:
        """What is left and may not be; killed: temporary files and folders may, by the names that a rerun looks for."""
        part = re.compile(rf"\.{re.escape(task.out)}\.[a-z0-9_]{{8}}\.part")
        left = [n for n in os.listdir(place) if n != task.out and not (killed and part.fullmatch(n))]
        if task.resumes and (place / task.out).exists():
            part = re.compile(r"\.[a-z0-9_-]+\.(json|safetensors)\.[a-z0-9_]{8}\.part")
            inside = os.listdir(place / task.out)
            left += [n for n in inside if n.startswith(".") and not (killed and part.fullmatch(n))]
        return left

    def rerun(self, task: Task, place: Path, env: dict[str, str] | None = None) -> str:
        """What is wrong with a run in a place where one failed."""
        status, error = self.finish(self.start(task, place, env=env))
        return f"a rerun ends with {status}: {error.strip()}" if status else self.whole(task, place)

    def aborted(self, task: Task, place: Path) -> str:
        """What is wrong after a run that ended by itself: nothing may be left, or what a rerun goes on from."""
        if not task.resumes:
            return f"{os.listdir(place)} stays" if os.listdir(place) else ""
        strange = self.strange(task, place, killed=False)
        return f"{strange} stays" if strange else self.rerun(task, place)

    def after_kill(self, task: Task, place: Path, found: Found, env: dict[str, str] | None = None) -> None:
        """Output absent or whole, leftovers only of the known name, and a rerun that succeeds."""
        found.tried += 1
        strange = self.strange(task, place, killed=True)
        if strange:
            found.problems.append(f"{task.name}: {strange} stays")
        if (place / task.out).exists() and not task.resumes:
            found.seen["whole"] += 1
            problem = self.whole(task, place)
        else:
            found.seen["half-written" if os.listdir(place) else "nothing written"] += 1
            problem = self.rerun(task, place, env)
        if problem:
            found.problems.append(f"{task.name}: {problem}")
        else:
            shutil.rmtree(place)


# The rows


def kill_by_clock(bench: Bench, count: int) -> Found:
    """SIGKILL at random moments: half over the whole run, half from the appearance of the temporary output on.

    A run that ends before its moment is not counted, and another takes its place.
    """
    found = Found()
    tasks = bench.tasks(count)
    for i in range(3 * count):
        if found.tried == count:
            break
        task = tasks[i % len(tasks)]
        place = bench.place()
        child = bench.start(task, place)
        if i // len(tasks) % 2:
            until = time.monotonic() + LIMIT
            while child.poll() is None and time.monotonic() < until and not os.listdir(place):
                time.sleep(0.0002)
            wait = bench.random.uniform(0, 1.05 * bench.writing[task.name])
        else:
            wait = bench.random.uniform(0, 1.05 * bench.seconds[task.name])
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(wait)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        status, error = bench.finish(child)
        if status == -signal.SIGKILL:
            bench.after_kill(task, place, found)
            continue
        found.seen["ended before"] += 1
        problem = f"ends with {status}: {error.strip()}" if status else bench.whole(task, place)
        if problem:
            found.problems.append(f"{task.name}: {problem}")
    return found


def kill_by_step(bench: Bench, count: int) -> Found:
    """SIGKILL just before a random operation on files, the last of them (the rename and around it) for sure."""
    found = Found()
    tasks = bench.tasks(count)
    for i in range(count):
        task = tasks[i % len(tasks)]
        steps = bench.steps[task.name]
        at = steps - i // len(tasks) if i // len(tasks) < 3 else bench.random.randint(1, steps)
        place = bench.place()
        status, error = bench.finish(bench.start(task, place, step=max(1, at)))
        if status != -signal.SIGKILL:
            found.problems.append(f"{task.name}: step {at} of {steps} ends with {status}: {error.strip()}")
        bench.after_kill(task, place, found)
    return found


def kill_compiling(bench: Bench, count: int) -> Found:
    """SIGKILL while kernels are compiled and kept; the rerun uses what was kept."""
    found = Found()
    task = bench.golden()
    begin = time.monotonic()
    bench.finish(bench.start(task, bench.place(), env={"NUMBA_CACHE_DIR": str(bench.place())}))
    seconds = time.monotonic() - begin
    for _ in range(count):
        cache, place = bench.place(), bench.place()
        env = {"NUMBA_CACHE_DIR": str(cache)}
        child = bench.start(task, place, env=env)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(bench.random.uniform(bench.seconds[task.name] / 2, seconds))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        bench.finish(child)
        bench.after_kill(task, place, found, env)
        stray = [path.name for path in cache.rglob("*") if path.is_file() and path.suffix != ".kernel"]
        if stray:
            found.problems.append(f"{stray} stays in the cache")
    return found


def kill_with_workers(bench: Bench, count: int) -> Found:
    """SIGKILL of `golden --workers 2` alone: its workers see that it is gone, and end by themselves."""
    found = Found()
    if importlib.util.find_spec("distributed") is None:
        found.seen["left out: no Dask"] += 1
        return found
    task = bench.known(WITH_WORKERS)
    if bench.expected[task.name] != bench.expected[bench.golden().name]:
        found.problems.append("the bundle is not that of one process")
    for _ in range(count):
        place = bench.place()
        child = bench.start(task, place)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(bench.random.uniform(bench.seconds[task.name] / 2, bench.seconds[task.name]))
        child.kill()
        status, error = bench.finish(child)
        until = time.monotonic() + 30
        while group_lives(child.pid) and time.monotonic() < until:
            time.sleep(0.05)
        if group_lives(child.pid):
            found.problems.append("its workers live on")
            os.killpg(child.pid, signal.SIGKILL)
        if status == -signal.SIGKILL:
            bench.after_kill(task, place, found)
        else:
            found.seen["ended before"] += 1
    return found


def group_lives(group: int) -> bool:
    """Whether a process of the group is there."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def interrupt(bench: Bench, count: int) -> Found:
    """Ctrl-C and SIGTERM at random moments: nothing is left, at once, and the exit status says so."""
    found = Found()
    tasks = bench.tasks(count)
    for i in range(count):
        task = tasks[i % len(tasks)]
        number, told = [(signal.SIGINT, 130), (signal.SIGTERM, 143)][i // len(tasks) % 2]
        place = bench.place()
        child = bench.start(task, place)
        wait = bench.random.uniform(0, bench.seconds[task.name])
        if i % 3 == 0:  # while it writes
            until = time.monotonic() + LIMIT
            while child.poll() is None and time.monotonic() < until and not os.listdir(place):
                time.sleep(0.0002)
            wait = bench.random.uniform(0, bench.writing[task.name])
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(wait)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child.pid, number)
        status, error = bench.finish(child)
        found.tried += 1
        if status == 1 and error.startswith("Fatal Python error: init_import_site") and not os.listdir(place):
            found.seen["Python had not started"] += 1  # and says so in its own way; nothing of ours has run
            continue
        done = status == 0 or ((place / task.out).exists() and not task.resumes)
        found.seen["whole" if done else "removed" if not os.listdir(place) else "in part"] += 1
        # before the command has begun Python itself ends, by the signal: a shell calls that 130 and 143 too
        if status not in ((0, told, -number) if done else (told, -number)):
            found.problems.append(f"{task.name}: ends with {status}, not {told}: {error.strip()}")
        if status == 130 and error.splitlines()[-1:] != ["intsim: interrupted"]:
            found.problems.append(f"{task.name}: says {error.strip()!r}")
        problem = bench.whole(task, place) if done else bench.aborted(task, place)
        if problem:
            found.problems.append(f"{task.name}, status {status}: {problem}")
    return found


def full_disk(bench: Bench, count: int) -> Found:
    """A disk that fills up at a random byte (a tmpfs), or a limit on the size of files where none can be mounted."""
    found = Found()
    tasks = bench.tasks(count)
    for i in range(count):
        task = tasks[i % len(tasks)]
        place = bench.place()
        # a page less than all at most, for a tmpfs has whole pages
        allowed = max(1, int((bench.bytes[task.name] - 4096) * bench.random.uniform(0, 0.95)))
        with small_disk(place, allowed) as mounted:
            found.seen["tmpfs" if mounted else "limit on files"] += 1
            status, error = bench.finish(
                bench.start(task, place, before=(lambda: None) if mounted else (lambda: limit_files(1000)))
            )
            found.tried += 1
            if status != 2 or not re.match(r"intsim: \S+: cannot be \w+: (No space left|File too large)", error):
                found.problems.append(f"{task.name}, {allowed} bytes: ends with {status}: {error.strip()}")
            left = bench.strange(task, place, killed=False) if task.resumes else os.listdir(place)
            if left:
                found.problems.append(f"{task.name}, {allowed} bytes: {left} stays")
        problem = bench.rerun(task, place)
        if problem:
            found.problems.append(f"{task.name}: {problem}")
    return found


@contextlib.contextmanager
def small_disk(place: Path, size: int) -> Iterator[bool]:
    """A tmpfs of about `size` bytes at `place`, if this user may mount one."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    try:
        mounted = subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        mounted = False
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(place)], check=True)


def limit_files(size: int) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def as_anyone() -> tuple[str, ...] | None:
    """What makes a command obey permissions: nothing for a user, fewer capabilities for root; None if impossible."""
    if os.geteuid() != 0:
        return ()
    tool = shutil.which("setpriv")
    return None if tool is None else (tool, f"--bounding-set={CAPABILITIES}")


def read_only_folder(bench: Bench, count: int) -> Found:
    """A folder that cannot be written: refused at once."""
    found = Found()
    wrap = as_anyone()
    if wrap is None:
        found.seen["left out: root, and no setpriv"] += 1
        return found
    for task in bench.tasks(count):
        place = bench.place()
        place.chmod(0o500)
        status, error = bench.finish(bench.start(task, place, wrap=wrap))
        place.chmod(0o700)
        found.tried += 1
        if status != 2 or len(error.splitlines()) != 1 or str(place) not in error or os.listdir(place):
            found.problems.append(f"{task.name}: ends with {status}: {error.strip()}; {os.listdir(place)}")
    return found


def two_at_once(bench: Bench, count: int) -> Found:
    """Two runs with one target: a bundle is made by one and the other refuses; a file is whole, whoever was last.

    Two sweeps do each what they do not find; the results are the same.
    """
    found = Found()
    tasks = bench.tasks(count)
    for i in range(count):
        task = tasks[i % len(tasks)]
        place = bench.place()
        first = bench.start(task, place)
        time.sleep(bench.random.uniform(0, 0.3 * bench.seconds[task.name]) if i >= len(tasks) else 0)
        second = bench.start(task, place)
        both = [bench.finish(first), bench.finish(second)]
        found.tried += 1
        statuses = sorted(status for status, _ in both)
        found.seen[f"statuses {statuses}"] += 1
        allowed = {"golden": ([0, 2],), "quantize": ([0, 2], [0, 0])}
        if statuses not in allowed.get(task.name, ([0, 0],)):
            found.problems.append(f"{task.name}: {both}")
        if statuses == [0, 2]:
            refusal = next(error for status, error in both if status)
            if not re.fullmatch(r"intsim: \S+: exists already;[^\n]*\n", refusal):
                found.problems.append(f"{task.name}: refuses with {refusal!r}")
        problem = bench.whole(task, place)
        if problem:
            found.problems.append(f"{task.name}: {problem}")
    return found


def damaged_cache(bench: Bench, count: int) -> Found:
    """Kernels' files cut short, with changed bits, swapped, empty, of other versions, not readable, folders."""
    found = Found()
    task = bench.golden()
    cache = bench.place()
    env = {"NUMBA_CACHE_DIR": str(cache)}
    bench.finish(bench.start(task, bench.place(), env=env))
    for i in range(count):
        files = sorted(cache.rglob("*.kernel"))
        assert files
        damage(bench.random, files, anyhow=i > 0)
        place = bench.place()
        status, error = bench.finish(bench.start(task, place, env=env))
        found.tried += 1
        if "compiling" not in error:
            found.problems.append("a damaged cache was used without a word")
        problem = f"ends with {status}: {error.strip()}" if status else bench.whole(task, place)
        if problem:
            found.problems.append(problem)
    place = bench.place()
    for path in cache.rglob("*.kernel"):
        if path.is_dir():  # which is nothing that a run may remove
            path.rmdir()
    bench.finish(bench.start(task, place, env=env))
    status, error = bench.finish(bench.start(task, bench.place(), env=env))
    if status or error:
        found.problems.append(f"after the damage the cache is not whole again: {error.strip()}")
    return found


def damage(rng: random.Random, files: list[Path], anyhow: bool) -> None:
    """Each of the files is damaged in one way or another; anyhow: it may become a folder too."""
    contents = [file.read_bytes() if file.is_file() else b"" for file in files]
    for i, file in enumerate(files):
        if not file.is_file():
            continue
        data = bytearray(contents[i])
        way = rng.randrange(7) if anyhow else i % 6
        assert data, f"{file.name}: the run after the last damage did not write it anew"
        if way == 0:
            del data[rng.randrange(len(data)) :]
        elif way == 1:
            for _ in range(rng.randint(1, 5)):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        elif way == 2:
            data = bytearray(rng.randbytes(len(data)))
        elif way == 3:
            data = bytearray()
        elif way == 4:
            data = bytearray(contents[(i + 1) % len(files)])
        elif way == 5:
            data = data.replace(b"0", b"9")  # versions and hashes among it
        else:
            file.unlink()
            file.mkdir()
            continue
        file.write_bytes(data)


def unwritable_cache(bench: Bench, count: int) -> Found:
    """No folder for compiled kernels that can be written, or a full one: the run compiles, says so, and is right."""
    found = Found()
    task = bench.golden()
    wrap = as_anyone()
    if wrap is None:
        found.seen["left out: root, and no setpriv"] += 1
        return found
    locked = bench.place()
    locked.chmod(0o500)
    package = locked_package(bench)
    a_file = bench.folder / "a_file"
    a_file.write_bytes(b"")
    settings = {
        "nowhere": {"NUMBA_CACHE_DIR": str(locked / "cache"), "HOME": str(locked), "XDG_CACHE_HOME": str(locked)},
        "a file": {"NUMBA_CACHE_DIR": str(a_file), "HOME": str(locked), "XDG_CACHE_HOME": str(a_file)},
    }
    for name, env in list(settings.items())[: max(1, count)]:
        place = bench.place()
        status, error = bench.finish(bench.start(task, place, wrap=wrap, env={**env, "PYTHONPATH": str(package)}))
        found.tried += 1
        if "compiled kernels cannot be kept" not in error:
            found.problems.append(f"{name}: nothing is said: {error.strip()}")
        problem = f"ends with {status}: {error.strip()}" if status else bench.whole(task, place)
        if problem:
            found.problems.append(f"{name}: {problem}")
    if count > 1:
        cache, place = bench.place(), bench.place()
        with small_disk(cache, 60_000) as mounted:
            if mounted:
                status, error = bench.finish(bench.start(task, place, env={"NUMBA_CACHE_DIR": str(cache)}))
                found.tried += 1
                problem = f"ends with {status}: {error.strip()}" if status else bench.whole(task, place)
                if problem or "No space left" not in error:
                    found.problems.append(f"full cache: {problem} {error.strip()}")
    locked.chmod(0o700)
    for path in package.rglob("*"):
        if path.is_dir():
            path.chmod(0o700)
    return found


def locked_package(bench: Bench) -> Path:
    """A copy of the packages in folders that cannot be written."""
    copy = bench.place()
    for name in ("intsim", "golden"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in [copy, *copy.rglob("*")]:
        if path.is_dir() and path != copy:
            path.chmod(0o500)
    return copy


@dataclass(frozen=True)
class Row:
    name: str
    make: Callable[[Bench, int], Found]
    share: float  # faults for each kill of the first row
    few: int  # faults in the short version; those that compile everything take too long for it


ROWS = [
    Row("kill by the clock", kill_by_clock, 1, 3),
    Row("kill by the step", kill_by_step, 0.3, 2),
    Row("kill, no kernels yet", kill_compiling, 0.05, 0),
    Row("kill, with workers", kill_with_workers, 0.03, 0),
    Row("Ctrl-C and SIGTERM", interrupt, 0.2, 2),
    Row("full disk", full_disk, 0.1, 1),
    Row("read-only folder", read_only_folder, 0.01, 1),
    Row("two runs at once", two_at_once, 0.1, 1),
    Row("damaged cache", damaged_cache, 0.05, 0),
    Row("unwritable cache", unwritable_cache, 0.01, 0),
]


def write_rows(path: str, rows: list[dict[str, object]]) -> None:
    """A JSON list of rows, each with its command and commit, in the order of the table."""
    called = origin("python tests/faults.py")
    found = {row["fault"]: row for row in json.loads(Path(path).read_text())} if Path(path).exists() else {}
    found.update({row["fault"]: {**row, **called} for row in rows})
    write_report(path, [found[row.name] for row in ROWS if row.name in found])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="rows whose name has this in it")
    parser.add_argument("--but", help="not rows whose name has this in it")
    parser.add_argument("--json", help="file for the table; rows that it has of another call stay")
    options = parser.parse_args()
    bad, rows = 0, []
    with tempfile.TemporaryDirectory(prefix="intsim-faults-") as folder:
        bench = Bench(Path(folder), options.seed)
        print(f"{'fault':22} {'times':>6} {'clean':>6}   what was seen", flush=True)
        for row in ROWS:
            if options.only not in row.name or (options.but is not None and options.but in row.name):
                continue
            count = max(2, round(options.kills * row.share))
            found = row.make(bench, count)
            bad += len(found.problems)
            seen = ", ".join(f"{n} {text}" for text, n in found.seen.most_common())
            clean = found.tried - min(found.tried, len(found.problems))
            print(f"{row.name:22} {found.tried:>6} {clean:>6}   {seen}", flush=True)
            for problem in found.problems:
                print(f"    {problem}", flush=True)
            rows.append({"fault": row.name, "times": found.tried, "clean": clean, "seen": dict(found.seen)})
    if options.json is not None:
        write_rows(options.json, rows)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
