"""The dumps of a device under test (DUT): which files of a folder are which tensors, and what they hold.

A file TENSOR.ENDING is a dump of that tensor, of the image in whose folder (`0000`, `images/0000`) it lies, or of the
image that the caller names.  How its words are packed is found in this order: what the caller says, what the file's
own comments say, what a `manifest.json` or `tensors.json` of this project in the folder says, the bundle's style.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from golden import manifest
from golden.formats import BY_ENDING, Elements, Format, Layout, Packing, Style
from golden.safe import read_inside, stays_inside
from golden.verify import Bundle
from intsim.errors import UserError
from intsim.program import Tensor

LISTS = (manifest.NAME, "tensors.json")
IMAGE_FOLDER = re.compile(r"[0-9]{4,9}")
MAX_LIST = 1 << 30
HEAD = 1 << 12  # bytes in which a file's comments are looked for
ORDER = re.compile(r"order ([^,]+)(?:, last axis fastest)?, ([0-9]{1,5}) lanes? a word(?:, ([a-z]+-first))?")


@dataclass(frozen=True)
class Dump:
    """A file of the DUT: of which image and tensor, where (relative to the folder), in which format and layout."""

    image: int
    tensor: str
    path: str
    format: Format
    layout: Layout


class Folder:
    """The dumps in a folder.

    image: index of the image that files outside of an image's folder belong to.  packing: overrides everything.
    ignored: files that are no dump of any tensor of the bundle.  Raises UserError for what cannot be trusted: a link
    or a listed path that leads out of the folder, a file of another Program, no dump at all.
    """

    def __init__(self, folder: Path, bundle: Bundle, image: int = 0, packing: Packing | None = None):
        self.folder = Path(folder)
        self.bundle = bundle
        if not self.folder.is_dir():
            raise UserError(f"{self.folder}: there is no such folder")
        if not 0 <= image < len(bundle.images):
            raise UserError(f"image {image}: the bundle has images 0 .. {len(bundle.images) - 1}")
        self.packing = packing
        self.style = self._listed_style()
        self.ignored: list[str] = []
        self.dumps: list[Dump] = []
        for path in self._files():
            self._take(path, image)
        order = {name: number for number, name in enumerate(bundle.program.tensors)}
        self.dumps.sort(key=lambda dump: (dump.image, order[dump.tensor], dump.path))
        if not self.dumps:
            raise UserError(
                f"{self.folder}: holds no dump; a dump is named after its tensor, such as {bundle.program.logits}.hex"
            )

    def _files(self) -> list[str]:
        found = []
        for place, below, files in os.walk(self.folder):
            here = Path(place)
            for name in sorted([*below, *files]):
                if (here / name).is_symlink() and not stays_inside(self.folder, here / name):
                    raise UserError(f"{here / name}: leads out of the folder {self.folder}")
            below[:] = sorted(name for name in below if not (here / name).is_symlink())
            found += [(here / name).relative_to(self.folder).as_posix() for name in sorted(files)]
        return found

    def _take(self, path: str, image: int) -> None:
        stem, _, ending = Path(path).name.rpartition(".")
        if path in LISTS:
            return
        format_ = BY_ENDING.get(ending)
        if format_ is None or stem not in self.bundle.program.tensors:
            self.ignored.append(path)
            return
        numbered = [int(part) for part in Path(path).parts[:-1] if IMAGE_FOLDER.fullmatch(part)]
        index = numbered[-1] if numbered else image
        if index >= len(self.bundle.images) or not self.bundle.has(index, stem):
            self.ignored.append(path)
            return
        tensor = self.bundle.program.tensors[stem]
        style = self.style if self.packing is None else replace(self.style, packing=self.packing)
        layout = style.layout(tensor)
        if format_.comments:
            layout = self._told(path, tensor, layout)
        self.dumps.append(Dump(index, stem, path, format_, layout))

    def _listed_style(self) -> Style:
        """What a list of this project in the folder says of its files; else the bundle's style."""
        style = self.bundle.style
        for name in LISTS:
            if not (self.folder / name).is_file():
                continue
            place = self.folder / name
            try:
                said: Any = json.loads(read_inside(self.folder, name, MAX_LIST).decode())
            except (ValueError, RecursionError):
                raise UserError(f"{place}: is not JSON") from None
            if not isinstance(said, dict) or "program" not in said or "tensors" not in said:
                continue  # somebody else's file
            program = said["program"]
            digest = program.get("sha256") if isinstance(program, dict) else program
            self._same_program(str(place), digest)
            for path in _paths(said):
                if Path(path).is_absolute() or ".." in Path(path).parts or "\\" in path:
                    raise UserError(f"{place}: lists {path[:80]!r}, which leads out of the folder")
            try:
                style = Style.from_json(said["layout"]) if "layout" in said else manifest.PLAIN
            except UserError as problem:
                raise UserError(f"{place}: {problem}") from None
        return style

    def _same_program(self, place: str, digest: object) -> None:
        mine = self.bundle.program.digest
        if digest != mine:
            told = str(digest)[:12]
            raise UserError(f"{place}: was made with the Program {told}..., the bundle's is {str(mine)[:12]}...")

    def _told(self, path: str, tensor: Tensor, layout: Layout) -> Layout:
        """The layout with what the comments at a file's head say of it; they must be of this Program and tensor."""
        place = self.folder / path
        head = read_head(self.folder, path)
        told: dict[str, str] = {}
        for line in head.split("\n"):
            words = re.match(r"\s*(?://|--|;)\s*(tensor|shape|order|bits|program) (.*?)\s*$", line)
            if words:
                told.setdefault(words[1], words[2])
        if "program" in told:
            self._same_program(str(place), told["program"])
        shape = "x".join(map(str, tensor.shape))
        bits = f"{tensor.bits} {'signed' if tensor.signed else 'unsigned'}"
        for key, wanted in (("tensor", tensor.name), ("shape", shape), ("bits", bits)):
            found = told.get(key, wanted).partition(" (")[0]
            if found != wanted:
                raise UserError(f"{place}: says {key} {found[:80]!r}, the bundle has {wanted!r}")
        order = ORDER.fullmatch(f"order {told.get('order', '')}")
        if order is None or self.packing is not None:
            return layout
        try:
            return replace(layout, packing=Packing(order[1], int(order[2]), order[3] or "lsb-first"))
        except UserError as problem:
            raise UserError(f"{place}: {problem}") from None

    def read(self, dump: Dump) -> Elements:
        """What a dump holds.  Raises UserError that names the file and what is wrong with it."""
        try:
            largest = dump.format.largest(dump.layout)
            data = read_inside(self.folder, dump.path, largest)
            return dump.format.decode(data, dump.layout)
        except UserError as problem:
            text = str(problem)
            place = self.folder / dump.path
            raise UserError(text if text.startswith(str(place)) else f"{place}: {text}") from None


def read_head(folder: Path, path: str) -> str:
    """The first bytes of a file as text."""
    place = folder / path
    if not stays_inside(folder, place):
        raise UserError(f"{place}: leads out of the folder {folder}")
    if not place.is_file():
        raise UserError(f"{place}: is not a plain file")
    try:
        with open(place, "rb") as file:
            return file.read(HEAD).decode("latin-1")
    except OSError as problem:
        raise UserError(f"{place}: cannot be read: {problem.strerror}") from None


def _paths(said: dict[str, Any]) -> list[str]:
    """Every path that a manifest or tensors.json lists."""
    found: list[str] = []
    stack: list[Any] = [said]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            if isinstance(item.get("file"), str):
                found.append(item["file"])
            stack += [v for v in item.values() if isinstance(v, (dict, list))]
        elif isinstance(item, list) and any(isinstance(v, (dict, list)) for v in item):
            stack += [v for v in item if isinstance(v, (dict, list))]
    return found
