"""Membership inference: it finds what an overfit network remembers, and nothing where nothing is remembered."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import pqi
from pqi.audit import attacks
from pqi.audit.attack import Budget
from pqi.audit.attacks.membership import (
    References,
    answered,
    halves,
    log_odds,
    offline_ratio,
    online_ratio,
    references,
    relative,
    rightly,
    shifted,
)
from pqi.audit.case import Case, Data
from pqi.audit.errors import AuditError
from pqi.audit.statistics import roc, true_positives_at
from pqi.audit.subjects import FLOAT, INTEGERS, FloatSubject
from pqi.audit.targets import each_in_turn, pooled, pooled_difference
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


def test_halves_leave_each_example_out_as_often_as_they_take_it_in() -> None:
    seen = halves(10, 6, seed=3)
    assert np.array_equal(seen.sum(axis=0), np.full(10, 3))
    assert np.array_equal(seen.sum(axis=1), np.full(6, 5))
    with pytest.raises(AuditError, match="at least 2"):
        halves(10, 1, 0)


def test_the_online_ratio_is_the_log_of_two_normal_densities() -> None:
    others = np.array([[1.0, 0.0], [3.0, 2.0], [7.0, 4.0], [9.0, 10.0]])
    seen = np.array([[False, False], [False, False], [True, True], [True, True]])
    phi = np.array([6.0, 1.0])
    inside, outside = np.array([8.0, 7.0]), np.array([2.0, 1.0])
    narrow, wide = np.sqrt((1 + 1 + 9 + 9) / 4), 1.0
    wanted = np.log(wide / narrow) + ((phi - outside) / wide) ** 2 / 2 - ((phi - inside) / narrow) ** 2 / 2
    assert np.allclose(online_ratio(phi, others, seen), wanted)
    with pytest.raises(AuditError, match="seen by no reference"):
        online_ratio(phi, others, np.zeros_like(seen))


def test_shifted_images_move_and_the_unmoved_one_comes_first() -> None:
    x = np.arange(18.0).reshape(2, 1, 3, 3)
    moved = shifted(x, 1)
    assert len(moved) == 5
    assert np.array_equal(moved[0], x)
    assert any(np.array_equal(each[0, 0], [[0, 0, 0], [0, 1, 2], [3, 4, 5]]) for each in moved)
    assert len(shifted(np.zeros((1, 9, 9)), 2)) == 13
    for wrong in (np.zeros((4, 9)), np.zeros((4, 2, 2))):
        with pytest.raises(AuditError, match="images larger than that"):
            shifted(wrong, 2)


def _brightest_corner() -> nn.Module:
    """Says 0 where the upper left pixel is the brighter of two corners, else 1."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(9, 2, bias=False))
    with torch.no_grad():
        net[1].weight.zero_()  # type: ignore[operator]
        net[1].weight[0, 0] = net[1].weight[1, 8] = 1.0  # type: ignore[index]
    return net


def test_the_share_of_shifted_copies_with_the_right_label_is_counted() -> None:
    x = np.zeros((2, 1, 3, 3))
    x[0, 0, 0, 0] = 1.0  # right where it stays; moved, both corners are dark and the tie goes to 0
    x[1, 0, 2, 2] = 1.0  # right where it stays, wrong wherever it is moved
    share = rightly(FloatSubject(_brightest_corner()), Data(x, np.array([0, 1])), 1)
    assert np.array_equal(share, [1.0, 0.2])


