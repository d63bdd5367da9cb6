"""The Program: a list of operators with named integer tensors, constants and shifts (SPEC section 3).

A Program is plain data.  `intsim.builder.Builder` makes one, `intsim.validate` checks one, `intsim.program_file`
reads and writes the file, `intsim.oracle` and `intsim.engine` run it, `golden` exports it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intsim.arithmetic import Int64, container, int64
from intsim.errors import ProgramError, UserError

AXES = ("row", "column", "token", "channel", "state")
ROLES = ("input", "output", "accumulator", "state", "internal")
OVERFLOWS = ("wrap", "saturate")

Array = NDArray[Any]


@dataclass(frozen=True)
class Term:
    """A part of a tensor's scale that depends on the position along one axis (SPEC section 1).

    Either a group term (`shifts`, `index` = name of the constant with the group of each position) or an offset
    term (`offset` = name of the constant with the exponent to add at each position).
    """

    axis: str
    shifts: tuple[int, ...] | None = None
    index: str | None = None
    offset: str | None = None

    def to_json(self) -> dict[str, Any]:
        if self.offset is not None:
            return {"axis": self.axis, "offset": self.offset}
        return {"axis": self.axis, "shifts": list(self.shifts or ()), "index": self.index}


@dataclass(frozen=True)
class Tensor:
    """Declaration of a tensor: real value = q * 2^(exponent + terms).  `exponent` None: scale set by SPEC text.

    overflow: of an accumulator that is narrower than its proof asks for, "wrap" or "saturate" (SPEC section 13).
    """

    name: str
    role: str
    axes: tuple[str, ...]
    shape: tuple[int, ...]
    bits: int
    signed: bool
    exponent: int | None
    terms: tuple[Term, ...] = ()
    overflow: str | None = None

    @property
    def dtype(self) -> np.dtype:
        """Container of the integers: the smallest NumPy integer dtype that holds `bits`."""
        return container(self.bits, self.signed)

    def group(self, axis: str) -> Term | None:
        """The group term along `axis`, or None."""
        return next((t for t in self.terms if t.axis == axis and t.shifts is not None), None)

    def to_json(self) -> dict[str, Any]:
        stated: dict[str, Any] = {
            "role": self.role,
            "axes": list(self.axes),
            "shape": list(self.shape),
            "bits": self.bits,
            "signed": self.signed,
            "exponent": self.exponent,
            "terms": [t.to_json() for t in self.terms],
        }
        if self.overflow is not None:
            stated["overflow"] = self.overflow
        return stated


@dataclass(frozen=True)
class Constant:
    """Declaration of a constant; its integers are `Program.arrays[name]`."""

    name: str
    axes: tuple[str, ...]
    shape: tuple[int, ...]
    bits: int
    signed: bool
    exponent: int | None = None
    terms: tuple[Term, ...] = ()

    @property
    def dtype(self) -> np.dtype:
        return container(self.bits, self.signed)

    def to_json(self) -> dict[str, Any]:
        return {
            "axes": list(self.axes),
            "shape": list(self.shape),
            "bits": self.bits,
            "signed": self.signed,
            "exponent": self.exponent,
            "terms": [t.to_json() for t in self.terms],
        }


@dataclass(frozen=True)
class Operator:
    """One step: reads `inputs` (port -> tensor name), makes the tensors `name.port` for each of `outputs`."""

    name: str
    kind: str
    inputs: dict[str, str]
    constants: dict[str, str]
    attributes: dict[str, Any]
    outputs: tuple[str, ...]

    def tensor(self, port: str) -> str:
        """Name of the tensor that this operator makes at `port`."""
        return f"{self.name}.{port}"

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "kind": self.kind,
            "inputs": dict(self.inputs),
            "constants": dict(self.constants),
            "attributes": dict(self.attributes),
            "outputs": list(self.outputs),
        }


@dataclass
class Program:
    """A whole network in integers.

    image: (height, width, channels) of the uint8 input `image`.
    arrays: constant name -> integer array in the container of its declaration.
    digest: the Program's hash (SPEC 3.1), set when it is loaded or saved, else None.
    """

    name: str
    profile: str
    rounding: str
    image: tuple[int, int, int]
    classes: list[str]
    provenance: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    constants: dict[str, Constant] = field(default_factory=dict)
    arrays: dict[str, Array] = field(default_factory=dict)
    operators: list[Operator] = field(default_factory=list)
    digest: str | None = None

    @property
    def spec(self) -> str:
        """The lowest version of SPEC.md that has all that the Program uses."""
        return "1.1" if self.narrowed else "1.0"

    @property
    def narrowed(self) -> list[str]:
        """Names of the accumulators that may overflow (SPEC section 13)."""
        return [name for name, tensor in self.tensors.items() if tensor.overflow is not None]

    def require_full_width(self, what: str) -> None:
        """Raises UserError for a Program with a narrow accumulator; what: the rest of the sentence."""
        if self.narrowed:
            raise UserError(f"accumulator {self.narrowed[0]} may overflow (a what-if, SPEC section 13): {what}")

    @property
    def logits(self) -> str:
        """Name of the tensor that holds the logits: the last operator's last output."""
        last = self.operators[-1]
        return last.tensor(last.outputs[-1])

    def operator(self, name: str) -> Operator:
        for op in self.operators:
            if op.name == name:
                return op
        raise ProgramError(f"the Program has no operator {name!r}")

    def producer(self, tensor: str) -> Operator | None:
        """The operator that makes `tensor`; None for the image."""
        name, _, port = tensor.rpartition(".")
        for op in self.operators:
            if op.name == name and port in op.outputs:
                return op
        return None

    def term_values(self, term: Term) -> Int64:
        """The integers that a term adds to the exponent, one for each position along its axis."""
        if term.offset is not None:
            return int64(self.arrays[term.offset])
        shifts = np.array(term.shifts, dtype=np.int64)
        return shifts[int64(self.arrays[term.index or ""])]

    def shifts(self, tensor: str, axis: str) -> Int64:
        """Group shift at each position of `tensor` along `axis`, zeros without a group term (SPEC section 5)."""
        declared = self.tensors[tensor]
        term = declared.group(axis)
        if term is not None:
            return self.term_values(term)
        return np.zeros(declared.shape[declared.axes.index(axis)], dtype=np.int64)

    def exponents(self, tensor: str, axis: str) -> Int64:
        """Exponent at each position of `tensor` along `axis`: the base exponent and this axis' terms."""
        declared = self.tensors[tensor]
        if declared.exponent is None:
            raise ProgramError(f"tensor {tensor} has no fixed exponent")
        total = np.full(declared.shape[declared.axes.index(axis)], declared.exponent, dtype=np.int64)
        for term in declared.terms:
            if term.axis == axis:
                total = total + self.term_values(term)
        return total

    def exponent_grid(self, name: str) -> Int64:
        """Exponents of a tensor or constant at every element, as an array that broadcasts to its shape."""
        declared = self.tensors[name] if name in self.tensors else self.constants[name]
        if declared.exponent is None:
            raise ProgramError(f"{name} has no fixed exponent")
        total = np.full((1,) * len(declared.shape), declared.exponent, dtype=np.int64)
        for term in declared.terms:
            axis = declared.axes.index(term.axis)
            shape = [1] * len(declared.shape)
            shape[axis] = declared.shape[axis]
            total = total + self.term_values(term).reshape(shape)
        return total
