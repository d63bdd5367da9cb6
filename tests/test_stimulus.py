"""Frames that break hardware: what they hold, that they are always the same, and that a bundle of them verifies."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from golden.cli import cli
from golden.images import open_images
from golden.stimulus import KINDS, Stimuli
from golden.verify import verify
from intsim.errors import UserError
from intsim.oracle import Oracle
from intsim.program_file import save_program
from intsim.synthetic import random_program

SIZE = (5, 7, 3)


def frames(*kinds: str, **options: Any) -> list[np.ndarray]:
    made = Stimuli(kinds, SIZE, **options)
    found = [image.pixels for image in made]
    assert len(found) == len(made)
    assert all(pixels.dtype == np.uint8 and pixels.shape == SIZE for pixels in found)
    return found


def test_what_each_frame_holds() -> None:
    (zeros,) = frames("zeros")
    assert not zeros.any()
    full, mixed = frames("extremes")
    assert (full == 255).all() and set(np.unique(mixed)) == {0, 255}
    even, odd = frames("checkerboard")
    assert even[0, 0].tolist() == [0, 0, 0] and even[0, 1].tolist() == [255] * 3 and even[1, 0].tolist() == [255] * 3
    assert np.array_equal(odd, 255 - even)
    up, down = frames("ramp")
    assert up.reshape(-1).tolist() == [i % 256 for i in range(105)] and np.array_equal(down, 255 - up)
    hot = frames("hot-pixel:9", seed=3)
    places = [np.argwhere(pixels.any(axis=2)) for pixels in hot]
    assert all(len(place) == 1 for place in places) and len({tuple(place[0]) for place in places}) > 3
    assert all(sorted(np.unique(pixels)) == [0, 255] for pixels in hot)
    drawn = frames("random:4")
    assert len({pixels.tobytes() for pixels in drawn}) == 4


def test_the_drawn_frames_are_pinned() -> None:
    text = b"".join(pixels.tobytes() for pixels in frames("extremes", "hot-pixel:3", "random:3", seed=7))
    assert hashlib.sha256(text).hexdigest() == "dea7e8e0f1d9678ec0d8506df43760c0b136c18fcbbcc7fe3ce6d4977ed9becc"
    word = int.from_bytes(hashlib.sha256(b"7 stimulus random pixels").digest()[:8], "little")
    z = (word + 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
    assert frames("random", seed=7)[0][0, 0, 0] == (z ^ z >> 31) >> 56


@pytest.mark.parametrize("kinds", [["ones"], ["zeros:2"], ["repeat"], ["random:0"], [""], ["random:1000000"]])
def test_a_stimulus_that_there_is_not(kinds: list[str]) -> None:
    with pytest.raises(UserError, match="stimulus"):
        Stimuli(kinds, SIZE)


def test_a_bundle_of_every_kind(tmp_path: Any) -> None:
    program = random_program(7)
    save_program(program, tmp_path / "model.safetensors")
    given = np.random.default_rng(0).integers(0, 256, (3, *program.image), dtype=np.uint8)
    np.savez(tmp_path / "i.npz", images=given, labels=[0, 1, 2])
    command = ["golden", "--model", tmp_path / "model.safetensors", "--out", tmp_path / "out", "--state", "--seed", "5"]
    real = ["--images", tmp_path / "i.npz", "--count", "2"]
    run = CliRunner().invoke(cli, [str(a) for a in [*command, "--stimulus", ",".join(KINDS), *real]])
    assert run.exit_code == 0, (run.stderr, run.exception)
    assert verify(tmp_path / "out") == []
    images = json.loads((tmp_path / "out/manifest.json").read_text())["images"]
    expected = Stimuli(KINDS, program.image, open_images(tmp_path / "i.npz", program.image, count=2), 5)
    assert [entry["source"] for entry in images] == [image.name for image in expected]
    assert [entry["label"] for entry in images] == [0, 1, 1] + [None] * (len(images) - 3)
    assert images[2]["source"] == f"stimulus repeat of {images[1]['source']}"
    for i, image in enumerate(expected):  # each as alone: nothing is left of the frame before
        logits = Oracle(program).run(image.pixels[None])[program.logits]
        assert np.array_equal(np.load(tmp_path / f"out/images/{i:04d}/{program.logits}.npy"), logits[0])
    refused = CliRunner().invoke(cli, [str(a) for a in [*command, "--stimulus", "zeros", *real]])
    assert refused.exit_code == 2 and "--images and --count are for the stimulus real" in refused.stderr
