# mypy: allow-untyped-calls, allow-untyped-decorators, allow-subclassing-any
"""Sixteen int32 in one value, for the loops that decide the speed.

`int32x16` is LLVM's <16 x i32>.  Most operations are LLVM's own portable ones: LLVM maps them to whatever vector
instructions the CPU has (AVX-512, AVX2, NEON) or to scalar ones, with the same integers.  Those of the second half
name an instruction of AVX-512, and some of them one of AVX2, which each half of a value takes where there is no
AVX-512; on a CPU without either they are compiled to nothing, and no path that uses them may run
(`intsim.kernels.cpu`).  Arithmetic wraps at 32 bits.  Arrays are one-dimensional and contiguous; `i` counts elements;
nothing is checked.
"""

from __future__ import annotations

from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic as numba_intrinsic
from numba.extending import models, register_model

from intsim.kernels import cpu

LANES = 16

intrinsic: Any = numba_intrinsic  # its stub does not know what it returns


class Int32x16(types.Type):
    """Numba's name for <16 x i32>; lives only inside kernels, never in a signature."""

    def __init__(self) -> None:
        super().__init__(name="int32x16")


int32x16 = Int32x16()

# LLVM reads the assembly of `add_pairs` whenever it makes code of it, also of code that comes from a cache.
binding.initialize_native_asmparser()

I1 = ir.IntType(1)
I8 = ir.IntType(8)
I16 = ir.IntType(16)
I32 = ir.IntType(32)
I64 = ir.IntType(64)
I32X16 = ir.VectorType(I32, 16)
I16X32 = ir.VectorType(I16, 32)
I8X64 = ir.VectorType(I8, 64)
I32X8 = ir.VectorType(I32, 8)
I16X16 = ir.VectorType(I16, 16)
I8X32 = ir.VectorType(I8, 32)


@register_model(Int32x16)
class _Model(models.PrimitiveModel):
    def __init__(self, manager: Any, fe_type: Any) -> None:
        super().__init__(manager, fe_type, I32X16)


def _pointer(context: Any, builder: Any, array_type: Any, array: Any, i: Any, to: Any) -> Any:
    """Pointer to element i of an array, as a pointer to `to`."""
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [i]), to.as_pointer())


def splat_value(builder: Any, value: Any, vector: Any = I32X16) -> Any:
    """LLVM's idiom for a vector with the same value in every lane."""
    undefined = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(undefined, value, ir.Constant(I32, 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(I32, vector.count), None))


def call(builder: Any, name: str, result: Any, *args: Any) -> Any:
    """Calls an LLVM intrinsic, or a function of the process."""
    function = ir.FunctionType(result, [a.type for a in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, function, name), args)


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


