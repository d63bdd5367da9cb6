"""The float model as a classifier of uint8 images: a checkpoint with its normalisation and class names."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bitexact.checkpoint import load_checkpoint, read_metadata
from bitexact.vim import Vim
from intsim.engine import available_threads
from intsim.errors import UserError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CHUNK = 32  # images that the model runs at a time: its tensors then stay in the caches

T = TypeVar("T")


class FloatModel:
    """A checkpoint, its per-channel mean and deviation (of pixels / 255) and its class names.

    mean, std, classes: default to the checkpoint's own metadata, else ImageNet's and `class0` ...
    Raises UserError if they do not fit the checkpoint.
    """

    def __init__(
        self,
        checkpoint: str | os.PathLike[str],
        *,
        image_size: tuple[int, int] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        classes: Sequence[str] | None = None,
    ):
        self.cfg, state = load_checkpoint(checkpoint, image_size=image_size)
        metadata = read_metadata(checkpoint)
        self.model = Vim(self.cfg).eval()
        self.model.load_state_dict(state)
        self.mean = self._channels("mean", mean or metadata.get("mean") or IMAGENET_MEAN)
        self.std = self._channels("std", std or metadata.get("std") or IMAGENET_STD)
        if not all(v > 0 for v in self.std):
            raise UserError(f"std is {list(self.std)}, must be above 0")
        named = classes or metadata.get("classes") or [f"class{i}" for i in range(self.cfg.classes)]
        self.classes = [str(c) for c in named]
        if len(self.classes) != self.cfg.classes:
            raise UserError(f"{len(self.classes)} class names are given, the checkpoint has {self.cfg.classes} classes")

    def _channels(self, label: str, values: Any) -> tuple[float, ...]:
        numbers = tuple(float(v) for v in values)
        if len(numbers) != self.cfg.channels or not all(np.isfinite(v) for v in numbers):
            raise UserError(f"{label} is {list(numbers)}, must be {self.cfg.channels} finite numbers")
        return numbers

    @property
    def image(self) -> tuple[int, int, int]:
        """(height, width, channels) of the images."""
        return self.cfg.image_height, self.cfg.image_width, self.cfg.channels

    def normalise(self, images: NDArray[np.uint8]) -> Tensor:
        """uint8 [n, H, W, C] -> float32 [n, C, H, W], as the model reads them."""
        pixels = torch.from_numpy(np.ascontiguousarray(images)).double() / 255
        mean, std = (torch.tensor(v, dtype=torch.float64) for v in (self.mean, self.std))
        return ((pixels - mean) / std).permute(0, 3, 1, 2).float().contiguous()

    def classify(self, images: NDArray[np.uint8], threads: int | None = None) -> NDArray[np.float32]:
        """Logits float32 [n, classes] of images uint8 [n, H, W, C]."""
        parts = [images[i : i + CHUNK] for i in range(0, len(images), CHUNK)]
        return np.concatenate(in_threads(lambda part: self.model(self.normalise(part)).numpy(), parts, threads))


def in_threads(work: Callable[[Any], T], parts: Sequence[Any], threads: int | None = None) -> list[T]:
    """work(part) for each part, in order of the parts; one torch thread each, without gradients.

    The model's many small operations run far faster side by side than each spread over the cores.
    """

    def run(part: Any) -> T:
        with torch.inference_mode():
            return work(part)

    count = available_threads() if threads is None else threads
    with ThreadPoolExecutor(count, initializer=lambda: torch.set_num_threads(1)) as pool:
        return list(pool.map(run, parts))
