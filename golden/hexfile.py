"""Memory files for `$readmemh`: fixed-width two's complement, one word a line, comment lines first.

    encode(values, bits, signed) -> the lines of words
    decode(text, bits, signed)   -> the integers again

A word has ceil(bits / 4) lower-case hexadecimal digits; a negative integer is masked to `bits` bits, so there is
never a sign, and the digits above `bits` are zero.  Both directions are vectorised.  The reader also takes what
simulators write (`$writememh`): upper case, comments, underscores, several words a line, fewer leading zeros.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NoReturn

import numpy as np

from intsim.arithmetic import container, limits
from intsim.errors import UserError
from intsim.program import Array

MAX_BITS = 64
CHUNK = 1 << 17  # words encoded at a time, so that temporaries stay small
BAD = 255  # in NIBBLE: not a hexadecimal digit

PAIRS = np.frombuffer(b"".join(b"%02x" % i for i in range(256)), dtype=np.uint16)
NIBBLE = np.full(256, BAD, dtype=np.uint8)
for _value, _digit in enumerate(b"0123456789abcdef"):
    NIBBLE[_digit] = _value
for _value, _digit in enumerate(b"ABCDEF", start=10):
    NIBBLE[_digit] = _value

COMMENT = re.compile(rb"//[^\n]*|/\*.*?\*/", re.DOTALL)


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


def decode(text: bytes, bits: int, signed: bool, words: int | None = None) -> Array:
    """The integers of a memory file, flat, in the container of the format.

    words: how many there must be, if known.  Raises UserError that names the line for anything that is not a word
    of at most `bits` bits (unknown bits x and z, addresses @..., signs), or if the count differs.
    """
    digits = digits_of(bits)
    body = text
    while body.startswith(b"//"):
        _, _, body = body.partition(b"\n")
    table = _rows(body, digits)
    if table is None:  # not as `encode` writes it: take it apart word by word
        listed = [word.replace(b"_", b"") for word in COMMENT.sub(b" ", body).split()]
        if any(not 1 <= len(word) <= digits for word in listed):
            _complain(text, bits)
        table = _rows(b"".join(word.rjust(digits, b"0") + b"\n" for word in listed), digits)
        if table is None:
            _complain(text, bits)
    values = np.zeros(len(table), dtype=np.uint64)
    for column in range(digits):
        values = (values << np.uint64(4)) | table[:, column]
    if values.size and int(values.max()) >> bits:
        _complain(text, bits)
    if words is not None and len(values) != words:
        raise UserError(f"it has {len(values)} words, must have {words}")
    if signed:
        free = np.uint64(MAX_BITS - bits)  # move the sign bit to the top and back, arithmetically
        integers: Array = (values << free).view(np.int64) >> free.astype(np.int64)
    else:
        integers = values
    return integers.astype(container(bits, signed))


def _rows(body: bytes, digits: int) -> Array | None:
    """Nibbles [words, digits] of a body of equally long lines; None if it is anything else."""
    if len(body) % (digits + 1):
        return None
    lines = np.frombuffer(body, dtype=np.uint8).reshape(-1, digits + 1)
    nibbles = NIBBLE[lines[:, :digits]]
    if (lines[:, digits] != ord("\n")).any() or (nibbles == BAD).any():
        return None
    return nibbles


def _complain(text: bytes, bits: int) -> NoReturn:
    """Raises UserError for the first word that `decode` cannot take."""
    blank = COMMENT.sub(lambda found: b"\n" * found.group().count(b"\n") + b" ", text)
    for number, line in enumerate(blank.split(b"\n"), start=1):
        for word in line.split():
            shown = word[:40].decode("ascii", "backslashreplace")
            if not re.fullmatch(rb"[0-9a-fA-F_]*[0-9a-fA-F][0-9a-fA-F_]*", word):
                raise UserError(f"line {number}: {shown!r} is not a hexadecimal word")
            digits = word.replace(b"_", b"")
            if len(digits) > digits_of(bits) or int(digits, 16) >> bits:
                raise UserError(f"line {number}: {shown!r} is wider than {bits} bits")
    raise UserError("it is not a memory file")
