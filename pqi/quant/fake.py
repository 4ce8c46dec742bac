"""The fake-quantized network: the float graph with every value on the grid that the integers will have.

What frameworks show as quantize-dequantize nodes: x -> clamp(round(x / s)) * s where values become codes, and weights
and biases that are the reals which the integers stand for. It knows nothing of shifts, offsets and rings, so that its
distance from the float network is the price of the grids, and the integer model's distance from it the price of the
rings (and whatever is wrong with the integers). The integer model is the truth; this is a picture of it in float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from pqi.graph.errors import GraphError
from pqi.graph.floating import (
    Affine,
    Clamp,
    Entry,
    FloatDense,
    FloatGraph,
    FloatNode,
    FloatSpread,
    Linear,
    Sign,
    Threshold,
)
from pqi.graph.graph import Node
from pqi.graph.ops import Conv2d, Dense, Lookup, Op, Requantize, Scale, Shape, Step
from pqi.graph.ops.base import single
from pqi.quant.quantizer import Quantizer
from pqi.quant.stages import Calibration, Lowered

# Of a step: what float64 may lose in a sum. A tie, which the integers meet exactly, then falls to the same side.
_SLACK = 2.0**-24


@dataclass(frozen=True, eq=False)
class FakeQuantize(Op):
    """y = clamp(round(x / scale), low, high) * scale; halves are rounded up, as the integers round them."""

    kind: ClassVar[str] = "fake quantize"
    scale: float
    low: int
    high: int

    def infer_shape(self, in_shapes: Sequence[Shape]) -> Shape:
        """The input's shape."""
        return single(self.kind, in_shapes)

    def evaluate(self, inputs: Sequence[Tensor]) -> Tensor:
        """The nearest real that has a code, float64."""
        codes = torch.floor(inputs[0].to(torch.float64) / self.scale + (0.5 + _SLACK))
        return codes.clamp(self.low, self.high) * self.scale


@dataclass(frozen=True, eq=False)
class FakeTable(Op):
    """y = V[index] * scale with index = floor((x / unit + offset) / 2^shift): codes that are no plain multiples.

    The index is clamped to the table, or taken modulo its length where ``cyclic``. unit: a number or, per channel,
    float64 shaped to divide a batch; values: float64 [L] or, per channel (axis 1 of the batch), [C, L].
    """

    kind: ClassVar[str] = "fake table"
    values: Tensor
    scale: float
    unit: float | Tensor
    offset: int
    shift: int
    cyclic: bool = False

    def infer_shape(self, in_shapes: Sequence[Shape]) -> Shape:
        """The input's shape."""
        return single(self.kind, in_shapes)

    def evaluate(self, inputs: Sequence[Tensor]) -> Tensor:
        """The entries, float64."""
        read = (inputs[0].to(torch.float64) / self.unit + self.offset) / 2**self.shift
        index, last = torch.floor(read + _SLACK).to(torch.int64), self.values.shape[-1] - 1
        index = index & last if self.cyclic else index.clamp(0, last)
        if self.values.ndim == 1:
            return self.values[index] * self.scale
        channel = torch.arange(index.shape[1]).view((1, -1) + (1,) * (index.ndim - 2))
        return self.values[channel, index] * self.scale


def fake_quantized(calibration: Calibration, lowered: Lowered) -> FloatGraph:
    """The fake-quantized network of a lowered one: ``run(x)`` takes the float network's inputs, and gives float64.

    Its nodes carry the names of the integer graph's; one more, at the head, is the input as it arrives.
    Raises GraphError when the two do not belong together.
    """
    placed = calibration.placed.graph
    integers = lowered.graph.by_name
    if list(placed.shapes.items()) != list(lowered.graph.shapes.items()):
        raise GraphError("the lowered graph is not one of this calibration: names or shapes of their layers differ")
    entry, offsets = placed.nodes[0], reading_offsets(calibration, lowered)
    arrives = f"{entry.name}.float"
    while arrives in integers:
        arrives += "_"
    nodes = [replace(entry, name=arrives), FloatNode(entry.name, _input(calibration.quantizer), (arrives,))]
    for node in placed.nodes[1:]:
        nodes.append(replace(node, op=_operator(node, integers[node.name], placed, lowered, offsets)))
    graph = FloatGraph(nodes, placed.output)
    graph.refresh()
    return graph


