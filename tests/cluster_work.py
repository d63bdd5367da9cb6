"""Work for test clusters, in a module that workers can import; also what acts like a client of Dask."""

import os
import pickle
import random
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from golden.cluster.bundles import WriteImages
from intsim.errors import UserError


def first_time(folder, name):
    """Whether no process has asked so before."""
    try:
        os.close(os.open(Path(folder, name), os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


@dataclass(frozen=True)
class Murderous(WriteImages):
    """Writes images; at some ranges the worker dies once, with all images in place or with half of an image's files."""

    def run(self, prepared, part):
        marks = Path(self.folder).parent / "marks"
        if part.first == 4 and first_time(marks, "after"):
            super().run(prepared, part)
            os.kill(os.getpid(), signal.SIGKILL)
        if part.first == 8 and first_time(marks, "within"):
            import golden.bundle

            written = golden.bundle.write_sheet

            def dies(folder, stem, sheet):
                written(folder, stem, sheet)
                if stem.endswith(self.names[len(self.names) // 2]):
                    os.kill(os.getpid(), signal.SIGKILL)

            golden.bundle.write_sheet = dies
        return super().run(prepared, part)


@dataclass(frozen=True)
class Fails:
    """Raises an error of a kind, at the second range."""

    kind: str

    def prepare(self, program):
        return program.digest

    def run(self, prepared, part):
        if part.first:
            raise {"user": UserError, "bug": ZeroDivisionError, "disk": OSError}[self.kind](f"of image {part.first}")
        return prepared


@dataclass(frozen=True)
class Counts:
    """The numbers of a range's images, by their names."""

    def run(self, prepared, part):
        return [int(image.name) for image in part.images]


class FakeFuture:
    def __init__(self, client, call):
        self.client, self.call, self.status, self.callbacks = client, call, "pending", []

    def add_done_callback(self, function):
        with self.client.lock:
            self.callbacks.append(function)
            self.client.held.append(self)

    def result(self):
        if self.problem is not None:
            raise self.problem
        return "done", self.value


class FakeClient:
    """Computes in a thread, in an order drawn at random, and remembers the most it was ever given to hold.

    fails(part, n): an error of the nth task, or None.
    """

    def __init__(self, threads, fails=lambda part, n: None):
        self.status, self.count, self.fails = "running", threads, fails
        self.held, self.lock, self.random = [], threading.Lock(), random.Random(0)
        self.most = self.most_bytes = self.bytes = self.tasks = self.programs = 0
        self.cancelled = []
        threading.Thread(target=self.compute, daemon=True).start()

    def nthreads(self):
        return {f"worker{i}": 1 for i in range(self.count)}

    def submit(self, function, *args, key, workers=(), allow_other_workers=False):
        if len(args) == 1:  # the Program
            self.programs += 1
            return FakeFuture(self, args[0])
        stamp, call, program = args
        self.tasks += 1
        with self.lock:
            self.bytes += len(call)
            self.most_bytes = max(self.most_bytes, self.bytes)
            self.most = max(self.most, len(self.held) + 1)
        return FakeFuture(self, call)

    def compute(self):
        while self.status == "running":
            with self.lock:
                future = self.held.pop(self.random.randrange(len(self.held))) if self.held else None
                if future:
                    self.bytes -= len(future.call)
            if future is None:
                time.sleep(0.001)
                continue
            work, _, part = pickle.loads(future.call)
            future.problem = self.fails(part, self.tasks)
            future.value = None if future.problem else work.run(None, part)
            future.status = "error" if future.problem else "finished"
            future.callbacks[0](future)

    def cancel(self, futures, force):
        self.cancelled += futures
