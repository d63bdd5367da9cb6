"""Builds a Program operator by operator; shifts, accumulators and their proof follow from what is given.

    b = Builder("demo", rounding="half_up", image=(32, 32, 3), classes=["a", "b"])
    b.add("patch_embed", "patch_embed.proj", {"image": "image"}, {"weight": w, "weight_exponent": e, "bias": bias},
          {"patch": 4, "stride": 4}, {"out": Out(bits=16, exponent=-9)})
    ...
    program = b.finish()
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from intsim.arithmetic import int64
from intsim.errors import ProgramError
from intsim.operators.base import ConstSpec, View
from intsim.program import Constant, Operator, Program, Tensor, Term
from intsim.validate import (
    GROUP_SUFFIX,
    check_operator,
    constant_name,
    group_spec,
    image_tensor,
    kind_of,
    state_terms,
    store,
    validate,
)


@dataclass(frozen=True)
class Out:
    """Chosen format of an output: width, base exponent, and optionally k-scaled groups along one axis.

    axis: "channel" or "token" or None; shifts: at most 4 left shifts; index: group of each position along axis.
    """

    bits: int
    exponent: int
    signed: bool = True
    axis: str | None = None
    shifts: tuple[int, ...] = ()
    index: Any = None


class Builder:
    """Collects operators into a Program (SPEC section 3); every call checks what it adds."""

    def __init__(
        self,
        name: str,
        *,
        profile: str = "custom",
        rounding: str = "half_up",
        image: tuple[int, int, int],
        classes: list[str],
        provenance: dict[str, Any] | None = None,
    ):
        self.program = Program(name, profile, rounding, image, list(classes), dict(provenance or {}))
        self.program.tensors["image"] = image_tensor(image)

    def add(
        self,
        kind: str,
        name: str,
        inputs: Mapping[str, str],
        constants: Mapping[str, Any],
        attributes: Mapping[str, Any],
        outputs: Mapping[str, Out],
    ) -> Operator:
        """Adds an operator: `inputs` port -> tensor, `constants` role -> integers, `outputs` port -> format.

        Only what cannot be derived is given.  Returns the operator; its tensors are named `op.tensor(port)`.
        Raises ProgramError (and leaves the Program as it was) if anything is not allowed.
        """
        before = (dict(self.program.tensors), dict(self.program.constants), dict(self.program.arrays))
        try:
            return self._add(kind, name, dict(inputs), dict(constants), dict(attributes), dict(outputs))
        except Exception:
            self.program.tensors, self.program.constants, self.program.arrays = before
            raise

    def _add(
        self,
        kind_name: str,
        name: str,
        inputs: dict[str, str],
        constants: dict[str, Any],
        attributes: dict[str, Any],
        outputs: dict[str, Out],
    ) -> Operator:
        program = self.program
        if any(op.name == name for op in program.operators):
            raise ProgramError(f"there is an operator {name} already")
        op = Operator(name, kind_name, inputs, {}, attributes, ())
        kind = kind_of(op)
        v = View(program, op)
        for role, values in constants.items():  # readable by the kind before their specs are known
            shared = constant_name(name, role)
            if shared in program.constants and not np.array_equal(program.arrays[shared], int64(values)):
                v.fail(f"constant {shared} is shared with earlier operators, and differs from theirs")
            op.constants[role] = shared
            program.arrays[shared] = int64(values)
        ports = kind.ports(v)
        order = kind.order(v)
        if set(ports) != set(outputs):
            v.fail(f"formats are given for {sorted(outputs)}, must be for {sorted(ports)}")
        for port, out in outputs.items():
            port_spec = ports[port]
            terms: tuple[Term, ...] = ()
            if port_spec.role == "state":
                terms = state_terms(op)
            elif out.axis is not None:
                role = port + GROUP_SUFFIX
                op.constants[role] = constant_name(name, role)
                program.arrays[op.constants[role]] = np.ascontiguousarray(int64(out.index).astype(np.uint8))
                terms = (Term(out.axis, shifts=tuple(int(s) for s in out.shifts), index=op.constants[role]),)
            tensor = Tensor(
                op.tensor(port),
                port_spec.role,
                port_spec.axes,
                port_spec.shape,
                out.bits,
                out.signed,
                int(out.exponent),
                terms,
            )
            program.tensors[tensor.name] = tensor
            if port_spec.role != "state" and terms:
                self._constant(op, port + GROUP_SUFFIX, group_spec(tensor))
        attributes.update(kind.derived_attributes(v))
        for role, spec in kind.given(v).items():
            if role not in constants:
                v.fail(f"constant {role!r} is not given")
            self._constant(op, role, spec)
        for role, (spec, array) in kind.derived_constants(v).items():
            if role in constants:
                v.fail(f"constant {role!r} follows from the exponents and may not be given")
            op.constants[role] = constant_name(name, role)
            program.arrays[op.constants[role]] = array
            self._constant(op, role, spec)
        program.tensors.update({t.name: t for t in kind.derived_tensors(v).values()})
        declared = {op.tensor(port): program.tensors.pop(op.tensor(port)) for port in order}
        program.tensors.update(declared)
        finished = Operator(name, kind_name, inputs, op.constants, attributes, order)
        check_operator(program, finished)
        program.operators.append(finished)
        return finished

    def _constant(self, op: Operator, role: str, spec: ConstSpec) -> None:
        """Declares a constant by its spec and moves its integers into their container."""
        name = op.constants[role]
        array = self.program.arrays[name]
        try:
            stored = store(array, spec.bits, spec.signed)
        except ProgramError as problem:
            raise ProgramError(f"operator {op.name}: constant {role}: {problem}") from None
        self.program.arrays[name] = stored
        self.program.constants[name] = Constant(
            name, spec.axes, tuple(stored.shape), spec.bits, spec.signed, spec.exponent, spec.terms
        )

    def finish(self) -> Program:
        """The Program, checked whole."""
        validate(self.program)
        return self.program
