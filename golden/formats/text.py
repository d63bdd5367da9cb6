"""Words as text and back, without a loop over words: what hex, coe, mif and c are made of.

Readers find tokens in an array of bytes; an error names the line of the token at fault.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NoReturn

import numpy as np

from intsim.errors import UserError
from intsim.program import Array

CHUNK = 1 << 16  # tokens at a time
BAD, UNKNOWN = 255, 16  # in DIGIT: no digit; x, X, z, Z

PAIRS = np.frombuffer(b"".join(b"%02x" % i for i in range(256)), dtype=np.uint16)
DIGIT = np.full(256, BAD, dtype=np.uint8)
for _value, _digit in enumerate(b"0123456789abcdef"):
    DIGIT[_digit] = _value
for _value, _digit in enumerate(b"ABCDEF", start=10):
    DIGIT[_digit] = _value
DIGIT[list(b"xXzZ")] = UNKNOWN


def hex_rows(words: Array, digits: int, before: Array | None = None, after: bytes = b"\n") -> Array:
    """uint8 [words, ...]: the text of each word, `digits` lower-case hexadecimal digits, most significant first.

    words: uint8 [words, octets], little-endian.  before: uint8 [words, k], text in front of each word.
    """
    octets = (digits + 1) // 2
    front = 0 if before is None else before.shape[1]
    text = np.empty((len(words), front + digits + len(after)), dtype=np.uint8)
    if before is not None:
        text[:, :front] = before
    pairs = PAIRS[words[:, octets - 1 :: -1] if octets == words.shape[1] else words[:, :octets][:, ::-1]]
    text[:, front : front + digits] = pairs.view(np.uint8).reshape(len(words), 2 * octets)[:, 2 * octets - digits :]
    text[:, front + digits :] = np.frombuffer(after, dtype=np.uint8)
    return text


def blank(data: bytes, pattern: re.Pattern[bytes]) -> bytes:
    """Comments replaced by blanks: every other byte, and every line, stays where it was."""
    return pattern.sub(lambda found: re.sub(rb"[^\n]", b" ", found.group()), data)


@dataclass(frozen=True)
class Tokens:
    """The tokens of a text: body uint8 [bytes], start and end int64 [tokens].  first: line of the body's beginning."""

    body: Array
    start: Array
    end: Array
    first: int = 1

    def __len__(self) -> int:
        return len(self.start)

    @property
    def length(self) -> Array:
        return self.end - self.start

    def pick(self, which: Array) -> Tokens:
        return Tokens(self.body, self.start[which], self.end[which], self.first)

    def line(self, token: int) -> int:
        """Number of the line on which a token begins, counted from 1."""
        return int(np.count_nonzero(self.body[: self.start[token]] == ord("\n"))) + self.first

    def text(self, token: int) -> str:
        return self.body[self.start[token] : self.end[token]][:40].tobytes().decode("latin-1")

    def complain(self, token: int, problem: str) -> NoReturn:
        raise UserError(f"line {self.line(token)}: {ascii(self.text(token))} {problem}")

    def characters(self, most: int) -> Array:
        """uint8 [tokens, most]: the text of each, on the right, zero digits in front.  No token may be longer."""
        columns = np.arange(-most, 0, dtype=np.int64)
        found = np.empty((len(self), most), dtype=np.uint8)
        for i in range(0, len(self), CHUNK):
            at = self.end[i : i + CHUNK, None] + columns
            outside = at < self.start[i : i + CHUNK, None]
            part = self.body[np.maximum(at, 0)]
            part[outside] = ord("0")
            found[i : i + CHUNK] = part
        return found


def tokens(body: bytes, between: bytes, first: int = 1) -> Tokens:
    """The runs of bytes that are not in `between`."""
    table = np.zeros(256, dtype=bool)
    table[list(between)] = True
    array = np.frombuffer(body, dtype=np.uint8)
    inside = np.zeros(len(array) + 2, dtype=bool)
    np.logical_not(table[array], out=inside[1:-1])
    edges = np.flatnonzero(inside[1:] != inside[:-1])
    return Tokens(array, edges[0::2], edges[1::2], first)


