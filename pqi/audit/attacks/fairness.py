"""Groups before and after quantization: who pays for the bits that were saved (Hooker et al., 2020).

No attacker here, but the same question: what did quantization change, and for whom? Metrics of groups are fairlearn's.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pqi.audit.attack import Attack, Budget, Clock, Finding, Progress, Threat
from pqi.audit.case import Case, Data
from pqi.audit.errors import AuditError
from pqi.audit.statistics import Estimate, bootstrap, share
from pqi.audit.subjects import FLOAT, INTEGERS

Labels = NDArray[np.int64]


def fairlearn() -> Any:
    """The module ``fairlearn.metrics``; raises AuditError that names the extra which installs it."""
    try:
        import fairlearn.metrics
    except ModuleNotFoundError as error:
        raise AuditError(
            f"group metrics need {error.name}, which is not installed: pip install 'private-quantized-inference[audit]'"
        ) from error
    return fairlearn.metrics


class Fairness(Attack):
    """Gaps between groups in float and in integers, and whose answers changed.

    Of two classes: demographic parity difference (largest less smallest share of class 1 among groups) and equalized
    odds difference (the larger gap of true and of false positives). Of any number: accuracy of the worst group, the gap
    of accuracies, the spread of accuracies of classes. Integers besides: the share of answers that differ from float,
    over all and in the group where most do. What holds for the integers holds for the private service, which is equal.
    """

    name = "fairness"
    family = "fairness"
    threat = Threat("nothing", "nothing", "none: whose answers quantization changes", "Hooker et al., 2020")

    def __init__(self, draws: int = 200) -> None:
        self.draws = draws

    def run(self, case: Case, budget: Budget, progress: Progress | None = None) -> tuple[Finding, ...]:
        """One finding for each form, over all test examples."""
        data, clock = case.test, budget.clock()
        if data.groups is None:
            raise AuditError("fairness needs to know who belongs to which group: give the test data groups")
        x = case.on_grid(data.x)
        answers = {name: case.subjects[name].labels(x) for name in (FLOAT, INTEGERS)}
        found = []
        for done, (name, labels) in enumerate(answers.items()):
            figures = self._figures(data, data.groups, labels, case.classes, budget.seed)
            if name == INTEGERS:
                figures |= self._changed(data.groups, answers[FLOAT], labels)
            found.append(self._found(name, figures, data, budget, clock))
            if progress is not None:
                progress(done + 1, 2)
        return tuple(found)

    def _found(self, form: str, figures: dict[str, Estimate], data: Data, budget: Budget, clock: Clock) -> Finding:
        names, counts = np.unique([] if data.groups is None else data.groups, return_counts=True)
        sizes = {int(name): int(count) for name, count in zip(names, counts, strict=True)}
        return self.finding(form, budget, clock, figures=figures, settings={"groups": sizes, "draws": self.draws})

    def _figures(self, data: Data, groups: Labels, labels: Labels, classes: int, seed: int) -> dict[str, Estimate]:
        wanted: dict[str, Any] = {"worst group's accuracy": _worst, "gap of accuracies": _gap}
        if classes == 2:
            wanted |= {"demographic parity difference": _parity, "equalized odds difference": _odds}
        figures = {"accuracy": share(labels == data.y)}
        for name, figure in wanted.items():
            figures[name] = bootstrap(figure, data.y, labels, groups, seed=seed, draws=self.draws)
        figures["spread of classes' accuracies"] = bootstrap(_spread, data.y, labels, seed=seed, draws=self.draws)
        return figures | (_by_fairlearn(figures, data.y, labels, groups) if classes == 2 else {})

    def _changed(self, groups: Labels, before: Labels, after: Labels) -> dict[str, Estimate]:
        changed = before != after
        by_group = {int(group): share(changed[groups == group]) for group in np.unique(groups)}
        most = max(by_group, key=lambda group: by_group[group].value)
        return {"answers changed": share(changed), "answers changed in the worst group": by_group[most]}


def _by_fairlearn(figures: dict[str, Estimate], y: Labels, labels: Labels, groups: Labels) -> dict[str, Estimate]:
    """The figures of two classes as fairlearn has them; the intervals are of the same formulas, drawn faster here."""
    metrics = fairlearn()
    found = {
        "demographic parity difference": metrics.demographic_parity_difference(y, labels, sensitive_features=groups),
        "equalized odds difference": metrics.equalized_odds_difference(y, labels, sensitive_features=groups),
    }
    return {name: replace(figures[name], value=float(value)) for name, value in found.items()}


def _rates(hits: NDArray[np.bool_], among: NDArray[np.bool_], groups: Labels) -> NDArray[np.float64]:
    """Of each group: the share of hits among those that count; 0 where none do, as fairlearn has it."""
    names = np.unique(groups)
    counts = [(np.count_nonzero(hits & among & (groups == g)), np.count_nonzero(among & (groups == g))) for g in names]
    return np.array([hit / n if n else 0.0 for hit, n in counts])


def _parity(y: Labels, labels: Labels, groups: Labels) -> float:
    rates = _rates(labels == 1, np.ones(len(y), bool), groups)
    return float(rates.max() - rates.min())


def _odds(y: Labels, labels: Labels, groups: Labels) -> float:
    found = [_rates(labels == 1, y == truth, groups) for truth in (0, 1)]
    return max(float(rates.max() - rates.min()) for rates in found)


def _accuracies(y: Labels, labels: Labels, by: Labels) -> NDArray[np.float64]:
    return np.array([float(np.mean(labels[by == group] == y[by == group])) for group in np.unique(by)])


def _worst(y: Labels, labels: Labels, groups: Labels) -> float:
    return float(_accuracies(y, labels, groups).min())


def _gap(y: Labels, labels: Labels, groups: Labels) -> float:
    found = _accuracies(y, labels, groups)
    return float(found.max() - found.min())


def _spread(y: Labels, labels: Labels) -> float:
    return float(_accuracies(y, labels, y).std())
