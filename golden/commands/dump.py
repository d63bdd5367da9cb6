"""`intsim dump`: chosen integer tensors of one image."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from golden.commands.common import (
    LateEngine,
    WhatIf,
    accumulators_option,
    crop_option,
    examples,
    json_option,
    layers_option,
    load,
    model_option,
    out_option,
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
    "dump",
    epilog=examples(
        "intsim dump cat.png --layers 'layers.3.mixer.scan.*' --out scan3",
        "intsim dump cat.png --layers '*.acc' --format mem,bin --lanes 4 --out accumulators",
    ),
)
@click.argument("image")
@layers_option
@click.option("--state", is_flag=True, help="Add the scans' abar, b, acc and h at every step.")
@accumulators_option
@style_options
@out_option
@model_option
@what_if_options
@crop_option
@threads_option
@json_option
def command(
    image: str,
    layers: tuple[str, ...],
    state: bool,
    accumulators: bool,
    style: Style,
    out: Path,
    model: Path | None,
    what_if: WhatIf,
    center_crop: bool,
    threads: int | None,
    json_to: str | None,
) -> None:
    """Write chosen integer tensors of one image, as .npy and $readmemh hex or as --format says.

    Without --layers: every tensor but the scans' abar, b, acc and h.  JSON: out, program, source, tensors (as in
    tensors.json, see FORMAT.md).
    """
    from golden.bundle import choose, write_dump
    from golden.engines import make_engine
    from golden.images import open_images

    program, _ = load(model, what_if)
    names = choose(program, layers, state, accumulators)
    images = open_images(image, program.image, center_crop=center_crop)
    if len(images) != 1:
        raise UserError(f"{image}: holds {len(images)} images, dump takes one; 'intsim golden' takes many")
    with result(json_to) as (found, console):
        pixels = next(iter(images))
        engine = LateEngine(lambda: make_engine(program, say, threads))
        written = write_dump(out, program, engine, pixels, names=names, style=style)
        found.update({"out": str(out), **written})
        rows = table("tensor", "shape", "bits", "exponent", numbers=("bits", "exponent"))
        for name, entry in written["tensors"].items():
            exponent = "" if entry["exponent"] is None else str(entry["exponent"])
            width = f"{'s' if entry['signed'] else 'u'}{entry['bits']}"
            rows.add_row(name, " x ".join(map(str, entry["shape"])), width, exponent)
        console.print(rows)
        console.print(f"{len(written['tensors'])} tensors are in {out}")
