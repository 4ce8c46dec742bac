"""What can go wrong between a network and its integer form; every message says what to do.

::

    PqiGraphError
    ├── UnsupportedOperator   the network uses operators that have no exact integer form here; all are listed at once
    ├── GraphError            an integer graph that contradicts itself (shapes, fields, names)
    ├── RangeError            a ring that can wrap, or an accumulator that no ring of 32 bits can hold
    ├── QuantizationError     numbers to quantize with that cannot work (ranges, bits, calibration data)
    ├── InputError            a client's input with a wrong shape, dtype or value
    └── ModelFileError        a model file that is truncated, altered, of another version, or not one at all
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class PqiGraphError(Exception):
    """Root of the errors of ``pqi.graph`` and ``pqi.quant``."""


class GraphError(PqiGraphError, ValueError):
    """The integer graph contradicts itself; the message names the node, the field, its value and its bound."""


class RangeError(PqiGraphError, ValueError):
    """A value can leave its ring; the message names the layer, the bits needed and the bits allowed."""


class QuantizationError(PqiGraphError, ValueError):
    """Scales, bits or calibration data that cannot work; the message names the number and its bound."""


class InputError(PqiGraphError, ValueError):
    """An input of the wrong shape or dtype, or with NaN, infinity or values outside the declared range."""


class ModelFileError(PqiGraphError, ValueError):
    """A file that is not a whole, unaltered model file of this version. Nothing in it was executed."""


class SaturationWarning(UserWarning):
    """Some input values lie outside the declared input range and were moved to its nearest end."""


class CalibrationWarning(UserWarning):
    """The calibration data are usable but thin: few samples, or a layer that they leave constant."""


@dataclass(frozen=True)
class Unsupported:
    """One operator that cannot be imported: its name, its place in the user's source, and what to do instead."""

    operator: str
    place: str
    advice: str

    def __str__(self) -> str:
        place = self.place or "an unknown place (no stack trace was recorded)"
        return f"{self.operator}\n    at {place}\n    {self.advice}"


class UnsupportedOperator(PqiGraphError, NotImplementedError):
    """The network uses operators without an exact integer form; ``operators`` lists every one of them."""

    def __init__(self, operators: Sequence[Unsupported]) -> None:
        self.operators = tuple(operators)
        noun = "operator has" if len(self.operators) == 1 else "operators have"
        listing = "\n".join(f"{i}. {item}" for i, item in enumerate(self.operators, 1))
        super().__init__(f"{len(self.operators)} {noun} no integer form here:\n{listing}")
