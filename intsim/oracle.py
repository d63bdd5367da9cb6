"""The oracle: runs a Program by the readable definitions in `intsim/operators`, one image at a time.

Slow and obvious on purpose.  It is what the engine, the torch path and a DUT are compared with.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from intsim.arithmetic import int64, limits
from intsim.errors import UserError
from intsim.operators import KINDS, View
from intsim.program import Array, Program
from intsim.taps import select


class Oracle:
    """Runs a Program in NumPy int64.

    run(images, taps) -> {tensor name: [batch, *shape] in the tensor's container}.
    """

    def __init__(self, program: Program):
        self.program = program
        self.steps = [(op, KINDS[op.kind], View(program, op)) for op in program.operators]

    @property
    def overflows(self) -> dict[str, int]:
        """Narrow accumulator -> elements that were not the exact sum, over all images so far (SPEC section 13)."""
        counted = {op.tensor(port): n for op, _, view in self.steps for port, n in view.overflows.items()}
        return {name: counted.get(name, 0) for name in self.program.narrowed}

    def run_one(self, image: Array) -> dict[str, Array]:
        """Every tensor of one image, `image` [H, W, C] uint8, each in its container.

        Raises AssertionError if a value leaves its declared width: the Program's proof excludes that.
        """
        if image.dtype != np.uint8 or image.shape != self.program.image:
            raise UserError(f"image is {image.dtype} {list(image.shape)}, must be uint8 {list(self.program.image)}")
        values = {"image": int64(image)}
        for op, kind, view in self.steps:
            made = kind.run(view, {port: values[name] for port, name in op.inputs.items()})
            for port in op.outputs:
                values[op.tensor(port)] = made[port]
        result: dict[str, Array] = {}
        for name, value in values.items():
            tensor = self.program.tensors[name]
            low, high = limits(tensor.bits, tensor.signed)
            assert value.shape == tensor.shape, f"{name} has shape {value.shape}, declared {tensor.shape}"
            assert low <= value.min() and value.max() <= high, f"{name} leaves its {tensor.bits} bits"
            result[name] = value.astype(tensor.dtype)
        return result

    def run(self, images: Array, taps: Iterable[str] = ()) -> dict[str, Array]:
        """images [batch, H, W, C] uint8 -> the logits and every tensor that a glob in `taps` names."""
        names = select(self.program, taps)
        parts: dict[str, list[Array]] = {name: [] for name in names}
        for image in images:
            every = self.run_one(image)
            for name in names:
                parts[name].append(every[name])
        return {name: np.stack(part) for name, part in parts.items()}
