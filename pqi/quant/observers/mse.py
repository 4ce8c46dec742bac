"""The range of least mean squared error between values and their codes, clipping included.

A range [lo, hi] and b bits make the grid that codes will have: step s = (hi - lo) / (2^b - 1), codes q_0 .. q_n, the
multiples of s from round(lo / s) s on, so that zero is one of them; a value goes to the nearest, beyond the ends to the
end. With thresholds t_j = (q_{j-1} + q_j) / 2, summation by parts turns the expected squared error into

    E (x - Q(x))^2 = E (x - q_n)^2 - 2 s sum_j G(t_j),    G(t) = E max(t - x, 0),

and G of a histogram, whose values are spread evenly over their bins, is a parabola in each bin. So a candidate costs
2^b - 1 look-ups whatever the number of bins. Exact zeros cost nothing on any such grid and are left out.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from pqi.quant.observers.histogram import BINS, Counts, Histogram

Reals = NDArray[np.float64]

_FRACTIONS = np.unique(np.concatenate([np.linspace(0.0625, 1, 16), 2.0 ** (-np.arange(8, 24) / 2)]))
_ROUNDS = 4  # of refining: each searches between the neighbours of the best, four times finer
_AT_ONCE = 1 << 20  # look-ups at a time: 8 MB a temporary


class GridError:
    """Expected squared error of code grids over a histogram, in squares of a bin's width."""

    def __init__(self, counts: Counts) -> None:
        total = counts.sum()
        self.density = counts / total
        left = np.arange(-BINS, BINS)
        self.mean = float((self.density * (left + 0.5)).sum())
        self.square = float((self.density * (left * (left + 1.0) + 1 / 3)).sum())
        self.below = np.concatenate([[0.0], np.cumsum(self.density)])  # P(x < bin edge)
        self.gap = np.concatenate([[0.0], np.cumsum(self.below[:-1] + self.density / 2)])  # G at the bin edges

    def of(self, lo: Reals, hi: Reals, bits: int) -> Reals:
        """Error of each candidate (lo[i], hi[i]), in bins; lo <= 0 <= hi, lo < hi."""
        rows = max(1, _AT_ONCE >> bits)
        parts = [self._of(lo[i : i + rows], hi[i : i + rows], bits) for i in range(0, len(lo), rows)]
        return np.concatenate(parts)

    def _of(self, lo: Reals, hi: Reals, bits: int) -> Reals:
        steps = (1 << bits) - 1
        step = (hi - lo) / steps
        low = np.round(lo / step)
        top = (low + steps) * step
        thresholds = (low[:, None] + np.arange(steps) + 0.5) * step[:, None]
        spread = self.square - 2 * top * self.mean + top * top
        return np.asarray(spread - 2 * step * self._gap(thresholds).sum(1))

    def _gap(self, at: Reals) -> Reals:
        """G, a parabola in each bin; 0 below them all, and a line above."""
        place = np.clip(at + BINS, 0, 2 * BINS)
        index = np.minimum(place.astype(np.int64), 2 * BINS - 1)
        part = place - index
        inside = self.gap[index] + part * (self.below[index] + part / 2 * self.density[index])
        return np.asarray(inside + np.maximum(at - BINS, 0))


def mse_range(
    histogram: Histogram, lo: float, hi: float, bits: int, also: Iterable[tuple[float, float]] = ()
) -> tuple[float, float]:
    """(lo, hi), zero inside, of least squared error; no worse than the ends seen and the ranges in ``also``.

    Searched on a grid of fractions of both ends (of one end for values of one sign), then ever finer around the best.
    """
    lo, hi = min(lo, 0.0), max(hi, 0.0)
    width = histogram.width
    error = GridError(histogram.nonzero())
    starts = [(min(a, 0.0), max(b, 0.0)) for a, b in also]
    lows = np.array([a / width for a, b in starts if a < b])
    highs = np.array([b / width for a, b in starts if a < b])
    ends = np.array([lo / width, hi / width])
    nets = [end * _FRACTIONS[::-1] if end else np.zeros(1) for end in ends]  # the widest first: it wins a tie
    best, least = ends, np.inf
    for turn in range(_ROUNDS + 1):
        a, b = (side.ravel() for side in np.meshgrid(*nets, indexing="ij"))
        if turn == 0:
            a, b = np.concatenate([a, lows]), np.concatenate([b, highs])
        errors = error.of(a, b, bits)
        index = int(errors.argmin())
        if errors[index] < least:
            best, least = np.array([a[index], b[index]]), errors[index]
        nets = [_closer(net, float(at), float(end)) for net, at, end in zip(nets, best, ends, strict=True)]
    return max(lo, float(best[0]) * width), min(hi, float(best[1]) * width)


def _closer(net: Reals, at: float, end: float) -> Reals:
    """Nine candidates between the neighbours of ``at``, itself one of them, none beyond the end seen."""
    if not end:
        return net
    sizes, size = np.sort(np.abs(net)), abs(at)
    smaller, larger = sizes[sizes < size], sizes[sizes > size]
    under = float(smaller[-1]) if smaller.size else size / 2
    over = float(larger[0]) if larger.size else min(size * 1.5, abs(end))
    both = np.concatenate([np.linspace(under, size, 5), np.linspace(size, over, 5)[1:]])
    return np.asarray(np.unique(np.minimum(both, abs(end)))[::-1] * np.sign(end), dtype=np.float64)
