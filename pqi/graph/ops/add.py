"""Sum of two or more values of one shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pqi.graph.errors import GraphError
from pqi.graph.ops.base import Op, Shape


@dataclass(frozen=True, eq=False)
class Add(Op):
    """y = x_1 + x_2 + ...: all inputs have one shape and, in the reals, one scale. Local on shares."""

    kind: ClassVar[str] = "add"
    inputs_needed: ClassVar[tuple[int, int | None]] = (2, None)

    def infer_shape(self, in_shapes: Sequence[Shape]) -> Shape:
        """The common shape."""
        if len(in_shapes) < 2 or len(set(in_shapes)) != 1:
            raise GraphError(f"add takes two or more inputs of one shape, got {list(in_shapes)}")
        return in_shapes[0]

    def evaluate(self, inputs: Sequence[Tensor]) -> Tensor:
        """The sum; wraps silently in the inputs' dtype."""
        total = inputs[0]
        for x in inputs[1:]:
            total = total + x
        return total
