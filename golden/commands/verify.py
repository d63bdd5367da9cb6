"""`intsim verify`: is a bundle as it was written, and is a DUT as the bundle says?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from golden.commands.common import MISMATCH, check_target, examples, json_option, progress_bar, result, say, table
from intsim.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from golden.formats import Packing
    from golden.verdict import Verdict

MANY_ROWS = 40  # of a table; where there are more dumps, those that agree are only counted


@click.command(
    "verify",
    epilog=examples(
        "intsim verify bundle",
        "intsim verify bundle dumps/ --require 'layers.0.mixer.scan*'",
        "intsim verify bundle dumps/ --junit verify.xml --json verify.json",
    ),
)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("dut", metavar="[DUT_DIR]", required=False, type=click.Path(path_type=Path))
@click.option("--image", type=click.IntRange(min=0), help="Image of dumps that lie in no image's folder.  [default: 0]")
@click.option("--order", help="Of all dumps, instead of what they or the bundle say; as for 'intsim golden'.")
@click.option("--lanes", type=int, metavar="N", help="Likewise.")
@click.option("--lane-order", type=click.Choice(["lsb", "msb"]), help="Likewise.")
@click.option("--require", multiple=True, metavar="GLOB", help="Tensors that must have been dumped; may be repeated.")
@click.option("--junit", "junit_to", type=click.Path(path_type=Path), metavar="FILE", help="Also write JUnit XML.")
@json_option
@click.pass_context
def command(
    context: click.Context,
    bundle: Path,
    dut: Path | None,
    image: int | None,
    order: str | None,
    lanes: int | None,
    lane_order: str | None,
    require: tuple[str, ...],
    junit_to: Path | None,
    json_to: str | None,
) -> None:
    """Check a golden bundle, or compare the dumps of a design with it.

    Without DUT_DIR: every hash, every file, and that all parts agree.  JSON: ok, problems: [text].

    With DUT_DIR, a folder of files TENSOR.hex (.mem, .coe, .mif, .bin, .npy, .h, .log; in 0000/, 0001/ ... for
    several images): where the first integer differs, in execution order, and what may explain it.  JSON: ok,
    first_mismatch: {tensor, index, expected, actual, file, word, lane, hint, ...}, tensors; FORMAT.md has all fields.

    Exit status 1 if anything differs, 2 if something cannot be read.
    """
    if dut is None:
        given = {"--image": image, "--order": order, "--lanes": lanes, "--lane-order": lane_order}
        for name, value in (*given.items(), ("--require", require or None), ("--junit", junit_to)):
            if value is not None:
                raise UserError(f"{name} is for a folder of dumps: intsim verify BUNDLE DUT_DIR {name} ...")
        good = check_bundle(bundle, json_to)
    else:
        packing = None
        if (order, lanes, lane_order) != (None, None, None):
            from golden.formats import Packing

            packing = Packing(order or "row-major", 1 if lanes is None else lanes, f"{lane_order or 'lsb'}-first")
        good = compare(bundle, dut, image or 0, packing, require, junit_to, json_to)
    if not good:
        context.exit(MISMATCH)


def check_bundle(bundle: Path, json_to: str | None) -> bool:
    """Whether the bundle is whole; says what is not."""
    from golden.verify import verify as check

    with result(json_to) as (found, out):
        with progress_bar("images") as update:
            problems = check(bundle, update)
        found.update(ok=not problems, problems=problems)
        for problem in problems:
            out.print(problem, soft_wrap=True)
        found_wrong = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        out.print(f"{bundle}: {found_wrong if problems else 'whole'}", soft_wrap=True)
    return not problems


def compare(
    bundle: Path,
    dut: Path,
    image: int,
    packing: Packing | None,
    require: tuple[str, ...],
    junit_to: Path | None,
    json_to: str | None,
) -> bool:
    """Whether the dumps agree with the bundle; says where they do not."""
    from golden.verdict import judge
    from golden.verdict.report import junit, to_json
    from golden.verify import Bundle
    from intsim.files import write_atomically

    if junit_to is not None:
        check_target(junit_to)
    with result(json_to) as (found, out):
        with progress_bar("dumps") as update:
            reference = Bundle(bundle)
            verdict = judge(reference, dut, image=image, packing=packing, require=require, say=say, progress=update)
        found.update(to_json(verdict))
        if junit_to is not None:
            write_atomically(junit_to, junit(verdict).encode())
        show(verdict, out)
    return verdict.ok


def show(verdict: Verdict, out: Console) -> None:
    """The table of dumps, then the first mismatch."""
    from golden.verdict.report import summary, text

    columns = ("dump", "image", "elements", "differ", "x or z", "largest difference")
    rows = table(*columns, "", numbers=columns[1:])
    few = len(verdict.rows) <= MANY_ROWS
    for row in verdict.rows:
        if few or row.mismatches:
            first = "<-- first" if verdict.first and row is verdict.first.row else ""
            counts = [f"{n:,}" if n else "" for n in (row.mismatches, row.unknown, row.largest)]
            name = f"{row.dump.tensor} ({row.dump.format.ending})"
            style = "red" if row.mismatches else None
            rows.add_row(name, str(row.dump.image), f"{row.elements:,}", *counts, first, style=style)
    if rows.row_count:
        out.print(rows)
    if not few:
        agree = sum(not row.mismatches for row in verdict.rows)
        out.print(f"{agree} more dumps agree" if rows.row_count else f"{agree} dumps agree")
    if verdict.ignored:
        named = ", ".join(verdict.ignored[:3]) + (", ..." if len(verdict.ignored) > 3 else "")
        out.print(f"passed over, no dump of a tensor of the bundle: {named}", soft_wrap=True)
    if verdict.missing:
        out.print(f"not dumped: {verdict.missing} tensors of the bundle", soft_wrap=True)
    if verdict.first is not None:
        out.print("first mismatch, in execution order", style="bold red")
        out.print(text(verdict), soft_wrap=True)
    out.print(f"{verdict.folder}: {summary(verdict)}", style="bold", soft_wrap=True)
