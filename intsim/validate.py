"""Checks a Program, whole: declarations, values, wiring, derived shifts, and the proof of every accumulator.

The same derivations make a Program (`intsim.builder`) and check one: what is stored must equal what follows.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import numpy as np

from intsim.arithmetic import ROUNDINGS, bits_needed, container, int64, limits
from intsim.errors import ProgramError
from intsim.operators import KINDS
from intsim.operators.base import Bound, ConstSpec, Kind, PortSpec, View
from intsim.program import AXES, OVERFLOWS, ROLES, Array, Constant, Operator, Program, Tensor, Term

MAX_GROUPS = 4
MAX_GROUP_SHIFT = 15
MAX_EXPONENT = 127
MAX_ELEMENTS = 1 << 31
MAX_NAME = 200
MIN_NARROW = 2  # bits of an accumulator that may overflow
PROFILES: dict[str, int | None] = {"int8": 8, "wide-state": 16, "custom": None}  # bits of the state h
GROUP_SUFFIX = ".group"
PORT_NAME = re.compile(r"[A-Za-z0-9_]+")
OPERATOR_NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")  # names become file names and HDL identifiers


def require(condition: bool, problem: str) -> None:
    if not condition:
        raise ProgramError(problem)


def kind_of(op: Operator) -> Kind:
    kind = KINDS.get(op.kind)
    if kind is None:
        raise ProgramError(f"operator {op.name} has kind {op.kind!r}, known are {', '.join(sorted(KINDS))}")
    return kind


def validate(program: Program) -> None:
    """Raises ProgramError with one sentence if anything of the Program is not as SPEC.md says."""
    check_names(program)
    require(program.rounding in ROUNDINGS, f"rounding is {program.rounding!r}, allowed are {', '.join(ROUNDINGS)}")
    require(bool(program.operators), "the Program has no operators")
    require(set(program.constants) == set(program.arrays), "the arrays in the file are not the declared constants")
    for constant in program.constants.values():
        check_constant(program, constant)
    image = program.tensors.get("image")
    require(image == image_tensor(program.image), "tensor image is not the declared uint8 image")
    for tensor in program.tensors.values():
        check_tensor(program, tensor)
    made: dict[str, None] = {"image": None}  # the tensors made so far, in order
    used: set[str] = set()
    names = [op.name for op in program.operators]
    require(len(set(names)) == len(names), "two operators have the same name")
    for op in program.operators:
        for port, name in op.inputs.items():
            require(name in made, f"operator {op.name}: input {port!r} reads {name!r}, which no earlier operator makes")
        check_operator(program, op)
        for port in op.outputs:
            require(op.tensor(port) not in made, f"tensor {op.tensor(port)} is made twice")
            made[op.tensor(port)] = None
        used |= set(op.constants.values())
    require(list(program.tensors) == list(made), "the declared tensors are not those that the operators make, in order")
    logits = program.tensors[program.logits]
    require(
        logits.shape[-1] == len(program.classes),
        f"{len(program.classes)} class names are given, the logits {program.logits} are {list(logits.shape)}",
    )
    unused = sorted(set(program.constants) - used)
    require(not unused, f"constant {unused[0] if unused else ''} belongs to no operator")


def check_names(program: Program) -> None:
    """Names are short and plain: they end in file names, in headers of C and SystemVerilog, and on terminals."""
    name = program.name
    require(
        name.isprintable() and 1 <= len(name) <= MAX_NAME and not set(name) & set("/\\"),
        f"name is {name!r}, must be 1 to {MAX_NAME} printable characters without a slash",
    )
    require(program.profile in PROFILES, f"profile is {program.profile!r}, allowed are {', '.join(PROFILES)}")
    for text in program.classes:
        require(
            text.isprintable() and len(text) <= MAX_NAME,
            f"class name {text!r} must be at most {MAX_NAME} printable characters",
        )
    for op in program.operators:
        require(
            OPERATOR_NAME.fullmatch(op.name) is not None and len(op.name) <= MAX_NAME,
            f"operator name {op.name!r} must be letters, digits, _ and single dots, at most {MAX_NAME}",
        )
        for port in op.outputs:
            require(
                PORT_NAME.fullmatch(port) is not None and len(port) <= MAX_NAME,
                f"operator {op.name}: port name {port!r} must be letters, digits and _",
            )


def image_tensor(image: tuple[int, int, int]) -> Tensor:
    """Declaration of the network's input: uint8 [H, W, C], exponent 0."""
    require(
        len(image) == 3 and all(isinstance(n, int) and 1 <= n <= 65536 for n in image),
        f"image is {image!r}, must be height, width, channels",
    )
    return Tensor("image", "input", ("row", "column", "channel"), tuple(image), 8, False, 0)


