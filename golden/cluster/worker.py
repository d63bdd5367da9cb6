"""What runs on a worker: a range, if intsim is the same there as at the client."""

from __future__ import annotations

import hashlib
import pickle
import threading
from collections import OrderedDict
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from intsim import SPEC_VERSION, __version__
from intsim.errors import UserError

if TYPE_CHECKING:
    from golden.cluster.ranges import Part
    from intsim.program import Program

KEPT = 2  # prepared Programs

Stamp = tuple[str, str, str]  # version of intsim, of SPEC, digest of the code
Answer = tuple[str, Any]  # ("done", result) or ("refused", sentence)


class Work(Protocol):
    """What is done with a range.  Hashable and picklable; nothing but the Program and the images decides a result."""

    def prepare(self, program: Program) -> Any:
        """What all ranges share on a worker: made once, used from several threads at a time."""

    def run(self, prepared: Any, part: Part) -> Any:
        """The result of a range, which travels to the client."""


def code_digest() -> str:
    """SHA-256 of the project's source files: an edited checkout has no version of its own."""
    digest = hashlib.sha256()
    for package in ("intsim", "golden", "bitexact"):
        found = find_spec(package)
        for place in found.submodule_search_locations or () if found else ():
            for file in sorted(Path(place).rglob("*.py")):
                digest.update(f"{package}/{file.relative_to(place).as_posix()}\0".encode())
                digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


STAMP: Stamp = (__version__, SPEC_VERSION, code_digest())


def carrier() -> Callable[[Stamp, bytes, bytes], Answer]:
    """The function that Dask calls.

    It is local, so that it travels by value: a scheduler needs no intsim, and a worker that has none can say so.
    """

    def intsim_range(stamp: Stamp, call: bytes, program: bytes) -> Answer:
        import socket

        from distributed import get_worker

        me = f"the worker {get_worker().address} on {socket.gethostname()}"
        here = f"intsim {stamp[0]}, SPEC {stamp[1]}, code {stamp[2][:8]}"
        try:
            from golden.cluster.worker import STAMP, perform
        except ImportError as problem:
            return "refused", f"{me} cannot import intsim's golden.cluster ({problem}), needed is {here}"
        if stamp != STAMP:
            there = f"intsim {STAMP[0]}, SPEC {STAMP[1]}, code {STAMP[2][:8]}"
            return "refused", f"{me} has {there}, needed is the client's: {here}"
        return perform(call, program)

    return intsim_range


_lock = threading.Lock()
_prepared: OrderedDict[tuple[str, Work], Any] = OrderedDict()


def perform(call: bytes, program: bytes) -> Answer:
    """Computes a range.  call: pickled (work, SHA-256 of the Program's file, part); program: that file."""
    work, digest, part = pickle.loads(call)
    try:
        return "done", work.run(prepare(work, digest, program), part)
    except UserError as problem:
        return "refused", str(problem)


def prepare(work: Work, digest: str, program: bytes) -> Any:
    """What `work` shares between ranges of this worker, made at the first of them."""
    from intsim.program_file import parse_program

    key = (digest, work)
    with _lock:
        if key not in _prepared:
            _prepared[key] = work.prepare(parse_program(program))
            while len(_prepared) > KEPT:
                _prepared.popitem(last=False)
        _prepared.move_to_end(key)
        return _prepared[key]
