"""From a network of relus to an accurate one of squares in one call, on scikit-learn's digits."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import pqi
from pqi.demo.digits import Digits, load_digits
from pqi.graph import store
from pqi.graph.errors import QuantizationError
from pqi.graph.polynomial import PolynomialModel
from pqi.measure.networks import digits_cnn, digits_mlp, mnist_cnn, trained
from pqi.quant import shift

POINTS = 0.015


@dataclass(frozen=True)
class Case:
    net: nn.Module
    accuracy: float
    model: PolynomialModel


@pytest.fixture(scope="module")
def digits() -> Digits:
    return load_digits()


def accuracy(answers: Any, labels: Any) -> float:
    return float((np.asarray(answers).argmax(1) == np.asarray(labels)).mean())


@pytest.fixture(scope="module", params=[digits_mlp, digits_cnn], ids=["mlp", "cnn"])
def case(request: pytest.FixtureRequest, digits: Digits) -> Case:
    net = trained(request.param, torch.from_numpy(digits.train_x), torch.from_numpy(digits.train_y), epochs=20)
    with torch.no_grad():
        floats = net(torch.from_numpy(digits.test_x)).numpy()
    return Case(net, accuracy(floats, digits.test_y), pqi.to_polynomial(net, digits.train_x, digits.train_y, epochs=20))


def test_one_call_makes_an_accurate_model_of_squares(case: Case, digits: Digits) -> None:
    assert case.accuracy > 0.96
    assert accuracy(case.model.predict(digits.test_x), digits.test_y) >= case.accuracy - POINTS
    kinds = [node.op.kind for node in case.model.graph.nodes]
    assert kinds.count("polynomial") == 1 and case.model.bits <= 36 and case.model.depth == 1


def test_the_model_s_answers_are_integers_within_their_proof(case: Case, digits: Digits) -> None:
    integers = case.model.integers(case.model.encode(digits.test_x))
    proof, output = case.model.proof, case.model.graph.output
    assert isinstance(integers, torch.Tensor)
    assert proof.lo[output] <= int(integers.min()) and int(integers.max()) <= proof.hi[output]
    assert len(digits.test_x) == 450


def test_a_trained_model_survives_its_file(case: Case, digits: Digits) -> None:
    back = store.from_bytes(store.to_bytes(case.model))
    assert isinstance(back, PolynomialModel)
    assert np.array_equal(back.predict(digits.test_x), case.model.predict(digits.test_x))


def test_the_float_network_is_left_as_it_was(case: Case, digits: Digits) -> None:
    before = [p.clone() for p in case.net.parameters()]
    case.net.train()
    pqi.to_polynomial(case.net, digits.train_x[:64], digits.train_y[:64], epochs=2)
    assert case.net.training and all(p.requires_grad for p in case.net.parameters())
    case.net.eval()
    assert all(torch.equal(p, q) for p, q in zip(case.net.parameters(), before, strict=True))


def test_without_labels_the_float_network_is_the_teacher(case: Case, digits: Digits) -> None:
    model = pqi.to_polynomial(case.net, digits.train_x, epochs=20)
    assert accuracy(model.predict(digits.test_x), digits.test_y) >= case.accuracy - POINTS
    with torch.no_grad():
        theirs = case.net(torch.from_numpy(digits.test_x)).argmax(1)
    assert accuracy(model.predict(digits.test_x), theirs) > 0.96


def test_a_seed_gives_the_same_model_to_the_bit_and_another_seed_another(digits: Digits) -> None:
    def make(seed: int) -> bytes:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            net = digits_mlp()
        return store.to_bytes(pqi.to_polynomial(net, digits.train_x[:200], digits.train_y[:200], epochs=3, seed=seed))

    first = make(1)
    torch.rand(7)  # the caller's random state plays no part
    assert make(1) == first and make(2) != first


def test_the_caller_s_random_state_is_untouched(digits: Digits) -> None:
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    pqi.to_polynomial(digits_mlp(), digits.train_x[:50], epochs=2)
    torch.manual_seed(5)
    digits_mlp()
    assert wanted.shape == torch.rand(3).shape
    torch.manual_seed(5)
    assert torch.equal(torch.rand(3), wanted)


def test_fewer_bits_are_proven_where_they_are_asked_for(case: Case, digits: Digits) -> None:
    wanted = 24
    model = pqi.to_polynomial(case.net, digits.train_x, digits.train_y, epochs=20, answer_bits=wanted)
    assert model.bits <= wanted and model.verify().bits[model.graph.output] == model.bits
    assert accuracy(model.predict(digits.test_x), digits.test_y) >= case.accuracy - 2 * POINTS


@pytest.mark.parametrize("bits", [2, 6])
def test_bits_that_leave_no_weight_are_refused(bits: int, digits: Digits) -> None:
    with pytest.raises(QuantizationError, match=rf"2 epochs gave no network whose answers fit answer_bits = {bits} "):
        pqi.to_polynomial(digits_mlp(), digits.train_x[:50], epochs=2, answer_bits=bits)


@pytest.mark.parametrize(("bits", "top"), [(2, 1), (3, 3), (6, 31)])
def test_weight_codes_are_symmetric_and_layers_may_have_bits_of_their_own(bits: int, top: int, digits: Digits) -> None:
    layers = {"3": {"weight_bits": 4}}
    model = pqi.to_polynomial(digits_mlp(), digits.train_x[:100], epochs=2, weight_bits=bits, layers=layers)
    first, last = (model.graph.by_name[name].op.tensors()["weight"].abs().max() for name in ("1", "3"))
    assert int(first) <= top and 3 < int(last) <= 7


def test_augmentation_and_progress_see_every_epoch(digits: Digits) -> None:
    seen: list[tuple[int, int | None]] = []
    shapes = set()

    def augment(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        shapes.add(tuple(x.shape[1:]))
        return shift(x, generator)

    pqi.to_polynomial(
        digits_cnn(), digits.train_x[:100], digits.train_y[:100], epochs=3, augment=augment,
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert seen == [(1, 3), (2, 3), (3, 3)] and shapes == {(1, 8, 8)}


@pytest.fixture(scope="module")
def mnist() -> Any:
    """((images, labels), (images, labels)) as load.py of PQI_DATA has them."""
    path = os.path.join(os.environ["PQI_DATA"], "load.py")
    spec = importlib.util.spec_from_file_location("pqi_data_load", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.mnist()


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.skipif("PQI_DATA" not in os.environ, reason="PQI_DATA does not name the folder of data sets")
def test_the_mnist_network_of_two_squares_keeps_98_5_percent(mnist: Any) -> None:
    (images, labels), (test, truth) = mnist
    x, y = torch.from_numpy(images[:, None].astype(np.float32) / 255), torch.from_numpy(labels.astype(np.int64))
    net = trained(mnist_cnn, x, y, epochs=6, batch=128, rate=5e-3, augment=shift)
    model = pqi.to_polynomial(
        net, x, y, weight_bits=3, input_bits=2, answer_bits=48, epochs=6, batch=128, augment=shift
    )  # fmt: skip
    assert model.bits <= 48 and model.depth == 2
    assert accuracy(model.predict(test[:, None].astype(np.float32) / 255), truth) >= 0.985
