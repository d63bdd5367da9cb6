# mypy: allow-untyped-defs, allow-untyped-calls, allow-subclassing-any
"""Compiled kernels on disk, so that only the first run on a machine compiles.

The folder is the one that Numba chooses: NUMBA_CACHE_DIR, else `__pycache__` beside the source, else the user's cache.
The files are not Numba's, which trusts what it finds: a damaged one ends the run or runs damaged code, and as its index
and its code are two files, a process killed between them (or two at once) leaves an index that gives one kernel the
code of another.  Here each compiled kernel is one file, which holds what it was made from and a hash of all of it.
Whatever is not exactly what is looked for is compiled anew and replaced; what cannot be written is not kept, which is
told once.
"""

from __future__ import annotations

import glob
import hashlib
import logging
import pickle
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import llvmlite
import numba
from numba.core.caching import FunctionCache, NullCache
from numba.core.runtime import rtsys
from numba.core.serialize import dumps

from intsim.errors import UserError
from intsim.files import write_atomically

log = logging.getLogger(__name__)

ENDING = "kernel"
HASH_BYTES = hashlib.sha256().digest_size
PATIENCE = 300  # seconds that another process has for a kernel
LOOK = 0.05  # seconds from look to look whether it is there


def cache_for(function: Callable[..., Any]) -> Any:
    """The cache of a function that Numba compiles."""
    try:
        return KernelCache(function)
    except (RuntimeError, OSError):  # Numba found no folder
        return NoCache()


@lru_cache(maxsize=1)
def source_digest() -> str:
    """SHA-256 of the source of this folder."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


class KernelCache(FunctionCache):
    """The compiled versions of one function, a file for each signature and CPU: SHA-256, then pickled (key, code)."""

    maker: subprocess.Popen[bytes] | None = None  # compiles this function: who looks for it waits for what it makes

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The compiled function, or None: there is none, or it is damaged or of other sources or versions."""
        # what compiled code calls; Numba's own cache refreshes the context, which takes as long as all else of a start
        rtsys.initialize(target_context)
        key = self._index_key(sig, target_context.codegen())
        if self.maker is None:
            return self._load(key, target_context)
        maker, self.maker = self.maker, None
        latest = time.monotonic() + PATIENCE
        while True:
            ended = maker.poll() is not None  # asked first: what it has made is there then
            found = self._load(key, target_context)
            if found is not None or ended:
                return found
            if time.monotonic() > latest:
                maker.kill()
            time.sleep(LOOK)

    def _load(self, key: tuple[Any, ...], target_context: Any) -> Any:
        try:
            data = self._place(key).read_bytes()
            if not self._enabled or hashlib.sha256(data[HASH_BYTES:]).digest() != data[:HASH_BYTES]:
                return None
            found, code = pickle.loads(data[HASH_BYTES:])
            return self._impl.rebuild(target_context, code) if found == key else None
        except Exception:  # of whatever kind: compiling is always right
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keeps a compiled function, if it can be kept."""
        if not self._enabled or not self._impl.check_cachable(data):
            return
        key = self._index_key(sig, data.codegen)
        content = dumps((key, self._impl.reduce(data)))
        try:
            self._impl.locator.ensure_cache_path()
            write_atomically(self._place(key), hashlib.sha256(content).digest() + content)
        except OSError as problem:
            tell_unkept(f"{self.cache_path}: {problem.strerror}")
        except UserError as problem:
            tell_unkept(str(problem))

    def flush(self) -> None:
        for path in Path(self.cache_path).glob(f"{glob.escape(self._impl.filename_base)}.*.{ENDING}"):
            with suppress(OSError):
                path.unlink()

    def _index_key(self, sig: Any, codegen: Any) -> tuple[Any, ...]:
        """Everything that the code depends on; Numba's own key has only the bytecode of the function itself.

        The name is among it: `a + 1` and `a + 2` have one bytecode, and a file may come to lie under another's name.
        """
        sources = (self._impl.filename_base, self._impl.locator.get_source_stamp(), source_digest())
        return (*super()._index_key(sig, codegen), numba.__version__, llvmlite.__version__, *sources)

    def _place(self, key: tuple[Any, ...]) -> Path:
        """The file for a signature and CPU; other sources and versions write over it."""
        name = hashlib.sha256(repr(key[:2]).encode()).hexdigest()[:16]
        return Path(self.cache_path, f"{self._impl.filename_base}.{name}.{ENDING}")


class NoCache(NullCache):
    """Keeps nothing, and says so when something is compiled."""

    def save_overload(self, sig: Any, data: Any) -> None:
        tell_unkept("neither NUMBA_CACHE_DIR nor the package nor the user's cache is a folder that can be written")


_told: list[str] = []


def tell_unkept(reason: str) -> None:
    """Warns once in a process that the next one will compile again."""
    if not _told:
        _told.append(reason)
        log.warning("compiled kernels cannot be kept, so each run compiles them: %s", reason)
