"""cocotb: the scan element against the oracle's definition, on real and on random data.

Apart from one another: the drivers put tokens on the pins and take results, with random gaps and stalls; the monitors
only watch the handshakes; the model turns the tokens that were seen into what must come out; the checker compares.
BUNDLE (folder), LAYER and CHANNELS come from `run.py` beside this file, as environment variables.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cocotb
import numpy as np
from cocotb.clock import Clock
from cocotb.triggers import FallingEdge, RisingEdge

from golden.vectors.units import UNIT
from intsim.operators import View
from intsim.program_file import load_program

BUNDLE = Path(os.environ["BUNDLE"])
PROGRAM = load_program(BUNDLE / "program.safetensors")
LAYER = f"layers.{os.environ['LAYER']}.mixer"
CHANNELS = int(os.environ["CHANNELS"])
CONSTANTS = ("A", "f", "D", "b_shift", "y_shift")
TOKEN = ("delta", "u", "B", "C", "token_shift", "y_group")
PINS = {"A": "a", "f": "a_fraction", "D": "d", "B": "b_in", "C": "c_in"}  # where the pin has another name
BITS = {"D": 24, "u": 8, "b_shift": 8, "y_shift": 8}  # of signed pins

Fields = dict[str, Any]  # by the names of `intsim vectors scan_step`: integers, or arrays [N]


def word(values: Any, bits: int) -> int:
    """An integer, or integers packed with element 0 lowest, in two's complement masked to `bits`."""
    total = 0
    for i, value in enumerate(np.atleast_1d(values)):
        total |= (int(value) & ((1 << bits) - 1)) << (bits * i)
    return total


@dataclass(frozen=True)
class Result:
    h: int  # packed
    y_acc: int
    y: int


class Driver:
    """Puts constants and tokens on the pins at the falling edge, with gaps; takes results late."""

    def __init__(self, dut: Any, rng: random.Random):
        self.dut, self.rng = dut, rng
        dut.in_valid.value = 0
        cocotb.start_soon(self.stall())

    def put(self, fields: Fields, names: tuple[str, ...]) -> None:
        for name in names:
            pin = getattr(self.dut, PINS.get(name, name))
            pin.value = word(fields[name], BITS.get(name, 8))

    async def reset(self) -> None:
        self.dut.reset.value = 1
        for _ in range(2):
            await FallingEdge(self.dut.clk)
        self.dut.reset.value = 0

    async def token(self, fields: Fields, first: bool) -> None:
        for _ in range(self.rng.choice([0, 0, 0, 1, 5])):
            await FallingEdge(self.dut.clk)
        self.put(fields, TOKEN)
        self.dut.in_first.value = int(first)
        self.dut.in_valid.value = 1
        while True:
            await RisingEdge(self.dut.clk)
            if self.dut.in_ready.value == 1:
                break
        await FallingEdge(self.dut.clk)
        self.dut.in_valid.value = 0
        for name in TOKEN:  # a DUT that reads on would show it
            pin = getattr(self.dut, PINS.get(name, name))
            pin.value = self.rng.getrandbits(len(pin))

    async def stall(self) -> None:
        while True:
            self.dut.out_ready.value = self.rng.choice([0, 1, 1])
            await FallingEdge(self.dut.clk)


class Monitor:
    """Calls `seen` with what the pins hold in each cycle of a handshake."""

    def __init__(self, clk: Any, valid: Any, ready: Any, read: Callable[[], Any], seen: Callable[[Any], None]):
        self.clk, self.valid, self.ready, self.read, self.seen = clk, valid, ready, read, seen
        cocotb.start_soon(self.watch())

    async def watch(self) -> None:
        while True:
            await RisingEdge(self.clk)
            if self.valid.value == 1 and self.ready.value == 1:
                self.seen(self.read())


class Model:
    """What must come out: the definition of `intsim vectors scan_step`, and the state from token to token."""

    def __init__(self) -> None:
        op = f"{LAYER}.scan"
        self.case = UNIT["scan_step"].of_operator(PROGRAM, op, None)
        self.widths = {f.name: f for f in (*self.case.inputs, *self.case.outputs)}
        self.state = np.zeros(self.widths["h"].count, dtype=np.int64)
        self.shift_before = 0

    def unpack(self, name: str, value: int) -> Any:
        """The integers of a field from its bits on the pins."""
        field = self.widths[name]
        parts = [value >> (field.bits * i) & ((1 << field.bits) - 1) for i in range(field.size)]
        if field.signed:
            parts = [part - ((part >> (field.bits - 1)) << field.bits) for part in parts]
        return np.array(parts, dtype=np.int64) if field.count else parts[0]

    def step(self, pins: dict[str, int]) -> Result:
        fields = {name: self.unpack(name, value) for name, value in pins.items() if name != "first"}
        if pins["first"]:
            self.state[:] = 0
            self.shift_before = fields["token_shift"]
        fields |= {"h_before": self.state, "shift_before": self.shift_before}
        made = self.case.compute({name: np.asarray(value, dtype=np.int64)[None] for name, value in fields.items()})
        self.state, self.shift_before = made["h"][0], fields["token_shift"]
        bits = self.widths["h"].bits
        return Result(word(made["h"][0], bits), word(made["y_acc"], 32), word(made["y"], self.widths["y"].bits))


class Checker:
    """Compares results in order."""

    def __init__(self) -> None:
        self.expected: list[Result] = []
        self.actual: list[Result] = []

    def expect(self, result: Result) -> None:
        self.expected.append(result)

    def check(self, result: Result) -> None:
        number = len(self.actual)
        self.actual.append(result)
        assert number < len(self.expected), f"result {number} came without a token"
        assert result == self.expected[number], f"result {number}: {result}, must be {self.expected[number]}"


