"""The command: results, JSON, exit statuses, and one clear sentence for whatever cannot be used."""

import csv
import io
import json
import os
import signal
import struct
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from click.testing import CliRunner

import golden
from golden.cli import cli
from golden.images import open_images, read_image
from intsim.errors import UserError
from intsim.oracle import Oracle
from intsim.program_file import load_program, save_program
from intsim.synthetic import Size, random_program

ROOT = Path(golden.__file__).parent.parent
CLASSES = ["class0", "class1", "class2"]
SIZE = (8, 8, 3)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_program(random_program(7), path)
    return path


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """A Program of two layers."""
    path = tmp_path_factory.mktemp("model") / "deep.safetensors"
    save_program(random_program(7, Size((8, 8, 3), 4, 4, 12, 2, 20, 4, 3, 4, 3)), path)
    return path


def pixels(n, size=SIZE, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, *size), dtype=np.uint8)


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array).save(path, **options)
    return path


def png_bytes(array):
    stream = io.BytesIO()
    PIL.Image.fromarray(array).save(stream, "PNG")
    return stream.getvalue()


def intsim(*args):
    """Runs a command line in this process; the exit status and both streams."""
    return CliRunner().invoke(cli, [str(a) for a in args])


def shell(*args, cwd=None, **options):
    """Runs a command line as a user does."""
    return subprocess.run(
        [sys.executable, "-m", "golden.cli", *map(str, args)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=300,
        **options,
    )


def oracle(model, images):
    return Oracle(load_program(model)).run(images)["head.out"].reshape(len(images), -1)


def refused(result, *told):
    """Exit status 2, nothing on standard output, one sentence on standard error that says all of `told`."""
    assert result.exit_code == 2, (result.exit_code, result.output, result.exception)
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("intsim: ")
    for text in told:
        assert str(text) in lines[0], (text, lines[0])


# What the commands give


def test_run_gives_the_oracles_logits(model, tmp_path):
    images = pixels(3)
    files = [save(tmp_path / f"{i}.png", image) for i, image in enumerate(images)]
    result = intsim("run", *files, "--model", model, "--json", "-")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    logits = oracle(model, images)
    assert [i["file"] for i in found["images"]] == [str(f) for f in files]
    assert [i["logits"] for i in found["images"]] == logits.tolist()
    assert [i["class"] for i in found["images"]] == logits.argmax(axis=1).tolist()
    assert [i["class_name"] for i in found["images"]] == [CLASSES[c] for c in logits.argmax(axis=1)]
    assert found["program"]["sha256"] == load_program(model).digest
    table = intsim("run", *files, "--model", model, "--json", tmp_path / "found.json")
    assert table.exit_code == 0
    assert all(f"{f.name}" in table.stdout for f in files)
    assert [i["logits"] for i in json.loads((tmp_path / "found.json").read_text())["images"]] == logits.tolist()


def test_run_takes_folders_and_npz(model, tmp_path):
    images = pixels(4)
    for i in range(2):
        save(tmp_path / "pictures" / f"{i}.png", images[i])
    np.savez_compressed(tmp_path / "more.npz", images=images[2:])
    result = intsim("run", tmp_path / "pictures", tmp_path / "more.npz", "--model", model, "--json", "-")
    found = json.loads(result.stdout)["images"]
    assert [i["logits"] for i in found] == oracle(model, images).tolist()
    names = ["pictures/0.png", "pictures/1.png", "more.npz[0]", "more.npz[1]"]
    assert [i["file"] for i in found] == [f"{tmp_path}/{n}" for n in names]


def test_golden_verify_and_dump(model, tmp_path):
    np.savez(tmp_path / "i.npz", images=pixels(5), labels=np.arange(5) % 3)
    out = tmp_path / "bundle"
    result = intsim(
        "golden", "--model", model, "--images", tmp_path / "i.npz", "--count", 2, "--out", out, "--json", "-"
    )
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    manifest = json.loads((out / "manifest.json").read_text())
    assert found["content_sha256"] == manifest["content_sha256"]
    assert (found["images"], found["tensors"]) == (2, len(manifest["images"][0]["tensors"]))
    assert found["bytes"] == sum(p.stat().st_size for p in out.rglob("*") if p.is_file())
    assert [(i["source"], i["label"]) for i in manifest["images"]] == [("i.npz[0]", 0), ("i.npz[2]", 2)]
    assert manifest["run"]["command"] == (
        f"intsim golden --model {model} --images {tmp_path}/i.npz --count 2 --out {out} --json -"
    )
    assert not any(n.endswith(".h") for n in manifest["images"][0]["tensors"])
    good = intsim("verify", out, "--json", "-")
    assert (good.exit_code, json.loads(good.stdout)) == (0, {"ok": True, "problems": []})
    image = save(tmp_path / "0.png", pixels(5)[0])
    dumped = intsim("dump", image, "--model", model, "--layers", "*.mixer.gate.*", "--out", tmp_path / "d")
    assert dumped.exit_code == 0
    name = "layers.0.mixer.gate.out"
    for ending in ("hex", "npy"):
        same = (out / f"images/0000/{name}.{ending}").read_bytes()
        assert (tmp_path / "d" / f"{name}.{ending}").read_bytes() == same
    with open(out / "images/0001" / f"{name}.hex", "a") as file:
        file.write("00\n")
    bad = intsim("verify", out, "--json", "-")
    assert bad.exit_code == 1
    assert json.loads(bad.stdout)["ok"] is False
    assert f"images/0001/{name}.hex: has" in json.loads(bad.stdout)["problems"][0]
    assert intsim("verify", out).stdout.endswith(": 1 problem\n")


def test_state_adds_the_insides_of_the_scan(model, tmp_path):
    np.savez(tmp_path / "i.npz", images=pixels(1))
    result = intsim("golden", "--model", model, "--images", tmp_path / "i.npz", "--state", "--out", tmp_path / "b")
    assert result.exit_code == 0
    listed = json.loads((tmp_path / "b" / "manifest.json").read_text())["images"][0]["tensors"]
    assert list(listed) == list(load_program(model).tensors)


def test_two_runs_and_thread_counts_give_the_same_bundle(model, tmp_path):
    np.savez(tmp_path / "i.npz", images=pixels(3))
    said = []
    for threads in (1, 2):
        out = tmp_path / str(threads)
        command = ["golden", "--model", model, "--images", tmp_path / "i.npz", "--state", "--out", out]
        assert intsim(*command, "--threads", threads).exit_code == 0
        said.append(json.loads((out / "manifest.json").read_text()))
    assert said[0].pop("run") != said[1].pop("run")
    assert said[0] == said[1]


def test_eval_counts(model, tmp_path):
    images = pixels(20, seed=4)
    right = oracle(model, images).argmax(axis=1)
    labels = np.where(np.arange(20) % 4 == 0, (right + 1) % 3, right)
    np.savez(tmp_path / "i.npz", images=images, labels=labels)
    result = intsim("eval", "--data", tmp_path / "i.npz", "--model", model, "--batch", 7, "--json", "-")
    found = json.loads(result.stdout)
    assert (found["top1"], found["n"], found["correct"], found["engine"]) == (75.0, 20, 15, "int")
    assert found["seconds"] >= 0
    for image, label, i in zip(images, labels, range(20), strict=True):
        save(tmp_path / "tree" / CLASSES[label] / "deep" / f"{i}.png", image)
    tree = json.loads(intsim("eval", "--data", tmp_path / "tree", "--model", model, "--json", "-").stdout)
    assert (tree["correct"], tree["n"]) == (15, 20)
    assert "75.00" in intsim("eval", "--data", tmp_path / "tree", "--model", model).stdout


def test_eval_of_the_torch_path_is_that_of_the_engine(model, tmp_path):
    pytest.importorskip("torch")
    images = pixels(11, seed=8)
    right = oracle(model, images).argmax(axis=1)
    np.savez(tmp_path / "i.npz", images=images, labels=right)
    found = {}
    for engine in ("int", "fake"):
        done = intsim("eval", "--engine", engine, "--data", tmp_path / "i.npz", "--model", model, "--json", "-")
        found[engine] = json.loads(done.stdout)
        assert found[engine]["predictions"] == right.tolist()
        assert found[engine]["images_per_second"] > 0
    assert (found["fake"]["engine"], found["fake"]["device"], found["fake"]["correct"]) == ("fake", "cpu", 11)
    assert "fake, cpu" in intsim("eval", "--engine", "fake", "--data", tmp_path / "i.npz", "--model", model).stdout
    refused(intsim("eval", "--device", "cuda"), "--device and --form are for --engine fake")
    refused(intsim("eval", "--engine", "fake", "--device", "tpu"), "'tpu'", "use cpu or cuda")


def test_compare_finds_no_difference(deep, tmp_path):
    pytest.importorskip("torch")
    images = pixels(5, seed=9)
    np.savez(tmp_path / "i.npz", images=images)
    command = ["compare", "--images", tmp_path / "i.npz", "--model", deep]
    done = intsim(*command, "--json", tmp_path / "found.json")
    assert done.exit_code == 0, (done.stderr, done.exception)
    found = json.loads((tmp_path / "found.json").read_text())
    tensors = Oracle(load_program(deep)).run(images, ["*"])
    assert {t["name"]: t["elements"] for t in found["tensors"]} == {n: t.size for n, t in tensors.items()}
    assert found["elements"] == sum(t.size for t in tensors.values())
    assert (found["mismatches"], found["guilty"], found["faulty"], found["images"]) == (0, None, [], 5)
    assert "layers.*.norm.out (" in done.stdout and "no mismatch in" in done.stdout
    assert "layers.0.norm.out" in intsim(*command, "--all", "--count", 1).stdout
    some = json.loads(intsim(*command, "--layers", "*.scan.h", "--reference", "oracle", "--json", "-").stdout)
    assert {t["name"].split(".", 2)[-1] for t in some["tensors"]} == {"mixer.scan.h", "out"}
    refused(intsim(*command, "--layers", "nothing.*"), "no tensor matches 'nothing.*'")
    refused(intsim(*command, "--count", 6), "6 images are asked for, there are 5")


def test_compare_names_the_guilty_operator(deep, tmp_path, monkeypatch):
    pytest.importorskip("torch")
    from bitexact.fakequant import FakeQuant

    ready = FakeQuant.__init__
    guilty = "layers.1.mixer.silu_b"

    def spoil(self, *args, **options):
        ready(self, *args, **options)
        right = self.steps[guilty]
        self.steps[guilty] = lambda inputs, wanted: {"out": right(inputs, wanted)["out"].roll(1, 1)}  # a token late

    monkeypatch.setattr(FakeQuant, "__init__", spoil)
    np.savez(tmp_path / "i.npz", images=pixels(3, seed=9))
    command = ["compare", "--images", tmp_path / "i.npz", "--model", deep]
    done = intsim(*command, "--json", tmp_path / "found.json")
    assert done.exit_code == 1, (done.stderr, done.exception)
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found["guilty"]["operator"], found["guilty"]["tensor"]) == (guilty, f"{guilty}.out")
    assert found["faulty"] == [guilty]
    first = found["guilty"]["first"]
    program = load_program(deep)
    expected = Oracle(program).run(pixels(3, seed=9), [f"{guilty}.out"])[f"{guilty}.out"]
    place = (first["image"], *first["index"])
    assert first["reference"] == expected[place] and first["candidate"] == np.roll(expected, 1, 1)[place]
    differs = expected != np.roll(expected, 1, 1)
    assert place == tuple(int(i[0]) for i in np.nonzero(differs))
    (row,) = [t for t in found["tensors"] if t["name"] == f"{guilty}.out"]
    assert row["mismatches"] == differs.sum()
    wide = expected.astype(int)
    assert row["largest_difference"] == np.abs(wide - np.roll(wide, 1, 1)).max()
    assert found["mismatches"] >= row["mismatches"]
    assert f"guilty: {guilty} (rom)" in done.stdout
    told = json.loads(intsim(*command, "--layers", "head.out", "--json", "-").stdout)
    assert told["guilty"]["operator"] == guilty or told["mismatches"] == 0


