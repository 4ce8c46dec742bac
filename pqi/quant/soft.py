"""Soft rounding: which of two neighbours a weight takes, as a number that can be learned.

A weight is below + (above - below) h(v), h(v) = clamp(1.2 sigmoid(v) - 0.1, 0, 1): a rectified sigmoid, which reaches
both ends (Nagel et al., ICML 2020, section 3.3). Who chooses the rounding, for good or ill, learns v by gradients.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_LOW, _HIGH = -0.1, 1.1
_WARM, _BETA = 0.2, (20.0, 2.0)


def share(v: Tensor) -> Tensor:
    """h(v), 0 for the lower neighbour to 1 for the upper one."""
    return (torch.sigmoid(v) * (_HIGH - _LOW) + _LOW).clamp(0.0, 1.0)


def start(h: Tensor) -> Tensor:
    """The v, a leaf with a gradient, at which the share is h (0 to 1)."""
    return torch.logit((h - _LOW) / (_HIGH - _LOW)).requires_grad_()


def place(target: Tensor, below: Tensor, above: Tensor) -> Tensor:
    """Where a target lies between its neighbours, 0 to 1; beyond the last level it is at that level."""
    return ((target - below) / (above - below).clamp(min=1)).clamp(0.0, 1.0)


def undecided(h: Tensor, done: float) -> Tensor:
    """mean(1 - |2 h - 1|^beta), which drives shares to 0 or 1; beta falls from 20 to 2 as ``done`` goes to 1.

    Nothing in the first fifth, so that shares can move before they must decide.
    """
    past = (done - _WARM) / (1 - _WARM)
    if past < 0:
        return torch.zeros((), dtype=h.dtype)
    beta = _BETA[1] + (_BETA[0] - _BETA[1]) * (1 + math.cos(math.pi * past)) / 2
    return (1 - (2 * h - 1).abs() ** beta).mean()
