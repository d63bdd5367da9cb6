"""Writes golden bundles: for real images, every integer that hardware must carry, in files a test bench reads.

A bundle (FORMAT.md):

    manifest.json                    what everything is, with the SHA-256 of each file
    program.safetensors              the Program, byte for byte
    constants/NAME.npy, .hex         weights, biases, ROMs, shifts, group indices
    images/0000/TENSOR.npy, .hex     the tensors of the first image, and so on

With a `Style` the files are in other formats (`golden.formats`), orders and lanes.

It is written image by image into a temporary folder beside the target and renamed at the end, the manifest last:
an interrupted run leaves nothing that passes for a bundle.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from golden import manifest
from golden.formats import FORMATS, Head, Style, comments
from golden.images import Image, Images
from intsim.files import BINARY, new_folder
from intsim.program import Array, Constant, Program, Tensor
from intsim.program_file import program_bytes
from intsim.taps import select

if TYPE_CHECKING:
    from golden.cluster import Cluster

WRITERS = 2  # threads that encode, hash and write files: NumPy, SHA-256 and the disk work outside the interpreter
STATE_AXES = ("token", "channel", "state")


class Runs(Protocol):
    """What makes the tensors: `intsim.engine.Engine` or `intsim.oracle.Oracle`."""

    def run(self, images: Array, taps: Iterable[str] = ()) -> dict[str, Array]: ...


@dataclass(frozen=True)
class Sheet:
    """A tensor or constant on its way to files: its declaration, its integers, the hash of its Program, the style."""

    declared: Tensor | Constant
    values: Array
    program: str
    style: Style = manifest.PLAIN

    def encode(self, name: str) -> bytes:
        """The bytes of its file in a format."""
        layout = self.style.layout(self.declared)
        head = Head(self.declared.name, layout, comments(self.declared, layout, self.program))
        return FORMATS[name].encode(self.values, head)


def write_sheet(folder: Path, stem: str, sheet: Sheet) -> dict[str, Any]:
    """Writes a tensor or constant in each format of its style; returns the `files` of its manifest entry.

    stem: path of the files below `folder`, with forward slashes and without an ending.
    """
    assert sheet.values.shape == sheet.declared.shape and sheet.values.dtype == sheet.declared.dtype
    files = {}
    for name in sheet.style.formats:
        data = sheet.encode(name)
        path = f"{stem}.{FORMATS[name].ending}"
        files[name] = file_entry(path, data)
        write_new(folder / path, data)
    return files


def write_sheets(pool: Executor, folder: Path, sheets: dict[str, Sheet]) -> Iterator[dict[str, Any]]:
    """Writes many (stem -> sheet), several at a time, from now on; gives the `files` of each, in order, when done."""
    return pool.map(lambda stem: write_sheet(folder, stem, sheets[stem]), sheets)


def write_new(path: Path, data: bytes) -> None:
    """Writes a file that is not there yet; with half the system calls of `open`, after each of which threads queue."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | BINARY, 0o666)
    try:
        left = memoryview(data)
        while left:
            left = left[os.write(handle, left) :]
    finally:
        os.close(handle)


