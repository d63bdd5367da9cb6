"""What the search for a hint looks at: the tensor with the first mismatch, and everything around it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from golden.formats import Layout
from golden.verdict.compare import Comparison, Row, wide
from intsim.arithmetic import Int64, int64, limits
from intsim.operators.base import View
from intsim.program import Array, Operator, Program, Tensor

Recompute = Callable[[Array, Iterable[str]], dict[str, Array]]


@dataclass
class Scene:
    """The tensor with the first mismatch.

    expected, actual: int64 in the tensor's shape.  unknown: bool, or None.  recompute: makes tensors that the bundle
    does not hold, (pixels, names) -> arrays of one image.
    """

    comparison: Comparison
    row: Row
    recompute: Recompute
    expected: Int64 = field(init=False)
    actual: Int64 = field(init=False)
    unknown: Array | None = field(init=False)
    cache: dict[tuple[int, str], Int64] = field(default_factory=dict)

    def __post_init__(self) -> None:
        dump = self.row.dump
        self.expected = self.comparison.expected(dump.image, dump.tensor)
        found = self.comparison.actual(dump)
        self.actual, self.unknown = found.values, found.unknown

    @property
    def program(self) -> Program:
        return self.comparison.bundle.program

    @property
    def tensor(self) -> Tensor:
        return self.program.tensors[self.row.dump.tensor]

    @property
    def layout(self) -> Layout:
        return self.row.dump.layout

    @property
    def op(self) -> Operator | None:
        return self.program.producer(self.tensor.name)

    @property
    def view(self) -> View:
        op = self.op
        assert op is not None
        return View(self.program, op)

    @property
    def port(self) -> str:
        op = self.op
        return self.tensor.name[len(op.name) + 1 :] if op else ""

    def golden(self, name: str, image: int | None = None) -> Int64:
        """A tensor as it must be; from the bundle, or computed where the bundle does not hold it."""
        image = self.row.dump.image if image is None else image
        key = (image, name)
        if key not in self.cache:
            bundle = self.comparison.bundle
            if bundle.has(image, name):
                self.cache[key] = self.comparison.expected(image, name)
            else:
                made = self.recompute(bundle.values(image, "image"), [name])
                self.cache[key] = wide(made[name], name)
        return self.cache[key]

    def dumped(self, name: str) -> Int64 | None:
        """A tensor as the DUT has it, if it was dumped and is known whole."""
        if name == self.tensor.name:
            return self.actual if self.unknown is None else None
        for row in self.comparison.rows:
            if (row.dump.image, row.dump.tensor) == (self.row.dump.image, name) and not row.unknown:
                return self.comparison.actual(row.dump).values
        return None

    def source(self, name: str) -> Int64:
        """A tensor as the DUT's next step saw it: its dump, or what it must be."""
        found = self.dumped(name)
        return self.golden(name) if found is None else found

    def output(self, port: str) -> Int64:
        op = self.op
        assert op is not None
        return self.source(op.tensor(port))

    def input(self, port: str) -> Int64:
        op = self.op
        assert op is not None
        return self.source(op.inputs[port])

    def input_bits(self, port: str) -> int:
        op = self.op
        assert op is not None
        return self.program.tensors[op.inputs[port]].bits

    def array(self, role: str) -> Int64:
        return self.view.array(role)


def wrap(values: Int64, bits: int, signed: bool) -> Int64:
    """The low `bits` bits of integers, as a register of that width holds them."""
    if bits >= 64:
        return values
    low = values & int64((1 << bits) - 1)
    return np.where(low >> (bits - 1) & 1, low - (1 << bits), low) if signed else low


def unsigned(values: Int64, bits: int) -> Int64:
    """Integers whose sign bit is taken for a value bit."""
    if bits >= 64:
        return values
    return values & int64((1 << bits) - 1)


def clip(values: Int64, bits: int, signed: bool) -> Int64:
    low, high = limits(bits, signed)
    return np.clip(values, low, high)
