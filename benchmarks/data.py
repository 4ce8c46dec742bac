"""The real data sets and weights that benchmarks use, from the folder that PQI_DATA names."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests import networks


def load() -> ModuleType:
    """The folder's own ``load.py``."""
    folder = os.environ.get("PQI_DATA")
    if not folder:
        raise SystemExit("set PQI_DATA to the folder with the real data sets")
    spec = importlib.util.spec_from_file_location("pqi_shared_data", Path(folder) / "load.py")
    if spec is None or spec.loader is None:
        raise SystemExit(f"{folder}/load.py cannot be imported")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def resnet20() -> nn.Module:
    """ResNet-20 with the published CIFAR-10 weights."""
    return networks.resnet20(load().npz("cifar10_resnet/resnet20.npz")).eval()


def cifar10(part: str = "test", n: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised images and labels."""
    images, labels = load().cifar10(part)
    return networks.cifar_input(images[:n]), torch.from_numpy(labels[:n].astype("int64"))
