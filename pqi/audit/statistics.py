"""Figures with their intervals: rates, differences of paired rates, points of a ROC curve, whatever is bootstrapped.

A figure of an audit comes from a sample and a seed; without an interval it is an anecdote.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pqi.audit.errors import AuditError

CONFIDENCE = 0.95
_Z = 1.959963984540054  # the normal quantile that belongs to it

Reals = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A figure, the ends of its interval (95 %), and the number of examples behind it."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"

    def as_json(self) -> dict[str, float | int]:
        """Plain numbers."""
        return asdict(self)


def rate(hits: int, n: int) -> Estimate:
    """hits / n with Wilson's interval (1927): never outside [0, 1], of use for rates near its ends too."""
    if n <= 0 or not 0 <= hits <= n:
        raise AuditError(f"a rate of {hits} in {n} does not exist: at least one example is needed")
    p, z2 = hits / n, _Z * _Z
    centre, spread = p + z2 / (2 * n), _Z * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    low, high = (centre - spread) / (1 + z2 / n), (centre + spread) / (1 + z2 / n)
    return Estimate(p, max(0.0, min(low, p)), min(1.0, max(high, p)), n)


def share(flags: NDArray[np.bool_]) -> Estimate:
    """The rate at which ``flags`` (n,) are true."""
    return rate(int(np.count_nonzero(flags)), int(flags.size))


def bootstrap(figure: Callable[..., float], *columns: NDArray[Any], seed: int, draws: int = 1000) -> Estimate:
    """figure(*columns) with the percentile interval over rows drawn again with replacement.

    columns: arrays of one length n, drawn together. Draws for which the figure is NaN (an empty group) are left out.
    """
    n = len(columns[0])
    if not n or any(len(c) != n for c in columns):
        raise AuditError(f"columns of {[len(c) for c in columns]} rows: one length of at least 1 is needed")
    generator = np.random.default_rng(seed)
    seen = np.empty(draws)
    for i in range(draws):
        rows = generator.integers(0, n, n)
        seen[i] = figure(*(c[rows] for c in columns))
    value, seen = float(figure(*columns)), seen[~np.isnan(seen)]
    if not len(seen):
        return Estimate(value, math.nan, math.nan, n)
    low, high = np.quantile(seen, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(value, float(low), float(high), n)


def paired_difference(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> Estimate:
    """share(second) - share(first) over the same examples, with Newcombe's paired interval (1998, method 10)."""
    n = int(first.size)
    if not n or second.size != n:
        raise AuditError(f"{first.size} and {second.size} examples: a paired difference needs the same ones, not none")
    both = int(np.count_nonzero(first & second))
    only_first = int(np.count_nonzero(first & ~second))
    only_second = int(np.count_nonzero(~first & second))
    neither = n - both - only_first - only_second
    a, b = rate(both + only_second, n), rate(both + only_first, n)
    product = (both + only_second) * (only_first + neither) * (both + only_first) * (only_second + neither)
    phi = 0.0 if product == 0 else (both * neither - only_first * only_second) / math.sqrt(product)
    down, up = a.value - a.low, a.high - a.value
    down_b, up_b = b.value - b.low, b.high - b.value
    value = a.value - b.value
    low = value - math.sqrt(max(0.0, down**2 - 2 * phi * down * up_b + up_b**2))
    high = value + math.sqrt(max(0.0, up**2 - 2 * phi * up * down_b + down_b**2))
    return Estimate(value, low, high, n)


def mcnemar(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    """Exact two-sided p-value that two classifiers err equally often on the same examples (McNemar, 1947)."""
    changed = int(np.count_nonzero(first != second))
    fewer = min(int(np.count_nonzero(first & ~second)), int(np.count_nonzero(~first & second)))
    if not changed:
        return 1.0
    log_total = -changed * math.log(2)
    tail = sum(math.exp(_log_choose(changed, i) + log_total) for i in range(fewer + 1))
    return min(1.0, 2 * tail)


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


@dataclass(frozen=True, eq=False)
class Roc:
    """A curve of true over false positives; both (points,), rising from 0 to 1."""

    false_positives: Reals
    true_positives: Reals

    @property
    def area(self) -> float:
        """The area under the curve: 0.5 says nothing was learnt."""
        heights = (self.true_positives[1:] + self.true_positives[:-1]) / 2
        return float(np.sum(heights * np.diff(self.false_positives)))

    def at(self, false_positives: float) -> float:
        """True positives at no more than this rate of false ones."""
        allowed = self.false_positives <= false_positives
        return float(self.true_positives[allowed].max())


def roc(positive: Reals, negative: Reals) -> Roc:
    """The curve of a score that is to be high for the positive ones; equal scores move together."""
    if not (len(positive) and len(negative)):
        raise AuditError(f"{len(positive)} positive and {len(negative)} negative scores: both kinds are needed")
    levels = np.unique(np.concatenate([positive, negative]))[::-1]
    false, true = (np.concatenate([[0.0], _at_least(levels, scores)]) for scores in (negative, positive))
    return Roc(false, true)


def _at_least(levels: Reals, scores: Reals) -> Reals:
    """The share of scores that reach each level."""
    counts = len(scores) - np.searchsorted(np.sort(scores), levels, side="left")
    return np.asarray(counts / len(scores), np.float64)


def true_positives_at(positive: Reals, negative: Reals, false_positives: float) -> Estimate:
    """True positives at a rate of false ones, with the Wilson interval over the positive examples.

    The threshold is taken from the negative scores seen: with n of them, rates below 1/n mean "no false one at all".
    """
    found = roc(positive, negative).at(false_positives)
    return rate(round(found * len(positive)), len(positive))
