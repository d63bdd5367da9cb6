"""Ranges of images, and the loop that has a bounded number of them computed at a time."""

from __future__ import annotations

import hashlib
import queue
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from golden.images import Image, Images
from intsim.errors import UserError

if TYPE_CHECKING:
    from golden.cluster.worker import Work

MOST = 32  # images of a range
RANGE_BYTES = 512 << 10  # pixels of a range, if it has more than one image
WINDOW_BYTES = 256 << 20  # of ranges that the scheduler holds at a time
EACH = 4  # ranges that a thread of a worker gets at least, where there are enough images
TRIES = 3  # of a range whose worker failed; Dask itself moves it three times from a dead worker before it is a failure
POLL = 0.5  # seconds
COUNT_AGAIN = 5.0  # seconds between two looks at who works

Progress = Callable[[int], None]  # images done


@dataclass(frozen=True)
class Part:
    """Consecutive images.  first: number of the first of them, counted from 0 over all."""

    first: int
    images: list[Image]


@dataclass
class Flight:
    """A range on its way.  call: what a worker is sent; future: Dask's; worker: whom it was meant for; tries: how
    often it failed."""

    first: int
    count: int
    call: bytes
    future: Any = None
    worker: str | None = None
    tries: int = 0


def range_size(image_bytes: int, total: int, threads: int) -> int:
    """Images of a range, at least 1."""
    return max(1, min(MOST, RANGE_BYTES // max(1, image_bytes), total // (EACH * max(1, threads))))


def split(images: Images, threads: int) -> Iterator[Part]:
    """Ranges for so many threads, made as they are asked for."""
    first, some = 0, []
    for image in images:
        some.append(image)
        if len(some) == range_size(image.pixels.nbytes, len(images), threads):
            yield Part(first, some)
            first, some = first + len(some), []
    if some:
        yield Part(first, some)


class Runner:
    """Has ranges computed by the workers of `client` (distributed.Client, or what acts like one).

    name: of the scheduler, for messages.  say: gets a line if there is nobody to work.
    """

    def __init__(self, client: Any, name: str, say: Callable[[str], None] = lambda text: None):
        self.client, self.name, self.say = client, name, say
        self.run_id = uuid.uuid4().hex
        self.landed: queue.SimpleQueue[tuple[Flight, Any]] = queue.SimpleQueue()
        self.flying: dict[int, Flight] = {}
        self.bytes = 0  # of all calls in flight
        self.crew: dict[str, int] = {}  # worker -> its threads
        self.counted = -COUNT_AGAIN
        self.told = False
        self.program: Any = None
        self.numbers = iter(range(1 << 62))

    @property
    def workers(self) -> int:
        return len(self.crew)

    @property
    def threads(self) -> int:
        return sum(self.crew.values())

    def run(
        self,
        data: bytes,
        work: Work,
        images: Images,
        take: Callable[[int, Any], None],
        progress: Progress = lambda done: None,
    ) -> None:
        """Calls take(number of the first image, `work.run` of the range) for each range, as they end, in any order.

        At most two ranges for each thread of a worker (and two more) are in flight, and no image is read before there
        is room for its range.  Raises UserError with a worker's sentence, if the scheduler is lost, or if a range
        fails again and again.
        """
        import cloudpickle  # comes with Dask

        self.data, self.digest = data, hashlib.sha256(data).hexdigest()
        self.count_workers()
        parts = split(images, self.threads)
        done, more = 0, True
        try:
            progress(0)
            while more or self.flying:
                while more and self.has_room():
                    part = next(parts, None)
                    if part is None:
                        more = False
                        break
                    call = cloudpickle.dumps((work, self.digest, part))
                    self.submit(Flight(part.first, len(part.images), call))
                for flight, future in self.next_landed():
                    if self.flying.get(flight.first) is not flight or flight.future is not future:
                        continue
                    result = self.outcome(flight)
                    if result is None:
                        continue
                    del self.flying[flight.first]
                    self.bytes -= len(flight.call)
                    take(flight.first, result[0])
                    done += flight.count
                    progress(done)
                self.count_workers()
        finally:
            self.cancel()

    def has_room(self) -> bool:
        """Whether one more range may be handed to the scheduler."""
        return len(self.flying) < 2 * self.threads + 2 and (self.bytes < WINDOW_BYTES or not self.flying)

    def submit(self, flight: Flight) -> None:
        """Hands a range to the scheduler, for the first time or once more."""
        from golden.cluster.worker import STAMP, carrier

        if self.program is None or self.program.status in ("error", "cancelled"):
            # computed, so to say, and not scattered: what is computed comes back when the workers that have it die
            key = (f"intsim-program-{self.run_id}", next(self.numbers))
            self.program = self.client.submit(_identity(), self.data, key=key)
        key = (f"intsim-{self.run_id}", next(self.numbers))
        flight.worker = self.idlest()
        where = {"workers": [flight.worker], "allow_other_workers": True} if flight.worker else {}
        flight.future = self.client.submit(carrier(), STAMP, flight.call, self.program, key=key, **where)
        if flight.first not in self.flying:
            self.flying[flight.first] = flight
            self.bytes += len(flight.call)
        flight.future.add_done_callback(lambda future: self.landed.put((flight, future)))

    def idlest(self) -> str | None:
        """The worker with the fewest ranges for each of its threads.

        Left to itself Dask puts ranges where the Program is already: all on one worker.
        """
        given = dict.fromkeys(self.crew, 0)
        for flight in self.flying.values():
            if flight.worker in given:
                given[flight.worker] += 1
        return min(given, key=lambda worker: given[worker] / self.crew[worker], default=None)

    def next_landed(self) -> Iterator[tuple[Flight, Any]]:
        """Those that ended, of which there may be none after POLL seconds."""
        try:
            yield self.landed.get(timeout=POLL)
        except queue.Empty:
            return
        while not self.landed.empty():
            yield self.landed.get()

    def outcome(self, flight: Flight) -> tuple[Any] | None:
        """(result,) of a range that ended; None if it was handed to the scheduler once more."""
        try:
            told, value = flight.future.result()
        except Exception as problem:
            self.again(flight, problem)
            return None
        if told == "refused":
            raise UserError(value)
        return (value,)

    def again(self, flight: Flight, problem: Exception) -> None:
        """Another try of a range, or the reason why there is none."""
        from concurrent.futures import CancelledError

        from distributed import KilledWorker

        while self.client.status == "connecting":
            time.sleep(POLL)
        if self.client.status != "running":
            raise UserError(f"the scheduler at {self.name} went away") from None
        flight.tries += 1
        if flight.tries < TRIES:
            self.submit(flight)
            return
        last = flight.first + flight.count - 1
        where = f"images {flight.first} .. {last}" if flight.count > 1 else f"image {last}"
        if isinstance(problem, KilledWorker):
            raise UserError(f"{where}: killed every worker that ran them; has a worker enough memory?") from None
        if isinstance(problem, (OSError, MemoryError, CancelledError)):
            text = str(problem) or type(problem).__name__
            raise UserError(f"{where}: failed {TRIES} times on workers of {self.name}: {text}") from None
        raise problem

    def count_workers(self) -> None:
        """Looks at times who works: workers come and go."""
        if time.monotonic() < self.counted + (COUNT_AGAIN if self.threads else POLL):
            return
        try:
            found = self.client.nthreads()
        except OSError:  # the scheduler does not answer: futures will tell
            found = {}
        if self.client.status == "closed":
            raise UserError(f"the scheduler at {self.name} went away")
        self.crew = {worker: threads for worker, threads in found.items() if threads}
        self.counted = time.monotonic()
        if not self.workers and not self.told:
            self.say(f"waiting for workers of {self.name} ...")
        self.told = not self.workers

    def cancel(self) -> None:
        """Leaves nothing at the scheduler."""
        futures = [flight.future for flight in self.flying.values()] + [self.program]
        self.flying, self.program = {}, None
        try:
            if self.client.status == "running":
                self.client.cancel([future for future in futures if future is not None], force=True)
        except Exception:  # it is gone, and all with it
            pass


def _identity() -> Callable[[bytes], bytes]:
    def program(data: bytes) -> bytes:
        return data

    return program
