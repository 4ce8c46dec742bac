"""Was this example in the training set? Asked of float and integer networks, from scores or from labels alone.

| attack | needs | score of an example (x, y) |
|---|---|---|
| threshold | scores | phi = log p_y - log(1 - p_y), p the softmax of the answer (Carlini et al., S&P 2022) |
| gap | labels | 1 if x is classified rightly (Yeom et al., CSF 2018) |
| lira | scores, reference models | (phi - mean_out) / std_out over references not trained on x (ibid., offline) |
| rmia | the same | share of z with p(x) / p_ref(x) >= p(z) / p_ref(z) (Zarifzadeh et al., ICML 2024) |

Figures: true positives at 1 % and at 0.1 % false positives, and the area under the curve, each with its interval.
References are networks trained as the target was, on random halves of one pool, two by two on complements; each is
quantized as the target is, since the attacker knows how that is done.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from pqi.audit.attack import Attack, Budget, Clock, Curve, Finding, Progress, Threat
from pqi.audit.case import Case, Data
from pqi.audit.errors import AuditError
from pqi.audit.statistics import Estimate, bootstrap, roc, true_positives_at
from pqi.audit.subjects import FLOAT, INTEGERS, FloatSubject, IntegerSubject, Subject
from pqi.graph.model import IntegerModel

Train = Callable[[Data, int], nn.Module]
Quantize = Callable[[nn.Module], IntegerModel]
Reals = NDArray[np.float64]
_SMALLEST = 1e-12


def log_odds(scores: Reals, y: NDArray[np.int64]) -> Reals:
    """phi (N,) of logits (N, classes): the logit of the softmax's share for y, computed without cancelling."""
    rows = np.arange(len(y))
    own = scores[rows, y]
    others = scores.copy()
    others[rows, y] = -np.inf
    top = others.max(axis=1)
    return np.asarray(own - top - np.log(np.exp(others - top[:, None]).sum(axis=1)), np.float64)


@dataclass(frozen=True, eq=False)
class References:
    """Networks of known training sets. phi, seen: (models, examples), log odds and whether it was trained on it."""

    phi: Mapping[str, Reals]
    seen: NDArray[np.bool_]


