"""`$readmemh` files: .hex and .mem, which are the same, and logs of simulators, which are only read.

A word has ceil(word bits / 4) lower-case hexadecimal digits, one word a line, behind `//` comments.  The reader takes
what simulators write: upper case, `//` and `/* */` comments, underscores, addresses `@...`, several words a line,
fewer leading zeros, CRLF, and x and z for bits that nothing drives.
"""

from __future__ import annotations

import re

import numpy as np

from golden import hexfile
from golden.formats import text
from golden.formats.base import Elements, Format, Head, check, comment_lines
from golden.formats.packing import Layout, pack, to_stream, unknown_elements, unpack
from intsim.errors import UserError
from intsim.program import Array

COMMENT = re.compile(rb"//[^\n]*|/\*.*?(?:\*/|\Z)", re.DOTALL)
BLANKS = b" \t\r\n\f\v"
ADDRESS_BITS = 40


def encode(values: Array, head: Head) -> bytes:
    layout = head.layout
    check(values, layout)
    if layout.packing.lanes == 1:
        return hexfile.encode(to_stream(values, layout), layout.bits, layout.signed, head.comments)
    return comment_lines(head.comments, "//") + text.hex_rows(pack(values, layout), layout.digits).tobytes()


def decode(data: bytes, layout: Layout) -> Elements:
    body, line = data, 1
    while body.startswith(b"//"):
        _, _, body = body.partition(b"\n")
        line += 1
    words = text.regular_words(body, layout.word_bits, b"\n")
    if words is not None and len(words) == layout.words:
        return Elements(unpack(words, layout))
    if b"/" in body:
        body = text.blank(body, COMMENT)
    cut = bool(body) and body[-1:] not in (b"\n", b"\r", b" ", b"\t")
    return from_words(text.tokens(body.replace(b"_", b""), BLANKS, line), layout, cut)


def from_words(found: text.Tokens, layout: Layout, cut: bool = False) -> Elements:
    """Elements of the tokens of a memory file.  cut: the file ends within its last word's line."""
    marks = np.flatnonzero(found.body[found.start] == ord("@")) if len(found) else np.zeros(0, dtype=np.int64)
    place = None
    if len(marks):
        place, found = _addresses(found, marks, layout)
    digits = layout.digits
    if cut and _ends_within_a_word(found, digits):
        found.complain(len(found) - 1, f"is cut off: a word has {digits} digits")
    words, unknown = text.hex_words(found, layout.word_bits)
    if place is None:
        if len(words) != layout.words:
            raise UserError(f"it has {len(words)} words, must have {layout.words}")
    else:  # words that no address reaches are as a memory is before it is written: unknown
        full = np.zeros((layout.words, layout.octets), dtype=np.uint8)
        loose = np.full_like(full, 255)
        loose[:, -1] = (1 << ((layout.word_bits - 1) % 8 + 1)) - 1
        full[place] = words
        loose[place] = 0 if unknown is None else unknown
        words, unknown = full, loose if loose.any() else None
    return Elements(unpack(words, layout), unknown_elements(unknown, layout))


def _ends_within_a_word(found: text.Tokens, digits: int) -> bool:
    """Whether the last word is on a line of its own and shorter than all others, which have every digit."""
    if len(found) < 2 or found.length[-1] == digits or (found.length[:-1] != digits).any():
        return False
    return bool(found.body[found.start[-1] - 1] == ord("\n"))


def _addresses(found: text.Tokens, marks: Array, layout: Layout) -> tuple[Array, text.Tokens]:
    """(address of each word, the words) of a file with `@` addresses."""
    named = text.Tokens(found.body, found.start[marks] + 1, found.end[marks], found.first)
    empty = np.flatnonzero(named.length < 1)
    if len(empty):
        found.complain(int(marks[empty[0]]), "is not an address")
    octets, unknown = text.hex_words(named, ADDRESS_BITS)
    if unknown is not None:
        raise UserError("it has an address with x or z digits")
    base = np.zeros((len(octets), 8), dtype=np.uint8)
    base[:, : octets.shape[1]] = octets
    is_word = np.ones(len(found), dtype=bool)
    is_word[marks] = False
    which = np.flatnonzero(is_word)
    segment = np.searchsorted(marks, which) - 1  # the last address before each word, -1: none
    start = np.concatenate([[0], base.view("<i8")[:, 0]])[segment + 1]
    begins = np.concatenate([[0], marks + 1])[segment + 1]
    place = start + which - begins
    words = found.pick(which)
    beyond = np.flatnonzero(place >= layout.words)
    if len(beyond):
        words.complain(int(beyond[0]), f"is at address {int(place[beyond[0]])}, there are {layout.words} words")
    if len(np.unique(place)) != len(place):
        raise UserError("two of its words have the same address")
    return place, words


def decode_log(data: bytes, layout: Layout) -> Elements:
    """Of a simulator's transcript the lines that are words, each of exactly as many digits as a word has.

    A `# ` in front (Questa) is dropped; every other line is passed over.
    """
    word = rb"[0-9a-fA-FxXzZ]{%d}" % layout.digits
    line = re.compile(rb"^(?:#[ \t]*)?[ \t]*(" + word + rb"(?:[ \t]+" + word + rb")*)[ \t]*\r?$", re.MULTILINE)
    return from_words(text.tokens(b"\n".join(line.findall(data)), BLANKS), layout)


def largest(layout: Layout) -> int:
    return (1 << 20) + 8 * layout.words * (layout.digits + 8)


HEX = Format("hex", "memory file for $readmemh", encode, decode, largest)
MEM = Format("mem", "memory file for $readmemh", encode, decode, largest)
LOG = Format("log", "transcript of a simulator", encode, decode_log, lambda layout: 64 * largest(layout))
