"""What every fake-quant operator shares: real values, rounding, saturation and the rule of exactness.

A tensor is a float32 or float64 tensor of *real values* `q * 2^e` (SPEC section 1), never of codes: an operator
multiplies and adds real values, and a requantization puts the result back on the grid of its output.  Nothing here
reads a stored shift: every alignment follows from the exponents, so the shifts of the Program are checked too.

The rule of exactness (SPEC, "Exactness of a floating-point path").  A float type with p bits of significand (24 or
53) computes a step exactly if every value of it is an integer multiple of 2^g of magnitude below 2^(p + g), with
2^g and the largest value inside its normal exponent range.  `Exactness` collects these bounds from the Program for
one operator and names the smallest type that meets all of them, or refuses the operator.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from intsim.errors import UserError
from intsim.program import Operator, Program
from intsim.program import Tensor as Declaration

Integers = NDArray[np.int64]
Reals = dict[str, Tensor]

SIGNIFICAND = {torch.float32: 24, torch.float64: 53}
NORMAL = {torch.float32: (-126, 126), torch.float64: (-1022, 1022)}


# --- Scales (SPEC section 1) -----------------------------------------------------------------------------------------


def exponents(program: Program, name: str) -> Integers:
    """Exponent of every element of a tensor or constant: int64, broadcastable to its shape (axes of length 1).

    The base exponent plus, for each term, the integer that belongs to the position along the term's axis.
    """
    declared: Any = program.tensors[name] if name in program.tensors else program.constants[name]
    if declared.exponent is None:
        raise UserError(f"{name} has no exponent of its own")
    grid = np.full([1] * len(declared.shape), declared.exponent, dtype=np.int64)
    for at, axis in enumerate(declared.axes):
        if any(term.axis == axis for term in declared.terms):
            line = term_sum(program, name, axis)
            grid = grid + line.reshape([-1 if i == at else 1 for i in range(len(declared.shape))])
    return grid


def term_sum(program: Program, name: str, axis: str) -> Integers:
    """What the terms along one axis add to the exponent at each position: int64 [length of the axis]."""
    declared: Any = program.tensors[name] if name in program.tensors else program.constants[name]
    total = np.zeros(declared.shape[declared.axes.index(axis)], dtype=np.int64)
    for term in declared.terms:
        if term.axis != axis:
            continue
        if term.offset is not None:
            total = total + np.asarray(program.arrays[term.offset]).astype(np.int64)
        else:
            total = total + np.array([term.shifts[i] for i in program.arrays[term.index]], dtype=np.int64)
    return total


def magnitude(declared: Declaration) -> int:
    """Largest |q| that the format of a tensor allows."""
    return 1 << (declared.bits - 1) if declared.signed else (1 << declared.bits) - 1


def code_range(declared: Declaration) -> tuple[int, int]:
    """Lowest and highest q of a tensor's format (SPEC section 1)."""
    if declared.signed:
        return -(1 << (declared.bits - 1)), (1 << (declared.bits - 1)) - 1
    return 0, (1 << declared.bits) - 1


def power_of_two(exponent: ArrayLike, dtype: torch.dtype, device: torch.device) -> Tensor:
    """2^exponent, exactly, element by element."""
    exact = np.ldexp(1.0, np.asarray(exponent))
    return torch.from_numpy(np.ascontiguousarray(exact)).to(device=device, dtype=dtype)


# --- Rounding and saturation (SPEC section 2) ------------------------------------------------------------------------


def round_to_integer(v: Tensor, mode: str) -> Tensor:
    """Rounds real values to integers by a Program's mode, in place (`v` is overwritten and returned).

    Exact where v + 1/2 is (see `Exactness.rounding`).
    """
    if mode == "half_up":
        return v.add_(0.5).floor_()
    if mode == "floor":
        return v.floor_()
    if mode == "half_even":
        return v.round_()
    if mode == "half_away":
        return torch.copysign(v.abs().add_(0.5).floor_(), v)
    raise UserError(f"rounding is {mode!r}, must be half_up, half_even, half_away or floor")


@dataclass
class Grid:
    """The grid of one output and the way onto it: one rounding, then one saturation.

    down, up: 2^-e and 2^e, broadcastable to the output; low, high: range of the codes, None: no saturation.
    """

    down: Tensor
    up: Tensor
    low: float | None
    high: float | None
    mode: str

    def __call__(self, real: Tensor) -> Tensor:
        """Real values of any precision -> the real values on the grid."""
        return self.codes(real * self.down).mul_(self.up)

    def codes(self, scaled: Tensor) -> Tensor:
        """The integers for values that are already in units of this grid (`scaled` is overwritten)."""
        rounded = round_to_integer(scaled, self.mode)
        return rounded if self.low is None else rounded.clamp_(self.low, self.high)

    def part(self, index: Any) -> Grid:
        """The grid of a part of the output: `down` and `up` indexed."""
        return Grid(self.down[index], self.up[index], self.low, self.high, self.mode)