def test_labels_of_shifted_images_are_compared_with_those_of_references() -> None:
    generator = np.random.default_rng(4)
    pool = Data(generator.random((40, 1, 6, 6)), generator.integers(0, 2, 40))

    def train(data: Data, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Flatten(), nn.Linear(36, 64), nn.ReLU(), nn.Linear(64, 2))
        optimizer = torch.optim.Adam(net.parameters(), 0.01)
        x, y = torch.tensor(data.x, dtype=torch.float32), torch.tensor(data.y)
        for _ in range(60):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            optimizer.step()
        return net

    def quantize(net: nn.Module) -> IntegerModel:
        return pqi.quantize(net, pool.x, answers="label")

    known = references(pool, 4, train, quantize, seed=1, shifts=1)
    net = train(pool.take(slice(0, 20)), 9)
    case = Case(net, quantize(net), pool)
    attack = attacks.get("membership", pool=pool, members=np.arange(40) < 20, known=known, labels_only=True, shifts=1)
    found = {f.subject: f for f in attack.run(case, BUDGET)}[INTEGERS]
    assert set(found.curves) == {"gap", "gap, lira", "shifts", "shifts, lira"}
    assert found.figures["shifts: area"].value > 0.6
    assert found.settings["shifts"] == 1


def test_references_are_quantized_in_several_ways_at_once_and_count_right_labels(pool: Data) -> None:
    nets, seen = [_train(pool, 1), _train(pool, 2)], halves(240, 2, 0)
    ways = {"six": lambda net: pqi.quantize(net, pool.x, weight_bits=6), "eight": _quantize}
    known = answered(nets, seen, pool, ways)
    assert set(known.phi) == set(known.right) == {FLOAT, "six", "eight"}
    for i, net in enumerate(nets):
        right = _quantize(net).predict(pool.x, on_saturation="silent").argmax(axis=1) == pool.y
        assert np.array_equal(known.right["eight"][i], right)
    assert not np.array_equal(known.phi["six"], known.phi["eight"])


def test_each_model_is_the_target_once_and_never_its_own_reference() -> None:
    values, seen = np.arange(6.0).reshape(3, 2), halves(2, 4, 0)[:3]

    def score(phi: np.ndarray, others: np.ndarray, marks: np.ndarray) -> np.ndarray:
        assert len(others) == len(marks) == 2
        assert not (others == phi).all(axis=1).any()
        return phi - others.sum(axis=0)

    assert np.array_equal(each_in_turn(values, seen, score), values - (values.sum(axis=0) - values))


def test_pooled_figures_are_those_of_all_targets_under_one_threshold() -> None:
    generator = np.random.default_rng(1)
    seen = halves(400, 6, 2)
    score = np.round(generator.normal(size=seen.shape) + seen, 2)  # rounded, so that scores tie
    found = pooled(score, seen, seed=0, draws=40)
    inside, outside = score[seen], score[~seen]
    for rate in (0.01, 0.001):
        figure = found[f"true positives at {rate:g}"]
        assert figure.value == pytest.approx(true_positives_at(inside, outside, rate).value)
        assert figure.low <= figure.value <= figure.high
    assert found["area"].value == pytest.approx(roc(inside, outside).area)
    assert found["area"].low < found["area"].value < found["area"].high
    assert found["area"].low > 0.7


def test_scores_that_tell_nothing_leave_the_coin_within_the_interval() -> None:
    seen = halves(400, 6, 2)
    area = pooled(np.random.default_rng(3).normal(size=seen.shape), seen, draws=60)["area"]
    assert area.low < 0.5 < area.high


def test_examples_that_come_back_with_every_target_widen_the_interval() -> None:
    seen = halves(100, 20, 2)
    generator = np.random.default_rng(5)
    own, common = generator.normal(size=seen.shape), 3 * generator.normal(size=100)
    spread = [pooled(score, seen, draws=100)["true positives at 0.01"] for score in (own + seen, own + seen + common)]
    relative_width = [(s.high - s.low) / max(s.value, 1e-9) for s in spread]
    assert relative_width[1] > 1.5 * relative_width[0]


def test_a_difference_is_paired() -> None:
    seen = halves(200, 4, 2)
    score = np.random.default_rng(3).normal(size=seen.shape) + 2 * seen
    same = pooled_difference(score, 2 * score + 1, seen, rate=0.01, draws=30)
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)
    worse = pooled_difference(score, np.random.default_rng(6).normal(size=seen.shape), seen, rate=0.01, draws=30)
    assert worse.low > 0
