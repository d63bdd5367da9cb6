"""The ONNX export: onnxruntime, and the reference evaluator of ONNX, give the oracle's integers at every tensor."""

from __future__ import annotations

import json
import sys
from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, inliner
from onnx.reference import ReferenceEvaluator

import golden.onnx.export
from golden.cli import cli
from golden.onnx import export_onnx, onnx_bytes
from golden.onnx.functions import FUNCTIONS
from golden.onnx.nodes import DOMAIN, IR_VERSION, Nodes, opset_imports
from intsim import embedded, load_program
from intsim.arithmetic import ROUNDINGS
from intsim.builder import Builder, Out
from intsim.engine import Engine
from intsim.errors import UserError
from intsim.operators.exp2 import exp2
from intsim.oracle import Oracle
from intsim.program import Array, Program
from intsim.program_file import program_bytes, save_program
from intsim.roms import exp2_rom
from intsim.synthetic import VIM, Size, random_program

FLOATS = {
    code for name, code in TensorProto.DataType.items() if "FLOAT" in name or "DOUBLE" in name or "COMPLEX" in name
}


def session(model: bytes) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 2
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def same(got: dict[str, Array], wanted: dict[str, Array]) -> None:
    """Of one image: `wanted` with a batch axis, as the oracle and the engine give it."""
    for name, tensor in wanted.items():
        if name != "image":
            assert got[name].dtype == tensor.dtype and got[name].shape == tensor.shape[1:], name
            assert np.array_equal(got[name], tensor[0]), f"{name}: {np.argwhere(got[name] != tensor[0])[:3].tolist()}"


def check(program: Program, images: Array) -> dict[str, Array]:
    """onnxruntime agrees with the oracle on every tensor of every image, and the untapped file on the logits."""
    wanted = Oracle(program).run(images, ["*"])
    check_taps(program, images, wanted)
    plain = session(onnx_bytes(program))
    for image, logits in zip(images, wanted[program.logits], strict=True):
        (found,) = plain.run(None, {"image": image[None]})
        assert found.dtype == np.int32 and np.array_equal(found, logits.reshape(1, -1))
    return wanted


def check_taps(program: Program, images: Array, wanted: dict[str, Array]) -> None:
    tapped = session(onnx_bytes(program, ["*"]))
    names = [output.name for output in tapped.get_outputs()]
    assert names == ["logits", *(name for name in program.tensors if name != "image")]
    for i, image in enumerate(images):
        got = dict(zip(names, tapped.run(None, {"image": image[None]}), strict=True))
        same(got, {name: tensor[i : i + 1] for name, tensor in wanted.items()})
        assert np.array_equal(got["logits"], got[program.logits].reshape(1, -1))


def pixels(program: Program, n: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (n, *program.image), dtype=np.uint8)


# --- functions ---


