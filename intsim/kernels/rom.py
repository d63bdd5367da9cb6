# mypy: allow-untyped-defs
"""rom (SPEC 5.6): SiLU and softplus by tables of 256 entries."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from intsim.kernels.base import Array, Kernel, Workers, rows_of, signed
from intsim.kernels.common import kernel
from intsim.program import Operator, Program


class Rom(Kernel):
    """Input x [L, E], signed 8 bits; `out` [L, E]."""

    def __init__(self, program: Program, op: Operator):
        super().__init__(program, op)
        rom = self.constant("rom", self.tensor("out").dtype)
        self.table = np.roll(signed(rom), 128, axis=1).reshape(-1)  # entry x + 128 moves to x mod 256
        self.index = self.constant("rom_index", np.uint8)

    def run(self, workers: Workers, inputs: Mapping[str, Array], wanted: Collection[str]) -> dict[str, Array]:
        x = inputs["x"]
        out = self.empty("out", x.shape[0])

        def part(start: int, stop: int) -> None:
            look_up(rows_of(x)[start:stop], self.table, self.index, rows_of(signed(out))[start:stop])

        workers.split(len(rows_of(x)), x.size // 2, part)
        return {"out": out}


@kernel
def look_up(x, table, index, out):
    """out[r, c] = table[index[c] * 256 + x[r, c] mod 256].  x, out [rows, E], 8 bits; index uint8 [E]."""
    rows, channels = x.shape
    for r in range(rows):
        source = x[r]
        target = out[r]
        for c in range(channels):
            target[c] = table[np.int64(index[c]) * 256 + (np.int64(source[c]) & 255)]
