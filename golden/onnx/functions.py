"""The operators of SPEC section 5 as ONNX local functions, of standard operators on integers alone.

Nothing here wraps, and there is no tensor of a floating type:

* Right shifts.  ONNX shifts unsigned integers only, and its division truncates.  `v >> s` of an int64 v with
  |v| <= 2^62 is `((v + 2^62) >> s) - (2^62 >> s)`: the sum is not negative, so that the shift of unsigned integers
  is the floor, and 2^62 is a multiple of 2^s.  Left shifts are products with a power of two.
* Values are int64 wherever SPEC gives no bound below 2^31.  The largest is an accumulator of 32 bits shifted left by
  31: 2^62.
* Matrix products are `MatMul` of int32 (of int64 where the partial sums could leave int32).  Not `MatMulInteger`:
  onnxruntime computes it on CPUs without VNNI by instructions that saturate sums of two products to 16 bits.
* The square root is found bit by bit: `r` is the largest integer with `r * r <= n`, by its definition.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import TensorProto, ValueInfoProto, helper

from golden.onnx.nodes import INT32, INT64, UINT64, Function, Nodes, Ref

ANCHOR = 1 << 62
B_LIMIT = (1 << 30) - 1
ROOT_BITS = 17  # rsqrt is below 2^17 (SPEC 5.3)
SQUARE_BITS = 48
END, BEFORE_START = (1 << 63) - 1, -(1 << 63)  # of a Slice

FUNCTIONS: dict[str, Function] = {}


def function(inputs: str, outputs: str, attributes: str = "", name: str | None = None) -> Callable[..., Any]:
    """Lists a function by its name, with the names of its inputs, outputs and attributes."""

    def register(build: Callable[[Nodes], None]) -> Callable[[Nodes], None]:
        called = name or build.__name__
        FUNCTIONS[called] = Function(called, (*inputs.split(),), (*outputs.split(),), (*attributes.split(),), build)
        return build

    return register


def format_of(port: str = "") -> dict[str, Ref]:
    """The attributes of `requantize` for the output whose format the function has as attributes."""
    return {key: Ref(port + key) for key in ("low", "high", "type")}


FORMAT = "low high type"


# Rounding (SPEC 2)


@function("v s", "out")
def round_right(n: Nodes) -> None:
    """v / 2^s, rounded by the Program's mode; v int64 of at most 2^62, s int64 0 .. 31.

    With half = 2^(s-1) and some = 1 for s > 0, and both 0 for s = 0: half_up is (v + half) >> s, half_away subtracts
    `some` where v is negative, half_even adds half - some + the last bit of v >> s (if s > 0).
    """
    u = n.cast("s", UINT64)
    anchor = n.constant(ANCHOR)
    half = n.cast(
        n(
            "BitShift",
            n("BitShift", n.constant(1, np.uint64), u, direction="LEFT"),
            n.constant(1, np.uint64),
            direction="RIGHT",
        )
    )
    down = n.cast(n("BitShift", n.constant(ANCHOR, np.uint64), u, direction="RIGHT"))

    def floor(v: str, offset: str, out: str | None = None) -> str:
        """(v + offset - 2^62) >> s"""
        shifted = n("BitShift", n.cast(n("Add", v, offset), UINT64), u, direction="RIGHT")
        return n("Sub", n.cast(shifted), down, out=out)

    if n.rounding == "floor":
        floor("v", anchor, "out")
        return
    offset = n("Add", half, anchor)
    if n.rounding == "half_up":
        floor("v", offset, "out")
        return
    some = n("Min", half, n.constant(1))
    if n.rounding == "half_away":
        negative = n.cast(n("Less", "v", n.constant(0)))
        floor("v", n("Sub", offset, n("Mul", negative, some)), "out")
        return
    assert n.rounding == "half_even"
    odd = n("BitwiseAnd", floor("v", anchor), some)
    floor(n("Add", "v", odd), n("Sub", offset, some), "out")


@function("v s", "out")
def round_shift(n: Nodes) -> None:
    """round_shift(v, s) of SPEC 2; v and s int64, -31 <= s <= 31."""
    zero = n.constant(0)
    shifted = n("Mul", "v", n.power(n("Max", n("Neg", "s"), zero)))
    n("round_right", shifted, n("Max", "s", zero), out="out")


@function("v", "out", FORMAT)
def saturate(n: Nodes) -> None:
    """sat(v) of int64 v, in the type and range that the attributes state."""
    n.cast(n("Clip", "v", n.constant(Ref("low")), n.constant(Ref("high"))), Ref("type"), out="out")


@function("v s", "out", FORMAT)
def requantize(n: Nodes) -> None:
    """sat(round_shift(v, s)); v and s any integers, out of the type and range that the attributes state."""
    n("saturate", n("round_shift", n.cast("v"), n.cast("s")), out="out", **format_of())


@function("index", "out", "shifts")
def groups(n: Nodes) -> None:
    """T.shift[c]: the shift of each channel's group (SPEC 1)."""
    n("Gather", n.constant(Ref("shifts", many=True)), n.cast("index"), out="out")


