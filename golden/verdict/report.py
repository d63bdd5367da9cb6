"""How a verdict is said: as text for a terminal, as a JSON object, as JUnit XML for CI."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from xml.sax.saxutils import escape, quoteattr

from golden.verdict import Verdict
from golden.verdict.compare import Element, Mismatch
from intsim.arithmetic import limits
from intsim.program import Tensor

SHORT = 12  # digits of a hash that are shown


def hexadecimal(value: int | None, tensor: Tensor) -> str:
    """Two's complement in the tensor's digits; in 16 digits where the value is outside its format; x if unknown."""
    digits = (tensor.bits + 3) // 4
    if value is None:
        return "x" * digits
    low, high = limits(tensor.bits, tensor.signed)
    if low <= value <= high:
        return f"{value & ((1 << tensor.bits) - 1):0{digits}x}"
    return f"{value & ((1 << 64) - 1):016x}"


def decimal(value: int | None) -> str:
    return "unknown" if value is None else str(value)


def position(index: tuple[int, ...], axes: tuple[str, ...]) -> str:
    return ", ".join(f"{axis} {i}" for axis, i in zip(axes, index, strict=True))


def first_mismatch(verdict: Verdict) -> dict[str, Any] | None:
    """The JSON object of the first mismatch."""
    first = verdict.first
    if first is None:
        return None
    dump = first.row.dump
    tensor = verdict.program.tensors[dump.tensor]

    def element(e: Element) -> dict[str, Any]:
        return {"index": list(e.index), "expected": e.expected, "actual": e.actual}

    here = first.element
    return {
        "image": dump.image,
        "operator": first.operator,
        "kind": first.kind,
        "tensor": dump.tensor,
        "axes": list(tensor.axes),
        "index": list(here.index),
        "expected": here.expected,
        "actual": here.actual,
        "expected_hex": hexadecimal(here.expected, tensor),
        "actual_hex": hexadecimal(here.actual, tensor),
        "bits": first.bits,
        "file": dump.path,
        "word": first.word,
        "lane": first.lane,
        "before": [element(e) for e in first.before],
        "after": [element(e) for e in first.after],
        "inputs": first.inputs,
        "hint": verdict.hints[0].text if verdict.hints else None,
        "hints": [
            {
                "signature": hint.kind,
                "detail": hint.detail,
                "certainty": hint.certainty,
                "explains": hint.explains,
                "differing": hint.differing,
                "false": hint.false,
            }
            for hint in verdict.hints
        ],
    }


def to_json(verdict: Verdict) -> dict[str, Any]:
    return {
        "ok": verdict.ok,
        "bundle": verdict.bundle,
        "dut": verdict.folder,
        "program": verdict.program.digest,
        "first_mismatch": first_mismatch(verdict),
        "tensors": [
            {
                "image": row.dump.image,
                "tensor": row.dump.tensor,
                "file": row.dump.path,
                "elements": row.elements,
                "mismatches": row.mismatches,
                "unknown": row.unknown,
                "largest_difference": row.largest,
            }
            for row in verdict.rows
        ],
        "not_dumped": verdict.missing,
        "ignored": verdict.ignored,
    }


def summary(verdict: Verdict) -> str:
    wrong = sum(row.mismatches > 0 for row in verdict.rows)
    elements = sum(row.elements for row in verdict.rows)
    count = f"{len(verdict.rows)} dump{'s' if len(verdict.rows) != 1 else ''}"
    if not wrong:
        return f"{count}, {elements:,} integers: all as they must be"
    bad = sum(row.mismatches for row in verdict.rows)
    return f"{wrong} of {count} differ{'s' if wrong == 1 else ''}, in {bad:,} of {elements:,} integers"


def mismatch_text(verdict: Verdict) -> Iterator[tuple[str, str]]:
    """(label, text) lines that describe the first mismatch; a label is empty where a line goes on."""
    first = verdict.first
    assert first is not None
    dump = first.row.dump
    tensor = verdict.program.tensors[dump.tensor]
    width = f"{'signed' if tensor.signed else 'unsigned'} {tensor.bits} bits"
    exponent = "no fixed exponent" if tensor.exponent is None else f"exponent {tensor.exponent}"
    here = first.element
    yield "operator", f"{first.operator} ({first.kind})" if first.operator else "none: the input image"
    yield "tensor", f"{dump.tensor} of image {dump.image}, {width}, {exponent}{', with terms' if tensor.terms else ''}"
    yield "element", position(here.index, tensor.axes)
    lanes = dump.layout.packing.lanes if dump.format.packed and dump.format.ending != "h" else 1
    lane = f", lane {first.lane} of {lanes} ({dump.layout.packing.lane_order})" if lanes > 1 else ""
    order = f", order {dump.layout.order}" if dump.format.packed else ""
    yield "file", f"{dump.path}, word {first.word}{lane}{order}"
    yield "expected", _value(here.expected, tensor)
    yield "actual", _value(here.actual, tensor)
    yield "differ", _bits(first, tensor)
    yield "", ""
    yield from _neighbours(first, tensor)
    yield "", ""
    extent = []
    for axis, (count, low, high, length) in first.extent.items():
        span = str(low) if count == 1 else f"{low} .. {high}"
        extent.append(f"{axis} {span} ({count} of {length})")
    row = first.row
    unknown = f", {row.unknown:,} of them unknown" if row.unknown else ""
    yield "extent", f"{row.mismatches:,} of {row.elements:,} elements{unknown}: {'; '.join(extent)}"
    for number, (name, state) in enumerate(first.inputs.items()):
        yield ("inputs" if number == 0 else ""), f"{name}: {state}"
    for number, hint in enumerate(verdict.hints):
        yield ("hint" if number == 0 else ""), hint.text
    if not verdict.hints:
        yield "hint", "no known signature comes near"


def _value(value: int | None, tensor: Tensor) -> str:
    text = hexadecimal(value, tensor)
    if value is None:
        return f"{text}  unknown (x or z)"
    low, high = limits(tensor.bits, tensor.signed)
    if not low <= value <= high:
        return f"{text}  {value}  outside {low} .. {high}"
    binary = f"{value & ((1 << tensor.bits) - 1):0{tensor.bits}b}"
    grouped = re.sub(r"(?<=.)(?=(?:.{4})+$)", "_", binary)
    limit = "  (a limit of the format)" if value in (low, high) else ""
    return f"{text}  {value}  {grouped}{limit}"


def _bits(first: Mismatch, tensor: Tensor) -> str:
    actual = first.element.actual
    if first.bits is None or actual is None:
        return "unknown bits"
    bits = first.bits
    runs: list[str] = []
    start = 0
    for i in range(1, len(bits) + 1):
        if i == len(bits) or bits[i] != bits[i - 1] + 1:
            runs.append(str(bits[start]) if i - start == 1 else f"{bits[start]}-{bits[i - 1]}")
            start = i
    difference = actual - first.element.expected
    return f"bit{'s' if len(bits) > 1 else ''} {', '.join(runs)}; actual - expected = {difference:+}"


def _neighbours(first: Mismatch, tensor: Tensor) -> Iterator[tuple[str, str]]:
    """A small table of the elements around the mismatch, in the file's order."""
    elements = [*first.before, first.element, *first.after]
    places = ["[" + ", ".join(map(str, e.index)) + "]" for e in elements]
    wide = max(map(len, places))
    pairs = [(e.expected, e.actual) for e in elements]
    digits = max(len(hexadecimal(v, tensor)) for pair in pairs for v in pair)
    places_wide = max(len(decimal(v)) for pair in pairs for v in pair)

    def shown(value: int | None) -> str:
        return f"{hexadecimal(value, tensor):>{digits}} {decimal(value):>{places_wide}}"

    column = max(len("expected"), digits + 1 + places_wide)
    yield "around it", f"{'':{wide}}  {'expected':>{column}}  {'actual':>{column}}"
    for e, place in zip(elements, places, strict=True):
        mark = "" if e.same else "  differs"
        arrow = " <--" if e is first.element else ""
        yield "", f"{place:{wide}}  {shown(e.expected):>{column}}  {shown(e.actual):>{column}}{mark}{arrow}"


