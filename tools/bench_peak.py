"""What this machine can do at most: int8 multiply-accumulates in registers, and bytes copied; measured, not looked up.

    team = Team(2)                         # two threads, each on a CPU of its own
    peak = Multiplier()                    # the fastest instruction that the CPU has
    peak.instruction                       # "vpdpbusd 512"
    peak.run(1000, team)                   # does peak.macs(1000, team) multiply-accumulates
    Copier(1 << 17, team).run(1000)

The multiply loop has nothing but the instruction in it: independent accumulators, enough of them to hide its latency,
no loads and no stores.  A matmul cannot be faster.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import llvmlite.binding as llvm
import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

INT32 = ir.IntType(32)
Step = Callable[[ir.IRBuilder, ir.Value, ir.Value, ir.Value], ir.Value]


@dataclass(frozen=True)
class Instruction:
    """An instruction (or the sequence that stands for it): `step(builder, acc, a, b)` gives the next accumulator.

    lanes: int32 accumulators in a vector; products: int8 products added to each; chains: independent vectors.
    """

    name: str
    feature: str  # of the CPU, as LLVM calls it; "" if every CPU has it
    lanes: int
    products: int
    chains: int
    step: Step


def _call(name: str, out: ir.Type, *arguments: ir.Type) -> Callable[..., ir.Value]:
    def emit(builder: ir.IRBuilder, *values: ir.Value) -> ir.Value:
        function = builder.module.declare_intrinsic(name, (), ir.FunctionType(out, arguments))
        cast = [builder.bitcast(v, t) for v, t in zip(values, arguments, strict=True)]
        return builder.call(function, cast)

    return emit


def _dot(bits: int) -> Step:
    """vpdpbusd: acc + the sum of four products of unsigned bytes of a and signed bytes of b, in each lane."""
    vector = ir.VectorType(INT32, bits // 32)
    return _call(f"llvm.x86.avx512.vpdpbusd.{bits}", vector, vector, vector, vector)


def _pairs(builder: ir.IRBuilder, acc: ir.Value, a: ir.Value, b: ir.Value) -> ir.Value:
    """AVX2's three instructions; the accumulator is the unsigned operand, or LLVM would take two out of the loop."""
    octets, words, ints = (ir.VectorType(ir.IntType(n), 256 // n) for n in (8, 16, 32))
    pairs = _call("llvm.x86.avx2.pmadd.ub.sw", words, octets, octets)(builder, acc, b)
    ones = ir.Constant(words, [1] * 16)
    return builder.add(acc, _call("llvm.x86.avx2.pmadd.wd", ints, words, words)(builder, pairs, ones))


def _multiply(builder: ir.IRBuilder, acc: ir.Value, a: ir.Value, b: ir.Value) -> ir.Value:
    """acc * a + b in int32: what every CPU has."""
    return builder.add(builder.mul(acc, a), b)


INSTRUCTIONS = (
    Instruction("vpdpbusd 512", "avx512vnni", 16, 4, 24, _dot(512)),
    Instruction("vpdpbusd 256", "avxvnni", 8, 4, 12, _dot(256)),
    Instruction("vpmaddubsw, vpmaddwd, vpaddd 256", "avx2", 8, 4, 12, _pairs),
    Instruction("int32 multiply-add 128", "", 4, 1, 12, _multiply),
)


def available() -> list[Instruction]:
    """Those of INSTRUCTIONS that this CPU has, the fastest first."""
    features = llvm.get_host_cpu_features()
    return [i for i in INSTRUCTIONS if not i.feature or features.get(i.feature, False)]


def _splat(builder: ir.IRBuilder, value: ir.Value, lanes: int) -> ir.Value:
    vector = ir.VectorType(INT32, lanes)
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(INT32, 0))
    return builder.shuffle_vector(first, ir.Constant(vector, ir.Undefined), ir.Constant(vector, [0] * lanes))


def compiled(instruction: Instruction) -> Any:
    """loop(count, seed, a, b): `count` steps on each chain; the sum of all accumulators, wrapped to int32.

    Chain i starts at seed + i in every lane, so that no two are the same to the compiler; a and b fill the operands.
    """

    @intrinsic
    def body(context, count, seed, a, b):  # type: ignore[no-untyped-def]
        def generate(context, builder, signature, values):  # type: ignore[no-untyped-def]
            count, seed, a, b = values
            a, b = (_splat(builder, value, instruction.lanes) for value in (a, b))
            starts = []
            for i in range(instruction.chains):
                start = builder.add(seed, ir.Constant(INT32, i))
                starts.append(_splat(builder, start, instruction.lanes))
            before = builder.block
            loop, after = builder.append_basic_block("peak"), builder.append_basic_block("peak.end")
            builder.branch(loop)
            builder.position_at_end(loop)
            index = builder.phi(count.type)
            index.add_incoming(ir.Constant(count.type, 0), before)
            phis = []
            for start in starts:
                phi = builder.phi(start.type)
                phi.add_incoming(start, before)
                phis.append(phi)
            accs = [instruction.step(builder, phi, a, b) for phi in phis]
            following = builder.add(index, ir.Constant(count.type, 1))
            for phi, value in zip([index, *phis], [following, *accs], strict=True):
                phi.add_incoming(value, loop)
            builder.cbranch(builder.icmp_signed("<", following, count), loop, after)
            builder.position_at_end(after)
            total = accs[0]
            for acc in accs[1:]:
                total = builder.add(total, acc)
            lanes = [builder.extract_element(total, ir.Constant(INT32, i)) for i in range(instruction.lanes)]
            result = lanes[0]
            for lane in lanes[1:]:
                result = builder.add(result, lane)
            return result

        return types.int32(types.int64, types.int32, types.int32, types.int32), generate

    @numba.njit("int32(int64, int32, int32, int32)", nogil=True)
    def loop(count, seed, a, b):  # type: ignore[no-untyped-def]
        return body(count, seed, a, b)

    return loop


class Team:
    """Threads that start together.  Each is bound to a CPU: woken from a sleep, two may share one for milliseconds."""

    def __init__(self, threads: int):
        self.threads = threads
        cpus = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        self._pools = [
            ThreadPoolExecutor(1, initializer=_bind, initargs=(cpus[i % len(cpus)] if cpus else None,))
            for i in range(threads)
        ]

    def run(self, work: Callable[[int], Any]) -> list[Any]:
        """[work(0), work(1), ...], each in its own thread."""
        running = [pool.submit(work, i) for i, pool in enumerate(self._pools)]
        return [each.result() for each in running]


def _bind(cpu: int | None) -> None:
    """Binds the calling thread to a CPU, where the system has that."""
    if cpu is not None:
        os.sched_setaffinity(0, {cpu})


class Multiplier:
    """The loop of an instruction (default: the CPU's fastest)."""

    def __init__(self, instruction: Instruction | None = None):
        self.kind = available()[0] if instruction is None else instruction
        self.loop = compiled(self.kind)

    @property
    def instruction(self) -> str:
        return self.kind.name

    def macs(self, count: int, team: Team) -> int:
        """Multiply-accumulates of run(count, team)."""
        return count * team.threads * self.kind.chains * self.kind.lanes * self.kind.products

    def run(self, count: int, team: Team) -> None:
        """`count` (at least 1) steps on each thread."""
        team.run(lambda i: self.loop(count, i, 0x01020304, 0x01FF02FE))


@numba.njit("void(int64[::1], int64[::1], int64)", nogil=True)
def copy(source, target, times):  # type: ignore[no-untyped-def]
    """Copies `times` times; what is written depends on the turn, so that no turn can be left out."""
    for turn in range(times):
        for i in range(source.size):
            target[i] = source[i] ^ turn


class Copier:
    """The copy loop: each thread has two arrays of `size` bytes of its own."""

    def __init__(self, size: int, team: Team):
        self.team = team
        self.arrays = [(np.arange(size // 8), np.zeros(size // 8, dtype=np.int64)) for _ in range(team.threads)]

    def bytes(self, times: int) -> int:
        """Bytes read and written by run(times)."""
        return times * sum(source.nbytes + target.nbytes for source, target in self.arrays)

    def run(self, times: int) -> None:
        self.team.run(lambda i: copy(*self.arrays[i], times))
