# mypy: allow-untyped-defs
"""rmsnorm (SPEC 5.3)."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from intsim.arithmetic import limits
from intsim.kernels.base import Array, Kernel, Workers, rows_of, signed
from intsim.kernels.common import bit_length, isqrt, kernel, round_shift, saturate
from intsim.program import Operator, Program


class RmsNorm(Kernel):
    """Input x [L, D]; `square_sum`, `rsqrt` [L]; `normed`, `out` [L, D]."""

    def __init__(self, program: Program, op: Operator):
        super().__init__(program, op)
        self.gamma = self.constant("gamma", np.int64)
        self.shift = self.constant("shift", np.int64)
        self.numbers = tuple(int(op.attributes[name]) for name in ("eps_q", "d_norm", "d_shift"))
        out = self.tensor("out")
        self.low, self.high = limits(out.bits, out.signed)

    def run(self, workers: Workers, inputs: Mapping[str, Array], wanted: Collection[str]) -> dict[str, Array]:
        x = inputs["x"]
        batch, tokens, width = x.shape
        rows = batch * tokens
        out = self.empty("out", batch)
        square_sum, rsqrt = np.empty((2, batch, tokens), dtype=np.int64)
        keep = "normed" in wanted
        normed = np.empty((batch, tokens, width), dtype=np.int32) if keep else None

        def part(start: int, stop: int) -> None:
            normalise(
                rows_of(x), start, stop, self.gamma, self.shift, *self.numbers, self.mode, self.low, self.high,
                square_sum.reshape(rows), rsqrt.reshape(rows),
                np.empty((1, width), dtype=np.int32) if normed is None else rows_of(normed), int(keep),
                rows_of(signed(out)),
            )  # fmt: skip

        workers.split(rows, rows * (200 + 2 * width), part)
        made = {"square_sum": square_sum, "rsqrt": rsqrt, "out": out}
        if normed is not None:
            made["normed"] = normed
        return {port: array.astype(self.tensor(port).dtype, copy=False) for port, array in made.items()}


@kernel
def normalise(
    x, start, stop, gamma, shift, eps_q, d_norm, d_shift, mode, low, high, square_sum, rsqrt, normed, keep, out
):
    """Rows start .. stop - 1.

    x, out [rows, D]; gamma, shift int64 [D]; square_sum, rsqrt int64 [rows]; normed int32 [rows, D] if `keep`,
    otherwise [1, D] for one row at a time.
    """
    width = x.shape[1]
    for r in range(start, stop):
        q = x[r]
        squares = eps_q
        for d in range(width):
            squares += np.int64(q[d]) * np.int64(q[d])
        k = (32 - bit_length(squares)) >> 1
        w = squares << (2 * k) if k >= 0 else squares >> (-2 * k)
        root = isqrt((d_norm << 52) // w)
        square_sum[r] = squares
        rsqrt[r] = root
        n = normed[r * keep]
        target = out[r]
        s = 14 + d_shift - k
        for d in range(width):
            n[d] = round_shift(np.int64(q[d]) * root, s, mode)
        for d in range(width):
            target[d] = saturate(round_shift(np.int64(n[d]) * gamma[d], shift[d], mode), low, high)
