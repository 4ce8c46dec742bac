"""Small networks of every kind that the import supports, written as users write them. Random weights unless given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (as everybody writes it)
from torch import Tensor, nn

from pqi.graph import ops
from pqi.graph.graph import IntegerGraph, Node
from pqi.graph.model import IntegerModel, observe
from pqi.graph.ranges import calibrated_accumulators, prove, proven_accumulators
from pqi.quant.quantizer import Quantizer


def settle(net: nn.Module, shape: Sequence[int], seed: int = 0) -> nn.Module:
    """The network in evaluation mode, with batch-norm statistics that some data have left."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.uniform_(-0.3, 0.3, generator=generator)
                module.momentum = 0.5
        net.train()
        for _ in range(6):
            net(torch.randn(16, *shape, generator=generator))
    return net.eval()


def seeded(make: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """The same weights at every call, without touching the caller's random numbers."""

    @wraps(make)
    def build(*args: Any, **kwargs: Any) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return make(*args, **kwargs)

    return build


@seeded
def mlp(features: int = 20, hidden: int = 32, classes: int = 5) -> nn.Module:
    """Linear, ReLU, dropout; input (N, features)."""
    return nn.Sequential(
        nn.Linear(features, hidden),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, classes),
    ).eval()


class SmallCNN(nn.Module):
    """Convolutions with batch norm, max pooling before the activation, two dense layers; input (N, 1, 12, 12)."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 12, 3, padding="same", bias=False), nn.BatchNorm2d(12)
        self.fc1, self.fc2 = nn.Linear(12 * 3 * 3, 24), nn.Linear(24, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.max_pool2d(self.bn1(self.conv1(x)), 2))
        x = F.max_pool2d(F.relu(self.bn2(self.conv2(x))), 2)
        x = torch.flatten(x, 1)
        return self.fc2(F.relu(self.fc1(x)))


@seeded
def small_cnn(classes: int = 10) -> nn.Module:
    """A SmallCNN with batch-norm statistics."""
    return settle(SmallCNN(classes), (1, 12, 12))


class BasicBlock(nn.Module):
    """Residual block of the CIFAR ResNets, shortcuts of type A: every second pixel, zero channels on both sides."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.extra = (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.extra, self.extra)) if self.extra else x
        return F.relu(out)


