# mypy: allow-untyped-defs
"""Runs many steps in one call, shared by threads: the only compiled function that is called from Python.

A step is a kernel with its arguments; a task is a chain of steps on a range of rows (or channels); tasks of one phase
do not depend on each other, and a phase begins when the one before is done.  Every thread takes the next task that is
left, so that none waits for one that has not started, and every second thread the last, so that most rows stay in the
cache of the same thread from phase to phase; which thread runs a task never changes its result.  A helper that comes
when the caller's thread is through finds the door closed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import numpy as np
from numba import types

from intsim.kernels.add import add
from intsim.kernels.common import kernel
from intsim.kernels.conv1d import conv1d
from intsim.kernels.gate import gate
from intsim.kernels.insert_token import insert_token
from intsim.kernels.linear import linear
from intsim.kernels.memory import (
    LINE,
    acquire,
    address_of,
    current_cpu,
    exchange,
    fetch,
    fetch_add,
    fetch_ahead,
    give_way,
    int64_at,
    release,
    stay_on,
)
from intsim.kernels.narrow import narrow_conv1d, narrow_gate, narrow_linear, narrow_patch_embed, narrow_scan
from intsim.kernels.rmsnorm import rmsnorm
from intsim.kernels.rom import rom
from intsim.kernels.scan import scan
from intsim.kernels.select_token import select_token
from intsim.program import Array

PATIENCE = 20_000  # looks at a counter before the CPU is given away
ALERT = 200_000  # looks at the bell, 70 us or more, before a helper goes to sleep, from which waking takes 50 us
COUNTERS = 16  # int64 from phase to phase, so that two phases share no cache line
COUNT_BITS = 21
# in a phase's counter: a task taken from the front, or looked for there in vain; likewise from the back; a task done
FRONT, BACK, DONE = 1, 1 << COUNT_BITS, 1 << 2 * COUNT_BITS
# the bell: helpers inside, a bit for the closed door, and from RUN on the number of the run
INSIDE, CLOSED, RUN = (1 << 32) - 1, 1 << 32, 33
CPUS = 16  # int64 that have a bit for each CPU
# places in the memory of a group of threads, of `make_group`; each of these names begins a cache line
BELL, LEADERS, AWAKE, MAY = range(0, 32, 8)
TICKET = BELL + 1
HELPERS, GONE = AWAKE + 1, AWAKE + 2
SEATS = MAY + CPUS  # where the first thread's place begins
SEAT = 8 + CPUS  # from thread to thread
ASLEEP, LOCK, NUMBER, FREE = 1, 2, 3, 8  # places in a thread's place
DISMISS = -1  # in place of a thread
CHUNK = 16  # bytes of a chunk of the memory to be fetched: two int64
THREADS, STEPS, BEGINS, CHAINS, TASKS, PHASES, LEVELS, MARKS, AHEAD, SCRATCH = range(10)  # places in a ticket


@kernel
def run(group, ticket, thread, narrow, lanes, avx2, avx512):
    """What one thread of a group does: thread 0 leads a run and returns when all is done; a helper takes part in every
    run that it hears of, sleeps when there was none for a while, and returns when the group is dismissed.

    group: address of the memory of `make_group`.  ticket: of a run, address of int64, for thread 0: how many threads
    may take part; addresses of steps (the arguments of all steps, each behind its code), begins [n + 1] (where each
    step begins), chains (steps of the chains, one after the other), tasks [tasks, 4] (first and behind the last place
    in `chains`, first and behind the last row) and phases [phases + 1] (first task of each), all int64; how many
    phases; address of int64 [phases * COUNTERS], a counter of tasks for each phase; address of ahead [phases, 3], what
    each thread fetches for the next phase: addresses of the first of its chunks, int64 [2] each (address, lines of the
    cache), and behind the last, and how many of them go with a step; for each thread the address of its scratch memory.
    thread: DISMISS lets all helpers return.  narrow: an int64 of any value if there may be narrow accumulators, else
    None; lanes, avx2, avx512: likewise for the scan's kernels of these names.  What is None is not compiled.

    Thread 0 opens the door as it rings, closes it when no task is left, and waits for the helpers inside; behind a
    closed door none touches anything of a run.  A thread that finds the group led by another works alone.  A helper
    sleeps on its lock, outside of the interpreter; whoever takes back its ASLEEP, once for each time that it was set,
    releases the lock or need not wait for it.
    """
    memory = int64_at(group, SEATS)
    if thread == DISMISS:
        exchange(memory, GONE, 1)
        fetch_add(memory, BELL, 1 << RUN)
        wake(memory, memory[HELPERS])
        return
    if thread:
        fetch_add(memory, AWAKE, 1)
    while True:
        inside, leads, at, heard = True, False, ticket, np.int64(0)
        if thread:
            take_seat(memory, thread)  # behind a closed door, too: one that looks on thread 0's CPU takes it away
            bell = fetch_add(memory, BELL, 1)
            inside, heard = bell & CLOSED == 0, bell >> RUN
            if fetch(memory, GONE):  # after the bell was heard: who dismisses rings last
                fetch_add(memory, BELL, -1)
                fetch_add(memory, AWAKE, -1)
                return
            if inside:
                at = fetch(memory, TICKET)
        else:
            clear(ticket)
            leads = fetch_add(memory, LEADERS, 1) == 0
            if leads:
                take_seat(memory, thread)
                memory[TICKET] = ticket
                fetch_add(memory, BELL, (1 << RUN) - CLOSED)
                wake(memory, int64_at(ticket, SCRATCH)[THREADS] - 1)
        if inside:
            t = int64_at(at, SCRATCH + thread + 1)
            if thread < t[THREADS]:
                levels, scratch = t[LEVELS], t[SCRATCH + thread]
                end = np.int64(BACK if thread & 1 else FRONT)
                marks, phases = int64_at(t[MARKS], levels * COUNTERS), int64_at(t[PHASES], levels + 1)
                tasks, chains = int64_at(t[TASKS], 4 * phases[levels]), int64_at(t[CHAINS], 1)
                begins, steps = int64_at(t[BEGINS], 1), int64_at(t[STEPS], 1)
                for phase in range(levels):
                    count = phases[phase + 1] - phases[phase]
                    ahead = int64_at(t[AHEAD] + 24 * phase, 3)
                    chunk, behind, some = ahead[0], ahead[1], ahead[2]
                    last = np.int64(0)  # DONE if there was a task before
                    while True:
                        taken = fetch_add(marks, phase * COUNTERS, last + end)
                        front, back = taken & BACK - 1, taken >> COUNT_BITS & BACK - 1
                        if front + back >= count:
                            break
                        last = np.int64(DONE)
                        place = 4 * (phases[phase] + front if end == FRONT else phases[phase + 1] - 1 - back)
                        start, stop = tasks[place + 2], tasks[place + 3]
                        for link in range(tasks[place], tasks[place + 1]):
                            step = chains[link]
                            chunk = fetch_some(chunk, min(chunk + some * CHUNK, behind))
                            code = steps[begins[step]]
                            a = int64_at(t[STEPS] + 8 * (begins[step] + 1), begins[step + 1] - begins[step] - 1)
                            if code == 0:
                                linear(a, start, stop, scratch)
                            elif code == 2:
                                insert_token(a, start, stop)
                            elif code == 3:
                                add(a, start, stop)
                            elif code == 4:
                                select_token(a, start, stop)
                            elif code == 5:
                                rom(a, start, stop)
                            elif code == 6:
                                conv1d(a, start, stop, scratch)
                            elif code == 7:
                                gate(a, start, stop, scratch)
                            elif code == 8:
                                rmsnorm(a, start, stop, scratch)
                            elif code == 9:
                                scan(a, start, stop, scratch, lanes, avx2, avx512)
                            elif narrow is not None:
                                if code == 10:
                                    narrow_linear(a, start, stop, scratch)
                                elif code == 11:
                                    narrow_patch_embed(a, start, stop, scratch)
                                elif code == 12:
                                    narrow_conv1d(a, start, stop)
                                elif code == 13:
                                    narrow_gate(a, start, stop)
                                elif code == 14:
                                    narrow_scan(a, start, stop)
                    if phase < levels - 1:  # after the last, thread 0 waits until the others have left
                        looks = 0
                        while fetch(marks, phase * COUNTERS) < count * DONE:
                            looks = look_on(looks)
        if thread == 0:
            if leads:
                fetch_add(memory, BELL, CLOSED)
                looks = 0
                while fetch(memory, BELL) & INSIDE:
                    looks = look_on(looks)
            fetch_add(memory, LEADERS, -1)
            return
        fetch_add(memory, BELL, -1)
        looks = 0
        while fetch(memory, BELL) >> RUN == heard and looks < ALERT:
            looks += 1
        if fetch(memory, BELL) >> RUN == heard:
            place = SEATS + SEAT * thread
            exchange(memory, place + ASLEEP, 1)
            fetch_add(memory, AWAKE, -1)  # who rings from here on wakes this thread
            if fetch(memory, BELL) >> RUN == heard or exchange(memory, place + ASLEEP, 0) == 0:
                acquire(memory[place + LOCK])
            fetch_add(memory, AWAKE, 1)


def compiled(rare: Sequence[int | None]) -> Callable[..., None]:
    """`run` compiled for such last arguments; unlike `run` itself it does not look at their types at each call."""
    kinds = (types.none if some is None else types.int64 for some in rare)
    function: Callable[..., None] = run.compile((types.int64, types.int64, types.int64, *kinds))
    return function


@kernel
def fetch_some(chunk, stop):
    """Brings the memory that the chunks from the address `chunk` to `stop` name into the second cache; returns `stop`.
    """
    while chunk < stop:
        where = int64_at(chunk, 2)
        for line in range(where[1]):
            fetch_ahead(where[0] + LINE * line)
        chunk += CHUNK
    return stop


@kernel
def wake(memory, helpers):
    """Wakes those of the first `helpers` helpers that sleep, on other CPUs than the one of this thread."""
    if fetch(memory, AWAKE) < memory[HELPERS]:
        for helper in range(1, helpers + 1):
            place = SEATS + SEAT * helper
            if exchange(memory, place + ASLEEP, 0):
                if memory[place + NUMBER] and find_free(memory, place + FREE, np.int64(1)):
                    stay_on(memory[place + NUMBER], memory, place + FREE, CPUS)
                release(memory[place + LOCK])


@kernel
def clear(ticket):
    """Makes the counters of a run's phases zero."""
    t = int64_at(ticket, SCRATCH)
    marks = int64_at(t[MARKS], t[LEVELS] * COUNTERS)
    for i in range(t[LEVELS] * COUNTERS):
        marks[i] = 0


