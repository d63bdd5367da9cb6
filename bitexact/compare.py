"""The fake-quant path against the integer engine (or the oracle), tensor by tensor, integer by integer.

    report = compare(program, images, device="cuda", layers=["*"])
    report.mismatches, report.guilty, report.to_json()

Both sides run in batches; only the tensors of one batch, or a part of them, are held at a time, so memory depends
neither on the number of images nor on the number of tensors.  There is no tolerance.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from bitexact.fakequant import FakeQuant
from intsim.errors import UserError
from intsim.program import Array, Operator, Program
from intsim.taps import select

MEMORY = {"cpu": 1 << 30, "cuda": 4 << 30}  # bytes of the reference's tensors that are held at a time, by device
LARGEST_BATCH = 64

Progress = Callable[[int, int], None]


class Images(Protocol):
    """Images that are read as they are needed: golden.images.ImageSet."""

    def __len__(self) -> int: ...

    def stacks(self, size: int) -> Iterator[Array]:
        """uint8 [at most size, H, W, C], in order."""


class Runs(Protocol):
    """The integer side: the engine or the oracle."""

    def run(self, images: Array, taps: Iterable[str] = ()) -> dict[str, Array]:
        """images uint8 [n, H, W, C] -> tensor name -> integers [n, *shape]."""


@dataclass
class Mismatch:
    """One differing integer: image (counted from 0 over all images), index in the tensor, value on both sides."""

    image: int
    index: tuple[int, ...]
    reference: int
    candidate: int

    def to_json(self) -> dict[str, Any]:
        return {
            "image": self.image,
            "index": list(self.index),
            "reference": self.reference,
            "candidate": self.candidate,
        }


@dataclass
class TensorResult:
    """Comparison of one tensor over all images."""

    name: str
    operator: str | None
    shape: tuple[int, ...]
    elements: int = 0
    mismatches: int = 0
    first: Mismatch | None = None
    largest_difference: int = 0

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "operator": self.operator,
            "shape": list(self.shape),
            "elements": self.elements,
            "mismatches": self.mismatches,
            "first": self.first.to_json() if self.first else None,
            "largest_difference": self.largest_difference,
        }


@dataclass
class Guilty:
    """The first operator in execution order that differs although its inputs agree, and its first differing tensor."""

    operator: str
    kind: str
    tensor: str
    first: Mismatch

    def to_json(self) -> dict[str, Any]:
        return {"operator": self.operator, "kind": self.kind, "tensor": self.tensor, "first": self.first.to_json()}


@dataclass
class Report:
    """What `compare` found.

    guilty: None without a mismatch.  faulty: every operator that differs when it is fed the reference's inputs,
    in execution order (plain form only; the guilty one is the first of them).
    """

    program: Program
    images: int
    device: str
    fast: bool
    reference: str
    tensors: list[TensorResult] = field(default_factory=list)
    guilty: Guilty | None = None
    faulty: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @classmethod
    def empty(
        cls, program: Program, names: Iterable[str], images: int, device: str, fast: bool, reference: str
    ) -> Report:
        """Of no comparison yet, for the tensors `names`."""
        report = cls(program, images, device, fast, reference)
        for name in names:
            producer = program.producer(name)
            shape = program.tensors[name].shape
            report.tensors.append(TensorResult(name, producer.name if producer else None, shape))
        return report

    def first_image(self) -> int | None:
        """Number of the first image with a mismatch."""
        return min((t.first.image for t in self.tensors if t.first), default=None)

    def add(self, tensors: Sequence[TensorResult], guilty: Guilty | None, faulty: list[str]) -> None:
        """Adds what a comparison of other images found, numbered as these are.  The order of adding is of no account.

        tensors: of the same names.  guilty, faulty: of the first of its images with a mismatch.
        """
        before = self.first_image()
        for mine, other in zip(self.tensors, tensors, strict=True):
            mine.elements += other.elements
            mine.mismatches += other.mismatches
            mine.largest_difference = max(mine.largest_difference, other.largest_difference)
            if other.first and (mine.first is None or other.first.image < mine.first.image):
                mine.first = other.first
        if self.first_image() != before:
            self.guilty, self.faulty = guilty, faulty

    @property
    def elements(self) -> int:
        return sum(t.elements for t in self.tensors)

    @property
    def mismatches(self) -> int:
        return sum(t.mismatches for t in self.tensors)

    def to_json(self) -> dict[str, Any]:
        return {
            "program": self.program.digest,
            "name": self.program.name,
            "profile": self.program.profile,
            "rounding": self.program.rounding,
            "images": self.images,
            "device": self.device,
            "fast": self.fast,
            "reference": self.reference,
            "elements": self.elements,
            "mismatches": self.mismatches,
            "guilty": self.guilty.to_json() if self.guilty else None,
            "faulty": self.faulty,
            "seconds": round(self.seconds, 3),
            "tensors": [t.to_json() for t in self.tensors],
        }

    def sentence(self) -> str:
        """The result in one sentence."""
        images = "1 image" if self.images == 1 else f"{self.images} images"
        counted = f"{self.elements:,} integers of {len(self.tensors)} tensors, {images}"
        if not self.mismatches:
            return f"no mismatch in {counted}"
        text = f"{self.mismatches:,} mismatches in {counted}"
        if self.guilty:
            first = self.guilty.first
            at = ", ".join(map(str, first.index))
            text += (
                f"; first at operator {self.guilty.operator}: {self.guilty.tensor}[{at}] of image {first.image} is "
                f"{first.candidate}, {self.reference} has {first.reference}"
            )
        return text


def compare(
    program: Program,
    images: Array | Images,
    device: str | torch.device = "cpu",
    layers: Iterable[str] = ("*",),
    batch: int | None = None,
    fast: bool = False,
    reference: str | Runs = "engine",
    progress: Progress | None = None,
    *,
    candidate: FakeQuant | None = None,
    memory: int | None = None,
    first: int = 0,
) -> Report:
    """Runs both sides on `images` (uint8 [n, H, W, C], or read as needed) and compares the tensors of `layers`.

    batch: images at a time, at most; fewer where their tensors would not fit into `memory` bytes (None: 1 GiB, 4 GiB
    with CUDA).
    reference: "engine", "oracle", or anything with their `run`.  candidate: a FakeQuant made by the caller (then
    `device` and `fast` are its own).  progress(done, total) is called after each batch.  first: number of the first
    image, where they are some of many.
    Raises UserError for a glob that names nothing, images of a wrong shape, or an operator that cannot be exact.
    """
    started = time.perf_counter()
    names = select(program, layers)
    fake = candidate or FakeQuant(program, device, fast)
    other = open_reference(program, reference)
    label = reference if isinstance(reference, str) else type(reference).__name__.lower()
    report = Report.empty(program, names, len(images), str(fake.device), fake.fast, label)
    results = {result.name: result for result in report.tensors}

    memory = memory or MEMORY[fake.device.type]
    size, parts = plan(program, names, batch, memory)
    suspect: tuple[int, Array] | None = None  # the first image with a mismatch
    jobs = ((start, some, part) for start, some in numbered(images, size) for part in parts)
    for (start, some, part), expected in ahead(
        lambda job: other.run(job[1], job[2]), jobs, threaded=fake.device.type == "cuda"
    ):
        fake.stream(some, set(part), lambda name, codes: tally(results[name], first + start, expected.pop(name), codes))  # noqa: B023
        if part is not parts[-1]:
            continue
        image = report.first_image()
        if suspect is None and image is not None:
            suspect = image, some[image - first - start]
        if progress is not None:
            progress(start + len(some), len(images))
    if suspect is not None:
        report.guilty, report.faulty = locate(program, suspect[1], suspect[0], fake, other, memory)
    report.seconds = time.perf_counter() - started
    return report


def open_reference(program: Program, reference: str | Runs, threads: int | None = None) -> Runs:
    """The integer side by name.  threads: of the engine (None: all CPUs)."""
    if not isinstance(reference, str):
        return reference
    if reference == "engine":
        from intsim.engine import Engine

        engine: Runs = Engine(program, threads=threads)
        return engine
    if reference == "oracle":
        from intsim.oracle import Oracle

        return Oracle(program)
    raise UserError(f"reference is {reference!r}, must be engine or oracle")


# --- What is held at a time ------------------------------------------------------------------------------------------


def held_bytes(program: Program, name: str) -> int:
    """Bytes of one image's tensor in its container (the other side's is gone as soon as it is compared)."""
    declared = program.tensors[name]
    return int(np.prod(declared.shape)) * declared.dtype.itemsize


def plan(program: Program, names: Sequence[str], batch: int | None, memory: int) -> tuple[int, list[list[str]]]:
    """(images at a time, parts of `names` that are compared one after the other)."""
    need = sum(held_bytes(program, name) for name in names)
    size = max(1, min(batch or LARGEST_BATCH, memory // max(1, need)))
    return size, list(split(list(names), lambda name: held_bytes(program, name), memory))


def split(items: list[Any], cost: Callable[[Any], int], limit: int) -> Iterator[list[Any]]:
    """Consecutive runs of `items` that cost at most `limit` each, if no single one costs more."""
    part: list[Any] = []
    total = 0
    for item in items:
        if part and total + cost(item) > limit:
            yield part
            part, total = [], 0
        part.append(item)
        total += cost(item)
    if part:
        yield part


def numbered(images: Array | Images, size: int) -> Iterator[tuple[int, Array]]:
    """(number of the first, at most `size` images) in order."""
    if isinstance(images, np.ndarray):
        for start in range(0, len(images), size):
            yield start, images[start : start + size]
        return
    start = 0
    for some in images.stacks(size):
        yield start, some
        start += len(some)


def ahead(run: Callable[[Any], Any], jobs: Iterable[Any], threaded: bool) -> Iterator[tuple[Any, Any]]:
    """(job, run(job)) in order; `threaded`: the next job runs while the caller works on this one."""
    if not threaded:
        for job in jobs:
            yield job, run(job)
        return
    with ThreadPoolExecutor(1) as pool:
        running: tuple[Any, Future[Any]] | None = None
        for job in jobs:
            before, running = running, (job, pool.submit(run, job))
            if before is not None:
                yield before[0], before[1].result()
        if running is not None:
            yield running[0], running[1].result()


# --- Comparing -------------------------------------------------------------------------------------------------------


def as_torch(array: Array, device: torch.device) -> torch.Tensor:
    """An integer array on the device; unsigned 16 and 32 bits are widened there, for torch computes little on them."""
    array = np.ascontiguousarray(array)
    if array.dtype == np.uint16:
        return torch.from_numpy(array.view(np.int16)).to(device).to(torch.int32) & 0xFFFF
    if array.dtype == np.uint32:
        return torch.from_numpy(array.view(np.int32)).to(device).to(torch.int64) & 0xFFFFFFFF
    if array.dtype == np.uint64:
        array = array.astype(np.int64)
    return torch.from_numpy(array).to(device)


def tally(result: TensorResult, start: int, expected: Array, codes: torch.Tensor) -> None:
    """Adds one batch's comparison to a tensor's result.  start: number of the batch's first image."""
    if tuple(codes.shape) != tuple(expected.shape):
        raise AssertionError(f"{result.name} has shape {list(codes.shape)}, the reference has {list(expected.shape)}")
    result.elements += codes.numel()
    # image by image on a CPU: the temporaries stay small
    step = 1 if codes.device.type == "cpu" else len(codes)
    for i in range(0, len(codes), step):
        reference = as_torch(expected[i : i + step], codes.device)
        if torch.equal(reference.to(codes.dtype), codes[i : i + step]):
            continue
        wide, own = reference.to(torch.int64), codes[i : i + step].to(torch.int64)
        differs = wide != own
        result.mismatches += int(differs.sum())
        result.largest_difference = max(result.largest_difference, int((wide - own).abs().max()))
        if result.first is None:
            index = np.unravel_index(int(differs.flatten().to(torch.uint8).argmax()), tuple(differs.shape))
            place = tuple(int(n) for n in index)
            result.first = Mismatch(start + i + place[0], place[1:], int(wide[place]), int(own[place]))


