"""The Program file: bit for bit, and refused with one sentence whatever was done to it (SPEC sections 3, 7 and 8).

A file that was damaged fails its digest.  A file that was made by someone else's program, or by a malicious one, has a
good digest: `Sealed` takes a valid file apart, lets a test edit any of it, and puts it together again with its own
writer and the digest that belongs to the new content.
"""

from __future__ import annotations

import copy
import hashlib
import json
import mmap
import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from intsim import load_program, save_program
from intsim.builder import Builder, Out
from intsim.errors import ProgramError, UserError
from intsim.oracle import Oracle
from intsim.program_file import parse_program, program_bytes
from intsim.synthetic import Size, random_program

MARK = b'\\"sha256\\":\\"'
SMALL = Size(image=(4, 4, 1), patch=2, stride=2, width=4, depth=1, inner=4, states=2, dt_rank=1, taps=2, classes=2)


@pytest.fixture(scope="module")
def data() -> bytes:
    """The bytes of a small Program with every operator kind and groups everywhere."""
    return program_bytes(random_program(7, SMALL, extreme=0.2))


def digest(data: bytes) -> bytes:
    at = data.index(MARK) + len(MARK)
    return hashlib.sha256(data[:at] + b"0" * 64 + data[at + 64 :]).hexdigest().encode()


class Sealed:
    """A Program file in parts.  `text` replaces the description's JSON, `header_text` the header's, if not None."""

    def __init__(self, data: bytes):
        (length,) = struct.unpack("<Q", data[:8])
        self.header: dict[str, Any] = json.loads(data[8 : 8 + length])
        self.description: dict[str, Any] = json.loads(self.header["__metadata__"]["intsim"])
        self.body = bytearray(data[8 + length :])
        self.text: str | None = None
        self.header_text: str | None = None

    def array(self, name: str) -> np.ndarray:
        """A constant of the file, writable in place."""
        entry = self.header[name]
        start, stop = entry["data_offsets"]
        dtype = np.dtype(f"<{entry['dtype'][0].lower()}{int(entry['dtype'][1:]) // 8}")
        return np.frombuffer(memoryview(self.body)[start:stop], dtype).reshape(entry["shape"])

    def put(self, name: str, array: np.ndarray, declare: bool = False) -> None:
        """A constant's integers, of any shape and dtype; `declare`: in the description too."""
        letters = {"i": "I", "u": "U", "f": "F"}
        start = len(self.body)
        self.body += array.tobytes()
        self.header[name] = {
            "dtype": f"{letters[array.dtype.kind]}{8 * array.dtype.itemsize}",
            "shape": list(array.shape),
            "data_offsets": [start, len(self.body)],
        }
        if declare:
            self.description["constants"][name]["shape"] = list(array.shape)
        self._pack()

    def drop(self, name: str) -> None:
        del self.header[name]
        self._pack()

    def _pack(self) -> None:
        """safetensors allows no holes."""
        body = bytearray()
        for name, entry in self.header.items():
            if name != "__metadata__":
                start, stop = entry["data_offsets"]
                entry["data_offsets"] = [len(body), len(body) + stop - start]
                body += self.body[start:stop]
        self.body = body

    def operator(self, name: str) -> dict[str, Any]:
        return next(op for op in self.description["operators"] if op["name"] == name)

    def bytes(self) -> bytes:
        text = self.text if self.text is not None else json.dumps(self.description, separators=(",", ":"))
        self.header["__metadata__"] = {**self.header["__metadata__"], "intsim": text}
        header = self.header_text if self.header_text is not None else json.dumps(self.header, separators=(",", ":"))
        head = header.encode("utf-8", "surrogatepass")
        head += b" " * (-len(head) % 8)
        whole = struct.pack("<Q", len(head)) + head + bytes(self.body)
        at = whole.index(MARK) + len(MARK)
        return whole[:at] + digest(whole) + whole[at + 64 :]


def refused(data: bytes) -> str:
    """The one sentence that refuses the file; any other exception, or none, fails the test."""
    with pytest.raises(ProgramError) as caught:
        parse_program(data)
    message = str(caught.value)
    assert message and message.isprintable() and len(message) < 1100, "not one sentence"
    return message


