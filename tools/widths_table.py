"""The report of widths: bits that accumulators need and use, from the JSON of `intsim widths`.

    intsim widths --json embedded.json
    intsim widths --model vim_tiny_int8.safetensors --images photos/ --center-crop --json tiny.json
    python tools/widths_table.py embedded.json tiny.json --out tests/reports/widths.json

Writes a report with the accumulators of each model's summary, and prints its table; `tools/figures.py` puts that into
docs/FIGURES.md.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

FIELDS = ("register", "operator_kind", "declared", "proven", "enough", "used", "witness")


def model(found: dict[str, Any]) -> dict[str, Any]:
    """One model of the report: its Program, the number of images, a row for each register of an accumulator."""
    rows = [{field: row[field] for field in FIELDS} for row in found["summary"] if row["kind"] == "accumulator"]
    return {"program": found["program"], "images": found["images"], "rows": rows}


def table(report: dict[str, Any]) -> str:
    """The table in Markdown: a row for each register, and for each model the bits proven and used."""
    models = report["models"]
    names = [m["program"]["name"] for m in models]
    heads = [f"{name}: {what}" for name in names for what in ("proven", "used")]
    lines = [f"| register | declared | {' | '.join(heads)} |", "| --- |" + " --- |" * (1 + len(heads))]
    by_name = [{row["register"]: row for row in m["rows"]} for m in models]
    for register, row in by_name[0].items():
        cells = []
        for rows in by_name:
            here = rows[register]
            cells += [proven(here), str(here["used"])]
        lines.append(f"| `{register}` | {row['declared']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def proven(row: dict[str, Any]) -> str:
    """The bits proven, and in brackets those that are enough if a value is clamped earlier."""
    return str(row["proven"]) if row["enough"] is None else f"{row['proven']} ({row['enough']})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("found", nargs="+", type=Path, help="JSON of intsim widths, one for each model")
    parser.add_argument("--out", type=Path, required=True, help="report to write")
    args = parser.parse_args()
    report = {"models": [model(json.loads(path.read_text())) for path in args.found]}
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    print(table(report))


if __name__ == "__main__":
    main()
