"""Group metrics before and after quantization: known gaps are found, and answers that changed are counted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import pqi
from pqi.audit import attacks
from pqi.audit.attack import Budget
from pqi.audit.attacks import fairness
from pqi.audit.attacks.fairness import Answers, Labels
from pqi.audit.case import Case, Data
from pqi.audit.errors import AuditError
from pqi.audit.statistics import bootstrap
from pqi.audit.subjects import FLOAT, INTEGERS
from pqi.audit.views import Inference, Theatre

pytest.importorskip("fairlearn", reason="group metrics need the extra 'audit'")


@pytest.fixture(scope="module")
def case() -> Case:
    """x0 says the class; in group 1 a quarter of those of class 0 look like class 1."""
    generator = np.random.default_rng(0)
    y, groups = generator.integers(0, 2, 800), generator.integers(0, 2, 800)
    x = np.full((800, 3), 0.5) + generator.normal(0, 0.02, (800, 3))
    looks = np.where((groups == 1) & (y == 0) & (generator.random(800) < 0.25), 1, y)
    x[:, 0] = 0.2 + 0.6 * looks
    net = nn.Sequential(nn.Linear(3, 2))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[-4.0, 0.0, 0.0], [4.0, 0.0, 0.0]]))
        net[0].bias.copy_(torch.tensor([2.0, -2.0]))
    x = np.clip(x, 0, 1)
    return Case(net, pqi.quantize(net, x), Data(x, y.astype(np.int64), groups.astype(np.int64)))


def test_gaps_that_are_in_the_data_are_found_in_both_forms(case: Case) -> None:
    found = {f.subject: f.figures for f in attacks.get("fairness").run(case, Budget())}
    assert set(found) == {FLOAT, INTEGERS}
    y, groups = case.test.y, case.test.groups
    labels = case.subjects[FLOAT].labels(case.test.x)
    assert groups is not None
    false_positives = [np.mean(labels[(groups == g) & (y == 0)]) for g in (0, 1)]
    for figures in found.values():
        odds = figures["equalized odds difference"]
        assert odds.value == false_positives[1] - false_positives[0]
        assert odds.low < odds.value < odds.high
        assert figures["worst group's accuracy"].value == np.mean(labels[groups == 1] == y[groups == 1])
    assert found[INTEGERS]["answers changed"].value == 0.0


def random_answers(seed: int, n: int = 60, groups: int = 3) -> Answers:
    generator = np.random.default_rng(seed)
    return Answers(*(generator.integers(0, top, n) for top in (2, groups, 2, 2)))


@given(seed=st.integers(0, 1000))
@settings(max_examples=20)
def test_intervals_are_of_fairlearn_s_own_formulas(seed: int) -> None:
    answers, metrics = random_answers(seed), fairness.fairlearn()
    y, labels, groups = answers.y, answers.before, answers.groups
    parity = metrics.demographic_parity_difference(y, labels, sensitive_features=groups)
    odds = metrics.equalized_odds_difference(y, labels, sensitive_features=groups)
    by_group = metrics.MetricFrame(
        metrics=lambda y, labels: np.mean(y == labels), y_true=y, y_pred=labels, sensitive_features=groups
    )
    once = np.ones((1, len(y)))
    assert np.isclose(fairness._parity(once, y, labels, groups)[0], parity)
    assert np.isclose(fairness._odds(once, y, labels, groups)[0], odds)
    assert np.isclose(fairness._worst(once, y, labels, groups)[0], by_group.group_min())
    assert np.isclose(fairness._gap(once, y, labels, groups)[0], by_group.difference())


@given(seed=st.integers(0, 1000))
@settings(max_examples=20)
def test_counts_of_a_draw_are_that_draw_s_rows(seed: int) -> None:
    answers, generator = random_answers(seed), np.random.default_rng(seed)
    rows = generator.integers(0, 60, 60)
    drawn, counts = answers.take(rows), np.bincount(rows, minlength=60)[None].astype(float)
    for figure in (fairness._parity, fairness._odds, fairness._worst, fairness._gap, fairness._spread):
        by_counts = figure(counts, answers.y, answers.after, answers.groups)
        assert np.allclose(by_counts, figure(np.ones((1, 60)), drawn.y, drawn.after, drawn.groups))


def test_intervals_are_those_of_rows_drawn_one_by_one() -> None:
    answers = random_answers(1, n=400)

    def change(y: Labels, groups: Labels, before: Labels, after: Labels) -> float:
        once = np.ones((1, len(y)))
        parities = [float(fairness._parity(once, y, labels, groups)[0]) for labels in (before, after)]
        return parities[1] - parities[0]

    slow = bootstrap(change, answers.y, answers.groups, answers.before, answers.after, seed=0, draws=2000)
    fast = fairness.compared(answers, 2, seed=0, draws=2000)[1]["change of demographic parity difference"]
    assert fast.value == pytest.approx(slow.value)
    assert (fast.low, fast.high) == pytest.approx((slow.low, slow.high), abs=0.01)
    assert slow.high - slow.low > 0.1


def test_draws_do_not_depend_on_how_many_fit_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fairness.compared(random_answers(2), 2, draws=50)
    monkeypatch.setattr(fairness, "_AT_ONCE", 24 * 7)
    assert fairness.compared(random_answers(2), 2, draws=50) == whole


def test_a_change_is_told_from_the_same_examples_more_closely_than_from_two_figures() -> None:
    answers = random_answers(3, n=2000, groups=2)
    ones = np.flatnonzero((answers.groups == 1) & (answers.before == 1))
    answers.before[ones[:200]] = 0  # a gap that is there
    after = answers.before.copy()
    after[ones[:40]] = 1
    before, integers = fairness.compared(replace(answers, after=after), 2)
    name = "demographic parity difference"
    change = integers[f"change of {name}"]
    assert change.value == pytest.approx(integers[name].value - before[name].value)
    assert change.high - change.low < 0.5 * (before[name].high - before[name].low)
    same = fairness.compared(replace(answers, after=answers.before), 2)[1]
    assert all(
        (f.value, f.low, f.high) == (0, 0, 0) for n, f in same.items() if n.startswith("change") and "acc" not in n
    )


def test_a_gap_counts_the_examples_behind_its_smallest_rate() -> None:
    y = np.repeat([0, 1, 0, 1], [50, 40, 30, 7])
    groups, none = np.repeat([0, 0, 5, 5], [50, 40, 30, 7]), np.zeros(127, np.int64)
    figures = fairness.compared(Answers(y, groups, none, none), 2, draws=10)[1]
    names = (fairness.PARITY, fairness.ODDS, fairness.GAP, fairness.SPREAD, "change of " + fairness.ODDS, "accuracy")
    assert [figures[name].n for name in names] == [37, 7, 37, 47, 7, 127]
    assert fairness.compared(Answers(np.where(groups, 0, y), groups, none, none), 2)[0][fairness.ODDS].n == 0


@pytest.fixture(scope="module")
def moved(case: Case) -> Case:
    """A third of group 1 lies where weights of two bits, all equal, answer otherwise than 4 and -3.6 do."""
    net, generator = nn.Sequential(nn.Linear(3, 2)), np.random.default_rng(4)
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[0.0, 0.0, 0.0], [4.0, -3.6, 0.0]]))
        net[0].bias.zero_()
    x = case.test.x.copy()
    x[:, 1] = 0.5
    assert case.test.groups is not None
    x[(case.test.groups == 1) & (generator.random(800) < 1 / 3), 0] = 0.475
    return Case(net, pqi.quantize(net, x, weight_bits=2), Data(x, case.test.y, case.test.groups))


def test_answers_that_quantization_changes_are_counted_and_named_where_they_change(moved: Case) -> None:
    found = attacks.get("fairness", listed=10).run(moved, Budget())[1]
    before, after = (moved.subjects[name].labels(moved.on_grid(moved.test.x)) for name in (FLOAT, INTEGERS))
    changed, groups, y = before != after, moved.test.groups, moved.test.y
    assert groups is not None and changed.any()
    assert found.figures["answers changed"].value == np.mean(changed)
    shares = [found.figures[f"answers changed in group {g}"].value for g in (0, 1)]
    assert shares == [np.mean(changed[groups == g]) for g in (0, 1)]
    assert found.figures["answers changed in the worst group"].value == max(shares)
    counted, named = found.settings["changed by group"], found.settings["changed"]
    for group in (0, 1):
        own = changed & (groups == group)
        turned = {"turned wrong": np.sum(own & (before == y)), "turned right": np.sum(own & (after == y))}
        assert counted[group] == {"changed": np.sum(own), **turned}
    assert len(named["row"]) == 10
    assert all(changed[named["row"]])
    assert named["group"] == groups[named["row"]].tolist()
    assert (named["float"], named["integers"]) == (before[named["row"]].tolist(), after[named["row"]].tolist())
    everyone = attacks.get("fairness", listed=1000).run(moved, Budget())[1].settings["changed"]["row"]
    assert everyone == np.flatnonzero(changed).tolist()


@pytest.mark.parametrize("protocol", fairness.PROTOCOLS)
def test_private_answers_have_the_integers_metrics(moved: Case, protocol: str) -> None:
    _, integers, private = attacks.get("fairness", private=10_000, protocol=protocol).run(moved, Budget())
    assert private.subject == "private"
    assert private.figures["private answers equal"].value == 1.0
    assert private.figures["private answers equal"].n == 800
    same = [name for name in private.figures if name in integers.figures]
    assert {"equalized odds difference", "change of demographic parity difference"} < set(same)
    assert all(private.figures[name] == integers.figures[name] for name in same)


def test_private_answers_are_asked_for_as_many_examples_as_wanted_until_the_clock_is_over(moved: Case) -> None:
    some = attacks.get("fairness", private=30).run(moved, Budget())[2]
    assert some.figures["private answers equal"].n == sum(some.settings["groups"].values()) == 30
    assert not some.stopped_early
    short = attacks.get("fairness", private=800).run(moved, Budget(seconds=1e-9))[2]
    assert short.stopped_early and short.figures["private answers equal"].n == fairness._BATCH


def test_a_private_answer_that_is_not_the_integers_ends_it(moved: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    answered = Theatre.run

    def wrong(self: Theatre, codes: torch.Tensor) -> Inference:
        made = answered(self, codes)
        made.answer[5] += 1
        return made

    monkeypatch.setattr(Theatre, "run", wrong)
    with pytest.raises(RuntimeError, match="1 of 30 private answers of 'additive2' are not the integers'"):
        attacks.get("fairness", private=30).run(moved, Budget())


@pytest.mark.parametrize("wrong", [{"draws": 0}, {"private": -1}, {"listed": -1}, {"protocol": "bfv"}], ids=str)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(AuditError, match=next(iter(wrong))):
        attacks.get("fairness", **wrong)


def test_fairness_without_groups_is_refused(case: Case) -> None:
    with pytest.raises(AuditError, match="give the test data groups"):
        attacks.get("fairness").run(Case(case.net, case.model, Data(case.test.x, case.test.y)), Budget())
