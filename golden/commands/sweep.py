"""`intsim sweep`: a width, or a setting of the calibration, at many values."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from golden.commands.common import (
    OVERFLOW,
    Where,
    cluster_options,
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
)
from golden.commands.quantize import ROUNDINGS, pixels_wide
from golden.extras import need
from intsim.errors import UserError

if TYPE_CHECKING:
    from golden.sweep import Point
    from intsim.program import Program

WHATS = ("accumulator-bits", "state-bits", "a-bar-bits", "activation-bits", "k", "rounding")
ANEW = WHATS[3:]  # these need a calibration of their own
ALLOWED = {"activation-bits": (2, 8), "k": (1, 4)}
CALIBRATION = 256  # images


@click.command(
    "sweep",
    epilog=examples(
        "intsim sweep --what accumulator-bits --values 18,20,22,24 --data test.npz --out sweep",
        "intsim sweep --what state-bits --values 4,5,6,7 --data test.npz --no-plot --out states",
        "intsim sweep --what rounding --values half_even,floor --data test.npz --calibration photos/ --out rounding",
    ),
)
@click.option("--what", type=click.Choice(WHATS), required=True, help="What is varied.")
@click.option("--values", required=True, metavar="V,V,...", help="Widths, numbers of groups, or rounding modes.")
@click.option("--data", required=True, help="Class tree, folder with labels.csv, or .npz with labels.")
@click.option(
    "--overflow",
    "overflows",
    type=OVERFLOW,
    multiple=True,
    help="Of --what accumulator-bits; may be given twice.  [default: both]",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder; what is done there is kept.")
@click.option("--count", type=click.IntRange(min=1), help="So many images, spread evenly over the set.  [default: all]")
@click.option("--batch", type=click.IntRange(1, 4096), default=64, show_default=True, help="Images at a time.")
@model_option
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path),
    help="What activation-bits, k and rounding quantize anew.  [default: the embedded checkpoint]",
)
@click.option("--calibration", help="Image folder, class tree or .npz, to quantize anew.")
@click.option(
    "--calibration-images",
    type=click.IntRange(min=1),
    help=f"So many, spread evenly over the set.  [default: {CALIBRATION} or all]",
)
@click.option("--image-size", callback=pixels_wide, help="Side or HEIGHTxWIDTH, where the checkpoint does not tell.")
@click.option("--plot/--no-plot", "drawn", default=True, help="Draw sweep.png (needs matplotlib).  [default: plot]")
@crop_option
@threads_option
@cluster_options
@json_option
def command(
    what: str,
    values: str,
    data: str,
    overflows: tuple[str, ...],
    out: Path,
    count: int | None,
    batch: int,
    model: Path | None,
    checkpoint: Path | None,
    calibration: str | None,
    calibration_images: int | None,
    image_size: tuple[int, int] | None,
    drawn: bool,
    center_crop: bool,
    threads: int | None,
    where: Where,
    json_to: str | None,
) -> None:
    """Top-1, overflows, saturations and agreement with the Program as it is, for each of many values.

    accumulator-bits, state-bits and a-bar-bits narrow --model (as the options of 'intsim run' do).  activation-bits,
    k and rounding quantize --checkpoint anew on --calibration, once with the defaults, with which they are compared,
    and once for each value.

    --out gets a JSON file for each value as it is done, and at the end sweep.json and sweep.png.  A rerun does what
    is left.  JSON: what sweep.json holds, see FORMAT.md.
    """
    from golden.engines import announce_compilation
    from golden.images import open_images
    from golden.sweep import SATURATION_IMAGES, Sweep, plot
    from intsim.files import write_atomically

    points = parse_points(what, values, overflows)
    if drawn:
        need("matplotlib", "the plot", otherwise=", or --no-plot")
    make: Callable[[Point | None], Program]
    if what in ANEW:
        if model is not None:
            raise UserError(f"--model is not for --what {what}; --checkpoint names what is quantized anew")
        size, classes, source, make = quantizing(
            out, checkpoint, calibration, calibration_images, image_size, center_crop
        )
    else:
        if any(given is not None for given in (checkpoint, calibration, calibration_images, image_size)):
            raise UserError(f"--what {what} narrows --model; it takes no checkpoint and no calibration")
        size, classes, source, make = narrowing(model, points)
    images = open_images(data, size, classes=classes, count=count, center_crop=center_crop)
    images.require_labels(len(classes))
    few = min(SATURATION_IMAGES, len(images))
    sample = open_images(data, size, classes=classes, count=few, center_crop=center_crop)
    announce_compilation(say)
    with result(json_to) as (found, console), where.open(threads) as cluster:
        sweep = Sweep(points, images, sample, out, source, batch=batch, threads=threads, cluster=cluster)
        with progress_bar("images", len(images) * (len(points) + 1)) as update:
            found.update(sweep.run(make, lambda done, total, text: update(done, total, text)))
        if drawn:
            write_atomically(out / "sweep.png", plot(found, f"{what}: {len(images)} images"))
        show(found, console)
        console.print(f"{out}: sweep.json" + (" and sweep.png" if drawn else ""), soft_wrap=True)


def parse_points(what: str, values: str, overflows: tuple[str, ...]) -> list[Point]:
    """The points of --values and --overflow; UserError if they are none."""
    from golden.sweep import Point

    parts = [part.strip() for part in values.split(",")]
    if len(set(parts)) != len(parts):
        raise UserError(f"--values {values!r} has a value twice")
    if overflows and what != "accumulator-bits":
        raise UserError(f"--overflow is for --what accumulator-bits, not for {what}")
    if what == "rounding":
        for part in parts:
            if part not in ROUNDINGS:
                raise UserError(f"--values has {part!r}, rounding modes are {', '.join(ROUNDINGS)}")
        return [Point(what, part) for part in parts]
    if not all(part.isascii() and part.isdigit() and len(part) <= 3 for part in parts):
        raise UserError(f"--values {values!r} is not integers with commas between them")
    low, high = ALLOWED.get(what, (1, 64))  # widths are checked by the Program
    for part in parts:
        if not low <= int(part) <= high:
            raise UserError(f"--values has {part}, allowed for {what} are {low} .. {high}")
    kinds = (overflows or ("wrap", "saturate")) if what == "accumulator-bits" else (None,)
    return [Point(what, int(part), kind) for kind in dict.fromkeys(kinds) for part in parts]


Made = tuple[tuple[int, int, int], list[str], Any, "Callable[[Point | None], Program]"]


def narrowing(model: Path | None, points: list[Point]) -> Made:
    """(image size, classes, source, how a point's Program is made) for what narrows a Program."""
    from golden.sweep import CLASSES
    from intsim.program_file import program_bytes
    from intsim.whatif import Rule, narrow

    program, _ = load(model)

    def make(point: Point | None) -> Program:
        if point is None:
            return program
        made = narrow(program, [Rule(CLASSES[point.what], int(point.value), point.overflow)])
        program_bytes(made)  # sets its hash
        return made

    for point in points:  # a width that cannot be is refused before any is run
        make(point)
    return program.image, program.classes, identity(program), make


def quantizing(
    out: Path,
    checkpoint: Path | None,
    calibration: str | None,
    count: int | None,
    image_size: tuple[int, int] | None,
    center_crop: bool,
) -> Made:
    """The same for what quantizes a checkpoint anew; the Programs are kept in `out`, beside the results."""
    need("torch")
    from bitexact.inference import FloatModel
    from bitexact.quantize import quantize
    from golden.images import open_images
    from golden.sweep import REFERENCE, SETTINGS, data_digest, file_digest
    from intsim import embedded
    from intsim.program_file import load_program, save_program

    if calibration is None:
        raise UserError("--calibration is missing: images on which to quantize anew")
    path = embedded.checkpoint_path() if checkpoint is None else checkpoint
    model = FloatModel(path, image_size=image_size)
    size = model.image
    images = open_images(calibration, size, center_crop=center_crop)
    images = open_images(calibration, size, count=count or min(len(images), CALIBRATION), center_crop=center_crop)
    source = {"checkpoint": file_digest(path), "calibration": data_digest(images)}

    def make(point: Point | None) -> Program:
        file = out / f"{REFERENCE if point is None else point.label}.safetensors"
        wanted = {**source, "sweep": "reference" if point is None else point.label}
        if file.exists():
            kept = load_program(file)
            if all(kept.provenance.get(key) == value for key, value in wanted.items()):
                return kept
        settings: dict[str, Any] = {} if point is None else {SETTINGS[point.what]: point.value}
        made = quantize(path, images.stack(), **settings)
        made.provenance.update(wanted)
        save_program(made, file)
        return made

    return size, model.classes, source, make


def show(found: dict[str, Any], console: Any) -> None:
    columns = ("top-1 %", "agreement %", "overflows", "of accumulators %", "saturations", "of values %", "seconds")
    rows = table(found["what"], "overflow", *columns, numbers=columns)
    for row in [{**found["reference"], "value": "reference", "overflow": None, "agreement": 100.0}, *found["rows"]]:
        cells = [f"{row['top1']:.2f}", f"{row['agreement']:.2f}", f"{row['overflows']:,}", ""]
        if row["accumulated"]:
            cells[3] = f"{100 * row['overflows'] / row['accumulated']:.4f}"
        cells += [f"{row['saturations']:,}", f"{100 * row['saturations'] / max(row['saturable'], 1):.4f}"]
        rows.add_row(str(row["value"]), row["overflow"] or "", *cells, f"{row['seconds']:.1f}")
    console.print(rows)
    few = found["reference"]["saturation_images"]
    console.print(f"{found['reference']['images']} images; saturations on {few} of them")
