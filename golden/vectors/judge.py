"""Reads lines of unit vectors with a DUT's answers appended, and finds the first that is wrong.

Nothing in a line is believed: the outputs are computed again from its inputs, and both the expected fields and the
answers are held against them.  Lines are read in pieces of bounded size; a piece in the writer's own layout is taken
apart at once, any other line by line.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO

import numpy as np

from golden.vectors.draw import Stream
from golden.vectors.lines import Columns, Field, encode, from_digits
from golden.vectors.units import Case
from intsim.arithmetic import Int64
from intsim.errors import UserError
from intsim.program import Array

PIECE = 1 << 20  # bytes read at a time
SHOWN = 80  # characters of a word that a message shows
WORD = re.compile(rb"[0-9a-fA-F_]*[0-9a-fA-F][0-9a-fA-F_]*")
UNKNOWN = re.compile(rb"[0-9a-fA-FxXzZ_]+")  # what a simulator prints for bits that it does not know

Unknown = dict[tuple[int, str], bytes]  # (row, output) -> the word


@dataclass(frozen=True)
class Fault:
    """A wrong answer.  element: of a packed output; expected, actual: hexadecimal, actual with x and z if it has."""

    line: int
    output: str
    element: int | None
    expected: str
    actual: str
    sentence: str


class LineError(UserError):
    """A line that cannot be judged."""

    def __init__(self, number: int, problem: str):
        super().__init__(f"line {number}: {problem}")
        self.number = number


@dataclass
class Verdict:
    lines: int = 0
    errors: int = 0
    first: Fault | None = None


def judge(
    case: Case,
    source: BinaryIO,
    stream: Stream | None = None,
    go_on: bool = False,
    report: Callable[[Fault], None] | None = None,
) -> Verdict:
    """Judges the lines of `source` up to the first wrong answer, or all of them.

    stream: if given, the lines must be exactly its lines.  go_on: count all wrong answers.  report: gets each.
    Raises UserError with the line's number for a line that is none, for inputs outside the unit's domain, for expected
    fields that are not what SPEC gives, and for an empty or incomplete stream.
    """
    verdict = Verdict()
    for start, lines in _pieces(source, case):
        problem = None
        while True:  # what comes before a line that cannot be used is judged first
            try:
                faults = _examine(case, stream, lines, start)
                break
            except LineError as found:
                problem, lines = found, lines[: found.number - start]
        for make in faults:
            fault = make()
            verdict.errors += 1
            verdict.first = verdict.first or fault
            if report is not None:
                report(fault)
            if not go_on:
                verdict.lines = fault.line
                return verdict
        if problem is not None:
            raise problem
        verdict.lines += len(lines)
    if not verdict.lines:
        raise UserError("there is no line to judge, standard input was empty")
    if stream is not None and verdict.lines < stream.count:
        raise UserError(f"the stream ends after line {verdict.lines:,} of {stream.count:,}")
    return verdict


def _examine(case: Case, stream: Stream | None, lines: list[bytes], start: int) -> list[Callable[[], Fault]]:
    """The wrong answers of a piece.  Raises LineError for a line that cannot be judged."""
    if not lines:
        return []
    n = len(lines)
    given, answers, unknown = _parse(case, lines, start)
    inputs = {f.name: given[f.name] for f in case.inputs}
    _check_inputs(case, inputs, start)
    if stream is not None:
        _check_stream(case, stream, inputs, start)
    made = _outputs(case, inputs, start)
    for row in _rows(_differ(case.outputs, given, made, n)):
        _refuse_expected(case, given, made, row, start + row)
    wrong = _differ(case.outputs, answers, made, n)
    wrong[[row for row, _ in unknown]] = True
    return [partial(_fault, case, inputs, made, answers, unknown, row, start + row) for row in _rows(wrong)]


def _pieces(source: BinaryIO, case: Case) -> Iterator[tuple[int, list[bytes]]]:
    """(number of the first line, lines without their ends), bounded in memory whatever comes."""
    longest = 2 * sum(f.digits + 2 for f in (*case.fields, *case.outputs)) + 256
    number, rest = 1, b""
    read = getattr(source, "read1", source.read)
    while True:
        data = read(PIECE)
        lines = (rest + data).split(b"\n")
        rest = lines.pop()
        if lines:
            yield number, lines
            number += len(lines)
        if len(rest) > longest:
            raise LineError(number, f"it is longer than {longest} characters")
        if not data:
            if rest:
                raise LineError(number, "it does not end with a line feed, so it may be cut off")
            return


def _parse(case: Case, lines: list[bytes], start: int) -> tuple[Columns, Columns, Unknown]:
    """(inputs and expected outputs, answers, answers with unknown digits) of a piece."""
    unknown: Unknown = {}
    fields = (*case.fields, *case.outputs)
    columns = _columns(b"\n".join([*lines, b""]), fields, len(lines))
    if columns is None:  # not as the writer lays it out, or with a word that is none
        tidy = b"".join(_tidy(case, line, i, start + i, unknown) for i, line in enumerate(lines))
        columns = _columns(tidy, fields, len(lines))
        assert columns is not None
    names = [f.name for f in fields]
    n = len(case.fields)
    return dict(zip(names[:n], columns, strict=False)), dict(zip(names[n:], columns[n:], strict=True)), unknown


def _columns(text: bytes, fields: Sequence[Field], n: int) -> list[Int64] | None:
    """The columns of n lines in the writer's layout; None if any character is not in its place."""
    ends = np.cumsum([f.digits + 1 for f in fields])
    if len(text) != n * ends[-1]:
        return None
    table: Array = np.frombuffer(text, dtype=np.uint8).reshape(n, ends[-1])
    if (table[:, ends[:-1] - 1] != ord(" ")).any() or (table[:, -1] != ord("\n")).any():
        return None
    columns = []
    for field, end in zip(fields, ends, strict=True):
        values, bad = from_digits(table[:, end - 1 - field.digits : end - 1], field)
        if bad.any():
            return None
        columns.append(values)
    return columns


