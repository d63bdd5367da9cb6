"""How the files of a bundle are written: which formats, and the packing that all of them share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from golden.formats.packing import Layout, Packing
from intsim.errors import UserError
from intsim.program import Constant, Tensor

NAMES = ("npy", "hex", "mem", "coe", "mif", "bin", "c")
TABLE_AXIS = "entry"  # a table is addressed by an index: one entry a word, always


@dataclass(frozen=True)
class Style:
    """Formats (kept in the order of NAMES), and order and lanes.

    Raises UserError for a format that there is not, or one twice, or none.
    """

    formats: tuple[str, ...] = ("npy", "hex")
    packing: Packing = Packing()

    def __post_init__(self) -> None:
        for name in self.formats:
            if name not in NAMES:
                raise UserError(f"format {name!r}: allowed are {', '.join(NAMES)}")
        if not self.formats or len(set(self.formats)) < len(self.formats):
            raise UserError(f"formats {','.join(self.formats)!r}: name each that is wanted once")
        object.__setattr__(self, "formats", tuple(name for name in NAMES if name in self.formats))

    @property
    def plain(self) -> bool:
        """Whether it is what a bundle has if nothing is asked for."""
        return self == Style()

    def layout(self, declared: Tensor | Constant) -> Layout:
        """Where the elements of a tensor or constant lie.  ROMs keep one entry a word."""
        return Layout.of(declared, Packing() if TABLE_AXIS in declared.axes else self.packing)

    def to_json(self) -> dict[str, Any]:
        p = self.packing
        return {"formats": list(self.formats), "order": p.order, "lanes": p.lanes, "lane_order": p.lane_order}

    @staticmethod
    def from_json(found: object) -> Style:
        """The style that `to_json` wrote; UserError for anything else."""
        fields = {"formats": list, "order": str, "lanes": int, "lane_order": str}
        if not isinstance(found, dict) or set(found) != set(fields):
            raise UserError(f"layout must have exactly the fields {', '.join(fields)}")
        for name, kind in fields.items():
            if type(found[name]) is not kind:
                raise UserError(f"layout's {name} is {found[name]!r}")
        if not all(isinstance(name, str) for name in found["formats"]):
            raise UserError("layout's formats must be names")
        return Style(tuple(found["formats"]), Packing(found["order"], found["lanes"], found["lane_order"]))
