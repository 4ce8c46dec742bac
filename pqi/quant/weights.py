"""Integer weights: b-bit codes per output channel, times a whole number that brings all channels to one scale.

The accumulators of a layer have one scale u, so that one shift brings all channels to codes. A channel c of weights w
on inputs of scale s gets a multiplier m_c = ceil(max|w_c| s / (u q)), q = 2^(b-1) - 1, and codes round(w s / (u m_c)),
which fit b bits; its integer weights are code * m_c. When u is small against the weights, m_c is some whole number
above 1 and every channel uses its b bits nearly fully: per-channel quantization with one accumulator scale.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pqi.graph.errors import QuantizationError
from pqi.graph.ops.base import MAX_WEIGHT


@dataclass(frozen=True)
class WeightScheme:
    """Bits of a weight code, whether every channel has its own multiplier, and the one aimed at in most."""

    bits: int
    per_channel: bool
    multiplier: float

    @property
    def top(self) -> int:
        """The largest code, 2^(bits-1) - 1."""
        return (1 << (self.bits - 1)) - 1


def channel_reach(weight: Tensor) -> Tensor:
    """max |w| per output channel (axis 0)."""
    return weight.abs().reshape(weight.shape[0], -1).amax(1)


def exact_unit(weight: Tensor, top: int) -> float | None:
    """A positive number of which all weights are whole multiples up to ``top``, if one is plain to see.

    Found are: weights that are such integers already, and weights in {-a, 0, a}.
    """
    reach = float(weight.abs().max())
    if reach == 0.0:
        return None
    if reach <= top and bool((weight == weight.round()).all()):
        return 1.0
    return reach if bool(((weight.abs() == reach) | (weight == 0)).all()) else None


def integer_weights(name: str, weight: Tensor, ratio: Tensor | float, scheme: WeightScheme) -> Tensor:
    """Integer weights near weight * ratio, with ratio = s / u (a number, or one per output channel).

    Per channel they are code * m with |code| <= 2^(bits-1) - 1. A channel of {-a, 0, a} gets codes {-1, 0, 1}.
    """
    shape = (-1,) + (1,) * (weight.ndim - 1)
    ratio = torch.as_tensor(ratio, dtype=torch.float64).expand(weight.shape[0]).view(shape)
    target = weight.to(torch.float64) * ratio
    reach = channel_reach(target) if scheme.per_channel else target.abs().max().expand(weight.shape[0])
    if not bool(torch.isfinite(reach).all()) or float(reach.max()) > MAX_WEIGHT:
        raise QuantizationError(
            f"layer {name!r}: integer weights would reach {float(reach.max()):.3g}; at most {MAX_WEIGHT} is possible. "
            "Its output range is tiny against its weights: check the calibration data, or use fewer weight bits."
        )
    multiplier = torch.ceil(reach / scheme.top * (1 - 1e-12)).clamp(min=1)
    level = target.abs()
    in_step = (level == 0) | (level == channel_reach(target).view(shape))
    ternary = in_step.reshape(weight.shape[0], -1).all(1) & scheme.per_channel
    multiplier = torch.where(ternary, reach.round().clamp(min=1), multiplier)
    whole = bool(((ratio - ratio.round()).abs() <= 1e-9 * ratio).all()) and bool((ratio.round() >= 1).all())
    if whole and exact_unit(weight, scheme.top) == 1.0:  # the weights are codes already, and u divides their unit
        multiplier = ratio.view(-1).round()
    multiplier = multiplier.view(shape)
    return (torch.round(target / multiplier) * multiplier).to(torch.int64)


def integer_scale(name: str, weight: Tensor, ratio: float) -> Tensor:
    """Integer factors near weight * ratio for a per-channel Scale, without a limit on their bits."""
    target = weight.to(torch.float64) * ratio
    if float(target.abs().max()) > MAX_WEIGHT:
        raise QuantizationError(f"layer {name!r}: integer factors would reach {float(target.abs().max()):.3g}")
    return torch.round(target).to(torch.int64)