def _tidy(case: Case, line: bytes, row: int, number: int, unknown: Unknown) -> bytes:
    """A line in the writer's layout.  An answer with x or z digits becomes 0 and is noted in `unknown`."""
    fields = (*case.fields, *case.outputs)
    words = line.split()
    if len(words) != len(fields):
        names = " ".join([*(f.name for f in case.fields), *(f"{f.name}(DUT)" for f in case.outputs)])
        raise LineError(number, f"it has {len(words)} words, must have {len(fields)}: {names}")
    made = []
    for i, (field, word) in enumerate(zip(fields, words, strict=True)):
        what = f"{field.name} is {_short(ascii(word)[2:-1])!r}"
        if not WORD.fullmatch(word):
            if i < len(case.fields) or not UNKNOWN.fullmatch(word):
                raise LineError(number, f"{what}, must be a hexadecimal word")
            unknown[row, field.name] = word
            word = b"0"
        value = int(word.replace(b"_", b""), 16)
        if value >> (field.bits * field.size):
            width = field.bits * field.size
            raise LineError(number, f"{what}, wider than {width} bits (negative integers are masked to them)")
        made.append(b"%0*x" % (field.digits, value))
    return b" ".join(made) + b"\n"


def _rows(marks: Array) -> list[int]:
    return [int(row) for row in np.flatnonzero(marks)]


def _differ(outputs: Sequence[Field], left: Columns, right: Columns, n: int) -> Array:
    """Which of n lines differ in any of `outputs`."""
    marks = np.zeros(n, dtype=bool)
    for field in outputs:
        marks |= (left[field.name] != right[field.name]).reshape(n, -1).any(axis=1)
    return marks


def _outside(values: Int64, low: int, high: int) -> Array:
    """The lines that hold an integer outside low .. high."""
    marks: Array = np.logical_or(values < low, values > high).reshape(len(values), -1)
    return np.flatnonzero(marks.any(axis=1))


