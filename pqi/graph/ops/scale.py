"""One weight and one bias per channel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pqi.graph.errors import GraphError
from pqi.graph.ops.base import MAX_WEIGHT, Bounds, Op, Shape, check_bias, check_tensor, linear_bounds, single


@dataclass(frozen=True, eq=False)
class Scale(Op):
    """y[:, c] = weight[c] x[:, c] + bias[c] on axis 1 of the batch; weight and bias int64 [C]."""

    kind: ClassVar[str] = "scale"
    weight: Tensor
    bias: Tensor

    def __post_init__(self) -> None:
        check_tensor(self.kind, "weight", self.weight, 1, MAX_WEIGHT)
        check_bias(self.kind, self.bias, self.weight.shape[0])

    def infer_shape(self, in_shapes: Sequence[Shape]) -> Shape:
        """The input's shape, whose first axis must be C."""
        shape = single(self.kind, in_shapes)
        if not shape or shape[0] != self.weight.shape[0]:
            raise GraphError(f"scale weighs {self.weight.shape[0]} channels, its input is {shape}")
        return shape

    def evaluate(self, inputs: Sequence[Tensor]) -> Tensor:
        """The scaled value, exact in int64."""
        x = inputs[0]
        per_channel = (-1,) + (1,) * (x.ndim - 2)
        return x * self.weight.view(per_channel) + self.bias.view(per_channel)

    def bounds(self, in_bounds: Sequence[Bounds]) -> Bounds:
        """Interval arithmetic: a negative weight swaps the ends."""
        per_channel = (-1,) + (1,) * (in_bounds[0][0].ndim - 2)
        bias = self.bias.view(per_channel)
        lo, hi = linear_bounds(
            self.kind, self.weight[:, None], self.bias, in_bounds[0], lambda x, w: x * w[:, 0].view(per_channel)
        )
        return lo + bias, hi + bias
