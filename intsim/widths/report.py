"""The result of `intsim widths`: a row for each register, a summary by operator, a SystemVerilog package."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from intsim.program import Array, Program
from intsim.widths.proof import Register, constants, proofs
from intsim.widths.ranges import bits_of
from intsim.widths.used import Used, measure
from intsim.widths.witness import Witness, witnesses

LAYER = re.compile(r"(^|\.)layers\.\d+\.(mixer\.)?")
PACKAGE = "intsim_widths"

Tick = Callable[[str, int, int | None], None]  # what is done, how much, of how much


@dataclass
class Report:
    """registers: in execution order, the constants last; usage and witnesses by register name, where there are any."""

    program: Program
    registers: list[Register]
    witnesses: dict[str, Witness] = field(default_factory=dict)
    usage: dict[str, Used] = field(default_factory=dict)
    images: int = 0

    def used(self, r: Register) -> int | None:
        """Bits that were used, None where no image was run."""
        found = self.usage.get(r.name)
        return None if found is None else bits_of(found.low, found.high, r.signed)

    def row(self, r: Register) -> dict[str, Any]:
        """Everything about one register, as JSON holds it (FORMAT.md section 8)."""
        low, high = r.range.whole
        found = self.usage.get(r.name)
        made: dict[str, Any] = {
            "name": r.name,
            "operator": r.operator,
            "operator_kind": r.operator_kind,
            "kind": r.kind,
            "signed": r.signed,
            "declared": r.declared,
            "proven": r.proven,
            "used": self.used(r),
            "slack": r.declared - r.proven,
            "low": low,
            "high": high,
            "rounding": int(r.rounding.max()),
            "used_low": None if found is None else found.low,
            "used_high": None if found is None else found.high,
            "elements": None if found is None or not found.elements else found.elements,
            "saturated": None if found is None else found.saturated,
        }
        if r.enough is not None:
            made["enough"] = r.enough
        if r.any_order is not None:
            made["any_order"] = r.any_order
        if r.kind in ("accumulator", "state"):
            made["channels"] = r.channels
        if r.name in self.witnesses:
            made["witness"] = self.witnesses[r.name].to_json()
        return made

    def rows(self) -> list[dict[str, Any]]:
        return [self.row(r) for r in self.registers]

    def summary(self) -> list[dict[str, Any]]:
        """One row for each register of like operators: those of all layers and of both directions together."""
        groups: dict[tuple[str, str], list[Register]] = {}
        for r in self.registers:
            groups.setdefault((r.operator_kind, place(r)), []).append(r)
        made = []
        for (operator_kind, name), members in groups.items():
            used = [u for r in members if (u := self.used(r)) is not None]
            runs = [self.usage[r.name] for r in members if r.name in self.usage]
            lost = [run.saturated for run in runs if run.saturated is not None]
            enough = [r.enough for r in members if r.enough is not None]
            seen = [self.witnesses[r.name].exact for r in members if r.name in self.witnesses]
            made.append(
                {
                    "register": name,
                    "operator_kind": operator_kind,
                    "kind": members[0].kind,
                    "count": len(members),
                    "declared": max(r.declared for r in members),
                    "proven": max(r.proven for r in members),
                    "enough": max(enough) if enough else None,
                    "used": max(used) if used else None,
                    "saturated": sum(lost) if lost else None,
                    "witness": all(seen) if seen else None,
                }
            )
        return made


def place(r: Register) -> str:
    """Name of a register without layer and direction: layers.3.mixer.scan_b.acc is scan.acc."""
    operator = LAYER.sub("", r.operator).removesuffix("_b")
    return operator + r.name[len(r.operator) :] if r.name.startswith(r.operator) else r.name


def analyse(
    program: Program,
    images: Iterable[Array] | None = None,
    *,
    witness: bool = True,
    threads: int | None = None,
    tick: Tick = lambda text, done, total: None,
) -> Report:
    """Proves, drives the accumulators to their bounds, and runs `images` (arrays uint8 [n, H, W, C], one batch each).

    tick: called with what is being done, how much is done and of how much (None: not known).
    """
    total = len(program.operators)
    found = proofs(program, lambda done: tick("proving", done, total))
    registers = [r for proof in found for r in proof.registers]
    seen: set[str] = set()
    for op in program.operators:
        registers += constants(program, op, seen)
    report = Report(program, registers)
    if witness:
        for done, proof in enumerate(found, start=1):
            report.witnesses.update({w.register: w for w in witnesses(proof)})
            tick("witnesses", done, total)
    if images is not None:

        def counted(done: int) -> None:
            report.images = done
            tick("images", done, None)

        report.usage = measure(program, images, threads, counted)
    return report


def identifier(name: str, taken: set[str]) -> str:
    """A register's name as an HDL identifier that is not in `taken`, to which it is added."""
    plain = re.sub(r"[^A-Z0-9]", "_", name.upper())
    if not plain[0].isalpha():
        plain = f"P_{plain}"
    found, number = plain, 1
    while found in taken:
        number += 1
        found = f"{plain}_{number}"
    taken.add(found)
    return found


def systemverilog(report: Report, package: str = PACKAGE) -> str:
    """The widths as a package: NAME_DECLARED, NAME_PROVEN, NAME_ENOUGH, NAME_USED (if images were run)."""
    lines = [
        f"// widths of the registers of {report.program.name}, in bits (intsim widths, SPEC section 12)",
        f"// program {report.program.digest or 'without a hash'}",
        "// DECLARED: as the Program declares it or its operands imply it",
        "// PROVEN: enough for every possible image; ENOUGH: if the scan's b is clamped to it",
        f"// USED: by {report.images} images",
        f"package {package};",
    ]
    taken: set[str] = set()
    for r in report.registers:
        if r.kind == "constant":
            continue
        name = identifier(r.name, taken)
        used = report.used(r) if report.images else None
        values = {"DECLARED": r.declared, "PROVEN": r.proven, "ENOUGH": r.enough, "USED": used}
        lines.append(f"  // {r.name}, {'signed' if r.signed else 'unsigned'}")
        lines += [f"  localparam int {name}_{k} = {v};" for k, v in values.items() if v is not None]
    return "\n".join([*lines, "endpackage", ""])

