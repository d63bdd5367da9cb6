"""Reading and writing a Program file: safetensors with the description in its metadata (SPEC 3.1).

Reading checks the digest first, then everything else; nothing in a file is executed.  The file is mapped into memory,
not copied: the arrays are views of it, and a change of theirs stays in the process.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from intsim import SPEC_VERSION
from intsim.errors import ProgramError
from intsim.files import write_atomically
from intsim.program import Array, Constant, Operator, Program, Tensor, Term
from intsim.validate import validate

KEY = "intsim"
MARK = rb"\"sha256\":\""
ZEROS = b"0" * 64
DTYPES = {  # those of safetensors that NumPy has; `validate` names a constant that is not of integers
    f"{kind}{8 * size}": np.dtype(f"<{kind.lower()}{size}")
    for kind, sizes in (("I", (1, 2, 4, 8)), ("U", (1, 2, 4, 8)), ("F", (2, 4, 8)))
    for size in sizes
}
MAX_HEADER = 64 << 20
MAX_FILE = 4 << 30
MAX_MESSAGE = 1000
FIELDS = {
    *("format", "spec", "sha256", "name", "profile", "rounding", "image", "classes", "provenance"),
    *("tensors", "constants", "operators"),
}


def describe(program: Program) -> dict[str, Any]:
    """The description of SPEC 3.2 as plain JSON data, with 64 zeros for the digest."""
    height, width, channels = program.image
    return {
        "format": "intsim-program",
        "spec": program.spec,
        "sha256": ZEROS.decode(),
        "name": program.name,
        "profile": program.profile,
        "rounding": program.rounding,
        "image": {"height": height, "width": width, "channels": channels},
        "classes": program.classes,
        "provenance": program.provenance,
        "tensors": {name: t.to_json() for name, t in program.tensors.items()},
        "constants": {name: c.to_json() for name, c in program.constants.items()},
        "operators": [op.to_json() for op in program.operators],
    }


def program_bytes(program: Program) -> bytes:
    """The file's bytes, the same for the same Program; also sets `program.digest`."""
    try:
        text = json.dumps(describe(program), separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as problem:
        raise ProgramError(f"provenance cannot be written as JSON: {problem}") from None
    data = safetensors.numpy.save(dict(program.arrays), metadata={KEY: text})
    at = data.find(MARK)
    if at < 0:
        raise ProgramError("the description has no sha256 field")
    at += len(MARK)
    digest = hashlib.sha256(data).hexdigest()
    program.digest = digest
    return data[:at] + digest.encode() + data[at + 64 :]


def save_program(program: Program, path: str | os.PathLike[str]) -> str:
    """Checks and writes a Program (to a temporary name, then renamed); returns its hash."""
    validate(program)
    write_atomically(Path(path), program_bytes(program))
    assert program.digest is not None
    return program.digest


def load_program(path: str | os.PathLike[str]) -> Program:
    """Reads and checks a Program file.

    Raises ProgramError, one sentence that names the file, if it cannot be read or anything in it is not as SPEC.md
    says: digest, shapes, dtypes, ranges, exponents, group indices, ROM sizes, wiring, accumulator widths.
    """
    try:
        size = os.path.getsize(path)
        if not os.path.isfile(path):  # a device or a pipe may never end
            raise ProgramError("cannot be read: it is not a regular file")
        if size > MAX_FILE:
            raise ProgramError(f"it has {size} bytes, at most {MAX_FILE} are allowed")
        with open(path, "rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) if size else bytearray()
    except OSError as problem:
        raise ProgramError(f"{path}: cannot be read: {problem.strerror}") from None
    except ValueError as problem:  # ProgramError is one
        raise ProgramError(f"{path}: {problem}") from None
    try:
        return _printable(data)
    except ProgramError as problem:
        raise ProgramError(f"{path}: {problem}") from None


def parse_program(data: bytes) -> Program:
    """A Program from the bytes of its file; ProgramError, one printable line, if anything is wrong."""
    return _printable(bytearray(data))  # a copy, so that the arrays can be written


def _printable(data: bytearray | mmap.mmap) -> Program:
    try:
        return _parse(data)
    except ProgramError as problem:
        raise ProgramError(one_line(str(problem))) from None


def one_line(message: str) -> str:
    """A message without the line breaks and control characters that a file can smuggle into it, and not too long."""
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in message)
    return shown if len(shown) <= MAX_MESSAGE else shown[:MAX_MESSAGE] + "..."


def _parse(data: bytearray | mmap.mmap) -> Program:
    if len(data) < 8:
        raise ProgramError(f"not a Program file: it has only {len(data)} bytes")
    length = int.from_bytes(data[:8], "little")
    if length > min(MAX_HEADER, len(data) - 8):
        raise ProgramError("not a Program file, or truncated: its header does not fit")
    at = data.find(MARK, 0, 8 + length)
    if at < 0:
        raise ProgramError("not a Program file: no description with a sha256")
    at += len(MARK)
    stated = data[at : at + 64]
    hasher = hashlib.sha256()
    for part in (memoryview(data)[:at], ZEROS, memoryview(data)[at + 64 :]):
        hasher.update(part)
    digest = hasher.hexdigest()
    if digest.encode() != stated:
        raise ProgramError("the sha256 of its content is not the one it states: the file was changed or truncated")
    try:
        header = strict_json(data[8 : 8 + length].decode())
        metadata = header["__metadata__"]
        if not isinstance(metadata, dict) or set(metadata) != {KEY}:
            raise ProgramError(f"not a Program file: its __metadata__ must have the key {KEY!r} and no other")
        description = strict_json(metadata[KEY])
    except ProgramError:
        raise
    except RecursionError:
        raise ProgramError("not a Program file: its JSON is nested too deeply") from None
    except (KeyError, TypeError, ValueError, AttributeError) as problem:
        raise ProgramError(f"not a Program file: {type(problem).__name__}: {problem}") from None
    try:
        arrays = views({name: entry for name, entry in header.items() if name != "__metadata__"}, data, 8 + length)
    except (KeyError, TypeError, ValueError, AttributeError) as problem:  # ProgramError is a ValueError
        raise ProgramError(f"not a Program file: {problem}") from None
    try:
        program = from_description(description)
    except ProgramError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as problem:
        raise ProgramError(f"the description is malformed: {type(problem).__name__}: {problem}") from None
    if description["sha256"] != digest:
        raise ProgramError("the first sha256 in its bytes is not the description's")
    program.arrays = arrays
    program.digest = digest
    validate(program)
    return program


def views(entries: dict[str, Any], data: bytearray | mmap.mmap, start: int) -> dict[str, Array]:
    """The arrays of a safetensors file, whose data begin at byte `start`: one behind the other, without a gap."""
    arrays: dict[str, Array] = {}
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
        if set(entry) != {"dtype", "shape", "data_offsets"} or entry["dtype"] not in DTYPES:
            raise ProgramError(f"array {name!r} needs a shape, data_offsets and a dtype of {', '.join(DTYPES)}")
        dtype = DTYPES[entry["dtype"]]
        shape = [integer(n, name, "shape") for n in typed(entry["shape"], list, "shape")]
        first, last = (integer(n, name, "data offset") for n in entry["data_offsets"])
        if min(shape, default=0) < 0 or first != end or last - first != math.prod(shape) * dtype.itemsize:
            raise ProgramError(f"the data of array {name!r} are not where its shape says")
        end = last
        if start + end > len(data):
            break
        array = np.frombuffer(data, dtype, math.prod(shape), start + first) if first < last else np.empty(0, dtype)
        arrays[name] = np.require(array, dtype.newbyteorder("="), ["ALIGNED"]).reshape(shape)
    if start + end != len(data):
        raise ProgramError("its data are longer or shorter than its arrays")
    return arrays


def strict_json(text: str) -> Any:
    """JSON as RFC 8259 has it: no NaN, no infinity, and no name twice in an object."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in pairs:
            if name in found:
                raise ProgramError(f"its JSON has the name {name!r} twice in one object")
            found[name] = value
        return found

    def refuse(number: str) -> float:
        raise ProgramError(f"its JSON holds {number}, which is not a finite number")

    def finite(number: str) -> float:
        return float(number) if math.isfinite(float(number)) else refuse(number)

    return json.loads(text, object_pairs_hook=unique, parse_constant=refuse, parse_float=finite)


def from_description(d: dict[str, Any]) -> Program:
    """Program without arrays from the description; the result still has to be validated."""
    if d["format"] != "intsim-program":
        raise ProgramError(f"format is {d['format']!r}, must be 'intsim-program'")
    if not readable(d["spec"]):
        raise ProgramError(f"it was made for SPEC version {d['spec']!r}, this reads up to {SPEC_VERSION}")
    if set(d) != FIELDS:
        raise ProgramError(f"the description's fields are {sorted(d)}, must be {sorted(FIELDS)}")
    for name in ("name", "profile", "rounding"):
        text(d[name], name)
    for name in ("image", "provenance", "tensors", "constants"):
        typed(d[name], dict, name)
    height, width, channels = (integer(d["image"][n], "image", n) for n in ("height", "width", "channels"))
    classes = [text(c, "class") for c in typed(d["classes"], list, "classes")]
    program = Program(d["name"], d["profile"], d["rounding"], (height, width, channels), classes, d["provenance"])
    for name, t in d["tensors"].items():
        tensor = Tensor(name, text(t["role"], "role"), *declared(name, t))
        overflow = text(t["overflow"], "overflow") if "overflow" in t else None
        program.tensors[name] = replace(tensor, overflow=overflow)
    for name, c in d["constants"].items():
        program.constants[name] = Constant(name, *declared(name, c))
    for o in typed(d["operators"], list, "operators"):
        inputs = {text(k, "port"): text(v, "input") for k, v in o["inputs"].items()}
        constants = {text(k, "role"): text(v, "constant") for k, v in o["constants"].items()}
        outputs = tuple(text(p, "port") for p in typed(o["outputs"], list, "outputs"))
        attributes = typed(o["attributes"], dict, "attributes")
        program.operators.append(
            Operator(text(o["name"], "name"), text(o["kind"], "kind"), inputs, constants, attributes, outputs)
        )
    if program.narrowed and d["spec"] == "1.0":
        raise ProgramError(f"tensor {program.narrowed[0]} has an overflow, which SPEC version 1.0 does not know")
    return program


def readable(version: Any) -> bool:
    """Whether this can read a Program of that version of SPEC.md: the major number is the same, the minor not newer."""
    parts = re.fullmatch(r"(0|[1-9][0-9]{0,5})\.(0|[1-9][0-9]{0,5})", version) if isinstance(version, str) else None
    major, minor = (int(n) for n in SPEC_VERSION.split("."))
    return parts is not None and int(parts[1]) == major and int(parts[2]) <= minor


def declared(name: str, d: dict[str, Any]) -> tuple[Any, ...]:
    """(axes, shape, bits, signed, exponent, terms) of a tensor or constant."""
    axes = tuple(text(a, "axis") for a in typed(d["axes"], list, "axes"))
    shape = tuple(integer(n, name, "shape") for n in typed(d["shape"], list, "shape"))
    if not isinstance(d["signed"], bool):
        raise ProgramError(f"{name}: signed is {brief(d['signed'])}, must be true or false")
    exponent = None if d["exponent"] is None else integer(d["exponent"], name, "exponent")
    terms = []
    for t in typed(d["terms"], list, "terms"):
        if "offset" in t:
            terms.append(Term(text(t["axis"], "axis"), offset=text(t["offset"], "offset")))
        else:
            shifts = tuple(integer(s, name, "shift") for s in typed(t["shifts"], list, "shifts"))
            terms.append(Term(text(t["axis"], "axis"), shifts=shifts, index=text(t["index"], "index")))
    return axes, shape, integer(d["bits"], name, "bits"), d["signed"], exponent, tuple(terms)


def text(value: Any, what: str) -> str:
    return typed(value, str, what)


def typed(value: Any, kind: type, what: str) -> Any:
    if not isinstance(value, kind):
        names: dict[type, str] = {str: "text", list: "a list", dict: "an object"}
        raise ProgramError(f"{what} is {brief(value)}, must be {names[kind]}")
    return value


def integer(value: Any, name: str, what: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) >= 1 << 63:
        raise ProgramError(f"{name}: {what} is {brief(value)}, must be an integer of 64 bits")
    return value


def brief(value: Any) -> str:
    """A value for a message, not too long."""
    shown = repr(value) if not isinstance(value, (list, dict)) else f"a {type(value).__name__}"
    return shown if len(shown) <= 100 else shown[:100] + "..."