# --- Locating the fault ----------------------------------------------------------------------------------------------


def locate(
    program: Program, image: Array, number: int, fake: FakeQuant, other: Runs, memory: int
) -> tuple[Guilty | None, list[str]]:
    """(guilty operator, all faulty operators) for one image, `number`, on which the sides differ.

    First both sides run on their own and the earliest tensor that differs is found: all before it agree, so its
    operator's inputs do.  Then every operator is fed the reference's inputs.
    """
    guilty = first_difference(program, image, number, fake, other, memory)
    faulty: list[str] = []
    if not fake.fast:

        def cost(op: Operator) -> int:
            return sum(held_bytes(program, name) for name in tensors_of(op))

        for part in split(list(program.operators), cost, memory):
            expected = other.run(image[None], sorted({name for op in part for name in tensors_of(op)}))
            for op in part:
                made = fake.run_operator(op, {name: expected[name] for name in op.inputs.values()})
                if any(not torch.equal(as_torch(expected[n], c.device).to(c.dtype), c) for n, c in made.items()):
                    faulty.append(op.name)
    return guilty, faulty


def tensors_of(op: Operator) -> list[str]:
    """Names of the tensors an operator reads and makes."""
    return [*op.inputs.values(), *(op.tensor(port) for port in op.outputs)]


def first_difference(
    program: Program, image: Array, number: int, fake: FakeQuant, other: Runs, memory: int
) -> Guilty | None:
    """The earliest tensor of all that differs on `image`, with its operator."""
    for part in split(list(program.tensors), lambda name: held_bytes(program, name), memory):
        expected = other.run(image[None], part)
        results: dict[str, TensorResult] = {}

        def sink(name: str, codes: torch.Tensor, to: Any = results, reference: Any = expected) -> None:
            to[name] = TensorResult(name, None, program.tensors[name].shape)
            tally(to[name], number, reference[name], codes)

        fake.stream(image[None], set(part), sink)
        differing = [name for name in part if results[name].first is not None]
        op = program.producer(differing[0]) if differing else None
        if op is None:
            continue
        # of its tensors the one that differs at the earliest token: a scan's h[0] before the acc[1] it spoils
        found = [(results[n].first, n) for n in differing if program.producer(n) is op]
        first, name = min(((f, n) for f, n in found if f), key=lambda pair: pair[0].index[0])
        return Guilty(op.name, op.kind, name, first)
    return None
