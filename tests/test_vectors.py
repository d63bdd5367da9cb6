"""Unit vectors: right by an independent computation, the same everywhere, and a judge that nothing escapes."""

from __future__ import annotations

import hashlib
import io
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import golden
from golden.cli import cli
from golden.vectors import UNITS
from golden.vectors.draw import EXHAUSTIVE, Generator, boundary_values
from golden.vectors.judge import judge
from golden.vectors.lines import Field, encode, from_digits, to_digits
from golden.vectors.units import UNIT, Case
from intsim import embedded
from intsim.arithmetic import ROUNDINGS, limits
from intsim.errors import UserError
from intsim.operators import View
from intsim.oracle import Oracle
from intsim.roms import exp2_rom
from intsim.synthetic import Size, random_program

ROOT = Path(golden.__file__).parent.parent
SIZE = Size((10, 11, 3), patch=3, stride=3, width=12, depth=1, inner=24, states=8, dt_rank=3, taps=4, classes=5)


def run(*args: object, given: bytes | str = b"") -> Any:
    return CliRunner().invoke(cli, [str(a) for a in args], input=given)


def text(case: Case, level: int = 1, count: int = 300, seed: int = 0, step: int = 1 << 30) -> bytes:
    """The lines of a stream, made in chunks of `step`."""
    stream = case.stream(seed, level, count)
    parts = []
    for start in range(0, stream.count, step):
        x = stream.chunk(start, min(step, stream.count - start))
        parts.append(encode(case.fields, {**x, **case.compute(x)}))
    return b"".join(parts)


def answered(case: Case, lines: bytes) -> list[list[str]]:
    """Lines as words, with the expected outputs once more as a right DUT's answers."""
    words = [line.split() for line in lines.decode().splitlines()]
    return [line + line[len(case.inputs) :] for line in words]


def joined(lines: list[list[str]]) -> bytes:
    return "".join(" ".join(line) + "\n" for line in lines).encode()


def verdict(case: Case, lines: list[list[str]] | bytes, **options: Any) -> Any:
    return judge(case, io.BytesIO(lines if isinstance(lines, bytes) else joined(lines)), **options)


# --- The definitions again, in Python integers, from SPEC.md ---------------------------------------------------------


