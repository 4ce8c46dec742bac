"""What attacks by altered inputs share: crafting at several strengths, the client's grid, robust accuracy.

An input counts as evaded when it was classified rightly before and wrongly after. Altered inputs are put back on the
client's grid first (no client can send anything else), within the strength allowed. Robust accuracy is the share that
is right before and after; it cannot exceed the clean accuracy.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pqi.audit.attack import Attack, Budget, Clock, Curve, Finding, Progress
from pqi.audit.case import Case, Data
from pqi.audit.errors import AuditError
from pqi.audit.estimators import inputs_only, seeded
from pqi.audit.statistics import share
from pqi.audit.subjects import FLOAT, INTEGERS, STRAIGHT_THROUGH, Subject

Inputs = NDArray[Any]
DEFAULT_STRENGTHS = (1 / 255, 2 / 255, 4 / 255, 8 / 255)


class Evasion(Attack):
    """An attack that alters inputs by at most epsilon in every value (L-infinity, in shares of the input's range).

    made_on: the forms it is crafted on; each is scored on itself, and what was crafted on the straight-through form on
    the integers too, since that is what it is for.
    """

    family = "adversarial"
    made_on: ClassVar[tuple[str, ...]] = (FLOAT, STRAIGHT_THROUGH)

    def __init__(self, strengths: Sequence[float] = DEFAULT_STRENGTHS) -> None:
        if not strengths or not all(0 < s <= 1 for s in strengths) or list(strengths) != sorted(set(strengths)):
            raise AuditError(f"strengths are {strengths}: rising shares of the input's range, above 0 and at most 1")
        self.strengths = tuple(strengths)

    @abstractmethod
    def craft(self, case: Case, subject: Subject, data: Data, epsilon: float, budget: Budget) -> Inputs:
        """Altered inputs, none further than epsilon (in the input's own unit) from ``data.x`` in any value."""

    def check(self, case: Case) -> None:
        """Raise AuditError where the attack has no meaning for the case."""

    def run(self, case: Case, budget: Budget, progress: Progress | None = None) -> tuple[Finding, ...]:
        """A curve of robust accuracy for each form."""
        data, clock = case.test.sample(budget.samples, budget.seed), budget.clock()
        found, steps, done = [], len(self.made_on) * len(self.strengths), 0

        def told() -> None:
            nonlocal done
            done += 1
            if progress is not None:
                progress(done, steps)

        for name in self.made_on:
            scored = self.scored_on(name)
            forms = [case.subjects[each] for each in scored]
            right = self.survivors(case, data, case.subjects[name], forms, budget, clock, told)
            for each, flags in zip(scored, right, strict=True):
                found.append(self._found(each, name, flags, budget, clock))
        return tuple(found)

    def survivors(
        self,
        case: Case,
        data: Data,
        made_on: Subject,
        scored: Sequence[Subject],
        budget: Budget,
        clock: Clock | None = None,
        told: Callable[[], None] | None = None,
    ) -> list[NDArray[np.bool_]]:
        """For each form scored: (1 + strengths, n), right on the clean input, and on all altered ones up to a strength.

        Any forms will do, of other bit widths too, if they take the client's codes of ``case``. An input that a smaller
        strength evades counts as evaded by every larger one, for the attacker may use less; so only what is still right
        on some form is altered further. Fewer strengths come back when the clock ran out; told: called after each.
        """
        self.check(case)
        clean = case.on_grid(data.x)
        right = [[form.labels(clean) == data.y] for form in scored]
        for strength in self.strengths:
            if clock is not None and clock.is_over and len(right[0]) > 1:
                break
            epsilon = strength * (case.high - case.low)
            alive = np.flatnonzero(np.any([flags[-1] for flags in right], axis=0))
            if len(alive):
                part = data.take(alive)
                with seeded(budget.seed), inputs_only(made_on.module):
                    crafted = self.craft(case, made_on, part, epsilon, budget)
                altered = within(case, crafted, part.x, epsilon)
            for form, flags in zip(scored, right, strict=True):
                left = flags[-1].copy()
                if len(alive):
                    left[alive] &= form.labels(altered) == data.y[alive]
                flags.append(left)
            if told is not None:
                told()
        return [np.stack(flags) for flags in right]

    def scored_on(self, made_on: str) -> tuple[str, ...]:
        """The forms on which inputs that were crafted on one are scored."""
        return (STRAIGHT_THROUGH, INTEGERS) if made_on == STRAIGHT_THROUGH else (made_on,)

    def _found(self, scored: str, made_on: str, right: NDArray[np.bool_], budget: Budget, clock: Clock) -> Finding:
        accuracy, strengths = [share(flags) for flags in right], self.strengths[: len(right) - 1]
        curve = Curve(
            x=(0.0, *strengths),
            y=[e.value for e in accuracy],
            low=[e.low for e in accuracy],
            high=[e.high for e in accuracy],
            x_name="epsilon",
            y_name="robust accuracy",
        )
        return self.finding(
            scored,
            budget,
            clock,
            figures={"clean accuracy": accuracy[0], "robust accuracy": accuracy[-1]},
            curves={"robust accuracy": curve},
            settings={"crafted on": made_on, "strengths": list(strengths), **self.settings()},
            stopped_early=len(strengths) < len(self.strengths),
        )

    def settings(self) -> dict[str, Any]:
        """What else decides the outcome."""
        return {}


def within(case: Case, altered: Inputs, start: Inputs, epsilon: float) -> NDArray[np.float64]:
    """Altered inputs on the client's grid, within epsilon of where they began and within the input's range."""
    # Inputs and the toolbox are often of single precision: an input beside its own code by that much is no step away.
    slack = 2.0**-22 * max(abs(case.low), abs(case.high))
    near = np.clip(np.asarray(altered, np.float64), start - epsilon, start + epsilon)
    return case.on_grid(near, start, epsilon + slack)
