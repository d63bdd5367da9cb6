""".coe: coefficient files of AMD (Xilinx) tools: radix 16, words with commas between them, `;` comment lines.

The reader also takes radix 2 and 10 and words in any arrangement of commas, blanks and line breaks.
"""

from __future__ import annotations

import re

import numpy as np

from golden.formats import text
from golden.formats.base import Elements, Format, Head, check, comment_lines
from golden.formats.packing import Layout, pack, unknown_elements, unpack
from intsim.errors import UserError
from intsim.program import Array

COMMENT = re.compile(rb"^[ \t]*;[^\n]*", re.MULTILINE)
RADIX = re.compile(rb"\s*memory_initialization_radix\s*=\s*([0-9]+)\s*;", re.IGNORECASE)
VECTOR = re.compile(rb"\s*memory_initialization_vector\s*=", re.IGNORECASE)
BETWEEN = b", \t\r\n\f\v"


def encode(values: Array, head: Head) -> bytes:
    check(values, head.layout)
    front = comment_lines(head.comments, ";")
    front += b"memory_initialization_radix=16;\nmemory_initialization_vector=\n"
    rows = text.hex_rows(pack(values, head.layout), head.layout.digits, after=b",\n")
    if len(rows) == 0:
        return front + b";\n"
    rows[-1, -2] = ord(";")
    return front + rows.tobytes()


def decode(data: bytes, layout: Layout) -> Elements:
    body = text.blank(data, COMMENT)
    radix = RADIX.match(body)
    vector = VECTOR.match(body, radix.end()) if radix else None
    if radix is None or vector is None:
        raise UserError("it does not begin with memory_initialization_radix=...; memory_initialization_vector=")
    rest = body[vector.end() :]
    end = rest.find(b";")
    if end < 0:
        raise UserError("it is cut off: no ';' ends the vector")
    if rest[end + 1 :].strip():
        raise UserError("it goes on behind the ';' that ends the vector")
    line = body[: vector.end()].count(b"\n") + 1
    found = text.tokens(rest[:end], BETWEEN, line)
    base = int(radix[1][:3])
    if base == 16:
        words, unknown = text.hex_words(found, layout.word_bits)
    elif base == 2:
        words, unknown = text.binary_words(found, layout.word_bits)
    elif base == 10:
        words, unknown = decimal_words(found, layout), None
    else:
        raise UserError(f"its radix is {base}, this reads 2, 10 and 16")
    if len(words) != layout.words:
        raise UserError(f"it has {len(words)} words, must have {layout.words}")
    return Elements(unpack(words, layout), unknown_elements(unknown, layout))


def decimal_words(found: text.Tokens, layout: Layout) -> Array:
    """uint8 [tokens, octets] of decimal words: unsigned, or negative ones in two's complement of the word."""
    bits = layout.word_bits
    if bits > 64:
        raise UserError(f"decimal words of {bits} bits: this reads up to 64")
    magnitude, negative = text.integers(found)
    high = np.uint64((1 << bits) - 1)
    over = np.where(negative, magnitude > np.uint64(1 << (bits - 1)), magnitude > high)
    if over.any():
        found.complain(int(over.argmax()), f"is wider than {bits} bits")
    raw = np.where(negative, np.uint64(0) - magnitude, magnitude) & high
    return raw.astype("<u8").view(np.uint8).reshape(-1, 8)[:, : layout.octets]


def largest(layout: Layout) -> int:
    return (1 << 20) + 8 * layout.words * (layout.word_bits + 8)


COE = Format("coe", "coefficient file of AMD (Xilinx) tools", encode, decode, largest)
