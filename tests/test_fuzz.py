"""5,000 hostile files (the nightly 100,000: `make fuzz`), and that the harness sees what it must."""

from __future__ import annotations

import io
import os
import signal
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import fuzz
import fuzz_readers

from intsim.errors import UserError

CASES, SEED = 5_000, 7


def test_hostile_files_are_refused_or_read_rightly() -> None:
    result = fuzz.fuzz(CASES, SEED, jobs=min(2, len(os.sched_getaffinity(0))))
    assert not result.failures, "\n".join(fuzz.report(result))
    assert sum(result.counts.values()) == CASES
    for reader in {name for name, _ in result.counts}:
        assert result.counts[reader, "refused"] > 0, f"{reader} refuses nothing"


def test_a_case_is_the_same_whenever_it_is_made() -> None:
    reader = next(r for r in fuzz.READERS if r.name == "memory-hex")
    reader.good = reader.samples(Path())
    alone = reader.case(3, 17)
    assert [reader.case(3, n) for n in range(20)][17] == alone != reader.case(4, 17)
    assert len({reader.case(3, n).data for n in range(50)}) > 40


# --- the harness fails what must fail ---


def reading(read: Callable[[Path], str]) -> Any:
    """A row of the table whose right result is `right`."""
    return fuzz.Reader("x", "x.bin", lambda folder: [b"good"], read, lambda path, good: "right", 1)


def bad_reader(name: str) -> Callable[[Path], str]:
    def read(path: Path) -> str:
        if name == "crash":
            raise KeyError("x")
        if name == "memory":
            bytearray(4 << 30)
        if name == "hidden memory":
            try:
                bytearray(4 << 30)
            except MemoryError:
                raise UserError("cannot be read") from None
        if name == "hang":
            while True:
                pass
        if name == "system":
            os.system("true")
        if name == "write outside":
            Path("/tmp/fuzz-outside").write_text("x")
        if name == "hidden write":
            try:
                (path.parent.parent / "x").write_text("x")
            except BaseException:
                raise UserError("no") from None
        if name == "write inside":
            (path.parent / "y").write_text("x")
        if name == "two lines":
            raise UserError("one\ntwo")
        if name == "refuse":
            raise UserError("one")
        return "wrong" if name == "wrong" else "right"

    return read


EXPECTED = {
    "crash": "crash", "memory": "memory", "hidden memory": "memory", "hang": "hang", "system": "breach",
    "write outside": "breach", "hidden write": "breach", "write inside": "read", "two lines": "crash",
    "refuse": "refused", "wrong": "wrong", "right": "read",
}  # fmt: skip


