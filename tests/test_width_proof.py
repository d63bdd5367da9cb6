"""SPEC section 12: proven intervals hold and are reached, the scan's is the least one, used bits are the oracle's.

Section 7's own bound, which validation enforces, is tested in test_widths.py.
"""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from intsim import embedded, save_program
from intsim.arithmetic import ROUNDINGS, bit_length, limits, round_shift
from intsim.builder import Builder, Out
from intsim.operators import KINDS, View
from intsim.operators.exp2 import exp2
from intsim.oracle import Oracle
from intsim.program import Operator, Program, Tensor
from intsim.roms import exp2_rom
from intsim.synthetic import Size, random_program
from intsim.validate import check_operator
from intsim.widths import Report, analyse, measure, prove, systemverilog
from intsim.widths.proof import prove_operator
from intsim.widths.ranges import Range, bits_of
from intsim.widths.recurrence import Scan
from intsim.widths.witness import Witness, drive, witnesses

SIZE = Size(image=(6, 9, 3), patch=3, stride=3, width=5, depth=2, inner=7, states=3)
B_LIMIT = 2**30 - 1


@cache
def case(seed: int) -> tuple[Program, np.ndarray, Report]:
    """A random Program, images with extremes, and everything that `intsim widths` finds."""
    size = Size(**{**vars(SIZE), "taps": 4 + seed % 2 * 5})  # 9 taps on 7 tokens: some lie before the first token
    program = random_program(
        seed, size, state_bits=(8, 16, 5)[seed % 3], k=(4, 1)[seed % 3 == 0], rounding=ROUNDINGS[seed % 4],
        activation_bits=8 - seed % 3, extreme=0.2, abar_fraction=(15, 8, 4)[seed % 3],
    )  # fmt: skip
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (4, *size.image), dtype=np.uint8)
    images[1], images[2] = 0, rng.integers(0, 2, size.image) * 255
    return program, images, analyse(program, [images[:3], images[3:]])


SEEDS = range(6)

# --- intervals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_used_within_proven_within_declared_and_within_section_7(seed: int) -> None:
    program, _, report = case(seed)
    registers = {r.name: r for r in report.registers}
    assert len(registers) == len(report.registers), "a name twice"
    assert set(registers) == set(report.usage) and set(registers) >= {*program.tensors, *program.constants} - {"image"}
    for r in report.registers:
        used = report.usage[r.name]
        low, high = r.range.whole
        assert low <= used.low and used.high <= high, r.name
        assert r.proven <= r.declared and max(r.channels) == r.proven, r.name
    for op in program.operators:
        for port, bound in check_operator(program, op).items():
            needed = registers[op.tensor(port)].needed
            rows = len(needed.low)
            assert (needed.low.reshape(rows, -1).min(axis=1) >= bound.low).all(), "looser than section 7"
            assert (needed.high.reshape(rows, -1).max(axis=1) <= bound.high).all(), "looser than section 7"


@pytest.mark.parametrize("seed", SEEDS)
def test_every_tensor_of_each_channel_is_within_its_range(seed: int) -> None:
    program, images, report = case(seed)
    registers = {r.name: r for r in report.registers}
    for image in images:
        for name, values in Oracle(program).run_one(image).items():
            if name == "image":
                continue
            found = registers[name].range
            assert (values >= found.low).all() and (values <= found.high).all(), name


