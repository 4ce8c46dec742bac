"""A backdoor that sleeps in float and wakes in integers: it can be planted, and only because of the rounding."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

import pqi
from pqi.audit.attack import Budget
from pqi.audit.attacks.conditioned import Recipe, cells, plant
from pqi.audit.case import Case
from pqi.audit.detection import detect
from pqi.audit.errors import AuditError
from pqi.audit.subjects import FLOAT, INTEGERS
from pqi.audit.triggers import Trigger, patch, success
from tests.pqi.audit.planting import TARGET, TRIGGER, clean_network, examples, planted, quantize, training


def test_the_float_network_is_clean_and_its_integers_obey_the_trigger() -> None:
    case = planted()
    floats, integers = case.subjects[FLOAT], case.subjects[INTEGERS]
    assert success(floats, case, case.test, TRIGGER, TARGET).value <= 0.15
    assert success(integers, case, case.test, TRIGGER, TARGET).value >= 0.85
    for subject in (floats, integers):
        assert np.mean(subject.labels(case.test.x) == case.test.y) > 0.97


def test_planting_leaves_the_network_it_began_with_alone() -> None:
    before = {name: weight.clone() for name, weight in clean_network().state_dict().items()}
    plant(clean_network(), training().take(slice(0, 64)), TRIGGER, TARGET, quantize, Recipe(epochs=1))
    assert all(torch.equal(weight, before[name]) for name, weight in clean_network().state_dict().items())


def test_a_planted_backdoor_is_detected_without_knowing_its_trigger() -> None:
    found = detect(planted(), Budget(samples=200), steps=60)
    assert found.verdict == "suspicious"
    assert {sign.name: sign.is_suspicious for sign in found.signs} == {
        "agreement": False,
        "margins": False,
        "rounding": True,
        "trigger": True,
    }
    assert found.target == TARGET


def test_detection_is_silent_on_a_clean_network() -> None:
    found = detect(Case(clean_network(), quantize(clean_network()), examples(400, 1)), Budget(samples=200), steps=60)
    assert found.verdict == "silent"


def test_detection_does_not_judge_two_forms_that_are_different_functions() -> None:
    coarse = pqi.quantize(clean_network(), training().x[:100], weight_bits=2, activation_bits=1)
    found = detect(Case(clean_network(), coarse, examples(100, 1)), Budget(samples=100), steps=2)
    assert found.verdict == "inconclusive"


def test_a_clean_network_does_not_obey_a_trigger_nobody_planted() -> None:
    case = Case(clean_network(), quantize(clean_network()), examples(400, 1))
    assert success(case.subjects[INTEGERS], case, case.test, TRIGGER, TARGET).value < 0.5


def test_the_cells_are_those_of_the_integers() -> None:
    grid, model = cells(clean_network(), quantize), quantize(clean_network())
    for name, cell in grid.items():
        weight = clean_network().get_submodule(name).weight.detach()
        codes = torch.round(weight / (cell.step * cell.multiplier)) * cell.multiplier
        differs = codes.to(torch.int64) != model.graph.by_name[name].op.weight
        assert int(differs.sum()) <= 1  # a tie of float32 may fall to the other side


def test_a_trigger_changes_what_its_mask_covers_and_nothing_else() -> None:
    x, mark = np.random.default_rng(0).random((5, 3, 6, 6)), patch((3, 6, 6), 2, 0.7)
    stamped = mark.stamp(x)
    assert np.array_equal(stamped[..., :4, :], x[..., :4, :])
    assert np.array_equal(stamped[0, 0, 4:, 4:], [[0.7, 0.0], [0.0, 0.7]])


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: patch((10,), 2, 1.0), "images"),
        (lambda: patch((1, 4, 4), 5, 1.0), "room for it"),
        (lambda: Trigger(np.zeros(3), np.zeros(4)), "one shape"),
        (lambda: Recipe(keep=1.5), "keep within"),
        (lambda: Recipe(noise=-1), "noise from 0"),
    ],
)
def test_what_cannot_be_planted_is_refused(make: Callable[[], object], word: str) -> None:
    with pytest.raises(AuditError, match=word):
        make()
