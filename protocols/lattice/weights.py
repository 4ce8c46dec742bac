"""Weights that come to a plan: do they fit it, and a name for them."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from protocols.circuit import Affine, Circuit, Owned, Weights, prove
from protocols.errors import BadParameters


def digest(weights: Owned) -> bytes:
    """A name for weights, to find what was prepared of them."""
    state = hashlib.sha256()
    for name in sorted(weights):
        for label, array in sorted(weights[name].to_arrays().items()):
            state.update(f"{name!r} {label} {array.dtype} {array.shape};".encode())
            state.update(np.ascontiguousarray(array).tobytes())
    return state.digest()


def check(circuit: Circuit, weights: Owned) -> None:
    """Raises BadParameters unless these weights give what the circuit declares."""
    missing = [stage.name for stage in circuit.affine if stage.name not in weights]
    if missing:
        raise BadParameters(f"no weights for stage {missing[0]!r}")
    for stage in circuit.affine:
        own = weights[stage.name]
        if own.weight.shape != stage.support.shape or own.bias.shape != (stage.outputs,):
            raise BadParameters(
                f"stage {stage.name!r}: weights {own.weight.shape} and bias {own.bias.shape} do not fit a map of "
                f"{stage.inputs} to {stage.outputs} values"
            )
    described: list[Any] = [
        (stage.name, stage.support, Weights(weights[stage.name].weight, weights[stage.name].bias.astype(object)))
        if isinstance(stage, Affine)
        else (stage.name, stage.coefficients)
        for stage in circuit.stages
    ]
    proven = prove(circuit.low, circuit.high, described)
    for declared, found in zip(circuit.stages, proven.stages, strict=True):
        if found.bits > declared.bits:
            raise BadParameters(
                f"stage {found.name!r}: these weights can give values of {found.bits} bits, the circuit declares "
                f"{declared.bits}; compile the model again"
            )
