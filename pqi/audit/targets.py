"""Each network of known training set as the target in turn, the others its references; the counts pooled.

One target and some thousand examples say little about one false positive in a thousand. Networks trained on random
halves of one pool are all targets of all others, so M of them and N examples give M N / 2 members and as many others.
One threshold serves all targets, since scores against references are on one scale; an attacker can find it with
references alone. Source: Carlini et al., S&P 2022, section VI.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
from numpy.typing import NDArray

from pqi.audit.statistics import CONFIDENCE, Estimate, Reals, Roc

Marks = NDArray[np.bool_]
Score = Callable[[Reals, Reals, Marks], Reals]


def each_in_turn(values: Reals, seen: Marks, score: Score) -> Reals:
    """Scores (models, examples): each model is the target once and all others are its references."""
    everyone = np.arange(len(seen))
    return np.stack([score(values[i], values[everyone != i], seen[everyone != i]) for i in everyone])


def pooled(score: Reals, seen: Marks, seed: int = 0, draws: int = 200) -> dict[str, Estimate]:
    """Area and true positives of targets taken together, one threshold for all; score, seen: (models, examples).

    The same examples come back with every target, so neither is drawn alone: intervals are of targets and examples
    both drawn again with replacement (the pigeonhole bootstrap, Owen, Annals of Applied Statistics 2007, which is
    rather too wide than too narrow), the threshold found anew each time. Their ``n`` counts the members.
    """
    ranked = _Ranked(score, seen)
    figures = {"area": ranked.area} | {f"true positives at {r:g}": partial(ranked.at, rate=r) for r in (0.01, 0.001)}
    weights = [np.ones(seen.shape), *_draws(seen.shape, seed, draws)]
    found: dict[str, list[float]] = {name: [] for name in figures}
    for weight in weights:
        curve = ranked.curve(weight)
        for name, figure in figures.items():
            found[name].append(figure(*curve))
    return {name: _percentiles(values, int(seen.sum())) for name, values in found.items()}


def pooled_difference(
    first: Reals, second: Reals, seen: Marks, rate: float = 0.001, seed: int = 0, draws: int = 200
) -> Estimate:
    """True positives of the first score less those of the second at this rate; both drawn again alike."""
    one, other = _Ranked(first, seen), _Ranked(second, seen)
    found = [
        one.at(*one.curve(weight), rate=rate) - other.at(*other.curve(weight), rate=rate)
        for weight in (np.ones(seen.shape), *_draws(seen.shape, seed, draws))
    ]
    return _percentiles(found, int(seen.sum()))


class _Ranked:
    """Scores sorted once, so that a curve with other weights is two running sums."""

    def __init__(self, score: Reals, seen: Marks) -> None:
        flat = score.ravel()
        self.order = np.argsort(-flat, kind="stable")
        self.members, level = seen.ravel()[self.order], flat[self.order]
        self.ends = np.flatnonzero(np.append(level[1:] != level[:-1], True))  # equal scores move together

    def curve(self, weight: Reals) -> tuple[Reals, Reals]:
        each = weight.ravel()[self.order]
        true = np.cumsum(np.where(self.members, each, 0.0))[self.ends]
        false = np.cumsum(np.where(self.members, 0.0, each))[self.ends]
        return np.append(0.0, false / false[-1]), np.append(0.0, true / true[-1])

    @staticmethod
    def area(false: Reals, true: Reals) -> float:
        return Roc(false, true).area

    @staticmethod
    def at(false: Reals, true: Reals, rate: float) -> float:
        return Roc(false, true).at(rate)


def _draws(shape: tuple[int, ...], seed: int, draws: int) -> Iterator[Reals]:
    generator, (models, examples) = np.random.default_rng(seed), shape
    for _ in range(draws):
        targets = generator.multinomial(models, np.full(models, 1 / models))
        yield np.outer(targets, generator.multinomial(examples, np.full(examples, 1 / examples))).astype(np.float64)


def _percentiles(values: list[float], n: int) -> Estimate:
    """The first is the figure itself, the others are of what was drawn again."""
    low, high = np.quantile(values[1:], [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(values[0], float(low), float(high), n)
