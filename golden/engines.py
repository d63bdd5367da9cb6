"""The engine for a command: imported late, and with a word to the user when it compiles its kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from golden.bundle import Runs
from intsim.program import Program

NOTICE = "compiling kernels for this machine, once ..."


def make_engine(program: Program, say: Callable[[str], None], threads: int | None = None) -> Runs:
    """The Numba engine of a Program.  `say` gets one line when kernels have to be compiled, now or in a run."""
    announce_compilation(say)
    from intsim.engine import Engine

    engine: Runs = Engine(program, threads=threads)
    return engine


def announce_compilation(say: Callable[[str], None]) -> None:
    """Calls `say` once if Numba compiles anything, which it does not for kernels that it finds in its cache.

    On two CPUs or more a second process then helps (kernels.ahead).
    """
    from numba.core import event

    class Listener(event.Listener):
        told = False

        def on_start(self, event: Any) -> None:
            if not self.told:
                self.told = True
                say(NOTICE)
            from intsim.engine import available_threads
            from intsim.kernels import ahead

            if available_threads() > 1:
                ahead.begin(event.data["dispatcher"], event.data["args"])

        def on_end(self, event: Any) -> None:
            pass

    event.register("numba:compile", Listener())