# --- Narrow accumulators (SPEC section 13) ---------------------------------------------------------------------------


class Register:
    """An accumulator of `bits` bits that wraps or saturates, in real values.

    exponent: of its least bit, broadcastable to the tensors that come in.  A limit that the float type cannot hold
    is above every value that the type was chosen for, so that it may be rounded.
    """

    def __init__(self, bits: int, overflow: str, exponent: ArrayLike, dtype: torch.dtype, device: torch.device):
        self.overflow = overflow
        e = np.asarray(exponent)
        self.down, self.up = power_of_two(-e - bits, dtype, device), power_of_two(e + bits, dtype, device)
        least = power_of_two(e, dtype, device)
        self.low, self.high = -(2.0 ** (bits - 1)) * least, (2.0 ** (bits - 1) - 1) * least

    def clamp(self, real: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(real, self.low), self.high)

    def wrap(self, real: Tensor) -> Tensor:
        """The value less the multiple of 2^bits that brings it into range."""
        return real - torch.floor(real * self.down + 0.5) * self.up

    def sum(self, start: Tensor, terms: Iterable[Tensor]) -> Tensor:
        """start + terms: modulo 2^bits at the end, or saturated at the start and at every addition."""
        if self.overflow == "wrap":
            for term in terms:
                start = start + term
            return self.wrap(start)
        start = self.clamp(start)
        for term in terms:
            start = self.clamp(start + term)
        return start

    def part(self, index: Any) -> Register:
        """The register of a part of the accumulator: everything indexed."""
        some = copy.copy(self)
        for name in ("down", "up", "low", "high"):
            setattr(some, name, getattr(self, name)[index])
        return some


def summed(
    x: Tensor, weight: Tensor, bias: Tensor, narrow: Register | None, order: Sequence[int] | None = None
) -> Tensor:
    """x [..., I] times weight [O, I] plus bias [O]; a narrow accumulator adds inputs in `order`."""
    if narrow is None or narrow.overflow == "wrap":
        acc = x @ weight.T + bias
        return acc if narrow is None else narrow.wrap(acc)
    inputs = range(x.shape[-1]) if order is None else order
    return narrow.sum(bias.expand(*x.shape[:-1], -1), (x[..., c, None] * weight[:, c] for c in inputs))


# --- The rule --------------------------------------------------------------------------------------------------------


class Exactness:
    """Collects how large every value of an operator can get, in units of its least bit, and picks the float type."""

    def __init__(self, operator: str):
        self.operator = operator
        self.limit = 1.0  # every value is below this many units
        self.lowest, self.highest = 0, 0  # exponents of the smallest unit and of the largest value
        self.widest = "nothing"

    def value(self, what: str, bound: ArrayLike, exponent: ArrayLike) -> None:
        """`what` holds integer multiples of 2^exponent of at most `bound` units (arrays that broadcast)."""
        size, unit = np.broadcast_arrays(np.asarray(bound, dtype=np.float64), np.asarray(exponent, dtype=np.int64))
        if not size.size:
            return
        self._limit(what, float(size.max()))
        _, bits = np.frexp(size)
        self.lowest = min(self.lowest, int(unit.min()))
        self.highest = max(self.highest, int((unit + bits).max()))

    def rounding(self, what: str, bound: ArrayLike, exponent: ArrayLike, target: ArrayLike, out: int | None) -> None:
        """A value as above is rounded to multiples of 2^target, then saturated to at most `out` units of them.

        With s = target - exponent: for s >= 1 the sum v + 1/2 is a multiple of 2^-s, at most bound + 2^(s-1) of
        them; for s <= 0 it is a multiple of 1/2, and it needs no more bits than twice the range that survives.
        """
        self.value(what, bound, exponent)
        size, s = np.broadcast_arrays(
            np.asarray(bound, dtype=np.float64),
            np.asarray(target, dtype=np.int64) - np.asarray(exponent, dtype=np.int64),
        )
        if not size.size:
            return
        right = size + np.ldexp(0.5, np.maximum(s, 1))
        left = np.ldexp(size, np.maximum(-s, 0))
        if out is not None:
            left = np.minimum(left, out)
        self._limit(f"{what}, with the rounding constant,", float(np.where(s >= 1, right, 2 * left + 1).max()))
        # the scaled value and its scale
        self.value(what, bound, -s)
        self.value(what, 1, np.asarray(target))
        self.value(what, 1, -np.asarray(target))

    def _limit(self, what: str, limit: float) -> None:
        if limit > self.limit:
            self.limit, self.widest = limit, what

    def holds(self, dtype: torch.dtype) -> bool:
        """Whether this float type computes all of it exactly."""
        low, high = NORMAL[dtype]
        return self.limit < 2.0 ** SIGNIFICAND[dtype] and low <= self.lowest and self.highest <= high

    def choose(self) -> torch.dtype:
        """float32 if that is exact, else float64; UserError if neither is."""
        for dtype in (torch.float32, torch.float64):
            if self.holds(dtype):
                return dtype
        bits = int(np.ceil(np.log2(self.limit)))
        raise UserError(
            f"operator {self.operator}: {self.widest} can need {bits} bits and exponents {self.lowest} .. "
            f"{self.highest}; float64 computes exactly below {SIGNIFICAND[torch.float64]} bits and in "
            f"{NORMAL[torch.float64][0]} .. {NORMAL[torch.float64][1]}"
        )


