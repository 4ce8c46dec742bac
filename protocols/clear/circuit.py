"""The meaning of a circuit, in Python integers: what every exact keyed protocol returns, whatever the sizes."""

from __future__ import annotations

import numpy as np

from protocols.circuit import Affine, Circuit, Integers, Owned, Wide
from protocols.errors import Misuse


def define_circuit(circuit: Circuit, weights: Owned, x: Integers) -> Wide:
    """The answer, Python integers ``(n, outputs)``, for int64 x ``(n, inputs)``."""
    if x.ndim != 2 or x.shape[1] != circuit.inputs:
        raise Misuse(f"inputs {x.shape} for a circuit of {circuit.inputs}")
    value: Wide = x.astype(object)
    for stage in circuit.stages:
        if isinstance(stage, Affine):
            own = weights[stage.name]
            value = _product(value, own.weight.T.astype(object)) + own.bias
        else:
            value = _horner(stage.coefficients, value)
    return value


def _product(x: Wide, matrix: Wide) -> Wide:
    out: Wide = x @ matrix if len(x) else np.zeros((0, matrix.shape[1]), dtype=object)
    return out


def _horner(coefficients: tuple[int, ...], x: Wide) -> Wide:
    total: Wide = np.full_like(x, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        total = total * x + c
    return total
