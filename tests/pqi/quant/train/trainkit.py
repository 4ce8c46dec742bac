"""A small problem that can be learnt in seconds: bars at four places, in noise."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from tests import networks


def bars(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images (n, 1, 8, 8) with a bar in one of four places, and which."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (n,), generator=generator)
    x = torch.randn(n, 1, 8, 8, generator=generator)
    for place in range(4):
        x[labels == place, :, 2 * place : 2 * place + 2] += 0.7
    return x, labels


class Residual(nn.Module):
    """Stem, one block with a shortcut that is added, pooling, a dense layer."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.conv1, self.conv2 = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.fc = nn.Linear(width * 16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(self.conv2(F.relu(self.conv1(x))) + x)
        return self.fc(F.avg_pool2d(x, 2).flatten(1))


@networks.seeded
def taught(epochs: int = 6) -> nn.Module:
    """A Residual that has learnt the bars in floating point."""
    net, (x, y) = Residual(), bars(512)
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(epochs):
        for rows in torch.arange(512).split(64):
            optimizer.zero_grad()
            F.cross_entropy(net(x[rows]), y[rows]).backward()
            optimizer.step()
    return net.eval()


def accuracy(answers: object, labels: Tensor) -> float:
    """Share of right classes."""
    return float((torch.as_tensor(answers).argmax(1) == labels).double().mean())
