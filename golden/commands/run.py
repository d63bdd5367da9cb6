"""`intsim run`: classes and logits of images."""

from __future__ import annotations

import time
from pathlib import Path

import click

from golden.commands.common import (
    WhatIf,
    crop_option,
    examples,
    identity,
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


@click.command(
    "run",
    epilog=examples(
        "intsim run cat.png",
        "intsim run photos/ --model vim_int8.safetensors --center-crop",
        "intsim run cat.png --accumulator-bits 20 --overflow wrap",
    ),
)
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@model_option
@what_if_options
@crop_option
@threads_option
@json_option
def command(
    images: tuple[str, ...],
    model: Path | None,
    what_if: WhatIf,
    center_crop: bool,
    threads: int | None,
    json_to: str | None,
) -> None:
    """Classify images with the integer engine.

    IMAGE is an image file of the Program's size, a folder of them or an .npz.
    JSON: program: {name, profile, sha256}; images: [{file, class, class_name, logits, seconds}].
    """
    from golden.engines import make_engine
    from golden.images import open_images

    program, _ = load(model, what_if)
    sets = [open_images(path, program.image, classes=program.classes, center_crop=center_crop) for path in images]
    with result(json_to) as (found, out):
        rows = table("image", "class", "largest logits", "ms", numbers=("ms",))
        found["program"] = identity(program)
        found["images"] = []
        engine = None
        with progress_bar("images", sum(map(len, sets))) as update:
            for path, image in ((s.path, image) for s in sets for image in s):
                if engine is None:  # a first run, not timed, for what is only done once
                    engine = make_engine(program, say, threads)
                    engine.run(image.pixels[None])
                start = time.perf_counter()
                logits = engine.run(image.pixels[None])[program.logits].reshape(-1)
                seconds = time.perf_counter() - start
                best = int(logits.argmax())
                file = path if Path(path).is_file() and not path.endswith(".npz") else f"{path}/{image.name}"
                if path.endswith(".npz"):
                    file = str(Path(path).parent / image.name)
                found["images"].append(
                    {
                        "file": file,
                        "class": best,
                        "class_name": program.classes[best],
                        "logits": [int(v) for v in logits],
                        "seconds": round(seconds, 6),
                    }
                )
                order = sorted(range(len(logits)), key=lambda c: (-int(logits[c]), c))[:4]
                largest = ", ".join(f"{program.classes[c]} {int(logits[c])}" for c in order)
                rows.add_row(file, f"{best} {program.classes[best]}", largest, f"{1000 * seconds:.2f}")
                update(len(found["images"]))
        out.print(rows)
