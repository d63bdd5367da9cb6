"""Where the operators of a layer (SPEC section 4) stand in its drawing, and how its edges run.

Three lanes: the forward branch, the path of z with what both branches share, and the backward branch, a mirror image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

WIDTH = 1210
FORWARD, MIDDLE, BACKWARD = 258, 580, 902  # centres of the lanes
BOX = 252
SKIP = 1180  # where the residual stream passes the layer by

Point = tuple[float, float]


@dataclass(frozen=True)
class Box:
    """An operator.  name: without the layer's prefix; x, y: top left corner; lane: its class in the style sheet."""

    name: str
    x: int
    y: int
    w: int
    h: int
    lane: str

    @property
    def middle(self) -> float:
        return self.x + self.w / 2

    @property
    def bottom(self) -> int:
        return self.y + self.h


@dataclass(frozen=True)
class Edge:
    """A tensor (without prefix; "x" is the layer's input) along `points`, with its label at `label`."""

    tensor: str
    port: str
    points: Sequence[Point]
    label: Point
    anchor: str = "start"
    stacked: bool = False  # the groups on a line of their own


def _boxes() -> list[Box]:
    half = BOX // 2
    shared = [
        ("norm", 66, 62),
        ("mixer.in_proj", 186, 62),
        ("mixer.silu_z", 308, 46),
        ("mixer.gate", 1050, 62),
        ("mixer.out_proj", 1170, 62),
        ("residual", 1290, 46),
    ]
    made = [Box(name, MIDDLE - half, y, BOX, h, "shared") for name, y, h in shared]
    branch = [
        ("conv1d", 308, 62),
        ("silu", 428, 46),
        ("x_proj", 532, 62),
        ("dt_proj", 652, 62),
        ("softplus", 772, 46),
        ("scan", 872, 142),
    ]
    for centre, suffix, lane in ((FORWARD, "", "forward"), (BACKWARD, "_b", "backward")):
        made += [Box(f"mixer.{name}{suffix}", centre - half, y, BOX, h, lane) for name, y, h in branch]
    return made


BOXES = _boxes()
HEIGHT = 1398
_AT = {box.name: box for box in BOXES}


def _down(above: str, below: str, tensor: str, port: str) -> Edge:
    a, b = _AT[above], _AT[below]
    middle = (a.bottom + b.y) / 2
    return Edge(tensor, port, [(a.middle, a.bottom), (b.middle, b.y)], (a.middle + 9, middle - 3))


def _branch(suffix: str) -> list[Edge]:
    """Edges of one direction; the backward one mirrors the forward one about the middle."""
    sign, anchor, outer = (1, "start", "end") if not suffix else (-1, "end", "start")
    conv, silu, x_proj, dt_proj, softplus, scan = (
        _AT[f"mixer.{name}{suffix}"] for name in ("conv1d", "silu", "x_proj", "dt_proj", "softplus", "scan")
    )
    in_proj, gate = _AT["mixer.in_proj"], _AT["mixer.gate"]
    centre, half = conv.middle, sign * BOX / 2
    inner = centre + half
    y = in_proj.y + in_proj.h / 2
    made = [
        Edge(
            "mixer.in_proj.x", "x", [(in_proj.middle - half, y), (centre, y), (centre, conv.y)],
            (centre + sign * 9, y + 20), anchor,
        )
    ]  # fmt: skip
    for above, below, port in (
        ("conv1d", "silu", "out"), ("silu", "x_proj", "out"), ("x_proj", "dt_proj", "dt"),
        ("dt_proj", "softplus", "out"), ("softplus", "scan", "out"),
    ):  # fmt: skip
        called = {"softplus": "delta", "silu": "u"}.get(above, port)
        made.append(_down(f"mixer.{above}{suffix}", f"mixer.{below}{suffix}", f"mixer.{above}{suffix}.{port}", called))
    bypass = centre - half - sign * 28
    y0, y1 = silu.y + silu.h / 2, scan.y + 44
    made.append(
        Edge(
            f"mixer.silu{suffix}.out", "u", [(centre - half, y0), (bypass, y0), (bypass, y1), (centre - half, y1)],
            (bypass - sign * 8, 690), outer, stacked=True,
        )
    )  # fmt: skip
    for port, far, leave, reach, at in (("B", 20, 40, 36, 664), ("C", 36, 22, 56, 716)):
        x = inner + sign * far
        points: list[Point] = [
            (inner, x_proj.y + leave),
            (x, x_proj.y + leave),
            (x, scan.y + reach),
            (inner, scan.y + reach),
        ]
        made.append(Edge(f"mixer.x_proj{suffix}.{port}", port, points, (inner + sign * 46, at), anchor))
    y = gate.y + gate.h / 2
    port = "y" if not suffix else "y_b"
    way: list[Point] = [(centre, scan.bottom), (centre, y), (gate.middle - half, y)]
    made.append(Edge(f"mixer.scan{suffix}.y", port, way, (centre + sign * 12, y - 24), anchor))
    return made


def _edges() -> list[Edge]:
    residual, norm = _AT["residual"], _AT["norm"]
    y = residual.y + residual.h / 2
    made = [
        Edge("x", "residual", [(MIDDLE, 8), (MIDDLE, norm.y)], (MIDDLE + 9, 24)),
        Edge("x", "residual", [(MIDDLE, 46), (SKIP, 46), (SKIP, y), (residual.x + BOX, y)], (SKIP - 8, 66), "end"),
        _down("norm", "mixer.in_proj", "norm.out", "out"),
        _down("mixer.in_proj", "mixer.silu_z", "mixer.in_proj.z", "z"),
        *_branch(""),
        *_branch("_b"),
        Edge("mixer.silu_z.out", "g", [(MIDDLE, 354), (MIDDLE, _AT["mixer.gate"].y)], (MIDDLE + 9, 380)),
        _down("mixer.gate", "mixer.out_proj", "mixer.gate.out", "out"),
        _down("mixer.out_proj", "residual", "mixer.out_proj.out", "out"),
        Edge("residual.out", "residual", [(MIDDLE, residual.bottom), (MIDDLE, HEIGHT - 8)], (MIDDLE + 9, 1360)),
    ]
    return made


EDGES = _edges()
