"""Headers that are made from a Program, so that hardware and its drivers cannot drift from it.

    items(program)           what they say: numbers, texts and tables by name
    sv_package(program)      a SystemVerilog package of localparams
    c_header(program)        a C header of macros and constant arrays
    write_headers(out, ...)  both, in a new folder

Both texts are rendered from the same `items`: what one says the other says, under the same names (in C with the
header's name in front).  FORMAT.md section "headers" states the names.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from golden import manifest
from intsim import __version__
from intsim.arithmetic import ROUNDINGS, bits_needed, container
from intsim.errors import UserError
from intsim.files import new_folder
from intsim.program import Array, Constant, Operator, Program, Tensor
from intsim.validate import check_operator

NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
TABLE_BITS = 8  # a table holds plain integers of at most so many bits: shifts, exponents, group and ROM indices
PER_LINE = 16  # elements of a table in a line
PLURAL = {"row": "ROWS", "column": "COLUMNS", "token": "TOKENS", "channel": "CHANNELS", "state": "STATES"}
PLURAL |= {"input": "INPUTS", "tap": "TAPS", "rom": "ROMS", "entry": "ENTRIES"}


@dataclass(frozen=True)
class Item:
    """One statement: `value` is an integer, a text, a table (1-D integer array), or None for a title."""

    name: str
    value: int | str | Array | None
    note: str = ""


def identifier(name: str) -> str:
    """The Program's name in capitals, every other character an underscore: layers.0.norm -> LAYERS_0_NORM."""
    return re.sub(r"[^A-Z0-9]", "_", name.upper())


def items(program: Program) -> list[Item]:
    """Everything that the headers say, in order, each under a name of its own."""
    manifest.check_names(program)
    return number_names(_items(program))


def number_names(given: Iterable[Item]) -> list[Item]:
    """Where names of a Program become the same identifier, the second gets `_2` behind it, and so on."""
    taken: set[str] = set()
    unique = []
    for item in given:
        name, count = item.name, 1
        if item.value is not None:
            while name in taken:
                count += 1
                name = f"{item.name}_{count}"
            taken.add(name)
        unique.append(replace(item, name=name))
    return unique


def _items(program: Program) -> Iterator[Item]:
    yield Item("the Program", None)
    yield Item("PROGRAM_NAME", program.name)
    yield Item("PROGRAM_SHA256", program.digest or "", "golden files made from it bear the same")
    yield Item("PROGRAM_PROFILE", program.profile)
    yield Item("SPEC_VERSION", program.spec)
    major, minor = program.spec.split(".")
    yield Item("SPEC_MAJOR", int(major))
    yield Item("SPEC_MINOR", int(minor))
    yield Item("ROUNDING", ROUNDINGS.index(program.rounding), program.rounding)
    for code, mode in enumerate(ROUNDINGS):
        yield Item(f"ROUNDING_{mode.upper()}", code)
    yield Item("dimensions; the largest, where operators differ", None)
    yield from (Item(name, value, note) for name, (value, note) in dimensions(program).items())
    yield Item("image: the input", None)
    yield from tensor_items(program, program.tensors["image"])
    for op in program.operators:
        yield from operator_items(program, op)
    shared = {n: c for n, c in program.constants.items() if not any(_owns(op, n) for op in program.operators)}
    for name, constant in shared.items():
        yield Item(f"{name}: shared", None)
        yield from constant_items(program, constant)


def _owns(op: Operator, constant: str) -> bool:
    return constant in op.constants.values() and constant.startswith(op.name + ".")


