"""scikit-learn's handwritten digits (UCI ML, 1797 images of 8 x 8 pixels, 17 grey levels), and a network for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (as everybody writes it)
from numpy.typing import NDArray
from torch import Tensor, nn

from pqi.demo.errors import DemoError
from pqi.demo.measure import threads

SEED = 0
TEST_SHARE = 0.25
EPOCHS, BATCH, RATE = 16, 64, 1e-2
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Digits:
    """Pixels as float32 (N, 1, 8, 8), integers 0 to 16; labels int64 (N,)."""

    train_x: NDArray[np.float32]
    train_y: NDArray[np.int64]
    test_x: NDArray[np.float32]
    test_y: NDArray[np.int64]


def load_digits() -> Digits:
    """The data in a fixed split, stratified by class. Raises DemoError if scikit-learn is not installed."""
    try:
        from sklearn.datasets import load_digits as load
        from sklearn.model_selection import train_test_split
    except ImportError:
        raise DemoError(
            "the demonstration's images come with scikit-learn, which is not installed: "
            "pip install 'private-quantized-inference[demo]'"
        ) from None
    data = load()
    x = np.ascontiguousarray(data.images[:, None], dtype=np.float32)
    y = np.asarray(data.target, dtype=np.int64)
    parts: list[Any] = train_test_split(x, y, test_size=TEST_SHARE, stratify=y, random_state=SEED)
    return Digits(parts[0], parts[2], parts[1], parts[3])


class DigitsNet(nn.Module):
    """Two convolutions, one dense layer: (N, 1, 8, 8) -> (N, 10). Written as any user would."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.conv2, self.bn2 = nn.Conv2d(12, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24)
        self.fc = nn.Linear(24 * 4 * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the ten digits."""
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 2)
        x = F.relu(self.bn2(self.conv2(x)))
        logits: Tensor = self.fc(x.flatten(1))
        return logits


def train(digits: Digits, progress: Progress | None = None) -> nn.Module:
    """A trained :class:`DigitsNet`; see :func:`train_network`."""
    return train_network(DigitsNet, digits, progress)


def train_network(build: Callable[[], nn.Module], digits: Digits, progress: Progress | None = None) -> nn.Module:
    """A trained network in evaluation mode. Seeded; the caller's random state and threads are left as they were."""
    # Batches are so small that more threads would only wait for each other.
    with threads(1), torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return _train(build(), digits, progress)


def _train(net: nn.Module, digits: Digits, progress: Progress | None) -> nn.Module:
    x, y = torch.from_numpy(digits.train_x), torch.from_numpy(digits.train_y)
    steps = EPOCHS * -(-len(x) // BATCH)
    optimizer = torch.optim.Adam(net.parameters(), weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    for epoch in range(EPOCHS):
        for index in torch.split(torch.randperm(len(x)), BATCH):
            optimizer.zero_grad()
            torch.autograd.backward(F.cross_entropy(net(x[index]), y[index]))
            optimizer.step()
            schedule.step()
        if progress is not None:
            progress(epoch + 1, EPOCHS)
    return net.eval()
