"""Which inputs a stream of unit vectors holds: levels, boundary values, and the generator (FORMAT.md section 13).

Every draw is a function of (seed, unit, field, purpose, line, element) and of nothing else: a stream does not depend
on the size of a chunk, on NumPy's generators or on its version.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from golden.vectors.lines import Field
from intsim.arithmetic import Int64
from intsim.program import Array

EXHAUSTIVE = 1 << 21  # a domain of at most so many inputs is run through
DEFAULT_COUNT = 100_000
ONE_HOT = 16  # elements of a packed field that are tried alone

Draw = Callable[[str], Array]  # purpose -> uint64 [n], random words of the lines of a chunk


@dataclass(frozen=True)
class Input(Field):
    """A field of inputs.

    low, high: the integers it may hold, if fewer than its width allows.
    table: [rows, size] the only contents that are drawn (constants of an operator), or None.
    link: fields of the same link take the same row of their tables in a line.
    """

    low: int | None = None
    high: int | None = None
    table: Int64 | None = None
    link: str = ""

    @property
    def range(self) -> tuple[int, int]:
        low, high = self.limits()
        return (low if self.low is None else self.low), (high if self.high is None else self.high)

    @cached_property
    def edges(self) -> Int64:
        """Boundary values of one integer, ascending: see `boundary_values`."""
        return boundary_values(self.bits, self.signed, *self.range)

    @cached_property
    def patterns(self) -> Int64:
        """[patterns, size] boundary contents: of a packed field every boundary value in all elements, extremes that
        alternate, and one element apart from zeros."""
        if self.table is not None:
            return self.table
        if not self.count:
            return self.edges[:, None]
        low, high = self.range
        odd = np.arange(self.count) % 2 == 1
        rows = [np.full(self.count, edge) for edge in self.edges]
        rows += [np.where(odd, low, high), np.where(odd, high, low)]
        rest = min(max(0, low), high)
        places = range(self.count)
        if self.count > ONE_HOT:
            places = [i * (self.count - 1) // (ONE_HOT - 1) for i in range(ONE_HOT)]  # type: ignore[assignment]
        for place in places:
            for value in (low, high):
                if value != rest:
                    row = np.full(self.count, rest)
                    row[place] = value
                    rows.append(row)
        return np.array(rows, dtype=np.int64)


def boundary_values(bits: int, signed: bool, low: int, high: int) -> Int64:
    """0, +-1, the extremes and their neighbours, powers of two and their neighbours, alternating bits; in range."""
    found = {0, 1, -1, low, low + 1, high, high - 1}
    for power in range(bits + 1):
        for near in (-1, 0, 1):
            found |= {(1 << power) + near, -(1 << power) + near}
    ones = (1 << bits) - 1
    for pattern in (ones // 3, ones // 3 << 1 & ones):  # 0101 and 1010
        found |= {pattern, pattern - (1 << bits)}
    return np.array(sorted(v for v in found if low <= v <= high), dtype=np.int64)


class Generator:
    """The counter-based generator: SplitMix64's finalizer of key + (counter + 1) * golden ratio, modulo 2^64.

    The key is the first 8 bytes, little-endian, of the SHA-256 of `SEED UNIT PURPOSE`; the counter is
    line * elements + element.
    """

    def __init__(self, seed: int, unit: str):
        self.seed, self.unit = seed, unit
        self.keys: dict[str, np.uint64] = {}

    def words(self, purpose: str, start: int, n: int, elements: int = 0) -> Array:
        """uint64 [n], or [n, elements]: the words of lines start .. start + n - 1."""
        if purpose not in self.keys:
            digest = hashlib.sha256(f"{self.seed} {self.unit} {purpose}".encode()).digest()
            self.keys[purpose] = np.uint64(int.from_bytes(digest[:8], "little"))
        size = max(elements, 1)
        counter = np.arange(start * size + 1, (start + n) * size + 1, dtype=np.uint64)
        z = self.keys[purpose] + counter * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
        return z.reshape(n, elements) if elements else z


def pick(words: Array, n: int) -> Int64:
    """0 .. n - 1 by the remainder of the upper 32 bits."""
    return ((words >> np.uint64(32)) % np.uint64(n)).astype(np.int64)


def mixed(field: Input, choice: Array, value: Array) -> Int64:
    """Integers of a field, by two words each: a quarter boundary values, a quarter uniform, half of random length."""
    low, high = field.range
    kind = choice & np.uint64(3)
    length = pick(choice, field.bits + 1).astype(np.uint64)
    magnitude = (value & ((np.uint64(1) << length) - np.uint64(1))).view(np.int64)
    sized = np.where(choice & np.uint64(4), -magnitude, magnitude) if low < 0 else magnitude
    uniform = (value % np.uint64(high - low + 1)).view(np.int64) + low
    edge = field.edges[pick(choice, len(field.edges))]
    return np.select([kind == 0, kind == 1], [edge, uniform], np.clip(sized, low, high))


@dataclass(frozen=True)
class Stream:
    """The inputs of one unit: lines 0 .. count - 1.

    bend: changes a chunk's inputs so that cases lie on the unit's own corners; it gets random words by purpose.
    fit: moves inputs into the unit's domain (an accumulator that would leave its width).
    """

    unit: str
    fields: tuple[Input, ...]
    seed: int
    level: int
    limit: int | None = None
    bend: Callable[[dict[str, Int64], Draw], None] | None = None
    fit: Callable[[dict[str, Int64]], None] | None = None

    @cached_property
    def axes(self) -> list[list[Input]]:
        """Fields that vary together: those of one link, every other by itself."""
        found: dict[str, list[Input]] = {}
        for field in self.fields:
            found.setdefault(field.link or f"field {field.name}", []).append(field)
        return list(found.values())

    @cached_property
    def generator(self) -> Generator:
        return Generator(self.seed, self.unit)

    @cached_property
    def domain(self) -> int:
        """Number of different inputs."""
        total = 1
        for axis in self.axes:
            total *= self._domain_of(axis)
        return total

    @staticmethod
    def _domain_of(axis: list[Input]) -> int:
        if axis[0].table is not None:
            return len(axis[0].table)
        low, high = axis[0].range
        return int((high - low + 1) ** axis[0].size)

    @cached_property
    def exhaustive(self) -> bool:
        return self.domain <= EXHAUSTIVE and (self.limit is None or self.limit >= self.domain)

    @cached_property
    def blocks(self) -> list[tuple[list[Input], list[Input] | None, int]]:
        """Pairs of axes with the number of their pairs of boundary contents; a unit of one axis has it alone."""
        sizes = [len(axis[0].patterns) for axis in self.axes]
        if len(self.axes) == 1:
            return [(self.axes[0], None, sizes[0])]
        return [
            (self.axes[i], self.axes[j], sizes[i] * sizes[j])
            for i in range(len(sizes))
            for j in range(i + 1, len(sizes))
        ]

    @cached_property
    def count(self) -> int:
        if self.exhaustive:
            return self.domain
        if self.limit is not None:
            return self.limit
        pairs = sum(size for _, _, size in self.blocks) if self.level == 2 else 0
        return max(DEFAULT_COUNT, pairs)

    def chunk(self, start: int, n: int) -> dict[str, Int64]:
        """The inputs of lines start .. start + n - 1: int64 [n] for each field, [n, count] for packed ones."""
        if self.exhaustive:
            return self._every(start, n)
        columns = self._mix(start, n)
        if self.bend is not None:
            self.bend(columns, lambda purpose: self.generator.words(purpose, start, n))
        if self.level == 2:
            self._pairs(columns, start, n)
        if self.fit is not None:
            self.fit(columns)
        return columns

    def _mix(self, start: int, n: int) -> dict[str, Int64]:
        columns = {}
        for axis in self.axes:
            rows = None
            if axis[0].table is not None:
                rows = pick(self.generator.words(f"{axis[0].link or axis[0].name} row", start, n), len(axis[0].table))
            for field in axis:
                if field.table is not None and rows is not None:
                    columns[field.name] = _shaped(field, field.table[rows])
                    continue
                words = [self.generator.words(f"{field.name} {p}", start, n, field.count) for p in ("choice", "value")]
                values = mixed(field, words[0], words[1])
                if field.count:  # in a quarter of the lines the whole word is a boundary content
                    whole = self.generator.words(f"{field.name} whole", start, n)
                    chosen = whole & np.uint64(3) == 0
                    values[chosen] = field.patterns[pick(whole[chosen], len(field.patterns))]
                columns[field.name] = values
        return columns

    def _pairs(self, columns: dict[str, Int64], start: int, n: int) -> None:
        """Overwrites the two axes of each line that belongs to a block."""
        first = 0
        for left, right, size in self.blocks:
            lines = np.arange(max(start, first), min(start + n, first + size), dtype=np.int64)
            if len(lines):
                width = 1 if right is None else len(right[0].patterns)
                for axis, rows in ((left, (lines - first) // width), (right, (lines - first) % width)):
                    for field in axis or ():
                        columns[field.name][lines - start] = _shaped(field, field.patterns[rows])
            first += size

    def _every(self, start: int, n: int) -> dict[str, Int64]:
        """The domain in order, the last axis fastest; in a packed field the last element is fastest."""
        rest = np.arange(start, start + n, dtype=np.int64)
        columns = {}
        for axis in reversed(self.axes):
            size = self._domain_of(axis)
            rows, rest = rest % size, rest // size
            for field in axis:
                if field.table is not None:
                    columns[field.name] = _shaped(field, field.table[rows])
                    continue
                low, high = field.range
                span = high - low + 1
                places = [span ** (field.size - 1 - i) for i in range(field.size)]
                columns[field.name] = _shaped(field, rows[:, None] // np.array(places) % span + low)
        return columns


def _shaped(field: Input, values: Int64) -> Int64:
    """[n, size] -> [n] for a field of one integer."""
    return values if field.count else values[:, 0]
