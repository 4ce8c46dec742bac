"""Every scheme under ``additive2``: whatever weights and codes may be, private answers equal the integer model's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pqi.program as program
from pqi.graph.model import IntegerModel
from pqi.graph.ops import Requantize
from pqi.quant.api import improve
from pqi.quant.calibrate import calibrate
from pqi.quant.finish import finish
from pqi.quant.lower import lower
from pqi.quant.scheme import ACTIVATIONS, WEIGHTS, Recipe, Scheme
from pqi.quant.stages import Calibration
from tests import networks
from tests.pqi.program.lockstep import run

WEIGHT_SCHEMES = [
    *(("symmetric", bits) for bits in (2, 4, 8)),
    *(("affine", bits) for bits in (2, 4, 8)),
    ("ternary", 2),
    ("binary", 1),
    *(("power_of_two", bits) for bits in (2, 3, 4)),
    *(("additive_powers_of_two", bits) for bits in (3, 4, 6)),
    *(("codebook", bits) for bits in (2, 4, 8)),
]
NETWORKS = {"small_cnn": (networks.small_cnn, (1, 12, 12)), "concat_net": (networks.concat_net, (2, 8, 8))}


def data(shape: tuple[int, ...], n: int = 64) -> Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def calibrations() -> dict[str, Calibration]:
    return {name: calibrate(make(), data(shape)) for name, (make, shape) in NETWORKS.items()}


def same(model: IntegerModel, x: Tensor, network: str = "lan") -> None:
    codes = model.encode(x, "silent")
    compiled = program.compile(model, "additive2", network)
    assert compiled.exact
    assert torch.equal(run(model, compiled, codes).answer, model.integers(codes))


def test_no_weight_scheme_is_missing_here() -> None:
    assert {weights for weights, _ in WEIGHT_SCHEMES} == set(WEIGHTS)


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize(("weights", "bits"), WEIGHT_SCHEMES)
def test_every_weight_scheme_is_exact(
    calibrations: dict[str, Calibration], weights: str, bits: int, per_channel: bool
) -> None:
    seen = calibrations["small_cnn"]
    model = finish(lower(seen, Recipe(Scheme(bits, weights, per_channel, activation_bits=4))), seen)
    same(model, data((1, 12, 12), 2))


@pytest.mark.parametrize("name", sorted(NETWORKS))
@pytest.mark.parametrize("network", ["lan", "wan"])
@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("activations", ACTIVATIONS)
def test_every_activation_scheme_is_exact(
    calibrations: dict[str, Calibration], activations: str, bits: int, network: str, name: str
) -> None:
    seen = calibrations[name]
    recipe = Recipe(Scheme(4, activation_bits=bits, activations=activations))
    same(finish(lower(seen, recipe), seen), data(NETWORKS[name][1], 2), network)


@pytest.mark.parametrize("network", ["lan", "wan"])
@pytest.mark.parametrize(("activations", "index_bits"), [("uniform", 5), ("uniform", 6), ("codebook", 7)])
def test_indices_that_wrap_by_definition_wrap_alike_in_private(
    calibrations: dict[str, Calibration], activations: str, index_bits: int, network: str
) -> None:
    seen = calibrations["small_cnn"]
    scheme = Scheme(4, activation_bits=4, activations=activations, index_bits=index_bits)
    model = finish(lower(seen, Recipe(scheme)), seen, rings="calibrated")
    for node in model.graph.nodes:
        if isinstance(node.op, Requantize):
            assert model.accumulators[node.name] <= node.op.shift + index_bits
    x = 6 * data((1, 12, 12), 3)
    assert max(model.wraps(x).values()) > 0
    same(model, x, network)


@pytest.mark.parametrize("rings", ["proven", "calibrated"])
def test_ends_single_layers_and_corrections_are_exact_together(
    calibrations: dict[str, Calibration], rings: str
) -> None:
    seen = calibrations["small_cnn"]
    layers: dict[str, dict[str, Any]] = {"conv2": {"weights": "ternary"}, "relu": {"activation_bits": 3}}
    recipe = Recipe(Scheme(3, "affine", activation_bits=5, observer="mse"), layers, "eight_bits")
    model = finish(improve(lower(seen, recipe), seen, False, True), seen, rings=rings)
    same(model, data((1, 12, 12), 3))


class Late(nn.Module):
    """Levels with both signs, of a range above zero, and below a hard end; averages of levels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(2, 4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.clamp(self.conv(x), -0.5, 0.75)
        y = nn.functional.relu6(4 * nn.functional.avg_pool2d(y, 2) + 3)
        return self.fc(torch.clamp(y, 0.25, 5.0).mean((2, 3)))


@pytest.mark.parametrize("activations", ACTIVATIONS)
def test_levels_of_both_signs_and_of_hard_ends_are_exact(activations: str) -> None:
    torch.manual_seed(0)
    x = data((2, 6, 6))
    seen = calibrate(Late().eval(), x)
    model = finish(lower(seen, Recipe(Scheme(activation_bits=4, activations=activations))), seen)
    same(model, x[:3])
