"""From a Program to an ONNX model (FORMAT.md section 9)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import onnx
from onnx import FunctionProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from golden.onnx.functions import FUNCTIONS, linear
from golden.onnx.nodes import DOMAIN, INT32, INT64, IR_VERSION, Nodes, opset_imports
from intsim import __version__
from intsim.arithmetic import limits
from intsim.errors import UserError
from intsim.operators.base import View, format_limits
from intsim.program import Array, Operator, Program
from intsim.program_file import program_bytes
from intsim.taps import select

NO_SHIFT = "no_shift"
MAX_CONSTANTS = 2_000_000_000  # bytes; a Protocol Buffers message ends at 2^31 - 1


def onnx_bytes(program: Program, taps: Iterable[str] = ()) -> bytes:
    """The ONNX file, checked with `onnx.checker`; the same bytes for the same Program and taps.

    Raises UserError for a glob that matches no tensor, or a Program too large for one ONNX file.
    """
    size = sum(array.nbytes for array in program.arrays.values())
    if size > MAX_CONSTANTS:
        raise UserError(f"{program.name}: its constants are {size} bytes, an ONNX file holds at most {MAX_CONSTANTS}")
    model = export_onnx(program, taps)
    onnx.checker.check_model(model, full_check=True)
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def export_onnx(program: Program, taps: Iterable[str] = ()) -> ModelProto:
    """The model: `image` uint8 [1, H, W, C] -> `logits` int32 [1, classes], and a tensor for each name in `taps`.

    A tap has the name, the shape and the container of the Program's tensor.  `image` is an input already, and no tap.
    """
    program.require_full_width("it cannot be exported")
    names = tap_names(program, taps)
    if program.digest is None:
        program_bytes(program)  # sets it
    graph = _Graph(program)
    for op in program.operators:
        graph.operator(op)
    graph.nodes.add("Reshape", [program.logits, graph.vector("logits_shape", [1, -1])], ["logits_row"], {})
    graph.nodes.cast("logits_row", INT32, out="logits")
    size = int(np.prod(program.tensors[program.logits].shape))
    logits = helper.make_tensor_value_info("logits", INT32, [1, size])
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, [1, *program.image])
    made = helper.make_graph(
        graph.nodes.nodes,
        program.name,
        [image],
        [logits, *(graph.declared(name) for name in names)],
        [numpy_helper.from_array(array, name) for name, array in graph.initializers.items()],
        doc_string=f"{program.name}, profile {program.profile}, SPEC {program.spec}: integers only",
    )
    model = helper.make_model(
        made,
        opset_imports=opset_imports(),
        ir_version=IR_VERSION,
        functions=local_functions(program.rounding, graph.nodes.nodes),
        producer_name="intsim",
        producer_version=__version__,
    )
    helper.set_model_props(model, metadata(program))
    return model


def tap_names(program: Program, taps: Iterable[str]) -> list[str]:
    """Names of the outputs for `taps`, in execution order.  Raises UserError for a glob that matches nothing."""
    found: set[str] = set()
    for glob in taps:
        matched = set(select(program, [glob]))
        found |= matched if fnmatchcase(program.logits, glob) else matched - {program.logits}
    return [name for name in program.tensors if name in found - {"image"}]


def metadata(program: Program) -> dict[str, str]:
    """What the file says of the Program; values are texts, lists in JSON."""
    declared = program.tensors[program.logits]
    exponents = {int(e) for e in program.exponent_grid(program.logits).ravel()}
    exponent = exponents.pop() if len(exponents) == 1 else program.exponents(program.logits, "channel").tolist()
    return {
        "program": program.digest or "",
        "spec": program.spec,
        "name": program.name,
        "profile": program.profile,
        "rounding": program.rounding,
        "logits": declared.name,
        "logits_exponent": json.dumps(exponent),
        "classes": json.dumps(program.classes),
    }


def local_functions(rounding: str, nodes: Iterable[NodeProto]) -> list[FunctionProto]:
    """The local functions that the nodes call, and those that these call, callees first."""
    found: dict[str, FunctionProto] = {}

    def visit(nodes: Iterable[NodeProto]) -> None:
        for node in nodes:
            if node.domain == DOMAIN and node.op_type not in found:
                function = FUNCTIONS[node.op_type].to_proto(rounding)
                visit(function.node)
                found[node.op_type] = function
            for attribute in node.attribute:
                visit(attribute.g.node)

    visit(nodes)
    return list(found.values())


class _Graph:
    """The main graph: one call for each operator, and the constants these read."""

    def __init__(self, program: Program):
        self.program = program
        self.nodes = Nodes(prefix="value")
        self.initializers: dict[str, Array] = {}
        self.shifts: set[str] = set()

    def declared(self, tensor: str) -> ValueInfoProto:
        """A tensor as a graph output."""
        t = self.program.tensors[tensor]
        return helper.make_tensor_value_info(tensor, helper.np_dtype_to_tensor_dtype(t.dtype), list(t.shape))

    def constant(self, op: Operator, role: str) -> str:
        """A constant of the Program: an initializer of the same name and integers.

        A port may be called as a role is; then the tensor keeps the name.
        """
        source = op.constants[role]
        name = f"{source}:constant" if source in self.program.tensors else source
        self.initializers[name] = self.program.arrays[source]
        return name

    def vector(self, name: str, values: Any) -> str:
        """int64 integers that are no constant of the Program, under a name that none of its tensors can have."""
        self.initializers[name] = np.array(values, dtype=np.int64)
        return name

    def group_shift(self, tensor: str, axis: str) -> str:
        """Group shift of a tensor along an axis, as a row (channel) or a column (token); a single 0 without one."""
        term = self.program.tensors[tensor].group(axis)
        if term is None or term.index is None:
            return self.vector(NO_SHIFT, 0)
        name = f"{tensor}:shift"
        if name not in self.shifts:
            self.shifts.add(name)
            op = self.program.producer(tensor)
            assert op is not None
            index = self.constant(op, term.index.removeprefix(op.name + "."))
            kind = "groups" if axis == "channel" else "token_groups"
            self.nodes.add(kind, [index], [name], {"shifts": list(term.shifts or ())})
        return name

    def format_of(self, op: Operator, port: str, prefix: str = "") -> dict[str, int]:
        """Range and type of an output."""
        t = self.program.tensors[op.tensor(port)]
        low, high = limits(t.bits, t.signed)
        kind = helper.np_dtype_to_tensor_dtype(t.dtype)
        return {f"{prefix}low": low, f"{prefix}high": high, f"{prefix}type": kind}

    def total(self, op: Operator) -> int:
        """int32 if no sum of some of the products leaves it, whatever the input; else int64.

        SPEC section 7 proves it of the sum with the bias only.
        """
        v = View(self.program, op)
        weight = v.array("weight")
        low, high = (-128, 127) if op.kind == "patch_embed" else format_limits(v.input("x"))
        shift = np.zeros(1, dtype=np.int64)
        if op.kind == "linear":
            shift = v.shifts("x", "channel") + v.shifts("x", "token").max()
        largest = int(((np.abs(weight) << shift) * max(-low, high)).sum(axis=1).max())
        return INT32 if largest < 1 << 31 else INT64

    def call(self, op: Operator, function: str, inputs: list[str], attributes: dict[str, Any]) -> None:
        self.nodes.add(function, inputs, [op.tensor(port) for port in op.outputs], attributes, op.name)

    def constants(self, op: Operator, roles: str) -> list[str]:
        return [self.constant(op, role) for role in roles.split()]

    def operator(self, op: Operator) -> None:
        make: Callable[[Operator], None] | None = getattr(self, op.kind, None)
        if make is None:
            raise UserError(f"operator {op.name}: the kind {op.kind!r} has no ONNX form")
        make(op)

    def patch_embed(self, op: Operator) -> None:
        height, width, channels = self.program.image
        patch, stride = op.attributes["patch"], op.attributes["stride"]
        rows = np.arange(0, height - patch + 1, stride)
        columns = np.arange(0, width - patch + 1, stride)
        start = (rows[:, None] * width + columns) * channels
        inside = np.arange(patch)
        offset = (inside[:, None] * width + inside) * channels + np.arange(channels)[:, None, None]
        inputs = [
            op.inputs["image"],
            self.vector(f"{op.name}:patch_start", start.ravel()),
            self.vector(f"{op.name}:element_offset", offset.ravel()),
            *self.constants(op, "weight bias shift"),
        ]
        self.call(op, "patch_embed", inputs, {**self.format_of(op, "out"), "total": self.total(op)})

    def insert_token(self, op: Operator) -> None:
        inputs = [op.inputs["x"], *self.constants(op, "cls_token pos_embed")]
        self.call(
            op, "insert_token", inputs, {**self.format_of(op, "out"), "position": op.attributes["position"]}
        )

    def rmsnorm(self, op: Operator) -> None:
        inputs = [op.inputs["x"], *self.constants(op, "gamma shift")]
        self.call(op, "rmsnorm", inputs, {**self.format_of(op, "out"), **op.attributes})

    def linear(self, op: Operator) -> None:
        x = op.inputs["x"]
        tokens = self.program.tensors[x].group("token") is not None
        shift = self.group_shift(x, "token" if tokens else "channel")
        segments = op.attributes["segments"]
        attributes: dict[str, Any] = {"total": self.total(op)}
        if len(segments) > 1:
            attributes["sizes"] = [s["stop"] - s["start"] for s in segments]
        for i, segment in enumerate(segments):
            attributes.update(self.format_of(op, segment["port"], f"out{i}_"))
        inputs = [x, shift, *self.constants(op, "weight bias shift")]
        self.call(op, linear(len(segments)).name, inputs, attributes)

    def conv1d(self, op: Operator) -> None:
        function = "conv1d_reverse" if op.attributes["reverse"] else "conv1d"
        inputs = [op.inputs["x"], *self.constants(op, "weight bias shift")]
        self.call(op, function, inputs, self.format_of(op, "out"))

    def rom(self, op: Operator) -> None:
        inputs = [op.inputs["x"], *self.constants(op, "rom rom_index")]
        self.call(op, "rom", inputs, {"type": self.format_of(op, "out")["type"]})

    def scan(self, op: Operator) -> None:
        inputs = [op.inputs[port] for port in ("delta", "u", "B", "C")]
        inputs += self.constants(op, "A A_fraction D state_token_shift b_shift y_shift exp2_rom")
        inputs.append(self.group_shift(op.tensor("y"), "token"))
        attributes = {
            "abar_fraction": op.attributes["abar_fraction"],
            "abar_type": self.format_of(op, "abar")["type"],
            **self.format_of(op, "h", "h_"),
            **self.format_of(op, "y", "y_"),
        }
        self.call(op, "scan", inputs, attributes)

    def gate(self, op: Operator) -> None:
        y, y_b, g = (op.inputs[port] for port in ("y", "y_b", "g"))
        inputs = [y, self.group_shift(y, "token"), y_b, self.group_shift(y_b, "token"), g]
        inputs += [self.constant(op, "shift"), self.group_shift(op.tensor("out"), "token")]
        self.call(op, "gate", inputs, {**self.format_of(op, "out"), **op.attributes})

    def add(self, op: Operator) -> None:
        self.call(op, "add", [op.inputs["x"], op.inputs["y"]], self.format_of(op, "out"))

    def select_token(self, op: Operator) -> None:
        self.call(op, "select_token", [op.inputs["x"]], {"position": op.attributes["position"]})
