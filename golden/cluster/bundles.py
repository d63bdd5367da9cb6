"""The images of a golden bundle, written by workers into the folder in which the client makes it.

A worker writes an image's files under a name of its own in the *workshop*, a folder beside the bundle's temporary one,
and renames them into the bundle when they are whole.  Whatever is computed twice has the same bytes, so the first
stays.  When the workshop is gone, because the bundle is finished or given up, a worker that still runs can write
nowhere.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from golden import manifest
from golden.bundle import WRITERS, Runs, image_folder, write_image
from golden.cluster.connect import Cluster
from golden.cluster.ranges import Part
from golden.formats import Style
from golden.images import Images
from intsim.errors import UserError
from intsim.files import scratch_folder
from intsim.program import Program

TOKEN = "token"

Prepared = tuple[Program, Runs, Executor]


@dataclass(frozen=True)
class WriteImages:
    """Runs images and writes their tensors `names`.  A range's result: the images' entries of the manifest.

    folder: the bundle in the making, absolute.  token: what the workshop's file TOKEN holds.
    """

    folder: str
    workshop: str
    token: str
    names: tuple[str, ...]
    style: Style
    threads: int

    def prepare(self, program: Program) -> Prepared:
        from intsim.engine import Engine

        self.check_shared()
        return program, Engine(program, threads=self.threads), ThreadPoolExecutor(min(self.threads, WRITERS))

    def check_shared(self) -> None:
        """Raises UserError unless the client's workshop is seen here."""
        try:
            found = Path(self.workshop, TOKEN).read_text(encoding="ascii")
        except (OSError, UnicodeDecodeError):
            found = None
        if found != self.token:
            raise UserError(
                f"--out must be in a folder that all workers share: {worker_name()} does not see what is in "
                f"{Path(self.folder).parent}"
            )

    def run(self, prepared: Prepared, part: Part) -> manifest.Packed:
        program, engine, pool = prepared
        entries = manifest.Packed()
        for index, image in enumerate(part.images, part.first):
            place = image_folder(index)
            own = Path(self.workshop, uuid.uuid4().hex)
            own.mkdir()  # fails when the workshop is gone
            (own / place).parent.mkdir()
            entries.append(write_image(pool, own, program, engine, index, image, list(self.names), self.style))
            target = Path(self.folder, place)
            try:
                os.rename(own / place, target)
            except OSError:
                if not target.is_dir():  # else an earlier try was finished, and only its answer was lost
                    raise
            shutil.rmtree(own, ignore_errors=True)
        return entries


def worker_name() -> str:
    import socket

    from distributed import get_worker

    return f"the worker {get_worker().address} on {socket.gethostname()}"


@contextlib.contextmanager
def open_workshop(out: Path) -> Iterator[tuple[Path, str]]:
    """(a new folder beside the bundle `out` for unfinished images, what its file TOKEN holds), while the block runs."""
    token = secrets.token_hex(16)
    with scratch_folder(out.absolute()) as place:
        (place / TOKEN).write_text(token, encoding="ascii")
        yield place, token


def write_images(
    cluster: Cluster,
    out: Path,
    folder: Path,
    program_file: bytes,
    images: Images,
    names: list[str],
    style: Style,
    progress: Callable[[int], None],
) -> manifest.Packed:
    """Writes `folder`/images/0000 and so on by the workers of a cluster; returns their entries in order.

    folder: that which will be renamed to `out`.
    Raises UserError for what `Cluster.run` does, and if the workers do not share the folder.
    """
    folder = folder.absolute()
    with open_workshop(out) as (workshop, token):
        work = WriteImages(str(folder), str(workshop), token, tuple(names), style, cluster.threads)
        parts = cluster.run(program_file, work, images, progress)
    entries = manifest.Packed()
    for part in parts:
        entries.extend(part)
    for place in map(image_folder, range(len(entries))):
        if not (folder / place).is_dir():
            raise UserError(f"{place}: was written by a worker and is not in {folder}, which all workers must share")
    return entries
