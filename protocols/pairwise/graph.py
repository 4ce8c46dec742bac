"""Who masks with whom, and how many shares give a secret back.

Every client masks with its neighbours, and cuts its secrets among them and itself. With everybody as neighbours
(Bonawitz et al. 2017) nothing is left to chance. With k neighbours (Bell et al. 2020, "Secure single-server
aggregation with (poly)logarithmic overhead", section 3) a client's work grows with k instead of the number n of
clients: they stand on a ring in an order drawn from the public session, each next to the k/2 before and behind it.

The order is independent of who colludes (c clients) and of who drops out (at most d = n - threshold). Then a secret is
cut so that ``needed`` shares of k + 1 give it back, and by the union bound, HG(n-1, m, k) being how many of m marked
ones are among k drawn of n - 1,

* colluding neighbours hold enough of somebody's shares with probability at most ``n P[HG(n-1, c, k) >= needed]``;
* the clients that neither collude nor drop out fall apart into groups, each of whose sums would show, only if on two
  places of the ring k/2 in a row collude or drop out: at most ``n prod_{i < k/2} (c+d-i)/(n-i)``;
* too few neighbours of somebody stay for its secrets to be recovered, and the run ends without a sum, with probability
  at most ``n P[HG(n-1, d, k) > k - needed]``.

The first two together are kept below 2^-40, the third below 2^-20. ``needed`` is always more than half of k + 1.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from math import exp, lgamma, prod

from protocols.aggregation import SumPlan
from protocols.errors import BadParameters

SECRECY = 2.0**-40
LOSS = 2.0**-20
# Below this many clients the default is everybody: a run is cheap enough, and nothing is left to chance.
SPARSE_FROM = 100
# Of how many clients one colludes, if nobody says, where the neighbours are few.
COLLUDING_DEFAULT = 10


@dataclass(frozen=True)
class Degree:
    """neighbours: of each client. needed: shares, of neighbours + 1, that give a secret back. colluding: clients that
    may pool what they know with the server's, while every other client's vector stays hidden in the sum.
    """

    neighbours: int
    needed: int
    colluding: int


def complete(plan: SumPlan) -> Degree:
    """Everybody; the threshold is the number of shares needed, so that whoever answers enforces it."""
    return Degree(plan.clients - 1, plan.threshold, plan.threshold - 2)


def choose(clients: int, threshold: int, colluding: int) -> Degree | None:
    """As few neighbours as both bounds allow (with two fewer they do not hold), or None: only everybody is enough."""
    fails, enough = 0, (clients - 2) // 2  # halves of k
    made = with_neighbours(clients, threshold, colluding, 2 * enough)
    while made is not None and enough - fails > 1:
        middle = (fails + enough) // 2
        fewer = with_neighbours(clients, threshold, colluding, 2 * middle)
        if fewer is None:
            fails = middle
        else:
            enough, made = middle, fewer
    return made


def with_neighbours(clients: int, threshold: int, colluding: int, k: int) -> Degree | None:
    """The fewest shares needed with which both bounds hold for k neighbours, or None."""
    apart = _apart(clients, colluding + clients - threshold, k) if 2 <= k <= clients - 2 else 1.0
    if apart > SECRECY:
        return None
    for needed in range((k + 1) // 2 + 1, k + 1):
        if apart + clients * _tail(clients - 1, colluding, k, needed) <= SECRECY:
            lost = clients * _tail(clients - 1, clients - threshold, k, k - needed + 1)
            return Degree(k, needed, colluding) if lost <= LOSS else None
    return None


def check(plan: SumPlan, degree: Degree) -> None:
    """What every party asks of the degree in a plan, wherever the plan comes from; raises :class:`BadParameters`."""
    n, k, c = plan.clients, degree.neighbours, degree.colluding
    if k == n - 1:
        _majority(plan)
        if degree != complete(plan):
            raise BadParameters(f"{degree} with everybody as neighbours; it must be {complete(plan)}")
        return
    if not 2 <= k < n - 1 or k % 2:
        raise BadParameters(f"neighbours = {k}: an even number below {n - 1}, or 'all' {n - 1} of them")
    if not 0 <= c <= plan.threshold - 2:
        raise BadParameters(f"colluding = {c}: between 0 and threshold - 2 = {plan.threshold - 2} clients may collude")
    if degree != with_neighbours(n, plan.threshold, c, k):
        least = choose(n, plan.threshold, c)
        raise BadParameters(
            f"neighbours = {k}, needed = {degree.needed}: with {c} colluding clients of {n} and {n - plan.threshold} "
            "dropouts the bounds 2^-40 (secrecy) and 2^-20 (loss of the run) do not hold; "
            + (f"{least.neighbours} neighbours with {least.needed} needed do" if least else "choose 'all'")
        )


def _majority(plan: SumPlan) -> None:
    if 2 * plan.threshold <= plan.clients:
        raise BadParameters(
            f"threshold = {plan.threshold} of {plan.clients} clients is not more than half: two halves could be told "
            f"different lists of dropouts, and a vector be unmasked; the least is {plan.clients // 2 + 1}"
        )


def _apart(clients: int, gone: int, k: int) -> float:
    """A bound on the probability that those who stay and do not collude fall apart."""
    return clients * prod((gone - i) / (clients - i) if gone > i else 0.0 for i in range(k // 2))


def _tail(population: int, marked: int, draws: int, least: int) -> float:
    """``P[HG(population, marked, draws) >= least]``, to a few parts in 10^9."""
    low, high = max(least, draws - population + marked, 0), min(draws, marked)
    whole = _choices(population, draws)
    return sum(
        exp(_choices(marked, x) + _choices(population - marked, draws - x) - whole) for x in range(low, high + 1)
    )


def _choices(n: int, k: int) -> float:
    return lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)


def neighbours(session: bytes, clients: int, k: int, client: int) -> tuple[int, ...]:
    """The client's neighbours in ascending order."""
    if k == clients - 1:
        return (*range(client), *range(client + 1, clients))
    ring, places = _ring(session, clients)
    steps = (step for distance in range(1, k // 2 + 1) for step in (distance, -distance))
    return tuple(sorted(ring[(places[client] + step) % clients] for step in steps))


@lru_cache(maxsize=4)
def _ring(session: bytes, clients: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Who stands on each place, and the place of each client."""
    ring = sorted(range(clients), key=lambda i: hashlib.sha256(session + b"ring" + i.to_bytes(4, "big")).digest())
    places = [0] * clients
    for place, client in enumerate(ring):
        places[client] = place
    return tuple(ring), tuple(places)
