# mypy: allow-untyped-defs
"""Runs many steps in one call, shared by threads: the only compiled function that is called from Python.

A step is a kernel with its arguments; a task is a chain of steps on a range of rows (or channels); tasks of one phase
do not depend on each other, and a phase begins when the one before is done.  Every thread takes the next task that is
left, so that none waits for one that has not started, and which thread runs a task never changes its result.  A helper
that comes when the caller's thread is through finds the door closed.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from intsim.kernels.add import add
from intsim.kernels.common import kernel
from intsim.kernels.conv1d import conv1d
from intsim.kernels.gate import gate
from intsim.kernels.insert_token import insert_token
from intsim.kernels.linear import linear
from intsim.kernels.memory import current_cpu, fetch, fetch_add, give_way, stay_on
from intsim.kernels.narrow import narrow_conv1d, narrow_gate, narrow_linear, narrow_patch_embed, narrow_scan
from intsim.kernels.patch_embed import patch_embed
from intsim.kernels.rmsnorm import rmsnorm
from intsim.kernels.rom import rom
from intsim.kernels.scan import scan
from intsim.kernels.select_token import select_token
from intsim.program import Array

CLOSED = 1 << 32
PATIENCE = 20_000  # looks at a counter before the CPU is given away
ALERT = 200_000  # looks at the bell, some 200 us, before a helper goes to sleep, from which waking takes 100 us
COUNTERS = 16  # int64 from phase to phase, so that two phases share no cache line
CPUS = 16  # int64 that have a bit for each CPU
SEATS = 8 + CPUS  # where the first thread's place in `bell` begins
SEAT = 8 + CPUS  # from thread to thread: no two share a cache line


@kernel
def run(steps, begins, chains, tasks, phases, counters, bell, scratch, helper):
    """What one thread does.

    steps int64: the arguments of all steps, each behind its code; begins int64 [n + 1]: where each step begins;
    chains int64: steps of the chains, one after the other; tasks int64 [tasks, 4]: first and behind the last place in
    `chains`, first and behind the last row; phases int64 [phases + 1]: first task of each; counters int64
    [(phases + 1) * COUNTERS], zeros at first: of each phase tasks taken and tasks done, then helpers that came and
    that left; bell: of `make_bell`, the caller's thread changes its first element when it begins, for helpers that wait
    for more work; scratch: address of this thread's memory; helper: 0 for the caller's thread, which returns when all
    is done, or the number of another.
    """
    door = (phases.shape[0] - 1) * COUNTERS
    if helper:
        if fetch_add(counters, door, 1) >= CLOSED:
            return
    else:
        fetch_add(bell, 0, 1)
    take_seat(bell, helper)
    for phase in range(phases.shape[0] - 1):
        count = phases[phase + 1] - phases[phase]
        while True:
            task = fetch_add(counters, phase * COUNTERS, 1)
            if task >= count:
                break
            first, last, start, stop = tasks[phases[phase] + task]
            for place in range(first, last):
                step = chains[place]
                code = steps[begins[step]]
                a = steps[begins[step] + 1 : begins[step + 1]]
                if code == 0:
                    linear(a, start, stop, scratch)
                elif code == 1:
                    patch_embed(a, start, stop, scratch)
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
                    scan(a, start, stop, scratch)
                elif code == 10:
                    narrow_linear(a, start, stop, scratch)
                elif code == 11:
                    narrow_patch_embed(a, start, stop, scratch)
                elif code == 12:
                    narrow_conv1d(a, start, stop)
                elif code == 13:
                    narrow_gate(a, start, stop)
                elif code == 14:
                    narrow_scan(a, start, stop)
            fetch_add(counters, phase * COUNTERS + 8, 1)
        wait_for(counters, phase * COUNTERS + 8, count)
    if helper:
        heard = fetch(bell, 0)
        fetch_add(counters, door + 8, 1)
        looks = 0  # without the GIL, which the caller's thread needs now
        while fetch(bell, 0) == heard and looks < ALERT:
            looks += 1
    else:
        wait_for(counters, door + 8, fetch_add(counters, door, CLOSED))


def make_bell(threads: int, cpus: Collection[int]) -> Array:
    """What the threads of a group share from run to run: int64, [0] the bell, [8 ..] a bit for each of the `cpus` that
    they may use (none if there are too many to tell), [SEATS + SEAT * t] the CPU that thread t was on, and 1, followed
    8 elements later by CPUS of that thread's own, in which it works out where to go."""
    bell = np.zeros(SEATS + SEAT * threads, dtype=np.int64)
    if max(cpus, default=0) < 64 * CPUS:
        bits = np.zeros(64 * CPUS, dtype=np.uint8)
        bits[list(cpus)] = 1
        bell[8 : 8 + CPUS] = np.packbits(bits, bitorder="little").view(np.int64)
    return bell


@kernel
def take_seat(bell, thread):
    """Tells the others on which CPU this thread is; moves away if one of a lower number is on the same.

    Linux likes to wake a thread where its waker runs, and leaves both there for milliseconds: longer than a run.
    """
    cpu = current_cpu()
    seat = SEATS + SEAT * thread
    for other in range(thread):
        if fetch(bell, SEATS + SEAT * other) == cpu + 1 and cpu >= 0:
            free = seat + 8
            for i in range(CPUS):
                bell[free + i] = bell[8 + i]
            for lower in range(thread):
                taken = fetch(bell, SEATS + SEAT * lower) - 1
                if 0 <= taken < 64 * CPUS:
                    bell[free + (taken >> 6)] &= ~(np.int64(1) << (taken & 63))
            any_free = np.int64(0)
            for i in range(CPUS):
                any_free |= bell[free + i]
            if any_free:
                stay_on(bell, free, CPUS)
                cpu = current_cpu()
            break
    fetch_add(bell, seat, cpu + 1 - fetch(bell, seat))


@kernel
def wait_for(counters, i, count):
    """Returns when counters[i] has reached `count`."""
    looks = 0
    while fetch(counters, i) < count:
        looks += 1
        if looks > PATIENCE:
            give_way()

