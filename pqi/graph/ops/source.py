"""The place where the client's codes enter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pqi.graph.errors import GraphError
from pqi.graph.ops.base import MAX_ELEMENTS, Bounds, Op, Shape, check_int, check_ints


@dataclass(frozen=True, eq=False)
class Input(Op):
    """Codes of shape ``shape`` (without the batch axis), each an integer in [lo, hi]."""

    kind: ClassVar[str] = "input"
    inputs_needed: ClassVar[tuple[int, int | None]] = (0, 0)
    shape: Shape
    lo: int
    hi: int

    def __post_init__(self) -> None:
        check_ints(self.kind, "shape", self.shape, None, 1, MAX_ELEMENTS)
        check_int(self.kind, "lo", self.lo, -(1 << 31), (1 << 31) - 1)
        check_int(self.kind, "hi", self.hi, self.lo, (1 << 31) - 1)

    def infer_shape(self, in_shapes: Sequence[Shape]) -> Shape:
        """The declared shape."""
        if in_shapes:
            raise GraphError(f"{self.kind} takes no inputs, {len(in_shapes)} given")
        return self.shape

    def evaluate(self, inputs: Sequence[Tensor]) -> Tensor:
        """An input has no inputs: the executor puts the codes in its place."""
        raise GraphError("an input node has no value of its own; give the codes to the executor")

    def bounds(self, in_bounds: Sequence[Bounds]) -> Bounds:
        """[lo, hi] everywhere."""
        shape = (1, *self.shape)
        return torch.full(shape, self.lo, dtype=torch.int64), torch.full(shape, self.hi, dtype=torch.int64)
