"""The command `intsim`.

    intsim info                                       what a Program is
    intsim run IMAGE...                               classes and logits
    intsim dump IMAGE --layers 'layers.3.*' --out DIR chosen integer tensors of an image
    intsim golden --out DIR                           a golden bundle
    intsim verify BUNDLE                              is the bundle as it was written?
    intsim eval --data PATH                           top-1
    intsim quantize CHECKPOINT --calibration PATH --out MODEL

Exit status: 0 good, 1 a mismatch (`verify`), 2 unusable input (one sentence on standard error, nothing half-written),
130 interrupted, 141 the reader of standard output went away.

What a command needs is imported when it runs: `--help` and `info` load neither Numba nor torch.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from intsim import SPEC_VERSION, __version__
from intsim.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from golden.images import ImageSet
    from intsim.program import Program

ROUNDINGS = ("half_up", "half_even", "half_away", "floor")  # intsim.arithmetic's, without the import of NumPy
MISMATCH, UNUSABLE, BUG, INTERRUPTED, PIPE_CLOSED = 1, 2, 70, 130, 141
PLAIN_WIDTH = 120  # columns of a table that does not go to a terminal


class Tool(click.Group):
    """The group of all commands, which turns every way to end into an exit status and at most one sentence."""

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
            return complain(problem)
        except MemoryError:
            return complain("not enough memory")
        except Exception:
            import traceback

            traceback.print_exc()
            return BUG


def complain(problem: object) -> int:
    click.echo(f"intsim: {' '.join(str(problem).split())}", err=True)
    return UNUSABLE


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


# Options that several commands share

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


# Helpers


def load(model: Path | None) -> tuple[Program, bytes]:
    """The Program of `--model` and the bytes of its file."""
    from intsim import embedded
    from intsim.program_file import load_program

    path = embedded.program_path() if model is None else model
    program = load_program(path)
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


# Commands


@cli.command()
@model_option
@click.option("--layers", multiple=True, metavar="GLOB", help="List these tensors, such as 'layers.3.*'.")
@json_option
def info(model: Path | None, layers: tuple[str, ...], json_to: str | None) -> None:
    """Show what a Program is: its size, its widths, its tensors.

    JSON: name, profile, sha256, spec, rounding, image, classes, provenance; operators: [{kind, count, constants,
    accumulator_bits, proven_bits}]; tensors: {name: {role, axes, shape, bits, signed, exponent}} of those listed.
    """
    from fnmatch import fnmatchcase

    program, data = load(model)
    names = [n for n in program.tensors if any(fnmatchcase(n, glob) for glob in layers)]
    if layers and not names:
        raise UserError(f"no tensor matches {' '.join(layers)!r}; names look like {program.logits}")
    height, width, channels = program.image
    with result(json_to) as (found, out):
        found.update(identity(program), spec=SPEC_VERSION, rounding=program.rounding)
        found["image"] = {"height": height, "width": width, "channels": channels}
        found.update(classes=program.classes, provenance=program.provenance, operators=kinds(program))
        head = table("Program", program.name)
        head.add_row("hash", program.digest)
        head.add_row("profile, rounding", f"{program.profile}, {program.rounding}")
        head.add_row("image", f"{height} x {width} x {channels}, uint8")
        head.add_row("classes", f"{len(program.classes)}: {', '.join(program.classes[:10])}")
        head.add_row("integers stored", f"{sum(a.size for a in program.arrays.values()):,} in {len(data):,} bytes")
        for key, value in program.provenance.items():
            head.add_row(key, value if isinstance(value, str) else json.dumps(value))
        out.print(head)
        numbers = ("count", "integers stored", "accumulator bits", "proven to need")
        every = table("operators", *numbers, numbers=numbers)
        for row in found["operators"]:
            bits = [str(row[key] or "") for key in ("accumulator_bits", "proven_bits")]
            every.add_row(row["kind"], str(row["count"]), f"{row['constants']:,}", *bits)
        out.print(every)
        if not layers:
            return
        found["tensors"] = {}
        listed = table("tensor", "role", "shape", "axes", "bits", "exponent", "scale", numbers=("bits", "exponent"))
        for name in names:
            t = program.tensors[name]
            fields = t.to_json()
            del fields["terms"]
            found["tensors"][name] = fields
            parts = [
                f"{term.axis} {'offsets' if term.shifts is None else 'groups << ' + ' '.join(map(str, term.shifts))}"
                for term in t.terms
            ]
            width_text = f"{'s' if t.signed else 'u'}{t.bits}"
            exponent = "" if t.exponent is None else str(t.exponent)
            shape = " x ".join(map(str, t.shape))
            listed.add_row(name, t.role, shape, ", ".join(t.axes), width_text, exponent, "; ".join(parts))
        out.print(listed)


def kinds(program: Program) -> list[dict[str, Any]]:
    """One row for each kind of operator: how many, how many stored integers, accumulator bits declared and needed."""
    from intsim.arithmetic import bits_needed
    from intsim.validate import check_operator

    rows: dict[str, dict[str, Any]] = {}
    for op in program.operators:
        row = rows.setdefault(
            op.kind, {"kind": op.kind, "count": 0, "constants": 0, "accumulator_bits": None, "proven_bits": None}
        )
        row["count"] += 1
        row["constants"] += sum(program.arrays[name].size for name in op.constants.values())
        for port, bound in check_operator(program, op).items():
            needed = bits_needed(int(bound.low.min()), int(bound.high.max()))
            row["proven_bits"] = max(row["proven_bits"] or 0, needed)
            row["accumulator_bits"] = max(row["accumulator_bits"] or 0, program.tensors[op.tensor(port)].bits)
    return list(rows.values())


@cli.command()
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@model_option
@crop_option
@threads_option
@json_option
def run(
    images: tuple[str, ...], model: Path | None, center_crop: bool, threads: int | None, json_to: str | None
) -> None:
    """Classify images with the integer engine.

    IMAGE is an image file of the Program's size, a folder of them or an .npz.
    JSON: program: {name, profile, sha256}; images: [{file, class, class_name, logits, seconds}].
    """
    from golden.engines import make_engine
    from golden.images import open_images

    program, _ = load(model)
    sets = [open_images(path, program.image, classes=program.classes, center_crop=center_crop) for path in images]
    with result(json_to) as (found, out):
        rows = table("image", "class", "largest logits", "ms", numbers=("ms",))
        found["program"] = identity(program)
        found["images"] = []
        engine = None
        with progress_bar("images", sum(map(len, sets))) as update:
            for path, image in ((s.path, image) for s in sets for image in s):
                if engine is None:  # a first run, not timed, for what is only done once
                    engine = make_engine(program, say, threads)
                    engine.run(image.pixels[None])
                start = time.perf_counter()
                logits = engine.run(image.pixels[None])[program.logits].reshape(-1)
                seconds = time.perf_counter() - start
                best = int(logits.argmax())
                file = path if Path(path).is_file() and not path.endswith(".npz") else f"{path}/{image.name}"
                if path.endswith(".npz"):
                    file = str(Path(path).parent / image.name)
                found["images"].append(
                    {
                        "file": file,
                        "class": best,
                        "class_name": program.classes[best],
                        "logits": [int(v) for v in logits],
                        "seconds": round(seconds, 6),
                    }
                )
                order = sorted(range(len(logits)), key=lambda c: (-int(logits[c]), c))[:4]
                largest = ", ".join(f"{program.classes[c]} {int(logits[c])}" for c in order)
                rows.add_row(file, f"{best} {program.classes[best]}", largest, f"{1000 * seconds:.2f}")
                update(len(found["images"]))
        out.print(rows)


@cli.command()
@click.argument("image")
@layers_option
@click.option("--state", is_flag=True, help="Add the scans' abar, b, acc and h at every step.")
@out_option
@model_option
@crop_option
@threads_option
@json_option
def dump(
    image: str,
    layers: tuple[str, ...],
    state: bool,
    out: Path,
    model: Path | None,
    center_crop: bool,
    threads: int | None,
    json_to: str | None,
) -> None:
    """Write chosen integer tensors of one image as .npy and $readmemh hex.

    Without --layers: every tensor but the scans' abar, b, acc and h.  JSON: out, program, source, tensors (as in
    tensors.json, see FORMAT.md).
    """
    from golden.bundle import choose, write_dump
    from golden.engines import make_engine
    from golden.images import open_images

    program, _ = load(model)
    names = choose(program, layers, state)
    images = open_images(image, program.image, center_crop=center_crop)
    if len(images) != 1:
        raise UserError(f"{image}: holds {len(images)} images, dump takes one; 'intsim golden' takes many")
    with result(json_to) as (found, console):
        pixels = next(iter(images))
        written = write_dump(out, program, LateEngine(lambda: make_engine(program, say, threads)), pixels, names=names)
        found.update({"out": str(out), **written})
        rows = table("tensor", "shape", "bits", "exponent", numbers=("bits", "exponent"))
        for name, entry in written["tensors"].items():
            exponent = "" if entry["exponent"] is None else str(entry["exponent"])
            width = f"{'s' if entry['signed'] else 'u'}{entry['bits']}"
            rows.add_row(name, " x ".join(map(str, entry["shape"])), width, exponent)
        console.print(rows)
        console.print(f"{len(written['tensors'])} tensors are in {out}")


class LateEngine:
    """An engine that is made at its first use, when the folder it writes to is known to be good."""

    def __init__(self, make: Callable[[], Any]):
        self.make = make
        self.engine: Any = None

    def run(self, images: Any, taps: Any = ()) -> Any:
        if self.engine is None:
            self.engine = self.make()
        return self.engine.run(images, taps)


@cli.command()
@click.option("--images", "source", help="Image file, folder, class tree or .npz.  [default: the embedded images]")
@click.option("--count", type=click.IntRange(min=1), help="So many images, spread evenly over the set.  [default: all]")
@layers_option
@click.option("--state", is_flag=True, help="Add the scans' abar, b, acc and h at every step: most of the bytes.")
@out_option
@model_option
@crop_option
@threads_option
@json_option
@click.pass_obj
def golden(
    command: str,
    source: str | None,
    count: int | None,
    layers: tuple[str, ...],
    state: bool,
    out: Path,
    model: Path | None,
    center_crop: bool,
    threads: int | None,
    json_to: str | None,
) -> None:
    """Write a golden bundle: the Program's constants and every chosen tensor of real images, with a manifest.

    Without --layers: every tensor but the scans' abar, b, acc and h, which --state adds.  FORMAT.md states the files.
    JSON: out, program: {name, profile, sha256}, images, tensors (of each image), bytes, content_sha256.
    """
    from golden.bundle import choose, write_bundle
    from golden.engines import make_engine
    from golden.images import open_images

    program, data = load(model)
    names = choose(program, layers, state)
    images = open_images(
        embedded_images() if source is None else source,
        program.image,
        classes=program.classes,
        count=count,
        center_crop=center_crop,
    )
    with result(json_to) as (found, console):
        with progress_bar("images", len(images)) as update:
            written = write_bundle(
                out,
                program,
                LateEngine(lambda: make_engine(program, say, threads)),
                images,
                names=names,
                command=command,
                time=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                program_file=data,
                progress=update,
            )
        total = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
        found.update(out=str(out), program=identity(program), images=len(images), tensors=len(names), bytes=total)
        found["content_sha256"] = written["content_sha256"]
        rows = table("image", "label", "class", numbers=("label", "class"))
        for entry in written["images"]:
            label = "" if entry["label"] is None else str(entry["label"])
            rows.add_row(entry["source"], label, f"{entry['class']} {program.classes[entry['class']]}")
        console.print(rows)
        console.print(f"{len(images)} images, {len(names)} tensors of each, {total / 1e6:.1f} MB: {out}")


@cli.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@json_option
@click.pass_context
def verify(context: click.Context, bundle: Path, json_to: str | None) -> None:
    """Check a golden bundle: every hash, every file, and that all parts agree.  Exit status 1 if anything differs.

    JSON: ok, problems: [text].
    """
    from golden.verify import verify as check

    with result(json_to) as (found, out):
        with progress_bar("images") as update:
            problems = check(bundle, update)
        found.update(ok=not problems, problems=problems)
        for problem in problems:
            out.print(problem, soft_wrap=True)
        found_wrong = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        out.print(f"{bundle}: {found_wrong if problems else 'whole'}", soft_wrap=True)
    if problems:
        context.exit(MISMATCH)


@cli.command("eval")
@click.option("--data", help="Class tree, folder with labels.csv, or .npz with labels.  [default: the embedded images]")
@click.option("--engine", type=click.Choice(["int", "float"]), default="int", show_default=True)
@click.option("--count", type=click.IntRange(min=1), help="So many images, spread evenly over the set.  [default: all]")
@click.option("--batch", type=click.IntRange(1, 4096), default=64, show_default=True, help="Images at a time.")
@model_option
@click.option(
    "--checkpoint", type=click.Path(path_type=Path), help="For the float engine.  [default: the embedded checkpoint]"
)
@crop_option
@threads_option
@json_option
def evaluate(
    data: str | None,
    engine: str,
    count: int | None,
    batch: int,
    model: Path | None,
    checkpoint: Path | None,
    center_crop: bool,
    threads: int | None,
    json_to: str | None,
) -> None:
    """Top-1 over labelled images: of the integer Program, or of the float checkpoint in torch.

    JSON: engine, model, top1 (percent), n, correct, seconds.
    """
    from golden.images import open_images

    if engine == "int" and checkpoint is not None:
        raise UserError("--checkpoint is for --engine float; --model names the Program of --engine int")
    if engine == "float" and model is not None:
        raise UserError("--model is for --engine int; --checkpoint names the checkpoint of --engine float")
    place = embedded_images() if data is None else data
    with result(json_to) as (found, out):
        if engine == "int":
            program, _ = load(model)
            size, classes, name = program.image, program.classes, program.name
        else:
            size, classes, name, classify = float_model(checkpoint, threads)
        images = open_images(place, size, classes=classes, count=count, center_crop=center_crop)
        images.require_labels(len(classes))
        if engine == "int":
            classify = integer_model(program, threads)
        correct, seconds = score(images, classify, batch)
        top1 = 100 * correct / len(images)
        found.update(engine=engine, model=name, top1=top1, n=len(images), correct=correct, seconds=round(seconds, 3))
        columns = ("engine", "model", "images", "correct", "top-1 %", "seconds")
        rows = table(*columns, numbers=columns[2:])
        rows.add_row(engine, name, str(len(images)), str(correct), f"{top1:.2f}", f"{seconds:.1f}")
        out.print(rows)


def score(images: ImageSet, classify: Callable[[Any], Any], batch: int) -> tuple[int, float]:
    """(images whose largest logit is their label's, seconds)."""
    import numpy as np

    correct = done = 0
    start = time.perf_counter()
    with progress_bar("images", len(images)) as update:
        for part in images.batches(batch):
            logits = classify(np.stack([image.pixels for image in part]))
            correct += int((logits.argmax(axis=1) == [image.label for image in part]).sum())
            done += len(part)
            update(done)
    return correct, time.perf_counter() - start


def integer_model(program: Program, threads: int | None) -> Callable[[Any], Any]:
    """pixels uint8 [n, H, W, C] -> logits int32 [n, classes], by the engine, its kernels compiled."""
    import numpy as np

    from golden.engines import make_engine

    engine = make_engine(program, say, threads)
    engine.run(np.zeros((1, *program.image), dtype=np.uint8))
    return lambda pixels: engine.run(pixels)[program.logits].reshape(len(pixels), -1)


def need_torch() -> None:
    """Raises UserError where torch is not installed."""
    try:
        import torch  # noqa: F401
    except ImportError as problem:
        raise UserError(f"this needs torch: pip install 'intsim[torch]' ({problem})") from None


def float_model(
    checkpoint: Path | None, threads: int | None
) -> tuple[tuple[int, int, int], list[str], str, Callable[[Any], Any]]:
    """(image size, classes, name, pixels uint8 [n, H, W, C] -> float logits [n, classes]) of a checkpoint in torch."""
    need_torch()
    from bitexact.inference import FloatModel
    from intsim import embedded

    path = embedded.checkpoint_path() if checkpoint is None else checkpoint
    model = FloatModel(path)
    return model.image, model.classes, path.stem, lambda pixels: model.classify(pixels, threads)


def numbers(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    """'a,b,c' as floats."""
    if value is None:
        return None
    try:
        return tuple(float(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r} is not numbers with commas between them") from None


def pixels_wide(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """'224' or '224x160' as (height, width)."""
    if value is None:
        return None
    parts = value.lower().split("x")
    if len(parts) > 2 or not all(part.isascii() and part.isdigit() and 0 < int(part) < 65536 for part in parts):
        raise click.BadParameter(f"{value!r} is neither a side nor HEIGHTxWIDTH in pixels")
    return int(parts[0]), int(parts[-1])


@cli.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--calibration", required=True, help="Image folder, class tree or .npz.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Program file to write; must not exist.")
@click.option("--profile", type=click.Choice(["int8", "wide-state"]), default="int8", show_default=True)
@click.option("--k", type=click.IntRange(1, 4), default=4, show_default=True, help="Groups of a k-scaled tensor.")
@click.option("--search", type=click.Choice(["cosine", "minmax"]), default="cosine", show_default=True)
@click.option("--reparameterize/--no-reparameterize", default=True, show_default=True, help="Rank-1 state exponents.")
@click.option("--fuse/--no-fuse", default=True, show_default=True, help="Fuse the states' factors into x_proj.")
@click.option("--rounding", type=click.Choice(ROUNDINGS), default="half_up", show_default=True)
@click.option(
    "--images", "count", type=click.IntRange(min=1), help="So many, spread evenly over the set.  [default: 256 or all]"
)
@click.option("--image-size", callback=pixels_wide, help="Side or HEIGHTxWIDTH, where the checkpoint does not tell.")
@click.option("--mean", callback=numbers, help="a,b,c on pixels / 255.  [default: the checkpoint's, else ImageNet's]")
@click.option("--std", callback=numbers, help="Likewise.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@crop_option
@json_option
def quantize(
    checkpoint: Path,
    calibration: str,
    out: Path,
    profile: str,
    k: int,
    search: str,
    reparameterize: bool,
    fuse: bool,
    rounding: str,
    count: int | None,
    image_size: tuple[int, int] | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    seed: int,
    center_crop: bool,
    json_to: str | None,
) -> None:
    """Lower a float checkpoint (.pth, .safetensors) to an integer Program, calibrated on images.

    Needs torch.  JSON: out, program: {name, profile, sha256}, images, bytes, seconds.
    """
    need_torch()
    check_target(out, new=True)
    from bitexact.checkpoint import load_checkpoint
    from bitexact.quantize import quantize as lower
    from golden.images import open_images
    from intsim.program_file import save_program

    config, _ = load_checkpoint(checkpoint, image_size)
    size = (config.image_height, config.image_width, config.channels)
    images = open_images(calibration, size, center_crop=center_crop)
    if count is None:
        count = min(len(images), 256)
    images = open_images(calibration, size, count=count, center_crop=center_crop)
    with result(json_to) as (found, console):
        start = time.perf_counter()
        with progress_bar("reading images") as update:
            program = lower(
                checkpoint,
                images.stack(),
                profile=profile,
                k=k,
                search=search,
                reparameterize=reparameterize,
                fuse=fuse,
                rounding=rounding,
                mean=mean,
                std=std,
                seed=seed,
                classes=None,
                progress=update,
            )
        save_program(program, out)
        seconds = time.perf_counter() - start
        size_of = out.stat().st_size
        found.update(out=str(out), program=identity(program), images=count, bytes=size_of, seconds=round(seconds, 3))
        console.print(f"{out}: {program.name}, {program.profile}, {size_of:,} bytes, {count} images, {seconds:.0f} s")
        console.print(f"hash {program.digest}")


if __name__ == "__main__":
    main()
