from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import pqi

FEATURES = (1, 4, 4)


def small_net() -> nn.Module:
    """Convolution, maximum, dense: one layer of each kind that costs something."""
    generator = torch.Generator().manual_seed(1)
    net = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 5))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 3)
    return net.eval()


def samples(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (n, *FEATURES)).astype(np.float32)


@pytest.fixture(scope="session")
def model() -> pqi.IntegerModel:
    return pqi.quantize(small_net(), samples(200), input_range=(-1.0, 1.0))


@pytest.fixture
def model_file(model: pqi.IntegerModel, tmp_path: Path) -> Path:
    model.save(tmp_path / "model.pqi")
    return tmp_path / "model.pqi"


@pytest.fixture
def calibration(tmp_path: Path) -> Path:
    labels = np.arange(200) % 5
    np.savez(tmp_path / "calibration.npz", x=samples(200), y=labels)
    return tmp_path / "calibration.npz"
