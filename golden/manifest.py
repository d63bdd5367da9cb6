"""The manifest of a golden bundle: what every integer in it means (FORMAT.md states each field).

A manifest is written in one canonical form, so that two bundles of the same content have the same manifest but for
the field `run`, and a reader can tell any edit.
"""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from json.encoder import encode_basestring_ascii
from typing import Any

from golden.formats.style import Style
from intsim import __version__
from intsim.errors import UserError
from intsim.program import Constant, Program, Tensor

FORMAT = "intsim-bundle"
PLAIN_VERSION, FORMAT_VERSION = "1.0", "1.1"
NAME = "manifest.json"
PROGRAM_FILE = "program.safetensors"
PLAIN = Style()

SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*")
MAX_NAME = 200


def check_names(program: Program) -> None:
    """Refuses a Program with a tensor or constant whose name cannot be a file name on every system."""
    for name in [*program.tensors, *program.constants]:
        if not SAFE_NAME.fullmatch(name) or len(name) > MAX_NAME:
            raise UserError(
                f"{name[:80]!r} cannot name a file: allowed are up to {MAX_NAME} letters, digits, '_', '.' and '-'"
            )


def scale(program: Program, declared: Tensor | Constant) -> dict[str, Any]:
    """Exponent, groups and offsets of a tensor or constant, with every index and offset written out."""
    groups, offsets = [], []
    for term in declared.terms:
        source = term.offset if term.offset is not None else term.index
        assert source is not None
        values = program.arrays[source].tolist()
        if term.offset is not None:
            offsets.append({"axis": term.axis, "values": values, "constant": source})
        else:
            shifts = list(term.shifts or ())
            groups.append({"axis": term.axis, "shifts": shifts, "index": values, "constant": source})
    return {"exponent": declared.exponent, "groups": groups, "offsets": offsets}


def version_of(style: Style) -> str:
    """The lowest version of FORMAT.md that describes a bundle: 1.0 where nothing but the default is asked for."""
    return PLAIN_VERSION if style.plain else FORMAT_VERSION


def layout(declared: Tensor | Constant, style: Style = PLAIN) -> dict[str, Any]:
    """Shape, width and order of words: all that is needed to read the files."""
    where = style.layout(declared)
    fields = {
        "axes": list(declared.axes),
        "shape": list(declared.shape),
        "order": where.order,
        "bits": declared.bits,
        "signed": declared.signed,
        "dtype": declared.dtype.name,
        "words": where.words,
        "hex_digits": where.digits,
        "lanes": where.packing.lanes,
        "lane_order": where.packing.lane_order,
    }
    if not style.plain:
        fields["padding"] = where.padding
    return fields


def tensor_entry(program: Program, name: str, style: Style = PLAIN) -> dict[str, Any]:
    """Entry of a tensor: who makes it, how to read its files, what its integers mean."""
    tensor = program.tensors[name]
    op = program.producer(name)
    narrow = {} if tensor.overflow is None else {"overflow": tensor.overflow}
    return {
        "operator": op.name if op else None,
        "kind": op.kind if op else None,
        "port": name[len(op.name) + 1 :] if op else None,
        "role": tensor.role,
        **layout(tensor, style),
        **narrow,
        **scale(program, tensor),
    }


def constant_users(program: Program) -> dict[str, list[tuple[str, str]]]:
    """constant -> (operator, role) of each that reads it, in execution order."""
    users: dict[str, list[tuple[str, str]]] = {name: [] for name in program.constants}
    for op in program.operators:
        for role, name in op.constants.items():
            users[name].append((op.name, role))
    return users


def constant_entry(program: Program, name: str, users: list[tuple[str, str]], style: Style = PLAIN) -> dict[str, Any]:
    """Entry of a constant, without its files; users: of `constant_users`."""
    constant = program.constants[name]
    return {
        "operators": [operator for operator, _ in users],
        "role": users[0][1],
        **layout(constant, style),
        **scale(program, constant),
    }


def program_entry(program: Program) -> dict[str, Any]:
    """The Program's identity, without its file."""
    height, width, channels = program.image
    return {
        "sha256": program.digest,
        "name": program.name,
        "profile": program.profile,
        "rounding": program.rounding,
        "image": {"height": height, "width": width, "channels": channels},
        "classes": list(program.classes),
        "logits": program.logits,
    }


