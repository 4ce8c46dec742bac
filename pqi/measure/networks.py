"""Small networks that figures are measured on: as any user would write them, (N, 1, H, W) -> (N, 10)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from pqi.quant.train.loop import Augment


def digits_mlp() -> nn.Sequential:
    """64-32-10 with ReLU, for images of 8 x 8."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def digits_cnn() -> nn.Sequential:
    """A convolution of 6 maps, ReLU, average pooling and one dense layer, for images of 8 x 8."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(6 * 4 * 4, 10)
    )


def mnist_cnn() -> nn.Sequential:
    """A convolution of 5 maps with stride 2, and dense layers of 100 and 10, for images of 28 x 28.

    The shape of CryptoNets (Gilad-Bachrach et al., ICML 2016) as LoLa uses it (Brutzkus et al., ICML 2019), with ReLU.
    """
    return nn.Sequential(
        nn.Conv2d(1, 5, 5, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(5 * 13 * 13, 100),
        nn.ReLU(),
        nn.Linear(100, 10),
    )


def trained(
    make: Callable[[], nn.Module],
    x: Tensor,
    labels: Tensor,
    *,
    epochs: int,
    batch: int = 32,
    rate: float = 1e-2,
    augment: Augment | None = None,
    seed: int = 0,
) -> nn.Module:
    """A fresh network trained on x (N, ...) and labels (N,), in evaluation mode. Seeded; the caller's state is kept."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net, generator = make().train(), torch.Generator().manual_seed(seed)
        optimizer = torch.optim.Adam(net.parameters(), weight_decay=1e-5)
        steps = epochs * -(-len(x) // batch)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
        for _ in range(epochs):
            for rows in torch.split(torch.randperm(len(x), generator=generator), batch):
                seen = x[rows] if augment is None else augment(x[rows], generator)
                optimizer.zero_grad()
                torch.autograd.backward(functional.cross_entropy(net(seen), labels[rows]))
                optimizer.step()
                schedule.step()
    return net.eval()
