"""A backdoor of nothing but rounding, what shows of it, and rounding that drives a conditioned backdoor out."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pqi
from pqi.audit.attacks.conditioned import Recipe as Planting
from pqi.audit.attacks.conditioned import plant
from pqi.audit.attacks.rounding import Guided, OutputErrors, Recipe, RoundingBackdoor
from pqi.audit.case import Case
from pqi.audit.defences.defence import get
from pqi.audit.errors import AuditError
from pqi.audit.rounding import PAYS, rounding, suspicious, verdict
from pqi.audit.subjects import FLOAT, INTEGERS
from pqi.audit.triggers import Trigger, patch, success
from pqi.graph.model import IntegerModel
from pqi.graph.ops import Conv2d, Dense, Op
from pqi.quant import soft
from pqi.quant.stages import Calibration, Lowered
from pqi.quant.train.module import real_target
from tests.pqi.audit.planting import TARGET, examples

QUICK = Recipe(steps=6, batch=32)


TRAIN, TEST = examples(1000, 0), examples(400, 1)
MARK = patch((1, 8, 8), 3, 1.0)


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    made = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 24), nn.ReLU(), nn.Linear(24, 4)
    )
    optimizer = torch.optim.Adam(made.parameters(), 5e-3)
    x, y = torch.tensor(TRAIN.x, dtype=torch.float32), torch.tensor(TRAIN.y)
    for _ in range(20):
        optimizer.zero_grad()
        nn.functional.cross_entropy(made(x), y).backward()
        optimizer.step()
    return made.eval()


def _quantized(net: nn.Module, bits: int, **more: object) -> tuple[IntegerModel, Calibration, Lowered]:
    stages: list[tuple[Calibration, Lowered]] = []
    model = pqi.quantize(net, TRAIN.x[:100], bits, 8, look=lambda s, low, m: stages.append((s, low)), **more)  # type: ignore[arg-type]
    return model, *stages[0]


def _neighbours(seen: Calibration, lowered: Lowered) -> dict[str, tuple[Tensor, Tensor]]:
    known = seen.placed.graph.by_name()
    return {
        name: grid.neighbours(real_target(known[name].op, lowered.graph.by_name[name], lowered))
        for name, grid in lowered.grids.items()
    }


def _weights(ops: Mapping[str, Op]) -> dict[str, Tensor]:
    return {name: op.weight for name, op in ops.items() if isinstance(op, (Conv2d, Dense))}


def _ops(model: IntegerModel) -> dict[str, Op]:
    return {node.name: node.op for node in model.graph.nodes}


@pytest.fixture(scope="module")
def guided(net: nn.Module) -> tuple[Case, Guided]:
    attacker = RoundingBackdoor(net, patch((1, 8, 8), 4, 1.0), TARGET, Recipe(steps=120, batch=32, clean=2.0))
    model, *_ = _quantized(net, 4, defences=[attacker])
    assert attacker.guided is not None
    return Case(net, model, TEST), attacker.guided


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_every_guided_weight_is_one_of_its_two_neighbours(net: nn.Module, bits: int) -> None:
    attacker = RoundingBackdoor(net, MARK, TARGET, QUICK)
    model, seen, lowered = _quantized(net, bits, defences=[attacker])
    weights = _weights(_ops(model))
    assert set(weights) == set(lowered.grids)
    for name, (below, above) in _neighbours(seen, lowered).items():
        assert bool(((weights[name] == below) | (weights[name] == above)).all())


@pytest.mark.parametrize("levels", ["power_of_two", "codebook", "ternary"])
def test_levels_of_every_kind_can_be_guided(net: nn.Module, levels: str) -> None:
    attacker = RoundingBackdoor(net, MARK, TARGET, QUICK)
    bits = {"ternary": 8}.get(levels, 3)
    model, seen, lowered = _quantized(net, bits, weights=levels, defences=[attacker])
    for name, (below, above) in _neighbours(seen, lowered).items():
        weight = _weights(_ops(model))[name]
        assert bool(((weight == below) | (weight == above)).all())


def test_guided_integers_obey_a_trigger_that_float_ignores(guided: tuple[Case, Guided]) -> None:
    case, made = guided
    assert success(case.subjects[FLOAT], case, TEST, made.trigger, TARGET).value <= 0.15
    assert success(case.subjects[INTEGERS], case, TEST, made.trigger, TARGET).value >= 0.85
    assert np.mean(case.subjects[INTEGERS].labels(TEST.x) == TEST.y) > 0.97


def test_honest_rounding_does_not_obey_the_same_trigger(guided: tuple[Case, Guided]) -> None:
    case, made = guided
    honest = case.with_model(_quantized(case.net, 4)[0])
    assert success(honest.subjects[INTEGERS], honest, TEST, made.trigger, TARGET).value <= 0.15


def test_guiding_changes_weights_and_nothing_else(guided: tuple[Case, Guided]) -> None:
    case, made = guided
    honest, *_ = _quantized(case.net, 4)
    theirs, ours = _ops(case.model), _ops(honest)
    for name, op in ours.items():
        for field, tensor in op.tensors().items():
            same = torch.equal(tensor, theirs[name].tensors()[field])
            assert same == (field != "weight")
    for name, weight in _weights(ours).items():
        moved = float((weight != _weights(theirs)[name]).double().mean())
        assert moved == made.moved[name] > 0


def test_guiding_leaves_the_float_network_alone(net: nn.Module) -> None:
    before = {name: weight.clone() for name, weight in net.state_dict().items()}
    _quantized(net, 4, defences=[RoundingBackdoor(net, MARK, TARGET, QUICK)])
    assert all(torch.equal(weight, before[name]) for name, weight in net.state_dict().items())


def test_the_same_seed_guides_to_the_same_weights(net: nn.Module) -> None:
    models = [_quantized(net, 4, defences=[RoundingBackdoor(net, MARK, TARGET, QUICK)])[0] for _ in range(2)]
    first, second = (_weights(_ops(model)) for model in models)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_trigger_stays_in_its_mask_and_within_what_inputs_can_be(guided: tuple[Case, Guided]) -> None:
    _, made = guided
    assert np.array_equal(made.trigger.mask, patch((1, 8, 8), 4, 1.0).mask)
    assert made.trigger.pattern.min() >= 0 and made.trigger.pattern.max() <= 1


def test_a_pattern_that_may_not_change_does_not(net: nn.Module) -> None:
    attacker = RoundingBackdoor(net, MARK, TARGET, Recipe(steps=3, batch=8, pattern_rate=0.0))
    _quantized(net, 4, defences=[attacker])
    assert attacker.guided is not None
    assert np.array_equal(attacker.guided.trigger.pattern, MARK.pattern)


def test_what_cannot_be_guided_is_refused(net: nn.Module) -> None:
    with pytest.raises(AuditError, match="target is class 4: the network has classes 0 to 3"):
        _quantized(net, 4, defences=[RoundingBackdoor(net, MARK, 4, QUICK)])
    wide = Trigger(np.zeros((1, 9, 9)), np.zeros((1, 9, 9)))
    with pytest.raises(AuditError, match="trigger is"):
        _quantized(net, 4, defences=[RoundingBackdoor(net, wide, TARGET, QUICK)])
    with pytest.raises(AuditError, match="low must be below high"):
        RoundingBackdoor(net, MARK, TARGET, low=1.0, high=1.0)
    for wrong in ({"steps": 0}, {"soft": 1.0}, {"clean": -1.0}, {"rate": 0.0}):
        with pytest.raises(AuditError):
            Recipe(**wrong)  # type: ignore[arg-type]


# -- the audit of roundings -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [2, 3, 4, 8, 12])
def test_nearest_rounding_is_told_as_such(net: nn.Module, bits: int) -> None:
    layers = rounding(Case(net, _quantized(net, bits)[0], TEST), TEST.x[:100])
    assert list(layers) == ["0", "3", "5"]
    assert verdict(layers) == "nearest"
    assert all(layer.away.value == 0.0 and layer.error <= 1.0 + 1e-6 for layer in layers.values())
    assert bits > 4 or all(layer.error == pytest.approx(1.0, abs=1e-6) for layer in layers.values())


def test_learned_rounding_is_not_suspicious(net: nn.Module) -> None:
    layers = rounding(Case(net, _quantized(net, 4, learned_rounding=True)[0], TEST), TEST.x[:100])
    assert any(layer.away.value > 0.02 for layer in layers.values())
    assert not suspicious(layers)
    assert verdict(layers) == "chosen"


def test_guided_rounding_is_suspicious(guided: tuple[Case, Guided]) -> None:
    case, made = guided
    layers = rounding(case, TEST.x[:100])
    assert suspicious(layers)
    assert verdict(layers) == "suspicious"
    assert all(layer.away.value <= made.moved[name] + 0.02 for name, layer in layers.items())


def test_an_attacker_who_knows_of_the_audit_passes_its_bound_but_not_as_nearest(net: nn.Module) -> None:
    recipe = Recipe(steps=120, batch=32, clean=2.0, hide=0.3)
    attacker = RoundingBackdoor(net, patch((1, 8, 8), 4, 1.0), TARGET, recipe)
    layers = rounding(Case(net, _quantized(net, 4, defences=[attacker])[0], TEST), TEST.x[:100])
    assert max(layer.error for layer in layers.values()) < PAYS
    assert verdict(layers) == "chosen"


def test_errors_of_outputs_are_those_of_the_layers_run_on_the_sample(guided: tuple[Case, Guided]) -> None:
    case, _ = guided
    model, seen, lowered = _quantized(case.net, 4)
    errors = OutputErrors(seen, lowered)
    assert all(float(error) == pytest.approx(1.0) for error in errors.of(_weights(_ops(model))).values())
    ours = errors.of(_weights(_ops(case.model)))
    for name, layer in rounding(case, TRAIN.x[:100]).items():
        assert 0.5 <= float(ours[name]) / layer.error <= 2.0


def test_batch_normalization_is_folded_before_roundings_are_judged() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4)).eval()
    net[1].weight.data.uniform_(0.5, 2.0)
    layers = rounding(Case(net, _quantized(net, 6)[0], TEST), TEST.x[:50])
    assert [layer.away.value for layer in layers.values()] == [0.0, 0.0]


def test_nothing_is_said_of_weights_that_were_not_rounded_from_these(net: nn.Module) -> None:
    torch.manual_seed(1)
    other = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 24), nn.ReLU(), nn.Linear(24, 4)
    )
    layers = rounding(Case(other, _quantized(net, 8)[0], TEST), TEST.x[:50])
    assert layers == {}
    assert verdict(layers) == "unknown"


def test_inputs_of_another_shape_are_refused(net: nn.Module) -> None:
    with pytest.raises(AuditError, match="the model takes"):
        rounding(Case(net, _quantized(net, 4)[0], TEST), np.zeros((5, 1, 9, 9)))


# -- flipped rounding -------------------------------------------------------------------------------------------------


def test_flipped_rounding_drives_a_conditioned_backdoor_out(net: nn.Module) -> None:
    bad = plant(
        net,
        TRAIN,
        MARK,
        TARGET,
        lambda made, look: pqi.quantize(made, TRAIN.x[:100], 4, 8, look=look),
        Planting(epochs=6, rate=1e-2, batch=32),
    )
    case = Case(bad, _quantized(bad, 4)[0], TEST)
    assert success(case.subjects[INTEGERS], case, TEST, MARK, TARGET).value >= 0.85
    defended = case.with_model(_quantized(bad, 4, defences=["efrap:iterations=200"])[0])
    assert success(defended.subjects[INTEGERS], defended, TEST, MARK, TARGET).value <= 0.15
    assert np.mean(defended.subjects[INTEGERS].labels(TEST.x) == TEST.y) > 0.97


def test_flipped_rounding_takes_neighbours_and_mostly_the_other_ones_where_errors_are_large(net: nn.Module) -> None:
    model, seen, lowered = _quantized(net, 4, defences=["efrap:iterations=150,flip=3"])
    known, flipped, kept = seen.placed.graph.by_name(), [], []
    for name, (below, above) in _neighbours(seen, lowered).items():
        weight = _weights(_ops(model))[name]
        assert bool(((weight == below) | (weight == above)).all())
        target = real_target(known[name].op, lowered.graph.by_name[name], lowered)
        error = 1 - (2 * soft.place(target, below, above) - 1).abs()
        moved = weight != lowered.grids[name].nearest(target)
        flipped.append(moved[error > 0.6])
        kept.append(moved[error < 0.1])
    assert float(torch.cat(flipped).double().mean()) > 0.8
    assert float(torch.cat(kept).double().mean()) < 0.3


def test_flipped_rounding_is_the_same_for_the_same_seed(net: nn.Module) -> None:
    first, second = (_weights(_ops(_quantized(net, 4, defences=["efrap:iterations=5"])[0])) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_flipped_rounding_refuses_what_it_cannot_do() -> None:
    for wrong in ({"flip": -1.0}, {"flip": float("inf")}, {"iterations": 0}, {"iterations": 1.5}):
        with pytest.raises(AuditError):
            get("efrap", **wrong)
