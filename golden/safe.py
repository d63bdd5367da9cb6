"""Reading files of folders that others made: nothing outside the folder, nothing but plain files, nothing endless."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

from intsim.errors import UserError


def stays_inside(folder: Path, place: Path) -> bool:
    """Whether a path, its links followed, lies in the folder."""
    root = os.path.realpath(folder)
    return os.path.commonpath([root, os.path.realpath(place)]) == root


def read_inside(folder: Path, path: str, largest: int) -> bytes:
    """The bytes of `folder/path`.

    largest: how many there may be; a larger file is not read.  Raises UserError that names the file: it leads out of
    the folder, is missing, no plain file, too large or not readable.
    """
    place = folder / path
    if not stays_inside(folder, place):
        raise UserError(f"{place}: leads out of the folder {folder}")
    return read_plain(place, largest, " that its words can take")


def read_plain(place: Path, largest: int, why: str = " that are read") -> bytes:
    """The bytes of a plain file, or of one that a link leads to; as `read_inside`."""
    try:
        # a pipe or a device must not block: opened without waiting, looked at, and closed again
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        handle = os.open(os.path.realpath(place), flags)
    except OSError as problem:
        raise UserError(f"{place}: cannot be read: {problem.strerror}") from None
    with os.fdopen(handle, "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise UserError(f"{place}: is not a plain file")
        if found.st_size > largest:
            raise UserError(f"{place}: has {found.st_size} bytes, more than the {largest}{why}")
        try:
            data = file.read(found.st_size + 1)
        except OSError as problem:
            raise UserError(f"{place}: cannot be read: {problem.strerror}") from None
    if len(data) > found.st_size:
        raise UserError(f"{place}: grows while it is read")
    return data


def read_json(place: Path, largest: int) -> Any:
    """The content of a JSON file of at most `largest` bytes, no name twice in an object.  UserError if it is none."""
    from intsim.program_file import one_line, strict_json

    data = read_plain(place, largest)
    try:
        return strict_json(data.decode("utf-8"))
    except (ValueError, RecursionError) as problem:
        raise UserError(one_line(f"{place}: is not JSON: {problem}")) from None
