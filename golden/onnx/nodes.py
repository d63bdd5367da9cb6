"""Building blocks of an ONNX graph: lists of nodes, and local functions with their attributes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import AttributeProto, FunctionProto, NodeProto, TensorProto, helper, numpy_helper

OPSET = 18  # the first with BitwiseAnd
IR_VERSION = 8  # the first with local functions
DOMAIN = "intsim"  # of the local functions
INT32, INT64, UINT64 = TensorProto.INT32, TensorProto.INT64, TensorProto.UINT64


@dataclass(frozen=True)
class Ref:
    """An attribute of a node whose value is the attribute `name` of the function that the node stands in."""

    name: str
    many: bool = False  # a list of integers


@dataclass
class Nodes:
    """Nodes under construction.  Each call adds one and returns the name of the value that it makes.

    rounding: the Program's mode, for the function that rounds.  prefix: of the names of values, so that those of a
    nested graph differ from those around it.
    """

    rounding: str = ""
    prefix: str = "v"
    nodes: list[NodeProto] = field(default_factory=list)
    constants: dict[Any, str] = field(default_factory=dict)  # those made so far

    def __call__(self, kind: str, *inputs: str, out: str | None = None, **attributes: Any) -> str:
        made = out or f"{self.prefix}{len(self.nodes)}"
        self.add(kind, inputs, [made], attributes)
        return made

    def several(self, kind: str, *inputs: str, count: int, **attributes: Any) -> list[str]:
        """As a call, for an operator with `count` outputs."""
        made = [f"{self.prefix}{len(self.nodes)}_{i}" for i in range(count)]
        self.add(kind, inputs, made, attributes)
        return made

    def add(
        self, kind: str, inputs: Sequence[str], outputs: Sequence[str], attributes: dict[str, Any], name: str = ""
    ) -> None:
        """A node; `kind` is a standard operator, or a local function where that has the name in lower case."""
        domain = DOMAIN if kind[0].islower() else None
        plain = {key: value for key, value in attributes.items() if not isinstance(value, Ref)}
        node = helper.make_node(kind, inputs, outputs, domain=domain, name=name or None, **plain)
        for key, value in attributes.items():
            if isinstance(value, Ref):
                kind_of_value = AttributeProto.INTS if value.many else AttributeProto.INT
                node.attribute.append(AttributeProto(name=key, ref_attr_name=value.name, type=kind_of_value))
        self.nodes.append(node)

    def constant(self, value: Any, dtype: type = np.int64) -> str:
        """A constant: an integer or a list of them; with a `Ref`, int64 of the function's attribute."""
        key = (repr(value), dtype)
        if key not in self.constants:
            if isinstance(value, Ref):
                made = self("Constant", value_ints=value) if value.many else self("Constant", value_int=value)
            else:
                made = self("Constant", value=numpy_helper.from_array(np.array(value, dtype=dtype)))
            self.constants[key] = made
        return self.constants[key]

    def cast(self, value: str, to: int | Ref = INT64, out: str | None = None) -> str:
        return self("Cast", value, to=to, out=out)

    def power(self, shift: str) -> str:
        """2^shift, for int64 shifts 0 .. 62."""
        return self.cast(self("BitShift", self.constant(1, np.uint64), self.cast(shift, UINT64), direction="LEFT"))


@dataclass(frozen=True)
class Function:
    """A local function: `build(nodes)` adds its body, which makes values with the names of `outputs`."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: tuple[str, ...]
    build: Callable[[Nodes], None]

    def to_proto(self, rounding: str) -> FunctionProto:
        nodes = Nodes(rounding)
        self.build(nodes)
        return helper.make_function(
            DOMAIN,
            self.name,
            self.inputs,
            self.outputs,
            nodes.nodes,
            opset_imports=opset_imports(),
            attributes=self.attributes,
            doc_string=" ".join((self.build.__doc__ or "").split()),
        )


def opset_imports() -> list[Any]:
    return [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
