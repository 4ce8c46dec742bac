"""Does the integer model answer as its float network does, and is it right as often?

No attacker here: it is what every other figure is read against. How often an answer is right is compared on the same
examples, so what is tested is only what changed.
"""

from __future__ import annotations

from pqi.audit.attack import Attack, Budget, Finding, Progress, Threat
from pqi.audit.case import Case
from pqi.audit.statistics import Estimate, mcnemar, paired_difference, share
from pqi.audit.subjects import FLOAT, INTEGERS


class Fidelity(Attack):
    """Agreement of both forms, their accuracies, the paired difference, and McNemar's exact p that there is none.

    Over all test examples, on the client's grid. What holds for the integers holds for the private service, whose
    answers are those integers.
    """

    name = "fidelity"
    family = "fidelity"
    threat = Threat("nothing", "nothing", "none: what quantization changed on clean inputs", "McNemar, 1947")

    def run(self, case: Case, budget: Budget, progress: Progress | None = None) -> tuple[Finding, ...]:
        """One finding, on the integers."""
        clock, x, y = budget.clock(), case.on_grid(case.test.x), case.test.y
        before, after = (case.subjects[name].labels(x) for name in (FLOAT, INTEGERS))
        right, still = before == y, after == y
        p = mcnemar(right, still)
        figures = {
            "agreement": share(before == after),
            "float accuracy": share(right),
            "accuracy": share(still),
            "accuracy change": paired_difference(right, still),
            "p of no change": Estimate(p, p, p, len(y)),
        }
        if progress is not None:
            progress(1, 1)
        return (self.finding(INTEGERS, budget, clock, figures=figures),)
