"""Training that no single example can be told from: DP-SGD (Abadi et al., CCS 2016), with exact noise.

In each step every example takes part with probability q = batch / N, independently; its gradient is clipped to norm C;
the sum gets Gaussian noise of deviation z C; the rest is ordinary SGD with momentum. Whatever is made of the network
afterwards costs nothing more: ``pqi.quantize`` is post-processing. But *everything that it reads counts*: ranges and
learned rounding come from the calibration data, which must not be the private examples. Calibrate with public inputs:

    net, spent = private_training(net, private, noise=1.0)
    model = pqi.quantize(net, public_inputs)

What is exact. A clipped gradient is cut towards zero to integers of norm at most A = C in codes, which needs no bound
on rounding; the noise is a discrete Gaussian (``pqi.federated.privacy``), sampled exactly; sums are integers. So no
gap between real and floating-point noise is left (Mironov, CCS 2012); cutting costs half a code a value, which matters
from some ten million parameters on. For a shift by a whole vector v the discrete
Gaussian has E[(p_v / p_0)^k] = exp((k^2 - k) |v|^2 / (2 sigma^2)) at whole k, as the continuous one has, and x -> v - x
maps the lattice to itself: the sampled Gaussian's divergence at whole orders (Mironov, Talwar, Zhang 2019) holds as it
stands. ``dp_accounting`` adds it up, at whole orders only.

Neighbouring runs differ in one example's whole contribution, there or zero, so N is public; so are all settings.
Hyperparameters chosen by looking at private results are not in the account, nor is a published training loss.

It trains a float network, with labels, so it is no option of ``pqi.quantize``. ``pqi.finetune`` with clipped and noisy
gradients is not offered either: it learns from the float network's answers, and what that network remembers passes
through them whatever is done to gradients. Train privately first; then fine-tuning on public inputs is post-processing.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from pqi.audit.case import Data
from pqi.audit.errors import AuditError
from pqi.federated.coins import Coins
from pqi.federated.privacy.discrete_gaussian import DistributedDiscreteGaussian
from protocols.prg import KEY_BYTES, Key

Report = Callable[[int, int], None]
ORDERS = tuple(float(order) for order in (*range(2, 65), 80, 96, 128, 192, 256, 512))
_CODES = 1 << 15  # what the clip is in codes, or less where the noise would leave its sampler's range
_CHUNK = 64  # gradients held at a time, each as long as the network


@dataclass(frozen=True)
class Spent:
    """What training has cost each example: (epsilon, delta) by the divergence at ``order``.

    noise: z. sampled: q. steps: taken. secret: whether sampling and noise came from the operating system; without that
    the figure is what a secret run of these settings would cost, and *this* run protects nobody.
    """

    epsilon: float
    delta: float
    order: float
    noise: float
    sampled: float
    steps: int
    secret: bool


def private_training(
    net: nn.Module,
    data: Data,
    noise: float,
    clip: float = 1.0,
    epochs: int = 20,
    batch: int = 250,
    *,
    delta: float = 1e-5,
    rate: float = 0.5,
    momentum: float = 0.9,
    seed_without_privacy: int | None = None,
    report: Report | None = None,
) -> tuple[nn.Module, Spent]:
    """A trained copy of ``net``, and what it cost; epochs N / batch steps of cross-entropy.

    net: with weights drawn without a look at the data; logits (N, classes), no batch normalization (it mixes examples).
    data: the private examples. noise: z, the noise's deviation by the clip; ``noise_for`` finds it for an epsilon.
    batch: the expected number. delta: far below 1 / N. rate, momentum: of SGD on the noisy mean. seed_without_privacy:
    for experiments, a seed for sampling and noise; whoever knows it can take the noise away. report(step, steps): told
    after each.

    Cost: as many gradients as ordinary training takes, each on its own, and some 10 ms a million parameters for noise.
    Raises AuditError for settings out of range, batch normalization, or a missing ``dp_accounting``.
    """
    n, steps = len(data), max(1, round(epochs * len(data) / max(batch, 1)))
    if min(epochs, batch) < 1 or batch > n or not (clip > 0 and rate > 0 and 0 <= momentum < 1):
        raise AuditError(
            f"epochs = {epochs}, batch = {batch} (1 .. {n}), clip = {clip}, rate = {rate}: all are to be positive, "
            f"momentum = {momentum} within [0, 1)"
        )
    if not any(p.requires_grad for p in net.parameters()):
        raise AuditError("no parameter of this network is trained (requires_grad)")
    mixing = [name for name, part in net.named_modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    if mixing:
        raise AuditError(f"{mixing[0]} normalizes over the batch, so examples touch each other: use nn.GroupNorm")
    cost = spent(noise, batch / n, steps, delta)  # says now, not after training, what cannot be accounted for
    work = _Training(deepcopy(net).train(), data, noise, clip, batch / n, _coins(seed_without_privacy))
    optimizer = torch.optim.SGD(work.named.values(), rate, momentum)
    for step in range(steps):
        work.step(optimizer)
        if report is not None:
            report(step + 1, steps)
    secret = seed_without_privacy is None
    return work.net.eval(), Spent(cost[0], delta, cost[1], noise, batch / n, steps, secret)


def spent(noise: float, sampled: float, steps: int, delta: float) -> tuple[float, float]:
    """Epsilon at delta, and the order that gives it: ``steps`` Gaussians of multiplier ``noise``, Poisson-sampled."""
    if not 0.01 <= noise <= 100 or not 0 < sampled <= 1 or steps < 1 or not 0 < delta < 1:
        raise AuditError(
            f"noise = {noise} lies within 0.01 .. 100, the share sampled = {sampled} within (0, 1], steps = {steps} "
            f"from 1 on, delta = {delta} between 0 and 1"
        )
    accounting = _accounting()
    accountant = accounting.rdp.RdpAccountant(ORDERS)
    event = accounting.PoissonSampledDpEvent(sampled, accounting.GaussianDpEvent(noise))
    epsilon, order = accountant.compose(event, steps).get_epsilon_and_optimal_order(delta)
    return float(epsilon), float(order)


def noise_for(epsilon: float, sampled: float, steps: int, delta: float) -> float:
    """The least noise, to three places, that costs at most epsilon; raises AuditError where 100 is not enough."""
    if spent(100.0, sampled, steps, delta)[0] > epsilon:
        raise AuditError(f"epsilon = {epsilon} at delta = {delta} needs more noise than 100 times the clip: ask more")
    low, high = 0.01, 100.0
    while high - low > 5e-4:
        middle = (low + high) / 2
        low, high = (low, middle) if spent(middle, sampled, steps, delta)[0] <= epsilon else (middle, high)
    return high


class _Training:
    def __init__(self, net: nn.Module, data: Data, noise: float, clip: float, sampled: float, coins: Coins) -> None:
        self.net, self.coins, self.sampled = net, coins, sampled
        self.x, self.y = torch.as_tensor(data.x, dtype=torch.float32), torch.as_tensor(data.y)
        self.named = {name: p for name, p in net.named_parameters() if p.requires_grad}
        self.codes = min(_CODES, int(_CODES / noise))
        self.unit, self.clip = clip / self.codes, clip
        self.mechanism = DistributedDiscreteGaussian(noise)
        self.variance = self.mechanism.variance(self.codes, 1)
        self.each = vmap(grad(self._loss), in_dims=(None, 0, 0), randomness="different")

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Sample, clip, add up, add noise, go."""
        rows, values = self._drawn(), {name: p.detach() for name, p in self.named.items()}
        total = {name: torch.zeros(p.shape, dtype=torch.float64) for name, p in values.items()}
        for part in torch.split(rows, _CHUNK):
            for name, codes in self._clipped(values, part).items():
                total[name] += codes.sum(dim=0)  # exact: whole numbers, at most _CHUNK times 2^15 < 2^24
        share = self.unit / (self.sampled * len(self.y))
        for name, p in self.named.items():
            noise = self.mechanism.sample(self.variance, p.numel(), self.coins)
            p.grad = ((total[name] + torch.from_numpy(noise).view_as(p)) * share).to(p.dtype)
        optimizer.step()

    def _drawn(self) -> Tensor:
        """Each example with probability floor(2^64 q) / 2^64."""
        words = self.coins.words(len(self.y), np.uint64)
        if self.sampled >= 1:
            return torch.arange(len(self.y))
        return torch.from_numpy(np.flatnonzero(words < np.uint64(int(self.sampled * 2**64))))

    def _clipped(self, values: dict[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
        """Gradients in codes, whole numbers (rows, *shape), of norm at most ``codes`` over all parameters."""
        if not len(rows):
            return {}
        found = self.each(values, self.x[rows], self.y[rows])
        norm = self._norm(found)
        if not norm.isfinite().all():
            found = {name: torch.nan_to_num(g, nan=0.0, posinf=0.0, neginf=0.0) for name, g in found.items()}
            norm = self._norm(found)
        # Cut towards zero, no value grows; the last factor is for what multiplying in float32 may add.
        factor = (self.codes / norm.clamp(min=self.clip) * (1 - 1e-6)).to(torch.float32)
        return {name: g.mul_(factor.view(-1, *(1,) * (g.ndim - 1))).trunc_() for name, g in found.items()}

    @staticmethod
    def _norm(gradients: dict[str, Tensor]) -> Tensor:
        each = [torch.linalg.vector_norm(g.flatten(1), dim=1, dtype=torch.float64) for g in gradients.values()]
        whole: Tensor = torch.linalg.vector_norm(torch.stack(each), dim=0)
        return whole

    def _loss(self, values: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        answer: Tensor = functional_call(self.net, values, (x[None],))
        return nn.functional.cross_entropy(answer, y[None])


def _coins(seed: int | None) -> Coins:
    """Secret ones, or of a seed that everybody may know."""
    return Coins() if seed is None else Coins(Key((seed % (1 << 64)).to_bytes(KEY_BYTES, "big")))


def _accounting() -> Any:
    try:
        import dp_accounting
        import dp_accounting.rdp
    except ModuleNotFoundError as error:
        raise AuditError(
            f"private training needs {error.name}, which adds up what steps cost: "
            "pip install 'private-quantized-inference[audit]'"
        ) from error
    return dp_accounting
