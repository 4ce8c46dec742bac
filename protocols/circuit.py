"""Circuits over the integers: affine maps and polynomials in turn. What a *keyed* protocol computes (``keyed``).

A circuit is public: sizes, which weights may be non-zero by the geometry of a layer, the polynomials, and how many bits
the values need. Its weights are not: they are :class:`Weights`, one per affine stage, held by the model owner. There is
no ring here: a value is an integer, and the proof says how large it can become.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from protocols.errors import BadParameters, Misuse

Integers: TypeAlias = NDArray[np.int64]
Wide: TypeAlias = NDArray[np.object_]
"""Python integers of any size."""

MAX_DEGREE = 4
MAX_WIDTH = 1 << 16
MAX_ENTRIES = 1 << 25
MAX_STAGES = 64
_LIMB = 31


@dataclass(frozen=True, eq=False)
class Affine:
    """``y = W x + b``: W ``(outputs, inputs)``, b ``(outputs,)``.

    support: bool ``(outputs, inputs)``; W is zero where it is False, whatever the weights (a convolution's geometry).
    bits: every y is in ``[-2^(bits-1), 2^(bits-1))`` for every input in range.
    """

    name: str
    support: NDArray[np.bool_]
    bits: int

    def __post_init__(self) -> None:
        if self.support.ndim != 2 or self.support.dtype != np.bool_ or self.support.size == 0:
            raise BadParameters(f"stage {self.name!r}: support is {self.support.dtype} {self.support.shape}: no matrix")
        if max(self.support.shape) > MAX_WIDTH or self.support.size > MAX_ENTRIES:
            raise BadParameters(
                f"stage {self.name!r}: a map of {self.inputs} to {self.outputs} values has {self.support.size} "
                f"entries; widths up to {MAX_WIDTH} and {MAX_ENTRIES} entries are served"
            )

    @property
    def outputs(self) -> int:
        """Values in the result."""
        return int(self.support.shape[0])

    @property
    def inputs(self) -> int:
        """Values read."""
        return int(self.support.shape[1])


@dataclass(frozen=True)
class Polynomial:
    """``y = sum_i c_i x^i``, the same for every value. coefficients: ``(c_0, ..., c_d)``, integers, d from 2 to 4."""

    name: str
    coefficients: tuple[int, ...]
    bits: int

    def __post_init__(self) -> None:
        if not 3 <= len(self.coefficients) <= MAX_DEGREE + 1 or self.coefficients[-1] == 0:
            raise BadParameters(
                f"stage {self.name!r}: coefficients {self.coefficients} are not those of a polynomial of degree 2 to "
                f"{MAX_DEGREE}"
            )

    @property
    def degree(self) -> int:
        """Highest power."""
        return len(self.coefficients) - 1

    @property
    def depth(self) -> int:
        """Products of two ciphertexts that follow on each other: ceil(log2(degree))."""
        return (self.degree - 1).bit_length()


Stage = Affine | Polynomial


@dataclass(frozen=True, eq=False)
class Circuit:
    """Stages in order: affine, polynomial, affine, ..., affine. Inputs are integers in [low, high]."""

    low: int
    high: int
    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        kinds = [isinstance(stage, Affine) for stage in self.stages]
        if not kinds or len(kinds) > MAX_STAGES or kinds != [i % 2 == 0 for i in range(len(kinds))] or not kinds[-1]:
            raise BadParameters(
                f"a circuit is affine, polynomial, affine, ..., affine, of at most {MAX_STAGES} stages; got "
                f"{[type(stage).__name__ for stage in self.stages]}"
            )
        if not self.low <= self.high or len({stage.name for stage in self.stages}) != len(self.stages):
            raise BadParameters(f"a circuit needs low <= high and a name per stage; got {self.low}..{self.high}")
        for before, after in zip(self.affine, self.affine[1:], strict=False):
            if before.outputs != after.inputs:
                raise BadParameters(
                    f"stage {after.name!r} reads {after.inputs} values, stage {before.name!r} gives {before.outputs}"
                )

    @cached_property
    def affine(self) -> tuple[Affine, ...]:
        """The affine stages."""
        return tuple(stage for stage in self.stages if isinstance(stage, Affine))

    @cached_property
    def polynomials(self) -> tuple[Polynomial, ...]:
        """The polynomial stages."""
        return tuple(stage for stage in self.stages if isinstance(stage, Polynomial))

    @property
    def inputs(self) -> int:
        """Values of one input."""
        return self.affine[0].inputs

    @property
    def outputs(self) -> int:
        """Values of one answer."""
        return self.affine[-1].outputs

    @property
    def bits(self) -> int:
        """Signed bits that hold every answer: what the modulus of an exact protocol must cover."""
        return self.stages[-1].bits

    def check_inputs(self, codes: Integers) -> None:
        """Raise Misuse unless codes are int64 ``(n, inputs)`` within [low, high]: what the proof speaks of."""
        if codes.ndim != 2 or codes.shape[1] != self.inputs or codes.dtype != np.int64:
            raise Misuse(f"codes {codes.dtype} {codes.shape}; this circuit takes int64 (n, {self.inputs})")
        if codes.size and not self.low <= int(codes.min()) <= int(codes.max()) <= self.high:
            raise Misuse(f"a code lies outside {self.low}..{self.high}, the range of the circuit's proof")


@dataclass(frozen=True, eq=False, repr=False)
class Weights:
    """The secret of an affine stage: weight int64 ``(outputs, inputs)``, bias of Python integers ``(outputs,)``."""

    weight: Integers
    bias: Wide

    def __repr__(self) -> str:
        return f"Weights({self.weight.shape})"

    def to_arrays(self) -> dict[str, Integers]:
        """As int64 arrays: ``weight``, and ``bias`` ``(limbs, outputs)`` with value ``sum_j limb_j 2^(31 j)``."""
        limbs, rest = [], self.bias.copy()
        while True:
            digit = rest & ((1 << _LIMB) - 1)
            rest = rest >> _LIMB
            limbs.append(digit)
            if all(value in (0, -1) for value in rest):
                limbs[-1] = limbs[-1] + rest * (1 << _LIMB)
                return {"weight": self.weight, "bias": np.stack(limbs).astype(np.int64)}

    @staticmethod
    def from_arrays(weight: Integers, bias: Integers) -> Weights:
        """The inverse of :meth:`to_arrays`."""
        total = np.zeros(bias.shape[1], dtype=object)
        for j, limb in enumerate(bias):
            total = total + (limb.astype(object) << (_LIMB * j))
        return Weights(weight, total)


Owned: TypeAlias = Mapping[str, Weights]
"""Weights by the name of their affine stage."""


def prove(
    low: int, high: int, stages: Sequence[tuple[str, NDArray[np.bool_], Weights] | tuple[str, tuple[int, ...]]]
) -> Circuit:
    """The circuit of given weights, with the bits of every stage proven by interval arithmetic.

    stages: (name, support, weights) or (name, coefficients). A linear stage sends [lo, hi] to W+ [lo, hi] + W- [hi, lo]
    + b, exactly and element by element. Raises BadParameters where a weight lies outside its support.
    """
    first = stages[0]
    lo: Wide = np.full(first[2].weight.shape[1] if len(first) == 3 else 1, low, dtype=object)
    hi: Wide = np.full(len(lo), high, dtype=object)
    made: list[Stage] = []
    for stage in stages:
        if len(stage) == 3:
            name, support, owned = stage
            if owned.weight.shape != support.shape or np.any(owned.weight[~support]):
                raise BadParameters(f"stage {name!r}: weights {owned.weight.shape} do not fit their support")
            lo, hi = _affine_bounds(owned, lo, hi)
            made.append(Affine(name, support, _bits(lo, hi)))
        else:
            name, coefficients = stage
            lo, hi = _polynomial_bounds(coefficients, lo, hi)
            made.append(Polynomial(name, coefficients, _bits(lo, hi)))
    return Circuit(low, high, tuple(made))


def _affine_bounds(owned: Weights, lo: Wide, hi: Wide) -> tuple[Wide, Wide]:
    up, down = np.maximum(owned.weight, 0), np.minimum(owned.weight, 0)
    return (
        _product(up, lo) + _product(down, hi) + owned.bias,
        _product(up, hi) + _product(down, lo) + owned.bias,
    )


def _product(weight: Integers, x: Wide) -> Wide:
    """``W x`` of Python integers: through int64 where no sum can leave it."""
    reach = max((abs(value) for value in x), default=0) * max(1, int(np.abs(weight).sum(1).max()))
    if reach < 1 << 62:
        return (weight @ x.astype(np.int64)).astype(object)
    exact: Wide = weight.astype(object) @ x
    return exact


def _polynomial_bounds(coefficients: Sequence[int], lo: Wide, hi: Wide) -> tuple[Wide, Wide]:
    """Ends of a polynomial on [lo, hi]: those of every power, times its coefficient; exact for one power."""
    low_sum, high_sum = np.zeros(len(lo), dtype=object), np.zeros(len(lo), dtype=object)
    crosses = np.array([a < 0 < b for a, b in zip(lo, hi, strict=True)])
    for power, c in enumerate(coefficients):
        ends = np.stack([lo**power, hi**power])
        least, most = ends.min(0), ends.max(0)
        if power and power % 2 == 0:
            least = np.where(crosses, 0, least)
        low_sum = low_sum + (c * least if c >= 0 else c * most)
        high_sum = high_sum + (c * most if c >= 0 else c * least)
    return low_sum, high_sum


def _bits(lo: Wide, hi: Wide) -> int:
    least, most = min(lo), max(hi)
    return max((-least - 1).bit_length() if least < 0 else 0, most.bit_length() if most > 0 else 0) + 1


def to_json(circuit: Circuit) -> dict[str, Any]:
    """Plain data without any weight; full supports as "dense", others as their columns row by row."""
    return {"low": circuit.low, "high": circuit.high, "stages": [_stage_json(stage) for stage in circuit.stages]}


def _stage_json(stage: Stage) -> dict[str, Any]:
    if isinstance(stage, Polynomial):
        return {"name": stage.name, "bits": stage.bits, "coefficients": list(stage.coefficients)}
    columns: Any = "dense" if stage.support.all() else [np.flatnonzero(row).tolist() for row in stage.support]
    return {
        "name": stage.name,
        "bits": stage.bits,
        "outputs": stage.outputs,
        "inputs": stage.inputs,
        "columns": columns,
    }


def from_json(data: Mapping[str, Any]) -> Circuit:
    """The inverse of :func:`to_json`; raises BadParameters on anything that is not a circuit."""
    try:
        stages = data["stages"]
        if not isinstance(stages, list) or len(stages) > MAX_STAGES:
            raise BadParameters(f"a circuit has a list of at most {MAX_STAGES} stages")
        return Circuit(_int(data["low"]), _int(data["high"]), tuple(_stage(stage) for stage in stages))
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise BadParameters(f"not a circuit: {type(error).__name__}: {str(error)[:200]}") from None


def _stage(data: Mapping[str, Any]) -> Stage:
    name, bits = data["name"], _int(data["bits"])
    if not isinstance(name, str) or not 1 <= bits <= 4096:
        raise BadParameters(f"stage {str(name)[:40]!r} of {bits} bits is none")
    if "coefficients" in data:
        return Polynomial(name, tuple(_int(c) for c in data["coefficients"]), bits)
    outputs, inputs, columns = _int(data["outputs"]), _int(data["inputs"]), data["columns"]
    if not (1 <= outputs <= MAX_WIDTH and 1 <= inputs <= MAX_WIDTH and outputs * inputs <= MAX_ENTRIES):
        raise BadParameters(f"stage {name!r}: a map of {inputs} to {outputs} values is not served")
    if columns == "dense":
        return Affine(name, np.ones((outputs, inputs), dtype=np.bool_), bits)
    support = np.zeros((outputs, inputs), dtype=np.bool_)
    if len(columns) != outputs:
        raise BadParameters(f"stage {name!r}: columns of {len(columns)} rows for {outputs} outputs")
    for row, taken in zip(support, columns, strict=True):
        index = [_int(c) for c in taken]
        if any(not 0 <= c < inputs for c in index):
            raise BadParameters(f"stage {name!r}: a column outside 0..{inputs - 1}")
        row[index] = True
    return Affine(name, support, bits)


def _int(value: Any) -> int:
    if type(value) is not int:
        raise TypeError(f"{str(value)[:40]!r} is not an integer")
    return value
