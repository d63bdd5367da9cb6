"""`intsim info`: what a Program is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from golden.commands.common import examples, identity, json_option, load, model_option, result, table
from intsim.errors import UserError

if TYPE_CHECKING:
    from intsim.program import Program


@click.command(
    "info",
    epilog=examples(
        "intsim info",
        "intsim info --layers 'layers.3.mixer.*'",
        "intsim info --model vim_int8.safetensors --json -",
    ),
)
@model_option
@click.option("--layers", multiple=True, metavar="GLOB", help="List these tensors, such as 'layers.3.*'.")
@json_option
def command(model: Path | None, layers: tuple[str, ...], json_to: str | None) -> None:
    """Show what a Program is: its size, its widths, its tensors.

    JSON: name, profile, sha256, spec, rounding, image, classes, provenance; operators: [{kind, count, constants,
    accumulator_bits, proven_bits}]; tensors: {name: {role, axes, shape, bits, signed, exponent}} of those listed.
    """
    from fnmatch import fnmatchcase

    program, data = load(model)
    names = [n for n in program.tensors if any(fnmatchcase(n, glob) for glob in layers)]
    if layers and not names:
        raise UserError(f"no tensor matches {' '.join(layers)!r}; names look like {program.logits}")
    height, width, channels = program.image
    with result(json_to) as (found, out):
        found.update(identity(program), spec=program.spec, rounding=program.rounding)
        found["image"] = {"height": height, "width": width, "channels": channels}
        found.update(classes=program.classes, provenance=program.provenance, operators=kinds(program))
        head = table("Program", program.name)
        head.add_row("hash", program.digest)
        head.add_row("profile, rounding", f"{program.profile}, {program.rounding}")
        head.add_row("image", f"{height} x {width} x {channels}, uint8")
        head.add_row("classes", f"{len(program.classes)}: {', '.join(program.classes[:10])}")
        stored = sum(a.size for a in program.arrays.values())
        head.add_row("integers stored", f"{stored:,} in a file of {len(data):,} bytes")
        for key, value in program.provenance.items():
            head.add_row(key, value if isinstance(value, str) else json.dumps(value))
        out.print(head)
        numbers = ("count", "integers stored", "accumulator bits", "proven to need")
        every = table("operators", *numbers, numbers=numbers)
        for row in found["operators"]:
            bits = [str(row[key] or "") for key in ("accumulator_bits", "proven_bits")]
            every.add_row(row["kind"], str(row["count"]), f"{row['constants']:,}", *bits)
        out.print(every)
        if not layers:
            return
        found["tensors"] = {}
        listed = table("tensor", "role", "shape", "axes", "bits", "exponent", "scale", numbers=("bits", "exponent"))
        for name in names:
            t = program.tensors[name]
            fields = t.to_json()
            del fields["terms"]
            found["tensors"][name] = fields
            parts = [
                f"{term.axis} {'offsets' if term.shifts is None else 'groups << ' + ' '.join(map(str, term.shifts))}"
                for term in t.terms
            ]
            width_text = f"{'s' if t.signed else 'u'}{t.bits}"
            exponent = "" if t.exponent is None else str(t.exponent)
            shape = " x ".join(map(str, t.shape))
            listed.add_row(name, t.role, shape, ", ".join(t.axes), width_text, exponent, "; ".join(parts))
        out.print(listed)


def kinds(program: Program) -> list[dict[str, Any]]:
    """One row for each kind of operator: how many, how many stored integers, accumulator bits declared and needed."""
    from intsim.arithmetic import bits_needed
    from intsim.validate import check_operator

    rows: dict[str, dict[str, Any]] = {}
    for op in program.operators:
        row = rows.setdefault(
            op.kind, {"kind": op.kind, "count": 0, "constants": 0, "accumulator_bits": None, "proven_bits": None}
        )
        row["count"] += 1
        row["constants"] += sum(program.arrays[name].size for name in op.constants.values())
        for port, bound in check_operator(program, op).items():
            needed = bits_needed(int(bound.low.min()), int(bound.high.max()))
            row["proven_bits"] = max(row["proven_bits"] or 0, needed)
            row["accumulator_bits"] = max(row["accumulator_bits"] or 0, program.tensors[op.tensor(port)].bits)
    return list(rows.values())
