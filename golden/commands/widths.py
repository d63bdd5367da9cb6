"""`intsim widths`: bits that each register needs, proven, and bits that images use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from golden.commands.common import (
    check_target,
    crop_option,
    embedded_images,
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
)

if TYPE_CHECKING:
    from golden.images import ImageSet

SHOWN = ("accumulator", "product", "state", "internal", "output", "shift", "rom")  # of a terminal, without --all


@click.command(
    "widths",
    epilog=examples(
        "intsim widths",
        "intsim widths --all --sv widths_pkg.sv",
        "intsim widths --model vim_int8.safetensors --images photos/ --center-crop --json widths.json",
    ),
)
@model_option
@click.option("--images", "source", help="Image file, folder, class tree or .npz.  [default: the embedded images]")
@click.option("--count", type=click.IntRange(min=1), help="So many images, spread evenly over the set.  [default: all]")
@click.option("--all", "every", is_flag=True, help="List every register, not like ones together.")
@click.option("--sv", metavar="FILE", help="Write the widths as a SystemVerilog package.")
@crop_option
@threads_option
@json_option
def command(
    model: Path | None,
    source: str | None,
    count: int | None,
    every: bool,
    sv: str | None,
    center_crop: bool,
    threads: int | None,
    json_to: str | None,
) -> None:
    """Bits of every accumulator, product, state, shift and ROM: declared, proven enough for any image, and used.

    The proof is that of SPEC section 12, from the actual weights; inputs that reach the proven ends are run.  Without
    --images the embedded images are run if the model takes their size, else none.
    JSON: program: {name, profile, sha256}; images; registers: [{name, operator, operator_kind, kind, signed, declared,
    proven, used, slack, ...}] and summary, as FORMAT.md states them.
    """
    from golden.engines import announce_compilation
    from golden.images import open_images
    from intsim.files import write_atomically
    from intsim.widths import analyse, batch_size, systemverilog

    program, _ = load(model)
    images = None
    if source is not None or program.image == embedded_size():
        place = embedded_images() if source is None else source
        images = open_images(place, program.image, classes=program.classes, count=count, center_crop=center_crop)
    if sv is not None:
        check_target(sv)
    announce_compilation(say)
    with result(json_to) as (found, out):
        total = None if images is None else len(images)
        with progress_bar("proving") as update:
            report = analyse(
                program,
                None if images is None else pixels(images, batch_size(program)),
                threads=threads,
                tick=lambda text, done, of: update(done, total if of is None else of, text),
            )
        found.update(program=identity(program), images=report.images, registers=report.rows(), summary=report.summary())
        if sv is not None:
            write_atomically(Path(sv), systemverilog(report).encode())
        numbers = ("declared", "proven", "enough", "used", "saturated")
        if every:
            rows = table("register", "kind", *numbers, "witness", numbers=numbers)
            for row in found["registers"]:
                witness = row.get("witness")
                reached = None if witness is None else witness["exact"]
                rows.add_row(row["name"], row["kind"], *cells({**row, "witness": reached}, numbers))
        else:
            rows = table("register", "kind", "count", *numbers, "witness", numbers=("count", *numbers))
            last = None
            for row in found["summary"]:
                if row["kind"] not in SHOWN:
                    continue
                if last not in (None, row["operator_kind"]):
                    rows.add_section()
                last = row["operator_kind"]
                rows.add_row(row["register"], row["kind"], str(row["count"]), *cells(row, numbers))
        out.print(rows)
        out.print(f"{len(report.registers)} registers, {report.images} images; {verdict(found['registers'])}")


def embedded_size() -> tuple[int, int, int]:
    """Size of the embedded images, which is what the embedded Program takes."""
    return 32, 32, 3


def pixels(images: ImageSet, size: int) -> Iterator[Any]:
    import numpy as np

    for batch in images.batches(size):
        yield np.stack([image.pixels for image in batch])


def cells(row: dict[str, Any], numbers: tuple[str, ...]) -> list[str]:
    """The numbers of a row and its witness as text, empty where there is none."""
    shown = [row.get(name) for name in numbers]
    reached = {None: "", True: "exact", False: "below"}[row["witness"]]
    return [*("" if value is None else f"{value:,}" for value in shown), reached]


def verdict(rows: list[dict[str, Any]]) -> str:
    seen = [row["witness"] for row in rows if "witness" in row]
    exact = sum(w["exact"] for w in seen)
    return f"{exact} of {len(seen)} accumulators driven to both ends of their proven interval"
