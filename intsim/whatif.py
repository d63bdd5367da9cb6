"""What-ifs: a Program with other widths, as a Program of its own (SPEC section 13).

    narrower = narrow(program, [Rule("accumulators", 20, "wrap"), Rule("layers.3.*.h", 6)])

Nothing but the Program knows of the change: the oracle, the engine, the torch path, bundles and their verification
follow from its declarations, and it has a hash of its own.  A rule names tensors by a glob or by one of `CLASSES`:

=====================  ====================  =================================================================
class                  rule                  change
=====================  ====================  =================================================================
accumulators           BITS and an overflow  the accumulator has BITS bits and wraps, or saturates at every
                                             addition
states, residual, ROM  BITS                  the least significant bits go: the exponent rises by as many as the
inputs                                       width falls, the range stays; constants of the same scale (D, the
                                             class token, the position embedding, eps_q) and ROMs follow
the same               BITS and "saturate"   the most significant bits go: the exponent stays, the range shrinks
A-bar                  BITS                  BITS - 1 fraction bits (1.0 takes the bit above)
=====================  ====================  =================================================================
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from intsim.arithmetic import Int64, int64, round_shift, saturate
from intsim.builder import Builder, Out
from intsim.errors import ProgramError, UserError
from intsim.operators import KINDS, View
from intsim.program import OVERFLOWS, Operator, Program, Tensor
from intsim.validate import MIN_NARROW, PROFILES, validate

RESIDUAL_PORTS = {"insert_token": ("x",), "add": ("x", "y"), "select_token": ("x",)}  # and their outputs
MIN_VALUE = 2  # bits of a value: a sign and something else


@dataclass(frozen=True)
class Rule:
    """Tensors (a glob, or one of CLASSES) get `bits` bits; overflow: "wrap", "saturate" or None, as in the table."""

    glob: str
    bits: int
    overflow: str | None = None

    def __str__(self) -> str:
        return f"{self.glob}={self.bits}" + (f":{self.overflow}" if self.overflow else "")


def parse_rule(text: str) -> Rule:
    """A rule from WHAT=BITS, WHAT=BITS:wrap or WHAT=BITS:saturate; UserError if it is none."""
    found = re.fullmatch(r"(\S+)=([0-9]{1,3})(?::(\w+))?", text, re.ASCII)
    if found is None or found[3] not in (None, *OVERFLOWS):
        raise UserError(f"{text!r} is not WHAT=BITS, WHAT=BITS:wrap or WHAT=BITS:saturate, such as '*.acc=20:wrap'")
    return Rule(found[1], int(found[2]), found[3])


def narrow(program: Program, rules: Sequence[Rule]) -> Program:
    """A Program in which the tensors that the rules name have other widths; a later rule overrides an earlier one.

    Its provenance says so (`what_if`, `what_if_of`: the hash it started from).  Without rules it is `program` itself.
    Raises UserError if a rule names no tensor or one that cannot have the width, or if the result is not valid.
    """
    if not rules:
        return program
    plan = _Plan(program)
    for rule in rules:
        plan.apply(rule)
    try:
        made = plan.rebuild() if plan.formats or plan.fractions else _copy(program)
    except ProgramError as problem:
        raise UserError(f"what-if {', '.join(map(str, rules))}: {problem}") from None
    for name, (bits, overflow) in plan.accumulators.items():
        made.tensors[name] = replace(made.tensors[name], bits=bits, overflow=overflow)
    made.provenance = {
        **program.provenance,
        "what_if": [*program.provenance.get("what_if", []), *map(str, rules)],
        "what_if_of": program.provenance.get("what_if_of", program.digest),
    }
    made.digest = None
    validate(made)
    return made


def accumulators(program: Program) -> list[str]:
    """The accumulators whose width is proven, and may be narrower."""
    return [op.tensor(port) for op in program.operators for port in KINDS[op.kind].narrowable]


def a_bars(program: Program) -> list[str]:
    """A-bar of all scans."""
    return [op.tensor("abar") for op in program.operators if op.kind == "scan"]


def state_tensors(program: Program) -> list[str]:
    """The states h of all scans."""
    return [name for name, tensor in program.tensors.items() if tensor.role == "state"]


def rom_inputs(program: Program) -> list[str]:
    """The tensors that a ROM reads."""
    read = {op.inputs["x"] for op in program.operators if op.kind == "rom"}
    return [name for name in program.tensors if name in read]


def residual_stream(program: Program) -> list[str]:
    """The tensors that share the residual format: what is added, selected and given a class token, before and after."""
    stream = set()
    for op in program.operators:
        if op.kind in RESIDUAL_PORTS:
            stream |= {op.inputs[port] for port in RESIDUAL_PORTS[op.kind]} | {op.tensor("out")}
    return [name for name in program.tensors if name in stream]


CLASSES: dict[str, Callable[[Program], list[str]]] = {
    "accumulators": accumulators,
    "states": state_tensors,
    "a-bar": a_bars,
    "residual": residual_stream,
    "rom-inputs": rom_inputs,
}


def _copy(program: Program) -> Program:
    return replace(
        program,
        tensors=dict(program.tensors),
        constants=dict(program.constants),
        arrays=dict(program.arrays),
        operators=list(program.operators),
    )


class _Plan:
    """What the rules change, collected before anything is made.

    accumulators: name -> (bits, overflow); formats: name -> (bits, exponent) of a value; fractions: operator -> m.
    """

    def __init__(self, program: Program):
        self.program = program
        self.accumulators: dict[str, tuple[int, str]] = {}
        self.formats: dict[str, tuple[int, int]] = {}
        self.fractions: dict[str, int] = {}
        self.values = {*state_tensors(program), *rom_inputs(program), *residual_stream(program)}
        self.residual = set(residual_stream(program))
        self.rom_inputs = set(rom_inputs(program))

    def apply(self, rule: Rule) -> None:
        if rule.glob in CLASSES:
            names = CLASSES[rule.glob](self.program)
        else:
            names = [name for name in self.program.tensors if name == rule.glob or fnmatchcase(name, rule.glob)]
        if not names:
            raise UserError(
                f"what-if {rule}: no tensor matches {rule.glob!r}; names look like {self.program.logits}, "
                f"classes are {', '.join(CLASSES)}"
            )
        for name in names:
            self.change(rule, name, self.program.tensors[name])

    def change(self, rule: Rule, name: str, tensor: Tensor) -> None:
        op = self.program.producer(name)
        port = "" if op is None else name[len(op.name) + 1 :]
        if op is not None and port in KINDS[op.kind].narrowable:
            self.between(rule, name, MIN_NARROW, self.full_width(op, port))
            if rule.overflow is None:
                raise UserError(f"what-if {rule}: {name} is an accumulator, say whether it is to wrap or to saturate")
            self.accumulators[name] = (rule.bits, rule.overflow)
        elif op is not None and op.kind == "scan" and port == "abar":
            self.between(rule, name, 2, 16)
            if rule.overflow is not None:
                raise UserError(f"what-if {rule}: {name} loses fraction bits, it can neither wrap nor saturate")
            self.fractions[op.name] = rule.bits - 1
        elif name in self.values:
            if rule.overflow == "wrap":
                raise UserError(f"what-if {rule}: {name} is a requantized value, which saturates and never wraps")
            # a ROM has entries for the codes of its input, and no others
            self.between(rule, name, MIN_VALUE, tensor.bits if name in self.rom_inputs else 16)
            assert tensor.exponent is not None
            cut = 0 if rule.overflow == "saturate" else tensor.bits - rule.bits
            self.formats[name] = (rule.bits, tensor.exponent + cut)
        else:
            raise UserError(
                f"what-if {rule}: {name} cannot have another width; what can are accumulators (acc, y_acc), states "
                "(h), abar, the inputs of ROMs and the residual stream"
            )

    def between(self, rule: Rule, name: str, low: int, high: int) -> None:
        if not low <= rule.bits <= high:
            raise UserError(f"what-if {rule}: {name} can have {low} .. {high} bits")

    def full_width(self, op: Operator, port: str) -> int:
        """Bits of an accumulator that is not narrowed."""
        return KINDS[op.kind].derived_tensors(View(self.program, op))[port].bits

    def cut(self, name: str) -> int:
        """How many least significant bits a tensor loses (negative: gains)."""
        if name not in self.formats:
            return 0
        return self.formats[name][1] - (self.program.tensors[name].exponent or 0)

    def rebuild(self) -> Program:
        """The Program, built anew with the chosen formats: every shift, exponent and proof follows from them."""
        old = self.program
        self.check_stream()
        profile = old.profile
        states = {self.formats.get(name, (old.tensors[name].bits, 0))[0] for name in state_tensors(old)}
        if PROFILES[profile] is not None and states != {PROFILES[profile]}:
            profile = next((p for p, bits in PROFILES.items() if states == {bits}), "custom")
        b = Builder(
            old.name,
            profile=profile,
            rounding=old.rounding,
            image=old.image,
            classes=old.classes,
            provenance=old.provenance,
        )
        for op in old.operators:
            self.add(b, op)
        made = b.finish()
        for name, declared in old.constants.items():  # a constant may declare fewer bits than it could
            if declared.bits < made.constants[name].bits and np.array_equal(old.arrays[name], made.arrays[name]):
                made.constants[name] = replace(made.constants[name], bits=declared.bits)
                made.arrays[name] = old.arrays[name]
        for name in old.narrowed:
            before = old.tensors[name]
            made.tensors[name] = replace(made.tensors[name], bits=before.bits, overflow=before.overflow)
        return made

    def check_stream(self) -> None:
        """One format for the residual stream; what reads a changed tensor must be of a kind that `scaled` knows."""
        formats = {self.formats.get(name) for name in self.residual}
        if len(formats) > 1:
            missing = next(n for n in self.program.tensors if n in self.residual and self.formats.get(n) is None)
            raise UserError(f"what-if: the residual stream has one format; {missing} must have the others' width too")
        for op in self.program.operators:
            for name in op.inputs.values():
                known = ("rmsnorm", *RESIDUAL_PORTS) if name in self.residual else ("rom",)
                if name in self.formats and op.kind not in known:
                    raise UserError(f"what-if: {name} is also read by {op.name} ({op.kind}), so its width must stay")

    def add(self, b: Builder, op: Operator) -> None:
        old = self.program
        kind, v = KINDS[op.kind], View(old, op)
        derived = kind.derived_attributes(v)
        attributes = {key: value for key, value in op.attributes.items() if key not in derived}
        given = kind.given(v)
        constants = {role: v.array(role) for role in op.constants if role in given}
        outputs = {port: self.out(op.tensor(port)) for port in kind.ports(v)}
        self.scaled(op, constants, attributes)
        b.add(op.kind, op.name, op.inputs, constants, attributes, outputs)

    def out(self, name: str) -> Out:
        tensor = self.program.tensors[name]
        assert tensor.exponent is not None
        bits, exponent = self.formats.get(name, (tensor.bits, tensor.exponent))
        group = next((term for term in tensor.terms if term.shifts is not None), None)
        if group is None:
            return Out(bits, exponent, tensor.signed)
        index = self.program.arrays[group.index or ""]
        return Out(bits, exponent, tensor.signed, group.axis, group.shifts or (), index)

    def scaled(self, op: Operator, constants: dict[str, Int64], attributes: dict[str, Any]) -> None:
        """Moves an operator's given constants and attributes to the scale of a tensor that lost bits."""
        mode = self.program.rounding
        if op.kind == "scan":
            attributes["abar_fraction"] = self.fractions.get(op.name, attributes["abar_fraction"])
            constants["D"] = round_shift(constants["D"], self.cut(op.tensor("h")), mode)
        elif op.kind == "insert_token" and op.tensor("out") in self.formats:
            bits = self.formats[op.tensor("out")][0]
            for role in ("cls_token", "pos_embed"):
                moved = round_shift(constants[role], self.cut(op.tensor("out")), mode)
                constants[role] = saturate(moved, bits, True)
        elif op.kind == "rmsnorm":
            moved = round_shift(attributes["eps_q"], 2 * self.cut(op.inputs["x"]), "half_up")
            attributes["eps_q"] = max(1, int(moved))
        elif op.kind == "rom":
            constants["rom"] = constants["rom"][:, rom_entries(self.cut(op.inputs["x"]))]


def rom_entries(cut: int) -> Int64:
    """Which entries of a 256-entry ROM belong to the codes -128 .. 127 of an input that lost `cut` bits.

    Code i of the narrower input is code i * 2^cut of the old one; codes that it cannot have repeat the ends.
    """
    return np.clip(int64(np.arange(-128, 128)) << max(cut, 0), -128, 127) + 128
