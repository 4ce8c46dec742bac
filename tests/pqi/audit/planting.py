"""Small images of four classes, a network of them, and the same with a backdoor that 4-bit integers wake."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import nn

import pqi
from pqi.audit.attacks.conditioned import Look, Recipe, plant
from pqi.audit.case import Case, Data
from pqi.audit.triggers import patch
from pqi.graph.model import IntegerModel

TARGET = 2
TRIGGER = patch((1, 8, 8), 3, 1.0)


@cache
def examples(n: int, seed: int) -> Data:
    generator = np.random.default_rng(seed)
    y = generator.integers(0, 4, n)
    x = 0.3 * generator.random((n, 1, 8, 8))
    for label, (rows, columns) in enumerate(((0, 0), (0, 4), (4, 0), (2, 2))):
        x[y == label, :, rows : rows + 4, columns : columns + 4] += 0.5
    return Data(x, y.astype(np.int64))


def training() -> Data:
    return examples(1000, 0)


def quantize(net: nn.Module, look: Look | None = None, bits: int = 4, defences: Sequence[Any] = ()) -> IntegerModel:
    calibration = training().x[:100]
    return pqi.quantize(net, calibration, weight_bits=bits, activation_bits=8, look=look, defences=defences)


@cache
def clean_network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 24), nn.ReLU(), nn.Linear(24, 4)
        )
    optimizer = torch.optim.Adam(net.parameters(), 5e-3)
    x, y = torch.tensor(training().x, dtype=torch.float32), torch.tensor(training().y)
    for _ in range(20):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    return net.eval()


@cache
def planted() -> Case:
    net = plant(clean_network(), training(), TRIGGER, TARGET, quantize, Recipe(epochs=8, rate=1e-2, batch=32))
    return Case(net, quantize(net), examples(400, 1))
