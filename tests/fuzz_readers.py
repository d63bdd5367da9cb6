"""The readers that `fuzz.py` feeds: a row of READERS for each, with good files, the reader, and what is right.

What is right comes from a few lines here, or from another library, and shares no code with the reader.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import random
import re
import shutil
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from fuzz_mutations import mutate_bytes, mutate_json

from intsim.errors import UserError
from intsim.synthetic import Size, random_program

SIZE = Size(image=(4, 4, 3), patch=2, stride=2, width=3, inner=4, states=2, dt_rank=1, taps=2, classes=2)

class Case(NamedTuple):
    """What a reader gets: the bytes to place, and what right() may need: the bytes of the good file."""

    data: bytes
    good: bytes


Mutate = Callable[[bytes, bytes, random.Random], bytes]


@dataclass
class Reader:
    """A row of the table.

    samples(folder): good files' bytes.  read(path): a digest of what was read; UserError refuses.  right(path, good):
    the digest that is right if the file at `path`, mutated from `good`, is taken at all; None is never right.
    where: name of the file in the worker's folder (a bundle's file lies deeper, beside the others).  prepare(folder):
    what must lie there besides.  share: its part of the cases, against the others' shares.
    """

    name: str
    where: str
    samples: Callable[[Path], list[bytes]]
    read: Callable[[Path], str]
    right: Callable[[Path, bytes], str | None]
    share: int
    mutate: Mutate = mutate_bytes
    prepare: Callable[[Path], None] = lambda folder: None
    needs: str = ""  # a package without which there is nothing to read
    good: list[bytes] = field(default_factory=list)

    def case(self, seed: int, number: int) -> Case:
        """Mutation `number`: the same for the same seed, whatever ran before."""
        rng = random.Random(f"{seed} {self.name} {number}")
        good = rng.choice(self.good)
        data = self.mutate(good, rng.choice(self.good), rng)
        return Case(data, data if data in self.good else good)  # one good file may become another


def sha(*parts: object) -> str:
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(f"{part.dtype} {part.shape} ".encode())
            digest.update(np.ascontiguousarray(part).tobytes())
        else:
            digest.update(repr(part).encode())
    return digest.hexdigest()


def never(path: Path, good: bytes) -> None:
    return None


def unchanged(read: Callable[[Path], str]) -> Callable[[Path, bytes], str | None]:
    """Right is only the very file that it was."""
    return lambda path, good: read(path) if path.read_bytes() == good else None


# Programs


def program_samples(folder: Path) -> list[bytes]:
    from intsim.program_file import program_bytes

    programs = [random_program(1, SIZE), random_program(2, SIZE, state_bits=16, k=1, rounding="half_even")]
    return [program_bytes(program) for program in programs]


def read_program(path: Path) -> str:
    from intsim.program_file import load_program

    program = load_program(path)
    return sha(program.digest, *(program.arrays[name] for name in sorted(program.arrays)))


MARK = rb"\"sha256\":\""


def seal_program(data: bytes) -> bytes:
    """The digest put right (SPEC 3.1), so that what lies behind that check is reached."""
    at = data.find(MARK)
    if at < 0:
        return data
    at += len(MARK)
    cleared = data[:at] + b"0" * 64 + data[at + 64 :]
    return data[:at] + hashlib.sha256(cleared).hexdigest().encode() + data[at + 64 :]


def mutate_sealed(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """The description, the header or the bytes changed, and the digest put right."""
    if rng.random() < 0.3:
        return seal_program(mutate_bytes(data, other, rng))
    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + length]), bytearray(data[8 + length :])
    description = json.loads(header["__metadata__"]["intsim"])
    if rng.random() < 0.6:
        description = mutate_json(description, rng)
    elif rng.random() < 0.5:
        header = mutate_json(header, rng)
    else:
        for _ in range(rng.choice((1, 3))):
            body[rng.randrange(len(body))] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
    if isinstance(header, dict) and isinstance(header.get("__metadata__"), dict):
        header["__metadata__"] = {**header["__metadata__"], "intsim": json.dumps(description, separators=(",", ":"))}
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    return seal_program(len(head).to_bytes(8, "little") + head + bytes(body))


def read_sealed(path: Path) -> str:
    """What is taken must also run, within its declared widths, and be written nowhere but where it is told to."""
    from golden.bundle import choose, write_dump
    from golden.images import Image
    from intsim.oracle import Oracle
    from intsim.program_file import load_program

    program = load_program(path)
    if int(np.prod(program.image, dtype=object)) <= 1 << 12:
        image = np.full(program.image, 200, dtype=np.uint8)
        Oracle(program).run_one(image)  # asserts the widths
        out = path.parent / "dump"
        write_dump(out, program, Oracle(program), Image("x", image), names=choose(program, ["*.acc"]))
        shutil.rmtree(out)
    return str(program.digest)


def hash_of_program(path: Path, good: bytes) -> str:
    data = path.read_bytes()
    at = data.index(MARK) + len(MARK)
    return seal_program(data)[at : at + 64].decode()


# Bundles


def write_bundle_to(folder: Path) -> None:
    from golden.bundle import choose, write_bundle
    from golden.images import Image
    from intsim.oracle import Oracle
    from intsim.program_file import program_bytes

    program = random_program(3, SIZE)
    data = program_bytes(program)
    image = np.random.default_rng(0).integers(0, 256, program.image, dtype=np.uint8)
    write_bundle(
        folder, program, Oracle(program), [Image("image.png", image, 1)], names=choose(program, ["*.out"]),
        command="intsim golden", time="2026-01-31T12:00:00Z", program_file=data,
    )  # fmt: skip


def prepare_bundle(folder: Path) -> None:
    write_bundle_to(folder / "bundle")


def bundle_file(name: str) -> Callable[[Path], list[bytes]]:
    def samples(folder: Path) -> list[bytes]:
        with tempfile.TemporaryDirectory(dir=folder) as made:
            write_bundle_to(Path(made) / "bundle")
            return [(Path(made) / "bundle" / name).read_bytes()]

    return samples


def read_bundle(levels: int) -> Callable[[Path], str]:
    """Reads the bundle whose file is at `path`, `levels` folders below it: a bundle with problems is refused."""

    def read(path: Path) -> str:
        from golden.verify import verify

        problems = verify(path.parents[levels])
        if problems:
            raise UserError(" ".join(problems[0].split()))
        return sha(json.loads((path.parents[levels] / "manifest.json").read_text())["content_sha256"])

    return read


FREE = ("tool", "run", "content_sha256")  # fields of a manifest that nothing else of the bundle says


def essence(data: bytes) -> Any:
    """What a manifest says but for what only its author can know: tool, command, time, names and labels of images."""
    content = json.loads(data)
    kept = {key: value for key, value in content.items() if key not in FREE}
    kept["images"] = [{k: v for k, v in image.items() if k not in ("source", "label")} for image in kept["images"]]
    kept["spec"] = kept["spec"].split(".")[0]
    return kept


def right_manifest(path: Path, good: bytes) -> str | None:
    data = path.read_bytes()
    return sha(json.loads(data)["content_sha256"]) if essence(data) == essence(good) else None


def mutate_manifest(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Its bytes, or its content with the digests put right."""
    from golden import manifest

    if rng.random() < 0.3:
        return mutate_bytes(data, other, rng)
    content = mutate_json(json.loads(data), rng)
    with contextlib.suppress(Exception):
        run = content["run"]
        manifest.seal(content, run["command"], run["time"])
    try:
        return manifest.render(content).encode("ascii")
    except Exception:
        return json.dumps(content).encode()


