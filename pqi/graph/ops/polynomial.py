"""A polynomial of every value: the activation of networks that are computed under encryption."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pqi.graph.errors import GraphError, RangeError
from pqi.graph.ops.base import INT64_SAFE, MAX_WEIGHT, Bounds, Op, Shape, check_ints, single
from protocols.circuit import MAX_DEGREE


@dataclass(frozen=True, eq=False)
class Polynomial(Op):
    """y = sum_i coefficients[i] x^i for every value; integers (c_0, ..., c_d) with d from 2 to 4.

    ``evaluate`` is exact modulo 2^64, as all arithmetic on int64 is: a ring homomorphism does not mind.
    """

    kind: ClassVar[str] = "polynomial"
    coefficients: tuple[int, ...]

    def __post_init__(self) -> None:
        check_ints(self.kind, "coefficients", self.coefficients, None, -MAX_WEIGHT, MAX_WEIGHT)
        if not 3 <= len(self.coefficients) <= MAX_DEGREE + 1 or not self.coefficients[-1]:
            raise GraphError(
                f"polynomial.coefficients are {self.coefficients}: 3 to {MAX_DEGREE + 1} integers (degree 2 to "
                f"{MAX_DEGREE}) are needed, the last one not 0"
            )

    @property
    def degree(self) -> int:
        """The highest power."""
        return len(self.coefficients) - 1

    def infer_shape(self, in_shapes: Sequence[Shape]) -> Shape:
        """The input's shape."""
        return single(self.kind, in_shapes)

    def evaluate(self, inputs: Sequence[Tensor]) -> Tensor:
        """The polynomial mod 2^64, by Horner's rule."""
        x = inputs[0]
        value = torch.full_like(x, self.coefficients[-1])
        for c in reversed(self.coefficients[:-1]):
            value = value * x + c
        return value

    def bounds(self, in_bounds: Sequence[Bounds]) -> Bounds:
        """Ends of each power times its coefficient, summed: exact for a single power. RangeError beyond int64."""
        lo, hi = in_bounds[0]
        reach = max(abs(int(end)) for x in (lo, hi) for end in x.aminmax())
        most = sum(abs(c) * reach**i for i, c in enumerate(self.coefficients))
        if most >= INT64_SAFE:
            raise RangeError(
                f"{self.kind} of values up to {reach} reaches 2^{most.bit_length()}: no ring of 32 bits holds that. "
                "A network with polynomials is a PolynomialModel (pqi.to_polynomial), for protocols bfv and ckks."
            )
        low, high = torch.zeros_like(lo), torch.zeros_like(lo)
        for power, c in enumerate(self.coefficients):
            a, b = lo**power, hi**power
            least, greatest = torch.minimum(a, b), torch.maximum(a, b)
            if power and power % 2 == 0:
                least = torch.where((lo < 0) & (hi > 0), 0, least)
            low = low + c * (least if c >= 0 else greatest)
            high = high + c * (greatest if c >= 0 else least)
        return low, high
