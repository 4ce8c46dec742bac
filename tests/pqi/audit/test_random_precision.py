"""Random precision: every answer is exactly that of the model drawn, draws are fair, attacks meet all widths."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import pqi
from pqi.audit import attacks
from pqi.audit.attack import Budget
from pqi.audit.case import Case, Data
from pqi.audit.defences.precision import Expectation, RandomPrecision, RandomPrecisionSubject, over_draws
from pqi.audit.errors import AuditError
from pqi.audit.subjects import IntegerSubject, StraightThrough

WIDTHS = (2, 4, 6)


def _net(inputs: int = 16) -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(inputs, 24), nn.ReLU(), nn.Linear(24, 4)).eval()


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return np.random.default_rng(4).random((120, 16))


@pytest.fixture(scope="module")
def models(x: np.ndarray) -> dict:
    return {w: pqi.quantize(_net(), x, weight_bits=w, activation_bits=w, input_range=(0, 1)) for w in WIDTHS}


@pytest.fixture(scope="module")
def case(models: dict, x: np.ndarray) -> Case:
    return Case(_net(), models[6], Data(x, models[6].predict(x).argmax(axis=1)))


def test_every_answer_is_that_of_the_model_drawn(models: dict, x: np.ndarray) -> None:
    found = RandomPrecision(models, seed=0).predict(x)
    alone = {w: models[w].predict(x) for w in WIDTHS}
    assert set(found.widths) == set(WIDTHS)
    for row, width in enumerate(found.widths):
        assert np.array_equal(found.answers[row], alone[width][row])


def test_a_seed_repeats_its_draws_and_no_seed_does_not(models: dict) -> None:
    assert np.array_equal(RandomPrecision(models, seed=1).draw(200), RandomPrecision(models, seed=1).draw(200))
    # Two sequences of 200 draws among three are equal once in 3^200.
    assert not np.array_equal(RandomPrecision(models).draw(200), RandomPrecision(models).draw(200))


@pytest.mark.parametrize("seed", [7, 8])
def test_widths_are_equally_likely(models: dict, seed: int) -> None:
    drawn = RandomPrecision(models, seed=seed).draw(9000)
    counts = np.array([(drawn == w).sum() for w in WIDTHS])
    assert np.sum((counts - 3000) ** 2 / 3000) < 18.4  # chi-square, 2 degrees: once in 10^4


def test_the_expectation_is_the_mean_of_the_widths_and_so_is_its_gradient(models: dict, x: np.ndarray) -> None:
    mean = Expectation(list(models.values()))
    inputs = torch.tensor(x[:9], requires_grad=True)
    scores = mean(inputs)
    expected = np.mean([models[w].predict(x[:9]) for w in WIDTHS], axis=0)
    assert np.allclose(scores.detach().numpy(), expected, rtol=1e-6)
    (gradient,) = torch.autograd.grad(scores[:, 1].sum(), inputs)
    parts = []
    for w in WIDTHS:
        single = torch.tensor(x[:9], requires_grad=True)
        parts.append(torch.autograd.grad(StraightThrough(models[w])(single)[:, 1].sum(), single)[0])
    assert torch.allclose(gradient, torch.stack(parts).mean(0))


def test_the_service_under_attack_draws_anew_for_every_question(models: dict, x: np.ndarray) -> None:
    subject = RandomPrecisionSubject(RandomPrecision(models, seed=2))
    same = np.repeat(x[:1], 60, axis=0)
    answers = {tuple(row) for row in subject.scores(same)}
    assert answers == {tuple(models[w].predict(x[:1])[0]) for w in WIDTHS}
    assert not subject.repeats


def test_an_attack_on_the_mean_is_scored_on_every_width(case: Case, models: dict) -> None:
    pytest.importorskip("art", reason="the audit's attacks need the extra 'audit'")
    subject = RandomPrecisionSubject(RandomPrecision(models, seed=3))
    attack = attacks.get("pgd", strengths=(0.05, 0.4), steps=10)
    forms = [IntegerSubject(models[w]) for w in WIDTHS]
    right = attack.survivors(case, case.test, subject, forms, Budget(seed=1))
    assert [flags.shape for flags in right] == [(3, 120)] * 3
    last = np.stack([flags[-1] for flags in right])
    expected, every = over_draws(last)
    assert every.value <= expected.value == last.mean()
    assert expected.value < 0.3
    assert all(flags[0].mean() >= flags[1].mean() >= flags[2].mean() for flags in right)


def test_asking_until_a_draw_is_fooled_needs_only_one_width() -> None:
    right = np.array([[True, True, False, False], [True, False, False, False]])
    expected, every = over_draws(right)
    assert (expected.value, every.value) == (0.375, 0.25)


def test_each_width_has_its_price(case: Case, models: dict) -> None:
    found = RandomPrecision(models).prices(case)
    assert found[6].change.value == 0.0
    assert found[2].private_defended.dealt < found[6].private_defended.dealt


def test_models_that_cannot_stand_for_one_another_are_refused(models: dict, x: np.ndarray) -> None:
    other_range = pqi.quantize(_net(), x, input_range=(0, 2))
    with pytest.raises(AuditError, match="input_range"):
        RandomPrecision({4: models[4], 8: other_range})
    with pytest.raises(AuditError, match="at least 2"):
        RandomPrecision({4: models[4]})
    wider = pqi.quantize(_net(20), np.random.default_rng(0).random((50, 20)), input_range=(0, 1))
    with pytest.raises(AuditError, match="shapes"):
        RandomPrecision({4: models[4], 8: wider})
