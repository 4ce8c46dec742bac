"""Integer graph -> circuit: runs of affine layers become one affine map each, polynomials stand between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pqi.graph.graph import OUTPUT, Node
from pqi.graph.model import IntegerModel
from pqi.graph.ops import (
    Add,
    Concat,
    Conv2d,
    Dense,
    MaxPool2d,
    Noise,
    Offset,
    Op,
    Pad,
    Permute,
    Polynomial,
    Reshape,
    Scale,
    Slice,
    SumPool2d,
)
from pqi.graph.polynomial import PolynomialModel
from pqi.program.errors import ProgramError
from protocols.circuit import Circuit, Weights, Wide, prove

Model: TypeAlias = IntegerModel | PolynomialModel
Made: TypeAlias = tuple[str, NDArray[np.bool_], Weights] | tuple[str, tuple[int, ...]]

_AFFINE = (Conv2d, Dense, Scale, Add, Concat, Offset, Pad, Permute, Reshape, Slice, SumPool2d)
_LIMB = 24
_INT64_SAFE = 1 << 62


@dataclass(frozen=True)
class _Value:
    """An affine function of the latest basis (the input, or the results of a polynomial), of shape ``shape``.

    columns int64 (basis, *shape): what each entry of the basis contributes. support: the same with every weight 1, so
    that it shows geometry and no weight. bias: Python integers (prod(shape),). level: which basis.
    """

    level: int
    columns: Tensor
    support: Tensor
    bias: Wide
    layer: str

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.columns.shape[1:])


def circuit_of(model: Model) -> tuple[Circuit, dict[str, Weights]]:
    """The circuit that computes a model's integers, its ranges proven, and the secret weights of its affine stages.

    Raises ProgramError naming the layer that is no affine map and no polynomial, and which protocol serves it.
    """
    if isinstance(model, IntegerModel):
        _refuse_wrapping(model)
    graph = model.graph
    for node in graph.nodes[1:]:
        if not isinstance(node.op, (*_AFFINE, Polynomial)):
            raise ProgramError(_refusal(node))
    builder = _Builder(prod(graph.input.shape), graph.input.shape)
    values = {graph.nodes[0].name: builder.start()}
    for node in graph.nodes[1:]:
        values[node.name] = builder.apply(node, [values[name] for name in node.inputs])
    answer = values[graph.output]
    if answer.level != builder.level:
        raise ProgramError(f"the answer {graph.output!r} is computed before the last polynomial: not a chain of layers")
    builder.close(answer)
    circuit = prove(graph.input.lo, graph.input.hi, builder.stages)
    return circuit, {stage[0]: stage[2] for stage in builder.stages if len(stage) == 3}


def _refuse_wrapping(model: IntegerModel) -> None:
    """An integer without a ring is the model's answer only where the model's ring cannot wrap."""
    if OUTPUT in model.verify().can_wrap:
        raise ProgramError(
            "the answer's ring was calibrated and can wrap, but integers under a key do not: "
            "quantize with rings='proven'"
        )
    if model.dynamic is not None:
        raise ProgramError("a model with dynamic inputs is served by 'additive2': quantize with fixed inputs")


class _Builder:
    """Stages so far and the basis that values refer to."""

    def __init__(self, inputs: int, shape: tuple[int, ...]) -> None:
        self.level = 0
        self.stages: list[Made] = []
        self._basis, self._shape = inputs, shape

    def start(self, layer: str = "input") -> _Value:
        """The basis itself."""
        eye = torch.eye(self._basis, dtype=torch.int64).reshape(self._basis, *self._shape)
        return _Value(self.level, eye, eye, np.zeros(self._basis, dtype=object), layer)

    def apply(self, node: Node, inputs: Sequence[_Value]) -> _Value:
        """The value of a node."""
        stale = [value.layer for value in inputs if value.level != self.level]
        if stale:
            raise ProgramError(
                f"layer {node.name!r} reads {stale[0]!r} around a polynomial; a circuit under a key is a chain. "
                "'additive2' serves connections that skip layers"
            )
        if isinstance(node.op, Polynomial):
            self.close(inputs[0])
            self.stages.append((node.name, node.op.coefficients))
            self.level += 1
            self._shape = inputs[0].shape
            self._basis = prod(self._shape)
            return self.start(node.name)
        return _affine(node, node.op, inputs)

    def close(self, value: _Value) -> None:
        """Make an affine stage of a value."""
        weight = value.columns.flatten(1).t().contiguous().numpy()
        support = (value.support.flatten(1).t() != 0).numpy()
        name = value.layer if value.layer not in {stage[0] for stage in self.stages} else f"{value.layer}/as it is"
        self.stages.append((name, support, Weights(weight, value.bias)))


def _refusal(node: Node) -> str:
    kind = f"layer {node.name!r} ({node.op.kind}{', ' + node.source if node.source else ''})"
    if isinstance(node.op, Noise):
        return (
            f"{kind} is drawn by a dealer, so that no server and no client knows it, and under a key there is none: "
            "serve the model by 'additive2', or quantize with answers='scores'"
        )
    if isinstance(node.op, MaxPool2d):
        help_ = "average pooling in its place can be computed under a key"
    else:
        help_ = "pqi.to_polynomial makes a network whose activations are polynomials, which 'bfv' and 'ckks' serve"
    return (
        f"{kind} is no affine map and no polynomial: nobody can compute it under a key. {help_}; 'additive2' serves it"
    )


def _affine(node: Node, op: Op, inputs: Sequence[_Value]) -> _Value:
    """Send the columns, the support and the bias of the inputs through one affine operator."""
    ones = _structure(op)
    columns = _linear_part(op, [value.columns for value in inputs], node)
    support = (_linear_part(ones, [(value.support != 0).long() for value in inputs], node) != 0).long()
    bias = _bias(op, inputs, node)
    return _Value(inputs[0].level, columns, support, bias, node.name if op.tensors() else inputs[0].layer)


def _structure(op: Op) -> Op:
    """The operator with every weight 1: what is zero in it is zero by geometry."""
    if isinstance(op, Conv2d | Dense | Scale):
        return replace(op, weight=torch.ones_like(op.weight), bias=torch.zeros_like(op.bias))
    return op


def _linear_part(op: Op, columns: Sequence[Tensor], node: Node) -> Tensor:
    """``op(columns) - op(0)``, exact; refused where int64 could not hold it."""
    reach = max(int(c.abs().max()) if c.numel() else 0 for c in columns) * _gain(op)
    if reach >= _INT64_SAFE:
        raise ProgramError(
            f"layer {node.name!r}: the weights of the layers before it multiply to 2^{reach.bit_length()}"
        )
    zero = op.evaluate([torch.zeros_like(c[:1]) for c in columns])
    return op.evaluate(columns) - zero


def _gain(op: Op) -> int:
    """A bound on how much larger than its inputs the linear part can become."""
    if isinstance(op, Conv2d | Dense):
        return max(1, int(op.weight.abs().flatten(1).sum(1).max()))
    if isinstance(op, Scale):
        return max(1, int(op.weight.abs().max()))
    return 1 << 16 if isinstance(op, SumPool2d) else 1


def _bias(op: Op, inputs: Sequence[_Value], node: Node) -> Wide:
    """The bias after the operator: its linear part on the bias so far, limb by limb, plus its own."""
    limbs = [_limbs(value.bias) for value in inputs]
    count = max(map(len, limbs))
    stacked = [
        torch.from_numpy(np.stack([*own, *[np.zeros_like(own[0])] * (count - len(own))])).reshape(count, *value.shape)
        for own, value in zip(limbs, inputs, strict=True)
    ]
    moved = _linear_part(op, stacked, node).reshape(count, -1).numpy().astype(object)
    total: Wide = _own_bias(op, inputs)
    for j, limb in enumerate(moved):
        total = total + (limb << (_LIMB * j))
    return total


def _own_bias(op: Op, inputs: Sequence[_Value]) -> Wide:
    zeros = [torch.zeros(1, *value.shape, dtype=torch.int64) for value in inputs]
    if isinstance(op, Offset):
        mantissa: Wide = replace(op, shift=0).evaluate(zeros).reshape(-1).numpy().astype(object)
        out: Wide = mantissa * (1 << op.shift)
        return out
    plain: Wide = op.evaluate(zeros).reshape(-1).numpy().astype(object)
    return plain


def _limbs(x: Wide) -> list[NDArray[np.int64]]:
    """x in digits of 24 bits, the last one signed: ``x = sum_j limb_j 2^(24 j)``."""
    out: list[NDArray[np.int64]] = []
    rest: Wide = x
    while not all(-(1 << _LIMB) <= v < 1 << _LIMB for v in rest):
        out.append((rest & ((1 << _LIMB) - 1)).astype(np.int64))
        rest = rest >> _LIMB
    return [*out, rest.astype(np.int64)]
