"""Hints: what a design may have done wrong, told by what it made instead.

    hints(scene) -> [Hint], the best first

A *signature* is a known mistake that predicts every element of the tensor.  It *explains* an element if it predicts
the wrong value that the DUT has.  What can be said:

    certain     it explains every differing element and predicts no other difference, no signature of another kind
                does, and at least CERTAIN_FROM elements differ
    consistent  it explains every differing element and predicts no other difference
    partial     it explains most of them (at least PARTIAL_FROM), or predicts differences that are not there
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from golden.formats.packing import Layout, from_stream, pack, to_stream, unpack
from golden.verdict.arithmetic import GROUP, REVERSED, SIGN, Requantization, accumulators, requantization, rows_of
from golden.verdict.scene import Scene, clip, unsigned, wrap
from intsim.arithmetic import ROUNDINGS, Int64, int64, round_shift
from intsim.program import Array

CERTAIN_FROM = 8
PARTIAL_FROM = 0.5
MOST = 3  # hints that are given
LANES = (2, 4, 8, 16, 32)  # tried where a file has one lane a word
ROUNDING, SATURATION, WRAPPED = "off by one in rounding", "missed saturation", "accumulator wrapped"
LANE, BYTES, LATE = "lanes swapped", "byte order", "one token late"


@dataclass(frozen=True)
class Hint:
    """kind: the signature.  detail: which case of it.  explains: elements, of `differing`; false: predicted ones that
    do not differ."""

    kind: str
    detail: str
    certainty: str
    explains: int
    differing: int
    false: int = 0

    @property
    def text(self) -> str:
        all_of_it = f"explains all {self.differing} differing elements"
        if self.certainty == "certain":
            return f"{self.kind}: {self.detail} (certain: {all_of_it}, and no other signature does)"
        if self.certainty == "consistent":
            return f"consistent with {self.kind}: {self.detail} ({all_of_it})"
        told = f"explains {self.explains} of {self.differing} differing elements"
        if self.false:
            told += f", but {self.false} more would differ"
        return f"resembles {self.kind}: {self.detail} ({told})"


@dataclass(frozen=True)
class Signature:
    """A mistake.  predict: what the tensor would be, and where that is known (None: everywhere)."""

    kind: str
    detail: str
    predict: Callable[[], tuple[Int64, Array | None]]


def hints(scene: Scene) -> list[Hint]:
    """What explains the mismatches of the scene's tensor, the best first; empty if no signature comes near."""
    unknown = scene.unknown
    differs = scene.actual != scene.expected
    if unknown is not None:
        differs &= ~unknown
    found: list[Hint] = []
    if unknown is not None and unknown.any():
        count = int(unknown.sum())
        elements = "1 element has" if count == 1 else f"{count} elements have"
        detail = f"{elements} x or z bits: never driven, never reset or never written"
        found.append(Hint("unknown bits", detail, "certain" if not differs.any() else "consistent", count, count))
    if not differs.any():
        return found
    scored = []
    for number, signature in enumerate(signatures(scene)):
        score = _score(scene, signature, differs)
        if score is not None:
            scored.append((score, number, signature))
    complete = [(hit, false, s) for (hit, false), _, s in scored if hit == int(differs.sum()) and not false]
    count = int(differs.sum())
    if complete:
        kinds = list(dict.fromkeys(s.kind for _, _, s in complete))
        sure = len(kinds) == 1 and count >= CERTAIN_FROM and unknown is None
        for kind in kinds[:MOST]:
            detail = next(s.detail for _, _, s in complete if s.kind == kind)
            found.append(Hint(kind, detail, "certain" if sure else "consistent", count, count))
        return found
    best: dict[str, Hint] = {}
    for (hit, false), _, s in sorted(scored, key=lambda item: (item[0][1] - item[0][0], item[1])):
        if hit - false >= PARTIAL_FROM * count and s.kind not in best:
            best[s.kind] = Hint(s.kind, s.detail, "partial", hit, count, false)
    return found + list(best.values())[:MOST]


def _score(scene: Scene, signature: Signature, differs: Array) -> tuple[int, int] | None:
    """(elements explained, differences predicted that are not there); None if it predicts nothing at all."""
    predicted, known = signature.predict()
    changes = predicted != scene.expected
    free = np.zeros_like(differs) if known is None else np.broadcast_to(~known, differs.shape)
    if scene.unknown is not None:
        free = free | scene.unknown
    if not (changes & ~free).any():
        return None
    hit = differs & (free | (predicted == scene.actual))
    false = changes & ~differs & ~free
    if not (hit & ~free).any():
        return None
    return int(hit.sum()), int(false.sum())


