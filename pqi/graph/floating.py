"""The float graph: what a captured network is before it has integers. Same shape rules, real arithmetic.

Operators that only move values (reshape, pad, concat, maximum, ...) are those of the integer graph: they act on any
dtype. Weights are kept in float64 and used in float32, as the network itself would.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from pqi.graph.errors import GraphError
from pqi.graph.ops import Expand, MaxPool2d, Op, Shape, SumPool2d
from pqi.graph.ops.base import single
from pqi.graph.ops.windows import windows_shape

Pair = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Entry(Op):
    """The network's input."""

    kind: ClassVar[str] = "float input"
    inputs_needed: ClassVar[tuple[int, int | None]] = (0, 0)
    shape: Shape

    def infer_shape(self, in_shapes: Sequence[Shape]) -> Shape:
        """The declared shape."""
        return self.shape

    def evaluate(self, inputs: Sequence[Tensor]) -> Tensor:
        """The executor puts the batch in its place."""
        raise GraphError("an input node has no value of its own; the executor puts the batch in its place")


@dataclass(frozen=True, eq=False)
class Linear(Op):
    """Base of the operators with weights: weight and bias are float64, axis 0 of the weight is the output channel."""

    weight: Tensor
    bias: Tensor

    def rescaled(self, factor: Tensor, shift: Tensor) -> Linear:
        """The operator followed by y * factor + shift per output channel, folded into one."""
        shape = (-1,) + (1,) * (self.weight.ndim - 1)
        return replace(self, weight=self.weight * factor.view(shape), bias=self.bias * factor + shift)

    @property
    def channels(self) -> int:
        """Number of output channels."""
        return self.weight.shape[0]


@dataclass(frozen=True, eq=False)
class FloatConv2d(Linear):
    """Convolution with zero padding, as the integer Conv2d."""

    kind: ClassVar[str] = "float conv2d"
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1

    def infer_shape(self, in_shapes: Sequence[Shape]) -> Shape:
        """(O, H', W')."""
        channels, *size = single(self.kind, in_shapes, 3)
        kernel = tuple(self.weight.shape[2:])
        return (
            self.channels,
            *windows_shape(self.kind, channels, size, kernel, self.stride, self.padding, self.dilation),
        )

    def evaluate(self, inputs: Sequence[Tensor]) -> Tensor:
        """The convolution."""
        w, b = self.weight.to(inputs[0].dtype), self.bias.to(inputs[0].dtype)
        return functional.conv2d(inputs[0], w, b, self.stride, self.padding, self.dilation, self.groups)


@dataclass(frozen=True, eq=False)
class FloatDense(Linear):
    """A linear layer on the last axis."""

    kind: ClassVar[str] = "float dense"

    def infer_shape(self, in_shapes: Sequence[Shape]) -> Shape:
        """The last axis becomes O."""
        return (*single(self.kind, in_shapes)[:-1], self.channels)

    def evaluate(self, inputs: Sequence[Tensor]) -> Tensor:
        """The product."""
        return functional.linear(inputs[0], self.weight.to(inputs[0].dtype), self.bias.to(inputs[0].dtype))


@dataclass(frozen=True, eq=False)
class Affine(Linear):
    """y = weight[c] x + bias[c] along ``axis`` (counted without the batch axis; 0 = channel)."""

    kind: ClassVar[str] = "float affine"
    axis: int = 0

    def infer_shape(self, in_shapes: Sequence[Shape]) -> Shape:
        """The input's shape."""
        return single(self.kind, in_shapes)

    def evaluate(self, inputs: Sequence[Tensor]) -> Tensor:
        """The scaled value."""
        x = inputs[0]
        shape = [1] * x.ndim
        shape[self.axis + 1] = self.channels
        return x * self.weight.to(x.dtype).view(shape) + self.bias.to(x.dtype).view(shape)


@dataclass(frozen=True, eq=False)
class FloatSpread(Linear):
    """y[..., c, ...] = weight[c] x + bias[c] for one x per input (shape (1,)), the same at every other place.

    top: the largest code of x; the smallest is 1.
    """

    kind: ClassVar[str] = "float spread"
    top: int
    expand: Expand

    def infer_shape(self, in_shapes: Sequence[Shape]) -> Shape:
        """The shape it is spread over."""
        if single(self.kind, in_shapes) != (1,):
            raise GraphError(f"{self.kind} takes one value, shape (1,); its input is {in_shapes[0]}")
        return self.expand.infer_shape([tuple(self.weight.shape)])

    def evaluate(self, inputs: Sequence[Tensor]) -> Tensor:
        """The weighed value at every place."""
        x = inputs[0]
        return self.expand.evaluate([x * self.weight.to(x.dtype) + self.bias.to(x.dtype)])


@dataclass(frozen=True, eq=False)
class Activation(Op):
    """Base of the elementwise monotone operators; each becomes one Requantize or Step."""

    def infer_shape(self, in_shapes: Sequence[Shape]) -> Shape:
        """The input's shape."""
        return single(self.kind, in_shapes)


