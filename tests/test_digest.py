"""The committed hashes of every integer of the embedded model hold for every engine, path and number of threads."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import golden_digest
import pytest

from intsim import embedded
from intsim.kernels import cpu


def test_by_the_definitions() -> None:
    assert golden_digest.differences(golden_digest.committed(), golden_digest.digests(oracle=True)) == []


@pytest.mark.parametrize("path", cpu.PATHS)
def test_with_each_path_of_the_kernels(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if path not in cpu.available():
        pytest.skip(f"this CPU has {', '.join(cpu.available())}")
    monkeypatch.setenv(cpu.VARIABLE, path)
    for threads in (1, 2):
        assert golden_digest.differences(golden_digest.committed(), golden_digest.digests(threads=threads)) == []


def test_with_the_features_of_a_generic_cpu() -> None:
    command = [sys.executable, golden_digest.__file__, "--threads", "1", "2"]
    env = {key: value for key, value in os.environ.items() if key != cpu.VARIABLE}
    done = subprocess.run(
        command, env={**env, "NUMBA_CPU_NAME": "generic"}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert [line.split(", ", 3)[3] for line in lines] == [
        "kernels plain, threads 1: the same",
        "kernels plain, threads 2: the same",
    ]


def test_of_the_bundle_that_is_written(tmp_path: Path) -> None:
    """The hashes are those of the integers in the npy files, which are not read by NumPy here."""
    command = [sys.executable, "-m", "golden.cli", "golden", "--count", "2", "--state", "--format", "npy"]
    env = {**os.environ, "PYTHONPATH": str(Path(golden_digest.__file__).parent.parent)}
    subprocess.run([*command, "--out", str(tmp_path / "b")], check=True, env=env, capture_output=True, timeout=300)
    manifest = json.loads((tmp_path / "b" / "manifest.json").read_text())
    expected = golden_digest.committed()

    def data_hash(entry: dict) -> str:
        data = (tmp_path / "b" / entry["files"]["npy"]["file"]).read_bytes()
        return hashlib.sha256(data[10 + int.from_bytes(data[8:10], "little") :]).hexdigest()

    assert manifest["program"]["sha256"] == expected["program"]
    assert {name: data_hash(entry) for name, entry in manifest["constants"].items()} == expected["constants"]
    assert [
        {"source": image["source"], "tensors": {name: data_hash(entry) for name, entry in image["tensors"].items()}}
        for image in manifest["images"]
    ] == expected["images"]


def test_a_difference_is_named() -> None:
    expected = golden_digest.committed()
    assert list(expected["images"][0]["tensors"]) == list(embedded.program().tensors)
    found = copy.deepcopy(expected)
    found["images"][1]["tensors"]["layers.3.mixer.scan.h"] = "0" * 64
    del found["constants"]["head.bias"]
    assert golden_digest.differences(expected, found) == [
        "constant head.bias",
        "image 1: layers.3.mixer.scan.h",
    ]
