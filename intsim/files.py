"""Writing files so that they are either absent or whole: a temporary name beside the target, then a rename."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from intsim.errors import UserError


def write_atomically(path: Path, data: bytes) -> None:
    """Writes `data` to `path`; on any failure the old content (or nothing) is there.

    Raises UserError with the reason (no such folder, not writable, disk full).
    """
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
        temporary = None
    except OSError as problem:
        raise UserError(f"{path}: cannot be written: {problem.strerror}") from None
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that becomes `path` when the block ends well, and is removed when it does not.

    Raises UserError if `path` exists, or its parent is missing or not writable, or the disk is full.
    """
    path = Path(path)
    if path.exists() or path.is_symlink():
        raise UserError(f"{path}: exists already; name a new folder or remove it first")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
    except OSError as problem:
        raise UserError(f"{path}: cannot be created: {problem.strerror}") from None
    try:
        yield temporary
        os.chmod(temporary, 0o777 & ~_umask())
        os.rename(temporary, path)
    except OSError as problem:
        raise UserError(f"{path}: cannot be written: {problem.strerror}") from None
    finally:
        if temporary.exists():
            shutil.rmtree(temporary, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