def check_terms(program: Program, name: str, axes: tuple[str, ...], shape: tuple[int, ...], terms: Any) -> None:
    for term in terms:
        require(term.axis in axes, f"{name}: a term lies on axis {term.axis!r}, which it does not have")
        length = shape[axes.index(term.axis)]
        source = term.offset if term.offset is not None else term.index
        array = program.arrays.get(source)
        if array is None:
            raise ProgramError(f"{name}: a term names the constant {source!r}, which does not exist")
        require(array.shape == (length,), f"{name}: constant {source} has shape {array.shape}, must be ({length},)")
        if term.shifts is not None:
            require(
                1 <= len(term.shifts) <= MAX_GROUPS
                and all(isinstance(s, int) and 0 <= s <= MAX_GROUP_SHIFT for s in term.shifts),
                f"{name}: group shifts are {list(term.shifts)}, allowed are 1 to 4 of 0 .. {MAX_GROUP_SHIFT}",
            )
            require(
                array.dtype == np.uint8 and int(array.max(initial=0)) < len(term.shifts),
                f"{name}: a group index in {source} is not below {len(term.shifts)}",
            )


def check_tensor(program: Program, t: Tensor) -> None:
    require(t.role in ROLES, f"tensor {t.name} has role {t.role!r}, allowed are {', '.join(ROLES)}")
    require(len(t.axes) == len(t.shape) == len(set(t.axes)), f"tensor {t.name}: axes {t.axes} and shape {t.shape}")
    require(all(a in AXES for a in t.axes), f"tensor {t.name} has an unknown axis in {t.axes}")
    require(all(isinstance(n, int) and n >= 1 for n in t.shape), f"tensor {t.name} has shape {t.shape}")
    require(math.prod(t.shape) < MAX_ELEMENTS, f"tensor {t.name} has 2^31 elements or more")
    require(1 <= t.bits <= 63, f"tensor {t.name} has {t.bits} bits")
    if t.exponent is not None:
        require(abs(t.exponent) <= MAX_EXPONENT, f"tensor {t.name} has exponent {t.exponent}")
    check_terms(program, t.name, t.axes, t.shape, t.terms)


def check_constant(program: Program, c: Constant) -> None:
    array = program.arrays[c.name]
    require(1 <= c.bits <= 63, f"constant {c.name} has {c.bits} bits")
    if array.dtype != c.dtype:  # no message is made for nothing: there are many constants
        raise ProgramError(f"constant {c.name} has dtype {array.dtype}, must be {c.dtype}")
    if array.ndim < 1 or array.shape != tuple(c.shape) or len(c.axes) != array.ndim or array.size == 0:
        raise ProgramError(f"constant {c.name} has shape {list(array.shape)}, declared is {list(c.shape)}")
    low, high = limits(c.bits, c.signed)
    if int(array.min()) < low or int(array.max()) > high:
        raise ProgramError(f"constant {c.name} holds a value outside {c.bits} bits ({low} .. {high})")
    check_terms(program, c.name, c.axes, c.shape, c.terms)


