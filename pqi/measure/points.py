"""Bytes against accuracy: the same network with other bits, declared and computed, without a server."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import pqi.program
from pqi.demo.measure import threads
from pqi.graph.model import IntegerModel
from pqi.measure.errors import MeasureError
from pqi.measure.plain import decisions, float_answers
from pqi.measure.subject import Subject

Say = Callable[[str], None]
_INPUTS = 500


@dataclass(frozen=True)
class Point:
    """One integer model. bits: of weights and activations, as asked; empty for the model that was measured.

    online_bytes: each server sends for one input; dealt_bytes: the dealer sends beforehand. accuracy: share of right
    decisions, None without labels. agreement: share of decisions that are the float network's, None without it.
    """

    bits: str
    rings: str
    online_bytes: int
    dealt_bytes: int
    exchanges: int
    accuracy: float | None
    agreement: float | None

    @property
    def quality(self) -> float | None:
        """Accuracy where it is known, agreement where it is not."""
        return self.agreement if self.accuracy is None else self.accuracy

    def to_json(self) -> dict[str, Any]:
        """As plain JSON."""
        return dict(self.__dict__)


def points(
    subject: Subject, recipes: Sequence[tuple[int, int]], protocol: str, network: str, say: Say = lambda _: None
) -> tuple[Point, ...]:
    """The subject's own integer model, and one for each pair (weight bits, activation bits).

    Raises MeasureError where only a file is there, which has its bits; ProgramError where the protocol does not serve.
    """
    if subject.integer is None:
        return ()
    if recipes and subject.made is None:
        raise MeasureError(
            "other bits are for a network that is made integer here: a model's file has the bits it was made with"
        )
    found = [_point(subject, subject.integer, "", protocol, network)]
    for weight_bits, activation_bits in recipes:
        say(f"quantizing to {weight_bits}/{activation_bits} bits")
        if subject.made is not None:
            model = subject.made(weight_bits, activation_bits, subject.integer.policy)
            found.append(_point(subject, model, f"{weight_bits}/{activation_bits}", protocol, network))
    return tuple(found)


def _point(subject: Subject, model: IntegerModel, bits: str, protocol: str, network: str) -> Point:
    cost = pqi.program.compile(model, protocol, network).cost(1)
    x = np.ascontiguousarray(subject.x[:_INPUTS])
    accuracy = agreement = None
    if subject.y is not None or subject.floating is not None:
        with threads(1):
            got = decisions(model.predict(x, "silent"))
            if subject.y is not None:
                accuracy = float((got == subject.y[: len(x)]).mean())
            if subject.floating is not None:
                agreement = float((got == decisions(float_answers(subject.floating, x))).mean())
    return Point(bits, model.policy, cost.online_bytes, cost.dealt_bytes, cost.exchanges, accuracy, agreement)