def reading_offsets(calibration: Calibration, lowered: Lowered) -> dict[str, int]:
    """What was added to each accumulator for its reader: a value n stands for (n - offset) * scale.

    Those of the lowered graph, and the 1 by which thresholds and signs read strictly.
    """
    graph = calibration.placed.graph
    known, offsets = graph.by_name(), dict(lowered.offsets)
    for node in graph.nodes:
        if isinstance(node.op, Sign) or (isinstance(node.op, Threshold) and node.op.below == 0):
            read = known[node.inputs[0]]
            offsets[read.name] = 1
            if not isinstance(read.op, Linear):  # of an addition, the first term carries it
                offsets[read.inputs[0]] = 1
    return offsets


def spread(scale: float | Tensor, node: FloatNode, axes: int) -> float | Tensor:
    """A scale shaped to multiply the batch (of ``axes`` axes) that a linear node computes."""
    if not isinstance(scale, Tensor):
        return scale
    shape = [1] * axes
    op = node.op
    if isinstance(op, FloatDense):
        at = -1
    else:
        at = op.axis + 1 if isinstance(op, Affine) else op.expand.axis + 1 if isinstance(op, FloatSpread) else 1
    shape[at] = -1
    return scale.view(shape)


def _input(quantizer: Quantizer) -> FakeQuantize:
    if isinstance(quantizer.scale, tuple):
        raise GraphError("the input quantizer must have one scale for the whole tensor")
    return FakeQuantize(1.0 / quantizer.scale, *quantizer.code_range)


def _operator(node: FloatNode, integer: Node, placed: FloatGraph, lowered: Lowered, offsets: dict[str, int]) -> Op:
    op = node.op
    if isinstance(op, Entry):
        raise GraphError(f"{node.name!r} is a second input; a graph has one")
    if isinstance(op, Linear):
        return _linear(node.name, op, integer, lowered, offsets)
    if isinstance(integer.op, (Requantize, Step, Lookup)):
        return _reader(node, integer.op, placed, lowered, offsets)
    return op  # moves, pools or adds reals as they are


def _linear(name: str, op: Linear, integer: Node, lowered: Lowered, offsets: dict[str, int]) -> Op:
    """The operator with the real weights and biases that the integers stand for."""
    if not isinstance(integer.op, (Conv2d, Dense, Scale)):
        raise GraphError(f"{name!r} is {integer.op.kind} in integers and {op.kind} in float")
    unit = torch.as_tensor(lowered.scales[name], dtype=torch.float64)
    weight = integer.op.weight * (unit / number(lowered.scales[integer.inputs[0]], integer.inputs[0])).view(
        (-1,) + (1,) * (op.weight.ndim - 1)
    )
    bias = (integer.op.bias - offsets.get(name, 0)) * unit
    return replace(op, weight=weight.to(torch.float64), bias=bias.to(torch.float64))


def _reader(node: FloatNode, op: Op, placed: FloatGraph, lowered: Lowered, offsets: dict[str, int]) -> Op:
    """What a requantization, a step or a table does to reals."""
    scale, read = number(lowered.scales[node.name], node.name), node.inputs[0]
    if isinstance(op, Requantize) and op.values is None and isinstance(node.op, Clamp):
        return FakeQuantize(scale, op.low, op.low + (1 << op.bits) - 1)  # from the scale alone: no shift, no offset
    unit, offset, shift = lowered.scales[read], offsets.get(read, 0), 0
    unit = spread(unit, placed.by_name()[read], len(placed.shapes[read]) + 1)
    if isinstance(op, Step):
        values, offset = torch.tensor([-1, 1]), offset + 1
    elif isinstance(op, Lookup):
        values = op.values
    elif isinstance(op, Requantize):
        values, shift = (torch.arange(1 << op.bits) + op.low if op.values is None else op.values), op.shift
    else:
        raise GraphError(f"{node.name!r} is {op.kind}: it reads no accumulator")
    return FakeTable(values.to(torch.float64), scale, unit, offset, shift, isinstance(op, Lookup))


def number(scale: float | Tensor, name: str) -> float:
    """A scale that must be one number."""
    if isinstance(scale, Tensor) and scale.numel() != 1:
        raise GraphError(f"{name!r} holds codes of one scale per channel; codes have one for the whole tensor")
    value = float(scale)
    if not (math.isfinite(value) and value > 0):
        raise GraphError(f"{name!r} has the scale {value}: it must be positive and finite")
    return value
