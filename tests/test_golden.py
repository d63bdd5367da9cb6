"""Golden bundles: formats, manifest, verification, interruption, and the stranger who has nothing else."""

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import stranger
from hypothesis import given, settings
from hypothesis import strategies as st

import golden.bundle
from golden import hexfile, manifest
from golden.bundle import choose, write_bundle, write_dump
from golden.formats import FORMATS, Layout
from golden.images import Image
from golden.verify import verify
from intsim.arithmetic import container, limits
from intsim.errors import UserError
from intsim.oracle import Oracle
from intsim.program_file import program_bytes
from intsim.synthetic import Size, random_program

SCHEMA = json.loads((Path(golden.bundle.__file__).parent / "manifest.schema.json").read_text())
CUBES = {"abar", "b", "acc", "h"}


def pictures(program, n, seed=0):
    rng = np.random.default_rng(seed)
    return [Image(f"{i}.png", rng.integers(0, 256, program.image, dtype=np.uint8), i) for i in range(n)]


def make(out, program, *, n=2, layers=(), state=False, command="intsim golden", time="2026-01-02T03:04:05Z"):
    names = choose(program, layers, state)
    return write_bundle(out, program, Oracle(program), pictures(program, n), names=names, command=command, time=time)


@pytest.fixture(scope="module")
def program():
    made = random_program(3)
    program_bytes(made)  # sets its hash
    return made


@pytest.fixture(scope="module")
def whole(program, tmp_path_factory):
    """A bundle with every tensor of two images; not to be changed."""
    out = tmp_path_factory.mktemp("golden") / "whole"
    make(out, program, state=True)
    return out


@pytest.fixture
def bundle(whole, tmp_path):
    """A copy to damage."""
    return Path(shutil.copytree(whole, tmp_path / "bundle"))


def content(folder):
    return json.loads((folder / manifest.NAME).read_text())


# hex


def read_hex(text, bits, signed, words):
    return FORMATS["hex"].decode(text, Layout(("token",), (words,), bits, signed)).values


@st.composite
def tensors(draw):
    bits, signed = draw(st.integers(1, 64)), draw(st.booleans())
    low, high = limits(bits, signed)
    edge = st.sampled_from([low, high, 0 if low <= 0 else low, low + 1, high - 1])
    values = draw(st.lists(st.one_of(edge, st.integers(low, high)), max_size=40))
    return bits, signed, np.array(values, dtype=container(bits, signed))


@settings(deadline=None, max_examples=400)
@given(tensors(), st.lists(st.sampled_from(["tensor a.b", "exponent -3", ""]), max_size=3))
def test_hex_comes_back_and_has_the_right_width(drawn, comments):
    bits, signed, values = drawn
    text = hexfile.encode(values, bits, signed, comments)
    back = read_hex(text, bits, signed, len(values))
    assert back.dtype == values.dtype
    assert np.array_equal(back, values)
    lines = text.decode("ascii").splitlines()
    assert lines[: len(comments)] == [f"// {c}" for c in comments]
    for line, value in zip(lines[len(comments) :], values.tolist(), strict=True):
        assert line == f"{value % (1 << bits):0{-(-bits // 4)}x}"  # masked, padded, no sign


@settings(deadline=None)
@given(tensors())
def test_hex_reader_takes_what_simulators_write(drawn):
    bits, signed, values = drawn
    text = hexfile.encode(values, bits, signed).decode()
    loose = "/* memory\n 0x */\n" + text.upper().replace("\n", " // word\n\n") + "// end"
    assert np.array_equal(read_hex(loose.encode(), bits, signed, len(values)), values)
    joined = "\t".join("_".join(word.lstrip("0") or "0") for word in text.split())
    assert np.array_equal(read_hex(joined.encode(), bits, signed, len(values)), values)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"0\n-1\n", "line 2: '-1' is not a hexadecimal word"),
        (b"// a\n\n/* b\n */ 0h1f\n", "line 4: '0h1f' is not a hexadecimal word"),
        (b"@10 00\n", "line 1: '00' is at address 16, there are 2 words"),
        (b"_\n", "it has 0 words"),
        (b"1ff\n", "line 1: '1ff' is wider than 7 bits"),
        (b"80\n", "line 1: '80' is wider than 7 bits"),
        (b"00\xff\n", "is not a hexadecimal word"),
        (b"00\n00\n00\n", "it has 3 words, must have 2"),
    ],
)
def test_hex_reader_names_the_line(text, told):
    with pytest.raises(UserError, match="^") as caught:
        read_hex(text, 7, True, 2)
    assert told in str(caught.value)


