"""`intsim compare`: the integer engine against the independent torch path, integer for integer."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from golden.commands.common import (
    MISMATCH,
    WhatIf,
    Where,
    cluster_options,
    crop_option,
    device_option,
    embedded_images,
    examples,
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
from golden.extras import need

if TYPE_CHECKING:
    from rich.console import Console

    from bitexact.compare import Guilty, Report, TensorResult
    from golden.cluster import Cluster, Part
    from golden.images import ImageSet
    from intsim.program import Program

Prepared = tuple[Any, Any, Any, Any]  # Program, FakeQuant, the integer side, a lock
Found = tuple[str, "list[TensorResult]", "Guilty | None", list[str]]  # device, tensors, guilty, faulty of a Report
COUNT = 8  # images, where none are named
COLUMNS = ("tensor", "elements", "mismatches", "first differing index", "engine", "torch", "largest difference")


@click.command(
    "compare",
    epilog=examples(
        "intsim compare --count 2",
        "intsim compare --layers 'layers.0.*' --reference oracle --count 1",
        "intsim compare --model vim_int8.safetensors --images photos/ --center-crop --device cuda --form fast",
    ),
)
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
@threads_option
@cluster_options
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
    threads: int | None,
    where: Where,
    json_to: str | None,
) -> None:
    """Compare every tensor of the integer engine with the independent torch path, integer for integer.

    There is no tolerance.  Exit status 1 if one integer differs; then the guilty operator is named: the first in
    execution order that differs although its inputs agree.

    JSON: elements, mismatches, guilty, faulty, tensors: [{name, operator, shape, elements, mismatches, first,
    largest_difference}], and what was compared; FORMAT.md has all fields.
    """
    need("torch")
    from golden.engines import announce_compilation
    from golden.images import open_images

    program, file = load(model, what_if)
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
    work = Compares(device, layers or ("*",), batch, form == "fast", reference, threads)
    with result(json_to) as (found, out), where.open(threads) as cluster:
        with progress_bar("images", len(images)) as update:
            if cluster is None:
                report = work.compare(work.prepare(program), images, progress=update)
            else:
                report = compare_by(cluster, program, file, work, images, update)
        found.update(report.to_json())
        show(report, every, out)
    if report.mismatches:
        context.exit(MISMATCH)


@dataclass(frozen=True)
class Compares:
    """A comparison with everything but its images; also the work of a cluster, whose ranges it compares.

    threads: of the engine and of torch (None: as many as there are CPUs).
    """

    device: str
    layers: tuple[str, ...]
    batch: int | None
    fast: bool
    reference: str
    threads: int | None

    def prepare(self, program: Program) -> Prepared:
        """Both sides, and a lock for those that share a card."""
        need("torch")
        import torch

        from bitexact.compare import open_reference
        from bitexact.fakequant import FakeQuant

        if self.threads is not None:
            torch.set_num_threads(self.threads)
        fake = FakeQuant(program, self.device, self.fast)
        return program, fake, open_reference(program, self.reference, self.threads), threading.Lock()

    def compare(self, prepared: Prepared, images: Any, first: int = 0, progress: Any = None) -> Report:
        """images: uint8 [n, H, W, C], or read as needed; the first of them has the number `first`."""
        from bitexact.compare import compare

        program, fake, other, lock = prepared
        with lock if fake.device.type == "cuda" else contextlib.nullcontext():
            return compare(
                program,
                images,
                layers=self.layers,
                batch=self.batch,
                reference=other,
                progress=progress,
                candidate=fake,
                first=first,
            )

    def run(self, prepared: Prepared, part: Part) -> Found:
        import numpy as np

        report = self.compare(prepared, np.stack([image.pixels for image in part.images]), part.first)
        return report.device, report.tensors, report.guilty, report.faulty


def compare_by(
    cluster: Cluster, program: Program, file: bytes, work: Compares, images: ImageSet, update: Callable[..., None]
) -> Report:
    """The comparison by the workers of a cluster."""
    from bitexact.compare import Report
    from intsim.taps import select

    started = time.perf_counter()
    names = select(program, work.layers)
    total = Report.empty(program, names, len(images), work.device, work.fast, work.reference)

    def take(first: int, found: Found) -> None:
        total.device = found[0]
        total.add(*found[1:])

    work = replace(work, threads=cluster.threads)
    cluster.each(file, work, images, take, lambda done: update(done, text=cluster.caption()))
    total.seconds = time.perf_counter() - started
    return total


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
