"""Published networks on their real test sets: integer accuracy against float accuracy."""

from __future__ import annotations

import importlib.util
import os
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from pqi.graph import store
from pqi.quant import quantize
from tests import networks

pytestmark = [
    pytest.mark.data,
    pytest.mark.skipif("PQI_DATA" not in os.environ, reason="PQI_DATA does not name the folder of data sets"),
]
IMAGES = 1000


@pytest.fixture(scope="module")
def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pqi_data_load", os.path.join(os.environ["PQI_DATA"], "load.py"))
    if spec is None or spec.loader is None:
        pytest.skip("PQI_DATA has no load.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def accuracy(answers: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> float:
    return float((answers.argmax(1) == labels).mean())


@pytest.mark.slow
def test_resnet20_with_8_bit_weights_and_6_bit_activations_keeps_its_accuracy(load: ModuleType) -> None:
    net = networks.resnet20(load.npz("cifar10_resnet/resnet20.npz"))
    images, labels = load.cifar10("test")
    x, labels = networks.cifar_input(images[:IMAGES]), labels[:IMAGES]
    calibration = networks.cifar_input(load.cifar10("train_a")[0][:512])
    with torch.no_grad():
        floats = net(x).numpy()
    assert accuracy(floats, labels) > 0.9
    proven = quantize(net, calibration, weight_bits=8, activation_bits=6)
    answers = proven.predict(x, "silent")
    assert accuracy(answers, labels) >= accuracy(floats, labels) - 0.005
    assert max(k for name, k in proven.accumulators.items() if name != "output") <= 20
    calibrated = quantize(net, calibration, weight_bits=8, activation_bits=6, rings="calibrated")
    assert np.array_equal(calibrated.predict(x[:200], "silent"), answers[:200])
    assert set(calibrated.wraps(x[:200]).values()) == {0.0}
    assert sum(calibrated.accumulators.values()) < sum(proven.accumulators.values())
    back = store.from_bytes(store.to_bytes(proven))
    assert np.array_equal(back.predict(x[:50], "silent"), answers[:50])


@pytest.mark.slow
def test_the_binarised_mnist_network_is_exactly_itself(load: ModuleType) -> None:
    net = networks.BinaryMLP(load.bnn_layers()).eval()
    (train, _), (test, labels) = load.mnist()
    x = torch.from_numpy(test[:IMAGES].reshape(IMAGES, -1).astype(np.float32))
    model = quantize(net, torch.from_numpy(train[:64].reshape(64, -1).astype(np.float32)))
    answers = model.predict(x)
    with torch.no_grad():
        assert np.array_equal(answers, net(x).numpy())
    assert accuracy(answers, labels[:IMAGES]) > 0.95
    assert [n.op.kind for n in model.graph.nodes] == ["input", *["dense", "step"] * 3, "dense"]
    assert max(model.accumulators.values()) <= 18
