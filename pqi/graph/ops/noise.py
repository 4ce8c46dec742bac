"""Noise on an answer, by a discrete Gaussian: the client is told the reference and noise, and nothing else differs.

``Pr[e = k]`` is proportional to ``exp(-k^2 / (2 s^2))`` over the integers, s a whole number, and what is drawn beyond
``9 s`` is put there (less than once in 10^17 draws; ``2 exp(-9^2 / 2)``). So noise has a bound, and the proof of the
answer's ring covers it. Probabilities are computed in integers, by the table of
:mod:`pqi.federated.privacy.discrete_gaussian`, and right to 2^-62.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from pqi.graph.ops.base import Bounds, Op, Shape, check_int, single
from protocols.noise import DRAW_BITS, WHOLE

TAILS = 9  # deviations that noise reaches
MAX_DEVIATION = 1 << 16  # its table takes four seconds


@dataclass(frozen=True, eq=False)
class Noise(Op):
    """y = x + e in every protocol, e fresh for every value of every answer; y = x in the reference.

    deviation: the standard deviation of e, in units of the integers. Only the answer may have noise: what is computed
    from a noisy value would have no reference. The integer model, at its owner's, is without noise, so that the private
    answer less the reference is e, and at most ``bound`` either way.
    """

    kind: ClassVar[str] = "noise"
    deviation: int

    def __post_init__(self) -> None:
        check_int(self.kind, "deviation", self.deviation, 1, MAX_DEVIATION)

    @property
    def bound(self) -> int:
        """The most that e can be, either way."""
        return TAILS * self.deviation

    @property
    def law(self) -> Tensor:
        """The law of e as :mod:`protocols.noise` takes it, int64 (2 bound + 1,). Not to be written to."""
        return _law(self.deviation)

    def infer_shape(self, in_shapes: Sequence[Shape]) -> Shape:
        """The input's shape."""
        return single(self.kind, in_shapes)

    def evaluate(self, inputs: Sequence[Tensor]) -> Tensor:
        """The value without noise."""
        return inputs[0]

    def bounds(self, in_bounds: Sequence[Bounds]) -> Bounds:
        """The ends and the noise beyond them."""
        lo, hi = in_bounds[0]
        return lo - self.bound, hi + self.bound


@lru_cache(maxsize=8)
def _law(deviation: int) -> Tensor:
    """floor(2^62 Pr[X <= k]) for k = -bound .. bound - 1, and 2^62."""
    from pqi.federated.privacy.discrete_gaussian import DiscreteGaussian  # a floor above; wanted by few
    from pqi.federated.privacy.inversion import tabulated

    table, bound = tabulated(DiscreteGaussian(Fraction(deviation**2)), DRAW_BITS), TAILS * deviation
    first = -bound - table.first  # the window of the table is wider: its tail is below 2^-62
    return torch.tensor([*table.bounds[first : first + 2 * bound], WHOLE], dtype=torch.int64)
