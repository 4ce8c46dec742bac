"""One constant per channel, of any size: biases behind a square count in units too small for 64 bits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pqi.graph.errors import GraphError, RangeError
from pqi.graph.ops.base import INT64_SAFE, Bounds, Op, Shape, check_int, check_tensor, single

MAX_MANTISSA = (1 << 62) - 1
MAX_SHIFT = 1024


@dataclass(frozen=True, eq=False)
class Offset(Op):
    """y[:, c] = x[:, c] + mantissa[c] 2^shift on axis 1 of the batch; mantissa int64 [C].

    ``evaluate`` is exact modulo 2^64, as all arithmetic on int64 is.
    """

    kind: ClassVar[str] = "offset"
    mantissa: Tensor
    shift: int = 0

    def __post_init__(self) -> None:
        check_tensor(self.kind, "mantissa", self.mantissa, 1, MAX_MANTISSA)
        check_int(self.kind, "shift", self.shift, 0, MAX_SHIFT)

    def infer_shape(self, in_shapes: Sequence[Shape]) -> Shape:
        """The input's shape, whose first axis must be C."""
        shape = single(self.kind, in_shapes)
        if not shape or shape[0] != self.mantissa.shape[0]:
            raise GraphError(f"offset holds {self.mantissa.shape[0]} constants, its input is {shape}")
        return shape

    def integers(self) -> list[int]:
        """The constants."""
        return [int(m) << self.shift for m in self.mantissa.tolist()]

    def evaluate(self, inputs: Sequence[Tensor]) -> Tensor:
        """The sum mod 2^64."""
        x = inputs[0]
        half = 1 << 63
        words = [(value + half) % (1 << 64) - half for value in self.integers()]
        return x + torch.tensor(words, dtype=torch.int64).view((-1,) + (1,) * (x.ndim - 2))

    def bounds(self, in_bounds: Sequence[Bounds]) -> Bounds:
        """The ends, moved. RangeError beyond int64."""
        reach = max(abs(int(end)) for x in in_bounds[0] for end in x.aminmax())
        most = reach + max(abs(value) for value in self.integers())
        if most >= INT64_SAFE:
            raise RangeError(f"{self.kind} reaches 2^{most.bit_length()}: no ring of 32 bits holds that")
        return super().bounds(in_bounds)
