"""Bias correction: the mean of every channel is that of the float network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pqi.graph.floating import Sign, Threshold
from pqi.graph.ops import Conv2d, Dense, Requantize, Scale
from pqi.graph.ops.base import MAX_BIAS
from pqi.quant.calibrate import calibrate
from pqi.quant.correct import corrected
from pqi.quant.lower import lower
from pqi.quant.scheme import Recipe, Scheme
from pqi.quant.stages import Calibration, Lowered
from pqi.quant.walk import Walk
from tests import networks


def prepared(net: nn.Module, shape: tuple[int, ...], **fields: Any) -> tuple[Calibration, Lowered]:
    x = torch.randn(64, *shape, generator=torch.Generator().manual_seed(0))
    seen = calibrate(net.eval(), x)
    return seen, lower(seen, Recipe(Scheme(**{"weight_bits": 3, "activation_bits": 3, "percentile": 99.0, **fields})))


def mean_errors(seen: Calibration, lowered: Lowered) -> dict[str, Tensor]:
    """Float mean minus integer mean of every read accumulator per channel, in the accumulator's units."""
    found = {}
    walk = Walk(seen, lowered, 1 << 30)
    for site in walk.sites():
        axis = walk.floats[site.name].ndim - 1 if isinstance(walk.ops[site.terms[0]], Dense) else 1
        want = walk.floats[site.name].double().movedim(axis, 0).flatten(1).mean(1) / torch.as_tensor(site.scale)
        have = walk.integers[site.name].double().movedim(axis, 0).flatten(1).mean(1) - site.offset
        found[site.name] = want - have
    return found


CASES: list[tuple[Callable[[], nn.Module], tuple[int, ...]]] = [
    (networks.mlp, (20,)),
    (networks.small_cnn, (1, 12, 12)),
    (networks.mobile_block, (3, 10, 10)),
    (networks.concat_net, (2, 8, 8)),
    (lambda: networks.settle(networks.ResNetCIFAR(1, (4, 8, 16)), (3, 16, 16)), (3, 16, 16)),
]


@pytest.mark.parametrize(("make", "shape"), CASES)
def test_every_channel_keeps_its_mean_to_half_a_unit(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    seen, plain = prepared(make(), shape)
    before, after = mean_errors(seen, plain), mean_errors(seen, corrected(seen, plain))
    assert set(before) == set(after) and len(after) >= 3
    assert max(float(e.abs().max()) for e in before.values()) > 2
    assert all(float(e.abs().max()) <= 0.5 + 1e-3 for e in after.values())


@pytest.mark.parametrize(("make", "shape"), CASES)
def test_only_biases_change_and_they_stay_integers(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    seen, plain = prepared(make(), shape)
    better = corrected(seen, plain)
    assert better.scales is plain.scales and better.offsets is plain.offsets and better.grids is plain.grids
    for old, new in zip(plain.graph.nodes, better.graph.nodes, strict=True):
        assert (old.name, old.inputs, old.source, old.op.params()) == (
            new.name,
            new.inputs,
            new.source,
            new.op.params(),
        )
        for name, tensor in old.op.tensors().items():
            if name == "bias":
                bias = new.op.tensors()[name]
                assert bias.dtype == torch.int64 and int(bias.abs().max()) <= MAX_BIAS
            else:
                assert torch.equal(tensor, new.op.tensors()[name])


def test_the_answers_of_coarse_networks_come_closer_to_the_float_ones() -> None:
    net = networks.settle(networks.ResNetCIFAR(2, (8, 12, 16)), (3, 12, 12))
    seen, plain = prepared(net, (3, 12, 12), weight_bits=3, activation_bits=4)
    fresh = torch.randn(64, 3, 12, 12, generator=torch.Generator().manual_seed(9))
    want = seen.placed.graph.run(fresh)

    def error(lowered: Lowered) -> float:
        codes = torch.from_numpy(seen.quantizer.saturating_codes(fresh)[0])
        return float(((lowered.graph.run(codes).double() * lowered.output_scale - want) ** 2).mean())

    assert error(corrected(seen, plain)) < 0.8 * error(plain)


class Binary(nn.Module):
    """A sign in the middle, a threshold after it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.where(self.b(torch.sign(self.a(x))) >= 0, 1.0, -1.0))


def test_what_thresholds_read_is_left_alone() -> None:
    torch.manual_seed(0)
    seen, plain = prepared(Binary(), (6,))
    better = corrected(seen, plain)
    known = seen.placed.graph.by_name()
    read = {n.inputs[0] for n in known.values() if isinstance(n.op, (Threshold, Sign))}
    same = {
        n.name: torch.equal(n.op.bias, better.graph.by_name[n.name].op.tensors()["bias"])
        for n in plain.graph.nodes
        if isinstance(n.op, Dense)
    }
    assert len(read) == 2 and all(same[name] for name in read)
    assert not all(same.values())


def test_an_exact_network_stays_exactly_itself() -> None:
    torch.manual_seed(0)
    seen = calibrate(networks.bnn(), torch.randint(0, 256, (40, 30)).float())
    plain = lower(seen, Recipe())
    for old, new in zip(plain.graph.nodes, corrected(seen, plain).graph.nodes, strict=True):
        assert all(torch.equal(t, new.op.tensors()[name]) for name, t in old.op.tensors().items())


def test_each_layer_is_computed_once_and_once_more_for_its_correction(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, plain = prepared(networks.settle(networks.ResNetCIFAR(2, (4, 6, 8)), (3, 8, 8)), (3, 8, 8))
    calls = dict.fromkeys((Conv2d, Scale, Requantize), 0)
    for kind in calls:
        original = kind.evaluate

        def counted(self: Any, inputs: Any, kind: Any = kind, original: Any = original) -> Tensor:
            calls[kind] += 1
            result: Tensor = original(self, inputs)
            return result

        monkeypatch.setattr(kind, "evaluate", counted)
    corrected(seen, plain)
    count = {kind: sum(isinstance(n.op, kind) for n in plain.graph.nodes) for kind in calls}
    assert calls[Requantize] == count[Requantize]
    assert calls[Conv2d] + calls[Scale] <= 2 * (count[Conv2d] + count[Scale])
