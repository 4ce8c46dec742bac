"""Calibration data of an attacker, what they do to ranges, and the rule that drops them."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pqi
from pqi.audit.attacks.calibration import Recipe, loudest, poison
from pqi.audit.defences.defence import get
from pqi.audit.defences.trimmed import TrimmedCalibration
from pqi.audit.errors import AuditError
from pqi.audit.extremes import INPUT, Extremes
from pqi.graph.errors import CalibrationWarning
from pqi.quant.calibrate import calibrate


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 16), nn.ReLU(), nn.Linear(16, 4)
    ).eval()


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return np.random.default_rng(0).random((100, 1, 8, 8)) * 0.8


def _floats(x: np.ndarray) -> Tensor:
    return torch.as_tensor(x, dtype=torch.float32)


def _tops(net: nn.Module, x: np.ndarray) -> dict[str, float]:
    return {name: seen.range("minmax", 8)[1] for name, seen in calibrate(net, x).seen.items()}


def test_extremes_are_what_the_layers_compute(net: nn.Module, x: np.ndarray) -> None:
    extremes, given = Extremes(net, _floats(x)), _floats(x)
    assert extremes.places[0] == INPUT and len(extremes.places) == 3
    with torch.no_grad():
        first = torch.relu(net[0](given))
        second = torch.relu(net[3](first.flatten(1)))
    wanted = [value.flatten(1).abs().amax(1).log() for value in (given, first, second)]
    assert torch.allclose(extremes.of(given), torch.stack(wanted, 1), atol=1e-5)


def test_places_are_those_whose_ranges_calibration_chooses(net: nn.Module, x: np.ndarray) -> None:
    assert Extremes(net, _floats(x)).places[1:] == tuple(calibrate(net, x).seen)


@pytest.mark.parametrize("share", [0.01, 0.05])
def test_only_the_attackers_share_changes_and_stays_within_the_range(
    net: nn.Module, x: np.ndarray, share: float
) -> None:
    bad = poison(net, x, Recipe(share=share, steps=20))
    changed = (bad != x).reshape(len(x), -1).any(1)
    assert changed.sum() == round(share * len(x))
    assert bad.min() >= 0 and bad.max() <= 1


def test_a_poisoned_set_widens_the_ranges_of_all_layers(net: nn.Module, x: np.ndarray) -> None:
    before, after = _tops(net, x), _tops(net, poison(net, x, Recipe(share=0.05, steps=50)))
    assert all(after[name] > 1.2 * before[name] for name in before)


def test_an_undeclared_range_of_the_input_is_the_attackers_too(net: nn.Module, x: np.ndarray) -> None:
    before, after = _tops(net, x), _tops(net, poison(net, x, Recipe(share=0.01, steps=50), high=16.0))
    assert all(after[name] > 10 * before[name] for name in before)


def test_the_same_seed_poisons_the_same_way(net: nn.Module, x: np.ndarray) -> None:
    assert np.array_equal(*(poison(net, x, Recipe(steps=5, seed=3)) for _ in range(2)))


def test_the_loudest_examples_come_first(net: nn.Module, x: np.ndarray) -> None:
    given = np.array(x)
    given[17], given[3] = 1.0, 0.95
    assert loudest(net, given, 2).tolist() == [17, 3]


def test_an_attacker_who_knows_the_limit_stays_below_it(net: nn.Module, x: np.ndarray) -> None:
    extremes, defence = Extremes(net, _floats(x)), TrimmedCalibration()
    limit = defence.limit(extremes.of(_floats(x)))
    bad = poison(net, x, Recipe(share=0.05, steps=100), high=16.0, limit=limit)
    assert bool((extremes.of(_floats(bad)) <= limit + 0.05).all())
    assert len(defence.calibration(net, _floats(bad))) >= 98


@pytest.mark.parametrize("high", [1.5, 16.0])
def test_trimming_drops_the_attackers_examples_and_keeps_the_order(net: nn.Module, x: np.ndarray, high: float) -> None:
    bad = poison(net, x, Recipe(share=0.05, steps=50), high=high)
    theirs = (bad != x).reshape(len(x), -1).any(1)
    kept = TrimmedCalibration(reach=5.0).calibration(net, _floats(bad))
    assert torch.equal(kept, _floats(bad[~theirs]))


def test_small_examples_are_kept(net: nn.Module, x: np.ndarray) -> None:
    given = np.array(x)
    given[5] = 0.0
    assert len(TrimmedCalibration(reach=10.0).calibration(net, _floats(given))) == len(given)


def test_one_example_far_out_at_one_place_is_dropped(net: nn.Module, x: np.ndarray) -> None:
    given = np.array(x)
    given[40, 0, 7, 7] = 30.0
    kept = TrimmedCalibration(reach=10.0).calibration(net, _floats(given))
    assert torch.equal(kept, _floats(np.delete(given, 40, axis=0)))


def test_a_trimmed_model_is_the_one_of_what_was_kept(net: nn.Module, x: np.ndarray) -> None:
    bad = poison(net, x, Recipe(share=0.05, steps=50), high=16.0)
    defence = TrimmedCalibration(reach=5.0)
    kept = defence.calibration(net, _floats(bad)).numpy()
    first, second = pqi.quantize(net, bad, 8, 4, defences=[defence]), pqi.quantize(net, kept, 8, 4)
    test = np.random.default_rng(1).random((50, 1, 8, 8)) * 0.8
    codes = first.encode(test, on_saturation="silent")
    assert torch.equal(codes, second.encode(test, on_saturation="silent"))
    assert torch.equal(first.integers(codes), second.integers(codes))


def test_poison_makes_integers_answer_worse_and_trimming_makes_it_good(net: nn.Module, x: np.ndarray) -> None:
    bad = poison(net, x, Recipe(share=0.05, steps=50), high=16.0)
    test = np.random.default_rng(1).random((200, 1, 8, 8)) * 0.8
    with torch.no_grad():
        wanted = net(_floats(test)).numpy()

    def error(given: np.ndarray, defences: list[str]) -> float:
        model = pqi.quantize(net, given, 8, 4, observer="minmax", defences=defences)
        return float(np.square(model.predict(test, on_saturation="silent") - wanted).mean())

    honest = error(x, [])
    assert error(bad, []) > 10 * honest
    assert error(bad, ["trimmed-calibration:reach=5"]) < 2 * honest


def test_data_of_several_kinds_are_told(net: nn.Module, x: np.ndarray) -> None:
    given = np.array(x)
    given[:30] *= 40
    with pytest.warns(CalibrationWarning, match="drops 30 of 100 examples"):
        TrimmedCalibration(reach=8.0).calibration(net, _floats(given))
    with warnings.catch_warnings():
        warnings.simplefilter("error", CalibrationWarning)
        TrimmedCalibration(reach=8.0).calibration(net, _floats(x))


def test_what_makes_no_sense_is_refused(net: nn.Module, x: np.ndarray) -> None:
    for wrong in ({"share": 0.0}, {"share": 1.0}, {"steps": 0}, {"rate": 0.0}):
        with pytest.raises(AuditError):
            Recipe(**wrong)  # type: ignore[arg-type]
    with pytest.raises(AuditError, match="leave some to the others"):
        poison(net, x[:2], Recipe(share=0.9))
    with pytest.raises(AuditError, match="low must be below high"):
        poison(net, x, low=1.0, high=0.0)
    for settings in ({"reach": 0.0}, {"floor": -1.0}, {"reach": float("nan")}):
        with pytest.raises(AuditError):
            get("trimmed-calibration", **settings)
