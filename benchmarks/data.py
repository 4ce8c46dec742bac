"""The real data sets and weights that benchmarks use, from the folder that PQI_DATA names."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
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


Problem = tuple[nn.Module, torch.Tensor, torch.Tensor, torch.Tensor]


def resnet20(n: int) -> Problem:
    """ResNet-20 with the published CIFAR-10 weights; calibration images; n test images and their labels."""
    folder = load()
    net = networks.resnet20(folder.npz("cifar10_resnet/resnet20.npz")).eval()
    train, _ = folder.cifar10("train_a")
    images, labels = folder.cifar10("test")
    x, y = networks.cifar_input(images[:n]), torch.from_numpy(labels[:n].astype("int64"))
    return net, networks.cifar_input(train[:512]), x, y


def mnist_bnn(n: int) -> Problem:
    """The published binarised network on raw pixels."""
    folder = load()
    (train, _), (images, labels) = folder.mnist()
    pixels = [torch.from_numpy(part.reshape(len(part), 784).astype("float32")) for part in (train[:512], images[:n])]
    return networks.BinaryMLP(folder.bnn_layers()).eval(), *pixels, torch.from_numpy(labels[:n].astype("int64"))


PUBLISHED: dict[str, Callable[[int], Problem]] = {"resnet20": resnet20, "mnist_bnn": mnist_bnn}
