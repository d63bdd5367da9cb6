"""Choosing exponents: similarity search, and k-scaled groups of power-of-two levels (arXiv 2501.16738).

All scales are powers of two, so the candidates are few and every one of them is tried.  A `Table` holds, for each
position (channel or token) and each candidate exponent, what the candidate does to the layer's output; the best
set of at most k levels over all positions is then found by trying every set.  Nothing is random.

Tensors here are float64 torch tensors in real values, [samples, positions].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from intsim.arithmetic import limits

MAX_SPREAD = 6  # bits between the levels of a k-scaled tensor: they cost accumulator bits
MAX_SATURATED = 0.0005  # share of a position's samples that a searched exponent may saturate
REACH = 10  # candidates below the exponent that covers the largest value


@dataclass(frozen=True)
class Choice:
    """Exponents of a tensor: base exponent, left shift of each group, group of each position."""

    exponent: int
    shifts: tuple[int, ...] = (0,)
    index: np.ndarray | None = None

    def exponents(self, n: int) -> np.ndarray:
        """Exponent at each of n positions, int64."""
        if self.index is None:
            return np.full(n, self.exponent, dtype=np.int64)
        return self.exponent + np.array(self.shifts, dtype=np.int64)[self.index]


def round_real(x: Tensor, mode: str) -> Tensor:
    """x rounded to integers by a Program's rounding mode."""
    if mode == "half_up":
        return torch.floor(x + 0.5)
    if mode == "half_even":
        return torch.round(x)
    if mode == "half_away":
        return torch.sign(x) * torch.floor(x.abs() + 0.5)
    return torch.floor(x)


def fake_quantize(x: Tensor, exponent: Tensor | int, bits: int, signed: bool, mode: str) -> Tensor:
    """x on the grid of 2^exponent, saturated to the format; real values in, real values out."""
    low, high = limits(bits, signed)
    scale = torch.exp2(torch.as_tensor(exponent, dtype=x.dtype))
    return round_real(x / scale, mode).clamp(low, high) * scale


def covering_exponent(largest: Tensor, bits: int, signed: bool) -> np.ndarray:
    """Smallest exponent whose format reaches `largest` (a position's largest magnitude); int64.

    Positions that are zero throughout get the smallest exponent of the others.
    """
    top = limits(bits, signed)[1]
    values = largest.double().numpy()
    exponent = np.ceil(np.log2(np.maximum(values, 1e-30) / top)).astype(np.int64)
    alive = values > 1e-12
    if not alive.any():
        return np.full(len(values), -8, dtype=np.int64)
    return np.where(alive, exponent, exponent[alive].min())


@dataclass
class Table:
    """What each candidate exponent does to each position; float64 [positions, candidates].

    `error` is the (weighted) squared error against the float output, `dot` and `norm` are the products that the
    cosine needs, `allowed` is False where a candidate saturates too much.
    """

    candidates: list[int]
    error: np.ndarray
    dot: np.ndarray
    norm: np.ndarray
    target_norm: np.ndarray
    allowed: np.ndarray


def similarity_table(
    values: Tensor,
    target: Tensor,
    bits: int,
    signed: bool,
    mode: str,
    *,
    function: Callable[[Tensor], Tensor] | None = None,
    weight: Tensor | None = None,
) -> Table:
    """Tries every candidate exponent for `values`.

    values: what will be requantized; target: the float model's output; both [samples, positions].
    function: applied to the quantized values before they are compared (a ROM's function).
    weight: importance, broadcasts to [samples, positions].
    """
    cover = covering_exponent(values.abs().amax(dim=0), bits, signed)
    top = int(cover.max())
    candidates = list(range(max(top - REACH, int(cover.min()) - 3), top + 1))
    w = torch.ones(1, dtype=values.dtype) if weight is None else weight.to(values.dtype)
    low, high = limits(bits, signed)
    columns: dict[str, list[Tensor]] = {"error": [], "dot": [], "norm": [], "allowed": []}
    for exponent in candidates:
        scaled = round_real(values / 2.0**exponent, mode)
        outside = (scaled < low) | (scaled > high)
        columns["allowed"].append(outside.double().mean(dim=0) <= MAX_SATURATED)
        quantized = scaled.clamp(low, high) * 2.0**exponent
        if function is not None:
            quantized = function(quantized)
        columns["error"].append((w * (quantized - target) ** 2).sum(dim=0))
        columns["dot"].append((w * quantized * target).sum(dim=0))
        columns["norm"].append((w * quantized**2).sum(dim=0))
    stacked = {name: torch.stack(column, dim=1).numpy() for name, column in columns.items()}
    return Table(candidates, target_norm=(w * target**2).sum(dim=0).numpy(), **stacked)