def file_entry(path: str, data: bytes) -> dict[str, Any]:
    return {"file": path, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def is_state_cube(tensor: Tensor) -> bool:
    """Whether a tensor has an element for each token, channel and state: the insides of a scan at every step."""
    return tensor.axes == STATE_AXES


def choose(
    program: Program, layers: Iterable[str] = (), state: bool = False, accumulators: bool = False
) -> list[str]:
    """Names of the tensors to write, in execution order; always with `image` and the logits.

    layers: globs; exactly what they match is chosen.  None given: every tensor but the scans' `abar`, `b`, `acc`
    and `h`, which have an element for each token, channel and state and are most of the bytes of a bundle.
    state: these as well.  accumulators: every accumulator as well, that of the scans too.
    Raises UserError for a glob that matches nothing.
    """
    manifest.check_names(program)
    cubes = {name for name, tensor in program.tensors.items() if is_state_cube(tensor)}
    layers = list(layers)
    wanted = set(select(program, layers)) if layers else set(program.tensors) - cubes
    wanted |= {"image", program.logits} | (cubes if state else set())
    if accumulators:
        wanted |= {name for name, tensor in program.tensors.items() if tensor.role == "accumulator"}
    return [name for name in program.tensors if name in wanted]


def run_image(engine: Runs, program: Program, pixels: Array, names: list[str]) -> dict[str, Array]:
    """The tensors `names` of one image, each [*shape] in its container."""
    found = engine.run(pixels[None], taps=[name for name in names if name != "image"])
    return {name: pixels if name == "image" else found[name][0] for name in names}


def image_folder(index: int) -> str:
    """Path of an image's folder in a bundle."""
    return f"images/{index:04d}"


def write_image(
    pool: Executor,
    folder: Path,
    program: Program,
    engine: Runs,
    index: int,
    image: Image,
    names: list[str],
    style: Style,
) -> dict[str, Any]:
    """Writes the tensors `names` of the image with number `index`, by threads of `pool`; returns its manifest entry.

    folder: the bundle, which has a folder `images`.
    """
    place = image_folder(index)
    (folder / place).mkdir()
    tensors = run_image(engine, program, image.pixels, names)
    logits = tensors[program.logits].reshape(-1)
    entry: dict[str, Any] = {
        "index": index,
        "source": image.name,
        "label": image.label,
        "class": int(logits.argmax()),
        "logits": [int(v) for v in logits],
        "tensors": {},
    }
    digest = program.digest or ""
    sheets = {f"{place}/{name}": Sheet(program.tensors[name], v, digest, style) for name, v in tensors.items()}
    for name, files in zip(tensors, write_sheets(pool, folder, sheets), strict=True):
        entry["tensors"][name] = {"files": files}
    return entry


def write_bundle(
    out: Path,
    program: Program,
    engine: Runs,
    images: Images,
    *,
    names: list[str],
    command: str,
    time: str,
    program_file: bytes | None = None,
    style: Style = manifest.PLAIN,
    progress: Callable[[int], None] = lambda done: None,
    cluster: Cluster | None = None,
) -> dict[str, Any]:
    """Writes the bundle `out`, which must not exist, and returns its manifest.

    names: from `choose`.  command, time: for the manifest's field `run`.  program_file: the Program's bytes as they
    were read (made from `program` if absent).  style: formats, order and lanes.  progress: called with the number of
    finished images.  cluster: its workers run the images and write their files, with engines of their own, in place
    of `engine`; not a byte depends on it but in the field `run`.
    Raises UserError if the folder exists, cannot be written or the disk is full; then nothing is left.
    """
    manifest.check_names(program)
    if program_file is None or program.digest is None:
        program_file = program_bytes(program)
    digest = program.digest or ""
    out = Path(out)
    with new_folder(out) as folder, ThreadPoolExecutor(WRITERS) as pool:
        content = manifest.describe(program, style)
        write_new(folder / manifest.PROGRAM_FILE, program_file)
        content["program"]["file"] = file_entry(manifest.PROGRAM_FILE, program_file)
        (folder / "constants").mkdir()
        sheets = {
            f"constants/{name}": Sheet(constant, program.arrays[name], digest, style)
            for name, constant in program.constants.items()
        }
        written = write_sheets(pool, folder, sheets)  # while the first image is run
        (folder / "images").mkdir()
        if cluster is not None:
            from golden.cluster.bundles import write_images

            content["images"] = write_images(cluster, out, folder, program_file, images, names, style, progress)
        else:
            content["images"] = manifest.Packed()
            for index, image in enumerate(images):
                content["images"].append(write_image(pool, folder, program, engine, index, image, names, style))
                progress(index + 1)
        for name, files in zip(program.constants, written, strict=True):
            content["constants"][name]["files"] = files
        manifest.seal(content, command, time)
        with open(folder / manifest.NAME, "w", encoding="ascii", newline="\n") as file:
            file.writelines(manifest.rendered(content))
    return content


def write_dump(
    out: Path, program: Program, engine: Runs, image: Image, *, names: list[str], style: Style = manifest.PLAIN
) -> dict[str, Any]:
    """Writes chosen tensors of one image into the new folder `out`: OUT/TENSOR.npy and so on, and `tensors.json`.

    Returns what is in `tensors.json`.  Errors as `write_bundle`.
    """
    manifest.check_names(program)
    digest = program.digest or ""
    with new_folder(Path(out)) as folder:
        tensors = run_image(engine, program, image.pixels, names)
        listed = {}
        for name, values in tensors.items():
            files = write_sheet(folder, name, Sheet(program.tensors[name], values, digest, style))
            listed[name] = {**manifest.tensor_entry(program, name, style), "files": files}
        content: dict[str, Any] = {"program": digest, "source": image.name}
        if not style.plain:
            content["layout"] = style.to_json()
        content["tensors"] = listed
        (folder / "tensors.json").write_text(manifest.render(content), encoding="ascii", newline="\n")
    return content