@function("index", "out", "shifts")
def token_groups(n: Nodes) -> None:
    """T.shift[t] as a column."""
    column = n("Unsqueeze", n.cast("index"), n.constant([1]))
    n("Gather", n.constant(Ref("shifts", many=True)), column, out="out")


def backwards(n: Nodes, rows: str) -> str:
    """The rows from last to first."""
    starts, ends, axes, steps = (n.constant([i]) for i in (-1, BEFORE_START, 0, -1))
    return n("Slice", rows, starts, ends, axes, steps)


def dot(n: Nodes, x: str, weight: str, bias: str, total: Ref) -> str:
    """bias + x weight^T in int32; x and the sum without bias in the type `total`."""
    columns = n("Transpose", n.cast(weight, total), perm=[1, 0])
    acc = n("Add", n("MatMul", n.cast(x, total), columns), n.cast(bias, total))
    return n.cast(acc, INT32, out="acc")


# Operators (SPEC 5)


@function("image patch_start element_offset weight bias shift", "acc out", f"{FORMAT} total")
def patch_embed(n: Nodes) -> None:
    """SPEC 5.1.  The pixel of element k of patch p is patch_start[p] + element_offset[k] in the flat image."""
    column = n("Unsqueeze", "patch_start", n.constant([1]))
    pixels = n("Gather", n("Reshape", "image", n.constant([-1])), n("Add", column, "element_offset"))
    a = n("Sub", n.cast(pixels, INT32), n.constant(128, np.int32))
    n("requantize", dot(n, a, "weight", "bias", Ref("total")), "shift", out="out", **format_of())


@function("x cls_token pos_embed", "out", f"{FORMAT} position")
def insert_token(n: Nodes) -> None:
    """SPEC 5.2."""
    x, position, axis = n.cast("x"), n.constant(Ref("position")), n.constant([0])
    at = n("Reshape", position, n.constant([1]))
    before = n("Slice", x, axis, at, axis)
    after = n("Slice", x, at, n.constant([END]), axis)
    token = n("Unsqueeze", n.cast("cls_token"), axis)
    u = n("Concat", before, token, after, axis=0)
    n("saturate", n("Add", u, n.cast("pos_embed")), out="out", **format_of())