def test_info_shows_the_program(model):
    result = intsim("info", "--model", model, "--layers", "*.scan.h", "--json", "-")
    found = json.loads(result.stdout)
    program = load_program(model)
    assert found["sha256"] == program.digest
    assert found["classes"] == CLASSES
    assert sum(row["count"] for row in found["operators"]) == len(program.operators)
    assert found["tensors"]["layers.0.mixer.scan.h"]["bits"] == 8
    linear = next(row for row in found["operators"] if row["kind"] == "linear")
    assert 16 < linear["proven_bits"] <= linear["accumulator_bits"] == 32
    refused(intsim("info", "--model", model, "--layers", "nothing"), "no tensor matches 'nothing'")


def test_help_and_info_load_neither_numba_nor_torch(model):
    for args in (["--help"], ["info", "--model", str(model)], ["golden", "--help"]):
        source = (
            "import sys\nfrom golden.cli import cli\n"
            f"try:\n    cli({args!r})\nexcept SystemExit as end:\n    assert end.code == 0, end.code\n"
            "assert not {'numba', 'torch', 'llvmlite'} & set(sys.modules), 'loaded'\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", source], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr


def test_embedded_model_and_images():
    from intsim import embedded

    images, labels, names = embedded.images()
    assert images.shape == (64, 32, 32, 3)
    assert images.dtype == np.uint8
    assert len(names) == 64
    program = embedded.program()
    assert program.image == (32, 32, 3)
    found = open_images(embedded.images_path(), program.image)
    assert found.names == names
    assert found.labels == labels.tolist()
    assert np.array_equal(found.stack(), images)
    result = intsim("eval", "--json", "-")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["top1"] > 70


