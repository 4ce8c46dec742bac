"""A model compiled for a keyed protocol: the plan that both ends share, and the weights that the server holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

import protocols
from pqi.program.circuits import Model, circuit_of
from pqi.program.errors import ProgramError
from pqi.program.interface import canonical_digest
from protocols.api import SecurityStatement
from protocols.circuit import Weights
from protocols.errors import ProtocolError
from protocols.keyed import KeyedCost, KeyedProtocol, Plan
from protocols.rounds import PartyId

FORMAT = 1


@dataclass(frozen=True, eq=False)
class KeyedProgram:
    """What both sides know of a model under a key: public, equal on both sides, named by its digest.

    plan: circuit, parameters and packing. input_shape, output_shape: of one input's codes and one answer.
    """

    protocol: str
    plan: Plan
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]

    def __post_init__(self) -> None:
        circuit = self.plan.circuit
        if (prod(self.input_shape), prod(self.output_shape)) != (circuit.inputs, circuit.outputs):
            raise ProgramError(
                f"shapes {self.input_shape} -> {self.output_shape} do not fit a circuit of {circuit.inputs} inputs and "
                f"{circuit.outputs} outputs"
            )

    @property
    def backend(self) -> KeyedProtocol:
        """The protocol's object."""
        return protocols.get_keyed(self.protocol)

    @property
    def exact(self) -> bool:
        """Whether private answers equal the integer reference bit for bit."""
        return self.backend.exact

    @property
    def security(self) -> SecurityStatement:
        """Against whom, and who learns what."""
        return self.backend.security

    @property
    def parties(self) -> tuple[PartyId, ...]:
        """The one server."""
        return (PartyId.P0,)

    @property
    def needs_dealer(self) -> bool:
        """Nobody deals."""
        return False

    def cost(self, n: int = 1) -> KeyedCost:
        """Declared bytes of a batch of n."""
        return self.plan.cost(n)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON, hex; equal at both ends of a deployment."""
        return canonical_digest(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """Plain data without any weight."""
        return {
            "format": FORMAT,
            "protocol": self.protocol,
            "input_shape": list(self.input_shape),
            "output_shape": list(self.output_shape),
            "plan": self.plan.to_json(),
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> KeyedProgram:
        """A program from plain data; raises ProgramError on anything that is not one."""
        try:
            if data["format"] != FORMAT:
                raise ProgramError(f"a keyed program of format {str(data['format'])[:20]}; this release reads {FORMAT}")
            name, plan = data["protocol"], data["plan"]
            if not isinstance(name, str) or not isinstance(plan, dict):
                raise ProgramError("a keyed program names a protocol and has a plan")
            made = protocols.get_keyed(name).read(plan)
            return KeyedProgram(name, made, _shape(data["input_shape"]), _shape(data["output_shape"]))
        except ProtocolError as error:
            raise ProgramError(str(error)) from None
        except (KeyError, TypeError, ValueError) as error:
            raise ProgramError(f"not a keyed program: {type(error).__name__}: {str(error)[:200]}") from None


def compile_keyed(model: Model, protocol: str, options: Mapping[str, Any] | None = None) -> KeyedProgram:
    """What client and server do to compute ``model`` under the client's key.

    protocol: a name from ``protocols.KEYED``. options: the protocol's own (see its ``plan``).
    Raises ProgramError naming the layer or stage that cannot be served, and what would help.
    """
    circuit, weights = circuit_of(model)
    try:
        backend = protocols.get_keyed(protocol)
        plan = backend.plan(circuit, {**backend.declare(circuit, weights), **(options or {})})
    except ProtocolError as error:
        raise ProgramError(f"protocol {protocol!r}: {error}") from error
    return KeyedProgram(protocol, plan, tuple(model.graph.input.shape), tuple(model.output_shape))


def keyed_tensors(model: Model, program: KeyedProgram) -> dict[str, Tensor]:
    """The server's secret: the weights of every affine stage as int64 tensors, ``stage.weight`` and ``stage.bias``."""
    circuit, weights = circuit_of(model)
    if [stage.name for stage in circuit.stages] != [stage.name for stage in program.plan.circuit.stages]:
        raise ProgramError("the program was compiled from another model")
    return {
        f"{name}.{key}": torch.from_numpy(np.ascontiguousarray(array))
        for name, own in weights.items()
        for key, array in own.to_arrays().items()
    }


def owned(program: KeyedProgram, tensors: Mapping[str, Tensor]) -> dict[str, Weights]:
    """Weights from what a bundle stores. Raises ProgramError where they do not fit the program."""
    out: dict[str, Weights] = {}
    for stage in program.plan.circuit.affine:
        weight, bias = tensors.get(f"{stage.name}.weight"), tensors.get(f"{stage.name}.bias")
        if (
            weight is None
            or bias is None
            or weight.shape != (stage.outputs, stage.inputs)
            or bias.ndim != 2
            or bias.shape[1] != stage.outputs
            or not weight.dtype == bias.dtype == torch.int64
        ):
            raise ProgramError(f"the weights of stage {stage.name!r} are missing or do not fit it. Split again")
        own = Weights.from_arrays(weight.numpy(), bias.numpy())
        if np.any(own.weight[~stage.support]):
            raise ProgramError(f"stage {stage.name!r} has a weight where its layer has none. Split again")
        out[stage.name] = own
    return out


def _shape(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(size) is int and 0 < size <= 1 << 16 for size in value):
        raise ProgramError(f"{str(value)[:60]!r} is no shape")
    return tuple(value)
