"""The search: a ladder of uniform candidates, greedy descent from its best ones, then pairs of moves while time lasts.

It knows candidates by their key, moves that lead from one to the next, and a task that prices and measures them, in
three stages of rising effort: cost (declared), divergence (smooth, on a part of the data), loss (the accuracy lost).
Everything is decided by those numbers and the order of the moves: the same task gives the same search, but for where a
time limit cuts it off.

The descent is lazy: a move's worth, cost saved per divergence added, is taken from the last time it was looked at, and
looked at again only when it comes first. (Minoux, Accelerated greedy algorithms, 1978.)
"""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

from pqi.graph.errors import QuantizationError


class Named(Protocol):
    """A candidate: equal keys mean equal candidates."""

    @property
    def key(self) -> str:
        """The same text for the same candidate."""


C = TypeVar("C", bound=Named)
Asked = TypeVar("Asked", bound=Named, contravariant=True)


class Step(Protocol[C]):
    """A move."""

    def apply(self, to: C, /) -> C | None:
        """The next candidate, or None."""


class Task(Protocol[Asked]):
    """What the search asks for."""

    def cost(self, candidate: Asked, /) -> float | None:
        """The number to be made small; None: there is no such program."""

    def divergence(self, candidate: Asked, /) -> float:
        """How far from the float network, on a part of the data."""

    def loss(self, candidate: Asked, /) -> tuple[float, float]:
        """Share of accuracy lost on all of the data, and the standard error of that."""


@dataclass(frozen=True)
class Tried(Generic[C]):
    """A candidate with what is known of it. loss, error: None until it was measured on all of the data."""

    candidate: C
    cost: float
    divergence: float
    loss: float | None = None
    error: float | None = None


@dataclass(frozen=True)
class State:
    """Where a search stands: for progress. fitting: cost of the cheapest candidate within the budget so far."""

    phase: str
    evaluations: int
    share: float
    fitting: float | None
    loss: float | None


@dataclass(frozen=True)
class Found(Generic[C]):
    """What a search found. measured: all that was measured, in order. ended: why it stopped."""

    best: Tried[C] | None
    measured: tuple[Tried[C], ...]
    evaluations: int
    ended: str


class NothingFits(QuantizationError):
    """No candidate keeps the accuracy budget; the message names the best that was reached."""


class _Over(Exception):
    """Time or evaluations are used up."""


_WIDTH = 3  # uniform candidates from which a descent starts
_LADDER_SHARE, _LATE_SHARE = 0.35, 0.7  # of the time: the ladder's end; when late moves begin, if there are any
_GATE = 1.3  # times the largest divergence that was ever within the budget: beyond it nothing is measured
_WIDER = (2.0, 4.0)  # times the budget: descents for the rest of the curve


@dataclass(frozen=True)
class Limits:
    """When to stop, and what is within the budget: loss + errors * standard error <= loss limit (shares)."""

    loss: float
    errors: float = 2.0
    evaluations: int | None = None
    seconds: float | None = None


