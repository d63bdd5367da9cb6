"""Reading and writing a Program file: safetensors with the description in its metadata (SPEC 3.1).

Reading checks the digest first, then everything else; nothing in a file is executed.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import safetensors
import safetensors.numpy

from intsim import SPEC_VERSION
from intsim.errors import ProgramError
from intsim.files import write_atomically
from intsim.program import Constant, Operator, Program, Tensor, Term
from intsim.validate import validate

KEY = "intsim"
MARK = rb"\"sha256\":\""
ZEROS = b"0" * 64
MAX_HEADER = 64 << 20
MAX_FILE = 4 << 30


def describe(program: Program) -> dict[str, Any]:
    """The description of SPEC 3.2 as plain JSON data, with 64 zeros for the digest."""
    height, width, channels = program.image
    return {
        "format": "intsim-program",
        "spec": SPEC_VERSION,
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
    text = json.dumps(describe(program), separators=(",", ":"), ensure_ascii=True)
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
        if size > MAX_FILE:
            raise ProgramError(f"it has {size} bytes, at most {MAX_FILE} are allowed")
        data = Path(path).read_bytes()
    except OSError as problem:
        raise ProgramError(f"{path}: cannot be read: {problem.strerror}") from None
    except ProgramError as problem:
        raise ProgramError(f"{path}: {problem}") from None
    try:
        return parse_program(data)
    except ProgramError as problem:
        raise ProgramError(f"{path}: {problem}") from None
    except RecursionError:
        raise ProgramError(f"{path}: the description is nested too deeply") from None


def parse_program(data: bytes) -> Program:
    """A Program from the bytes of its file; ProgramError if anything is wrong."""
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
    digest = hashlib.sha256(data[:at] + ZEROS + data[at + 64 :]).hexdigest()
    if digest.encode() != stated:
        raise ProgramError("the sha256 of its content is not the one it states: the file was changed or truncated")
    try:
        header = json.loads(data[8 : 8 + length])
        text = header["__metadata__"][KEY]
        description = json.loads(text)
        arrays = safetensors.numpy.load(data)
    except (ValueError, KeyError, TypeError, AttributeError, safetensors.SafetensorError) as problem:
        raise ProgramError(f"not a Program file: {type(problem).__name__}: {problem}") from None
    try:
        program = from_description(description)
    except (KeyError, TypeError, ValueError, AttributeError) as problem:
        if isinstance(problem, ProgramError):
            raise
        raise ProgramError(f"the description is malformed: {type(problem).__name__}: {problem}") from None
    program.arrays = arrays
    program.digest = digest
    validate(program)
    return program


def from_description(d: dict[str, Any]) -> Program:
    """Program without arrays from the description; the result still has to be validated."""
    if d["format"] != "intsim-program":
        raise ProgramError(f"format is {d['format']!r}, must be 'intsim-program'")
    if not isinstance(d["spec"], str) or d["spec"].split(".")[0] != SPEC_VERSION.split(".")[0]:
        raise ProgramError(f"it was made for SPEC version {d['spec']}, this is {SPEC_VERSION}")
    for name in ("name", "profile", "rounding"):
        text(d[name], name)
    image = (d["image"]["height"], d["image"]["width"], d["image"]["channels"])
    program = Program(d["name"], d["profile"], d["rounding"], image, [text(c, "class") for c in d["classes"]])
    program.provenance = dict(d["provenance"])
    for name, t in d["tensors"].items():
        program.tensors[name] = Tensor(
            name,
            text(t["role"], "role"),
            *declared(name, t),
        )
    for name, c in d["constants"].items():
        program.constants[name] = Constant(name, *declared(name, c))
    for o in d["operators"]:
        inputs = {text(k, "port"): text(v, "input") for k, v in o["inputs"].items()}
        constants = {text(k, "role"): text(v, "constant") for k, v in o["constants"].items()}
        outputs = tuple(text(p, "port") for p in o["outputs"])
        program.operators.append(
            Operator(text(o["name"], "name"), text(o["kind"], "kind"), inputs, constants, dict(o["attributes"]), outputs)
        )
    return program


def declared(name: str, d: dict[str, Any]) -> tuple[Any, ...]:
    """(axes, shape, bits, signed, exponent, terms) of a tensor or constant."""
    axes = tuple(text(a, "axis") for a in d["axes"])
    shape = tuple(integer(n, name, "shape") for n in d["shape"])
    if not isinstance(d["signed"], bool):
        raise ProgramError(f"{name}: signed is {d['signed']!r}, must be true or false")
    exponent = None if d["exponent"] is None else integer(d["exponent"], name, "exponent")
    terms = []
    for t in d["terms"]:
        if "offset" in t:
            terms.append(Term(text(t["axis"], "axis"), offset=text(t["offset"], "offset")))
        else:
            shifts = tuple(integer(s, name, "shift") for s in t["shifts"])
            terms.append(Term(text(t["axis"], "axis"), shifts=shifts, index=text(t["index"], "index")))
    return axes, shape, integer(d["bits"], name, "bits"), d["signed"], exponent, tuple(terms)


def text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise ProgramError(f"{what} is {value!r}, must be text")
    return value


def integer(value: Any, name: str, what: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ProgramError(f"{name}: {what} is {value!r}, must be an integer")
    return value