# --- reading and writing ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_round_trip_bit_for_bit(tmp_path: Path, seed: int) -> None:
    program = random_program(seed, SMALL, rounding=("half_up", "half_even", "half_away", "floor")[seed], k=seed + 1)
    program.provenance.update({"top1": 0.125, "note": 'naïve \U0001f40d "sha256":"', "sha256": "f" * 64})
    path = tmp_path / "a.safetensors"
    stated = save_program(program, path)
    read = load_program(path)
    assert read.digest == program.digest == stated == digest(path.read_bytes()).decode()
    for field in ("name", "profile", "rounding", "image", "classes", "provenance", "tensors", "constants", "operators"):
        assert getattr(read, field) == getattr(program, field), field
    assert list(read.tensors) == list(program.tensors) and list(read.constants) == list(program.constants)
    for name, array in program.arrays.items():
        assert read.arrays[name].dtype == array.dtype and np.array_equal(read.arrays[name], array)
    assert program_bytes(read) == path.read_bytes() == program_bytes(program)
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_the_test_s_own_writer_makes_valid_files(data: bytes) -> None:
    sealed = Sealed(data)
    assert sealed.bytes() == data, "the writers differ, so nothing below would show what it should"
    sealed.put("head.weight", sealed.array("head.weight").copy())
    parse_program(sealed.bytes())


def test_the_file_is_as_the_specification_says(data: bytes) -> None:
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    assert list(header["__metadata__"]) == ["intsim"]
    text = header["__metadata__"]["intsim"]
    assert text.isascii() and json.dumps(json.loads(text), separators=(",", ":")) == text
    description = json.loads(text)
    assert set(description) == {
        "format", "spec", "sha256", "name", "profile", "rounding", "image", "classes", "provenance", "tensors",
        "constants", "operators",
    }  # fmt: skip
    assert description["sha256"] == digest(data).decode()
    assert set(description["constants"]) == set(header) - {"__metadata__"}


def test_unwritable_and_unreadable_paths(tmp_path: Path, data: bytes) -> None:
    program = parse_program(data)
    with pytest.raises(UserError, match="nowhere"):
        save_program(program, tmp_path / "nowhere" / "p.safetensors")
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(ProgramError, match="cannot be read"):
            load_program(path)
    (tmp_path / "p.safetensors").write_bytes(data[:-1])
    with pytest.raises(ProgramError, match=r"p\.safetensors"):
        load_program(tmp_path / "p.safetensors")


def test_an_invalid_program_is_not_saved(tmp_path: Path, data: bytes) -> None:
    program = parse_program(data)
    program.arrays["head.shift"] = program.arrays["head.shift"] + np.int8(1)
    with pytest.raises(ProgramError, match="head"):
        save_program(program, tmp_path / "p.safetensors")
    program = parse_program(data)
    program.provenance["loss"] = float("nan")
    with pytest.raises(ProgramError, match="provenance"):
        save_program(program, tmp_path / "p.safetensors")
    assert not list(tmp_path.iterdir())


# --- damage ----------------------------------------------------------------------------------------------------------