@pytest.fixture(scope="module")
def guard(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An audit hook cannot be removed: one for all tests of this file, asleep but for a call of `attempt`."""
    made = fuzz.Guard(os.path.realpath(tmp_path_factory.mktemp("guard")))
    sys.addaudithook(made)
    return made


@pytest.mark.parametrize("name", EXPECTED)
def test_the_harness_sees_it(name: str, guard: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "SECONDS", 1)
    path = Path(guard.folder) / "x.bin"
    path.write_bytes(b"good")
    before = signal.signal(signal.SIGPROF, fuzz.hung)
    fuzz.cap_memory()
    try:
        outcome = fuzz.attempt(reading(bad_reader(name)), path, b"good", guard)
    finally:
        fuzz.lift_memory()
        signal.signal(signal.SIGPROF, before)
    assert outcome.verdict == EXPECTED[name], outcome
    assert not Path("/tmp/fuzz-outside").exists()


def test_a_worker_that_dies_is_a_failure_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash of the interpreter in one case: it is reported, and the cases behind it still run."""
    monkeypatch.setenv("FUZZ_DIE_AT", "3")
    result = fuzz.fuzz(12, 1, ["memory-bin"], jobs=1)
    assert [(name, number, verdict) for name, number, verdict, _ in result.failures] == [("memory-bin", 3, "crash")]
    assert sum(result.counts.values()) == 12


# --- what was found ---


def test_a_torch_archive_with_another_checksum_is_refused(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from bitexact.checkpoint import CheckpointError, load_checkpoint

    path = tmp_path / "c.pth"
    state = fuzz_readers.checkpoint_state()
    torch.save(state, path)
    load_checkpoint(path)
    data = bytearray(path.read_bytes())
    weights = state["head.weight"].numpy().tobytes()
    data[data.index(weights) + 3] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="is damaged: it has not its checksum"):
        load_checkpoint(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, warnings.catch_warnings():
        archive.writestr("c/data.pkl", b"x" * 1000)
    with pytest.raises(CheckpointError, match="compressed parts"):
        load_checkpoint(path)


def test_a_tensor_larger_than_its_file_is_refused(tmp_path: Path) -> None:
    """A stride of 0: a terabyte in a few bytes."""
    torch = pytest.importorskip("torch")
    from bitexact.checkpoint import CheckpointError, load_checkpoint

    path = tmp_path / "c.pth"
    state = dict(fuzz_readers.checkpoint_state())
    state["head.weight"] = torch.zeros(1).expand(1 << 20, 1 << 18)
    torch.save(state, path)
    with pytest.raises(CheckpointError, match="together no more than the"):
        load_checkpoint(path)


@pytest.mark.parametrize("stated", [1 << 62, -1, 65537])
def test_metadata_cannot_ask_for_endless_work(tmp_path: Path, stated: int) -> None:
    pytest.importorskip("torch")
    from bitexact.checkpoint import CheckpointError, load_checkpoint, save_checkpoint

    path = tmp_path / "c.safetensors"
    save_checkpoint(path, fuzz_readers.checkpoint_state(), {"image_size": [stated, stated]})
    with pytest.raises(CheckpointError, match="image_size"):
        load_checkpoint(path)


def test_an_image_that_states_more_than_it_has_allocates_nothing(tmp_path: Path) -> None:
    from golden.images import open_images

    path = tmp_path / "i.png"
    (good, *_) = fuzz_readers.image_samples("PNG")(tmp_path)
    path.write_bytes(good[:33] + (0x7FFFFFF0).to_bytes(4, "big") + b"abCd" + good[33:])
    fuzz.cap_memory()
    try:
        with pytest.raises(UserError) as caught:
            open_images(path, (8, 8, 3)).stack()
    finally:
        fuzz.lift_memory()
    assert not isinstance(caught.value.__context__, MemoryError)


def test_labels_that_are_cut_off_are_refused(tmp_path: Path) -> None:
    from golden.images import open_images

    fuzz_readers.prepare_labels(tmp_path)
    labels = tmp_path / "set" / "labels.csv"
    labels.write_text("label,class_index,file\n3,1,a.png\n4,2")
    with pytest.raises(UserError, match="row 3 is cut off"):
        open_images(tmp_path / "set", (8, 8, 3))
    os.truncate(labels, 1 << 36)
    with pytest.raises(UserError, match="bytes, more than"):
        open_images(tmp_path / "set", (8, 8, 3))


def test_a_negative_number_of_images_is_refused(tmp_path: Path) -> None:
    from golden.images import open_images

    (good, *_) = fuzz_readers.npz_samples(tmp_path)
    path = tmp_path / "i.npz"
    with zipfile.ZipFile(io.BytesIO(good)) as archive, zipfile.ZipFile(path, "w") as changed:
        changed.writestr("images.npy", archive.read("images.npy").replace(b"(5, 8, 8, 3), } ", b"(-1, 8, 8, 3), }"))
    with pytest.raises(UserError, match=r"images is uint8 \[-1, 8, 8, 3\]"):
        open_images(path, (8, 8, 3))


def test_there_is_a_row_for_every_format() -> None:
    from golden.formats import FORMATS, READ_ONLY

    rows = {r.name.removeprefix("memory-") for r in fuzz.READERS}
    assert set(FORMATS) <= rows and set(READ_ONLY) & rows