def test_hex_writer_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="does not fit"):
        hexfile.encode(np.array([16]), 5, True)
    with pytest.raises(ValueError, match="does not fit"):
        hexfile.encode(np.array([-1]), 5, False)
    with pytest.raises(TypeError, match="float64"):
        hexfile.encode(np.array([1.0]), 5, False)
    with pytest.raises(ValueError, match="one line"):
        hexfile.encode(np.array([1]), 5, False, ["two\nlines"])


def test_hex_is_written_in_chunks_without_a_seam():
    values = np.arange(2 * hexfile.CHUNK + 3, dtype=np.int32) - hexfile.CHUNK
    assert np.array_equal(read_hex(hexfile.encode(values, 19, True), 19, True, values.size), values)


# The bundle


def test_manifest_follows_its_schema(whole):
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(content(whole), SCHEMA)


def test_whole_bundle_verifies(whole):
    assert verify(whole) == []


def test_npy_files_are_what_numpy_reads(whole, program):
    image = content(whole)["images"][1]
    made = Oracle(program).run_one(pictures(program, 2)[1].pixels)
    assert list(image["tensors"]) == list(program.tensors)
    for name, entry in image["tensors"].items():
        found = np.load(whole / entry["files"]["npy"]["file"], allow_pickle=False)
        assert found.dtype == program.tensors[name].dtype
        assert np.array_equal(found, made[name])
    for name, array in program.arrays.items():
        assert np.array_equal(np.load(whole / f"constants/{name}.npy"), array)


def test_manifest_says_what_the_program_declares(whole, program):
    said = content(whole)
    assert said["program"]["sha256"] == program.digest
    assert (whole / "program.safetensors").read_bytes() == program_bytes(program)
    for name, tensor in program.tensors.items():
        entry = said["tensors"][name]
        assert (entry["bits"], entry["signed"], entry["exponent"]) == (tensor.bits, tensor.signed, tensor.exponent)
        assert entry["words"] == np.prod(entry["shape"])
        if tensor.exponent is None:
            continue
        total = np.full(tensor.shape, entry["exponent"])
        parts = [(g["axis"], np.array(g["shifts"])[g["index"]]) for g in entry["groups"]]
        parts += [(o["axis"], np.array(o["values"])) for o in entry["offsets"]]
        for axis, values in parts:
            total += np.expand_dims(values, [i for i, a in enumerate(tensor.axes) if a != axis])
        assert np.array_equal(total, np.broadcast_to(program.exponent_grid(name), tensor.shape))


def test_default_leaves_the_insides_of_the_scan_out(program):
    every = set(program.tensors)
    cubes = {n for n in every if ".scan" in n and n.rsplit(".", 1)[1] in CUBES}
    assert len(cubes) == 8
    assert set(choose(program)) == every - cubes
    assert set(choose(program, state=True)) == every
    assert choose(program, ["*.scan.h"]) == ["image", "layers.0.mixer.scan.h", "head.out"]
    with pytest.raises(UserError, match="no tensor matches 'layers.7"):
        choose(program, ["layers.7.*"])


@pytest.mark.parametrize("mode", ["half_up", "half_even", "half_away", "floor"])
@pytest.mark.parametrize(("k", "state_bits"), [(4, 8), (1, 16)])
def test_a_stranger_recomputes_every_tensor(tmp_path, mode, k, state_bits):
    made = random_program(11, Size(image=(9, 13, 3), depth=2), rounding=mode, k=k, state_bits=state_bits, extreme=0.2)
    out = tmp_path / "bundle"
    make(out, made, state=True)
    images = content(out)["images"]
    for index, image in enumerate(images):
        values = stranger.recompute(out, index)
        assert set(values) == set(image["tensors"])
        for name, entry in image["tensors"].items():
            assert np.array_equal(values[name], np.load(out / entry["files"]["npy"]["file"])), name


def test_stranger_imports_nothing_of_the_project():
    text = Path(stranger.__file__).read_text()
    imports = [line.split()[1] for line in text.splitlines() if line.startswith(("import", "from"))]
    assert imports == ["json", "math", "pathlib", "numpy"]


