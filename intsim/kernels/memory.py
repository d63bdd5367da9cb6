# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators
"""Arrays at addresses, and what threads share: the few operations that Numba has no word for.

A kernel's arguments are one array of integers (its constants, buffers and numbers), so that all kernels have the same
signature and a whole network runs in one call.  An address is an int64; who makes one keeps the array alive.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.core import cgutils
from numba.extending import intrinsic as numba_intrinsic

from intsim.kernels.common import kernel
from intsim.kernels.vector import I32, I64, call
from intsim.program import Array

addressof = ctypes.addressof  # of every array of every run: looked up once
LINE = 64  # bytes of a line of the cache, and of a vector of 512 bits

view: Any = ctypes.c_char.from_buffer  # its stub does not know arrays
intrinsic: Any = numba_intrinsic  # its stub does not know what it returns


def address_of(array: Any) -> int:
    """Address of the first element of a contiguous array."""
    try:
        return addressof(view(array))
    except (TypeError, ValueError):  # it may not be written, or is empty; this takes four times as long
        return int(array.__array_interface__["data"][0])


def aligned(array: Array) -> Array:
    """A copy [size] of an array that begins with a line of the cache."""
    raw = np.empty(array.nbytes + LINE, dtype=np.uint8)
    at = -address_of(raw) % LINE
    copy = raw[at : at + array.nbytes].view(array.dtype)
    copy[:] = array.reshape(-1)
    return copy


@intrinsic
def pointer(typing: Any, address: Any) -> Any:
    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), generate


@kernel
def int8_at(address, n):
    """The int8 array [n] at an address; likewise the others."""
    return carray(pointer(address), (n,), np.int8)


@kernel
def uint8_at(address, n):
    return carray(pointer(address), (n,), np.uint8)


@kernel
def int16_at(address, n):
    return carray(pointer(address), (n,), np.int16)


@kernel
def uint16_at(address, n):
    return carray(pointer(address), (n,), np.uint16)


@kernel
def int32_at(address, n):
    return carray(pointer(address), (n,), np.int32)


@kernel
def int64_at(address, n):
    return carray(pointer(address), (n,), np.int64)


@intrinsic
def fetch_add(typing: Any, array: Any, i: Any, value: Any) -> Any:
    """Adds to element i of an int64 array, atomically; returns what it was."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        data = context.make_array(sig.args[0])(context, builder, args[0]).data
        return builder.atomic_rmw("add", builder.gep(data, [args[1]]), args[2], "seq_cst")

    return types.int64(array, types.intp, types.int64), generate


@intrinsic
def exchange(typing: Any, array: Any, i: Any, value: Any) -> Any:
    """Sets element i of an int64 array, atomically; returns what it was."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        data = context.make_array(sig.args[0])(context, builder, args[0]).data
        return builder.atomic_rmw("xchg", builder.gep(data, [args[1]]), args[2], "seq_cst")

    return types.int64(array, types.intp, types.int64), generate


@intrinsic
def fetch(typing: Any, array: Any, i: Any) -> Any:
    """Element i of an int64 array, atomically."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        data = context.make_array(sig.args[0])(context, builder, args[0]).data
        return builder.load_atomic(builder.gep(data, [args[1]]), "seq_cst", 8)

    return types.int64(array, types.intp), generate


@intrinsic
def give_way(typing: Any) -> Any:
    """Lets another thread run on this CPU, where the system has a call for it."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if sys.platform != "win32":
            call(builder, "sched_yield", I32)
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def fetch_ahead(typing: Any, address: Any) -> Any:
    """Asks for a line of memory to be brought into the second cache."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        read, second_cache, data = (ir.Constant(I32, number) for number in (0, 2, 1))
        where = builder.inttoptr(args[0], cgutils.voidptr_t)
        call(builder, "llvm.prefetch.p0i8", ir.VoidType(), where, read, second_cache, data)
        return context.get_dummy_value()

    return types.void(types.int64), generate


def make_lock() -> int:
    """Address of a lock of the interpreter, held; it is never freed, but may be used again when it is held again."""
    api = ctypes.pythonapi
    api.PyThread_allocate_lock.restype = ctypes.c_void_p
    api.PyThread_acquire_lock.argtypes = [ctypes.c_void_p, ctypes.c_int]
    lock = api.PyThread_allocate_lock()
    if not lock:
        raise MemoryError("there is no memory for another lock")
    api.PyThread_acquire_lock(lock, 0)
    return int(lock)


@intrinsic
def acquire(typing: Any, lock: Any) -> Any:
    """Waits, asleep, until a lock (see make_lock) is released, and holds it; the interpreter is not needed for it."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        lock = builder.inttoptr(args[0], cgutils.voidptr_t)
        call(builder, "PyThread_acquire_lock", I32, lock, ir.Constant(I32, 1))
        return context.get_dummy_value()

    return types.void(types.int64), generate


@intrinsic
def release(typing: Any, lock: Any) -> Any:
    """Releases a lock that is held, by whichever thread, and wakes the one that waits for it."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        call(builder, "PyThread_release_lock", ir.VoidType(), builder.inttoptr(args[0], cgutils.voidptr_t))
        return context.get_dummy_value()

    return types.void(types.int64), generate


@intrinsic
def current_cpu(typing: Any) -> Any:
    """The CPU that this thread is on; -1 where the system does not say."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if sys.platform != "linux":
            return ir.Constant(I64, -1)
        return builder.sext(call(builder, "sched_getcpu", I32), I64)

    return types.int64(), generate


@intrinsic
def stay_on(typing: Any, thread: Any, cpus: Any, i: Any, words: Any) -> Any:
    """Lets a thread run only on the CPUs whose bits are set in `words` elements, from i on, of an int64 array.

    thread: the system's number of it; 0: the one that calls.
    """

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if sys.platform == "linux":
            data = context.make_array(sig.args[1])(context, builder, args[1]).data
            address = builder.ptrtoint(builder.gep(data, [args[2]]), I64)
            size = builder.mul(args[3], ir.Constant(I64, 8))
            call(builder, "sched_setaffinity", I32, builder.trunc(args[0], I32), size, address)
        return context.get_dummy_value()

    return types.void(types.int64, cpus, types.intp, types.int64), generate
