"""Fully connected layer on the last axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from torch import Tensor

from pqi.graph.errors import GraphError
from pqi.graph.ops.base import MAX_WEIGHT, Bounds, Op, Shape, check_bias, check_tensor, linear_bounds, single
from pqi.graph.ops.exact import int_matmul, signed_digits


@dataclass(frozen=True, eq=False)
class Dense(Op):
    """y[..., o] = bias[o] + sum_i weight[o, i] x[..., i]; weight int64 [O, I], bias int64 [O]."""

    kind: ClassVar[str] = "dense"
    weight: Tensor
    bias: Tensor

    def __post_init__(self) -> None:
        check_tensor(self.kind, "weight", self.weight, 2, MAX_WEIGHT)
        check_bias(self.kind, self.bias, self.weight.shape[0])

    def infer_shape(self, in_shapes: Sequence[Shape]) -> Shape:
        """The input's shape with its last axis of I replaced by O."""
        shape = single(self.kind, in_shapes)
        if not shape or shape[-1] != self.weight.shape[1]:
            raise GraphError(f"dense weighs {self.weight.shape[1]} features on the last axis, its input is {shape}")
        return (*shape[:-1], self.weight.shape[0])

    @cached_property
    def _digits(self) -> list[Tensor]:
        return signed_digits(self.weight)

    def evaluate(self, inputs: Sequence[Tensor]) -> Tensor:
        """The product, exact in int64."""
        x = inputs[0]
        flat = int_matmul(x.reshape(x.shape[:-1].numel(), x.shape[-1]), self.weight, self._digits)
        return flat.view(*x.shape[:-1], self.weight.shape[0]) + self.bias

    def bounds(self, in_bounds: Sequence[Bounds]) -> Bounds:
        """Interval arithmetic, element by element."""

        def apply(x: Tensor, weight: Tensor) -> Tensor:
            out = int_matmul(x.reshape(-1, x.shape[-1]), weight)
            return out.view(*x.shape[:-1], weight.shape[0])

        lo, hi = linear_bounds(self.kind, self.weight, self.bias, in_bounds[0], apply)
        return lo + self.bias, hi + self.bias
