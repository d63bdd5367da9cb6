""".npy: NumPy's format, version 1.0, little-endian, C order, in the tensor's shape and container.

Order and lanes do not apply.  The reader also takes versions 2 and 3, other integer dtypes and byte orders and
Fortran order; it never unpickles.
"""

from __future__ import annotations

import ast
import math

import numpy as np

from golden.formats.base import Elements, Format, Head, check
from golden.formats.packing import Layout
from intsim.errors import UserError
from intsim.program import Array

MAGIC = b"\x93NUMPY"
MAX_HEADER = 4096
INTEGERS = {f"{order}{kind}{size}" for order in "<>|=" for kind in "iu" for size in (1, 2, 4, 8)}


def encode(values: Array, head: Head) -> bytes:
    """The same bytes from every version of NumPy."""
    layout = head.layout
    check(values, layout)
    dtype = layout.dtype.newbyteorder("<")
    shape = ", ".join(map(str, layout.shape)) + ("," if len(layout.shape) == 1 else "")
    front = f"{{'descr': '{dtype.str}', 'fortran_order': False, 'shape': ({shape}), }}"
    front += " " * (-(len(front) + 11) % 64) + "\n"
    data = np.ascontiguousarray(values, dtype=dtype).tobytes()
    return MAGIC + b"\x01\x00" + len(front).to_bytes(2, "little") + front.encode("ascii") + data


def decode(data: bytes, layout: Layout) -> Elements:
    """Any integer dtype; the values may lie outside the declared range."""
    if data[:6] != MAGIC or len(data) < 12:
        raise UserError("it is not a NumPy file")
    size, start = (2, 10) if data[6] == 1 else (4, 12)
    length = int.from_bytes(data[8 : 8 + size], "little")
    if data[6] not in (1, 2, 3) or data[7] != 0 or length > MAX_HEADER or start + length > len(data):
        raise UserError("its header is malformed or cut off")
    try:
        head = ast.literal_eval(data[start : start + length].decode("ascii").strip())
        descr, fortran, shape = head["descr"], head["fortran_order"], tuple(head["shape"])
    except (ValueError, SyntaxError, KeyError, TypeError, MemoryError, RecursionError):
        raise UserError("its header is malformed") from None
    if not isinstance(descr, str) or descr not in INTEGERS:
        raise UserError(f"it holds {str(descr)[:40]!r}, must be integers")
    if shape != layout.shape:
        raise UserError(f"its shape is {list(shape)}, must be {list(layout.shape)}")
    dtype = np.dtype(descr)
    body = data[start + length :]
    if len(body) != math.prod(shape) * dtype.itemsize:
        raise UserError(f"it has {len(body)} bytes of integers, must have {math.prod(shape) * dtype.itemsize}")
    values = np.frombuffer(body, dtype=dtype).astype(dtype.newbyteorder("="))
    return Elements(values.reshape(shape, order="F" if fortran else "C"))


def largest(layout: Layout) -> int:
    return 12 + MAX_HEADER + 8 * layout.size


NPY = Format("npy", "NumPy array", encode, decode, largest, packed=False, comments=False)
