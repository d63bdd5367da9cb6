"""Runs on clusters: the integers of one process, whatever the number of workers and whatever dies."""

import copy
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("distributed")

import cluster_work
import distributed
from cluster_work import Counts, Fails, FakeClient

import golden.cluster.bundles
import golden.cluster.connect
from golden.bundle import choose, write_bundle
from golden.cluster import Cluster
from golden.cluster.bundles import WriteImages
from golden.cluster.ranges import RANGE_BYTES, TRIES, WINDOW_BYTES, Runner, range_size
from golden.cluster.worker import STAMP
from golden.engines import NOTICE
from golden.formats import Style
from golden.images import Image
from golden.verify import verify
from intsim.engine import Engine
from intsim.errors import UserError
from intsim.program_file import program_bytes, save_program
from intsim.synthetic import random_program

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
COUNT = 40


@pytest.fixture(scope="module")
def program():
    made = random_program(5)
    made.file = program_bytes(made)
    return made


@pytest.fixture(scope="module")
def pictures(program):
    rng = np.random.default_rng(3)
    return [Image(f"{i}.png", rng.integers(0, 256, program.image, dtype=np.uint8), i % 2) for i in range(COUNT)]


def write(out, program, pictures, cluster=None):
    engine = None if cluster else Engine(program, threads=1)
    names = choose(program, state=True)
    return write_bundle(
        out, program, engine, pictures, names=names, command="c", time="t", cluster=cluster, program_file=program.file
    )


@pytest.fixture(scope="module")
def whole(program, pictures, tmp_path_factory):
    """The bundle of one process."""
    out = tmp_path_factory.mktemp("one") / "out"
    write(out, program, pictures)
    return out


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Processes of this machine


@pytest.fixture(scope="module")
def two():
    with Cluster(workers=2, threads=1) as made:
        yield made


def test_two_workers(two, program, pictures, whole, tmp_path):
    write(tmp_path / "out", program, pictures, two)
    assert files(tmp_path / "out") == files(whole)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_workers_that_die_lose_nothing(program, pictures, whole, tmp_path, monkeypatch):
    """Two of four are killed in mid-run: with a range done but not told, and with an image half written."""
    (tmp_path / "marks").mkdir()
    monkeypatch.setattr(golden.cluster.bundles, "WriteImages", cluster_work.Murderous)
    monkeypatch.setattr(golden.cluster.ranges, "MOST", 2)
    with Cluster(workers=4, threads=1) as cluster:
        write(tmp_path / "out", program, pictures, cluster)
    assert sorted(path.name for path in (tmp_path / "marks").iterdir()) == ["after", "within"]
    assert files(tmp_path / "out") == files(whole)
    assert verify(tmp_path / "out") == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["marks", "out"]


