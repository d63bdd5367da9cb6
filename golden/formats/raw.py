""".bin: words as they lie in memory for DMA, little-endian, nothing else.

A word takes the smallest of 1, 2, 4 and 8 bytes that holds it, beyond that the next multiple of 8 bytes.  With one
lane a negative element is extended to all bits of its bytes, so that they are an int8_t, int16_t, int32_t or int64_t;
with several lanes the bits above the word are 0.
"""

from __future__ import annotations

import numpy as np

from golden.formats.base import Elements, Format, Head, check
from golden.formats.packing import Layout, from_stream, pack, to_stream, unpack
from intsim.errors import UserError
from intsim.program import Array


def word_bytes(layout: Layout) -> int:
    """Bytes of a word."""
    return next((n for n in (1, 2, 4, 8) if n >= layout.octets), -(-layout.octets // 8) * 8)


def encode(values: Array, head: Head) -> bytes:
    layout = head.layout
    check(values, layout)
    if layout.packing.lanes == 1:
        return to_stream(values, layout).astype(layout.dtype.newbyteorder("<")).tobytes()
    words = pack(values, layout)
    full = np.zeros((len(words), word_bytes(layout)), dtype=np.uint8)
    full[:, : layout.octets] = words
    return full.tobytes()


def decode(data: bytes, layout: Layout) -> Elements:
    """With one lane the values may lie outside the declared range: they are what the bytes say."""
    size = word_bytes(layout)
    if len(data) != size * layout.words:
        raise UserError(f"it has {len(data)} bytes, must have {layout.words} words of {size} bytes")
    if layout.packing.lanes == 1:
        stream = np.frombuffer(data, dtype=layout.dtype.newbyteorder("<")).astype(layout.dtype)
        return Elements(from_stream(stream, layout))
    full = np.frombuffer(data, dtype=np.uint8).reshape(layout.words, size)
    rest = np.zeros(size, dtype=np.uint8)
    rest[layout.octets :] = 255
    if layout.word_bits % 8:
        rest[layout.octets - 1] = 255 & ~((1 << (layout.word_bits % 8)) - 1)
    over = (full & rest).any(axis=1)
    if over.any():
        raise UserError(f"word {int(over.argmax())} is wider than {layout.word_bits} bits")
    return Elements(unpack(full[:, : layout.octets], layout))


def largest(layout: Layout) -> int:
    return word_bytes(layout) * layout.words


BIN = Format("bin", "raw words for DMA, little-endian", encode, decode, largest, comments=False)
