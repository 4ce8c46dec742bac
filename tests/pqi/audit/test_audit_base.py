"""What every attack of the audit stands on: forms of a network, figures with intervals, refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import pqi
from pqi.audit.attack import Budget, Finding, Threat
from pqi.audit.case import Case, Data
from pqi.audit.errors import AuditError
from pqi.audit.statistics import bootstrap, mcnemar, paired_difference, rate, roc, true_positives_at
from pqi.audit.subjects import StraightThrough

NOBODY = Threat("nothing", "nothing", "", "")


def _net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 12),
        nn.ReLU(),
        nn.Linear(12, 5),
    )


@pytest.fixture(scope="module")
def inputs() -> np.ndarray:
    return np.random.default_rng(1).random((60, 1, 8, 8))


@pytest.fixture(scope="module", params=["proven", "calibrated"])
def case(request: pytest.FixtureRequest, inputs: np.ndarray) -> Case:
    net = _net()
    model = pqi.quantize(net, inputs, weight_bits=4, activation_bits=4, rings=request.param)
    return Case(net, model, Data(inputs, np.zeros(60, np.int64)))


def test_the_straight_through_form_computes_the_very_integers_of_the_model(case: Case, inputs: np.ndarray) -> None:
    module = StraightThrough(case.model)
    with torch.no_grad():
        codes = case.model.encode(inputs)
        computed = module.run(codes.to(module.real))
    assert torch.equal(computed.to(torch.int64), case.model.integers(codes))


def test_gradients_reach_the_input_through_every_rounding(case: Case, inputs: np.ndarray) -> None:
    module = StraightThrough(case.model)
    x = torch.tensor(inputs, requires_grad=True)
    module(x).square().sum().backward()
    assert x.grad is not None
    assert bool((x.grad != 0).flatten(1).any(dim=1).all())


def test_a_small_step_along_the_gradient_raises_the_integers_score_more_often_than_not(inputs: np.ndarray) -> None:
    model = pqi.quantize(_net(3), inputs, weight_bits=6, activation_bits=6)
    module = StraightThrough(model)
    x = torch.tensor(inputs, requires_grad=True)
    module(x)[:, 2].sum().backward()
    moved = (x + 0.05 * x.grad.sign()).clamp(0, 1).detach().numpy()
    before, after = (model.predict(v)[:, 2] for v in (inputs, moved))
    assert (after > before).mean() > 0.9


def test_networks_that_wrap_by_definition_have_a_straight_through_form(inputs: np.ndarray) -> None:
    from pqi.graph.graph import IntegerGraph, Node
    from pqi.graph.model import IntegerModel
    from pqi.graph.ops import Dense, Input, Lookup
    from pqi.quant.quantizer import Quantizer

    generator = torch.Generator().manual_seed(0)
    first = Dense(torch.randint(-40, 40, (6, 8), generator=generator), torch.zeros(6, dtype=torch.int64))
    last = Dense(torch.randint(-3, 4, (3, 6), generator=generator), torch.zeros(3, dtype=torch.int64))
    table = Lookup(6, torch.arange(64) // 8)
    graph = IntegerGraph(
        (
            Node("x", Input((8,), 0, 15)),
            Node("a", first, ("x",)),
            Node("t", table, ("a",)),
            Node("y", last, ("t",)),
        ),
        "y",
    )
    model = IntegerModel(graph, {"t": 6, "output": 10}, Quantizer.affine(0.0, 1.0, 4), 1.0)
    x = np.random.default_rng(2).random((20, 8))
    module = StraightThrough(model)
    assert np.array_equal(module(torch.tensor(x)).detach().numpy(), model.predict(x))


def test_values_wider_than_the_ring_that_reads_them_are_exact_too() -> None:
    from pqi.graph.graph import IntegerGraph, Node
    from pqi.graph.model import IntegerModel
    from pqi.graph.ops import Dense, Input
    from pqi.quant.quantizer import Quantizer

    generator = torch.Generator().manual_seed(0)
    wide = Dense(torch.randint(-(1 << 20), 1 << 20, (5, 64), generator=generator), torch.arange(5, dtype=torch.int64))
    graph = IntegerGraph((Node("x", Input((64,), 0, 255)), Node("y", wide, ("x",))), "y")
    model = IntegerModel(graph, {"output": 12}, Quantizer.affine(0.0, 1.0, 8), 1.0, "calibrated")
    codes = torch.randint(0, 256, (30, 64), generator=generator)
    assert torch.equal(StraightThrough(model).run(codes).to(torch.int64), model.integers(codes))


def test_an_input_between_two_codes_is_coded_as_it_was_given(inputs: np.ndarray) -> None:
    model = pqi.quantize(_net(), inputs, input_range=(0, 1))
    # Just below the middle between two codes; float32 would call it the middle, and round it up.
    x = np.full((1, 1, 8, 8), (100.5 - 1e-9) / 255)
    assert float(np.float32(x[0, 0, 0, 0]) * 255) >= 100.5 - 1e-6
    answer = StraightThrough(model)(torch.tensor(x)).detach().numpy()
    assert np.allclose(answer, model.predict(x), rtol=1e-6)


def test_the_integers_subject_answers_what_the_model_predicts(case: Case, inputs: np.ndarray) -> None:
    assert np.array_equal(case.subjects["integers"].scores(inputs), case.model.predict(inputs))
    assert np.array_equal(case.subjects["straight-through"].labels(inputs), case.subjects["integers"].labels(inputs))


def test_inputs_put_on_the_grid_have_the_codes_they_had(case: Case, inputs: np.ndarray) -> None:
    moved = case.on_grid(inputs)
    assert torch.equal(case.model.encode(moved), case.model.encode(inputs))
    assert np.array_equal(case.on_grid(moved), moved)


def test_dynamic_models_are_refused_with_what_to_do() -> None:
    net = nn.Sequential(nn.Linear(4, 3, bias=False), nn.ReLU(), nn.Linear(3, 2, bias=False))
    model = pqi.quantize(net, np.random.default_rng(0).standard_normal((50, 4)), dynamic=True)
    with pytest.raises(AuditError, match="dynamic=False"):
        StraightThrough(model)


def test_wilsons_interval_has_its_known_ends() -> None:
    found = rate(10, 100)
    assert (round(found.low, 4), round(found.high, 4)) == (0.0552, 0.1744)
    assert rate(0, 50).low == 0.0
    assert rate(50, 50).high == 1.0


def test_newcombes_paired_interval_has_its_known_ends() -> None:
    # 36 right by both, 12 by the first only, 2 by the second only, 0 by neither (Newcombe, 1998, table II).
    first = np.array([True] * 48 + [False] * 2)
    second = np.array([True] * 36 + [False] * 12 + [True] * 2)
    found = paired_difference(first, second)
    assert math.isclose(found.value, -0.2)
    assert found.low < -0.2 < found.high < 0


def test_mcnemars_exact_test_counts_only_what_changed() -> None:
    first = np.array([True] * 10 + [False] * 2 + [True] * 100)
    second = np.array([False] * 10 + [True] * 2 + [True] * 100)
    assert math.isclose(mcnemar(first, second), 2 * (1 + 12 + 66) / 4096)
    assert mcnemar(first, first) == 1.0


def test_a_score_that_separates_has_area_one_and_a_constant_one_a_half() -> None:
    assert roc(np.array([3.0, 4.0]), np.array([1.0, 2.0])).area == 1.0
    assert roc(np.ones(5), np.ones(7)).area == 0.5


def test_true_positives_are_read_at_no_more_than_the_rate_allowed() -> None:
    negative = np.arange(1000.0)
    positive = np.concatenate([np.full(30, 998.5), np.full(70, 0.0)])
    assert true_positives_at(positive, negative, 0.001).value == 0.3
    assert true_positives_at(positive, negative, 0.0001).value == 0.0


def test_a_bootstrap_covers_the_mean_it_drew_from_and_repeats_with_its_seed() -> None:
    values = np.random.default_rng(5).normal(2.0, 1.0, 400)
    first, again = (bootstrap(np.mean, values, seed=9) for _ in range(2))
    assert first == again
    assert first.low < 2.0 < first.high


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: rate(1, 0), "does not exist"),
        (lambda: Data(np.zeros((2, 3)), np.zeros(3, np.int64)), "2 inputs and 3 labels"),
        (lambda: Data(np.full((1, 3), np.nan), np.zeros(1, np.int64)), "NaN"),
        (lambda: Budget(queries=0), "queries = 0"),
        (lambda: Threat("everything", "inputs", "", ""), "everything"),
        (
            lambda: Finding("pgd", "evasion", "float", NOBODY, Budget(), {}),
            "family 'evasion'; there are: fidelity, adv",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused(make: object, word: str) -> None:
    with pytest.raises(AuditError, match=word):
        make()  # type: ignore[operator]


def test_inputs_outside_the_declared_range_are_refused(case: Case) -> None:
    with pytest.raises(AuditError, match="give their true range"):
        Case(case.net, case.model, Data(case.test.x * 3, case.test.y))