def choose(table: Table, k: int) -> tuple[Choice, float]:
    """At most k levels, and the level of each position, with the highest cosine similarity; and that cosine.

    Every set of at most k candidates within MAX_SPREAD bits is tried; within a set each position takes the level
    with the least squared error that does not saturate it.
    """
    candidates = np.array(table.candidates)
    cost = np.where(table.allowed, table.error, np.inf)
    best: tuple[float, tuple[int, ...]] | None = None
    top = np.asarray(table.allowed.all(axis=0))
    for size in range(1, min(k, len(candidates)) + 1):
        for levels in combinations(range(len(candidates)), size):
            if candidates[levels[-1]] - candidates[levels[0]] > MAX_SPREAD or not top[levels[-1]]:
                continue
            columns = list(levels)
            picked = np.argmin(cost[:, columns], axis=1)
            rows = np.arange(len(cost))
            column = np.array(columns)[picked]
            norm = table.norm[rows, column].sum() * table.target_norm.sum()
            cosine = table.dot[rows, column].sum() / np.sqrt(norm) if norm > 0 else 0.0
            if best is None or cosine > best[0] + 1e-12:
                best = (float(cosine), levels)
    assert best is not None, "the covering exponent is always allowed"
    columns = list(best[1])
    picked = np.argmin(cost[:, columns], axis=1)
    return make_choice(candidates[np.array(columns)][picked]), best[0]


def cover(values: Tensor, bits: int, signed: bool, k: int) -> Choice:
    """Min-max: exponents that cover each position's largest value, clustered to at most k levels exactly."""
    needed = covering_exponent(values.abs().amax(dim=0), bits, signed)
    needed = np.maximum(needed, needed.max() - MAX_SPREAD)
    return make_choice(cluster_up(needed, k))


def cluster_up(needed: np.ndarray, k: int) -> np.ndarray:
    """Each exponent raised to one of at most k levels, with the least total raise (exact dynamic programming).

    needed: int64 exponents, one for each position; returns the level of each position, never below `needed`.
    """
    distinct, counts = np.unique(needed, return_counts=True)
    n = len(distinct)
    least = np.full((k + 1, n + 1), np.inf)
    least[:, 0] = 0
    start = np.zeros((k + 1, n + 1), dtype=np.int64)
    for groups in range(1, k + 1):
        for end in range(1, n + 1):
            for begin in range(end):  # one group from begin to end-1, all raised to its last level
                raised = float(((distinct[end - 1] - distinct[begin:end]) * counts[begin:end]).sum())
                total = least[groups - 1, begin] + raised
                if total < least[groups, end]:
                    least[groups, end], start[groups, end] = total, begin
    level = np.zeros(n, dtype=np.int64)
    groups, end = k, n
    while end > 0:
        begin = int(start[groups, end])
        level[begin:end] = distinct[end - 1]
        groups, end = groups - 1, begin
    return level[np.searchsorted(distinct, needed)]


def make_choice(exponents: np.ndarray) -> Choice:
    """A Choice from the exponent of each position."""
    levels = np.unique(exponents)
    if len(levels) == 1:
        return Choice(int(levels[0]))
    index = np.searchsorted(levels, exponents).astype(np.int64)
    return Choice(int(levels[0]), tuple(int(e - levels[0]) for e in levels), index)


def choose_weights(
    weight: Tensor,
    outputs: Callable[[Tensor], Tensor],
    target: Tensor,
    *,
    search: bool,
    clip: Sequence[int] = (0, -1, -2),
) -> np.ndarray:
    """Exponent of each weight row: the one whose quantized layer is most similar to the float output.

    weight: [rows, inputs] real; outputs(quantized weight) -> [samples, rows]; target: [samples, rows].
    Without `search`, the smallest exponent that covers each row's largest weight.
    """
    base = covering_exponent(weight.abs().amax(dim=1), 8, True)
    if not search:
        return base
    best = np.full(len(base), -np.inf)
    chosen = base.copy()
    for step in clip:
        exponent = base + step
        quantized = fake_quantize(weight, torch.from_numpy(exponent)[:, None], 8, True, "half_even")
        made = outputs(quantized)
        norm = (made.square().sum(dim=0) * target.square().sum(dim=0)).sqrt().clamp(min=1e-30)
        cosine = ((made * target).sum(dim=0) / norm).numpy()
        better = cosine > best + 1e-9
        best, chosen = np.where(better, cosine, best), np.where(better, exponent, chosen)
    return chosen


def integers(x: Tensor, exponent: np.ndarray | int, bits: int, signed: bool = True) -> np.ndarray:
    """Real values as saturated integers of 2^exponent (broadcasts), nearest with ties to even; int64."""
    low, high = limits(bits, signed)
    scale = torch.exp2(torch.as_tensor(np.asarray(exponent), dtype=torch.float64))
    return torch.round(x.double() / scale).clamp(low, high).to(torch.int64).numpy()
