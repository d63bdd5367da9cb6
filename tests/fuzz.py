"""Hostile files: seeded mutations of good ones, given to every reader.

    python tests/fuzz.py --cases 100000 --seed 1 2          # make fuzz; `make test` runs 5,000 through test_fuzz.py
    python tests/fuzz.py --reader png --case 1234 --keep DIR  # one case again, its file kept

Each case is one mutated file and one call of one reader, which must refuse it with a UserError of one line, or take
it and give the right result: that of the unchanged file where a digest protects it, else what an independent reader
of the same bytes gives.  A failure is

* any other exception, a crash of the process, or more than SECONDS of its time;
* an allocation that the address space does not hold: MEMORY beyond what the worker has when it has read good files
  (so a size in a file is checked before anything of that size is made);
* code that runs, a process, a socket, or anything written outside the worker's folder (an audit hook sees them all);
* a result other than the right one: a changed Program or bundle that passes.

A reader is one row of READERS in fuzz_readers.py; the mutations are in fuzz_mutations.py.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]

from fault_report import origin, write_report
from fuzz_readers import READERS, Case, Reader

from intsim.errors import UserError

SECONDS = 5  # of a worker's processor time, for one file
MEMORY = 256 << 20  # bytes of address space for reading files of at most some 100 KiB
STALL = 120  # seconds of wall time after which a worker is taken for hung inside a library
SPARSE = 64 << 30  # length of a file that has only a hole behind its content


class Hang(BaseException):
    """A reader that took more than SECONDS of processor time."""


class Breach(BaseException):
    """A reader that ran code, opened a socket or wrote outside the worker's folder."""


@dataclass
class Guard:
    """The audit hook of a worker: it cannot be removed, but it can sleep."""

    folder: str
    awake: bool = False
    seen: list[str] = field(default_factory=list)

    FORBIDDEN = (
        "os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "subprocess.Popen", "pty.spawn",
        "socket.connect", "socket.bind", "socket.getaddrinfo", "ctypes.dlopen", "code.__new__", "marshal.loads",
        "webbrowser.open", "shutil.copyfile", "urllib.Request",
    )  # fmt: skip
    IMPORTS = ("code.__new__", "marshal.loads", "ctypes.dlopen")  # what an import of a library does, too
    CHANGES = (
        "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.chmod", "os.truncate",
        "tempfile.mkstemp", "tempfile.mkdtemp", "shutil.rmtree",
    )  # fmt: skip

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.awake:
            return
        if event == "open":
            path, mode, flags = args
            writes = (isinstance(mode, str) and set(mode) & set("wax+")) or (
                isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            )
            if writes:
                self.inside(event, path)
        elif event in self.CHANGES:
            both = event in ("os.rename", "os.link", "os.symlink")
            base = "" if both or not isinstance(args[-1], int) or args[-1] < 0 else f"/proc/self/fd/{args[-1]}"
            for path in args[: 2 if both else 1]:
                self.inside(event, path, base)
        elif event.startswith(self.FORBIDDEN) and not (event in self.IMPORTS and importing()):
            self.breach(f"{event} {args!r}"[:200])

    def inside(self, event: str, path: Any, base: str = "") -> None:
        """base: the open folder that a relative path is relative to."""
        if isinstance(path, (str, bytes, os.PathLike)):
            place = os.path.realpath(os.path.join(base, os.fsdecode(path)))
            if not place.startswith(self.folder + os.sep):
                self.breach(f"{event} {place}")

    def breach(self, what: str) -> None:
        self.seen.append(what)
        raise Breach(what)


def importing() -> bool:
    """Whether an import statement is being carried out."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


class Outcome(NamedTuple):
    """What became of a case: `refused`, `read`, or a failure and what it was."""

    verdict: str
    detail: str = ""


def attempt(reader: Reader, path: Path, good: bytes, guard: Guard) -> Outcome:
    """One call of the reader on the file at `path`."""
    guard.seen.clear()
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    guard.awake = True
    try:
        found = reader.read(path)
    except UserError as problem:
        return refusal(problem, guard)
    except (Hang, Breach) as problem:
        return Outcome(type(problem).__name__.lower(), str(problem))
    except BaseException as problem:
        import traceback

        last = traceback.extract_tb(problem.__traceback__)[-1]
        told = f"{type(problem).__name__}: {str(problem)[:200]} ({Path(last.filename).name}:{last.lineno})"
        return Outcome("memory" if isinstance(problem, MemoryError) else "crash", told)
    finally:
        guard.awake = False
        signal.setitimer(signal.ITIMER_PROF, 0)
    if guard.seen:
        return Outcome("breach", guard.seen[0])
    try:
        wanted = reader.right(path, good)
    except Exception as problem:
        return Outcome("wrong", f"taken, but the other reader says {type(problem).__name__}: {str(problem)[:200]}")
    return Outcome("read") if found == wanted else Outcome("wrong", "taken, with another result than is right")


def refusal(problem: BaseException, guard: Guard) -> Outcome:
    """A clean refusal is one printable line, and hides no allocation that failed."""
    if guard.seen:
        return Outcome("breach", guard.seen[0])
    message = str(problem)
    at: BaseException | None = problem
    while at is not None:
        if isinstance(at, MemoryError):
            return Outcome("memory", f"refused, after an allocation that failed: {message[:200]}")
        at = at.__context__
    if not message or len(message) > 2000 or len(message.splitlines()) > 1:
        return Outcome("crash", f"the refusal is not one line: {message[:300]!r}")
    return Outcome("refused")


def cap_memory() -> None:
    """From here on MEMORY more of address space than now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))


