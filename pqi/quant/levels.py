"""Levels: the integers, up to one factor, that a code can stand for. Nothing here knows of layers or rings.

With B bits of magnitude:

* powers of two: 0 and 2^0, 2^1, ..., 2^(2^B - 2): 2^B magnitudes (Miyashita et al., 2016; Zhou et al., ICLR 2017).
* additive powers of two: sums of one entry from each of n = B/2 sets of four (and of one set of two when B is odd).
  Every set holds 0; the powers of two are dealt out to the sets in turn, from the largest down, the set of two being
  served in the last but one round. In units of the smallest power (Li et al., Additive Powers-of-Two Quantization,
  ICLR 2020, section 2.2, and the authors' code for odd B):

  | B | magnitudes |
  |---|---|
  | 1 | 0 1 |
  | 2 | 0 1 2 4 |
  | 3 | 0 1 2 3 4 6 8 10 |
  | 4 | 0 1 2 3 4 6 8 9 12 16 18 24 32 33 36 48 |
  | 5 | {0, 64, 16, 2} + {0, 32, 8, 1} + {0, 4}: 32 magnitudes up to 100 |

* code book: the centres of clusters of least squared error.
"""

from __future__ import annotations

import math
from itertools import product

import torch
from torch import Tensor

_POWERS = 31  # of two that can matter: what is 2^-31 of the largest magnitude is zero on every grid here
_ROUNDS = 300  # of k-means; one-dimensional clusters settle long before


def powers_of_two(bits: int) -> Tensor:
    """Magnitudes 0, 1, 2, 4, ... of ``bits`` bits, int64, sorted; of more than 31 powers the largest ones."""
    return torch.tensor([0, *(1 << j for j in range(min((1 << bits) - 1, _POWERS)))])


def additive_powers_of_two(bits: int) -> Tensor:
    """The 2^bits magnitudes of APoT, int64, sorted (the table above)."""
    terms, odd = divmod(bits, 2)
    turns = range(terms)
    order = [*turns, *turns, *range(terms, terms + odd), *turns]
    sets: list[list[int]] = [[0] for _ in range(terms + odd)]
    for place, each in enumerate(order):
        sets[each].append(1 << (len(order) - 1 - place))
    return torch.tensor(sorted({sum(entries) for entries in product(*sets)}))


def both_signs(magnitudes: Tensor) -> Tensor:
    """The magnitudes and their negatives, sorted; zero once."""
    return torch.cat([-magnitudes[1:].flip(0), magnitudes])


def around(values: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
    """The level at or below each value and the one above it; at the ends both are the end.

    values: (C, n). levels: (L,) or (C, L), sorted, of the values' dtype.
    """
    rows = levels.expand(values.shape[0], levels.shape[-1]).contiguous()
    at = torch.searchsorted(rows, values.contiguous(), right=True)
    last = rows.shape[1] - 1
    return rows.gather(1, (at - 1).clamp(0, last)), rows.gather(1, at.clamp(0, last))


def nearest(values: Tensor, levels: Tensor) -> Tensor:
    """The level nearest to each value; of two equally near ones the lower."""
    below, above = around(values, levels)
    return torch.where(values - below > above - values, above, below)


def clusters(values: Tensor, count: int, mass: Tensor | None = None) -> Tensor:
    """Centres of ``count`` clusters of each row, (C, count), sorted: Lloyd's k-means in one dimension.

    values: float64 (C, n). mass: how much each value counts, (C, n); 1 if not given. Deterministic: it begins halfway
    between the quantiles (i + 1/2) / count, which leave the tails too few centres, and as many even steps, which leave
    them too many. A value belongs to the centre on its side of the midpoint between two; an empty cluster keeps its
    centre. Rows with at most ``count`` different values of positive mass keep exactly these (the
    last one repeated).
    """
    values, order = values.to(torch.float64).sort(dim=1)
    mass = torch.ones_like(values) if mass is None else mass.to(torch.float64).gather(1, order)
    weights, moments = _running(mass), _running(mass * values)
    shares = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    first = torch.searchsorted(weights[:, 1:].contiguous(), shares * weights[:, -1:]).clamp(max=values.shape[1] - 1)
    lo, hi = values[:, :1], values[:, -1:]
    centres = (values.gather(1, first) + lo + shares * (hi - lo)) / 2
    cuts = torch.zeros_like(first)[:, 1:]
    ends = torch.full((len(values), 1), values.shape[1])
    for turn in range(_ROUNDS):
        middles = ((centres[:, 1:] + centres[:, :-1]) / 2).contiguous()
        before, cuts = cuts, torch.searchsorted(values, middles, right=True)
        if turn and torch.equal(before, cuts):
            break
        edges = torch.cat([torch.zeros_like(ends), cuts, ends], 1)
        held = weights.gather(1, edges).diff(dim=1)
        means = moments.gather(1, edges).diff(dim=1) / held.clamp(min=1e-300)
        centres = torch.where(held > 0, means, centres).sort(dim=1).values
    return _kept(values, mass, centres)


def _running(x: Tensor) -> Tensor:
    """Sums of the first 0, 1, ..., n entries of each row."""
    return torch.nn.functional.pad(x.cumsum(1), (1, 0))


def _kept(values: Tensor, mass: Tensor, centres: Tensor) -> Tensor:
    """Exact levels for rows that have few enough different values."""
    count = centres.shape[1]
    few = ((values.diff(dim=1) != 0).sum(1) < count) | ((mass > 0).sum(1) <= count)
    for row in torch.nonzero(few).flatten().tolist():
        own = torch.unique(values[row][mass[row] > 0])
        if 0 < len(own) <= count:
            centres[row] = torch.cat([own, own[-1:].expand(count - len(own))])
    return centres


def best_clusters(values: Tensor, mass: Tensor, count: int, pinned: float | None = None) -> Tensor:
    """Centres of at most ``count`` clusters of least squared error, float64, sorted; for a few hundred values.

    values: sorted, (n,); mass: positive, (n,). pinned: one of the values, which stays the centre of its own cluster.
    Exact, by dynamic programming over the last cluster's first value (Wang and Song, Ckmeans.1d.dp, 2011): n^2 count.
    """
    values, mass = values.to(torch.float64), mass.to(torch.float64)
    weights, moments, squares = (_running((mass * values**power)[None])[0] for power in range(3))
    held, moment = (sums - sums[:, None] for sums in (weights, moments))  # [i, j]: of the values i .. j - 1
    centre = moment / held.clamp(min=1e-300)
    if pinned is not None:
        at, place = int(torch.searchsorted(values, pinned)), torch.arange(len(values) + 1)
        centre[(place[:, None] <= at) & (at < place)] = pinned
    cost = (squares - squares[:, None]) - 2 * centre * moment + centre**2 * held
    cost[torch.ones_like(cost).tril().bool()] = math.inf  # clusters are not empty
    least, begins = cost[0], []
    for _ in range(min(count, len(values)) - 1):
        least, begin = (least[:, None] + cost).min(0)
        begins.append(begin)
    centres, end = [], len(values)
    for begin in reversed(begins):
        centres.append(centre[int(begin[end]), end])
        end = int(begin[end])
    return torch.stack([centre[0, end], *reversed(centres)])
