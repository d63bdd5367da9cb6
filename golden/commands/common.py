"""What commands share: exit statuses, options, tables, progress, and where a result goes."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from intsim.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from golden.cluster import Cluster
    from intsim.program import Program

MISMATCH, UNUSABLE, BUG, INTERRUPTED, PIPE_CLOSED = 1, 2, 70, 130, 141
PLAIN_WIDTH = 120  # columns of a table that does not go to a terminal

# Options

model_option = click.option(
    "--model", type=click.Path(path_type=Path), help="Program file.  [default: the embedded model]"
)
json_option = click.option(
    "--json",
    "json_to",
    metavar="FILE",
    help="Also write the result as JSON; '-' is standard output, and then nothing else goes there.",
)
threads_option = click.option("--threads", type=click.IntRange(1, 1024), help="Threads of the engine.")
device_option = click.option(
    "--device", default="cpu", show_default=True, help="Where the torch path runs: cpu, cuda or cuda:N."
)
crop_option = click.option("--center-crop", is_flag=True, help="Cut larger images to size; nothing is ever resampled.")
out_option = click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Folder to make; must not exist."
)
layers_option = click.option(
    "--layers",
    multiple=True,
    metavar="GLOB",
    help="Tensors to write, such as 'layers.3.*' or '*.acc'; may be repeated.",
)

accumulators_option = click.option(
    "--accumulators", is_flag=True, help="Add every accumulator, those of the scans at every step too."
)


def style_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--format`, `--order`, `--lanes` and `--lane-order`, which become the parameter `style`."""

    @functools.wraps(command)
    def with_style(*args: Any, formats: str, order: str, lanes: int, lane_order: str, **rest: Any) -> Any:
        from golden.formats import Packing, Style

        names = tuple(name.strip() for name in formats.split(","))
        return command(*args, style=Style(names, Packing(order, lanes, f"{lane_order}-first")), **rest)

    for option in (
        click.option(
            "--lane-order", type=click.Choice(["lsb", "msb"]), default="lsb", show_default=True, help="Where lane 0 is."
        ),
        click.option("--lanes", type=int, default=1, show_default=True, metavar="N", help="Values a word."),
        click.option(
            "--order",
            default="row-major",
            show_default=True,
            help="row-major, token-major, channel-major, state-major, or tiles:TxC with :by-channel and :skewed.",
        ),
        click.option(
            "--format",
            "formats",
            default="npy,hex",
            metavar="LIST",
            help="Of npy, hex, mem, coe, mif, bin, c, with commas.  [default: npy,hex]",
        ),
    ):
        with_style = option(with_style)
    return with_style


# What-ifs

OVERFLOW = click.Choice(["wrap", "saturate"])
WIDTHS = {  # option -> class of intsim.whatif and what the help says of it
    "accumulator_bits": ("accumulators", "accumulators have (with --overflow)"),
    "state_bits": ("states", "the scans' states h have"),
    "a_bar_bits": ("a-bar", "A-bar has: 1 and BITS - 1 fraction bits"),
    "residual_bits": ("residual", "the residual stream has"),
    "rom_input_bits": ("rom-inputs", "the inputs of SiLU and softplus have"),
}


@dataclass(frozen=True)
class WhatIf:
    """The what-if options of a command line: `(option, bits)` in the order of WIDTHS, then `--narrow`."""

    widths: tuple[tuple[str, int], ...] = ()
    overflow: str | None = None
    narrow: tuple[str, ...] = ()

    def apply(self, program: Program) -> Program:
        """The Program with other widths; itself if nothing is asked for.  UserError if it cannot have them."""
        if not self.widths and not self.narrow:
            if self.overflow is not None:
                raise UserError("--overflow says what accumulators do that are too narrow: give --accumulator-bits too")
            return program
        from intsim.program_file import program_bytes
        from intsim.whatif import Rule, narrow, parse_rule

        if ("accumulator_bits" in dict(self.widths)) != (self.overflow is not None):
            raise UserError("--accumulator-bits and --overflow go together")
        rules = [
            Rule(WIDTHS[option][0], bits, self.overflow if option == "accumulator_bits" else None)
            for option, bits in self.widths
        ]
        changed = narrow(program, [*rules, *map(parse_rule, self.narrow)])
        program_bytes(changed)  # sets its hash
        return changed


