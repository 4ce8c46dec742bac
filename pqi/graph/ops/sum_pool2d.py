"""The sum over windows, of which an average is made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pqi.graph.ops.base import Op, Shape, check_ints, single
from pqi.graph.ops.windows import Pair, taps, windows_shape


@dataclass(frozen=True, eq=False)
class SumPool2d(Op):
    """The sum over each window, padding counted as 0: an average whose divisor is in the scale. Local on shares."""

    kind: ClassVar[str] = "sum_pool2d"
    kernel: Pair
    stride: Pair
    padding: Pair = (0, 0)

    def __post_init__(self) -> None:
        check_ints(self.kind, "kernel", self.kernel, 2, 1, 1 << 16)
        check_ints(self.kind, "stride", self.stride, 2, 1, 1 << 16)
        check_ints(self.kind, "padding", self.padding, 2, 0, 1 << 16)

    def infer_shape(self, in_shapes: Sequence[Shape]) -> Shape:
        """(C, H', W')."""
        channels, *size = single(self.kind, in_shapes, 3)
        return (channels, *windows_shape(self.kind, channels, size, self.kernel, self.stride, self.padding))

    def evaluate(self, inputs: Sequence[Tensor]) -> Tensor:
        """The sums, in the input's dtype (integers wrap silently)."""
        x = inputs[0]
        _, h, w = self.infer_shape([tuple(x.shape[1:])])
        if self.padding == (0, 0) and (h, w) == (1, 1):
            return x[..., : self.kernel[0], : self.kernel[1]].sum((2, 3), keepdim=True, dtype=x.dtype)
        if any(self.padding):
            x = torch.nn.functional.pad(x, (self.padding[1], self.padding[1], self.padding[0], self.padding[0]))
        total: Tensor | None = None
        for tap in taps(x, self.kernel, self.stride, (1, 1), (h, w)):
            total = tap.clone() if total is None else total.add_(tap)
        return x if total is None else total
