"""The same values under another shape. Local on shares."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pqi.graph.errors import GraphError
from pqi.graph.ops.base import MAX_ELEMENTS, Op, Shape, check_ints, single


@dataclass(frozen=True, eq=False)
class Reshape(Op):
    """The same values in row-major order under another ``shape`` (without the batch axis)."""

    kind: ClassVar[str] = "reshape"
    shape: Shape

    def __post_init__(self) -> None:
        check_ints(self.kind, "shape", self.shape, None, 1, MAX_ELEMENTS)

    def infer_shape(self, in_shapes: Sequence[Shape]) -> Shape:
        """The new shape, of equally many elements."""
        shape = single(self.kind, in_shapes)
        if math.prod(shape) != math.prod(self.shape):
            raise GraphError(f"reshape from {shape} to {self.shape}: {math.prod(shape)} elements do not fit")
        return self.shape

    def evaluate(self, inputs: Sequence[Tensor]) -> Tensor:
        """The reshaped value."""
        return inputs[0].reshape(inputs[0].shape[0], *self.shape)
