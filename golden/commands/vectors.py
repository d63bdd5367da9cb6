"""`intsim vectors`: inputs and expected outputs of one arithmetic unit, and the options that `intsim judge` shares."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from golden.commands.common import examples, load
from golden.vectors import UNITS
from intsim.errors import UserError

if TYPE_CHECKING:
    from golden.vectors.draw import Stream
    from golden.vectors.units import Case, Parameter, Unit

CHUNK_BYTES, CHUNK_LINES = 1 << 20, 1 << 14
OPERATORS = {  # of the embedded model, one of each kind, for the examples
    "patch_embed": "patch_embed.proj",
    "insert_token": "tokens",
    "rmsnorm": "layers.0.norm",
    "linear": "layers.0.mixer.in_proj",
    "conv1d": "layers.0.mixer.conv1d",
    "rom": "layers.0.mixer.silu",
    "scan": "layers.0.mixer.scan",
    "gate": "layers.0.mixer.gate",
    "add": "layers.0.residual",
}


class Span(click.ParamType):
    """LOW:HIGH, or one integer."""

    name = "LOW:HIGH"

    def __init__(self, low: int, high: int):
        self.low, self.high = low, high

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        try:
            parts = [int(part) for part in value.split(":")]
        except ValueError:
            parts = []
        if len(parts) not in (1, 2) or not self.low <= parts[0] <= parts[-1] <= self.high:
            self.fail(f"{value!r} is not LOW:HIGH within {self.low} .. {self.high}", param, context)
        return parts[0], parts[-1]


class Shifts(click.ParamType):
    """Integers, separated by commas."""

    name = "A,B,..."

    def __init__(self, low: int, high: int):
        self.low, self.high = low, high

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        try:
            parts = tuple(int(part) for part in value.split(","))
        except ValueError:
            parts = ()
        if not parts or not all(self.low <= part <= self.high for part in parts):
            self.fail(f"{value!r} is not a list of integers within {self.low} .. {self.high}", param, context)
        return parts


class Units(click.Group):
    """A command for each unit, made when it is asked for."""

    def __init__(self, make: Callable[[str], click.Command], **kw: Any):
        super().__init__(**kw)
        self.make = make

    def list_commands(self, context: click.Context) -> list[str]:
        return list(UNITS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        return self.make(name) if name in UNITS else None


def unit_command(
    name: str, intro: str, example: str, run: Callable[..., None], more: Sequence[click.Parameter]
) -> click.Command:
    """The command of a unit: run(case, stream, **values of `more`).  example: a line of its help."""
    from golden.vectors.units import UNIT

    unit = UNIT[name]
    taken = {p.name for p in unit.parameters}

    def callback(
        seed: int,
        level: str,
        count: int | None,
        model: Path | None,
        operator: str | None,
        port: str | None,
        outputs: str | None,
        **values: Any,
    ) -> None:
        context = click.get_current_context()
        chosen = tuple(outputs.split(",")) if outputs else ()
        given = [p for p in taken if context.get_parameter_source(p) is not click.core.ParameterSource.DEFAULT]
        if operator is None and (model is not None or port is not None):
            raise UserError("--model and --port need --operator NAME, the operator that gives the parameters")
        if operator is not None and given:
            raise UserError(f"--operator gives the parameters, so {_flag(given[0])} cannot be given too")
        if operator is not None:
            program, _ = load(model)
            case = unit.of_operator(program, operator, port, chosen)
        else:
            case = unit.case({p: values[p] for p in taken}, chosen)
        run(case, case.stream(seed, int(level), count), **{k: v for k, v in values.items() if k not in taken})

    count_help = "Lines.  [default: 100,000, or all pairs if they are more; a small domain is run through]"
    options: list[click.Parameter] = [
        click.Option(["--level"], type=click.Choice(["1", "2"]), default="1", show_default=True, help="1: boundary "
                     "values and random mixes; 2: first all pairs of boundary values."),
        click.Option(["--seed"], type=click.IntRange(0, 2**64 - 1), default=0, show_default=True),
        click.Option(["--count"], type=click.IntRange(min=1), help=count_help),
        click.Option(["--operator"], metavar="NAME", help=f"Take widths, rounding mode and constants from this "
                     f"operator ({', '.join(unit.kinds)})."),
        click.Option(["--model", "--program"], type=click.Path(path_type=Path), help="Program file of --operator.  "
                     "[default: the embedded model]"),
        click.Option(["--port"], help="Output of --operator, where it has several."),
        click.Option(["--outputs"], metavar="A,B,...", help="Outputs of a line, in this order."),
        *(_option(p) for p in unit.parameters),
    ]  # fmt: skip
    text = f"{intro}\n\n{line_format(unit)}"
    operator = OPERATORS[next((kind for kind in ("conv1d", "linear") if kind in unit.kinds), unit.kinds[0])]
    ending = examples(
        f"intsim vectors {name} | ./dut | intsim judge {name} --complete",
        example,
        f"intsim vectors {name} --operator {operator} | ./dut | intsim judge {name} --operator {operator}",
    )
    params = [*options, *more]
    return click.Command(name, callback=callback, params=params, short_help=unit.about, help=text, epilog=ending)


def _option(p: Parameter) -> click.Option:
    from intsim.arithmetic import ROUNDINGS

    if p.kind == "flag":
        return click.Option([_flag(p.name)], is_flag=True, default=p.default, help=p.about)
    kinds: dict[str, click.ParamType] = {
        "int": click.IntRange(p.low, p.high),
        "range": Span(p.low, p.high),
        "list": Shifts(p.low, p.high),
        "mode": click.Choice(ROUNDINGS),
    }
    default = p.default
    if p.kind in ("range", "list"):
        default = (":" if p.kind == "range" else ",").join(map(str, default))
    return click.Option([_flag(p.name)], type=kinds[p.kind], default=default, show_default=True, help=p.about)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def line_format(unit: Unit) -> str:
    """The fields of a line with the default parameters, for `--help`."""
    case = unit.case({})
    rows = [("input", f) for f in case.inputs] + [("output", f) for f in case.outputs]
    lines = [f"SPEC {unit.section}: {unit.about}", "", "\b", "A line, with the default parameters:"]
    for kind, f in rows:
        digits = f"{f.digits:>4} digit{'s' if f.digits > 1 else ' '}"
        lines.append(f"  {f.name:<13}{f.width:>9}  {digits}  {kind}{', ' + f.about if f.about else ''}")
    if unit.others:
        lines.append(f"With --outputs also {', '.join(unit.others)}.")
    return "\n".join(lines)


def write(case: Case, stream: Stream) -> None:
    """Writes a stream to standard output."""
    from golden.vectors.lines import encode

    out = sys.stdout.buffer
    width = sum(f.digits + 1 for f in case.fields)
    step = max(1, min(CHUNK_LINES, CHUNK_BYTES // width))
    for start in range(0, stream.count, step):
        inputs = stream.chunk(start, min(step, stream.count - start))
        out.write(encode(case.fields, {**inputs, **case.compute(inputs)}))
    out.flush()


def _vectors(name: str) -> click.Command:
    example = f"intsim vectors {name} --level 2 --seed 1 > {name}.txt"
    return unit_command(name, "Write lines of inputs and expected outputs to standard output.", example, write, [])


command = Units(
    _vectors,
    name="vectors",
    help="""Stream inputs and expected outputs of one arithmetic unit, a line of hexadecimal words each.

    A DUT appends its outputs to each line that it reads, and `intsim judge` says whether they are right.

    A word is in two's complement masked to its bits; a packed word has element 0 in its least significant bits.
    `intsim vectors UNIT --help` shows the fields of a line, golden/FORMAT.md section 13 states everything.
    """,
    epilog=examples(
        "intsim vectors requantize | ./dut | intsim judge requantize",
        "intsim vectors exp2 --rounding half_even > exp2.txt",
        "intsim vectors dot_k --operator layers.3.mixer.dt_proj --level 2 | ./dut",
        "intsim vectors scan_step --operator layers.0.mixer.scan --outputs h,y | ./dut",
    ),
)