def dimensions(program: Program) -> dict[str, tuple[int, str]]:
    """name -> (value, note): the sizes and widths that a design is parametrised by, as far as the Program has them."""
    height, width, _ = program.image  # IMAGE_CHANNELS comes with the tensor
    found: dict[str, tuple[int, str]] = {
        "IMAGE_HEIGHT": (height, ""),
        "IMAGE_WIDTH": (width, ""),
        "CLASSES": (math.prod(program.tensors[program.logits].shape), ""),
    }

    def largest(name: str, values: list[int], note: str = "") -> None:
        if values:
            found[name] = (max(values), note)

    by_kind: dict[str, list[Operator]] = {}
    for op in program.operators:
        by_kind.setdefault(op.kind, []).append(op)

    def shape(op: Operator, port: str) -> tuple[int, ...]:
        return program.tensors[op.tensor(port)].shape

    def bits(kind: str, port: str) -> list[int]:
        return [program.tensors[op.tensor(port)].bits for op in by_kind.get(kind, [])]

    scans, gates, patches = by_kind.get("scan", []), by_kind.get("gate", []), by_kind.get("patch_embed", [])
    inserts, convs, norms = by_kind.get("insert_token", []), by_kind.get("conv1d", []), by_kind.get("rmsnorm", [])
    largest("PATCH", [op.attributes["patch"] for op in patches])
    largest("STRIDE", [op.attributes["stride"] for op in patches])
    largest("PATCHES", [shape(op, "out")[0] for op in patches])
    largest("CLASS_TOKEN", [op.attributes["position"] for op in inserts], "position of the class token")
    largest("TOKENS", [shape(op, "h")[0] for op in scans])
    if gates:
        found["DEPTH"] = (len(gates), "layers")
    largest("WIDTH", [shape(op, "out")[1] for op in norms], "channels of the residual stream")
    largest("INNER", [shape(op, "h")[1] for op in scans], "channels of a scan")
    largest("STATES", [shape(op, "h")[2] for op in scans])
    steps = [
        program.tensors[op.inputs["x"]].shape[1]
        for op in by_kind.get("linear", [])
        if re.fullmatch(r"dt_proj(_b)?", op.name.rpartition(".")[2])
    ]
    largest("DT_RANK", steps)
    largest("CONV_TAPS", [program.constants[op.constants["weight"]].shape[1] for op in convs])
    largest("ABAR_FRACTION", [op.attributes["abar_fraction"] for op in scans], "fraction bits of A-bar")
    largest("STATE_BITS", bits("scan", "h"))
    largest("ABAR_BITS", bits("scan", "abar"))
    largest("RESIDUAL_BITS", bits("insert_token", "out"))
    accumulators = [t.bits for t in program.tensors.values() if t.name.endswith("acc") and t.role == "accumulator"]
    largest("ACCUMULATOR_BITS", accumulators, "declared; NAME_PROVEN_BITS is what each needs")
    activations = [
        t.bits for t in program.tensors.values() if t.role == "output" and t.bits <= 8 and t.exponent is not None
    ]
    largest("ACTIVATION_BITS", activations)
    return found


def operator_items(program: Program, op: Operator) -> Iterator[Item]:
    """An operator: attributes, its tensors, its own constants."""
    name = identifier(op.name)
    sources = ", ".join(f"{port} = {tensor}" for port, tensor in op.inputs.items())
    yield Item(f"{op.name}: {op.kind} of {sources}", None)
    for key, value in op.attributes.items():
        if isinstance(value, int):
            yield Item(f"{name}_{identifier(key)}", value)
        elif key == "segments":
            for segment in value:
                port = identifier(segment["port"])
                yield Item(f"{name}_{port}_START", segment["start"], f"first row of the weight for {segment['port']}")
                yield Item(f"{name}_{port}_STOP", segment["stop"])
    bounds = check_operator(program, op)
    for port in op.outputs:
        yield from tensor_items(program, program.tensors[op.tensor(port)])
        if port in bounds:
            needed = bits_needed(int(bounds[port].low.min()), int(bounds[port].high.max()))
            yield Item(f"{name}_{identifier(port)}_PROVEN_BITS", needed, "no input makes it need more")
    for constant in op.constants.values():
        if _owns(op, constant):
            yield from constant_items(program, program.constants[constant])


def tensor_items(program: Program, tensor: Tensor) -> Iterator[Item]:
    name = identifier(tensor.name)
    yield from _layout_items(name, tensor)
    yield from _scale_items(name, tensor)
    yield Item(f"{name}_FILE", f"{tensor.name}.hex")


def constant_items(program: Program, constant: Constant) -> Iterator[Item]:
    name = identifier(constant.name)
    yield from _layout_items(name, constant)
    yield from _scale_items(name, constant)
    yield Item(f"{name}_FILE", f"constants/{constant.name}.hex")
    if is_table(constant):
        yield Item(f"{name}_TABLE", program.arrays[constant.name].reshape(-1))


def is_table(constant: Constant) -> bool:
    """Whether the headers hold a constant's integers: vectors of shifts, exponents and indices."""
    return len(constant.shape) == 1 and constant.exponent is None and constant.bits <= TABLE_BITS


def _layout_items(name: str, declared: Tensor | Constant) -> Iterator[Item]:
    for axis, length in zip(declared.axes, declared.shape, strict=True):
        yield Item(f"{name}_{PLURAL[axis]}", length)
    yield Item(f"{name}_SIZE", math.prod(declared.shape))
    yield Item(f"{name}_BITS", declared.bits)
    yield Item(f"{name}_SIGNED", int(declared.signed))


def _scale_items(name: str, declared: Tensor | Constant) -> Iterator[Item]:
    """Exponent and terms.  The tables of the terms are constants of their own; their names are in the notes."""
    if declared.exponent is None:
        return
    parts = [f"{term.axis}: {term.offset or f'groups of {term.index}'}" for term in declared.terms]
    yield Item(f"{name}_EXPONENT", declared.exponent, "; ".join(parts))
    groups = [term for term in declared.terms if term.shifts is not None]
    for number, term in enumerate(groups, start=1):
        table = np.array(term.shifts, dtype=np.uint8)
        which = "GROUP_SHIFTS" if number == 1 else f"GROUP_SHIFTS_{number}"
        yield Item(f"{name}_{which}", table, f"by {term.axis}, index {term.index}")


# Rendering