# Reading images


def test_images_are_spread_evenly(tmp_path):
    np.savez(tmp_path / "i.npz", images=pixels(10))
    assert open_images(tmp_path / "i.npz", SIZE, count=4).picks == [0, 2, 5, 7]
    found = open_images(tmp_path / "i.npz", SIZE, count=4)
    assert np.array_equal(found.stack(), pixels(10)[[0, 2, 5, 7]])
    assert [len(b) for b in found.batches(3)] == [3, 1]


def test_labels_file_and_class_folders(tmp_path):
    for i in range(3):
        save(tmp_path / "flat" / f"{i}.png", pixels(3)[i])
    (tmp_path / "flat" / "notes.txt").write_text("not an image")
    (tmp_path / "flat" / ".hidden.png").write_text("not an image either")
    assert open_images(tmp_path / "flat", SIZE).labels is None
    for column in ("label", "class_index"):
        with open(tmp_path / "flat" / "labels.csv", "w", newline="") as file:
            csv.writer(file).writerows([["file", column, "x"], ["1.png", 4, ""], ["0.png", 7, ""], ["2.png", 0, ""]])
        assert open_images(tmp_path / "flat", SIZE).labels == [7, 4, 0]
    for name in ("b", "a", "c"):
        save(tmp_path / "tree" / name / "0.png", pixels(1)[0])
    (tmp_path / "tree" / "empty").mkdir()
    assert open_images(tmp_path / "tree", SIZE, classes=["c", "b", "a", "d"]).labels == [2, 1, 0]  # by name
    assert open_images(tmp_path / "tree", SIZE, classes=["x", "y", "z"]).labels == [0, 1, 2]  # one for each class
    unclear = open_images(tmp_path / "tree", SIZE, classes=["x", "y", "z", "w"])
    with pytest.raises(UserError, match="3 subfolders .such as a. are neither named as the classes nor one for each"):
        unclear.require_labels(4)