def describe(program: Program, style: Style = PLAIN) -> dict[str, Any]:
    """Everything of a manifest that follows from the Program and the style alone (no files, no images)."""
    users = constant_users(program)
    return {
        "format": FORMAT,
        "version": version_of(style),
        "spec": program.spec,
        "tool": {"name": "intsim", "version": __version__},
        "program": program_entry(program),
        **({} if style.plain else {"layout": style.to_json()}),
        "operators": [op.to_json() for op in program.operators],
        "tensors": {name: tensor_entry(program, name, style) for name in program.tensors},
        "constants": {name: constant_entry(program, name, users[name], style) for name in program.constants},
    }


class Packed(Sequence[Any]):
    """A list of JSON values that is kept compressed, so that a manifest of many images takes little memory.

    Most of an image's entry are paths that follow from names; what is left are its hashes.
    """

    def __init__(self) -> None:
        self._items: list[bytes] = []

    def append(self, item: Any) -> None:
        self._items.append(zlib.compress(json.dumps(item).encode()))

    def extend(self, other: Packed) -> None:
        """Appends what another holds, as it is."""
        self._items += other._items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        return json.loads(zlib.decompress(self._items[i]))


def canonical(value: Any) -> bytes:
    """JSON in the one form that is hashed: keys sorted, no white space, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def content_digest(manifest: dict[str, Any]) -> str:
    """SHA-256 over everything of a manifest but `run` and `content_sha256` itself."""
    digest = hashlib.sha256()
    between = b"{"
    for key in sorted(manifest.keys() - {"run", "content_sha256"}):
        digest.update(between + canonical(key) + b":")
        value = manifest[key]
        if isinstance(value, Packed):  # one at a time
            for i, item in enumerate(value):
                digest.update((b"," if i else b"[") + canonical(item))
            digest.update(b"]" if value else b"[]")
        else:
            digest.update(canonical(value))
        between = b","
    digest.update(b"}")
    return digest.hexdigest()


def run_digest(content_sha256: str, command: str, time: str) -> str:
    """SHA-256 that ties `run` to the content, so that an edit of the command line or the time is seen too."""
    return hashlib.sha256(canonical([content_sha256, command, time])).hexdigest()


def seal(manifest: dict[str, Any], command: str, time: str) -> None:
    """Adds the digests and `run`: the last step before a manifest is written."""
    digest = content_digest(manifest)
    manifest["content_sha256"] = digest
    manifest["run"] = {"command": command, "time": time, "sha256": run_digest(digest, command, time)}


def render(value: Any) -> str:
    """JSON text for people: a field a line, lists of numbers and of text on one line, ASCII, one final line break."""
    return "".join(rendered(value))


def rendered(value: Any) -> Iterator[str]:
    """The same in pieces: the fields of an object one by one, and within them the items of what is `Packed`."""
    if not isinstance(value, dict) or not value:
        yield _render(value, 0) + "\n"
        return
    between = "{\n"
    for key, item in value.items():
        yield f"{between} {json.dumps(key)}: "
        if isinstance(item, Packed) and item:
            for i, entry in enumerate(item):
                yield (",\n" if i else "[\n") + "  " + _render(entry, 2)
            yield "\n ]"
        else:
            yield _render([] if isinstance(item, Packed) else item, 1)
        between = ",\n"
    yield "\n}\n"


def _render(value: Any, depth: int) -> str:
    if isinstance(value, str):  # most of what there is
        return encode_basestring_ascii(value)
    if type(value) is int:  # and most of the rest
        return str(value)
    compound = (dict, list)
    if not isinstance(value, compound) or not value:
        return json.dumps(value, ensure_ascii=True)
    pad, end = " " * (depth + 1), " " * depth
    if isinstance(value, dict):
        fields = [f"{pad}{encode_basestring_ascii(key)}: {_render(item, depth + 1)}" for key, item in value.items()]
        return "{\n" + ",\n".join(fields) + f"\n{end}}}"
    kinds = set(map(type, value))
    if kinds == {int}:  # most lists; json.dumps would set up an encoder for each
        return "[" + ", ".join(map(str, value)) + "]"
    if kinds == {str}:
        return "[" + ", ".join(map(encode_basestring_ascii, value)) + "]"
    if kinds & set(compound) and any(isinstance(item, compound) and item for item in value):
        return "[\n" + ",\n".join(pad + _render(item, depth + 1) for item in value) + f"\n{end}]"
    return json.dumps(value, ensure_ascii=True)
