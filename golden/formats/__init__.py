"""File formats of integers: one file each, a writer and a reader, all with the same interface (`base.Format`).

    FORMATS["coe"].encode(values, head) -> bytes
    FORMATS["coe"].decode(data, layout)  -> Elements

`packing` has what they share: the order of the elements and how they share words.
"""

from __future__ import annotations

from golden.formats.base import Elements, Format, Head, comments
from golden.formats.c import C
from golden.formats.coe import COE
from golden.formats.hex import HEX, LOG, MEM
from golden.formats.mif import MIF
from golden.formats.npy import NPY
from golden.formats.packing import Layout, Packing
from golden.formats.raw import BIN
from golden.formats.style import Style

FORMATS: dict[str, Format] = {"npy": NPY, "hex": HEX, "mem": MEM, "coe": COE, "mif": MIF, "bin": BIN, "c": C}
"""What is written, by the name that the command line and manifests use."""

READ_ONLY: dict[str, Format] = {"log": LOG, "txt": LOG}
"""What is read as well."""

BY_ENDING: dict[str, Format] = {f.ending: f for f in FORMATS.values()} | READ_ONLY

__all__ = ["BY_ENDING", "FORMATS", "READ_ONLY", "Elements", "Format", "Layout", "Packing", "Head", "Style", "comments"]
