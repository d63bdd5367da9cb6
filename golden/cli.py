"""The command `intsim`.

    intsim info                                       what a Program is
    intsim run IMAGE...                               classes and logits
    intsim dump IMAGE --layers 'layers.3.*' --out DIR chosen integer tensors of an image
    intsim golden --out DIR                           a golden bundle
    intsim headers --out DIR                          a SystemVerilog package and a C header
    intsim verify BUNDLE [DUT_DIR]                    is it as it was written?  is a design as it says?
    intsim eval --data PATH                           top-1
    intsim compare                                    the engine against the independent torch path
    intsim report --out FILE.html                     one page about a Program
    intsim quantize CHECKPOINT --calibration PATH --out MODEL
    intsim export --format onnx --out FILE            the Program for other tools
    intsim widths                                     bits that each register needs and uses
    intsim sweep --what W --values V,V --data PATH --out DIR    a width at many values
    intsim vectors UNIT                               inputs and expected outputs of an arithmetic unit
    intsim judge UNIT                                 the same lines with a DUT's outputs appended: are they right?

Exit status: 0 good, 1 a mismatch (`verify`, `compare`, `judge`), 2 unusable input (one sentence on standard error,
nothing half-written), 130 interrupted, 141 the reader of standard output went away.

What a command needs is imported when it runs: `--help` and `info` load neither Numba nor torch.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import click

from golden.commands.common import BUG, INTERRUPTED, PIPE_CLOSED, UNUSABLE, complain
from intsim import SPEC_VERSION, __version__
from intsim.errors import UserError

# each is `command` in golden/commands/NAME.py
COMMANDS = (
    *("info", "run", "dump", "golden", "headers", "verify"),
    *("eval", "compare", "widths", "sweep", "report", "quantize", "export"),
    *("vectors", "judge"),
)


class Tool(click.Group):
    """The group of all commands, which turns every way to end into an exit status and at most one sentence."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """Imports a command's file when it is asked for."""
        if name not in COMMANDS:
            return None
        made: click.Command = importlib.import_module(f"golden.commands.{name}").command
        return made

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Lists the commands with the whole first sentence of each, where click cuts it off at one line."""
        commands = [self.get_command(context, name) for name in COMMANDS]
        with formatter.section("Commands"):
            formatter.write_dl([(c.name or "", c.get_short_help_str(limit=200)) for c in commands if c is not None])

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any) -> NoReturn:  # type: ignore[override]
        sys.exit(self.status(list(sys.argv[1:] if args is None else args)))

    def status(self, args: list[str]) -> int:
        """Runs a command line and returns the exit status."""
        for stream in (sys.stdout, sys.stderr):  # a file name may hold bytes that are not text
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")
        try:
            with self.make_context("intsim", args) as context, orderly_end():
                context.obj = shlex.join(["intsim", *args])
                self.invoke(context)
            sys.stdout.flush()
            return 0
        except click.exceptions.Exit as end:
            return end.exit_code
        except UserError as problem:
            return complain(problem)
        except click.ClickException as problem:
            problem.show()
            return UNUSABLE
        except (KeyboardInterrupt, click.Abort):
            click.echo("intsim: interrupted", err=True)
            return INTERRUPTED
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing more to say at exit
            return PIPE_CLOSED
        except OSError as problem:
            if problem.filename is None and problem.strerror:  # files are named where they are written
                return complain(f"standard output: cannot be written: {problem.strerror}")
            return complain(problem)
        except MemoryError:
            return complain("not enough memory")
        except Exception:
            import traceback

            traceback.print_exc()
            return BUG


@contextlib.contextmanager
def orderly_end() -> Iterator[None]:
    """A request to end (SIGTERM, SIGHUP) runs the clean-up too: a half-written folder is removed."""

    def end(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = {}
    try:
        for name in ("SIGTERM", "SIGHUP"):
            if hasattr(signal, name):
                before[getattr(signal, name)] = signal.signal(getattr(signal, name), end)
    except ValueError:  # not the main thread
        pass
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@click.group(cls=Tool, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message=f"intsim %(version)s, SPEC {SPEC_VERSION}")
def cli() -> None:
    """Integer-only, bit-exact simulator of a quantized Vision Mamba."""


def main() -> None:
    """Entry point of the console script."""
    cli()


if __name__ == "__main__":
    main()
