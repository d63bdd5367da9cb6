"""Faults: a short version of `tests/faults.py`, and what files, folders and the cache of kernels promise alone."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faults
import pytest
from click.testing import CliRunner

from golden.cli import cli
from intsim import files
from intsim.errors import UserError
from intsim.files import new_folder, write_atomically

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals and locks of POSIX")


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> faults.Bench:
    return faults.Bench(tmp_path_factory.mktemp("faults"), seed=2)


@pytest.mark.parametrize("row", [row for row in faults.ROWS if row.few], ids=lambda row: row.name)
def test_nothing_is_left_half_done(row: faults.Row, bench: faults.Bench) -> None:
    found = row.make(bench, row.few)
    assert found.problems == []
    assert found.tried or found.seen  # what cannot be tried here says why


# Files and folders


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """A folder in which runs were killed that wrote `file` and `folder`."""
    code = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom intsim import files\n"
        "if sys.argv[1] == 'folder':\n"
        "    with files.new_folder(Path('folder')) as part:\n"
        "        (part / 'inside').mkdir()\n"
        "        (part / 'inside' / 'x').write_bytes(b'x')\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "files.os.replace = lambda *names: os.kill(os.getpid(), signal.SIGKILL)\n"
        "files.write_atomically(Path('file'), b'x')\n"
    )
    env = {**os.environ, "PYTHONPATH": str(faults.ROOT)}
    for what in ("file", "folder"):
        subprocess.run([sys.executable, "-c", code, what], cwd=tmp_path, env=env, timeout=60)
    assert len(names(tmp_path)) == 2
    return tmp_path


def test_what_killed_runs_left_goes_with_the_next(killed: Path) -> None:
    (killed / ".folder.b.abcdefgh.part").mkdir()  # of another target
    (killed / ".file.mine.part").write_bytes(b"")  # no name of ours
    (killed / ".file.abcdefgh.part").symlink_to(killed / "elsewhere")
    (killed / "elsewhere").write_bytes(b"y")
    write_atomically(killed / "file", b"new")
    with new_folder(killed / "folder") as part:
        (part / "x").write_bytes(b"new")
    kept = [".file.abcdefgh.part", ".file.mine.part", ".folder.b.abcdefgh.part", "elsewhere", "file", "folder"]
    assert names(killed) == kept
    assert (killed / "file").read_bytes() == (killed / "folder" / "x").read_bytes() == b"new"
    assert (killed / "elsewhere").read_bytes() == b"y"


def test_a_run_that_is_alive_keeps_what_it_writes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="folder: exists already; another run made it"), new_folder(tmp_path / "folder"):
        with new_folder(tmp_path / "folder") as part:
            assert len(names(tmp_path)) == 2
            (part / "x").write_bytes(b"first")
        assert len(names(tmp_path)) == 2  # done, and the other is still there
    assert names(tmp_path) == ["folder"]
    assert (tmp_path / "folder" / "x").read_bytes() == b"first"


def test_a_long_removal_is_told_and_may_be_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A second Ctrl-C ends the removal of millions of files; the next run does the rest."""

    def slow(folder: Path, ignore_errors: bool) -> None:
        until = time.monotonic() + 30
        while not caplog.records and time.monotonic() < until:
            time.sleep(0.01)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(files, "PATIENCE", 0)
        patched.setattr(files.shutil, "rmtree", slow)
        with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "folder") as part:
            (part / "x").write_bytes(b"x")
            raise KeyboardInterrupt
    assert "is being removed; when that is interrupted, the next run" in caplog.text
    assert names(tmp_path) == [part.name]
    with new_folder(tmp_path / "folder") as another:
        assert names(tmp_path) == [another.name] != [part.name]
    assert names(tmp_path) == ["folder"]


def test_a_leftover_taken_before_it_is_locked_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another run may see the new name in the moment before the lock, and remove it."""
    lock = files._lock
    taken: list[str] = []

    def late(handle: int) -> bool:
        if len(taken) < 2:
            taken.extend(os.listdir(tmp_path))
            for name in os.listdir(tmp_path):
                place = tmp_path / name
                place.rmdir() if place.is_dir() else place.unlink()
        return lock(handle)

    monkeypatch.setattr(files, "_lock", late)
    with new_folder(tmp_path / "folder") as part:
        (part / "x").write_bytes(b"x")
    assert names(tmp_path) == ["folder"] and taken


def test_an_interrupt_while_a_temporary_name_is_made_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(handle: int) -> bool:
        assert len(names(tmp_path)) == 1
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "_lock", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "file", b"x")
    for folder in (new_folder, files.scratch_folder):
        with pytest.raises(KeyboardInterrupt), folder(tmp_path / "folder"):
            pass
        assert names(tmp_path) == []


def test_without_locks_nothing_is_removed(killed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*anything: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    assert files.fcntl is not None
    monkeypatch.setattr(files.fcntl, "flock", none)
    write_atomically(killed / "file", b"new")
    with new_folder(killed / "folder"):
        pass
    assert len(names(killed)) == 4
    monkeypatch.setattr(files, "fcntl", None)
    write_atomically(killed / "file", b"newer")
    with new_folder(killed / "another"):
        pass
    assert (killed / "file").read_bytes() == b"newer"
    assert len(names(killed)) == 5


def test_pipes_and_links_stay_what_they_are(tmp_path: Path) -> None:
    for target in (Path(os.devnull), tmp_path / "pipe"):
        if target.name == "pipe":
            os.mkfifo(target)
            reader = os.open(target, os.O_RDONLY | os.O_NONBLOCK)
        assert CliRunner().invoke(cli, ["info", "--json", str(target)]).exit_code == 0
        assert not target.is_file()
    assert json.loads(os.read(reader, 1 << 16))["name"] == "vim_cifar10"
    assert names(tmp_path) == ["pipe"]
    (tmp_path / "link").symlink_to(tmp_path / "file")
    write_atomically(tmp_path / "link", b"x")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "file").read_bytes() == b"x"


# The cache of kernels

KERNEL = """
import sys
from intsim.kernels import cache, common
if len(sys.argv) > 1:
    cache.source_digest = lambda: sys.argv[1]