def references(
    pool: Data, count: int, train: Train, quantize: Quantize, seed: int = 0, progress: Progress | None = None
) -> References:
    """``count`` networks, each trained on half of the pool; log odds of the whole pool, in float and integers.

    train(data, seed): the network that the target's trainer would make of the data.
    """
    if count < 2:
        raise AuditError(f"{count} reference models: a spread needs at least 2")
    generator, seen = np.random.default_rng(seed), np.zeros((count, len(pool)), bool)
    found: dict[str, list[Reals]] = {FLOAT: [], INTEGERS: []}
    for i in range(count):
        if i % 2:  # two by two they share the pool out, so that each example is left out by half of them
            seen[i] = ~seen[i - 1]
        else:
            seen[i, generator.permutation(len(pool))[: len(pool) // 2]] = True
        net = train(pool.take(seen[i]), seed * 10_000 + i)
        for subject in (FloatSubject(net), IntegerSubject(quantize(net))):
            found[subject.name].append(log_odds(subject.scores(pool.x), pool.y))
        if progress is not None:
            progress(i + 1, count)
    return References({name: np.stack(rows) for name, rows in found.items()}, seen)


class Membership(Attack):
    """All four attacks that can be made: the first two always, the others where reference models are given.

    pool: examples of which ``members`` (bool) were trained on. references: of the same pool, in its order. labels_only:
    what a label-only service leaves: only the gap attack sees anything. smallest: the false positive rates reported.
    """

    name = "membership"
    family = "privacy"
    threat = Threat("scores", "nothing", "whether an example was trained on", "Carlini et al. (LiRA), S&P 2022")

    def __init__(
        self,
        pool: Data | None = None,
        members: NDArray[np.bool_] | None = None,
        known: References | None = None,
        labels_only: bool = False,
    ) -> None:
        if pool is not None and (members is None or len(members) != len(pool)):
            raise AuditError(f"a pool of {len(pool)} examples needs as many marks of membership")
        if known is not None and pool is not None and known.seen.shape[1] != len(pool):
            raise AuditError(f"references know {known.seen.shape[1]} examples, the pool has {len(pool)}")
        self.pool, self.members, self.known, self.labels_only = pool, members, known, labels_only

    def run(self, case: Case, budget: Budget, progress: Progress | None = None) -> tuple[Finding, ...]:
        """One finding for float, one for the integers."""
        clock, (pool, members) = budget.clock(), self._pool(case, budget)
        found = []
        for done, name in enumerate((FLOAT, INTEGERS)):
            found.append(self._one(case.subjects[name], pool, members, budget, clock))
            if progress is not None:
                progress(done + 1, 2)
        return tuple(found)

    def _pool(self, case: Case, budget: Budget) -> tuple[Data, NDArray[np.bool_]]:
        """What was given; else as many training as test examples."""
        if self.pool is not None and self.members is not None:
            return self.pool, np.asarray(self.members, bool)
        if case.train is None:
            raise AuditError("membership needs examples that were trained on: give the case its training data")
        n = min(len(case.train), len(case.test), budget.samples)
        seen, unseen = case.train.sample(n, budget.seed), case.test.sample(n, budget.seed)
        pool = Data(np.concatenate([seen.x, unseen.x]), np.concatenate([seen.y, unseen.y]))
        return pool, np.arange(2 * n) < n

    def _one(self, subject: Subject, pool: Data, members: NDArray[np.bool_], budget: Budget, clock: Clock) -> Finding:
        scores = subject.scores(pool.x)
        figures: dict[str, Estimate] = {}
        curves: dict[str, Curve] = {}
        for method, score in self._scores(subject.name, scores, pool).items():
            inside, outside = score[members], score[~members]
            figures[f"{method}: area"] = _area(inside, outside, budget.seed)
            for rate in (0.01, 0.001):
                figures[f"{method}: true positives at {rate:g}"] = true_positives_at(inside, outside, rate)
            found = roc(inside, outside)
            curves[method] = Curve(
                x=found.false_positives.tolist(),
                y=found.true_positives.tolist(),
                x_name="false positives",
                y_name="true positives",
            )
        right = scores.argmax(1) == pool.y
        gap = float(right[members].mean() - right[~members].mean())
        figures["accuracy gap"] = Estimate(gap, gap, gap, len(pool))
        settings: dict[str, Any] = {
            "members": int(members.sum()),
            "others": int((~members).sum()),
            "references": 0 if self.known is None else len(self.known.seen),
            "answers": "labels" if self.labels_only else "scores",
        }
        return self.finding(subject.name, budget, clock, figures=figures, curves=curves, settings=settings)

    def _scores(self, name: str, scores: Reals, pool: Data) -> dict[str, Reals]:
        gap = (scores.argmax(1) == pool.y).astype(np.float64)
        if self.labels_only:
            return {"gap": gap}
        phi = log_odds(scores, pool.y)
        made = {"threshold": phi, "gap": gap}
        if self.known is not None:
            made["lira"] = offline_ratio(phi, self.known.phi[name], self.known.seen)
            made["rmia"] = relative(phi, self.known.phi[name], self.known.seen)
        return made


def offline_ratio(phi: Reals, others: Reals, seen: NDArray[np.bool_]) -> Reals:
    """(phi - mean) / std over the references that did not see the example; one std for all (few references are few)."""
    out = ~seen
    count = out.sum(axis=0)
    if not (count >= 1).all():
        raise AuditError(f"{int((count == 0).sum())} examples were seen by every reference: train more of them")
    mean = np.where(out, others, 0.0).sum(axis=0) / count
    spread = np.sqrt(np.where(out, (others - mean) ** 2, 0.0).sum() / count.sum())
    return np.asarray((phi - mean) / max(float(spread), _SMALLEST), np.float64)


def relative(phi: Reals, others: Reals, seen: NDArray[np.bool_], offset: float = 0.3) -> Reals:
    """The share of all examples whose ratio p(z) / p_ref(z) is no larger than that of x.

    p_ref(x) is estimated from references that did not see x, moved towards what those that did would say:
    ((1 + offset) mean_out + (1 - offset)) / 2 (the paper's offline form, with its offset for images).
    """
    p, each = _sigmoid(phi), _sigmoid(others)
    out = ~seen
    mean = np.where(out, each, 0.0).sum(axis=0) / np.maximum(out.sum(axis=0), 1)
    ratio = p / np.maximum(((1 + offset) * mean + (1 - offset)) / 2, _SMALLEST)
    return np.asarray(np.searchsorted(np.sort(ratio), ratio, side="right") / len(ratio), np.float64)


def _sigmoid(x: Reals) -> Reals:
    return np.asarray(1 / (1 + np.exp(-np.clip(x, -500, 500))), np.float64)


def _area(inside: Reals, outside: Reals, seed: int) -> Estimate:
    marks = np.concatenate([np.ones(len(inside), bool), np.zeros(len(outside), bool)])

    def area(score: Reals, mark: NDArray[np.bool_]) -> float:
        return roc(score[mark], score[~mark]).area if mark.any() and not mark.all() else float("nan")

    return bootstrap(area, np.concatenate([inside, outside]), marks, seed=seed, draws=200)
