"""From accumulators back to codes: a shift, a clamp and a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pqi.graph.ops.base import Bounds, Op, Shape, check_int, single
from pqi.graph.ops.tables import check_channels, check_table, ends, read


@dataclass(frozen=True, eq=False)
class Requantize(Op):
    """y = V[clamp(floor(x / 2^shift), 0, 2^bits - 1)].

    V[i] = low + i when ``values`` is None; otherwise ``values`` is int64 [2^bits] or, per channel, [C, 2^bits] (axis 1
    of the batch) and ``low`` is not used. Rounding and the lower end of the range are folded into the bias of what
    comes before. ReLU, ReLU6, clamps and plain requantization are all this.
    """

    kind: ClassVar[str] = "requantize"
    shift: int
    bits: int
    low: int = 0
    values: Tensor | None = None

    def __post_init__(self) -> None:
        check_int(self.kind, "shift", self.shift, 0, 31)
        check_int(self.kind, "bits", self.bits, 1, 16)
        check_int(self.kind, "low", self.low, -(1 << 31), (1 << 31) - 1)
        if self.values is not None:
            check_table(self.kind, self.values, self.bits)

    def infer_shape(self, in_shapes: Sequence[Shape]) -> Shape:
        """The input's shape."""
        shape = single(self.kind, in_shapes)
        if self.values is not None:
            check_channels(self.kind, self.values, shape)
        return shape

    def evaluate(self, inputs: Sequence[Tensor]) -> Tensor:
        """The codes; ``>>`` on int64 is the floor of the division, for negative values too."""
        index = (inputs[0] >> self.shift).clamp_(0, (1 << self.bits) - 1)
        if self.values is None:
            return index.add_(self.low) if self.low else index
        return read(self.values, index)

    def bounds(self, in_bounds: Sequence[Bounds]) -> Bounds:
        """The ends through the table if it never falls; otherwise the table's own ends."""
        if self.values is None or bool((self.values.diff(dim=-1) >= 0).all()):
            return super().bounds(in_bounds)
        return ends(self.values, in_bounds[0][0].shape)
