"""Groups before and after quantization: who pays for the bits that were saved (Hooker et al., 2020).

No attacker here, but the same question: what did quantization change, and for whom? Metrics of groups are fairlearn's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pqi.audit.attack import Attack, Budget, Clock, Finding, Progress, Threat
from pqi.audit.case import Case
from pqi.audit.errors import AuditError
from pqi.audit.statistics import CONFIDENCE, Estimate, paired_difference, share
from pqi.audit.subjects import FLOAT, INTEGERS

PRIVATE = "private"
PARITY, ODDS = "demographic parity difference", "equalized odds difference"
WORST, GAP, SPREAD = "worst group's accuracy", "gap of accuracies", "spread of classes' accuracies"
PROTOCOLS = ("additive2", "clear")
"""Protocols whose roles run here, all in one thread."""
_NAMED = 20  # groups, beyond which their changes are not figures of their own
_AT_ONCE = 1 << 22  # counts
_RECORD = 1 << 26  # bytes dealt for inferences at a time
_BATCH = 200

Labels = NDArray[np.int64]
Reals = NDArray[np.float64]
Figures = dict[str, Estimate]


@dataclass(frozen=True, eq=False)
class Answers:
    """Examples' classes, groups, and two answers to each: y, groups, before, after int64 (N,)."""

    y: Labels
    groups: Labels
    before: Labels
    after: Labels

    def take(self, rows: Labels) -> Answers:
        """Those examples."""
        return Answers(self.y[rows], self.groups[rows], self.before[rows], self.after[rows])

    @property
    def changed(self) -> NDArray[np.bool_]:
        """Where the two answers differ."""
        changed: NDArray[np.bool_] = self.before != self.after
        return changed


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
    """Gaps between groups in float, in integers and in private answers, and whose answers changed.

    Of two classes: demographic parity difference (largest less smallest share of class 1 among groups) and equalized
    odds difference (the larger gap of true and of false positives). Of any number: accuracy of the worst group, the gap
    of accuracies, the spread of accuracies of classes. Each with its bootstrapped interval over ``draws`` draws of the
    examples. Integers besides: the *change of* each, integers less float on the same drawn examples, whose interval
    decides whether quantization changed it; and the share of answers that differ from float, over all, in each group,
    in the group where most do. ``settings`` count them by group and name their rows in the test data, a sample
    of ``listed`` where there are more.

    private: so many examples (all, if there are fewer; 0: none) are answered by ``protocol`` as well, by owner, dealer,
    servers and client in one thread, and compared with the integers; a third finding tells their metrics. They must be
    equal: an answer that is not raises RuntimeError. What holds for the integers then holds for the private service.
    """

    name = "fairness"
    family = "fairness"
    threat = Threat("nothing", "nothing", "none: whose answers quantization changes", "Hooker et al., 2020")

    def __init__(self, draws: int = 1000, private: int = 0, protocol: str = PROTOCOLS[0], listed: int = 200) -> None:
        if draws < 1 or private < 0 or listed < 0:
            raise AuditError(f"draws = {draws}, private = {private}, listed = {listed}: at least 1, 0 and 0 are needed")
        if protocol not in PROTOCOLS:
            raise AuditError(f"protocol {protocol!r} is not run in one thread here; these are: {', '.join(PROTOCOLS)}")
        self.draws, self.private, self.protocol, self.listed = draws, private, protocol, listed

    def run(self, case: Case, budget: Budget, progress: Progress | None = None) -> tuple[Finding, ...]:
        """One finding for each form, over all test examples (private: over those that were asked)."""
        data, clock, tell = case.test, budget.clock(), progress or _silent
        if data.groups is None:
            raise AuditError("fairness needs to know who belongs to which group: give the test data groups")
        steps = 3 if self.private else 2
        x = case.on_grid(data.x)
        answers = Answers(data.y, data.groups, *(case.subjects[name].labels(x) for name in (FLOAT, INTEGERS)))
        floating, integers = self._compared(answers, case, budget)
        tell(1, steps)
        settings = {"groups": _sizes(data.groups), "draws": self.draws}
        changes = {**settings, **_changes(answers, self.listed, budget.seed)}
        integers |= _shares_changed(answers)
        made = [
            self.finding(FLOAT, budget, clock, figures=floating, settings=settings),
            self.finding(INTEGERS, budget, clock, figures=integers, settings=changes),
        ]
        tell(2, steps)
        if self.private:
            made.append(self._private(case, x, answers, budget, clock))
            tell(3, steps)
        return tuple(made)

    def _compared(self, answers: Answers, case: Case, budget: Budget) -> tuple[Figures, Figures]:
        first, second = compared(answers, case.classes, budget.seed, self.draws)
        if case.classes != 2:
            return first, second
        y, groups = answers.y, answers.groups
        return _by_fairlearn(first, y, answers.before, groups), _by_fairlearn(second, y, answers.after, groups)

    def _private(self, case: Case, x: Reals, answers: Answers, budget: Budget, clock: Clock) -> Finding:
        rows = np.arange(len(x))
        if self.private < len(x):
            rows = np.sort(np.random.default_rng(budget.seed).choice(len(x), self.private, replace=False))
        told = np.concatenate([*_private_answers(case, x[rows], self.protocol, clock)])
        early, asked = len(told) < len(rows), answers.take(rows[: len(told)])
        figures = self._compared(replace(asked, after=told), case, budget)[1]
        figures = {"private answers equal": share(np.ones(len(told), bool)), **figures}
        settings = {"groups": _sizes(asked.groups), "draws": self.draws, "protocol": self.protocol}
        return self.finding(PRIVATE, budget, clock, figures=figures, settings=settings, stopped_early=early)


