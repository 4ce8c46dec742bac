"""What attacks by altered inputs share: crafting at several strengths, the client's grid, robust accuracy.

An input counts as evaded when it was classified rightly before and wrongly after. Altered inputs are put back on the
client's grid first (no client can send anything else), within the strength allowed. Robust accuracy is the share that
is right before and after; it cannot exceed the clean accuracy.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pqi.audit.attack import Attack, Budget, Clock, Curve, Finding, Progress
from pqi.audit.case import Case, Data
from pqi.audit.errors import AuditError
from pqi.audit.estimators import seeded
from pqi.audit.statistics import Estimate, share
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

    def run(self, case: Case, budget: Budget, progress: Progress | None = None) -> tuple[Finding, ...]:
        """A curve of robust accuracy for each form."""
        data, clock = case.test.sample(budget.samples, budget.seed), budget.clock()
        found, steps, done = [], len(self.made_on) * len(self.strengths), 0
        for name in self.made_on:
            subject, made = case.subjects[name], list[Inputs]()
            for strength in self.strengths:
                if clock.is_over and made:
                    break
                epsilon = strength * (case.high - case.low)
                with seeded(budget.seed):
                    altered = self.craft(case, subject, data, epsilon, budget)
                made.append(within(case, altered, data.x, epsilon))
                done += 1
                if progress is not None:
                    progress(done, steps)
            for scored in self.scored_on(name):
                found.append(self._found(case, scored, name, data, made, budget, clock))
        return tuple(found)

    def scored_on(self, made_on: str) -> tuple[str, ...]:
        """The forms on which inputs that were crafted on one are scored."""
        return (STRAIGHT_THROUGH, INTEGERS) if made_on == STRAIGHT_THROUGH else (made_on,)

    def _found(
        self, case: Case, scored: str, made_on: str, data: Data, made: list[Inputs], budget: Budget, clock: Clock
    ) -> Finding:
        strengths = self.strengths[: len(made)]
        accuracy = robust_accuracy(case.subjects[scored], case, data, made)
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
            stopped_early=len(made) < len(self.strengths),
        )

    def settings(self) -> dict[str, Any]:
        """What else decides the outcome."""
        return {}


def within(case: Case, altered: Inputs, start: Inputs, epsilon: float) -> NDArray[np.float64]:
    """Altered inputs on the client's grid, within epsilon of where they began and within the input's range."""
    # Half a float32 step of slack: the toolbox computes in single precision.
    near = np.clip(np.asarray(altered, np.float64), start - epsilon, start + epsilon)
    return case.on_grid(near, start, epsilon * (1 + 1e-6))


def robust_accuracy(subject: Subject, case: Case, data: Data, made: list[Inputs]) -> list[Estimate]:
    """Shares right on the clean inputs, and right on them and on the altered ones, for each strength.

    An input that a smaller strength evades counts as evaded by every larger one: the attacker may use less.
    """
    right = subject.labels(case.on_grid(data.x)) == data.y
    shares = [share(right)]
    for altered in made:
        right = right & (subject.labels(altered) == data.y)
        shares.append(share(right))
    return shares