class Search(Generic[C]):
    """One search. tiers: moves, those tried first in the first tier; each descent runs through tiers in turn. late:
    moves too slow for a descent, tried at the end on what nearly fits.
    """

    def __init__(
        self,
        task: Task[C],
        ladder: Iterable[C],
        tiers: Sequence[Sequence[Step[C]]],
        limits: Limits,
        *,
        late: Sequence[Step[C]] = (),
        progress: Callable[[State], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.task, self.ladder, self.tiers, self.limits, self.late = task, ladder, tiers, limits, late
        self.progress, self.clock, self.phase = progress, clock, "ladder"
        self.costs: dict[str, float | None] = {}
        self.tried: dict[str, Tried[C]] = {}
        self.measured: dict[str, Tried[C]] = {}
        self.best: Tried[C] | None = None
        self.start = clock()
        self.until = math.inf

    def run(self) -> Found[C]:
        """Search until nothing is left to try or a limit is reached; an interrupt keeps what was found so far."""
        ended = "nothing cheaper is left to try"
        try:
            self._ladder()
            self._within(_LATE_SHARE if self.late else 1.0, self._descents)
            self._within(_LATE_SHARE if self.late else 1.0, self._refine)
            self._finish()
        except _Over as over:
            ended = str(over)
        except KeyboardInterrupt:
            if self.best is None:
                raise
            ended = "interrupted"
        return Found(self.best, tuple(self.measured.values()), len(self.tried), ended)

    def fits(self, tried: Tried[C], factor: float = 1.0) -> bool:
        """Whether it was measured and is within ``factor`` times the budget."""
        if tried.loss is None or tried.error is None:
            return False
        return tried.loss + self.limits.errors * tried.error <= factor * self.limits.loss

    # -- phases ---------------------------------------------------------------------------------------------------

    def _within(self, share: float, phase: Callable[[], None]) -> None:
        """A phase that may use time up to a share of all; the next phase then still has its own."""
        self.until = share
        try:
            phase()
        except _Over:
            if self.until >= 1.0 or self._share() >= 1.0:
                raise
        finally:
            self.until = math.inf

    def _ladder(self) -> None:
        seen: list[Tried[C]] = []
        for candidate in self.ladder:
            if seen and self._share() >= _LADDER_SHARE:
                break
            if (tried := self._look(candidate)) is not None:
                seen.append(tried)
        for tried in front(seen):
            self._measure(tried)
        if self.best is None:  # the front's most faithful one lost too much: others may be luckier on all of the data
            for tried in sorted(seen, key=lambda t: t.divergence)[: 2 * _WIDTH]:
                self._measure(tried)

    def _descents(self) -> None:
        self.phase = "descent"
        for start in sorted((t for t in self.measured.values() if self.fits(t)), key=_cheapness)[:_WIDTH]:
            self._through_tiers(start, 1.0)
        for factor in _WIDER:
            if self.best is not None:
                self._through_tiers(self.best, factor)

    def _through_tiers(self, start: Tried[C], factor: float) -> None:
        for moves in self.tiers:
            start = self._descend(start, moves, factor)

    def _descend(self, current: Tried[C], moves: Sequence[Step[C]], factor: float) -> Tried[C]:
        """Take the move that saves most per divergence, as long as one stays within the budget."""
        queue = [(-math.inf, i) for i in range(len(moves))]
        aside: list[int] = []
        while queue:
            _, i = heapq.heappop(queue)
            tried = self._step(current, moves[i])
            worth = None if tried is None else _worth(current, tried)
            if tried is None or worth is None:
                aside.append(i)  # saves nothing here; may do so once something else has changed
            elif queue and worth < -queue[0][0]:
                heapq.heappush(queue, (-worth, i))
            elif self.fits(self._measure(tried), factor):
                current = tried
                heapq.heappush(queue, (-worth, i))
                for j in aside:
                    heapq.heappush(queue, (0.0, j))
                aside = []
        return current

    def _refine(self) -> None:
        """Pairs of moves from the best: one that gives accuracy and one that takes more than the first cost."""
        self.phase = "pairs"
        moves = [move for tier in self.tiers for move in tier]
        while self.best is not None:
            better = self._pair(self.best, moves)
            if better is None:
                return
            self._through_tiers(better, 1.0)

    def _pair(self, best: Tried[C], moves: Sequence[Step[C]]) -> Tried[C] | None:
        singles = [(move, tried) for move in moves if (tried := self._step(best, move, any_cost=True)) is not None]
        singles = [(move, tried) for move, tried in singles if tried.divergence <= 4 * _GATE * best.divergence + 1e-3]
        pairs = []
        for i, (_, a) in enumerate(singles):
            for j, (_, b) in enumerate(singles):
                if i != j:
                    saved = 2 * best.cost - a.cost - b.cost
                    lost = a.divergence + b.divergence - 2 * best.divergence
                    pairs.append((saved <= 0, lost if saved <= 0 else lost / saved, i, j))
        for _, _, i, j in sorted(pairs):
            middle = singles[i][1].candidate
            tried = self._step(replace(best, candidate=middle), singles[j][0])
            if tried is None or tried.cost >= best.cost or tried.divergence > self._gate():
                continue
            if self.fits(self._measure(tried)):
                return tried
        return None

    def _finish(self) -> None:
        """Late moves: on the cheaper ones that nearly fit, cheapest first, then on the best itself."""
        self.phase = "late moves"
        for move in self.late:
            near = [t for t in self.tried.values() if t.divergence <= 2 * self._gate()]
            for tried in sorted(near, key=_cheapness):
                if self.best is not None and tried.cost >= self.best.cost:
                    break
                made = self._step(tried, move, any_cost=True)
                if made is not None and (self.best is None or made.cost < self.best.cost):
                    self._measure(made)

    # -- judging --------------------------------------------------------------------------------------------------

    def _step(self, at: Tried[C], move: Step[C], any_cost: bool = False) -> Tried[C] | None:
        """Where a move leads; None if nowhere, or if it costs more than where it starts (unless any_cost)."""
        self._check()
        candidate = move.apply(at.candidate)
        if candidate is None:
            return None
        cost = self._cost(candidate)
        return None if cost is None or (cost > at.cost and not any_cost) else self._look(candidate)

    def _cost(self, candidate: C) -> float | None:
        key = candidate.key
        if key not in self.costs:
            self.costs[key] = self.task.cost(candidate)
        return self.costs[key]

    def _look(self, candidate: C) -> Tried[C] | None:
        """Cost and divergence."""
        key = candidate.key
        if key not in self.tried:
            self._check()
            cost = self._cost(candidate)
            if cost is None:
                return None
            self.tried[key] = Tried(candidate, cost, self.task.divergence(candidate))
            self._tell()
        return self.tried[key]

    def _measure(self, tried: Tried[C]) -> Tried[C]:
        """The accuracy, too; the cheapest within the budget is kept, the more accurate of equally cheap ones."""
        key = tried.candidate.key
        if key not in self.measured:
            self._check()
            loss, error = self.task.loss(tried.candidate)
            self.measured[key] = done = replace(tried, loss=loss, error=error)
            if self.fits(done) and (self.best is None or _cheapness(done) < _cheapness(self.best)):
                self.best = done
            self._tell()
        return self.measured[key]

    def _gate(self) -> float:
        return _GATE * max((t.divergence for t in self.measured.values() if self.fits(t)), default=math.inf)

    def _share(self) -> float:
        """How much of the time or of the evaluations is used, whichever is more."""
        used = [0.0]
        if self.limits.seconds is not None:
            used.append((self.clock() - self.start) / self.limits.seconds)
        if self.limits.evaluations is not None:
            used.append(len(self.tried) / self.limits.evaluations)
        return max(used)

    def _check(self) -> None:
        share = self._share()
        if share >= min(self.until, 1.0):
            seconds, spent = self.limits.seconds, self.clock() - self.start
            raise _Over("time is up" if seconds is not None and spent >= seconds else "all evaluations are used")

    def _tell(self) -> None:
        if self.progress is not None:
            best = self.best
            loss = None if best is None else best.loss
            self.progress(State(self.phase, len(self.tried), self._share(), None if best is None else best.cost, loss))


def _cheapness(tried: Tried[C]) -> tuple[float, float, str]:
    return tried.cost, tried.loss if tried.loss is not None else tried.divergence, tried.candidate.key


def _worth(current: Tried[C], tried: Tried[C]) -> float | None:
    """Cost saved per divergence added; next to nothing for divergence taken away at the same cost; None for no gain."""
    saved, lost = current.cost - tried.cost, tried.divergence - current.divergence
    if saved > 0:
        return saved / max(lost, 1e-9)
    return 1e-12 if saved == 0 and lost < -0.02 * current.divergence else None


def front(tried: Iterable[Tried[C]]) -> list[Tried[C]]:
    """Those that no other beats in both cost and divergence, cheapest first."""
    kept: list[Tried[C]] = []
    for each in sorted(tried, key=lambda t: (t.cost, t.divergence, t.candidate.key)):
        if not kept or each.divergence < kept[-1].divergence:
            kept.append(each)
    return kept
