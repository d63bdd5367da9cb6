"""`intsim compare`: the integer engine against the independent torch path, integer for integer."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from golden.commands.common import (
    MISMATCH,
    WhatIf,
    crop_option,
    device_option,
    embedded_images,
    json_option,
    load,
    model_option,
    need_torch,
    progress_bar,
    result,
    say,
    table,
    what_if_options,
)

if TYPE_CHECKING:
    from rich.console import Console

    from bitexact.compare import Report, TensorResult

COUNT = 8  # images, where none are named
COLUMNS = ("tensor", "elements", "mismatches", "first differing index", "engine", "torch", "largest difference")


@click.command("compare")
@click.option("--images", "source", help="Image file, folder, class tree or .npz.  [default: the embedded images]")
@click.option(
    "--count",
    type=click.IntRange(min=1),
    help=f"So many images, spread evenly over the set.  [default: all, {COUNT} of the embedded]",
)
@click.option(
    "--layers",
    multiple=True,
    metavar="GLOB",
    help="Tensors to compare, such as 'layers.3.*' or '*.acc'; may be repeated.  [default: every tensor]",
)
@device_option
@click.option(
    "--form",
    type=click.Choice(["plain", "fast"]),
    default="plain",
    show_default=True,
    help="Of the torch path: readable operators, or fused CUDA kernels.",
)
@click.option(
    "--reference",
    type=click.Choice(["engine", "oracle"]),
    default="engine",
    show_default=True,
    help="The integer side: the Numba engine, or the NumPy definitions (slow).",
)
@click.option("--batch", type=click.IntRange(1, 4096), help="Images at a time, at most.  [default: as memory allows]")
@click.option("--all", "every", is_flag=True, help="A row for each tensor; without it, layers share theirs.")
@model_option
@what_if_options
@crop_option
@json_option
@click.pass_context
def command(
    context: click.Context,
    source: str | None,
    count: int | None,
    layers: tuple[str, ...],
    device: str,
    form: str,
    reference: str,
    batch: int | None,
    every: bool,
    model: Path | None,
    what_if: WhatIf,
    center_crop: bool,
    json_to: str | None,
) -> None:
    """Compare every tensor of the integer engine with the independent torch path, integer for integer.

    There is no tolerance.  Exit status 1 if one integer differs; then the guilty operator is named: the first in
    execution order that differs although its inputs agree.

    JSON: elements, mismatches, guilty, faulty, tensors: [{name, operator, shape, elements, mismatches, first,
    largest_difference}], and what was compared; FORMAT.md has all fields.
    """
    need_torch()
    from bitexact.compare import compare
    from golden.engines import announce_compilation
    from golden.images import open_images

    program, _ = load(model, what_if)
    if source is None and count is None:
        count = COUNT
    images = open_images(
        embedded_images() if source is None else source,
        program.image,
        classes=program.classes,
        count=count,
        center_crop=center_crop,
    )
    announce_compilation(say)
    with result(json_to) as (found, out):
        with progress_bar("images", len(images)) as update:
            report = compare(
                program, images, device, layers or ("*",), batch, form == "fast", reference, progress=update
            )
        found.update(report.to_json())
        show(report, every, out)
    if report.mismatches:
        context.exit(MISMATCH)


def show(report: Report, every: bool, out: Console) -> None:
    """The table and the sentences for people: differing tensors always have a row of their own."""
    rows = table(*COLUMNS, numbers=[name for name in COLUMNS if name not in ("tensor", "first differing index")])
    groups: dict[str, list[TensorResult]] = {}
    for tensor in report.tensors:
        groups.setdefault(tensor.name if every or tensor.mismatches else pattern(tensor.name), []).append(tensor)
    for name, tensors in groups.items():
        label = name if len(tensors) == 1 else f"{name} ({len(tensors)})"
        if len(tensors) == 1:
            label = tensors[0].name
        cells = ["", "", "", ""]
        if tensors[0].first is not None:
            first = tensors[0].first
            place = ", ".join(map(str, first.index))
            cells = [f"[{place}] of image {first.image}", str(first.reference), str(first.candidate)]
            cells.append(str(tensors[0].largest_difference))
        elements, mismatches = (sum(getattr(t, key) for t in tensors) for key in ("elements", "mismatches"))
        rows.add_row(label, f"{elements:,}", f"{mismatches:,}", *cells)
    out.print(rows)
    where = f"{report.reference} against torch on {report.device}, {'fast' if report.fast else 'plain'} form"
    out.print(f"{report.program.name}, {report.program.profile}, {report.program.rounding}; {where}", soft_wrap=True)
    rate = report.elements / max(report.seconds, 1e-9)
    out.print(f"{report.sentence()} ({report.seconds:.1f} s, {rate / 1e6:,.1f} million a second)", soft_wrap=True)
    if report.guilty is not None:
        out.print(f"guilty: {report.guilty.operator} ({report.guilty.kind}): it differs, its inputs agree")
    others = [name for name in report.faulty if report.guilty is None or name != report.guilty.operator]
    if others:
        out.print(f"also wrong when fed the {report.reference}'s inputs: {', '.join(others)}", soft_wrap=True)


def pattern(name: str) -> str:
    """layers.3.norm.out -> layers.*.norm.out"""
    return re.sub(r"^layers\.\d+\.", "layers.*.", name)