def integers(word: str, field: Field) -> Any:
    """An integer, or a list, from a word."""
    value = int(word, 16)
    assert len(word) == -(-field.bits * max(field.count, 1) // 4) and value < 1 << (field.bits * max(field.count, 1))
    parts = [value // 2 ** (field.bits * i) % 2**field.bits for i in range(max(field.count, 1))]
    if field.signed:
        parts = [p - 2**field.bits if p >= 2 ** (field.bits - 1) else p for p in parts]
    return parts if field.count else parts[0]


def rounded(v: int, s: int, mode: str) -> int:
    if s <= 0:
        return v * 2**-s
    down, rest = divmod(v, 2**s)
    twice = 2 * rest - 2**s
    if mode == "floor" or twice < 0:
        return down
    if twice > 0:
        return down + 1
    return {"half_up": down + 1, "half_away": down + 1 if v > 0 else down, "half_even": down + down % 2}[mode]


def clamp(v: int, bits: int, signed: bool = True) -> int:
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    return max(low, min(high, v))


def abar(p: int, f: int, m: int, mode: str) -> int:
    t = p * 2 ** (19 - f) if f <= 19 else p // 2 ** (f - 19)
    whole, rest = divmod(t, 2**19)
    j, r = divmod(rest, 2**12)
    a, b = exp2_rom()[j : j + 2]
    return rounded(a * 4096 - (a - b) * r, min(29 - m + whole, 31), mode)


def root_of(square_sum: int, width: int) -> tuple[int, int, int]:
    """(rsqrt, k, a)"""
    a = 0
    while width * 4 ** (a + 1) < 1024:
        a += 1
    k = (32 - square_sum.bit_length()) // 2
    w = square_sum * 4**k if k >= 0 else square_sum // 4**-k
    return math.isqrt(width * 4**a * 2**52 // w), k, a


@cache
def embedded_rom() -> Any:
    return embedded.program().arrays["layers.0.mixer.silu_z.rom"]


def again(unit: str, x: dict[str, Any], p: dict[str, Any]) -> dict[str, Any]:
    """Every output of a line."""
    mode = p.get("rounding", "half_up")
    out_bits = p.get("out_bits", 8)
    if unit == "requantize":
        return {"out": clamp(rounded(x["v"], x["s"], mode), out_bits, not p.get("unsigned"))}
    if unit == "saturate":
        return {"out": clamp(x["v"], out_bits, not p.get("unsigned"))}
    if unit == "mac":
        return {"out": x["acc"] + x["x"] * x["w"] * 2 ** x["s"]}
    if unit == "dot_k":
        return {"acc": x["bias"] + sum(a * b * 2**s for a, b, s in zip(x["x"], x["w"], x["s"], strict=True))}
    if unit == "conv4":
        acc = x["bias"] + sum(a * b for a, b in zip(x["x"], x["w"], strict=True))
        return {"acc": acc, "out": clamp(rounded(acc, x["s"], mode), out_bits)}
    if unit == "rom":
        return {"out": int(embedded_rom()[x["index"]][x["x"] + 128])}
    if unit == "exp2":
        return {"abar": abar(x["p"], x["f"], p.get("fraction_bits", 15), mode)}
    if unit == "rsqrt":
        r, k, _ = root_of(x["square_sum"], p.get("width", 128))
        return {"rsqrt": r, "k": k}
    if unit == "rmsnorm":
        square_sum = p.get("eps_q", 1) + sum(q * q for q in x["x"])
        r, k, a = root_of(square_sum, len(x["x"]))
        normed = [rounded(q * r, 14 + a - k, mode) for q in x["x"]]
        out = [clamp(rounded(n * g, s, mode), out_bits) for n, g, s in zip(normed, x["gamma"], x["s"], strict=True)]
        return {"square_sum": square_sum, "rsqrt": r, "normed": normed, "out": out}
    if unit == "scan_step":
        m, bits, here = p.get("fraction_bits", 15), p.get("state_bits", 8), x["token_shift"]
        made: dict[str, Any] = {key: [] for key in ("abar", "b", "acc", "h")}
        for b_in, a, before in zip(x["B"], x["A"], x["h_before"], strict=True):
            state = clamp(rounded(before, here - x["shift_before"], mode), bits)
            b = rounded(x["delta"] * x["u"] * b_in, x["b_shift"] + here, mode)
            made["b"].append(max(-(2**30) + 1, min(2**30 - 1, b)))
            made["abar"].append(abar(x["delta"] * a, x["f"], m, mode))
            made["acc"].append(made["abar"][-1] * state + made["b"][-1])
            made["h"].append(clamp(rounded(made["acc"][-1], m, mode), bits))
        y_acc = x["D"] * x["u"] + sum(h * c for h, c in zip(made["h"], x["C"], strict=True)) * 2**here
        y = clamp(rounded(y_acc, x["y_shift"] + x["y_group"], mode), p.get("y_bits", 8))
        return {**made, "y_acc": y_acc, "y": y}
    assert unit == "gate"
    acc = (x["y"] * 2 ** x["y_left"] + x["y_b"] * 2 ** x["y_b_left"]) * x["g"]
    return {"acc": acc, "out": clamp(rounded(acc, x["s"], mode), out_bits)}


VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *[("requantize", {"rounding": mode}) for mode in ROUNDINGS],
    ("requantize", {"in_bits": 19, "out_bits": 5, "unsigned": True, "shifts": (-3, 7), "rounding": "half_even"}),
    ("saturate", {}),
    ("saturate", {"in_bits": 33, "out_bits": 13, "unsigned": True}),
    ("mac", {}),
    ("mac", {"acc_bits": 20, "x_bits": 5, "w_bits": 3, "shifts": (0, 6)}),
    ("dot_k", {"k": 8}),
    ("dot_k", {"k": 13, "x_bits": 7, "w_bits": 5, "group_shifts": (0, 3), "acc_bits": 25}),
    ("conv4", {"rounding": "half_away"}),
    ("conv4", {"taps": 3, "x_bits": 3, "out_bits": 6, "shifts": (-2, 9), "rounding": "half_even"}),
    ("rom", {}),
    *[("exp2", {"fraction_bits": m, "rounding": mode}) for m, mode in zip((15, 8, 1, 15), ROUNDINGS, strict=True)],
    *[("rsqrt", {"width": width}) for width in (1, 128, 1023, 2047)],
    ("rmsnorm", {"width": 6, "eps_q": 77, "rounding": "half_even"}),
    ("rmsnorm", {"width": 33, "x_bits": 12, "gamma_bits": 7, "out_bits": 6, "shifts": (-3, 12)}),
    *[("scan_step", {"states": 3, "rounding": mode}) for mode in ROUNDINGS],
    ("scan_step", {"states": 5, "state_bits": 16, "fraction_bits": 9, "d_bits": 13, "y_bits": 7, "delta_bits": 6}),
    ("gate", {"rounding": "half_even"}),
    ("gate", {"y_bits": 5, "g_bits": 7, "out_bits": 4, "alignments": (1, 9), "shifts": (-4, 20)}),
]


@pytest.mark.parametrize("level", [1, 2])
@pytest.mark.parametrize(("unit", "settings"), VARIANTS, ids=lambda v: v if isinstance(v, str) else str(len(v)))
def test_lines_are_right(unit: str, settings: dict[str, Any], level: int) -> None:
    known = UNIT[unit]
    case = known.case(settings, known.usual + known.others)
    lines = text(case, level, 250, seed=5)
    assert lines.count(b"\n") == 250
    for line in lines.decode().split("\n")[:-1]:
        values = {f.name: integers(word, f) for word, f in zip(line.split(" "), case.fields, strict=True)}
        inputs = {f.name: values[f.name] for f in case.inputs}
        assert again(unit, inputs, settings) == {f.name: values[f.name] for f in case.outputs}


def test_every_operator_of_the_oracle_is_what_the_units_say() -> None:
    """A random Program's tensors, put into the units' cases, come out again."""
    program = random_program(4, SIZE, k=4, rounding="half_even", state_bits=16, extreme=0.2)
    image = np.random.default_rng(3).integers(0, 256, program.image, dtype=np.uint8)
    values = {name: v.astype(np.int64) for name, v in Oracle(program).run_one(image).items()}

    def check(unit: str, op: str, x: dict[str, Any], expected: dict[str, Any], port: str | None = None) -> None:
        case = UNIT[unit].of_operator(program, op, port)
        assert {f.name for f in case.inputs} == set(x)
        for f in case.inputs:  # what the oracle met is in the domain that the unit accepts
            assert f.range[0] <= x[f.name].min() and x[f.name].max() <= f.range[1]
        made = case.compute(x)
        for name, value in expected.items():
            assert np.array_equal(made[name], value), f"{unit} {op} {name}"

    for op in program.operators:
        v = View(program, op)
        inputs = {port: values[name] for port, name in op.inputs.items()}
        out = {port: values[op.tensor(port)] for port in op.outputs}
        if op.kind == "linear":
            weight, (tokens, rows) = v.array("weight"), out["acc"].shape
            t, o = (part.reshape(-1) for part in np.indices((tokens, rows)))
            shift = v.shifts("x", "channel")[None, :] + v.shifts("x", "token")[t][:, None]
            x = {"bias": v.array("bias")[o], "x": inputs["x"][t], "w": weight[o], "s": shift}
            check("dot_k", op.name, x, {"acc": out["acc"].reshape(-1)})
            for segment in op.attributes["segments"]:
                part = out["acc"][:, segment["start"] : segment["stop"]]
                s = np.broadcast_to(v.array("shift")[segment["start"] : segment["stop"]], part.shape)
                x = {"v": part.reshape(-1), "s": s.reshape(-1)}
                check("requantize", op.name, x, {"out": out[segment["port"]].reshape(-1)}, segment["port"])
        elif op.kind == "conv1d":
            rows = inputs["x"][::-1] if op.attributes["reverse"] else inputs["x"]
            padded = np.concatenate([np.zeros((3, rows.shape[1]), dtype=np.int64), rows])
            for t in range(len(rows)):
                x = {"x": padded[t : t + 4].T, "w": v.array("weight"), "bias": v.array("bias"), "s": v.array("shift")}
                check("conv4", op.name, x, {"acc": out["acc"][t], "out": out["out"][t]})
        elif op.kind == "rom":
            index = np.broadcast_to(v.array("rom_index"), inputs["x"].shape)
            x = {"index": index.reshape(-1), "x": inputs["x"].reshape(-1)}
            check("rom", op.name, x, {"out": out["out"].reshape(-1)})
        elif op.kind == "rmsnorm":
            n = len(inputs["x"])
            x = {"x": inputs["x"], "gamma": np.tile(v.array("gamma"), (n, 1)), "s": np.tile(v.array("shift"), (n, 1))}
            check("rmsnorm", op.name, x, out)
            check("rsqrt", op.name, {"square_sum": out["square_sum"]}, {"rsqrt": out["rsqrt"]})
        elif op.kind == "gate":
            y_left = op.attributes["y_align"] + v.shifts("y", "token")
            y_b_left = (op.attributes["y_b_align"] + v.shifts("y_b", "token"))[::-1]
            s = v.array("shift") + v.out_shifts("out", "token")[:, None]
            for c in range(s.shape[1]):
                x = {"y": inputs["y"][:, c], "y_b": inputs["y_b"][::-1, c], "g": inputs["g"][:, c]}
                x |= {"y_left": y_left, "y_b_left": y_b_left, "s": s[:, c]}
                check("gate", op.name, x, {"acc": out["acc"][:, c], "out": out["out"][:, c]})
        elif op.kind == "scan":
            s_l, group = v.array("state_token_shift"), v.out_shifts("y", "token")
            channels = inputs["u"].shape[1]
            for t in range(len(s_l)):
                x = {port: inputs[port][t] for port in ("delta", "u")}
                x |= {port: np.tile(inputs[port][t], (channels, 1)) for port in ("B", "C")}
                x["h_before"] = out["h"][t - 1] if t else np.zeros_like(out["h"][0])
                x |= {"A": v.array("A"), "f": v.array("A_fraction"), "D": v.array("D")}
                x |= {"b_shift": v.array("b_shift"), "y_shift": v.array("y_shift")}
                tokens_ = {"token_shift": s_l[t], "shift_before": s_l[max(t - 1, 0)], "y_group": group[t]}
                x |= {name: np.full(channels, value) for name, value in tokens_.items()}
                check("scan_step", op.name, x, {port: out[port][t] for port in ("abar", "b", "acc", "h", "y_acc", "y")})


# --- The same everywhere ---------------------------------------------------------------------------------------------

DIGESTS = {
    "requantize": "3115309a0eacf8943fc8fe63e37069d8320fae35a8bae19e1a1e4db4c578eed6",
    "saturate": "873025b1f8f4d7330fc9fbb8c15e911686e04684fe69bfbda0b5dc4128b2c59d",
    "mac": "cf3eccef0734d309a4c55cf31a0e5a876efb1ef4ce5a7e5d9560ab5db76a4ae7",
    "dot_k": "64a252a7a88706f5a314d7d3af08cbdd0385e93bc7d787067457cabe47cf6f94",
    "conv4": "d9354ff137def5d4286ac58f759e0db9d4e193da632a2bd1de1055af67d532b2",
    "rom": "83c6ddf558569c7f8ce91d21dc75f77ca38afc5ccf0f14e7c34e6e737381f8a0",
    "exp2": "b8646e83d7428a7629bef537f9ab32c9d75e74659dda9926cca2d5e4badbca06",
    "rsqrt": "656526157c35aab4bb6b51c0b503199e00432c5eaa0a24f84cf65509c062b2ee",
    "rmsnorm": "38714613b693148ec4dff3d96c280176d7289c3fd955f084c090722689e55481",
    "scan_step": "9bb28ab84dc035fa2e68e4d4ca673ff25c2b1ce1d99e852d4b829b30fb676f6b",
    "gate": "2a39efa9098dd5a273d85b05efbd26a95fac50b21e30e4efd198c13153cddf46",
}


@pytest.mark.parametrize("unit", UNITS)
def test_streams_do_not_change(unit: str) -> None:
    """SHA-256 of 2,000 lines of each level: not a bit depends on NumPy's version, the machine or the chunk size."""
    case = UNIT[unit].case({})
    both = [text(case, level, 2000, seed=42) for level in (1, 2)]
    assert both == [text(case, level, 2000, seed=42, step=61) for level in (1, 2)]
    if unit != "rom":  # its whole domain is less
        assert both[0] not in (both[1], text(case, 1, 2000, seed=43))
    assert hashlib.sha256(both[0] + both[1]).hexdigest() == DIGESTS[unit]


def test_the_generator_is_splitmix64() -> None:
    """FORMAT.md's formula, in Python integers."""
    key = int.from_bytes(hashlib.sha256(b"9 mac acc value").digest()[:8], "little")

    def word(counter: int) -> int:
        z = (key + (counter + 1) * 0x9E3779B97F4A7C15) % 2**64
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
        return z ^ z >> 31

    generator = Generator(9, "mac")
    assert generator.words("acc value", 100, 3).tolist() == [word(i) for i in (100, 101, 102)]
    rows = ((15, 16, 17), (18, 19, 20))
    assert generator.words("acc value", 5, 2, 3).tolist() == [[word(i) for i in row] for row in rows]


def test_boundary_values() -> None:
    found = set(boundary_values(8, True, -128, 127).tolist())
    assert {0, 1, -1, 127, 126, -128, -127, 63, 64, 65, -63, -64, -65, 0x55, 0xAA - 256} <= found
    assert boundary_values(4, False, 0, 15).tolist() == [0, 1, 2, 3, 4, 5, 7, 8, 9, 10, 14, 15]
    assert boundary_values(6, True, -3, 5).tolist() == [-3, -2, -1, 0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("unit", ["requantize", "mac", "gate"])
def test_level_2_has_all_pairs(unit: str) -> None:
    """Of every two inputs, each pair of boundary values; mac's acc may be moved so that the sum fits."""
    case = UNIT[unit].case({})
    stream = case.stream(0, 2, None)
    columns = stream.chunk(0, stream.count)
    for i, left in enumerate(case.inputs):
        for right in case.inputs[i + 1 :]:
            if unit == "mac" and "acc" in (left.name, right.name):
                continue
            seen = set(zip(columns[left.name].tolist(), columns[right.name].tolist(), strict=True))
            assert {(a, b) for a in left.edges.tolist() for b in right.edges.tolist()} <= seen


def test_the_sum_reaches_both_ends_of_the_accumulator() -> None:
    for unit, name, settings in (("mac", "out", {}), ("dot_k", "acc", {"k": 6}), ("conv4", "acc", {})):
        case = UNIT[unit].case(settings)
        stream = case.stream(0, 2, None)
        made = case.compute(stream.chunk(0, stream.count))[name]
        assert (made.min(), made.max()) == limits(32, True)


def test_level_1_of_requantize_reaches_every_corner() -> None:
    """All 256 outputs, all shifts, and ties: results that two modes round apart."""
    case = UNIT["requantize"].case({})
    x = case.stream(0, 1, 100_000).chunk(0, 100_000)
    assert len(np.unique(case.compute(x)["out"])) == 256 and len(np.unique(x["s"])) == 63
    results = {mode: UNIT["requantize"].case({"rounding": mode}).compute(x)["out"] for mode in ROUNDINGS}
    for a in ROUNDINGS:
        for b in ROUNDINGS:
            assert a == b or (results[a] != results[b]).sum() > 500


@pytest.mark.parametrize(
    ("unit", "settings", "count"),
    [
        ("saturate", {"in_bits": 11}, 2048),
        ("requantize", {"in_bits": 9, "shifts": (-2, 8)}, 512 * 11),
        ("exp2", {"fractions": (11, 11)}, 65536),
        ("rom", {}, 3 * 256),
        ("dot_k", {"k": 2, "x_bits": 3, "w_bits": 2, "acc_bits": 8, "group_shifts": (0,)}, None),
    ],
)
def test_small_domains_are_run_through(unit: str, settings: dict[str, Any], count: int | None) -> None:
    case = UNIT[unit].case(settings)
    for level in (1, 2):
        stream = case.stream(0, level, None)
        assert stream.exhaustive and stream.domain <= EXHAUSTIVE and stream.count == (count or stream.domain)
        columns = stream.chunk(0, stream.count)
        table = np.concatenate([columns[f.name].reshape(stream.count, -1) for f in case.inputs], axis=1)
        if unit != "dot_k":  # there bias is moved
            assert len(np.unique(table, axis=0)) == stream.count
    assert not case.stream(0, 1, 100).exhaustive


# --- The judge -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", UNITS)
def test_the_judge_sees_every_bit(unit: str) -> None:
    """Each single bit of each answer, flipped: status 1, at that line and output.  Of an expected field: no line."""
    known = UNIT[unit]
    small = {"dot_k": {"k": 5}, "rmsnorm": {"width": 5}, "scan_step": {"states": 2}}.get(unit, {})
    case = known.case(small, known.usual + known.others)
    lines = answered(case, text(case, 1, 12, seed=3))
    assert verdict(case, lines).lines == 12
    outputs = len(case.outputs)
    for row in (0, 7, 11):
        for column, field in enumerate([*case.outputs, *case.outputs], start=len(case.inputs)):
            for bit in range(field.bits * field.size):
                word = lines[row][column]
                flipped = [list(line) for line in lines]
                flipped[row][column] = f"{int(word, 16) ^ 1 << bit:0{len(word)}x}"
                if column < len(case.inputs) + outputs:
                    with pytest.raises(UserError, match=rf"line {row + 1}: the expected {field.name} is"):
                        verdict(case, flipped)
                    continue
                found = verdict(case, flipped)
                assert (found.errors, found.lines, found.first.line) == (1, row + 1, row + 1)
                assert found.first.output == field.name
                element, place = divmod(bit, field.bits)
                assert found.first.element == (element if field.count else None)
                assert int(found.first.expected, 16) ^ int(found.first.actual, 16) == 1 << place


def test_the_loop_of_the_command_line() -> None:
    made = run("vectors", "requantize", "--count", 3000, "--rounding", "half_even", "--seed", 8)
    assert made.exit_code == 0
    lines = [line.split() for line in made.stdout.splitlines()]
    options = ("--rounding", "half_even", "--seed", 8, "--count", 3000)
    right = joined([[*line, line[2]] for line in lines])
    said = run("judge", "requantize", "--rounding", "half_even", given=right)
    assert (said.exit_code, said.stdout) == (0, "requantize: 3,000 lines, no error\n")
    assert run("judge", "requantize", "--complete", *options, given=right).exit_code == 0
    cut = b"".join(right.splitlines(keepends=True)[:-1])
    assert run("judge", "requantize", "--rounding", "half_even", given=cut).exit_code == 0
    said = run("judge", "requantize", "--complete", *options, given=cut)
    assert said.exit_code == 2 and "ends after line 2,999 of 3,000" in said.stderr
    said = run("judge", "requantize", "--complete", *options[:-1], 2999, given=right)
    assert said.exit_code == 2 and "line 3000: the stream has 2,999 lines only" in said.stderr
    said = run("judge", "requantize", "--complete", *options[:2], "--seed", 9, "--count", 3000, given=right)
    assert said.exit_code == 2 and "line 1: the inputs are not those of this line" in said.stderr
    said = run("judge", "requantize", given=right)  # half_up gives other expected outputs
    assert said.exit_code == 2 and "the expected out is" in said.stderr
    # A DUT that rounds in another mode, and hands on what it likes as expected.
    other = UNIT["requantize"].case({})
    x = {f.name: np.array([integers(line[i], f) for line in lines], dtype=np.int64) for i, f in enumerate(other.inputs)}
    wrong = [f"{int(v) & 255:02x}" for v in other.compute(x)["out"]]
    number = sum(a[2] != b for a, b in zip(lines, wrong, strict=True))
    assert number > 10
    given = joined([[*line, answer] for line, answer in zip(lines, wrong, strict=True)])
    said = run("judge", "requantize", *options, "--all", "--json", "-", given=given)
    found = json.loads(said.stdout)
    assert said.exit_code == 1 and (found["errors"], found["lines"], found["ok"]) == (number, 3000, False)
    first = next(i for i, (a, b) in enumerate(zip(lines, wrong, strict=True)) if a[2] != b)
    assert [found["first"][key] for key in ("line", "expected", "actual")] == [first + 1, lines[first][2], wrong[first]]
    forged = joined([[*line[:2], answer, answer] for line, answer in zip(lines, wrong, strict=True)])
    assert run("judge", "requantize", *options, given=forged).exit_code == 2


def test_the_sentence_has_line_inputs_expected_and_actual() -> None:
    said = run("judge", "requantize", given="00000045 30 7f 7f\n00000181 08 02 01\n")
    assert said.exit_code == 1
    assert said.stdout == (
        "requantize: line 2: out must be 02 (2), the DUT gave 01 (1); inputs: v = 00000181 (385), s = 08 (8)\n"
    )


@pytest.mark.parametrize(
    ("given", "status", "message"),
    [
        ("", 2, "no line to judge"),
        ("\n", 2, "line 1: it has 0 words, must have 4: v s out out(DUT)"),
        ("00000180 08 02\n", 2, "line 1: it has 3 words"),
        ("00000180 08 02 02 02\n", 2, "line 1: it has 5 words"),
        ("00000180 08 02 02", 2, "line 1: it does not end with a line feed"),
        ("00000180 08 02 02\n0000018g 08 02 02\n", 2, "line 2: v is '0000018g'"),
        ("000000180 108 02 02\n", 2, "line 1: s is '108', wider than 6 bits"),
        ("00000180 20 02 02\n", 2, "line 1: s is 20 (-32), allowed are -31 .. 31"),
        ("00000180 08 02 fffffffe\n", 2, "wider than 8 bits"),
        ("-0000180 08 02 02\n", 2, "line 1: v is '-0000180'"),
        ("0x000180 08 02 02\n", 2, "line 1: v is '0x000180'"),
        ("xxxxxxxx 08 02 02\n", 2, "line 1: v is 'xxxxxxxx', must be a hexadecimal word"),
        ("\xff\x00 08 02 02\n", 2, "line 1: v is"),
        ("00000180 08 02 0x\n", 1, "the DUT gave 0x (unknown bits)"),
        ("00000180 08 02 zz\n", 1, "the DUT gave zz (unknown bits)"),
        ("00000180 08 02 01\n00000180 08 02\n", 1, "line 1: out must be 02"),  # the error comes first
        ("00000180 08 02 02\n00000180 08 03 01\n00000180 08 02 01\n", 2, "line 2: the expected out is 03 (3)"),
        ("00000180 08 02 02\r\n180 8 2 2\n  0000_0180\t08 02   02  \n00000180 08 02 0_2\n", 0, "4 lines, no error"),
        ("ABCDEF01 1f ff FF\n", 0, "1 lines, no error"),
    ],
)  # fmt: skip
def test_lines_of_any_kind(given: str, status: int, message: str) -> None:
    said = run("judge", "requantize", given=given.encode("latin-1"))
    assert said.exit_code == status, said.output
    assert message in said.output


def test_a_result_outside_the_accumulator_is_no_input() -> None:
    said = run("judge", "mac", given="7fffffff 01 01 0 80000000 80000000\n")
    assert said.exit_code == 2 and "out would leave its 32 bits" in said.stderr


def test_endless_lines_are_refused_in_bounded_memory() -> None:
    class Endless(io.RawIOBase):
        asked = 0

        def read(self, size: int = -1) -> bytes:
            self.asked += 1
            return b"0" * size

    source = Endless()
    with pytest.raises(UserError, match="line 1: it is longer than"):
        judge(UNIT["mac"].case({}), source)  # type: ignore[arg-type]
    assert source.asked == 1


def test_the_reader_may_go_away() -> None:
    """`intsim vectors exp2 | head`: quiet, status 141."""
    command = [sys.executable, "-m", "golden.cli", "vectors", "exp2"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout is not None and running.stderr is not None
        assert running.stdout.readline() == b"0000 00 8000\n"
        running.stdout.close()
        assert running.stderr.read() == b""
        assert running.wait(60) == 141


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("requantize", "--operator", "layers.0.mixer.nothing"), "no operator 'layers.0.mixer.nothing'"),
        (("dot_k", "--operator", "layers.0.mixer.gate"), "is of kind gate; this unit needs patch_embed or linear"),
        (("requantize", "--operator", "layers.0.mixer.in_proj"), "choose one with --port"),
        (("requantize", "--operator", "layers.0.mixer.in_proj", "--port", "y"), "requantizes to x, z"),
        (("mac", "--operator", "layers.0.mixer.in_proj", "--x-bits", "8"), "--x-bits cannot be given too"),
        (("mac", "--model", "x.safetensors"), "need --operator"),
        (("dot_k", "--k", "4096", "--group-shifts", "15"), "beyond 32 bits"),
        (("mac", "--acc-bits", "20"), "does not fit 20 bits"),
        (("scan_step", "--states", "256", "--state-bits", "16"), "do not fit y_acc"),
        (("scan_step", "--states", "256", "--state-bits", "16", "--d-bits", "22"), ""),
        (("rmsnorm", "--outputs", "out,out"), "each once"),
        (("rmsnorm", "--outputs", "nothing"), "must be some of"),
        (("requantize", "--shifts", "5:3"), "is not LOW:HIGH"),
        (("requantize", "--shifts", "-32:3"), "within -31 .. 31"),
        (("nothing",), "No such command"),
    ],
)
def test_unusable_options(args: tuple[str, ...], message: str) -> None:
    said = run("vectors", *args, "--count", "1")
    assert said.exit_code == (2 if message else 0)
    assert message in said.stderr
    assert not message or not said.stdout


@pytest.mark.parametrize("unit", UNITS)
def test_help_shows_the_line(unit: str) -> None:
    for command in ("vectors", "judge"):
        said = run(command, unit, "--help")
        assert said.exit_code == 0
        for field in UNIT[unit].case({}).fields:
            assert any(line.split()[:1] == [field.name] and field.width in line for line in said.stdout.splitlines())


def test_operators_give_widths_modes_and_constants() -> None:
    """Weights, biases and shifts on the lines are rows of the Program's constants."""
    program = embedded.program()
    op = "layers.3.mixer.x_proj_b"
    case = UNIT["dot_k"].of_operator(program, op, None)
    columns = case.stream(0, 1, 500).chunk(0, 500)
    weight, bias = program.arrays[f"{op}.weight"].astype(np.int64), program.arrays[f"{op}.bias"].astype(np.int64)
    rows = {(tuple(w), b) for w, b in zip(weight.tolist(), bias.tolist(), strict=True)}
    assert {(tuple(w), b) for w, b in zip(columns["w"].tolist(), columns["bias"].tolist(), strict=True)} == rows
    shifts = program.shifts(program.operator(op).inputs["x"], "channel")
    assert (columns["s"] == shifts).all() and shifts.any()
    norm = UNIT["rmsnorm"].of_operator(program, "norm_f", None)
    gamma = norm.stream(0, 2, 10).chunk(0, 10)["gamma"]
    assert (gamma == program.arrays["norm_f.gamma"]).all()


@pytest.mark.parametrize("bits", [1, 3, 4, 8, 13, 17, 32, 48])
@pytest.mark.parametrize("count", [0, 1, 5])
def test_words_there_and_back(bits: int, count: int) -> None:
    rng = np.random.default_rng(bits)
    for signed in (False, True):
        field = Field("x", bits, signed, count)
        low, high = field.limits()
        shape = (50, count) if count else (50,)
        values = rng.integers(low, high, shape, dtype=np.int64, endpoint=True)
        values.reshape(-1)[:2] = [low, high][: values.size]
        digits = to_digits(values, field)
        assert digits.shape == (50, field.digits)
        back, bad = from_digits(digits, field)
        assert np.array_equal(back, values) and not bad.any()
        assert [integers(bytes(row).decode(), field) for row in digits] == values.tolist()
        if 4 * field.digits > bits * field.size:  # a bit above the word
            digits = digits.copy()
            digits[0, 0] = ord("f")
            assert from_digits(digits, field)[1][0]


def rate(action: Callable[[], object], lines: int) -> float:
    start = time.perf_counter()
    action()
    return lines / (time.perf_counter() - start) * 60


@pytest.mark.parametrize("unit", ["requantize", "saturate", "mac", "exp2", "rsqrt", "gate"])
def test_scalar_units_stream_a_million_lines_a_minute(unit: str) -> None:
    """And far more: a twentieth of the work must not take a twentieth of a minute even on a busy machine."""
    case = UNIT[unit].case({})
    lines = text(case, 1, 50_000, step=1 << 14)
    assert rate(lambda: text(case, 1, 50_000, step=1 << 14), 50_000) > 1_000_000
    given = joined(answered(case, lines))
    assert rate(lambda: verdict(case, given), 50_000) > 1_000_000
