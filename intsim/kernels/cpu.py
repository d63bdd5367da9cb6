"""Which of the kernels' paths this CPU can run, and the choice among them.

The paths differ in instructions only, never in an integer:

    amx          matrix products in tile registers (TDPBSSD), where they pay; all else as avx512vnni
    avx512vnni   8-bit dot products of 512 bits (VPDPBUSD), the scan in registers of 512 bits
    avxvnni      8-bit dot products of 256 bits; all else as avx2
    avx2         16-bit dot products of 256 bits (VPMADDWD), the scan in registers of 256 bits
    plain        what LLVM makes of portable operations, on any CPU

The environment variable INTSIM_KERNELS names one; without it the first that the CPU has is taken.  What counts is what
Numba compiles for: with NUMBA_CPU_NAME=generic only `plain` is left.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from functools import lru_cache

from numba.core.registry import cpu_target

from intsim.errors import UserError

VARIABLE = "INTSIM_KERNELS"
AVX512 = frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl"})
TILES = AVX512 | {"avx512vnni", "amx-tile", "amx-int8"}
WIDE = ("amx", "avx512vnni")  # paths that have AVX-512 and its VNNI
NARROW = ("avxvnni", "avx2")  # paths that have AVX2 and no more
NEEDS = {  # path -> features in LLVM's names, the fastest path first
    "amx": TILES,
    "avx512vnni": AVX512 | {"avx512vnni"},
    "avxvnni": frozenset({"avx2", "avxvnni"}),
    "avx2": frozenset({"avx2"}),
    "plain": frozenset(),
}
PATHS = tuple(NEEDS)


@lru_cache(maxsize=1)
def features() -> frozenset[str]:
    """Features of the CPU that Numba compiles for, in LLVM's names."""
    listed = cpu_target.target_context.codegen().magic_tuple()[2]
    return frozenset(item[1:] for item in listed.split(",") if item.startswith("+"))


@lru_cache(maxsize=1)
def tiles_allowed() -> bool:
    """Asks Linux, once, to let this process use the tile registers; whether it does."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return False
    arch_prctl, request_permission, tile_data = 158, 0x1023, 18
    try:
        return int(ctypes.CDLL(None).syscall(arch_prctl, request_permission, tile_data)) == 0
    except (OSError, AttributeError):
        return False


def has_tiles() -> bool:
    """Whether Numba compiles for a CPU with AMX; `available` says whether it may be used."""
    return TILES <= features()


def available() -> list[str]:
    """The paths that this CPU can run, the fastest first."""
    return [path for path in PATHS if NEEDS[path] <= features() and (path != "amx" or tiles_allowed())]


def choose() -> str:
    """The path that INTSIM_KERNELS names, or the fastest.  Raises UserError if there is none such."""
    wanted = os.environ.get(VARIABLE, "")
    if not wanted:
        return available()[0]
    if wanted not in available():
        raise UserError(f"{VARIABLE} is {wanted!r}; this CPU can run {', '.join(available())}")
    return wanted


def has_byte_permutation() -> bool:
    """Whether the CPU looks up 64 bytes at a time in a table of registers (AVX-512 VBMI)."""
    return AVX512 | {"avx512vbmi"} <= features()
