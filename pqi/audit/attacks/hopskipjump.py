"""A walk along the decision boundary with nothing but labels (Chen, Jordan, Wainwright, IEEE S&P 2020)."""

from __future__ import annotations

from typing import Any

import numpy as np

from pqi.audit.attack import Attack, Budget, Curve, Finding, Progress, Threat
from pqi.audit.case import Case, Data
from pqi.audit.errors import AuditError
from pqi.audit.estimators import black_box, seeded, toolbox
from pqi.audit.statistics import bootstrap
from pqi.audit.subjects import FLOAT, INTEGERS, Subject


class HopSkipJumpLabels(Attack):
    """The smallest L2 change found within ``budget.queries`` labels an example: what a label-only service leaves open.

    Figures are over inputs classified rightly before: the median distance at which the class changes, as a share of the
    range of one value (an input that resists counts with the largest distance there is).
    """

    name = "hopskipjump"
    family = "adversarial"
    threat = Threat("labels", "inputs", "a wrong class by a small change", "Chen et al., IEEE S&P 2020")

    def __init__(self, rounds: int = 10) -> None:
        if rounds < 1:
            raise AuditError(f"rounds = {rounds}: at least 1")
        self.rounds = rounds

    def run(self, case: Case, budget: Budget, progress: Progress | None = None) -> tuple[Finding, ...]:
        """Distances on the float network and on the integers, from the same inputs."""
        data, clock, found = case.test.sample(budget.samples, budget.seed), budget.clock(), []
        for done, name in enumerate((FLOAT, INTEGERS)):
            subject = case.subjects[name]
            right = data.take(subject.labels(case.on_grid(data.x)) == data.y)
            with seeded(budget.seed):
                distances, asked = self._distances(case, subject, right, budget)
            figure = bootstrap(lambda d: float(np.median(d)), distances, seed=budget.seed)
            levels = np.quantile(distances, np.linspace(0, 1, 41))
            curve = Curve(x=levels.tolist(), y=np.linspace(0, 1, 41).tolist(), x_name="L2", y_name="evaded")
            found.append(
                self.finding(
                    name,
                    budget,
                    clock,
                    figures={"median L2": figure},
                    curves={"evaded by distance": curve},
                    settings={"rounds": self.rounds, "labels asked": asked},
                )
            )
            if progress is not None:
                progress(done + 1, 2)
        return tuple(found)

    def _distances(self, case: Case, subject: Subject, data: Data, budget: Budget) -> tuple[Any, int]:
        asked = black_box(case, subject, labels_only=True)
        attack = toolbox().attacks.evasion.HopSkipJump(
            asked,
            max_iter=self.rounds,
            max_eval=max(10, budget.queries // self.rounds),
            init_eval=min(100, max(10, budget.queries // self.rounds)),
            verbose=False,
        )
        made = case.on_grid(attack.generate(data.x.astype("float32"), data.y))
        span = case.high - case.low
        distances = np.sqrt(((made - data.x) ** 2).reshape(len(data), -1).sum(axis=1)) / span
        resisted = subject.labels(made) == data.y
        return np.where(resisted, np.sqrt(data.x[0].size), distances), asked.asked
