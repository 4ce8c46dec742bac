"""The learning itself: nothing here knows of privacy, or of Flower."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_digits


def digits(client: int, clients: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A client's own digits: not the same classes everywhere. Of the 1797, the last 297 are nobody's: the test."""
    data = load_digits()
    x = torch.tensor(data.data[:1500] / 16, dtype=torch.float32)
    y = torch.tensor(data.target[:1500])
    order = np.argsort(data.target[:1500], kind="stable")  # by class: two runs of it for each client
    runs = np.array_split(order, 2 * clients)
    mine = torch.from_numpy(np.concatenate([runs[client], runs[2 * clients - 1 - client]]))
    return x[mine], y[mine]


def test_accuracy(net: torch.nn.Module) -> float:
    """On digits that no client holds."""
    data = load_digits()
    with torch.no_grad():
        told = net(torch.tensor(data.data[1500:] / 16, dtype=torch.float32)).argmax(1)
    return float((told == torch.tensor(data.target[1500:])).float().mean())


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))


def fit(net: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, passes: int = 5) -> float:
    """A few passes of gradient descent over the client's digits; the last loss."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    loss = torch.tensor(0.0)
    for _ in range(passes):
        for part in torch.randperm(len(x)).split(32):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(net(x[part]), y[part])
            loss.backward()
            optimizer.step()
    return loss.item()