def _silent(done: int, total: int) -> None:
    pass


def _sizes(groups: Labels) -> dict[int, int]:
    return {int(name): int(count) for name, count in zip(*np.unique(groups, return_counts=True), strict=True)}


def _private_answers(case: Case, x: Reals, protocol: str, clock: Clock) -> Iterator[Labels]:
    """Classes as the protocol's client decodes them, part by part until the clock is over (one part at least)."""
    from pqi.audit.views import Theatre
    from pqi.program import compile as compiled

    program = compiled(case.model, protocol)
    theatre, codes = Theatre(case.model, program), case.model.encode(x, on_saturation="silent")
    step = max(1, min(_BATCH, _RECORD // max(1, program.cost(1).dealt_bytes)))
    for start in range(0, len(codes), step):
        if start and clock.is_over:
            return
        part = codes[start : start + step]
        private, integers = (
            given.reshape(len(part), -1) for given in (theatre.run(part).answer, case.model.integers(part))
        )
        # Answers with noise are the integers' but for at most its declared bound; all others are the integers'.
        unequal = np.flatnonzero(((private - integers).abs() > program.noise).any(dim=1).numpy())
        if len(unequal):
            raise RuntimeError(
                f"{len(unequal)} of {len(part)} private answers of {protocol!r} are not the integers': the first is "
                f"{private[unequal[0]].tolist()}, not {integers[unequal[0]].tolist()}"
            )
        yield private.numpy().argmax(axis=1).astype(np.int64)


# --- figures and their intervals -----------------------------------------------------------------------------------


Figure = Callable[[Reals, Labels, Labels, Labels], Reals]
"""counts (draws, cells) and y, labels, groups (cells,) -> (draws,)."""


def compared(answers: Answers, classes: int, seed: int = 0, draws: int = 1000) -> tuple[Figures, Figures]:
    """Figures of both answers to the same examples; those of the second hold "change of" each, second less first.

    Intervals are percentiles over examples drawn again with replacement (Efron, 1979), the same drawn ones for both
    answers and all figures. To draw N rows is to draw how many there are of each kind, which is multinomial: so all
    draws are one table, and nothing is approximated. Accuracies have the intervals of :mod:`pqi.audit.statistics`.

    ``n`` of a figure is the fewest examples behind any rate that it compares, of odds the smallest group's in one
    class. Where they are few, draws exaggerate a gap, and the interval holds less often than it says.
    """
    wanted = {name: figure for name, figure in _FIGURES.items() if classes == 2 or name not in _OF_TWO}
    y, groups = answers.y, answers.groups
    kinds, counts = np.unique(np.stack([y, groups, answers.before, answers.after]), axis=1, return_counts=True)
    cells, fewest = Answers(*kinds), _fewest(y, groups, classes)
    seen = _both(wanted, cells, counts[None].astype(np.float64))
    drawn = [_both(wanted, cells, part) for part in _drawn(counts, seed, draws)]
    found = []
    for form, labels in enumerate((answers.before, answers.after)):
        figures = {"accuracy": share(labels == y)}
        for name, value in seen[form].items():
            n = fewest[name.removeprefix(_CHANGE)]
            figures[name] = _estimate(value[0], np.concatenate([part[form][name] for part in drawn]), n)
        found.append(figures)
    found[1][f"{_CHANGE}accuracy"] = paired_difference(answers.before == y, answers.after == y)
    return found[0], found[1]


def _fewest(y: Labels, groups: Labels, classes: int) -> dict[str, int]:
    """The fewest examples behind a rate of each figure."""
    table = np.stack([np.bincount(y[groups == group], minlength=classes) for group in np.unique(groups)])
    by_group, by_class = int(table.sum(axis=1).min()), table.sum(axis=0)
    odd = {ODDS: int(table.min()), SPREAD: int(by_class[by_class > 0].min())}
    return {name: odd.get(name, by_group) for name in _FIGURES}


def _both(wanted: dict[str, Figure], cells: Answers, counts: Reals) -> tuple[dict[str, Reals], dict[str, Reals]]:
    first, second = (
        {name: figure(counts, cells.y, labels, cells.groups) for name, figure in wanted.items()}
        for labels in (cells.before, cells.after)
    )
    return first, second | {f"{_CHANGE}{name}": second[name] - first[name] for name in wanted}


def _drawn(counts: Labels, seed: int, draws: int) -> Iterator[Reals]:
    """Counts of each cell in samples drawn again, (draws, cells), in parts that fit memory."""
    generator, total = np.random.default_rng(seed), int(counts.sum())
    step = max(1, _AT_ONCE // len(counts))
    for start in range(0, draws, step):
        size = min(step, draws - start)
        yield generator.multinomial(total, counts / total, size=size).astype(np.float64)


def _estimate(value: float, drawn: Reals, n: int) -> Estimate:
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(float(value), float(low), float(high), n)


def _by_fairlearn(figures: Figures, y: Labels, labels: Labels, groups: Labels) -> Figures:
    """The figures of two classes as fairlearn has them; the intervals are of the same formulas, drawn faster here."""
    metrics = fairlearn()
    parity = float(metrics.demographic_parity_difference(y, labels, sensitive_features=groups))
    odds = float(metrics.equalized_odds_difference(y, labels, sensitive_features=groups))
    return figures | {PARITY: replace(figures[PARITY], value=parity), ODDS: replace(figures[ODDS], value=odds)}


def _rates(counts: Reals, hits: NDArray[np.bool_], among: NDArray[np.bool_], by: Labels) -> Reals:
    """Of each group, (draws, groups): the share of hits among those that count.

    0 where none counts, as fairlearn has it; NaN where a draw holds nobody of the group.
    """
    member = (by[:, None] == np.unique(by)).astype(np.float64)
    hit, all_that_count, present = (counts @ (member * which[:, None]) for which in (hits & among, among, among | True))
    rates = np.divide(hit, all_that_count, out=np.zeros_like(hit), where=all_that_count > 0)
    return np.where(present > 0, rates, np.nan)


def _span(rates: Reals) -> Reals:
    return np.asarray(np.nanmax(rates, axis=1) - np.nanmin(rates, axis=1), np.float64)


def _parity(counts: Reals, y: Labels, labels: Labels, groups: Labels) -> Reals:
    return _span(_rates(counts, labels == 1, np.ones(len(y), bool), groups))


def _odds(counts: Reals, y: Labels, labels: Labels, groups: Labels) -> Reals:
    return np.maximum(*(_span(_rates(counts, labels == 1, y == truth, groups)) for truth in (0, 1)))


def _worst(counts: Reals, y: Labels, labels: Labels, groups: Labels) -> Reals:
    return np.asarray(np.nanmin(_accuracies(counts, y, labels, groups), axis=1), np.float64)


def _gap(counts: Reals, y: Labels, labels: Labels, groups: Labels) -> Reals:
    return _span(_accuracies(counts, y, labels, groups))


def _spread(counts: Reals, y: Labels, labels: Labels, groups: Labels) -> Reals:
    return np.asarray(np.nanstd(_accuracies(counts, y, labels, y), axis=1), np.float64)


def _accuracies(counts: Reals, y: Labels, labels: Labels, by: Labels) -> Reals:
    return _rates(counts, labels == y, np.ones(len(y), bool), by)


_FIGURES: dict[str, Figure] = {WORST: _worst, GAP: _gap, PARITY: _parity, ODDS: _odds, SPREAD: _spread}
_OF_TWO = (PARITY, ODDS)
_CHANGE = "change of "


# --- whose answers changed -----------------------------------------------------------------------------------------


def _shares_changed(answers: Answers) -> Figures:
    """Shares of answers that differ, with Wilson's intervals, which tell something of a group where none differs."""
    changed, groups = answers.changed, answers.groups
    by_group = {int(group): share(changed[groups == group]) for group in np.unique(groups)}
    most = max(by_group, key=lambda group: by_group[group].value)
    figures = {"answers changed": share(changed), "answers changed in the worst group": by_group[most]}
    if len(by_group) <= _NAMED:
        figures |= {f"answers changed in group {group}": figure for group, figure in by_group.items()}
    return figures


def _changes(answers: Answers, listed: int, seed: int) -> dict[str, Any]:
    """How many answers changed by group, to the worse and to the better; and which, by row: all or a fair sample."""
    rows, counted = np.flatnonzero(answers.changed), {}
    for group in np.unique(answers.groups):
        own = answers.take(rows[answers.groups[rows] == group])
        wrong, right = (int(np.count_nonzero(given == own.y)) for given in (own.before, own.after))
        counted[int(group)] = {"changed": len(own.y), "turned wrong": wrong, "turned right": right}
    if len(rows) > listed:
        rows = np.sort(np.random.default_rng(seed).choice(rows, listed, replace=False))
    own = answers.take(rows)
    columns = {"row": rows, "group": own.groups, "class": own.y, FLOAT: own.before, INTEGERS: own.after}
    return {"changed by group": counted, "changed": {name: column.tolist() for name, column in columns.items()}}
