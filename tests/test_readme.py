"""The figures in README.md and docs/FIGURES.md are those of the reports, and the promised ones hold."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import figures


def report(name: str) -> Any:
    return json.loads((ROOT / f"tests/reports/{name}.json").read_text())


def between(text: str, mark: str) -> str:
    return text.split(f"<!-- {mark} -->")[1].split(f"<!-- /{mark} -->")[0].strip()


@pytest.mark.parametrize(("page", "name"), [(page, name) for page, names in figures.PAGES.items() for name in names])
def test_tables(page: str, name: str) -> None:
    """After a change of a report: python tools/figures.py."""
    assert between((ROOT / page).read_text(), name) == figures.tables()[name]


def test_a_table_that_differs_is_seen() -> None:
    text = "a\n<!-- gpu -->\nold\n<!-- /gpu -->\nb\n"
    assert figures.replace(text, "gpu", "new") == "a\n<!-- gpu -->\n\nnew\n\n<!-- /gpu -->\nb\n"
    for bad in ("no marks", "<!-- /gpu --><!-- gpu -->", text + text):
        with pytest.raises(ValueError, match="once each"):
            figures.replace(bad, "gpu", "new")


def test_ablation_table() -> None:
    """Read back, cell by cell, without the code that wrote it."""
    lines = between((ROOT / "README.md").read_text(), "ablation").splitlines()
    rows = report("ablation")["rows"]
    assert len(lines) == 2 + len(rows)
    for line, row in zip(lines[2:], rows, strict=True):
        name, top1, agreement = (cell.strip() for cell in line.strip("|").split("|"))
        assert (name, float(top1), float(agreement)) == (row["name"], round(row["top1"], 2), round(row["agreement"], 2))


def test_gpu_report_and_its_text() -> None:
    found = report("gpu")
    text = (ROOT / "docs/FIGURES.md").read_text()
    assert found["mismatches"] == sum(run["mismatches"] for run in found["runs"]) == 0
    assert found["elements"] == sum(run["elements"] for run in found["runs"] if run["form"] != "untapped")
    assert f"{found['elements']:,} integers, 0 mismatches" in between((ROOT / "README.md").read_text(), "figures")
    assert found["card"] in text and found["date"] in text and found["commit"][:7] in text
    untapped = sum(run["elements"] for run in found["runs"] if run["form"] == "untapped")
    assert found["untapped"] == untapped > 0 and f"{untapped:,} integers" in text
    best = max(found["speed"], key=lambda speed: float(speed["images_per_second"]))
    assert found["images_per_second"] == best["images_per_second"] >= 1000
    for figure in (f"{best['images_per_second']:,.0f} images a second", f"{best['scan_fraction_of_int32_peak']:.0%}"):
        assert figure.replace("%", " %") in text


def test_onnx_report() -> None:
    found = report("onnx")
    assert found["mismatches"] == sum(run["mismatches"] for run in found["runs"]) == 0
    assert found["elements"] == sum(run["elements"] for run in found["runs"])


def test_cluster_report_and_its_text() -> None:
    """The same bundle whoever made it, a killed worker included; two workers gain; a scheduler stays below 1 GiB."""
    found = report("cluster")
    text = (ROOT / "docs/FIGURES.md").read_text()
    runs = dict(found["runs"])
    scheduler = runs.pop("scheduler")
    assert set(runs) == {"one", "1", "2", "4", "kill"} and runs["kill"]["killed"] == 1
    assert {(run["content_sha256"], run["images"]) for run in runs.values()} == {(runs["one"]["content_sha256"], 2000)}
    gain = runs["1"]["seconds"] / runs["2"]["seconds"]
    assert gain >= 1.7 and f"From 1 to 2 workers that is {gain:.2f} times" in text
    assert scheduler["images"] == 1_000_000 and scheduler["scheduler_peak_bytes"] < 1 << 30
    peak = f"{scheduler['scheduler_peak_bytes'] / (1 << 20):.0f} MiB"
    assert f"{scheduler['ranges']:,} ranges held at most {peak}" in text
    assert found["filesystem"] == "tmpfs" and "(tmpfs)" in text


def test_the_bars_are_met() -> None:
    """Float at least 87 %; all-integer at most 0.5 points lower with an 8-bit state, 0.2 with a 16-bit one."""
    found = report("ablation")
    top1 = {row["name"]: row["top1"] for row in found["rows"]}
    assert found["n"] == 10_000
    assert top1["float"] >= 87
    (int8,) = (value for name, value in top1.items() if name.endswith("profile int8"))
    assert top1["float"] - int8 <= 0.5
    assert top1["float"] - top1["profile wide-state"] <= 0.2 + 1e-9
