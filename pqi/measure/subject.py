"""What is measured: a network as float, as integers for each protocol, and inputs to ask about."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pqi.graph.model import IntegerModel
from pqi.graph.polynomial import PolynomialModel
from pqi.measure.errors import MeasureError
from pqi.program.circuits import Model
from protocols import KEYED

_SEED = 0
Recipe = Callable[[int, int, str], IntegerModel]


@dataclass(frozen=True, eq=False)
class Subject:
    """integer: for protocols on shares, and for those under a key where there is no polynomial model.

    polynomial: for protocols under a key. floating: the network as it was trained, None where it is not known.
    x: float inputs (N, *shape). y: labels (N,), None where there are none. note: what a reader should know of it.
    made: the integer model of other bits or rings, (weight bits, activation bits, rings) -> model; None where there is
    only a file.
    """

    name: str
    integer: IntegerModel | None
    polynomial: PolynomialModel | None
    floating: nn.Module | None
    x: NDArray[Any]
    y: NDArray[Any] | None = None
    note: str = ""
    made: Recipe | None = None

    def model(self, protocol: str) -> Model:
        """The model that a protocol would compute. Raises MeasureError where there is none."""
        found = (self.polynomial or self.integer) if protocol in KEYED else self.integer
        if found is None:
            raise MeasureError(
                "this is a model of polynomials, which is computed under a key: protocols "
                f"{', '.join(sorted(KEYED))}. For {protocol!r} quantize the network itself (pqi quantize)"
            )
        return found

    @property
    def models(self) -> dict[str, Model]:
        """Every model that there is, by its kind."""
        made: dict[str, Model] = {}
        if self.integer is not None:
            made["integer"] = self.integer
        if self.polynomial is not None:
            made["polynomial"] = self.polynomial
        return made

    def inputs(self, count: int, first: int = 0) -> NDArray[Any]:
        """``count`` inputs, from ``first`` on; they come again where there are fewer."""
        return np.ascontiguousarray(np.take(self.x, range(first, first + count), axis=0, mode="wrap"))


def subject_of(
    name: str, model: Model, floating: nn.Module | None, x: NDArray[Any] | None, y: NDArray[Any] | None, samples: int
) -> Subject:
    """The subject of a model from a file. Without inputs they are drawn at random from the range of its codes."""
    integer, polynomial = (model, None) if isinstance(model, IntegerModel) else (None, model)
    note = ""
    if x is None:
        x, note = _random_inputs(model, samples), "inputs drawn at random from the range of the codes"
    return Subject(name, integer, polynomial, floating, np.asarray(x), y, note)


def _random_inputs(model: Model, samples: int) -> NDArray[np.float32]:
    """Inputs of public shape and range; nobody's data."""
    low, high = model.input_quantizer.value_range
    unit = torch.rand((samples, *model.input_shape), generator=torch.Generator().manual_seed(_SEED))
    drawn: NDArray[np.float32] = (low + (high - low) * unit).numpy()
    return drawn
