"""A report for a terminal: the figures of the page's head, and the ends of its tables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from golden.commands.common import table
from golden.report.collect import kinds, losses
from golden.report.figures import plain_format
from golden.report.page import facts, milli, percent

if TYPE_CHECKING:
    from rich.table import Table

WORST = 10
SHOWN = ("accumulator", "state")


def tables(data: dict[str, Any]) -> Iterator[Table]:
    """The tables, in the order of the page."""
    program = data["program"]
    head = table("Program", program["name"])
    head.add_row("profile, rounding", f"{program['profile']}, {data['rounding']}")
    head.add_row("hash", program["sha256"] or "not saved")
    for fact in facts(data):
        head.add_row(fact["label"], f"{fact['value']}  ({fact['note']})")
    if not data["float"]["used"]:
        head.add_row("float", f"not compared: {data['float']['reason']}")
    yield head

    noisy = sorted((r for r in data["tensors"] if r["sqnr"] is not None), key=lambda r: r["sqnr"])[:WORST]
    if noisy:
        made = table("lowest SQNR", "format", "SQNR, dB", "saturated", numbers=("SQNR, dB", "saturated"))
        for row in noisy:
            made.add_row(row["name"], plain_format(row), f"{row['sqnr']:.1f}", lost(row))
        yield made
    dear = losses(data)[:WORST]
    if dear:
        numbers = ("count", "accumulator, dB", "requantized, dB", "loss, dB")
        made = table("requantization", *numbers, "most in", numbers=numbers)
        for row in dear:
            made.add_row(
                row["name"],
                str(row["count"]),
                *(f"{row[key]:.1f}" for key in ("before", "after", "loss")),
                row["worst"],
            )
        yield made
    clipped = [r for r in data["tensors"] if r["saturated"] and r["elements"]]
    clipped.sort(key=lambda r: -r["saturated"] / r["elements"])
    if clipped:
        made = table("most saturated", "format", "integers", "saturated", numbers=("integers", "saturated"))
        for row in clipped[:WORST]:
            made.add_row(row["name"], plain_format(row), f"{row['saturated']:,}", lost(row))
        yield made

    widths = ("count", "declared", "proven", "enough", "used")
    made = table("bits", *widths, numbers=widths)
    for row in data["registers"]:
        if row["kind"] in SHOWN:
            made.add_row(row["register"], *("" if row[key] is None else str(row[key]) for key in widths))
    yield made

    if data["ablation"]:
        made = table("ablation", "top-1, %", "agreement, %", numbers=("top-1, %", "agreement, %"))
        for row in data["ablation"]["rows"]:
            made.add_row(str(row["name"]), *("" if row[k] is None else f"{row[k]:.2f}" for k in ("top1", "agreement")))
        yield made
    if data["images"] is not None:
        yield from pictures(data)
    whole = sum(op["seconds"] or 0 for op in data["operators"])
    numbers = ("count", "multiplications", "ms an image", "share")
    made = table("operators", *numbers, numbers=numbers)
    for row in kinds(data):
        share = percent(row["seconds"], whole) if whole else ""
        time = milli(row["seconds"]) if data["timing"] else ""
        made.add_row(row["kind"], str(row["count"]), f"{row['multiplications']:,}", time, share)
    yield made


def lost(row: dict[str, Any]) -> str:
    return "" if row["saturated"] is None else percent(row["saturated"], row["elements"])


def pictures(data: dict[str, Any]) -> Iterator[Table]:
    """The images that got a wrong class, or another than in float."""
    names = data["classes"]

    def called(number: int | None) -> str:
        return "" if number is None else names[number]

    made = table("image", "label", "class", "float")
    for row in data["images"]["found"]:
        wrong = row["label"] is not None and row["label"] != row["class"]
        if wrong or (row["float_class"] is not None and row["float_class"] != row["class"]):
            made.add_row(row["name"], called(row["label"]), called(row["class"]), called(row["float_class"]))
    if made.row_count:
        yield made
