"""The trainable graph computes, at every moment, the integers that the private run will compute."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pqi.quant.calibrate import calibrate
from pqi.quant.finish import finish
from pqi.quant.lower import lower
from pqi.quant.scheme import Recipe, Scheme
from pqi.quant.train.module import TrainableGraph
from tests import networks
from tests.pqi.quant.train import trainkit


def batch(*shape: int) -> Tensor:
    return torch.randn(48, *shape, generator=torch.Generator().manual_seed(3))


def disturb(module: TrainableGraph) -> None:
    """Every parameter somewhere else than at the start."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)


NETWORKS: list[tuple[Callable[[], nn.Module], tuple[int, ...]]] = [
    (networks.mlp, (20,)),
    (networks.small_cnn, (1, 12, 12)),
    (networks.mobile_block, (3, 10, 10)),
    (networks.concat_net, (2, 8, 8)),
    (trainkit.Residual, (1, 8, 8)),
]
SCHEMES = [
    Scheme(4, activation_bits=4),
    Scheme(2, activation_bits=3, per_channel=False),
    Scheme(weights="ternary", activation_bits=4),
    Scheme(weights="affine", weight_bits=3, activation_bits=4),
    Scheme(weights="codebook", weight_bits=3, activation_bits=4, activations="power_of_two"),
]


@pytest.mark.parametrize(("build", "shape"), NETWORKS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_is_trained_is_what_runs(build: Callable[[], nn.Module], shape: tuple[int, ...], scheme: Scheme) -> None:
    x = batch(*shape)
    seen = calibrate(build(), x)
    module = TrainableGraph(seen, lower(seen, Recipe(scheme)))
    for change in (lambda m: None, disturb):
        change(module)
        model = finish(module.lower(), seen)
        codes = model.encode(x, "silent")
        with torch.no_grad():
            assert torch.equal(module(codes).long(), model.integers(codes))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_trained_weight_is_one_of_its_grid(scheme: Scheme) -> None:
    seen = calibrate(networks.small_cnn(), batch(1, 12, 12))
    module = TrainableGraph(seen, lower(seen, Recipe(scheme)))
    disturb(module)
    lowered = module.lower()
    for name, grid in lowered.grids.items():
        weight = lowered.graph.by_name[name].op.tensors()["weight"]
        for channel, row in enumerate(weight):
            assert set(row.flatten().tolist()) <= set(grid.row(channel).tolist())


def test_an_untrained_graph_is_the_lowered_one() -> None:
    seen = calibrate(networks.small_cnn(), batch(1, 12, 12))
    lowered = lower(seen, Recipe(Scheme(4, activation_bits=4)))
    again = TrainableGraph(seen, lowered).lower()
    for before, after in zip(lowered.graph.nodes, again.graph.nodes, strict=True):
        for key, tensor in before.op.tensors().items():
            assert torch.equal(tensor, after.op.tensors()[key]), before.name


def test_a_step_that_grows_is_a_scale_that_grows() -> None:
    seen = calibrate(networks.mlp(), batch(20))
    lowered = lower(seen, Recipe())
    module = TrainableGraph(seen, lowered)
    with torch.no_grad():
        for grown in module.grown.values():
            grown += 0.5
    again = module.lower()
    # Codes stand for more, and so do the accumulators that are read for them; input and answer keep their scale.
    grown_scales = {n for n in lowered.scales if again.scales[n] != lowered.scales[n]}
    assert grown_scales == set(lowered.scales) - {lowered.graph.nodes[0].name, lowered.graph.output}
    assert again.output_scale == lowered.output_scale


def test_every_latent_number_feels_the_loss() -> None:
    seen = calibrate(trainkit.taught(), trainkit.bars(64)[0])
    module = TrainableGraph(seen, lower(seen, Recipe(Scheme(3, activation_bits=3))))
    module(torch.from_numpy(seen.quantizer.saturating_codes(trainkit.bars(64)[0])[0])).square().mean().backward()
    silent = [name for name, p in module.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)]
    assert not silent
