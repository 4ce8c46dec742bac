"""Float weights clipped before they are quantized, so that a turned bit moves them less."""

from __future__ import annotations

from copy import deepcopy
from math import isfinite

import torch
from torch import Tensor, nn

from pqi.audit.defences.defence import Defence
from pqi.audit.errors import AuditError

_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Linear)


class WeightClipping(Defence):
    """Every filter's weights are clipped to mean +- ``deviations`` standard deviations, before anything is quantized.

    A filter's step is its largest weight / 127 (of 8 bits), and a turned top bit moves a weight by 128 steps: by as
    much as the largest weight is. Clipped to a few deviations the largest one is smaller, and so is the harm of a bit
    and, where outliers were, the rounding error of all others. What is clipped away costs accuracy (``price``).

    It is no defence against chosen bits: ResNet-20 guesses after 10 of them with 4 deviations as it does without, for
    0.3 points of accuracy (600 images), and 3 deviations cost 2.7 points. What holds is a guard in front of the weights
    (``pqi.audit.defences.guarded``), which can be had besides.
    """

    name = "weight-clipping"
    answers = ("bit-flips", "targeted-bit-flips")
    source = "Stutz, Chandramoorthy, Hein, Schiele, MLSys 2021 (there during training; here once, after it)"
    reads_calibration = True

    def __init__(self, deviations: float = 4.0) -> None:
        if not (isfinite(deviations) and deviations > 0):
            raise AuditError(f"weight-clipping: deviations = {deviations} must be positive and finite")
        self.deviations = float(deviations)

    @torch.no_grad()
    def network(self, net: nn.Module, x: Tensor) -> nn.Module:
        """A copy with clipped weights."""
        clipped = deepcopy(net)
        for module in clipped.modules():
            if isinstance(module, _LAYERS):
                rows = module.weight.flatten(1)
                mean, reach = rows.mean(1, keepdim=True), self.deviations * rows.std(1, correction=0, keepdim=True)
                rows = torch.minimum(torch.maximum(rows, mean - reach), mean + reach)
                module.weight.copy_(rows.view_as(module.weight))
        return clipped
