"""The signs of a backdoor that quantization wakes, as one attack among the others: see ``pqi.audit.detection``."""

from __future__ import annotations

from typing import Any

from pqi.audit.attack import Attack, Budget, Finding, Progress, Threat
from pqi.audit.case import Case
from pqi.audit.detection import AGREES, Detection, detect
from pqi.audit.errors import AuditError
from pqi.audit.subjects import INTEGERS

_MOST = 4096  # values of a trigger that are written down


class Signs(Attack):
    """Agreement, margins, rounding and the search for a trigger; ``steps`` of that search for each class.

    Figures: the four signs. Settings: their bounds, what each means, the verdict, and the trigger that was found where
    an input has at most 4096 values.
    """

    name = "detection"
    family = "backdoor"
    threat = Threat("weights", "training", "a trigger that works in integers and not in float", "Wang et al., S&P 2019")

    def __init__(self, steps: int = 150) -> None:
        if steps < 1:
            raise AuditError(f"steps = {steps}: at least 1")
        self.steps = steps

    def run(self, case: Case, budget: Budget, progress: Progress | None = None) -> tuple[Finding, ...]:
        """One finding, on the integers."""
        clock = budget.clock()
        found = detect(case, budget, self.steps, progress)
        settings: dict[str, Any] = {
            "steps": self.steps,
            "verdict": found.verdict,
            "bounds": {sign.name: sign.bound for sign in found.signs if sign.bound is not None},
            "least agreement": AGREES,
            "remarks": {sign.name: sign.remark for sign in found.signs},
            "trigger": _trigger(found),
        }
        figures = {sign.name: sign.figure for sign in found.signs}
        return (self.finding(INTEGERS, budget, clock, figures=figures, settings=settings),)


def _trigger(found: Detection) -> dict[str, Any] | None:
    if found.trigger is None or found.trigger.mask.size > _MOST:
        return None
    mask, pattern = found.trigger.mask, found.trigger.pattern
    return {"class": found.target, "mask": mask.round(4).tolist(), "pattern": pattern.round(4).tolist()}
