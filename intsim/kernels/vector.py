# mypy: allow-untyped-calls, allow-untyped-decorators, allow-subclassing-any
"""Sixteen int32 in one value, for the two loops that decide the speed: the dot products and the scan.

`int32x16` is LLVM's <16 x i32>, written in LLVM's own portable operations: LLVM maps them to whatever vector
instructions the CPU has (AVX-512, AVX2, NEON) or to scalar ones, with the same integers.  Arithmetic wraps at 32
bits.  Arrays are one-dimensional and contiguous; `i` counts elements; nothing is checked.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic as numba_intrinsic
from numba.extending import models, register_model

LANES = 16

intrinsic: Any = numba_intrinsic  # its stub does not know what it returns


class Int32x16(types.Type):
    """Numba's name for <16 x i32>; lives only inside kernels, never in a signature."""

    def __init__(self) -> None:
        super().__init__(name="int32x16")


int32x16 = Int32x16()
I32 = ir.IntType(32)
I32X16 = ir.VectorType(I32, 16)
I16X32 = ir.VectorType(ir.IntType(16), 32)
I32X32 = ir.VectorType(I32, 32)


@register_model(Int32x16)
class _Model(models.PrimitiveModel):
    def __init__(self, manager: Any, fe_type: Any) -> None:
        super().__init__(manager, fe_type, I32X16)


def _pointer(context: Any, builder: Any, array_type: Any, array: Any, i: Any, to: Any) -> Any:
    """Pointer to element i of an array, as a pointer to `to`."""
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [i]), to.as_pointer())


def _splat(builder: Any, value: Any) -> Any:
    undefined = ir.Constant(I32X16, ir.Undefined)
    first = builder.insert_element(undefined, value, ir.Constant(I32, 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(I32X16, None))


def _loader(bits: int, extend: str | None) -> Any:
    @intrinsic
    def load(typing: Any, array: Any, i: Any) -> Any:
        def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            loaded = ir.VectorType(ir.IntType(bits), 16)
            value = builder.load(_pointer(context, builder, sig.args[0], args[0], args[1], loaded), align=bits // 8)
            return getattr(builder, extend)(value, I32X16) if extend else value

        return int32x16(array, types.intp), generate

    return load


def _storer(bits: int) -> Any:
    @intrinsic
    def store(typing: Any, array: Any, i: Any, value: Any) -> Any:
        def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            stored = ir.VectorType(ir.IntType(bits), 16)
            target = _pointer(context, builder, sig.args[0], args[0], args[1], stored)
            narrow = args[2] if bits == 32 else builder.trunc(args[2], stored)
            builder.store(narrow, target, align=bits // 8)
            return context.get_dummy_value()

        return types.void(array, types.intp, int32x16), generate

    return store


def _operation(name: str) -> Any:
    @intrinsic
    def operation(typing: Any, a: Any, b: Any) -> Any:
        def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return getattr(builder, name)(*args)

        return int32x16(int32x16, int32x16), generate

    return operation


def _choice(comparison: str) -> Any:
    @intrinsic
    def choice(typing: Any, a: Any, b: Any) -> Any:
        def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return builder.select(builder.icmp_signed(comparison, *args), *args)

        return int32x16(int32x16, int32x16), generate

    return choice


load_int32 = _loader(32, None)  # load(array, i): elements i .. i + 15
load_uint16 = _loader(16, "zext")  # the same from a uint16 array
store_int32 = _storer(32)  # store(array, i, value)
store_uint16 = _storer(16)  # the low 16 bits of each lane
add, sub, mul = _operation("add"), _operation("sub"), _operation("mul")
shl, ashr = _operation("shl"), _operation("ashr")  # shift counts 0 .. 31
bit_and, bit_or, bit_xor = _operation("and_"), _operation("or_"), _operation("xor")
minimum, maximum = _choice("<"), _choice(">")


@intrinsic
def splat(typing: Any, value: Any) -> Any:
    """All lanes the same int32 (a wider integer is cut to its low 32 bits)."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _splat(builder, args[0])

    return int32x16(types.int32), generate


@intrinsic
def splat_element(typing: Any, array: Any, i: Any) -> Any:
    """All lanes the element i of an int32 array."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _splat(builder, builder.load(_pointer(context, builder, sig.args[0], args[0], args[1], I32), align=4))

    return int32x16(array, types.intp), generate


@intrinsic
def gather(typing: Any, array: Any, indices: Any) -> Any:
    """Lane l is element indices[l] of an int32 array."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        data = context.make_array(sig.args[0])(context, builder, args[0]).data
        result = ir.Constant(I32X16, ir.Undefined)
        for lane in range(LANES):
            at = ir.Constant(I32, lane)
            value = builder.load(builder.gep(data, [builder.extract_element(args[1], at)]), align=4)
            result = builder.insert_element(result, value, at)
        return result

    return int32x16(array, int32x16), generate


@intrinsic
def total(typing: Any, vector: Any) -> Any:
    """Sum of the lanes, int32."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        function = ir.FunctionType(I32, [I32X16])
        reduce = cgutils.get_or_insert_function(builder.module, function, "llvm.vector.reduce.add.v16i32")
        return builder.call(reduce, args)

    return types.int32(int32x16), generate


@intrinsic
def add_pair_products(typing: Any, acc: Any, w: Any, wi: Any, x: Any, xi: Any) -> Any:
    """acc[l] + w[wi + 2l] * x[xi] + w[wi + 2l + 1] * x[xi + 1] for every lane l; w and x int16 arrays.

    LLVM makes it one instruction where there is one (vpdpwssd, vpmaddwd).
    """

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        acc, w, wi, x, xi = args
        weights = builder.load(_pointer(context, builder, sig.args[1], w, wi, I16X32), align=2)
        pair = builder.load(_pointer(context, builder, sig.args[3], x, xi, I32), align=2)
        inputs = builder.bitcast(_splat(builder, pair), I16X32)
        products = builder.mul(builder.sext(weights, I32X32), builder.sext(inputs, I32X32))
        undefined = ir.Constant(I32X32, ir.Undefined)
        even, odd = (
            builder.shuffle_vector(products, undefined, ir.Constant(I32X16, list(range(start, 32, 2))))
            for start in (0, 1)
        )
        return builder.add(acc, builder.add(even, odd))

    return int32x16(int32x16, w, types.intp, x, types.intp), generate
