# mypy: allow-untyped-defs
"""add (SPEC 5.9): the residual's saturating addition."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from intsim.arithmetic import limits
from intsim.kernels.base import Array, Kernel, Workers
from intsim.kernels.common import kernel, saturate
from intsim.program import Operator, Program


class Add(Kernel):
    """Inputs x, y [L, D]; `out` [L, D]."""

    def __init__(self, program: Program, op: Operator):
        super().__init__(program, op)
        out = self.tensor("out")
        self.low, self.high = limits(out.bits, out.signed)

    def run(self, workers: Workers, inputs: Mapping[str, Array], wanted: Collection[str]) -> dict[str, Array]:
        x, y = inputs["x"].reshape(-1), inputs["y"].reshape(-1)
        out = self.empty("out", inputs["x"].shape[0])

        def part(start: int, stop: int) -> None:
            add(x[start:stop], y[start:stop], self.low, self.high, out.reshape(-1)[start:stop])

        workers.split(x.size, x.size // 4, part)
        return {"out": out}


@kernel
def add(x, y, low, high, out):
    """out = x + y, saturated.  All [n], at most 16 bits."""
    for i in range(out.shape[0]):
        out[i] = saturate(x[i] + y[i], low, high)
