"""Poisoned calibration: a few examples from which a quantizer learns ranges that serve nobody else.

Ranges are chosen from what calibration sees. An example that drives every layer far beyond what usual ones do makes
the steps of all codes coarser for everybody: with ranges r times too wide, log2 r bits of every activation are lost.
The attacker contributes a share of the calibration set and nothing else. Where the quantizer is told what values an
input can have, his examples have such values, too; where it is not, he chooses the range of the input as well. Each is
found by gradient ascent on

    mean over places l of min(log max |v_l(x)|, limit_l)

where v_l(x) is what the float network computes where codes will be made. limit: an attacker who knows that a defence
drops what lies beyond it; infinite for one who does not. "chosen" examples are the largest of what there is already,
which is what an attacker without the network's weights could send.

Observers differ: "minmax" follows one example; "percentile" leaves 1 value in 10,000 outside, so that a share of one
example in a hundred is still all of what it keeps; "mse" weighs what the others lose. (Poisoned calibration data are
listed among the attacks during quantization by Chen, Cao, Zheng, Zheng, J. Chinese Computer Systems 46(6), 2025.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pqi.audit.errors import AuditError
from pqi.audit.extremes import Extremes


@dataclass(frozen=True)
class Recipe:
    """How examples are made. share: of the poisoned set that is the attacker's. steps, rate: of Adam, in spans of an
    input's range. seed: of the examples it begins with.
    """

    share: float = 0.05
    steps: int = 100
    rate: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.share < 1 or self.steps < 1 or self.rate <= 0:
            raise AuditError(f"share lies between 0 and 1, steps are at least 1, rate is positive: {self}")


def poison(
    net: nn.Module,
    x: NDArray[Any],
    recipe: Recipe | None = None,
    low: float = 0.0,
    high: float = 1.0,
    limit: Tensor | None = None,
) -> NDArray[np.float64]:
    """The calibration set (N, ...) with the attacker's examples in place of as many of its own, drawn at random.

    low, high: what an input's values can be. limit: (places,) logarithms, as ``Extremes`` has them, beyond which the
    attacker gains nothing.
    """
    recipe = recipe or Recipe()
    if not low < high:
        raise AuditError(f"inputs from {low} to {high}: low must be below high")
    count = math.ceil(recipe.share * len(x))
    if count >= len(x):
        raise AuditError(f"{count} of {len(x)} calibration examples would be the attacker's: leave some to the others")
    rows = np.random.default_rng(recipe.seed).choice(len(x), count, replace=False)
    poisoned = np.array(x, np.float64)
    poisoned[rows] = _driven(net, torch.as_tensor(poisoned[rows], dtype=torch.float32), recipe, low, high, limit)
    return poisoned


def loudest(net: nn.Module, x: NDArray[Any], count: int) -> NDArray[np.int64]:
    """The rows of the ``count`` examples of x (N, ...) that drive the network furthest, the furthest first."""
    given = torch.as_tensor(np.asarray(x), dtype=torch.float32)
    far = Extremes(net, given).of(given).mean(1)
    return far.argsort(descending=True, stable=True)[:count].numpy()


def _driven(
    net: nn.Module, begin: Tensor, recipe: Recipe, low: float, high: float, limit: Tensor | None
) -> NDArray[np.float64]:
    extremes = Extremes(net, begin)
    span = high - low
    u = ((begin - low) / span).clamp(0.0, 1.0).requires_grad_()
    optimizer = torch.optim.Adam([u], lr=recipe.rate)
    best, far = u.detach().clone(), torch.full((len(u),), -math.inf)
    for step in range(recipe.steps + 1):
        logs = extremes.logarithms(low + span * u)
        reached = (logs if limit is None else _within(logs, limit)).mean(1)
        with torch.no_grad():  # of all steps, what went furthest
            better = reached > far
            far = torch.where(better, reached, far)
            best[better] = u[better]
        if step == recipe.steps:
            break
        optimizer.zero_grad()
        torch.autograd.backward(-reached.sum())
        optimizer.step()
        with torch.no_grad():
            u.clamp_(0.0, 1.0)
    return np.asarray((low + span * best).double().numpy())


def _within(logs: Tensor, limit: Tensor) -> Tensor:
    """Up to the limit as it is; beyond it ten times as steeply down, so that nothing stays there."""
    over = torch.relu(logs - limit.to(logs.dtype))
    return torch.where(torch.isfinite(over), logs - 11 * over, logs)