def test_every_bit_matters(data: bytes) -> None:
    rng = np.random.default_rng(0)
    front = range(8 * 8)  # the whole length field
    mark = 8 * data.index(MARK)
    stated = range(mark, mark + 8 * (len(MARK) + 64), 5)
    for bit in (*front, *stated, *rng.integers(0, 8 * len(data), 1000)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << (bit % 8)
        message = refused(bytes(damaged))
        if bit >= mark + 8 * len(MARK):
            assert "changed or truncated" in message, "the digest is not checked before everything else"


def test_longer_damage(data: bytes) -> None:
    rng = np.random.default_rng(1)
    for _ in range(300):
        damaged = bytearray(data)
        start, length = int(rng.integers(0, len(data))), int(rng.integers(1, 40))
        if rng.random() < 0.5:
            damaged[start : start + length] = rng.bytes(length)
        else:
            del damaged[start : start + length]
        assert bytes(damaged) != data
        refused(bytes(damaged))


def test_truncated_empty_or_longer(data: bytes) -> None:
    for length in (*range(10), *range(0, len(data), 997), len(data) - 1):
        refused(data[:length])
    for more in (b"\0", b" ", b"\n", data):
        refused(data + more)
    for junk in (b"\xff" * 8, b"\xff" * 4096, b"\0" * 4096, b"{}" * 50, MARK * 20, struct.pack("<Q", 2) + b"{}"):
        refused(junk)


# --- tampering with a good digest ------------------------------------------------------------------------------------

Edit = Callable[[Sealed], object]
SCAN, HEAD, CONV = "layers.0.mixer.scan", "head", "layers.0.mixer.conv1d"


def field(value: Any, *path: Any) -> Edit:
    """Replaces one entry of the description."""

    def edit(s: Sealed) -> None:
        at: Any = s.description
        for key in path[:-1]:
            at = at[key] if not isinstance(at, list) or isinstance(key, int) else s.operator(key)
        assert path[-1] in at or isinstance(at, list)
        at[path[-1]] = value

    return edit


def nested(levels: int) -> Edit:
    def edit(s: Sealed) -> None:
        s.description["provenance"] = "@"
        text = json.dumps(s.description, separators=(",", ":"))
        s.text = text.replace('"@"', '{"a":' + "[" * levels + "]" * levels + "}")

    return edit


def raw(old: str, new: str) -> Edit:
    """Replaces text in the description's JSON."""

    def edit(s: Sealed) -> None:
        text = json.dumps(s.description, separators=(",", ":"))
        assert old in text
        s.text = text.replace(old, new, 1)

    return edit


def raw_header(old: str, new: str) -> Edit:
    def edit(s: Sealed) -> None:
        text = json.dumps(s.header, separators=(",", ":"))
        assert old in text
        s.header_text = text.replace(old, new, 1)

    return edit


def both(*edits: Edit) -> Edit:
    return lambda s: [edit(s) for edit in edits]


def header(key: str, value: Any, name: str = "head.weight") -> Edit:
    def edit(s: Sealed) -> None:
        s.header[name][key] = value

    return edit


def cell(name: str, at: Any, value: int) -> Edit:
    """Replaces an integer of a constant."""

    def edit(s: Sealed) -> None:
        assert s.array(name)[at] != value
        s.array(name)[at] = value

    return edit


def recast(name: str, dtype: str) -> Edit:
    return lambda s: s.put(name, s.array(name).astype(dtype))


def renamed(old: str, new: str) -> Edit:
    """Another name for an operator, everywhere, in the description and in the header."""

    def edit(s: Sealed) -> None:
        def walk(value: Any) -> Any:
            if isinstance(value, dict):
                return {walk(k): walk(v) for k, v in value.items()}
            if isinstance(value, list):
                return [walk(v) for v in value]
            if isinstance(value, str) and (value == old or value.startswith(old + ".")):
                return new + value[len(old) :]
            return value

        s.description = walk(s.description)
        s.header = walk(s.header)

    return edit


def renamed_port(new: str) -> Edit:
    def edit(s: Sealed) -> None:
        renamed("head.out", f"head.{new}")(s)
        head = s.operator("head")
        head["outputs"][-1] = head["attributes"]["segments"][0]["port"] = new

    return edit


def short_rom(s: Sealed) -> None:
    name = "layers.0.mixer.silu.rom"
    s.put(name, np.ascontiguousarray(s.array(name)[:, :255]), declare=True)


def overflow(s: Sealed) -> None:
    """33 bits: every weight of channel 1 at 127 and a bias that the sum of 4 inputs with group shifts pushes over."""
    s.array("head.weight")[1] = 127
    s.array("head.bias")[1] = 2**31 - 1


def group_twice(s: Sealed) -> None:
    s.description[T]["layers.0.mixer.gate.out"]["terms"] *= 2


def self_loop(s: Sealed) -> None:
    s.operator("layers.0.residual")["inputs"]["x"] = "layers.0.residual.out"


def swap_operators(s: Sealed) -> None:
    ops = s.description["operators"]
    ops[3], ops[4] = ops[4], ops[3]


def reorder_tensors(s: Sealed) -> None:
    s.description["tensors"] = dict(reversed(s.description["tensors"].items()))


T, C, O = "tensors", "constants", "operators"  # noqa: E741
TAMPERED: dict[str, tuple[Edit, str]] = {
    "dtype of the array": (recast("head.weight", "i2"), "head.weight.*int16"),
    "unsigned array": (recast("head.weight", "u1"), "head.weight.*uint8"),
    "float array": (recast("head.bias", "f4"), "head.bias.*float32"),
    "double array": (recast("head.bias", "f8"), "head.bias.*float64"),
    "shape in the header": (header("shape", [4, 2]), "head.weight"),
    "shape in the description": (field([4, 2], C, "head.weight", "shape"), "head.weight"),
    "flattened": (both(header("shape", [8]), field([8], C, "head.weight", "shape")), "head.weight"),
    "shape of a tensor": (field([2, 2], T, "head.acc", "shape"), "head"),
    "negative shape of a tensor": (field([-1, 2], T, "head.out", "shape"), "head.out"),
    "zero shape of a tensor": (field([0, 2], T, "head.out", "shape"), "head.out"),
    "huge shape of a tensor": (field([2**40, 2**40], T, "head.out", "shape"), "head.out"),
    "no axes": (both(field([], T, "head.out", "shape"), field([], T, "head.out", "axes")), "head"),
    "unknown axis": (field(["token", "time"], T, "head.out", "axes"), "head.out"),
    "same axis twice": (field(["token", "token"], T, "head.out", "axes"), "head.out"),
    "role": (field("weight", T, "head.out", "role"), "head.out"),
    "other role": (field("internal", T, "head.out", "role"), "head"),
    "bits of an accumulator": (field(31, T, "head.acc", "bits"), "head"),
    "no bits": (field(0, T, "head.out", "bits"), "head.out"),
    "negative bits": (field(-8, T, "layers.0.mixer.gate.out", "bits"), "gate.out"),
    "many bits": (field(10**6, T, "head.out", "bits"), "head.out"),
    "nine bits": (field(9, T, "layers.0.mixer.gate.out", "bits"), "gate.*9 bits"),
    "residual of 17 bits": (field(17, T, "patch_embed.proj.out", "bits"), "17 bits"),
    "unsigned activation": (field(False, T, "layers.0.mixer.in_proj.x", "signed"), "signed"),
    "signed delta": (field(True, T, "layers.0.mixer.softplus.out", "signed"), "signed"),
    "exponent of an output": (field(-13, T, "head.out", "exponent"), "head.*shift"),
    "exponent of the residual": (field(-8, T, "layers.0.residual.out", "exponent"), "residual"),
    "exponent out of range": (field(128, T, "head.out", "exponent"), "128"),
    "exponent of a constant": (field(1, C, "head.weight", "exponent"), "head.*weight"),
    "no exponent": (field(None, T, "head.out", "exponent"), "head"),
    "an exponent for rsqrt": (field(0, T, "norm_f.rsqrt", "exponent"), "norm_f"),
    "stored shift": (cell("head.shift", 0, 9), "head.*shift"),
    "stored b_shift": (cell(f"{SCAN}.b_shift", 0, 31), "b_shift"),
    "weight exponent": (cell("head.weight_exponent", 1, 20), "head.*shift"),
    "weight exponent of -128": (cell("head.weight_exponent", 1, -128), "head"),
    "A exponent": (cell(f"{SCAN}.A_exponent", 0, 30), "A_fraction"),
    "A fraction": (cell(f"{SCAN}.A_fraction", 0, 32), "A_fraction"),
    "state channel shift": (cell(f"{SCAN}.state_channel_shift", 0, 90), "scan"),
    "negative channel shift": (cell(f"{SCAN}.state_channel_shift", 0, -1), "scan"),
    "token shift of 16": (cell(f"{SCAN}.state_token_shift", 0, 16), "scan"),
    "negative token shift": (cell(f"{SCAN}.state_token_shift", 0, -1), "scan"),
    "exp2 rom": (cell("exp2.rom", 5, 131073), "exp2_rom"),
    "group index": (cell("layers.0.mixer.in_proj.x.group", 0, 4), "in_proj.x"),
    "group index of 255": (cell("layers.0.mixer.gate.out.group", 1, 255), "gate.out"),
    "five groups": (field([0, 1, 2, 3, 4], T, "layers.0.mixer.gate.out", "terms", 0, "shifts"), "gate.out"),
    "no group": (field([], T, "layers.0.mixer.gate.out", "terms", 0, "shifts"), "gate.out"),
    "group shift of 16": (field([0, 16, 0, 0], T, "layers.0.mixer.gate.out", "terms", 0, "shifts"), "gate.out"),
    "negative group shift": (field([0, -1, 0, 0], T, "layers.0.mixer.gate.out", "terms", 0, "shifts"), "gate.out"),
    "groups on another axis": (field("channel", T, "layers.0.mixer.scan.y", "terms", 0, "axis"), "scan"),
    "group term twice": (group_twice, "gate.*group term"),
    "group index elsewhere": (field(f"{CONV}.out.group", T, "layers.0.mixer.silu.out", "terms", 0, "index"), "silu"),
    "a group term more": (field([{"axis": "channel", "offset": "head.shift"}], T, "head.out", "terms"), "head"),
    "group index nowhere": (field("none", T, "layers.0.mixer.gate.out", "terms", 0, "index"), "none"),
    "term of a constant nowhere": (field([{"axis": "channel", "offset": "none"}], C, "head.weight", "terms"), "none"),
    "rom of 255 entries": (short_rom, "silu.*rom"),
    "rom index": (cell("layers.0.mixer.silu.rom_index", 0, 15), "rom_index"),
    "channels of one rom with two exponents": (
        lambda s: s.array("layers.0.mixer.silu.rom_index").fill(0), "rom 0|rom_index"
    ),
    "gamma of 13 bits": (both(field(13, C, "norm_f.gamma", "bits"), cell("norm_f.gamma", 0, 4095)), "gamma"),
    "value outside its bits": (cell("norm_f.gamma", 0, 2048), "gamma"),
    "image declared otherwise": (field({"height": 4, "width": 5, "channels": 1}, "image"), "image"),
    "image tensor": (field([5, 4, 1], T, "image", "shape"), "image"),
    "no image tensor": (lambda s: s.description[T].pop("image"), "image"),
    "array missing": (lambda s: s.drop("head.bias"), "constants"),
    "array more": (lambda s: s.put("head.more", np.zeros(3, np.int8)), "constants"),
    "constant missing": (both(lambda s: s.drop("head.bias"), lambda s: s.description[C].pop("head.bias")), "bias"),
    "constant more": (
        both(
            lambda s: s.put("more", np.zeros(2, np.int8)),
            lambda s: s.description[C].update(more=s.description[C]["head.shift"]),
        ),
        "more",
    ),
    "constant of no name": (field("none", O, "head", "constants", "weight"), "head.*weight"),
    "derived constant of no name": (field("none", O, "head", "constants", "shift"), "head.*shift"),
    "group of no name": (field("none", O, "layers.0.mixer.gate", "constants", "out.group"), "gate"),
    "constant role missing": (lambda s: s.operator("head")["constants"].pop("weight_exponent"), "head"),
    "constant role more": (lambda s: s.operator("head")["constants"].update(more="head.bias"), "head"),
    "constant of another operator": (
        field("layers.0.mixer.dt_proj.weight", O, "layers.0.mixer.dt_proj_b", "constants", "weight"), "dt_proj_b"
    ),
    "input from later": (field("head.out", O, "layers.0.norm", "inputs", "x"), "layers.0.norm.*head.out"),
    "input from itself": (self_loop, "residual"),
    "input from nowhere": (field("none", O, "head", "inputs", "x"), "head.*none"),
    "input port missing": (field({}, O, "head", "inputs"), "head"),
    "input port more": (field({"x": "norm_f.out", "y": "norm_f.out"}, O, "head", "inputs"), "head"),
    "input of another kind": (field("norm_f.square_sum", O, "head", "inputs", "x"), "head"),
    "input of 16 bits": (field("class_token.out", O, "head", "inputs", "x"), "head"),
    "input with other tokens": (field("layers.0.norm.out", O, "head", "inputs", "x"), "head"),
    "operators in another order": (swap_operators, "layers.0"),
    "the same operator twice": (lambda s: s.description[O].append(s.description[O][-1]), "head|same name"),
    "no operators": (field([], O), "no operators"),
    "the last operator missing": (lambda s: s.description[O].pop(), "tensors"),
    "tensors in another order": (reorder_tensors, "order"),
    "tensor more": (lambda s: s.description[T].update(more=s.description[T]["head.out"]), "tensors"),
    "outputs": (field(["out", "acc"], O, "head", "outputs"), "head"),
    "outputs as text": (field("out", O, "class_token", "outputs"), "class_token|output"),
    "unknown kind": (field("softmax", O, "head", "kind"), "softmax"),
    "unknown rounding": (field("half_down", "rounding"), "half_down"),
    "unknown profile": (field("int4", "profile"), "int4"),
    "profile of another width": (field("wide-state", "profile"), "wide-state"),
    "too few classes": (field(["one"], "classes"), "1 class names"),
    "unknown field": (lambda s: s.description.update(comment=1), "comment"),
    "spec 1.7": (field("1.7", "spec"), r"1\.7"),
    "logits of 20 bits": (field(20, "tensors", "head.out", "bits"), "20 bits"),
    "spec 2.0": (field("2.0", "spec"), r"2\.0"),
    "spec 0": (field("0.9", "spec"), r"0\.9"),
    "spec of no number": (field("", "spec"), "SPEC"),
    "spec as a number": (field(1.0, "spec"), "SPEC"),
    "format": (field("intsim", "format"), "format"),
    "sha256 in the wrong place": (
        raw('"spec"', '"x":{"sha256":"' + "0" * 64 + '"},"spec"'), "sha256"
    ),
    "overflow": (overflow, "operator head .*accumulator acc, channel 1, needs 33 bits"),
    "overflow downwards": (
        lambda s: (s.array("head.weight")[0].fill(127), cell("head.bias", 0, -(2**31))(s)),
        "operator head .*accumulator acc, channel 0, needs 33 bits",
    ),
    "reverse": (field(2, O, CONV, "attributes", "reverse"), "reverse"),
    "reverse as a bool": (field(True, O, CONV, "attributes", "reverse"), "reverse"),
    "abar_fraction": (field(16, O, SCAN, "attributes", "abar_fraction"), "abar_fraction"),
    "eps_q of 0": (field(0, O, "norm_f", "attributes", "eps_q"), "eps_q"),
    "eps_q of 2^63": (field(2**63, O, "norm_f", "attributes", "eps_q"), "eps_q"),
    "d_norm": (field(512, O, "norm_f", "attributes", "d_norm"), "d_norm"),
    "d_norm as a float": (field(256.0, O, "norm_f", "attributes", "d_norm"), "d_norm"),
    "y_align as a bool": (field(False, O, "layers.0.mixer.gate", "attributes", "y_align"), "y_align"),
    "position": (field(1, O, "tokens", "attributes", "position"), "position"),
    "position of no token": (field(5, O, "class_token", "attributes", "position"), "position"),
    "stride of 0": (field(0, O, "patch_embed.proj", "attributes", "stride"), "stride"),
    "patch larger than the image": (field(5, O, "patch_embed.proj", "attributes", "patch"), "patch"),
    "attribute missing": (lambda s: s.operator("head")["attributes"].clear(), "head"),
    "attribute more": (field({"function": 0, "x": 1}, O, "layers.0.mixer.silu", "attributes"), "silu"),
    "attributes as pairs": (field([["position", 2]], O, "class_token", "attributes"), "attributes"),
    "segments with a gap": (
        field([{"port": "out", "start": 0, "stop": 1}], O, "head", "attributes", "segments"), "head"
    ),
    "segments as text": (field("out", O, "head", "attributes", "segments"), "segments"),
    "segment of floats": (
        field([{"port": "out", "start": 0, "stop": 2.0}], O, "head", "attributes", "segments"), "segment"
    ),
    "segment acc": (field([{"port": "acc", "start": 0, "stop": 2}], O, "head", "attributes", "segments"), "segment"),
    # JSON
    "NaN": (raw('"exponent":-12', '"exponent":NaN'), "NaN"),
    "NaN in the provenance": (raw('"provenance":{', '"provenance":{"x":NaN,'), "NaN"),
    "Infinity": (raw('"exponent":-12', '"exponent":-Infinity'), "Infinity"),
    "overflowing float": (raw('"provenance":{', '"provenance":{"x":1e999,'), "1e999"),
    "float bits": (raw('"bits":8', '"bits":8.0'), "bits"),
    "float shape": (raw('"shape":[4', '"shape":[4.0'), "shape"),
    "float exponent": (raw('"exponent":-12', '"exponent":-12.0'), "exponent"),
    "float height": (raw('"height":4', '"height":4.0'), "height"),
    "text bits": (raw('"bits":8', '"bits":"8"'), "bits"),
    "bool bits": (raw('"bits":8', '"bits":true'), "bits"),
    "bool channels": (raw('"channels":1', '"channels":true'), "channels"),
    "bool exponent": (raw('"exponent":0', '"exponent":false'), "exponent"),
    "signed as a number": (raw('"signed":true', '"signed":1'), "signed"),
    "huge integer": (raw('"bits":8', '"bits":1' + "0" * 400), "bits"),
    "gigantic integer": (raw('"bits":8', '"bits":1' + "0" * 5000), "Program"),
    "duplicate field": (raw('"rounding":', '"rounding":"floor","rounding":'), "rounding"),
    "duplicate tensor field": (raw('"bits":8', '"bits":7,"bits":8'), "bits"),
    "duplicate in the header": (raw_header('"dtype":"I8"', '"dtype":"I16","dtype":"I8"'), "dtype"),
    "deep nesting": (nested(200_000), "deep"),
    "deep nesting, closed": (nested(5_000), "deep"),
    "an unfinished description": (raw('"operators":[', '"operators":[{'), "Program"),
    "classes as text": (field("ab", "classes"), "classes"),
    "classes of numbers": (field([1, 2], "classes"), "class"),
    "class of two lines": (field(["a\nb", "c"], "classes"), "class"),
    "provenance as a list": (field([["a", 1]], "provenance"), "provenance"),
    "tensors as a list": (field([], T), "tensors"),
    "operators as an object": (field({}, O), "operators"),
    "image as a list": (field([4, 4, 1], "image"), "image"),
    "description as a list": (lambda s: setattr(s, "description", [s.description]), "description"),
    # the header of safetensors
    "huge shape in the header": (header("shape", [2**31, 2**31]), "Program"),
    "overflowing shape in the header": (header("shape", [2**63, 2**63, 4]), "Program"),
    "negative shape in the header": (header("shape", [-2, -4]), "Program"),
    "offsets behind the end": (header("data_offsets", [0, 2**40]), "Program"),
    "offsets reversed": (header("data_offsets", [8, 0]), "Program"),
    "offsets that overlap": (header("data_offsets", [0, 8], "head.shift"), "Program"),
    "unknown dtype": (header("dtype", "Q8"), "Program"),
    "a second metadata entry": (lambda s: s.header["__metadata__"].update(more="x"), "metadata"),
    "metadata of numbers": (lambda s: s.header["__metadata__"].update(more=1), "Program|metadata"),
    # names
    "operator with a newline": (renamed("head", "he\nad"), "name"),
    "operator with a path": (renamed("head", "../head"), "name"),
    "operator from the root": (renamed("head", "/etc/head"), "name"),
    "operator with a backslash": (renamed("head", "..\\head"), "name"),
    "operator without a name": (renamed("head", ""), "name"),
    "operator with two dots": (renamed("head", "a..b"), "name"),
    "operator with a space": (renamed("head", "a b"), "name"),
    "operator with a letter from elsewhere": (renamed("head", "h\u00e9ad"), "name"),
    "operator with a long name": (renamed("head", "h" * 5000), "name"),
    "port with a path": (renamed_port("../../out"), "port"),
    "port with a dot": (renamed_port("a.b"), "port"),
    "port with a newline": (renamed_port("a\nb"), "port"),
    "program with a newline": (field("a\nb", "name"), "name"),
    "program with a path": (field("../a", "name"), "name"),
    "program with half a character": (field("\ud800", "name"), "name"),
    "program without a name": (field("", "name"), "name"),
}  # fmt: skip


@pytest.mark.parametrize("case", TAMPERED)
def test_tampering_is_refused(data: bytes, case: str) -> None:
    edit, wanted = TAMPERED[case]
    sealed = Sealed(data)
    edit(sealed)
    message = refused(sealed.bytes())
    assert re.search(wanted, message), message


@pytest.mark.parametrize("dtype", "BOOL U8 F8_E4M3 F8_E5M2 F8_E8M0 F4 BF16 F16 U16 C64 F64".split())
def test_every_other_dtype_is_refused(data: bytes, dtype: str) -> None:
    sealed = Sealed(data)
    bits = {"BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4, "BF16": 16, "C64": 64}.get(dtype)
    entry = sealed.header["head.weight"]
    size = entry["data_offsets"][1] - entry["data_offsets"][0]
    entry["dtype"], entry["shape"] = dtype, [size * 8 // (bits or int(dtype[1:]))]
    refused(sealed.bytes())


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of everything in the description, but for the free text of the provenance."""
    if path:
        yield path
    if path[:1] == ("provenance",):
        return
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from leaves(inner, (*path, key))


def test_no_entry_of_the_description_may_be_of_another_type(data: bytes) -> None:
    """700 entries, drawn, each replaced by something of another type or removed: always a ProgramError."""
    rng = np.random.default_rng(11)
    whole = Sealed(data)
    paths = list(leaves(whole.description))
    others: list[Any] = [None, True, 0.5, 8.0, "x", "", [], {}, [[]], {"a": 1}, -(10**30), [None], "\ud800"]
    for number in rng.permutation(len(paths))[:700]:
        sealed = Sealed(data)
        *parents, key = paths[number]
        at: Any = sealed.description
        for parent in parents:
            at = at[parent]
        old = at[key]
        pool = [o for o in others if type(o) is not type(old) and not (o is None and key == "exponent")]
        if rng.random() < 0.25 and "shifts" not in parents:  # a group that no position is in may go
            del at[key]
        else:
            at[key] = copy.deepcopy(pool[rng.integers(len(pool))])
        if paths[number] == ("sha256",):
            continue
        if isinstance(old, str) and parents[:1] == ["classes"] and key not in at:
            continue  # one class name fewer is another Program
        try:
            refused(sealed.bytes())
        except BaseException as problem:
            raise AssertionError(f"{paths[number]}: {old!r}, now {at!r}") from problem


def test_no_other_integer_makes_another_exception(data: bytes) -> None:
    """Integers of description and arrays moved a little or to an extreme: a ProgramError, or a Program that runs.

    The oracle checks that every value is within its declared width.
    """
    rng = np.random.default_rng(12)
    whole = Sealed(data)
    paths = [p for p in leaves(whole.description) if p[0] in (T, C, O)]
    names = list(whole.description[C])
    accepted = 0
    for _ in range(500):
        sealed = Sealed(data)
        if rng.random() < 0.5:
            array = sealed.array(names[rng.integers(len(names))])
            info = np.iinfo(array.dtype)
            array.reshape(-1)[rng.integers(array.size)] = rng.choice([info.min, info.max, 0, 1, 31, 32])
        else:
            *parents, key = paths[rng.integers(len(paths))]
            at: Any = sealed.description
            for parent in parents:
                at = at[parent]
            if type(at[key]) is not int:
                continue
            at[key] = int(rng.choice([at[key] + 1, at[key] - 1, -at[key], 0, 127, 2**31, -(2**63)]))
        try:
            program = parse_program(sealed.bytes())
        except ProgramError as problem:
            assert str(problem).isprintable()
        else:
            accepted += 1
            Oracle(program).run_one(rng.integers(0, 256, program.image, dtype=np.uint8))
    assert accepted > 20, "the test moves nothing that may move"


# --- the Builder -----------------------------------------------------------------------------------------------------


def test_the_builder_refuses_and_leaves_the_program_as_it_was() -> None:
    b = Builder("b", image=(4, 4, 1), classes=["one", "two"])
    good: dict[str, Any] = {"weight": np.ones((2, 4), int), "weight_exponent": [0, 0], "bias": [0, 0]}

    def add(name: str = "p", kind: str = "patch_embed", patch: Any = 2, out: Out | None = None, **changed: Any) -> None:
        attributes = {"patch": patch, "stride": 2}
        b.add(kind, name, {"image": "image"}, {**good, **changed}, attributes, {"out": out or Out(16, 0)})

    bad: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"kind": "dense"}, ProgramError, "dense"),
        ({"patch": 0}, ProgramError, "patch"),
        ({"patch": True}, ProgramError, "patch"),
        ({"weight": np.full((2, 4), 128)}, ProgramError, "weight"),
        ({"weight": np.ones((2, 3), int)}, ProgramError, "weight"),
        ({"weight": np.ones((2, 4))}, TypeError, "float64"),
        ({"bias": [0, 2**31]}, ProgramError, "bias"),
        ({"bias": [0, 2**31 - 1]}, ProgramError, "channel 1, needs 33 bits"),
        ({"weight_exponent": [0, 128]}, ProgramError, "weight_exponent|shift"),
        ({"weight_exponent": [0, 32]}, ProgramError, "shift"),
        ({"out": Out(17, 0)}, ProgramError, "17 bits"),
        ({"out": Out(16, 0, signed=False)}, ProgramError, "signed"),
        ({"out": Out(16, 0, True, "channel", (0,), [0, 0])}, ProgramError, "channel"),
        ({"more": [0]}, ProgramError, "more"),
    ]
    for changed, kind, wanted in bad:
        with pytest.raises(kind, match=wanted):
            add(**changed)
        assert list(b.program.tensors) == ["image"] and not b.program.arrays and not b.program.constants
        assert not b.program.operators
    add()
    with pytest.raises(ProgramError, match="already"):
        add()
    with pytest.raises(ProgramError, match="none"):
        b.add("add", "a", {"x": "none", "y": "none"}, {}, {}, {"out": Out(16, 0)})
    assert b.finish().logits == "p.out"


def test_a_derived_constant_may_not_be_given() -> None:
    b = Builder("b", image=(4, 4, 1), classes=["one", "two"])
    constants = {"weight": np.ones((2, 4), int), "weight_exponent": [0, 0], "bias": [0, 0], "shift": [0, 0]}
    with pytest.raises(ProgramError, match="shift"):
        b.add("patch_embed", "p", {"image": "image"}, constants, {"patch": 2, "stride": 2}, {"out": Out(16, 0)})


def test_a_shared_constant_may_not_change() -> None:
    """A second scan with another exp2 ROM would change the first one's."""
    b = Builder("b", image=SMALL.image, classes=["one"])
    program = random_program(0, SMALL)
    b.program = program
    scan = program.operator(SCAN)
    given = ("A", "A_exponent", "D", "state_channel_shift", "state_token_shift", "exp2_rom")
    constants = {role: program.arrays[scan.constants[role]].copy() for role in given}
    before = constants["exp2_rom"].copy()
    constants["exp2_rom"][64] += 1
    h = program.tensors[scan.tensor("h")]
    formats = {"h": Out(h.bits, h.exponent or 0), "y": Out(8, program.tensors[scan.tensor("y")].exponent or 0)}
    with pytest.raises(ProgramError, match="exp2.rom is shared"):
        b.add("scan", "second", scan.inputs, constants, {"abar_fraction": 15}, formats)
    assert np.array_equal(program.arrays["exp2.rom"], before)


def test_a_loaded_program_is_mapped_and_its_file_stays(tmp_path: Path) -> None:
    """The arrays are views of the file's pages; a change of theirs does not reach the file."""
    path = tmp_path / "p.safetensors"
    save_program(random_program(5, Size()), path)
    before = path.read_bytes()
    program = load_program(path)
    bases = set()
    for array in program.arrays.values():
        while isinstance(array.base, np.ndarray):
            array = array.base
        assert isinstance(array.base, memoryview)
        bases.add(type(array.base.obj))
    assert bases == {mmap.mmap}
    program.arrays["head.weight"][:] = 1
    assert path.read_bytes() == before
    assert not np.array_equal(load_program(path).arrays["head.weight"], program.arrays["head.weight"])
