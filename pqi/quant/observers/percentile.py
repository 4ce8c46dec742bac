"""The range that leaves (100 - percentile) % of the values outside, half of them on each side that has any.

With values of one sign only (after ReLU), the whole tail is on that side. Never more than the share is left outside;
how much less is a matter of the histogram's bins.
"""

from __future__ import annotations

import math
from fractions import Fraction

import torch

from pqi.graph.errors import QuantizationError
from pqi.quant.observers.histogram import BINS, Histogram


def tail_share(percentile: float, lo: float, hi: float) -> Fraction:
    """The share of the values that may lie outside on one side: exact, so that 99.99 of 10,000 values leaves one."""
    if not 50.0 < percentile <= 100.0:
        raise QuantizationError(f"percentile is {percentile}: it must be above 50 and at most 100")
    return (1 - Fraction(str(float(percentile))) / 100) / (2 if lo < 0 < hi else 1)


def percentile_range(histogram: Histogram, lo: float, hi: float, percentile: float) -> tuple[float, float]:
    """(lo, hi) at the percentile, within the ends seen."""
    below = histogram.counts.cumsum(0)
    total = int(below[-1])
    tail = math.floor(total * tail_share(percentile, lo, hi))
    if hi > 0:
        top = int(torch.searchsorted(below, total - tail))  # the first bin that leaves at most the tail above
        hi = min(hi, (top + 1 - BINS) * histogram.width)
    if lo < 0:
        bottom = int(torch.searchsorted(below, tail, right=True))
        lo = max(lo, (bottom - BINS) * histogram.width)
    return lo, hi