def sv_package(program: Program, name: str = "intsim") -> str:
    """A SystemVerilog-2012 package NAME_pkg, plain enough for Icarus Verilog and for synthesis.

    Numbers are `int` (`longint` beyond), texts untyped string literals.  A table is one packed vector: element i of
    TABLE is TABLE[8*i +: 8] (element 0 lowest), to be read with $signed where TABLE_SIGNED is 1.
    """
    lines = [*(f"// {line}" for line in _preamble(program, f"package {name}_pkg")), "", "`default_nettype none"]
    lines += ["// verilator lint_off UNUSEDPARAM", f"package {name}_pkg;"]
    for item in items(program):
        note = f"  // {item.note}" if item.note else ""
        if item.value is None:
            lines += ["", f"  // {item.name}"]
        elif isinstance(item.value, int):
            kind = "int" if -(1 << 31) < item.value < 1 << 31 else "longint"
            value = str(item.value) if kind == "int" else f"{'-' if item.value < 0 else ''}64'sd{abs(item.value)}"
            lines.append(f"  localparam {kind} {item.name} = {value};{note}")
        elif isinstance(item.value, str):
            lines.append(f"  localparam {item.name} = {_quoted(item.value)};{note}")
        else:
            lines += _sv_table(item, note)
    lines += ["endpackage", "// verilator lint_on UNUSEDPARAM", "`default_nettype wire", ""]
    return "\n".join(lines)


def _sv_table(item: Item, note: str) -> list[str]:
    assert isinstance(item.value, np.ndarray)
    octets = item.value.astype(container(TABLE_BITS, item.value.dtype.kind == "i")).view(np.uint8)
    rows = []
    for start in range((len(octets) - 1) // PER_LINE * PER_LINE, -1, -PER_LINE):  # the highest elements come first
        part = octets[start : start + PER_LINE][::-1]
        comma = "," if start else " "
        rows.append(f"    {8 * len(part)}'h{part.tobytes().hex()}{comma}  // {start + len(part) - 1} .. {start}")
    return [f"  localparam logic [{8 * len(octets) - 1}:0] {item.name} = {{{note}", *rows, "  };"]


def c_header(program: Program, name: str = "intsim") -> str:
    """A C99 and C++ header: macros for numbers and texts, `static const` arrays for tables.

    Every name has the header's name in front: INTSIM_TOKENS.
    """
    guard = f"{name.upper()}_H"
    lines = [*(f"/* {line} */" for line in _preamble(program, f"{name}.h")), ""]
    lines += [f"#ifndef {guard}", f"#define {guard}", "", "#include <stdint.h>"]
    for item in items(program):
        symbol = f"{name.upper()}_{item.name}"
        note = f" /* {item.note} */" if item.note else ""
        if item.value is None:
            lines += ["", f"/* {item.name} */"]
        elif isinstance(item.value, int):
            value = str(item.value) if -(1 << 31) < item.value < 1 << 31 else f"{item.value}LL"
            lines.append(f"#define {symbol} {value if item.value >= 0 else f'({value})'}{note}")
        elif isinstance(item.value, str):
            lines.append(f"#define {symbol} {_quoted(item.value)}{note}")
        else:
            kind = f"{item.value.dtype.name}_t"
            numbers = [str(v) for v in item.value.tolist()]
            rows = [", ".join(numbers[i : i + PER_LINE]) for i in range(0, len(numbers), PER_LINE)]
            lines.append(f"static const {kind} {symbol}[{len(numbers)}] = {{{note}")
            lines += [f"  {row}," for row in rows[:-1]] + [f"  {rows[-1]}", "};"]
    lines += ["", f"#endif /* {guard} */", ""]
    return "\n".join(lines)


def _preamble(program: Program, what: str) -> list[str]:
    return [
        f"{what}: made by intsim {__version__} from a Program; do not edit, run 'intsim headers' again",
        f"SPEC {program.spec}",
        f"program {program.digest}",
        "NAME_FILE lies in a bundle: a constant's at that path, a tensor's in images/0000/ (0001, ...)",
    ]


def _quoted(text: str) -> str:
    """A string literal of SystemVerilog and C; what is not printable ASCII becomes a question mark."""
    plain = "".join(c if c.isascii() and c.isprintable() else "?" for c in text)
    plain = plain.replace("\\", "\\\\").replace('"', '\\"').replace("??", "?\\?")  # "??" begins a trigraph in C
    return f'"{plain}"'


def write_headers(out: Path, program: Program, name: str = "intsim") -> list[str]:
    """Writes NAME_pkg.sv and NAME.h into the new folder `out`; returns the files' names.

    Raises UserError for a name that is no identifier of both languages, or if the folder exists or cannot be written.
    """
    if not NAME.fullmatch(name):
        raise UserError(f"--name {name!r}: must be a small letter, then up to 39 small letters, digits and '_'")
    files = {f"{name}_pkg.sv": sv_package(program, name), f"{name}.h": c_header(program, name)}
    with new_folder(Path(out)) as folder:
        for file, text in files.items():
            (folder / file).write_text(text, encoding="ascii", newline="\n")
    return list(files)
