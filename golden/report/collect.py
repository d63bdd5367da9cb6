"""Everything that a report shows, as plain data: what a Program is, what is proven of it, and what images do in it.

The images are run once.  Each operator's integers are counted as soon as they are made (histograms, saturation, bits
used) and dropped; a float checkpoint runs beside it, a layer at a time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from golden.report.speed import BATCH, machine, multiplications, network_seconds, seconds
from golden.report.statistics import Histogram, Noise
from intsim.arithmetic import Int64
from intsim.program import Array, Operator, Program, Tensor
from intsim.widths import Report, analyse, batch_size, measure

if TYPE_CHECKING:
    from bitexact.inference import FloatModel
    from golden.images import Image, ImageSet

Tick = Callable[[str, int, int | None], None]

PICTURES = 64  # images that are shown
LAYER = re.compile(r"layers\.(\d+)\.")


def collect(
    program: Program,
    images: ImageSet | None,
    model: FloatModel | None,
    *,
    no_float: str = "",
    ablation: dict[str, Any] | None = None,
    threads: int | None = None,
    tick: Tick = lambda text, done, total: None,
) -> tuple[dict[str, Any], list[Array]]:
    """The data of a report (FORMAT.md section 8) and the pixels of its first images, uint8 [H, W, C].

    model: a float checkpoint of the same network, or None and the reason in `no_float`.
    """
    report = analyse(program, None, threads=threads, tick=tick)
    run = None
    if images is not None and len(images):
        run = _Run(program, images, model, threads, tick)
        report.usage = run.usage
        report.images = len(run.found)
    rows = {row["name"]: row for row in report.rows()}
    height, width, channels = program.image
    data: dict[str, Any] = {
        "program": {"name": program.name, "profile": program.profile, "sha256": program.digest},
        "rounding": program.rounding,
        "image": {"height": height, "width": width, "channels": channels},
        "classes": list(program.classes),
        "provenance": program.provenance,
        "bytes": sum(array.nbytes for array in program.arrays.values()),
        "float": {"used": model is not None and run is not None, "reason": no_float},
        "images": None if run is None else run.summary(),
        "tensors": [tensor_row(program, t, rows.get(t.name), run) for t in program.tensors.values()],
        "registers": report.summary(),
        "accumulators": accumulators(report),
        "operators": [operator_row(program, op, run) for op in program.operators],
        "timing": None if run is None else run.timing,
        "ablation": ablation,
    }
    return data, [] if run is None else run.pictures


def accumulators(report: Report) -> dict[str, int]:
    """How many accumulators have a witness, and how many of those reach both ends of their interval."""
    seen = report.witnesses.values()
    return {"witnesses": len(seen), "exact": sum(w.exact for w in seen)}


class _Run:
    """One pass of the images through the Program, and through the float model if there is one."""

    def __init__(
        self, program: Program, images: ImageSet, model: FloatModel | None, threads: int | None, tick: Tick
    ) -> None:
        self.program, self.model, self.threads = program, model, threads
        self.source = Path(images.path).name
        self.histograms = {name: Histogram() for name in program.tensors}
        fused = fused_tensors(program)
        self.noise = {name: Noise(name in fused) for name in program.tensors}
        self.compared: set[str] = set()
        self.seconds: dict[str, float] = {}
        self.found: list[dict[str, Any]] = []
        self.pictures: list[Array] = []
        self.batch: list[Image] = []
        self.stage: int | None = None
        self.stages: Iterator[dict[str, Array]] = iter(())
        self.values: dict[str, Array] = {}
        self.depth = sum(op.kind == "scan" for op in program.operators) // 2
        self.timing: dict[str, Any] = {}
        total = len(images)
        tick("images", 0, total)
        self.usage = measure(
            program,
            self._batches(images, batch_size(program)),
            threads,
            lambda done: tick("images", done, total),
            self._watch,
        )

    def _batches(self, images: ImageSet, size: int) -> Iterator[Array]:
        for batch in images.batches(size):
            pixels = np.stack([image.pixels for image in batch])
            if not self.timing:
                self.timing = {
                    "batch": BATCH,
                    "machine": machine(self.threads),
                    "network_seconds": network_seconds(self.program, pixels[:BATCH], self.threads),
                }
            self.batch = batch
            self.pictures += list(pixels[: max(0, PICTURES - len(self.pictures))])
            self.histograms["image"].add(pixels)
            if self.model is not None:
                from bitexact.stages import stages

                self.stage, self.stages = None, stages(self.model, pixels, self.threads)
            yield pixels

    def _watch(self, op: Operator, x: Mapping[str, Array], out: Mapping[str, Array]) -> None:
        if op.name not in self.seconds:
            self.seconds[op.name] = seconds(self.program, op, x, self.threads)
        for port, array in out.items():
            self.histograms[op.tensor(port)].add(array)
        if self.model is not None:
            self._advance(op)
            for port, array in out.items():
                reference = self._reference(op, port)
                if reference is not None:
                    name = op.tensor(port)
                    self.compared.add(name)
                    self.noise[name].add(array, self.program.exponent_grid(name), reference)
        if op is self.program.operators[-1]:
            self._predictions(out[op.outputs[-1]].reshape(len(self.batch), -1))

    def _advance(self, op: Operator) -> None:
        """Runs the float model's next stage when the Program enters it."""
        found = LAYER.match(op.name)
        stage = int(found[1]) + 1 if found else 0 if self.stage in (None, 0) else self.depth + 1
        if stage != self.stage:
            self.values, self.stage = next(self.stages), stage

    def _reference(self, op: Operator, port: str) -> Array | None:
        """Float values [n, *shape] of an output: of an accumulator, those of what is requantized from it."""
        if op.tensor(port) in self.values:
            return self.values[op.tensor(port)]
        if port == "y_acc":
            return self.values.get(op.tensor("y"))
        if port != "acc" or op.kind == "scan":
            return None
        parts = [op.tensor(other) for other in op.outputs if other != "acc"]
        if any(self.noise[part].fitted or part not in self.values for part in parts):
            return None
        return np.concatenate([self.values[part] for part in parts], axis=-1)

    def _predictions(self, logits: Array) -> None:
        reference = self.values.get(self.program.logits)
        for i, image in enumerate(self.batch):
            row: dict[str, Any] = {
                "name": image.name,
                "label": image.label,
                "class": int(logits[i].argmax()),
                "logits": [int(v) for v in logits[i]],
                "float_class": None if reference is None else int(reference[i].argmax()),
            }
            self.found.append(row)

    def summary(self) -> dict[str, Any]:
        """What the images got: {source, count, labelled, correct, float_correct, agree, found}."""
        labelled = [row for row in self.found if row["label"] is not None]
        compared = self.model is not None
        return {
            "source": self.source,
            "count": len(self.found),
            "labelled": len(labelled),
            "correct": sum(row["class"] == row["label"] for row in labelled),
            "float_correct": sum(row["float_class"] == row["label"] for row in labelled) if compared else None,
            "agree": sum(row["class"] == row["float_class"] for row in self.found) if compared else None,
            "found": self.found,
        }