def test_two_runs_differ_in_run_alone(tmp_path, program):
    make(tmp_path / "a", program)
    make(tmp_path / "b", program, command="intsim golden --out b", time="2027-01-01T00:00:00Z")
    files = [sorted(p.relative_to(tmp_path / n) for p in (tmp_path / n).rglob("*")) for n in "ab"]
    assert files[0] == files[1]
    for path in files[0]:
        a, b = tmp_path / "a" / path, tmp_path / "b" / path
        if path.name != manifest.NAME and a.is_file():
            assert a.read_bytes() == b.read_bytes(), path
    one, two = content(tmp_path / "a"), content(tmp_path / "b")
    assert one.pop("run") != two.pop("run")
    assert one == two
    make(tmp_path / "c", program)
    assert (tmp_path / "c" / manifest.NAME).read_bytes() == (tmp_path / "a" / manifest.NAME).read_bytes()


def test_dump_has_the_same_files_as_a_bundle(tmp_path, whole, program):
    image = pictures(program, 1)[0]
    told = write_dump(tmp_path / "d", program, Oracle(program), image, names=choose(program, ["*.scan_b.*"]))
    assert json.loads((tmp_path / "d" / "tensors.json").read_text()) == told
    assert told["program"] == program.digest
    for name, entry in told["tensors"].items():
        assert {k: v for k, v in entry.items() if k != "files"} == content(whole)["tensors"][name]
        for ending in ("npy", "hex"):
            same = (whole / f"images/0000/{name}.{ending}").read_bytes()
            assert (tmp_path / "d" / f"{name}.{ending}").read_bytes() == same
    assert len(list((tmp_path / "d").iterdir())) == 2 * len(told["tensors"]) + 1


def test_names_that_are_no_file_names_are_refused(tmp_path):
    made = random_program(0)
    made.tensors["../../x.out"] = made.tensors.pop("tokens.out")
    with pytest.raises(UserError, match=r"'../../x.out' cannot name a file"):
        choose(made)


# Verification


def test_every_flipped_byte_is_caught(tmp_path, program):
    bundle = tmp_path / "bundle"
    make(bundle, program, n=1, layers=["*.scan.*"])
    rng = np.random.default_rng(5)
    files = sorted(p for p in bundle.rglob("*") if p.is_file())
    assert len(files) > 150
    for path in files:
        data = path.read_bytes()
        at = int(rng.integers(len(data)))
        path.write_bytes(data[:at] + bytes([data[at] ^ (1 << int(rng.integers(8)))]) + data[at + 1 :])
        problems = verify(bundle)
        assert problems, f"byte {at} of {path}"
        if path.name != manifest.NAME:
            assert path.relative_to(bundle).as_posix() in problems[0]
        path.write_bytes(data)
    assert verify(bundle) == []


def test_every_flipped_byte_of_the_manifest_is_caught(bundle):
    rng = np.random.default_rng(6)
    path = bundle / manifest.NAME
    data = path.read_bytes()
    tail = len(data) - data.rindex(b'"run"')
    places = {*rng.integers(0, len(data), 60).tolist(), *range(len(data) - tail, len(data), 3)}
    for at in places:
        path.write_bytes(data[:at] + bytes([data[at] ^ (1 << int(rng.integers(8)))]) + data[at + 1 :])
        assert verify(bundle), f"byte {at}: {data[at - 20 : at + 20]!r}"
    path.write_bytes(data.replace(b'"format"', b' "format"', 1))
    assert verify(bundle) == ["manifest.json: is not in the form in which it was written"]


def test_missing_extra_and_replaced_files_are_caught(bundle):
    (bundle / "constants" / "exp2.rom.hex").unlink()
    (bundle / "images" / "0001" / "notes.txt").write_text("x")
    (bundle / "images" / "0002").mkdir()
    (bundle / "images/0000/image.npy").unlink()
    (bundle / "images/0000/image.npy").symlink_to(bundle / "images/0001/image.npy")
    with open(bundle / "images/0000/head.out.hex", "a") as file:
        file.write("00000000\n")
    problems = verify(bundle)
    for told in (
        "constants/exp2.rom.hex: is missing",
        "images/0001/notes.txt: is not listed in manifest.json",
        "images/0002: is a folder that manifest.json does not list",
        "images/0000/image.npy: is not a plain file",
        "images/0000/head.out.hex: has",
    ):
        assert any(told in p for p in problems), (told, problems)
    assert len(problems) == 5