def storage(program: Program, name: str) -> torch.dtype | None:
    """Float type in which a tensor can be kept between operators; None: as its operator made it."""
    declared = program.tensors[name]
    if declared.exponent is None:
        return torch.float64
    exact = Exactness(name)
    exact.value(name, magnitude(declared), exponents(program, name))
    exact.value(name, 1, -exponents(program, name))
    return torch.float32 if exact.holds(torch.float32) else None


# --- An operator -----------------------------------------------------------------------------------------------------


class Step:
    """One operator of a Program in real values, on one device.

    A subclass states its bounds (`self.exact`), then lays out constants in the type chosen (`self.settle()`), and
    computes in `__call__(inputs, wanted)`: port -> real values [n, *shape], for all its output ports or at least
    the wanted ones.
    """

    kind: ClassVar[str]

    def __init__(self, program: Program, op: Operator, device: torch.device):
        self.program, self.op, self.device = program, op, device
        self.exact = Exactness(op.name)
        self.dtype = torch.float64
        self.attributes = dict(op.attributes)

    def __call__(self, inputs: Reals, wanted: Collection[str]) -> Reals:
        raise NotImplementedError

    def settle(self) -> None:
        """Chooses `dtype` from the bounds collected so far."""
        self.dtype = self.exact.choose()

    def source(self, port: str) -> Declaration:
        """Declaration of the tensor at an input port."""
        return self.program.tensors[self.op.inputs[port]]

    def made(self, port: str) -> Declaration:
        """Declaration of the tensor at an output port."""
        return self.program.tensors[self.op.tensor(port)]

    def integers(self, role: str) -> Integers:
        """The integers of a constant."""
        return np.asarray(self.program.arrays[self.op.constants[role]]).astype(np.int64)

    def e_in(self, port: str) -> Integers:
        """Exponents of an input."""
        return exponents(self.program, self.source(port).name)

    def e_out(self, port: str) -> Integers:
        """Exponents of an output."""
        return exponents(self.program, self.made(port).name)

    def constant_exponents(self, role: str) -> Integers:
        """Exponents of a constant."""
        return exponents(self.program, self.op.constants[role])

    def real(self, codes: Integers, exponent: ArrayLike, dtype: torch.dtype | None = None) -> Tensor:
        """Dequantizes integers: codes * 2^exponent in `dtype`."""
        exact = np.ldexp(codes.astype(np.float64), np.broadcast_to(np.asarray(exponent), codes.shape))
        return torch.from_numpy(np.ascontiguousarray(exact)).to(device=self.device, dtype=dtype or self.dtype)

    def constant(self, role: str) -> Tensor:
        """Real values of a constant that has an exponent."""
        return self.real(self.integers(role), self.constant_exponents(role))

    def grid(self, port: str, saturate: bool = True) -> Grid:
        """The way onto the grid of an output (of its declared exponents and range)."""
        declared = self.made(port)
        low, high = code_range(declared) if saturate else (None, None)
        e = exponents(self.program, declared.name)
        return Grid(
            power_of_two(-e, self.dtype, self.device),
            power_of_two(e, self.dtype, self.device),
            low,
            high,
            self.program.rounding,
        )

    def register(self, port: str) -> Register | None:
        """The narrow accumulator at `port`, None if it has its full width; for after `settle`."""
        declared = self.made(port)
        if declared.overflow is None:
            return None
        return Register(declared.bits, declared.overflow, self.e_out(port), self.dtype, self.device)

    def bound_register(self, port: str, bound: ArrayLike) -> None:
        """Adds the bounds of an accumulator, `bound` in its own units at full width; and of wrapping it."""
        declared = self.made(port)
        half = 1 << (declared.bits - 1) if declared.overflow == "wrap" else 0
        self.exact.value(declared.name, np.asarray(bound) + half, self.e_out(port))

    def bound_requantize(self, port: str, bound: ArrayLike, exponent: ArrayLike) -> None:
        """Adds the bounds of an accumulator that is requantized to the output at `port`."""
        declared = self.made(port)
        self.exact.rounding(declared.name, bound, exponent, exponents(self.program, declared.name), magnitude(declared))
        self.exact.value(declared.name, magnitude(declared), exponents(self.program, declared.name))

    def bound_input(self, port: str) -> int:
        """Adds the bounds of an input; returns the largest |q| of its format."""
        declared = self.source(port)
        self.exact.value(declared.name, magnitude(declared), exponents(self.program, declared.name))
        return magnitude(declared)