# Checkpoints


def checkpoint_state() -> dict[str, Any]:
    from bitexact.vim import Vim, VimConfig

    config = VimConfig(
        image_height=4, image_width=4, channels=3, patch=2, stride=2, width=4, depth=1, d_inner=6, d_state=2, dt_rank=1,
        d_conv=2, classes=2, eps=1e-5,
    )  # fmt: skip
    return Vim(config).state_dict()


def safetensors_samples(folder: Path) -> list[bytes]:
    from bitexact.checkpoint import save_checkpoint

    state = checkpoint_state()
    made = []
    for metadata in (None, {"image_size": [4, 4], "stride": 2, "classes": ["a", "b"]}):
        save_checkpoint(folder / "sample.safetensors", state, metadata)
        made.append((folder / "sample.safetensors").read_bytes())
    return made


def pth_samples(folder: Path) -> list[bytes]:
    import torch

    made = []
    for zipped in (True, False):
        file = io.BytesIO()
        torch.save({"model": checkpoint_state(), "epoch": 3}, file, _use_new_zipfile_serialization=zipped)
        made.append(file.getvalue())
    return made


def sha_state(state: Any) -> str:
    return sha(*(part for name in sorted(state) for part in (name, state[name].numpy())))


def read_checkpoint(path: Path) -> str:
    from bitexact.checkpoint import load_checkpoint, read_metadata

    read_metadata(path)
    return sha_state(load_checkpoint(path)[1])


