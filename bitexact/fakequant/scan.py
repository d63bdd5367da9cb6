"""scan (SPEC 5.7): the selective state-space recurrence, token after token."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import torch
from torch import Tensor

from bitexact.fakequant.common import Grid, Reals, Step, magnitude, power_of_two, round_to_integer
from intsim.program import Operator, Program

FRACTION = 19  # bits of A-bar's exponent that are used
SEGMENTS = 128  # of the exp2 ROM
FINE = 4096  # steps of the interpolation inside a segment
B_LIMIT = (1 << 30) - 1
LARGEST_SHIFT = 31
CHUNK = {"cpu": 1 << 18, "cuda": 1 << 24}  # elements of [n, tokens, E, N] that are laid out at a time


class Scan(Step):
    """delta, u [n, L, E], B, C [n, L, N] -> dx [n, L, E], abar, b, acc, h [n, L, E, N], y_acc, y [n, L, E].

    The cubes abar, b, acc and h are kept only where they are wanted.
    """

    kind = "scan"

    def __init__(self, program: Program, op: Operator, device: torch.device):
        super().__init__(program, op, device)
        self.m = int(op.attributes["abar_fraction"])
        delta, u, B, C = (self.bound_input(p) for p in ("delta", "u", "B", "C"))
        h = magnitude(self.made("h"))
        states = self.made("h").shape[2]
        e_delta, e_u = self.e_in("delta"), self.e_in("u")  # [1, E]
        e_h = self.e_out("h")  # [L, E, 1]
        e_b = e_h - self.m
        e_product = (e_delta + e_u + self.e_in("B"))[..., None]  # [1, E, 1]
        self.exact.value("dx", delta * u, e_delta + e_u)
        self.exact.rounding("dx * B", delta * u * B, e_product, e_b, B_LIMIT)
        largest_b = np.minimum(np.ldexp(float(delta * u * B), e_product - e_b) + 1, B_LIMIT)
        self.exact.value("b", largest_b, e_b)
        self.exact.rounding("h of the token before", h, e_h[:-1], e_h[1:], h)
        self.exact.rounding("acc", (h << self.m) + largest_b, e_b, e_h, h)
        self.bound_register("acc", (h << self.m) + largest_b)
        # y_acc in its own units: the state's exponent without the token's part
        e_y_acc = self.e_out("y_acc")
        e_D = e_y_acc - e_u
        D = self.integers("D")
        token_shift = e_h[:, :, 0] + self.e_in("C") - e_y_acc  # [L, E]
        bound = np.abs(D) * u + np.ldexp(float(states * h * C), token_shift.max(0))
        self.exact.value("D", np.abs(D), e_D)
        self.bound_register("y_acc", bound)
        self.bound_requantize("y", bound, e_y_acc)
        # the product delta * A counts units of 2^-f, f = fraction[c]
        A = self.integers("A")
        fraction = -(e_delta[0] + self.constant_exponents("A")[:, 0])
        products = delta * int(A.max()) + 1
        self.exact.value("delta * A", products, -fraction)
        self.settle()

        self.D = self.real(D, e_D[0])
        self.b_grid = self.cube_grid(e_b, B_LIMIT)
        self.h_grid = self.grid("h")
        self.y_grid = self.grid("y")
        self.narrow, self.narrow_y = self.register("acc"), self.register("y_acc")
        self.steps = e_h[:, 0, 0]  # exponent of each token's state, for the places where it changes
        self.abar_mode, self.fine = program.rounding, float(FINE)
        self.rom = torch.from_numpy(self.integers("exp2_rom").astype(np.float64)).to(device)
        self.powers = power_of_two(np.arange(-LARGEST_SHIFT, LARGEST_SHIFT + 1), torch.float64, device)
        # A-bar is a function of delta * A alone: a table of all products, for each unit that occurs
        self.units, row = np.unique(fraction, return_inverse=True)
        self.products = products
        self.table = self.make_table()
        self.row = torch.from_numpy(row.reshape(-1, 1).astype(np.int32) * products).to(device)  # [E, 1]
        # A in units of 2^-f less delta's: delta * A_counts is the number of units
        self.A_counts = self.real(A, (-e_delta[0])[:, None])

    def cube_grid(self, e: np.ndarray, limit: int) -> Grid:
        """Grid of b: clamped to -limit .. limit."""
        down, up = power_of_two(-e, self.dtype, self.device), power_of_two(e, self.dtype, self.device)
        return Grid(down, up, -limit, limit, self.program.rounding)

    def make_table(self) -> Tensor:
        """2^-(p * 2^-f) for every product p, one after the other for each f of `units`."""
        counts = torch.arange(self.products, device=self.device, dtype=torch.float64)
        return torch.cat([self.exp2(counts * 2.0 ** -int(f)) for f in self.units]).to(self.dtype)

    def exp2(self, z: Tensor) -> Tensor:
        """2^-z on the grid of m fraction bits, for float64 z >= 0: ROM, interpolation, one rounding.

        In float64 whatever the scan's type: the interpolated value has 30 bits, its rounding constant 31.
        """
        z = torch.floor(z * 2.0**FRACTION) * 2.0**-FRACTION
        whole = torch.floor(z)
        place = (z - whole) * SEGMENTS
        segment = torch.floor(place)
        fine = (place - segment) * self.fine
        j = segment.to(torch.int64)
        above, below = self.rom[j], self.rom[j + 1]
        v = above * FINE - (above - below) * fine  # 29 fraction bits
        shift = torch.clamp(whole + (29 - self.m), max=float(LARGEST_SHIFT)).to(torch.int64)
        codes = round_to_integer(v * self.powers[LARGEST_SHIFT - shift], self.abar_mode)
        return codes * 2.0**-self.m

    def abar(self, delta: Tensor) -> Tensor:
        """delta [n, t, E] -> 2^-(delta * A) [n, t, E, N], looked up by the exact product."""
        products = (delta[..., None] * self.A_counts).to(torch.int32).add_(self.row)
        return self.table.index_select(0, products.flatten()).reshape(products.shape)

    def rescaled(self, h: Tensor, t: int) -> Tensor:
        """The state after token t - 1 on the grid of token t; zero before the first token."""
        if t == 0:
            return torch.zeros_like(h)
        if self.steps[t] == self.steps[t - 1]:
            return h
        return self.h_grid.part(t)(h)

    def readout(self, h: Tensor, C: Tensor, part: slice) -> Tensor:
        """sum over the states of h * C for the tokens `part`: [n, t, E, N], [n, t, N] -> [n, t, E]."""
        return (h * C[:, :, None, :]).sum(-1)

    def __call__(self, inputs: Reals, wanted: Collection[str]) -> Reals:
        delta, u, B, C = (inputs[p].to(self.dtype) for p in ("delta", "u", "B", "C"))
        n, tokens, channels = delta.shape
        states = B.shape[2]
        dx = delta * u
        y_acc = self.D * u
        kept = {p: dx.new_empty(n, tokens, channels, states) for p in ("abar", "b", "acc", "h") if p in wanted}
        h = dx.new_zeros(n, channels, states)
        chunk = max(1, CHUNK[self.device.type] // (n * channels * states))
        for start in range(0, tokens, chunk):
            part = slice(start, min(start + chunk, tokens))
            abar = self.abar(delta[:, part])
            b = self.b_grid.part(part)(dx[:, part, :, None] * B[:, part, None, :])
            history = torch.empty_like(b)
            accs = torch.empty_like(b) if "acc" in kept else None
            for t in range(part.start, part.stop):
                i = t - part.start
                if self.narrow is not None:
                    acc = self.narrow.part(t).sum(b[:, i], [abar[:, i] * self.rescaled(h, t)])
                else:
                    acc = torch.addcmul(b[:, i], abar[:, i], self.rescaled(h, t))
                h = self.h_grid.part(t)(acc)
                history[:, i] = h
                if accs is not None:
                    accs[:, i] = acc
            if self.narrow_y is not None:
                products = (history[..., n] * C[:, part, None, n] for n in range(states))
                y_acc[:, part] = self.narrow_y.sum(y_acc[:, part], products)
            else:
                y_acc[:, part] += self.readout(history, C[:, part], part)
            for port, value in (("abar", abar), ("b", b), ("acc", accs), ("h", history)):
                if port in kept and value is not None:
                    kept[port][:, part] = value
        return {"dx": dx, **kept, "y_acc": y_acc, "y": self.y_grid(y_acc)}
