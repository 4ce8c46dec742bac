"""Two-dimensional convolution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pqi.graph.errors import GraphError
from pqi.graph.ops.base import (
    MAX_COLUMNS,
    MAX_WEIGHT,
    Bounds,
    Op,
    Shape,
    check_bias,
    check_int,
    check_ints,
    check_tensor,
    linear_bounds,
    single,
)
from pqi.graph.ops.exact import int_conv2d
from pqi.graph.ops.windows import windows_shape


@dataclass(frozen=True, eq=False)
class Conv2d(Op):
    """y[n, o] = bias[o] + sum over i, a, b of weight[o, i, a, b] x[n, i, ...]: cross-correlation as in PyTorch.

    weight int64 [O, I/groups, kh, kw]; bias int64 [O]; stride, padding (of zeros, both sides) and dilation per axis.
    """

    kind: ClassVar[str] = "conv2d"
    weight: Tensor
    bias: Tensor
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    def __post_init__(self) -> None:
        check_tensor(self.kind, "weight", self.weight, 4, MAX_WEIGHT)
        check_bias(self.kind, self.bias, self.weight.shape[0])
        check_ints(self.kind, "stride", self.stride, 2, 1, 1 << 16)
        check_ints(self.kind, "padding", self.padding, 2, 0, 1 << 16)
        check_ints(self.kind, "dilation", self.dilation, 2, 1, 1 << 16)
        check_int(self.kind, "groups", self.groups, 1, self.weight.shape[0])
        if self.weight.shape[0] % self.groups:
            raise GraphError(f"conv2d.groups is {self.groups}: it must divide {self.weight.shape[0]} output channels")

    def infer_shape(self, in_shapes: Sequence[Shape]) -> Shape:
        """(O, H', W')."""
        channels, *size = single(self.kind, in_shapes, 3)
        if channels != self.weight.shape[1] * self.groups:
            raise GraphError(f"conv2d weighs {self.weight.shape[1] * self.groups} channels, its input has {channels}")
        kernel = tuple(self.weight.shape[2:])
        out = windows_shape(self.kind, channels, size, kernel, self.stride, self.padding, self.dilation)
        columns = out[0] * out[1] * channels * kernel[0] * kernel[1]
        if columns > MAX_COLUMNS:
            raise GraphError(f"conv2d: windows of {columns} values for one input; at most {MAX_COLUMNS} are allowed")
        return (self.weight.shape[0], *out)

    def _apply(self, x: Tensor, weight: Tensor) -> Tensor:
        return int_conv2d(x, weight, self.stride, self.padding, self.dilation, self.groups)

    def evaluate(self, inputs: Sequence[Tensor]) -> Tensor:
        """The convolution, exact in int64."""
        return self._apply(inputs[0], self.weight) + self.bias[:, None, None]

    def bounds(self, in_bounds: Sequence[Bounds]) -> Bounds:
        """Interval arithmetic, element by element (so zero padding at the border counts as zero)."""
        lo, hi = linear_bounds(self.kind, self.weight, self.bias, in_bounds[0], self._apply)
        return lo + self.bias[:, None, None], hi + self.bias[:, None, None]
