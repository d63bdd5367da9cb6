"""The arithmetic units: what a line holds, which parameters there are, and the definition of the outputs.

A unit is one class.  `build` makes its case from parameters (widths, rounding mode, ranges), `read` takes the
parameters and the constants from an operator of a Program.  The definitions are the oracle's: `intsim.arithmetic`
and the functions of `intsim.operators`.  A line holds whatever changes from one use of a unit to the next (also
weights, shifts and fraction bits); what is fixed when a unit is built is a parameter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from golden.vectors import UNITS
from golden.vectors.draw import Draw, Generator, Input, Stream, pick
from golden.vectors.lines import Columns, Field
from intsim.arithmetic import Int64, limits, requantize, round_shift, saturate
from intsim.errors import UserError
from intsim.operators import KINDS, View
from intsim.operators.exp2 import exp2
from intsim.operators.rmsnorm import NORMED_BITS, SQUARE_SUM_BITS, normalised_width, reciprocal_root
from intsim.operators.scan import step
from intsim.program import Program
from intsim.roms import exp2_rom

SHIFT_BITS = 6  # holds every effective shift, -31 .. 31
MAX_SHIFT = 31
ACC_BITS = 32

Settings = dict[str, Any]
Tables = dict[str, tuple[Int64, str]]  # field -> rows [rows, size] and the link that picks the row


@dataclass(frozen=True)
class Parameter:
    """An option of a unit.  kind: int, flag, range (LOW:HIGH), list (a,b,c) or mode (of rounding)."""

    name: str
    kind: str
    default: Any
    about: str
    low: int = 0
    high: int = 0


@dataclass(frozen=True)
class Case:
    """A unit with every parameter fixed.

    compute: inputs -> every output by name, int64.  bend, fit: see `draw.Stream`.
    """

    unit: str
    inputs: tuple[Input, ...]
    outputs: tuple[Field, ...]
    compute: Callable[[Columns], dict[str, Int64]] = field(repr=False)
    bend: Callable[[dict[str, Int64], Draw], None] | None = field(default=None, repr=False)
    fit: Callable[[dict[str, Int64]], None] | None = field(default=None, repr=False)

    @property
    def fields(self) -> tuple[Field, ...]:
        """The fields of a line: inputs, then expected outputs."""
        return (*self.inputs, *self.outputs)

    def stream(self, seed: int, level: int, limit: int | None) -> Stream:
        return Stream(self.unit, self.inputs, seed, level, limit, self.bend, self.fit)

    def choose(self, outputs: tuple[str, ...]) -> Case:
        """The same case with these outputs only, in this order."""
        by_name = {f.name: f for f in self.outputs}
        if len(set(outputs)) < len(outputs) or not set(outputs) <= set(by_name):
            known = ", ".join(by_name)
            raise UserError(f"outputs {','.join(outputs)!r} of {self.unit} must be some of {known}, each once")
        return replace(self, outputs=tuple(by_name[name] for name in outputs))


class Unit:
    """about: one line; section: of SPEC.md; kinds: of operators that `read` takes; usual: outputs of a line unless
    others are asked for; others: which these are."""

    about: ClassVar[str]
    section: ClassVar[str]
    kinds: ClassVar[tuple[str, ...]]
    parameters: ClassVar[tuple[Parameter, ...]]
    usual: ClassVar[tuple[str, ...]] = ()
    others: ClassVar[tuple[str, ...]] = ()

    def build(self, p: Settings) -> Case:
        raise NotImplementedError

    def read(self, v: View, port: str | None) -> tuple[Settings, Tables]:
        raise NotImplementedError

    def case(self, settings: Mapping[str, Any], outputs: tuple[str, ...] = ()) -> Case:
        """The case of these parameters; the others have their defaults."""
        made = self.build({p.name: p.default for p in self.parameters} | dict(settings))
        return made.choose(outputs or self.usual or tuple(f.name for f in made.outputs))

    def of_operator(self, program: Program, name: str, port: str | None, outputs: tuple[str, ...] = ()) -> Case:
        """The case of an operator: its widths, rounding mode and constants.

        Raises UserError if there is no such operator, or it is of a kind that does not hold the unit.
        """
        op = next((op for op in program.operators if op.name == name), None)
        if op is None:
            like = [op.name for op in program.operators if op.kind in self.kinds]
            raise UserError(f"the Program has no operator {name!r}; for this unit there are {_listed(like)}")
        if op.kind not in self.kinds:
            raise UserError(f"operator {name} is of kind {op.kind}; this unit needs {' or '.join(self.kinds)}")
        if any(op.tensor(made) in program.narrowed for made in op.outputs):
            program.require_full_width("units compute at full width")
        settings, tables = self.read(View(program, op), port)
        made = self.case(settings, outputs)
        inputs = [
            replace(f, table=tables[f.name][0], link=tables[f.name][1]) if f.name in tables else f for f in made.inputs
        ]
        return replace(made, inputs=tuple(inputs))


def _listed(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") if names else "none"


# Parameters and fields that several units have


def _int(name: str, default: int, low: int, high: int, about: str) -> Parameter:
    return Parameter(name, "int", default, about, low, high)


ROUNDING = Parameter("rounding", "mode", "half_up", "Rounding mode.")
UNSIGNED = Parameter("unsigned", "flag", False, "The output is unsigned.")
OUT_BITS = _int("out_bits", 8, 1, 32, "Bits of the output.")
X_BITS = _int("x_bits", 8, 2, 8, "Bits of the activation, signed.")
W_BITS = _int("w_bits", 8, 2, 8, "Bits of the weight, signed.")


def _shifts(default: tuple[int, int]) -> Parameter:
    return Parameter("shifts", "range", default, "Shifts of the requantization.", -MAX_SHIFT, MAX_SHIFT)


def _shift(name: str, span: tuple[int, int], about: str, count: int = 0) -> Input:
    return Input(name, SHIFT_BITS, True, count, about, low=span[0], high=span[1])


def _rows(*columns: Int64) -> list[Int64]:
    """Different rows of scalar columns, each as a table [rows, 1]."""
    rows = np.unique(np.stack(columns, axis=1), axis=0)
    return [rows[:, i : i + 1] for i in range(rows.shape[1])]


def _fit_addend(name: str, bits: int, added: Callable[[Columns], Int64]) -> Callable[[dict[str, Int64]], None]:
    """Moves the addend `name` so far that addend + added stays in `bits` signed bits, as SPEC 7 proves it does."""
    low, high = limits(bits, True)

    def fit(x: dict[str, Int64]) -> None:
        rest = added(x)
        x[name] = np.clip(x[name], low - rest, high - rest)

    return fit


def _need(condition: bool, problem: str) -> None:
    if not condition:
        raise UserError(problem)


def near_ties(draw: Draw, s: Int64, low: int, high: int) -> Int64:
    """Values that round_shift by s takes to low - 2 .. high + 2, on a tie or 1 beside it."""
    k = pick(draw("tie"), high - low + 5) + low - 2
    beside = pick(draw("beside"), 3) - 1
    right = np.maximum(s, 0)
    return (k << right) + np.where(s > 0, np.int64(1) << np.maximum(right - 1, 0), 0) + beside


# The units


class Requantize(Unit):
    about = "out = sat(round_shift(v, s))"
    section = "2"
    kinds = ("patch_embed", "linear", "conv1d", "rmsnorm", "scan", "gate")
    parameters = (
        _int("in_bits", 32, 2, 32, "Bits of the accumulator v, signed."),
        OUT_BITS,
        UNSIGNED,
        _shifts((-MAX_SHIFT, MAX_SHIFT)),
        ROUNDING,
    )

    def build(self, p: Settings) -> Case:
        v = Input("v", p["in_bits"], True, 0, "accumulator")
        s = _shift("s", p["shifts"], "shift, right if positive")
        out = Field("out", p["out_bits"], not p["unsigned"])
        low, high = out.limits()

        def bend(x: dict[str, Int64], draw: Draw) -> None:
            chosen = pick(draw("bend"), 3) == 0
            x["v"] = np.where(chosen, np.clip(near_ties(draw, x["s"], low, high), *v.range), x["v"])

        def compute(x: Columns) -> dict[str, Int64]:
            return {"out": requantize(x["v"], x["s"], out.bits, out.signed, p["rounding"])}

        return Case("requantize", (v, s), (out,), compute, bend)

    def read(self, v: View, port: str | None) -> tuple[Settings, Tables]:
        kind = v.op.kind
        ports = [q for q in v.op.outputs if v.output(q).role in ("output", "state")]
        chosen = ports[-1] if port is None and len(ports) == 1 or kind == "scan" and port is None else port
        if chosen not in ports:
            raise UserError(f"operator {v.op.name} requantizes to {', '.join(ports)}: choose one with --port")
        out = v.output(chosen)
        in_bits = ACC_BITS
        if kind == "scan" and chosen == "h":
            shift = np.array([v.op.attributes["abar_fraction"]])
        elif kind == "scan":
            shift = v.array("y_shift")[:, None] + v.out_shifts("y", "token")
        elif kind == "gate":
            shift = v.array("shift")[:, None] + v.out_shifts("out", "token")
        elif kind == "linear":
            start, stop = next((a, b) for q, a, b in KINDS["linear"].segments(v) if q == chosen)  # type: ignore[attr-defined]
            shift = v.array("shift")[start:stop]
        else:
            shift = v.array("shift")
            if kind == "rmsnorm":  # normed * gamma
                in_bits = NORMED_BITS + v.constant("gamma").bits
        settings = {"in_bits": in_bits, "out_bits": out.bits, "unsigned": not out.signed, "rounding": v.rounding}
        return settings, {"s": (np.unique(shift)[:, None], "")}


class Saturate(Unit):
    about = "out = v clamped to the output's range"
    section = "2"
    kinds = ("add", "insert_token")
    parameters = (_int("in_bits", 32, 2, 48, "Bits of v, signed."), OUT_BITS, UNSIGNED)

    def build(self, p: Settings) -> Case:
        out = Field("out", p["out_bits"], not p["unsigned"])

        def compute(x: Columns) -> dict[str, Int64]:
            return {"out": saturate(x["v"], out.bits, out.signed)}

        return Case("saturate", (Input("v", p["in_bits"], True, 0, "value"),), (out,), compute)

    def read(self, v: View, port: str | None) -> tuple[Settings, Tables]:
        out = v.output("out")
        return {"in_bits": out.bits + 1, "out_bits": out.bits, "unsigned": not out.signed}, {}


class Mac(Unit):
    about = "out = acc + ((x * w) << s), never beyond acc's width"
    section = "5.4"
    kinds = ("patch_embed", "linear", "conv1d")
    parameters = (
        _int("acc_bits", ACC_BITS, 8, 48, "Bits of the accumulator, signed."),
        X_BITS,
        W_BITS,
        Parameter("shifts", "range", (0, 15), "Group shifts.", 0, 15),
    )

    def build(self, p: Settings) -> Case:
        bits, most = p["acc_bits"], p["x_bits"] + p["w_bits"] - 2 + p["shifts"][1]
        _need(most < bits - 1, f"a product of {most + 2} bits (shift included) does not fit {bits} bits of accumulator")
        inputs = (
            Input("acc", bits, True, 0, "accumulator before"),
            Input("x", p["x_bits"], True, 0, "activation"),
            Input("w", p["w_bits"], True, 0, "weight"),
            Input("s", 4, False, 0, "group shift, left", low=p["shifts"][0], high=p["shifts"][1]),
        )

        def product(x: Columns) -> Int64:
            return (x["x"] * x["w"]) << x["s"]

        def compute(x: Columns) -> dict[str, Int64]:
            return {"out": x["acc"] + product(x)}

        out = Field("out", bits, True)
        return Case("mac", inputs, (out,), compute, fit=_fit_addend("acc", bits, product))

    def read(self, v: View, port: str | None) -> tuple[Settings, Tables]:
        bits, shift = _activation(v)
        settings = {"x_bits": bits, "w_bits": v.constant("weight").bits}
        return settings, {"s": (np.unique(shift)[:, None], "")}


def _activation(v: View) -> tuple[int, Int64]:
    """Bits and group shifts (channels and tokens) of the activations that a dot product reads, patch_embed's too."""
    if v.op.kind == "patch_embed":
        return 8, np.zeros(1, dtype=np.int64)
    if v.op.kind == "conv1d":  # one channel is in one group: nothing is shifted inside the sum
        return v.input("x").bits, np.zeros(1, dtype=np.int64)
    return v.input("x").bits, np.unique(v.shifts("x", "channel")[:, None] + v.shifts("x", "token"))