@function("x gamma shift", "square_sum rsqrt normed out", f"{FORMAT} eps_q d_norm d_shift")
def rmsnorm(n: Nodes) -> None:
    """SPEC 5.3.  d_norm << 52 is below 2^63, and division of integers that are not negative is the floor.

    The bit length is the number of powers of two that square_sum reaches.  The root: bits from the highest down, each
    kept where the square of the sum so far does not exceed the quotient.
    """
    q, zero, one, two = n.cast("x"), n.constant(0), n.constant(1), n.constant(2)
    total = n("ReduceSum", n("Mul", q, q), n.constant([1]), keepdims=1)
    square_sum = n("Add", total, n.constant(Ref("eps_q")))  # [L, 1]
    n("Squeeze", square_sum, n.constant([1]), out="square_sum")
    powers = n.constant([1 << i for i in range(SQUARE_BITS)])
    reached = n.cast(n("GreaterOrEqual", square_sum, powers))
    bits = n("ReduceSum", reached, n.constant([1]), keepdims=1)
    k = n("Sub", n.constant(16), n("Div", n("Add", bits, one), two))  # floor((32 - bits) / 2)
    left = n.cast(n("Mul", n("Max", k, zero), two), UINT64)
    right = n.cast(n("Mul", n("Max", n("Neg", k), zero), two), UINT64)
    w = n("BitShift", n.cast(square_sum, UINT64), left, direction="LEFT")
    w = n.cast(n("BitShift", w, right, direction="RIGHT"))
    d_norm = n("Mul", n.constant(Ref("d_norm")), n.constant(1 << 52))
    quotient = n("Div", d_norm, w)
    step = Nodes(prefix="s")
    candidate = step("Add", "root", "bit")
    fits = step("LessOrEqual", step("Mul", candidate, candidate), quotient)
    step("Where", fits, candidate, "root", out="next_root")
    inputs, outputs = [declared("root", 2), declared("bit", 0)], [declared("next_root", 2)]
    body = helper.make_graph(step.nodes, "bit_of_root", inputs, outputs)
    bits_down = n.constant([1 << i for i in reversed(range(ROOT_BITS))])
    root = n("Scan", n("Sub", quotient, quotient), bits_down, body=body, num_scan_inputs=1)
    n.cast(n("Squeeze", root, n.constant([1])), TensorProto.UINT32, out="rsqrt")
    shift = n("Sub", n("Add", n.constant(Ref("d_shift")), n.constant(14)), k)
    normed = n("round_shift", n("Mul", q, root), shift)
    n.cast(normed, INT32, out="normed")
    n("requantize", n("Mul", normed, n.cast("gamma")), "shift", out="out", **format_of())


def declared(name: str, rank: int, dtype: int = INT64) -> ValueInfoProto:
    """An input or output of the body of a Scan; onnxruntime wants to know its rank."""
    return helper.make_tensor_value_info(name, dtype, [None] * rank)


def linear(segments: int) -> Function:
    """The function of SPEC 5.4 for this number of segments, listed at first use."""
    name = "linear" if segments == 1 else f"linear_{segments}"
    if name not in FUNCTIONS:
        outputs = " ".join(f"out{i}" for i in range(segments))
        formats = " ".join(f"out{i}_{key}" for i in range(segments) for key in FORMAT.split())

        def build(n: Nodes) -> None:
            """SPEC 5.4.  x is shifted to its base exponent before the product: the same sum."""
            aligned = n("Mul", n.cast("x"), n.power("x_shift"))
            accs, shifts = [dot(n, aligned, "weight", "bias", Ref("total"))], ["shift"]
            if segments > 1:
                sizes = n.constant(Ref("sizes", many=True))
                accs = n.several("Split", accs[0], sizes, count=segments, axis=1)
                shifts = n.several("Split", "shift", sizes, count=segments, axis=0)
            for i, (acc, shift) in enumerate(zip(accs, shifts, strict=True)):
                n("requantize", acc, shift, out=f"out{i}", **format_of(f"out{i}_"))

        sizes = "sizes" if segments > 1 else ""
        function("x x_shift weight bias shift", f"acc {outputs}", f"{formats} {sizes} total", name)(build)
    return FUNCTIONS[name]


