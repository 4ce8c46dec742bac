"""One value of an input, weighed per channel and the same at every place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pqi.graph.errors import GraphError
from pqi.graph.ops.base import MAX_WEIGHT, Bounds, Shape, check_int, linear_bounds, single
from pqi.graph.ops.expand import Expand
from pqi.graph.ops.scale import Scale


@dataclass(frozen=True, eq=False)
class Spread(Scale):
    """y[..., c, ...] = weight[c] x + bias[c] for one x per input (shape (1,)); c is the index along ``axis``.

    weight, bias: int64 [C]. top: x is in [0, top], whatever else its source could give; the model holds its inputs to
    it. shape, axis: of the result, without the batch axis; shape[axis] = C. So a bias that depends on the input is C
    products, however large the picture is.
    """

    kind: ClassVar[str] = "spread"
    top: int
    shape: Shape
    axis: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_int(self.kind, "top", self.top, 1, MAX_WEIGHT)
        self.expand.infer_shape([tuple(self.weight.shape)])

    @property
    def expand(self) -> Expand:
        """The local part: from one value per channel to the whole shape."""
        return Expand(self.shape, self.axis)

    def infer_shape(self, in_shapes: Sequence[Shape]) -> Shape:
        """The declared shape; the input is one value."""
        shape = single(self.kind, in_shapes)
        if shape != (1,):
            raise GraphError(f"spread takes one value, shape (1,); its input is {shape}")
        return self.shape

    def evaluate(self, inputs: Sequence[Tensor]) -> Tensor:
        """The weighed value at every place, exact in int64."""
        return self.expand.evaluate([inputs[0] * self.weight + self.bias])

    def bounds(self, in_bounds: Sequence[Bounds]) -> Bounds:
        """Interval arithmetic on [0, top]: a negative weight swaps the ends."""
        ends = (in_bounds[0][0].clamp(0, self.top), in_bounds[0][1].clamp(0, self.top))
        lo, hi = linear_bounds(self.kind, self.weight[:, None], self.bias, ends, lambda x, w: x * w[:, 0])
        return self.expand.evaluate([lo + self.bias]), self.expand.evaluate([hi + self.bias])