def text(verdict: Verdict) -> str:
    """The description of the first mismatch as plain lines; empty if there is none."""
    if verdict.first is None:
        return ""
    return "\n".join(f"  {label:10}{line}".rstrip() for label, line in mismatch_text(verdict))


def junit(verdict: Verdict) -> str:
    """JUnit XML: a test case for each dump; the first mismatch is told in full in its failure."""
    wrong = sum(row.mismatches > 0 for row in verdict.rows)
    lines = ['<?xml version="1.0" encoding="UTF-8"?>']
    lines.append(f'<testsuites name="intsim verify" tests="{len(verdict.rows)}" failures="{wrong}" errors="0">')
    name = quoteattr(_printable(f"{verdict.folder} against {verdict.bundle}"))
    lines.append(f'<testsuite name={name} tests="{len(verdict.rows)}" failures="{wrong}" errors="0" skipped="0">')
    first = verdict.first.row if verdict.first else None
    for row in verdict.rows:
        dump = row.dump
        what = quoteattr(f"{dump.tensor} ({dump.format.ending})")
        case = f"<testcase classname={quoteattr(f'image.{dump.image:04d}')} name={what}"
        if not row.mismatches:
            lines.append(f"{case}/>")
            continue
        message = quoteattr(f"{row.mismatches} of {row.elements} elements differ")
        body = f"{dump.path}\n" + (f"the first mismatch in execution order\n{text(verdict)}\n" if row is first else "")
        body = escape(_printable(body))
        lines.append(f'{case}><failure type="mismatch" message={message}>{body}</failure></testcase>')
    return "\n".join([*lines, "</testsuite>", "</testsuites>", ""])


def _printable(line: str) -> str:
    """What XML 1.0 can hold; a file's name may have anything in it."""
    return re.sub(r"[^\t\n\x20-\ud7ff\ue000-\ufffd]", "?", line)
