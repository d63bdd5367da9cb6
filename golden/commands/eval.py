"""`intsim eval`: top-1 over labelled images."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from golden.commands.common import (
    crop_option,
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
    from golden.images import ImageSet
    from intsim.program import Program


@click.command("eval")
@click.option("--data", help="Class tree, folder with labels.csv, or .npz with labels.  [default: the embedded images]")
@click.option("--engine", type=click.Choice(["int", "float"]), default="int", show_default=True)
@click.option("--count", type=click.IntRange(min=1), help="So many images, spread evenly over the set.  [default: all]")
@click.option("--batch", type=click.IntRange(1, 4096), default=64, show_default=True, help="Images at a time.")
@model_option
@click.option(
    "--checkpoint", type=click.Path(path_type=Path), help="For the float engine.  [default: the embedded checkpoint]"
)
@crop_option
@threads_option
@json_option
def command(
    data: str | None,
    engine: str,
    count: int | None,
    batch: int,
    model: Path | None,
    checkpoint: Path | None,
    center_crop: bool,
    threads: int | None,
    json_to: str | None,
) -> None:
    """Top-1 over labelled images: of the integer Program, or of the float checkpoint in torch.

    JSON: engine, model, top1 (percent), n, correct, seconds.
    """
    from golden.images import open_images

    if engine == "int" and checkpoint is not None:
        raise UserError("--checkpoint is for --engine float; --model names the Program of --engine int")
    if engine == "float" and model is not None:
        raise UserError("--model is for --engine int; --checkpoint names the checkpoint of --engine float")
    place = embedded_images() if data is None else data
    with result(json_to) as (found, out):
        if engine == "int":
            program, _ = load(model)
            size, classes, name = program.image, program.classes, program.name
        else:
            size, classes, name, classify = float_model(checkpoint, threads)
        images = open_images(place, size, classes=classes, count=count, center_crop=center_crop)
        images.require_labels(len(classes))
        if engine == "int":
            classify = integer_model(program, threads)
        correct, seconds = score(images, classify, batch)
        top1 = 100 * correct / len(images)
        found.update(engine=engine, model=name, top1=top1, n=len(images), correct=correct, seconds=round(seconds, 3))
        columns = ("engine", "model", "images", "correct", "top-1 %", "seconds")
        rows = table(*columns, numbers=columns[2:])
        rows.add_row(engine, name, str(len(images)), str(correct), f"{top1:.2f}", f"{seconds:.1f}")
        out.print(rows)


def score(images: ImageSet, classify: Callable[[Any], Any], batch: int) -> tuple[int, float]:
    """(images whose largest logit is their label's, seconds)."""
    import numpy as np

    correct = done = 0
    start = time.perf_counter()
    with progress_bar("images", len(images)) as update:
        for part in images.batches(batch):
            logits = classify(np.stack([image.pixels for image in part]))
            correct += int((logits.argmax(axis=1) == [image.label for image in part]).sum())
            done += len(part)
            update(done)
    return correct, time.perf_counter() - start


def integer_model(program: Program, threads: int | None) -> Callable[[Any], Any]:
    """pixels uint8 [n, H, W, C] -> logits int32 [n, classes], by the engine, its kernels compiled."""
    import numpy as np

    from golden.engines import make_engine

    engine = make_engine(program, say, threads)
    engine.run(np.zeros((1, *program.image), dtype=np.uint8))
    return lambda pixels: engine.run(pixels)[program.logits].reshape(len(pixels), -1)


def float_model(
    checkpoint: Path | None, threads: int | None
) -> tuple[tuple[int, int, int], list[str], str, Callable[[Any], Any]]:
    """(image size, classes, name, pixels uint8 [n, H, W, C] -> float logits [n, classes]) of a checkpoint in torch."""
    need_torch()
    from bitexact.inference import FloatModel
    from intsim import embedded

    path = embedded.checkpoint_path() if checkpoint is None else checkpoint
    model = FloatModel(path)
    return model.image, model.classes, path.stem, lambda pixels: model.classify(pixels, threads)
