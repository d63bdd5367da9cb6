"""What-ifs (SPEC section 13): narrow accumulators and values, the same integers from everyone, and sweeps."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stranger
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

import golden.classify
from golden.cli import cli
from golden.sweep import Point
from intsim import SPEC_VERSION, embedded
from intsim.arithmetic import wrap
from intsim.engine import Engine, run_operator
from intsim.errors import ProgramError, UserError
from intsim.operators import KINDS, View
from intsim.oracle import Oracle
from intsim.program import Array, Constant, Operator, Program, Tensor, Term
from intsim.program_file import (
    describe,
    from_description,
    load_program,
    parse_program,
    program_bytes,
    save_program,
)
from intsim.synthetic import Size, random_program
from intsim.validate import validate
from intsim.whatif import CLASSES, Rule, _Plan, accumulators, narrow, parse_rule

SMALL = Size((8, 8, 3), 4, 4, 8, 1, 12, 3, 2, 3, 3)
ROUNDINGS = ("half_up", "half_even", "half_away", "floor")


def images_for(program: Program, count: int = 2, seed: int = 0) -> Array:
    images = np.random.default_rng(seed).integers(0, 256, (count + 2, *program.image), dtype=np.uint8)
    images[-2], images[-1] = 0, 255
    return images


def drawn(seed: int) -> Program:
    """A random Program with random widths everywhere, both kinds of overflow mixed."""
    rng = np.random.default_rng(seed)
    size = Size(
        image=(int(rng.integers(4, 10)), int(rng.integers(4, 10)), int(rng.integers(1, 4))),
        patch=3,
        stride=2,
        width=int(rng.integers(1, 20)),
        depth=1,
        inner=int(rng.integers(1, 40)),
        states=int(rng.choice([1, 3, 16, 17])),
        dt_rank=3,
        taps=int(rng.integers(1, 6)),
        classes=4,
    )
    program = random_program(
        seed, size, rounding=ROUNDINGS[seed % 4], k=1 + seed // 4 % 4, state_bits=(8, 16)[seed // 2 % 2], extreme=0.3
    )
    how = ("wrap", "saturate")
    rules = [Rule("accumulators", int(rng.integers(2, 33)), how[seed % 2])]
    rules += [
        Rule(name, int(rng.integers(2, 33)), how[int(rng.integers(2))])
        for name in accumulators(program)
        if rng.random() < 0.6
    ]
    if seed % 2:
        cut = ("saturate", None)
        rules += [
            Rule("states", int(rng.integers(2, 9)), cut[seed // 2 % 2]),
            Rule("a-bar", int(rng.integers(2, 17))),
            Rule("residual", int(rng.integers(2, 17)), cut[seed // 4 % 2]),
            Rule("rom-inputs", int(rng.integers(2, 9)), cut[seed // 8 % 2]),
        ]
    return narrow(program, rules)


def assert_same(expected: dict[str, Array], got: dict[str, Any], program: Program) -> None:
    assert list(expected) == list(got)
    for name, array in expected.items():
        own = np.asarray(got[name])
        wrong = np.argwhere(own.astype(np.int64) != array.astype(np.int64))
        assert len(wrong) == 0, f"{program.tensors[name]} at {wrong[0].tolist()}: {own[tuple(wrong[0])]}"


# --- The same integers from everyone ---------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(16))
def test_engine_and_torch_give_the_oracles_integers(seed: int) -> None:
    program = drawn(seed)
    images = images_for(program, seed=seed)
    oracle = Oracle(program)
    expected = oracle.run(images, ["*"])
    for threads in (1, 2):
        engine = Engine(program, threads=threads)
        found = engine.run(images, ["*"])
        assert_same(expected, found, program)
        assert all(found[name].dtype == expected[name].dtype for name in expected)
        assert engine.overflows == oracle.overflows and set(engine.overflows) == set(accumulators(program))
        np.testing.assert_array_equal(engine.run(images)[program.logits], expected[program.logits])
    pytest.importorskip("torch")
    fake = pytest.importorskip("bitexact.fakequant").FakeQuant(program)
    assert_same(expected, {name: value.numpy() for name, value in fake.run(images, ["*"]).items()}, program)


@pytest.mark.parametrize("overflow", ["wrap", "saturate"])
def test_every_width(overflow: str) -> None:
    """From 2 bits, where all saturates, to 32, where nothing does."""
    base = random_program(3, SMALL, extreme=0.3)
    images = images_for(base, 1)
    wide = Oracle(base).run(images, ["*"])
    counted = []
    for bits in range(2, 33):
        program = narrow(base, [Rule("accumulators", bits, overflow)])
        oracle, engine = Oracle(program), Engine(program, threads=1)
        expected = oracle.run(images, ["*"])
        assert_same(expected, engine.run(images, ["*"]), program)
        assert engine.overflows == oracle.overflows
        counted.append(sum(oracle.overflows.values()))
    assert counted[0] > 1000 and counted[-1] == 0
    assert_same(wide, expected, program)  # of 32 bits


def test_one_narrow_accumulator_wraps_the_wide_value() -> None:
    base = random_program(5, SMALL, extreme=0.3)
    images = images_for(base)
    wide = Oracle(base).run(images, ["*"])
    for name in accumulators(base):
        program = narrow(base, [Rule(name, 9, "wrap")])
        oracle = Oracle(program)
        found = oracle.run(images, ["*"])[name]
        exact = wide[name].astype(np.int64)
        if ".scan" in name and name.endswith(".acc"):  # the state carries an overflow on
            found, exact = found[:, 0], exact[:, 0]
        np.testing.assert_array_equal(found, (exact + 256) % 512 - 256)
        if not name.endswith(".acc") or ".scan" not in name:
            assert oracle.overflows == {name: int((found != exact).sum())}


@given(st.integers(-(2**61), 2**61), st.integers(2, 32))
def test_wrap_is_a_residue_in_range(v: int, bits: int) -> None:
    got = int(wrap(v, bits))
    assert (got - v) % 2**bits == 0 and -(2 ** (bits - 1)) <= got < 2 ** (bits - 1)


# --- By hand: the order matters --------------------------------------------------------------------------------------


def by_hand(bits: int, overflow: str) -> tuple[Program, Operator]:
    """A linear of three inputs in two groups: channel 1 in group 0, channels 0 and 2 in group 1, shifted by 1."""
    program = Program("hand", "custom", "half_up", (1, 1, 1), ["one"])
    program.arrays = {
        "x.group": np.array([1, 0, 1], dtype=np.uint8),
        "l.weight": np.array([[3, -5, 2]], dtype=np.int8),
        "l.weight_exponent": np.array([0], dtype=np.int8),
        "l.bias": np.array([4], dtype=np.int32),
        "l.shift": np.array([0], dtype=np.int8),
    }
    axes = ("token", "channel")
    group, offset = Term("channel", shifts=(0, 1), index="x.group"), Term("channel", offset="l.weight_exponent")
    program.tensors = {
        "x": Tensor("x", "output", axes, (1, 3), 8, True, 0, (group,)),
        "l.acc": Tensor("l.acc", "accumulator", axes, (1, 1), bits, True, 0, (offset,), overflow),
        "l.out": Tensor("l.out", "output", axes, (1, 1), 8, True, 0),
    }
    program.constants = {
        "l.weight": Constant("l.weight", ("channel", "input"), (1, 3), 8, True, 0, (offset,)),
        "l.bias": Constant("l.bias", ("channel",), (1,), 32, True, 0, (offset,)),
    }
    constants = {role: f"l.{role}" for role in ("weight", "weight_exponent", "bias", "shift")}
    segments = [{"port": "out", "start": 0, "stop": 1}]
    op = Operator("l", "linear", {"x": "x"}, constants, {"segments": segments}, ("acc", "out"))
    program.operators = [op]
    return program, op


@pytest.mark.parametrize(
    ("bits", "overflow", "acc"),
    [
        # bias 4; channel 1: 4 - 5 = -1; channel 0, shifted by 1: -1 + 6 = 5; channel 2, shifted by 1: 5 + 4 = 9 -> 7.
        # In the order of the channels it would be 4 + 6 = 10 -> 7, 7 - 5 = 2, 2 + 4 = 6.
        (4, "saturate", 7),
        # 4 -> 3; 3 - 5 = -2; -2 + 6 = 4 -> 3; 3 + 4 = 7 -> 3.  In the order of the channels: 3, 3, -2, 2.
        (3, "saturate", 3),
        (4, "wrap", -7),
        (3, "wrap", 1),
        (5, "saturate", 9),
    ],
)
def test_linear_by_hand(bits: int, overflow: str, acc: int) -> None:
    program, op = by_hand(bits, overflow)
    x = np.ones((1, 3), dtype=np.int64)
    view = View(program, op)
    made = KINDS["linear"].run(view, {"x": x})
    assert made["acc"].tolist() == [[acc]] == made["out"].tolist()
    assert view.overflows == {"acc": int(acc != 9)}
    engine = run_operator(program, op, {"x": x[None].astype(np.int8)}, ["acc", "out"])
    assert engine["l.acc"].tolist() == [[[acc]]] == engine["l.out"].tolist()
    fake = pytest.importorskip("bitexact.fakequant").FakeQuant(program)
    assert fake.run_operator(op, {"x": x[None]})["l.acc"].tolist() == [[[acc]]]


def test_a_clamp_on_the_way_is_not_a_clamp_at_the_end() -> None:
    """The gate: 5 + 5 is clamped to 7 in 4 bits, times -1 is -7; the exact -10 would be clamped to -8."""
    axes = ("token", "channel")
    program = Program("hand", "custom", "half_up", (1, 1, 1), ["one"])
    program.arrays = {"g.shift": np.array([0], dtype=np.int8)}
    for port in ("y", "y_b", "z"):
        program.tensors[port] = Tensor(port, "output", axes, (1, 1), 8, True, 0)
    program.tensors["g.acc"] = Tensor("g.acc", "accumulator", axes, (1, 1), 4, True, -1, (), "saturate")
    program.tensors["g.out"] = Tensor("g.out", "output", axes, (1, 1), 8, True, -1)
    inputs = {"y": "y", "y_b": "y_b", "g": "z"}
    op = Operator("g", "gate", inputs, {"shift": "g.shift"}, {"y_align": 0, "y_b_align": 0}, ("acc", "out"))
    program.operators = [op]
    values = {"y": np.full((1, 1), 5), "y_b": np.full((1, 1), 5), "g": np.full((1, 1), -1)}
    view = View(program, op)
    assert KINDS["gate"].run(view, values)["acc"].tolist() == [[-7]] and view.overflows == {"acc": 1}
    given = {inputs[port]: value[None].astype(np.int8) for port, value in values.items()}
    assert run_operator(program, op, given, ["acc"])["g.acc"].tolist() == [[[-7]]]
    fake = pytest.importorskip("bitexact.fakequant").FakeQuant(program)
    assert fake.run_operator(op, given)["g.acc"].tolist() == [[[-7]]]


# --- The Program -----------------------------------------------------------------------------------------------------


def test_a_program_without_a_what_if_keeps_its_bytes() -> None:
    program = embedded.program()
    assert program_bytes(program) == embedded.program_path().read_bytes()
    assert program.spec == "1.0" and SPEC_VERSION == "1.1"
    assert narrow(program, []) is program
    rebuilt = _Plan(program).rebuild()  # nothing changed: everything that is derived is what it was
    assert program_bytes(rebuilt) == embedded.program_path().read_bytes()


def test_a_what_if_is_a_program_of_its_own() -> None:
    base = random_program(2, SMALL)
    save = program_bytes(base)
    program = narrow(base, [Rule("*.acc", 20, "wrap"), Rule("head.acc", 12, "saturate"), Rule("states", 6)])
    data = program_bytes(program)
    loaded = parse_program(data)
    assert program_bytes(base) == save, "the original changed"
    assert program_bytes(loaded) == data and loaded.digest != base.digest
    assert loaded.spec == "1.1" and loaded.profile == "custom"
    assert loaded.provenance["what_if"] == ["*.acc=20:wrap", "head.acc=12:saturate", "states=6"]
    assert loaded.provenance["what_if_of"] == base.digest
    head, y_acc = loaded.tensors["head.acc"], loaded.tensors["layers.0.mixer.scan.y_acc"]
    assert (head.bits, head.overflow, head.dtype) == (12, "saturate", np.int16)
    assert (y_acc.bits, y_acc.overflow) == (32, None)
    again = narrow(loaded, [Rule("states", 7)])  # the accumulators stay as they are
    assert again.tensors["head.acc"] == head and again.provenance["what_if"][-1] == "states=7"
    assert narrow(base, [Rule("states", 6)]).spec == "1.0"


def edited(name: str, **change: Any) -> Callable[[Program], None]:
    def edit(program: Program) -> None:
        program.tensors[name] = replace(program.tensors[name], **change)

    return edit


REFUSED: dict[str, tuple[Callable[[Program], None], str]] = {
    "1 bit": (edited("head.acc", bits=1, overflow="wrap"), "head .*acc has 1 bits, allowed are 2 .. 32"),
    "33 bits": (edited("head.acc", bits=33, overflow="wrap"), "head .*acc has 33 bits"),
    "unknown overflow": (edited("head.acc", bits=20, overflow="throw"), "head .*'throw'.*wrap or saturate"),
    "narrow without overflow": (edited("head.acc", bits=20), "head .*acc is declared"),
    "square_sum": (edited("norm_f.square_sum", overflow="wrap"), "norm_f .*square_sum may not have an overflow"),
    "an output": (edited("head.out", overflow="saturate"), "head .*out may not have an overflow"),
    "a state": (edited("layers.0.mixer.scan.h", overflow="saturate"), "scan .*h may not have an overflow"),
    "an internal tensor": (edited("layers.0.mixer.scan.b", bits=20, overflow="wrap"), "scan .*b may not"),
    "the image": (edited("image", overflow="wrap"), "image"),
    "another exponent": (edited("head.acc", bits=20, overflow="wrap", exponent=3), "head .*acc is declared"),
    "unsigned": (edited("head.acc", bits=20, overflow="wrap", signed=False), "head .*acc is declared"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_validation_refuses(case: str) -> None:
    edit, message = REFUSED[case]
    program = random_program(2, SMALL)
    edit(program)
    with pytest.raises(ProgramError, match=message):
        validate(program)


def test_a_narrow_accumulator_needs_no_proof_and_others_do() -> None:
    program = random_program(2, SMALL)
    name = "layers.0.mixer.in_proj"
    program.arrays[f"{name}.bias"] = np.full_like(program.arrays[f"{name}.bias"], 2**31 - 1)
    with pytest.raises(ProgramError, match=r"in_proj .*needs 33 bits"):
        validate(program)
    program.tensors[f"{name}.acc"] = replace(program.tensors[f"{name}.acc"], overflow="saturate")
    validate(program)
    images = images_for(program, 1)
    expected = Oracle(program).run(images, ["*"])  # the exact sums leave 32 bits
    assert_same(expected, Engine(program).run(images, ["*"]), program)
    fake = pytest.importorskip("bitexact.fakequant").FakeQuant(program)
    assert_same(expected, {k: v.numpy() for k, v in fake.run(images, ["*"]).items()}, program)


def test_versions_of_the_specification() -> None:
    description = describe(narrow(random_program(2, SMALL), [Rule("head.acc", 20, "wrap")]))
    assert description["spec"] == "1.1" and from_description(description).narrowed == ["head.acc"]
    with pytest.raises(ProgramError, match=r"head\.acc has an overflow, which SPEC version 1\.0"):
        from_description({**description, "spec": "1.0"})
    for version in ("1.2", "1.10", "2.0", "0.1", "1.x", "1.01", "01.1", " 1.1", "1.1.0", "1", "1.\u0661", 1.1, None):
        with pytest.raises(ProgramError, match="SPEC version"):
            from_description({**description, "spec": version})


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([Rule("nothing.*", 8)], "no tensor matches 'nothing"),
        ([Rule("head.acc", 20)], "head.acc is an accumulator, say whether"),
        ([Rule("accumulators", 33, "wrap")], "can have 2 .. 32 bits"),
        ([Rule("accumulators", 1, "wrap")], "can have 2 .. 32 bits"),
        ([Rule("states", 17)], "can have 2 .. 16 bits"),
        ([Rule("states", 6, "wrap")], "saturates and never wraps"),
        ([Rule("rom-inputs", 9)], "can have 2 .. 8 bits"),
        ([Rule("a-bar", 17)], "can have 2 .. 16 bits"),
        ([Rule("a-bar", 9, "saturate")], "neither wrap nor saturate"),
        ([Rule("layers.0.norm.out", 6)], "norm.out cannot have another width"),
        ([Rule("norm_f.square_sum", 20, "wrap")], "square_sum cannot have another width"),
        ([Rule("tokens.out", 12)], "the residual stream has one format"),
    ],
)
def test_what_cannot_be_narrowed(rules: list[Rule], message: str) -> None:
    with pytest.raises(UserError, match=message):
        narrow(random_program(2, SMALL), rules)


def test_rules_as_text() -> None:
    assert parse_rule("layers.3.*.acc=20:wrap") == Rule("layers.3.*.acc", 20, "wrap")
    assert parse_rule("residual=12") == Rule("residual", 12) and str(parse_rule("a=b=12:saturate")) == "a=b=12:saturate"
    for text in ("", "acc", "acc=", "acc=x", "acc=20:clip", "acc=-3", "acc=20:wrap:wrap", "=20", "a b=20", "a=٣"):
        with pytest.raises(UserError, match="is not WHAT=BITS"):
            parse_rule(text)


# --- Narrower values -------------------------------------------------------------------------------------------------


def test_values_keep_their_range_or_their_exponent() -> None:
    base = random_program(4, SMALL, k=3)
    low = narrow(base, [Rule("states", 5), Rule("residual", 12), Rule("rom-inputs", 6), Rule("a-bar", 9)])
    cuts = {"states": 3, "residual": 4, "rom-inputs": 2}
    bits = {"states": 5, "residual": 12, "rom-inputs": 6}
    high = narrow(base, [Rule(label, n, "saturate") for label, n in bits.items()])
    for label, cut in cuts.items():
        names = CLASSES[label](base)
        assert names
        for name in names:
            before = base.tensors[name]
            assert low.tensors[name] == replace(before, bits=before.bits - cut, exponent=before.exponent + cut)
            assert high.tensors[name] == replace(before, bits=before.bits - cut)
    scan = "layers.0.mixer.scan"
    assert low.operator(scan).attributes["abar_fraction"] == 8 and low.tensors[f"{scan}.abar"].bits == 9
    d = base.arrays[f"{scan}.D"].astype(np.int64)
    np.testing.assert_array_equal(low.arrays[f"{scan}.D"], (d + 4) >> 3)
    shifts = low.arrays[f"{scan}.b_shift"].astype(int) - base.arrays[f"{scan}.b_shift"]
    assert set(shifts.tolist()) == {3 + 15 - 8}  # h is coarser by 3 bits, and so is b but for what A-bar lost
    rom = base.arrays["layers.0.mixer.silu.rom"]
    np.testing.assert_array_equal(low.arrays["layers.0.mixer.silu.rom"][:, 96:160], rom[:, ::4])
    np.testing.assert_array_equal(high.arrays["layers.0.mixer.silu.rom"], rom)
    eps = base.operator("norm_f").attributes["eps_q"]
    assert low.operator("norm_f").attributes["eps_q"] == max(1, (eps + 128) >> 8)
    assert high.operator("norm_f").attributes["eps_q"] == eps
    token = base.arrays["tokens.cls_token"].astype(np.int64)
    np.testing.assert_array_equal(low.arrays["tokens.cls_token"], (token + 8) >> 4)
    np.testing.assert_array_equal(high.arrays["tokens.cls_token"], np.clip(token, -2048, 2047))


def test_a_wider_state_only_gains() -> None:
    base = random_program(4, SMALL)
    wide = narrow(base, [Rule("states", 10)])
    h = base.tensors["layers.0.mixer.scan.h"]
    assert wide.tensors[h.name] == replace(h, bits=10, exponent=h.exponent - 2)
    np.testing.assert_array_equal(
        wide.arrays["layers.0.mixer.scan.D"].astype(int), base.arrays["layers.0.mixer.scan.D"].astype(int) << 2
    )


# --- The command -----------------------------------------------------------------------------------------------------


def intsim(*args: Any) -> Result:
    return CliRunner().invoke(cli, [str(a) for a in args])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_program(random_program(7, SMALL), path)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "data.npz"
    rng = np.random.default_rng(0)
    np.savez(path, images=rng.integers(0, 256, (20, 8, 8, 3), dtype=np.uint8), labels=rng.integers(0, 3, 20))
    return path


def test_a_bundle_carries_its_what_if(model: Path, data: Path, tmp_path: Path) -> None:
    """Verification and a stranger who has nothing but the bundle agree with it, whatever overflows."""
    out = tmp_path / "bundle"
    options = ("--accumulator-bits", 11, "--overflow", "saturate", "--narrow", "*.mixer.scan_b.*acc=9:wrap")
    options += ("--state-bits", 7, "--a-bar-bits", 9, "--residual-bits", 13, "--rom-input-bits", 7)
    result = intsim("golden", "--model", model, "--images", data, "--count", 2, "--state", "--out", out, *options)
    assert result.exit_code == 0, result.output
    assert intsim("verify", out).exit_code == 0
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["spec"] == "1.1"
    kinds = {name: entry.get("overflow") for name, entry in manifest["tensors"].items()}
    assert kinds["head.acc"] == "saturate" and kinds["layers.0.mixer.scan_b.y_acc"] == "wrap"
    assert [name for name, kind in kinds.items() if kind] == accumulators(load_program(out / "program.safetensors"))
    schema = json.loads((Path(golden.sweep.__file__).parent / "manifest.schema.json").read_text())
    pytest.importorskip("jsonschema").validate(manifest, schema)
    values = stranger.recompute(out, 1)
    for name, entry in manifest["tensors"].items():
        file = manifest["images"][1]["tensors"][name]["files"]["hex"]["file"]
        np.testing.assert_array_equal(values[name], stranger.read_hex(out / file, entry), err_msg=name)
    program = load_program(out / "program.safetensors")
    assert program.digest != load_program(model).digest
    for told, args in (
        ("its ranges cannot be proven", ("widths",)),
        ("it cannot be exported", ("export", "--format", "onnx", "--out", tmp_path / "x.onnx")),
    ):
        refused = intsim(*args, "--model", out / "program.safetensors")
        assert refused.exit_code == 2 and told in refused.stderr


def test_eval_and_compare_of_a_what_if(model: Path, data: Path) -> None:
    pytest.importorskip("torch")
    options = ("--model", model, "--narrow", "accumulators=12:saturate", "--narrow", "head.acc=14:wrap", "--json", "-")
    found = json.loads(intsim("eval", "--data", data, *options).stdout)
    again = json.loads(intsim("eval", "--data", data, "--engine", "fake", *options).stdout)
    plain = json.loads(intsim("eval", "--data", data, "--model", model, "--json", "-").stdout)
    assert found["predictions"] == again["predictions"] != plain["predictions"]
    assert "overflows" not in plain and "overflows" not in again
    with np.load(data) as file:
        pixels = file["images"]
    oracle = Oracle(narrow(load_program(model), [Rule("accumulators", 12, "saturate"), Rule("head.acc", 14, "wrap")]))
    assert oracle.run(pixels)["head.out"].reshape(20, 3).argmax(1).tolist() == found["predictions"]
    assert found["overflows"] == oracle.overflows, "warming up is not counted"
    report = json.loads(intsim("compare", "--images", data, "--count", 3, *options).stdout)
    assert report["mismatches"] == 0 and report["elements"] > 0 and report["program"] != load_program(model).digest


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--overflow", "wrap"), "--accumulator-bits"),
        (("--accumulator-bits", "20"), "go together"),
        (("--accumulator-bits", "40", "--overflow", "wrap"), "2 .. 32 bits"),
        (("--narrow", "x"), "is not WHAT=BITS"),
        (("--narrow", "*.h=6:wrap"), "never wraps"),
        (("--engine", "float", "--state-bits", "6"), "--engine float"),
    ],
)
def test_options_that_make_no_sense(model: Path, data: Path, options: tuple[str, ...], told: str) -> None:
    where = () if "float" in options else ("--model", model)
    result = intsim("eval", "--data", data, *where, *options)
    assert result.exit_code == 2 and told in result.stderr and result.stdout == ""


# --- Sweeps ----------------------------------------------------------------------------------------------------------


def swept(model: Path, data: Path, out: Path, *more: Any, values: str = "10,14,32") -> Result:
    args = ("--what", "accumulator-bits", "--values", values, "--data", data, "--model", model, "--out", out)
    return intsim("sweep", *args, "--batch", 8, *more)


def without_times(path: Path) -> Any:
    def strip(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: strip(v) for k, v in value.items() if k != "seconds"}
        return [strip(v) for v in value] if isinstance(value, list) else value

    return strip(json.loads(path.read_text()))


def test_a_sweep_is_right_and_resumes(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    whole = tmp_path / "whole"
    assert swept(model, data, whole).exit_code == 0
    found = json.loads((whole / "sweep.json").read_text())
    assert (whole / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert [(r["value"], r["overflow"]) for r in found["rows"]] == [
        (bits, how) for how in ("wrap", "saturate") for bits in (10, 14, 32)
    ]
    base = load_program(model)
    with np.load(data) as file:
        pixels, labels = file["images"], file["labels"]
    expected = Oracle(base).run(pixels)["head.out"].reshape(20, -1).argmax(1)
    assert found["reference"]["program"] == base.digest
    assert found["reference"]["top1"] == 100 * (expected == labels).mean()
    for row in found["rows"]:
        program = narrow(base, [Rule("accumulators", row["value"], row["overflow"])])
        program_bytes(program)
        oracle = Oracle(program)
        classes = oracle.run(pixels)["head.out"].reshape(20, -1).argmax(1)
        assert row["program"] == program.digest
        assert (row["top1"], row["agreement"]) == (100 * (classes == labels).mean(), 100 * (classes == expected).mean())
        assert row["overflows"] == sum(oracle.overflows.values()) and row["images"] == 20
    assert found["rows"][2]["overflows"] == found["rows"][5]["overflows"] == 0 < found["rows"][0]["overflows"]

    # interrupted in the third of its seven runs, and once more: what was done stays, and the result is the same
    parts, made = tmp_path / "parts", []
    original = golden.classify.integer_model

    def interrupted(program: Program, *more: Any) -> Any:
        made.append(program.digest)
        if len(made) == 3:
            raise KeyboardInterrupt
        return original(program, *more)

    monkeypatch.setattr(golden.classify, "integer_model", interrupted)
    assert swept(model, data, parts).exit_code == 130
    assert sorted(p.name for p in parts.iterdir()) == ["accumulator-bits-10-wrap.json", "reference.json"]
    assert swept(model, data, parts, "--json", tmp_path / "r.json").exit_code == 0
    assert len(made) == 3 + 5, "what was done is not done again"
    for file in (parts / "sweep.json", tmp_path / "r.json"):
        assert without_times(file) == without_times(whole / "sweep.json")
    assert swept(model, data, parts, values="10,14,32,8").exit_code == 0
    assert len(made) == 8 + 2

    # a folder of anything else is left alone
    before = {p.name: p.read_bytes() for p in parts.iterdir()}
    for more, told in ((("--count", 10), "another model, data or options"), (("--center-crop",), "another model")):
        result = swept(model, data, parts, *more)
        assert result.exit_code == 2 and told in result.stderr
    (parts / "notes.txt").write_text("mine")
    result = swept(model, data, parts)
    assert result.exit_code == 2 and "notes.txt" in result.stderr
    assert {p.name: p.read_bytes() for p in parts.iterdir() if p.name != "notes.txt"} == before


def test_a_damaged_result_is_refused(model: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert swept(model, data, out, "--no-plot", "--overflow", "wrap", values="12").exit_code == 0
    assert not (out / "sweep.png").exists()
    (out / "reference.json").write_text("{")
    result = swept(model, data, out, "--no-plot", values="12")
    assert result.exit_code == 2 and "reference.json: is not JSON" in result.stderr
    (out / "reference.json").unlink()
    point = out / "accumulator-bits-12-wrap.json"
    changed = json.loads(point.read_text())
    changed["correct"] += 1
    point.write_text(json.dumps(changed))
    result = swept(model, data, out, "--no-plot", "--overflow", "wrap", values="12")
    assert result.exit_code == 2 and "was changed or is damaged" in result.stderr
    point.unlink()
    assert swept(model, data, out, "--no-plot", "--overflow", "wrap", values="12").exit_code == 0


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--what", "accumulator-bits", "--values", "20,x"), "not integers"),
        (("--what", "accumulator-bits", "--values", "20,20"), "twice"),
        (("--what", "accumulator-bits", "--values", "20,40"), "2 .. 32 bits"),
        (("--what", "state-bits", "--values", "6", "--overflow", "wrap"), "--overflow is for"),
        (("--what", "state-bits", "--values", "6", "--calibration", "x"), "no calibration"),
        (("--what", "k", "--values", "5", "--calibration", "x"), "allowed for k are 1 .. 4"),
        (("--what", "k", "--values", "2"), "--calibration is missing"),
        (("--what", "rounding", "--values", "up"), "rounding modes are"),
    ],
)
def test_sweeps_that_cannot_be(model: Path, data: Path, tmp_path: Path, options: tuple[str, ...], told: str) -> None:
    where = ("--model", model) if "bits" in options[1] else ()
    result = intsim("sweep", *options, "--data", data, *where, "--out", tmp_path / "out")
    assert result.exit_code == 2 and told in result.stderr, result.stderr
    assert not (tmp_path / "out").exists()


def test_a_sweep_that_quantizes_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    from bitexact import quantize as quantizer
    from bitexact.checkpoint import save_checkpoint
    from bitexact.vim import Vim, VimConfig

    torch.manual_seed(0)
    config = VimConfig(12, 8, 3, 4, 4, 16, 1, 32, 5, 3, 4, 4)
    metadata = {"image_size": [12, 8], "stride": 4, "mean": [0.5, 0.4, 0.45], "std": [0.25, 0.2, 0.3]}
    save_checkpoint(tmp_path / "c.safetensors", Vim(config).state_dict(), metadata, torch.float32)
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "d.npz", images=rng.integers(0, 256, (12, 12, 8, 3), dtype=np.uint8), labels=np.arange(12) % 4)
    calls: list[dict[str, Any]] = []
    original = quantizer.quantize
    monkeypatch.setattr(quantizer, "quantize", lambda *a, **k: (calls.append(k), original(*a, **k))[1])
    images = tmp_path / "d.npz"
    args = ("--data", images, "--calibration", images, "--checkpoint", tmp_path / "c.safetensors")
    for what, values in (("activation-bits", "3,8"), ("k", "1,4"), ("rounding", "floor,half_up")):
        out = tmp_path / what
        result = intsim("sweep", "--what", what, "--values", values, *args, "--out", out)
        assert result.exit_code == 0, result.output
        found = json.loads((out / "sweep.json").read_text())
        low, same = found["rows"]
        assert same["agreement"] == 100 and same["top1"] == found["reference"]["top1"], "the value of the defaults"
        programs = {row["value"]: load_program(out / f"{what}-{row['value']}.safetensors") for row in found["rows"]}
        assert {p.digest for p in programs.values()} == {row["program"] for row in found["rows"]}
        if what == "activation-bits":
            assert programs[3].tensors["layers.0.mixer.conv1d.out"].bits == 3 and low["agreement"] < 100
            assert programs[3].provenance["activation_bits"] == 3
        elif what == "k":
            assert not programs[1].tensors["layers.0.norm.out"].terms
        else:
            assert programs["floor"].rounding == "floor"
    assert len(calls) == 9
    (out / "rounding-floor.json").unlink()  # quantized, but not run: the Program is there
    assert intsim("sweep", "--what", what, "--values", values, *args, "--out", out).exit_code == 0
    assert len(calls) == 9


def test_points_name_their_files() -> None:
    points = [Point("accumulator-bits", 20, "wrap"), Point("rounding", "half_up"), Point("a-bar-bits", 9)]
    for point in points:
        assert golden.sweep.NAME.fullmatch(point.label + ".json")
    assert not golden.sweep.NAME.fullmatch("model.safetensors")