def signatures(scene: Scene) -> Iterator[Signature]:
    """All that apply, the likelier first where two explain the same."""
    same = list(_constant(scene))
    if same:  # explains anything, and nothing else explains it better
        yield from same
        return
    yield from _structure(scene)
    yield from _bytes(scene)
    yield from _arithmetic(scene)
    yield from _widths(scene)
    yield from _other(scene)


def _constant(scene: Scene) -> Iterator[Signature]:
    """The same value everywhere."""
    first = int(scene.actual.reshape(-1)[0])
    if scene.actual.size > 1 and (scene.actual == first).all() and scene.unknown is None:
        told = "never written" if first == 0 else "a register that never changes"
        made = np.full_like(scene.expected, first)
        yield Signature("one value everywhere", f"every element is {first}: {told}", _whole(made))


def _whole(values: Int64) -> Callable[[], tuple[Int64, Array | None]]:
    return lambda: (values, None)


def _structure(scene: Scene) -> Iterator[Signature]:
    """Elements that are right but in the wrong place."""
    expected, axes = scene.expected, scene.tensor.axes
    for number, axis in enumerate(axes):
        if expected.shape[number] < 2:
            continue
        kind = REVERSED if axis == "token" else f"{axis}s reversed"
        yield Signature(kind, f"the last {axis} first", _whole(np.flip(expected, number)))
        for steps in (1, -1, 2, -2, 3, -3):
            if abs(steps) >= expected.shape[number]:
                continue
            kind = LATE if axis == "token" and steps > 0 else f"one {axis} {'late' if steps > 0 else 'early'}"
            much = f"{abs(steps)} {axis}{'s' if abs(steps) > 1 else ''} {'late' if steps > 0 else 'early'}"
            yield Signature(kind, f"everything is {much}", _shifted(expected, number, steps))
    layout = scene.layout
    lanes = layout.packing.lanes
    if scene.row.dump.format.packed:
        for count in (lanes,) if lanes > 1 else LANES:
            yield from _lanes(expected, layout, count)
        for steps in (1, -1):
            told = "late" if steps > 0 else "early"
            yield Signature(f"one word {told}", f"every word is one address {told}", _words_shifted(scene, steps))


def _shifted(expected: Int64, axis: int, steps: int) -> Callable[[], tuple[Int64, Array | None]]:
    def predict() -> tuple[Int64, Array | None]:
        moved = np.roll(expected, steps, axis)
        known = np.ones(expected.shape[axis], dtype=bool)
        known[:steps] = steps < 0
        if steps < 0:
            known[steps:] = False
        return moved, known.reshape([-1 if i == axis else 1 for i in range(expected.ndim)])

    return predict


def _words_shifted(scene: Scene, steps: int) -> Callable[[], tuple[Int64, Array | None]]:
    def predict() -> tuple[Int64, Array | None]:
        layout, lanes = scene.layout, scene.layout.packing.lanes
        stream = to_stream(scene.expected, layout)
        known = np.ones(stream.size, dtype=bool)
        if steps > 0:
            known[: steps * lanes] = False
        else:
            known[steps * lanes :] = False
        return from_stream(np.roll(stream, steps * lanes), layout), from_stream(known, layout)

    return predict


