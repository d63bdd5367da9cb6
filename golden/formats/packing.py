"""How the elements of a tensor follow each other in a file, and how they share words (FORMAT.md section 1).

A tensor is turned into a *stream* of elements by its **order**, the stream is padded with integer 0 to a multiple of
the **lanes**, and each `lanes` consecutive elements become a word: element `i` of a word is lane `i`, the least
significant one first (`lsb-first`) or last (`msb-first`).

    Packing(order, lanes, lane_order)      what is asked for, the same for all tensors
    Layout(axes, shape, bits, signed, ..)  what it means for one tensor
    pack(values, layout)                   integers -> words, as bytes
    unpack(words, layout)                  words -> integers

Orders:

    row-major            as the axes are declared, the last fastest
    AXIS-major           that axis slowest, the others as declared (token-major, channel-major, state-major)
    tiles:TxC            tiles of T tokens x C channels; in a tile the channel is faster; tiles of the same tokens
                         follow each other.  For weights [channel, input]: T rows x C inputs.
    tiles:TxC:by-channel the same tiles, but those of the same channels follow each other
    tiles:TxC:skewed     in each tile as a systolic array takes it: T + C - 1 beats of C elements, beat k holds
                         element [k - c, c] of the tile in column c, and padding where there is none
                         (also tiles:TxC:by-channel:skewed)

An order that a tensor's axes do not admit (no such axis, no two axes to tile) leaves it in row-major order; the
manifest says for each tensor what holds for it.
"""

from __future__ import annotations

import functools
import math
import re
from dataclasses import dataclass, replace

import numpy as np

from intsim.arithmetic import Int64, container
from intsim.errors import UserError
from intsim.program import Array, Constant, Tensor

ROW_MAJOR = "row-major"
LANE_ORDERS = ("lsb-first", "msb-first")
MAX_LANES = 4096
MAX_TILE = 65536
MAX_STREAM = 1 << 26  # elements of a padded stream: more is a mistake in the tile's size
TILED = (("token", "channel"), ("channel", "input"))
MAJOR = re.compile(r"(row|column|token|channel|state|input|tap|rom|entry)-major")
TILES = re.compile(r"tiles:([1-9][0-9]{0,4})x([1-9][0-9]{0,4})(:by-channel)?(:skewed)?")
CHUNK = 1 << 15  # elements at a time where a byte holds a bit


@dataclass(frozen=True)
class Packing:
    """What is asked for.  Raises UserError for an order, a number of lanes or a lane order that there is not."""

    order: str = ROW_MAJOR
    lanes: int = 1
    lane_order: str = LANE_ORDERS[0]

    def __post_init__(self) -> None:
        tiles = TILES.fullmatch(self.order)
        if tiles is None and MAJOR.fullmatch(self.order) is None:
            raise UserError(
                f"order {self.order[:40]!r}: allowed are row-major, token-major, channel-major, state-major, tiles:TxC "
                "with T and C from 1 on, and behind the last :by-channel, :skewed or both"
            )
        if tiles and max(int(tiles[1]), int(tiles[2])) > MAX_TILE:
            raise UserError(f"order {self.order[:40]!r}: a side of a tile may be up to {MAX_TILE}")
        if not 1 <= self.lanes <= MAX_LANES:
            raise UserError(f"{self.lanes} lanes, allowed are 1 to {MAX_LANES}")
        if self.lane_order not in LANE_ORDERS:
            raise UserError(f"lane order {self.lane_order[:40]!r}, allowed are {' and '.join(LANE_ORDERS)}")

    @property
    def plain(self) -> bool:
        """Whether it is the order and packing of a bundle that nothing was asked of."""
        return self == Packing()


