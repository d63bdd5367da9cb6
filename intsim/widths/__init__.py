"""Bits: what each register of a Program needs for every possible image, and what given images use (SPEC section 12).

    found = analyse(program, images)         # images: iterable of uint8 [n, H, W, C], or None
    found.rows()                             # one dict a register: declared, proven, used, slack, witness ...

`proof` proves, `recurrence` is the scan's part of it, `witness` reaches the proven ends, `used` measures runs of the
engine, `report` tabulates and writes a SystemVerilog package.
"""

from intsim.widths.proof import KINDS, Register, proofs, prove
from intsim.widths.report import Report, analyse, systemverilog
from intsim.widths.used import Used, batch_size, measure
from intsim.widths.witness import Witness, witnesses

__all__ = [
    "KINDS",
    "Register",
    "Report",
    "Used",
    "Witness",
    "analyse",
    "batch_size",
    "measure",
    "proofs",
    "prove",
    "systemverilog",
    "witnesses",
]
