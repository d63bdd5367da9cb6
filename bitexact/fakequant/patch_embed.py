"""patch_embed (SPEC 5.1): a linear map of each patch of the image."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bitexact.fakequant.common import Reals, Step, summed
from intsim.program import Operator, Program

ZERO_POINT = 128  # pixel - 128 is signed


class PatchEmbed(Step):
    """image [n, H, W, C], pixels 0 .. 255 -> acc, out [n, P, D]."""

    kind = "patch_embed"

    def __init__(self, program: Program, op: Operator, device: torch.device):
        super().__init__(program, op, device)
        weight, bias = self.integers("weight"), self.integers("bias")
        scale = self.e_out("acc")
        bound = np.abs(bias) + ZERO_POINT * np.abs(weight).sum(1)
        self.bound_register("acc", bound)
        self.bound_requantize("out", bound, scale)
        self.settle()
        self.weight = self.constant("weight")
        self.bias = self.constant("bias")
        self.out = self.grid("out")
        self.narrow = self.register("acc")
        self.patch, self.stride = int(op.attributes["patch"]), int(op.attributes["stride"])

    def patches(self, image: Tensor) -> Tensor:
        """[n, H, W, C] -> [n, P, K]: patches row by row, inputs ordered channel, row, column."""
        unfolded = F.unfold(image.permute(0, 3, 1, 2), self.patch, stride=self.stride)
        return unfolded.transpose(1, 2)

    def __call__(self, inputs: Reals, wanted: Collection[str]) -> Reals:
        a = self.patches(inputs["image"].to(self.dtype) - ZERO_POINT)
        acc = summed(a, self.weight, self.bias, self.narrow)
        return {"acc": acc, "out": self.out(acc)}