def reseal(bundle, change):
    """What a careful forger does: changes the manifest and makes all digests fit."""
    said = content(bundle)
    change(said)
    run = said.pop("run")
    said.pop("content_sha256")
    manifest.seal(said, run["command"], run["time"])
    (bundle / manifest.NAME).write_text(manifest.render(said))


def forge_file(bundle, said, entry, data):
    (bundle / entry["file"]).write_bytes(data)
    entry.update(golden.bundle.file_entry(entry["file"], data))


def test_parts_that_disagree_are_caught_though_all_digests_fit(bundle):
    def other_hex(said):
        entry = said["images"][0]["tensors"]["tokens.out"]["files"]["hex"]
        data = (bundle / entry["file"]).read_bytes()
        forge_file(bundle, said, entry, data[:-2] + (b"1" if data[-2:-1] == b"0" else b"0") + b"\n")

    reseal(bundle, other_hex)
    assert verify(bundle) == ["images/0000/tokens.out.hex: does not hold the integers of images/0000/tokens.out.npy"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda said: said["images"][0].update({"class": 2 - said["images"][0]["class"] // 2}), "class and logits"),
        (lambda said: said["tensors"]["tokens.out"].update(exponent=3), "tensors does not follow from the Program"),
        (lambda said: said["operators"][0]["attributes"].update(stride=5), "operators does not follow"),
        (lambda said: said["constants"]["exp2.rom"].update(bits=31), "constants do not follow"),
        (lambda said: said["program"].update(name="other"), "program does not follow"),
        (lambda said: said["images"][1].update(index=0), "image 1 has index 0"),
        (lambda said: said["images"][1]["tensors"].pop("head.out"), "has no tensor head.out"),
        (lambda said: said["images"].clear(), "lists no image"),
        (lambda said: said.update(spec="2.0"), "spec is '2.0'"),
        (lambda said: said.update(version="9.0"), "version '9.0', this verifies"),
        (lambda said: said.update(more=1), "exactly the fields"),
        (lambda said: said["images"][0]["tensors"]["image"]["files"]["npy"].update(file="../x"), "not listed as it"),
        (lambda said: said["images"][0]["tensors"].update({"../x": {"files": {}}}), "no such tensor"),
        (lambda said: said["images"][0].update(tensors=[]), "images is malformed"),
        (lambda said: said.update(program=None), "program is malformed"),
        (lambda said: said.update(constants=[]), "constants is malformed"),
    ],
)
def test_a_forged_manifest_is_caught(bundle, change, told):
    reseal(bundle, change)
    assert any(told in p for p in verify(bundle)), verify(bundle)


def test_a_forged_npy_is_caught(bundle, program):
    name = "layers.0.mixer.scan.abar"  # 16 bits used of 16, unsigned; its range ends at 2^15

    def widen(said):
        files = said["images"][0]["tensors"][name]["files"]
        data = bytearray((bundle / files["npy"]["file"]).read_bytes())
        data[9 + 10 : 9 + 12] = b"<i"  # another dtype in the header
        forge_file(bundle, said, files["npy"], bytes(data))

    reseal(bundle, widen)
    assert any(f"{name}.npy: its header is malformed" in p for p in verify(bundle))


def test_an_endless_file_is_not_read(bundle):
    """A sparse file of 10 GB, listed with its size by a forger."""

    def grow(said):
        files = said["images"][0]["tensors"]["tokens.out"]["files"]
        for entry in files.values():
            with open(bundle / entry["file"], "r+b") as file:
                file.truncate(10 << 30)
            entry["bytes"] = 10 << 30

    reseal(bundle, grow)
    problems = verify(bundle)
    assert len(problems) == 1 and "has 10737418240 bytes, more than the" in problems[0]


def test_what_is_no_bundle_is_refused(tmp_path):
    with pytest.raises(UserError, match="there is no such folder"):
        verify(tmp_path / "nothing")
    with pytest.raises(UserError, match="is not a bundle, or was not finished"):
        verify(tmp_path)
    for text in ("", "[]", "{", "[" * 100_000, '{"format": 1e999}', "\x00"):
        (tmp_path / manifest.NAME).write_text(text)
        assert len(verify(tmp_path)) == 1


# Interruption


def leftovers(folder):
    return sorted(p.name for p in folder.iterdir())


def test_a_failure_half_way_leaves_nothing(tmp_path, program):
    def fail_at_second():
        yield pictures(program, 1)[0]
        raise RuntimeError("stop")

    for out in (tmp_path / "a", tmp_path / "new" / "a"):
        with pytest.raises(RuntimeError, match="stop"):
            write_bundle(out, program, Oracle(program), fail_at_second(), names=choose(program), command="", time="")
        assert not out.exists()
    assert leftovers(tmp_path) in ([], ["new"])


@pytest.mark.parametrize("fail_at", [1, 60, 150, "manifest"])
def test_a_full_disk_is_told_and_leaves_nothing(tmp_path, program, monkeypatch, fail_at):
    written = []

    def full(*args, **kw):
        written.append(args[0])
        if len(written) == fail_at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return whole_write(*args, **kw)

    def full_text(content):
        yield from islice(whole_text(content), 9)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    whole_write, whole_text = golden.bundle.write_new, manifest.rendered
    monkeypatch.setattr(golden.bundle, "write_new", full)
    if fail_at == "manifest":
        monkeypatch.setattr(manifest, "rendered", full_text)
    with pytest.raises(UserError, match="cannot be written: No space left on device"):
        make(tmp_path / "out", program)
    assert leftovers(tmp_path) == []


@pytest.mark.skipif(os.name == "nt" or not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounting needs root")
def test_a_really_full_disk(tmp_path, program):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        with pytest.raises(UserError, match="No space left on device"):
            make(disk / "out", program, state=True)
        assert leftovers(disk) == []
    finally:
        subprocess.run(["umount", disk], check=True)


def test_an_existing_target_is_left_alone(tmp_path, program):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(UserError, match="exists already"):
        make(tmp_path / "out", program)
    assert leftovers(tmp_path / "out") == ["mine"]
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="exists already"):
        make(tmp_path / "link", program)


SLOW = """
import sys, time
from golden.cli import cli
import golden.bundle as bundle
from golden import engines
from intsim.oracle import Oracle

class Slow(Oracle):
    def run(self, images, taps=()):
        found = super().run(images, taps)
        print("running", flush=True)
        time.sleep(0.5)
        return found

engines.make_engine = lambda program, say, threads=None: Slow(program)
cli(sys.argv[1:])
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_run_leaves_no_bundle(tmp_path, program, number):
    (tmp_path / "model.safetensors").write_bytes(program_bytes(program))
    np.savez(tmp_path / "images.npz", images=np.stack([i.pixels for i in pictures(program, 40)]))
    command = [sys.executable, "-c", SLOW, "golden", "--model", "model.safetensors", "--images", "images.npz"]
    child = subprocess.Popen(
        [*command, "--out", "out"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(golden.__file__).parent.parent)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a job in the background of a script has SIGINT ignored, and so would its children
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    for _ in range(3):
        assert child.stdout.readline() == "running\n"
    time.sleep(0.1)
    child.send_signal(number)
    _, error = child.communicate(timeout=60)
    assert child.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[number]
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()
    rest = [p for p in tmp_path.iterdir() if p.name not in ("model.safetensors", "images.npz")]
    if number != signal.SIGKILL:
        assert rest == []
    for folder in rest:  # what kill -9 leaves does not pass for a bundle
        with pytest.raises(UserError, match="was not finished"):
            verify(folder)


@pytest.mark.parametrize("images", [[], [{"a": [1, 2], "b": {}}, {"c": [{"d": [""]}]}]])
def test_a_packed_list_is_the_list(images):
    """A manifest with its images packed is hashed and written as the same manifest with them in a list."""
    packed = manifest.Packed()
    for entry in images:
        packed.append(entry)
    assert list(packed) == images == packed[:]
    plain, small = ({"x": 1, "images": found, "e": {}, "content_sha256": "", "run": 1} for found in (images, packed))
    assert manifest.content_digest(plain) == manifest.content_digest(small)
    canonical = manifest.canonical({"x": 1, "images": images, "e": {}})
    assert manifest.content_digest(plain) == hashlib.sha256(canonical).hexdigest()
    assert manifest.render(plain) == manifest.render(small) == manifest._render(plain, 0) + "\n"
