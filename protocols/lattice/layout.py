"""Which value lies in which slot, and which rotations an affine stage takes: the same for every lattice scheme.

Slots form a row of n that rotates cyclically (CKKS: one row of N/2; BFV: two rows of N/2 that rotate together). One row
serves one sample, a *lane*. A stage reads a vector of some period and leaves one of another; polynomials act slot by
slot and change nothing here. All of it follows from the circuit and n: supports, never weights, so that neither the
client's message nor the keys it makes can tell which weights are zero.

The first stage is a *gather* where its rows touch few inputs each (a convolution): the client, who knows its input in
clear, writes it so that one product and a few folds are the whole map. Later stages, and wide first ones, go by
diagonals (:mod:`~protocols.lattice.diagonals`).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from protocols.circuit import Affine, Circuit
from protocols.errors import Misuse
from protocols.lattice.diagonals import (
    Diagonal,
    check_width,
    fold_steps,
    periodic,
    plan_diagonal,
    power_of_two,
    price,
)

CIPHERTEXT_PRICE = 4.0
"""One more ciphertext in the question, in rotations: its upload, loading and product."""


@dataclass(frozen=True, eq=False)
class Gather:
    """The first stage by placing: slot k P + o holds the k-th input that row o of the support touches.

    index: int64 ``(ciphertexts, slots)``, which input a slot holds; -1: none, the slot is 0. The pattern of C tiles of
    P slots repeats to the end of the row, so that folding by P, 2P, ..., C P/2 is cyclic; ciphertexts are added first.
    """

    name: str
    inputs: int
    outputs: int
    slots: int
    period: int
    index: NDArray[np.int64]
    folds: tuple[int, ...]

    @property
    def out_period(self) -> int:
        """Period of the result."""
        return self.period

    @property
    def steps(self) -> tuple[int, ...]:
        """Every rotation in the order it is made."""
        return self.folds

    def place(self, x: NDArray[Any]) -> NDArray[Any]:
        """What the client encrypts: x ``(..., inputs)`` -> ``(ciphertexts, ..., slots)``."""
        taken = np.where(self.index >= 0, x[..., self.index], x.dtype.type(0))
        return np.moveaxis(taken, -2, 0)

    def plaintexts(self, weight: NDArray[Any]) -> NDArray[Any]:
        """What each ciphertext is multiplied with: weight ``(outputs, inputs)`` -> ``(ciphertexts, slots)``."""
        row = np.minimum(np.arange(self.slots) % self.period, self.outputs - 1)
        return np.where(self.index >= 0, weight[row, np.maximum(self.index, 0)], weight.dtype.type(0))

    def bias(self, bias: NDArray[Any]) -> NDArray[Any]:
        """The bias ``(outputs,)`` where the result lies: ``(slots,)``."""
        return periodic(bias, self.period, self.slots)


AffineLayout: TypeAlias = Gather | Diagonal


@dataclass(frozen=True, eq=False)
class Layout:
    """How one sample runs through a row: one entry of ``stages`` per affine stage of the circuit, in order.

    The answer lies in slots 0 .. outputs-1 of each row; the others hold repetitions of it and zeros.
    """

    slots: int
    stages: tuple[AffineLayout, ...]

    @property
    def ciphertexts(self) -> int:
        """Ciphertexts of a question (for as many samples as there are rows)."""
        first = self.stages[0]
        return len(first.index) if isinstance(first, Gather) else 1

    @cached_property
    def rotations(self) -> tuple[int, ...]:
        """The distinct steps, sorted: what needs a key."""
        return tuple(sorted({step for stage in self.stages for step in stage.steps}))

    @cached_property
    def rotation_counts(self) -> dict[int, int]:
        """How often each step is made for one question."""
        return dict(Counter(step for stage in self.stages for step in stage.steps))

    @cached_property
    def first_use(self) -> dict[int, int]:
        """The first affine stage that makes a step: keys for late stages need fewer primes."""
        used: dict[int, int] = {}
        for number, stage in enumerate(self.stages):
            for step in stage.steps:
                used.setdefault(step, number)
        return used

    def place(self, x: NDArray[Any]) -> NDArray[Any]:
        """Inputs ``(..., inputs)``, one per row, as the client encrypts them: ``(ciphertexts, ..., slots)``."""
        if x.shape[-1] != self.stages[0].inputs:
            raise Misuse(f"inputs {x.shape} for a first stage that reads {self.stages[0].inputs}")
        return self.stages[0].place(x)

    def answer(self, row: NDArray[Any]) -> NDArray[Any]:
        """Decrypted rows ``(..., slots)`` -> the outputs ``(..., outputs)``."""
        return row[..., : self.stages[-1].outputs]


def plan_layout(circuit: Circuit, slots: int) -> Layout:
    """The layout of a circuit in rows of ``slots`` (a power of two).

    Raises BadParameters that names the first stage that does not fit.
    """
    if slots < 2 or slots & (slots - 1):
        raise Misuse(f"a row of {slots} slots is no power of two")
    known = ({1} if len(circuit.affine) > 1 else set()) | {
        step
        for stage in circuit.affine[1:]
        for step in fold_steps(power_of_two(stage.outputs), power_of_two(stage.inputs))
    }
    stages = [_first(circuit.affine[0], slots, known)]
    known.update(stages[0].steps)
    for stage in circuit.affine[1:]:
        planned = plan_diagonal(stage, slots, known)
        known.update(planned.steps)
        stages.append(planned)
    return Layout(slots, tuple(stages))


def _first(stage: Affine, slots: int, known: set[int]) -> AffineLayout:
    """Gather or diagonals, whichever is cheaper in rotations, keys and ciphertexts."""
    check_width(stage, power_of_two(stage.outputs), slots)
    gather = _plan_gather(stage, slots)
    cost = price(gather.steps, known) + CIPHERTEXT_PRICE * (len(gather.index) - 1)
    if power_of_two(stage.inputs) > slots:
        return gather
    diagonal = plan_diagonal(stage, slots, known)
    return gather if cost <= price(diagonal.steps, known) else diagonal


def _plan_gather(stage: Affine, slots: int) -> Gather:
    """k-th supported column of every row, as a table of tiles."""
    period = power_of_two(stage.outputs)
    widest = max(1, int(stage.support.sum(1).max()))
    tiles = min(power_of_two(widest), slots // period)
    ciphertexts = -(-widest // tiles)
    row, column = np.nonzero(stage.support)
    starts = np.cumsum(stage.support.sum(1)) - stage.support.sum(1)
    nth = np.arange(len(row)) - starts[row]  # nonzero goes row by row, so this counts along each row
    table = np.full((ciphertexts * tiles, period), -1, dtype=np.int64)
    table[nth, row] = column
    index = np.tile(table.reshape(ciphertexts, tiles * period), slots // (tiles * period))
    folds = fold_steps(period, tiles * period)
    return Gather(stage.name, stage.inputs, stage.outputs, slots, period, index, folds)
