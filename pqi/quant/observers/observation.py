"""Observation: what calibration saw of one value, in constant memory however many batches there are."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pqi.graph.errors import QuantizationError
from pqi.quant.observers.entropy import entropy_range
from pqi.quant.observers.histogram import Histogram
from pqi.quant.observers.mse import mse_range
from pqi.quant.observers.percentile import percentile_range, tail_share

OBSERVERS = ("minmax", "moving_average", "percentile", "mse", "entropy")
MOMENTUM = 0.1  # weight of a new batch in the moving average: the last twenty or so count
MAX_BITS = 16


class Observation:
    """Count, ends, moving average of the ends, and a histogram of everything seen.

    count: values seen. lo, hi: the ends. zeros: how many values are exactly zero. All but the moving average are the
    same however the data were cut into batches and whatever their order.
    """

    def __init__(self) -> None:
        self.count = 0
        self.lo, self.hi = math.inf, -math.inf
        self._average: tuple[float, float] | None = None
        self._histogram = Histogram()

    def see(self, values: Tensor) -> None:
        """Take a batch of values of any shape into account; none at all change nothing.

        Raises QuantizationError if any is NaN or infinite.
        """
        if not values.numel():
            return
        flat = values.detach().to(torch.float32).flatten()
        low, high = (float(v) + 0.0 for v in flat.aminmax())  # no -0.0
        if not (math.isfinite(low) and math.isfinite(high)):
            raise QuantizationError("an observer saw NaN or infinity: every value must be finite")
        self.count += flat.numel()
        self.lo, self.hi = min(self.lo, low), max(self.hi, high)
        if self._average is None:
            self._average = low, high
        else:
            a, b = self._average
            self._average = a + MOMENTUM * (low - a), b + MOMENTUM * (high - b)
        self._histogram.add(flat, max(-low, high, 0.0))

    def range(self, observer: str, bits: int, percentile: float = 99.99) -> tuple[float, float]:
        """The finite range (lo, hi), lo <= hi, that codes of ``bits`` bits should cover.

        "minmax": the ends seen. "moving_average": of the ends of each batch, the newest with weight 0.1 and the first
        as the start (Jacob et al., CVPR 2018, section 3.1). "percentile": leaves (100 - percentile) % of the values
        outside. "mse": least squared error of the codes. "entropy": least Kullback-Leibler divergence (Migacz 2017).
        The last three read a histogram whose bins are less than 1/2048 of the largest magnitude wide; mse and entropy
        have zero in their range, since zero always is a code. A constant value c gives (c, c), whoever observes.
        Raises QuantizationError: nothing seen, an unknown observer, bits outside 1 to 16, percentile outside (50, 100].
        """
        if observer not in OBSERVERS:
            raise QuantizationError(f"observer is {observer!r}: it must be one of {', '.join(OBSERVERS)}")
        if isinstance(bits, bool) or not isinstance(bits, int) or not 1 <= bits <= MAX_BITS:
            raise QuantizationError(f"bits is {bits!r}: it must be an integer from 1 to {MAX_BITS}")
        tail_share(percentile, self.lo, self.hi)
        self._something()
        if self.lo == self.hi or observer == "minmax" or self._average is None:
            return self.lo, self.hi
        if observer == "moving_average":
            return self._average
        if observer == "entropy":
            return entropy_range(self._histogram, self.lo, self.hi, bits)
        within = percentile_range(self._histogram, self.lo, self.hi, percentile)
        return within if observer == "percentile" else mse_range(self._histogram, self.lo, self.hi, bits, [within])

    def too_few_for(self, percentile: float) -> str | None:
        """Why ``percentile`` cuts off nothing from so few values (part of a message), or None if it can.

        One value in 100 / (100 - percentile) may lie outside; of values of both signs, half of those on each side.
        """
        self._something()
        share = tail_share(percentile, self.lo, self.hi)
        if share == 0 or self.count * share >= 1:
            return None
        signs = " of both signs" if self.lo < 0 < self.hi else ""
        return (
            f"{percentile:g} asks for at least {math.ceil(1 / share):,} values{signs}, {self.count:,} were seen: "
            "the range is the largest value"
        )

    @property
    def zeros(self) -> int:
        """How many values are exactly zero."""
        return self._histogram.zeros

    @property
    def histogram(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """(edges (n + 1,), counts (n,)), bins of equal width from the first to the last that holds a value."""
        self._something()
        return self._histogram.seen()

    def _something(self) -> None:
        if not self.count:
            raise QuantizationError("an observer saw no values: give at least one calibration sample")
