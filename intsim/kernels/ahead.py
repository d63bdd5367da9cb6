"""The scan compiled by a second process, while this one compiles the other kernels: a first run waits half as long.

Numba compiles one function at a time in a process.  What passes between the two is the cache on disk: this process
looks there for the scan when it comes to it, and waits for the other one first.  If that has failed, it compiles the
scan itself, as it does where there is no cache or no other CPU.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from numba import types

from intsim.kernels.cache import KernelCache
from intsim.kernels.run import run
from intsim.kernels.scan import scan

METHODS = 3  # last arguments of the scan, and of `run`
CODE = "import sys; sys.path.insert(0, sys.argv[1]); from intsim.kernels import ahead; ahead.compile_scan({})"


def begin(dispatcher: Any, arguments: tuple[Any, ...]) -> None:
    """To be called when Numba begins to compile a function for types of arguments (its event `numba:compile`)."""
    cache = scan._cache
    if dispatcher is not run or scan.overloads or not isinstance(cache, KernelCache) or cache.maker is not None:
        return
    methods = [kind != types.none for kind in arguments[-METHODS:]]
    if not os.access(cache.cache_path, os.W_OK) or cache.load_overload(signature(methods), scan.targetctx) is not None:
        return
    command = [sys.executable, "-c", CODE.format(methods), str(Path(__file__).parents[2])]
    try:
        nothing = subprocess.DEVNULL
        cache.maker = subprocess.Popen(command, stdin=nothing, stdout=nothing, stderr=nothing)
    except OSError:  # there is no such interpreter
        pass


def compile_scan(methods: list[bool]) -> None:
    """Compiles the scan as `run` calls it, and keeps it in the cache."""
    scan.compile(signature(methods))


def signature(methods: list[bool]) -> tuple[Any, ...]:
    """The types of the scan's arguments; methods: for each of the last, whether a scan may need that kernel."""
    kinds = (types.int64 if needed else types.none for needed in methods)
    return (types.int64[::1], types.int64, types.int64, types.int64, *kinds)
