# mypy: allow-untyped-defs
"""patch_embed (SPEC 5.1): a linear map of each patch of pixels."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from intsim.kernels.base import In
from intsim.kernels.linear import BLOCK, PATCHES, Linear
from intsim.kernels.memory import LINE
from intsim.program import Array, Operator, Program


class PatchEmbed(Linear):
    """Input image uint8 [H, W, C]; `acc` int32 [P, D]; `out` [P, D]."""

    aligned: Collection[str] = ()

    def __init__(self, program: Program, op: Operator):
        super(Linear, self).__init__(program, op)
        height, width, channels = self.input("image").shape
        patch, stride = int(op.attributes["patch"]), int(op.attributes["stride"])
        across = (width - patch) // stride + 1
        self.tokens = ((height - patch) // stride + 1) * across
        no_shift = np.zeros(1, dtype=np.int64)
        outputs, inputs = self.tensor("out").shape[1], channels * patch * patch
        # the inputs in the image's order, row, column, channel, so that whole rows of a patch are copied
        weight: Array = self.constant("weight", np.int8).reshape(outputs, channels, patch, patch)
        weight = weight.transpose(0, 2, 3, 1).reshape(outputs, inputs)
        self.bind(In("image"), weight, np.zeros(inputs, dtype=np.int64), no_shift, [("out", 0, outputs)])
        room = -(-BLOCK * inputs // LINE) * LINE  # for the pixels of a block of patches, whole cache lines
        self.numbers[PATCHES] = room
        self.numbers += [patch, stride, across, self.tokens, height, width, channels]
        self.row_cost += inputs
        self.scratch += room
