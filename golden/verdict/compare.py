"""The comparison of a DUT's dumps with a golden bundle, and the place of the first mismatch.

    compare(bundle, folder) -> Verdict

*First* is in execution order (SPEC section 4): image by image, operator by operator; within an operator tensor by
tensor, each from its first token on.  The scan is a loop over tokens, so that its tensors take turns: everything of
token t comes before anything of token t + 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from golden.formats import Elements
from golden.verdict.dumps import Dump, Folder
from golden.verify import Bundle
from intsim.arithmetic import Int64, limits
from intsim.errors import UserError
from intsim.program import Array

LOOPS = ("scan",)  # kinds whose tensors are made token by token
NEIGHBOURS = 3


@dataclass(frozen=True)
class Row:
    """One dump, compared.

    mismatches: elements that differ or are unknown; unknown: those with x or z bits.  largest: largest |difference|
    of the known ones.  first: flat row-major number of the first mismatch, None where all agree.
    """

    dump: Dump
    elements: int
    mismatches: int
    unknown: int
    largest: int
    first: int | None


@dataclass(frozen=True)
class Element:
    """One element of a tensor: expected and actual; actual None where bits are unknown."""

    index: tuple[int, ...]
    expected: int
    actual: int | None

    @property
    def same(self) -> bool:
        return self.expected == self.actual


@dataclass(frozen=True)
class Mismatch:
    """The first mismatch.

    element: where and what.  word, lane: in the DUT's file.  bits: those that differ, ascending; None where the
    element has unknown bits.  before, after: neighbours in the file's order.  extent: axis -> (positions with a
    mismatch, first, last, length of the axis).  inputs: the operator's input tensors and whether their dumps agree
    ("agrees", "differs", "not dumped").
    """

    row: Row
    operator: str | None
    kind: str | None
    element: Element
    word: int
    lane: int
    bits: list[int] | None
    before: list[Element]
    after: list[Element]
    extent: dict[str, tuple[int, int, int, int]]
    inputs: dict[str, str]


def wide(values: Array, what: str) -> Int64:
    """Any integers as int64; UserError for what lies beyond it (no tensor of a Program does)."""
    if values.dtype == np.uint64 and values.size and int(values.max()) >= 1 << 63:
        raise UserError(f"{what}: holds {int(values.max())}, which no signed 64-bit integer can be")
    return values.astype(np.int64)


class Comparison:
    """Rows for all dumps, and the arrays behind them, which are read again when they are asked for."""

    def __init__(self, bundle: Bundle, folder: Folder, progress: Callable[[int, int], None] = lambda done, total: None):
        self.bundle = bundle
        self.folder = folder
        self.rows: list[Row] = []
        for number, dump in enumerate(folder.dumps):
            self.rows.append(self._row(dump))
            progress(number + 1, len(folder.dumps))

    def expected(self, image: int, name: str) -> Int64:
        return wide(self.bundle.values(image, name), name)

    def actual(self, dump: Dump) -> Elements:
        found = self.folder.read(dump)
        return Elements(wide(found.values, str(self.folder.folder / dump.path)), found.unknown)

    def _row(self, dump: Dump) -> Row:
        expected, found = self.expected(dump.image, dump.tensor), self.actual(dump)
        differs = found.values != expected
        unknown = 0
        known = differs
        if found.unknown is not None:
            unknown = int(found.unknown.sum())
            known = differs & ~found.unknown
            differs = differs | found.unknown
        count = int(differs.sum())
        largest = 0
        if known.any():
            a, b = found.values[known].view(np.uint64), expected[known].view(np.uint64)  # exact modulo 2^64
            largest = int(np.where(found.values[known] > expected[known], a - b, b - a).max())
        first = int(differs.argmax()) if count else None
        return Row(dump, expected.size, count, unknown, largest, first)

    def first(self) -> Row | None:
        """The dump with the first mismatch in execution order."""
        wrong = [row for row in self.rows if row.first is not None]
        return min(wrong, key=self._when, default=None)

    def _when(self, row: Row) -> tuple[int, int, int, int, int]:
        """(image, operator, token if the operator is a loop, port, element) of a row's first mismatch."""
        program = self.bundle.program
        op = program.producer(row.dump.tensor)
        assert row.first is not None
        if op is None:
            return row.dump.image, -1, 0, 0, row.first
        port = op.outputs.index(row.dump.tensor[len(op.name) + 1 :])
        shape = program.tensors[row.dump.tensor].shape
        token = int(np.unravel_index(row.first, shape)[0]) if op.kind in LOOPS else 0
        return row.dump.image, program.operators.index(op), token, port, row.first

    def mismatch(self, row: Row) -> Mismatch:
        """What there is to say about the first mismatch of a row."""
        program, dump = self.bundle.program, row.dump
        expected, found = self.expected(dump.image, dump.tensor), self.actual(dump)
        unknown = found.unknown if found.unknown is not None else np.zeros(expected.shape, dtype=bool)
        assert row.first is not None

        def element(flat: int) -> Element:
            index = tuple(int(i) for i in np.unravel_index(flat, expected.shape))
            return Element(index, int(expected[index]), None if unknown[index] else int(found.values[index]))

        layout = dump.layout
        stream = layout.index if dump.format.packed else None
        word, lane = place(dump, row.first)
        position = row.first if stream is None else int(np.flatnonzero(stream == row.first)[0])
        order = np.arange(expected.size) if stream is None else stream[stream >= 0]
        at = position if stream is None else int(np.count_nonzero(stream[:position] >= 0))
        before = [element(int(i)) for i in order[max(0, at - NEIGHBOURS) : at]]
        after = [element(int(i)) for i in order[at + 1 : at + 1 + NEIGHBOURS]]
        here = element(row.first)
        bits = None
        if here.actual is not None:
            declared = program.tensors[dump.tensor]
            bits = differing_bits(here.expected, here.actual, declared.bits, declared.signed)
        differs = (found.values != expected) | unknown
        extent = {}
        axes = program.tensors[dump.tensor].axes
        for number, axis in enumerate(axes):
            hit = np.flatnonzero(differs.any(axis=tuple(i for i in range(len(axes)) if i != number)))
            extent[axis] = (len(hit), int(hit[0]), int(hit[-1]), expected.shape[number])
        op = program.producer(dump.tensor)
        inputs = {name: self._state(dump.image, name) for name in (op.inputs.values() if op else ())}
        kind, name = (op.kind, op.name) if op else (None, None)
        return Mismatch(row, name, kind, here, word, lane, bits, before, after, extent, inputs)

    def _state(self, image: int, name: str) -> str:
        rows = [row for row in self.rows if (row.dump.image, row.dump.tensor) == (image, name)]
        if not rows:
            return "not dumped"
        return "differs" if any(row.mismatches for row in rows) else "agrees"


def place(dump: Dump, flat: int) -> tuple[int, int]:
    """(word, lane) of an element in a dump's file; where lanes do not apply, each element is a word."""
    if not dump.format.packed:
        return flat, 0
    word, lane = dump.layout.place(flat)
    if dump.format.ending == "h":
        return word * dump.layout.packing.lanes + lane, 0
    return word, lane


def differing_bits(expected: int, actual: int, bits: int, signed: bool) -> list[int]:
    """Numbers of the bits that differ, ascending; those above `bits` only if `actual` is outside the format."""
    low, high = limits(bits, signed)
    xor = (expected ^ actual) & ((1 << (bits if low <= actual <= high else 64)) - 1)
    return [bit for bit in range(64) if xor >> bit & 1]


def missing(bundle: Bundle, rows: list[Row]) -> int:
    """How many tensors of the bundle (each image's counted) no dump was found of."""
    found = {(row.dump.image, row.dump.tensor) for row in rows}
    return sum((image, name) not in found for image, entry in enumerate(bundle.images) for name in entry["tensors"])
