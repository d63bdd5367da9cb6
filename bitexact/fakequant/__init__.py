"""The independent path: a Program computed in real values with torch, on any device, equal integer for integer.

    fake = FakeQuant(program, device="cuda")
    values = fake.run(images, taps=["layers.3.*", "*.acc"])     # tensor name -> integers [n, *shape]
    logits = fake.classify(images, batch=64)                    # integers [n, classes]

Written from SPEC.md alone: it takes weights, exponents and ROMs from the Program and shares no arithmetic with
`intsim` (a test walks the imports).  Every tensor is a float tensor of real values q * 2^e; an integer leaves only
by exact scaling, and one that would not be an integer raises.  `common` has the rule that picks the float type of
each operator, or refuses it.  `fast=True` runs fused kernels on CUDA (`bitexact.fakequant.fast`) instead.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bitexact.fakequant.add import Add
from bitexact.fakequant.common import Reals, Step, exponents, power_of_two, storage
from bitexact.fakequant.conv1d import Conv1d
from bitexact.fakequant.gate import Gate
from bitexact.fakequant.insert_token import InsertToken
from bitexact.fakequant.linear import Linear
from bitexact.fakequant.patch_embed import PatchEmbed
from bitexact.fakequant.rmsnorm import RMSNorm
from bitexact.fakequant.rom import Rom
from bitexact.fakequant.scan import Scan
from bitexact.fakequant.select_token import SelectToken
from intsim.errors import UserError
from intsim.program import Operator, Program
from intsim.taps import select

STEPS: dict[str, type[Step]] = {
    step.kind: step for step in (PatchEmbed, InsertToken, RMSNorm, Linear, Conv1d, Rom, Scan, Gate, Add, SelectToken)
}

PIECE = 1 << 17  # elements that are turned into integers at a time on a CPU

Sink = Callable[[str, Tensor], None]


class InexactError(ArithmeticError):
    """A value of the path is not an integer multiple of its tensor's scale: the path is wrong, never the input."""