class DotK(Unit):
    about = "acc = bias + sum over i of (x[i] * w[i]) << s[i]"
    section = "5.4"
    kinds = ("patch_embed", "linear")
    parameters = (
        _int("k", 64, 1, 4096, "Number of products."),
        _int("acc_bits", ACC_BITS, 8, 48, "Bits of the accumulator, signed."),
        X_BITS,
        W_BITS,
        Parameter("group_shifts", "list", (0, 1, 2, 3), "Shifts of the groups, 0 .. 15.", 0, 15),
    )

    def build(self, p: Settings) -> Case:
        k, bits, shifts = p["k"], p["acc_bits"], p["group_shifts"]
        most = k << (p["x_bits"] + p["w_bits"] - 2 + max(shifts))
        if not p.get("proven"):
            _need(most < 1 << (bits - 1), f"a sum of {k} products reaches {most}, beyond {bits} bits of accumulator")
        inputs = (
            Input("bias", bits, True, 0, "added first"),
            Input("x", p["x_bits"], True, k, "activations"),
            Input("w", p["w_bits"], True, k, "weights"),
            Input("s", 4, False, k, "group shift of each, left", table=_group_rows(k, shifts)),
        )

        def total(x: Columns) -> Int64:
            return ((x["x"] * x["w"]) << x["s"]).sum(axis=1)

        def compute(x: Columns) -> dict[str, Int64]:
            return {"acc": x["bias"] + total(x)}

        return Case("dot_k", inputs, (Field("acc", bits, True),), compute, fit=_fit_addend("bias", bits, total))

    def read(self, v: View, port: str | None) -> tuple[Settings, Tables]:
        weight = v.array("weight")
        bits, _ = _activation(v)
        shifts = np.zeros((1, weight.shape[1]), dtype=np.int64)
        if v.op.kind == "linear":
            shifts = np.unique(v.shifts("x", "channel") + v.shifts("x", "token")[:, None], axis=0)
        settings = {"k": weight.shape[1], "x_bits": bits, "w_bits": v.constant("weight").bits, "proven": True}
        return settings, {"w": (weight, "row"), "bias": (v.array("bias")[:, None], "row"), "s": (shifts, "")}


