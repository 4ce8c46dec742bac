"""Private training: what leaves the examples is bounded and noisy, the account is right, and it still learns."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch
from torch import nn

import pqi
from pqi.audit.case import Data
from pqi.audit.defences.private_training import _coins, _Training, noise_for, private_training, spent
from pqi.audit.errors import AuditError

accounting = pytest.importorskip("dp_accounting")


def _net(seed: int = 0, inputs: int = 64, classes: int = 10) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(inputs, 24), nn.ReLU(), nn.Linear(24, classes))


def _data(n: int = 40) -> Data:
    generator = np.random.default_rng(1)
    return Data(generator.random((n, 64)), generator.integers(0, 10, n))


def _training(net: nn.Module, data: Data, noise: float = 1.0, clip: float = 0.1, sampled: float = 1.0) -> _Training:
    return _Training(net, data, noise, clip, sampled, _coins(3))


def _codes(work: _Training) -> torch.Tensor:
    values = {name: p.detach() for name, p in work.named.items()}
    found = work._clipped(values, torch.arange(len(work.y)))
    return torch.cat([g.flatten(1) for g in found.values()], dim=1).to(torch.float64)


def test_each_example_gives_whole_numbers_of_bounded_norm_along_its_gradient() -> None:
    net, data = _net(), _data()
    work = _training(net, data)
    codes = _codes(work)
    assert torch.equal(codes, codes.round())
    assert codes.norm(dim=1).max() <= work.codes
    for row in (0, 7):
        net.zero_grad()
        x, y = torch.tensor(data.x[row : row + 1], dtype=torch.float32), torch.tensor(data.y[row : row + 1])
        nn.functional.cross_entropy(net(x), y).backward()
        own = torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None]).to(torch.float64)
        assert own.norm() > work.clip  # so that clipping is what is looked at
        likeness = torch.nn.functional.cosine_similarity(own, codes[row], dim=0)
        assert likeness > 0.9999
        assert codes[row].norm() > 0.99 * work.codes


def test_a_gradient_within_the_clip_keeps_its_length() -> None:
    work = _training(_net(), _data(), clip=1000.0)
    free = _training(_net(), _data(), clip=2000.0)
    ratio = _codes(work).norm(dim=1) / _codes(free).norm(dim=1)
    assert torch.allclose(ratio, torch.full_like(ratio, 2.0), rtol=0.2)  # one code is coarse beside so wide a clip


def test_an_example_without_a_finite_gradient_gives_nothing() -> None:
    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.sqrt(self.inner(x).square() * x[:, :1])

    data = Data(np.array([[0.0, 1.0], [1.0, 0.5]]), np.array([0, 1]))
    codes = _codes(_training(Root(), data))
    assert codes[0].abs().sum() == 0
    assert codes[1].norm() > 0


def test_noise_has_the_stated_deviation_and_is_there_though_nobody_is_drawn() -> None:
    net, data = _net(), _data()
    work = _training(net, data, noise=2.0, clip=0.5, sampled=1e-18)
    work.step(torch.optim.SGD(net.parameters(), 0.0))
    sums = torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None]) * (1e-18 * len(data))
    assert float(sums.std()) == pytest.approx(1.0, rel=0.08)
    assert abs(float(sums.mean())) < 0.12


def test_everybody_is_drawn_with_the_stated_chance() -> None:
    work = _training(_net(), _data(400), sampled=0.25)
    counts = np.zeros(400)
    for _ in range(200):
        counts[work._drawn().numpy()] += 1
    assert counts.sum() / (400 * 200) == pytest.approx(0.25, abs=0.01)
    assert counts.min() > 20
    assert len(_training(_net(), _data(), sampled=1.0)._drawn()) == 40


def test_a_seed_repeats_a_run_and_the_record_says_that_it_protects_nobody() -> None:
    runs = [private_training(_net(), _data(), 1.0, epochs=2, batch=10, seed_without_privacy=s) for s in (5, 5, 6)]
    weights = [torch.cat([p.flatten() for p in net.parameters()]) for net, _ in runs]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert not runs[0][1].secret


def test_without_a_seed_noise_is_secret_and_never_the_same() -> None:
    net = _net()
    before = [p.clone() for p in net.parameters()]
    runs = [private_training(net, _data(), 1.0, epochs=1, batch=10) for _ in range(2)]
    first, second = (torch.cat([p.flatten() for p in each.parameters()]) for each, _ in runs)
    assert not torch.equal(first, second)
    assert runs[0][1].secret
    assert runs[0][1].steps == 4
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True))


def test_the_account_is_the_library_s_at_whole_orders() -> None:
    event = accounting.PoissonSampledDpEvent(0.05, accounting.GaussianDpEvent(1.1))
    theirs = accounting.rdp.RdpAccountant().compose(event, 400).get_epsilon(1e-5)
    epsilon, order = spent(1.1, 0.05, 400, 1e-5)
    assert theirs <= epsilon * (1 + 1e-9) <= 1.05 * theirs
    assert order == int(order)
    assert spent(1.1, 0.05, 800, 1e-5)[0] > epsilon


@pytest.mark.parametrize("v", [1, 2, 3])
def test_the_sampled_discrete_gaussian_diverges_as_the_continuous_one_does_at_whole_orders(v: int) -> None:
    q, variance, x = 0.1, 3.0**2, np.arange(-100, 101, dtype=np.float64)
    base = np.exp(-(x**2) / (2 * variance))
    base /= base.sum()
    mixed = (1 - q) + q * np.exp((2 * x * v - v * v) / (2 * variance))  # by what the sampled law is larger than base
    for order in (2, 3, 8):
        known = sum(
            math.comb(order, k) * (1 - q) ** (order - k) * q**k * math.exp((k * k - k) * v * v / (2 * variance))
            for k in range(order + 1)
        )
        assert np.sum(base * mixed**order) == pytest.approx(known, rel=1e-9)
        assert np.sum(base * mixed ** (1.0 - order)) <= known * (1 + 1e-9)


def test_the_noise_for_an_epsilon_is_the_least() -> None:
    noise = noise_for(3.0, 0.1, 50, 1e-4)
    assert spent(noise, 0.1, 50, 1e-4)[0] <= 3.0 < spent(noise - 0.002, 0.1, 50, 1e-4)[0]
    with pytest.raises(AuditError, match="more noise than 100"):
        noise_for(1e-6, 1.0, 10_000, 1e-5)


def test_it_learns_digits_and_is_quantized_like_any_other_network() -> None:
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    x, y = digits.data / 16, digits.target.astype(np.int64)
    noise = noise_for(8.0, 0.2, 100, 1e-4)
    net, cost = private_training(
        _net(), Data(x[:1200], y[:1200]), noise, 0.5, 20, 240, delta=1e-4, seed_without_privacy=1
    )
    assert cost.epsilon <= 8.0
    assert cost.sampled == 0.2
    model = pqi.quantize(net, x[1200:1300])
    assert (model.predict(x[1300:], on_saturation="silent").argmax(axis=1) == y[1300:]).mean() > 0.75


def test_what_cannot_be_private_is_refused() -> None:
    mixing = nn.Sequential(nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 10))
    with pytest.raises(AuditError, match="1 normalizes over the batch"):
        private_training(mixing, _data(), 1.0, batch=10)
    with pytest.raises(AuditError, match=r"noise = 0.0 lies within 0.01"):
        private_training(_net(), _data(), 0.0, batch=10)
    with pytest.raises(AuditError, match=r"batch = 41 \(1 .. 40\)"):
        private_training(_net(), _data(), 1.0, batch=41)
    with pytest.raises(AuditError, match="no parameter"):
        private_training(_net().requires_grad_(False), _data(), 1.0, batch=10)


def test_a_missing_library_is_named_before_anything_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    told: list[int] = []
    with pytest.raises(AuditError, match=r"dp_accounting.*\[audit\]"):
        private_training(_net(), _data(), 1.0, batch=10, report=lambda step, steps: told.append(step))
    assert not told
