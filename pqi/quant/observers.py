"""Observers: what range a value takes over the calibration data, in constant memory however many batches there are."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from pqi.graph.errors import QuantizationError

_BINS = 4096  # on each side of zero


class Observer(ABC):
    """Sees batches, then names a range [lo, hi]."""

    @abstractmethod
    def see(self, values: Tensor) -> None:
        """Take one batch of values into account."""

    @abstractmethod
    def range(self) -> tuple[float, float]:
        """The range of what was seen."""


class MinMax(Observer):
    """The smallest and the largest value."""

    def __init__(self) -> None:
        self.lo, self.hi = math.inf, -math.inf

    def see(self, values: Tensor) -> None:
        """Widen the range."""
        if values.numel():
            low, high = values.aminmax()
            self.lo, self.hi = min(self.lo, float(low)), max(self.hi, float(high))

    def range(self) -> tuple[float, float]:
        """(min, max); an error if nothing was seen."""
        if self.lo > self.hi:
            raise QuantizationError("an observer saw no values: give at least one calibration sample")
        return self.lo, self.hi


class Percentile(Observer):
    """The range that leaves (100 - percentile) % of the values outside, half of them on each side that has any.

    Values fall into a histogram of fixed size over [-reach, reach]; when a value lies beyond, the reach doubles and
    neighbouring bins merge. So memory is constant, and the answer is exact to reach / 4096.
    With values of one sign only (after ReLU), the whole tail is on that side.
    """

    def __init__(self, percentile: float) -> None:
        if not 50.0 < percentile <= 100.0:
            raise QuantizationError(f"percentile is {percentile}: it must be above 50 and at most 100")
        self.tail = 1.0 - percentile / 100.0
        self.reach = 0.0
        self.counts = torch.zeros(2 * _BINS, dtype=torch.int64)
        self.ends = MinMax()

    def see(self, values: Tensor) -> None:
        """Count the batch."""
        if not values.numel():
            return
        self.ends.see(values)
        largest = max(abs(self.ends.lo), abs(self.ends.hi))
        if self.reach == 0.0:
            if largest == 0.0:
                self.counts[_BINS] += values.numel()  # all zero so far: any reach will do for them later
                return
            self.reach = largest
        while largest > self.reach:
            self._double()
        bins = ((values.double() / self.reach + 1.0) * _BINS).long().clamp_(0, 2 * _BINS - 1)
        self.counts += torch.bincount(bins.flatten(), minlength=2 * _BINS)

    def _double(self) -> None:
        self.reach *= 2
        merged = self.counts.view(_BINS, 2).sum(1)
        self.counts = torch.zeros_like(self.counts)
        self.counts[_BINS // 2 : _BINS // 2 + _BINS] = merged

    def range(self) -> tuple[float, float]:
        """(lo, hi) at the percentile, within what was seen."""
        lo, hi = self.ends.range()
        total = int(self.counts.sum())
        tail = self.tail * total / (2 if lo < 0 < hi else 1)
        width = self.reach / _BINS
        below = self.counts.cumsum(0)
        if hi > 0:
            top = int(
                torch.searchsorted(below, math.ceil(total - tail))
            )  # first bin that leaves at most the tail above
            hi = min(hi, (min(top, 2 * _BINS - 1) + 1 - _BINS) * width)
        if lo < 0:
            bottom = int(torch.searchsorted(below, math.floor(tail), right=True))
            lo = max(lo, (bottom - _BINS) * width)
        return lo, hi
