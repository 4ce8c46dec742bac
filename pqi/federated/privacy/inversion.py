"""Exact samples of a distribution over integers by inversion of its cumulative function, in integers throughout.

A uniform real U in [0, 1) has the sample ``min {k : U < F(k)}``, F(k) = Pr[X <= k]. U is drawn bit by bit, as far as
it is needed:

- Its first 64 bits, u, say that U lies in the cell ``[u, u + 1) / 2^64``. The table holds ``floor(2^64 F(k))`` for
  every k of a window. If u equals none of its entries, no F(k) lies inside the cell, so the sample is the same for
  all U in it: the number of entries that are at most u. No approximation decides.
- If u equals an entry, 64 more bits are drawn and the window is computed again, twice as fine and as much wider, until
  the cell of U holds no F(k). For a window of 2^16 integers that is one sample in 2^48.

So every sample has exactly the distribution's probability, its tails included, if the coins are uniform. Entries are
*certified*: weights come from a recurrence in fixed point, rounded down, whose error is bounded along the way; the
table is made finer until lower and upper bound of every F(k) have the same floor. No floating point takes part.

For this the reference is rejection by coin flips (Canonne, Kamath, Steinke, "The Discrete Gaussian for Differential
Privacy", NeurIPS 2020), exact as well: it takes a few hundred random bits a sample where this takes 64, in loops of
secret length. The cost here is the table, ``24 sigma`` entries, made once for each parameter.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from pqi.federated.coins import Coins
from pqi.federated.rounding import kernels

WORD = 64
_GUIDE_BITS = 16  # cells of equal probability, each with the entry where the search begins
_SPARE = 64  # bits by which weights are finer than the table that is made of them


@dataclass(frozen=True)
class Weights:
    """Weights over ``first, first + 1, ...`` in units of one fixed point, each too low by at most ``error``.

    values: integers. below, above: bounds on the weight left out on either side.
    """

    first: int
    values: list[int]
    error: int
    below: int
    above: int


class Law(ABC):
    """A distribution over the integers, by weights proportional to its probabilities."""

    @abstractmethod
    def weights(self, precision: int, tail: int) -> Weights:
        """Weights in units of ``2^-precision`` of the largest, on a window beyond which about ``2^-tail`` is left."""


@dataclass(frozen=True)
class Table:
    """``floor(2^bits F(k))`` for k = first, first + 1, ...: certified."""

    first: int
    bounds: list[int]


def tabulated(law: Law, bits: int) -> Table:
    """The table of F at ``bits`` bits, on a window that leaves out some ``2^-(bits + 16)``."""
    precision = bits + _SPARE + 64
    while True:
        w = law.weights(precision, bits + 16)
        errors = w.error * len(w.values)
        least = sum(w.values)
        most = least + errors + w.below + w.above
        bounds, cumulated, certain, top = list[int](), 0, True, (1 << bits) - 1
        slack = errors + w.below
        for value in w.values:
            cumulated += value
            low = (cumulated << bits) // most
            # F < 1, so its floor is at most the last cell's.
            certain = certain and min(((cumulated + slack) << bits) // least, top) == low
            bounds.append(low)
        if certain:
            return Table(w.first, bounds)
        precision += 64


class Sampler:
    """Samples of one law. Making one computes its table (some three microseconds an entry)."""

    def __init__(self, law: Law) -> None:
        self._law, table = law, tabulated(law, WORD)
        self._first = table.first
        self._bounds = np.array(table.bounds, np.uint64)
        cells = np.arange(1 << _GUIDE_BITS, dtype=np.uint64) << np.uint64(WORD - _GUIDE_BITS)
        self._guide = np.searchsorted(self._bounds, cells, side="right").astype(np.int64)

    @property
    def entries(self) -> int:
        """How many integers the table spans."""
        return int(self._bounds.size)

    def sample(self, count: int, coins: Coins) -> np.ndarray:
        """``count`` independent samples, int64. Some 5 to 10 nanoseconds each, with the coins."""
        words = coins.words(count, np.uint64)
        at, compiled = np.empty(count, np.int64), kernels()
        if compiled is not None:
            equal = compiled.looked_up(words, self._bounds, self._guide, np.uint64(WORD - _GUIDE_BITS), at)
        else:
            at[:] = np.searchsorted(self._bounds, words, side="right")
            equal = np.count_nonzero(self._bounds[np.maximum(at - 1, 0)] == words)
        undecided = np.flatnonzero(self._bounds[np.maximum(at - 1, 0)] == words) if equal else ()
        at += self._first
        for i in undecided:
            at[i] = refined(self._law, int(words[i]), coins)
        return at


def refined(law: Law, prefix: int, coins: Coins) -> int:
    """The sample of a U whose first 64 bits are ``prefix``, by as many further bits as it takes."""
    bits = WORD
    while True:
        prefix = (prefix << WORD) | int(coins.words(1, np.uint64)[0])
        bits += WORD
        table = tabulated(law, bits)
        below = _count_at_most(table.bounds, prefix)
        if not below or table.bounds[below - 1] != prefix:
            return table.first + below


def _count_at_most(bounds: list[int], word: int) -> int:
    low, high = 0, len(bounds)
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if bounds[middle] <= word else (low, middle)
    return low
