"""`intsim golden`: a golden bundle."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from golden.commands.common import (
    LateEngine,
    WhatIf,
    Where,
    accumulators_option,
    cluster_options,
    crop_option,
    embedded_images,
    examples,
    identity,
    json_option,
    layers_option,
    load,
    model_option,
    out_option,
    progress_bar,
    result,
    say,
    style_options,
    table,
    threads_option,
    what_if_options,
)
from intsim.errors import UserError

if TYPE_CHECKING:
    from golden.formats import Style


@click.command(
    "golden",
    epilog=examples(
        "intsim golden --out bundle",
        "intsim golden --count 2 --layers 'layers.0.mixer.scan.*' --out scan0",
        "intsim golden --count 1 --format hex,bin --lanes 8 --lane-order msb --order channel-major --out words",
        "intsim golden --stimulus real,extremes,hot-pixel:4 --count 2 --layers '*.scan.y' --out frames",
        "intsim golden --model vim_int8.safetensors --images photos/ --center-crop --workers 4 --out tiny",
    ),
)
@click.option("--images", "source", help="Image file, folder, class tree or .npz.  [default: the embedded images]")
@click.option("--count", type=click.IntRange(min=1), help="So many images, spread evenly over the set.  [default: all]")
@click.option(
    "--stimulus",
    metavar="LIST",
    help="Frames, with commas: real, repeat, zeros, extremes, checkerboard, ramp, hot-pixel, random.  [default: real]",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the drawn frames.")
@layers_option
@click.option("--state", is_flag=True, help="Add the scans' abar, b, acc and h at every step: most of the bytes.")
@accumulators_option
@style_options
@out_option
@model_option
@what_if_options
@crop_option
@threads_option
@cluster_options
@json_option
@click.pass_obj
def command(
    command: str,
    source: str | None,
    count: int | None,
    stimulus: str | None,
    seed: int,
    layers: tuple[str, ...],
    state: bool,
    accumulators: bool,
    style: Style,
    out: Path,
    model: Path | None,
    what_if: WhatIf,
    center_crop: bool,
    threads: int | None,
    where: Where,
    json_to: str | None,
) -> None:
    """Write a golden bundle: the Program's constants and every chosen tensor of each image, with a manifest.

    Without --layers: every tensor but the scans' abar, b, acc and h, which --state adds.  --stimulus adds frames that
    break hardware, in the order of the list: 'real,repeat,extremes,hot-pixel:4'.  FORMAT.md states files and frames.
    With --workers or --scheduler the same bytes are written by many processes or machines, into a folder they share.
    JSON: out, program: {name, profile, sha256}, images, tensors (of each image), bytes, content_sha256.
    """
    from golden.bundle import choose, write_bundle
    from golden.engines import make_engine
    from golden.images import open_images
    from golden.stimulus import Stimuli
    from intsim.files import bytes_in

    program, data = load(model, what_if)
    names = choose(program, layers, state, accumulators)
    kinds = ["real"] if stimulus is None else [kind.strip() for kind in stimulus.split(",")]
    if "real" not in kinds and (source is not None or count is not None):
        raise UserError("--images and --count are for the stimulus real, which --stimulus does not name")
    real = None
    if "real" in kinds:
        place = embedded_images() if source is None else source
        real = open_images(place, program.image, classes=program.classes, count=count, center_crop=center_crop)
    images = Stimuli(kinds, program.image, real, seed)
    with result(json_to) as (found, console):
        with where.open(threads) as cluster, progress_bar("images", len(images)) as update:
            written = write_bundle(
                out,
                program,
                LateEngine(lambda: make_engine(program, say, threads)),
                images,
                names=names,
                command=command,
                time=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                program_file=data,
                style=style,
                progress=lambda done: update(done, text=cluster.caption() if cluster else None),
                cluster=cluster,
            )
        total = bytes_in(out)
        found.update(out=str(out), program=identity(program), images=len(images), tensors=len(names), bytes=total)
        found["content_sha256"] = written["content_sha256"]
        rows = table("image", "label", "class", numbers=("label", "class"))
        for entry in written["images"]:
            label = "" if entry["label"] is None else str(entry["label"])
            rows.add_row(entry["source"], label, f"{entry['class']} {program.classes[entry['class']]}")
        console.print(rows)
        console.print(f"{len(images)} images, {len(names)} tensors of each, {total / 1e6:.1f} MB: {out}")
