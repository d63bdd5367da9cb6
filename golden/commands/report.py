"""`intsim report`: a Program on one page."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from golden.commands.common import (
    check_target,
    crop_option,
    embedded_images,
    examples,
    json_option,
    load,
    model_option,
    progress_bar,
    result,
    say,
    threads_option,
)
from golden.extras import need
from intsim.errors import UserError

if TYPE_CHECKING:
    from bitexact.inference import FloatModel
    from intsim.program import Program

COUNT = 64  # images, where --count does not say
ABLATION_BYTES = 1 << 20  # a file of --ablation has no more


@click.command(
    "report",
    epilog=examples(
        "intsim report --out report.html",
        "intsim report --text --count 16",
        "intsim report --model vim_int8.safetensors --images photos/ --center-crop --out vim_tiny.html",
    ),
)
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="Page to write, such as report.html.")
@click.option("--text", is_flag=True, help="Show the essentials in the terminal.")
@model_option
@click.option("--images", "source", help="Image file, folder, class tree or .npz.  [default: the embedded images]")
@click.option(
    "--count",
    type=click.IntRange(min=1),
    help=f"So many images, spread evenly over the set.  [default: all, but at most {COUNT}]",
)
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path),
    help="Float checkpoint to compare with.  [default: the embedded one, for the embedded model]",
)
@click.option("--ablation", metavar="FILE", help="JSON of tools/ablation.py: {n, rows: [{name, top1, agreement}]}.")
@crop_option
@threads_option
@json_option
@click.pass_obj
def command(
    line: str | None,
    out: Path | None,
    text: bool,
    model: Path | None,
    source: str | None,
    count: int | None,
    checkpoint: Path | None,
    ablation: str | None,
    center_crop: bool,
    threads: int | None,
    json_to: str | None,
) -> None:
    """One self-contained page about a Program: network, tensors, bits, accuracy, images, speed.

    The page needs no network and works from a file.  Without --images the embedded images are run if the model takes
    their size and has their classes, else none.  JSON: what the page shows, as FORMAT.md states it.
    """
    from golden.engines import announce_compilation
    from golden.images import open_images
    from golden.report.collect import collect
    from intsim import embedded
    from intsim.files import write_atomically

    if out is None and not text and json_to is None:
        raise UserError("there is nothing to make: give --out FILE for a page, --text for a terminal, or --json FILE")
    if out is not None:
        check_target(out)
        need("jinja2", "a page")
    program, _ = load(model)
    known = embedded.program() if model is not None else program
    table = read_ablation(ablation, program)
    reference, no_float = open_float(checkpoint, program, program.digest == known.digest)
    images = None
    if source is not None or (program.image, program.classes) == (known.image, known.classes):
        place = embedded_images() if source is None else source
        take = functools.partial(open_images, place, program.image, classes=program.classes, center_crop=center_crop)
        images = take(count=count)
        if count is None and len(images) > COUNT:
            images = take(count=COUNT)
        if images.labels is not None:
            images.require_labels(len(program.classes))
    else:
        no_float = no_float or "no image was run"
    announce_compilation(say)
    with result(json_to) as (found, console):
        with progress_bar("proving") as update:
            data, pictures = collect(
                program,
                images,
                reference,
                no_float=no_float,
                ablation=table,
                threads=threads,
                tick=lambda what, done, total: update(done, total, what),
            )
        found.update(data)
        if out is not None:
            from golden.report.page import render

            page = render(data, pictures, line or "intsim report")
            write_atomically(out, page)
            console.print(f"{out}: {len(page):,} bytes")
        if text:
            from golden.report.terminal import tables

            for each in tables(data):
                console.print(each)


def open_float(checkpoint: Path | None, program: Program, is_embedded: bool) -> tuple[FloatModel | None, str]:
    """The float model to compare with; or None, and why."""
    if checkpoint is None and not is_embedded:
        return None, "no float checkpoint is given (--checkpoint FILE)"
    try:
        need("torch")
    except UserError as problem:
        if checkpoint is not None:
            raise
        return None, str(problem)
    from bitexact.inference import FloatModel
    from bitexact.stages import check_same_network
    from intsim import embedded

    path = embedded.checkpoint_path() if checkpoint is None else checkpoint
    height, width, _ = program.image
    mean, std = (numbers(program.provenance.get(key)) for key in ("mean", "std"))
    model = FloatModel(path, image_size=(height, width), mean=mean, std=std)
    check_same_network(model, program, str(path))
    return model, ""


def numbers(value: Any) -> list[float] | None:
    """A list of numbers, or None if it is none: provenance may hold anything."""
    good = isinstance(value, list) and all(isinstance(v, (int, float)) for v in value)
    return value if good else None


def read_ablation(path: str | None, program: Program) -> dict[str, Any] | None:
    """The ablation of `--ablation`, else that in the Program's provenance if it holds one: {source, n, rows}."""
    if path is None:
        try:
            return ablation_of(program.provenance["ablation"], "the Program")
        except (KeyError, TypeError, ValueError):
            return None
    from golden.safe import read_json
    from intsim.program_file import one_line

    found = read_json(Path(path), ABLATION_BYTES)
    try:
        return ablation_of(found, Path(path).name)
    except (KeyError, TypeError, ValueError) as problem:
        wanted = "{n, rows: [{name, top1, agreement}]} in percent"
        told = f"{path}: is no ablation, {wanted}: {type(problem).__name__}: {problem}"
        raise UserError(one_line(told)) from None


def ablation_of(found: Any, source: str) -> dict[str, Any]:
    """Raises KeyError, TypeError or ValueError if it is none."""
    rows = [
        {"name": str(row["name"]), **{key: figure(row[key]) for key in ("top1", "agreement")}} for row in found["rows"]
    ]
    n = found.get("n")
    if all(row["top1"] is None and row["agreement"] is None for row in rows):
        raise ValueError("it has no figure")
    if n is not None and not (type(n) is int and n > 0):  # JSON's true is an int as well
        raise ValueError(f"n is {n!r}, must be a number of images")
    return {"source": source, "n": n, "rows": rows}


def figure(value: Any) -> float | None:
    """A percentage, or None where there is none."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 100:
        raise ValueError(f"{value!r} is no percentage")
    return float(value)
