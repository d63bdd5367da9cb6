"""Some kernels compiled by a second process, while this one compiles the others: a first run waits half as long.

Numba compiles one function at a time in a process.  What passes between the two is the cache on disk: this process
looks there for such a kernel when it comes to it, and waits for the other one to make it.  If that has failed, it
compiles the kernel itself, as it does where there is no cache or no other CPU.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from numba import types

from intsim.kernels.cache import KernelCache
from intsim.kernels.conv1d import conv1d
from intsim.kernels.run import run
from intsim.kernels.scan import scan

METHODS = 3  # last arguments of the scan, and of `run`
CODE = "import sys; sys.path.insert(0, sys.argv[1]); from intsim.kernels import ahead; ahead.compile_some({})"


def begin(dispatcher: Any, arguments: tuple[Any, ...]) -> None:
    """To be called when Numba begins to compile a function for types of arguments (its event `numba:compile`)."""
    cache, caches = scan._cache, [function._cache for function, _ in kernels([])]
    if dispatcher is not run or scan.overloads or not all(isinstance(some, KernelCache) for some in caches):
        return
    methods = [kind != types.none for kind in arguments[-METHODS:]]
    if cache.maker is not None or not os.access(cache.cache_path, os.W_OK):
        return
    if cache.load_overload(signature(methods), scan.targetctx) is not None:
        return
    command = [sys.executable, "-c", CODE.format(methods), str(Path(__file__).parents[2])]
    try:
        nothing = subprocess.DEVNULL
        maker = subprocess.Popen(command, stdin=nothing, stdout=nothing, stderr=nothing)
    except OSError:  # there is no such interpreter
        return
    for some in caches:
        some.maker = maker


def kernels(methods: list[bool]) -> list[tuple[Any, tuple[Any, ...]]]:
    """What the second process compiles, half of all, with the types of the arguments that `run` gives, in its order."""
    return [(conv1d, signature([])), (scan, signature(methods))]


def compile_some(methods: list[bool]) -> None:
    """Compiles these, and keeps them in the cache."""
    for function, types_ in kernels(methods):
        function.compile(types_)


def signature(methods: list[bool]) -> tuple[Any, ...]:
    """The types of a kernel's arguments; methods: for each of the scan's last, whether a scan may need that kernel."""
    kinds = (types.int64 if needed else types.none for needed in methods)
    return (types.int64[::1], types.int64, types.int64, types.int64, *kinds)
