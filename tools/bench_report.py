"""What `bench.py` measured, for people: the bars, tables for a terminal, the section of docs/FIGURES.md and the plot.

Reads the JSON that `bench.py --json` writes and nothing else.  A value that is None was not measured; `skipped` says
why.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

Result = dict[str, Any]

ENGINES = {"intsim": "intsim", "float32": "float32 torch", "fakequant": "fake-quant torch"}
COLOURS = {"intsim": "#1b6ca8", "float32": "#e08a1e", "fakequant": "#9a9a9a"}
BUSY = 0.1  # share of the CPUs that others take before or after a run, above which its figures are not to be trusted


@dataclass(frozen=True)
class Bar:
    """What a figure must be: at least or at most `bound`.  aim: what it should better be."""

    key: str
    text: str
    sense: str  # "at least" or "at most"
    bound: float
    unit: str = ""
    aim: float | None = None

    def passes(self, value: float) -> bool:
        return value >= self.bound if self.sense == "at least" else value <= self.bound


BARS = (
    Bar("vim_tiny_b1_ratio", "Vim-Tiny, batch 1: times as fast as float32 torch", "at least", 20, aim=30),
    Bar("vim_tiny_b8_ratio", "Vim-Tiny, batch 8: times as fast as float32 torch", "at least", 7, aim=10),
    Bar("matmul_vs_torch_int_mm", "matmul 197 x 192 x 768: times as fast as torch._int_mm", "at least", 1),
    Bar("matmul_fraction_of_peak", "matmul 197 x 192 x 768: rate as share of the multiply peak", "at least", 0.6),
    Bar("matmul_network_fraction", "all matmuls of Vim-Tiny together: share of that rate", "at least", 0.6),
    Bar("matmul_worst_fraction", "the slowest shape of Vim-Tiny: share of that rate", "at least", 0.6),
    Bar("scan_ns_per_update", "scan 197 x 384 x 16: a state update", "at most", 0.15, "ns", aim=0.10),
    Bar("warm_start_s", "`intsim run`, embedded model, warm", "at most", 1.5, "s"),
    Bar("cold_start_s", "`intsim run`, embedded model, empty Numba cache", "at most", 25, "s"),
    Bar("cold_start_announced", "... and it says that it compiles", "at least", 1),
    Bar("golden_tiny_s", "golden bundle of one Vim-Tiny image, all but the states", "at most", 4, "s"),
    Bar("hex_mb_per_s", "hex, the slowest of 8, 16 and 32 bits", "at least", 150, "MB/s"),
    # the same run twice differs by a percent
    Bar("memory_64_over_8", "peak memory of `intsim golden`: 64 images over 8", "at most", 1.02),
    Bar("sequence_x4_ratio", "785 tokens over 197: time", "at most", 4.4, "times"),
)


def judge(result: Result) -> list[dict[str, Any]]:
    """The bars with what was measured; `met` is None where nothing was."""
    rows = []
    for bar in BARS:
        value = result.get(bar.key)
        met = None if value is None else bar.passes(value)
        row = {"key": bar.key, "value": value, "sense": bar.sense, "bound": bar.bound, "aim": bar.aim, "met": met}
        rows.append(row)
    return rows


def number(value: float | None) -> str:
    """Three significant digits, without an exponent; a dash for None."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    size = abs(value)
    return f"{value:,.0f}" if size >= 100 else f"{value:.{3 if size < 1 else 2 if size < 10 else 1}f}"


def _bar_rows(result: Result) -> Iterator[tuple[str, str, str, str]]:
    """(what, measured, bar, verdict) of each bar."""
    verdicts = {True: "pass", False: "FAIL", None: "not measured"}
    for bar, row in zip(BARS, judge(result), strict=True):
        value = row["value"]
        if isinstance(value, bool):
            yield bar.text, number(value), "yes", verdicts[row["met"]]
            continue
        unit = f" {bar.unit}" if bar.unit else ""
        aim = "" if bar.aim is None else f" (aim: {bar.aim:g})"
        measured = number(value) + (unit if value is not None else "")
        yield bar.text, measured, f"{bar.sense} {bar.bound:g}{unit}{aim}", verdicts[row["met"]]


def speed_rows(result: Result) -> Iterator[dict[str, Any]]:
    """One row for each model and batch: {"model", "batch", engine: seconds an image or None, "ratio"}."""
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    for entry in result.get("speed") or []:
        key = entry["model"], entry["batch"]
        row = rows.setdefault(key, {"model": key[0], "batch": key[1], **dict.fromkeys(ENGINES)})
        row[entry["engine"]] = entry["seconds_per_image"]
    for row in rows.values():
        both = row["intsim"] is not None and row["float32"] is not None
        yield {**row, "ratio": row["float32"] / row["intsim"] if both else None}


def _ms(seconds: float | None) -> str:
    return number(None if seconds is None else 1000 * seconds)