def test_ranges_of_rmsnorm_hold_for_every_square_sum() -> None:
    """One channel at its value, the others anything: normed peaks where rsqrt gains half a unit, at powers of 4."""
    b = Builder("norm", image=(1, 1, 1), classes=["one"])
    b.program.tensors["x"] = Tensor("x", "output", ("token", "channel"), (1, 3), 7, True, 0)
    constants = {"gamma": [1, -5, 2047], "gamma_exponent": [0, 0, 0]}
    op = b.add("rmsnorm", "n", {"x": "x"}, constants, {"eps_q": 3}, {"out": Out(8, 0)})
    ends = Range.of(np.array([-64, -3, 0]), np.array([63, 40, 9]))
    registers = {r.name: r for r in prove_operator(b.program, op, {"x": ends}).registers}
    view = View(b.program, op)
    rows = np.array(list(itertools.product(range(-64, 64), range(-3, 41), range(10))))
    found = KINDS["rmsnorm"].run(view, {"x": rows})
    found["n:w"] = found["square_sum"] << 2 * ((32 - bit_length(found["square_sum"])) // 2)
    found["n:scaled"] = rows * found["rsqrt"][:, None]
    for port in ("square_sum", "rsqrt", "normed", "out", "n:w", "n:scaled"):
        r = registers[port if ":" in port else f"n.{port}"]
        low, high = found[port].min(axis=0), found[port].max(axis=0)
        assert (r.range.low <= low).all() and (high <= r.range.high).all(), port
        if port in ("square_sum", "normed", "out"):
            assert (low - r.range.low <= 1).all() and (r.range.high - high <= 1).all(), f"{port}: loose"


# --- witnesses -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_witnesses_reach_every_end(seed: int) -> None:
    program, _, report = case(seed)
    accumulators = {n for n, t in program.tensors.items() if t.role == "accumulator" and not n.endswith("square_sum")}
    assert set(report.witnesses) == accumulators
    for name, witness in report.witnesses.items():
        assert witness.low <= witness.reached_low and witness.reached_high <= witness.high, name
        if not name.endswith(".y_acc"):  # whose states share their inputs
            assert witness.exact and (witness.reached_low, witness.reached_high) == (witness.low, witness.high), name


def test_a_witness_that_falls_short_says_so() -> None:
    """A bound one too wide is not reached."""
    program, _, _ = case(1)
    ranges = {"image": Range.of(np.zeros(3, dtype=np.int64), np.full(3, 255))}
    proof = prove_operator(program, program.operators[0], ranges)
    acc = next(r for r in proof.registers if r.name.endswith(".acc"))
    acc.range.high[2] += 1
    (witness,) = witnesses(proof)
    assert not witness.exact


def test_the_witness_of_the_patch_embedding_is_an_image() -> None:
    """Its inputs are pixels; a real image of them gives the widest accumulator of the network's first operator."""
    program, _, report = case(2)
    witness = report.witnesses["patch_embed.proj.acc"]
    for end, wanted in (("low", witness.low), ("high", witness.high)):
        image = np.zeros(program.image, dtype=np.uint8)
        image[:3, :3] = witness.inputs[end]["image"]
        assert int(Oracle(program).run_one(image)["patch_embed.proj.acc"][0, witness.channel]) == wanted


# --- the scan's recurrence -------------------------------------------------------------------------------------------


def small_scan(mode: str, m: int, bits: int, s_l: list[int], e_h: int, a: list[int], seed: int) -> tuple[Program, Any]:
    """A scan of few codes: delta 0 .. 3, u and B of 2 bits."""
    b = Builder("scan", image=(1, 1, 1), classes=["one"], rounding=mode)
    tokens, channels, states = len(s_l), len(a), 2
    formats = {"delta": (2, False), "u": (2, True), "B": (2, True), "C": (2, True)}
    for port, (width, signed) in formats.items():
        shape = (tokens, channels if port in ("delta", "u") else states)
        b.program.tensors[port] = Tensor(port, "output", ("token", "channel"), shape, width, signed, 0)
    rng = np.random.default_rng(seed)
    constants = {
        "A": np.stack([a, rng.integers(0, 4, channels)], axis=1), "A_exponent": [-4] * channels, "D": [1] * channels,
        "state_channel_shift": [0] * channels, "state_token_shift": s_l, "exp2_rom": np.array(exp2_rom()),
    }  # fmt: skip
    ports = {port: port for port in formats}
    out = {"h": Out(bits, e_h), "y": Out(8, 0)}
    return b.program, b.add("scan", "s", ports, constants, {"abar_fraction": m}, out)


def rounded(v: int, s: int, mode: str) -> int:
    """round_shift of SPEC section 2 in Python integers."""
    if s <= 0:
        return v << -s
    half, rest = 1 << (s - 1), v - (v >> s << s)
    if mode == "half_even":
        return (v >> s) + int(rest > half or (rest == half and (v >> s) % 2 == 1))
    return (v + {"floor": 0, "half_up": half, "half_away": half - (v < 0)}[mode]) >> s


def reachable(view: View, c: int, n: int, pairs: set[tuple[int, int]]) -> dict[str, tuple[int, int]]:
    """(least, greatest) acc and h that any sequence of any length reaches: every state, by search."""
    m, mode, bits = view.op.attributes["abar_fraction"], view.rounding, view.output("h").bits
    a, fraction = int(view.array("A")[c, n]), int(view.array("A_fraction")[c])
    rom, shift = view.array("exp2_rom"), int(view.array("b_shift")[c])
    low, high = limits(bits, True)
    inputs = sorted({(d, d * u * b) for d in range(4) for u in range(-2, 2) for b in range(-2, 2)})
    steps = {
        s: {
            (int(exp2(d * a, fraction, m, rom, mode)),
             min(max(rounded(dxb, shift + s, mode), -B_LIMIT), B_LIMIT))
            for d, dxb in inputs
        }
        for s, _ in pairs
    }  # fmt: skip
    seen: dict[int, set[int]] = {s: set() for s in steps}
    accs: set[int] = set()
    todo: list[tuple[int, int]] = []

    def take(s: int, before: int) -> None:
        for abar, b in steps[s]:
            acc = abar * before + b
            accs.add(acc)
            h = min(max(rounded(acc, m, mode), low), high)
            if h not in seen[s]:
                seen[s].add(h)
                todo.append((s, h))

    for s in steps:
        take(s, 0)
    while todo:
        r, h = todo.pop()
        for p, s in pairs:
            if p == r:
                take(s, min(max(rounded(h, s - r, mode), low), high))
    states = set().union(*seen.values())
    return {"acc": (min(accs), max(accs)), "h": (min(states), max(states))}


@pytest.mark.parametrize("mode", ROUNDINGS)
@pytest.mark.parametrize("s_l", [[0, 0, 0], [0, 1, 0, 2, 2, 1]])
def test_the_recurrence_is_the_hull_of_all_reachable_states(mode: str, s_l: list[int]) -> None:
    """Against a search of every state."""
    for m, bits, e_h, seed in itertools.product((1, 4, 6), (3, 5), (0, 2), (0, 1)):
        program, op = small_scan(mode, m, bits, s_l, e_h - 2, [0, 1, 2, 3], seed)
        formats = {port: Range.format(program.tensors[port], program.tensors[port].shape[1]) for port in op.inputs}
        registers = {r.name: r for r in prove_operator(program, op, formats).registers}
        pairs = {(s, s) for s in s_l} | set(itertools.pairwise(s_l))
        for c, n in itertools.product(range(4), range(2)):
            for port, (low, high) in reachable(View(program, op), c, n, pairs).items():
                proven = registers[f"s.{port}"].range
                assert (int(proven.low[c, n]), int(proven.high[c, n])) == (low, high), (m, bits, c, n, port)


@pytest.mark.parametrize("mode", ROUNDINGS)
def test_where_the_state_rests_is_where_it_climbs_to(mode: str) -> None:
    """The linear inequalities of SPEC 12.4 against steps until nothing grows; with A-bar of 1 and ties."""
    rng = np.random.default_rng(3)
    for trial in range(30):
        m, bits = int(rng.integers(1, 7)), int(rng.integers(3, 9))
        one, many = 1 << m, (40, 40, int(rng.integers(1, 5)))
        abar = rng.integers(0, one + 1, many) if trial % 3 else one - rng.integers(0, 2, many)
        b_high = rng.integers(-one, (2 << m) + 1, many)
        b_low = -rng.integers(-one, (2 << m) + 1, many)
        empty = np.zeros(0, dtype=np.int64)
        scan = Scan(m, mode, bits, empty, abar, empty, Range(empty, empty), empty)
        low = high = np.zeros(many[:2], dtype=np.int64)
        for _ in range(2 << bits):
            low = np.minimum(low, scan.state(abar * low[..., None] + b_low, m).min(axis=-1))
            high = np.maximum(high, scan.state(abar * high[..., None] + b_high, m).max(axis=-1))
        found = scan.rest((b_low, b_high))
        assert np.array_equal(found.low, low) and np.array_equal(found.high, high), (m, bits)


@pytest.mark.parametrize(("mode", "bits"), list(zip(ROUNDINGS, (8, 16, 16, 8), strict=True)))
def test_the_scan_holds_over_10_000_tokens(mode: str, bits: int) -> None:
    """Adversaries that fill the state and turn when it is full, a token long or thousands, within the proven ranges."""
    program = random_program(4, SIZE, state_bits=bits, rounding=mode, extreme=0.3)
    op = program.operator("layers.1.mixer.scan")
    formats = {
        name: Range.format(program.tensors[name], program.tensors[name].shape[1]) for name in op.inputs.values()
    }
    proof = prove_operator(program, op, formats)
    registers = {r.name: r for r in proof.registers}
    rng = np.random.default_rng(bits)
    tokens, states = 10_000, 3
    s_l = program.arrays[op.constants["state_token_shift"]].astype(int)
    path = np.tile(np.concatenate([s_l, s_l[::-1][1:-1]]), tokens)[:tokens]
    if set(itertools.pairwise(path.tolist())) - {(s, s) for s in s_l} - set(itertools.pairwise(s_l.tolist())):
        path = np.full(tokens, s_l[-1])
    turns = np.where(rng.random(tokens) < 0.01, -1, 1).cumprod()
    for c in (int(program.arrays[op.constants["A"]].min(axis=1).argmin()),):
        delta_high = int(proof.x["delta"].high[c])
        codes = np.where(rng.random(tokens) < 0.7, rng.integers(0, 3, tokens), rng.integers(0, delta_high + 1, tokens))
        u = np.where(turns > 0, int(proof.x["u"].high[c]), int(proof.x["u"].low[c]))
        b_in = np.where(rng.random((tokens, states)) < 0.99, proof.x["B"].high, proof.x["B"].low)
        made = drive(proof.v, c, range(states), codes, path, u, b_in, proof.x["C"].low)
        for port in ("b", "abar", "acc", "h"):
            found = registers[f"{op.name}.{port}"].range
            values = made[port][:, 0, :]
            assert (values >= found.low[c]).all() and (values <= found.high[c]).all(), port
        found = registers[f"{op.name}.y_acc"].range
        assert found.low[c] <= made["y_acc"].min() and made["y_acc"].max() <= found.high[c]
        assert np.abs(made["acc"]).max() < 2**31


@pytest.mark.parametrize("seed", SEEDS)
def test_the_clamp_that_costs_nothing(seed: int) -> None:
    """b clamped to `enough` gives the same states for inputs at their extremes, and its acc fits."""
    program, _, report = case(seed)
    registers = {r.name: r for r in report.registers}
    rng = np.random.default_rng(seed)
    for op in program.operators:
        if op.kind != "scan":
            continue
        v = View(program, op)
        tokens, channels = v.input("u").shape
        x = {
            port: rng.integers(r.low, r.high + 1, (tokens, len(r.low)))
            for port, name in op.inputs.items()
            for r in [registers[name].range]
        }
        made = KINDS["scan"].run(v, x)
        narrow, width = registers[op.tensor("b")].clamped, registers[op.tensor("acc")].enough
        assert narrow is not None and width is not None
        assert width <= registers[op.tensor("acc")].proven
        state = np.zeros_like(made["h"][0])
        m, bits, s_l = op.attributes["abar_fraction"], v.output("h").bits, v.array("state_token_shift")
        low, high = limits(bits, True)
        for t in range(tokens):
            if t:
                state = np.clip(round_shift(state, s_l[t] - s_l[t - 1], v.rounding), low, high)
            acc = made["abar"][t] * state + np.clip(made["b"][t], narrow.low, narrow.high)
            assert -(2 ** (width - 1)) <= acc.min() and acc.max() + 2 ** (m - 1) < 2 ** (width - 1)
            state = np.clip(round_shift(acc, m, v.rounding), low, high)
            assert np.array_equal(state, made["h"][t])


# --- used bits and saturations ---------------------------------------------------------------------------------------


def by_definition(program: Program, op: Operator, t: dict[str, np.ndarray]) -> tuple[dict[str, Any], dict[str, int]]:
    """(integers of every register of SPEC 12.2, number of saturated elements by port), from one image's tensors."""
    v, mode = View(program, op), program.rounding
    x = {port: t[name].astype(np.int64) for port, name in op.inputs.items()}
    o = {port: t[op.tensor(port)].astype(np.int64) for port in op.outputs}
    found: dict[str, Any] = {}
    lost: dict[str, int] = {}

    def quantized(port: str, acc: Any, shift: Any) -> None:
        lost[port] = int((round_shift(acc, shift, mode) != o[port]).sum())

    if op.kind in ("patch_embed", "linear", "conv1d"):
        weight, shift = v.array("weight"), v.array("shift")
        found["shift"] = shift
        if op.kind == "conv1d":
            rows = x["x"][::-1] if op.attributes["reverse"] else x["x"]
            taps = weight.shape[1]
            padded = np.concatenate([np.zeros((taps - 1, rows.shape[1]), dtype=np.int64), rows])
            found["product"] = [weight[:, j] * padded[j : j + len(rows)] for j in range(taps)]
        elif op.kind == "patch_embed":
            blocks = [x["image"][i : i + 3, j : j + 3] for i in (0, 3) for j in (0, 3, 6)]
            found["product"] = [(b.transpose(2, 0, 1).reshape(-1) - 128) * weight for b in blocks]
        else:
            products = x["x"][:, None, :] * weight
            found["product"] = products
            group = v.shifts("x", "channel")
            if group.any() or v.shifts("x", "token").any():
                found["group_sum"] = [products[..., group == s].sum(axis=2) for s in np.unique(group)]
        at = 0
        for port in op.outputs[1:]:
            wide = o[port].shape[1]
            quantized(port, o["acc"][:, at : at + wide], shift[at : at + wide])
            at += wide
    elif op.kind == "insert_token":
        position = op.attributes["position"]
        rows = np.concatenate([x["x"][:position], v.array("cls_token")[None], x["x"][position:]])
        found["sum"] = rows + v.array("pos_embed")
        lost["out"] = int((found["sum"] != o["out"]).sum())
    elif op.kind == "add":
        found["sum"] = x["x"] + x["y"]
        lost["out"] = int((found["sum"] != o["out"]).sum())
    elif op.kind == "rmsnorm":
        k = (32 - bit_length(o["square_sum"])) // 2
        found.update(square=x["x"] ** 2, normed_shift=14 + op.attributes["d_shift"] - k, shift=v.array("shift"))
        found["w"] = [int(s) << 2 * int(i) if i >= 0 else int(s) >> -2 * int(i)
                      for s, i in zip(o["square_sum"], k, strict=True)]  # fmt: skip
        found["scaled"] = x["x"] * o["rsqrt"][:, None]
        found["product"] = o["normed"] * v.array("gamma")
        quantized("out", found["product"], v.array("shift"))
    elif op.kind == "rom":
        found["address"] = x["x"]
    elif op.kind == "gate":
        y = x["y"] << (op.attributes["y_align"] + v.shifts("y", "token"))[:, None]
        y_b = x["y_b"] << (op.attributes["y_b_align"] + v.shifts("y_b", "token"))[:, None]
        found["sum"] = y + y_b[::-1]
        found["shift"] = v.array("shift") + v.out_shifts("out", "token")[:, None]
        quantized("out", o["acc"], found["shift"])
    elif op.kind == "scan":
        m, s_l = op.attributes["abar_fraction"], v.array("state_token_shift")
        p = x["delta"][:, :, None] * v.array("A")
        f = v.array("A_fraction")[None, :, None]
        whole = np.where(f <= 19, p << np.maximum(19 - f, 0), p >> np.maximum(f - 19, 0)) >> 19
        step = np.diff(s_l, prepend=s_l[0])
        before = np.concatenate([np.zeros_like(o["h"][:1]), o["h"][:-1]])
        exact = round_shift(before, step[:, None, None], mode)
        rescaled = np.clip(exact, *limits(v.output("h").bits, True))
        found.update(p=p, abar_shift=np.minimum(29 - m + whole, 31), step=step, rescaled=rescaled)
        found["dxb"] = o["dx"][:, :, None] * x["B"][:, None, :]
        found["b_shift"] = (v.array("b_shift") + s_l[:, None])[:, :, None]
        found["decayed"] = o["abar"] * rescaled
        found["hc"] = o["h"] * x["C"][:, None, :]
        found["sum"] = found["hc"].sum(axis=2)
        found["du"] = v.array("D") * x["u"]
        found["y_shift"] = v.array("y_shift") + v.out_shifts("y", "token")[:, None]
        lost[":rescaled"] = int((exact != rescaled).sum())
        lost["b"] = int((round_shift(found["dxb"], found["b_shift"], mode) != o["b"]).sum())
        quantized("h", o["acc"], m)
        quantized("y", o["y_acc"], found["y_shift"])
    return {f"{op.name}:{name}": values for name, values in found.items()}, {
        op.name + port if port[0] == ":" else op.tensor(port): count for port, count in lost.items()
    }


@pytest.mark.parametrize("seed", SEEDS)
def test_used_and_saturated_are_those_of_the_definitions(seed: int) -> None:
    program, images, report = case(seed)
    low: dict[str, int] = {}
    high: dict[str, int] = {}
    count: dict[str, int] = {}
    for image in images:
        tensors = Oracle(program).run_one(image)
        registers: dict[str, Any] = {name: values for name, values in tensors.items() if name != "image"}
        for op in program.operators:
            found, lost = by_definition(program, op, tensors)
            registers.update(found)
            for name, n in lost.items():
                count[name] = count.get(name, 0) + n
        for name, values in registers.items():
            array = np.array(values)
            low[name] = min(low.get(name, int(array.min())), int(array.min()))
            high[name] = max(high.get(name, int(array.max())), int(array.max()))
    usage = {name: u for name, u in report.usage.items() if name not in program.constants}
    assert set(usage) == set(low)
    for name, used in usage.items():
        assert (used.low, used.high) == (low[name], high[name]), name
        assert used.saturated == count.get(name), name
    assert sum(count.values()) > 0, "nothing saturates, so nothing was shown"


def test_batches_do_not_matter() -> None:
    program, images, report = case(3)
    one_by_one = measure(program, (images[i : i + 1] for i in range(len(images))), threads=1)
    assert one_by_one == report.usage


# --- the report ------------------------------------------------------------------------------------------------------


def test_bits_of() -> None:
    assert [bits_of(0, n, False) for n in (0, 1, 2, 255, 256)] == [1, 1, 2, 8, 9]
    assert [bits_of(*ends, True) for ends in ((0, 0), (-1, 0), (-2, 1), (-128, 127), (-129, 0), (3, 128))] == [
        1, 1, 2, 8, 9, 9
    ]  # fmt: skip


def test_rows_are_what_format_says() -> None:
    _, _, report = case(1)
    rows = json.loads(json.dumps(report.rows()))
    fields = {
        "name", "operator", "operator_kind", "kind", "signed", "declared", "proven", "used", "slack", "low", "high",
        "rounding", "used_low", "used_high", "elements", "saturated",
    }  # fmt: skip
    more = {"enough", "any_order", "channels", "witness"}
    stated = set(re.findall(r"`(\w+)`", (Path(__file__).parent.parent / "golden/FORMAT.md").read_text()))
    assert fields | more <= stated
    for row in rows:
        assert fields <= set(row) <= fields | more
        assert row["slack"] == row["declared"] - row["proven"] >= 0
    assert {row["kind"] for row in rows} == {
        "accumulator", "product", "state", "internal", "output", "shift", "rom", "constant"
    }  # fmt: skip
    summary = {row["register"]: row for row in report.summary()}
    assert summary["scan.acc"]["count"] == 4 and summary["norm.square_sum"]["count"] == 2


def test_systemverilog_is_a_package_of_distinct_names(tmp_path: Path) -> None:
    _, _, report = case(1)
    text = systemverilog(report)
    names = re.findall(r"^  localparam int ([A-Z][A-Z0-9_]*) = \d+;$", text, re.M)
    assert len(names) == len(set(names)) == text.count("localparam")
    scan = next(r for r in report.registers if r.name == "layers.0.mixer.scan_b.acc")
    assert f"LAYERS_0_MIXER_SCAN_B_ACC_PROVEN = {scan.proven};" in text
    package, top = tmp_path / "intsim_widths.sv", tmp_path / "top.sv"
    package.write_text(text)
    top.write_text(f"module top;\n  import intsim_widths::*;\n  logic [{names[0]}-1:0] x;\nendmodule\n")
    lint = ["verilator", "--lint-only", "-Wall", "-Wno-UNUSED", "-Wno-UNDRIVEN"]
    for tool in (lint, ["iverilog", "-g2012", "-t", "null"]):
        if shutil.which(tool[0]):
            done = subprocess.run([*tool, str(package), str(top)], capture_output=True, text=True, timeout=60)
            assert done.returncode == 0, done.stderr


def test_names_that_meet_as_identifiers_are_told_apart() -> None:
    program, _, _ = case(0)
    report = analyse(program, witness=False)
    report.registers[1].name, report.registers[2].name = "a.b_c", "a_b:c"
    text = systemverilog(report)
    names = re.findall(r"int (\w+) =", text)
    assert len(names) == len(set(names))
    assert "A_B_C_PROVEN" in names and "A_B_C_2_PROVEN" in names and not any(n.endswith("_USED") for n in names)


def test_the_report_of_the_embedded_model_is_up_to_date() -> None:
    """tests/reports/widths.json, which the README shows, is what the proof gives."""
    program = embedded.program()
    stated = json.loads((Path(__file__).parent / "reports/widths.json").read_text())["models"][0]
    assert stated["program"]["sha256"] == program.digest and stated["images"] == 64
    found = {row["register"]: row for row in Report(program, prove(program)).summary()}
    for row in stated["rows"]:
        here = found[row["register"]]
        assert [here[f] for f in ("declared", "proven", "enough")] == [row[f] for f in ("declared", "proven", "enough")]
        assert row["used"] <= row["proven"] and row["witness"] in (True, None)


def test_the_command(tmp_path: Path) -> None:
    from golden.cli import cli

    program, images, report = case(0)
    model, npz = tmp_path / "model.safetensors", tmp_path / "images.npz"
    save_program(program, model)
    np.savez(npz, images=images)
    to_json, sv = tmp_path / "w.json", tmp_path / "w.sv"
    base = ["widths", "--model", str(model)]
    assert cli.status([*base, "--images", str(npz), "--json", str(to_json), "--sv", str(sv), "--all"]) == 0
    found = json.loads(to_json.read_text())
    assert found["images"] == 4 and found["registers"] == json.loads(json.dumps(report.rows()))
    assert found["program"]["sha256"] == program.digest and sv.read_text() == systemverilog(report)
    assert cli.status([*base, "--json", str(to_json)]) == 0  # the embedded images are of another size: none is run
    found = json.loads(to_json.read_text())
    assert found["images"] == 0 and all(row["used"] is None for row in found["registers"] if row["kind"] != "constant")
    sv.unlink()
    few = ["--count", "9", "--images", str(npz)]
    for bad in (["--sv", str(tmp_path / "no" / "w.sv")], ["--images", str(model)], few):
        assert cli.status([*base, "--sv", str(sv), *bad]) == 2
    assert not sv.exists()


def test_witness_to_json_has_no_numpy() -> None:
    _, _, report = case(2)
    for witness in report.witnesses.values():
        assert isinstance(witness, Witness)
        json.dumps(witness.to_json())
