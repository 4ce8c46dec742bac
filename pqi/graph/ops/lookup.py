"""A table that is read modulo a power of two: the step of networks that let their accumulators wrap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pqi.graph.ops.base import Bounds, Op, Shape, check_int, single
from pqi.graph.ops.tables import check_channels, check_table, ends, read

MAX_INDEX = 12  # bits; a one-time table has 2^bits entries for every single value


@dataclass(frozen=True, eq=False)
class Lookup(Op):
    """y = V[x mod 2^bits]: a cyclic table, indexed by the residue in [0, 2^bits).

    bits: 1 to 12. values: V, int64 [2^bits] or, per channel, [C, 2^bits] (axis 1 of the batch). The reduction is the
    meaning of the operator and no accident: whatever the policy of the rings, x is read in the ring of exactly
    ``bits`` bits, nothing about its size has to be proven, and all that is linear before it can be computed mod
    2^bits. A ring of 8 bits is one int8 product per linear map. (Accumulators that wrap on purpose, followed by a
    cyclic activation: WrapNet, Ni et al., ICLR 2021.)

    Raises GraphError naming the field for bits or values that do not fit.
    """

    kind: ClassVar[str] = "lookup"
    bits: int
    values: Tensor

    def __post_init__(self) -> None:
        check_int(self.kind, "bits", self.bits, 1, MAX_INDEX)
        check_table(self.kind, self.values, self.bits)

    def infer_shape(self, in_shapes: Sequence[Shape]) -> Shape:
        """The input's shape."""
        shape = single(self.kind, in_shapes)
        check_channels(self.kind, self.values, shape)
        return shape

    def evaluate(self, inputs: Sequence[Tensor]) -> Tensor:
        """The entries; ``&`` on two's complement is the residue, of negative values too."""
        return read(self.values, inputs[0] & ((1 << self.bits) - 1))

    def bounds(self, in_bounds: Sequence[Bounds]) -> Bounds:
        """The table's own ends, per channel if the table is: a value that wraps can reach every entry."""
        return ends(self.values, in_bounds[0][0].shape)
