"""The tables of figures in README.md and docs/FIGURES.md, from the reports in tests/reports.

    python tools/figures.py           # after a report has changed
    python tools/figures.py --check   # exit status 1 if a page shows something else

A table stands between the lines <!-- NAME --> and <!-- /NAME --> of a page.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(HERE), str(ROOT)]

import bench_report
import widths_table

from intsim.files import write_atomically

PAGES = {  # and their tables
    "README.md": ("ablation", "figures", "bits"),
    "docs/FIGURES.md": ("gpu", "widths", "bench", "bench-avx2", "cluster"),
}
MODELS = {"vim_cifar10": "embedded model", "embedded": "embedded model", "tiny": "Vim-Tiny"}  # of the reports
Report = dict[str, Any]


def ablation(report: Report) -> str:
    lines = ["| configuration | top-1 % | agreement with float % |", "| --- | --- | --- |"]
    lines += [f"| {row['name']} | {row['top1']:.2f} | {row['agreement']:.2f} |" for row in report["rows"]]
    return "\n".join(lines)


def gpu(report: Report) -> str:
    """A row for each model, profile and rounding; both forms of the torch path together."""
    rows: dict[str, Report] = {}
    for run in report["runs"]:
        if run["form"] == "untapped":
            continue
        title = run["title"].rpartition(", ")[0].replace("embedded model", "embedded model, int8, half_up")
        row = rows.setdefault(title, {"images": {}, "elements": 0, "mismatches": 0})
        row["images"][run["form"]] = run["images"]
        row["elements"] += run["elements"]
        row["mismatches"] += run["mismatches"]
    lines = ["| Program | images | forms | integers compared | mismatches |", "| --- | --- | --- | --- | --- |"]
    for title, row in rows.items():
        counts = sorted(set(row["images"].values()))
        images = ", ".join(f"{n:,}" for n in counts)
        if len(counts) > 1:
            images = ", ".join(f"{n:,} {form}" for form, n in row["images"].items())
        lines.append(f"| {title} | {images} | {', '.join(row['images'])} | {row['elements']:,} | {row['mismatches']} |")
    return "\n".join(lines)


def figures(reports: dict[str, Report]) -> str:
    """The README's few figures: agreement and speed."""
    gpu, onnx, bench = reports["gpu"], reports["onnx"], reports["bench"]
    rows = [
        (
            f"every tensor, engine against torch on an {gpu['card']}",
            f"{gpu['elements']:,} integers, {gpu['mismatches']} mismatches",
        ),
        (
            f"every tensor, engine against the exported ONNX file in onnxruntime {onnx['onnxruntime']}",
            f"{onnx['elements']:,} integers, {onnx['mismatches']} mismatches",
        ),
    ]
    for row in bench_report.speed_rows(bench):
        if row["batch"] == 1 and None not in (row["intsim"], row["ratio"]):
            times = f"{bench_report.number(row['ratio'])} times as fast as float32 torch"
            name = MODELS.get(row["model"], row["model"])
            rows.append((f"an image on the CPU, {name}", f"{bench_report.number(1000 * row['intsim'])} ms, {times}"))
    best = max(gpu["speed"], key=lambda speed: float(speed["images_per_second"]))
    rows.append(("Vim-Tiny, batches in torch on that card", f"{best['images_per_second']:,.0f} images a second"))
    rows.append(("golden bundle of one Vim-Tiny image", f"{bench_report.number(bench['golden_tiny_s'])} s"))
    judged = bench_report.judge(bench)
    rows.append(("bars of speed and memory met", f"{sum(row['met'] is True for row in judged)} of {len(judged)}"))
    return "\n".join(["| | measured |", "| --- | --- |", *(f"| {what} | {found} |" for what, found in rows)])


def cluster(report: Report) -> str:
    """A row for each way to make the bundle."""
    names = {"one": "one process, without Dask", "1": "1 worker", "kill": "4 workers, one of them killed"}
    lines = ["| bundle made by | seconds | content_sha256 |", "| --- | --- | --- |"]
    for part, run in report["runs"].items():
        if part != "scheduler":
            name = names.get(part, f"{part} workers")
            lines.append(f"| {name} | {run['seconds']:.1f} | `{run['content_sha256'][:16]}...` |")
    return "\n".join(lines)


def bits(report: Report) -> str:
    """The README's accumulators, of the operators that multiply: bits proven and used."""
    models = report["models"]
    heads = [MODELS.get(model["program"]["name"], model["program"]["name"]) for model in models]
    lines = [
        "| accumulator | declared | " + " | ".join(f"needed, {name} | used" for name in heads) + " |",
        "| --- | --- |" + " --- | --- |" * len(models),
    ]
    for rows in zip(*(model["rows"] for model in models), strict=True):
        name = rows[0]["register"]
        if name.endswith("acc"):
            cells = " | ".join(f"{widths_table.proven(row)} | {row['used']}" for row in rows)
            lines.append(f"| `{name}` | {rows[0]['declared']} | {cells} |")
    return "\n".join(lines)


def tables() -> dict[str, str]:
    """Every table by its name, from the reports."""
    names = ("ablation", "gpu", "onnx", "widths", "bench", "bench-avx2", "cluster")
    reports = {name: json.loads((ROOT / "tests" / "reports" / f"{name}.json").read_text()) for name in names}
    return {
        "ablation": ablation(reports["ablation"]),
        "figures": figures(reports),
        "bits": bits(reports["widths"]),
        "gpu": gpu(reports["gpu"]),
        "widths": widths_table.table(reports["widths"]),
        "bench": bench_report.markdown(reports["bench"]),
        "bench-avx2": bench_report.markdown(reports["bench-avx2"]),
        "cluster": cluster(reports["cluster"]),
    }


def replace(text: str, name: str, table: str) -> str:
    """`text` with `table` between the two marks.  Raises ValueError if they are not there once each, in order."""
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    if text.count(start) != 1 or text.count(end) != 1 or text.index(start) > text.index(end):
        raise ValueError(f"must have the lines {start} and {end}, once each and in this order")
    before, rest = text.split(start)
    return f"{before}{start}\n\n{table}\n\n{end}{rest.split(end)[1]}"


def written() -> dict[Path, str]:
    """What each page must be."""
    found = tables()
    pages = {}
    for page, names in PAGES.items():
        text = (ROOT / page).read_text()
        for name in names:
            text = replace(text, name, found[name])
        pages[ROOT / page] = text
    return pages


def main() -> int:
    parser = argparse.ArgumentParser(description="Writes the tables of README.md and docs/FIGURES.md.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 if a page would change")
    check = parser.parse_args().check
    changed = [page for page, text in written().items() if page.read_text() != text]
    for page in changed:
        if not check:
            write_atomically(page, written()[page].encode())
        print(f"{page.relative_to(ROOT)}: {'is not what the reports say' if check else 'written'}")
    return 1 if check and changed else 0


if __name__ == "__main__":
    sys.exit(main())
