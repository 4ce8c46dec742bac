"""Zeros around a value. Local on shares; axes do not count the batch axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pqi.graph.errors import GraphError
from pqi.graph.ops.base import Op, Shape, check_ints, single


@dataclass(frozen=True, eq=False)
class Pad(Op):
    """Zeros (the code of the real 0) around the value: ``pads[i]`` = (before, after) on axis i."""

    kind: ClassVar[str] = "pad"
    pads: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        if not isinstance(self.pads, tuple) or not self.pads:
            raise GraphError(f"pad.pads is {self.pads!r}: it must hold one (before, after) for each axis")
        for pair in self.pads:
            check_ints(self.kind, "pads", pair, 2, 0, 1 << 16)

    def infer_shape(self, in_shapes: Sequence[Shape]) -> Shape:
        """The grown shape."""
        shape = single(self.kind, in_shapes, len(self.pads))
        return tuple(n + before + after for n, (before, after) in zip(shape, self.pads, strict=True))

    def evaluate(self, inputs: Sequence[Tensor]) -> Tensor:
        """The padded value."""
        flat = [amount for pair in reversed(self.pads) for amount in pair]
        return torch.nn.functional.pad(inputs[0], flat)
