"""`intsim eval`: top-1 over labelled images."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from golden.commands.common import (
    WhatIf,
    Where,
    cluster_options,
    crop_option,
    device_option,
    embedded_images,
    examples,
    json_option,
    load,
    model_option,
    progress_bar,
    result,
    say,
    table,
    threads_option,
    what_if_options,
)
from intsim.errors import UserError

if TYPE_CHECKING:
    from golden.classify import Classifier
    from golden.images import ImageSet


@click.command(
    "eval",
    epilog=examples(
        "intsim eval",
        "intsim eval --data test.npz --accumulator-bits 20 --overflow saturate",
        "intsim eval --data photos/ --model vim_int8.safetensors --center-crop --workers 4",
        "intsim eval --data test.npz --engine fake --device cuda",
    ),
)
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
@what_if_options
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
    what_if: WhatIf,
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
    each image), and of narrow accumulators overflows: {name: elements that were not the exact sum}.
    """
    if engine != "float" and checkpoint is not None:
        raise UserError(f"--checkpoint is for --engine float; --model names the Program of --engine {engine}")
    if engine == "float" and model is not None:
        raise UserError("--model is not for --engine float; --checkpoint names its checkpoint")
    if engine == "float" and what_if != WhatIf():
        raise UserError("--engine float has no integers, so there is nothing to narrow")
    if engine != "fake" and (device != "cpu" or form is not None):
        raise UserError(f"--device and --form are for --engine fake; --engine {engine} runs on the CPU")
    if engine == "float" and where != Where():
        raise UserError("--engine float runs in one process: its results depend on the machine; others are exact")
    from golden import classify
    from golden.images import open_images
    from intsim import embedded

    place = embedded_images() if data is None else data
    on_cuda = device.startswith("cuda")
    batch = batch or (256 if on_cuda else 64)
    with result(json_to) as (found, out), where.open(threads) as cluster:
        if engine == "float":
            path = embedded.checkpoint_path() if checkpoint is None else checkpoint
            name, narrowed = path.stem, []
            size, classes, classifier = classify.float_model(path, threads)
        else:
            program, file = load(model, what_if)
            size, classes, name, narrowed = program.image, program.classes, program.name, program.narrowed
            fast = form == "fast" if form else on_cuda and not narrowed
            workers_threads = cluster.threads if cluster else threads
            work = classify.Classifies(engine, device, fast, batch, workers_threads)
            if cluster is None:
                classifier = work.prepare(program, say)
        images = open_images(place, size, classes=classes, count=count, center_crop=center_crop)
        labels = images.require_labels(len(classes))
        start = time.perf_counter()
        if cluster is not None:  # the seconds include that workers start and make their engines
            with progress_bar("images", len(images)) as update:
                parts = cluster.run(file, work, images, lambda done: update(done, text=cluster.caption()))
            predictions, overflows = classify.join(parts)
        else:
            if engine != "float":  # what is only done once is not timed
                classifier(black(min(batch, len(images)), size))
                start = time.perf_counter()
            predictions, overflows = here(classifier, images, batch)
        seconds = time.perf_counter() - start
        correct = sum(a == b for a, b in zip(predictions, labels, strict=True))
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
        if overflows:
            found["overflows"] = overflows
            wrong = {name: n for name, n in overflows.items() if n}
            worst = max(wrong, key=lambda name: wrong[name], default="")
            most = f"; most in {worst}, {wrong[worst]:,}" if wrong else ""
            overflowed = f"overflowed: {sum(wrong.values()):,} elements of {len(wrong)} accumulators"
            out.print(f"{overflowed} of {len(narrowed)} narrow ones{most}", soft_wrap=True)


def black(count: int, size: tuple[int, int, int]) -> Any:
    """Black images, uint8 [count, H, W, C]."""
    import numpy as np

    return np.zeros((count, *size), dtype=np.uint8)


def here(classifier: Classifier, images: ImageSet, batch: int) -> tuple[list[int], dict[str, int]]:
    """(class of each image, what overflowed), in this process, with a bar."""
    predictions: list[int] = []
    start, before = time.perf_counter(), classifier.overflows
    with progress_bar("images", len(images)) as update:
        for pixels in images.stacks(batch):
            predictions += classifier.classes(pixels)
            done = len(predictions)
            update(done, text=f"{done / (time.perf_counter() - start):,.0f} images/s")
    return predictions, {name: n - before[name] for name, n in classifier.overflows.items()}
