# mypy: allow-untyped-defs
"""rom (SPEC 5.6): SiLU and softplus by tables of 256 entries."""

from __future__ import annotations

import numpy as np

from intsim.kernels import cpu
from intsim.kernels import vector as v
from intsim.kernels.base import In, Kernel, Out
from intsim.kernels.common import kernel
from intsim.kernels.memory import int8_at, int64_at, uint8_at
from intsim.program import Operator, Program

BYTES = 64  # looked up at once


class Rom(Kernel):
    """Input x [L, E], signed 8 bits; `out` [L, E]."""

    code = 5
    aligned = ("x",)

    def __init__(self, program: Program, op: Operator):
        super().__init__(program, op)
        rom = self.constant("rom", self.tensor("out").dtype).view(np.int8)
        table = np.roll(rom, 128, axis=1).reshape(-1)  # entry x + 128 moves to x mod 256
        index = self.constant("rom_index", np.uint8)
        self.tokens, width = self.tensor("out").shape
        fast = self.path in cpu.WIDE and cpu.has_byte_permutation()
        whole = width // BYTES if fast else 0  # vectors of channels; the rest goes in eights, and then byte by byte
        lanes = index[: whole * BYTES].reshape(whole, 1, BYTES) == np.arange(len(rom))[:, None]
        masks = np.packbits(lanes, axis=2, bitorder="little").reshape(-1)
        table_at = self.keep(table)
        self.numbers = [
            *(In("x"), Out("out"), width, len(rom), whole),
            *(table_at, self.keep(index), self.keep(np.append(masks, np.zeros(8, np.uint8)))),
            self.keep(table_at + 256 * index.astype(np.int64)),
        ]
        self.row_cost = width // (4 if fast else 1)


@kernel
def rom(a, start, stop):
    """Rows start .. stop - 1 of all images.  a: Rom.arguments()."""
    x, out, width, roms, whole, table_at, index_at, masks_at, tables_at = a[:9]
    table, index = int8_at(table_at, roms * 256), uint8_at(index_at, width)
    masks = int64_at(masks_at, whole * roms)
    for r in range(start, stop):
        source, target = int8_at(x + r * width, width), int8_at(out + r * width, width)
        for q in range(whole):
            v.look_up_bytes(source, q * BYTES, table, masks, q * roms, roms, target, q * BYTES)
        eights = width // 8 * 8
        for c in range(whole * BYTES, eights, 8):
            v.look_up_eight(x + r * width + c, tables_at + 8 * c, out + r * width + c)
        for c in range(max(whole * BYTES, eights), width):
            target[c] = table[np.int64(index[c]) * 256 + (np.int64(source[c]) & 255)]
