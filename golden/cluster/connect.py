"""A cluster of Dask: that of a scheduler which runs already, or one of processes on this machine."""

from __future__ import annotations

import contextlib
import logging
import re
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from pathlib import Path
from types import TracebackType
from typing import Any

from golden.cluster.ranges import Progress, Runner
from golden.cluster.worker import Work
from golden.extras import need
from golden.images import Images
from golden.safe import read_json
from intsim.engine import available_threads
from intsim.errors import UserError

TIMEOUT = 30  # seconds in which a scheduler must answer
ADDRESS = re.compile(r"(?:(?:tcp|tls|wss?)://)?[\w.:%\[\]-]{3,300}", re.ASCII)
SCHEDULER_FILE_BYTES = 1 << 20  # a scheduler file has no more
SETTINGS = {
    # a Program is larger than what Dask thinks one task should be; it is sent once
    "distributed.admin.large-graph-warning-threshold": "16 GiB",
    # of workers on this machine: giving memory back after each tensor costs a third of their time
    "distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": None,
    "distributed.worker.profile.enabled": False,
}


class Cluster:
    """Workers, which are looked for at the first `run`.

    workers: so many processes on this machine.  scheduler: address of a scheduler (tcp://HOST:PORT, or the file that
    `dask scheduler --scheduler-file` writes).  One of both.  threads: of the engine for each range that a worker runs
    at a time; default 1, and with `workers` the share of the CPUs.  say: gets notices.
    """

    def __init__(
        self,
        *,
        workers: int | None = None,
        scheduler: str | None = None,
        threads: int | None = None,
        say: Callable[[str], None] = lambda text: None,
    ):
        if (workers is None) == (scheduler is None):
            raise UserError("a cluster is either workers on this machine or the address of a scheduler")
        self.workers, self.scheduler, self.say = workers, scheduler, say
        self.threads = threads or (max(1, available_threads() // workers) if workers else 1)
        self.name = scheduler or "this machine"
        self.client: Any = None
        self._runner: Runner | None = None
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Cluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
        self.client = None

    def run(
        self, data: bytes, work: Work, images: Images, progress: Progress = lambda done: None
    ) -> list[Any]:
        """`work.run` of each range of `images`, in order: see `each`."""
        results: dict[int, Any] = {}
        self.each(data, work, images, results.__setitem__, progress)
        return [results[first] for first in sorted(results)]

    def each(
        self,
        data: bytes,
        work: Work,
        images: Images,
        take: Callable[[int, Any], None],
        progress: Progress = lambda done: None,
    ) -> None:
        """Calls take(number of the first image, result) with `work.run` of each range of `images`, in any order.

        data: the Program's file.  progress: called with the number of images that are done.
        Raises UserError if there is no such scheduler, with the sentence of a worker that raised one, and if a worker
        has another version of intsim or of SPEC; then nothing is left at the scheduler.
        """
        if self.client is None:
            self.client = self._connect()
        self._runner = Runner(self.client, self.name, self.say)
        self._runner.run(data, work, images, take, progress)

    def caption(self) -> str:
        """What a progress bar calls a run."""
        count = self._runner.workers if self._runner else 0
        return "images, 1 worker" if count == 1 else f"images, {count} workers"

    def _connect(self) -> Any:
        need("distributed")
        import dask

        self._stack.enter_context(quiet())
        self._stack.enter_context(dask.config.set(SETTINGS))
        if self.workers:
            return self._stack.enter_context(open_client(self._start(self.workers), direct_to_workers=True))
        assert self.scheduler is not None
        address = self.scheduler
        if address.endswith(".json"):
            address = scheduler_address(Path(address))
        try:
            return self._stack.enter_context(open_client(address, timeout=TIMEOUT))
        except (OSError, ValueError, RuntimeError, TypeError, AssertionError) as problem:  # of addresses, too
            raise UserError(
                f"the scheduler at {self.scheduler} cannot be reached within {TIMEOUT} s: {problem}"
            ) from None

    def _start(self, workers: int) -> Any:
        """A cluster of processes on this machine, reached over the loopback interface."""
        from distributed import LocalCluster

        scratch = tempfile.mkdtemp(prefix="intsim.")
        self._stack.callback(shutil.rmtree, scratch, ignore_errors=True)
        try:
            with no_interrupts():
                cluster = LocalCluster(
                    n_workers=workers,
                    threads_per_worker=1,
                    host="127.0.0.1",
                    dashboard_address="127.0.0.1:0",
                    memory_limit=None,
                    local_directory=scratch,
                    silence_logs=logging.CRITICAL,
                )
        except (OSError, RuntimeError, TimeoutError) as problem:
            raise UserError(f"{workers} workers cannot be started on this machine: {problem}") from None
        return self._stack.enter_context(cluster)


def open_client(where: Any, **options: Any) -> Any:
    """A distributed.Client of a scheduler's address or a cluster; closed if it cannot be connected.

    Left to the garbage collector, a Client that failed closes itself when it is found: that may be within the start of
    another, which then holds the lock that closing waits for, for ever.
    """
    from distributed import Client

    client = Client.__new__(Client)  # a constructor that raises returns nothing to close
    try:
        Client.__init__(client, where, set_as_default=False, **options)
    except BaseException:
        with contextlib.suppress(Exception):
            client.close()
        raise
    return client


def scheduler_address(path: Path) -> str:
    """The address that a scheduler file of Dask holds.  UserError if it holds none."""
    if not path.is_file():
        raise UserError(f"{path}: there is no such scheduler file")
    found = read_json(path, SCHEDULER_FILE_BYTES)
    address = found.get("address") if isinstance(found, dict) else None
    if not isinstance(address, str) or not ADDRESS.fullmatch(address):
        raise UserError(f"{path}: is no scheduler file of Dask: it holds no address such as tcp://HOST:PORT")
    return address


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Dask's own words about workers that die and connections that end: the run copes with them, or says so."""
    handlers = list(logging.getLogger("distributed").handlers)
    before = [handler.level for handler in handlers]
    for handler in handlers:
        handler.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for handler, level in zip(handlers, before, strict=True):
            handler.setLevel(level)


@contextlib.contextmanager
def no_interrupts() -> Iterator[None]:
    """Threads and processes that start here never get SIGINT: a Ctrl-C is for the main thread, which ends them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # which unblocks SIGINT when it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
