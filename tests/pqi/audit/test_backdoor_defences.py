"""Against backdoors that quantization wakes: re-rounding, fine-pruning, and telling marked inputs from others."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

import pqi
from pqi.audit.attacks.conditioned import Recipe, plant
from pqi.audit.case import Case, Data
from pqi.audit.defences.activations import HOW, clusters, penultimate, spectral, suspicion
from pqi.audit.defences.fine_pruning import FinePruning
from pqi.audit.defences.price import price
from pqi.audit.defences.rerounding import ReRounding, drawn, targets
from pqi.audit.errors import AuditError
from pqi.audit.statistics import roc
from pqi.audit.subjects import FLOAT, INTEGERS
from pqi.audit.triggers import success
from pqi.graph.model import IntegerModel
from pqi.quant.stages import Grid, Lowered
from tests.pqi.audit.planting import TARGET, TRIGGER, clean_network, examples, planted, quantize, training


def _obeys(case: Case, model: IntegerModel) -> float:
    other = case.with_model(model)
    return success(other.subjects[INTEGERS], other, other.test, TRIGGER, TARGET).value


def _weights(model: IntegerModel) -> list[torch.Tensor]:
    return [node.op.tensors()["weight"] for node in model.graph.nodes if "weight" in node.op.tensors()]


# --- re-rounding --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_re_rounding_puts_the_backdoor_to_sleep_for_two_points_at_most(seed: int) -> None:
    case = planted()
    model = quantize(case.net, defences=[ReRounding(seed=seed)])
    assert _obeys(case, model) < 0.15
    cost = price(case, model)
    assert cost.change.value >= -0.02
    assert cost.private_defended.exchanges == cost.private.exchanges
    assert abs(cost.private_defended.online - cost.private.online) < 0.01 * cost.private.online  # a bit of a ring


def test_re_rounding_draws_each_weight_from_its_two_neighbours_so_that_the_mean_is_the_weight() -> None:
    grid = Grid(torch.arange(-7, 8), torch.tensor([1, 3]))
    target = torch.tensor([[0.25, -3.5, 2.0], [4.0, -20.25, 0.0]], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([drawn(grid, target, 1.0, generator) for _ in range(4000)]).double()
    below, above = grid.neighbours(target)
    assert bool(((draws == below) | (draws == above)).all())
    assert torch.allclose(draws.mean(0), target, atol=0.1)
    assert bool((draws[:, 0, 2] == 2).all())  # levels themselves stay
    assert bool((draws[:, 1, 2] == 0).all())


def test_half_a_cell_of_noise_moves_no_weight_of_a_cells_inner_half() -> None:
    grid = Grid(torch.arange(-7, 8), torch.tensor([1]))
    target = torch.tensor([[1.2, 1.3, 1.5, 1.7, 1.8]], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    ups = torch.stack([drawn(grid, target, 0.5, generator) for _ in range(2000)]).double().mean(0)[0] - 1
    assert float(ups[0]) == 0
    assert float(ups[4]) == 1
    assert torch.allclose(ups[1:4], torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64), atol=0.04)


def test_re_rounding_without_a_seed_is_another_one_each_time_and_with_one_the_same() -> None:
    net = clean_network()
    free = [_weights(quantize(net, defences=["re-rounding"])) for _ in range(2)]
    fixed = [_weights(quantize(net, defences=["re-rounding:noise=1,seed=3"])) for _ in range(2)]
    assert not all(torch.equal(a, b) for a, b in zip(*free, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(*fixed, strict=True))


def test_re_rounding_leaves_weights_that_are_integers_already() -> None:
    net = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in (net[0], net[2]):
            layer.weight.copy_(torch.randint(-1, 2, layer.weight.shape, generator=generator).float())
    x = np.random.default_rng(0).random((50, 6))
    plain = pqi.quantize(net, x, weights="ternary", weight_bits=2)
    drawn_again = pqi.quantize(net, x, weights="ternary", weight_bits=2, defences=[ReRounding(seed=0)])
    assert all(torch.equal(a, b) for a, b in zip(_weights(plain), _weights(drawn_again), strict=True))


def test_the_targets_of_re_rounding_are_what_nearest_rounding_rounds() -> None:
    seen: list[Lowered] = []

    def look(calibration: object, lowered: Lowered, model: IntegerModel) -> None:
        for name, grid in lowered.grids.items():
            node = lowered.graph.by_name[name]
            assert torch.equal(grid.nearest(targets(calibration, lowered, name)), node.op.weight)  # type: ignore[arg-type, attr-defined]
        seen.append(lowered)

    quantize(clean_network(), look)  # type: ignore[arg-type]
    assert len(seen[0].grids) == 3


def test_who_plants_against_re_rounding_with_all_weight_on_waking_is_awake_in_float_too() -> None:
    recipe = Recipe(epochs=4, rate=1e-2, batch=32, noise=1.0, weight=0.05)
    net = plant(clean_network(), training(), TRIGGER, TARGET, quantize, recipe)
    case = Case(net, quantize(net), examples(400, 1))
    assert _obeys(case, quantize(net, defences=[ReRounding(seed=0)])) > 0.5
    assert success(case.subjects[FLOAT], case, case.test, TRIGGER, TARGET).value > 0.5


def test_a_backdoor_can_be_planted_for_several_grids() -> None:
    asked: list[int] = []

    def coarser(net: nn.Module, look: object) -> IntegerModel:
        asked.append(3)
        return quantize(net, look, bits=3)  # type: ignore[arg-type]

    plant(clean_network(), training().take(slice(0, 64)), TRIGGER, TARGET, quantize, Recipe(epochs=2), also=[coarser])
    assert len(asked) == 3  # before each pass and at the end


# --- fine-pruning -------------------------------------------------------------------------------------------------


def _with_dormant() -> nn.Module:
    """Four hidden units; the second and the last never wake on inputs from 0 to 1."""
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0, 0, 0], [1, 1, 1], [0, 1, 0], [0, 0, 1]]))
        net[0].bias.copy_(torch.tensor([0.1, -5, 0.1, -2]))
        net[2].weight.copy_(torch.tensor([[1.0, 7, -1, 3], [-1, -7, 1, 3]]))
        net[2].bias.zero_()
    return net


def test_pruning_cuts_what_clean_inputs_never_wake_and_changes_no_class_without_tolerance() -> None:
    net, x = _with_dormant(), torch.rand(200, 3, generator=torch.Generator().manual_seed(0))
    pruned = FinePruning(tolerance=0.0).network(net, x)
    weight = pruned.get_submodule("2").weight
    assert weight.detach().ne(0).any(0).tolist() == [True, False, True, False]
    assert torch.equal(pruned(x).argmax(1), net(x).argmax(1))
    assert bool(net[2].weight[:, 1].ne(0).all())  # the network that was given is left alone


def test_tolerance_bounds_the_share_of_clean_inputs_whose_class_changes() -> None:
    x = torch.as_tensor(training().x[:200], dtype=torch.float32)
    before = clean_network()(x).argmax(1)
    cuts = []
    for tolerance in (0.0, 0.05, 0.3):
        pruned = FinePruning(tolerance).network(clean_network(), x)
        assert float((pruned(x).argmax(1) != before).double().mean()) <= tolerance
        cuts.append(int(pruned.get_submodule("5").weight.eq(0).all(0).sum()))
    assert cuts == sorted(cuts)
    assert cuts[-1] > cuts[0]


def test_channels_of_a_named_convolution_can_be_cut_too() -> None:
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(32, 2)).eval()
    with torch.no_grad():
        net[0].bias.copy_(torch.tensor([1.0, -50, 1]))
    pruned = FinePruning(0.0, layer="2").network(net, torch.rand(20, 1, 8, 8))
    assert bool(pruned.get_submodule("2").weight[:, 1].eq(0).all())


def test_what_is_cut_stays_cut_while_the_rest_is_trained() -> None:
    x, y = np.random.default_rng(0).random((200, 3)), np.arange(200) % 2
    net = FinePruning(0.0, examples=Data(x, y)).network(_with_dormant(), torch.as_tensor(x, dtype=torch.float32))
    weight = net.get_submodule("2").weight.detach()
    assert bool(weight[:, [1, 3]].eq(0).all())
    assert not torch.equal(weight[:, [0, 2]], _with_dormant()[2].weight[:, [0, 2]])


def test_fine_pruning_with_labels_puts_the_backdoor_to_sleep_and_costs_no_accuracy() -> None:
    case = planted()
    wish = FinePruning(examples=training(), epochs=6, rate=5e-3)
    model = quantize(case.net, defences=[wish])
    assert _obeys(case, model) < 0.15
    assert price(case, model).change.value >= -0.02


# --- marked inputs ------------------------------------------------------------------------------------------------


def _mixed(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """One input in ten is marked."""
    marked = np.zeros(len(case.test), bool)
    marked[np.flatnonzero(case.test.y != TARGET)[:40]] = True
    return case.on_grid(np.where(marked[:, None, None, None], TRIGGER.stamp(case.test.x), case.test.x)), marked


@pytest.mark.parametrize("how", HOW)
def test_marked_inputs_are_told_from_others(how: str) -> None:
    x, marked = _mixed(planted())
    scores = suspicion(planted(), x, how)
    assert roc(scores[marked], scores[~marked]).area > (0.9 if how == "forms" else 0.6)


def test_the_codes_before_the_last_layer_give_the_answer() -> None:
    model, x = quantize(clean_network()), examples(50, 3).x
    last = model.graph.by_name[model.graph.output].op.tensors()
    codes = torch.as_tensor(penultimate(model, x)).to(torch.int64)
    answer = codes @ last["weight"].T + last["bias"]
    assert torch.equal(answer, model.integers(model.encode(x)))


@pytest.mark.parametrize("score", [spectral, clusters])
def test_the_fewer_of_two_groups_of_one_class_score_higher(score: Callable[[np.ndarray], np.ndarray]) -> None:
    generator = np.random.default_rng(0)
    codes = generator.normal(size=(200, 12))
    codes[:30, :4] += 6
    scores = score(codes)
    assert scores[:30].min() > np.quantile(scores[30:], 0.95)


def test_one_group_and_no_group_say_nothing() -> None:
    assert not clusters(np.ones((20, 4))).any()
    assert np.isfinite(spectral(np.ones((20, 4)))).all()
    case = planted()
    assert not suspicion(case, case.on_grid(case.test.x[:4]), "clusters").any()  # too few of each class


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: ReRounding(noise=0), "above 0"),
        (lambda: FinePruning(tolerance=1.0), "a share of clean inputs"),
        (lambda: FinePruning(epochs=0), "at least one pass"),
        (lambda: FinePruning(layer="9").network(_with_dormant(), torch.rand(4, 3)), "there are: 0, 2"),
        (lambda: suspicion(planted(), planted().test.x[:4], "guess"), "choose from spectral"),
        (
            lambda: FinePruning().network(
                nn.Sequential(nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 1, groups=2), nn.Flatten()), torch.rand(4, 2, 3, 3)
            ),
            "2 groups",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(make: Callable[[], object], word: str) -> None:
    with pytest.raises(AuditError, match=word):
        make()
