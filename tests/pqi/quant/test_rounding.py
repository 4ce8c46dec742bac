"""Learned rounding: every weight at one of its two nearest levels, and the output nearer to the float one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from pqi.graph.errors import QuantizationError
from pqi.graph.floating import Linear
from pqi.graph.ops import Conv2d, Dense
from pqi.quant import rounding
from pqi.quant.calibrate import calibrate
from pqi.quant.finish import finish
from pqi.quant.lower import lower
from pqi.quant.rounding import learn_rounding
from pqi.quant.scheme import Recipe, Scheme
from pqi.quant.stages import Calibration, Lowered
from tests import networks


def prepared(net: nn.Module, shape: tuple[int, ...], samples: int = 96, **fields: Any) -> tuple[Calibration, Lowered]:
    x = torch.randn(samples, *shape, generator=torch.Generator().manual_seed(0))
    seen = calibrate(net.eval(), x)
    return seen, lower(seen, Recipe(Scheme(**{"weight_bits": 3, "activation_bits": 6, "percentile": 99.0, **fields})))


def target(seen: Calibration, lowered: Lowered, name: str) -> Tensor:
    """The real weights in units of the accumulator."""
    node = seen.placed.graph.by_name()[name]
    assert isinstance(node.op, Linear)
    ratio = torch.as_tensor(lowered.scales[node.inputs[0]] / lowered.scales[name], dtype=torch.float64)
    return node.op.weight * ratio.view((-1,) + (1,) * (node.op.weight.ndim - 1))


def weights(lowered: Lowered) -> dict[str, Tensor]:
    return {n.name: n.op.weight for n in lowered.graph.nodes if isinstance(n.op, (Conv2d, Dense))}


def error(seen: Calibration, lowered: Lowered, x: Tensor) -> float:
    codes = torch.from_numpy(seen.quantizer.saturating_codes(x)[0])
    answers = lowered.graph.run(codes).double() * lowered.output_scale
    return float(((answers - seen.placed.graph.run(x)) ** 2).mean())


class Grouped(nn.Module):
    """Grouped and depthwise convolutions, a shortcut with weights of its own, a dense layer on the last axis."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 8, 3, padding=1, groups=2), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.c, self.short = nn.Conv2d(8, 6, 1), nn.Conv2d(4, 6, 1)
        self.d, self.e = nn.Linear(6, 6), nn.Linear(36, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.c(F.relu(self.b(F.relu(self.a(x))))) + self.short(x))
        return self.e(F.relu(self.d(y)).mean(2).flatten(1))


CASES: list[tuple[Callable[[], nn.Module], tuple[int, ...]]] = [
    (networks.mlp, (20,)),
    (networks.small_cnn, (1, 12, 12)),
    (Grouped, (4, 6, 6)),
    (lambda: networks.settle(networks.ResNetCIFAR(1, (4, 8, 12)), (3, 8, 8)), (3, 8, 8)),
]


@pytest.mark.parametrize(("make", "shape"), CASES)
@pytest.mark.parametrize("scheme", ["symmetric", "power_of_two"])
def test_every_weight_is_one_of_its_two_neighbours_and_nothing_else_changes(
    make: Callable[[], nn.Module], shape: tuple[int, ...], scheme: str
) -> None:
    torch.manual_seed(0)
    seen, plain = prepared(make(), shape, weights=scheme)
    learned = learn_rounding(seen, plain, iterations=60)
    changed = 0
    for old, new in zip(plain.graph.nodes, learned.graph.nodes, strict=True):
        assert (old.name, old.inputs, old.op.params()) == (new.name, new.inputs, new.op.params())
        for field, tensor in old.op.tensors().items():
            if field == "weight" and old.name in plain.grids:
                below, above = plain.grids[old.name].neighbours(target(seen, plain, old.name))
                weight = new.op.tensors()[field]
                assert weight.dtype == torch.int64 and bool(((weight == below) | (weight == above)).all())
                changed += int((weight != tensor).sum())
            else:
                assert torch.equal(tensor, new.op.tensors()[field])
    assert changed > 0


