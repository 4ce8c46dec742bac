"""Attacks by altered inputs: what they may alter, what they are scored on, and that they find what is there."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import pqi
from pqi.audit import attacks
from pqi.audit.attack import Budget
from pqi.audit.case import Case, Data
from pqi.audit.errors import AuditError
from pqi.audit.estimators import black_box, inputs_only
from pqi.audit.evasion import within
from pqi.audit.subjects import FLOAT, INTEGERS, STRAIGHT_THROUGH, IntegerSubject

pytest.importorskip("art", reason="the audit's attacks need the extra 'audit'")

BUDGET = Budget(samples=60, queries=100, seed=3)


def _examples(n: int, seed: int) -> Data:
    """A bright left, right or upper half, with noise: learnt in a moment, and near enough to be driven across."""
    generator = np.random.default_rng(seed)
    y = generator.integers(0, 3, n)
    x = 0.35 + 0.2 * generator.random((n, 1, 8, 8))
    x[y == 0, :, :, :4] += 0.12
    x[y == 1, :, :, 4:] += 0.12
    x[y == 2, :, :4] += 0.12
    return Data(x, y.astype(np.int64))


@pytest.fixture(scope="module")
def case() -> Case:
    train, test = _examples(400, 0), _examples(120, 1)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(96, 3))
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    x, y = torch.tensor(train.x, dtype=torch.float32), torch.tensor(train.y)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    return Case(net.eval(), pqi.quantize(net, train.x, weight_bits=6, activation_bits=5), test)


@pytest.mark.parametrize("name", ["fgsm", "pgd", "apgd-ce", "apgd-dlr"])
def test_gradients_evade_every_form_they_are_crafted_on(case: Case, name: str) -> None:
    found = {f.subject: f for f in attacks.get(name, strengths=(0.02, 0.2)).run(case, BUDGET)}
    assert set(found) == {FLOAT, STRAIGHT_THROUGH, INTEGERS}
    for finding in found.values():
        assert finding.figures["clean accuracy"].value > 0.9
        assert finding.figures["robust accuracy"].value < 0.2
        assert list(finding.curves["robust accuracy"].y) == sorted(finding.curves["robust accuracy"].y, reverse=True)


def test_what_is_crafted_straight_through_the_rounding_counts_on_the_integers_alike(case: Case) -> None:
    found = {f.subject: f for f in attacks.get("pgd").run(case, BUDGET)}
    assert found[STRAIGHT_THROUGH].curves == found[INTEGERS].curves


def test_scores_alone_evade_the_integers_within_the_questions_allowed(case: Case) -> None:
    found = {f.subject: f for f in attacks.get("square", strengths=(0.2,)).run(case, BUDGET)}
    assert set(found) == {FLOAT, INTEGERS}
    assert found[INTEGERS].figures["robust accuracy"].value < 0.3


def test_labels_alone_find_a_smaller_change_with_more_questions(case: Case) -> None:
    medians = []
    for queries in (30, 600):
        budget = Budget(samples=12, queries=queries, seed=3)
        found = attacks.get("hopskipjump", rounds=3).run(case, budget)
        assert [f.subject for f in found] == [FLOAT, INTEGERS]
        medians.append(found[1].figures["median L2"].value)
    assert medians[1] < medians[0]


def test_what_is_crafted_on_one_form_is_scored_on_the_other(case: Case) -> None:
    found = attacks.get("transfer", strengths=(0.2,)).run(case, BUDGET)
    assert [(f.settings["crafted on"], f.subject) for f in found] == [(FLOAT, INTEGERS), (STRAIGHT_THROUGH, FLOAT)]
    assert all(f.figures["robust accuracy"].value < 0.3 for f in found)


def test_a_coarse_model_can_be_driven_apart_from_its_float_network(case: Case) -> None:
    coarse = pqi.quantize(case.net, case.test.x, weight_bits=2, activation_bits=2)
    (found,) = attacks.get("differential", strengths=(0.03, 0.06, 0.09)).run(case.with_model(coarse), BUDGET)
    apart = found.curves["driven apart"].y
    assert list(apart) == sorted(apart)
    assert apart[-1] > 0


def test_altered_inputs_stay_on_the_grid_in_range_and_within_reach(case: Case) -> None:
    start = case.test.x[:20]
    for epsilon in (0.001, 0.01, 0.1):
        far = start + np.random.default_rng(0).choice([-1.0, 1.0], start.shape)
        made = within(case, far, start, epsilon)
        assert np.abs(made - start).max() <= epsilon + 0.5 / case.model.input_quantizer.scale
        assert np.array_equal(case.on_grid(made), made)


def test_inputs_of_single_precision_can_be_altered_by_one_code_everywhere(case: Case) -> None:
    model = pqi.quantize(case.net, case.test.x, input_range=(0, 1))
    single = case.with_model(model)
    codes = np.random.default_rng(0).integers(1, 255, (20, 1, 8, 8))
    start = (codes.astype(np.float32) / np.float32(255)).astype(np.float64)  # beside its code in the last digits
    up = within(single, start + 1 / 255, start, 1 / 255)
    assert np.array_equal(model.encode(up).numpy(), codes + 1)


def test_only_what_is_still_right_is_altered_further(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    attack, asked = attacks.get("fgsm", strengths=(0.01, 0.05, 0.2)), list[int]()
    craft = attack.craft

    def counted(*arguments: object) -> object:
        asked.append(len(arguments[2]))
        return craft(*arguments)

    monkeypatch.setattr(attack, "craft", counted)
    form = case.subjects[STRAIGHT_THROUGH]
    (right,) = attack.survivors(case, case.test, form, [form], BUDGET)
    assert asked == [int(flags.sum()) for flags in right[:-1]]
    assert asked == sorted(asked, reverse=True)


def test_one_attack_is_scored_on_models_of_other_widths(case: Case) -> None:
    coarse = IntegerSubject(pqi.quantize(case.net, case.test.x, 4, 3, input_range=(0, 1)))
    forms = [case.subjects[INTEGERS], coarse, case.subjects[FLOAT]]
    right = attacks.get("pgd", strengths=(0.2,)).survivors(
        case, case.test, case.subjects[STRAIGHT_THROUGH], forms, BUDGET
    )
    for form, flags in zip(forms, right, strict=True):
        assert np.array_equal(flags[0], form.labels(case.on_grid(case.test.x)) == case.test.y)
        assert flags[1].mean() < 0.2


def test_a_question_asked_again_counts_once_unless_its_answer_changes(case: Case) -> None:
    asked = black_box(case, case.subjects[INTEGERS])
    x = case.test.x[:5].astype("float32")
    first, again = asked.predict(x), asked.predict(np.concatenate([x, x]))
    assert np.array_equal(np.concatenate([first, first]), again)
    assert asked.asked == 5

    class Fickle(IntegerSubject):
        repeats = False

    fickle = black_box(case, Fickle(case.model))
    fickle.predict(x), fickle.predict(x)
    assert fickle.asked == 10


def test_square_asks_no_more_than_it_may(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, scores = 0, IntegerSubject.scores

    def counted(self: IntegerSubject, x: np.ndarray) -> np.ndarray:
        nonlocal asked
        asked += len(x)
        return scores(self, x)

    monkeypatch.setattr(IntegerSubject, "scores", counted)
    budget = Budget(samples=5, queries=40, seed=0)
    made = attacks.get("square", strengths=(0.004,)).craft(
        case, case.subjects[INTEGERS], case.test.take(np.arange(5)), 0.004, budget
    )
    assert made.shape == (5, 1, 8, 8)
    assert 5 * 10 < asked <= 5 * 40


class _Signs(nn.Module):
    """A network whose hidden values are signs: nothing to follow."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first, self.last = nn.Conv2d(1, 6, 3, padding=1, bias=False), nn.Linear(384, 3)
        with torch.no_grad():
            self.first.weight -= self.first.weight.mean((2, 3), keepdim=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        return self.last(torch.flatten(torch.where(h >= 0, 1.0, -1.0), 1))


def test_steps_leave_gradients_nothing_and_questions_something(case: Case) -> None:
    net = _Signs().eval()
    model = pqi.quantize(net, case.test.x, input_range=(0, 1))
    masked = Case(net, model, Data(case.test.x, model.predict(case.test.x).argmax(axis=1)))
    pgd = {f.subject: f.figures for f in attacks.get("pgd", strengths=(0.1,)).run(masked, BUDGET)}
    square = {f.subject: f.figures for f in attacks.get("square", strengths=(0.1,)).run(masked, BUDGET)}
    assert pgd[FLOAT]["robust accuracy"].low > square[FLOAT]["robust accuracy"].high
    assert pgd[INTEGERS]["robust accuracy"].value < pgd[FLOAT]["robust accuracy"].value


def test_gradients_of_weights_are_left_out_and_come_back() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    net[0].requires_grad_(False)
    with inputs_only(net):
        assert not any(p.requires_grad for p in net.parameters())
    assert [p.requires_grad for p in net.parameters()] == [False, False, True, True]


def test_the_same_seed_gives_the_same_figures(case: Case) -> None:
    first, again = (attacks.get("pgd", strengths=(0.05,)).run(case, BUDGET) for _ in range(2))
    assert [f.figures for f in first] == [f.figures for f in again]


def test_an_attack_that_runs_out_of_time_says_so(case: Case) -> None:
    found = attacks.get("fgsm").run(case, Budget(samples=10, seconds=1e-9))
    assert all(f.stopped_early and len(f.curves["robust accuracy"].x) == 2 for f in found)


def test_square_names_the_inputs_it_cannot_alter() -> None:
    net = nn.Sequential(nn.Linear(4, 2))
    x = np.random.default_rng(0).random((30, 4))
    case = Case(net, pqi.quantize(net, x), Data(x, np.zeros(30, np.int64)))
    with pytest.raises(AuditError, match=r"images \(C, H, W\)"):
        attacks.get("square").run(case, BUDGET)


def test_the_logit_ratio_of_two_classes_is_refused_with_what_serves() -> None:
    net = nn.Sequential(nn.Linear(4, 2))
    x = np.random.default_rng(0).random((30, 4))
    case = Case(net, pqi.quantize(net, x), Data(x, np.zeros(30, np.int64)))
    with pytest.raises(AuditError, match="use apgd-ce"):
        attacks.get("apgd-dlr").run(case, BUDGET)


def test_an_unknown_attack_is_answered_with_those_there_are() -> None:
    with pytest.raises(AuditError, match="apgd-ce"):
        attacks.get("magic")