def check_given(v: View, role: str, spec: ConstSpec) -> None:
    """A constant equals its spec in everything but a narrower declared width."""
    name = v.op.constants.get(role)
    v.require(name in v.program.constants, f"constant {role!r} is missing")
    declared = v.constant(role)
    wanted = Constant(declared.name, spec.axes, spec.shape, declared.bits, spec.signed, spec.exponent, spec.terms)
    if declared != wanted:  # no message is made for nothing: there are many constants
        v.fail(f"constant {role} is declared as {declared}, must be {wanted}")
    if declared.bits > spec.bits:
        v.fail(f"constant {role} has {declared.bits} bits, at most {spec.bits} are allowed")
    if spec.low is None and spec.high is None:
        return
    array = v.array(role)
    least, most = int(array.min()), int(array.max())
    low = spec.low if spec.low is not None else least
    high = spec.high if spec.high is not None else most
    if least < low or most > high:
        bad = array[(array < low) | (array > high)]
        v.fail(f"constant {role} holds {int(bad[0])}, allowed are {low} .. {high}")


def check_port(v: View, port: str, spec: PortSpec) -> None:
    """An output of free format is of the right shape, width, and has groups only where they are allowed."""
    t = v.output(port)
    v.require(
        (t.role, t.axes, t.shape) == (spec.role, spec.axes, spec.shape),
        f"output {port} is {t.role} {list(t.axes)} {list(t.shape)}, "
        f"must be {spec.role} {list(spec.axes)} {list(spec.shape)}",
    )
    v.require(t.overflow is None, f"output {port} may not have an overflow: a requantization saturates")
    v.require(t.bits <= spec.max_bits, f"output {port} has {t.bits} bits, at most {spec.max_bits} are allowed")
    v.require(spec.bits is None or t.bits == spec.bits, f"output {port} has {t.bits} bits, must have {spec.bits}")
    v.require(t.exponent is not None, f"output {port} has no exponent")
    v.require(
        spec.exponent is None or t.exponent == spec.exponent,
        f"output {port} has exponent {t.exponent}, must have {spec.exponent}",
    )
    v.require(spec.signed is None or t.signed == spec.signed, f"output {port} must have signed = {spec.signed}")
    if spec.role == "state":
        return  # its terms are compared by the scan's own rule in check_operator
    v.require(len(t.terms) <= 1, f"output {port} has more than one group term")
    for term in t.terms:
        v.require(
            term.shifts is not None and term.axis in spec.group_axes,
            f"output {port} has a term on {term.axis}, allowed are groups on {' or '.join(spec.group_axes)}",
        )
        v.require(
            term.index == v.op.constants.get(port + GROUP_SUFFIX),
            f"output {port} has its group index in {term.index}, must be constant {port + GROUP_SUFFIX}",
        )


