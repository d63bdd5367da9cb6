"""`intsim headers`: a SystemVerilog package and a C header of a Program."""

from __future__ import annotations

from pathlib import Path

import click

from golden.commands.common import examples, identity, json_option, load, model_option, out_option, result


@click.command(
    "headers",
    epilog=examples(
        "intsim headers --out headers",
        "intsim headers --model vim_int8.safetensors --name vim_tiny --out headers_tiny",
    ),
)
@out_option
@click.option("--name", default="intsim", show_default=True, help="Of the package (NAME_pkg) and the header (NAME.h).")
@model_option
@json_option
def command(out: Path, name: str, model: Path | None, json_to: str | None) -> None:
    """Write a SystemVerilog package and a C header: dimensions, widths, shifts, groups, exponents, file names.

    Both bear the SPEC version and the Program's hash, which every golden file bears too.
    JSON: out, program: {name, profile, sha256}, files: [text].
    """
    from golden.headers import write_headers

    program, _ = load(model)
    with result(json_to) as (found, console):
        files = write_headers(out, program, name)
        found.update(out=str(out), program=identity(program), files=files)
        for file in files:
            console.print(f"{out / file}", soft_wrap=True)
        console.print(f"program {program.digest}")
