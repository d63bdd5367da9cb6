"""The plan of a run: operators in phases, tasks for threads, buffers with their places, all before the first run.

Operators whose row r needs no other row of what the same phase makes run one after the other on a block of rows, while
it is in the cache; the scans share their channels.  A buffer is used again when the last phase that reads it is over.
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Collection, Mapping

import numpy as np

from intsim.kernels import cpu
from intsim.kernels.base import BATCH, In, Kernel, Out
from intsim.kernels.dot import HALF
from intsim.kernels.dot import ROWS as TILE
from intsim.kernels.memory import LINE, address_of, addressof, make_lock, view
from intsim.kernels.run import CHUNK, COUNTERS, DISMISS, NUMBER, SEAT, SEATS, compiled, make_group, run
from intsim.kernels.scan.arguments import BLOCK
from intsim.kernels.tiles import SIDE
from intsim.program import Array, Program, Tensor

GRAIN = 15_000  # nanoseconds of work that are worth a task of their own
ROWS = 64  # most rows of a task: what its operators make stays in the cache
LEAST = 24  # rows of a task, if there are as many for each thread: all weights are read for them
PARTS = 2  # a task is what is left, over this and the number of threads: large ones first, and all end together
FETCHED = 1 << 18  # most bytes of constants that are fetched for a phase before it begins: a part of a second cache
CHUNK_LINES, WORTH = 32, 16  # lines that are fetched at a time; least lines of an array that is

Rare = tuple[int | None, int | None, int | None, int | None]
spare_locks: list[int] = []  # of helpers that were dismissed: held, for others
forks = 0  # of the processes that led from the first to this one


def count_fork() -> None:
    global forks
    forks += 1


with contextlib.suppress(AttributeError):  # there is no fork
    os.register_at_fork(after_in_child=count_fork)


def allowed_cpus() -> set[int]:
    """The CPUs that the calling thread may use; none where the system does not say."""
    try:
        return set(os.sched_getaffinity(0))
    except AttributeError:
        return set()


class Workers:
    """A group of `threads` threads: the caller's, and helpers, which sleep when there was nothing to do for a while.

    rare: the last arguments of `kernels.run`, for all that it will run.
    """

    def __init__(self, threads: int, rare: Rare = (None, None, None, None)):
        self.threads = threads
        self.rare = rare
        self._run: Callable[..., None] | None = None
        self._fork = -1
        alone = make_group((), ())
        self._group = alone, address_of(alone)

    def run(self, ticket: int, threads: int) -> None:
        """Runs a ticket of `kernels.run`, an address, by the calling thread and up to `threads` - 1 helpers."""
        if threads > 1 and self._fork != forks:  # no helpers yet, or they are another process's
            self._start()
        _alive, address = self._group  # another thread may start the helpers meanwhile, with a group of their own
        if self._run is None:
            self._run = compiled(self.rare)
        self._run(address, ticket, 0, *self.rare)

    def _start(self) -> None:
        self._fork = forks
        locks = [take_lock() for _ in range(self.threads - 1)]
        group = make_group(allowed_cpus(), locks)
        for thread, lock in enumerate(locks, 1):
            threading.Thread(
                target=help_out, args=(group, thread, lock, self.rare), name="intsim", daemon=True
            ).start()
        weakref.finalize(self, dismiss, group, self.rare).atexit = False
        self._group = group, address_of(group)


def take_lock() -> int:
    """Address of a lock that is held."""
    try:
        return spare_locks.pop()
    except IndexError:
        return make_lock()


def help_out(group: Array, thread: int, lock: int, rare: Rare) -> None:
    """What a helper does until it is dismissed."""
    group[SEATS + SEAT * thread + NUMBER] = threading.get_native_id()
    with contextlib.suppress(Exception):  # it cannot be compiled: the caller's thread meets and tells that
        run(address_of(group), 0, thread, *rare)
    spare_locks.append(lock)


def dismiss(group: Array, rare: Rare) -> None:
    with contextlib.suppress(Exception):  # likewise
        run(address_of(group), 0, DISMISS, *rare)


def size_of(tensor: Tensor, batch: int) -> int:
    """Bytes of a tensor of `batch` images, whole cache lines."""
    return -(-batch * int(np.prod(tensor.shape)) * tensor.dtype.itemsize // LINE) * LINE


class Plan:
    """One way through a list of kernels for `batch` images; runs one batch at a time.

    wanted: tensors that the caller gets, of those that the kernels make; every other has its place in `arena`.
    """

    def __init__(self, program: Program, kernels: list[Kernel], batch: int, wanted: Collection[str], threads: int):
        self.levels = levels_of(kernels)
        self.made = {  # tensor -> its kernel
            k.op.tensor(port): k
            for k in kernels
            for port in k.op.outputs
            if port not in k.inner() or k.op.tensor(port) in wanted
        }
        self.places = place(program, kernels, self.levels, self.made, batch, wanted)
        end = max((at + size for at, size in self.places.values()), default=0)
        self.arena = np.empty(end + LINE, dtype=np.uint8)
        base = address_of(self.arena) + -address_of(self.arena) % LINE
        numbers: list[int] = []
        begins = [0]
        positions: dict[str, list[int]] = {}  # of addresses in `steps` that differ from run to run
        for k in kernels:
            numbers.append(k.code)
            for argument in k.arguments():
                name = None
                if argument is BATCH:
                    argument = batch
                elif isinstance(argument, In):
                    name = k.op.inputs[argument]
                elif isinstance(argument, Out):
                    name = k.op.tensor(argument)
                    argument = 0
                if name in self.places:
                    argument = base + self.places[name][0]
                elif name is not None and (name in self.made or isinstance(argument, In)):
                    positions.setdefault(name, []).append(len(numbers))
                    argument = 0
                numbers.append(int(argument))
            begins.append(len(numbers))
        tensors = program.tensors
        self.inputs = [(at, name) for name in positions if name not in self.made for at in positions[name]]
        self.outputs = [
            (name, (batch, *tensors[name].shape), tensors[name].dtype, positions[name]) for name in wanted
        ]
        self.steps, self.begins = np.array(numbers, dtype=np.int64), np.array(begins, dtype=np.int64)
        self._share(kernels, batch, threads)
        widest = int(np.diff(self.phases).max(initial=1))
        self.threads = min(threads, widest)
        size = -(-max(k.scratch for k in kernels) // LINE) * LINE + LINE
        self.memory = np.empty((self.threads, size), dtype=np.uint8)
        self.scratch = [address_of(row) + -address_of(row) % LINE for row in self.memory]
        self._look_ahead(kernels)
        self.seal()

    def _share(self, kernels: list[Kernel], batch: int, threads: int) -> None:
        """Makes `chains`, `tasks` and `phases` (see kernels.run)."""
        chains: list[int] = []
        tasks: list[tuple[int, int, int, int]] = []
        phases = [0]
        for steps in steps_at(self.levels):
            groups: dict[object, list[int]] = {}
            for i in steps:
                k = kernels[i]
                groups.setdefault((i,) if k.by_channel else k.tokens, []).append(i)
            for members in groups.values():
                first = len(chains)
                chains += members
                ranges = split([kernels[i] for i in members], batch, threads)
                tasks += [(first, len(chains), start, stop) for start, stop in ranges]
            phases.append(len(tasks))
        self.chains, self.tasks = np.array(chains, dtype=np.int64), np.array(tasks, dtype=np.int64)
        self.phases = np.array(phases, dtype=np.int64)

    def _look_ahead(self, kernels: list[Kernel]) -> None:
        """Makes `ahead` and `chunks` (see kernels.run): each thread, in every phase, some with each step, fetches the
        constants that the next phase reads into its second cache.
        """
        chunks: list[tuple[int, int]] = []
        ahead: list[tuple[int, int, int]] = []
        at_level = [*steps_at(self.levels), []]
        for phase, (begin, end) in enumerate(zip(self.phases, self.phases[1:], strict=False)):
            first, left = len(chunks), FETCHED
            for array in (a for i in at_level[phase + 1] for a in kernels[i].kept):
                lines = min(array.nbytes, left) // LINE
                if lines >= WORTH:
                    left -= lines * LINE
                    starts = range(0, lines, CHUNK_LINES)
                    chunks += [(address_of(array) + at * LINE, min(CHUNK_LINES, lines - at)) for at in starts]
            steps = int((self.tasks[begin:end, 1] - self.tasks[begin:end, 0]).sum())
            ahead.append((first, len(chunks), -(-(len(chunks) - first) * self.threads // steps)))
        self.chunks = np.array(chunks, dtype=np.int64).reshape(-1, 2)
        self.ahead = np.array(ahead, dtype=np.int64)
        self.ahead[:, :2] = address_of(self.chunks) + CHUNK * self.ahead[:, :2]

    def seal(self) -> None:
        """Makes what is at the address `ticket` (see kernels.run)."""
        levels = len(self.phases) - 1
        self.marks = np.zeros(levels * COUNTERS, dtype=np.int64)
        arrays = map(address_of, (self.steps, self.begins, self.chains, self.tasks, self.phases))
        numbers = [self.threads, *arrays, levels, address_of(self.marks), address_of(self.ahead), *self.scratch]
        self._ticket = np.array(numbers, dtype=np.int64)
        self.ticket = address_of(self._ticket)

    def run(self, workers: Workers, given: Mapping[str, Array]) -> dict[str, Array]:
        """The wanted tensors, [batch, *shape] in their containers; given: those that the caller brings, contiguous."""
        steps = self.steps
        for position, name in self.inputs:
            steps[position] = address_of(given[name])
        made = {}
        for name, shape, dtype, positions in self.outputs:
            made[name] = array = np.empty(shape, dtype)
            address = addressof(view(array))  # what address_of does, without a call
            for position in positions:
                steps[position] = address
        workers.run(self.ticket, self.threads)
        return made


def levels_of(kernels: list[Kernel]) -> list[int]:
    """Phase of each kernel: the first in which its inputs are there, or appear row by row in the same chain."""
    makers: dict[str, int] = {k.op.tensor(port): i for i, k in enumerate(kernels) for port in k.op.outputs}
    levels: list[int] = []
    for k in kernels:
        level = 0
        for port, name in k.op.inputs.items():
            if name in makers:
                maker = kernels[makers[name]]
                rows = not k.by_channel and not maker.by_channel and k.tokens == maker.tokens
                level = max(level, levels[makers[name]] + (0 if rows and port in k.aligned else 1))
        levels.append(level)
    return levels


def steps_at(levels: list[int]) -> list[list[int]]:
    """The kernels of each phase, in their order; levels: of `levels_of`."""
    found: list[list[int]] = [[] for _ in range(max(levels) + 1)]
    for i, level in enumerate(levels):
        found[level].append(i)
    return found


def place(
    program: Program,
    kernels: list[Kernel],
    levels: list[int],
    made: Mapping[str, Kernel],
    batch: int,
    wanted: Collection[str],
) -> dict[str, tuple[int, int]]:
    """tensor -> (offset, bytes) in the arena, for all that are made and not wanted.

    Two tensors overlap only if the last phase that touches the one is over before the first that touches the other.
    """
    first = {k.op.tensor(port): levels[i] for i, k in enumerate(kernels) for port in k.op.outputs}
    last = dict(first)
    for i, k in enumerate(kernels):
        for name in k.op.inputs.values():
            if name in last:
                last[name] = max(last[name], levels[i])
    places: dict[str, tuple[int, int]] = {}
    alive: list[str] = []
    for name in sorted((name for name in made if name not in wanted), key=first.__getitem__):
        alive = [other for other in alive if last[other] >= first[name]]
        size = size_of(program.tensors[name], batch)
        at = 0
        for offset, length in sorted(places[other] for other in alive):
            if offset - at >= size:
                break
            at = max(at, offset + length)
        places[name] = (at, size)
        alive.append(name)
    return places


def split(kernels: list[Kernel], batch: int, threads: int) -> list[tuple[int, int]]:
    """Ranges of rows (or channels) of a chain's tasks; threads begin at both ends (see kernels.run).

    Rows: large tasks at the ends, in rounds of one for each thread, all alike: of half of what is left, in the end of
    all.  Channels: far from each other what is done at a time, near what one thread does next: they share lines of the
    cache.
    """
    k = kernels[0]
    total = k.channels if k.by_channel else batch * k.tokens
    if k.by_channel:
        starts = range(0, total, BLOCK)
        each = -(-len(starts) // threads)
        order = from_both_ends([list(starts[first::each]) for first in range(each)])
        return [(start, min(start + BLOCK, total)) for start in order]
    unit = SIDE if k.path == "amx" and total >= SIDE * threads else HALF if k.path in cpu.WIDE else TILE
    least = max(GRAIN // max(sum(k.row_cost for k in kernels), 1) + 1, min(LEAST, -(-total // threads)))
    most = -(-total // (threads * -(-total // (threads * ROWS))))  # as many for each thread
    parts = PARTS * threads if threads > 1 else 1
    rounds: list[list[int]] = []
    rest = total
    while rest:
        ends = rest <= parts * least
        some = min(threads, -(-rest // least)) if ends else threads
        size = min(-(-rest // some) if ends else max(rest // parts, least), most)
        size = unit * (-(-size // unit) if ends else max((2 * size // unit + 1) // 2, 1))  # whole tiles
        taken = min(some * size, rest)
        rounds.append([min(size, taken - at) for at in range(0, taken, size)])
        rest -= taken
    stops = np.cumsum(from_both_ends(rounds)).tolist()
    return list(zip([0, *stops[:-1]], stops, strict=True))


def from_both_ends(rounds: list[list[int]]) -> list[int]:
    """What threads are to take in some rounds, in an order from which every second one takes what is last."""
    front = [item for some in rounds for item in some[::2]]
    back = [item for some in rounds for item in some[1::2]]
    return front + back[::-1]
