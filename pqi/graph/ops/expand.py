"""One value for each index of an axis, repeated along all others. Local on shares."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pqi.graph.errors import GraphError
from pqi.graph.ops.base import MAX_ELEMENTS, Op, Shape, check_int, check_ints, single


@dataclass(frozen=True, eq=False)
class Expand(Op):
    """y[..., c, ...] = x[c] with c the index along ``axis`` of ``shape`` (both without the batch axis)."""

    kind: ClassVar[str] = "expand"
    shape: Shape
    axis: int = 0

    def __post_init__(self) -> None:
        check_ints(self.kind, "shape", self.shape, None, 1, MAX_ELEMENTS)
        check_int(self.kind, "axis", self.axis, 0, max(len(self.shape) - 1, 0))
        if not self.shape or math.prod(self.shape) > MAX_ELEMENTS:
            raise GraphError(f"expand.shape is {self.shape}: one axis or more and at most {MAX_ELEMENTS} values")

    def infer_shape(self, in_shapes: Sequence[Shape]) -> Shape:
        """The wanted shape; the input holds one value for each index of the axis."""
        shape = single(self.kind, in_shapes, 1)
        if shape[0] != self.shape[self.axis]:
            raise GraphError(f"expand along axis {self.axis} of {self.shape}: an input of shape {shape} does not fit")
        return self.shape

    def evaluate(self, inputs: Sequence[Tensor]) -> Tensor:
        """The repeated values, as a view."""
        x = inputs[0]
        spread = [1] * len(self.shape)
        spread[self.axis] = x.shape[1]
        return x.view(-1, *spread).expand(x.shape[0], *self.shape) if len(x) else x.new_zeros((0, *self.shape))
