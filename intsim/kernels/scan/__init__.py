# mypy: allow-untyped-defs
"""scan (SPEC 5.7): the selective scan.

Four kernels give the same integers.  `scan_traced` is SPEC 5.7 line by line in 64 bits and can store every internal
tensor; it also runs what the others cannot.  `scan_lanes` stores nothing that has an element for each state: 16 states
in a vector, a block of channels for each token, so that consecutive updates do not wait for each other, and rows of
A-bar kept for each (channel, delta code) that has occurred.  `scan_avx512` and `scan_avx2` do the same with far fewer
instructions, where the CPU and the Program allow it.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from intsim.arithmetic import limits
from intsim.kernels import cpu
from intsim.kernels import vector as v
from intsim.kernels.base import BATCH, In, Kernel, Out, pad
from intsim.kernels.common import kernel
from intsim.kernels.exp2 import byte_rom, packed_rom
from intsim.kernels.scan.arguments import (
    ABAR,
    ACC,
    AVX2,
    AVX512,
    B_OUT,
    BLOCK,
    HARMLESS_LEFT,
    INNER,
    LANES,
    LARGEST_LEFT,
    LARGEST_RIGHT,
    LARGEST_RIGHT_BYTES,
    LEAST_M,
    METHOD,
    SHIFTS,
    SOME,
    TABLE,
    TRACED,
    H,
    Y,
)
from intsim.kernels.scan.avx2 import SCRATCH as AVX2_SCRATCH
from intsim.kernels.scan.avx2 import scan_avx2
from intsim.kernels.scan.avx512 import scan_avx512
from intsim.kernels.scan.lanes import scan_lanes
from intsim.kernels.scan.traced import scan_traced
from intsim.program import Array, Operator, Program, Tensor


class Scan(Kernel):
    """Inputs delta, u [L, E], B, C [L, N]; `y` [L, E].

    If wanted `dx`, `y_acc` [L, E] and `abar`, `b`, `acc`, `h` [L, E, N].
    """

    code = 9
    by_channel = True

    def __init__(self, program: Program, op: Operator):
        super().__init__(program, op)
        a = self.constant("A", np.int32)
        self.channels, states = a.shape
        padded = -(-states // v.LANES) * v.LANES
        whole = np.zeros((-(-self.channels // BLOCK) * BLOCK, padded), dtype=np.int32)
        whole[: self.channels, :states] = a
        rom = self.constant("exp2_rom", np.int32)
        b_shift, token_shift = self.constant("b_shift", np.int64), self.constant("state_token_shift", np.int64)
        y_shift = self.constant("y_shift", np.int64)
        self.tokens = len(token_shift)
        y_row_shift = np.broadcast_to(self.row_shift("y"), token_shift.shape).copy()
        h, y = self.tensor("h"), self.tensor("y")
        m = int(op.attributes["abar_fraction"])
        least, most = (int(f(b_shift) + f(token_shift)) for f in (np.min, np.max))
        self.method = method_of(self.path, self.mode, states, m, h, rom, least, most)
        tables = [0 if table is None else self.keep(table) for table in tables_of(self.method, self.mode, rom)]
        self.clamps = int(least < -HARMLESS_LEFT)
        self.numbers = [
            *(In("delta"), In("u"), In("B"), In("C"), Out("y")),
            *(Out(port) for port in INNER),
            *(BATCH, self.tokens, self.channels, states, self.method, self.clamps),
            *(self.keep(whole.reshape(-1)), self.keep(pad(self.constant("A_fraction", np.int64), BLOCK))),
            *(self.keep(rom), *tables[:2]),
            *(self.keep(pad(self.constant("D", np.int32), BLOCK)), self.keep(pad(b_shift.astype(np.int32), BLOCK))),
            *(self.keep(token_shift), int(token_shift.min()), int(token_shift.max())),
            *(self.keep(pad(y_shift.astype(np.int32), BLOCK)), self.keep(y_row_shift)),
            *(m, self.mode, *limits(h.bits, h.signed), *limits(y.bits, y.signed)),
            *(self.tensor("abar").dtype.itemsize, h.dtype.itemsize, int(y_shift.min() + y_row_shift.min() >= 0)),
            *tables[2:],
        ]
        self.row_cost = self.tokens * states // 4
        lefts = int(token_shift.max() - token_shift.min()) + 1
        self.scratch = BLOCK * ((TABLE + 256 * (padded - 16)) * 4 + 16 * 4 + 256) + (3 * 4 + 8) * SOME * 16 + 4096
        self.scratch = max(self.scratch, AVX2_SCRATCH)
        self.scratch += lefts * SHIFTS * 4

    def inner(self) -> tuple[str, ...]:
        return INNER


def method_of(path: str, mode: int, states: int, m: int, h: Tensor, rom: Array, least: int, most: int) -> int:
    """The fastest kernel that gives SPEC 5.7's integers for such a scan where no inner tensor is wanted.

    least, most: of b_shift + state_token_shift.
    """
    if least < -LARGEST_LEFT or rom.min() < 0 or rom.max() > 1 << 17:
        return TRACED
    whole = h.bits > 8 or limits(h.bits, h.signed) == (-128, 127)
    if states <= 16 and mode <= 1 and packed_rom(rom) is not None and most <= LARGEST_RIGHT and whole:
        if path in cpu.WIDE:
            return AVX512
        if path in cpu.NARROW and (h.bits > 8 or (m >= LEAST_M and most <= LARGEST_RIGHT_BYTES)):
            return AVX2
    return LANES


def tables_of(method: int, mode: int, rom: Array) -> tuple[Array | None, ...]:
    """PACKED, BYTE_ROM, RIGHTS, BIT_PLACES and ENTRY_BYTES, None where this kernel does not read them."""
    packed = packed_rom(rom) if method in (AVX2, AVX512) else None
    if packed is None:
        return (None,) * 5
    if method == AVX2:
        return None, None, None, places_of_bits(), entry_bytes(packed)
    return packed, byte_rom(rom) if mode == 1 and cpu.has_byte_permutation() else None, rights_of(mode), None, None


def rights_of(mode: int) -> Array:
    """For avx512_states.bytes_right, int32 [9 * 4]: what right shifts of 0 .. 8, half_up or floor, need.

    That is count, mask, offset, 0.  (h + 128) >> s is h >> s and 128 >> s; half_up is the average with 0 of what a
    shift less by 1 gives.  By 8 bits or more half_up gives 0, and floor what it gives for 7.
    """
    rows = []
    for step in range(9):
        by = step if mode else min(step, 7)
        count = max(by - mode, 0)
        rows += [count, (255 >> count) * (by < 8), 128 - (128 >> by), 0]
    return np.array(rows, dtype=np.int32)


@lru_cache(maxsize=1)
def places_of_bits() -> Array:
    """For avx2_states.list_codes, uint8 [256 * 8]: the bits that are set in each byte, rising, and zeros."""
    rows = [[bit for bit in range(8) if byte >> bit & 1] for byte in range(256)]
    return np.array([row + [0] * (8 - len(row)) for row in rows], dtype=np.uint8).reshape(-1)


def entry_bytes(packed: Array) -> Array:
    """For avx2_states.write_two_rows, uint8 [8 * 4 * 16], of each 16 entries of packed_rom [128] their first, second ..
    bytes, from the second 16 on the exclusive or of each with that of the entry 16 before.
    """
    planes = np.array([packed >> at & 255 for at in (0, 8, 16, 24)], dtype=np.uint8).reshape(4, 8, 16)
    planes[:, 1:] ^= planes[:, :-1].copy()
    return planes.transpose(1, 0, 2).reshape(-1)


@kernel
def scan(a, start, stop, scratch, lanes, avx2, avx512):
    """The channels start .. stop - 1 of all images, start a multiple of BLOCK.

    a: Scan.arguments(); lanes, avx2, avx512: None if no scan has that method, whose kernel is then not compiled.
    """
    for first in range(start, stop, BLOCK):
        last = min(first + BLOCK, stop)
        method = a[METHOD] if a[Y] and not (a[ABAR] or a[B_OUT] or a[ACC] or a[H]) else TRACED
        if lanes is not None and method == LANES:
            scan_lanes(a, first, last, scratch)
        elif avx2 is not None and method == AVX2:
            scan_avx2(a, first, last, scratch)
        elif avx512 is not None and method == AVX512:
            scan_avx512(a, first, last, scratch)
        else:
            scan_traced(a, first, last)
