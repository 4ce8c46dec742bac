"""Who masks with whom, and the bounds on what chance can do."""

from __future__ import annotations

from math import log2
from typing import Any

import pytest
from scipy import stats

import protocols
from protocols.aggregation import SumPlan
from protocols.errors import BadParameters
from protocols.pairwise import graph

SESSION = bytes(range(16))


def test_neighbours_are_mutual_and_as_many_as_asked_for() -> None:
    for clients, k in ((5, 4), (6, 2), (9, 4), (30, 12), (2, 1)):
        lists = [graph.neighbours(SESSION, clients, k, i) for i in range(clients)]
        for client, others in enumerate(lists):
            assert len(others) == len(set(others)) == k
            assert client not in others
            assert list(others) == sorted(others)
            assert all(client in lists[other] for other in others)


def test_the_order_of_the_ring_comes_from_the_session() -> None:
    ours, others = ([graph.neighbours(session, 40, 4, i) for i in range(40)] for session in (SESSION, bytes(16)))
    graph._ring.cache_clear()
    assert ours == [graph.neighbours(SESSION, 40, 4, i) for i in range(40)]
    assert ours != others


def test_tails_are_those_of_the_hypergeometric_distribution() -> None:
    for population, marked, draws, least in ((99, 10, 40, 8), (99, 33, 50, 26), (999, 100, 60, 20), (50, 5, 20, 6)):
        exact = float(stats.hypergeom.sf(least - 1, population, marked, draws))
        assert graph._tail(population, marked, draws, least) == pytest.approx(exact, rel=1e-7)


@pytest.mark.parametrize(("clients", "threshold", "colluding"), [(100, 75, 10), (200, 140, 20), (1000, 800, 100)])
def test_chosen_neighbours_satisfy_both_bounds_and_two_fewer_do_not(
    clients: int, threshold: int, colluding: int
) -> None:
    made = graph.choose(clients, threshold, colluding)
    assert made is not None
    k, needed, gone = made.neighbours, made.needed, clients - threshold
    assert 2 * needed > k + 1
    caught = clients * float(stats.hypergeom.sf(needed - 1, clients - 1, colluding, k))
    apart = log2(clients) + sum(log2((colluding + gone - i) / (clients - i)) for i in range(k // 2))
    assert caught + 2**apart <= 2**-40
    assert clients * float(stats.hypergeom.sf(k - needed, clients - 1, gone, k)) <= 2**-20
    assert graph.with_neighbours(clients, threshold, colluding, k - 2) is None


def test_neighbours_grow_slowly_with_the_number_of_clients() -> None:
    counts = [made.neighbours for n in (100, 1000, 10_000) if (made := graph.choose(n, 9 * n // 10, n // 20))]
    assert len(counts) == 3
    assert counts[2] < 2 * counts[0]


def test_everybody_is_the_default_below_a_hundred_clients_and_few_from_there_on() -> None:
    made = protocols.get_sum("pairwise")
    assert made.plan(99, 1, 8, 75).options["neighbours"] == 98
    assert made.plan(100, 1, 8, 75).options == {"neighbours": 48, "needed": 25, "colluding": 10}
    assert made.plan(100, 1, 8, 75, {"neighbours": "all"}).options["neighbours"] == 99
    assert made.plan(100, 1, 8, 51).options["neighbours"] == 99  # with so many dropouts only everybody is enough


@pytest.mark.parametrize(
    ("threshold", "options", "reason"),
    [
        (10, {}, "not more than half.*the least is 11"),
        (15, {"neighbours": 3}, "an even number below 19"),
        (15, {"neighbours": 40}, "an even number below 19"),
        (15, {"neighbours": 4}, "bounds 2\\^-40"),
        (15, {"neighbours": "some"}, "not a number of clients"),
        (15, {"neighbours": 4, "colluding": 14}, "threshold - 2 = 13"),
        (15, {"colluding": 14}, "at most 13 may"),
        (15, {"colluding": -1}, "not a number of clients"),
        (15, {"colluding": True}, "not a number of clients"),
        (15, {"friends": 2}, "no option 'friends'"),
    ],
)
def test_what_cannot_work_is_refused(threshold: int, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadParameters, match=reason):
        protocols.get_sum("pairwise").plan(20, 8, 16, threshold, options)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"neighbours": 19, "needed": 15},
        {"neighbours": 19, "needed": 14, "colluding": 13},
        {"neighbours": 4, "needed": 3, "colluding": 0},
        {"neighbours": 19.0, "needed": 15, "colluding": 13},
    ],
)
def test_each_party_checks_the_plan_for_itself(options: dict[str, Any]) -> None:
    """A plan may come from the server: a client takes no number in it on trust."""
    plan = SumPlan(20, 8, 16, 15, SESSION, options)
    made = protocols.get_sum("pairwise")
    for use in (lambda: made.client(plan, 0), lambda: made.server(plan), lambda: made.statement(plan)):
        with pytest.raises(BadParameters):
            use()
