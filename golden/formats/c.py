""".h: a C header with one constant array, `static const int8_t NAME[N] = {...};`, in the stream's order.

Each element is an entry of its own, in its container; lanes do not apply, an order's padding does.  The reader takes
any C source with one initialised array of integers, decimal or 0x.
"""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np

from golden.formats import text
from golden.formats.base import Elements, Format, Head, check, comment_lines
from golden.formats.packing import Layout, Packing, from_stream, to_stream
from intsim.arithmetic import limits
from intsim.errors import UserError
from intsim.program import Array

PER_LINE = 16
COMMENT = re.compile(rb"//[^\n]*|/\*.*?(?:\*/|\Z)|^[ \t]*#[^\n]*", re.DOTALL | re.MULTILINE)
ARRAY = re.compile(rb"\[\s*([0-9]*)\s*\]\s*=\s*\{")
LOWEST = b"INT64_MIN"  # what no decimal literal of C can say
BETWEEN = b", \t\r\n\f\v"


def identifier(name: str) -> str:
    """The array's name: every character that C does not allow is an underscore."""
    plain = re.sub(r"[^A-Za-z0-9_]", "_", name)
    return plain if plain[:1].isalpha() else f"_{plain}"


def single(layout: Layout) -> Layout:
    """The layout with one lane."""
    return replace(layout, packing=Packing(layout.packing.order))


def encode(values: Array, head: Head) -> bytes:
    check(values, head.layout)
    layout = single(head.layout)
    stream = to_stream(values, layout)
    suffix = (b"LL" if layout.signed else b"ULL") if layout.bits > 32 else b""
    rows = text.decimal_rows(stream, suffix + b",")
    if layout.signed and layout.bits == 64:
        lowest = np.flatnonzero(stream == limits(64, True)[0])
        rows[lowest] = np.frombuffer(LOWEST.rjust(rows.shape[1] - 1) + b",", dtype=np.uint8)
    name = identifier(head.name)
    front = comment_lines(head.comments, "//")
    guard = f"{name.upper()}_H"
    front += f"#ifndef {guard}\n#define {guard}\n#include <stdint.h>\n".encode()
    front += f"static const {layout.dtype.name}_t {name}[{len(stream)}] = {{\n".encode()
    whole = len(rows) // PER_LINE * PER_LINE
    lines = rows[:whole].reshape(-1, PER_LINE * rows.shape[1])
    broken = np.concatenate([lines, np.full((len(lines), 1), ord("\n"), dtype=np.uint8)], axis=1).tobytes()
    rest = rows[whole:].tobytes() + (b"\n" if len(rows) > whole else b"")
    return front + broken + rest + f"}};\n#endif // {guard}\n".encode()


def decode(data: bytes, layout: Layout) -> Elements:
    layout = single(layout)
    body = text.blank(data, COMMENT)
    begin = ARRAY.search(body)
    if begin is None:
        raise UserError("it has no array: no [...] = {")
    end = body.find(b"}", begin.end())
    if end < 0:
        raise UserError("it is cut off: no '}' ends the array")
    if ARRAY.search(body, end):
        raise UserError("it has more than one array")
    line = body[: begin.end()].count(b"\n") + 1
    content = body[begin.end() : end].replace(LOWEST, b"-9223372036854775808")
    suffixed = re.compile(rb"(?<=[0-9a-fA-F])[uUlL]+(?=[\s,]|\Z)")
    found = text.tokens(suffixed.sub(b"", content), BETWEEN, line)
    if len(found) != layout.words or (begin[1] and int(begin[1][:12]) != layout.words):
        raise UserError(f"it has {len(found)} elements in an array of {begin[1].decode()[:12]}, not {layout.words}")
    magnitude, negative = text.integers(found)
    low, high = limits(8 * layout.dtype.itemsize, layout.signed)
    over = np.where(negative, magnitude > np.uint64(-low), magnitude > np.uint64(high))
    if over.any():
        found.complain(int(over.argmax()), f"does not fit {layout.dtype.name}_t")
    raw = np.where(negative, np.uint64(0) - magnitude, magnitude)
    return Elements(from_stream(raw.astype(layout.dtype), layout))


def largest(layout: Layout) -> int:
    return (1 << 20) + 64 * layout.stream


C = Format("h", "C header", encode, decode, largest)
