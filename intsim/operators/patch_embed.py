"""Patch embedding (SPEC 5.1): uint8 pixels, less 128, times int8 weights, to the residual format."""

from __future__ import annotations

import numpy as np

from intsim.arithmetic import Int64, requantize
from intsim.operators.base import (
    ACCUMULATOR_BITS,
    Bound,
    ConstSpec,
    Kind,
    PortSpec,
    View,
    dot_bound,
    offsets,
)
from intsim.program import Tensor


class PatchEmbed(Kind):
    """image [H, W, C] uint8 -> acc [P, D], out [P, D]."""

    name = "patch_embed"
    inputs = ("image",)
    outputs = ("acc", "out")
    attributes = ("patch", "stride")
    narrowable = ("acc",)

    def geometry(self, v: View) -> tuple[int, int, int, int, int]:
        """(patch, stride, rows of patches, columns of patches, inputs K of a patch)."""
        image = v.input("image")
        v.require(image.axes == ("row", "column", "channel"), "input image must have axes row, column, channel")
        v.require(image.bits == 8 and not image.signed, "input image must be unsigned, 8 bits")
        height, width, channels = image.shape
        patch = v.attribute("patch", 1, 64)
        stride = v.attribute("stride", 1, 64)
        v.require(patch <= min(height, width), f"patch {patch} is larger than the image {height} x {width}")
        return patch, stride, (height - patch) // stride + 1, (width - patch) // stride + 1, channels * patch**2

    def ports(self, v: View) -> dict[str, PortSpec]:
        _, _, rows, columns, _ = self.geometry(v)
        width = len(v.array("bias"))
        return {"out": PortSpec(("token", "channel"), (rows * columns, width), 16)}

    def given(self, v: View) -> dict[str, ConstSpec]:
        *_, k = self.geometry(v)
        width = v.output("out").shape[1]
        term = (v.offset_term("channel", "weight_exponent"),)
        return {
            "weight": ConstSpec(("channel", "input"), (width, k), 8, True, 0, term),
            "weight_exponent": offsets("channel", width),
            "bias": ConstSpec(("channel",), (width,), 32, True, 0, term),
        }

    def derived_constants(self, v: View) -> dict[str, tuple[ConstSpec, Int64]]:
        shift = v.out_exponents("out") - v.array("weight_exponent")
        v.check_shifts("shift", shift)
        return {"shift": (offsets("channel", len(shift)), shift)}

    def derived_tensors(self, v: View) -> dict[str, Tensor]:
        shape = v.output("out").shape
        term = (v.offset_term("channel", "weight_exponent"),)
        return {"acc": v.declare("acc", "accumulator", ("token", "channel"), shape, ACCUMULATOR_BITS, True, 0, term)}

    def bounds(self, v: View) -> dict[str, Bound]:
        zero = np.zeros((1, 1), dtype=np.int64)
        return {"acc": dot_bound(v.array("weight"), -128, 127, zero, v.array("bias"), v.array("shift"))}

    def run(self, v: View, x: dict[str, Int64]) -> dict[str, Int64]:
        patch, stride, rows, columns, _ = self.geometry(v)
        pixels = x["image"] - 128
        patches = []
        for i in range(rows):
            for j in range(columns):
                block = pixels[i * stride : i * stride + patch, j * stride : j * stride + patch, :]
                patches.append(block.transpose(2, 0, 1).reshape(-1))  # channel, row, column
        a, weight, bias = np.stack(patches), v.array("weight"), v.array("bias")
        if v.narrow("acc"):
            start = np.broadcast_to(bias, (len(a), len(bias)))
            acc = v.accumulate("acc", start, (a[:, k, None] * weight[:, k] for k in range(a.shape[1])))
        else:
            acc = a @ weight.T + bias
        out = v.output("out")
        return {"acc": acc, "out": requantize(acc, v.array("shift"), out.bits, out.signed, v.rounding)}
