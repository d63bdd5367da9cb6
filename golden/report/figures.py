"""Small drawings as SVG text: the network, one layer, histograms, the ablation.

Colours and fonts come from the page's style sheet, by class.  All text from a Program is escaped here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from golden.report.layout import BOXES, EDGES, HEIGHT, WIDTH, Box, Edge

SPARK_BINS, SPARK_UNITS = 64, 60  # columns of a small histogram, steps of their height
INSIDE = ("square_sum", "dx", "abar", "b", "acc", "h", "y_acc")  # tensors that stay in their operator


def width_of(row: dict[str, Any]) -> str:
    """s8: signed, 8 bits; u16: unsigned, 16 bits."""
    return f"{'s' if row['signed'] else 'u'}{row['bits']}"


def shape_of(row: dict[str, Any]) -> str:
    return " × ".join(map(str, row["shape"]))


def groups_of(row: dict[str, Any]) -> str:
    """<<0,1,3 c: shifts of the groups, by channel (c) or token (t)."""
    return " ".join(f"≪{','.join(map(str, g['shifts']))} {g['axis'][0]}" for g in row["groups"])


def plain_format(row: dict[str, Any]) -> str:
    """Width, exponent and groups in one line of text."""
    parts = [width_of(row)]
    if row["exponent"] is not None:
        parts.append(f"2^{row['exponent']}")
    if groups := groups_of(row):
        parts.append(groups)
    return " ".join(parts)


def text(x: float, y: float, content: str, css: str = "", anchor: str = "start") -> str:
    """SVG text; content is escaped already."""
    end = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return f'<text x="{x:g}" y="{y:g}" class="{css}"{end}>{content}</text>'


def path(points: Iterable[tuple[float, float]], css: str) -> str:
    return f'<path class="{css}" d="M{" L".join(f"{x:g} {y:g}" for x, y in points)}"/>'


def arrow(points: Sequence[tuple[float, float]], css: str = "wire") -> str:
    """A polyline with a head at its end."""
    (x0, y0), (x1, y1) = points[-2], points[-1]
    length = math.hypot(x1 - x0, y1 - y0) or 1.0
    ux, uy = (x1 - x0) / length, (y1 - y0) / length
    bx, by = x1 - 7 * ux, y1 - 7 * uy
    head = f"M{x1:g} {y1:g} L{bx - 3.5 * uy:g} {by + 3.5 * ux:g} L{bx + 3.5 * uy:g} {by - 3.5 * ux:g}Z"
    return path([*points[:-1], (bx, by)], css) + f'<path class="head" d="{head}"/>'


def format_spans(row: dict[str, Any]) -> str:
    """Width in bold, exponent as a power of two."""
    made = f'<tspan class="w">{width_of(row)}</tspan>'
    if row["exponent"] is not None:
        made += f' 2<tspan class="sup" dy="-4">{row["exponent"]}</tspan><tspan dy="4">&#8203;</tspan>'
    elif row["role"] == "internal":
        made += " floating"
    return made


def groups_span(row: dict[str, Any]) -> str:
    return f'<tspan class="g">{escape(groups_of(row))}</tspan>'


def link(row: dict[str, Any], inner: str) -> str:
    return f'<a href="#t-{escape(row["name"])}" class="tensor-link"><title>{escape(row["name"])}</title>{inner}</a>'


def sparkline(row: dict[str, Any]) -> str:
    """The histogram of a tensor over the range seen; the height is the logarithm of the count."""
    found = row["histogram"]
    if found is None:
        return ""
    counts = found["counts"]
    bins = min(SPARK_BINS, len(counts))
    merged = [sum(counts[i * len(counts) // bins : (i + 1) * len(counts) // bins]) for i in range(bins)]
    top = math.log1p(max(merged))
    heights = [round(SPARK_UNITS * (1 - math.log1p(count) / top)) for count in merged]
    d = f"M0 {SPARK_UNITS}{''.join(f'V{y}h1' for y in heights)}V{SPARK_UNITS}Z"
    return (
        f'<svg class="spark" viewBox="0 0 {bins} {SPARK_UNITS}" preserveAspectRatio="none" aria-hidden="true">'
        f'<path d="{d}"/></svg>'
    )


# The whole network


def outline(data: dict[str, Any], rows: dict[str, dict[str, Any]], layers: list[str]) -> str:
    """The network from image to logits, with the format of every edge; a cell for each layer."""
    first, last = f"{layers[0]}.residual.out", f"{layers[-1]}.residual.out"
    needed = ("image", "patch_embed.proj.out", "tokens.out", first, last, "class_token.out", "norm_f.out", "head.out")
    if any(name not in rows for name in needed):
        return ""
    y, height, edge = 66, 54, 84
    out: list[str] = []
    x = 0.0

    def wire(name: str, called: str) -> None:
        nonlocal x
        row = rows[name]
        label = text(x + 4, y - 22, escape(called), "port") + text(x + 4, y - 8, format_spans(row), "fmt")
        label += text(x + 4, y + 16, escape(shape_of(row)), "shape")
        out.append(link(row, label + text(x + 4, y + 30, groups_span(row), "shape")))
        out.append(arrow([(x, y), (x + edge, y)]))
        x += edge

    def box(name: str, note: str, width: float) -> None:
        nonlocal x
        out.append(f'<rect class="box" x="{x:g}" y="{y - height / 2:g}" width="{width:g}" height="{height}" rx="6"/>')
        out.append(text(x + width / 2, y - 4, escape(name), "name", "middle"))
        out.append(text(x + width / 2, y + 13, escape(note), "note", "middle"))
        x += width

    def kind(name: str) -> str:
        return str(rows[name]["kind"])

    wire("image", "image")
    box("patch_embed", "convolution", 108)
    wire("patch_embed.proj.out", "patches")
    box("tokens", "+ class, position", 114)
    wire("tokens.out", "residual")
    strip, cell = 250.0, 250.0 / len(layers)
    out.append(f'<rect class="box" x="{x:g}" y="{y - 44}" width="{strip:g}" height="112" rx="6"/>')
    out.append(text(x + strip / 2, y - 26, f"{len(layers)} layers", "name", "middle"))
    noise = [rows[f"{layer}.residual.out"]["sqnr"] for layer in layers]
    for i, layer in enumerate(layers):
        left, wide = x + i * cell + 1.5, cell - 3
        number = layer.rpartition(".")[2]
        what = f"{layer}: residual stream"
        if noise[i] is not None:
            what += f" {noise[i]:.1f} dB above quantization noise"
        out.append(f'<a href="#layer" class="cell" data-layer="{escape(layer)}"><title>{escape(what)}</title>')
        out.append(f'<rect class="slot" x="{left:g}" y="{y - 16}" width="{wide:g}" height="62" rx="2"/>')
        if noise[i] is not None:
            tall = 40 * min(max(noise[i], 0), 40) / 40
            out.append(f'<rect class="bar" x="{left:g}" y="{y + 46 - tall:g}" width="{wide:g}" height="{tall:g}"/>')
        size = "tiny" if cell < 14 else "note"
        if cell >= 14 or i % 4 == 0:
            out.append(text(x + (i + 0.5) * cell, y - 3, escape(number), size, "middle"))
        out.append("</a>")
    note = "SQNR of the residual stream, 0 to 40 dB" if any(v is not None for v in noise) else "in sequence"
    out.append(text(x + strip / 2, y + 61, note, "tiny", "middle"))
    x += strip
    wire(last, "residual")
    box("class_token", "select", 92)
    wire("class_token.out", "one token")
    box("norm_f", kind("norm_f.out"), 76)
    wire("norm_f.out", "")
    box("head", kind("head.out"), 64)
    wire("head.out", "logits")
    title = f"{data['program']['name']}: from image to logits, {len(layers)} layers"
    return (
        f'<svg class="net" viewBox="-1 14 {x + 2:g} 124" role="group" aria-label="{escape(title)}" '
        f'style="min-width:{x:g}px">{"".join(out)}</svg>'
    )


# One layer


def layer(prefix: str, rows: dict[str, dict[str, Any]], operators: dict[str, dict[str, Any]]) -> str:
    """One layer in full: every operator and every edge with its format.  Empty if it is not that of SPEC section 4."""
    if any(f"{prefix}.{box.name}" not in operators for box in BOXES):
        return ""
    if len([name for name in operators if name.startswith(prefix + ".")]) != len(BOXES):
        return ""
    if any(edge.tensor != "x" and f"{prefix}.{edge.tensor}" not in rows for edge in EDGES):
        return ""
    reads = operators[f"{prefix}.norm"]["inputs"]["x"]
    out = [draw_edge(edge, rows[reads if edge.tensor == "x" else f"{prefix}.{edge.tensor}"]) for edge in EDGES]
    out += [draw_box(box, prefix, rows, operators[f"{prefix}.{box.name}"]) for box in BOXES]
    title = f"Operators of {prefix} with the format of every edge; the same as a table below"
    return (
        f'<svg class="layer" viewBox="0 0 {WIDTH} {HEIGHT}" role="group" aria-label="{escape(title)}" '
        f'style="min-width:{WIDTH}px">{"".join(out)}</svg>'
    )


def draw_edge(edge: Edge, row: dict[str, Any]) -> str:
    x, y = edge.label
    name = f'<tspan class="port">{escape(edge.port)}</tspan> '
    label = text(x, y, name + format_spans(row), "fmt", edge.anchor)
    shape = escape(shape_of(row))
    if row["groups"] and not edge.stacked:
        shape += f" &#160;{groups_span(row)}"
    label += text(x, y + 14, shape, "shape", edge.anchor)
    if row["groups"] and edge.stacked:
        label += text(x, y + 28, groups_span(row), "shape", edge.anchor)
    return arrow(edge.points) + link(row, label)


def bits_text(row: dict[str, Any]) -> str:
    """s32: proven 24, used 20."""
    proven = "?" if row["proven"] is None else str(row["proven"])
    if row["enough"] is not None and row["enough"] != row["proven"]:
        proven += f" ({row['enough']})"
    used = "" if row["used"] is None else f", used {row['used']}"
    return f"{width_of(row)}: proven {proven}{used}"


def draw_box(box: Box, prefix: str, rows: dict[str, dict[str, Any]], op: dict[str, Any]) -> str:
    name = f"{prefix}.{box.name}"
    out = [f'<rect class="box {box.lane}" x="{box.x}" y="{box.y}" width="{box.w}" height="{box.h}" rx="6"/>']
    note = describe(op, rows)
    out.append(text(box.x + 12, box.y + 20, escape(box.name.removeprefix("mixer.")), "name"))
    out.append(text(box.x + box.w - 12, box.y + 20, escape(op["kind"]), "note", "end"))
    out.append(text(box.x + 12, box.y + 36, escape(note), "note"))
    y = box.y + 52
    for port in INSIDE:
        row = rows.get(f"{name}.{port}")
        if row is None:
            continue
        label = f'<tspan class="port">{port}</tspan> {escape(bits_text(row))}'
        out.append(link(row, text(box.x + 12, y, label, "fmt")))
        y += 15
    return "".join(out)


def describe(op: dict[str, Any], rows: dict[str, dict[str, Any]]) -> str:
    """What an operator computes, in a few words."""
    source = [rows[name] for name in op["inputs"].values()]
    width = source[0]["shape"][-1]
    acc = rows.get(f"{op['name']}.acc")
    if op["kind"] == "linear" and acc is not None:
        return f"{width} → {acc['shape'][-1]}, weights s{op['weight_bits']}"
    if op["kind"] == "conv1d" and acc is not None:
        taps = op["multiplications"] // max(1, math.prod(acc["shape"]))
        return f"causal, depthwise, {taps} taps, weights s{op['weight_bits']}"
    if op["kind"] == "scan":
        states = rows[f"{op['name']}.h"]["shape"][-1]
        return f"h = ā h + b, y = h·C + D u; {states} states"
    return {
        "rmsnorm": "q / root mean square × γ",
        "rom": "256 entries for each group",
        "gate": "(y + y_b reversed) × silu(z) / 2",
        "add": "saturating",
    }.get(op["kind"], "")


# The ablation


def dots(rows: list[dict[str, Any]]) -> str:
    """Top-1 and agreement of each row of an ablation on one axis, in percent."""
    values = [row[key] for row in rows for key in ("top1", "agreement") if row[key] is not None]
    low = math.floor(min(values))
    high = min(100, math.ceil(max(values))) if max(values) <= 100 else math.ceil(max(values))
    low = min(low, high - 1)
    left, right, step = 250, 34, 30
    wide, tall = 720, 34 + step * len(rows)

    def at(value: float) -> float:
        return left + (wide - left - right) * (value - low) / (high - low)

    out: list[str] = []
    every = next(s for s in (1, 2, 5, 10, 20, 50, 100) if (high - low) / s <= 10)
    for tick in range(low, high + 1):
        if tick % every:
            continue
        out.append(path([(at(tick), 8), (at(tick), tall - 22)], "grid"))
        out.append(text(at(tick), tall - 6, f"{tick} %", "tick", "middle"))
    for i, row in enumerate(rows):
        y = 22 + i * step
        out.append(text(left - 16, y + 4, escape(str(row["name"])), "label", "end"))
        ends = [at(row[key]) for key in ("top1", "agreement") if row[key] is not None]
        if len(ends) == 2:
            out.append(path([(ends[0], y), (ends[1], y)], "rod"))
        for key in ("agreement", "top1"):
            if row[key] is not None:
                out.append(f'<circle class="{key}" cx="{at(row[key]):.1f}" cy="{y}" r="5"/>')
    return (
        f'<svg class="dots" viewBox="0 0 {wide} {tall}" role="img" style="min-width:{wide - 80}px" '
        f'aria-label="Top-1 and agreement of each configuration, as in the table">{"".join(out)}</svg>'
    )
