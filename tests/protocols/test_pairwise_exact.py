"""The sum is the integer sum, whoever drops out when, or there is no sum; costs and statement are as declared."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import protocols
from protocols.aggregation import Server, SumPlan
from protocols.aggregation_local import Traffic, sum_here
from protocols.errors import BelowThreshold, Misuse
from protocols.pairwise import graph
from protocols.pairwise.client import PairwiseClient
from protocols.pairwise.graph import Degree
from protocols.pairwise.protocol import PairwiseSum
from protocols.pairwise.server import PairwiseServer
from protocols.pairwise.wire import STAGES

PAIRWISE = protocols.get_sum("pairwise")


def vectors(plan: SumPlan, seed: int = 0) -> np.ndarray:
    """Uniform ``(clients, length)``, below 2^bits."""
    drawn = np.random.default_rng(seed).integers(0, 2**plan.bits - 1, (plan.clients, plan.length), np.uint64, True)
    return np.asarray(drawn)


def plain(plan: SumPlan, rows: np.ndarray, included: frozenset[int]) -> list[int]:
    return [sum(column) % 2**plan.bits for column in zip(*rows[sorted(included)].tolist(), strict=True)]


@settings(max_examples=40)
@given(st.data(), st.integers(2, 8), st.integers(1, 64), st.integers(1, 40))
def test_the_sum_is_exact_or_there_is_none(data: st.DataObject, clients: int, bits: int, length: int) -> None:
    """Anybody may drop out before any stage; of the last, as many as the shares allow."""
    threshold = data.draw(st.integers(max(2, clients // 2 + 1), clients))
    stages = data.draw(st.lists(st.sampled_from([*STAGES, None]), min_size=clients, max_size=clients))
    missing = {stage: {i for i in range(clients) if stages[i] == stage} for stage in STAGES}
    plan = PAIRWISE.plan(clients, length, bits, threshold)
    rows = vectors(plan, data.draw(st.integers(0, 99)))
    if sum(stage is None for stage in stages) < threshold:
        with pytest.raises(BelowThreshold, match="are left"):
            sum_here(PAIRWISE, plan, list(rows), missing)
        return
    found = sum_here(PAIRWISE, plan, list(rows), missing, restoring=data.draw(st.booleans()))
    assert found.included == {i for i in range(clients) if stages[i] in (None, "unmask")}
    assert found.values.dtype == np.uint64
    assert found.values.tolist() == plain(plan, rows, found.included)


@pytest.fixture(scope="module")
def sparse() -> SumPlan:
    plan = PAIRWISE.plan(48, 9, 21, 44, {"neighbours": 18, "colluding": 2})
    assert plan.options["needed"] < 18
    return plan


@pytest.mark.parametrize(
    "missing",
    [{}, {"shares": {3}, "vectors": {0, 47}, "unmask": {20}}, {"vectors": {1, 2, 3, 4}}, {"unmask": {5, 6, 7}}],
)
def test_with_few_neighbours_the_sum_is_exact_too(sparse: SumPlan, missing: dict[str, set[int]]) -> None:
    rows = vectors(sparse)
    found = sum_here(PAIRWISE, sparse, list(rows), missing)
    before = missing.get("shares", set()) | missing.get("vectors", set())
    assert found.included == set(range(48)) - before
    assert found.values.tolist() == plain(sparse, rows, found.included)


class FewNeighbours(PairwiseSum):
    """Four neighbours and three shares needed, which no plan would allow: so few that dropouts hit a neighbourhood."""

    degree = Degree(4, 3, 0)

    def client(self, plan: SumPlan, number: int) -> PairwiseClient:
        return PairwiseClient(plan, self.degree, number)

    def server(self, plan: SumPlan) -> Server:
        return PairwiseServer(plan, self.degree).run()


def around(plan: SumPlan) -> tuple[int, set[int]]:
    """A client, and three of its neighbours next to each other on the ring."""
    ring, _ = graph._ring(plan.session, plan.clients)
    return ring[2], {ring[0], ring[1], ring[3]}


@pytest.mark.parametrize("stage", ["keys", "shares"])
def test_who_has_too_few_neighbours_left_is_not_asked_for_its_vector(stage: str) -> None:
    plan = PAIRWISE.plan(20, 5, 16, 15)
    client, gone = around(plan)
    rows = vectors(plan)
    found = sum_here(FewNeighbours(), plan, list(rows), {stage: gone})
    assert found.included == set(range(20)) - gone - {client}
    assert found.values.tolist() == plain(plan, rows, found.included)


@pytest.mark.parametrize(("stage", "asked"), [("vectors", False), ("unmask", True)])
def test_a_neighbourhood_that_cannot_unmask_one_of_it_ends_the_run(stage: str, asked: bool) -> None:
    plan, traffic = PAIRWISE.plan(20, 5, 16, 15), Traffic()
    _, gone = around(plan)
    with pytest.raises(BelowThreshold, match=r"2 holders of client \d+'s shares are left, and 3 are needed"):
        sum_here(FewNeighbours(), plan, list(vectors(plan)), {stage: gone}, record=traffic)
    assert ("unmask" in traffic.stages) == asked


@pytest.mark.parametrize(
    ("clients", "threshold", "bits", "options"),
    [(2, 2, 1, None), (5, 3, 16, None), (9, 7, 13, None), (48, 44, 64, {"neighbours": 18, "colluding": 2})],
)
def test_costs_are_those_on_the_wire(clients: int, threshold: int, bits: int, options: dict[str, Any] | None) -> None:
    plan, traffic = PAIRWISE.plan(clients, 77, bits, threshold, options), Traffic()
    sum_here(PAIRWISE, plan, list(vectors(plan)), record=traffic)
    cost = PAIRWISE.cost(plan)
    assert {traffic.sent[i] for i in range(clients)} == {cost.client_sends}
    assert {traffic.received[i] for i in range(clients)} == {cost.client_receives}
    assert (cost.helper_sends, cost.helper_receives) == (0, 0)
    assert len(traffic.stages) == cost.stages


def test_there_are_no_helpers() -> None:
    plan = PAIRWISE.plan(3, 1, 8, 2)
    assert PAIRWISE.helpers(plan) == ()
    with pytest.raises(Misuse, match="no helper 'x'"):
        PAIRWISE.helper(plan, "x")
    with pytest.raises(Misuse, match="no helper 'x'"):
        PAIRWISE.restore_helper(plan, "x", b"")


def test_the_statement_names_the_bounds_of_the_run(sparse: SumPlan) -> None:
    full = PAIRWISE.statement(PAIRWISE.plan(10, 1, 16, 8))
    assert "up to 6 clients" in full.adversary
    assert "at most 5 collude" in full.adversary
    assert "at least 8 vectors" in full.learns["server"]
    few = PAIRWISE.statement(sparse)
    assert "2^-40" in few.adversary
    assert "up to 2 clients" in few.adversary
    assert PAIRWISE.secure