class FakeQuant:
    """Runs a Program in real values.

    device: where ("cpu", "cuda", "cuda:1").  fast: fused kernels (CUDA, or Triton's interpreter).
    Raises UserError if an operator cannot be computed exactly, or the device cannot.
    """

    def __init__(self, program: Program, device: str | torch.device = "cpu", fast: bool = False):
        self.program = program
        self.device = open_device(device)
        self.fast = fast
        self.steps: dict[str, Step] = {}
        for op in program.operators:
            if op.kind not in STEPS:
                raise UserError(f"operator {op.name}: there is no kind {op.kind!r}, must be one of {', '.join(STEPS)}")
            self.steps[op.name] = STEPS[op.kind](program, op, self.device)
        self.kept = {name: storage(program, name) for name in program.tensors}
        self._scales: dict[str, tuple[Tensor, Tensor]] = {}
        self._last_use = {name: op.name for op in program.operators for name in op.inputs.values()}
        self._fused: Any = None
        if fast:
            from bitexact.fakequant.fast import Fused

            self._fused = Fused(self)

    # --- running ---

    def run(self, images: Any, taps: Iterable[str] = ()) -> dict[str, Tensor]:
        """images uint8 [n, H, W, C] (NumPy or torch) -> the logits and every tensor that a glob names.

        Values are int32, or int64 where that is too narrow, [n, *shape] on the device.
        """
        made: dict[str, Tensor] = {}
        self.stream(images, select(self.program, taps), made.__setitem__)
        return made

    def stream(self, images: Any, names: Collection[str], sink: Sink) -> None:
        """Runs all operators and hands each named tensor to `sink(name, integers)` as soon as it is made.

        Nothing is kept that no later operator reads: memory does not depend on how many tensors are named.
        """
        batch = self.images(images)
        if self._fused is not None:
            with exact_matmul():
                self._fused.stream(batch, frozenset(names), sink)
            return
        values: Reals = {"image": batch}
        if "image" in names:
            sink("image", batch.to(torch.int64))
        with torch.no_grad(), exact_matmul():
            for op in self.program.operators:
                self._advance(op, values, names, sink)

    def _advance(self, op: Operator, values: Reals, names: Collection[str], sink: Sink) -> None:
        """One operator: its outputs join `values`, and what it was the last to read leaves."""
        tensors = {port: op.tensor(port) for port in op.outputs}
        wanted = {port for port, name in tensors.items() if name in names or name in self._last_use}
        made = self.steps[op.name]({port: values[name] for port, name in op.inputs.items()}, wanted)
        for port, name in tensors.items():
            if name in names:
                sink(name, self.integers(name, made[port]))
            if name in self._last_use:
                values[name] = made[port].to(self.kept[name] or made[port].dtype)
        for name in set(op.inputs.values()):
            if self._last_use[name] == op.name:
                del values[name]

    def run_operator(self, op: Operator, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        """Runs one operator of the plain form on integers.  inputs: tensor name -> integers [n, *shape].

        Returns every output: tensor name -> int32 or int64 [n, *shape] on the device.
        """
        with torch.no_grad(), exact_matmul():
            values = {port: self.reals(name, inputs[name]) for port, name in op.inputs.items()}
            made = self.steps[op.name](values, set(op.outputs))
            return {op.tensor(port): self.integers(op.tensor(port), made[port]) for port in op.outputs}

    def classify(self, images: Any, batch: int = 64) -> Tensor:
        """images uint8 [n, H, W, C] -> logits, int64 [n, classes], on the CPU; `batch` images at a time."""
        if self._fused is not None:
            with exact_matmul():
                logits: Tensor = self._fused.classify(images, batch)
            return logits
        parts = []
        for start in range(0, len(images), batch):
            run = self.run(images[start : start + batch])
            parts.append(run[self.program.logits].flatten(1).cpu())
        classes = self.program.tensors[self.program.logits].shape[-1]
        return torch.cat(parts) if parts else torch.zeros((0, classes), dtype=torch.int64)

    # --- images and integers ---

    def images(self, images: Any) -> Tensor:
        """Checks a batch of images and moves it to the device: uint8 [n, H, W, C]."""
        batch = torch.as_tensor(np.ascontiguousarray(images) if isinstance(images, np.ndarray) else images)
        if batch.dtype != torch.uint8 or tuple(batch.shape[1:]) != self.program.image:
            raise UserError(
                f"images are {str(batch.dtype).removeprefix('torch.')} {list(batch.shape)}, must be uint8 "
                f"[n, {', '.join(map(str, self.program.image))}]"
            )
        return batch.to(self.device)

    def scales(self, name: str) -> tuple[Tensor, Tensor]:
        """(2^-e, 2^e) of a tensor in float64, broadcastable to its shape; 1 where it has no exponent."""
        if name not in self._scales:
            e = exponents(self.program, name) if self.program.tensors[name].exponent is not None else np.int64(0)
            pair = (power_of_two(-e, torch.float64, self.device), power_of_two(e, torch.float64, self.device))
            self._scales[name] = pair
        return self._scales[name]

    def integers(self, name: str, real: Tensor) -> Tensor:
        """The integers of a tensor from its real values, by exact scaling; InexactError if they are none."""
        declared = self.program.tensors[name]
        down = self.scales(name)[0].expand(real.shape[1:])
        narrow = declared.bits <= 31 + declared.signed
        for dtype in (torch.int32, torch.int64) if narrow else (torch.int64,):
            codes = exact_codes(real, down, dtype)
            if codes is not None:
                return codes
        raise InexactError(f"{name} has a value that is not an integer multiple of its scale")

    def scaled(self, name: str, real: Tensor) -> Tensor:
        """The codes of a tensor as float64, unchecked and without waiting for the device."""
        return real.to(torch.float64) * self.scales(name)[0]

    def reals(self, name: str, codes: Any) -> Tensor:
        """The real values of a tensor from its integers."""
        if isinstance(codes, np.ndarray):
            codes = torch.from_numpy(codes.astype(np.int64))
        real = codes.to(device=self.device, dtype=torch.float64) * self.scales(name)[1]
        return real.to(self.kept[name] or torch.float64)


def exact_codes(real: Tensor, down: Tensor, dtype: torch.dtype) -> Tensor | None:
    """real [n, rows, ...] times down [rows, ...] as integers of `dtype`; None if that changes any value."""
    codes = torch.empty(real.shape, dtype=dtype, device=real.device)
    for part in pieces(real):
        scaled = real[part].to(torch.float64) * down[part[1]]
        codes[part] = scaled
        if not torch.equal(codes[part].to(torch.float64), scaled):
            return None
    return codes


def pieces(value: Tensor) -> Iterator[tuple[slice, slice]]:
    """Slices of [n, rows, ...] that cover it: all at once, or on the CPU in pieces that stay in its cache."""
    n, rows = value.shape[:2]
    images = step = max(n, rows)
    if value.device.type == "cpu":
        images, step = 1, max(1, PIECE * rows * n // max(1, value.numel()))
    for i in range(0, n, images):
        for start in range(0, rows, step):
            yield slice(i, i + images), slice(start, start + step)


def open_device(device: str | torch.device) -> torch.device:
    """The torch device of that name; UserError if torch does not know it, or it is not there, or has no float64."""
    try:
        found = torch.device(device)
    except (RuntimeError, ValueError):
        raise UserError(f"device {device!r} is not one that torch knows; use cpu or cuda") from None
    if found.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device {device!r}: this torch ({torch.__version__}) finds no CUDA device; use cpu")
    if found.type not in ("cpu", "cuda"):
        raise UserError(f"device {device!r} is not supported (float64 is needed); use cpu or cuda")
    return found


@contextlib.contextmanager
def exact_matmul() -> Iterator[None]:
    """Matrix products of float32 in float32: no TF32 and no bfloat16 inputs while the block runs."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