def lift_memory() -> None:
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (hard, hard))


def hung(number: int, frame: Any) -> None:
    raise Hang(f"more than {SECONDS} s of processor time")


def worker(folder: str, seed: int, rows: list[str], todo: list[tuple[int, int]], out: Any, keep: str | None) -> None:
    """Runs the cases (row, number) of `todo`; sends ("at", row, number) before each and ("end", row, number, ...)."""
    sys.dont_write_bytecode = True  # a late import writes nothing
    warnings.simplefilter("ignore")  # of the readers that files are compared with
    guard = Guard(os.path.realpath(folder))
    sys.addaudithook(guard)
    signal.signal(signal.SIGPROF, hung)
    readers = [r for r in READERS if r.name in rows]
    home = Path(folder)
    for reader in readers:
        start(reader, home / reader.name, guard)
    cap_memory()
    for row, number in todo:
        reader = readers[row]
        path = home / reader.name / reader.where
        case = reader.case(seed, number)
        out.send(("at", row, number))
        if os.environ.get("FUZZ_DIE_AT") == str(number):  # test_fuzz.py looks at what a dead worker leaves
            os.kill(os.getpid(), signal.SIGKILL)
        path.write_bytes(case.data)
        if number % 97 == 96:
            os.truncate(path, SPARSE)  # all of it behind the content is a hole
            case = Case(case.data, b"")
        outcome = attempt(reader, path, case.good, guard)
        if outcome.verdict not in ("refused", "read") and keep is not None:
            (Path(keep) / f"{reader.name}-{seed}-{number}{path.suffix}").write_bytes(case.data)
        path.unlink()
        out.send(("end", row, number, outcome.verdict, outcome.detail))
    out.send(("done",))


def start(reader: Reader, home: Path, guard: Guard) -> None:
    """Makes the reader's good files and reads each, so that what it needs is imported; each must be read rightly."""
    home.mkdir(parents=True)
    reader.prepare(home)
    reader.good = reader.samples(home)
    path = home / reader.where
    for good in reader.good:
        path.write_bytes(good)
        assert reader.read(path) == reader.right(path, good), f"{reader.name}: a good file is not read rightly"
    for warm in (b"", b"\0" * 100, reader.good[0][:-1]):  # what refusals import
        path.write_bytes(warm)
        with contextlib.suppress(UserError):
            reader.read(path)
    path.unlink()


