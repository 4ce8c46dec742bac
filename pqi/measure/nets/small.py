"""Networks for small images: a multilayer perceptron, LeNet, VGG-16."""

from __future__ import annotations

from torch import nn

_VGG16 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)  # 0: pooling


def mlp() -> nn.Sequential:
    """784-128-128-10 with ReLU: (N, 1, 28, 28) -> (N, 10)."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(784, 128),
        nn.ReLU(),
        nn.Linear(128, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )


def lenet() -> nn.Sequential:
    """20 and 50 maps of 5x5, each with ReLU and 2x2 maxima, then 500 and 10: (N, 1, 28, 28) -> (N, 10).

    The larger LeNet of the literature on private inference (Liu et al., MiniONN, CCS 2017, figure 12).
    """
    return nn.Sequential(
        nn.Conv2d(1, 20, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(20, 50, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(800, 500),
        nn.ReLU(),
        nn.Linear(500, 10),
    )


def vgg16() -> nn.Sequential:
    """13 convolutions with batch norm and ReLU, 5 poolings, dense 512-512-10: (N, 3, 32, 32) -> (N, 10).

    Configuration D of Simonyan and Zisserman (ICLR 2015) for CIFAR: one dense layer of 512 in place of two of 4096.
    """
    layers: list[nn.Module] = []
    before = 3
    for width in _VGG16:
        if width:
            layers += [nn.Conv2d(before, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            before = width
        else:
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