class ResNetCIFAR(nn.Module):
    """ResNet-(6n+2) for (N, 3, 32, 32); widths can be smaller for tests."""

    def __init__(self, depth: int = 3, widths: Sequence[int] = (16, 32, 64), classes: int = 10) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False), nn.BatchNorm2d(widths[0])
        before = widths[0]
        for stage, width in enumerate(widths, 1):
            blocks = [
                BasicBlock(before if i == 0 else width, width, 2 if i == 0 and stage > 1 else 1) for i in range(depth)
            ]
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
            before = width
        self.linear = nn.Linear(before, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = F.avg_pool2d(x, x.size(3))
        return self.linear(x.view(x.size(0), -1))


@seeded
def resnet20(arrays: Mapping[str, np.ndarray[Any, Any]] | None = None) -> nn.Module:
    """ResNet-20, with weights from plain arrays if given."""
    net = ResNetCIFAR()
    if arrays is None:
        return settle(net, (3, 32, 32))
    state = {name: torch.from_numpy(np.array(value)) for name, value in arrays.items()}
    net.load_state_dict(state, strict=False)
    missing = set(dict(net.named_parameters())) - set(state)
    if missing:
        raise ValueError(f"arrays lack {sorted(missing)}")
    return net.eval()


def cifar_input(images: np.ndarray[Any, Any]) -> Tensor:
    """(N, 32, 32, 3) uint8 pixels as the published ResNets take them."""
    x = torch.from_numpy(images.astype(np.float32) / 255).permute(0, 3, 1, 2)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return ((x - mean.view(3, 1, 1)) / std.view(3, 1, 1)).contiguous()


class BinaryMLP(nn.Module):
    """h -> sign(h @ W + b) with sign(0) = +1; the last layer without sign. Weights in {-1, +1}, integer biases."""

    def __init__(self, layers: Sequence[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]) -> None:
        super().__init__()
        self.count = len(layers)
        for i, (weight, bias) in enumerate(layers):
            self.register_buffer(f"w{i}", torch.from_numpy(np.asarray(weight, np.float32)))
            self.register_buffer(f"b{i}", torch.from_numpy(np.asarray(bias, np.float32)))

    def forward(self, x: Tensor) -> Tensor:
        for i in range(self.count):
            x = x @ getattr(self, f"w{i}") + getattr(self, f"b{i}")
            if i + 1 < self.count:
                x = torch.where(x >= 0, 1.0, -1.0)
        return x


def bnn(sizes: Sequence[int] = (30, 40, 24, 6), seed: int = 0) -> nn.Module:
    """A random BinaryMLP for integer inputs 0..255."""
    rng = np.random.default_rng(seed)
    layers = [(rng.choice([-1, 1], (a, b)), rng.integers(-9, 10, b)) for a, b in pairwise(sizes)]
    return BinaryMLP(layers).eval()


class MobileBlock(nn.Module):
    """Inverted residual with depthwise convolution and ReLU6, then a mean over space; input (N, 3, 10, 10)."""

    def __init__(self) -> None:
        super().__init__()

        def unit(a: int, b: int, k: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
            return [nn.Conv2d(a, b, k, stride, k // 2, groups=groups, bias=False), nn.BatchNorm2d(b)]

        self.stem = nn.Sequential(*unit(3, 8, 3, 2), nn.ReLU6(inplace=True))
        self.body = nn.Sequential(
            *unit(8, 24, 1), nn.ReLU6(inplace=True), *unit(24, 24, 3, 1, 24), nn.ReLU6(inplace=True), *unit(24, 8, 1)
        )
        self.grouped = nn.Conv2d(8, 16, 3, groups=2, dilation=2, padding=2)
        self.fc = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.body(x)
        return self.fc(F.hardtanh(self.grouped(x), -2.0, 2.0).mean((2, 3)))


@seeded
def mobile_block() -> nn.Module:
    """A MobileBlock with batch-norm statistics."""
    return settle(MobileBlock(), (3, 10, 10))


class ConcatNet(nn.Module):
    """Branches of different kinds joined, as in Inception and DenseNet; input (N, 2, 8, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 4, 1), nn.Conv2d(2, 6, 3, padding=1)
        self.bn = nn.BatchNorm2d(12)
        self.mix = nn.Conv2d(12, 8, 3, stride=2, padding=1)
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([F.relu(self.a(x)), F.relu(self.b(x)), x], dim=1)
        y = F.relu(self.bn(y))
        y = F.adaptive_avg_pool2d(F.relu(self.mix(y)), 1)
        return self.fc(y.squeeze(-1).squeeze(-1))


@seeded
def concat_net() -> nn.Module:
    """A ConcatNet with batch-norm statistics."""
    return settle(ConcatNet(), (2, 8, 8))


def cyclic_graph(bits: int, per_channel: bool = False, seed: int = 0) -> IntegerGraph:
    """Accumulators that wrap on purpose: conv, lookup mod 2^bits, conv + shortcut, lookup, dense; input (2, 6, 6)."""
    generator = torch.Generator().manual_seed(seed)

    def ints(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high + 1, shape, generator=generator)

    def table() -> Tensor:
        return ints(-8, 7, *([4] * per_channel), 1 << bits)

    return IntegerGraph(
        (
            Node("x", ops.Input((2, 6, 6), 0, 255)),
            Node("conv1", ops.Conv2d(ints(-9, 9, 4, 2, 3, 3), ints(-99, 99, 4), (1, 1), (1, 1)), ("x",)),
            Node("wrap1", ops.Lookup(bits, table()), ("conv1",)),
            Node("conv2", ops.Conv2d(ints(-9, 9, 4, 4, 3, 3), ints(-99, 99, 4), (1, 1), (1, 1)), ("wrap1",)),
            Node("short", ops.Conv2d(ints(-9, 9, 4, 2, 1, 1), ints(-99, 99, 4)), ("x",)),
            Node("sum", ops.Add(), ("conv2", "short")),
            Node("wrap2", ops.Lookup(bits, table()), ("sum",)),
            Node("flat", ops.Reshape((144,)), ("wrap2",)),
            Node("fc", ops.Dense(ints(-9, 9, 5, 144), ints(-99, 99, 5)), ("flat",)),
        ),
        "fc",
    )


def integer_model(graph: IntegerGraph, rings: str = "proven", margin_bits: int = 0) -> IntegerModel:
    """A graph that takes the codes 0 to 255 as they are; calibrated on 32 random inputs if so asked."""
    proof = prove(graph)
    accumulators = proven_accumulators(graph, proof)
    if rings == "calibrated":
        codes = torch.randint(0, 256, (32, *graph.input.shape), generator=torch.Generator().manual_seed(0))
        accumulators = calibrated_accumulators(graph, proof, observe(graph, codes), margin_bits)
    return IntegerModel(graph, accumulators, Quantizer(1.0, 0.5, 256, None, signed=False), 1.0, rings)
