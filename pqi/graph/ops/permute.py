"""Another order of the axes. Local on shares; axes do not count the batch axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pqi.graph.errors import GraphError
from pqi.graph.ops.base import Op, Shape, check_ints, single


@dataclass(frozen=True, eq=False)
class Permute(Op):
    """Axis i of the result is axis ``axes[i]`` of the input."""

    kind: ClassVar[str] = "permute"
    axes: tuple[int, ...]

    def __post_init__(self) -> None:
        check_ints(self.kind, "axes", self.axes, None, 0, 15)
        if sorted(self.axes) != list(range(len(self.axes))):
            raise GraphError(f"permute.axes is {self.axes}: it must name each axis from 0 once")

    def infer_shape(self, in_shapes: Sequence[Shape]) -> Shape:
        """The permuted shape."""
        shape = single(self.kind, in_shapes, len(self.axes))
        return tuple(shape[a] for a in self.axes)

    def evaluate(self, inputs: Sequence[Tensor]) -> Tensor:
        """The permuted value."""
        return inputs[0].permute(0, *(a + 1 for a in self.axes))
