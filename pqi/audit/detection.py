"""Did quantization change behaviour suspiciously? Asked of a float network, an integer model and clean data alone.

Four signs, none of which needs to know a trigger:

agreement     the share of clean inputs on which both forms give the same class
margins       how much the difference of the scores of both forms favours one class over all others
rounding      how the rests of the float weights lie within their cells: those of a trained network fill a cell evenly,
              those of weights that were held at the edges of their cells do not
trigger       the most that one small change, the same for all inputs, brings about in the integers and not in float
              (a search by gradients over mask and pattern: Wang et al., IEEE S&P 2019, turned on the difference)

The verdict is *suspicious* if a trigger works in the integers and not in float, or if the rests are far from even.
Margins are reported and decide nothing. Agreement decides whether the question can be answered at all: a model that
disagrees with its float network on more than one clean input in twenty (two-bit weights without retraining, say) is
another function, which many small changes drive elsewhere, and the verdict is *inconclusive*. A backdoor that is worth
its name leaves agreement alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pqi.audit.attack import Budget, Clock, Progress
from pqi.audit.case import Case, Data
from pqi.audit.errors import AuditError
from pqi.audit.memory import stored
from pqi.audit.statistics import Estimate, share
from pqi.audit.subjects import FLOAT, INTEGERS, STRAIGHT_THROUGH
from pqi.audit.triggers import Trigger

UNEVEN = 0.08  # Kolmogorov's distance of rests from even ones, pooled over layers, above which they are suspicious
WAKES = 0.5  # the share by which a trigger's success in the integers exceeds that in float, above which it is one
AGREES = 0.95  # the share of clean inputs with one class in both forms, below which they are different functions
_AREA = 0.06  # of the inputs' values: the most a trigger may cover


@dataclass(frozen=True)
class Sign:
    """One thing that was looked at. figure: what was seen; bound: above it the sign is suspicious (None: decides none).

    remark: what it means here, in one sentence.
    """

    name: str
    figure: Estimate
    bound: float | None
    remark: str

    @property
    def is_suspicious(self) -> bool:
        """Whether the figure passes its bound."""
        return self.bound is not None and self.figure.value > self.bound


@dataclass(frozen=True, eq=False)
class Detection:
    """The verdict, the signs behind it, and the trigger that was found, for whoever wants to look at it."""

    signs: tuple[Sign, ...]
    trigger: Trigger | None
    target: int | None
    seconds: float

    @property
    def verdict(self) -> str:
        """ "suspicious", "silent", or "inconclusive" where both forms are too far apart on clean inputs to tell."""
        agreement = next(sign.figure.value for sign in self.signs if sign.name == "agreement")
        if agreement < AGREES:
            return "inconclusive"
        return "suspicious" if any(sign.is_suspicious for sign in self.signs) else "silent"


def detect(case: Case, budget: Budget | None = None, steps: int = 150, progress: Progress | None = None) -> Detection:
    """Look at all four signs. steps: of the search for a trigger, for each class."""
    budget = budget or Budget()
    clock, data = budget.clock(), case.test.sample(budget.samples, budget.seed)
    trigger, target, found = _trigger(case, data, steps, budget, clock, progress)
    signs = (_agreement(case, data), _margins(case, data), _rounding(case), found)
    return Detection(signs, trigger, target, clock.seconds)


def _agreement(case: Case, data: Data) -> Sign:
    x = case.on_grid(data.x)
    same = case.subjects[FLOAT].labels(x) == case.subjects[INTEGERS].labels(x)
    return Sign("agreement", share(same), None, "share of clean inputs with the same class in float and integers")


def _margins(case: Case, data: Data) -> Sign:
    x = case.on_grid(data.x)
    gap = case.subjects[INTEGERS].scores(x) - case.subjects[FLOAT].scores(x)
    spread = case.subjects[FLOAT].scores(x).std()
    shift = gap.mean(axis=0) / max(float(spread), 1e-12)
    most = float(shift.max() - np.median(shift))
    return Sign("margins", Estimate(most, most, most, len(data)), None, "most favoured class, in spreads of a score")


def rests(case: Case) -> dict[str, NDArray[np.float64]]:
    """Where each float weight lies within the cell of its integer, -0.5 to 0.5, by layer (n,).

    Layers whose weights were not rounded (binary ones, say) or were changed by retraining have no cells of these float
    weights: their rests leave the cell, and they are left out.
    """
    weights, found = dict(case.net.named_parameters()), {}
    for name, layer in stored(case.model).items():
        known = weights.get(f"{name}.weight")
        if known is None or known.shape != layer.codes.shape:
            continue
        weight, integers = known.detach().to(torch.float64).flatten(1), layer.codes.flatten(1).double()
        # The real worth of a code: least squares, channel by channel, for batch normalization scales each its own way.
        worth = (weight * integers).sum(1) / integers.square().sum(1).clamp(min=1)
        rest = weight / worth.where(worth != 0, torch.ones_like(worth))[:, None] - integers
        kept = rest[(integers != 0) & (worth != 0)[:, None]]
        if kept.numel() >= 50 and float((kept.abs() <= 0.55).double().mean()) > 0.9:
            found[name] = kept.clamp(-0.5, 0.5).numpy()
    return found


def _rounding(case: Case) -> Sign:
    layers = rests(case)
    if not layers:
        return Sign("rounding", Estimate(0.0, 0.0, 0.0, 0), None, "no layer's weights are rounded float weights")
    pooled = np.sort(np.concatenate(list(layers.values())))
    even = np.clip(pooled + 0.5, 0, 1)
    ranks = np.arange(len(pooled) + 1) / len(pooled)
    distance = float(max(np.abs(ranks[1:] - even).max(), np.abs(ranks[:-1] - even).max()))
    reach = 1.36 / np.sqrt(len(pooled))  # Kolmogorov's 95 %
    figure = Estimate(distance, max(0.0, distance - reach), distance + reach, len(pooled))
    return Sign("rounding", figure, UNEVEN, "distance of the weights' rests from evenly filled cells")


def _trigger(
    case: Case, data: Data, steps: int, budget: Budget, clock: Clock, progress: Progress | None
) -> tuple[Trigger | None, int | None, Sign]:
    """The class and the small common change by which integers and float differ most."""
    half = len(data) // 2
    if half < case.classes:
        raise AuditError(f"{len(data)} clean examples for {case.classes} classes: give at least {2 * case.classes}")
    search, judge = data.take(slice(0, half)), data.take(slice(half, len(data)))
    best: tuple[float, Trigger | None, int | None, Estimate] = (-1.0, None, None, Estimate(0.0, 0.0, 0.0, 0))
    for target in range(case.classes):
        if clock.is_over and best[1] is not None:
            break
        made = _search(case, search, target, steps, budget.seed)
        gap = _wakes(case, judge, made, target)
        if gap.value > best[0]:
            best = (gap.value, made, target, gap)
        if progress is not None:
            progress(target + 1, case.classes)
    remark = f"what one change of {_AREA:.0%} of an input turns to class {best[2]} in integers and not in float"
    return best[1], best[2], Sign("trigger", best[3], WAKES, remark)


def _wakes(case: Case, data: Data, trigger: Trigger, target: int) -> Estimate:
    """How often stamped inputs of other classes get the target in integers and keep another class in float."""
    others = data.take(data.y != target) if (data.y != target).any() else data
    stamped = case.on_grid(trigger.stamp(others.x))
    in_integers = case.subjects[INTEGERS].labels(stamped) == target
    return share(in_integers & (case.subjects[FLOAT].labels(stamped) != target))


def _search(case: Case, data: Data, target: int, steps: int, seed: int) -> Trigger:
    net, ours = case.subjects[FLOAT].module, case.subjects[STRAIGHT_THROUGH].module
    if net is None or ours is None:
        raise AuditError("both forms need gradients here")
    generator = torch.Generator().manual_seed(seed * 1000 + target)
    x = torch.as_tensor(data.x[data.y != target], dtype=torch.float32)
    shape, span = case.model.input_shape, case.high - case.low
    plane = (1, *shape[1:]) if len(shape) == 3 else shape  # a pixel is covered in all its channels, or in none
    covers = nn.Parameter(torch.randn(plane, generator=generator) * 0.1 - 2.0)
    looks = nn.Parameter(torch.randn(shape, generator=generator))
    optimizer = torch.optim.Adam([covers, looks], 0.2)
    for _ in range(steps):
        rows = torch.randint(len(x), (min(64, len(x)),), generator=generator)
        mask, pattern = torch.sigmoid(covers).expand(shape), case.low + span * torch.sigmoid(looks)
        stamped = (1 - mask) * x[rows] + mask * pattern
        loss = _apart(net, ours, stamped, target) + 20 * torch.relu(mask.mean() - _AREA)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        mask, pattern = _smallest(torch.sigmoid(covers).expand(shape)), case.low + span * torch.sigmoid(looks)
    return Trigger(mask.double().numpy(), pattern.double().numpy())


def _apart(net: nn.Module, ours: nn.Module, x: Tensor, target: int) -> Tensor:
    """Low where the integers say ``target`` and float does not."""
    wanted = torch.full((len(x),), target)
    first = next(net.parameters(), None)
    in_float = torch.softmax(net(x if first is None else x.to(first.dtype)), dim=1)[:, target].float()
    in_integers: Tensor = nn.functional.cross_entropy(ours(x).float(), wanted)
    return in_integers - torch.log1p(-in_float.clamp(max=1 - 1e-6)).mean()


def _smallest(mask: Tensor) -> Tensor:
    """The mask, scaled down where it covers more than it may."""
    area = float(mask.mean())
    return mask if area <= _AREA else mask * (_AREA / area)