@dataclass
class Result:
    """counts: (reader, verdict) -> cases; failures: (reader, number, verdict, detail)."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    failures: list[tuple[str, int, str, str]] = field(default_factory=list)


def plan(cases: int, readers: list[Reader]) -> list[tuple[int, int]]:
    """(row, number) of every case: the rows by their shares, in turn."""
    total = sum(r.share for r in readers)
    rows = [cases * r.share // total for r in readers]
    rows[0] += cases - sum(rows)
    return [(row, number) for row, count in enumerate(rows) for number in range(count)]


def fuzz(
    cases: int,
    seed: int,
    names: list[str] | None = None,
    jobs: int = 1,
    keep: str | None = None,
    only: int | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Result:
    """Runs `cases` mutated files, spread over the readers; in `jobs` processes that a crash or a hang does not stop.

    names: these readers alone; only: this case of each alone.  progress: called with the number of cases done.
    """
    import importlib.util

    readers = [r for r in READERS if names is None or r.name in names]
    readers = [r for r in readers if not r.needs or importlib.util.find_spec(r.needs) is not None]
    rows = [r.name for r in readers]
    todo = plan(cases, readers) if only is None else [(row, only) for row in range(len(rows))]
    result = Result()
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="fuzz-") as base:
        running: list[Any] = []
        parts = [todo[i::jobs] for i in range(jobs)]
        for part in parts:
            running.append(launch(context, base, seed, rows, part, keep))
        done = 0
        while running:
            for job in list(running):
                done += listen(job, result, rows)
                if job.closed and not job.process.is_alive():
                    running.remove(job)
                    if job.left:  # it died in the middle of a case
                        row, number = job.left[0]
                        verdict = "hang" if job.killed else "crash"
                        detail = f"the process ended with {job.process.exitcode}" if job.started else "before any case"
                        result.counts[rows[row], verdict] += 1
                        result.failures.append((rows[row], number, verdict, detail))
                        if not job.started:
                            raise RuntimeError("a fuzz worker cannot start")
                        running.append(launch(context, base, seed, rows, job.left[1:], keep))
                elif time.monotonic() - job.heard > STALL:
                    job.killed = True
                    job.process.kill()
                    job.process.join()
            progress(done)
            time.sleep(0.05)
    return result


@dataclass
class Job:
    process: Any
    pipe: Any
    left: list[tuple[int, int]]
    heard: float
    killed: bool = False
    started: bool = False
    closed: bool = False  # nothing more comes


def launch(context: Any, base: str, seed: int, rows: list[str], todo: list[tuple[int, int]], keep: str | None) -> Job:
    receive, send = context.Pipe(duplex=False)
    folder = tempfile.mkdtemp(dir=base)
    process = context.Process(target=worker, args=(folder, seed, rows, todo, send, keep), daemon=True)
    process.start()
    send.close()
    return Job(process, receive, list(todo), time.monotonic())


def listen(job: Job, result: Result, rows: list[str]) -> int:
    """Takes what a worker has sent; returns the number of cases that ended."""
    ended = 0
    while not job.closed and job.pipe.poll():
        try:
            kind, *rest = job.pipe.recv()
        except EOFError:
            job.closed = True
        else:
            job.heard = time.monotonic()
            job.started = True
            if kind == "end":
                row, number, verdict, detail = rest
                assert job.left[0] == (row, number)
                job.left.pop(0)
                ended += 1
                result.counts[rows[row], verdict] += 1
                if verdict not in ("refused", "read"):
                    result.failures.append((rows[row], number, verdict, detail))
    return ended


def report(result: Result) -> Iterator[str]:
    verdicts = sorted({verdict for _, verdict in result.counts}, key=lambda v: (v not in ("refused", "read"), v))
    yield f"{'reader':16}" + "".join(f"{verdict:>10}" for verdict in verdicts)
    for name in dict.fromkeys(reader for reader, _ in result.counts):
        yield f"{name:16}" + "".join(f"{result.counts[name, verdict]:10,}" for verdict in verdicts)
    total = sum(result.counts.values())
    yield f"{total:,} files, {len(result.failures)} failures"
    for name, number, verdict, detail in result.failures[:50]:
        yield f"FAILED --reader {name} --case {number}: {verdict}: {detail}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, nargs="+", default=[1], help="so many runs, of other files each")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--reader", action="append", choices=[r.name for r in READERS])
    parser.add_argument("--case", type=int, help="this case alone")
    parser.add_argument("--keep", help="folder for the files of failures")
    parser.add_argument("--json", help="file for the counts")
    args = parser.parse_args()
    if args.keep is not None:
        Path(args.keep).mkdir(parents=True, exist_ok=True)
    failed, runs = 0, []
    for seed in args.seed:
        result, seconds = run(args, seed)
        print("\n".join(report(result)))
        print(f"{seconds:.0f} s, seed {seed}", flush=True)
        failed += len(result.failures)
        runs.append(counted(result, seed))
    if args.json is not None:
        write_report(args.json, {**origin("python tests/fuzz.py"), "runs": runs})
    return 1 if failed else 0


def counted(result: Result, seed: int) -> dict[str, Any]:
    """A run as JSON has it."""
    readers: dict[str, dict[str, int]] = {}
    for (name, verdict), count in sorted(result.counts.items()):
        readers.setdefault(name, {})[verdict] = count
    return {"seed": seed, "files": result.counts.total(), "failures": len(result.failures), "readers": readers}


def run(args: argparse.Namespace, seed: int) -> tuple[Result, float]:
    """The cases of a seed, and the seconds that they took; says on standard error how far it is."""
    start_time, told = time.monotonic(), 0.0

    def progress(done: int) -> None:
        nonlocal told
        if time.monotonic() - told > 10:
            told = time.monotonic()
            print(f"{done:,} of {args.cases:,}, {told - start_time:.0f} s", file=sys.stderr, flush=True)

    result = fuzz(args.cases, seed, args.reader, args.jobs, args.keep, args.case, progress)
    return result, time.monotonic() - start_time


if __name__ == "__main__":
    sys.exit(main())
