"""A histogram of fixed size over [-reach, reach): constant memory, and the same however the data were cut.

The reach is the smallest power of two above every magnitude seen (2^-100 at the least). When a value lies beyond, the
reach doubles and neighbouring bins merge. Bin ends are multiples of reach / 4096, so a bin of the wider histogram is
exactly two bins of the narrower one: counting first and merging later, or the other way round, is the same. (Only
values 2^160 times smaller than the largest may change sides of zero.) What is read from it is exact to reach / 4096,
less than 1/2048 of the largest magnitude; one outlier a thousand times the rest leaves the rest a few bins.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Counts = NDArray[np.float64]

BINS = 4096  # on each side of zero
_SMALLEST = -100  # exponent of the least reach: BINS / reach stays far inside float32
_CHUNK = 1 << 18  # values counted at a time: they stay in the cache


class Histogram:
    """Counts of values in 2 * BINS bins; bin i holds [(i - BINS) * width, (i - BINS + 1) * width)."""

    def __init__(self) -> None:
        self.counts = torch.zeros(2 * BINS, dtype=torch.int64)
        self.zeros = 0  # values that are exactly zero, counted in bin BINS as well
        self.exponent = _SMALLEST

    @property
    def width(self) -> float:
        """Width of a bin: reach / 4096."""
        return math.ldexp(1.0, self.exponent) / BINS

    def add(self, values: Tensor, largest: float) -> None:
        """Count a flat tensor of finite floats whose largest magnitude is ``largest``."""
        self._reach(max(math.frexp(largest)[1], _SMALLEST))  # largest < 2^exponent
        per_unit = 1.0 / self.width
        for part in torch.split(values, _CHUNK):
            # A power of two times a float is exact, and so is adding BINS after the floor (not before it).
            bins = (part * per_unit).floor_().add_(BINS).to(torch.int64)
            self.counts += torch.bincount(bins, minlength=2 * BINS)
        self.zeros += values.numel() - int(values.count_nonzero())

    def _reach(self, exponent: int) -> None:
        """Double the reach until it is 2^exponent."""
        if exponent > self.exponent and self.zeros == int(self.counts.sum()):
            self.exponent = exponent  # nothing yet, or zeros alone: they are in bin BINS at every reach
        while exponent > self.exponent:
            self.exponent += 1
            merged = self.counts.view(BINS, 2).sum(1)
            self.counts = torch.zeros_like(self.counts)
            self.counts[BINS // 2 : BINS // 2 + BINS] = merged

    def seen(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """(edges (n + 1,), counts (n,)) from the first to the last bin that holds anything."""
        counts: NDArray[np.int64] = self.counts.numpy().copy()
        held = np.flatnonzero(counts)
        first, last = int(held[0]), int(held[-1])
        edges = np.arange(first - BINS, last + 2 - BINS).astype(np.float64) * self.width
        return edges, counts[first : last + 1]

    def nonzero(self) -> Counts:
        """Counts without the exact zeros, as float64: zero is a code of every grid, so zeros cost nothing."""
        counts: Counts = self.counts.numpy().astype(np.float64)
        counts[BINS] -= self.zeros
        return counts
