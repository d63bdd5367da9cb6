"""The page: one HTML file with its style, script, drawings and pictures inside, and nothing from a network."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import re
from pathlib import Path
from typing import Any

from golden.extras import need
from golden.report import figures
from golden.report.collect import kinds, losses, slowest
from intsim import SPEC_VERSION, __version__
from intsim.program import Array

HERE = Path(__file__).parent
THUMBNAIL = 128  # pixels of a picture's longer side, at most
CLASSES = 10  # logits of a picture that are drawn
SLOWEST = 15
SCALE = 48  # bits of the longest bar: the widest register a Program may declare
PREFIX = re.compile(r"layers\.\d+")
SHOWN = ("accumulator", "state", "internal", "output")  # of the registers, until others are asked for


def render(data: dict[str, Any], pictures: list[Array], command: str) -> bytes:
    """The page of `collect`'s data.  Raises UserError where jinja2 is not installed."""
    need("jinja2", "a page")
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters.update(count=count, percent=percent, span=span, milli=milli, decibels=decibels)
    rows = {row["name"]: row for row in data["tensors"]}
    operators = {op["name"]: op for op in data["operators"]}
    layers = list(dict.fromkeys(found[0] for name in operators if (found := PREFIX.match(name))))
    script = (HERE / "page.js").read_text(encoding="utf-8")
    drawn = {name: Markup(figures.layer(name, rows, operators)) for name in layers}
    html = environment.get_template("page.html.jinja").render(
        data=data,
        version=__version__,
        spec=SPEC_VERSION,
        command=command,
        style=Markup((HERE / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        policy=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        embedded=Markup(script_json(details(data))),
        facts=facts(data),
        outline=Markup(figures.outline(data, rows, layers) if layers else ""),
        layers=[name for name in layers if drawn[name]],
        drawn=drawn,
        edges={name: edges(name, rows, operators) for name in layers},
        tensors=[tensor_view(row) for row in data["tensors"]],
        sparks={name: Markup(figures.sparkline(row)) for name, row in rows.items()},
        heat=heat(layers, rows),
        registers=[register_view(row) for row in data["registers"]],
        scale=SCALE,
        cards=cards(data, rows, pictures),
        kinds=kinds(data),
        slowest=slowest(data)[:SLOWEST],
        losses=losses(data),
        dots=Markup(figures.dots(data["ablation"]["rows"])) if data["ablation"] else "",
        provenance=provenance(data["provenance"]),
    )
    return html.encode()


# Text


def count(value: float | None) -> str:
    return "" if value is None else f"{value:,}".replace("-", "−")


def percent(part: float, whole: float) -> str:
    """Two decimals, or two significant digits of what is smaller; 0 only where it is 0."""
    if not whole:
        return "–"
    value = 100 * part / whole
    if value == 0 or value >= 0.01:
        return f"{value:.2f} %" if value else "0 %"
    return f"{value:.1g} %" if value >= 0.0001 else f"{value:.0e} %"


def span(low: int | None, high: int | None) -> str:
    if low is None or low == high:
        return count(low)
    return f"{count(low)} … {count(high)}"


def milli(value: float | None) -> str:
    return "" if value is None else f"{1000 * value:.3f}"


def decibels(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def script_json(value: Any) -> str:
    """JSON that may stand in a script element: nothing in it ends the element or starts a comment."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


# Parts


def facts(data: dict[str, Any]) -> list[dict[str, str]]:
    """The figures at the head of the page: {label, value, note}."""
    made = []
    found = data["images"]
    if found is not None and found["labelled"]:
        note = f"{found['correct']} of {found['labelled']} labelled images"
        if found["float_correct"] is not None:
            note += f"; float {percent(found['float_correct'], found['labelled'])}"
        made.append({"label": "Top-1", "value": percent(found["correct"], found["labelled"]), "note": note})
    if found is not None and found["agree"] is not None:
        value = percent(found["agree"], found["count"])
        note = f"{found['agree']} of {found['count']} images get the float model’s class"
        made.append({"label": "Agreement with float", "value": value, "note": note})
    logits = data["tensors"][-1]
    if logits["sqnr"] is not None:
        note = "signal to quantization noise of the logits"
        made.append({"label": "Logits", "value": f"{logits['sqnr']:.1f} dB", "note": note})
    lossy = [row for row in data["tensors"] if row["saturated"] is not None and row["elements"]]
    if lossy:
        worst = max(lossy, key=lambda row: row["saturated"] / row["elements"])
        value = percent(worst["saturated"], worst["elements"])
        made.append({"label": "Most saturated tensor", "value": value, "note": worst["name"]})
    seen = data["accumulators"]
    note = "accumulators driven to both ends of their proven interval; none can overflow"
    made.append({"label": "Width proof", "value": f"{seen['exact']} of {seen['witnesses']}", "note": note})
    integers = sum(op["integers"] for op in data["operators"])
    note = f"integers stored, {data['bytes'] / 1e6:.2f} MB with ROMs and shifts"
    made.append({"label": "Size", "value": f"{integers / 1e6:.2f} M", "note": note})
    work = sum(op["multiplications"] for op in data["operators"])
    made.append({"label": "Work", "value": f"{work / 1e6:,.1f} M", "note": "multiplications for one image"})
    if data["timing"]:
        value = f"{1000 * data['timing']['network_seconds']:.2f} ms"
        note = f"an image in a batch of {data['timing']['batch']}, {data['timing']['machine']}"
        made.append({"label": "Simulator", "value": value, "note": note})
    return made


def details(data: dict[str, Any]) -> dict[str, Any]:
    """What the script draws a tensor's histogram from: names of fields, and their values for each tensor."""
    keys = (
        "name", "role", "kind", "axes", "shape", "bits", "signed", "exponent", "groups", "offsets", "proven", "enough",
        "proven_low", "proven_high", "used", "saturated", "low", "high", "elements", "zeros", "sqnr", "fitted",
        "histogram",
    )  # fmt: skip
    return {"keys": keys, "tensors": [[row[key] for key in keys] for row in data["tensors"]]}


def tensor_view(row: dict[str, Any]) -> dict[str, Any]:
    """A tensor's row with its scale as text."""
    shifts = [shift for group in row["groups"] for shift in (0, max(group["shifts"]))]
    layer = PREFIX.match(row["name"])
    return {
        **row,
        "width": figures.width_of(row),
        "shape_text": figures.shape_of(row),
        "group_text": figures.groups_of(row),
        "offset_text": ", ".join(f"{o['axis']} {span(o['low'], o['high'])}" for o in row["offsets"]),
        "top_exponent": None if row["exponent"] is None else row["exponent"] + max(shifts, default=0),
        "layer": layer[0] if layer else "",
    }


def edges(prefix: str, rows: dict[str, Any], operators: dict[str, Any]) -> list[dict[str, str]]:
    """The edges of a layer as text, for those who do not see the drawing: {source, target, port, format, shape}."""
    made = []
    for name, op in operators.items():
        if name.startswith(prefix + "."):
            for port, tensor in op["inputs"].items():
                row = rows[tensor]
                made.append(
                    {
                        "tensor": tensor,
                        "target": name,
                        "port": port,
                        "format": figures.plain_format(row),
                        "shape": figures.shape_of(row),
                    }
                )
    return made


def heat(layers: list[str], rows: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
    """Tensors by layers: {metrics, rows: [{name, cells: [{metric: [text, strength 0..1]}]}]}; None without layers."""
    if not layers:
        return None
    metrics: dict[str, str] = {}
    if any(row["sqnr"] is not None for row in rows.values()):
        metrics["sqnr"] = "SQNR, dB"
    if any(row["saturated"] is not None for row in rows.values()):
        metrics["saturated"] = "saturated, per million"
    if any(row["used"] is not None for row in rows.values()):
        metrics["used"] = "bits used"
    metrics["proven"] = "bits proven"
    metrics["exponent"] = "exponent"
    names = [
        name.removeprefix(layers[0] + ".")
        for name, row in rows.items()
        if name.startswith(layers[0] + ".") and row["role"] in ("output", "state")
    ]
    exponents = [row["exponent"] for row in rows.values() if row["exponent"] is not None]
    low, high = min(exponents), max(exponents)

    def cell(row: dict[str, Any] | None, metric: str) -> list[Any]:
        value = None if row is None else row[metric]
        if row is None or value is None:
            return ["", 0]
        if metric == "sqnr":
            return [f"{value:.0f}", _clamp((40 - value) / 32)]
        if metric == "saturated":
            share = 1e6 * value / row["elements"]
            shown = "0" if not value else f"{share:,.0f}" if share >= 1 else "<1"
            return [shown, _clamp(math.log10(1 + share) / 5)]
        if metric == "exponent":
            return [str(value).replace("-", "−"), _clamp((value - low) / max(1, high - low)) * 0.6]
        return [str(value), _clamp(value / row["bits"]) ** 2 * 0.6]

    table = []
    for name in names:
        found = [rows.get(f"{layer}.{name}") for layer in layers]
        cells = [{metric: cell(row, metric) for metric in metrics} for row in found]
        links = [f"{layer}.{name}" for layer in layers]
        table.append({"name": name, "cells": list(zip(links, cells, strict=True))})
    return {"metrics": metrics, "rows": table, "layers": [layer.rpartition(".")[2] for layer in layers]}


def _clamp(value: float) -> float:
    return round(min(1.0, max(0.0, value)), 3)


def register_view(row: dict[str, Any]) -> dict[str, Any]:
    spare = f"{row['declared'] - row['proven']}"
    if row["enough"] and row["enough"] != row["proven"]:
        spare += f" ({row['declared'] - row['enough']})"
    return {**row, "shown": row["kind"] in SHOWN, "spare": spare}


def cards(data: dict[str, Any], rows: dict[str, dict[str, Any]], pictures: list[Array]) -> list[dict[str, Any]]:
    """The images that are shown: name, picture, classes by name, and their logits as real values and bars."""
    if data["images"] is None:
        return []
    names = data["classes"]
    exponent = rows[data["tensors"][-1]["name"]]["exponent"] or 0
    made = []
    for found, pixels in zip(data["images"]["found"], pictures, strict=False):
        logits = found["logits"]
        order = sorted(range(len(logits)), key=lambda c: (-logits[c], c))[:CLASSES]
        if len(logits) <= CLASSES:
            order.sort()
        top = max(1, *(abs(logits[c]) for c in order))
        label, real = found["label"], found["float_class"]
        made.append(
            {
                "name": found["name"],
                "picture": picture(pixels),
                "label": None if label is None else names[label],
                "class": names[found["class"]],
                "float": None if real is None else names[real],
                "wrong": label is not None and label != found["class"],
                "differs": real is not None and real != found["class"],
                "bars": [
                    {
                        "class": names[c],
                        "value": f"{math.ldexp(logits[c], exponent):.2f}".replace("-", "−"),
                        "integer": count(logits[c]),
                        "left": round(50 + 50 * min(0, logits[c]) / top, 2),
                        "width": round(50 * abs(logits[c]) / top, 2),
                        "best": c == found["class"],
                    }
                    for c in order
                ],
            }
        )
    return made


def picture(pixels: Array) -> str:
    """A data address of an image, made smaller for the page if it is large."""
    import PIL.Image

    image = PIL.Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels[..., :3])
    stream = io.BytesIO()
    if max(image.size) > THUMBNAIL:
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        image.save(stream, "JPEG", quality=85)
        kind = "jpeg"
    else:
        image.save(stream, "PNG", optimize=True)
        kind = "png"
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"


def provenance(fields: dict[str, Any]) -> list[tuple[str, str]]:
    return [(key, value if isinstance(value, str) else json.dumps(value)) for key, value in fields.items()]
