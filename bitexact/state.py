"""The reparameterized hidden state: |h[t, c, n]| is about r_L[t] * r_C[c] * r_D[n] (arXiv 2501.16738).

r_C and r_L become exponents (shifts in the scan), r_D is a real number that is fused into x_proj: its rows that
give B are divided by r_D and those that give C multiplied, so that it costs nothing at run time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


class StateStatistics:
    """Collects, over calibration images, the mean square and the largest magnitude of each h[t, c, n].

    `on_state(t, h)` is the callback of `bitexact.vim.selective_scan`; h [batch, channel, state].
    """

    def __init__(self, tokens: int):
        self.square: list[Tensor | None] = [None] * tokens
        self.largest: list[Tensor | None] = [None] * tokens
        self.count = [0] * tokens

    def on_state(self, t: int, h: Tensor) -> None:
        self._add(t, h.double().square().sum(dim=0), h.abs().amax(dim=0).double(), len(h))

    def _add(self, t: int, square: Tensor, largest: Tensor, count: int) -> None:
        known_square, known_largest = self.square[t], self.largest[t]
        self.square[t] = square if known_square is None else known_square + square
        self.largest[t] = largest if known_largest is None else torch.maximum(known_largest, largest)
        self.count[t] += count

    @classmethod
    def merge(cls, parts: list[StateStatistics]) -> StateStatistics:
        """One collection from several, in their order."""
        merged = cls(len(parts[0].square))
        for part in parts:
            for t, (square, largest, count) in enumerate(zip(part.square, part.largest, part.count, strict=True)):
                if square is not None and largest is not None:
                    merged._add(t, square, largest, count)
        return merged

    def rms(self) -> Tensor:
        """Root mean square of h, float64 [token, channel, state]."""
        parts = [(s / n).sqrt() for s, n in zip(self.square, self.count, strict=True) if s is not None]
        return torch.stack(parts)

    def maximum(self) -> Tensor:
        """Largest |h|, float64 [token, channel, state]."""
        return torch.stack([m for m in self.largest if m is not None])


@dataclass(frozen=True)
class Factors:
    """log2 of r_L [token], r_C [channel] and r_D [state]; r_L and r_D have mean 0."""

    token: Tensor
    channel: Tensor
    state: Tensor


def fit_rank1(rms: Tensor) -> Factors:
    """Least-squares fit of log2(rms) by a sum of three factors; rms [token, channel, state]."""
    floor = rms.amax() * 2.0**-30 + 1e-30
    logs = rms.clamp(min=float(floor)).log2()
    mean = logs.mean()
    return Factors(
        token=logs.mean(dim=(1, 2)) - mean,
        channel=logs.mean(dim=(0, 2)),
        state=logs.mean(dim=(0, 1)) - mean,
    )