def make_group(cpus: Collection[int], locks: Sequence[int]) -> Array:
    """What the threads of a group share from run to run: int64, in the places above; whole cache lines.

    cpus: that they may use; locks: addresses of locks that are held (memory.make_lock), one for each helper.

    [BELL] tells of a run, [TICKET] is its ticket; [LEADERS] threads that run something, and lead or work alone;
    [AWAKE] helpers that hear the bell, of [HELPERS]; [GONE] is 1 when they are dismissed;
    [MAY ..] a bit for each of the CPUs (none if there are too many to tell); of each thread, from [SEATS + SEAT * t]
    on, the CPU that it was on, plus 1, and at [ASLEEP] whether it sleeps, or will, [LOCK] on which lock, [NUMBER] the
    system's number for it (0: not known), [FREE ..] bits for CPUs, to work with.
    """
    threads = len(locks) + 1
    size = SEATS + SEAT * threads
    memory = np.zeros(size + 8, dtype=np.int64)
    first = -(address_of(memory) // 8) % 8
    group = memory[first : first + size]
    group[BELL] = CLOSED
    group[HELPERS] = len(locks)
    group[SEATS + SEAT + LOCK :: SEAT] = locks
    if max(cpus, default=0) < 64 * CPUS:
        bits = np.zeros(64 * CPUS, dtype=np.uint8)
        bits[list(cpus)] = 1
        group[MAY : MAY + CPUS] = np.packbits(bits, bitorder="little").view(np.int64)
    return group


@kernel
def take_seat(memory, thread):
    """Tells the others on which CPU this thread is; moves away if one of a lower number is on the same.

    Linux likes to wake a thread where its waker runs, and leaves both there for milliseconds: longer than a run.
    """
    cpu = current_cpu()
    seat = SEATS + SEAT * thread
    for other in range(thread):
        if fetch(memory, SEATS + SEAT * other) == cpu + 1 and cpu >= 0:
            if find_free(memory, seat + FREE, thread):
                stay_on(0, memory, seat + FREE, CPUS)
                cpu = current_cpu()
            break
    if fetch(memory, seat) != cpu + 1:  # a line that all read is not taken from them for nothing
        exchange(memory, seat, cpu + 1)


@kernel
def find_free(memory, free, threads):
    """Sets bits, from memory[free] on, for the CPUs where none of the first `threads` threads is; whether there is one.
    """
    for i in range(CPUS):
        memory[free + i] = memory[MAY + i]
    for thread in range(threads):
        taken = fetch(memory, SEATS + SEAT * thread) - 1
        if 0 <= taken < 64 * CPUS:
            memory[free + (taken >> 6)] &= ~(np.int64(1) << (taken & 63))
    found = np.int64(0)
    for i in range(CPUS):
        found |= memory[free + i]
    return found != 0


@kernel
def look_on(looks):
    """Counts a look at what has not happened yet, and after many gives the CPU away each time."""
    if looks > PATIENCE:
        give_way()
    return looks + 1
