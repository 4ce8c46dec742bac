"""Every value against every other, and how each stands in the end. Both local on shares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import torch
from torch import Tensor

from pqi.graph.errors import GraphError
from pqi.graph.ops.base import Bounds, Op, Shape, check_int, single

MAX_PLAYERS = 1024


@cache
def pairs(players: int) -> tuple[Tensor, Tensor]:
    """i and j of all pairs i < j, int64 (P,) each, P = players (players - 1) / 2."""
    first, second = torch.triu_indices(players, players, 1)
    return first, second


@dataclass(frozen=True, eq=False)
class Pairwise(Op):
    """y[p] = x[i] - x[j] for all pairs p = (i, j), i < j, in the order (0, 1), (0, 2), ..., (1, 2), ...

    From (C,) to (C (C - 1) / 2,), 2 <= C <= 1024. The sign of y[p] says who wins, the lower index where both are equal.
    """

    kind: ClassVar[str] = "pairwise"

    def infer_shape(self, in_shapes: Sequence[Shape]) -> Shape:
        """One value for each pair."""
        (players,) = single(self.kind, in_shapes, 1)
        if not 2 <= players <= MAX_PLAYERS:
            raise GraphError(f"pairwise compares 2 to {MAX_PLAYERS} values, its input has {players}")
        return (players * (players - 1) // 2,)

    def evaluate(self, inputs: Sequence[Tensor]) -> Tensor:
        """The differences; wraps silently in the input's dtype."""
        first, second = _pairs_at(inputs[0].shape[1], inputs[0].device)
        return inputs[0][:, first] - inputs[0][:, second]

    def bounds(self, in_bounds: Sequence[Bounds]) -> Bounds:
        """The least of one less the most of the other, and the reverse."""
        lo, hi = in_bounds[0]
        first, second = pairs(lo.shape[1])
        return lo[:, first] - hi[:, second], hi[:, first] - lo[:, second]


@dataclass(frozen=True, eq=False)
class Standing(Op):
    """y[c] = sum of x[p] over pairs (c, j), less the sum over pairs (i, c); the transpose of Pairwise.

    players: C. From (C (C - 1) / 2,) to (C,). Of signs +1 and -1, y[c] = 2 wins[c] - (C - 1).
    """

    kind: ClassVar[str] = "standing"
    players: int

    def __post_init__(self) -> None:
        check_int(self.kind, "players", self.players, 2, MAX_PLAYERS)

    def infer_shape(self, in_shapes: Sequence[Shape]) -> Shape:
        """One value for each player."""
        (games,) = single(self.kind, in_shapes, 1)
        if games != self.players * (self.players - 1) // 2:
            raise GraphError(f"standing: {self.players} players have not {games} pairs")
        return (self.players,)

    def _sums(self, won: Tensor, lost: Tensor) -> Tensor:
        first, second = _pairs_at(self.players, won.device)
        total = won.new_zeros((won.shape[0], self.players))
        return total.index_add_(1, first, won).index_add_(1, second, -lost)

    def evaluate(self, inputs: Sequence[Tensor]) -> Tensor:
        """The sums; wrap silently in the input's dtype."""
        return self._sums(inputs[0], inputs[0])

    def bounds(self, in_bounds: Sequence[Bounds]) -> Bounds:
        """Interval arithmetic: what is taken away is at its other end."""
        lo, hi = in_bounds[0]
        return self._sums(lo, hi), self._sums(hi, lo)


def _pairs_at(players: int, device: torch.device) -> tuple[Tensor, Tensor]:
    first, second = pairs(players)
    return first.to(device), second.to(device)
