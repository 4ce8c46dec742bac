"""A model's arrays as one flat vector and back; what every client and the server must agree on, and nothing secret."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pqi.federated.errors import EncodingError

_KINDS = "fiu"


@dataclass(frozen=True)
class Layout:
    """Shapes and dtypes of a list of arrays, in order. Public, equal for all parties of a round.

    shapes: one tuple an array. dtypes: numpy names ("float32"); arrays of integers are averaged as reals and rounded
    to the nearest on the way back. Raises :class:`EncodingError` for an array that is not of real numbers.
    """

    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.shapes) != len(self.dtypes) or not self.shapes:
            raise EncodingError(
                f"a layout has a shape and a dtype an array, not {len(self.shapes)}, {len(self.dtypes)}"
            )
        for place, (shape, name) in enumerate(zip(self.shapes, self.dtypes, strict=True)):
            if any(isinstance(side, bool) or not isinstance(side, int) or side < 0 for side in shape):
                raise EncodingError(f"array {place} has shape {shape}: sides are integers from 0 on")
            _real(place, name)
        if self.length < 1:
            raise EncodingError("the layout holds no value: there is nothing to sum")

    @classmethod
    def of(cls, arrays: Sequence[np.ndarray]) -> Layout:
        """The layout of these arrays."""
        return cls(tuple(tuple(a.shape) for a in arrays), tuple(a.dtype.name for a in arrays))

    @property
    def length(self) -> int:
        """Values in the flat vector."""
        return sum(math.prod(shape) for shape in self.shapes)

    def flatten(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """One vector ``(length,)``: float64 if any array is, else float32. Refuses arrays of another layout."""
        if len(arrays) != len(self.shapes):
            raise EncodingError(f"{len(arrays)} arrays were given, the layout of this round has {len(self.shapes)}")
        for place, (array, shape) in enumerate(zip(arrays, self.shapes, strict=True)):
            if tuple(array.shape) != shape:
                raise EncodingError(
                    f"array {place} has shape {tuple(array.shape)}, the layout of this round says {shape}"
                )
            _real(place, array.dtype.name)
        wide = any(a.dtype.itemsize > 4 and a.dtype.kind == "f" for a in arrays)
        out, at = np.empty(self.length, np.float64 if wide else np.float32), 0
        for array in arrays:
            out[at : at + array.size] = array.reshape(-1)
            at += array.size
        return out

    def unflatten(self, vector: np.ndarray) -> list[np.ndarray]:
        """The arrays that a vector ``(length,)`` holds, each of its shape and dtype; copies."""
        if vector.shape != (self.length,):
            raise EncodingError(f"the vector has shape {vector.shape}, the layout of this round has ({self.length},)")
        arrays, at = list[np.ndarray](), 0
        for shape, name in zip(self.shapes, self.dtypes, strict=True):
            part = vector[at : at + math.prod(shape)].reshape(shape)
            arrays.append((np.rint(part) if np.dtype(name).kind in "iu" else part).astype(name))
            at += math.prod(shape)
        return arrays

    def facts(self) -> dict[str, Any]:
        """As JSON can hold it; ``from_facts`` reads it back."""
        return {"shapes": [list(shape) for shape in self.shapes], "dtypes": list(self.dtypes)}

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> Layout:
        """The checked layout of ``facts``, which may come from outside."""
        try:
            return cls(tuple(tuple(s) for s in facts["shapes"]), tuple(str(d) for d in facts["dtypes"]))
        except (KeyError, TypeError) as error:
            raise EncodingError(f"these are no facts of a layout: {error!r}") from None


def _real(place: int, name: str) -> None:
    try:
        summable = np.dtype(name).kind in _KINDS
    except TypeError:
        summable = False
    if not summable:
        raise EncodingError(f"array {place} has dtype {name}: arrays of real numbers or integers can be summed")