def fused_tensors(program: Program) -> set[str]:
    """B, C and h of every scan: what carries a factor for each state that is fused into weights (r_D)."""
    scans = [op for op in program.operators if op.kind == "scan"]
    return {name for op in scans for name in (op.inputs["B"], op.inputs["C"], op.tensor("h"))}


def tensor_row(program: Program, t: Tensor, register: dict[str, Any] | None, run: _Run | None) -> dict[str, Any]:
    """Declaration, proof and statistics of one tensor."""
    groups, offsets = [], []
    for term in t.terms:
        if term.shifts is not None:
            counts = np.bincount(program.arrays[term.index or ""].reshape(-1), minlength=len(term.shifts))
            groups.append({"axis": term.axis, "shifts": list(term.shifts), "positions": [int(c) for c in counts]})
        else:
            values: Int64 = program.term_values(term)
            offsets.append({"axis": term.axis, "low": int(values.min()), "high": int(values.max())})
    op = program.producer(t.name)
    row: dict[str, Any] = {
        "name": t.name,
        "operator": None if op is None else op.name,
        "kind": None if op is None else op.kind,
        "role": t.role,
        "axes": list(t.axes),
        "shape": list(t.shape),
        "bits": t.bits,
        "signed": t.signed,
        "exponent": t.exponent,
        "groups": groups,
        "offsets": offsets,
        "proven": None if register is None else register["proven"],
        "enough": None if register is None else register.get("enough"),
        "proven_low": None if register is None else register["low"],
        "proven_high": None if register is None else register["high"],
        "used": None if register is None else register["used"],
        "saturated": None if register is None else register["saturated"],
        "low": None,
        "high": None,
        "elements": None,
        "zeros": None,
        "sqnr": None,
        "fitted": False,
        "histogram": None,
    }
    if run is not None:
        seen = run.histograms[t.name]
        row.update(low=seen.low, high=seen.high, elements=int(seen.counts.sum()), zeros=seen.zeros)
        row["histogram"] = {"shift": seen.shift, "first": seen.first, "counts": seen.counts.tolist()}
        if t.name in run.compared:
            found = run.noise[t.name]
            row.update(sqnr=None if found.decibels is None else round(found.decibels, 2), fitted=found.fitted)
    return row