def call(
    name: str, inputs: dict[str, Array], rounding: str = "half_up", outputs: tuple[str, ...] = (), **attributes: Any
) -> list[Array]:
    """Runs one local function in onnxruntime."""
    outputs = outputs or FUNCTIONS[name].outputs
    nodes = Nodes()
    nodes.add(name, list(inputs), FUNCTIONS[name].outputs, attributes)
    given = [
        helper.make_tensor_value_info(key, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for key, array in inputs.items()
    ]
    made = [onnx.ValueInfoProto(name=key) for key in outputs]
    model = helper.make_model(
        helper.make_graph(nodes.nodes, "test", given, made),
        functions=golden.onnx.export.local_functions(rounding, nodes.nodes),
        opset_imports=opset_imports(),
        ir_version=IR_VERSION,
    )
    return session(model.SerializeToString()).run(list(outputs), inputs)


def round_shift(v: int, s: int, mode: str) -> int:
    """By division with remainder."""
    if s <= 0:
        return v * 2**-s
    below, rest = divmod(v, 2**s)
    tie = 2 ** (s - 1)
    up = {
        "floor": False,
        "half_up": rest >= tie,
        "half_away": rest > tie or (rest == tie and v >= 0),
        "half_even": rest > tie or (rest == tie and below % 2 == 1),
    }
    return below + up[mode]


@pytest.mark.parametrize("mode", ROUNDINGS)
def test_round_shift(mode: str) -> None:
    """Every shift; small numbers, both sides of every tie, the ends of 32 bits, and 2^42 to the right."""
    ties = {sign * k * 2**s + d for s in range(31) for k in (1, 2, 3, 5) for d in (-1, 0, 1) for sign in (-1, 1)}
    ends = {-(2**31), 2**31 - 1, -(2**31) + 1, 2**30 - 1, -(2**30)}
    values = sorted({*range(-70, 70), *(v for v in ties if -(2**31) <= v < 2**31), *ends})
    shifts = np.arange(-31, 32)
    (got,) = call("round_shift", {"v": np.array(values)[:, None], "s": shifts}, mode)
    assert got.tolist() == [[round_shift(v, int(s), mode) for s in shifts] for v in values]
    large = [sign * (2**42 + d) for sign in (-1, 1) for d in (-1, 0, 1)]
    (got,) = call("round_shift", {"v": np.array(large)[:, None], "s": np.arange(32)}, mode)
    assert got.tolist() == [[round_shift(v, s, mode) for s in range(32)] for v in large]


@pytest.mark.parametrize(("mode", "m"), [*((mode, 15) for mode in ROUNDINGS), ("half_even", 8), ("half_away", 1)])
def test_exp2_exhaustively(mode: str, m: int) -> None:
    """Every product of 16 bits at every exponent."""
    p, fraction = np.arange(65536), np.arange(32)[:, None]
    rom = np.array(exp2_rom(), dtype=np.int32)
    (got,) = call("exp2", {"p": p, "fraction": fraction, "rom": rom}, mode, abar_fraction=m)
    assert np.array_equal(got, exp2(p, fraction, m, rom, mode))


@pytest.mark.parametrize("width", [1, 3, 64, 255, 256, 1023, 2047])
@pytest.mark.parametrize("mode", ["half_even", "half_away"])
def test_rmsnorm(width: int, mode: str) -> None:
    """SPEC 5.3 in Python integers: all magnitudes, silence, the ends, and quotients that are squares or just not."""
    rng = np.random.default_rng(width)
    rows = [np.zeros(width), np.full(width, -32768), np.full(width, 32767), np.eye(1, width)[0]]
    rows += [rng.integers(-(2**k), 2**k, width) for k in range(1, 16)]
    q = np.array(rows).astype(np.int16)
    gamma = rng.integers(-2048, 2048, width).astype(np.int16)
    shift = rng.integers(-2, 20, width).astype(np.int8)
    a = max(i for i in range(6) if i == 0 or width * 4**i < 1024)
    for eps in (1, 4**8 - 1, 4**8, 4**15 + 1, 2**40):
        attributes = {"eps_q": eps, "d_norm": width * 4**a, "d_shift": a, "low": -128, "high": 127, "type": 3}
        square_sum, rsqrt, normed, out = call("rmsnorm", {"x": q, "gamma": gamma, "shift": shift}, mode, **attributes)
        for t, row in enumerate(q.tolist()):
            total = eps + sum(v * v for v in row)
            k = (32 - total.bit_length()) // 2
            r = isqrt((width * 4**a << 52) // (total << 2 * k if k >= 0 else total >> -2 * k))
            n = [round_shift(v * r, 14 + a - k, mode) for v in row]
            y = [round_shift(v * int(g), int(s), mode) for v, g, s in zip(n, gamma, shift, strict=True)]
            assert (int(square_sum[t]), int(rsqrt[t])) == (total, r)
            assert normed[t].tolist() == n
            assert out[t].tolist() == [min(max(v, -128), 127) for v in y]


# --- Programs ---


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    patch = draw(st.integers(1, 5))
    size = Size(
        image=(patch + draw(st.integers(0, 9)), patch + draw(st.integers(0, 9)), draw(st.integers(1, 4))),
        patch=patch,
        stride=draw(st.integers(1, patch + 1)),
        width=draw(st.sampled_from([1, 2, 5, 17])),
        depth=draw(st.integers(1, 2)),
        inner=draw(st.sampled_from([1, 3, 16, 33])),
        states=draw(st.integers(1, 18)),
        dt_rank=draw(st.integers(1, 5)),
        taps=draw(st.integers(1, 5)),
        classes=draw(st.integers(1, 12)),
    )
    return {
        "seed": draw(st.integers(0, 2**32 - 1)),
        "size": size,
        "rounding": draw(st.sampled_from(ROUNDINGS)),
        "k": draw(st.integers(1, 4)),
        "state_bits": draw(st.sampled_from([8, 16])),
        "abar_fraction": draw(st.sampled_from([15, 8, 7, 1])),
        "activation_bits": draw(st.integers(4, 8)),
        "extreme": draw(st.sampled_from([0.0, 0.05, 0.5, 1.0])),
    }


@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None)
@given(cases())
def test_random_programs(arguments: dict[str, Any]) -> None:
    program = random_program(**arguments)
    images = pixels(program, 3, arguments["seed"])
    images[1], images[2] = 0, 255
    check(program, images)


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("state_bits", [8, 16])
def test_the_reference_evaluator_agrees(rounding: str, state_bits: int) -> None:
    """The file means this by the standard, not only in onnxruntime.  (Inlined: it lacks attributes in a Scan.)"""
    program = random_program(6, Size(depth=2), rounding=rounding, state_bits=state_bits, extreme=0.3)
    model = export_onnx(program, ["*"])
    (image,) = pixels(program, 1)
    found = ReferenceEvaluator(inliner.inline_local_functions(model)).run(None, {"image": image[None]})
    got = dict(zip((output.name for output in model.graph.output), found, strict=True))
    same(got, Oracle(program).run(image[None], ["*"]))


def far_program(last: int) -> Program:
    """A linear whose products reach -128 (4 * 127 + last) 2^15, with a bias of 2^22."""
    b = Builder("far", image=(1, 1, 1), classes=["one"])
    five = [0] * 5
    pixel = {"weight": [[1]] * 5, "weight_exponent": five, "bias": [1000] * 5}
    b.add("patch_embed", "p", {"image": "image"}, pixel, {"patch": 1, "stride": 1}, {"out": Out(16, 0)})
    lowest = {"gamma": [-2048] * 5, "gamma_exponent": [15] * 5}  # 4096 * -2048 >> 12 saturates
    grouped = Out(8, 0, True, "channel", (0, 15), [1] * 5)
    b.add("rmsnorm", "norm", {"x": "p.out"}, lowest, {"eps_q": 1}, {"out": grouped})
    weight = [[127, 127, 127, 127, last]]
    b.add(
        "linear",
        "head",
        {"x": "norm.out"},
        {"weight": weight, "weight_exponent": [0], "bias": [1 << 22]},
        {"segments": [{"port": "weight", "start": 0, "stop": 1}]},  # a port with the name of a constant
        {"weight": Out(32, 0)},
    )
    return b.finish()


@pytest.mark.parametrize(("last", "total"), [(3, TensorProto.INT32), (5, TensorProto.INT64)])
def test_sums_that_leave_32_bits_without_the_bias(last: int, total: int) -> None:
    """The width proof is of the sum with the bias: where only that fits, products are added in 64 bits."""
    program = far_program(last)
    (head,) = (node for node in export_onnx(program).graph.node if node.name == "head")
    assert [attribute.i for attribute in head.attribute if attribute.name == "total"] == [total]
    wanted = check(program, pixels(program, 1))
    assert wanted["norm.out"].tolist() == [[[-128] * 5]]
    assert wanted["head.acc"].item() == -128 * (508 + last << 15) + (1 << 22)
    assert (wanted["head.acc"].item() - (1 << 22) < -(1 << 31)) == (total == TensorProto.INT64)


def test_large_shifts_of_the_scan() -> None:
    """b beyond its limit on both sides, and every step between tokens."""
    size = Size(image=(24, 24, 3), depth=1, inner=8)
    program = random_program(4, size, rounding="half_even", extreme=0.2)
    for op in program.operators:
        if op.kind == "scan":
            program.arrays[op.constants["b_shift"]] -= 20
            token_shift = program.arrays[op.constants["state_token_shift"]]
            token_shift[:] = np.random.default_rng(0).permutation(np.arange(len(token_shift)) % 12)
    program.digest = None
    b = check(program, pixels(program, 2))["layers.0.mixer.scan.b"]
    assert (b.min(), b.max()) == (-(2**30) + 1, 2**30 - 1)


def test_embedded_model() -> None:
    """Every tensor of two images.  All 64, and Vim-Tiny: tools/onnx_check.py and its report."""
    program = embedded.program()
    images = embedded.images()[0][:2]
    check_taps(program, images, Engine(program).run(images, ["*"]))


def test_report() -> None:
    """The comparison at full size is of these Programs, and found nothing."""
    report = json.loads((Path(__file__).parent / "reports" / "onnx.json").read_text())
    found = {run["title"]: run for run in report["runs"]}
    assert [run["images"] for run in found.values()] == [64, 64, 8, 8]
    assert report["mismatches"] == sum(run["mismatches"] for run in found.values()) == 0
    assert report["elements"] == sum(run["elements"] for run in found.values())
    assert all(run["onnx_bytes_all_taps"] <= 1.5 * run["program_bytes"] for run in found.values())
    digests = [embedded.program().digest]
    for bits, profile in ((8, "int8"), (16, "wide-state")):
        program = random_program(0, VIM["tiny"], state_bits=bits)
        program_bytes(program)
        digests.append(program.digest)
        run = found[f"random Vim-Tiny at 224, {profile}"]
        assert run["tensors"] == len(program.tensors) - 1
    assert digests == [run["program"] for title, run in found.items() if title != "embedded model, wide-state"]


# --- the file ---


def nodes_of(graph: Any) -> list[Any]:
    """All nodes, those of nested graphs too."""
    found = []
    for node in graph.node:
        found.append(node)
        for attribute in node.attribute:
            found += nodes_of(attribute.g)
    return found


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_no_value_is_floating(rounding: str) -> None:
    """Of every value in the file, inputs, constants and results of nodes, the type is known and an integer's."""
    program = random_program(1, Size(depth=1), rounding=rounding)
    model = inliner.inline_local_functions(export_onnx(program))
    known = {v.name: v for v in onnx.shape_inference.infer_shapes(model, strict_mode=True).graph.value_info}
    types = {v.type.tensor_type.elem_type for v in [*known.values(), *model.graph.input, *model.graph.output]}
    types |= {tensor.data_type for tensor in model.graph.initializer}
    for node in model.graph.node:
        assert all(name in known or name == "logits" for name in node.output), node
        for attribute in node.attribute:
            assert attribute.type not in (onnx.AttributeProto.FLOAT, onnx.AttributeProto.FLOATS), node
            types |= {attribute.t.data_type} if attribute.HasField("t") else set()
            for inner in nodes_of(attribute.g):
                assert inner.op_type not in ("Sqrt", "Exp", "Pow") and not any(a.HasField("f") for a in inner.attribute)
                types |= {a.t.data_type for a in inner.attribute if a.HasField("t")}
                types |= {a.i for a in inner.attribute if inner.op_type == "Cast"}
    assert TensorProto.INT64 in types and not types & FLOATS
    assert FLOATS >= {TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16}


def test_nothing_is_unrolled() -> None:
    """As many nodes whatever the tokens, and one call for each operator under its name and tensors."""
    counts = set()
    for side in (8, 32):
        program = random_program(2, Size(image=(side, side, 3), depth=2))
        model = export_onnx(program)
        counts.add((len(nodes_of(model.graph)), sum(len(nodes_of(f)) for f in model.functions)))
        calls = {node.name: node for node in model.graph.node if node.name}
        assert list(calls) == [op.name for op in program.operators]
        for op in program.operators:
            assert calls[op.name].domain == DOMAIN
            assert list(calls[op.name].output) == [op.tensor(port) for port in op.outputs]
    assert len(counts) == 1


@pytest.mark.parametrize("program", [embedded.program(), random_program(0, VIM["tiny"])], ids=["embedded", "tiny"])
def test_size_and_content(program: Program) -> None:
    """At most 1.5 times the Program; its constants are the Program's, weights in 8 bits; metadata; the same bytes."""
    file = program_bytes(program)
    data = onnx_bytes(program)
    assert len(data) <= 1.5 * len(file)
    assert data == onnx_bytes(program)
    model = onnx.load_from_string(data)
    onnx.checker.check_model(model, full_check=True)
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    shared = constants.keys() & program.arrays.keys()
    assert {name for name in program.arrays if name.endswith((".weight", ".bias", ".rom", ".gamma", ".A"))} <= shared
    for name in shared:
        assert constants[name].dtype == program.arrays[name].dtype, name
        assert np.array_equal(constants[name], program.arrays[name]), name
    told = {entry.key: entry.value for entry in model.metadata_props}
    assert told == {
        "program": program.digest,
        "spec": "1.0",
        "name": program.name,
        "profile": program.profile,
        "rounding": program.rounding,
        "logits": "head.out",
        "logits_exponent": str(program.tensors["head.out"].exponent),
        "classes": json.dumps(program.classes),
    }
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 18), (DOMAIN, 1)]