def _group_rows(k: int, shifts: tuple[int, ...]) -> Int64:
    """Shifts of k elements in groups: all alike, in turns, in blocks, both of these reversed, and 32 at random."""
    levels, place = np.array(shifts, dtype=np.int64), np.arange(k)
    turns, blocks = levels[place % len(levels)], levels[place * len(levels) // k]
    drawn = levels[pick(Generator(0, "dot_k").words("groups", 0, 32, k), len(levels))]
    rows = [*np.repeat(levels[:, None], k, axis=1), turns, blocks, turns[::-1], blocks[::-1], *drawn]
    return np.array(list(dict.fromkeys(map(tuple, rows))), dtype=np.int64)


class Conv4(Unit):
    about = "acc = bias + sum over j of x[j] * w[j]; out = sat(round_shift(acc, s))"
    section = "5.5"
    kinds = ("conv1d",)
    parameters = (
        _int("taps", 4, 1, 16, "Number of taps; x[0] is the oldest token, as in weight's order."),
        X_BITS,
        W_BITS,
        OUT_BITS,
        _shifts((0, MAX_SHIFT)),
        ROUNDING,
    )

    def build(self, p: Settings) -> Case:
        out = Field("out", p["out_bits"], True)
        bias = Input("bias", ACC_BITS, True, 0, "added first")
        inputs = (
            Input("x", p["x_bits"], True, p["taps"], "activations, oldest first"),
            Input("w", p["w_bits"], True, p["taps"], "weights"),
            bias,
            _shift("s", p["shifts"], "shift of the requantization"),
        )
        low, high = out.limits()

        def total(x: Columns) -> Int64:
            return (x["x"] * x["w"]).sum(axis=1)

        def bend(x: dict[str, Int64], draw: Draw) -> None:
            """In a third of the lines acc is on a tie or beside it."""
            chosen = pick(draw("bend"), 3) == 0
            wanted = np.clip(near_ties(draw, x["s"], low, high) - total(x), *bias.range)
            x["bias"] = np.where(chosen, wanted, x["bias"])

        def compute(x: Columns) -> dict[str, Int64]:
            acc = x["bias"] + total(x)
            return {"acc": acc, "out": requantize(acc, x["s"], out.bits, out.signed, p["rounding"])}

        fit = _fit_addend("bias", ACC_BITS, total)
        free = None if p.get("proven") else bend
        return Case("conv4", inputs, (Field("acc", ACC_BITS, True), out), compute, free, fit)

    def read(self, v: View, port: str | None) -> tuple[Settings, Tables]:
        weight, out = v.array("weight"), v.output("out")
        settings = {
            "taps": weight.shape[1],
            "x_bits": v.input("x").bits,
            "w_bits": v.constant("weight").bits,
            "out_bits": out.bits,
            "rounding": v.rounding,
            "proven": True,
        }
        tables = {"w": weight, "bias": v.array("bias")[:, None], "s": v.array("shift")[:, None]}
        return settings, {name: (rows, "channel") for name, rows in tables.items()}


class Rom(Unit):
    about = "out = rom[index][x + 128]"
    section = "5.6"
    kinds = ("rom",)
    parameters = ()

    def case(self, settings: Mapping[str, Any], outputs: tuple[str, ...] = ()) -> Case:
        """Without an operator: the first ROM operator of the embedded model."""
        if "rom" in settings:
            return super().case(settings, outputs)
        from intsim import embedded

        program = embedded.program()
        first = next(op.name for op in program.operators if op.kind == "rom")
        return self.of_operator(program, first, None, outputs)

    def build(self, p: Settings) -> Case:
        rom: Int64 = p["rom"]
        index = Input("index", 4, False, 0, "which ROM", high=len(rom) - 1)
        inputs = (index, Input("x", p["x_bits"], True, 0, "code; entry x + 128"))

        def compute(x: Columns) -> dict[str, Int64]:
            return {"out": rom[x["index"], x["x"] + 128]}

        return Case("rom", inputs, (Field("out", p["bits"], p["signed"]),), compute)

    def read(self, v: View, port: str | None) -> tuple[Settings, Tables]:
        out = v.output("out")
        return {"rom": v.array("rom"), "x_bits": v.input("x").bits, "bits": out.bits, "signed": out.signed}, {}


class Exp2(Unit):
    about = "abar = 2^-(p / 2^f) with m fraction bits"
    section = "5.7"
    kinds = ("scan",)
    parameters = (
        _int("fraction_bits", 15, 1, 15, "m, the fraction bits of abar."),
        Parameter("fractions", "range", (0, 31), "Fraction bits f of p.", 0, 31),
        ROUNDING,
    )

    def build(self, p: Settings) -> Case:
        m = p["fraction_bits"]
        rom = np.array(exp2_rom(), dtype=np.int64)
        low, high = p["fractions"]
        inputs = (
            Input("p", 16, False, 0, "product delta * A"),
            Input("f", 5, False, 0, "fraction bits of p", low=low, high=high),
        )

        def compute(x: Columns) -> dict[str, Int64]:
            return {"abar": exp2(x["p"], x["f"], m, rom, p["rounding"])}

        return Case("exp2", inputs, (Field("abar", m + 1, False),), compute)

    def read(self, v: View, port: str | None) -> tuple[Settings, Tables]:
        settings = {"fraction_bits": v.op.attributes["abar_fraction"], "rounding": v.rounding}
        return settings, {"f": (np.unique(v.array("A_fraction"))[:, None], "")}


WIDTH = _int("width", 128, 1, 2047, "D, the number of channels.")


class Rsqrt(Unit):
    about = "rsqrt = isqrt(floor(d_norm * 2^52 / w)), w = square_sum * 2^2k with 31 or 32 bits"
    section = "5.3"
    kinds = ("rmsnorm",)
    parameters = (WIDTH,)

    def build(self, p: Settings) -> Case:
        d_norm, _ = normalised_width(p["width"])
        total = Input("square_sum", SQUARE_SUM_BITS, False, 0, "eps_q and the sum of squares", low=1, high=1 << 42)
        top = d_norm << 52
        low, high = (math.isqrt(top >> n) for n in (32, 30))

        def bend(x: dict[str, Int64], draw: Draw) -> None:
            """In half of the lines the quotient is next to a square."""
            root = low + 1 + pick(draw("root"), high - low - 1)
            w = np.clip(np.int64(top) // (root * root) + pick(draw("beside"), 3) - 1, 1 << 30, (1 << 32) - 1)
            near = w << 2 * pick(draw("scale"), 5)
            x["square_sum"] = np.where(pick(draw("bend"), 2) == 0, near, x["square_sum"])

        def compute(x: Columns) -> dict[str, Int64]:
            root, k = reciprocal_root(x["square_sum"], d_norm)
            return {"rsqrt": root, "k": k}

        outputs = (Field("rsqrt", 17, False), Field("k", 5, True, 0, "half of the shift to w, left if positive"))
        return Case("rsqrt", (total,), outputs, compute, bend)

    def read(self, v: View, port: str | None) -> tuple[Settings, Tables]:
        return {"width": v.input("x").shape[1]}, {}


class RmsNorm(Unit):
    about = "one token's RMSNorm: square_sum, rsqrt, normed, out"
    section = "5.3"
    kinds = ("rmsnorm",)
    usual = ("out",)
    others = ("square_sum", "rsqrt", "normed")
    parameters = (
        WIDTH,
        _int("x_bits", 16, 2, 16, "Bits of the residual, signed."),
        _int("gamma_bits", 12, 2, 12, "Bits of gamma, signed."),
        OUT_BITS,
        _int("eps_q", 1, 1, 1 << 40, "Added to the sum of squares."),
        _shifts((0, 24)),
        ROUNDING,
    )

    def build(self, p: Settings) -> Case:
        width, mode = p["width"], p["rounding"]
        d_norm, a = normalised_width(width)
        out = Field("out", p["out_bits"], True, width)
        inputs = (
            Input("x", p["x_bits"], True, width, "residual"),
            Input("gamma", p["gamma_bits"], True, width),
            _shift("s", p["shifts"], "shifts of the requantization", width),
        )

        def compute(x: Columns) -> dict[str, Int64]:
            q = x["x"]
            square_sum = (q * q).sum(axis=1) + p["eps_q"]
            rsqrt, k = reciprocal_root(square_sum, d_norm)
            normed = round_shift(q * rsqrt[:, None], (14 + a - k)[:, None], mode)
            y = requantize(normed * x["gamma"], x["s"], out.bits, True, mode)
            return {"square_sum": square_sum, "rsqrt": rsqrt, "normed": normed, "out": y}

        outputs = (
            Field("square_sum", SQUARE_SUM_BITS, True),
            Field("rsqrt", 17, False),
            Field("normed", NORMED_BITS, True, width),
            out,
        )
        return Case("rmsnorm", inputs, outputs, compute)

    def read(self, v: View, port: str | None) -> tuple[Settings, Tables]:
        settings = {
            "width": v.input("x").shape[1],
            "x_bits": v.input("x").bits,
            "gamma_bits": v.constant("gamma").bits,
            "out_bits": v.output("out").bits,
            "eps_q": v.op.attributes["eps_q"],
            "rounding": v.rounding,
        }
        return settings, {"gamma": (v.array("gamma")[None], "constants"), "s": (v.array("shift")[None], "constants")}


class ScanStep(Unit):
    about = "one token of one channel of the scan, all states: abar, b, acc, h, y_acc, y"
    section = "5.7"
    kinds = ("scan",)
    usual = ("h", "y_acc", "y")
    others = ("abar", "b", "acc")
    parameters = (
        _int("states", 16, 1, 256, "N, states of a channel."),
        _int("delta_bits", 8, 1, 8, "Bits of delta, unsigned."),
        _int("u_bits", 8, 2, 8, "Bits of u, signed."),
        _int("b_bits", 8, 2, 8, "Bits of B, signed."),
        _int("c_bits", 8, 2, 8, "Bits of C, signed."),
        _int("a_bits", 8, 1, 8, "Bits of A, unsigned."),
        _int("state_bits", 8, 2, 16, "Bits of h, signed."),
        _int("fraction_bits", 15, 1, 15, "m, the fraction bits of abar."),
        _int("d_bits", 24, 2, 24, "Bits of D, signed."),
        _int("y_bits", 8, 2, 8, "Bits of y, signed."),
        ROUNDING,
    )

    def build(self, p: Settings) -> Case:
        n, m, h_bits, mode = p["states"], p["fraction_bits"], p["state_bits"], p["rounding"]
        # The largest token shift with which D u and the sum over n fit y_acc whatever they are.
        room = limits(ACC_BITS, True)[1] - (1 << (p["d_bits"] + p["u_bits"] - 2))
        most = min(15, (room // (n << (h_bits + p["c_bits"] - 2))).bit_length() - 1)
        _need(most >= 0, f"a sum over {n} states of {h_bits} bits, and D of {p['d_bits']} bits, do not fit y_acc")
        most = 15 if p.get("proven") else most
        y = Field("y", p["y_bits"], True)
        rom = np.array(exp2_rom(), dtype=np.int64)
        inputs = (
            Input("delta", p["delta_bits"], False),
            Input("u", p["u_bits"], True),
            Input("B", p["b_bits"], True, n),
            Input("C", p["c_bits"], True, n),
            Input("h_before", h_bits, True, n, "state after the token before, 0 at the first"),
            Input("A", p["a_bits"], False, n, "constant of the channel"),
            Input("f", 5, False, 0, "A_fraction of the channel"),
            Input("D", p["d_bits"], True, 0, "constant of the channel"),
            _shift("b_shift", (-MAX_SHIFT, MAX_SHIFT if p.get("proven") else MAX_SHIFT - most), "of the channel"),
            _shift("y_shift", (-MAX_SHIFT, MAX_SHIFT if p.get("proven") else MAX_SHIFT - 15), "of the channel"),
            Input("token_shift", 4, False, 0, "state_token_shift of this token", high=most),
            Input("shift_before", 4, False, 0, "state_token_shift of the token before", high=most),
            Input("y_group", 4, False, 0, "group shift of y at this token"),
        )

        def compute(x: Columns) -> dict[str, Int64]:
            here = x["token_shift"]
            state = requantize(x["h_before"], (here - x["shift_before"])[:, None], h_bits, True, mode)
            abar = exp2(x["delta"][:, None] * x["A"], x["f"][:, None], m, rom, mode)
            made = step(abar, x["delta"] * x["u"], x["B"], state, x["b_shift"] + here, m, h_bits, mode)
            made["y_acc"] = x["D"] * x["u"] + ((made["h"] * x["C"]).sum(axis=1) << here)
            made["y"] = requantize(made["y_acc"], x["y_shift"] + x["y_group"], y.bits, True, mode)
            return made

        outputs = (
            Field("abar", m + 1, False, n),
            Field("b", 31, True, n),
            Field("acc", ACC_BITS, True, n),
            Field("h", h_bits, True, n),
            Field("y_acc", ACC_BITS, True),
            y,
        )
        return Case("scan_step", inputs, outputs, compute)

    def read(self, v: View, port: str | None) -> tuple[Settings, Tables]:
        s_l = v.array("state_token_shift")
        settings = {
            "states": v.input("B").shape[1],
            "delta_bits": v.input("delta").bits,
            "u_bits": v.input("u").bits,
            "b_bits": v.input("B").bits,
            "c_bits": v.input("C").bits,
            "a_bits": v.constant("A").bits,
            "proven": True,
            "state_bits": v.output("h").bits,
            "fraction_bits": v.op.attributes["abar_fraction"],
            "d_bits": v.constant("D").bits,
            "y_bits": v.output("y").bits,
            "rounding": v.rounding,
        }
        channel = {"A": v.array("A")}
        for name, role in (("f", "A_fraction"), ("D", "D"), ("b_shift", "b_shift"), ("y_shift", "y_shift")):
            channel[name] = v.array(role)[:, None]
        before = np.concatenate([s_l[:1], s_l[:-1]])
        here, before, group = _rows(s_l, before, v.out_shifts("y", "token"))
        token = {"token_shift": here, "shift_before": before, "y_group": group}
        tables = {name: (rows, "channel") for name, rows in channel.items()}
        return settings, tables | {name: (rows, "token") for name, rows in token.items()}


class Gate(Unit):
    about = "acc = ((y << y_left) + (y_b << y_b_left)) * g; out = sat(round_shift(acc, s))"
    section = "5.8"
    kinds = ("gate",)
    parameters = (
        _int("y_bits", 8, 2, 8, "Bits of y and y_b, signed."),
        _int("g_bits", 8, 2, 8, "Bits of g, signed."),
        OUT_BITS,
        Parameter("alignments", "range", (0, 15), "Left shifts of y and y_b.", 0, 31),
        _shifts((0, MAX_SHIFT)),
        ROUNDING,
    )

    def build(self, p: Settings) -> Case:
        low, high = p["alignments"]
        if not p.get("proven"):
            most = p["y_bits"] + p["g_bits"] - 1 + high
            _need(most < ACC_BITS, f"an alignment of {high} makes acc {most + 1} bits wide, {ACC_BITS} are allowed")
        out = Field("out", p["out_bits"], True)
        inputs = (
            Input("y", p["y_bits"], True, 0, "forward"),
            Input("y_b", p.get("y_b_bits") or p["y_bits"], True, 0, "backward"),
            Input("g", p["g_bits"], True, 0, "silu(z)"),
            Input("y_left", 5, False, 0, "alignment and group shift of y", low=low, high=high),
            Input("y_b_left", 5, False, 0, "the same of y_b", low=low, high=high),
            _shift("s", p["shifts"], "shift of the requantization"),
        )

        def compute(x: Columns) -> dict[str, Int64]:
            acc = ((x["y"] << x["y_left"]) + (x["y_b"] << x["y_b_left"])) * x["g"]
            return {"acc": acc, "out": requantize(acc, x["s"], out.bits, True, p["rounding"])}

        return Case("gate", inputs, (Field("acc", ACC_BITS, True), out), compute)

    def read(self, v: View, port: str | None) -> tuple[Settings, Tables]:
        out, attributes = v.output("out"), v.op.attributes
        y_left = attributes["y_align"] + v.shifts("y", "token")
        y_b_left = (attributes["y_b_align"] + v.shifts("y_b", "token"))[::-1]
        settings = {
            "y_bits": v.input("y").bits,
            "y_b_bits": v.input("y_b").bits,
            "g_bits": v.input("g").bits,
            "out_bits": out.bits,
            "rounding": v.rounding,
            "alignments": (0, 31),
            "shifts": (-MAX_SHIFT, MAX_SHIFT),
            "proven": True,
        }
        s = v.array("shift")[:, None] + v.out_shifts("out", "token")
        every = np.broadcast_to(y_left, s.shape), np.broadcast_to(y_b_left, s.shape), s
        names = ("y_left", "y_b_left", "s")
        rows = _rows(*(part.reshape(-1) for part in every))
        return settings, {name: (column, "use") for name, column in zip(names, rows, strict=True)}


UNIT: dict[str, Unit] = dict(
    zip(
        UNITS,
        (
            Requantize(),
            Saturate(),
            Mac(),
            DotK(),
            Conv4(),
            Rom(),
            Exp2(),
            Rsqrt(),
            RmsNorm(),
            ScanStep(),
            Gate(),
        ),
        strict=True,
    )
)
