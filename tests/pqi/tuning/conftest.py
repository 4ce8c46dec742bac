from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import pqi
from pqi.tuning.api import Tuned

CLASSES, FEATURES = 4, 12


def blobs(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Four clouds that overlap a little, in [0, 1]^12, and which cloud each point is of."""
    generator = np.random.default_rng(seed)
    centres = np.random.default_rng(99).uniform(0.25, 0.75, (CLASSES, FEATURES))
    labels = generator.integers(0, CLASSES, n)
    points = centres[labels] + generator.normal(0, 0.13, (n, FEATURES))
    return points.clip(0, 1).astype(np.float32), labels


@pytest.fixture(scope="session")
def net() -> nn.Module:
    """A small MLP that has learned the clouds."""
    torch.manual_seed(3)
    made = nn.Sequential(nn.Linear(FEATURES, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, CLASSES))
    x, y = (torch.from_numpy(part) for part in blobs(800, 1))
    optimizer = torch.optim.Adam(made.parameters(), lr=0.02)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(made(x), y).backward()
        optimizer.step()
    return made.eval()


@pytest.fixture(scope="session")
def tuned(net: nn.Module) -> Tuned:
    return pqi.tune(
        net, blobs(300, 1)[0], blobs(600, 2), test=blobs(400, 3), rings="calibrated", minutes=None, evaluations=160,
        accuracy_drop=4.0,
    )  # fmt: skip
