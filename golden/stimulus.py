"""Frames that break hardware: made inputs beside the photographs (FORMAT.md section 5).

    Stimuli(["real", "repeat", "zeros", "extremes"], program.image, images, seed=7)

is iterated as a set of images is.  A kind is a name, or `name:N` for N of its frames where they are drawn:

    real          the given images
    repeat        the frame before it once more: a state that is not cleared between images shows
    zeros         every byte 0
    extremes      every byte 255; then every byte 0 or 255, drawn
    checkerboard  pixels 0 and 255 in turn, then the other way round
    ramp          bytes 0, 1, 2, ... 255, 0, ... in the order of the array, then downwards
    hot-pixel     every byte 0 but the channels of one pixel, drawn, which are 255
    random        every byte drawn

What is drawn is a function of the seed, the kind and the frame's number (SplitMix64, as unit vectors): the same in
every version of NumPy.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np

from golden.images import Image, ImageSet
from golden.vectors.draw import Generator
from intsim.errors import UserError
from intsim.program import Array

KINDS = ("real", "repeat", "zeros", "extremes", "checkerboard", "ramp", "hot-pixel", "random")
DRAWN = ("hot-pixel", "random")
MAX_FRAMES = 100_000
ITEM = re.compile(r"([a-z-]+)(?::([1-9][0-9]{0,5}))?")


class Stimuli:
    """Frames in the order of `kinds`.  size: (height, width, channels).  real: the images of the kind `real`.

    Raises UserError for a kind that there is not, a number where nothing is drawn, or a `repeat` of nothing.
    """

    def __init__(self, kinds: Sequence[str], size: tuple[int, int, int], real: ImageSet | None = None, seed: int = 0):
        self.size, self.real, self.seed = size, real, seed
        self.items: list[tuple[str, int]] = []
        for text in kinds:
            found = ITEM.fullmatch(text)
            if found is None or found[1] not in KINDS:
                raise UserError(f"stimulus {text!r}: allowed are {', '.join(KINDS)}, and NAME:N of {', '.join(DRAWN)}")
            name, count = found[1], int(found[2] or 1)
            if found[2] and name not in DRAWN:
                raise UserError(f"stimulus {text!r}: a number is for {' and '.join(DRAWN)}, which are drawn")
            if count > MAX_FRAMES:
                raise UserError(f"stimulus {text!r}: at most {MAX_FRAMES} frames are drawn")
            if name == "repeat" and not self.items:
                raise UserError("stimulus 'repeat': there is no frame before it")
            self.items.append((name, count))
        if any(name == "real" for name, _ in self.items) and real is None:
            raise ValueError("no images are given for the kind real")

    def __len__(self) -> int:
        two = {"extremes", "checkerboard", "ramp"}
        given = 0 if self.real is None else len(self.real)
        return sum(given if name == "real" else 2 if name in two else count for name, count in self.items)

    def __iter__(self) -> Iterator[Image]:
        before: Image | None = None
        for name, count in self.items:
            for image in self._frames(name, count, before):
                before = image
                yield image

    def _frames(self, name: str, count: int, before: Image | None) -> Iterator[Image]:
        if name == "real":
            assert self.real is not None
            yield from self.real
        elif name == "repeat":
            assert before is not None
            yield Image(f"stimulus repeat of {before.name.removeprefix('stimulus ')}", before.pixels, before.label)
        else:
            for number, pixels in enumerate(self._made(name, count)):
                seed = f" seed {self.seed}" if name in DRAWN or (name, number) == ("extremes", 1) else ""
                yield Image(f"stimulus {name} {number}{seed}", pixels)

    def _made(self, name: str, count: int) -> Iterator[Array]:
        height, width, channels = self.size
        flat = np.arange(height * width * channels)
        if name == "zeros":
            yield np.zeros(self.size, dtype=np.uint8)
        elif name == "extremes":
            yield np.full(self.size, 255, dtype=np.uint8)
            yield ((self._words(name, 0) & np.uint64(1)) * np.uint64(255)).astype(np.uint8)
        elif name == "checkerboard":
            odd = (np.arange(height)[:, None] + np.arange(width)) % 2
            for phase in (odd, 1 - odd):
                yield np.repeat(phase[:, :, None] * 255, channels, axis=2).astype(np.uint8)
        elif name == "ramp":
            up = (flat % 256).astype(np.uint8).reshape(self.size)
            yield up
            yield 255 - up
        elif name == "hot-pixel":
            for number in range(count):
                pixels = np.zeros(self.size, dtype=np.uint8)
                place = int(self._words(name, number).flat[0]) % (height * width)
                pixels[place // width, place % width] = 255
                yield pixels
        else:
            for number in range(count):
                yield (self._words(name, number) >> np.uint64(56)).astype(np.uint8)

    def _words(self, name: str, frame: int) -> Array:
        """uint64 [H, W, C]: random words of a frame."""
        size = int(np.prod(self.size))
        return Generator(self.seed, f"stimulus {name}").words("pixels", frame, 1, size).reshape(self.size)