# A scheduler and workers that run already


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Farm:
    """`dask scheduler` and `dask worker` as processes of their own, over TCP."""

    def __init__(self, folder):
        self.folder, self.address, self.processes = folder, f"tcp://127.0.0.1:{free_port()}", []
        self.start("scheduler", "--host", "127.0.0.1", "--port", self.address.rpartition(":")[2], "--no-dashboard")

    def start(self, *args, environment=ENVIRONMENT):
        child = subprocess.Popen(
            [sys.executable, "-m", "dask", *args],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.processes.append(child)
        return child

    def worker(self, environment=ENVIRONMENT):
        options = ("--nthreads", "1", "--no-nanny", "--no-dashboard", "--local-directory", str(self.folder))
        return self.start("worker", self.address, *options, environment=environment)

    def close(self):
        for child in self.processes:
            child.kill()
            child.wait()


@pytest.fixture(scope="module")
def farm(tmp_path_factory):
    made = Farm(tmp_path_factory.mktemp("farm"))
    made.workers = [made.worker(), made.worker()]
    yield made
    made.close()


def cli(*args, **more):
    return subprocess.Popen(
        [sys.executable, "-m", "golden.cli", *map(str, args)],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **more,
    )


def run(*args):
    """Exit status, stdout and stderr, without the word that kernels are compiled, if this is the first to need them."""
    child = cli(*args)
    out, error = child.communicate(timeout=120)
    return child.returncode, out, error.replace(f"{NOTICE}\n", "")


@pytest.fixture(scope="module")
def inputs(program, pictures, tmp_path_factory):
    """(Program file, npz of images)"""
    folder = tmp_path_factory.mktemp("inputs")
    save_program(program, folder / "m.safetensors")
    labels = np.array([image.label for image in pictures])
    np.savez(folder / "i.npz", images=np.stack([image.pixels for image in pictures]), labels=labels)
    return folder / "m.safetensors", folder / "i.npz"


def test_eval_over_tcp(farm, inputs, program, pictures):
    model, data = inputs
    status, out, error = run("eval", "--model", model, "--data", data, "--scheduler", farm.address, "--json", "-")
    assert (status, error) == (0, "")
    found = json.loads(out)
    logits = Engine(program).classify(np.stack([image.pixels for image in pictures]))
    assert found["predictions"] == logits.argmax(axis=1).tolist()
    assert found["correct"] == sum(p == image.label for p, image in zip(found["predictions"], pictures, strict=True))


def test_what_ifs_and_sweeps_over_tcp(farm, inputs, tmp_path):
    """Narrow accumulators: the same classes, and the same elements counted as wrong, as in one process."""
    model, data = inputs
    one = ("--model", model, "--data", data, "--threads", "1")
    many = ("--model", model, "--data", data, "--scheduler", farm.address)
    narrow = ("--accumulator-bits", "12", "--overflow", "wrap", "--json", "-")
    here, there = (json.loads(run("eval", *where, *narrow)[1]) for where in (one, many))
    assert there["predictions"] == here["predictions"]
    assert there["overflows"] == here["overflows"] and sum(here["overflows"].values())

    sweep = ("sweep", "--what", "accumulator-bits", "--values", "11,14", "--no-plot", "--json", "-")
    swept = []
    for number, where in enumerate((one, many)):
        status, out, error = run(*sweep, *where, "--out", tmp_path / str(number))
        assert (status, error) == (0, "")
        found = json.loads(out)
        swept.append([{**row, "seconds": 0} for row in (found["reference"], *found["rows"])])
    assert swept[0] == swept[1] and any(row["overflows"] for row in swept[0])


def test_compare_over_tcp(farm, program, pictures):
    """The same report as in one process, up to the time it takes."""
    pytest.importorskip("torch")
    from golden.commands.compare import Compares, compare_by

    work, some = Compares("cpu", ("*.out", "*.h"), None, False, "engine", 1), pictures[:8]
    done = []
    with Cluster(scheduler=farm.address) as cluster:
        many = compare_by(cluster, program, program.file, work, some, lambda n, text: done.append((n, text)))
    one = work.compare(work.prepare(program), np.stack([image.pixels for image in some]))
    assert {**many.to_json(), "seconds": 0} == {**one.to_json(), "seconds": 0}
    assert many.elements and not many.mismatches
    assert done[-1] == (8, "images, 2 workers")


def test_golden_over_tcp_with_a_killed_worker(farm, program, inputs, tmp_path):
    """kill -9 while images are being written; the bundle is that of one process, and nothing else is left."""
    model, data = inputs
    args = ("golden", "--model", model, "--images", data, "--state", "--json", "-")
    status, out, _ = run(*args, "--out", tmp_path / "one", "--threads", "1")
    assert status == 0
    wanted = json.loads(out)["content_sha256"]
    child = cli(*args, "--out", tmp_path / "many", "--scheduler", farm.address)
    until = time.monotonic() + 60
    while not list(tmp_path.glob(".many.*.part/images/*")):
        assert time.monotonic() < until and child.poll() is None, child.communicate()
        time.sleep(0.005)
    farm.workers[0].kill()
    assert child.poll() is None
    out, error = child.communicate(timeout=120)
    assert (child.returncode, error) == (0, "")
    assert json.loads(out)["content_sha256"] == wanted
    assert sorted(path.name for path in tmp_path.iterdir()) == ["many", "one"]


def test_a_worker_with_other_code_is_refused(farm, inputs, tmp_path):
    """Another SPEC on a worker: one sentence, and no bundle."""
    other = tmp_path / "other"
    for package in ("intsim", "golden", "bitexact"):
        shutil.copytree(ROOT / package, other / package, ignore=shutil.ignore_patterns("__pycache__"))
    init = other / "intsim/__init__.py"
    init.write_text(init.read_text().replace(f'SPEC_VERSION = "{STAMP[1]}"', 'SPEC_VERSION = "0.9"'))
    for child in farm.workers:
        child.kill()
        child.wait()
    child = farm.worker({**ENVIRONMENT, "PYTHONPATH": str(other)})
    model, data = inputs
    args = ("--model", model, "--images", data, "--scheduler", farm.address)
    status, out, error = run("golden", *args, "--out", tmp_path / "x")
    assert (status, out) == (2, "")
    (line,) = [line for line in error.splitlines() if "waiting for workers" not in line]
    assert "SPEC 0.9" in line and f"needed is the client's: intsim {STAMP[0]}, SPEC {STAMP[1]}" in line
    assert not (tmp_path / "x").exists() and len(list(tmp_path.iterdir())) == 1
    child.kill()
    child.wait()
    for name in ("intsim", "golden", "bitexact"):
        shutil.rmtree(other / name)
        (other / name).mkdir()
        (other / name / "__init__.py").write_text("raise ImportError('not here')\n")
    farm.worker({**ENVIRONMENT, "PYTHONPATH": str(other)})
    status, out, error = run("eval", "--model", model, "--data", data, "--scheduler", farm.address)
    assert status == 2 and "cannot import intsim's golden.cluster" in error.splitlines()[-1]


# Errors


def test_a_workers_error_comes_back(two, program, pictures):
    assert set(two.run(program.file, Fails("user"), pictures[:1])) == {program.digest}
    with pytest.raises(UserError, match="^of image [1-9]"):
        two.run(program.file, Fails("user"), pictures)
    with pytest.raises(UserError, match="^image .* failed 3 times on workers of this machine: of image"):
        two.run(program.file, Fails("disk"), pictures[:4])
    with pytest.raises(ZeroDivisionError):
        two.run(program.file, Fails("bug"), pictures[:4])
    until = time.monotonic() + 10
    while two.client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks)):
        assert time.monotonic() < until, "something is left at the scheduler"
        time.sleep(0.05)


