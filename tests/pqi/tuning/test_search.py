"""The search on made-up costs and losses, whose optimum is known."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest

from pqi.tuning.search import Found, Limits, Search, State, Tried, front


@dataclass(frozen=True)
class Bits:
    """A made-up candidate: bits of each of a few layers."""

    bits: tuple[int, ...]

    @property
    def key(self) -> str:
        return str(self.bits)


@dataclass(frozen=True)
class Change:
    layer: int
    by: int

    def apply(self, to: Bits) -> Bits | None:
        made = to.bits[self.layer] + self.by
        return Bits((*to.bits[: self.layer], made, *to.bits[self.layer + 1 :])) if 1 <= made <= 8 else None


@dataclass
class Made:
    """cost and loss as functions; what was asked is counted."""

    price: Callable[[tuple[int, ...]], float | None]
    lost: Callable[[tuple[int, ...]], float]
    error: float = 0.0
    asked: list[str] = field(default_factory=list)

    def cost(self, candidate: Bits) -> float | None:
        return self.price(candidate.bits)

    def divergence(self, candidate: Bits) -> float:
        self.asked.append(candidate.key)
        return self.lost(candidate.bits)

    def loss(self, candidate: Bits) -> tuple[float, float]:
        return self.lost(candidate.bits), self.error


WEIGHT = (1.0, 3.0, 0.5)  # what a bit of each layer costs
PAIN = (0.004, 0.001, 0.002)  # what it loses to halve a layer's resolution


def lost(bits: tuple[int, ...]) -> float:
    return sum(pain * 2.0 ** (4 - b) for pain, b in zip(PAIN, bits, strict=True))


def plain(bits: tuple[int, ...]) -> float:
    return sum(weight * b for weight, b in zip(WEIGHT, bits, strict=True))


def stairs(bits: tuple[int, ...]) -> float:
    """Odd bits of the last layer cost as much as the next even number, and a little more."""
    return plain(bits) + (bits[2] % 2) * (WEIGHT[2] + 0.1)


LADDER = [Bits((b,) * 3) for b in (8, 6, 4, 2)]
UNIFORM: tuple[Change, ...] = ()
SINGLE = tuple(Change(layer, by) for layer in range(3) for by in (-1, 1))


def searched(task: Made, limits: Limits, moves: Sequence[Change] = SINGLE, **more: object) -> Found[Bits]:
    return Search(task, LADDER, (UNIFORM, moves), limits, **more).run()  # type: ignore[arg-type]


def optimum(task: Made, limit: float) -> float:
    every = itertools.product(range(1, 9), repeat=3)
    costs = [c for bits in every if task.lost(bits) <= limit and (c := task.price(bits)) is not None]
    return min(costs)


@pytest.mark.parametrize("price", [plain, stairs])
@pytest.mark.parametrize("limit", [0.005, 0.01, 0.02, 0.05])
def test_the_known_optimum_is_found(price: Callable[[tuple[int, ...]], float], limit: float) -> None:
    task = Made(price, lost)
    found = searched(task, Limits(limit))
    assert found.best is not None and found.best.cost == optimum(task, limit)
    assert found.ended == "nothing cheaper is left to try"


def test_a_move_that_pays_only_together_with_another_is_found() -> None:
    """Layers 0 and 1 cost less only if both change: no single move saves anything."""

    def both(bits: tuple[int, ...]) -> float:
        return 10.0 if bits[0] <= 3 and bits[1] <= 3 else 20.0

    task = Made(both, lambda bits: 0.0 if bits[0] >= 3 and bits[1] >= 3 else 1.0)
    found = Search(task, [Bits((4, 4, 4)), Bits((1, 1, 1))], (SINGLE,), Limits(0.1)).run()
    assert found.best is not None and found.best.cost == 10.0


@pytest.mark.parametrize("error", [0.0, 0.001, 0.004])
@pytest.mark.parametrize("errors", [0.0, 1.0, 2.0])
def test_nothing_outside_the_budget_is_ever_the_best(error: float, errors: float) -> None:
    task, limit = Made(stairs, lost, error), 0.02
    found = searched(task, Limits(limit, errors))
    assert found.best is not None and found.best.loss is not None
    assert found.best.loss + errors * error <= limit
    assert any(t.loss is not None and t.loss > limit for t in found.measured)  # such points were there to be taken


def test_a_smaller_certainty_costs_more() -> None:
    sure, unsure = (searched(Made(plain, lost, error), Limits(0.02, 2.0)).best for error in (0.0, 0.004))
    assert sure is not None and unsure is not None and unsure.cost > sure.cost


def test_when_nothing_fits_there_is_no_best_but_what_was_measured() -> None:
    found = searched(Made(plain, lambda bits: 0.5 + lost(bits)), Limits(0.1))
    assert found.best is None
    assert min(t.loss for t in found.measured if t.loss is not None) == 0.5 + lost((8, 8, 8))


def test_candidates_without_a_program_are_passed_over() -> None:
    task = Made(lambda bits: None if bits[1] < 5 else plain(bits), lost)
    found = searched(task, Limits(0.02))
    assert found.best is not None and found.best.cost == optimum(task, 0.02)
    assert all(int(key[4]) >= 5 for key in task.asked)


def test_the_same_task_is_searched_the_same_way_twice() -> None:
    first, second = Made(stairs, lost), Made(stairs, lost)
    assert searched(first, Limits(0.01)) == searched(second, Limits(0.01))
    assert first.asked == second.asked


def test_no_candidate_is_looked_at_twice() -> None:
    task = Made(stairs, lost)
    searched(task, Limits(0.01))
    assert len(task.asked) == len(set(task.asked))


@pytest.mark.parametrize("evaluations", [1, 4, 7, 20])
def test_the_number_of_evaluations_is_kept(evaluations: int) -> None:
    task = Made(plain, lost)
    found = searched(task, Limits(0.05, evaluations=evaluations))
    assert len(task.asked) == found.evaluations <= evaluations


def test_the_clock_ends_a_search_and_what_was_found_stays() -> None:
    now = itertools.count()
    found = searched(Made(stairs, lost), Limits(0.05, seconds=60.0), clock=lambda: float(next(now)))
    assert found.ended == "time is up" and found.best is not None


def test_an_interrupt_returns_what_was_found_so_far() -> None:
    task = Made(plain, lost)

    def interrupt(state: State) -> None:
        if state.phase == "descent":
            raise KeyboardInterrupt

    found = searched(task, Limits(0.05), progress=interrupt)
    assert found.ended == "interrupted" and found.best is not None


def test_an_interrupt_before_anything_fits_is_an_interrupt() -> None:
    def interrupt(state: State) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        searched(Made(plain, lost), Limits(0.05), progress=interrupt)


def test_progress_tells_the_phases_in_order_and_a_best_that_never_gets_dearer() -> None:
    states: list[State] = []
    searched(Made(stairs, lost), Limits(0.02), progress=states.append)
    phases = list(dict.fromkeys(state.phase for state in states))
    assert phases == [phase for phase in ("ladder", "descent", "pairs", "late moves") if phase in phases]
    fitting = [state.fitting for state in states if state.fitting is not None]
    assert fitting == sorted(fitting, reverse=True)


def test_late_moves_are_tried_on_what_nearly_fits() -> None:
    """A move that gives accuracy at no cost, but is not among those of the descent."""

    @dataclass(frozen=True)
    class Polish:
        def apply(self, to: Bits) -> Bits | None:
            return Bits((*to.bits, 1)) if len(to.bits) == 3 else None

    def polished(bits: tuple[int, ...]) -> float:
        return lost(bits[:3]) * (0.8 if len(bits) == 4 else 1.0)

    def price(bits: tuple[int, ...]) -> float:
        return plain(bits[:3])

    without = searched(Made(price, polished), Limits(0.02)).best
    best = searched(Made(price, polished), Limits(0.02), late=(Polish(),)).best
    assert without is not None and best is not None
    assert len(best.candidate.bits) == 4 and best.cost < without.cost


def test_the_front_holds_what_no_other_beats() -> None:
    tried = [Tried(Bits((i,)), c, d) for i, (c, d) in enumerate([(3, 0.1), (1, 0.5), (2, 0.5), (2, 0.2), (3, 0.05)])]
    assert [(t.cost, t.divergence) for t in front(tried)] == [(1, 0.5), (2, 0.2), (3, 0.05)]
