"""Membership inference: it finds what an overfit network remembers, and nothing where nothing is remembered."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import pqi
from pqi.audit import attacks
from pqi.audit.attack import Budget
from pqi.audit.attacks.membership import References, log_odds, offline_ratio, references, relative
from pqi.audit.case import Case, Data
from pqi.audit.errors import AuditError
from pqi.audit.subjects import FLOAT, INTEGERS
from pqi.graph.model import IntegerModel

BUDGET = Budget(seed=2)


def _pool(n: int) -> Data:
    """Labels that are hardly to be seen in the inputs: whoever is right about them remembers."""
    generator = np.random.default_rng(0)
    y = generator.integers(0, 3, n)
    x = generator.random((n, 12))
    x[:, 0] = np.clip(x[:, 0] + 0.1 * y, 0, 1)
    return Data(x, y.astype(np.int64))


def _train(data: Data, seed: int, steps: int = 70) -> nn.Module:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 3))
    optimizer = torch.optim.Adam(net.parameters(), 0.02)
    x, y = torch.tensor(data.x, dtype=torch.float32), torch.tensor(data.y)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    return net


def _quantize(net: nn.Module) -> IntegerModel:
    return pqi.quantize(net, _pool(100).x)


@pytest.fixture(scope="module")
def pool() -> Data:
    return _pool(240)


@pytest.fixture(scope="module")
def known(pool: Data) -> References:
    return references(pool, 6, _train, _quantize, seed=1)


@pytest.fixture(scope="module")
def case(pool: Data) -> Case:
    net = _train(pool.take(slice(0, 120)), 77)
    return Case(net, _quantize(net), pool)


def test_an_overfit_network_gives_its_training_set_away_in_float_and_in_integers(
    case: Case, pool: Data, known: References
) -> None:
    members = np.arange(240) < 120
    found = {f.subject: f for f in attacks.get("membership", pool=pool, members=members, known=known).run(case, BUDGET)}
    assert set(found) == {FLOAT, INTEGERS}
    for finding in found.values():
        for method in ("threshold", "lira", "rmia"):
            assert finding.figures[f"{method}: area"].value > 0.75
        assert finding.figures["accuracy gap"].value > 0.3
        assert finding.figures["lira: true positives at 0.01"].value > 0.1


def test_examples_that_nobody_was_trained_on_look_alike(pool: Data, known: References) -> None:
    other = Data(np.random.default_rng(9).random((200, 12)), np.random.default_rng(8).integers(0, 3, 200))
    net = _train(other, 5)
    members = np.arange(240) % 2 == 0
    case = Case(net, _quantize(net), pool)
    for finding in attacks.get("membership", pool=pool, members=members, known=known).run(case, BUDGET):
        figure = finding.figures["lira: area"]
        assert figure.low < 0.5 < figure.high


def test_labels_alone_leave_the_gap_and_nothing_else(case: Case, pool: Data) -> None:
    members = np.arange(240) < 120
    (_, found) = attacks.get("membership", pool=pool, members=members, labels_only=True).run(case, BUDGET)
    assert set(found.curves) == {"gap"}
    assert found.figures["gap: true positives at 0.001"].value == 0.0
    assert found.settings["answers"] == "labels"


def test_log_odds_are_those_of_the_softmax_and_do_not_cancel() -> None:
    scores = np.random.default_rng(0).normal(0, 3, (50, 4))
    y = np.random.default_rng(1).integers(0, 4, 50)
    p = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    own = p[np.arange(50), y]
    assert np.allclose(log_odds(scores, y), np.log(own / (1 - own)))
    assert log_odds(np.array([[900.0, 0.0]]), np.array([0]))[0] == 900.0


def test_the_offline_ratio_uses_only_references_that_did_not_see_the_example() -> None:
    others = np.array([[1.0, 5.0], [3.0, 100.0]])
    seen = np.array([[False, False], [False, True]])
    ratio = offline_ratio(np.array([4.0, 5.0]), others, seen)
    assert ratio[1] == 0.0
    assert ratio[0] == 2.0 / np.sqrt(2 / 3)


def test_the_relative_score_is_a_rank_that_rises_with_the_target_s_confidence() -> None:
    others, seen = np.zeros((4, 30)), np.zeros((4, 30), bool)
    score = relative(np.linspace(-3, 3, 30), others, seen)
    assert np.array_equal(score, np.arange(1, 31) / 30)


def test_marks_and_references_of_other_examples_are_refused(pool: Data, known: References, case: Case) -> None:
    with pytest.raises(AuditError, match="240 examples needs as many marks"):
        attacks.get("membership", pool=pool, members=np.ones(3, bool))
    with pytest.raises(AuditError, match="the pool has 5"):
        attacks.get("membership", pool=pool.take(slice(0, 5)), members=np.ones(5, bool), known=known)
    with pytest.raises(AuditError, match="training data"):
        attacks.get("membership").run(case, BUDGET)
    with pytest.raises(AuditError, match="train more"):
        offline_ratio(np.zeros(2), np.zeros((3, 2)), np.ones((3, 2), bool))