def operator_row(program: Program, op: Operator, run: _Run | None) -> dict[str, Any]:
    return {
        "name": op.name,
        "kind": op.kind,
        "inputs": dict(op.inputs),
        "integers": sum(program.arrays[name].size for role, name in op.constants.items() if role != "exp2_rom"),
        "weight_bits": program.constants[op.constants["weight"]].bits if "weight" in op.constants else None,
        "multiplications": multiplications(program, op),
        "seconds": None if run is None else run.seconds[op.name],
    }


def kinds(data: dict[str, Any]) -> list[dict[str, Any]]:
    """Operators of one kind together, the slowest first: {kind, count, integers, multiplications, seconds}."""
    rows: dict[str, dict[str, Any]] = {}
    for op in data["operators"]:
        row = rows.setdefault(
            op["kind"], {"kind": op["kind"], "count": 0, "integers": 0, "multiplications": 0, "seconds": 0.0}
        )
        row["count"] += 1
        for key in ("integers", "multiplications", "seconds"):
            row[key] += op[key] or 0
    return sorted(rows.values(), key=lambda row: (-row["seconds"], -row["multiplications"]))


def place(name: str) -> str:
    """A name without its layer: what all layers have."""
    return LAYER.sub("", name)


def slowest(data: dict[str, Any]) -> list[dict[str, Any]]:
    """Operators of one place in all layers together, the slowest first: {name, kind, count, seconds, most, worst}."""
    rows: dict[str, dict[str, Any]] = {}
    for op in data["operators"]:
        row = rows.setdefault(
            place(op["name"]),
            {"name": place(op["name"]), "kind": op["kind"], "count": 0, "seconds": 0.0, "most": -1.0, "worst": ""},
        )
        row["count"] += 1
        row["seconds"] += op["seconds"] or 0.0
        if (op["seconds"] or 0.0) > row["most"]:
            row.update(most=op["seconds"] or 0.0, worst=op["name"])
    return sorted(rows.values(), key=lambda row: -row["seconds"])


def losses(data: dict[str, Any]) -> list[dict[str, Any]]:
    """What each requantization costs, those of all layers together, the dearest first.

    {name, count, before, after, loss, worst}: mean SQNR of the accumulator and of what is made of it, the mean loss
    in dB, and the tensor that loses most.
    """
    rows = {row["name"]: row for row in data["tensors"]}
    found: dict[str, list[tuple[float, float, str]]] = {}
    for row in data["tensors"]:
        source = rows.get(f"{row['operator']}.{'y_acc' if row['kind'] == 'scan' else 'acc'}")
        if row["role"] != "output" or source is None or None in (row["sqnr"], source["sqnr"]):
            continue
        found.setdefault(place(row["name"]), []).append((source["sqnr"], row["sqnr"], row["name"]))
    made = []
    for name, pairs in found.items():
        before = sum(pair[0] for pair in pairs) / len(pairs)
        after = sum(pair[1] for pair in pairs) / len(pairs)
        worst = max(pairs, key=lambda pair: pair[0] - pair[1])
        made.append(
            {
                "name": name,
                "count": len(pairs),
                "before": before,
                "after": after,
                "loss": before - after,
                "worst": worst[2],
                "worst_loss": worst[0] - worst[1],
            }
        )
    return sorted(made, key=lambda row: -row["loss"])
