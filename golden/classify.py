"""The class of each image, by the integer engine, by the torch path or by the float checkpoint; here or on a cluster.

    work = Classifies("int", threads=2)
    classifier = work.prepare(program)
    classifier(pixels)                            # logits [n, classes]
    cluster.run(program_file, work, images)       # [(classes, overflows) of each range of images]
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from golden.extras import need

if TYPE_CHECKING:
    from golden.cluster import Part
    from intsim.program import Program

CHUNK = 4  # images that the torch path runs at a time on a CPU: its tensors then stay in the caches

Counts = dict[str, int]  # narrow accumulator -> elements that were not the exact sum (SPEC section 13)


class Classifier:
    """pixels uint8 [n, H, W, C] -> logits [n, classes].

    overflows: of the narrow accumulators over all images so far; none where nobody counts them.  shared: whether
    threads may call it at a time.
    """

    def __init__(
        self, logits: Callable[[Any], Any], overflows: Callable[[], Counts] = lambda: {}, shared: bool = True
    ):
        self._logits, self._overflows, self.shared = logits, overflows, shared
        self._lock = threading.Lock()

    @property
    def overflows(self) -> Counts:
        return self._overflows()

    def __call__(self, pixels: Any) -> Any:
        return self._logits(pixels)

    def classes(self, pixels: Any) -> list[int]:
        """Index of the largest logit of each image, of equals the first."""
        found: list[int] = self(pixels).argmax(axis=1).tolist()
        return found

    def count(self, pixels: Any) -> tuple[list[int], Counts]:
        """The classes, and what overflowed in these images, which others must not run into."""
        if self.shared:
            return self.classes(pixels), {}
        with self._lock:
            before = self.overflows
            classes = self.classes(pixels)
            return classes, {name: n - before[name] for name, n in self.overflows.items()}


@dataclass(frozen=True)
class Classifies:
    """Work of a cluster (`golden.cluster.Work`): the class of each image, by the Program in `engine` int or fake.

    device, fast, batch (images at a time on a card): of the torch path.
    """

    engine: str
    device: str = "cpu"
    fast: bool = False
    batch: int = 64
    threads: int | None = None

    def prepare(self, program: Program, say: Callable[[str], None] = lambda text: None) -> Classifier:
        """say: gets a line when kernels have to be compiled."""
        if self.engine == "int":
            return integer_model(program, self.threads, say)
        return fake_model(program, self.device, self.fast, self.batch, self.threads)

    def run(self, prepared: Classifier, part: Part) -> tuple[list[int], Counts]:
        return prepared.count(np.stack([image.pixels for image in part.images]))


def join(parts: list[tuple[list[int], Counts]]) -> tuple[list[int], Counts]:
    """The results of consecutive ranges as one."""
    overflows: Counts = {}
    for _, counts in parts:
        for name, n in counts.items():
            overflows[name] = overflows.get(name, 0) + n
    return [number for classes, _ in parts for number in classes], overflows


def integer_model(program: Program, threads: int | None, say: Callable[[str], None]) -> Classifier:
    """By the engine: logits int32."""
    from golden.engines import announce_compilation
    from intsim.engine import Engine

    announce_compilation(say)
    engine = Engine(program, threads=threads)

    def logits(pixels: Any) -> Any:
        return engine.run(pixels)[program.logits].reshape(len(pixels), -1)

    return Classifier(logits, lambda: engine.overflows, shared=not program.narrowed)


def fake_model(program: Program, device: str, fast: bool, batch: int, threads: int | None) -> Classifier:
    """By the torch path: logits int64.  UserError where torch is not installed."""
    need("torch")
    from bitexact.fakequant import FakeQuant
    from bitexact.inference import in_threads

    fake = FakeQuant(program, device, fast)
    if fake.device.type == "cuda":  # ranges that a worker of a cluster runs at a time share the card
        return Classifier(lambda pixels: fake.classify(pixels, batch).numpy(), shared=False)

    def logits(pixels: Any) -> Any:
        parts = [pixels[i : i + CHUNK] for i in range(0, len(pixels), CHUNK)]
        return np.concatenate(in_threads(lambda part: fake.classify(part, len(part)).numpy(), parts, threads))

    return Classifier(logits)


def float_model(checkpoint: Path, threads: int | None) -> tuple[tuple[int, int, int], list[str], Classifier]:
    """(image size, classes, classifier) of a checkpoint, by torch: float logits.  UserError without torch."""
    need("torch")
    from bitexact.inference import FloatModel

    model = FloatModel(checkpoint)
    return model.image, model.classes, Classifier(lambda pixels: model.classify(pixels, threads))
