"""The lines of a memory file for `$readmemh`: fixed-width two's complement, one integer a line, comments first.

    encode(values, bits, signed) -> the lines

A word has ceil(bits / 4) lower-case hexadecimal digits; a negative integer is masked to `bits` bits, so there is
never a sign, and the digits above `bits` are zero.  `golden.formats.hex` reads them, and writes words of several lanes.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from intsim.arithmetic import limits
from intsim.program import Array

MAX_BITS = 64
CHUNK = 1 << 17  # words encoded at a time, so that temporaries stay small

PAIRS = np.frombuffer(b"".join(b"%02x" % i for i in range(256)), dtype=np.uint16)


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
    wide = np.int64 if flat.dtype.kind == "i" else np.uint64
    words = flat.astype(wide).view(np.uint64) & np.uint64((1 << bits) - 1)
    octets = (digits + 1) // 2
    pairs = PAIRS[words.astype(">u8").view(np.uint8).reshape(-1, 8)[:, 8 - octets :]]
    text = np.empty((flat.size, digits + 1), dtype=np.uint8)
    text[:, :digits] = pairs.view(np.uint8).reshape(flat.size, 2 * octets)[:, 2 * octets - digits :]
    text[:, digits] = ord("\n")
    return text.tobytes()
