"""The lines of a memory file for `$readmemh`: fixed-width two's complement, one integer a line, comments first.

    encode(values, bits, signed) -> the lines

A word has ceil(bits / 4) lower-case hexadecimal digits; a negative integer is masked to `bits` bits, so there is
never a sign, and the digits above `bits` are zero.  `golden.formats.hex` reads them, and writes words of several lanes.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import numpy as np

from intsim.arithmetic import limits
from intsim.program import Array

MAX_BITS = 64
CHUNK = 1 << 17  # words encoded at a time, so that temporaries stay small
FIELD = 4  # digits that are looked up at once

DIGITS = np.frombuffer(b"0123456789abcdef", dtype=np.uint8)


def digits_of(bits: int) -> int:
    """Hexadecimal digits of a word of `bits` bits."""
    if not 1 <= bits <= MAX_BITS:
        raise ValueError(f"{bits} bits, allowed are 1 to {MAX_BITS}")
    return (bits + 3) // 4


def encode(values: Array, bits: int, signed: bool, comments: Iterable[str] = ()) -> bytes:
    """The file's bytes: each of `comments` behind `// `, then a line for each integer, last axis fastest.

    values: an integer array of any shape.  Raises TypeError for another dtype, ValueError for an integer outside
    the format or a comment with a line break.
    """
    if values.dtype.kind not in "iu":
        raise TypeError(f"expected integers, got dtype {values.dtype}")
    digits = digits_of(bits)
    flat = values.reshape(-1)
    low, high = limits(bits, signed)
    if flat.size and (int(flat.min()) < low or int(flat.max()) > high):
        raise ValueError(f"an integer of {int(flat.min())} .. {int(flat.max())} does not fit {low} .. {high}")
    head = []
    for comment in comments:
        if not comment.isascii() or not comment.isprintable():
            raise ValueError(f"comment {comment!r} is not one line of printable ASCII")
        head.append(f"// {comment}\n".encode())
    parts = [_words(flat[i : i + CHUNK], bits, digits) for i in range(0, flat.size, CHUNK)]
    return b"".join([*head, *parts])


def _words(flat: Array, bits: int, digits: int) -> bytes:
    """Looks up FIELD digits at a time, the leading ones first: each field is a column of the lines."""
    first = (digits - 1) % FIELD + 1
    widths = [first] + [FIELD] * ((digits - first) // FIELD)
    tables = [digit_table(width, i == len(widths) - 1) for i, width in enumerate(widths)]
    lines = np.empty(flat.size, dtype=[(f"field{i}", table.dtype) for i, table in enumerate(tables)])
    words = flat.astype(flat.dtype.newbyteorder("="), copy=False).view(f"u{flat.dtype.itemsize}")
    left = bits - 4 * (digits - first)  # bits of the leading field
    place = 4 * (digits - first)
    for i, table in enumerate(tables):
        part = words >> np.array(place, words.dtype) & np.array((1 << left) - 1, words.dtype)
        if len(tables) == 1:
            table.take(part, out=lines.view(table.dtype), mode="wrap")
        else:
            lines[f"field{i}"] = table.take(part, mode="wrap")
        place, left = place - 4 * FIELD, 4 * FIELD
    return lines.tobytes()


@lru_cache(maxsize=2 * FIELD)
def digit_table(digits: int, last: bool) -> Array:
    """Text of each integer of `digits` hexadecimal digits, with a line feed behind it if `last`."""
    integers = np.arange(16**digits)
    text = np.full((len(integers), digits + last), ord("\n"), dtype=np.uint8)
    for column in range(digits):
        text[:, column] = DIGITS[integers >> 4 * (digits - 1 - column) & 15]
    return text.view(f"S{digits + last}")[:, 0]
