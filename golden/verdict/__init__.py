"""The verdict on a DUT: are its dumps what the golden bundle says, and if not, where and why not?

    judge(bundle, dumps) -> Verdict     `text`, `to_json` and `junit` (in `report`) say it

`dumps` finds and reads the files, `compare` finds the first mismatch, `hints` looks for what explains it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from golden.formats import Packing
from golden.verdict.compare import Comparison, Mismatch, Row
from golden.verdict.dumps import Folder
from golden.verdict.hints import Hint, hints
from golden.verdict.scene import Scene
from golden.verify import Bundle
from intsim.errors import UserError
from intsim.program import Array, Program


@dataclass(frozen=True)
class Verdict:
    """rows: one for each dump, in execution order.  missing: tensors of the bundle without a dump (each image's
    counted).  ignored: files that are no dump.  first: the first mismatch in execution order."""

    bundle: str
    folder: str
    program: Program
    rows: list[Row]
    ignored: list[str]
    missing: int
    first: Mismatch | None = None
    hints: list[Hint] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return self.first is None


def judge(
    bundle: Bundle,
    dut_folder: Path,
    *,
    image: int = 0,
    packing: Packing | None = None,
    require: Iterable[str] = (),
    say: Callable[[str], None] = lambda text: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Verdict:
    """Compares a folder of dumps with a bundle.

    image: the image that dumps outside of an image's folder belong to.  packing: order and lanes of all dumps.
    require: globs; every tensor of the bundle that one matches must be dumped.  say: gets a line when kernels are
    compiled for a hint.  Raises UserError for a tensor of the bundle that is not as it was written, and for dumps that
    cannot be compared: unreadable, of another Program, truncated, too wide, or none at all.
    """
    folder = Folder(dut_folder, bundle, image, packing)
    dumped = {(dump.image, dump.tensor) for dump in folder.dumps}
    held = [(i, name) for i, entry in enumerate(bundle.images) for name in entry["tensors"]]
    for glob in require:
        wanted = [(i, name) for i, name in held if fnmatchcase(name, glob)]
        if not wanted:
            raise UserError(f"--require {glob!r}: the bundle holds no such tensor")
        for i, name in wanted:
            if (i, name) not in dumped:
                raise UserError(f"{folder.folder}: no dump of {name} of image {i}, which --require {glob} asks for")
    comparison = Comparison(bundle, folder, progress)
    missing = sum(key not in dumped for key in held)
    verdict = Verdict(str(bundle.folder), str(dut_folder), bundle.program, comparison.rows, folder.ignored, missing)
    row = comparison.first()
    if row is None:
        return verdict

    def recompute(pixels: Array, names: Iterable[str]) -> dict[str, Array]:
        from golden.engines import make_engine

        found = make_engine(bundle.program, say).run(pixels[None], taps=list(names))
        return {name: values[0] for name, values in found.items()}

    found = hints(Scene(comparison, row, recompute))
    return Verdict(**{**vars(verdict), "first": comparison.mismatch(row), "hints": found})