def test_center_crop_cuts_and_never_resamples(tmp_path):
    large = pixels(1, (11, 14, 3))[0]
    path = save(tmp_path / "large.png", large)
    assert np.array_equal(read_image(path, SIZE, True), large[1:9, 3:11])
    np.savez(tmp_path / "large.npz", images=large[None])
    assert np.array_equal(open_images(tmp_path / "large.npz", SIZE, center_crop=True).stack()[0], large[1:9, 3:11])
    with pytest.raises(UserError, match="11 x 14 pixels .*allowed is 8 x 8; --center-crop"):
        read_image(path, SIZE)
    with pytest.raises(UserError, match="11 x 14 pixels .*allowed is 12 x 12 or larger$"):
        read_image(path, (12, 12, 3), True)


def test_modes_of_images(tmp_path):
    colour = pixels(1)[0]
    grey = colour[..., 0]
    opaque = np.dstack([colour, np.full((8, 8), 255, np.uint8)])
    PIL.Image.fromarray(grey).save(tmp_path / "grey.png")
    PIL.Image.fromarray(opaque).save(tmp_path / "opaque.png")
    PIL.Image.fromarray(colour).save(tmp_path / "colour.bmp")
    PIL.Image.fromarray(colour).convert("P").save(tmp_path / "palette.png")
    assert np.array_equal(read_image(tmp_path / "grey.png", SIZE), np.dstack([grey] * 3))
    assert np.array_equal(read_image(tmp_path / "grey.png", (8, 8, 1)), grey[..., None])
    assert np.array_equal(read_image(tmp_path / "opaque.png", SIZE), colour)
    assert np.array_equal(read_image(tmp_path / "colour.bmp", SIZE), colour)
    assert read_image(tmp_path / "palette.png", SIZE).shape == SIZE
    opaque[3, 3, 3] = 254
    PIL.Image.fromarray(opaque).save(tmp_path / "clear.png")
    PIL.Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    for name, told in (("clear.png", "partly transparent"), ("deep.png", "more than 8 bits a channel")):
        with pytest.raises(UserError, match=told):
            read_image(tmp_path / name, SIZE)
    with pytest.raises(UserError, match="the Program takes 1 channels"):
        read_image(tmp_path / "colour.bmp", (8, 8, 1))


# Unusable input