def _some_storer(bits: int) -> Any:
    @intrinsic
    def store(typing: Any, array: Any, i: Any, n: Any, value: Any) -> Any:
        def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            stored = ir.VectorType(ir.IntType(bits), 16)
            target = _pointer(context, builder, sig.args[0], args[0], args[1], stored)
            narrow = args[3] if bits == 32 else builder.trunc(args[3], stored)
            lane = ir.Constant(I32X16, list(range(16)))
            mask = builder.icmp_signed("<", lane, splat_value(builder, builder.trunc(args[2], I32)))
            align = ir.Constant(I32, bits // 8)
            name = f"llvm.masked.store.v16i{bits}.p0"
            call(builder, name, ir.VoidType(), narrow, target, align, mask)
            return context.get_dummy_value()

        return types.void(array, types.intp, types.intp, int32x16), generate

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


@intrinsic
def load_bytes(typing: Any, array: Any, i: Any) -> Any:
    """The 64 bytes i .. i + 63 of an array of bytes, four to a lane."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.load(_pointer(context, builder, sig.args[0], args[0], args[1], I32X16), align=1)

    return int32x16(array, types.intp), generate


@intrinsic
def store_bytes(typing: Any, array: Any, i: Any, value: Any) -> Any:
    """Lanes as the 64 bytes i .. i + 63 of an array of bytes."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.store(args[2], _pointer(context, builder, sig.args[0], args[0], args[1], I32X16), align=1)
        return context.get_dummy_value()

    return types.void(array, types.intp, int32x16), generate


@intrinsic
def load_quarters(typing: Any, address: Any) -> Any:
    """The 16 bytes at an address: in each quarter of four lanes its own four bytes, 4 times."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        four = ir.VectorType(I32, 4)
        value = builder.load(builder.inttoptr(args[0], four.as_pointer()), align=1)
        return builder.shuffle_vector(value, value, ir.Constant(I32X16, [i // 4 for i in range(16)]))

    return int32x16(types.int64), generate


load_int32 = _loader(32, None)  # load(array, i): elements i .. i + 15
load_uint16 = _loader(16, "zext")  # the same from a uint16 array
load_int8 = _loader(8, "sext")
load_uint8 = _loader(8, "zext")
store_int32 = _storer(32)  # store(array, i, value)
store_int16 = _storer(16)  # the low 16 bits of each lane
store_int8 = _storer(8)
store_some_int32 = _some_storer(32)  # store(array, i, n, value): the first n lanes
store_some_int16 = _some_storer(16)
store_some_int8 = _some_storer(8)
add, sub, mul = _operation("add"), _operation("sub"), _operation("mul")
shl, ashr, lshr = _operation("shl"), _operation("ashr"), _operation("lshr")  # shift counts 0 .. 31
bit_and, bit_or, bit_xor = _operation("and_"), _operation("or_"), _operation("xor")
minimum, maximum = _choice("<"), _choice(">")


@intrinsic
def splat(typing: Any, value: Any) -> Any:
    """All lanes the same int32 (a wider integer is cut to its low 32 bits)."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return splat_value(builder, args[0])

    return int32x16(types.int32), generate


@intrinsic
def splat_element(typing: Any, array: Any, i: Any) -> Any:
    """All lanes the element i of an int32 array."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = _pointer(context, builder, sig.args[0], args[0], args[1], I32)
        return splat_value(builder, builder.load(pointer, align=4))

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
def scaled(typing: Any, a: Any, factor: Any, half: Any, shift: Any) -> Any:
    """(a * factor + half) >> shift in 64 bits, the low 32 of each lane; factor of 32 bits, shift 0 .. 63."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        wide = ir.VectorType(I64, LANES)
        a, factor, half, shift = args
        factor = builder.sext(builder.trunc(factor, I32), I64)  # so that LLVM multiplies 32 by 32 bits
        factor, half, shift = (splat_value(builder, x, wide) for x in (factor, half, shift))
        product = builder.mul(builder.sext(a, wide), factor)
        return builder.trunc(builder.ashr(builder.add(product, half), shift), I32X16)

    return int32x16(int32x16, types.int64, types.int64, types.int64), generate


@intrinsic
def total(typing: Any, vector: Any) -> Any:
    """Sum of the lanes, int32."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return call(builder, "llvm.vector.reduce.add.v16i32", I32, args[0])

    return types.int32(int32x16), generate


# --- instructions of AVX-512, for the path avx512vnni, and of AVX2 ---


def _instruction(emit: Any, needed: str = "avx512vnni") -> Any:
    """An intrinsic of one to three int32x16 that emits instructions of a path: `avx512vnni` or, for both, `avx2`."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return emit(builder, *args) if needed in cpu.available() else ir.Constant(I32X16, ir.Undefined)

    count = emit.__code__.co_argcount - 1

    if count == 1:

        @intrinsic
        def instruction(typing: Any, a: Any) -> Any:
            return int32x16(int32x16), generate

    elif count == 2:

        @intrinsic
        def instruction(typing: Any, a: Any, b: Any) -> Any:
            return int32x16(int32x16, int32x16), generate

    else:

        @intrinsic
        def instruction(typing: Any, a: Any, b: Any, c: Any) -> Any:
            return int32x16(int32x16, int32x16, int32x16), generate

    return instruction


def halves_of(builder: Any, value: Any) -> list[Any]:
    """The two halves of a vector, as LLVM's <8 x i32>."""
    both = (ir.Constant(I32X8, list(range(start, start + 8))) for start in (0, 8))
    return [builder.shuffle_vector(value, value, half) for half in both]


def joined(builder: Any, low: Any, high: Any) -> Any:
    """A vector of two halves."""
    low, high = (builder.bitcast(half, I32X8) for half in (low, high))
    return builder.shuffle_vector(low, high, ir.Constant(I32X16, list(range(16))))


def _in_halves(builder: Any, name: str, result: Any, pieces: Any, *args: Any) -> Any:
    """An instruction of 256 bits, by LLVM's name of it, on each half of the arguments as vectors of `pieces`."""
    halves = zip(*(halves_of(builder, a) for a in args), strict=True)
    found = (call(builder, name, result, *(builder.bitcast(half, pieces) for half in both)) for both in halves)
    return joined(builder, *found)


def _is_wide() -> bool:
    return "avx512vnni" in cpu.available()


def add_pairs_value(builder: Any, acc: Any, a: Any, b: Any) -> Any:
    if not _is_wide():
        return builder.add(acc, _in_halves(builder, "llvm.x86.avx2.pmadd.wd", I32X8, I16X16, a, b))
    # as assembly, because LLVM takes the intrinsic apart into a product and an addition
    function = ir.FunctionType(I32X16, [I32X16] * 3)
    return builder.asm(function, "vpdpwssd $3, $2, $0", "=v,0,v,v", [acc, a, b], False)


def add_pairs_at(builder: Any, acc: Any, a: Any, address: Any, offset: int = 0, spread: bool = False) -> Any:
    """add_pairs_value with b from memory: the 64 bytes at address + offset, or four of them in all lanes (`spread`)."""
    # as assembly, because of a loaded value LLVM makes an instruction of its own
    function = ir.FunctionType(I32X16, [I32X16, I32X16, I64])
    text = f"vpdpwssd {offset}($3){'{1to16}' if spread else ''}, $2, $0"
    return builder.asm(function, text, "=v,0,v,r,~{memory}", [acc, a, address], False)


def pack_bytes_value(builder: Any, a: Any, b: Any) -> Any:
    if not _is_wide():
        return _in_halves(builder, "llvm.x86.avx2.packsswb", I8X32, I16X16, a, b)
    packed = call(builder, "llvm.x86.avx512.packsswb.512", I8X64, *(builder.bitcast(v, I16X32) for v in (a, b)))
    return builder.bitcast(packed, I32X16)


def pack_words_value(builder: Any, a: Any, b: Any) -> Any:
    if not _is_wide():
        return _in_halves(builder, "llvm.x86.avx2.packssdw", I16X16, I32X8, a, b)
    return builder.bitcast(call(builder, "llvm.x86.avx512.packssdw.512", I16X32, a, b), I32X16)


def unpack_value(builder: Any, bits: int, half: int, a: Any, b: Any) -> Any:
    """Interleaves, in each quarter, the lower (0) or upper (1) half of a and b by pieces of `bits` bits."""
    count = 128 // bits  # in a quarter
    pieces = ir.VectorType(ir.IntType(bits), 4 * count)
    firsts = [count * q + half * count // 2 + i for q in range(4) for i in range(count // 2)]
    order = [place for first in firsts for place in (first, 4 * count + first)]
    mask = ir.Constant(ir.VectorType(I32, len(order)), order)
    return builder.bitcast(builder.shuffle_vector(*(builder.bitcast(v, pieces) for v in (a, b)), mask), I32X16)


def _unpack(bits: int, half: int) -> Any:
    def unpack(builder: Any, a: Any, b: Any) -> Any:
        return unpack_value(builder, bits, half, a, b)

    return unpack


def _transpose_quarters(builder: Any, a: Any) -> Any:
    return builder.shuffle_vector(a, a, ir.Constant(I32X16, [i % 4 * 4 + i // 4 for i in range(16)]))


def clamp_value(builder: Any, x: Any, low: Any, high: Any) -> Any:
    """Elements clamped to low .. high, vectors of the same type."""
    x = builder.select(builder.icmp_signed("<", x, high), x, high)
    return builder.select(builder.icmp_signed(">", x, low), x, low)


def clamp_pieces(builder: Any, bits: int, value: Any, low: Any, high: Any) -> Any:
    """Pieces of `bits` bits clamped to the low bits of low .. high."""
    kind = ir.IntType(bits)
    pieces = ir.VectorType(kind, 512 // bits)
    limits = (splat_value(builder, builder.trunc(limit, kind), pieces) for limit in (low, high))
    return builder.bitcast(clamp_value(builder, builder.bitcast(value, pieces), *limits), I32X16)


@intrinsic
def clamp_bytes(typing: Any, a: Any, low: Any, high: Any) -> Any:
    """Signed bytes clamped to low .. high."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return clamp_pieces(builder, 8, *args)

    return int32x16(int32x16, types.int64, types.int64), generate


def add_byte_products_value(builder: Any, acc: Any, a: Any, b: Any) -> Any:
    return call(builder, "llvm.x86.avx512.vpdpbusd.512", I32X16, acc, a, b)


def shift_left_value(builder: Any, a: Any, counts: Any) -> Any:
    if not _is_wide():
        return _in_halves(builder, "llvm.x86.avx2.psllv.d.256", I32X8, I32X8, a, counts)
    # for the same count in all lanes LLVM takes the shift by a scalar, two instructions more
    return call(builder, "llvm.x86.avx512.psllv.d.512", I32X16, a, counts)


def shift_right_value(builder: Any, a: Any, counts: Any) -> Any:
    if not _is_wide():
        return _in_halves(builder, "llvm.x86.avx2.psrav.d.256", I32X8, I32X8, a, counts)
    return call(builder, "llvm.x86.avx512.psrav.d.512", I32X16, a, counts)


# (acc, a, b): acc + a.low * b.low + a.high * b.high, of the signed 16-bit halves of each lane
add_pairs = _instruction(add_pairs_value, "avx2")
# (acc, a, b): acc + the four products of an unsigned byte of a and a signed byte of b
add_byte_products = _instruction(add_byte_products_value)
# (a, b): within each quarter of four lanes, the lanes of a and then of b, saturated to 16 bits; see `pack_bytes`
pack_words = _instruction(pack_words_value, "avx2")
# the same from 16 to 8 bits: pack_bytes(pack_words(a, b), pack_words(c, d)) has in quarter q the bytes
# a[4q .. 4q+3], b[4q ..], c[4q ..], d[4q ..]
pack_bytes = _instruction(pack_bytes_value, "avx2")
# (a, b): bytes or words interleaved, of the lower or upper half of each quarter
unpack_low_bytes, unpack_high_bytes = _instruction(_unpack(8, 0)), _instruction(_unpack(8, 1))
unpack_low_words, unpack_high_words = _instruction(_unpack(16, 0)), _instruction(_unpack(16, 1))
# (a): lane 4q + i to 4i + q; puts the bytes of pack_bytes(pack_words(a, b), pack_words(c, d)) in the order a, b, c, d
transpose_quarters = _instruction(_transpose_quarters, "avx2")
# (a, counts): a << counts, any count: nothing is left from 32 on
shift_left = _instruction(shift_left_value, "avx2")
# (a, counts): a >> counts, arithmetic, any count: all bits are the sign from 32 on
shift_right = _instruction(shift_right_value, "avx2")


# --- lanes as two words of 16 bits ---


def _of_words(name: str) -> Any:
    """An instruction on two vectors of words, by LLVM's name of it."""

    def emit(builder: Any, a: Any, b: Any) -> Any:
        found = call(builder, name, I16X32, *(builder.bitcast(x, I16X32) for x in (a, b)))
        return builder.bitcast(found, I32X16)

    return emit


def _word_operation(name: str) -> Any:
    def operation(builder: Any, a: Any, b: Any) -> Any:
        result = getattr(builder, name)(*(builder.bitcast(x, I16X32) for x in (a, b)))
        return builder.bitcast(result, I32X16)

    return _instruction(operation)


def _average(bits: int) -> Any:
    # as assembly, because LLVM takes an average with a constant apart
    def average(builder: Any, a: Any, b: Any) -> Any:
        text = f"vpavg{'b' if bits == 8 else 'w'} $2, $1, $0"
        return builder.asm(ir.FunctionType(I32X16, [I32X16] * 2), text, "=v,v,v", [a, b], False)

    return average


add_words, sub_words, mul_words = (_word_operation(name) for name in ("add", "sub", "mul"))
average_bytes_value, _average_words = _average(8), _average(16)
shift_words_right_value = _of_words("llvm.x86.avx512.psrlv.w.512")
# (a, b): the upper 16 bits of the products, of unsigned words
mul_high_words = _instruction(_of_words("llvm.x86.avx512.pmulhu.w.512"))
# (a, b): (a + b + 1) >> 1, of unsigned words
average_words = _instruction(_average_words)
# (a, counts): shifts of unsigned words by any count; nothing is left from 16 on
shl_words = _instruction(_of_words("llvm.x86.avx512.psllv.w.512"))
shr_words = _instruction(shift_words_right_value)


def _splat_pieces(bits: int) -> Any:
    @intrinsic
    def splat_pieces(typing: Any, value: Any) -> Any:
        def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            kind = ir.IntType(bits)
            pieces = splat_value(builder, builder.trunc(args[0], kind), ir.VectorType(kind, 512 // bits))
            return builder.bitcast(pieces, I32X16)

        return int32x16(types.int64), generate

    return splat_pieces


splat_bytes, splat_words = _splat_pieces(8), _splat_pieces(16)  # the low bits of an int64 in every byte or word


@intrinsic
def sub_words_where(typing: Any, key: Any, a: Any, b: Any, other: Any) -> Any:
    """The words of a - b where the word of `key` is not 0, of `other` elsewhere."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if "avx512vnni" not in cpu.available():
            return args[3]
        key, a, b, other = args
        chosen = builder.icmp_signed("!=", builder.bitcast(key, I16X32), ir.Constant(I16X32, None))
        # as assembly, because LLVM subtracts first and chooses then
        function = ir.FunctionType(I32X16, [I32X16] * 3 + [I32])
        text, constraints = "vpsubw $3, $2, $0 {$4}", "=v,0,v,v,^Yk"
        return builder.asm(function, text, constraints, [other, a, b, builder.bitcast(chosen, I32)], False)

    return int32x16(*[int32x16] * 4), generate


@intrinsic
def splat_two(typing: Any, array: Any, i: Any) -> Any:
    """The elements i and i + 1 of an int32 array, by turns."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = _pointer(context, builder, sig.args[0], args[0], args[1], I64)
        both = splat_value(builder, builder.load(pointer, align=4), ir.VectorType(I64, 8))
        return builder.bitcast(both, I32X16)

    return int32x16(array, types.intp), generate


def _words_of(order: list[int]) -> Any:
    """Each quarter's words in the given order."""

    def emit(builder: Any, a: Any) -> Any:
        words = builder.bitcast(a, I16X32)
        whole = ir.Constant(ir.VectorType(I32, 32), [8 * q + i for q in range(4) for i in order])
        return builder.bitcast(builder.shuffle_vector(words, words, whole), I32X16)

    return _instruction(emit)


# (a): the lower word of each lane in both its halves
twice = _words_of([0, 0, 2, 2, 4, 4, 6, 6])
# (a): in each quarter the lanes 0, 2 (or 1, 3), each of their words twice
even_lanes_twice, odd_lanes_twice = _words_of([0, 0, 1, 1, 4, 4, 5, 5]), _words_of([2, 2, 3, 3, 6, 6, 7, 7])
# (a): in each quarter the lanes 0, 0, 1, 1
low_lanes_twice = _words_of([0, 1, 0, 1, 2, 3, 2, 3])


def _element(bits: int, extend: str) -> Any:
    @intrinsic
    def element(typing: Any, array: Any, i: Any) -> Any:
        def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            pointer = _pointer(context, builder, sig.args[0], args[0], args[1], ir.IntType(bits))
            return getattr(builder, extend)(builder.load(pointer, align=4), I64)

        return types.int64(array, types.intp), generate

    return element


# (array, i): the element i of an int32 array as int64, and its lowest byte, not negative; no negative i is looked for
element, low_byte = _element(32, "sext"), _element(8, "zext")


@intrinsic
def look_up_128_bytes(typing: Any, low: Any, high: Any, index: Any) -> Any:
    """Each byte is the one of the 64 of `low` and the 64 of `high` that the byte of `index` says, mod 128.

    Needs AVX-512 VBMI.
    """

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if not cpu.has_byte_permutation():
            return args[2]
        low, high, index = (builder.bitcast(a, I8X64) for a in args)
        found = call(builder, "llvm.x86.avx512.vpermi2var.qi.512", I8X64, low, index, high)
        return builder.bitcast(found, I32X16)

    return int32x16(int32x16, int32x16, int32x16), generate


@intrinsic
def look_up_128(typing: Any, table: Any, indices: Any) -> Any:
    """Lane l is element indices[l] mod 128 of an int32 array [128]."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if "avx512vnni" not in cpu.available():
            return ir.Constant(I32X16, ir.Undefined)
        data = builder.bitcast(context.make_array(sig.args[0])(context, builder, args[0]).data, I32X16.as_pointer())
        parts = [builder.load(builder.gep(data, [ir.Constant(I64, i)]), align=4) for i in range(8)]
        index = args[1]
        for bit in (5, 6):
            if bit == 5:
                name = "llvm.x86.avx512.vpermi2var.d.512"
                parts = [call(builder, name, I32X16, a, index, b) for a, b in zip(parts[::2], parts[1::2], strict=True)]
            mask = splat_value(builder, ir.Constant(I32, 1 << bit))
            zero = ir.Constant(I32X16, None)
            upper = builder.icmp_signed("!=", builder.and_(index, mask), zero)
            parts = [builder.select(upper, b, a) for a, b in zip(parts[::2], parts[1::2], strict=True)]
        return parts[0]

    return int32x16(table, int32x16), generate


@intrinsic
def bit_or_where(typing: Any, x: Any, keys: Any, key: Any, bits: Any) -> Any:
    """x | bits in the lanes whose key is `key` (int64), x in the others."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        x, keys, key, bits = args
        chosen = builder.icmp_signed("==", keys, splat_value(builder, builder.trunc(key, I32)))
        return builder.select(chosen, builder.or_(x, bits), x)

    return int32x16(x, keys, types.int64, bits), generate


@intrinsic
def list_bits(typing: Any, bits: Any, first: Any, out: Any, j: Any) -> Any:
    """Stores first + l for each bit l < 16 that is set in `bits`, in both halves of out[j ..] int32; returns how many.

    first + 15 < 2^15; 16 elements are written.
    """

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if "avx512vnni" not in cpu.available():
            return ir.Constant(I64, 0)
        bits, first, out, j = args
        low = builder.trunc(bits, I16)
        found = builder.bitcast(low, ir.VectorType(I1, 16))
        both = builder.mul(builder.trunc(first, I32), I32(65537))
        numbers = builder.add(splat_value(builder, both), ir.Constant(I32X16, [65537 * lane for lane in range(16)]))
        # in a register first: to memory it is a slow instruction
        name, zero = "llvm.x86.avx512.mask.compress.v16i32", ir.Constant(I32X16, None)
        packed = call(builder, name, I32X16, numbers, zero, found)
        builder.store(packed, _pointer(context, builder, sig.args[2], out, j, I32X16), align=4)
        return builder.zext(call(builder, "llvm.ctpop.i16", I16, low), I64)

    return types.int64(types.int64, types.int64, out, types.intp), generate


@intrinsic
def look_up_bytes(typing: Any, x: Any, i: Any, rows: Any, masks: Any, at: Any, count: Any, out: Any, j: Any) -> Any:
    """out[j + l] = rows[r * 256 + x[i + l] mod 256] for 64 bytes l.

    r is the one of 0 .. count - 1 whose mask, element at + r of an int64 array, has bit l.  x, rows, out int8.  Needs
    AVX-512 VBMI.
    """

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if not cpu.has_byte_permutation():
            return context.get_dummy_value()
        x, i, rows, masks, at, count, out, j = args
        x_type, _, rows_type, masks_type, _, _, out_type, _ = sig.args
        index = builder.load(_pointer(context, builder, x_type, x, i, I8X64), align=1)
        upper = builder.icmp_signed("<", index, ir.Constant(I8X64, None))
        result = cgutils.alloca_once_value(builder, ir.Constant(I8X64, None))
        with cgutils.for_range(builder, count) as loop:
            place = builder.add(at, loop.index)
            mask = builder.load(_pointer(context, builder, masks_type, masks, place, I64), align=8)
            with builder.if_then(builder.icmp_signed("!=", mask, ir.Constant(I64, 0))):
                first = builder.mul(loop.index, ir.Constant(I64, 256))
                places = [builder.add(first, ir.Constant(I64, 64 * q)) for q in range(4)]
                pointers = [_pointer(context, builder, rows_type, rows, place, I8X64) for place in places]
                table = [builder.load(pointer, align=1) for pointer in pointers]
                name = "llvm.x86.avx512.vpermi2var.qi.512"
                low = call(builder, name, I8X64, table[0], index, table[1])
                high = call(builder, name, I8X64, table[2], index, table[3])
                found = builder.select(upper, high, low)
                lanes = builder.bitcast(mask, ir.VectorType(I1, 64))
                builder.store(builder.select(lanes, found, builder.load(result)), result)
        builder.store(builder.load(result), _pointer(context, builder, out_type, out, j, I8X64), align=1)
        return context.get_dummy_value()

    return types.void(x, types.intp, rows, masks, types.intp, types.intp, out, types.intp), generate


@intrinsic
def look_up_eight(typing: Any, x: Any, tables: Any, out: Any) -> Any:
    """The byte x[i] of the table at the address tables[i], to out[i], for i < 8: addresses of bytes and of int64."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        x, tables, out = (builder.inttoptr(a, I64.as_pointer()) for a in args)
        places, found = builder.load(x, align=1), ir.Constant(I64, 0)
        for i in range(8):
            shift = ir.Constant(I64, 8 * i)
            table = builder.load(builder.gep(tables, [ir.Constant(I64, i)]), align=8)
            place = builder.add(table, builder.and_(builder.lshr(places, shift), ir.Constant(I64, 255)))
            value = builder.load(builder.inttoptr(place, I8.as_pointer()), align=1)
            found = builder.or_(found, builder.shl(builder.zext(value, I64), shift))
        builder.store(found, out, align=1)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 3), generate


# --- bytes as words by turns, for the paths avx2 and avxvnni ---

TURNS = [0, 1, 2, 3, 8, 9, 10, 11, 4, 5, 6, 7, 12, 13, 14, 15]  # of the words of two registers: which are in each lane


@intrinsic
def load_turns(typing: Any, a: Any, b: Any) -> Any:
    """The 16 bytes at the address a as words, and those at b, in the lower and upper half of lanes, as `TURNS` says."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        octets = ir.VectorType(I8, 16)
        loaded = (builder.load(builder.inttoptr(at, octets.as_pointer()), align=1) for at in args)
        words = [builder.sext(some, I16X16) for some in loaded]
        order = ir.Constant(ir.VectorType(I32, 32), [at for i in TURNS for at in (i, 16 + i)])
        return builder.bitcast(builder.shuffle_vector(*words, order), I32X16)

    return int32x16(types.int64, types.int64), generate


@intrinsic
def store_turns(typing: Any, address: Any, value: Any, low: Any, high: Any) -> Any:
    """Lanes in the order of `TURNS` as the 16 bytes at an address, saturated to low .. high, at most 8 bits."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if "avx2" in cpu.available():
            address, value, *limits = args
            words = call(builder, "llvm.x86.avx2.packssdw", I16X16, *halves_of(builder, value))
            for comparison, limit in zip(("<", ">"), reversed(limits), strict=True):
                bound = splat_value(builder, builder.trunc(limit, I16), I16X16)
                words = builder.select(builder.icmp_signed(comparison, words, bound), words, bound)
            octets = ir.VectorType(I8, 16)
            builder.store(builder.trunc(words, octets), builder.inttoptr(address, octets.as_pointer()), align=1)
        return context.get_dummy_value()

    return types.void(types.int64, int32x16, types.int64, types.int64), generate
