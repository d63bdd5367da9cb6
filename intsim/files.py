"""Writing files and folders so that they are either absent or whole: a temporary name beside the target, then a rename.

What a process is writing it holds locked (`flock`), and a lock ends with its process, however that ends.  So a
temporary name `.TARGET.xxxxxxxx.part` that nobody holds was left by a run that was killed: the next run with the same
target removes it, and does not touch that of a run which is alive.  Where a file system has no locks nothing is
removed; such a leftover is in nobody's way and may be deleted by hand.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import secrets
import shutil
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from intsim.errors import UserError

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

log = logging.getLogger(__name__)

BINARY = getattr(os, "O_BINARY", 0)  # of Windows
PATIENCE = 2  # seconds that something may be removed without a word


def write_atomically(path: Path, data: bytes) -> None:
    """Writes `data` to `path`; on any failure the old content (or nothing) is there.

    What is no plain file (a pipe, /dev/null) is written to and stays what it is; a link stays, its target is replaced.
    Raises UserError with the reason (no such folder, not writable, disk full).
    """
    handle = temporary = None
    try:
        place = Path(os.path.realpath(path))
        if place.exists() and not place.is_file():
            place.write_bytes(data)
            return
        remove_leftovers(place)
        temporary = _beside(place)
        handle = _make(temporary, folder=False)
        assert handle is not None
        with open(handle, "wb", closefd=fcntl is None) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, place)
        temporary = None
    except OSError as problem:
        raise UserError(f"{path}: cannot be written: {problem.strerror}") from None
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink()
        if handle is not None and fcntl is not None:
            os.close(handle)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that becomes `path` when the block ends well, and is removed when it does not.

    Raises UserError if `path` exists, before or after the block, or its parent is missing or not writable, or the disk
    is full.
    """
    path = Path(path)
    if os.path.lexists(path):
        raise UserError(f"{path}: exists already; name a new folder or remove it first")
    handle = temporary = None
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            remove_leftovers(path)
            temporary = _beside(path)
            handle = _make(temporary, folder=True)
        except OSError as problem:
            raise UserError(f"{path}: cannot be created: {problem.strerror}") from None
        try:
            yield temporary
            os.chmod(temporary, 0o777 & ~_umask())
            if os.path.lexists(path):  # a rename would take the place of an empty folder
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
            os.rename(temporary, path)
        except OSError as problem:
            if problem.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR) and os.path.lexists(path):
                raise UserError(f"{path}: exists already; another run made it while this one was at work") from None
            raise UserError(f"{path}: cannot be written: {problem.strerror}") from None
    finally:
        try:
            if temporary is not None and temporary.exists():
                _remove(temporary)
        finally:
            if handle is not None:
                os.close(handle)


@contextlib.contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path`, removed at the end; when this run is killed, by the next that makes `path`."""
    temporary, away, handle = _beside(path), _beside(path), None
    try:
        handle = _make(temporary, folder=True)
        yield temporary
    finally:
        try:
            with contextlib.suppress(OSError):
                os.rename(temporary, away)  # whoever knows its name adds nothing while it is removed
            _remove(away)
        finally:
            if handle is not None:
                os.close(handle)


def remove_leftovers(path: Path) -> None:
    """Removes the temporary files and folders beside `path` that runs left which were killed while they wrote it."""
    name = re.compile(rf"\.{re.escape(path.name)}\.[a-z0-9_]{{8}}\.part")
    try:
        found = [entry for entry in os.scandir(path.parent) if name.fullmatch(entry.name)]
    except OSError:  # told by whoever writes there
        return
    for entry in found:
        with contextlib.suppress(OSError):
            # neither a link nor a pipe is one of ours
            handle = os.open(entry.path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
            try:
                if not _lock(handle):
                    continue
                if stat.S_ISDIR(os.fstat(handle).st_mode):
                    log.warning("%s: a run that was killed left this; it is removed", entry.path)
                    _remove(Path(entry.path))
                elif stat.S_ISREG(os.fstat(handle).st_mode):
                    os.unlink(entry.path)
            finally:
                os.close(handle)


def _remove(folder: Path) -> None:
    """Removes a folder with all in it.  Millions of files take minutes: then it is said what else can be done."""
    told = "%s: is being removed; when that is interrupted, the next run with the same target does the rest"
    timer = threading.Timer(PATIENCE, log.warning, (told, folder))
    timer.daemon = True
    timer.start()
    try:
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        timer.cancel()


def _beside(path: Path) -> Path:
    """A temporary name beside `path`.

    It is drawn before anything is made: an interrupt at any moment finds in the caller's variable what to remove.
    """
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")


def _make(name: Path, folder: bool) -> int | None:
    """Makes an empty file or folder of a new name and locks it, if that is possible here.

    Returns the handle that holds the lock, for a file open for writing; None for a folder where there are no locks.
    """
    while True:
        if not folder:
            handle = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | BINARY, 0o600)
        else:
            os.mkdir(name, 0o700)
            if fcntl is None:
                return None
            try:
                handle = os.open(name, os.O_RDONLY)
            except FileNotFoundError:
                continue
        # another run may have taken it for a leftover before it was locked: then the name is gone
        _lock(handle)
        try:
            if os.path.samestat(os.stat(name), os.fstat(handle)):
                return handle
        except FileNotFoundError:
            pass
        os.close(handle)


def _lock(handle: int) -> bool:
    """Locks an open file or folder until the handle is closed; False if another holds it or there are no locks here."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def bytes_in(folder: Path) -> int:
    """Size of all files in a folder and its folders; unlike Path.rglob it remembers none of them."""
    return sum(os.path.getsize(os.path.join(place, name)) for place, _, names in os.walk(folder) for name in names)
