"""`intsim quantize`: a checkpoint becomes a Program."""

from __future__ import annotations

import time
from pathlib import Path

import click

from golden.commands.common import check_target, crop_option, examples, identity, json_option, progress_bar, result
from golden.extras import need

ROUNDINGS = ("half_up", "half_even", "half_away", "floor")  # intsim.arithmetic's, without the import of NumPy


def numbers(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    """'a,b,c' as floats."""
    if value is None:
        return None
    try:
        return tuple(float(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r} is not numbers with commas between them") from None


def pixels_wide(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """'224' or '224x160' as (height, width)."""
    if value is None:
        return None
    parts = value.lower().split("x")
    if len(parts) > 2 or not all(part.isascii() and part.isdigit() and 0 < int(part) < 65536 for part in parts):
        raise click.BadParameter(f"{value!r} is neither a side nor HEIGHTxWIDTH in pixels")
    return int(parts[0]), int(parts[-1])


@click.command(
    "quantize",
    epilog=examples(
        "intsim quantize vim.pth --calibration photos/ --center-crop --out vim_int8.safetensors",
        "intsim quantize vim.pth --calibration photos/ --center-crop --profile wide-state --out wide.safetensors",
        "intsim quantize vim.pth --calibration train.npz --image-size 224 --images 4 --k 2 --out k2.safetensors",
    ),
)
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--calibration", required=True, help="Image folder, class tree or .npz.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Program file to write; must not exist.")
@click.option("--profile", type=click.Choice(["int8", "wide-state"]), default="int8", show_default=True)
@click.option("--k", type=click.IntRange(1, 4), default=4, show_default=True, help="Groups of a k-scaled tensor.")
@click.option("--activation-bits", type=click.IntRange(2, 8), default=8, show_default=True)
@click.option("--search", type=click.Choice(["cosine", "minmax"]), default="cosine", show_default=True)
@click.option("--reparameterize/--no-reparameterize", default=True, show_default=True, help="Rank-1 state exponents.")
@click.option("--fuse/--no-fuse", default=True, show_default=True, help="Fuse the states' factors into x_proj.")
@click.option("--rounding", type=click.Choice(ROUNDINGS), default="half_up", show_default=True)
@click.option(
    "--images", "count", type=click.IntRange(min=1), help="So many, spread evenly over the set.  [default: 256 or all]"
)
@click.option("--image-size", callback=pixels_wide, help="Side or HEIGHTxWIDTH, where the checkpoint does not tell.")
@click.option("--mean", callback=numbers, help="a,b,c on pixels / 255.  [default: the checkpoint's, else ImageNet's]")
@click.option("--std", callback=numbers, help="Likewise.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@crop_option
@json_option
def command(
    checkpoint: Path,
    calibration: str,
    out: Path,
    profile: str,
    k: int,
    activation_bits: int,
    search: str,
    reparameterize: bool,
    fuse: bool,
    rounding: str,
    count: int | None,
    image_size: tuple[int, int] | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    seed: int,
    center_crop: bool,
    json_to: str | None,
) -> None:
    """Lower a float checkpoint (.pth, .safetensors) to an integer Program, calibrated on images.

    Needs torch.  JSON: out, program: {name, profile, sha256}, images, bytes, seconds.
    """
    need("torch")
    check_target(out, new=True)
    from bitexact.checkpoint import load_checkpoint
    from bitexact.quantize import quantize as lower
    from golden.images import open_images
    from intsim.program_file import save_program

    config, _ = load_checkpoint(checkpoint, image_size)
    size = (config.image_height, config.image_width, config.channels)
    images = open_images(calibration, size, center_crop=center_crop)
    if count is None:
        count = min(len(images), 256)
    images = open_images(calibration, size, count=count, center_crop=center_crop)
    with result(json_to) as (found, console):
        start = time.perf_counter()
        with progress_bar("reading images") as update:
            program = lower(
                checkpoint,
                images.stack(),
                profile=profile,
                k=k,
                activation_bits=activation_bits,
                search=search,
                reparameterize=reparameterize,
                fuse=fuse,
                rounding=rounding,
                mean=mean,
                std=std,
                seed=seed,
                classes=None,
                progress=update,
            )
        save_program(program, out)
        seconds = time.perf_counter() - start
        size_of = out.stat().st_size
        found.update(out=str(out), program=identity(program), images=count, bytes=size_of, seconds=round(seconds, 3))
        console.print(f"{out}: {program.name}, {program.profile}, {size_of:,} bytes, {count} images, {seconds:.0f} s")
        console.print(f"hash {program.digest}")
