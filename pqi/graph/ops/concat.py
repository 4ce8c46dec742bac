"""Joining values along one axis. Local on shares; axes do not count the batch axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pqi.graph.errors import GraphError
from pqi.graph.ops.base import Op, Shape, check_int


@dataclass(frozen=True, eq=False)
class Concat(Op):
    """The inputs joined along ``axis`` (0 = channel); in the reals all have one scale."""

    kind: ClassVar[str] = "concat"
    inputs_needed: ClassVar[tuple[int, int | None]] = (1, None)
    axis: int = 0

    def __post_init__(self) -> None:
        check_int(self.kind, "axis", self.axis, 0, 15)

    def infer_shape(self, in_shapes: Sequence[Shape]) -> Shape:
        """The common shape with the lengths along the axis added."""
        if not in_shapes or any(len(s) != len(in_shapes[0]) or len(s) <= self.axis for s in in_shapes):
            raise GraphError(f"concat along axis {self.axis} does not fit inputs {list(in_shapes)}")
        rest = {(*s[: self.axis], *s[self.axis + 1 :]) for s in in_shapes}
        if len(rest) != 1:
            raise GraphError(f"concat along axis {self.axis}: the other axes differ in {list(in_shapes)}")
        first = in_shapes[0]
        return (*first[: self.axis], sum(s[self.axis] for s in in_shapes), *first[self.axis + 1 :])

    def evaluate(self, inputs: Sequence[Tensor]) -> Tensor:
        """The joined value."""
        return torch.cat(list(inputs), self.axis + 1)
