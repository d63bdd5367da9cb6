"""What every operator kind provides, and the view of a Program that it works on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from intsim.arithmetic import Int64, int64, limits, saturate, wrap
from intsim.errors import ProgramError
from intsim.program import Constant, Operator, Program, Tensor, Term

ACCUMULATOR_BITS = 32
MAX_SHIFT = 31


@dataclass(frozen=True)
class ConstSpec:
    """What a constant must look like.  `bits` is the most it may declare; `low`, `high` narrow its values."""

    axes: tuple[str, ...]
    shape: tuple[int, ...]
    bits: int
    signed: bool
    exponent: int | None = None
    terms: tuple[Term, ...] = ()
    low: int | None = None
    high: int | None = None


@dataclass(frozen=True)
class PortSpec:
    """What an output whose format is free must look like.

    group_axes: the axes on one of which a group term is allowed.
    signed: None where either is allowed; bits, exponent: the only allowed value, where it is not free.
    """

    axes: tuple[str, ...]
    shape: tuple[int, ...]
    max_bits: int
    signed: bool | None = True
    group_axes: tuple[str, ...] = ()
    role: str = "output"
    bits: int | None = None
    exponent: int | None = None


@dataclass(frozen=True)
class Bound:
    """Proven interval of an accumulator: per channel, rounding constant of the next requantization included.

    low, high: int64, one entry for each channel (or a single entry); `bits` is the declared width.
    """

    low: Int64
    high: Int64


OFFSET_BITS = 8


def offsets(axis: str, n: int, **kw: Any) -> ConstSpec:
    """Spec of a vector of signed 8-bit shifts or exponents along `axis`."""
    return ConstSpec((axis,), (n,), OFFSET_BITS, True, low=-127, high=127, **kw)


class View:
    """An operator of a Program with its tensors and constants at hand, for checking and running.

    overflows: port -> how many elements of a narrow accumulator were not the exact sum, over all runs so far.
    """

    def __init__(self, program: Program, op: Operator):
        self.program = program
        self.op = op
        self.rounding = program.rounding
        self.overflows: dict[str, int] = {}

    def fail(self, problem: str) -> NoReturn:
        raise ProgramError(f"operator {self.op.name} ({self.op.kind}): {problem}")

    def require(self, condition: bool, problem: str) -> None:
        if not condition:
            self.fail(problem)

    def input(self, port: str) -> Tensor:
        name = self.op.inputs.get(port)
        if name is None:
            self.fail(f"input port {port!r} is not connected")
        tensor = self.program.tensors.get(name)
        if tensor is None:
            self.fail(f"input {port!r} names the tensor {name!r}, which no earlier operator makes")
        return tensor

    def activation(self, port: str, signed: bool = True, axes: tuple[str, ...] = ("token", "channel")) -> Tensor:
        """An input that must be an activation of at most 8 bits with a fixed exponent."""
        tensor = self.input(port)
        self.require(tensor.axes == axes, f"input {port} has axes {list(tensor.axes)}, must have {list(axes)}")
        self.require(
            tensor.bits <= 8 and tensor.signed == signed and tensor.exponent is not None,
            f"input {port} is {tensor.bits} bits signed={tensor.signed}, must be at most 8 bits signed={signed}",
        )
        for term in tensor.terms:
            self.require(term.shifts is not None, f"input {port} has an offset term, only group terms are allowed")
        self.require(len(tensor.terms) <= 1, f"input {port} has groups on more than one axis")
        return tensor

    def no_groups(self, tensor: Tensor, *axes: str) -> None:
        for axis in axes:
            self.require(tensor.group(axis) is None, f"{tensor.name} may not have groups on {axis}")

    def output(self, port: str) -> Tensor:
        name = self.op.tensor(port)
        tensor = self.program.tensors.get(name)
        if tensor is None:
            self.fail(f"output {port!r} is not declared")
        return tensor

    def array(self, role: str) -> Int64:
        """Integers of a constant as int64."""
        name = self.op.constants.get(role)
        if name is None or name not in self.program.arrays:
            self.fail(f"constant {role!r} is missing")
        return int64(self.program.arrays[name])

    def constant(self, role: str) -> Constant:
        return self.program.constants[self.op.constants[role]]

    def attribute(self, name: str, low: int, high: int) -> int:
        value = self.op.attributes.get(name)
        if not isinstance(value, int) or isinstance(value, bool):
            self.fail(f"attribute {name} is {value!r}, must be an integer")
        self.require(low <= value <= high, f"attribute {name} is {value}, allowed are {low} .. {high}")
        return value

    def exponent(self, port: str) -> int:
        exponent = self.input(port).exponent
        if exponent is None:
            self.fail(f"input {port} has no fixed exponent")
        return exponent

    def exponents(self, port: str) -> Int64:
        """e(input, c): exponent of each channel of an input, group term included."""
        return self.program.exponents(self.op.inputs[port], "channel")

    def shifts(self, port: str, axis: str) -> Int64:
        """Group shifts of an input along an axis."""
        return self.program.shifts(self.op.inputs[port], axis)

    def out_exponents(self, port: str) -> Int64:
        return self.program.exponents(self.op.tensor(port), "channel")

    def out_exponent(self, port: str) -> int:
        exponent = self.output(port).exponent
        if exponent is None:
            self.fail(f"output {port} has no fixed exponent")
        return exponent

    def out_shifts(self, port: str, axis: str) -> Int64:
        return self.program.shifts(self.op.tensor(port), axis)

    def check_shifts(self, what: str, *parts: Int64) -> None:
        """Every sum of one entry from each part must be an allowed argument of round_shift."""
        low = sum(int(p.min()) for p in parts)
        high = sum(int(p.max()) for p in parts)
        self.require(
            -MAX_SHIFT <= low and high <= MAX_SHIFT,
            f"{what} spans {low} .. {high}, allowed are {-MAX_SHIFT} .. {MAX_SHIFT}",
        )

    def narrow(self, port: str) -> bool:
        """Whether the accumulator at `port` may overflow."""
        return self.output(port).overflow is not None

    def accumulate(self, port: str, start: Int64, terms: Iterable[Int64]) -> Int64:
        """start + terms in the narrow accumulator at `port` (SPEC section 13); the terms come in the stated order."""
        register = self.output(port)
        exact = clamped = start
        if register.overflow == "saturate":
            clamped = saturate(start, register.bits, True)
        for term in terms:
            exact = exact + term
            if register.overflow == "saturate":
                clamped = saturate(clamped + term, register.bits, True)
        result = clamped if register.overflow == "saturate" else wrap(exact, register.bits)
        self.count(port, result, exact)
        return result

    def count(self, port: str, result: Int64, exact: Int64) -> None:
        """Adds to `overflows` what a narrow accumulator has wrong."""
        self.overflows[port] = self.overflows.get(port, 0) + int((result != exact).sum())

    def declare(
        self,
        port: str,
        role: str,
        axes: tuple[str, ...],
        shape: tuple[int, ...],
        bits: int,
        signed: bool,
        exponent: int | None,
        terms: tuple[Term, ...] = (),
    ) -> Tensor:
        return Tensor(self.op.tensor(port), role, axes, shape, bits, signed, exponent, terms)

    def offset_term(self, axis: str, role: str) -> Term:
        return Term(axis, offset=self.op.constants.get(role, f"{self.op.name}.{role}"))


class Kind:
    """An operator kind.  The methods are called in this order; each may use what the earlier ones checked."""

    name: str = ""
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    attributes: tuple[str, ...] = ()
    narrowable: tuple[str, ...] = ()  # accumulators that may be declared narrower than proven

    def ports(self, v: View) -> dict[str, PortSpec]:
        """Checks inputs and attributes; says what the outputs of free format must look like."""
        raise NotImplementedError

    def given(self, v: View) -> dict[str, ConstSpec]:
        """Constants that the maker of the Program provides."""
        return {}

    def derived_attributes(self, v: View) -> dict[str, int]:
        """Attributes that follow from the inputs."""
        return {}

    def derived_constants(self, v: View) -> dict[str, tuple[ConstSpec, Int64]]:
        """Constants that follow from exponents (the shifts)."""
        return {}

    def derived_tensors(self, v: View) -> dict[str, Tensor]:
        """Accumulators and internal tensors."""
        return {}

    def bounds(self, v: View) -> dict[str, Bound]:
        """Proven intervals of the accumulators, for every possible input (SPEC section 7)."""
        return {}

    def run(self, v: View, x: dict[str, Int64]) -> dict[str, Int64]:
        """The definition: int64 inputs of one image by port -> int64 outputs by port."""
        raise NotImplementedError

    def order(self, v: View) -> tuple[str, ...]:
        """Output ports in the order in which they are made."""
        return self.outputs


def dot_bound(weight: Int64, low: int, high: int, shift: Int64, bias: Int64, after: Int64) -> Bound:
    """Interval of bias + sum(x * w) << shift with x in [low, high]; `after`: shift of the next requantization.

    weight: int64 [O, I]; shift: int64, broadcasts to [O, I]; bias, after: int64 [O].
    """
    scaled = weight << shift
    positive = np.maximum(scaled, 0).sum(axis=1)
    negative = scaled.sum(axis=1) - positive
    least = bias + low * positive + high * negative
    return Bound(least, bias + high * positive + low * negative + rounding_constant(after))


def rounding_constant(shift: Int64) -> Int64:
    """2^(s-1) for s > 0, else 0: what a rounding unit adds before it shifts."""
    return np.where(shift > 0, np.int64(1) << np.maximum(shift - 1, 0), 0).astype(np.int64)


def format_limits(tensor: Tensor) -> tuple[int, int]:
    return limits(tensor.bits, tensor.signed)