def what_if_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options that change widths; the command gets them as `what_if`, for `load`."""

    @functools.wraps(command)
    def wrapped(*args: Any, overflow: str | None, narrow: tuple[str, ...], **rest: Any) -> Any:
        bits = {option: rest.pop(option) for option in WIDTHS}
        widths = tuple((option, n) for option, n in bits.items() if n is not None)
        return command(*args, what_if=WhatIf(widths, overflow, narrow), **rest)

    made: Callable[..., Any] = click.option(
        "--narrow",
        multiple=True,
        metavar="WHAT=BITS[:wrap|:saturate]",
        help="What if these tensors had so many bits: WHAT is a glob or accumulators, states, a-bar, residual or "
        "rom-inputs.  Accumulators wrap or saturate; others lose their low bits, with :saturate their high ones.  "
        "May be repeated.",
    )(wrapped)
    made = click.option("--overflow", type=OVERFLOW, help="What the narrow accumulators do: modular, or at each step.")(
        made
    )
    for option, (_, what) in reversed(WIDTHS.items()):
        name = "--" + option.replace("_", "-")
        made = click.option(name, type=click.IntRange(1, 64), metavar="BITS", help=f"What if: bits that {what}.")(made)
    return made


# Dask


@dataclass(frozen=True)
class Where:
    """`--workers` and `--scheduler` of a command line: here, in processes of this machine, or on a cluster."""

    workers: int | None = None
    scheduler: str | None = None

    @contextlib.contextmanager
    def open(self, threads: int | None = None) -> Iterator[Cluster | None]:
        """The cluster, which looks for its workers when it is used; None if the command runs in this process.

        threads: of the engine for each range that a worker runs.
        """
        if self.workers is None and self.scheduler is None:
            yield None
            return
        if self.workers is not None and self.scheduler is not None:
            raise UserError("--workers starts workers on this machine and --scheduler names a cluster: give one")
        from golden.cluster import Cluster

        with Cluster(workers=self.workers, scheduler=self.scheduler, threads=threads, say=say) as cluster:
            yield cluster


def cluster_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--workers` and `--scheduler`, which become the parameter `where`."""

    @functools.wraps(command)
    def wrapped(*args: Any, workers: int | None, scheduler: str | None, **rest: Any) -> Any:
        return command(*args, where=Where(workers, scheduler), **rest)

    made: Callable[..., Any] = click.option(
        "--scheduler",
        metavar="ADDRESS",
        help="Run on the Dask cluster of this scheduler: tcp://HOST:PORT, or its scheduler file (.json).",
    )(wrapped)
    return click.option(
        "--workers",
        type=click.IntRange(1, 1024),
        help="Run in so many processes of this machine (by Dask), which share its CPUs.",
    )(made)


# Helpers


def examples(*lines: str) -> str:
    """The end of a command's help, as its `epilog`: each line a command, all of them one paragraph that is not wrapped.

    `tests/test_docs.py` parses every one and runs those that are cheap.
    """
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])


def complain(problem: object) -> int:
    click.echo(f"intsim: {' '.join(str(problem).split())}", err=True)
    return UNUSABLE


def load(model: Path | None, what_if: WhatIf = WhatIf()) -> tuple[Program, bytes]:
    """The Program of `--model` with the widths of `what_if`, and the bytes of its file."""
    from intsim import embedded
    from intsim.program_file import load_program, program_bytes

    path = embedded.program_path() if model is None else model
    program = load_program(path)
    changed = what_if.apply(program)
    if changed is not program:
        return changed, program_bytes(changed)
    try:
        return program, path.read_bytes()
    except OSError as problem:
        raise UserError(f"{path}: cannot be read: {problem.strerror}") from None


def console(error: bool = False) -> Console:
    from rich.console import Console

    class Plain(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    made = Plain(stderr=error, markup=False, highlight=False, emoji=False)
    if not made.is_terminal:
        made.width = PLAIN_WIDTH
    return made


def table(*columns: str, numbers: Sequence[str] = ()) -> Table:
    """A table with a line under its head; columns named in `numbers` are aligned to the right."""
    from rich import box
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for i, column in enumerate(columns):
        made.add_column(column, justify="right" if column in numbers else "left", overflow="fold", no_wrap=i == 0)
    return made


def say(text: str) -> None:
    click.echo(text, err=True)


@contextlib.contextmanager
def progress_bar(text: str, total: int | None = None) -> Iterator[Callable[..., None]]:
    """A bar on standard error if that is a terminal; yields update(done, total=None, text=None)."""
    if not sys.stderr.isatty():
        yield lambda done, total=None, text=None: None
        return
    from rich import progress

    columns = (
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=console(error=True), transient=True) as bar:
        task = bar.add_task(text, total=total)

        def update(done: int, total: int | None = None, text: str | None = None) -> None:
            bar.update(task, completed=done, total=total, description=text)

        yield update


def check_target(path: str | Path, new: bool = False) -> None:
    """Refuses a file that cannot be written, before the work and not after it.  new: it must not exist either."""
    place = Path(path)
    if new and (place.exists() or place.is_symlink()):
        raise UserError(f"{path}: exists already; name a new file or remove it first")
    if place.is_dir():
        raise UserError(f"{path}: is a folder, must be a file")
    if place.exists() and not place.is_file():  # a pipe, /dev/null: written to as it is
        if not os.access(place, os.W_OK):
            raise UserError(f"{path}: cannot be written: Permission denied")
        return
    if not place.parent.is_dir():
        raise UserError(f"{path}: cannot be written: there is no folder {place.parent}")
    if not os.access(place.parent, os.W_OK):
        raise UserError(f"{path}: cannot be written: the folder {place.parent} is not writable")


@contextlib.contextmanager
def result(json_to: str | None) -> Iterator[tuple[dict[str, Any], Console]]:
    """Where a command puts its result: a dict for `--json` and a console for people.

    The dict is written when the block ends well.  With `--json -` what goes to the console is dropped.
    """
    from intsim.files import write_atomically

    if json_to not in (None, "-"):
        check_target(json_to)
    out = console()
    out.quiet = json_to == "-"
    found: dict[str, Any] = {}
    yield found, out
    if json_to is None:
        return
    from golden.manifest import render

    text = render(found)
    if json_to == "-":
        sys.stdout.write(text)
    else:
        write_atomically(Path(json_to), text.encode())


def identity(program: Program) -> dict[str, Any]:
    return {"name": program.name, "profile": program.profile, "sha256": program.digest}


def embedded_images() -> Path:
    from intsim import embedded

    return embedded.images_path()


class LateEngine:
    """An engine that is made at its first use, when the folder it writes to is known to be good."""

    def __init__(self, make: Callable[[], Any]):
        self.make = make
        self.engine: Any = None

    def run(self, images: Any, taps: Any = ()) -> Any:
        if self.engine is None:
            self.engine = self.make()
        return self.engine.run(images, taps)
