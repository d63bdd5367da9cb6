"""`intsim export`: the Program in a format that other tools read."""

from __future__ import annotations

from pathlib import Path

import click

from golden.commands.common import check_target, examples, identity, json_option, load, model_option, result
from golden.extras import need


@click.command(
    "export",
    epilog=examples(
        "intsim export --format onnx --out vim.onnx",
        "intsim export --format onnx --taps 'layers.0.*' --taps '*.scan.h' --out taps.onnx",
    ),
)
@click.option("--format", "file_format", type=click.Choice(["onnx"]), required=True, help="Format of the file.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="File to write; must not exist.")
@model_option
@click.option(
    "--taps",
    multiple=True,
    metavar="GLOB",
    help="Tensors to add as outputs, such as 'layers.3.*' or '*.acc'; may be repeated.",
)
@json_option
def command(file_format: str, out: Path, model: Path | None, taps: tuple[str, ...], json_to: str | None) -> None:
    """Write the Program as an ONNX file: integers only, with the very integers of the engine.

    Input `image`, uint8 [1, height, width, channels]; output `logits`, int32 [1, classes], and the tensors of --taps
    under their names (FORMAT.md, section 9).  Needs onnx.

    JSON: out, format, program: {name, profile, sha256}, taps (names), bytes.
    """
    need("onnx")
    check_target(out, new=True)
    from golden.onnx import onnx_bytes, tap_names
    from intsim.files import write_atomically

    program, file = load(model)
    names = tap_names(program, taps)
    with result(json_to) as (found, console):
        data = onnx_bytes(program, taps)
        write_atomically(out, data)
        found.update(out=str(out), format=file_format, program=identity(program), taps=names, bytes=len(data))
        console.print(f"{out}: {program.name}, {program.profile}, {len(data):,} bytes (Program: {len(file):,})")
        console.print(f"input image, outputs logits and {len(names)} tensors")