def test_taps() -> None:
    """Exactly what the globs match, in execution order; the logits' tensor too where it is asked for."""
    program = random_program(1)

    def outputs(*taps: str) -> list[str]:
        return [output.name for output in export_onnx(program, taps).graph.output]

    assert outputs() == ["logits"]
    assert outputs("image") == ["logits"]
    assert outputs("norm_f.*", "tokens.out") == [
        "logits",
        *(f"{name}" for name in ("tokens.out", "norm_f.square_sum", "norm_f.rsqrt", "norm_f.normed", "norm_f.out")),
    ]
    assert outputs("head.*") == ["logits", "head.acc", "head.out"]
    with pytest.raises(UserError, match="no tensor matches 'nope'"):
        outputs("*.acc", "nope")


# --- the command ---


def intsim(*args: object) -> Any:
    return CliRunner().invoke(cli, [str(a) for a in args])


def test_command(tmp_path: Path) -> None:
    path, out = tmp_path / "model.safetensors", tmp_path / "model.onnx"
    save_program(random_program(7), path)
    result = intsim("export", "--format", "onnx", "--model", path, "--out", out, "--taps", "*.h", "--json", "-")
    assert result.exit_code == 0, result.output
    program = load_program(path)
    taps = ["layers.0.mixer.scan.h", "layers.0.mixer.scan_b.h"]
    assert json.loads(result.stdout) == {
        "out": str(out),
        "format": "onnx",
        "program": {"name": program.name, "profile": program.profile, "sha256": program.digest},
        "taps": taps,
        "bytes": out.stat().st_size,
    }
    found = session(out.read_bytes())
    assert [o.name for o in found.get_outputs()] == ["logits", *taps]
    (image,) = pixels(program, 1)
    (logits, *_) = found.run(None, {"image": image[None]})
    assert np.array_equal(logits, Oracle(program).run(image[None])["head.out"][0])
    result = intsim("export", "--format", "onnx", "--model", path, "--out", tmp_path / "plain.onnx")
    assert result.exit_code == 0 and f"{(tmp_path / 'plain.onnx').stat().st_size:,} bytes" in result.stdout


def test_command_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit status 2, one sentence, no file."""
    out = tmp_path / "model.onnx"

    def refused(*args: object, told: str) -> None:
        result = intsim("export", "--format", "onnx", *args)
        assert result.exit_code == 2 and result.stdout == "" and not out.exists()
        assert told in result.stderr and len(result.stderr.splitlines()) == 1

    refused("--out", out, "--taps", "nope", told="no tensor matches 'nope'")
    refused("--out", tmp_path, told="exists already")
    refused("--out", tmp_path / "none" / "model.onnx", told="there is no folder")
    refused("--out", out, "--model", tmp_path / "none", told="cannot be read")
    with monkeypatch.context() as patch:
        patch.setattr(golden.onnx.export, "MAX_CONSTANTS", 1_000_000)
        refused("--out", out, told="an ONNX file holds at most 1000000")
    monkeypatch.setitem(sys.modules, "onnx", None)
    refused("--out", out, told="pip install '.[onnx]'")
    assert list(tmp_path.iterdir()) == []
    assert intsim("export", "--format", "onx", "--out", out).exit_code == 2
