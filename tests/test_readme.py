"""The figures in the README are those of the reports."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def between(text: str, mark: str) -> str:
    return text.split(f"<!-- {mark} -->")[1].split(f"<!-- /{mark} -->")[0].strip()


def test_ablation_table() -> None:
    report = json.loads((ROOT / "tests/reports/ablation.json").read_text())
    lines = ["| configuration | top-1 % | agreement with float % |", "| --- | --- | --- |"]
    lines += [f"| {row['name']} | {row['top1']:.2f} | {row['agreement']:.2f} |" for row in report["rows"]]
    assert between((ROOT / "README.md").read_text(), "ablation") == "\n".join(lines)


def test_the_bars_are_met() -> None:
    """Float at least 87 %; all-integer at most 0.5 points lower with an 8-bit state, 0.2 with a 16-bit one."""
    report = json.loads((ROOT / "tests/reports/ablation.json").read_text())
    top1 = {row["name"]: row["top1"] for row in report["rows"]}
    assert report["n"] == 10_000
    assert top1["float"] >= 87
    (int8,) = (value for name, value in top1.items() if name.endswith("profile int8"))
    assert top1["float"] - int8 <= 0.5
    assert top1["float"] - top1["profile wide-state"] <= 0.2 + 1e-9


def test_widths_table() -> None:
    spec = importlib.util.spec_from_file_location("widths_table", ROOT / "tools/widths_table.py")
    assert spec is not None and spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    report = json.loads((ROOT / "tests/reports/widths.json").read_text())
    assert between((ROOT / "README.md").read_text(), "widths") == tool.table(report)
