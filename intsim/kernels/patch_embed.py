# mypy: allow-untyped-defs
"""patch_embed (SPEC 5.1): a linear map of each patch of pixels."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from intsim.kernels.base import In
from intsim.kernels.common import kernel
from intsim.kernels.dot import INPUTS
from intsim.kernels.linear import BLOCK, Linear, X, block_of, linear_block
from intsim.kernels.memory import int8_at
from intsim.program import Array, Operator, Program


class PatchEmbed(Linear):
    """Input image uint8 [H, W, C]; `acc` int32 [P, D]; `out` [P, D]."""

    code = 1
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
        self.numbers += [patch, stride, across, self.tokens, height, width, channels]
        self.row_cost += inputs
        self.scratch += BLOCK * inputs


@kernel
def patch_embed(a, start, stop, scratch):
    """The patches start .. stop - 1 of all images.  a: PatchEmbed.arguments()."""
    inputs = a[INPUTS]
    rest = scratch + BLOCK * inputs
    patch, stride, across, patches, height, width, channels = a[-7:]
    block = block_of(a)
    for first in range(start, stop, block):
        rows = min(block, stop - first)
        for r in range(rows):
            image, p = divmod(first + r, patches)
            corner = (p // across * stride * width + p % across * stride) * channels
            corner += a[X] + image * height * width * channels
            for i in range(patch):
                pixels = int8_at(corner + i * width * channels, patch * channels)
                out = int8_at(scratch + r * inputs + i * patch * channels, patch * channels)
                for k in range(patch * channels):
                    out[k] = pixels[k] ^ np.int8(-128)  # pixel - 128
        linear_block(a, scratch, first, rows, rest)
