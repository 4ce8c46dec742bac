"""How loud the calibration data are: what the client's quantizer and its number of scales are chosen from.

The loudest |x| (the declared range's, or the largest seen) has the scale 1; inputs up to J times quieter get codes as
fine, in every layer. How large J may be depends on the biases: on an input at scale j they count j times, so a network
whose biases are large against what its loudest inputs cause needs activation codes for J times as much, and its loud
inputs pay for the quiet ones. Hence J is what the data show; or a number, where the data do not show how quiet inputs
will be, and then every input is also looked at as if it were that quiet; and all the codes allow, without biases.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pqi.graph.errors import CalibrationWarning, QuantizationError
from pqi.quant.batches import Batches
from pqi.quant.dynamic import DynamicScale, one_scale
from pqi.quant.quantizer import Quantizer

QUIETER = (
    0.01  # share of the inputs that may be quieter than the smallest scale: one stray near-silence must not decide
)
_FEW = 4


class Loudness:
    """Sees batches (n, ...), once; eight bytes an input stay."""

    def __init__(self) -> None:
        self.lo, self.hi, self.whole = math.inf, -math.inf, True
        self._ends: list[Tensor] = []

    def see(self, batch: Tensor) -> None:
        """Take a batch into account."""
        low, high = batch.flatten(1).aminmax(dim=1)
        self.lo, self.hi = min(self.lo, float(low.min())), max(self.hi, float(high.max()))
        self.whole = self.whole and bool((batch == batch.round()).all())
        self._ends.append(torch.stack([low, high], 1))

    def quantizer(self, bits: int, declared: tuple[float, float] | None = None) -> Quantizer:
        """Codes of ``bits`` bits for the loudest input at scale 1: |x| up to the declared range's, or the largest seen.

        Zero is the code 0, so codes are signed unless no value is negative. Whole data that fit keep their own grid.
        """
        lo, hi = (self.lo, self.hi) if declared is None else (float(v) for v in declared)
        if not (math.isfinite(lo) and math.isfinite(hi) and lo < hi):
            raise QuantizationError(f"input_range is {declared}: two finite numbers, the lower first, are needed")
        signed, reach = lo < 0, max(-lo, hi)
        top = (1 << (bits - 1)) - 1 if signed else (1 << bits) - 1
        if top < 1:
            raise QuantizationError("input_bits is 1: codes of both signs need at least 2")
        grid = declared is None and self.whole and 1 < reach <= top
        return Quantizer(1.0 if grid else top / reach, 0.5, 1 << bits, None, signed)

    def levels(self, quantizer: Quantizer, asked: bool | int, biased: bool) -> int:
        """J: what was asked for; or, from the data, as many scales as all but the quietest 1 % of them can use.

        More would cost: a bias counts up to J times, and activations need codes for that. Without biases all scales
        are free. Warns when the data are all about equally loud, so that quiet inputs would gain nothing.
        """
        top = quantizer.code_range[1]
        if asked is not True:
            if type(asked) is not int or not 2 <= asked <= top:
                raise QuantizationError(
                    f"dynamic is {asked!r}: it must be True, False, or how many times quieter than the loudest inputs "
                    f"may be, an integer from 2 to {top} with these input codes. Use more input_bits for more."
                )
            return asked
        if not biased:
            return top
        ends = torch.cat(self._ends).numpy()
        heard = ends[np.abs(ends).max(1) > 0]
        factors = np.sort(DynamicScale((2,), top).factors(heard, quantizer))
        levels = int(factors[max(math.ceil((1 - QUIETER) * len(factors)) - 1, 0)]) if len(factors) else 1
        if levels < _FEW:
            warnings.warn(
                f"the calibration data are all about equally loud: the quietest used scale is 1/{levels} of the "
                "loudest, and quieter inputs will not get finer codes. Give quiet inputs too, or say how much quieter "
                "than the loudest they may be, for instance dynamic=64.",
                CalibrationWarning,
                stacklevel=4,
            )
        return levels


@dataclass(frozen=True)
class Normalised:
    """Calibration data as the client will give them: each input at its own scale, and the scale beside it.

    quiet: every input is also given at the smallest scale, J, as if it were as quiet as any may be.
    """

    quantizer: Quantizer
    scale: DynamicScale
    quiet: bool

    def rows(self, batch: Tensor) -> Tensor:
        """float32 (n or 2n, numel + 1): the reals that the codes of (n, *shape) stand for, unsaturated."""
        one = self.unit
        factors = torch.from_numpy(self.scale.factors(batch.numpy(), self.quantizer)).to(torch.float64)[:, None]
        rows = torch.cat([batch.flatten(1).to(torch.float64) * factors, factors * one], 1)
        if self.quiet:
            again = rows.clone()
            again[:, -1] = self.scale.levels * one
            rows = torch.cat([rows, again])
        return rows.to(torch.float32)

    @property
    def unit(self) -> float:
        """The real that the code 1 stands for."""
        return 1.0 / one_scale(self.quantizer)


def listen(
    batches: Batches, biased: bool, asked: bool | int, bits: int, declared: tuple[float, float] | None
) -> Normalised:
    """The client's quantizer and scales for ``dynamic=asked``; reads the data once, unless both were declared.

    biased: whether the network has biases. Raises QuantizationError for data that can be read only once.
    """
    loudness = Loudness()
    if declared is None or (asked is True and biased):
        if not batches.reiterable:
            raise QuantizationError(
                "dynamic quantization reads the calibration data twice (first how loud they are), but they can be read "
                "only once: give an array, a list of batches or a DataLoader; or input_range and a number as dynamic"
            )
        for batch in batches:
            loudness.see(batch)
    quantizer = loudness.quantizer(bits, declared)
    levels = loudness.levels(quantizer, asked, biased)
    return Normalised(quantizer, DynamicScale(batches.shape, levels), quiet=asked is not True and biased)
