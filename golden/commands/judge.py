"""`intsim judge`: are the outputs that a DUT appended to unit vectors right?"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from golden.commands.common import MISMATCH, examples, result
from golden.commands.vectors import Units, unit_command

if TYPE_CHECKING:
    from golden.vectors.draw import Stream
    from golden.vectors.judge import Fault
    from golden.vectors.units import Case

SENTENCES = 20  # of --all


def check(case: Case, stream: Stream, source: BinaryIO, go_on: bool, complete: bool, json_to: str | None) -> None:
    """Judges `source`; exit status 1 if an answer is wrong."""
    from golden.vectors.judge import judge

    with result(json_to) as (found, out):
        shown = 0

        def report(fault: Fault) -> None:
            nonlocal shown
            shown += 1
            if shown <= SENTENCES:
                out.print(f"{case.unit}: {fault.sentence}", soft_wrap=True)

        verdict = judge(case, source, stream if complete else None, go_on, report)
        first: dict[str, Any] | None = None
        if verdict.first is not None:
            first = asdict(verdict.first)
        found.update(unit=case.unit, ok=first is None, lines=verdict.lines, errors=verdict.errors, first=first)
        if first is None:
            out.print(f"{case.unit}: {verdict.lines:,} lines, no error")
        elif go_on:
            out.print(f"{case.unit}: {verdict.errors:,} of {verdict.lines:,} lines are wrong")
    if first is not None:
        click.get_current_context().exit(MISMATCH)


def _judge(name: str) -> click.Command:
    more: list[click.Parameter] = [
        click.Argument(["source"], type=click.File("rb"), default="-"),
        click.Option(["--all", "go_on"], is_flag=True, help="Go on after the first error and count all."),
        click.Option(
            ["--complete"],
            is_flag=True,
            help="The lines must be exactly those that vectors writes with the same options, none missing.",
        ),
        click.Option(
            ["--json", "json_to"],
            metavar="FILE",
            help="Also write the result as JSON ('-': to standard output).",
        ),
    ]
    intro = (
        "Judge lines of SOURCE (standard input) to which a DUT appended its outputs, in the order of the expected "
        "ones. The outputs are computed again, nothing in a line is believed. Exit status 1 at the first wrong answer, "
        "with its line, its inputs, the expected and the actual value; 2 for a line that is none.\n\n"
        "JSON: unit, ok, lines, errors, first: {line, output, element, expected, actual, sentence} or null."
    )
    return unit_command(name, intro, f"intsim judge {name} answers.txt --all", check, more)


command = Units(
    _judge,
    name="judge",
    help="""Check the outputs that a DUT appended to unit vectors; exit status 1 at the first error.

    Parameters of the unit (widths, rounding mode, --operator) must be those that vectors had.
    """,
    epilog=examples(
        "intsim vectors requantize | ./dut | intsim judge requantize",
        "intsim vectors exp2 --rounding half_even | ./dut | intsim judge exp2 --rounding half_even --complete",
        "intsim judge requantize answers.txt --all --json judged.json",
    ),
)
