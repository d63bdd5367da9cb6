"""`intsim eval`: top-1 over labelled images."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from golden.commands.common import (
    Where,
    cluster_options,
    crop_option,
    device_option,
    embedded_images,
    json_option,
    load,
    model_option,
    need_torch,
    progress_bar,
    result,
    say,
    table,
    threads_option,
)
from intsim.errors import UserError

if TYPE_CHECKING:
    from golden.cluster import Cluster, Part
    from golden.images import ImageSet
    from intsim.program import Program

Classify = Callable[[Any], Any]  # pixels uint8 [n, H, W, C] -> logits [n, classes]
CHUNK = 4  # images that the torch path runs at a time on a CPU: its tensors then stay in the caches


@click.command("eval")
@click.option("--data", help="Class tree, folder with labels.csv, or .npz with labels.  [default: the embedded images]")
@click.option(
    "--engine",
    type=click.Choice(["int", "fake", "float"]),
    default="int",
    show_default=True,
    help="The integer engine; the independent torch path, which must give the same; the float checkpoint.",
)
@click.option("--count", type=click.IntRange(min=1), help="So many images, spread evenly over the set.  [default: all]")
@click.option("--batch", type=click.IntRange(1, 4096), help="Images at a time.  [default: 64; 256 on CUDA]")
@model_option
@click.option(
    "--checkpoint", type=click.Path(path_type=Path), help="For --engine float.  [default: the embedded checkpoint]"
)
@device_option
@click.option(
    "--form",
    type=click.Choice(["plain", "fast"]),
    help="Of --engine fake: readable operators, or fused CUDA kernels.  [default: fast on CUDA]",
)
@crop_option
@threads_option
@cluster_options
@json_option
def command(
    data: str | None,
    engine: str,
    count: int | None,
    batch: int | None,
    model: Path | None,
    checkpoint: Path | None,
    device: str,
    form: str | None,
    center_crop: bool,
    threads: int | None,
    where: Where,
    json_to: str | None,
) -> None:
    """Top-1 over labelled images: of the integer Program, by the engine or in torch, or of the float checkpoint.

    JSON: engine, device, model, top1 (percent), n, correct, seconds, images_per_second, predictions (class index of
    each image).
    """
    from golden.images import open_images

    if engine != "float" and checkpoint is not None:
        raise UserError(f"--checkpoint is for --engine float; --model names the Program of --engine {engine}")
    if engine == "float" and model is not None:
        raise UserError("--model is not for --engine float; --checkpoint names its checkpoint")
    if engine != "fake" and (device != "cpu" or form is not None):
        raise UserError(f"--device and --form are for --engine fake; --engine {engine} runs on the CPU")
    if engine == "float" and where != Where():
        raise UserError("--engine float runs in one process: its results depend on the machine; others are exact")
    place = embedded_images() if data is None else data
    on_cuda = device.startswith("cuda")
    batch = batch or (256 if on_cuda else 64)
    fast = form == "fast" if form else on_cuda
    with result(json_to) as (found, out), where.open(threads) as cluster:
        classify: Classify
        if engine == "float":
            size, classes, name, classify = float_model(checkpoint, threads)
        else:
            program, file = load(model)
            size, classes, name = program.image, program.classes, program.name
        if engine == "fake" and cluster is None:
            classify = fake_model(program, device, fast, batch, threads)
        images = open_images(place, size, classes=classes, count=count, center_crop=center_crop)
        images.require_labels(len(classes))
        if cluster is not None:
            work = Classifies(engine, device, fast, batch, cluster.threads)
            correct, predictions, seconds = score_by(cluster, file, work, images)
        else:
            if engine == "int":
                classify = integer_model(program, threads)
            if engine != "float":  # what is only done once is not timed
                classify(black(min(batch, len(images)), size))
            correct, predictions, seconds = score(images, classify, batch)
        top1 = 100 * correct / len(images)
        rate = len(images) / seconds
        found.update(engine=engine, device=device, model=name, top1=top1, n=len(images), correct=correct)
        found.update(seconds=round(seconds, 3), images_per_second=round(rate, 2), predictions=predictions)
        columns = ("engine", "model", "images", "correct", "top-1 %", "seconds", "images/s")
        rows = table(*columns, numbers=columns[2:])
        shown = engine if engine != "fake" else f"fake, {device}"
        figures = (str(len(images)), str(correct), f"{top1:.2f}", f"{seconds:.1f}", f"{rate:,.1f}")
        rows.add_row(shown, name, *figures)
        out.print(rows)


def black(count: int, size: tuple[int, int, int]) -> Any:
    """Black images, uint8 [count, H, W, C]."""
    import numpy as np

    return np.zeros((count, *size), dtype=np.uint8)


def score(images: ImageSet, classify: Classify, batch: int) -> tuple[int, list[int], float]:
    """(images whose largest logit is their label's, class of each image, seconds)."""
    import numpy as np

    correct = 0
    predictions: list[int] = []
    start = time.perf_counter()
    with progress_bar("images", len(images)) as update:
        for part in images.batches(batch):
            classes = classify(np.stack([image.pixels for image in part])).argmax(axis=1)
            correct += int((classes == [image.label for image in part]).sum())
            predictions += classes.tolist()
            done = len(predictions)
            update(done, text=f"{done / (time.perf_counter() - start):,.0f} images/s")
    return correct, predictions, time.perf_counter() - start


@dataclass(frozen=True)
class Classifies:
    """Work of a cluster: the class of each image, by the Program in `engine` int or fake."""

    engine: str
    device: str
    fast: bool
    batch: int
    threads: int

    def prepare(self, program: Program) -> Classify:
        if self.engine == "int":
            return integer_model(program, self.threads)
        classify = fake_model(program, self.device, self.fast, self.batch, self.threads)
        if not self.device.startswith("cuda"):
            return classify
        lock = threading.Lock()  # ranges that a worker runs at a time share the card

        def alone(pixels: Any) -> Any:
            with lock:
                return classify(pixels)

        return alone

    def run(self, prepared: Classify, part: Part) -> list[int]:
        import numpy as np

        classes: list[int] = prepared(np.stack([image.pixels for image in part.images])).argmax(axis=1).tolist()
        return classes


def score_by(cluster: Cluster, file: bytes, work: Classifies, images: ImageSet) -> tuple[int, list[int], float]:
    """As `score`, by the workers of a cluster.  The seconds include that they start and make their engines."""
    start = time.perf_counter()
    with progress_bar("images", len(images)) as update:
        parts = cluster.run(file, work, images, lambda done: update(done, text=cluster.caption()))
    predictions = [number for part in parts for number in part]
    labels = [images.labels[pick] for pick in images.picks] if images.labels else []
    correct = sum(a == b for a, b in zip(predictions, labels, strict=True))
    return correct, predictions, time.perf_counter() - start


def integer_model(program: Program, threads: int | None) -> Classify:
    """pixels uint8 [n, H, W, C] -> logits int32 [n, classes], by the engine."""
    from golden.engines import make_engine

    engine = make_engine(program, say, threads)
    return lambda pixels: engine.run(pixels)[program.logits].reshape(len(pixels), -1)


def fake_model(program: Program, device: str, fast: bool, batch: int, threads: int | None) -> Classify:
    """pixels uint8 [n, H, W, C] -> logits int64 [n, classes], by the torch path."""
    need_torch()
    import numpy as np

    from bitexact.fakequant import FakeQuant
    from bitexact.inference import in_threads

    fake = FakeQuant(program, device, fast)
    if fake.device.type == "cuda":
        return lambda pixels: fake.classify(pixels, batch).numpy()

    def classify(pixels: Any) -> Any:
        parts = [pixels[i : i + CHUNK] for i in range(0, len(pixels), CHUNK)]
        return np.concatenate(in_threads(lambda part: fake.classify(part, len(part)).numpy(), parts, threads))

    return classify


def float_model(
    checkpoint: Path | None, threads: int | None
) -> tuple[tuple[int, int, int], list[str], str, Classify]:
    """(image size, classes, name, pixels uint8 [n, H, W, C] -> float logits [n, classes]) of a checkpoint in torch."""
    need_torch()
    from bitexact.inference import FloatModel
    from intsim import embedded

    path = embedded.checkpoint_path() if checkpoint is None else checkpoint
    model = FloatModel(path)
    return model.image, model.classes, path.stem, lambda pixels: model.classify(pixels, threads)
