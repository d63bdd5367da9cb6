"""Statistics that are added to batch by batch: histograms of integers, and signal against quantization noise."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intsim.arithmetic import Int64
from intsim.program import Array

BINS = 256


@dataclass
class Histogram:
    """Counts of integers in at most BINS bins of 2^shift integers each.

    Bin i holds the integers v with v >> shift == first + i.  shift is the least that spans all integers seen, so the
    result does not depend on how they were cut into batches.  zeros: how many were 0.
    """

    shift: int = 0
    first: int = 0
    counts: Int64 = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    low: int = 0
    high: int = 0
    zeros: int = 0

    def add(self, array: Array) -> None:
        """array: integers of any shape, at least one."""
        low, high = int(array.min()), int(array.max())
        if len(self.counts):
            low, high = min(low, self.low), max(high, self.high)
        self._span(low, high)
        self.zeros += array.size - int(np.count_nonzero(array))
        narrow = np.int64 if array.dtype.itemsize > 4 or array.dtype == np.uint32 else np.int32
        for part in pieces(array):
            # (v >> shift) - first lies in 0 .. BINS - 1, so the narrow type holds it
            bins = np.subtract((part >> self.shift).astype(narrow), narrow(self.first))
            self.counts += np.bincount(bins, minlength=len(self.counts))

    def _span(self, low: int, high: int) -> None:
        """Makes bins for low .. high, with the counts so far in theirs."""
        shift = self.shift
        while (high >> shift) - (low >> shift) >= BINS:
            shift += 1
        first = low >> shift
        counts = np.zeros((high >> shift) - first + 1, dtype=np.int64)
        if len(self.counts):
            old = (np.arange(len(self.counts)) + self.first) >> (shift - self.shift)
            np.add.at(counts, old - first, self.counts)
        self.shift, self.first, self.counts, self.low, self.high = shift, first, counts, low, high


def pieces(array: Array, size: int = 1 << 20) -> Iterator[Array]:
    """The array, flat, in pieces of at most `size` elements, so that temporaries stay in the caches."""
    flat = array.reshape(-1)
    return (flat[i : i + size] for i in range(0, len(flat), size))


class Noise:
    """Signal and quantization noise of a tensor against the float model's values.

    fitted: the tensor's last axis carries a constant factor that the Program fused into other weights (B, C and h of
    a scan); it is fitted by least squares for each position of that axis, and the signal is the float value times it.
    """

    def __init__(self, fitted: bool) -> None:
        self.fitted = fitted
        self.ff: NDArray[Any] | float = 0.0
        self.fq: NDArray[Any] | float = 0.0
        self.qq: NDArray[Any] | float = 0.0
        self.noise = 0.0

    def add(self, integers: Array, exponents: Int64, reference: NDArray[Any]) -> None:
        """integers [n, *shape], exponents: broadcast to shape, reference: float values [n, *shape].

        In float32, in units of the least exponent: no square leaves its range, and its error of 2^-24 is 144 dB down.
        """
        unit = int(exponents.min())
        scale = np.ldexp(np.float32(1), exponents - unit)
        for q, f in zip(integers, reference, strict=True):
            q = q.astype(np.float32) * scale
            f = f * np.ldexp(np.float32(1), -unit)
            if self.fitted:
                for part in range(0, len(f), 64):
                    a, b = (np.ascontiguousarray(v[part : part + 64].reshape(-1, v.shape[-1])) for v in (f, q))
                    self.ff += np.einsum("in,in->n", a, a, dtype=np.float64)
                    self.fq += np.einsum("in,in->n", a, b, dtype=np.float64)
                    self.qq += np.einsum("in,in->n", b, b, dtype=np.float64)
            else:
                self.ff += float(np.vdot(f, f))
                f -= q
                self.noise += float(np.vdot(f, f))

    @property
    def decibels(self) -> float | None:
        """10 log10(signal / noise); None without signal or without noise."""
        if self.fitted:
            alive = np.asarray(self.ff) > 0
            if not alive.any():
                return None
            ff, fq, qq = (np.asarray(v)[alive] for v in (self.ff, self.fq, self.qq))
            signal = float((fq * fq / ff).sum())
            noise = float(qq.sum()) - signal
        else:
            signal, noise = float(self.ff), self.noise
        if not (signal > 0 and noise > 0 and math.isfinite(signal) and math.isfinite(noise)):
            return None
        return 10 * math.log10(signal / noise)
