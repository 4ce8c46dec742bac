"""Codes of one requantization: its range, the grid of its index, and the table where its levels are not uniform.

Uniform codes of a bits are the grid itself. Non-uniform ones are looked up: the index has a + ``TABLE_BITS`` bits, and
entry i of the table is the level nearest to the grid's i-th multiple of the step, in steps. The codes that leave are
ring elements of one scale, the step, whatever the levels; so linear layers read them as any others, and a
requantization stays one shift and one table. Real zero is a level wherever it is in the range.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pqi.graph.floating import Clamp
from pqi.graph.ops import Requantize
from pqi.quant.levels import additive_powers_of_two, best_clusters, both_signs, nearest, powers_of_two
from pqi.quant.observers import Observation
from pqi.quant.scheme import Scheme


@dataclass(frozen=True)
class Codes:
    """Real ends and scale; bits of the index. levels: int64, sorted, in steps of the scale; None for uniform codes."""

    lo: float
    hi: float
    scale: float
    bits: int
    levels: Tensor | None = None

    @property
    def low(self) -> int:
        """What the lowest index stands for, in steps."""
        return round(self.lo / self.scale)

    def requantize(self, shift: int, limit: float) -> Requantize:
        """The operator: a shift and a clamp, and a table where codes are levels or would pass the limit.

        limit: the activation's own upper end (infinite for ReLU), which holds inside a wider shared scale, too.
        """
        grid = torch.arange(self.low, self.low + (1 << self.bits))
        top = int(grid[-1]) if math.isinf(limit) else min(int(grid[-1]), round(limit / self.scale))
        if self.levels is not None:
            table = nearest(grid[None].to(torch.float64), self.levels.to(torch.float64))[0].to(torch.int64)
            return Requantize(shift, self.bits, 0, table.clamp(max=top))
        if top >= int(grid[-1]):
            return Requantize(shift, self.bits, self.low)
        return Requantize(shift, self.bits, 0, grid.clamp(max=top))


def code_range(seen: Observation, scheme: Scheme, op: Clamp) -> tuple[float, float]:
    """The real ends that codes should cover: what was seen, as the scheme's observer reads it, within the activation.

    headroom widens it. Zero is kept inside where the activation allows it: data rarely show every value that can occur
    around it.
    """
    lo, hi = seen.range(scheme.observer, scheme.activation_bits, scheme.percentile)
    lo, hi = max(min(lo, 0.0) * scheme.headroom, op.lo), min(max(hi, 0.0) * scheme.headroom, op.hi)
    if hi <= lo:  # a layer that the data left constant still has to have some scale
        hi = lo + max(abs(lo), 1.0)
    return lo, hi


def activation_levels(seen: Observation, scheme: Scheme, lo: float, hi: float, scale: float) -> Tensor | None:
    """The scheme's levels for codes in [lo, hi], int64, sorted, in steps of ``scale``; None for uniform codes.

    Powers of two and their sums (of activation_bits bits, a sign included where the range has both) are scaled so that
    the largest is the range's larger end; levels that fall together on the grid are one. Code books are k-means
    centres of what was seen, with zero as one of them.
    """
    if scheme.activations == "uniform":
        return None
    low, high = round(lo / scale), round(hi / scale)
    if scheme.activations == "codebook":
        levels = _book(seen, 1 << scheme.activation_bits, low, high, scale)
    else:
        make = powers_of_two if scheme.activations == "power_of_two" else additive_powers_of_two
        magnitudes = make(scheme.activation_bits - (low < 0 < high))
        largest = max(-low, high)
        magnitudes = torch.round(magnitudes * (largest / int(magnitudes[-1]))).to(torch.int64)
        levels = both_signs(magnitudes)
    distinct: Tensor = torch.unique(levels.clamp(low, high))
    return distinct


def _book(seen: Observation, count: int, low: int, high: int, scale: float) -> Tensor:
    """k-means of the values seen, each at its place on the grid; zero, where it is in the range, is a centre."""
    edges, counts = seen.histogram
    places = np.clip(np.round((edges[1:] + edges[:-1]) / 2 / scale), low, high).astype(np.int64)
    mass = np.bincount(places - low, weights=counts, minlength=high - low + 1)
    zero = low <= 0 <= high
    if zero:
        mass[-low] = max(mass[-low], 1.0)
    held = np.flatnonzero(mass)
    values, weights = torch.from_numpy(held + low), torch.from_numpy(mass[held])
    return best_clusters(values, weights, count, 0.0 if zero else None).round().to(torch.int64)
