"""Residual networks: 20 layers for CIFAR, 18 and 50 layers for ImageNet (He et al., CVPR 2016)."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F  # noqa: N812  (as everybody writes it)
from torch import Tensor, nn

Block = Callable[[int, int, int], nn.Module]  # of input channels, width, stride


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)


def _stage(block: Block, inputs: int, width: int, stride: int, depth: int, expansion: int = 1) -> nn.Sequential:
    """``depth`` blocks, of which the first changes the shape."""
    after = expansion * width
    return nn.Sequential(block(inputs, width, stride), *(block(after, width, 1) for _ in range(1, depth)))


class CifarBlock(nn.Module):
    """Two convolutions; the shortcut takes every second pixel and adds channels of zeros (option A)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(inputs, outputs, 3, stride), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = _conv(outputs, outputs, 3), nn.BatchNorm2d(outputs)
        self.extra = (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, outputs, H / stride, W / stride)."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.extra, self.extra)) if self.extra else x
        return F.relu(out + shortcut)


class CifarResNet(nn.Module):
    """Three stages of ``depth`` blocks with 16, 32 and 64 channels: (N, 3, 32, 32) -> (N, 10)."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(3, 16, 3), nn.BatchNorm2d(16)
        self.layer1 = _stage(CifarBlock, 16, 16, 1, depth)
        self.layer2 = _stage(CifarBlock, 16, 32, 2, depth)
        self.layer3 = _stage(CifarBlock, 32, 64, 2, depth)
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Images to classes."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(F.avg_pool2d(x, 8).flatten(1))  # type: ignore[no-any-return]


class BasicBlock(nn.Module):
    """Two convolutions of 3x3; a convolution of 1x1 in the shortcut where the shape changes."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(inputs, width, 3, stride), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = _conv(width, width, 3), nn.BatchNorm2d(width)
        self.downsample = _shortcut(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, width, H / stride, W / stride)."""
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.downsample(x))


class Bottleneck(nn.Module):
    """Convolutions of 1x1, 3x3 (with the stride) and 1x1 to four times the width."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(inputs, width, 1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = _conv(width, width, 3, stride), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = _conv(width, 4 * width, 1), nn.BatchNorm2d(4 * width)
        self.downsample = _shortcut(inputs, 4 * width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, 4 width, H / stride, W / stride)."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return F.relu(self.bn3(self.conv3(out)) + self.downsample(x))


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    if inputs == outputs and stride == 1:
        return nn.Identity()
    return nn.Sequential(_conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))


class ResNet(nn.Module):
    """Four stages of blocks behind a convolution of 7x7 and a pooling: (N, 3, H, W) -> (N, 1000)."""

    def __init__(self, block: Block, expansion: int, depths: tuple[int, ...]) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(3, 64, 7, 2), nn.BatchNorm2d(64)
        self.pool = nn.MaxPool2d(3, 2, 1)
        wide = [expansion * width for width in (64, 128, 256, 512)]
        self.layer1 = _stage(block, 64, 64, 1, depths[0], expansion)
        self.layer2 = _stage(block, wide[0], 128, 2, depths[1], expansion)
        self.layer3 = _stage(block, wide[1], 256, 2, depths[2], expansion)
        self.layer4 = _stage(block, wide[2], 512, 2, depths[3], expansion)
        self.average, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(wide[3], 1000)

    def forward(self, x: Tensor) -> Tensor:
        """Images to classes."""
        x = self.pool(F.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.average(x).flatten(1))  # type: ignore[no-any-return]


def resnet20() -> CifarResNet:
    """ResNet-20 for CIFAR-10, shortcuts without weights."""
    return CifarResNet(3)


def resnet18() -> ResNet:
    """ResNet-18 for ImageNet."""
    return ResNet(BasicBlock, BasicBlock.expansion, (2, 2, 2, 2))


def resnet50() -> ResNet:
    """ResNet-50 for ImageNet, the stride in the convolutions of 3x3 as everybody builds it today."""
    return ResNet(Bottleneck, Bottleneck.expansion, (3, 4, 6, 3))
