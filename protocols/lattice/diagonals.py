"""A matrix times a periodic vector by its diagonals (Halevi & Shoup, CRYPTO 2014; baby and giant steps: CRYPTO 2018).

The vector x fills a row of n slots with period P (a power of two). With D the power of two that holds the outputs and
M = min(P, D) diagonals,

    y[s] = sum_{i < M} A[s mod D, (s + i) mod P] x[(s + i) mod P],        A = W padded with zeros.

Diagonal i = G B + b is multiplied with x rotated by b (a *baby step*; each is the one before rotated by one slot) and
the sums over b are put together by Horner's rule with rotations by B (*giant steps*): two rotation keys whatever M.
Where D < P, *folds* (adding the row rotated by D, 2D, ..., P/2) complete the sums. The result has period D: nothing but
the outputs, zeros between them, and repetitions of both; there is nothing to mask.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protocols.circuit import Affine
from protocols.errors import BadParameters

KEY_PRICE = 1.0
"""A rotation step that nothing else uses, in rotations: its key must be made, sent and stored once a session."""


@dataclass(frozen=True, eq=False)
class Diagonal:
    """An affine stage by diagonals. used: bool ``(giants, baby)``; False where the support leaves a diagonal empty."""

    name: str
    inputs: int
    outputs: int
    slots: int
    period: int
    span: int
    baby: int
    used: NDArray[np.bool_]
    folds: tuple[int, ...]

    @property
    def giants(self) -> int:
        """Inner sums; one rotation by ``baby`` between each and the next."""
        return len(self.used)

    @property
    def babies(self) -> int:
        """Rotated copies of the vector that are needed, the unrotated one included."""
        return int(np.flatnonzero(self.used.any(0)).max(initial=0)) + 1

    @property
    def out_period(self) -> int:
        """Period of the result."""
        return self.span

    @property
    def steps(self) -> tuple[int, ...]:
        """Every rotation in the order it is made: babies, giants, folds."""
        return (1,) * (self.babies - 1) + (self.baby,) * (self.giants - 1) + self.folds

    def plaintext(self, weight: NDArray[Any], giant: int, baby: int) -> NDArray[Any]:
        """What the vector rotated by ``baby`` is multiplied with in inner sum ``giant``: ``(slots,)`` of the weight's
        dtype, rotated back by the giant's steps."""
        at = np.arange(self.slots)
        row, column = (at - giant * self.baby) % self.span, (at + baby) % self.period
        return _entries(weight, row, column)

    def plaintexts(self, weight: NDArray[Any]) -> Iterator[tuple[int, int, NDArray[Any]]]:
        """Every plaintext in use as (giant, baby, values), giant by giant."""
        for giant, baby in np.argwhere(self.used).tolist():
            yield giant, baby, self.plaintext(weight, giant, baby)

    def bias(self, bias: NDArray[Any]) -> NDArray[Any]:
        """The bias ``(outputs,)`` where the result lies: ``(slots,)``."""
        return periodic(bias, self.span, self.slots)

    def place(self, x: NDArray[Any]) -> NDArray[Any]:
        """What the client encrypts where this is the first stage: x ``(..., inputs)`` -> ``(1, ..., slots)``."""
        return periodic(x, self.period, self.slots)[None]


def periodic(values: NDArray[Any], period: int, slots: int) -> NDArray[Any]:
    """``(..., width)`` padded with zeros to ``period`` and repeated: ``(..., slots)``."""
    padded = np.zeros((*values.shape[:-1], period), dtype=values.dtype)
    padded[..., : values.shape[-1]] = values
    return np.tile(padded, slots // period)


def plan_diagonal(stage: Affine, slots: int, known: Collection[int]) -> Diagonal:
    """Diagonals of a stage, with the baby steps that cost least; ``known``: rotation steps that have a key anyway.

    Decided by the support alone, never by a weight. Raises BadParameters where the stage is wider than the row.
    """
    period, span = power_of_two(stage.inputs), power_of_two(stage.outputs)
    check_width(stage, max(period, span), slots)
    present = _present(stage, period, span)
    folds = fold_steps(span, period)
    choices = [_shape(stage, slots, period, span, baby, present, folds) for baby in _powers(len(present))]
    return min(choices, key=lambda choice: price(choice.steps, known))


def price(steps: Sequence[int], known: Collection[int]) -> float:
    """Rotations, and :data:`KEY_PRICE` for each step that is not known."""
    return len(steps) + KEY_PRICE * len(set(steps) - set(known))


def power_of_two(width: int) -> int:
    """The smallest power of two that is no smaller."""
    return 1 << (width - 1).bit_length()


def fold_steps(start: int, end: int) -> tuple[int, ...]:
    """start, 2 start, ..., end/2: adding the row rotated by each in turn sums over all ``end / start`` tiles."""
    return tuple(start << i for i in range(max(0, end.bit_length() - start.bit_length())))


def check_width(stage: Affine, width: int, slots: int) -> None:
    """Raises BadParameters where a stage needs a wider row."""
    if width > slots:
        raise BadParameters(
            f"stage {stage.name!r}: {stage.inputs} -> {stage.outputs} values need a row of {width} slots, these "
            f"parameters have {slots}; narrow the layer, use a larger ring dimension, or pack batches (one sample per "
            "slot has no such limit)"
        )


def _present(stage: Affine, period: int, span: int) -> NDArray[np.bool_]:
    """Bool ``(M,)``: does the support touch diagonal i?"""
    row, column = np.nonzero(stage.support)
    count = min(period, span)
    present = np.zeros(count, dtype=np.bool_)
    present[(column - row) % count] = True  # i = column - row modulo both D and P, and M is the smaller
    if not present.any():
        present[0] = True  # an empty support still needs one product, so that the result is a ciphertext of zeros
    return present


def _shape(
    stage: Affine, slots: int, period: int, span: int, baby: int, present: NDArray[np.bool_], folds: tuple[int, ...]
) -> Diagonal:
    used = present.reshape(-1, baby)
    used = used[: int(np.flatnonzero(used.any(1)).max()) + 1]
    return Diagonal(stage.name, stage.inputs, stage.outputs, slots, period, span, baby, used, folds)


def _powers(count: int) -> list[int]:
    return [1 << i for i in range(count.bit_length())]


def _entries(weight: NDArray[Any], row: NDArray[np.int64], column: NDArray[np.int64]) -> NDArray[Any]:
    """Entries of the weight padded with zeros, one per slot."""
    outputs, inputs = weight.shape
    inside = (row < outputs) & (column >= 0) & (column < inputs)
    return np.where(inside, weight[np.where(inside, row, 0), np.where(inside, column, 0)], weight.dtype.type(0))