def check_operator(program: Program, op: Operator) -> dict[str, Bound]:
    """Checks one operator against its kind; returns the proven interval of each accumulator."""
    kind = kind_of(op)
    v = View(program, op)
    v.require(set(op.inputs) == set(kind.inputs), f"inputs are {sorted(op.inputs)}, must be {sorted(kind.inputs)}")
    ports = kind.ports(v)
    v.require(op.outputs == kind.order(v), f"outputs are {list(op.outputs)}, must be {list(kind.order(v))}")
    for port, port_spec in ports.items():
        check_port(v, port, port_spec)
    derived_attributes = kind.derived_attributes(v)
    wanted = {*kind.attributes, *derived_attributes}
    v.require(set(op.attributes) == wanted, f"attributes are {sorted(op.attributes)}, must be {sorted(wanted)}")
    for name, value in derived_attributes.items():
        stated = op.attributes[name]
        v.require(type(stated) is int and stated == value, f"attribute {name} is {stated!r}, must be {value}")
    given = kind.given(v)
    for role, const_spec in given.items():
        check_given(v, role, const_spec)
    derived = kind.derived_constants(v)
    for role, (const_spec, array) in derived.items():
        check_given(v, role, const_spec)
        v.require(np.array_equal(v.array(role), array), f"constant {role} is not what the exponents imply")
    groups = [port + GROUP_SUFFIX for port in ports if v.output(port).terms and ports[port].role != "state"]
    for role in groups:
        tensor = v.output(role[: -len(GROUP_SUFFIX)])
        check_given(v, role, group_spec(tensor))
    v.require(
        set(op.constants) == {*given, *derived, *groups},
        f"constants are {sorted(op.constants)}, must be {sorted({*given, *derived, *groups})}",
    )
    for role, name in op.constants.items():
        v.require(name == constant_name(op.name, role), f"constant {role} is named {name}")
    if op.kind == "scan":
        bits = PROFILES[program.profile]
        v.require(
            bits in (None, v.output("h").bits),
            f"h has {v.output('h').bits} bits, profile {program.profile} has {bits}",
        )
        v.require(v.output("h").terms == state_terms(op), "output h must have the terms of the state's shifts")
    tensors = kind.derived_tensors(v)
    for port, tensor in tensors.items():
        if v.output(port).overflow is not None:
            tensor = narrowed(v, kind, port, tensor)
        v.require(v.output(port) == tensor, f"tensor {port} is declared as {v.output(port)}, must be {tensor}")
    v.require(set(op.outputs) == {*ports, *tensors}, f"outputs are {list(op.outputs)}")
    bounds = kind.bounds(v)
    for port, bound in bounds.items():
        if v.output(port).overflow is None:
            check_bound(v, port, bound)
    return bounds


def narrowed(v: View, kind: Kind, port: str, tensor: Tensor) -> Tensor:
    """The declaration that a narrow accumulator must have, from the one of full width (SPEC section 13)."""
    made = v.output(port)
    v.require(port in kind.narrowable, f"tensor {port} may not have an overflow, allowed are {kind.narrowable}")
    v.require(made.overflow in OVERFLOWS, f"overflow of {port} is {made.overflow!r}, must be {' or '.join(OVERFLOWS)}")
    v.require(
        MIN_NARROW <= made.bits <= tensor.bits,
        f"accumulator {port} has {made.bits} bits, allowed are {MIN_NARROW} .. {tensor.bits}",
    )
    return replace(tensor, bits=made.bits, overflow=made.overflow)


def check_bound(v: View, port: str, bound: Bound) -> None:
    """Refuses an accumulator that some input could drive out of its declared width (SPEC section 7)."""
    declared = v.output(port).bits
    low, high = np.broadcast_arrays(bound.low, bound.high)
    least, most = limits(declared, True)
    outside = (low < least) | (high > most)
    if outside.any():
        channel = int(outside.argmax())
        needed = bits_needed(int(low[channel]), int(high[channel]))
        v.fail(f"accumulator {port}, channel {channel}, needs {needed} bits, {declared} are declared")


def group_spec(tensor: Tensor) -> ConstSpec:
    """Spec of the group index of a k-scaled tensor."""
    term = tensor.terms[0]
    return ConstSpec((term.axis,), (tensor.shape[tensor.axes.index(term.axis)],), 8, False, low=0, high=MAX_GROUPS - 1)


def state_terms(op: Operator) -> tuple[Term, Term]:
    return (
        Term("channel", offset=op.constants["state_channel_shift"]),
        Term("token", offset=op.constants["state_token_shift"]),
    )


def constant_name(operator: str, role: str) -> str:
    """Name of an operator's constant (SPEC 3.4)."""
    return "exp2.rom" if role == "exp2_rom" else f"{operator}.{role}"


def store(array: Array, bits: int, signed: bool) -> Array:
    """`array` in the container of its width; refuses a value that does not fit."""
    values = int64(array)
    low, high = limits(bits, signed)
    if values.size and (int(values.min()) < low or int(values.max()) > high):
        raise ProgramError(f"a value of {int(values.min())} .. {int(values.max())} does not fit {bits} bits")
    return np.ascontiguousarray(values.astype(container(bits, signed)))