def _lanes(expected: Int64, layout: Layout, lanes: int) -> Iterator[Signature]:
    """Lanes within words of `lanes` elements, in the order of the file."""

    def permuted(order: list[int]) -> Callable[[], tuple[Int64, Array | None]]:
        def predict() -> tuple[Int64, Array | None]:
            stream = to_stream(expected, layout)
            whole = np.concatenate([stream, np.zeros(-stream.size % lanes, dtype=np.int64)]).reshape(-1, lanes)
            known = np.ones(whole.size, dtype=bool)
            known[stream.size // lanes * lanes :] = False
            moved = whole[:, order].reshape(-1)[: stream.size]
            return from_stream(moved, layout), from_stream(known[: stream.size], layout)

        return predict

    yield Signature(LANE, f"{lanes} lanes in reverse order", permuted(list(range(lanes))[::-1]))
    if lanes % 2 == 0 and lanes > 2:
        half = lanes // 2
        yield Signature(LANE, f"neighbours among {lanes} lanes exchanged", permuted([i ^ 1 for i in range(lanes)]))
        halves = [(i + half) % lanes for i in range(lanes)]
        yield Signature(LANE, f"the halves of {lanes} lanes exchanged", permuted(halves))


def _bytes(scene: Scene) -> Iterator[Signature]:
    """Bytes of an element in the other order."""
    bits, signed = scene.tensor.bits, scene.tensor.signed
    if bits > 8:
        for octets in dict.fromkeys([-(-bits // 8), scene.tensor.dtype.itemsize]):
            raw = scene.expected.astype("<i8").view(np.uint8).reshape(*scene.expected.shape, 8)
            full = np.zeros_like(raw)
            full[..., :octets] = raw[..., :octets][..., ::-1]
            swapped = full.view("<i8")[..., 0].astype(np.int64)
            detail = f"the {octets} bytes of each element in reverse order"
            yield Signature(BYTES, detail, _whole(wrap(swapped, 8 * octets, signed)))
            yield Signature(BYTES, detail, _whole(wrap(swapped, bits, signed)))
            if octets == 4:
                halves = (scene.expected & 0xFFFF) << 16 | (scene.expected >> 16 & 0xFFFF)
                detail = "the 16-bit halves of each element exchanged"
                yield Signature(BYTES, detail, _whole(wrap(halves, bits, signed)))
    layout = scene.layout
    lanes = layout.packing.lanes
    if scene.row.dump.format.packed and lanes > 1 and layout.word_bits % 8 == 0 and bits != 8:
        yield Signature(BYTES, f"the {layout.word_bits // 8} bytes of each word in reverse order", _word_bytes(scene))


def _word_bytes(scene: Scene) -> Callable[[], tuple[Int64, Array | None]]:
    def predict() -> tuple[Int64, Array | None]:
        words = pack(scene.expected, scene.layout)
        return unpack(np.ascontiguousarray(words[:, ::-1]), scene.layout).astype(np.int64), None

    return predict


def _arithmetic(scene: Scene) -> Iterator[Signature]:
    """Rounding, saturation, group shifts and operands, from the accumulator behind the tensor."""
    op, mode = scene.op, scene.program.rounding
    if op is None:
        return
    last = requantization(scene)
    if last is not None:
        yield from _requantized(last, mode)
    own = scene.tensor.name.rpartition(".")[2]
    makes_acc = own in ("acc", "y_acc", "dx")
    behind = {"y": "y_acc"}.get(own, "acc")
    judged = makes_acc or own == "b" or scene.dumped(op.tensor(behind)) is None
    if not judged or (last is None and not makes_acc):
        return  # the accumulator itself was dumped, and agrees: the fault is behind it
    for kind, detail, make in accumulators(scene):
        if last is None:
            yield Signature(kind, detail, _late(make))
        else:
            yield Signature(kind, detail, _through(make, last, mode, scene))
    if last is not None and own != "b":
        for bits in range(last.bits, 33):
            detail = f"at {bits} bits, before it is requantized"
            yield Signature(WRAPPED, detail, _whole(last.out(mode, acc=wrap(last.acc, bits, True))))


def _late(make: Callable[[], Int64]) -> Callable[[], tuple[Int64, Array | None]]:
    return lambda: (make(), None)


def _through(
    make: Callable[[], Int64], last: Requantization, mode: str, scene: Scene
) -> Callable[[], tuple[Int64, Array | None]]:
    """What becomes of a wrong accumulator in the requantization behind it."""

    def predict() -> tuple[Int64, Array | None]:
        acc = make()
        if acc.shape != scene.expected.shape:
            acc = acc[:, rows_of(scene)]
        return last.out(mode, acc=acc), None

    return predict


def _requantized(last: Requantization, mode: str) -> Iterator[Signature]:
    for other in ROUNDINGS:
        if other != mode:
            yield Signature(ROUNDING, f"{other} instead of {mode}", _whole(last.out(other)))
    toward_zero = np.where(last.acc < 0, -last.rounded("floor", acc=-last.acc), last.rounded("floor"))
    yield Signature(ROUNDING, f"towards zero instead of {mode}", _whole(np.clip(toward_zero, last.low, last.high)))
    half = np.where(last.shift > 0, int64(1) << np.maximum(last.shift - 1, 0), 0)
    down = round_shift(last.acc + half - (last.shift > 0), last.shift, "floor")
    yield Signature(ROUNDING, f"ties downwards instead of {mode}", _whole(np.clip(down, last.low, last.high)))
    up = -last.rounded("floor", acc=-last.acc)
    yield Signature(ROUNDING, f"upwards instead of {mode}", _whole(np.clip(up, last.low, last.high)))
    exact = last.rounded(mode)
    yield Signature(SATURATION, f"wrapped to {last.bits} bits", _whole(wrap(exact, last.bits, last.signed)))
    if last.signed:
        kind = "other saturation limits"
        limits = f"{-last.high} .. {last.high}"
        yield Signature(kind, f"saturated to {limits}", _whole(np.clip(exact, -last.high, last.high)))
        yield Signature(kind, "negative values saturated to 0", _whole(np.clip(exact, 0, last.high)))
    if last.group is not None and last.group.any():
        for sign, told in ((-1, "not applied"), (1, "doubled")):
            detail = f"the output's group shift is {told}"
            shift = last.shift + sign * last.group
            if shift.min() > -32 and shift.max() < 63:
                yield Signature(GROUP, detail, _whole(last.out(mode, shift=shift)))


def _widths(scene: Scene) -> Iterator[Signature]:
    """Registers that are too narrow, and signs that are lost or invented, on the tensor's own values."""
    expected, bits, signed = scene.expected, scene.tensor.bits, scene.tensor.signed
    negative = expected < 0
    if signed:
        for width in range(2, max(bits, 8 * scene.tensor.dtype.itemsize) + 1):
            detail = f"bits from {width} on are 0 instead of the sign"
            yield Signature(SIGN, detail, _whole(np.where(negative, unsigned(expected, width), expected)))
    else:
        for width in range(2, bits + 1):
            detail = f"bit {width - 1} is taken as a sign"
            made = wrap(expected, width, True)
            yield Signature(SIGN, detail, _whole(made))
            yield Signature(SIGN, detail, _whole(unsigned(made, bits)))
    if scene.tensor.role in ("accumulator", "internal"):
        for width in range(2, bits):
            yield Signature(WRAPPED, f"at {width} bits", _whole(wrap(expected, width, signed)))
            kind = "accumulator saturated"
            yield Signature(kind, f"at {width} bits", _whole(clip(expected, width, signed)))


def _other(scene: Scene) -> Iterator[Signature]:
    """Mistakes of the test bench rather than of arithmetic, and stuck wires."""
    expected, actual, tensor = scene.expected, scene.actual, scene.tensor
    wrong = (actual ^ expected)[actual != expected]
    mask = int(np.bitwise_or.reduce(wrong)) & ((1 << tensor.bits) - 1)
    if mask and not mask & (mask - 1):
        bit = mask.bit_length() - 1
        one = wrap(expected | (1 << bit), tensor.bits, tensor.signed)
        zero = wrap(expected & ~(1 << bit), tensor.bits, tensor.signed)
        yield Signature("stuck bit", f"bit {bit} is always 1", _whole(one))
        yield Signature("stuck bit", f"bit {bit} is always 0", _whole(zero))
    op = scene.op
    if op is not None and op.kind == "rom":
        address = unsigned(scene.input("x"), 8)
        rom, index = scene.array("rom"), scene.array("rom_index")
        detail = "the code's two's complement is the address, not x + 128"
        yield Signature("ROM address", detail, _whole(rom[index[None, :], address]))
        codes = scene.input("x") + 128
        yield Signature("ROM address", "every channel uses ROM 0", _whole(rom[0][codes]))
    bundle = scene.comparison.bundle
    for image in range(min(len(bundle.images), 8)):
        if image != scene.row.dump.image and bundle.has(image, tensor.name):
            told = f"it is what image {image} must give"
            yield Signature("another image", told, _whole(scene.golden(tensor.name, image)))
    for name in _alike(scene):
        yield Signature("another tensor", f"it is {name}", _whole(scene.golden(name)))


def _alike(scene: Scene) -> Iterator[str]:
    """Tensors of the same shape that a wire could have been taken for, among those in the bundle."""
    tensor, op = scene.tensor, scene.op
    if op is None:
        return
    twin = op.name[:-2] if op.name.endswith("_b") else f"{op.name}_b"
    names = [op.tensor(port) for port in op.outputs] + [f"{twin}.{scene.port}"] + list(op.inputs.values())
    bundle, image = scene.comparison.bundle, scene.row.dump.image
    for name in names:
        other = scene.program.tensors.get(name)
        if other and name != tensor.name and other.shape == tensor.shape and bundle.has(image, name):
            yield name
