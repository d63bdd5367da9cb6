"""select_token (SPEC 5.10): the class token's row.  Nothing is computed, so nothing is compiled."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from intsim.kernels.base import Array, Kernel, Workers
from intsim.program import Operator, Program


class SelectToken(Kernel):
    """Input x [L, D]; `out` [1, D]."""

    def __init__(self, program: Program, op: Operator):
        super().__init__(program, op)
        self.position = int(op.attributes["position"])

    def run(self, workers: Workers, inputs: Mapping[str, Array], wanted: Collection[str]) -> dict[str, Array]:
        return {"out": np.ascontiguousarray(inputs["x"][:, self.position : self.position + 1])}