def machine_line(result: Result) -> str:
    """The machine in one line."""
    m = result["machine"]
    return (
        f"{m['cpu']}, {m['threads']} threads of {m['cpus']}, {m['memory_gib']} GiB, {m['system']}; "
        f"Python {m['python']}, NumPy {m['numpy']}, Numba {m['numba']}, torch {m['torch']}"
    )


def _table(title: str, *columns: str, text: int = 1) -> Table:
    """A table whose first `text` columns hold words and the others numbers."""
    made = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for i, column in enumerate(columns):
        made.add_column(column, justify="left" if i < text else "right", no_wrap=i == 0)
    return made


def tables(result: Result) -> Iterator[Table | str]:
    """What is printed, in order."""
    m = result["machine"]
    yield machine_line(result)
    yield f"{m['time']}, commit {m['commit']}, {result['mode']} run of {result['seconds']:.0f} s"
    if result.get("peaks"):
        p = result["peaks"]
        yield (
            f"peaks: {number(p['gmac_per_s'])} GMAC/s ({p['instruction']}); copying {number(p['cache_gb_per_s'])} GB/s "
            f"in caches ({p['cache_kib']} KiB a thread), {number(p['memory_gb_per_s'])} GB/s in {p['memory_mib']} MiB"
        )
    if result.get("speed"):
        made = _table("Time of an image, ms", "model", "batch", *ENGINES.values(), "times float32")
        for row in speed_rows(result):
            made.add_row(row["model"], str(row["batch"]), *(_ms(row[e]) for e in ENGINES), number(row["ratio"]))
        yield made
    if result.get("operators"):
        part = result["operators"]
        made = _table(
            f"Operators of {part['model']}, batch 1", "operator", "kind", "shape", "count", "us", "rate", "of peak",
            "share", text=3,
        )  # fmt: skip
        for row in part["rows"]:
            rate = f"{number(row['rate'])} {row['unit']}"
            share = f"{100 * row['share']:.1f} %"
            shape = " x ".join(map(str, row["shape"]))
            of_peak = f"{100 * row['fraction_of_peak']:.1f} %"
            us = number(1e6 * row["seconds"])
            made.add_row(row["operator"], row["kind"], shape, str(row["count"]), us, rate, of_peak, share)
        yield made
        yield (
            f"operators one by one: {_ms(part['sum_seconds'])} ms; the engine's run: {_ms(part['run_seconds'])} ms.  "
            "GMAC/s against the multiply peak (a state update of the scan is 3), GB/s against copying in the caches"
        )
    if result.get("matmul"):
        made = _table("int8 matmul, GMAC/s", "tokens x inputs x outputs", "operator", "intsim", "torch._int_mm",
                      "times torch", "of peak", "in a run", text=2)  # fmt: skip
        for row in result["matmul"]:
            both = row["torch_gmac_per_s"] is not None
            times = number(row["gmac_per_s"] / row["torch_gmac_per_s"]) if both else "-"
            shape = " x ".join(map(str, row["shape"]))
            made.add_row(shape, row["operator"], number(row["gmac_per_s"]), number(row["torch_gmac_per_s"]), times,
                         f"{100 * row['fraction_of_peak']:.1f} %", number(row.get("in_a_run_gmac_per_s")))  # fmt: skip
        yield made
        yield (
            "intsim and torch are called from Python for each product; `in a run`: intsim's with many in one call, as "
            "in a network.  intsim's includes bias, rounding and saturation, torch's ends with int32"
        )
    if result.get("sequence"):
        made = _table("Sequence length, batch 1", "tokens", "ms", "us a token")
        for row in result["sequence"]:
            made.add_row(str(row["tokens"]), _ms(row["seconds"]), number(1e6 * row["seconds"] / row["tokens"]))
        yield made
    if result.get("scaling"):
        made = _table("Threads, ms an image", "batch", "threads", "ms", "times one thread")
        one = {row["batch"]: row["seconds_per_image"] for row in result["scaling"] if row["threads"] == 1}
        for row in result["scaling"]:
            seconds = row["seconds_per_image"]
            made.add_row(str(row["batch"]), str(row["threads"]), _ms(seconds), number(one[row["batch"]] / seconds))
        yield made
    if result.get("golden"):
        g = result["golden"]
        rates = ", ".join(f"{bits} bits {number(rate)}" for bits, rate in g["hex_mb_per_s"].items())
        yield (
            f"golden bundle of one {g['model']} image: {number(g['seconds'])} s, {g['bytes'] / 1e6:,.0f} MB in "
            f"{g['files']} files, {number(g['bytes'] / 1e6 / g['seconds'])} MB/s; hex in memory, MB/s: {rates}"
        )
    if result.get("memory"):
        parts = [f"{row['what']} {row['peak_mib']:,.0f} MiB" for row in result["memory"]]
        yield "peak memory: " + ", ".join(parts)
    title = "Bars" if result["mode"] != "smoke" else "Bars (toy sizes: the figures mean nothing)"
    made = _table(title, "what", "measured", "bar", "")
    for row in _bar_rows(result):
        made.add_row(*row)
    yield made
    if result["skipped"]:
        yield "not measured: " + "; ".join(result["skipped"])


