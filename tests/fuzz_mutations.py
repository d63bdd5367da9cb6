"""Mutations of good files, of bytes and of JSON, for `fuzz.py`.  Each draws from the generator that it is given."""

from __future__ import annotations

import json
import os
import pickle
import random
import re
import tempfile
from typing import Any

NUMBERS = [
    *(b"0", b"-1", b"1", b"255", b"256", b"65536", b"2147483647", b"2147483648", b"4294967296", b"-2147483649"),
    *(b"9223372036854775807", b"9223372036854775808", b"18446744073709551616", b"1" + b"0" * 400, b"1e999", b"NaN"),
    *(b"null", b"true", b"1.5", b'"x"', b"[]", b"{}", b"Infinity", b"1e5"),
]
WORDS = [
    *(b"../../../../tmp/x", b"/etc/passwd", b"\x00", b"\n", b"'", b'"', b"\\u0000", b"__import__('os')", b"\xff\xfe"),
    *(b"[" * 3000, b'{"a":' * 2000, b"A" * 5000, b"@0", b"zz", b"xx", b"//", b"/*", b"*/", b"True", b"(", b")"),
]


class Canary:
    """A pickle that runs code when it is read by pickle.load."""

    def __reduce__(self) -> Any:
        return os.mkdir, (os.path.join(tempfile.gettempdir(), "fuzz-canary-of-a-pickle"),)


PICKLES = [pickle.dumps(Canary(), protocol=p) for p in (0, 2, 4)]


def mutate_bytes(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """One to four changes of the kinds below, more often near the front, where headers lie."""
    made = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        rng.choice(CHANGES)(made, other, rng)
    return bytes(made[: 1 << 20])


def place(made: bytearray, rng: random.Random) -> int:
    end = len(made) if rng.random() < 0.6 else min(len(made), 256)
    return rng.randrange(end) if end else 0


def flip_bits(made: bytearray, other: bytes, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 1, 2, 8)) if made else 0):
        made[place(made, rng)] ^= 1 << rng.randrange(8)


def truncate(made: bytearray, other: bytes, rng: random.Random) -> None:
    del made[place(made, rng) :]


def extend(made: bytearray, other: bytes, rng: random.Random) -> None:
    made += rng.choice((b"\0", b"\n", bytes(4096), bytes(made), other, rng.randbytes(rng.randrange(1, 64))))


def delete(made: bytearray, other: bytes, rng: random.Random) -> None:
    at = place(made, rng)
    del made[at : at + rng.choice((1, 1, 4, 64, 1000))]


def duplicate(made: bytearray, other: bytes, rng: random.Random) -> None:
    at, length = place(made, rng), rng.choice((1, 8, 64, 1024))
    made[at:at] = made[at : at + length] * rng.choice((1, 1, 3, 50))


def splice(made: bytearray, other: bytes, rng: random.Random) -> None:
    at, source, length = place(made, rng), place(bytearray(other), rng), rng.choice((4, 32, 256, 4096))
    made[at : at + rng.choice((0, length))] = other[source : source + length]


def overwrite(made: bytearray, other: bytes, rng: random.Random) -> None:
    at = place(made, rng)
    length = rng.choice((1, 4, 16, 256))
    made[at : at + length] = rng.choice((bytes(length), b"\xff" * length, rng.randbytes(length)))


def length_field(made: bytearray, other: bytes, rng: random.Random) -> None:
    """A number of 2, 4 or 8 bytes, huge or negative, in either order of bytes."""
    width = rng.choice((2, 4, 4, 8, 8))
    value = rng.choice((0, 1, len(made), 2 ** (8 * width) - 1, 2 ** (8 * width - 1), 2 ** (8 * width - 1) - 1, 1 << 15))
    at = place(made, rng)
    made[at : at + width] = (value % 2 ** (8 * width)).to_bytes(width, rng.choice(("little", "big")))


def text_number(made: bytearray, other: bytes, rng: random.Random) -> None:
    """A decimal number of a header or JSON becomes another thing."""
    found = list(re.finditer(rb"-?\d+", bytes(made[: 1 << 16])))
    if found:
        at = rng.choice(found)
        made[at.start() : at.end()] = rng.choice(NUMBERS)


def text_word(made: bytearray, other: bytes, rng: random.Random) -> None:
    """A word of a header or JSON becomes another thing, or another word of the same file."""
    found = list(re.finditer(rb"[A-Za-z_.]{2,40}", bytes(made[: 1 << 16])))
    if found:
        at, source = rng.choice(found), rng.choice(found)
        made[at.start() : at.end()] = rng.choice((source.group(), source.group(), rng.choice(WORDS), b""))


def insert(made: bytearray, other: bytes, rng: random.Random) -> None:
    at = place(made, rng)
    made[at:at] = rng.choice((*WORDS, *NUMBERS, *PICKLES))


CHANGES = (
    flip_bits, flip_bits, truncate, extend, delete, duplicate, splice, overwrite, length_field, text_number,
    text_number, text_word, insert,
)  # fmt: skip


def mutate_json(value: Any, rng: random.Random) -> Any:
    """A JSON value with one to three of its entries changed, at any depth."""
    whole = [json.loads(json.dumps(value))]
    for _ in range(rng.choice((1, 1, 2, 3))):
        spots: list[tuple[Any, Any]] = []
        todo: list[Any] = [whole]
        while todo:
            at = todo.pop()
            for key in at if isinstance(at, dict) else range(len(at)):
                spots.append((at, key))
                if isinstance(at[key], (dict, list)):
                    todo.append(at[key])
        holder, key = rng.choice(spots)
        source, name = rng.choice(spots)
        kind = rng.randrange(6)
        if kind == 0:
            holder[key] = rng.choice((0, 1, -1, 2, 3, 31, 32, 33, 255, 1 << 31, 1 << 62, 1 << 63, -(1 << 63), 10**400))
        elif kind == 1 and isinstance(holder[key], int):
            holder[key] += rng.choice((-1, 1, 7, -32))
        elif kind == 2:
            holder[key] = rng.choice((None, True, 1.5, "", "x", "../../x", "\0", "\n", [], {}, "A" * 5000, [[]] * 100))
        elif kind == 3 and holder is not whole:
            del holder[key]
        elif kind == 4:
            holder[key] = json.loads(json.dumps(source[name]))
        elif isinstance(holder, dict):
            holder[rng.choice(("x", "__proto__", "shape", "..", *map(str, holder)))] = holder.get(key)
        else:
            holder.insert(0, holder[key])
    return whole[0]