def bomb():
    """A small PNG that declares 60,000 x 60,000 pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(1_000_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def broken(tmp_path):
    """Bad image inputs: name -> (path, what the message must say)."""
    whole = png_bytes(pixels(1)[0])
    files = {
        "small.png": (png_bytes(pixels(1, (7, 9, 3))[0]), ["7 x 9 pixels", "allowed is 8 x 8"]),
        "large.png": (png_bytes(pixels(1, (40, 40, 3))[0]), ["40 x 40", "allowed is 8 x 8", "--center-crop"]),
        "text.png": (b"hello, I am text", ["is not an image of a known kind"]),
        "empty.png": (b"", ["is not an image"]),
        "cut.png": (whole[: len(whole) // 2], ["truncated"]),
        "cut_early.png": (whole[:20], []),
        "flipped.png": (whole[:45] + bytes([whole[45] ^ 255]) + whole[46:], []),
        "bomb.png": (bomb(), ["too large to be decoded"]),
        "program.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", ["is not an image"]),
        "not.npz": (b"PK no", ["is not an npz file"]),
    }
    cases = {}
    for name, (data, told) in files.items():
        (tmp_path / name).write_bytes(data)
        cases[name] = (tmp_path / name, told)
    (tmp_path / "hollow").mkdir()
    (tmp_path / "hollow" / "readme.txt").write_text("nothing")
    cases["hollow"] = (tmp_path / "hollow", ["holds no images"])
    cases["missing"] = (tmp_path / "missing.png", ["there is no such file or folder"])
    save(tmp_path / "both" / "0.png", pixels(1)[0])
    save(tmp_path / "both" / "dog" / "0.png", pixels(1)[0])
    cases["both"] = (tmp_path / "both", ["has images beside the subfolder dog"])
    save(tmp_path / "mixed" / "0.png", pixels(1)[0])
    (tmp_path / "mixed" / "1.png").write_bytes(b"no")
    cases["mixed"] = (tmp_path / "mixed", ["mixed/1.png", "is not an image"])
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.png")
        cases["pipe"] = (tmp_path / "pipe.png", ["is neither a file nor a folder"])
    arrays = {
        "other.npz": ({"pictures": pixels(2)}, ["has no array images; it has pictures"]),
        "wrong_size.npz": ({"images": pixels(2, (8, 9, 3))}, ["8 x 9 pixels", "allowed is 8 x 8"]),
        "float.npz": ({"images": pixels(2) / 255}, ["images is float64", "must be uint8 [n, 8, 8, 3]"]),
        "planes.npz": ({"images": pixels(2).transpose(0, 3, 1, 2)}, ["must be uint8 [n, 8, 8, 3]"]),
        "none.npz": ({"images": pixels(2)[:0]}, ["must be uint8"]),
        "objects.npz": ({"images": np.array([None, 1], dtype=object)}, ["is not a plain array"]),
        "fortran.npz": ({"images": np.asfortranarray(pixels(2))}, ["Fortran order"]),
        "labels.npz": ({"images": pixels(2), "labels": np.arange(3)}, ["labels is int64 [3], must be 2 integers"]),
    }
    for name, (content, told) in arrays.items():
        np.savez(tmp_path / name, **content)
        cases[name] = (tmp_path / name, told)
    np.savez(tmp_path / "good.npz", images=pixels(2))
    data = bytearray((tmp_path / "good.npz").read_bytes())
    data[300] ^= 1
    (tmp_path / "damaged.npz").write_bytes(bytes(data))
    cases["damaged.npz"] = (tmp_path / "damaged.npz", [])
    with zipfile.ZipFile(tmp_path / "short.npz", "w") as archive:
        stream = io.BytesIO()
        np.save(stream, pixels(3))
        archive.writestr("images.npy", stream.getvalue()[:-10])
    cases["short.npz"] = (tmp_path / "short.npz", ["images ends within image 2 of 3"])
    return cases


BROKEN = [
    *("small.png", "large.png", "text.png", "empty.png", "cut.png", "cut_early.png", "flipped.png", "bomb.png"),
    *("program.eps", "not.npz", "hollow", "missing", "both", "mixed", "pipe", "other.npz", "wrong_size.npz"),
    *("float.npz", "planes.npz", "none.npz", "objects.npz", "fortran.npz", "labels.npz", "damaged.npz", "short.npz"),
]


@pytest.mark.parametrize("name", BROKEN)
def test_bad_images_are_told_and_leave_nothing(model, tmp_path, name):
    (tmp_path / "in").mkdir()
    cases = broken(tmp_path / "in")
    assert set(BROKEN) == set(cases)
    path, told = cases[name]
    refused(intsim("run", path, "--model", model, "--json", tmp_path / "found.json"), path.name, *told)
    refused(intsim("golden", "--images", path, "--model", model, "--out", tmp_path / "out"), path.name, *told)
    refused(intsim("eval", "--data", path, "--model", model), path.name)
    if not path.is_dir() and path.suffix != ".npz":
        refused(intsim("dump", path, "--model", model, "--out", tmp_path / "out"), path.name, *told)
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("name", ["missing", "folder", "empty", "text", "cut", "edited", "checkpoint"])
@pytest.mark.parametrize("command", ["info", "run", "golden", "dump", "eval"])
def test_bad_programs_are_told_and_leave_nothing(model, tmp_path, name, command):
    data = model.read_bytes()
    content = {
        "empty": b"",
        "text": b"hello, this is no Program at all",
        "cut": data[: len(data) * 2 // 3],
        "edited": data[:-7] + bytes([data[-7] ^ 1]) + data[-6:],
        "checkpoint": struct.pack("<Q", 2) + b"{}",
    }
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / f"{name}.safetensors"
    if name == "folder":
        path.mkdir()
    elif name != "missing":
        path.write_bytes(content[name])
    image = save(tmp_path / "in" / "0.png", pixels(1)[0])
    args = {
        "info": [],
        "run": [image],
        "golden": ["--images", image, "--out", tmp_path / "out"],
        "dump": [image, "--out", tmp_path / "out"],
        "eval": ["--data", image],
    }[command]
    refused(intsim(command, *args, "--model", path), path)
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_targets_that_cannot_be_written(model, tmp_path):
    image = save(tmp_path / "0.png", pixels(1)[0])
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "mine").write_text("x")
    (tmp_path / "file").write_text("x")
    for out, told in (
        (tmp_path / "old", "exists already"),
        (tmp_path / "file", "exists already"),
        (tmp_path / "file" / "out", "cannot be created"),
        ("/proc/out", "/proc/out"),
    ):
        refused(intsim("golden", "--images", image, "--model", model, "--out", out), told)
        refused(intsim("dump", image, "--model", model, "--out", out), told)
    for target, told in (
        (tmp_path / "none" / "a.json", "there is no folder"),
        (tmp_path / "old", "is a folder"),
        (tmp_path / "file" / "a.json", "there is no folder"),
    ):
        refused(intsim("run", image, "--model", model, "--json", target), told)
        refused(intsim("golden", "--images", image, "--model", model, "--out", tmp_path / "n", "--json", target), told)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0.png", "file", "old"]
    assert [p.name for p in (tmp_path / "old").iterdir()] == ["mine"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="becomes another user")
def test_a_folder_without_permission():
    source = (
        "import os, sys\nfrom pathlib import Path\nfrom intsim.files import new_folder\n"
        "from golden.commands.common import check_target, complain\n"
        "from intsim.errors import UserError\nos.setuid(65534)\n"
        "for work in (lambda p: new_folder(p).__enter__(), lambda p: check_target(p)):\n"
        "    try:\n        work(Path(sys.argv[1]) / 'out')\n"
        "    except UserError as problem:\n        complain(problem)\n"
    )
    with tempfile.TemporaryDirectory() as locked:
        os.chmod(locked, 0o755)
        done = subprocess.run(
            [sys.executable, "-c", source, locked],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
    assert done.stderr.splitlines() == [
        f"intsim: {locked}/out: cannot be created: Permission denied",
        f"intsim: {locked}/out: cannot be written: the folder {locked} is not writable",
    ]


def test_bad_options(model, tmp_path):
    image = save(tmp_path / "0.png", pixels(1)[0])
    base = ["golden", "--images", image, "--model", model, "--out", tmp_path / "out"]
    refused(intsim(*base, "--layers", "layers.9.*"), "no tensor matches 'layers.9.*'")
    refused(intsim(*base, "--count", 2), "2 images are asked for, there are 1")
    refused(intsim("eval", "--data", image, "--model", model), "has no labels: a single image has none")
    refused(intsim("eval", "--data", image, "--checkpoint", image), "--checkpoint is for --engine float")
    refused(intsim("eval", "--engine", "float", "--model", model), "--model is not for --engine float")
    np.savez(tmp_path / "i.npz", images=pixels(2), labels=[0, 3])
    refused(intsim("eval", "--data", tmp_path / "i.npz", "--model", model), "i.npz[1]: label is 3, allowed are 0 .. 2")
    refused(intsim("dump", tmp_path / "i.npz", "--model", model, "--out", tmp_path / "out"), "holds 2 images")
    for args in (["golden"], ["run"], ["nothing"], ["eval", "--engine", "analog"], [*base, "--count", "0"]):
        result = intsim(*args)
        assert result.exit_code == 2
        assert "Usage:" in result.stderr
    assert not (tmp_path / "out").exists()


def test_labels_file_that_cannot_be_used(model, tmp_path):
    save(tmp_path / "f" / "0.png", pixels(1)[0])
    for text, told in (
        ("", "must have the columns"),
        ("name,label\n0.png,1\n", "must have the columns"),
        ("file,label\n0.png,dog\n", "row 2 has label 'dog', must be a class index"),
        ("file,label\n0.png\n", "row 2 has label ''"),
        ("file,label\n1.png,1\n", "has no labels: labels.csv does not list 0.png"),
        ("file,label\n\xff", "cannot be read"),
    ):
        (tmp_path / "f" / "labels.csv").write_bytes(text.encode("latin-1"))
        refused(intsim("eval", "--data", tmp_path / "f", "--model", model), told)


def test_without_torch_the_float_commands_say_what_to_install(model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    refused(intsim("eval", "--engine", "float"), "pip install '.[torch]'")
    refused(intsim("eval", "--engine", "fake", "--model", model), "pip install '.[torch]'")
    refused(intsim("compare", "--model", model), "pip install '.[torch]'")
    out = tmp_path / "model.safetensors"
    refused(intsim("quantize", "c.pth", "--calibration", tmp_path, "--out", out), "pip install '.[torch]'")
    np.savez(tmp_path / "i.npz", images=pixels(1))
    assert intsim("run", tmp_path / "i.npz", "--model", model).exit_code == 0


# The float side


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch = pytest.importorskip("torch")
    from bitexact.checkpoint import save_checkpoint
    from bitexact.vim import Vim, VimConfig

    torch.manual_seed(3)
    config = VimConfig(16, 16, 3, 8, 8, 16, 1, 32, 4, 2, 4, 3)
    path = tmp_path_factory.mktemp("float") / "tiny.safetensors"
    metadata = {
        "image_size": [16, 16],
        "stride": 8,
        "classes": ["cat", "dog", "bee"],
        "mean": [0.5] * 3,
        "std": [0.2] * 3,
    }
    save_checkpoint(path, Vim(config).state_dict(), metadata)
    return path


def test_quantize_then_run_and_eval(checkpoint, tmp_path):
    images = pixels(12, (16, 16, 3))
    np.savez(tmp_path / "i.npz", images=images, labels=np.arange(12) % 3)
    out = tmp_path / "tiny_int8.safetensors"
    command = ["quantize", checkpoint, "--calibration", tmp_path / "i.npz", "--images", 6]
    result = intsim(*command, "--k", 2, "--rounding", "half_even", "--out", out, "--json", "-")
    assert result.exit_code == 0, (result.stderr, result.exception)
    found = json.loads(result.stdout)
    program = load_program(out)
    assert found["program"] == {"name": "tiny", "profile": "int8", "sha256": program.digest}
    assert (found["images"], found["bytes"]) == (6, out.stat().st_size)
    assert (program.image, program.classes, program.rounding) == ((16, 16, 3), ["cat", "dog", "bee"], "half_even")
    again = tmp_path / "again.safetensors"
    assert intsim(*command, "--k", 2, "--rounding", "half_even", "--out", again).exit_code == 0
    assert again.read_bytes() == out.read_bytes()
    refused(intsim(*command, "--out", out), "exists already")
    top1 = {}
    for engine, option, file in (("int", "--model", out), ("float", "--checkpoint", checkpoint)):
        data = ["--data", tmp_path / "i.npz", "--json", "-"]
        scored = json.loads(intsim("eval", "--engine", engine, option, file, *data).stdout)
        assert (scored["n"], scored["engine"]) == (12, engine)
        top1[engine] = scored["correct"]
    assert abs(top1["int"] - top1["float"]) <= 4


def test_quantize_refuses_what_it_cannot_use(checkpoint, tmp_path):
    (tmp_path / "in").mkdir()
    np.savez(tmp_path / "in" / "small.npz", images=pixels(2))
    np.savez(tmp_path / "in" / "i.npz", images=pixels(2, (16, 16, 3)))
    (tmp_path / "in" / "text.pth").write_text("no checkpoint")
    images, out = tmp_path / "in" / "i.npz", tmp_path / "out.safetensors"
    for source, calibration, options, told in (
        (checkpoint, tmp_path / "in" / "small.npz", [], "8 x 8 pixels"),
        (checkpoint, tmp_path / "none", [], "there is no such file or folder"),
        (tmp_path / "in" / "text.pth", images, [], "text.pth"),
        (tmp_path / "in" / "none.pth", images, [], "none.pth"),
        (checkpoint, images, ["--std", "0.1,0.1,0"], "std"),
        (checkpoint, images, ["--mean", "0.5"], "mean"),
        (checkpoint, images, ["--images", 3], "3 images are asked for, there are 2"),
    ):
        refused(intsim("quantize", source, "--calibration", calibration, "--out", out, *options), told)
    for options in (["--k", 5], ["--search", "magic"], ["--mean", "a,b"], ["--image-size", "0x3"]):
        result = intsim("quantize", checkpoint, "--calibration", images, "--out", out, *options)
        assert result.exit_code == 2
        assert "Usage:" in result.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


# As a process


def test_exit_statuses_and_no_traceback(model, tmp_path):
    good = shell("info", "--model", model)
    assert (good.returncode, good.stderr) == (0, "")
    assert load_program(model).digest in good.stdout
    assert shell("--version").stdout.startswith("intsim 0.")
    bad = shell("run", "nothing.png", "--model", model)
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr == "intsim: nothing.png: there is no such file or folder\n"
    assert shell("verify", tmp_path).returncode == 2
    assert shell("unknown").returncode == 2
    (tmp_path / "manifest.json").write_text("{}")
    mismatch = shell("verify", tmp_path, "--json", "-")
    assert (mismatch.returncode, json.loads(mismatch.stdout)["ok"], mismatch.stderr) == (1, False, "")


def test_json_to_standard_output_is_nothing_but_json(model, tmp_path):
    image = save(tmp_path / "0.png", pixels(1)[0])
    for args in (
        ["info"],
        ["run", image],
        ["dump", image, "--out", tmp_path / "d"],
        ["golden", "--images", image, "--out", tmp_path / "g"],
    ):
        done = shell(*args, "--model", model, "--json", "-")
        assert done.returncode == 0, done.stderr
        assert isinstance(json.loads(done.stdout), dict)


def test_a_file_name_that_is_not_text(model, tmp_path):
    image = save(tmp_path / "0.png", pixels(1)[0])
    strange = os.fsdecode(os.fsencode(tmp_path) + b"/\xff[red].png")
    os.rename(image, strange)
    done = shell("run", strange, "--model", model)
    assert done.returncode == 0, done.stderr
    assert "[red].png" in done.stdout
    done = shell("golden", "--images", strange, "--model", model, "--out", tmp_path / "b")
    assert done.returncode == 0, done.stderr
    assert intsim("verify", tmp_path / "b").exit_code == 0


@pytest.mark.skipif(os.name == "nt", reason="pipes of POSIX")
def test_a_reader_that_goes_away_is_no_error(model):
    child = subprocess.Popen(
        [sys.executable, "-m", "golden.cli", "info", "--model", str(model), "--layers", "*"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    child.stdout.close()
    error = child.stderr.read()
    assert (child.wait(timeout=60), error) == (141, b"")


def test_ctrl_c_removes_what_is_half_written(model, tmp_path):
    np.savez(tmp_path / "i.npz", images=np.zeros((200_000, *SIZE), np.uint8))
    child = subprocess.Popen(
        [sys.executable, "-m", "golden.cli", "golden", "--model", str(model), "--images", "i.npz", "--out", "out"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a job in the background of a script has SIGINT ignored, and so would its children
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    until = time.monotonic() + 120
    while not list(tmp_path.glob(".out.*.part/images/0002")):
        assert time.monotonic() < until
        assert child.poll() is None, child.communicate()
        time.sleep(0.02)
    child.send_signal(signal.SIGINT)
    out, error = child.communicate(timeout=60)
    assert child.returncode == 130
    assert out == ""
    assert error.splitlines()[-1] == "intsim: interrupted"
    assert "Traceback" not in error
    assert [p.name for p in tmp_path.iterdir()] == ["i.npz"]


def test_images_are_streamed(model, tmp_path):
    """Peak memory does not grow with the number of images (an npz of 96 MiB is never held whole)."""
    resource = pytest.importorskip("resource")
    size = Size(image=(64, 64, 3), patch=16, stride=16)
    save_program(random_program(1, size), tmp_path / "m.safetensors")
    peak = []
    for n in (8, 8192):
        np.savez_compressed(tmp_path / f"{n}.npz", images=np.zeros((n, 64, 64, 3), np.uint8), labels=np.zeros(n, int))
        source = (
            "import resource, sys\nfrom golden.cli import cli\n"
            "try:\n    cli(sys.argv[1:])\nexcept SystemExit as end:\n    assert end.code == 0\n"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", source, "eval", "--data", f"{n}.npz", "--model", "m.safetensors", "--count", "8"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        peak.append(int(done.stdout.split()[-1]))
    assert resource is not None
    assert peak[1] - peak[0] < 20_000  # KiB


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_standard_output() -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "golden.cli", "info"]
        run = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (run.returncode, run.stderr) == (2, "intsim: standard output: cannot be written: No space left on device\n")