def test_a_folder_that_is_not_shared_is_refused(two, program, pictures, tmp_path):
    names = tuple(choose(program))
    work = WriteImages(str(tmp_path / "out"), str(tmp_path / "elsewhere"), "0" * 32, names, Style(), 1)
    told = "^--out must be in a folder that all workers share: the worker tcp://.* on .* does not see"
    with pytest.raises(UserError, match=told):
        two.run(program.file, work, pictures)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "token").write_text("1" * 32)
    with pytest.raises(UserError, match=told):
        two.run(program.file, replace(work, names=names[:3]), pictures)


def test_what_cannot_be_reached(monkeypatch, program, pictures, tmp_path):
    monkeypatch.setattr(golden.cluster.connect, "TIMEOUT", 1)
    for address in (f"tcp://127.0.0.1:{free_port()}", "nonsense", "carrier-pigeon://roof:1"):
        with pytest.raises(UserError, match=f"^the scheduler at {address} cannot be reached within 1 s: "):
            with Cluster(scheduler=address) as cluster:
                cluster.run(program.file, Counts(), pictures)
    for text, told in (
        (None, "there is no such scheduler file"),
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ('{"address": ["tcp://h:1"]}', "holds no address"),
        ('{"address": "inproc://h/1/2"}', "holds no address"),
        (" " * (1 << 20) + "{}", "more than the 1048576"),
    ):
        file = tmp_path / "s.json"
        if text is not None:
            file.write_text(text)
        with pytest.raises(UserError, match=f"s.json: .*{told}"), Cluster(scheduler=str(file)) as cluster:
            cluster.run(program.file, Counts(), pictures)


def test_a_client_that_failed_is_closed(monkeypatch, program, pictures):
    """Not by the garbage collector, which may come while another one starts and holds the lock that closing needs."""
    made = []

    def keep(client, *args, **options):
        made.append(client)
        connect(client, *args, **options)

    connect = distributed.Client.__init__
    monkeypatch.setattr(distributed.Client, "__init__", keep)
    monkeypatch.setattr(golden.cluster.connect, "TIMEOUT", 1)
    for address in (f"tcp://127.0.0.1:{free_port()}", "nonsense", "carrier-pigeon://roof:1"):
        with pytest.raises(UserError, match="cannot be reached"), Cluster(scheduler=address) as cluster:
            cluster.run(program.file, Counts(), pictures)
    assert [client.status for client in made] == ["closed"] * 3


