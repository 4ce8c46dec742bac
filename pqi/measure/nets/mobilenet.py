"""MobileNetV1 (Howard et al., 2017): depthwise convolutions, each followed by one of 1x1."""

from __future__ import annotations

from torch import nn

_LAYERS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))


def mobilenet(multiplier: float = 0.25) -> nn.Sequential:
    """(N, 3, H, W) -> (N, 1000); every width times ``multiplier``."""
    before = int(32 * multiplier)
    layers = _unit(nn.Conv2d(3, before, 3, 2, 1, bias=False), before)
    for width, stride in _LAYERS:
        after = int(width * multiplier)
        layers += _unit(nn.Conv2d(before, before, 3, stride, 1, groups=before, bias=False), before)
        layers += _unit(nn.Conv2d(before, after, 1, bias=False), after)
        before = after
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 1000))


def _unit(convolution: nn.Module, width: int) -> list[nn.Module]:
    return [convolution, nn.BatchNorm2d(width), nn.ReLU()]
