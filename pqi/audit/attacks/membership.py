"""Was this example in the training set? Asked of float and integer networks, from scores or from labels alone.

| attack | needs | score of an example (x, y) |
|---|---|---|
| threshold | scores | phi = log p_y - log(1 - p_y), p the softmax of the answer (Carlini et al., S&P 2022) |
| gap | labels | 1 if x is classified rightly (Yeom et al., CSF 2018) |
| gap, lira | labels, reference models | (that - mean_out) / std_out (calibrated: Watson et al., ICLR 2022) |
| lira | scores, reference models | (phi - mean_out) / std_out over references not trained on x (ibid., offline) |
| lira online | the same, trained on x too | log N(phi; in) - log N(phi; out), one std each (ibid., online) |
| rmia | as lira | share of z with p(x) / p_ref(x) >= p(z) / p_ref(z) (Zarifzadeh et al., ICML 2024) |
| shifts | labels of shifted x | share of right labels (Choquette-Choo et al., ICML 2021) |
| shifts, lira | the same of references | (that share - mean_out) / std_out |

Figures: true positives at 1 % and at 0.1 % false positives, and the area under the curve, each with its interval.
One right label gives an example away that only networks trained on it get right: so labels against references can
tell as many members with confidence as scores do.

References are networks trained as the target was, on random halves of one pool, two by two on complements; each is
quantized as the target is, since the attacker knows how that is done. Where references are all there is, each is the
target in turn and the others are its references, as Carlini et al. evaluate: ``pqi.audit.targets``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
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
Score = Callable[[Reals, Reals, NDArray[np.bool_]], Reals]
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
    """Networks of known training sets. phi, seen: (models, examples), log odds and whether it was trained on it.

    right: (models, examples), 1 where the label was right. moved: the share of an example's copies, shifted by up to
    ``shifts`` pixels, that got the right label; empty where that is 0.
    """

    phi: Mapping[str, Reals]
    seen: NDArray[np.bool_]
    right: Mapping[str, Reals]
    moved: Mapping[str, Reals] = field(default_factory=dict)
    shifts: int = 0


def references(
    pool: Data,
    count: int,
    train: Train,
    quantize: Quantize | Mapping[str, Quantize],
    seed: int = 0,
    progress: Progress | None = None,
    shifts: int = 0,
) -> References:
    """``count`` networks, each trained on half of the pool, and what they answer; see :func:`answered`.

    train(data, seed): the network that the target's trainer would make of the data.
    """
    seen = halves(len(pool), count, seed)
    nets = (train(pool.take(mine), seed * 10_000 + i) for i, mine in enumerate(seen))
    return answered(nets, seen, pool, quantize, progress, shifts)


def halves(n: int, count: int, seed: int) -> NDArray[np.bool_]:
    """Who is trained on what, bool (count, n): two by two they share the pool out, so half of them leave each out."""
    if count < 2:
        raise AuditError(f"{count} reference models: a spread needs at least 2")
    generator, seen = np.random.default_rng(seed), np.zeros((count, n), bool)
    for i in range(count):
        if i % 2:
            seen[i] = ~seen[i - 1]
        else:
            seen[i, generator.permutation(n)[: n // 2]] = True
    return seen


def answered(
    nets: Iterable[nn.Module],
    seen: NDArray[np.bool_],
    pool: Data,
    quantize: Quantize | Mapping[str, Quantize],
    progress: Progress | None = None,
    shifts: int = 0,
) -> References:
    """What trained networks, in the order of ``seen``, answer on the pool: in float and in integers.

    quantize: one way, called "integers", or several by name. shifts: of how many pixels; see :func:`shifted`.
    """
    ways = {INTEGERS: quantize} if callable(quantize) else quantize
    phi: dict[str, list[Reals]] = {name: [] for name in (FLOAT, *ways)}
    right: dict[str, list[Reals]] = {name: [] for name in phi}
    moved: dict[str, list[Reals]] = {name: [] for name in phi} if shifts else {}
    for i, net in enumerate(nets):
        for name in phi:
            subject = FloatSubject(net) if name == FLOAT else IntegerSubject(ways[name](net))
            scores = subject.scores(pool.x)
            phi[name].append(log_odds(scores, pool.y))
            right[name].append(_correct(scores, pool))
            if shifts:
                moved[name].append(rightly(subject, pool, shifts))
        if progress is not None:
            progress(i + 1, len(seen))
    whole = ({name: np.stack(rows) for name, rows in kept.items()} for kept in (phi, right, moved))
    return References(next(whole), seen, next(whole), next(whole), shifts)


def shifted(x: NDArray[Any], reach: int) -> list[NDArray[Any]]:
    """Images (N, ..., height, width) moved by (i, j), |i| + |j| <= reach, what moves in being the image's least value.

    2 reach (reach + 1) + 1 of them, the unmoved one first.
    """
    if x.ndim < 3 or not 0 < reach < min(x.shape[-2:]):
        raise AuditError(
            f"shifts of {reach} pixels need images larger than that, (N, ..., height, width): not {x.shape}"
        )
    height, width = x.shape[-2:]
    edge = [(0, 0)] * (x.ndim - 2) + [(reach, reach)] * 2
    wide = np.pad(x, edge, constant_values=float(x.min()))
    moves = [(i, j) for i in range(-reach, reach + 1) for j in range(-reach, reach + 1) if abs(i) + abs(j) <= reach]
    moves.sort(key=lambda move: abs(move[0]) + abs(move[1]))
    return [wide[..., reach + i : reach + i + height, reach + j : reach + j + width] for i, j in moves]


def rightly(subject: Subject, pool: Data, reach: int) -> Reals:
    """The share (N,) of an example's shifted copies that are given its label: what labels alone tell of a margin."""
    return np.asarray(np.mean([subject.labels(x) == pool.y for x in shifted(pool.x, reach)], axis=0), np.float64)


