"""Extraction through answers: more questions and richer answers make a better copy; a linear model is told whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import pqi
from pqi.audit import attacks
from pqi.audit.attack import Budget, Finding
from pqi.audit.attacks.extraction import INPUTS, Extraction, is_linear, linear_copy
from pqi.audit.case import Case, Data
from pqi.audit.errors import AuditError
from pqi.audit.subjects import INTEGERS

BUDGET = Budget(samples=300, seed=1)


def data(n: int, seed: int) -> Data:
    x = np.random.default_rng(seed).random((n, 6))
    y = (x[:, 0] > x[:, 1]) * 2 + (x[:, 2] > 0.5)
    return Data(x, y.astype(np.int64))


@pytest.fixture(scope="module")
def case() -> Case:
    torch.manual_seed(0)
    train = data(300, 1)
    net = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 4))
    optimizer = torch.optim.Adam(net.parameters(), 0.02)
    x, y = torch.tensor(train.x, dtype=torch.float32), torch.tensor(train.y)
    for _ in range(120):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    return Case(net.eval(), pqi.quantize(net, train.x), data(300, 2), train)


@pytest.fixture(scope="module")
def found(case: Case) -> Finding:
    attack = attacks.get("extraction", policies=("scores", "rounded:3", "top:2", "label"), asked=(10, 600), steps=250)
    (finding,) = attack.run(case, BUDGET)
    return finding


def test_more_questions_make_a_better_copy_under_every_policy_that_tells_the_class(found: Finding) -> None:
    for policy in ("scores", "rounded:3", "label"):
        few, many = (found.figures[f"{policy}: fidelity at {n}"] for n in (10, 600))
        assert few.high < many.low
        curve = found.curves[policy]
        assert list(curve.x) == [10, 600] and list(curve.y) == [few.value, many.value]
        assert all(low <= y <= high for low, y, high in zip(curve.low, curve.y, curve.high, strict=True))
    assert found.subject == INTEGERS and not found.stopped_early


def test_who_is_not_told_the_best_class_copies_it_worse(found: Finding) -> None:
    assert found.figures["top:2: fidelity at 600"].high < found.figures["label: fidelity at 600"].low


def test_scores_copy_a_network_to_nine_in_ten(found: Finding) -> None:
    assert found.figures["scores: fidelity at 600"].value > 0.9


@pytest.mark.parametrize("inputs", INPUTS)
def test_questions_are_on_the_client_s_grid_and_in_range(case: Case, inputs: str) -> None:
    questions = Extraction(asked=(2, 400), inputs=inputs)._questions(case, 0)
    assert questions.shape == (400, 6)
    assert np.array_equal(questions, case.on_grid(questions))
    assert questions.min() >= case.low - 0.01 and questions.max() <= case.high + 0.01
    assert len(np.unique(questions, axis=0)) > 390


def test_a_hardened_model_is_attacked_under_its_own_policy(case: Case) -> None:
    model = pqi.quantize(case.net, case.train.x if case.train else None, answers="label")
    (finding,) = Extraction(asked=(50,), steps=30).run(case.with_model(model), BUDGET)
    assert list(finding.curves) == ["label"]
    assert "label" in finding.remark
    model = pqi.quantize(case.net, case.train.x if case.train else None, answers="top:2")
    with pytest.raises(AuditError, match="no class to be faithful to"):
        Extraction(asked=(50,), steps=30).run(case.with_model(model), BUDGET)


def test_of_a_linear_model_every_weight_is_told_by_one_question_more_than_it_has_inputs() -> None:
    torch.manual_seed(3)
    x = data(200, 3).x
    model = pqi.quantize(nn.Linear(6, 4), x)
    assert is_linear(model)
    copy = linear_copy(model)
    assert copy.questions == 7
    codes = model.encode(x, "silent")
    assert torch.equal(codes @ copy.weight.T + copy.bias, model.integers(codes))


def test_a_network_with_a_relu_is_not_told_whole(case: Case) -> None:
    assert not is_linear(case.model)
    with pytest.raises(AuditError, match="none"):
        linear_copy(case.model)


def test_what_makes_no_sense_is_refused(case: Case) -> None:
    with pytest.raises(AuditError, match="choose from"):
        Extraction(inputs="stolen")
    with pytest.raises(AuditError, match="least"):
        Extraction(asked=(1,))
    with pytest.raises(AuditError, match="training data"):
        Extraction(asked=(2,)).run(Case(case.net, case.model, case.test), BUDGET)
