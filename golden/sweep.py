"""Sweeps: one width (or setting of the calibration) at many values, each run on all of the data.

    sweep = Sweep(points, images, sample, folder, source)
    found = sweep.run(make)                        # what sweep.json holds; make(point) gives a Program

The result of each value is a file of its own, written when it is whole, keyed by a digest of everything that it
follows from and sealed by a digest of itself: a rerun into the same folder does what is left, and refuses a folder of
another sweep and a result that was changed.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from golden import manifest
from golden.classify import Classifies, join
from golden.images import ImageSet
from golden.safe import read_json
from intsim.errors import UserError
from intsim.files import write_atomically
from intsim.program import Program
from intsim.program_file import program_bytes
from intsim.widths import batch_size, measure

if TYPE_CHECKING:
    from golden.cluster import Cluster

CLASSES = {"accumulator-bits": "accumulators", "state-bits": "states", "a-bar-bits": "a-bar"}  # of intsim.whatif
SETTINGS = {"activation-bits": "activation_bits", "k": "k", "rounding": "rounding"}  # of bitexact.quantize
SATURATION_IMAGES = 16  # on which saturations are counted: every tensor of them is looked at
NAME = re.compile(r"sweep\.(json|png)|(reference|[a-z-]+-[a-z0-9_]+(-wrap|-saturate)?)\.(json|safetensors)")

OWN = ("key", "content_sha256", "predictions")  # fields of a result that sweep.json leaves out
RESULT_BYTES, IMAGE_BYTES = 1 << 16, 16  # a result has no more: the first, and for each image the second

Progress = Callable[[int, int, str], None]  # images done, of how many, and what runs


@dataclass(frozen=True)
class Point:
    """One value of a sweep; `overflow` where accumulators are narrowed."""

    what: str
    value: int | str
    overflow: str | None = None

    @property
    def label(self) -> str:
        """Name of its files, without the ending."""
        return f"{self.what}-{self.value}" + (f"-{self.overflow}" if self.overflow else "")


REFERENCE = "reference"


class Sweep:
    """points: what is run, in order.  images: labelled; sample: those on which saturations are counted, too.

    cluster: whose workers run the images; the sample is run here.

    source: whatever the Programs follow from besides the points (hashes, settings), as JSON data; it goes into the
    key of each result.  `folder` is made if it is not there.  Raises UserError if it holds anything but files of this
    sweep.
    """

    def __init__(
        self,
        points: Sequence[Point],
        images: ImageSet,
        sample: ImageSet,
        folder: Path,
        source: Any,
        *,
        batch: int = 64,
        threads: int | None = None,
        cluster: Cluster | None = None,
    ):
        self.points, self.images, self.sample = list(points), images, sample
        self.folder, self.batch, self.threads = Path(folder), batch, threads
        self.cluster = cluster
        self.data = data_digest(images)
        self.source = source
        self.open_folder()
        self.done = {label: found for label in self.labels() if (found := self.read(label)) is not None}

    def labels(self) -> list[str]:
        return [REFERENCE, *(point.label for point in self.points)]

    def key(self, label: str) -> str:
        """SHA-256 of what a result follows from."""
        return hashlib.sha256(manifest.canonical([label, self.data, self.source])).hexdigest()

    def open_folder(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            others = [item.name for item in self.folder.iterdir() if not NAME.fullmatch(item.name)]
        except OSError as problem:
            raise UserError(f"{self.folder}: cannot be used: {problem.strerror}") from None
        others = [name for name in others if not (name.startswith(".") and name.endswith(".part"))]
        if others:
            raise UserError(f"{self.folder}: holds {min(others)}, which is no file of a sweep; name a new folder")

    def read(self, label: str) -> dict[str, Any] | None:
        """The result of an earlier run, None if there is none."""
        path = self.folder / f"{label}.json"
        if not os.path.lexists(path):
            return None
        found = read_json(path, RESULT_BYTES + IMAGE_BYTES * len(self.images))
        if not isinstance(found, dict) or found.get("key") != self.key(label):
            raise UserError(f"{path}: is of another model, data or options; name a new folder or remove it")
        if found.get("content_sha256") != content_digest(found):
            raise UserError(f"{path}: was changed or is damaged; remove it, and the next run makes it again")
        return found

    def run(
        self, make: Callable[[Point | None], Program], progress: Progress = lambda done, total, text: None
    ) -> dict[str, Any]:
        """Runs what is not done; `make` gives the Program of a point, and of None the one that all are compared with.

        Returns what `sweep.json` holds, which is written at the end.
        """
        total, done = len(self.images) * len(self.labels()), 0
        for point in [None, *self.points]:
            label = REFERENCE if point is None else point.label
            if label not in self.done:
                progress(done, total, label)
                at = done

                def count(n: int, at: int = at, label: str = label) -> None:
                    progress(at + n, total, label)

                found = {"key": self.key(label), **self.measure(make(point), count)}
                if point is not None:
                    found.update(what=point.what, value=point.value, overflow=point.overflow)
                found["content_sha256"] = content_digest(found)
                write_atomically(self.folder / f"{label}.json", manifest.render(found).encode())
                self.done[label] = found
            done += len(self.images)
            progress(done, total, label)
        result = self.result()
        write_atomically(self.folder / "sweep.json", manifest.render(result).encode())
        return result

    def measure(self, program: Program, count: Callable[[int], None]) -> dict[str, Any]:
        """Predictions on all images, overflows counted on all, saturations on the sample."""
        start = time.perf_counter()
        if self.cluster is None:
            classifier = Classifies("int", threads=self.threads).prepare(program)
            predictions: list[int] = []
            for pixels in self.images.stacks(self.batch):
                predictions += classifier.classes(pixels)
                count(len(predictions))
            overflows = classifier.overflows
        else:
            work = Classifies("int", threads=self.cluster.threads)
            predictions, overflows = join(self.cluster.run(program_bytes(program), work, self.images, count))
        correct = sum(p == label for p, label in zip(predictions, labels_of(self.images), strict=True))
        sizes = {name: int(np.prod(program.tensors[name].shape)) for name in program.narrowed}
        saturated, elements = saturations(program, self.sample.stacks(batch_size(program)), self.threads)
        return {
            "program": program.digest,
            "images": len(predictions),
            "correct": correct,
            "top1": 100 * correct / len(predictions),
            "overflows": sum(overflows.values()),
            "accumulated": len(predictions) * sum(sizes.values()),
            "saturations": saturated,
            "saturable": elements,
            "saturation_images": len(self.sample),
            "seconds": round(time.perf_counter() - start, 3),
            "predictions": predictions,
        }

    def result(self) -> dict[str, Any]:
        """All that was found, with the agreement with the reference, without the predictions."""
        reference = self.done[REFERENCE]
        rows = []
        for point in self.points:
            found = self.done[point.label]
            pairs = zip(found["predictions"], reference["predictions"], strict=True)
            agreement = 100 * sum(a == b for a, b in pairs) / len(reference["predictions"])
            row = {key: value for key, value in found.items() if key not in OWN}
            rows.append({**{k: row.pop(k) for k in ("what", "value", "overflow")}, **row, "agreement": agreement})
        kept = {key: value for key, value in reference.items() if key not in OWN}
        return {"what": self.points[0].what, "data": self.data, "reference": kept, "rows": rows}


def content_digest(found: dict[str, Any]) -> str:
    """SHA-256 of a result without the field that holds it."""
    return hashlib.sha256(manifest.canonical({k: v for k, v in found.items() if k != "content_sha256"})).hexdigest()


def labels_of(images: ImageSet) -> list[int]:
    assert images.labels is not None
    return [images.labels[pick] for pick in images.picks]


def saturations(program: Program, images: Iterator[Any], threads: int | None) -> tuple[int, int]:
    """(elements of outputs and states that saturation changed, elements of them) in runs on `images`."""
    usage = measure(program, images, threads)
    names = [name for name, tensor in program.tensors.items() if tensor.role in ("output", "state")]
    counted = [usage[name] for name in names if usage[name].saturated is not None]
    return sum(u.saturated or 0 for u in counted), sum(u.elements for u in counted)


def data_digest(images: ImageSet) -> str:
    """SHA-256 of the files of a set of images, of which are taken, how they are cut and how they are labelled."""
    digest = hashlib.sha256()
    for path in [images.files[pick] for pick in images.picks] if images.files else [Path(images.path)]:
        digest.update(file_digest(path).encode())
    taken = [list(images.picks), None if images.labels is None else labels_of(images), list(images.size)]
    digest.update(manifest.canonical([*taken, images.center_crop]))
    return digest.hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes.  UserError if it cannot be read."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while part := file.read(1 << 20):
                digest.update(part)
    except OSError as problem:
        raise UserError(f"{path}: cannot be read: {problem.strerror}") from None
    return digest.hexdigest()


# The plot


def plot(result: dict[str, Any], title: str) -> bytes:
    """The sweep as a PNG: top-1, agreement with the reference, and what overflows or saturates, against the value."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    rows, reference = result["rows"], result["reference"]
    figure = Figure(figsize=(7.5, 8.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(3, 1, sharex=True)
    values = list(dict.fromkeys(row["value"] for row in rows))
    named = any(isinstance(value, str) for value in values)
    kinds = list(dict.fromkeys(row["overflow"] for row in rows))
    largest = 0.0
    for kind in kinds:
        mine = [row for row in rows if row["overflow"] == kind]
        mine.sort(key=lambda row: values.index(row["value"]) if named else row["value"])
        at = [values.index(row["value"]) if named else row["value"] for row in mine]
        style = {"marker": "o", "label": kind or result["what"]}
        axes[0].plot(at, [row["top1"] for row in mine], **style)
        axes[1].plot(at, [row["agreement"] for row in mine], **style)
        wrong = ("saturations", "saturable") if kind is None else ("overflows", "accumulated")
        shares = [share(row[wrong[0]], row[wrong[1]]) for row in mine]
        largest = max(largest, *shares)
        axes[2].plot(at, shares, clip_on=False, **style)
    axes[0].axhline(reference["top1"], color="0.5", linestyle="--", label=f"reference, {reference['top1']:.2f} %")
    axes[0].set_ylabel("top-1, %")
    axes[1].set_ylabel("agrees with the reference, %")
    if kinds == [None]:
        axes[2].set_ylabel("saturated values, %")
    else:
        axes[2].set_ylabel("overflowed accumulators, %")
        axes[2].set_yscale("symlog", linthresh=1e-4)
    axes[2].set_ylim(0, 1.2 * largest or 1)
    axes[2].set_xlabel(result["what"])
    if named:
        axes[2].set_xticks(range(len(values)), values)
    else:
        axes[2].xaxis.set_major_locator(MaxNLocator(integer=True))
    for ax in axes:
        ax.grid(True, color="0.9")
    axes[0].legend()
    axes[0].set_title(title)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=120, metadata={"Software": None})
    return data.getvalue()


def share(part: int, total: int) -> float:
    """Per cent."""
    return 100 * part / total if total else 0.0