def conv(n: Nodes, rows: str) -> None:
    """The convolution of `rows`, int32 in processing order: windows of J rows, of zeros before the first."""
    length, taps = n("Shape", rows, start=0, end=1), n("Shape", "weight", start=1, end=2)
    before = n("Sub", taps, n.constant([1]))
    pads = n("Concat", before, n.constant([0, 0, 0]), axis=0)
    padded = n("Pad", rows, pads, n.constant(0, np.int32))
    zero, one, scalar = n.constant(0), n.constant(1), n.constant([0])
    first = n("Unsqueeze", n("Range", zero, n("Squeeze", length, scalar), one), n.constant([1]))
    windows = n("Gather", padded, n("Add", first, n("Range", zero, n("Squeeze", taps, scalar), one)))  # [L, J, E]
    products = n("Mul", windows, n("Transpose", n.cast("weight", INT32), perm=[1, 0]))
    total = n("ReduceSum", products, n.constant([1]), keepdims=0)
    acc = n("Add", total, n.cast("bias", INT32), out="acc")
    n("requantize", acc, "shift", out="out", **format_of())


@function("x weight bias shift", "acc out", FORMAT)
def conv1d(n: Nodes) -> None:
    """SPEC 5.5, reverse = 0."""
    conv(n, n.cast("x", INT32))


@function("x weight bias shift", "acc out", FORMAT)
def conv1d_reverse(n: Nodes) -> None:
    """SPEC 5.5, reverse = 1."""
    conv(n, backwards(n, n.cast("x", INT32)))


@function("x rom rom_index", "out", "type")
def rom(n: Nodes) -> None:
    """SPEC 5.6, on the ROMs one behind the other."""
    start = n("Add", n("Mul", n.cast("rom_index"), n.constant(256)), n.constant(128))
    entry = n("Gather", n("Reshape", "rom", n.constant([-1])), n("Add", n.cast("x"), start))
    n.cast(entry, Ref("type"), out="out")


@function("p fraction rom", "out", "abar_fraction")
def exp2(n: Nodes) -> None:
    """exp2 of SPEC 5.7: p int64 0 .. 65535, fraction int64 0 .. 31; nothing is negative."""
    zero, bits = n.constant(0), n.constant(19)
    left = n.cast(n("Max", n("Sub", bits, "fraction"), zero), UINT64)
    right = n.cast(n("Max", n("Sub", "fraction", bits), zero), UINT64)
    t = n("BitShift", n("BitShift", n.cast("p", UINT64), left, direction="LEFT"), right, direction="RIGHT")
    whole = n.cast(n("BitShift", t, n.constant(19, np.uint64), direction="RIGHT"))
    upper = n("BitShift", t, n.constant(12, np.uint64), direction="RIGHT")
    j = n.cast(n("BitwiseAnd", upper, n.constant(127, np.uint64)))
    rest = n.cast(n("BitwiseAnd", t, n.constant(4095, np.uint64)))
    entries, axis, end = n.cast("rom"), n.constant([0]), n.constant([END])
    this, following = n("Slice", entries, axis, n.constant([-1]), axis), n("Slice", entries, n.constant([1]), end, axis)
    high = n("Gather", n("Mul", this, n.constant(4096)), j)
    v = n("Sub", high, n("Mul", n("Gather", n("Sub", this, following), j), rest))
    least = n("Sub", n.constant(29), n.constant(Ref("abar_fraction")))
    n("round_right", v, n("Min", n("Add", whole, least), n.constant(31)), out="out")