def _check_inputs(case: Case, inputs: Columns, start: int) -> None:
    for field in case.inputs:
        low, high = field.range
        for row in _outside(inputs[field.name], low, high):
            word = _word(inputs, field, row)
            raise LineError(start + row, f"{field.name} is {word}, allowed are {low} .. {high}")


def _check_stream(case: Case, stream: Stream, inputs: Columns, start: int) -> None:
    n = len(next(iter(inputs.values())))
    if start - 1 + n > stream.count:
        raise LineError(stream.count + 1, f"the stream has {stream.count:,} lines only")
    for row in _rows(_differ(case.inputs, inputs, stream.chunk(start - 1, n), n)):
        raise LineError(
            start + row,
            "the inputs are not those of this line of the stream; judge needs the seed, level, count and parameters "
            "that vectors had, and every line in order",
        )


def _outputs(case: Case, inputs: Columns, start: int) -> Columns:
    made = case.compute(inputs)
    for field in case.outputs:
        low, high = field.limits()
        for row in _outside(made[field.name], low, high):
            raise LineError(start + row, f"{field.name} would leave its {field.bits} bits, which SPEC excludes")
    return made


def _refuse_expected(case: Case, given: Columns, made: Columns, row: int, number: int) -> None:
    field, _ = _place(case, given, made, row)
    raise LineError(
        number,
        f"the expected {field.name} is {_word(given, field, row)} in the line, but its inputs give "
        f"{_word(made, field, row)}; judge needs the parameters that vectors had, and fields passed on unchanged",
    )


def _place(case: Case, left: Columns, right: Columns, row: int) -> tuple[Field, int | None]:
    """The first output of a line that differs, and the first element of a packed one."""
    for field in case.outputs:
        marks = np.atleast_1d(left[field.name][row] != right[field.name][row])
        if marks.any():
            return field, (int(np.flatnonzero(marks)[0]) if field.count else None)
    raise ValueError("no output differs")


def _fault(
    case: Case, inputs: Columns, made: Columns, answers: Columns, unknown: Unknown, row: int, number: int
) -> Fault:
    strange = next((f for f in case.outputs if (row, f.name) in unknown), None)
    field, element = (strange, None) if strange else _place(case, answers, made, row)
    name = field.name if element is None else f"{field.name}[{element}]"
    one = Field(field.name, field.bits, field.signed)
    if element is None:
        expected, right = _word(made, field, row, whole=True), _word(made, field, row)
        actual = wrong = unknown[row, field.name].decode("ascii") if strange else _word(answers, field, row, whole=True)
        wrong = f"{_short(wrong)} (unknown bits)" if strange else _word(answers, field, row)
    else:
        expected, right = _element(one, made[field.name][row, element])
        actual, wrong = _element(one, answers[field.name][row, element])
    shown = ", ".join(f"{f.name} = {_word(inputs, f, row)}" for f in case.inputs)
    sentence = f"line {number}: {name} must be {right}, the DUT gave {wrong}; inputs: {shown}"
    return Fault(number, field.name, element, expected, actual, sentence)


def _element(one: Field, value: np.int64) -> tuple[str, str]:
    """An integer as digits, and as digits with the decimal behind it."""
    digits = encode([one], {one.name: np.array([value], dtype=np.int64)}).decode().strip()
    return digits, f"{digits} ({int(value)})"


def _word(columns: Columns, field: Field, row: int, whole: bool = False) -> str:
    """A field's digits in a line; unless `whole`, of bounded length and with the decimal of a single integer."""
    digits = encode([field], {field.name: columns[field.name][row : row + 1]}).decode().strip()
    if whole:
        return digits
    return _short(digits) if field.count else f"{digits} ({int(columns[field.name][row])})"


def _short(word: str) -> str:
    return word if len(word) <= SHOWN else f"{word[: SHOWN // 2]}...{word[-SHOWN // 2 :]}"
