"""Wisconsin breast cancer data (scikit-learn's, 569 cases of 30 measurements), and logistic regression for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (as everybody writes it)
from numpy.typing import NDArray
from torch import nn

from pqi.demo.errors import DemoError
from pqi.demo.measure import threads

SEED = 0
TEST_SHARE = 0.25
EPOCHS, RATE, DECAY = 200, 0.05, 1e-2
FEATURES = 30
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Cancer:
    """Measurements float32 (N, 30), each with mean 0 and variance 1 on the training cases; 1 is benign, int64 (N,).

    What is further than 5 deviations from the mean was moved there.
    """

    train_x: NDArray[np.float32]
    train_y: NDArray[np.int64]
    test_x: NDArray[np.float32]
    test_y: NDArray[np.int64]


def load_cancer() -> Cancer:
    """The data in a fixed split, stratified. Raises DemoError if scikit-learn is not installed."""
    try:
        from sklearn.datasets import load_breast_cancer as load
        from sklearn.model_selection import train_test_split
    except ImportError:
        raise DemoError(
            "the demonstration's cases come with scikit-learn, which is not installed: "
            "pip install 'private-quantized-inference[demo]'"
        ) from None
    x, y = load(return_X_y=True)
    parts: list[Any] = train_test_split(x, y.astype(np.int64), test_size=TEST_SHARE, stratify=y, random_state=SEED)
    mean, deviation = parts[0].mean(0), parts[0].std(0)
    train_x, test_x = (((part - mean) / deviation).clip(-5, 5).astype(np.float32) for part in parts[:2])
    return Cancer(train_x, parts[2], test_x, parts[3])


def train(data: Cancer, progress: Progress | None = None) -> nn.Linear:
    """Logistic regression (N, 30) -> (N, 1): positive is benign. Seeded; leaves the caller's random state as it was."""
    with threads(1), torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        net = nn.Linear(FEATURES, 1)
        x, y = torch.from_numpy(data.train_x), torch.from_numpy(data.train_y).float()
        optimizer = torch.optim.Adam(net.parameters(), RATE, weight_decay=DECAY)
        for epoch in range(EPOCHS):
            optimizer.zero_grad()
            torch.autograd.backward(F.binary_cross_entropy_with_logits(net(x)[:, 0], y))
            optimizer.step()
            if progress is not None:
                progress(epoch + 1, EPOCHS)
    return net.eval()