@function(
    "delta u B C A A_fraction D state_token_shift b_shift y_shift exp2_rom y_group",
    "dx abar b acc h y_acc y",
    "abar_fraction abar_type h_low h_high h_type y_low y_high y_type",
)
def scan(n: Nodes) -> None:
    """SPEC 5.7.  Only the recurrence is in the Scan: A-bar and b need no state.

    The state before the first token is 0 and stays so under any shift.
    """
    axis, last = n.constant([1]), n.constant([2])
    delta, u = n.cast("delta"), n.cast("u")
    dx = n("Mul", delta, u)
    n.cast(dx, TensorProto.INT16, out="dx")
    p = n("Mul", n("Unsqueeze", delta, last), n.cast("A"))
    fraction = n("Unsqueeze", n.cast("A_fraction"), axis)
    abar = n("exp2", p, fraction, "exp2_rom", abar_fraction=Ref("abar_fraction"))
    n.cast(abar, Ref("abar_type"), out="abar")
    token_shift = n("Unsqueeze", n.cast("state_token_shift"), axis)  # [L, 1]
    b_shift = n("Unsqueeze", n("Add", n.cast("b_shift"), token_shift), last)
    product = n("Mul", n("Unsqueeze", dx, last), n("Unsqueeze", n.cast("B"), axis))
    n("requantize", product, b_shift, out="b", low=-B_LIMIT, high=B_LIMIT, type=INT32)

    start, begin = n.constant([0]), n.constant([1])
    first = n("Slice", token_shift, start, begin, start)
    others = n("Slice", token_shift, start, n.constant([-1]), start)
    steps = n("Sub", token_shift, n("Concat", first, others, axis=0))
    zeros = n("ConstantOfShape", n("Shape", "A"), value=helper.make_tensor("zero", INT32, [1], [0]))
    state: dict[str, Any] = {"low": Ref("h_low"), "high": Ref("h_high"), "type": INT32}
    step = Nodes(prefix="s")
    moved = step("requantize", "h_before", "step", **state)
    step("Add", step("Mul", "abar_t", moved), "b_t", out="acc_t")
    rounded = step("round_right", step.cast("acc_t"), step.constant(Ref("abar_fraction")))
    step("saturate", rounded, out="h_t", **state)
    step("Identity", "h_t", out="h_after")
    inputs = [*(declared(name, 2, INT32) for name in ("h_before", "abar_t", "b_t")), declared("step", 1)]
    outputs = [declared(name, 2, INT32) for name in ("h_after", "acc_t", "h_t")]
    body = helper.make_graph(step.nodes, "token", inputs, outputs)
    scanned = [zeros, n.cast(abar, INT32), "b", steps]
    n.add("Scan", scanned, ["h_last", "acc", "h32"], {"body": body, "num_scan_inputs": 3})
    n.cast("h32", Ref("h_type"), out="h")

    sums = n("MatMul", "h32", n("Unsqueeze", n.cast("C", INT32), last))
    over_states = n("Mul", n.cast(n("Squeeze", sums, last)), n.power(token_shift))
    y_acc = n("Add", n("Mul", n.cast("D"), u), over_states)
    n.cast(y_acc, INT32, out="y_acc")
    n("requantize", y_acc, n("Add", n.cast("y_shift"), "y_group"), out="y", **format_of("y_"))


@function("y y_group y_b y_b_group g shift out_group", "acc out", f"{FORMAT} y_align y_b_align")
def gate(n: Nodes) -> None:
    """SPEC 5.8."""
    y = n("Mul", n.cast("y"), n.power(n("Add", "y_group", n.constant(Ref("y_align")))))
    y_b = n("Mul", n.cast("y_b"), n.power(n("Add", "y_b_group", n.constant(Ref("y_b_align")))))
    acc = n("Mul", n("Add", y, backwards(n, y_b)), n.cast("g"))
    n.cast(acc, INT32, out="acc")
    n("requantize", acc, n("Add", n.cast("shift"), "out_group"), out="out", **format_of())


@function("x y", "out", FORMAT)
def add(n: Nodes) -> None:
    """SPEC 5.9."""
    n("saturate", n("Add", n.cast("x"), n.cast("y")), out="out", **format_of())


@function("x", "out", "position")
def select_token(n: Nodes) -> None:
    """SPEC 5.10."""
    n("Gather", "x", n("Reshape", n.constant(Ref("position")), n.constant([1])), out="out")