def test_without_dask(monkeypatch, program, pictures):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(UserError, match=r"^this needs Dask: pip install '\.\[dask\]' in intsim's source folder"):
        with Cluster(workers=2) as cluster:
            cluster.run(program.file, Counts(), pictures)


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("golden", "--workers", "2", "--scheduler", "tcp://h:1", "--out", "x"), "give one"),
        (("eval", "--engine", "float", "--workers", "2"), "--engine float runs in one process"),
    ],
)
def test_options_that_exclude_each_other(args, told, tmp_path):
    child = cli(*args, cwd=tmp_path)
    out, error = child.communicate(timeout=60)
    assert (child.returncode, out) == (2, "")
    assert told in error and len(error.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_interrupted(inputs, tmp_path):
    """Ctrl-C in a terminal, which the workers get too: one word, no process and no file left."""
    model, data = inputs
    many = tmp_path / "many.npz"
    images = np.load(data)["images"]
    np.savez(many, images=np.tile(images, (100, 1, 1, 1)))
    (tmp_path / "tmp").mkdir()
    child = cli(
        *("golden", "--model", model, "--images", many, "--state", "--workers", 2, "--out", tmp_path / "out"),
        start_new_session=True,
        # a job in the background of a script has SIGINT ignored, and so would its children
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    until = time.monotonic() + 60
    while not list(tmp_path.glob(".out.*.part/images/0002")):
        assert time.monotonic() < until and child.poll() is None, child.communicate()
        time.sleep(0.02)
    os.killpg(child.pid, signal.SIGINT)
    out, error = child.communicate(timeout=60)
    assert (child.returncode, out, error) == (130, "", "intsim: interrupted\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["many.npz", "tmp"]
    until = time.monotonic() + 20
    while group_lives(child.pid):
        assert time.monotonic() < until, "a worker lives on"
        time.sleep(0.05)


def group_lives(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


# The plan


class Million:
    """A million images, of which one is made at a time."""

    def __init__(self, count, shape):
        self.count, self.pixels, self.made = count, np.zeros(shape, np.uint8), 0

    def __len__(self):
        return self.count

    def __iter__(self):
        for number in range(self.count):
            self.made = number + 1
            yield Image(str(number), self.pixels)


@pytest.mark.parametrize(("count", "shape", "threads"), [(1_000_000, (8, 8, 3), 64), (20_000, (224, 224, 3), 2_000)])
def test_what_a_scheduler_holds_is_bounded(count, shape, threads):
    """However many images there are: two ranges a thread at most, and never more pixels than the window has."""
    images, client = Million(count, shape), FakeClient(threads)
    taken, ahead = {}, 0

    def progress(done):
        nonlocal ahead
        ahead = max(ahead, images.made - done)

    Runner(client, "x").run(b"program", Counts(), images, taken.__setitem__, progress)
    client.status = "closed"
    assert [n for first in sorted(taken) for n in taken[first]] == list(range(count))  # each once, in order
    window = 2 * threads + 2
    assert client.most <= window and client.programs == 1
    assert client.most_bytes <= WINDOW_BYTES + RANGE_BYTES + (1 << 20)
    assert ahead <= (window + 2) * range_size(images.pixels.nbytes, count, threads)


def test_failed_ranges_are_tried_again_elsewhere():
    images = Million(3_000, (8, 8, 3))
    fails = {32 * i: TRIES - 1 for i in range(0, 90, 7)}

    def fail(part, n):
        if fails.get(part.first, 0):
            fails[part.first] -= 1
            return [distributed.KilledWorker("t", None, 3), OSError("reset"), ValueError("odd")][part.first % 3]

    taken, client = {}, FakeClient(4, fail)
    Runner(client, "x").run(b"program", Counts(), images, taken.__setitem__)
    assert not any(fails.values())
    assert [n for first in sorted(taken) for n in taken[first]] == list(range(3_000))

    client = FakeClient(4, lambda part, n: distributed.KilledWorker("t", None, 3) if part.first == 160 else None)
    with pytest.raises(UserError, match=r"^images 160 \.\. 191: killed every worker that ran them"):
        Runner(client, "x").run(b"program", Counts(), images, taken.__setitem__)
    assert client.cancelled


def test_reports_of_ranges_add_up(program, pictures):
    """compare of ranges, in any order, is compare of all images; with a fault planted into both."""
    pytest.importorskip("torch")
    from bitexact.compare import Report, compare
    from intsim.taps import select

    class Faulty:
        """The engine with another integer in one tensor of some images (told by their first pixel)."""

        def __init__(self):
            self.engine = Engine(program, threads=1)

        def run(self, images, taps=()):
            found = dict(self.engine.run(images, taps))
            name = "head.acc"
            if name in found:
                wrong = found[name].copy()
                wrong.reshape(len(images), -1)[images[:, 0, 0, 0] % 5 == 0, 1] += images[0, 0, 0, 1]
                found[name] = wrong
            return found

    pixels = np.stack([image.pixels for image in pictures[:12]])
    pixels[:, 0, 0, 0], pixels[:, 0, 0, 1] = np.arange(2, 14), np.arange(12) % 5 + 1  # images 3 and 8 are wrong
    more = {"layers": ["head.*"], "reference": Faulty(), "batch": 1}
    whole = compare(program, pixels, **more)
    assert whole.mismatches == 2 and whole.guilty.first.image == 3
    parts = [compare(program, pixels[i : i + 5], first=i, **more) for i in range(0, 12, 5)]
    for order in (parts, parts[::-1], parts[1:] + parts[:1]):
        total = Report.empty(program, select(program, ["head.*"]), 12, whole.device, whole.fast, whole.reference)
        for part in copy.deepcopy(order):
            total.add(part.tensors, part.guilty, part.faulty)
        assert {**total.to_json(), "seconds": 0} == {**whole.to_json(), "seconds": 0}


def test_ranges():
    assert range_size(224 * 224 * 3, 10**6, 2) == 3
    assert range_size(4096 * 4096 * 3, 10**6, 2) == 1
    assert range_size(3072, 64, 4) == 4
    assert range_size(3072, 1, 8) == 1
