"""The range whose codes lose least information: TensorRT's calibration (S. Migacz, GTC 2017), for any bits and sign.

For a clipped range, P is the histogram of the clipped values (what lies outside counts in the outermost bin), Q what
remains of the histogram after coding: the values of one code, spread evenly over the bins that held any. The range of
least KL(P || Q) = sum P log(P / Q) is taken. Following the original, Q knows nothing of what was clipped (or clipping
would be free), and a candidate has at least as many bins as codes. Unlike the original, codes are those of the grid
that will be used, exact zeros are left out (they are a code of every grid, and the peak that ReLU makes of them would
decide alone), an outermost bin always holds something, so that P > 0 implies Q > 0, and only bins that hold something
count towards the least number of bins, which is 16 even for a single bit: P and Q of one bin are always the same.
The least number of bins bounds what can be clipped: many bits, few values, or a rest that one far outlier leaves only
a few bins, keep the ends seen. Percentiles have no such bound.

A peak that is not at zero misleads it: where most values are one and the same constant (what a bias makes of a blank
border, say), spreading that constant over the bins of a code costs more than clipping all above it, and a network of
few bits can lose everything. Look at the accuracy, or take another observer there.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pqi.quant.observers.histogram import BINS, Counts, Histogram

_CANDIDATES = 192
_LEAST_BINS = 16
_TIE = 1e-12  # nats


def entropy_range(histogram: Histogram, lo: float, hi: float, bits: int) -> tuple[float, float]:
    """(lo, hi), zero inside, of least divergence: [max(lo, -r), min(hi, r)] for the best of some 200 reaches r."""
    lo, hi = min(lo, 0.0), max(hi, 0.0)
    width = histogram.width
    counts = histogram.nonzero()
    held = np.flatnonzero(counts)
    best, least = (lo, hi), np.inf
    for bottom, top in _candidates(held, max(1 << bits, _LEAST_BINS)):
        a, b = max(lo, min(bottom - BINS, 0) * width), min(hi, max(top + 1 - BINS, 0) * width)
        divergence = _divergence(counts, bottom, top, a / width, b / width, bits)
        if divergence < least - _TIE:
            best, least = (a, b), divergence
    return best


def _candidates(held: NDArray[np.int64], least: int) -> list[tuple[int, int]]:
    """(first bin, last bin) of each candidate, the widest first; both hold something, and so do ``least`` bins."""
    widest = max(BINS - int(held[0]), int(held[-1]) + 1 - BINS)
    reaches = np.concatenate([np.linspace(1, widest, _CANDIDATES // 2), np.geomspace(1, widest, _CANDIDATES // 2)])
    found = [(int(held[0]), int(held[-1]))]
    for reach in np.unique(reaches.astype(np.int64))[::-1]:
        first = int(np.searchsorted(held, BINS - reach))
        last = int(np.searchsorted(held, BINS + reach)) - 1
        if last - first + 1 >= least and (held[first], held[last]) != found[-1]:
            found.append((int(held[first]), int(held[last])))
    return found


def _divergence(counts: Counts, bottom: int, top: int, lo: float, hi: float, bits: int) -> float:
    """KL(P || Q) in nats of the bins bottom .. top coded by the grid of [lo, hi] (in bins)."""
    kept = counts[bottom : top + 1]
    held = kept > 0
    steps = (1 << bits) - 1
    step = (hi - lo) / steps
    low = round(lo / step)
    middles = np.arange(bottom, top + 1)[held] - BINS + 0.5
    code = np.clip(np.round(middles / step) - low, 0, steps).astype(np.int64)
    kept = kept[held]
    share = np.bincount(code, weights=kept, minlength=steps + 1) / np.maximum(np.bincount(code, minlength=steps + 1), 1)
    coded = share[code]
    clipped = kept.copy()
    clipped[0] += counts[:bottom].sum()
    clipped[-1] += counts[top + 1 :].sum()
    p, q = clipped / clipped.sum(), coded / coded.sum()
    return float((p * np.log(p / q)).sum())
