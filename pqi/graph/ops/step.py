"""The sign of a binarised network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pqi.graph.ops.base import Op, Shape, single


@dataclass(frozen=True, eq=False)
class Step(Op):
    """y = 1 if x >= 0 else -1."""

    kind: ClassVar[str] = "step"

    def infer_shape(self, in_shapes: Sequence[Shape]) -> Shape:
        """The input's shape."""
        return single(self.kind, in_shapes)

    def evaluate(self, inputs: Sequence[Tensor]) -> Tensor:
        """+1 or -1."""
        return (inputs[0] >= 0).to(inputs[0].dtype) * 2 - 1
