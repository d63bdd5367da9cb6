"""Bundles by workers of Dask against the bundle of one process, their speed, and what a scheduler holds: a JSON report.

    python tools/cluster_check.py --out cluster.json

    one        the bundle of one process, one thread
    1, 2, 4    the same bundle by so many workers of this machine, one thread each, on a cluster that is warm
    kill       by four workers, one of which is killed (-9) when a third is done
    scheduler  a million images through a scheduler process of its own, whose peak memory is read; workers only count
               them, the network is not run

The images are those of the embedded model, shifted.  The bundles are written below --folder, by default that of TMPDIR:
on one disk workers also wait for each other's files.  --only names some of these parts, --resume goes on with the
report that --out names.  Exit status: 0 all hashes are the same, 1 they are not.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import distributed

from golden.bundle import choose, write_bundle
from golden.cluster import Cluster, Part
from golden.images import Image
from intsim import embedded
from intsim.engine import Engine, available_threads
from intsim.files import write_atomically
from intsim.program import Program

PARTS = ("one", "1", "2", "4", "kill", "scheduler")


class Shifted:
    """Any number of images: the embedded ones, shifted by a pixel each time they come round."""

    def __init__(self, count: int):
        self.count, self.pixels = count, embedded.images()[0]

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Image]:
        for number in range(self.count):
            turn, which = divmod(number, len(self.pixels))
            yield Image(f"{number}", np.roll(self.pixels[which], turn, axis=(0, 1)))


def bundle(
    folder: Path, count: int, layers: tuple[str, ...], cluster: Cluster | None, progress: Callable[[int], None]
) -> dict[str, Any]:
    """(hash, seconds, bytes) of a bundle, which is removed again."""
    program, file = embedded.program(), embedded.program_path().read_bytes()
    out = folder / "bundle"
    start = time.perf_counter()
    content = write_bundle(
        out,
        program,
        Engine(program, threads=1),
        Shifted(count),
        names=choose(program, layers),
        command="cluster_check",
        time="",
        program_file=file,
        progress=progress,
        cluster=cluster,
    )
    seconds = time.perf_counter() - start
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    shutil.rmtree(out)
    return {"content_sha256": content["content_sha256"], "images": count, "bytes": size, "seconds": round(seconds, 2)}


def by_workers(folder: Path, count: int, layers: tuple[str, ...], workers: int, kill: bool) -> dict[str, Any]:
    killed: list[int] = []
    with Cluster(workers=workers, threads=1) as cluster:
        bundle(folder, 16 * workers, layers, cluster, lambda done: None)
        pids = sorted(cluster.client.run(os.getpid).values())

        def progress(done: int) -> None:
            if kill and not killed and done >= count // 3:
                killed.append(pids[0])
                os.kill(pids[0], signal.SIGKILL)

        found = bundle(folder, count, layers, cluster, progress)
    return {**found, "killed": len(killed)}


@dataclass(frozen=True)
class Count:
    """Work that only counts images."""

    def prepare(self, program: Program) -> None:
        return None

    def run(self, prepared: None, part: Part) -> int:
        return len(part.images)


def through_a_scheduler(folder: Path, count: int) -> dict[str, Any]:
    """Peak memory of a scheduler process for so many images, with two workers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def start(*args: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "dask", *args, "--no-dashboard"]
        return subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.DEVNULL)

    address = f"tcp://127.0.0.1:{port}"
    children = [start("scheduler", "--host", "127.0.0.1", "--port", str(port))]
    children += [start("worker", address, "--nthreads", "1", "--no-nanny") for _ in range(2)]
    counted = ranges = 0

    def take(first: int, found: int) -> None:
        nonlocal counted, ranges
        counted, ranges = counted + found, ranges + 1

    try:
        begun = time.perf_counter()
        with Cluster(scheduler=address) as cluster:
            cluster.each(embedded.program_path().read_bytes(), Count(), Shifted(count), take)
        seconds = time.perf_counter() - begun
        status = Path(f"/proc/{children[0].pid}/status").read_text()
        (peak,) = (int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmHWM"))
    finally:
        for child in children:
            child.terminate()
        for child in children:
            child.wait()
    assert counted == count
    return {"images": count, "ranges": ranges, "scheduler_peak_bytes": peak, "seconds": round(seconds, 2)}


def filesystem(folder: Path) -> str:
    """Its type, as Linux names it: ext4, tmpfs, nfs4."""
    mounts = [line.split()[1:3] for line in Path("/proc/self/mounts").read_text().splitlines()]
    around = [(len(place), kind) for place, kind in mounts if folder.resolve().is_relative_to(place)]
    return max(around)[1]


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--count", default=2000, show_default=True, help="Images of a bundle.")
@click.option("--layers", multiple=True, default=["layers.*.residual.out"], show_default=True, help="Tensors of it.")
@click.option("--folder", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Where bundles are made.")
@click.option("--planned", default=1_000_000, show_default=True, help="Images of the part scheduler.")
@click.option("--only", default=",".join(PARTS), show_default=True, help="Parts to run.")
@click.option("--resume", is_flag=True, help="Go on with the report that --out names.")
def main(
    out: Path, count: int, layers: tuple[str, ...], folder: Path | None, planned: int, only: str, resume: bool
) -> None:
    below = folder or Path(tempfile.gettempdir())
    report: dict[str, Any] = {"cpus": available_threads(), "distributed": distributed.__version__}
    report.update(filesystem=filesystem(below), layers=list(layers), runs={})
    if resume:
        report["runs"] = json.loads(out.read_text())["runs"]
    runs = report["runs"]
    for part in only.split(","):
        if part not in PARTS:
            raise click.BadParameter(f"{part}: parts are {', '.join(PARTS)}")
        folder = Path(tempfile.mkdtemp(prefix="cluster_check.", dir=below))
        try:
            if part == "one":
                runs[part] = bundle(folder, count, layers, None, lambda done: None)
            elif part == "scheduler":
                runs[part] = through_a_scheduler(folder, planned)
            else:
                runs[part] = by_workers(folder, count, layers, 4 if part == "kill" else int(part), part == "kill")
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        print(part, json.dumps(runs[part]), flush=True)
    bundles = {name: run for name, run in runs.items() if name != "scheduler"}
    report["same_hash"] = len({(run["content_sha256"], run["images"]) for run in bundles.values()}) <= 1
    if {"1", "2"} <= runs.keys():
        report["scaling_1_to_2"] = round(runs["1"]["seconds"] / runs["2"]["seconds"], 3)
    write_atomically(out, (json.dumps(report, indent=1) + "\n").encode())
    print(json.dumps({key: value for key, value in report.items() if key != "runs"}))
    sys.exit(not report["same_hash"])


if __name__ == "__main__":
    main()