def right_safetensors(path: Path, good: bytes) -> str:
    """By hand: the header's offsets into the body."""
    import torch

    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    types = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
    state = {}
    for name, entry in header.items():
        if name != "__metadata__":
            start, stop = entry["data_offsets"]
            values = torch.frombuffer(bytearray(body[start:stop]), dtype=types[entry["dtype"]])
            state[name.removeprefix("module.")] = values.reshape(entry["shape"]).float()
    return sha_state(state)


def right_pth(path: Path, good: bytes) -> str:
    """What torch reads without running code, if the archive's own checksums hold."""
    import torch

    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            assert archive.testzip() is None, "a part of it has another checksum"
    state = torch.load(path, map_location="cpu", weights_only=True)
    for wrapper in ("model", "state_dict"):
        if wrapper in state:
            state = state[wrapper]
    return sha_state({name.removeprefix("module."): tensor.float() for name, tensor in state.items()})


def mutate_zip(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """The bytes, or a member of the archive with its checksum put right, duplicated, renamed or bombed."""
    if not data.startswith(b"PK") or rng.random() < 0.4:
        return mutate_bytes(data, other, rng)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    chosen = rng.choice(list(members))
    kind = rng.randrange(8)
    file = io.BytesIO()
    method = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w", method) as archive:
        warnings.simplefilter("ignore")  # names that are there twice are meant
        for name, content in members.items():
            if name == chosen:
                if kind < 4:
                    content = mutate_bytes(content, rng.choice(list(members.values())), rng)
                elif kind == 4:
                    bomb = method != zipfile.ZIP_STORED and rng.random() < 0.1
                    content += bytes(64 << 20 if bomb else 1 << 20)
                elif kind == 5:
                    name = rng.choice(("../../x", "/x", name + "x", name.upper(), "images.npy"))
                elif kind == 6:
                    archive.writestr(name, mutate_bytes(content, content, rng))
                else:
                    continue
            archive.writestr(name, content)
    return file.getvalue()


# Images


def picture(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)


def image_samples(*kinds: str) -> Callable[[Path], list[bytes]]:
    def samples(folder: Path) -> list[bytes]:
        import PIL.Image

        made = []
        for number, kind in enumerate(kinds):
            pixels = PIL.Image.fromarray(picture(np.random.default_rng(number)))
            for mode in ("RGB", "L", "P", "RGBA") if kind in ("PNG", "GIF", "TIFF", "WEBP") else ("RGB", "L"):
                file = io.BytesIO()
                with contextlib.suppress(OSError):  # a kind without that mode
                    pixels.convert(mode).save(file, kind)
                    made.append(file.getvalue())
        return made

    return samples


BOMBS = [zlib.compress(bytes(1 << 10)), zlib.compress(bytes(20 << 20))]


def mutate_png(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """The bytes, or a chunk changed, duplicated or inserted with its checksum put right."""
    if rng.random() < 0.4:
        return mutate_bytes(data, other, rng)
    chunks, at = [], 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    i = rng.randrange(len(chunks))
    kind, content = chunks[i]
    what = rng.randrange(4)
    if what == 0:
        chunks[i] = (kind, mutate_bytes(content, other, rng))
    elif what == 1:
        chunks.insert(i, (kind, content))
    elif what == 2:
        bomb = BOMBS[rng.choice((0, 0, 1))]
        chunks.insert(1, (rng.choice((b"zTXt", b"iCCP", b"iTXt", b"eXIf", b"acTL", b"tRNS")), b"a\0\0" + bomb))
    else:
        chunks[i] = (kind, rng.choice((b"", content[:1], b"\xff" * len(content), bytes(len(content)))))
    made = data[:8]
    for kind, content in chunks:
        made += len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")
    return made


def read_one_image(path: Path) -> str:
    from golden.images import open_images

    (image,) = open_images(path, (8, 8, 3))
    return sha(image.pixels)


def right_image(path: Path, good: bytes) -> str:
    """Pillow's pixels, if the whole file can be decoded."""
    import PIL.Image

    with PIL.Image.open(io.BytesIO(path.read_bytes())) as image:
        return sha(np.asarray(image.convert("RGB")))


def npz_samples(folder: Path) -> list[bytes]:
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (5, 8, 8, 3), dtype=np.uint8), rng.integers(0, 9, 5)
    made = []
    for save, arrays in (
        (np.savez, {"images": images, "labels": labels}),
        (np.savez_compressed, {"images": images}),
        (np.savez_compressed, {"labels": labels.astype(np.uint8), "images": images}),
    ):
        file = io.BytesIO()
        save(file, **arrays)
        made.append(file.getvalue())
    return made


def read_npz(path: Path) -> str:
    from golden.images import open_images

    found = open_images(path, (8, 8, 3))
    return sha(found.stack(), found.labels)


def right_npz(path: Path, good: bytes) -> str:
    with np.load(path, allow_pickle=False) as found:
        labels = found["labels"].tolist() if "labels" in found.files else None
        return sha(found["images"], labels)


def labels_samples(folder: Path) -> list[bytes]:
    return [b"file,label\na.png,1\nb.png,0\n", b'label,class_index,file\r\n"3",1,a.png\r\n4,2,"b.png"\r\n']


def prepare_labels(folder: Path) -> None:
    import PIL.Image

    (folder / "set").mkdir()
    for name in ("a.png", "b.png"):
        PIL.Image.fromarray(picture(np.random.default_rng(0))).save(folder / "set" / name)


def read_labels(path: Path) -> str:
    from golden.images import open_images

    found = open_images(path.parent, (8, 8, 3))
    return sha(found.names, found.labels)


def right_labels(path: Path, good: bytes) -> str:
    """By hand: the last row of each file."""
    rows = list(csv.reader(io.StringIO(path.read_bytes().decode("utf-8"), newline="")))
    rows = [row for row in rows if row]
    head = rows[0]
    column = max(i for i, name in enumerate(head) if name == ("label" if "label" in head else "class_index"))
    names = max(i for i, name in enumerate(head) if name == "file")
    assert all(len(row) > names for row in rows)
    found = {row[names]: int(row[column]) for row in rows[1:]}
    labels = [found[name] for name in ("a.png", "b.png")] if {"a.png", "b.png"} <= set(found) else None
    return sha(["a.png", "b.png"], labels)


# Memory files, a row for each format: what it reads against a few lines of Python that read word by word

BITS, SHAPE = 13, (6, 10)


def layout() -> Any:
    from golden.formats import Layout

    return Layout(("token", "channel"), SHAPE, BITS, True)


def memory_samples(name: str) -> Callable[[Path], list[bytes]]:
    def samples(folder: Path) -> list[bytes]:
        from golden.formats import BY_ENDING, FORMATS, Head

        format_ = FORMATS.get(name) or BY_ENDING[name]
        values = np.random.default_rng(1).integers(-(1 << (BITS - 1)), 1 << (BITS - 1), SHAPE).astype(np.int16)
        comments = ("tensor x.y", "bits 13 signed")
        made = [format_.encode(values, Head("x.y", layout(), comments[:n])) for n in (0, 2)]
        if name == "hex":
            made.append(made[0].replace(b"\n", b"\n@a\n", 10).replace(b"@a\n", b"", 9))
        if name == "log":
            made.append(b"# Loading work.top\n" + b"".join(b"# " + line + b"\n" for line in made[0].split(b"\n")[:-1]))
        return made

    return samples


def read_memory(name: str) -> Callable[[Path], str]:
    def read(path: Path) -> str:
        from golden.formats import BY_ENDING, FORMATS
        from golden.safe import read_inside

        format_ = FORMATS.get(name) or BY_ENDING[name]
        data = read_inside(path.parent, path.name, format_.largest(layout()))
        found = format_.decode(data, layout())
        unknown = np.zeros(SHAPE, dtype=bool) if found.unknown is None else found.unknown
        return sha_words(found.values.astype(np.int64), unknown)

    return read


def sha_words(values: Any, unknown: Any) -> str:
    """Of an element with unknown bits only that it has some."""
    values, unknown = np.array(values, dtype=np.int64), np.array(unknown, dtype=bool)
    return sha(np.where(unknown, 0, values).reshape(SHAPE), unknown.reshape(SHAPE))


Words = Callable[[bytes], tuple[list[int], list[bool]]]


def memory_right(words: Words) -> Callable[[Path, bytes], str]:
    return lambda path, good: sha_words(*words(path.read_bytes()))


def hex_word(word: bytes) -> tuple[int, bool]:
    """(integer, whether a bit is unknown) of a word of up to 13 bits in two's complement."""
    assert 1 <= len(word) <= 4 and re.fullmatch(rb"[0-9a-fA-FxXzZ]+", word), word
    value = int(re.sub(rb"[xXzZ]", b"0", word), 16)
    assert value < 1 << BITS
    return value - (value >> (BITS - 1) << BITS), re.search(rb"[xXzZ]", word) is not None


def words_of_hex(data: bytes) -> tuple[list[int], list[bool]]:
    text = re.sub(rb"//[^\n]*|/\*.*?(\*/|\Z)", b" ", data, flags=re.DOTALL).replace(b"_", b"")
    memory: dict[int, tuple[int, bool]] = {}
    at, addressed = 0, False
    for word in text.split():
        if word.startswith(b"@"):
            at, addressed = int(word[1:], 16), True
        else:
            assert at not in memory
            memory[at] = hex_word(word)
            at += 1
    assert addressed or len(memory) == 60
    assert max(memory, default=0) < 60
    found = [memory.get(i, (0, True)) for i in range(60)]
    return [value for value, _ in found], [unknown for _, unknown in found]


def words_of_log(data: bytes) -> tuple[list[int], list[bool]]:
    kept = []
    for line in data.split(b"\n"):
        line = line.removesuffix(b"\r").removeprefix(b"#")
        words = re.split(rb"[ \t]+", line.strip(b" \t"))
        if all(re.fullmatch(rb"[0-9a-fA-FxXzZ]{4}", word) for word in words):
            kept += words
    return words_of_hex(b"\n".join(kept) + b"\n")


def words_of_coe(data: bytes) -> tuple[list[int], list[bool]]:
    text = re.sub(rb"(?m)^[ \t]*;[^\n]*", b"", data)
    head, vector = re.fullmatch(
        rb"(?is)\s*memory_initialization_radix\s*=\s*(\d+)\s*;\s*memory_initialization_vector\s*=([^;]*);\s*", text
    ).groups()  # type: ignore[union-attr]
    return in_radix(vector.replace(b",", b" ").split(), int(head))


def in_radix(words: list[bytes], radix: int) -> tuple[list[int], list[bool]]:
    if radix == 16:
        found = [hex_word(word) for word in words]
        return [value for value, _ in found], [unknown for _, unknown in found]
    values = []
    for word in words:
        if radix == 2:
            assert re.fullmatch(rb"[01]{1,13}", word)
            value = int(word, 2)
        else:
            assert radix == 10 and re.fullmatch(rb"[-+]?(0[xX][0-9a-fA-F]+|\d+)", word), word
            value = int(word, 0) if b"x" in word.lower() else int(word)
            assert -(1 << (BITS - 1)) <= value < 1 << BITS
        value %= 1 << BITS
        values.append(value - (value >> (BITS - 1) << BITS))
    return values, [False] * len(values)


def words_of_mif(data: bytes) -> tuple[list[int], list[bool]]:
    text = re.sub(rb"--[^\n]*|%.*?(%|\Z)", b" ", data, flags=re.DOTALL)
    head, content = re.fullmatch(rb"(?is)(.*?)\bCONTENT\s+BEGIN\b(.*)\bEND\s*;\s*", text).groups()  # type: ignore[union-attr]
    fields = {k.upper(): v.upper() for k, v in re.findall(rb"(\w+)\s*=\s*(\w+)\s*;", head)}
    assert int(fields[b"WIDTH"]) == BITS and int(fields[b"DEPTH"]) == 60
    radices = {b"HEX": 16, b"BIN": 2, b"DEC": 10, b"UNS": 10}
    data_radix, base = (radices[fields.get(key, b"HEX")] for key in (b"DATA_RADIX", b"ADDRESS_RADIX"))
    memory: dict[int, tuple[int, bool]] = {}
    for entry in content.split(b";")[:-1]:
        where, what = entry.split(b":")
        ends = [int(e, 0 if e[:2] in (b"0x", b"0X") else base) for e in re.findall(rb"[+-]?\w+", where)]
        values, unknown = in_radix(re.sub(rb"[][.]", b" ", what).split(), data_radix)
        last = ends[1] if len(ends) == 2 else ends[0] + len(values) - 1
        for i, at in enumerate(range(ends[0], last + 1)):
            assert at not in memory and 0 <= at < 60
            memory[at] = (values[i % len(values)], unknown[i % len(values)])
    assert len(memory) == 60 and not content.split(b";")[-1].strip()
    return [memory[i][0] for i in range(60)], [memory[i][1] for i in range(60)]


def words_of_c(data: bytes) -> tuple[list[int], list[bool]]:
    text = re.sub(rb"(?ms)//[^\n]*|/\*.*?(\*/|\Z)|^[ \t]*#[^\n]*", b" ", data)
    content = re.search(rb"\[\s*\d*\s*\]\s*=\s*\{([^}]*)\}", text)[1]  # type: ignore[index]
    values = []
    for word in content.replace(b",", b" ").split():
        word = re.sub(rb"(?<=[0-9a-fA-F])[uUlL]+$", b"", word)
        assert re.fullmatch(rb"[-+]?(0[xX][0-9a-fA-F]+|\d+)", word), word
        values.append(int(word, 0) if b"x" in word.lower() else int(word))
    assert len(values) == 60 and all(-(1 << 15) <= value < 1 << 15 for value in values)
    return values, [False] * 60


def words_of_bin(data: bytes) -> tuple[list[int], list[bool]]:
    return np.frombuffer(data, dtype="<i2").tolist(), [False] * 60


def words_of_npy(data: bytes) -> tuple[list[int], list[bool]]:
    values = np.load(io.BytesIO(data), allow_pickle=False)
    assert values.shape == SHAPE and values.dtype.kind in "iu"
    return values.astype(np.int64).reshape(-1).tolist(), [False] * 60


MEMORIES: dict[str, Words] = {
    "npy": words_of_npy, "hex": words_of_hex, "mem": words_of_hex, "log": words_of_log, "coe": words_of_coe,
    "mif": words_of_mif, "bin": words_of_bin, "c": words_of_c,
}  # fmt: skip


# Dumps of a device: a folder is read by its names, the files' comments and lists


def read_dump(path: Path) -> str:
    from golden.verdict.dumps import Folder
    from golden.verify import Bundle

    folder = Folder(path.parent, Bundle(path.parent.parent / "bundle"))
    (dump,) = folder.dumps
    found = folder.read(dump)
    return sha(found.values.astype(np.int64), found.unknown is not None and found.unknown.any())


def right_dump(path: Path, good: bytes) -> str:
    """Word by word, if its comments are those it had; what they say may change how words are packed."""
    data = path.read_bytes()

    def told(text: bytes) -> list[bytes]:
        return re.findall(rb"\s*(?://|--|;)\s*((?:tensor|shape|order|bits|program) .*)", text[:4096])

    if told(data) != told(good):
        return read_dump(path)
    text = re.sub(rb"//[^\n]*|/\*.*?(\*/|\Z)", b" ", data, flags=re.DOTALL).replace(b"_", b"")
    words = text.split()
    assert len(words) == 2 and all(re.fullmatch(rb"[0-9a-fA-FxXzZ]{1,8}", word) for word in words)
    unknown = any(re.search(rb"[xXzZ]", word) for word in words)
    values = [int(re.sub(rb"[xXzZ]", b"0", word), 16) for word in words]
    return sha(np.array([[v - (v >> 31 << 32) for v in values]], dtype=np.int64), unknown)


def prepare_dump(folder: Path) -> None:
    prepare_bundle(folder)
    (folder / "dut").mkdir()


# Unit vectors: lines with a device's answers


def vector_case() -> Any:
    from golden.vectors.units import UNIT

    return UNIT["saturate"].case({})


def vector_samples(folder: Path) -> list[bytes]:
    from golden.vectors.lines import encode

    case = vector_case()
    stream = case.stream(1, 1, 40)
    x = stream.chunk(0, 40)
    made = case.compute(x)
    lines = encode(case.fields, {**x, **made}).splitlines()
    return [b"".join(line + b" " + line.split()[-1] + b"\n" for line in lines)]


def read_vectors(path: Path) -> str:
    from golden.vectors.judge import judge

    with open(path, "rb") as file:
        verdict = judge(vector_case(), file)
    return sha(verdict.lines, verdict.errors, None if verdict.first is None else verdict.first.line)


def right_vectors(path: Path, good: bytes) -> str:
    """Line by line: the answer is the integer clamped, and so is what the line expects."""
    case = vector_case()
    (v,), (out,) = case.inputs, case.outputs
    low, high = (-(1 << (out.bits - 1)), (1 << (out.bits - 1)) - 1) if out.signed else (0, (1 << out.bits) - 1)
    with open(path, "rb") as file:  # which may have a hole behind its content
        *lines, rest = file.read(1 << 20).split(b"\n")
    for number, line in enumerate(lines, start=1):
        words = line.replace(b"_", b"").split()
        assert len(words) == 3
        value = int(words[0], 16)
        assert value < 1 << v.bits
        clamped = min(max(value - (value >> (v.bits - 1) << v.bits), low), high) % (1 << out.bits)
        assert int(words[1], 16) == clamped
        if re.search(rb"[xXzZ]", words[2]) or int(words[2], 16) != clamped:
            assert re.fullmatch(rb"[0-9a-fA-FxXzZ]+", words[2])
            return sha(number, 1, number)  # what comes behind is not judged
    assert rest == b""
    return sha(len(lines), 0, None)


# Results of a sweep, which a rerun takes; ablations and scheduler files


def swept(folder: Path) -> Any:
    from golden.images import open_images
    from golden.sweep import Point, Sweep

    images = open_images(folder / "data.npz", SIZE.image)
    return Sweep([Point("accumulator-bits", 12, "wrap")], images, images, folder / "sweep", "x", threads=1)


def prepare_sweep(folder: Path) -> None:
    from intsim.whatif import Rule, narrow

    program = random_program(3, SIZE)
    rng = np.random.default_rng(0)
    np.savez(folder / "data.npz", images=rng.integers(0, 256, (5, *SIZE.image), dtype=np.uint8), labels=[0, 1, 0, 1, 1])

    def make(point: Any) -> Any:
        return program if point is None else narrow(program, [Rule("accumulators", 12, "wrap")])

    swept(folder).run(make)


def sweep_samples(folder: Path) -> list[bytes]:
    return [(folder / "sweep" / "reference.json").read_bytes()]


def read_sweep(path: Path) -> str:
    found = swept(path.parent.parent)
    return sha(json.dumps(found.result(), sort_keys=True)) if len(found.done) == 2 else "not all is done"


def right_sweep(path: Path, good: bytes) -> str | None:
    """Its content is that of the good file, whatever the white space."""
    return read_sweep(path) if json.loads(path.read_bytes()) == json.loads(good) else None


def mutate_text_json(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Its bytes, or its content."""
    if rng.random() < 0.5:
        return mutate_bytes(data, other, rng)
    return json.dumps(mutate_json(json.loads(data), rng)).encode()


def ablation_samples(folder: Path) -> list[bytes]:
    rows = [{"name": "all", "top1": 71.5, "agreement": None}, {"name": "state", "top1": 70, "agreement": 99.25}]
    return [json.dumps({"n": 10, "rows": rows}).encode(), json.dumps({"rows": rows[:1], "more": [1, {}]}).encode()]


def read_ablation_file(path: Path) -> str:
    from golden.commands.report import read_ablation

    found = read_ablation(str(path), random_program(3, SIZE))
    assert found is not None
    return sha(found["n"], [(row["name"], row["top1"], row["agreement"]) for row in found["rows"]])


def right_ablation(path: Path, good: bytes) -> str:
    content = json.loads(path.read_bytes())
    n = content.get("n")
    assert n is None or (type(n) is int and n > 0)
    rows = []
    for row in content["rows"]:
        figures = [row["top1"], row["agreement"]]
        assert all(f is None or (type(f) in (int, float) and 0 <= f <= 100) for f in figures)
        rows.append((str(row["name"]), *(None if f is None else float(f) for f in figures)))
    assert any(top1 is not None or agreement is not None for _, top1, agreement in rows)
    return sha(n, rows)


def scheduler_samples(folder: Path) -> list[bytes]:
    return [b'{"type": "Scheduler", "id": "Scheduler-1", "address": "tcp://10.0.0.1:8786", "workers": {}}']


def read_scheduler(path: Path) -> str:
    from golden.cluster.connect import scheduler_address

    return sha(scheduler_address(path))


def right_scheduler(path: Path, good: bytes) -> str:
    address = json.loads(path.read_bytes())["address"]
    assert 3 <= len(address) < 310 and not set(address) - set(ADDRESS_LETTERS) and "inproc" not in address
    return sha(address)


ADDRESS_LETTERS = "".join(map(chr, range(33, 127)))

READERS = [
    Reader("program", "p.safetensors", program_samples, read_program, unchanged(read_program), 40),
    Reader("program-sealed", "p.safetensors", program_samples, read_sealed, hash_of_program, 20, mutate_sealed),
    Reader("manifest", "bundle/manifest.json", bundle_file("manifest.json"), read_bundle(0), right_manifest, 2,
           mutate_manifest, prepare_bundle),
    Reader("bundle-npy", "bundle/constants/head.weight.npy", bundle_file("constants/head.weight.npy"), read_bundle(1),
           unchanged(read_bundle(1)), 1, prepare=prepare_bundle),
    Reader("bundle-hex", "bundle/images/0000/head.out.hex", bundle_file("images/0000/head.out.hex"), read_bundle(2),
           unchanged(read_bundle(2)), 1, prepare=prepare_bundle),
    Reader("bundle-program", "bundle/program.safetensors", bundle_file("program.safetensors"), read_bundle(0),
           unchanged(read_bundle(0)), 2, mutate_sealed, prepare_bundle),
    Reader("safetensors", "c.safetensors", safetensors_samples, read_checkpoint, right_safetensors, 20, needs="torch"),
    Reader("pth", "c.pth", pth_samples, read_checkpoint, right_pth, 14, mutate_zip, needs="torch"),
    *(Reader(f"memory-{name}", f"m.{name}", memory_samples(name), read_memory(name), memory_right(words), 8)
      for name, words in MEMORIES.items()),
    Reader("dump", "dut/head.out.hex", bundle_file("images/0000/head.out.hex"), read_dump, right_dump, 1,
           prepare=prepare_dump),
    Reader("vectors", "v.txt", vector_samples, read_vectors, right_vectors, 8),
    Reader("npz", "i.npz", npz_samples, read_npz, right_npz, 14, mutate_zip),
    Reader("png", "i.png", image_samples("PNG"), read_one_image, right_image, 12, mutate_png),
    Reader("jpeg", "i.jpg", image_samples("JPEG"), read_one_image, right_image, 10),
    Reader("image", "i.img", image_samples("BMP", "GIF", "PPM", "TIFF", "WEBP"), read_one_image, right_image, 6),
    Reader("labels", "set/labels.csv", labels_samples, read_labels, right_labels, 4, prepare=prepare_labels),
    Reader("sweep", "sweep/reference.json", sweep_samples, read_sweep, right_sweep, 4, mutate_text_json, prepare_sweep),
    Reader("ablation", "a.json", ablation_samples, read_ablation_file, right_ablation, 3, mutate_text_json),
    Reader("scheduler", "s.json", scheduler_samples, read_scheduler, right_scheduler, 2, mutate_text_json),
]  # fmt: skip