@dataclass(frozen=True)
class Layout:
    """Where each element of one tensor lies.  shape: at least one axis, none empty or all of length 0 (no element)."""

    axes: tuple[str, ...]
    shape: tuple[int, ...]
    bits: int
    signed: bool
    packing: Packing = Packing()

    @staticmethod
    def of(declared: Tensor | Constant, packing: Packing = Packing()) -> Layout:
        return Layout(declared.axes, declared.shape, declared.bits, declared.signed, packing)

    @property
    def dtype(self) -> np.dtype:
        """Container of an element."""
        return container(self.bits, self.signed)

    @property
    def size(self) -> int:
        """Elements of the tensor."""
        return math.prod(self.shape)

    @property
    def order(self) -> str:
        """The order that holds for this tensor, `row-major` where another would be the same or does not apply."""
        wanted = self.packing.order
        if TILES.fullmatch(wanted):
            return wanted if self.axes[:2] in TILED else ROW_MAJOR
        axis = wanted.removesuffix("-major")
        return wanted if axis in self.axes[1:] else ROW_MAJOR

    @property
    def stream(self) -> int:
        """Elements of the stream: those of the tensor and the padding of its order, without that of the last word."""
        tiles = TILES.fullmatch(self.order)
        if tiles is None:
            return self.size
        rows, columns = int(tiles[1]), int(tiles[2])
        beats = rows + columns - 1 if tiles[4] else rows
        count = math.ceil(self.shape[0] / rows) * math.ceil(self.shape[1] / columns) * math.prod(self.shape[2:])
        length = count * beats * columns
        if length > max(MAX_STREAM, 2 * self.size):
            raise UserError(f"order {self.order}: {length} elements with padding, allowed are {MAX_STREAM}")
        return length

    @property
    def words(self) -> int:
        return -(-self.stream // self.packing.lanes)

    @property
    def padding(self) -> int:
        """Elements of the words that are no element of the tensor."""
        return self.words * self.packing.lanes - self.size

    @property
    def word_bits(self) -> int:
        return self.packing.lanes * self.bits

    @property
    def digits(self) -> int:
        """Hexadecimal digits of a word."""
        return -(-self.word_bits // 4)

    @property
    def octets(self) -> int:
        """Bytes that hold the bits of a word."""
        return -(-self.word_bits // 8)

    @property
    def index(self) -> Int64 | None:
        """int64 [stream]: flat row-major number of each element of the stream, -1 for padding; None: 0, 1, 2, ..."""
        return None if self.order == ROW_MAJOR else _index(self.axes, self.shape, self.order)

    def place(self, flat: int) -> tuple[int, int]:
        """(word, lane) of the element with this flat row-major number."""
        index = self.index
        position = flat if index is None else int(np.flatnonzero(index == flat)[0])
        return divmod(position, self.packing.lanes)

    def words_text(self) -> str:
        """The packing in words, for comments."""
        lanes = self.packing.lanes
        names = {ROW_MAJOR: "row-major, last axis fastest"}
        text = f"order {names.get(self.order, self.order)}, {lanes} lane{'s' if lanes > 1 else ''} a word"
        return text + (f", {self.packing.lane_order}" if lanes > 1 else "")


@functools.lru_cache(maxsize=8)
def _index(axes: tuple[str, ...], shape: tuple[int, ...], order: str) -> Int64:
    """The table of `Layout.index` for an order other than row-major."""
    tiles = TILES.fullmatch(order)
    if tiles is None:
        axis = axes.index(order.removesuffix("-major"))
        numbers = np.arange(math.prod(shape), dtype=np.int64).reshape(shape)
        return np.moveaxis(numbers, axis, 0).reshape(-1)
    rows, columns = int(tiles[1]), int(tiles[2])
    first, second = -(-shape[0] // rows), -(-shape[1] // columns)
    beats = np.arange(rows + columns - 1 if tiles[4] else rows, dtype=np.int64)[:, None]
    column = np.arange(columns, dtype=np.int64)
    row = beats - column if tiles[4] else beats + 0 * column  # [beat, column]: row of the tile
    tile_row = np.arange(first, dtype=np.int64)
    tile_column = np.arange(second, dtype=np.int64)
    if tiles[3]:
        tile_column, tile_row = tile_column[:, None], tile_row[None, :]
    else:
        tile_row, tile_column = tile_row[:, None], tile_column[None, :]
    t = tile_row[:, :, None, None] * rows + row
    c = tile_column[:, :, None, None] * columns + column
    real = (row >= 0) & (row < rows) & (t < shape[0]) & (c < shape[1])
    rest = math.prod(shape[2:])
    flat = ((t * shape[1] + c) * rest)[..., None] + np.arange(rest, dtype=np.int64)
    return np.where(real[..., None], flat, -1).reshape(-1)


def to_stream(values: Array, layout: Layout) -> Array:
    """The elements as a stream [words * lanes] in their dtype, padding 0.  values: the layout's shape."""
    index = layout.index
    flat = values.reshape(-1)
    total = layout.words * layout.packing.lanes
    if index is None and total == flat.size:
        return flat
    stream = np.zeros(total, dtype=values.dtype)
    if index is None:
        stream[: flat.size] = flat
    else:
        real = np.flatnonzero(index >= 0)
        stream[real] = flat[index[real]]
    return stream


def from_stream(stream: Array, layout: Layout) -> Array:
    """The tensor, in its shape, of a stream [words * lanes] (padding is not looked at)."""
    index = layout.index
    if index is None:
        return stream[: layout.size].reshape(layout.shape)
    flat = np.empty(layout.size, dtype=stream.dtype)
    real = np.flatnonzero(index >= 0)
    flat[index[real]] = stream[real]
    return flat.reshape(layout.shape)


def pack(values: Array, layout: Layout) -> Array:
    """uint8 [words, octets], little-endian: each word with its bits above `word_bits` zero.

    values: integers in the range of the layout's format; negative ones are masked to `bits` bits.
    """
    lanes, bits = layout.packing.lanes, layout.bits
    stream = to_stream(values, layout)
    wide = stream.astype(np.int64 if stream.dtype.kind == "i" else np.uint64).view(np.uint64)
    parts = [
        _pack(wide[i : i + step], bits, lanes, layout.packing.lane_order)
        for step in [max(1, CHUNK // lanes) * lanes]
        for i in range(0, wide.size, step)
    ]
    return np.concatenate(parts) if parts else np.zeros((0, layout.octets), dtype=np.uint8)


def _pack(wide: Array, bits: int, lanes: int, lane_order: str) -> Array:
    masked = wide & np.uint64((1 << bits) - 1)
    octets = masked.astype("<u8").view(np.uint8).reshape(-1, lanes, 8)
    if lane_order == "msb-first":
        octets = octets[:, ::-1]
    if lanes == 1:
        return octets[:, 0, : (bits + 7) // 8]
    if bits % 8 == 0:
        return octets[:, :, : bits // 8].reshape(len(octets), -1)
    single = np.unpackbits(octets, axis=2, count=bits, bitorder="little")
    return np.packbits(single.reshape(len(octets), -1), axis=1, bitorder="little")


def unpack(words: Array, layout: Layout) -> Array:
    """The tensor in its container, from uint8 [words, octets] as `pack` gives them; padding is not looked at."""
    return from_stream(lanes_of(words, layout), layout)


def unknown_elements(unknown: Array | None, layout: Layout) -> Array | None:
    """bool in the tensor's shape: whether any bit of an element is set in `unknown`, uint8 [words, octets]."""
    if unknown is None:
        return None
    return unpack(unknown, replace(layout, signed=False)) != 0


def lanes_of(words: Array, layout: Layout) -> Array:
    """The stream [words * lanes] of words, padding included, each element in its container."""
    lanes, bits = layout.packing.lanes, layout.bits
    stream = np.empty((len(words), lanes), dtype=layout.dtype)
    step = max(1, CHUNK // lanes)
    for start in range(0, len(words), step):
        stream[start : start + step] = _unpack(words[start : start + step], bits, lanes, layout.signed)
    if layout.packing.lane_order == "msb-first":
        stream = stream[:, ::-1]
    return stream.reshape(-1)


def _unpack(words: Array, bits: int, lanes: int, signed: bool) -> Array:
    octets = np.zeros((len(words), lanes, 8), dtype=np.uint8)
    if lanes == 1:
        octets[:, 0, : words.shape[1]] = words
    elif bits % 8 == 0:
        octets[:, :, : bits // 8] = words.reshape(len(words), lanes, -1)
    else:
        single = np.unpackbits(words, axis=1, count=lanes * bits, bitorder="little").reshape(len(words), lanes, bits)
        octets[:, :, : (bits + 7) // 8] = np.packbits(single, axis=2, bitorder="little")
    raw = octets.view("<u8")[:, :, 0].astype(np.uint64)
    if not signed:
        return raw
    free = np.uint64(64 - bits)  # the sign bit goes to the top and comes back, arithmetically
    return (raw << free).view(np.int64) >> free.astype(np.int64)
