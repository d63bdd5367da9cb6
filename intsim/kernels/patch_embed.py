# mypy: allow-untyped-defs
"""patch_embed (SPEC 5.1): a linear map of each patch of pixels."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from intsim.kernels.base import AccumulatorKernel, Array, Requantize
from intsim.kernels.common import kernel
from intsim.kernels.dot import make_dot
from intsim.program import Operator, Program


class PatchEmbed(AccumulatorKernel):
    """Input image uint8 [H, W, C]; `acc` int32 [P, D]; `out` [P, D]."""

    def __init__(self, program: Program, op: Operator):
        super().__init__(program, op)
        weight = self.constant("weight", np.int8)
        self.width, self.inputs = weight.shape
        self.patch, self.stride = int(op.attributes["patch"]), int(op.attributes["stride"])
        height, width, _ = self.input("image").shape
        self.across = (width - self.patch) // self.stride + 1
        self.tokens = ((height - self.patch) // self.stride + 1) * self.across
        self.dot = make_dot(weight, self.constant("bias", np.int32), np.zeros(self.inputs, dtype=np.int64))
        self.padded = self.dot.padded
        self.no_shift = np.zeros(1, dtype=np.int64)
        self.cost = 100 + 2 * self.inputs + self.width * self.inputs // 100
        shift = self.constant("shift", np.int64)
        self.outputs = {"out": (0, Requantize(self.tensor("out"), shift, self.no_shift, self.mode))}

    def accumulate(self, inputs: Mapping[str, Array], first: int, rows: int, acc: Array) -> None:
        a = np.empty((rows, self.inputs), dtype=np.int8)
        cut_patches(inputs["image"], self.patch, self.stride, self.across, self.tokens, first, a)
        self.dot(a, self.no_shift, first, acc)


@kernel
def cut_patches(images, patch, stride, across, patches, first, out):
    """out[r, (ch * patch + i) * patch + j] = pixel - 128, for the patches first .. of all images.

    images uint8 [batch, H, W, C]; out int8 [rows, C * patch * patch]; across: patches in a row of patches.
    """
    channels = images.shape[3]
    for r in range(out.shape[0]):
        image = (first + r) // patches
        p = (first + r) % patches
        top = p // across * stride
        left = p % across * stride
        k = 0
        for ch in range(channels):
            for i in range(patch):
                for j in range(patch):
                    out[r, k] = np.int64(images[image, top + i, left + j, ch]) - 128
                    k += 1