@dataclass(frozen=True, eq=False)
class Clamp(Activation):
    """y = min(max(x, lo), hi): ReLU (0, inf), ReLU6 (0, 6), hardtanh; (-inf, inf) marks a plain requantization."""

    kind: ClassVar[str] = "clamp"
    lo: float = -math.inf
    hi: float = math.inf

    def evaluate(self, inputs: Sequence[Tensor]) -> Tensor:
        """The clamped value."""
        return inputs[0].clamp(self.lo, self.hi)


@dataclass(frozen=True, eq=False)
class Threshold(Activation):
    """y = above where x >= 0 (x > 0 if strict), else below. (below, above) is (-1, 1) or (0, 1)."""

    kind: ClassVar[str] = "threshold"
    strict: bool = False
    below: int = -1
    above: int = 1

    def evaluate(self, inputs: Sequence[Tensor]) -> Tensor:
        """One of the two levels."""
        x = inputs[0]
        high = x > 0 if self.strict else x >= 0
        return high.to(x.dtype) * (self.above - self.below) + self.below


@dataclass(frozen=True, eq=False)
class Sign(Activation):
    """torch.sign: -1, 0 or 1, with sign(0) = 0."""

    kind: ClassVar[str] = "sign"

    def evaluate(self, inputs: Sequence[Tensor]) -> Tensor:
        """The sign."""
        return inputs[0].sign()


@dataclass(frozen=True, eq=False)
class Square(Op):
    """x^2: the one product that is computed under encryption. Captured only where a caller has a form for it."""

    kind: ClassVar[str] = "square"

    def infer_shape(self, in_shapes: Sequence[Shape]) -> Shape:
        """The input's shape."""
        return single(self.kind, in_shapes)

    def evaluate(self, inputs: Sequence[Tensor]) -> Tensor:
        """The squares."""
        return inputs[0] * inputs[0]


@dataclass(frozen=True, eq=False)
class Smooth(Op):
    """An elementwise function that is to be replaced by a polynomial: ``function`` is its name, with its settings."""

    kind: ClassVar[str] = "smooth"
    function: str
    apply: Callable[[Tensor], Tensor]

    def infer_shape(self, in_shapes: Sequence[Shape]) -> Shape:
        """The input's shape."""
        return single(self.kind, in_shapes)

    def evaluate(self, inputs: Sequence[Tensor]) -> Tensor:
        """The function of every value."""
        return self.apply(inputs[0])


@dataclass(frozen=True, eq=False)
class AvgPool2d(Op):
    """The sum over each window (padding counted as 0) divided by ``divisor``."""

    kind: ClassVar[str] = "avg_pool2d"
    pool: SumPool2d
    divisor: int

    def infer_shape(self, in_shapes: Sequence[Shape]) -> Shape:
        """(C, H', W')."""
        return self.pool.infer_shape(in_shapes)

    def evaluate(self, inputs: Sequence[Tensor]) -> Tensor:
        """The averages."""
        return self.pool.evaluate(inputs) / self.divisor


@dataclass(frozen=True)
class FloatNode:
    """One operator of the float graph."""

    name: str
    op: Op
    inputs: tuple[str, ...]
    source: str = ""


@dataclass
class FloatGraph:
    """Nodes in topological order (the first is the Entry), the output's name, shapes without the batch axis.

    Editable: rewrites replace ``nodes`` and call ``refresh``.
    """

    nodes: list[FloatNode]
    output: str
    shapes: dict[str, Shape] = field(default_factory=dict)

    def refresh(self) -> None:
        """Drop what the output does not need, and infer all shapes anew."""
        needed = {self.output, self.nodes[0].name}
        for node in reversed(self.nodes):
            if node.name in needed:
                needed.update(node.inputs)
        self.nodes = [n for n in self.nodes if n.name in needed]
        self.shapes = {}
        for node in self.nodes:
            self.shapes[node.name] = node.op.infer_shape([self.shapes[i] for i in node.inputs])

    def consumers(self) -> dict[str, list[FloatNode]]:
        """The nodes that read each value."""
        found: dict[str, list[FloatNode]] = {n.name: [] for n in self.nodes}
        for node in self.nodes:
            for name in dict.fromkeys(node.inputs):
                found[name].append(node)
        return found

    def by_name(self) -> dict[str, FloatNode]:
        """Nodes by their names."""
        return {n.name: n for n in self.nodes}

    @torch.no_grad()
    def run(self, x: Tensor, look: Callable[[str, Tensor], None] | None = None) -> Tensor:
        """The float result for a batch (N, *shape); ``look(name, value)`` sees every value."""
        last = {name: i for i, n in enumerate(self.nodes) for name in n.inputs}
        last[self.output] = len(self.nodes)
        values = {self.nodes[0].name: x}
        for index, node in enumerate(self.nodes):
            if index:
                values[node.name] = node.op.evaluate([values[i] for i in node.inputs])
            if look is not None:
                look(node.name, values[node.name])
            for name in dict.fromkeys(node.inputs):
                if last[name] == index:
                    del values[name]
        return values[self.output]


__all__ = [
    "Activation",
    "Affine",
    "AvgPool2d",
    "Clamp",
    "Entry",
    "FloatConv2d",
    "FloatDense",
    "FloatGraph",
    "FloatNode",
    "FloatSpread",
    "Linear",
    "MaxPool2d",
    "Sign",
    "Smooth",
    "Square",
    "Threshold",
]
