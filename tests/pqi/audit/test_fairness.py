"""Group metrics before and after quantization: known gaps are found, and answers that changed are counted."""

from __future__ import annotations

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
from pqi.audit.case import Case, Data
from pqi.audit.errors import AuditError
from pqi.audit.subjects import FLOAT, INTEGERS

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


@given(seed=st.integers(0, 1000))
@settings(max_examples=20)
def test_intervals_are_of_fairlearn_s_own_formulas(seed: int) -> None:
    generator = np.random.default_rng(seed)
    y, labels, groups = generator.integers(0, 2, 60), generator.integers(0, 2, 60), generator.integers(0, 3, 60)
    metrics = fairness.fairlearn()
    parity = metrics.demographic_parity_difference(y, labels, sensitive_features=groups)
    odds = metrics.equalized_odds_difference(y, labels, sensitive_features=groups)
    assert np.isclose(fairness._parity(y, labels, groups), parity)
    assert np.isclose(fairness._odds(y, labels, groups), odds)


def test_answers_that_quantization_changes_are_counted_where_they_change(case: Case) -> None:
    net = nn.Sequential(nn.Linear(3, 2))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[0.0, 0.0, 0.0], [4.0, 0.001, 0.0]]))
        net[0].bias.copy_(torch.tensor([0.0, -0.8003]))
    x = case.test.x.copy()
    assert case.test.groups is not None
    x[case.test.groups == 1, 0] = 0.2001  # on the float network's boundary, and beside the integers'
    moved = Case(net, pqi.quantize(net, x, weight_bits=3, input_bits=3), Data(x, case.test.y, case.test.groups))
    figures = attacks.get("fairness").run(moved, Budget())[1].figures
    before, after = (moved.subjects[name].labels(moved.on_grid(x)) for name in (FLOAT, INTEGERS))
    assert figures["answers changed"].value == np.mean(before != after)
    assert figures["answers changed in the worst group"].value == max(
        np.mean((before != after)[case.test.groups == g]) for g in (0, 1)
    )


def test_fairness_without_groups_is_refused(case: Case) -> None:
    with pytest.raises(AuditError, match="give the test data groups"):
        attacks.get("fairness").run(Case(case.net, case.model, Data(case.test.x, case.test.y)), Budget())