def _correct(scores: Reals, pool: Data) -> Reals:
    return np.asarray(scores.argmax(axis=1) == pool.y, np.float64)


class Membership(Attack):
    """The attacks that can be made: threshold and gap always, those against references where some are given.

    pool: examples of which ``members`` (bool) were trained on. known: references of the same pool, in its order.
    labels_only: what a label-only service leaves, the gap attack and that by shifted queries, each against references
    too. shifts: of how many pixels (0: none are asked; the inputs are images).
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
        shifts: int = 0,
    ) -> None:
        if pool is not None and (members is None or len(members) != len(pool)):
            raise AuditError(f"a pool of {len(pool)} examples needs as many marks of membership")
        if known is not None and pool is not None and known.seen.shape[1] != len(pool):
            raise AuditError(f"references know {known.seen.shape[1]} examples, the pool has {len(pool)}")
        self.pool, self.members, self.known, self.labels_only, self.shifts = pool, members, known, labels_only, shifts

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
        for method, score in self._scores(subject, scores, pool).items():
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
            "shifts": self.shifts,
        }
        return self.finding(subject.name, budget, clock, figures=figures, curves=curves, settings=settings)

    def _scores(self, subject: Subject, scores: Reals, pool: Data) -> dict[str, Reals]:
        name, known, made = subject.name, self.known, {"gap": _correct(scores, pool)}
        if known is not None:
            made["gap, lira"] = offline_ratio(made["gap"], known.right[name], known.seen)
        if self.shifts:
            made["shifts"] = rightly(subject, pool, self.shifts)
            if known is not None and known.shifts == self.shifts:
                made["shifts, lira"] = offline_ratio(made["shifts"], known.moved[name], known.seen)
        if self.labels_only:
            return made
        phi = log_odds(scores, pool.y)
        made = {"threshold": phi, **made}
        if known is not None:
            for method, score in AGAINST_REFERENCES.items():
                made[method] = score(phi, known.phi[name], known.seen)
        return made


def offline_ratio(phi: Reals, others: Reals, seen: NDArray[np.bool_]) -> Reals:
    """(phi - mean) / std over the references that did not see the example; one std for all (few references are few)."""
    mean, spread = _centres(others, ~seen, "seen by every reference")
    return np.asarray((phi - mean) / spread, np.float64)


def online_ratio(phi: Reals, others: Reals, seen: NDArray[np.bool_]) -> Reals:
    """log N(phi; mean_in, std_in) - log N(phi; mean_out, std_out), each std one for all examples."""
    inside, narrow = _centres(others, seen, "seen by no reference")
    outside, wide = _centres(others, ~seen, "seen by every reference")
    likely = ((phi - outside) / wide) ** 2 - ((phi - inside) / narrow) ** 2
    return np.asarray(likely / 2 + np.log(wide / narrow), np.float64)


def _centres(others: Reals, chosen: NDArray[np.bool_], otherwise: str) -> tuple[Reals, float]:
    """Means (N,) over the chosen references of each example, and one standard deviation of all of them."""
    count = chosen.sum(axis=0)
    if not (count >= 1).all():
        raise AuditError(f"{int((count == 0).sum())} examples were {otherwise}: train more of them")
    mean = np.where(chosen, others, 0.0).sum(axis=0) / count
    spread = np.sqrt(np.where(chosen, (others - mean) ** 2, 0.0).sum() / count.sum())
    return np.asarray(mean, np.float64), max(float(spread), _SMALLEST)


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


AGAINST_REFERENCES: dict[str, Score] = {"lira": offline_ratio, "lira online": online_ratio, "rmia": relative}
"""Methods by name: score(phi of the target, phi of the references, seen) -> (N,), high for members."""