def hex_words(found: Tokens, bits: int) -> tuple[Array, Array | None]:
    """(words, unknown): uint8 [tokens, ceil(bits / 8)] little-endian; unknown bits are 1 in `unknown` and 0 in words.

    unknown is None where no digit is x or z.  Raises UserError for what is no hexadecimal word of up to `bits` bits.
    """
    digits = -(-bits // 4)
    _fit(found, digits, f"is wider than {bits} bits")
    nibbles = DIGIT[found.characters(digits)]
    return _hex(found, nibbles, bits)


def _fit(found: Tokens, most: int, problem: str) -> None:
    too_long = np.flatnonzero(found.length > most)
    if len(too_long):
        token = int(too_long[0])
        text = found.body[found.start[token] : found.end[token]]
        wrong = (DIGIT[text] == BAD).any()
        found.complain(token, "is not a hexadecimal word" if wrong else problem)


def _hex(found: Tokens, nibbles: Array, bits: int) -> tuple[Array, Array | None]:
    wrong = (nibbles == BAD).any(axis=1)
    if wrong.any():
        found.complain(int(wrong.argmax()), "is not a hexadecimal word")
    unknown = None
    if (nibbles == UNKNOWN).any():
        loose = nibbles == UNKNOWN
        unknown = _octets(np.where(loose, 15, 0).astype(np.uint8), bits)
        unknown[:, -1] &= (1 << ((bits - 1) % 8 + 1)) - 1  # x stands for bits that there are
        nibbles = np.where(loose, 0, nibbles)
    words = _octets(nibbles, bits)
    if bits % 4:
        over = (nibbles[:, 0] >> (bits % 4)) != 0
        if over.any():
            found.complain(int(over.argmax()), f"is wider than {bits} bits")
    return words, unknown


def _octets(nibbles: Array, bits: int) -> Array:
    """uint8 [n, ceil(bits / 8)], little-endian, of nibbles [n, ceil(bits / 4)], the most significant first."""
    low = nibbles[:, ::-1]
    octets = np.zeros((len(nibbles), -(-bits // 8)), dtype=np.uint8)
    octets[:, :] = low[:, 0::2]
    high = low[:, 1::2]
    octets[:, : high.shape[1]] |= high << 4
    return octets


def regular_rows(body: bytes, digits: int, after: bytes) -> Array | None:
    """Nibbles [words, digits] of a body of equally long rows, each a word and `after`; None if it is anything else."""
    width = digits + len(after)
    if len(body) % width:
        return None
    rows = np.frombuffer(body, dtype=np.uint8).reshape(-1, width)
    nibbles = DIGIT[rows[:, :digits]]
    if (rows[:, digits:] != np.frombuffer(after, dtype=np.uint8)).any() or (nibbles >= UNKNOWN).any():
        return None
    return nibbles


def regular_words(body: bytes, bits: int, after: bytes) -> Array | None:
    """As `hex_words` for a body as a writer lays it out; None if it is anything else or a word is too wide."""
    nibbles = regular_rows(body, -(-bits // 4), after)
    if nibbles is None or (bits % 4 and (nibbles[:, 0] >> (bits % 4)).any()):
        return None
    return _octets(nibbles, bits)


def binary_words(found: Tokens, bits: int) -> tuple[Array, None]:
    """As `hex_words`, for words of binary digits."""
    long = found.length > bits
    if long.any():
        found.complain(int(long.argmax()), f"is wider than {bits} bits")
    single = found.characters(bits) - ord("0")
    wrong = (single > 1).any(axis=1)
    if wrong.any():
        found.complain(int(wrong.argmax()), "is not a binary word")
    return np.packbits(single[:, ::-1], axis=1, bitorder="little"), None


def integers(found: Tokens) -> tuple[Array, Array]:
    """(magnitudes uint64, negative bool) of decimal integers, and of hexadecimal ones behind 0x.

    Raises UserError for anything else and for magnitudes beyond 64 bits.
    """
    if not len(found):
        return np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=bool)
    head = found.body[found.start]
    negative = head == ord("-")
    start = found.start + (negative | (head == ord("+")))
    bare = Tokens(found.body, start, found.end, found.first)
    size = len(found.body)
    second = found.body[np.minimum(start + 1, size - 1)]
    sixteen = (bare.length > 2) & (found.body[np.minimum(start, size - 1)] == ord("0")) & ((second | 32) == ord("x"))
    magnitude = np.zeros(len(found), dtype=np.uint64)
    if sixteen.any():
        which = np.flatnonzero(sixteen)
        part = Tokens(found.body, start[which] + 2, found.end[which], found.first)
        _fit(part, 16, "is wider than 64 bits")
        nibbles = DIGIT[part.characters(16)]
        wrong = (nibbles >= UNKNOWN).any(axis=1)
        if wrong.any():
            found.complain(int(which[wrong.argmax()]), "is not an integer")
        magnitude[which] = _octets(nibbles, 64).view("<u8")[:, 0]
    which = np.flatnonzero(~sixteen)
    if len(which):
        part = bare.pick(which)
        wrong = (part.length < 1) | (part.length > 20)
        if wrong.any():
            found.complain(int(which[wrong.argmax()]), "is not an integer of up to 64 bits")
        most = int(part.length.max())
        places = part.characters(most) - ord("0")
        wrong = (places > 9).any(axis=1)
        if wrong.any():
            found.complain(int(which[wrong.argmax()]), "is not an integer")
        total = np.zeros(len(which), dtype=np.uint64)
        for column in range(max(0, most - 19), most):
            total = total * np.uint64(10) + places[:, column]
        if most == 20:  # 10^19 and more: what is left to 2^64 - 1
            top = places[:, 0]
            beyond = (top > 1) | ((top == 1) & (total > np.uint64(2**64 - 1 - 10**19)))
            if beyond.any():
                found.complain(int(which[beyond.argmax()]), "is not an integer of up to 64 bits")
            total = total + top.astype(np.uint64) * np.uint64(10**19)
        magnitude[which] = total
    return magnitude, negative


def decimal_rows(values: Array, after: bytes) -> Array:
    """uint8 [n, ...]: each integer in decimal, right-aligned to the longest, and `after`."""
    negative = values < 0
    magnitude = np.where(negative, np.uint64(0) - values.astype(np.uint64), values.astype(np.uint64))
    most = len(str(int(magnitude.max()))) if magnitude.size else 1
    text = np.full((len(values), 1 + most + len(after)), ord(" "), dtype=np.uint8)
    text[:, 1 + most :] = np.frombuffer(after, dtype=np.uint8)
    rest, done = magnitude, np.zeros(len(values), dtype=bool)
    for column in range(most, 0, -1):
        rest, digit = np.divmod(rest, np.uint64(10))
        text[:, column] = np.where(done, ord(" "), digit + ord("0"))
        done = rest == 0
    length = most - (text[:, 1 : 1 + most] == ord(" ")).sum(axis=1)
    text[np.flatnonzero(negative), most - length[negative]] = ord("-")
    return text
