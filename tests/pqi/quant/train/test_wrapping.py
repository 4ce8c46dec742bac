"""Wrap-around networks: accumulators mod 2^k on purpose, exact by definition."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import pqi.program as program
from pqi.graph.errors import QuantizationError
from pqi.graph.graph import OUTPUT
from pqi.graph.ops import Conv2d, Lookup
from pqi.quant.calibrate import calibrate
from pqi.quant.train.cyclic import WrappingGraph, cyclic
from pqi.quant.train.loop import Schedule
from pqi.quant.train.wrapping import Wrapping, best_steps, plan_for, wraparound
from tests.pqi.program import lockstep
from tests.pqi.quant.train import trainkit

X, Y = trainkit.bars(256)
HELD = trainkit.bars(256, seed=9)


@given(n=st.integers(-5000, 5000), bits=st.integers(4, 12), slope=st.sampled_from([1.0, 2.0, 4.0, 7.5]))
def test_the_activation_knows_only_the_residue(n: int, bits: int, slope: float) -> None:
    here, there = (float(cyclic(torch.tensor([float(v)]), bits, slope)) for v in (n, n + (1 << bits)))
    assert here == there
    half = 1 << (bits - 1)
    z = (n + half) % (2 * half) - half
    assert here == (
        z if abs(z) <= half * slope / (slope + 1) else pytest.approx(slope * (half - abs(z)) * (1 if z > 0 else -1))
    )


def test_the_activation_has_no_jump_and_is_zero_where_residues_wrap() -> None:
    fine = torch.arange(-1024, 1024) / 4.0
    assert float(cyclic(fine, 8, 4.0).diff().abs().max()) <= 1.0 + 1e-6
    assert cyclic(torch.tensor([-128.0, 0.0, 128.0, 384.0]), 8, 4.0).tolist() == [0.0] * 4


def test_its_gradient_is_its_slope() -> None:
    n = torch.tensor([-120.0, -50.0, 60.0, 110.0, 200.0], requires_grad=True)
    cyclic(n, 8, 4.0).sum().backward()
    assert n.grad is not None and n.grad.tolist() == [-4.0, 1.0, 1.0, -4.0, 1.0]


def disturbed(wrapping: Wrapping) -> tuple[WrappingGraph, Tensor]:
    seen = calibrate(trainkit.taught(), X, input_bits=5)
    module = WrappingGraph(plan_for(seen, wrapping), wrapping.slope)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return module.eval(), torch.from_numpy(seen.quantizer.saturating_codes(X[:40])[0])


@pytest.mark.parametrize("ring_bits", [5, 8, 10])
def test_what_is_trained_is_what_runs(ring_bits: int) -> None:
    module, codes = disturbed(Wrapping(ring_bits, 3, 3))
    graph = module.lower()
    with torch.no_grad():
        assert torch.equal(module(codes).long(), graph.run(codes))


def test_accumulators_do_wrap_and_private_answers_stay_exact() -> None:
    trained = wraparound(trainkit.taught(), X, X, Y, Wrapping(6, 3, 3), Schedule(epochs=1, batch=64))
    model = trained.model
    lookups = {n.name for n in model.graph.nodes if isinstance(n.op, Lookup)}
    shares = model.wraps(X[:32])
    assert max(shares[name] for name in lookups) > 0.001
    codes = model.encode(X[:5], "silent")
    compiled = program.compile(model, "additive2")
    assert compiled.exact and torch.equal(lockstep.run(model, compiled, codes).answer, model.integers(codes))


def test_every_convolution_runs_in_the_ring_asked_for_and_the_answer_does_not_wrap() -> None:
    trained = wraparound(trainkit.taught(), X, X, Y, Wrapping(8, 3, 3), Schedule(epochs=1, batch=128))
    model = trained.model
    assert {model.rings[n.name] for n in model.graph.nodes if isinstance(n.op, Conv2d)} == {8}
    assert all(n.op.bits <= 8 for n in model.graph.nodes if isinstance(n.op, Lookup))
    assert model.accumulators[OUTPUT] >= model.verify().proven_bits[OUTPUT]


def test_training_makes_sense_of_narrow_rings() -> None:
    trained = wraparound(trainkit.taught(), X, X, Y, Wrapping(8, 2, 3), Schedule(epochs=6, batch=32), validation=HELD)
    assert trainkit.accuracy(trained.model.predict(HELD[0], "silent"), HELD[1]) > 0.8
    assert trained.history[-1].accuracy == pytest.approx(
        trainkit.accuracy(trained.model.predict(HELD[0], "silent"), HELD[1])
    )
    assert trained.history[-1].loss < trained.history[0].loss


def test_steps_are_those_of_least_error() -> None:
    weight = torch.tensor([[1.0, -1.0, 0.0, 0.0], [4.0, 2.0, -4.0, 0.1]], dtype=torch.float64)
    step = best_steps(weight, 1)
    assert float(step[0]) == 1.0
    coarse = [float((((weight[1] / s).round().clamp(-1, 1) * s - weight[1]) ** 2).sum()) for s in (1.0, 2.0, 3.0, 4.0)]
    own = float((((weight[1] / step[1]).round().clamp(-1, 1) * step[1] - weight[1]) ** 2).sum())
    assert own <= min(coarse) + 0.02


class Signs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.sign(self.a(x)))


@pytest.mark.parametrize(
    ("net", "shape", "layer"),
    [
        (Signs(), (8,), "'a'"),
        (nn.Sequential(nn.Linear(8, 6), nn.ReLU()), (8,), "'0'|'1'"),
        (
            nn.Sequential(nn.Conv2d(1, 2, 3), nn.AvgPool2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(18, 2)),
            (1, 8, 8),
            "scale",
        ),
    ],
)
def test_networks_of_another_form_are_refused_by_layer(net: nn.Module, shape: tuple[int, ...], layer: str) -> None:
    x = torch.randn(32, *shape, generator=torch.Generator().manual_seed(0))
    with pytest.raises(QuantizationError, match=f"({layer}).*cannot wrap around"):
        wraparound(net, x, x, None)


@pytest.mark.parametrize("wrong", [{"ring_bits": 3}, {"weight_bits": 1}, {"activation_bits": 7}, {"slope": 0.0}])
def test_a_wrapping_explains_what_it_refuses(wrong: dict[str, float]) -> None:
    with pytest.raises(QuantizationError, match=next(iter(wrong))):
        Wrapping(**wrong)  # type: ignore[arg-type]
