"""Checks a golden bundle, whole: every byte is as it was written, and every part agrees with every other.

What is checked: the manifest is in its canonical form and matches its own digests; the folder holds exactly the
listed files, each of the listed size and SHA-256; the Program loads, has the stated hash, and everything that the
manifest says of operators, tensors and constants follows from it; constants are the Program's; each tensor's
first file has the declared shape, width and range, and those in other formats hold the same integers; classes follow
from logits.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from golden import manifest
from golden.bundle import Sheet, file_entry
from golden.formats import FORMATS, Style
from golden.safe import stays_inside
from intsim.arithmetic import limits
from intsim.errors import ProgramError, UserError
from intsim.program import Array, Constant, Program, Tensor
from intsim.program_file import one_line, parse_program

MAX_MANIFEST = 1 << 30
MAX_PROGRAM = 1 << 32
FIELDS = {
    *("format", "version", "spec", "tool", "program", "operators", "tensors", "constants", "images"),
    *("content_sha256", "run"),
}
IMAGE_FIELDS = {"index", "source", "label", "class", "logits", "tensors"}


def verify(folder: Path, progress: Callable[[int, int], None] = lambda done, total: None) -> list[str]:
    """Problems of the bundle in `folder`, each a sentence; none means that it is whole.

    progress: called with the number of checked images and of all.  Raises UserError if `folder` is not a bundle at
    all: no folder, no manifest, or one that is not readable.
    """
    folder = Path(folder)
    require_bundle(folder)
    return _Check(folder, progress).run()


def require_bundle(folder: Path) -> None:
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder")
    if not (folder / manifest.NAME).is_file():
        raise UserError(f"{folder}: is not a bundle, or was not finished: it has no {manifest.NAME}")


class Bundle:
    """A bundle as a reference: its manifest and Program, checked, and tensors that are checked as they are read.

    Raises UserError if the folder is no bundle, or is not as it was written.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        require_bundle(self.folder)
        self.check = _Check(self.folder, lambda done, total: None)
        try:
            self.content = self.check.read_manifest()
            self.program = self.check.read_program(self.content)
            self.images = self.check.list_images(self.content)
        except _Broken as problem:
            self.check.problems.append(str(problem))
        self._stop_at_problem()
        self.style = self.check.style

    def _stop_at_problem(self) -> None:
        if self.check.problems:
            raise UserError(f"{self.folder}: is not as it was written: {self.check.problems[0]}")

    def has(self, image: int, name: str) -> bool:
        return name in self.images[image]["tensors"]

    def values(self, image: int, name: str) -> Array:
        """The integers of a tensor that `has`, in its container."""
        entry = self.images[image]["tensors"][name]
        files = entry.get("files") if isinstance(entry, dict) else None
        found = self.check.read_values(files, f"images/{image:04d}/{name}", self.program.tensors[name])
        self._stop_at_problem()
        assert found is not None
        return found


class _Broken(Exception):
    """A problem after which the rest cannot be checked."""