@pytest.mark.parametrize(("make", "shape"), CASES)
def test_fresh_inputs_come_out_closer_to_the_float_network(
    make: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    seen, plain = prepared(make(), shape, 256, weight_bits=3)
    fresh = torch.randn(128, *shape, generator=torch.Generator().manual_seed(5))
    learned = learn_rounding(seen, plain, iterations=200)
    assert error(seen, learned, fresh) < 0.9 * error(seen, plain, fresh)


def test_one_layer_learns_nearly_the_best_of_all_roundings() -> None:
    generator = torch.Generator().manual_seed(3)
    net = nn.Sequential(nn.Linear(8, 1, bias=False))
    with torch.no_grad():
        net[0].weight.uniform_(-1.0, 1.0, generator=generator)
    # Inputs that rise and fall together: what counts is the sum of the rounding errors, which no weight knows alone.
    x = torch.randn(600, 1, generator=generator) + 0.2 * torch.randn(600, 8, generator=generator)
    seen = calibrate(net, x, input_bits=12)
    plain = lower(seen, Recipe(Scheme(weight_bits=3)))
    (name,) = plain.grids
    below, above = plain.grids[name].neighbours(target(seen, plain, name))
    real = target(seen, plain, name)
    codes = torch.from_numpy(seen.quantizer.saturating_codes(x)[0]).double()

    def squares(weight: Tensor) -> float:
        return float(((codes @ (weight - real).t().double()) ** 2).mean())

    choices = torch.cartesian_prod(*[torch.tensor([0, 1])] * 8)
    every = sorted(squares(torch.where(choice.bool()[None], above, below)) for choice in choices)
    learned = squares(weights(learn_rounding(seen, plain, iterations=400))[name])
    assert learned <= every[5] and every[5] < 0.1 * squares(weights(plain)[name])


def test_the_seed_decides_everything() -> None:
    seen, plain = prepared(networks.small_cnn(), (1, 12, 12))
    first, again, other = (weights(learn_rounding(seen, plain, iterations=40, seed=s)) for s in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_a_layer_that_would_get_worse_keeps_its_nearest_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, plain = prepared(networks.mlp(), (20,))

    def contrary(self: rounding.Reconstruction, iterations: int) -> list[Tensor]:
        return [torch.where(t.now == t.above, t.below, t.above) for t in self.terms]

    monkeypatch.setattr(rounding.Reconstruction, "_learn", contrary)
    kept = weights(learn_rounding(seen, plain, iterations=5))
    assert all(torch.equal(kept[name], weight) for name, weight in weights(plain).items())


class Binary(nn.Module):
    """Layers before a sign and before a threshold, and one that neither reads."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.where(self.b(torch.sign(self.a(x))) >= 0, 1.0, -1.0))


def test_layers_read_by_thresholds_keep_their_weights_and_still_count() -> None:
    torch.manual_seed(0)
    seen, plain = prepared(Binary(), (6,))
    steps: list[tuple[int, int | None]] = []
    learned = weights(learn_rounding(seen, plain, iterations=50, progress=lambda *now: steps.append(now)))
    same = [torch.equal(learned[name], weight) for name, weight in weights(plain).items()]
    assert same[:2] == [True, True]
    assert steps == [(1, 3), (2, 3), (3, 3)]


def test_an_exact_network_stays_exactly_itself() -> None:
    seen = calibrate(
        networks.bnn(), torch.randint(0, 256, (40, 30), generator=torch.Generator().manual_seed(0)).float()
    )
    plain = lower(seen, Recipe())
    learned = weights(learn_rounding(seen, plain, iterations=5))
    assert all(torch.equal(learned[name], weight) for name, weight in weights(plain).items())


def test_a_single_sample_teaches_nothing_and_breaks_nothing() -> None:
    seen, plain = prepared(networks.mlp(), (20,))
    one = Calibration(seen.placed, seen.quantizer, seen.seen, seen.sample[:1])
    learned = weights(learn_rounding(one, plain, iterations=5))
    assert all(torch.equal(learned[name], weight) for name, weight in weights(plain).items())


@pytest.mark.parametrize("iterations", [0, -1, True, 2.5])
def test_iterations_must_be_a_count(iterations: Any) -> None:
    seen, plain = prepared(networks.mlp(), (20,))
    with pytest.raises(QuantizationError, match="iterations is"):
        learn_rounding(seen, plain, iterations=iterations)


def test_the_learned_graph_is_finished_and_proven_like_any_other() -> None:
    seen, plain = prepared(networks.small_cnn(), (1, 12, 12))
    model = finish(learn_rounding(seen, plain, iterations=20), seen)
    model.verify()
    codes = model.encode(seen.sample[:4])
    assert model.integers(codes).shape == (4, 10)
