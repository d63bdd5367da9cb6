"""What the formats share: what a file says of itself, what it holds, and what each format offers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from golden.formats.packing import Layout
from intsim.arithmetic import limits
from intsim.program import Array, Constant, Tensor


@dataclass(frozen=True)
class Head:
    """What a file of integers says of itself: the name, where each element lies, and the lines of its comment."""

    name: str
    layout: Layout
    comments: tuple[str, ...] = ()


@dataclass(frozen=True)
class Elements:
    """What a file holds.

    values: integers in the tensor's shape.  Of a format without bit widths (npy, bin, c) they may lie outside the
    declared range.  unknown: bool in the same shape, True where a simulator wrote x or z (there, values is 0 in the
    unknown bits); None where nothing is unknown.
    """

    values: Array
    unknown: Array | None = None


@dataclass(frozen=True)
class Format:
    """A format of files.

    ending: of file names.  encode: integers in the layout's shape and container -> the file's bytes, always the same
    for the same integers; ValueError for an integer outside the declared range.  decode: the bytes -> elements;
    UserError that says what is wrong (without the file's name) for anything else than a file of that layout.
    largest: more bytes than any sensible file of that layout has.  packed: whether order and lanes apply.  comments:
    whether a file says of itself what it is.
    """

    ending: str
    title: str
    encode: Callable[[Array, Head], bytes]
    decode: Callable[[bytes, Layout], Elements]
    largest: Callable[[Layout], int]
    packed: bool = True
    comments: bool = True


def check(values: Array, layout: Layout) -> None:
    """What every writer asks of its input.  TypeError for a dtype without integers, ValueError for the rest."""
    if values.dtype.kind not in "iu":
        raise TypeError(f"expected integers, got dtype {values.dtype}")
    if values.shape != layout.shape:
        raise ValueError(f"shape {values.shape}, must be {layout.shape}")
    low, high = limits(layout.bits, layout.signed)
    if values.size and (int(values.min()) < low or int(values.max()) > high):
        raise ValueError(f"an integer of {int(values.min())} .. {int(values.max())} does not fit {low} .. {high}")


def comment_lines(comments: tuple[str, ...], mark: str) -> bytes:
    """Each comment on a line of its own, behind `mark` and a blank."""
    for comment in comments:
        if not comment.isascii() or not comment.isprintable():
            raise ValueError(f"comment {comment!r} is not one line of printable ASCII")
    return "".join(f"{mark} {comment}\n" for comment in comments).encode()


def comments(declared: Tensor | Constant, layout: Layout, program: str) -> tuple[str, ...]:
    """What a file says of itself: name, shape, order, bits, lanes, exponent, and the Program's hash."""
    terms = ", with groups or offsets" if declared.terms else ""
    exponent = "none" if declared.exponent is None else f"{declared.exponent}{terms}"
    lines = [
        f"tensor {declared.name}",
        f"shape {'x'.join(map(str, declared.shape))} ({', '.join(declared.axes)})",
        layout.words_text(),
        f"bits {declared.bits} {'signed' if declared.signed else 'unsigned'}",
        f"exponent {exponent}",
        f"program {program}",
    ]
    if layout.padding:
        lines.insert(3, f"padding {layout.padding} elements of 0")
    return tuple(lines)
