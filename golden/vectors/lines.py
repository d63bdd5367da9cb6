"""A line of unit vectors: fields of lower-case hexadecimal digits, one space apart (FORMAT.md section 13).

A field holds one integer, or `count` integers packed into one word with element 0 in the least significant bits, as
a packed array of SystemVerilog holds them.  It has ceil(bits * count / 4) digits; negative integers are in two's
complement masked to `bits`.  Integers are int64 columns: [n] for a field of one integer, [n, count] for a packed one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from intsim.arithmetic import Int64, limits
from intsim.program import Array

MAX_BITS = 48  # of one integer; a packed word has any length
BAD = 255  # in NIBBLE: not a hexadecimal digit
HEX = np.frombuffer(b"0123456789abcdef", dtype=np.uint8)
PAIRS = np.frombuffer(b"".join(b"%02x" % i for i in range(256)), dtype=np.uint16)
NIBBLE = np.full(256, BAD, dtype=np.uint8)
NIBBLE[HEX] = np.arange(16, dtype=np.uint8)

Columns = Mapping[str, Int64]


@dataclass(frozen=True)
class Field:
    """name; bits and signedness of one integer; count: 0 for a field of one integer, else integers in the word."""

    name: str
    bits: int
    signed: bool
    count: int = 0
    about: str = ""

    @property
    def size(self) -> int:
        return max(self.count, 1)

    @property
    def digits(self) -> int:
        return (self.bits * self.size + 3) // 4

    @property
    def width(self) -> str:
        """Such as `s8` or `16 x u4`."""
        one = f"{'s' if self.signed else 'u'}{self.bits}"
        return f"{self.count} x {one}" if self.count else one

    def limits(self) -> tuple[int, int]:
        return limits(self.bits, self.signed)


def encode(fields: Sequence[Field], columns: Columns) -> bytes:
    """Lines of `fields`, each ended by a line feed."""
    n = len(columns[fields[0].name])
    text = np.full((n, sum(f.digits + 1 for f in fields)), ord(" "), dtype=np.uint8)
    start = 0
    for field in fields:
        text[:, start : start + field.digits] = to_digits(columns[field.name], field)
        start += field.digits + 1
    text[:, -1] = ord("\n")
    return text.tobytes()


def to_digits(values: Int64, field: Field) -> Array:
    """ASCII digits uint8 [n, digits] of a column.  Every integer must be in the field's range."""
    masked = values.view(np.uint64) & np.uint64((1 << field.bits) - 1)
    if not field.count:
        octets = (field.digits + 1) // 2
        pairs = PAIRS[masked.astype(">u8").view(np.uint8).reshape(-1, 8)[:, 8 - octets :]]
        return pairs.view(np.uint8).reshape(len(values), 2 * octets)[:, 2 * octets - field.digits :]
    bits = (masked[:, :, None] >> np.arange(field.bits, dtype=np.uint64) & np.uint64(1)).astype(np.uint8)
    padded = np.zeros((len(values), 4 * field.digits), dtype=np.uint8)
    padded[:, : field.bits * field.count] = bits.reshape(len(values), -1)
    nibbles = padded.reshape(len(values), field.digits, 4) @ np.array([1, 2, 4, 8], dtype=np.uint8)
    return HEX[nibbles[:, ::-1]]


def from_digits(text: Array, field: Field) -> tuple[Int64, Array]:
    """(column, bad) of ASCII digits uint8 [n, digits]; bad [n] marks what is no integer of the field.

    Only lower-case digits are taken; bits above the word's must be 0.
    """
    nibbles = NIBBLE[text]
    bad = (nibbles == BAD).any(axis=1)
    free = 4 * field.digits - field.bits * field.size
    bad |= nibbles[:, 0] >> (4 - free) != 0
    if not field.count:
        words = np.zeros(len(text), dtype=np.uint64)
        for column in range(field.digits):
            words = (words << np.uint64(4)) | nibbles[:, column]
    else:
        bits = nibbles[:, ::-1, None] >> np.arange(4, dtype=np.uint8) & 1
        bits = bits.reshape(len(text), -1)[:, : field.bits * field.count].reshape(len(text), field.count, field.bits)
        words = np.zeros((len(text), field.count), dtype=np.uint64)
        for place in range(field.bits):
            words |= bits[:, :, place].astype(np.uint64) << np.uint64(place)
    signed = words.view(np.int64)
    if field.signed:
        spare = np.int64(64 - field.bits)
        signed = signed << spare >> spare
    return signed, bad
