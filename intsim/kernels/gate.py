# mypy: allow-untyped-defs
"""gate (SPEC 5.8): (y + reversed y_b) * silu(z)."""

from __future__ import annotations

import numpy as np

from intsim.kernels import vector as v
from intsim.kernels.base import In, Kernel, Out
from intsim.kernels.common import kernel
from intsim.kernels.memory import int8_at, int32_at, int64_at
from intsim.kernels.requantize import BYTE, DOUBLE, Requantize, half_lanes, requantize_lanes, store_lanes
from intsim.program import Operator, Program


class Gate(Kernel):
    """Inputs y, g [L, E] in token order, y_b [L, E] in processing order; `acc` int32, `out` [L, E]."""

    code = 7
    scratch = 64
    aligned = ("y", "g")

    def __init__(self, program: Program, op: Operator):
        super().__init__(program, op)
        self.tokens, width = self.tensor("out").shape
        left = program.shifts(self.op.inputs["y"], "token") + int(op.attributes["y_align"])
        left_b = program.shifts(self.op.inputs["y_b"], "token") + int(op.attributes["y_b_align"])
        step = Requantize(self.tensor("out"), self.constant("shift", np.int64), self.row_shift("out"), self.mode)
        self.numbers = [
            *(In("y"), In("y_b"), In("g"), Out("acc"), Out("out"), self.tokens, width),
            *(self.keep(np.ascontiguousarray(left)), self.keep(np.ascontiguousarray(left_b)), self.keep(step.shift)),
            *(self.keep(step.row_shift), len(step.row_shift), self.mode, step.low, step.high, step.narrow),
            int(self.path != "plain" and self.mode <= 1 and step.narrow),
        ]
        self.row_cost = width // 8

    def inner(self) -> tuple[str, ...]:
        return ("acc",)


@kernel
def gate(a, start, stop, scratch):
    """Rows start .. stop - 1 of all images.  a: Gate.arguments()."""
    y, y_b, g, acc_out, out, tokens, width, left_at, left_b_at, shift_at, row_shift_at, period = a[:12]
    mode, low, high, narrow = a[12:16]
    padded = (width + 15) // 16 * 16
    shift = int32_at(shift_at, padded)
    left, left_b = int64_at(left_at, tokens), int64_at(left_b_at, tokens)
    row_shift = int64_at(row_shift_at, period)
    edge, edge_b, edge_g = int8_at(scratch, 16), int8_at(scratch + 16, 16), int8_at(scratch + 32, 16)
    for r in range(start, stop):
        t = r % tokens
        s = tokens - 1 - t
        forward, backward = int8_at(y + r * width, width), int8_at(y_b + (r - t + s) * width, width)
        factors = int8_at(g + r * width, width)
        up, up_b = v.splat(np.int32(left[t])), v.splat(np.int32(left_b[s]))
        extra = v.splat(np.int32(row_shift[t % period]))
        whole = width // 64 * 64 if a[16] and not acc_out else 0
        for c in range(0, whole, 64):
            y0 = gate_lanes(forward, backward, factors, c, up, up_b, shift, extra, mode)
            y1 = gate_lanes(forward, backward, factors, c + 16, up, up_b, shift, extra, mode)
            y2 = gate_lanes(forward, backward, factors, c + 32, up, up_b, shift, extra, mode)
            y3 = gate_lanes(forward, backward, factors, c + 48, up, up_b, shift, extra, mode)
            packed = v.transpose_quarters(v.pack_bytes(v.pack_words(y0, y1), v.pack_words(y2, y3)))
            v.store_bytes(int8_at(out + r * width + c, 64), 0, v.clamp_bytes(packed, low, high))
        for c in range(whole, padded, 16):
            lanes = min(16, width - c)
            if lanes == 16:
                one, other, factor = v.load_int8(forward, c), v.load_int8(backward, c), v.load_int8(factors, c)
            else:
                for i in range(lanes):
                    edge[i], edge_b[i], edge_g[i] = forward[c + i], backward[c + i], factors[c + i]
                one, other, factor = v.load_int8(edge, 0), v.load_int8(edge_b, 0), v.load_int8(edge_g, 0)
            acc = v.mul(v.add(v.shl(one, up), v.shl(other, up_b)), factor)
            place = r * width + c
            if acc_out:
                store_lanes(acc_out + 4 * place, DOUBLE, lanes, acc)
            if out:
                count = v.add(v.load_int32(shift, c), extra)
                half = half_lanes(v.maximum(count, v.splat(np.int32(0))), mode)
                store_lanes(out + place, BYTE, lanes, requantize_lanes(acc, count, half, mode, low, high, narrow))


@kernel
def gate_lanes(y, y_b, g, c, up, up_b, shift, extra, mode):
    """The channels c .. c + 15 of a row, rounded and not yet saturated; modes half_up and floor, no negative shift."""
    both = v.add(v.shl(v.load_int8(y, c), up), v.shl(v.load_int8(y_b, c), up_b))
    count = v.add(v.load_int32(shift, c), extra)
    return v.shift_right(v.add(v.mul(both, v.load_int8(g, c)), half_lanes(count, mode)), count)