class Bench:
    """The parts, joined."""

    def __init__(self, dut: Any, seed: int):
        self.dut = dut
        self.driver = Driver(dut, random.Random(seed))
        self.model, self.checker = Model(), Checker()
        cocotb.start_soon(Clock(dut.clk, 10, unit="ns").start())
        tokens = {name: getattr(dut, PINS.get(name, name)) for name in (*CONSTANTS, *TOKEN)}
        tokens["first"] = dut.in_first

        def read_token() -> dict[str, int]:
            bits = {name: f.bits * f.size for name, f in self.model.widths.items()} | {"first": 1}
            return {name: int(pin.value) & ((1 << bits[name]) - 1) for name, pin in tokens.items()}

        def read_result() -> Result:
            return Result(*(int(pin.value) for pin in (dut.h, dut.y_acc, dut.y)))

        def seen(pins: dict[str, int]) -> None:
            self.checker.expect(self.model.step(pins))

        Monitor(dut.clk, dut.in_valid, dut.in_ready, read_token, seen)
        Monitor(dut.clk, dut.out_valid, dut.out_ready, read_result, self.checker.check)

    async def drained(self) -> None:
        """Waits for the result of every token that was taken."""
        for _ in range(1000):
            await FallingEdge(self.dut.clk)
            if len(self.checker.actual) == len(self.checker.expected):
                return
        raise AssertionError("a result is missing")


def channels_of(side: str) -> Iterator[tuple[Fields, list[list[Fields]], list[Result]]]:
    """(constants, frames of tokens, golden results) of channels spread over the layer, from the bundle's npy files."""
    view = View(PROGRAM, PROGRAM.operator(f"{LAYER}.scan{side}"))
    folders = sorted((BUNDLE / "images").iterdir())
    names = [*view.op.inputs.values(), *(view.op.tensor(port) for port in ("h", "y_acc", "y"))]
    frames = [[np.load(folder / f"{name}.npy") for name in names] for folder in folders]
    group = view.out_shifts("y", "token")
    shift = view.array("state_token_shift")
    h_bits, y_bits = view.output("h").bits, view.output("y").bits
    count = view.input("u").shape[1]
    for c in sorted({i * (count - 1) // max(CHANNELS - 1, 1) for i in range(CHANNELS)}):
        constants = {"A": view.array("A")[c], "f": view.array("A_fraction")[c], "D": view.array("D")[c]}
        constants |= {"b_shift": view.array("b_shift")[c], "y_shift": view.array("y_shift")[c]}
        tokens, results = [], []
        for delta, u, b_in, c_in, h, y_acc, y in frames:
            tokens.append(
                [
                    {"delta": delta[t, c], "u": u[t, c], "B": b_in[t], "C": c_in[t], "token_shift": shift[t],
                     "y_group": group[t]}
                    for t in range(len(u))
                ]
            )  # fmt: skip
            results += [
                Result(word(h[t, c], h_bits), word(y_acc[t, c], 32), word(y[t, c], y_bits)) for t in range(len(u))
            ]
        yield constants, tokens, results


async def real(dut: Any, side: str) -> None:
    bench = Bench(dut, seed=1)
    await bench.driver.reset()
    golden: list[Result] = []
    for constants, frames, results in channels_of(side):
        bench.driver.put(constants, CONSTANTS)
        for frame in frames:
            for t, token in enumerate(frame):
                await bench.driver.token(token, first=t == 0)
        await bench.drained()
        golden += results
    assert bench.checker.actual == golden, "the model agrees with the DUT, but not with the bundle"
    dut._log.info("%d tokens equal the bundle's", len(golden))


@cocotb.test()
async def forward(dut: Any) -> None:
    await real(dut, "")


@cocotb.test()
async def backward(dut: Any) -> None:
    await real(dut, "_b")


@cocotb.test()
async def random_constants_and_tokens(dut: Any) -> None:
    """Boundary values and mixes of `intsim vectors scan_step`; sequences of 1 to 6 tokens."""
    bench = Bench(dut, seed=2)
    await bench.driver.reset()
    n = 400
    widths, _ = UNIT["scan_step"].read(View(PROGRAM, PROGRAM.operator(f"{LAYER}.scan")), None)
    del widths["proven"]  # its constants are drawn too
    lines = UNIT["scan_step"].case(widths).stream(7, 1, n).chunk(0, n)
    rng = random.Random(3)
    start = 0
    while start < n:
        length = rng.randint(1, 6)
        bench.driver.put({name: lines[name][start] for name in CONSTANTS}, CONSTANTS)
        for i in range(start, min(start + length, n)):
            await bench.driver.token({name: lines[name][i] for name in TOKEN}, first=i == start)
        await bench.drained()
        start += length
    assert len(bench.checker.actual) == n


@cocotb.test()
async def reset_between_and_within_tokens(dut: Any) -> None:
    """After a reset, also one in the middle of a token, the next sequence comes out right."""
    bench = Bench(dut, seed=4)
    await bench.driver.reset()
    constants, frames, results = next(channels_of(""))
    bench.driver.put(constants, CONSTANTS)
    for cycles in (0, 1, 7, 16, 17):
        await bench.driver.token(frames[0][0], first=True)
        for _ in range(cycles):
            await FallingEdge(dut.clk)
        await bench.driver.reset()
        bench.checker.expected.clear()
        bench.checker.actual.clear()
        for t in range(4):
            await bench.driver.token(frames[0][t], first=t == 0)
        await bench.drained()
        assert bench.checker.actual == results[:4]
