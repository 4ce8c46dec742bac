"""Keeping some indices of one axis. Local on shares; axes do not count the batch axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pqi.graph.errors import GraphError
from pqi.graph.ops.base import MAX_ELEMENTS, Op, Shape, check_int, single


@dataclass(frozen=True, eq=False)
class Slice(Op):
    """Indices start, start + step, ... below stop along ``axis``."""

    kind: ClassVar[str] = "slice"
    axis: int
    start: int
    stop: int
    step: int = 1

    def __post_init__(self) -> None:
        check_int(self.kind, "axis", self.axis, 0, 15)
        check_int(self.kind, "start", self.start, 0, MAX_ELEMENTS)
        check_int(self.kind, "stop", self.stop, self.start + 1, MAX_ELEMENTS)
        check_int(self.kind, "step", self.step, 1, MAX_ELEMENTS)

    def infer_shape(self, in_shapes: Sequence[Shape]) -> Shape:
        """The input's shape with the axis shortened."""
        shape = single(self.kind, in_shapes)
        if self.axis >= len(shape) or self.stop > shape[self.axis]:
            raise GraphError(f"slice [{self.start}:{self.stop}] on axis {self.axis} does not fit shape {shape}")
        length = -(-(self.stop - self.start) // self.step)
        return (*shape[: self.axis], length, *shape[self.axis + 1 :])

    def evaluate(self, inputs: Sequence[Tensor]) -> Tensor:
        """The kept values."""
        return inputs[0][(slice(None),) * (self.axis + 1) + (slice(self.start, self.stop, self.step),)]