class _Check:
    def __init__(self, folder: Path, progress: Callable[[int, int], None]):
        self.folder = folder
        self.progress = progress
        self.problems: list[str] = []
        self.listed = {manifest.NAME}
        self.style = manifest.PLAIN
        self.data: bytes | None = None  # the file that was read last

    def run(self) -> list[str]:
        try:
            content = self.read_manifest()
            program = self.read_program(content)
            self.check_constants(content, program)
            self.check_images(content, program)
        except _Broken as problem:
            self.problems.append(str(problem))
        else:
            self.check_folder()
        return [one_line(problem) for problem in self.problems]

    def expect(self, condition: bool, problem: str) -> None:
        if not condition:
            self.problems.append(problem)

    # The manifest

    def read_manifest(self) -> dict[str, Any]:
        path = self.folder / manifest.NAME
        try:
            if path.stat().st_size > MAX_MANIFEST:
                raise UserError(f"{path}: has more than {MAX_MANIFEST} bytes")
            data = path.read_bytes()
        except OSError as problem:
            raise UserError(f"{path}: cannot be read: {problem.strerror}") from None
        try:
            content = json.loads(data.decode("ascii"))
        except (ValueError, RecursionError) as problem:
            raise _Broken(f"{manifest.NAME}: is not JSON: {problem}") from None
        if not isinstance(content, dict) or set(content) - {"layout"} != FIELDS:
            raise _Broken(f"{manifest.NAME}: has not exactly the fields of a manifest")
        known = (manifest.PLAIN_VERSION, manifest.FORMAT_VERSION)
        if content["format"] != manifest.FORMAT or content["version"] not in known:
            raise _Broken(
                f"{manifest.NAME}: is {content['format']!r} version {content['version']!r}, "
                f"this verifies {manifest.FORMAT!r} versions {' and '.join(known)}"
            )
        if "layout" in content:
            try:
                self.style = Style.from_json(content["layout"])
            except UserError as problem:
                raise _Broken(f"{manifest.NAME}: {problem}") from None
        wanted = None if self.style.plain else self.style.to_json()
        told = content["version"] == manifest.version_of(self.style) and content.get("layout", None) == wanted
        self.expect(told, f"{manifest.NAME}: version {content['version']} is not that of its layout")
        try:
            same = manifest.render(content).encode("ascii") == data
        except RecursionError:
            same = False
        self.expect(same, f"{manifest.NAME}: is not in the form in which it was written")
        digest = manifest.content_digest(content)
        self.expect(digest == content["content_sha256"], f"{manifest.NAME}: content_sha256 differs: it was changed")
        run = content["run"]
        fine = isinstance(run, dict) and set(run) == {"command", "time", "sha256"}
        tied = fine and manifest.run_digest(content["content_sha256"], run["command"], run["time"]) == run["sha256"]
        self.expect(tied, f"{manifest.NAME}: run was changed")
        return content

    # Files

    def read_file(self, entry: object, path: str, largest: int) -> bytes | None:
        """The bytes of a listed file if they are as listed, else None and a problem.  A larger one is not read."""
        self.listed.add(path)
        place = self.folder / path
        if not isinstance(entry, dict) or set(entry) != {"file", "bytes", "sha256"} or entry["file"] != path:
            self.problems.append(f"{path}: is not listed as it should be in {manifest.NAME}")
            return None
        try:
            if place.is_symlink() or not place.is_file() or not stays_inside(self.folder, place):
                self.problems.append(f"{path}: is missing" if not place.exists() else f"{path}: is not a plain file")
                return None
            size = place.stat().st_size
            if size != entry["bytes"]:
                self.problems.append(f"{path}: has {size} bytes, listed are {entry['bytes']}")
                return None
            if size > largest:
                self.problems.append(f"{path}: has {size} bytes, more than the {largest} that it can need")
                return None
            data = place.read_bytes()
        except OSError as problem:
            self.problems.append(f"{path}: cannot be read: {problem.strerror}")
            return None
        if hashlib.sha256(data).hexdigest() != entry["sha256"]:
            self.problems.append(f"{path}: its sha256 is not the listed one: it was changed")
            return None
        return data

    def check_folder(self) -> None:
        """Nothing lies in the folder that the manifest does not list."""
        folders = {parent.as_posix() for path in self.listed for parent in Path(path).parents}
        for place, below, files in os.walk(self.folder):
            here = Path(place).relative_to(self.folder)
            for name in sorted(files):
                path = (here / name).as_posix()
                self.expect(path in self.listed, f"{path}: is not listed in {manifest.NAME}")
            for name in sorted(below):
                path = (here / name).as_posix()
                self.expect(path in folders, f"{path}: is a folder that {manifest.NAME} does not list")

    def read_sheet(self, files: object, stem: str, declared: Tensor | Constant, digest: str) -> Array | None:
        """The integers of a tensor from the first of its files; every other format must say the same."""
        values = self.read_values(files, stem, declared)
        if values is None or not isinstance(files, dict):
            return None
        first, *others = self.style.formats
        sheet = Sheet(declared, values, digest, self.style)
        if self.data != sheet.encode(first):
            self.problems.append(f"{self.path(stem, first)}: is not as it was written")
            return None
        for name in others:
            found = self.read_file(files[name], self.path(stem, name), self.largest(name, declared))
            if found is not None and found != sheet.encode(name):
                told = f"does not hold the integers of {self.path(stem, first)}"
                self.problems.append(f"{self.path(stem, name)}: {told}")
        return values

    def largest(self, name: str, declared: Tensor | Constant) -> int:
        return FORMATS[name].largest(self.style.layout(declared))

    def path(self, stem: str, name: str) -> str:
        return f"{stem}.{FORMATS[name].ending}"

    def read_values(self, files: object, stem: str, declared: Tensor | Constant) -> Array | None:
        """The integers of a tensor from the first of its files, whose bytes are kept as `data`."""
        style = self.style
        if not isinstance(files, dict) or list(files) != list(style.formats):
            self.problems.append(f"{stem}: must have files in the formats {', '.join(style.formats)}")
            self.listed |= {self.path(stem, name) for name in style.formats}
            return None
        self.listed |= {self.path(stem, name) for name in style.formats}
        first = style.formats[0]
        path = self.path(stem, first)
        self.data = self.read_file(files[first], path, self.largest(first, declared))
        if self.data is None:
            return None
        try:
            values = FORMATS[first].decode(self.data, style.layout(declared)).values
        except UserError as problem:
            self.problems.append(f"{path}: {problem}")
            return None
        low, high = limits(declared.bits, declared.signed)
        if values.size and (int(values.min()) < low or int(values.max()) > high):
            self.problems.append(f"{path}: holds an integer outside {low} .. {high}")
            return None
        return values.astype(declared.dtype)

    # Content

    def read_program(self, content: dict[str, Any]) -> Program:
        entry = content["program"]
        if not isinstance(entry, dict):
            raise _Broken(f"{manifest.NAME}: program is malformed")
        data = self.read_file(entry.get("file"), manifest.PROGRAM_FILE, MAX_PROGRAM)
        if data is None:
            raise _Broken("the rest was not checked, for want of the Program")
        try:
            program = parse_program(data)
            manifest.check_names(program)
        except ProgramError as problem:
            raise _Broken(f"{manifest.PROGRAM_FILE}: {problem}") from None
        except UserError as problem:
            raise _Broken(str(problem)) from None
        try:
            wanted = manifest.describe(program, self.style)
        except UserError as problem:
            raise _Broken(f"{manifest.NAME}: {problem}") from None
        wanted["program"]["file"] = file_entry(manifest.PROGRAM_FILE, data)
        stated = content["spec"]
        self.expect(stated == program.spec, f"{manifest.NAME}: spec is {stated!r}, the Program's is {program.spec}")
        for field in ("program", "operators", "tensors"):
            self.expect(content[field] == wanted[field], f"{manifest.NAME}: {field} does not follow from the Program")
        constants = content["constants"]
        if not isinstance(constants, dict) or not all(isinstance(c, dict) for c in constants.values()):
            raise _Broken(f"{manifest.NAME}: constants is malformed")
        bare = {name: {k: v for k, v in c.items() if k != "files"} for name, c in constants.items()}
        self.expect(bare == wanted["constants"], f"{manifest.NAME}: constants do not follow from the Program")
        return program

    def check_constants(self, content: dict[str, Any], program: Program) -> None:
        for name, constant in program.constants.items():
            files = content["constants"].get(name, {}).get("files")
            values = self.read_sheet(files, f"constants/{name}", constant, program.digest or "")
            self.expect(
                values is None or np.array_equal(values, program.arrays[name]),
                f"constants/{name}: is not the Program's",
            )

    def list_images(self, content: dict[str, Any]) -> list[dict[str, Any]]:
        images = content["images"]
        if not isinstance(images, list) or not all(
            isinstance(i, dict) and set(i) == IMAGE_FIELDS and isinstance(i["tensors"], dict) for i in images
        ):
            raise _Broken(f"{manifest.NAME}: images is malformed")
        self.expect(bool(images), f"{manifest.NAME}: lists no image")
        return list(images)

    def check_images(self, content: dict[str, Any], program: Program) -> None:
        images = self.list_images(content)
        for index, image in enumerate(images):
            place = f"images/{index:04d}"
            self.expect(image["index"] == index, f"{manifest.NAME}: image {index} has index {image['index']!r}")
            for name in ("image", program.logits):
                self.expect(name in image["tensors"], f"{place}: has no tensor {name}")
            for name, entry in image["tensors"].items():
                if name not in program.tensors or not isinstance(entry, dict) or set(entry) != {"files"}:
                    self.problems.append(f"{manifest.NAME}: image {index} lists {name!r}, which is no such tensor")
                    continue
                tensor = program.tensors[name]
                values = self.read_sheet(entry["files"], f"{place}/{name}", tensor, program.digest or "")
                if values is not None and name == program.logits:
                    logits = [int(v) for v in values.reshape(-1)]
                    told = image["logits"] == logits and image["class"] == int(values.argmax())
                    self.expect(told, f"{manifest.NAME}: image {index}: class and logits are not those of {name}")
            self.progress(index + 1, len(images))
