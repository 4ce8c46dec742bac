"""The promise: whatever the network, the private answer equals the integer model's, bit for bit."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pqi.program as program
from pqi.graph.model import IntegerModel
from pqi.program.network import LAN
from pqi.quant import quantize
from tests import networks
from tests.pqi.program.lockstep import run

SHAPES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (networks.mlp, (20,)),
    "small_cnn": (networks.small_cnn, (1, 12, 12)),
    "mobile_block": (networks.mobile_block, (3, 10, 10)),
    "concat_net": (networks.concat_net, (2, 8, 8)),
    "resnet20": (networks.resnet20, (3, 32, 32)),
}


def data(shape: tuple[int, ...], n: int = 64) -> Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def models() -> Callable[..., IntegerModel]:
    made: dict[tuple[object, ...], IntegerModel] = {}

    def get(name: str, **options: object) -> IntegerModel:
        key = (name, *sorted(options.items()))
        if key not in made:
            build, shape = SHAPES[name]
            torch.manual_seed(0)
            made[key] = quantize(build(), calibration=data(shape), **options)  # type: ignore[arg-type]
        return made[key]

    return get


def same(model: IntegerModel, x: Tensor, protocol: str, network: str = "lan") -> None:
    codes = model.encode(x, "silent")
    compiled = program.compile(model, protocol, network)
    assert compiled.exact
    got = run(model, compiled, codes)
    assert torch.equal(got.answer, model.integers(codes))
    cost = compiled.cost(len(codes))
    assert got.dealt == cost.dealt_bytes
    for party in compiled.parties:
        assert got.log.sent_bytes[party] == cost.online_bytes
        assert got.log.exchanges[party] == cost.exchanges


@pytest.mark.parametrize("protocol", ["clear", "additive2"])
@pytest.mark.parametrize("name", sorted(SHAPES))
def test_private_answers_equal_the_integer_model(models: Callable[..., IntegerModel], name: str, protocol: str) -> None:
    same(models(name), data(SHAPES[name][1], 3), protocol)


@pytest.mark.parametrize("rings", ["proven", "calibrated"])
@pytest.mark.parametrize("network", ["lan", "wan"])
@pytest.mark.parametrize(("weight_bits", "activation_bits"), [(8, 6), (4, 3), (2, 2), (6, 8)])
def test_every_width_policy_and_network_profile_is_exact(
    models: Callable[..., IntegerModel], rings: str, network: str, weight_bits: int, activation_bits: int
) -> None:
    model = models("small_cnn", rings=rings, weight_bits=weight_bits, activation_bits=activation_bits)
    same(model, data((1, 12, 12), 5), "additive2", network)


@pytest.mark.parametrize("n", [0, 1, 7])
def test_the_batch_is_free_down_to_nothing(models: Callable[..., IntegerModel], n: int) -> None:
    same(models("small_cnn"), data((1, 12, 12), n), "additive2")


def test_inputs_far_outside_the_calibration_data_are_exact_too(models: Callable[..., IntegerModel]) -> None:
    for rings in ("proven", "calibrated"):
        model = models("small_cnn", rings=rings)
        same(model, 1000 * data((1, 12, 12), 4), "additive2")


def test_values_that_wrap_in_calibrated_rings_wrap_alike_in_private() -> None:
    torch.manual_seed(0)
    calm = data((20,)) / 100
    model = quantize(networks.mlp(), calibration=calm, rings="calibrated", margin_bits=0, input_range=(-4.0, 4.0))
    wild = 100 * calm
    assert max(model.wraps(wild).values()) > 0
    same(model, wild, "additive2")


def test_a_binarised_network_is_exact() -> None:
    net = networks.bnn()
    x = torch.randint(0, 256, (9, 30), generator=torch.Generator().manual_seed(2)).float()
    model = quantize(net, calibration=x)
    same(model, x, "additive2")
    assert np.array_equal(model.predict(x), net(x).numpy())


class Named(nn.Module):
    """Layers with the names that this library uses itself, and a three-valued sign, which needs a table."""

    def __init__(self) -> None:
        super().__init__()
        self.input, self.output, self.codes = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.codes(torch.sign(self.output(torch.relu(self.input(x)))))


@pytest.mark.parametrize("network", ["lan", "wan"])
@pytest.mark.parametrize("rings", ["proven", "calibrated"])
def test_no_name_of_a_user_s_layer_is_in_the_way(network: str, rings: str) -> None:
    torch.manual_seed(0)
    model = quantize(Named().eval(), calibration=data((6,)), rings=rings, activation_bits=3)
    assert len({n.name for n in model.graph.nodes}) == len(model.graph.nodes)
    same(model, data((6,), 30), "additive2", network)


def test_stochastic_rounding_says_that_it_is_not_exact_and_stays_close(models: Callable[..., IntegerModel]) -> None:
    model = models("small_cnn")
    compiled = program.compile(model, rounding="stochastic")
    assert not compiled.exact
    codes = model.encode(data((1, 12, 12), 20))
    got, want = run(model, compiled, codes).answer, model.integers(codes)
    assert (got - want).abs().float().mean() < 0.1 * want.float().std()
    assert LAN.seconds(compiled.cost(1)) < LAN.seconds(program.compile(model).cost(1))


def test_wan_takes_fewer_exchanges_than_lan(models: Callable[..., IntegerModel]) -> None:
    model = models("small_cnn", rings="calibrated", activation_bits=3)
    lan, wan = (program.compile(model, network=network).cost(1) for network in ("lan", "wan"))
    assert wan.exchanges < lan.exchanges
    assert lan.dealt_bits < wan.dealt_bits


def shared_data() -> tuple[ModuleType, Path]:
    folder = os.environ.get("PQI_DATA")
    if not folder:
        pytest.skip("PQI_DATA is not set")
    spec = importlib.util.spec_from_file_location("pqi_shared_data", Path(folder) / "load.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module, Path(folder)


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize("rings", ["proven", "calibrated"])
def test_resnet20_with_published_weights_is_exact_on_200_images(rings: str) -> None:
    load, _ = shared_data()
    net = networks.resnet20(load.npz("cifar10_resnet/resnet20.npz")).eval()
    images, labels = load.cifar10("test")
    train, _ = load.cifar10("train_a")
    model = quantize(net, calibration=networks.cifar_input(train[:256]), weight_bits=8, activation_bits=6, rings=rings)
    x = networks.cifar_input(images[:200])
    for part in x.split(25):
        same(model, part, "additive2")
    assert (model.predict(x, "silent").argmax(1) == labels[:200]).mean() > 0.85


@pytest.mark.data
@pytest.mark.slow
def test_the_published_binarised_mnist_network_is_exact_on_200_images() -> None:
    load, _ = shared_data()
    net = networks.BinaryMLP(load.bnn_layers()).eval()
    _, (images, labels) = load.mnist()
    x = torch.from_numpy(images[:200].reshape(200, 784).astype(np.float32))
    model = quantize(net, calibration=x)
    same(model, x, "additive2")
    assert np.array_equal(model.predict(x), net(x).numpy())
    assert (model.predict(x).argmax(1) == labels[:200]).mean() > 0.95