from numba import int64
@common.kernel
def FUNCTION(a):
    return a CONSTANT
print(FUNCTION(20))
print(len(FUNCTION.overloads), sum(FUNCTION._cache_hits.values()))
"""


class Kernel:
    """A module with one small kernel, run in processes of their own."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.cache = folder / "cache"
        self.write("+ 1")

    def write(self, constant: str) -> None:
        (self.folder / "small.py").write_text(KERNEL.replace("FUNCTION", "f").replace("CONSTANT", constant))

    def run(self, *arguments: str, **env: str) -> tuple[int, bool, str]:
        """The result, whether the code came from the cache, and what was said."""
        env = {**os.environ, "PYTHONPATH": str(faults.ROOT), "NUMBA_CACHE_DIR": str(self.cache), **env}
        command = [sys.executable, str(self.folder / "small.py"), *arguments]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        value, _, hits = map(int, done.stdout.split())
        return value, hits == 1, done.stderr

    def file(self) -> Path:
        (found,) = self.cache.rglob("small.f*.kernel")
        return found


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Kernel]:
    yield Kernel(tmp_path)


def test_kept_code_is_used_only_if_it_is_that_of_the_source(small: Kernel) -> None:
    assert small.run() == (21, False, "")
    assert small.run() == (21, True, "")
    small.write("+ 2")  # of the same length
    assert small.run() == (22, False, "")
    old = small.file().read_bytes()
    small.write("+ 3")
    assert small.run() == (23, False, "")
    assert small.run("other sources of kernels") == (23, False, "")
    small.file().write_bytes(old)  # as if a run was killed between Numba's index and its code
    assert small.run() == (23, False, "")
    assert small.run() == (23, True, "")


def test_damaged_code_is_compiled_anew(small: Kernel) -> None:
    small.run()
    whole = small.file().read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for damaged in (b"", whole[:-1], bytes(flipped), b"garbage"):
        small.file().write_bytes(damaged)
        assert small.run() == (21, False, "")
    assert small.run() == (21, True, "")


def test_code_of_another_function_is_not_used(small: Kernel) -> None:
    """Functions of one signature and bytecode, that differ in a constant: their files are exchanged."""
    twins = KERNEL.replace("FUNCTION", "f").replace("CONSTANT", "+ 1")
    twins = twins.replace("print(f(20))", "@common.kernel\ndef g(a):\n    return a + 2\nprint(100 * f(20) + g(20))")
    (small.folder / "small.py").write_text(twins)
    assert small.run() == (2122, False, "")
    assert small.run() == (2122, True, "")
    one, other = sorted(small.cache.rglob("*.kernel"))
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)
    assert small.run() == (2122, False, "")


def test_without_a_folder_nothing_is_kept(small: Kernel) -> None:
    small.cache.write_bytes(b"")
    (small.folder / "__pycache__").write_bytes(b"")
    value, kept, said = small.run(XDG_CACHE_HOME=str(small.cache), HOME=str(small.cache))
    assert (value, kept) == (21, False)
    assert said.startswith("compiled kernels cannot be kept, so each run compiles them: neither NUMBA_CACHE_DIR nor ")
    assert len(said.splitlines()) == 1


def test_code_that_cannot_be_kept_is_told(small: Kernel) -> None:
    small.run()
    place = small.file()
    place.unlink()
    place.mkdir()
    value, kept, said = small.run()
    assert (value, kept) == (21, False)
    assert said == (
        f"compiled kernels cannot be kept, so each run compiles them: {place}: cannot be written: Is a directory\n"
    )


AHEAD = """
import sys
from numba import types
from intsim.kernels import ahead
from intsim.kernels.conv1d import conv1d
from intsim.kernels.run import run
from intsim.kernels.scan import scan

cache, ours = scan._cache, sys.executable
arguments = (types.int64,) * 3 + (types.none,) * 4


def attempt(executable, dispatcher=run):
    sys.executable = executable
    ahead.begin(dispatcher, arguments)
    maker = cache.maker
    return maker, cache.load_overload(ahead.signature([False] * 3), scan.targetctx) is not None


assert attempt("no such program") == (None, False)
assert attempt(ours, scan) == (None, False)
if len(sys.argv) > 1:
    maker, found = attempt(sys.argv[1])
    assert maker.returncode == 1 and not found
maker, found = attempt(ours)
assert found and cache.maker is None
assert conv1d._cache.maker is maker and conv1d._cache.load_overload(ahead.signature([]), conv1d.targetctx) is not None
assert maker.wait(60) == 0
assert attempt(ours) == (None, True)
assert not scan.overloads
"""


def test_a_second_process_compiles_the_scan(tmp_path: Path) -> None:
    """Once; and if it fails, or cannot be started, there is nothing in the cache, which this process then fills."""
    failing = [found for found in (shutil.which("false"),) if found]
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", AHEAD, *failing], env=environment, cwd=faults.ROOT, check=True)