def show(result: Result, console: Console) -> None:
    for part in tables(result):
        console.print(part)
        if isinstance(part, str):
            console.print()


# --- Markdown --------------------------------------------------------------------------------------------------------


def markdown(result: Result) -> str:
    """The section of docs/FIGURES.md: the times, the bars, the machine."""
    lines = []
    if result.get("speed"):
        lines.append("| ms an image | batch | " + " | ".join(ENGINES.values()) + " | times float32 |")
        lines.append("| --- |" + " --- |" * (len(ENGINES) + 2))
        for row in speed_rows(result):
            cells = [row["model"], str(row["batch"]), *(_ms(row[engine]) for engine in ENGINES), number(row["ratio"])]
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    lines += ["| | measured | bar | |", "| --- | --- | --- | --- |"]
    lines += ["| " + " | ".join(row) + " |" for row in _bar_rows(result)]
    run = "" if result["mode"] == "full" else f" ({result['mode']} run)"
    lines += ["", f"One run{run} on {machine_line(result)}."]
    if result["machine"]["busy"] > BUSY:
        share = 100 * result["machine"]["busy"]
        lines += ["", f"Not to be trusted: other processes took up to {share:.0f} % of the machine."]
    return "\n".join(lines)


# --- Plot ------------------------------------------------------------------------------------------------------------


def plot(result: Result, path: Path) -> None:
    """One PNG: the time of an image by model, batch and engine; and how it grows with the sequence."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = list(speed_rows(result))
    sequence = result.get("sequence") or []
    style = {"font.size": 11, "axes.spines.top": False, "axes.spines.right": False}
    with pyplot.rc_context(style):
        figure, axes = pyplot.subplots(
            1, 2, figsize=(11, 1.9 + 0.5 * max(5, len(rows))), width_ratios=(2, 1), layout="constrained"
        )
        _plot_speed(axes[0], rows)
        _plot_sequence(axes[1], sequence)
        m = result["machine"]
        figure.suptitle("Time of an image: integers (intsim) against float", fontweight="bold", fontsize=14)
        figure.supxlabel(f"{m['cpu']}, {m['threads']} threads", fontsize=9, color="#555555")
        figure.savefig(path, dpi=110, format="png")
        pyplot.close(figure)


def _plot_speed(axes: Any, rows: list[dict[str, Any]]) -> None:
    height = 0.26
    known = [1000 * row[engine] for row in rows for engine in ENGINES if row[engine] is not None]
    if not known:
        return
    low = 10.0 ** math.floor(math.log10(min(known) / 1.5))
    for at, row in enumerate(rows):
        for i, engine in enumerate(ENGINES):
            if row[engine] is None:
                continue
            ms = 1000 * row[engine]
            label = ENGINES[engine] if at == 0 else None
            place = at + (i - 1) * height
            axes.barh(place, ms - low, height=0.92 * height, left=low, color=COLOURS[engine], label=label)
            ratio = f"  ({number(row['ratio'])} x)" if engine == "intsim" and row["ratio"] else ""
            bold = "bold" if engine == "intsim" else "normal"
            axes.text(ms * 1.07, place, number(ms) + ratio, va="center", fontsize=9, fontweight=bold)
    axes.set_xscale("log")
    axes.set_xlim(low, max(known) * 4)
    axes.set_yticks(range(len(rows)), [f"{row['model']}\nbatch {row['batch']}" for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel("ms an image (log scale; in brackets: times as fast as float32)")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    _legend(axes)


def _legend(axes: Any) -> None:
    """Above the panel, where no bar or line can be."""
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, columnspacing=1.2, handlelength=1.4)


def _plot_sequence(axes: Any, sequence: list[dict[str, Any]]) -> None:
    if not sequence:
        axes.set_axis_off()
        return
    tokens = [row["tokens"] for row in sequence]
    ms = [1000 * row["seconds"] for row in sequence]
    axes.plot(tokens, ms, "o-", color=COLOURS["intsim"], linewidth=2, markersize=7, label="measured", zorder=3)
    line = [ms[0] * n / tokens[0] for n in tokens]
    axes.plot(tokens, line, "--", color="#555555", linewidth=1.2, label="linear")
    for n, value in zip(tokens, ms, strict=True):
        axes.annotate(number(value), (n, value), textcoords="offset points", xytext=(7, -13), fontsize=9)
    axes.set_xlim(0, 1.2 * max(tokens))
    axes.set_ylim(0, 1.1 * max(*ms, *line))
    axes.set_xticks(tokens)
    axes.set_xlabel(f"tokens (Vim-Tiny, depth {sequence[0]['depth']}, batch 1)")
    axes.set_ylabel("ms an image")
    _legend(axes)
