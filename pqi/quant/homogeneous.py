"""A network that scales with its input: f(a x; a b) = a f(x; b) for every a > 0, with the biases as an input.

Linear layers, ReLU, pooling, addition and moves scale so already; only biases do not. So the input gets one value more,
e, and every bias b becomes the product b e. Which form is cheapest in private? Every linear map pays for opening what
it reads and is dealt as many ring elements as it has results.

- A column (dense) or a plane (convolution) more at the layer's input is dealt nothing, but e would have to stand
  beside activations in their scale: a requantization of e, opened again, for each layer, and j no longer exact. And
  its weights would share the grid of the layer's few bits.
- A plane of e scaled per channel is opened once for each size of picture, and dealt a picture of every channel.
- Here: C products b_c e, computed once, then *repeated* over the picture by each server on its own shares, and added
  (``FloatSpread``). e is opened once for the whole network, one value in one exchange; each layer is dealt C elements.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from pqi.graph.errors import QuantizationError
from pqi.graph.floating import (
    Affine,
    AvgPool2d,
    Clamp,
    Entry,
    FloatConv2d,
    FloatDense,
    FloatGraph,
    FloatNode,
    FloatSpread,
    Linear,
)
from pqi.graph.ops import Add, Concat, Expand, MaxPool2d, Pad, Permute, Reshape, Slice, SumPool2d

_SCALES = (Entry, FloatConv2d, FloatDense, Affine, FloatSpread, Add, AvgPool2d, MaxPool2d, SumPool2d)
_MOVES = (Concat, Expand, Pad, Permute, Reshape, Slice)


def has_biases(graph: FloatGraph) -> bool:
    """Whether any layer adds a constant."""
    return any(isinstance(n.op, Linear) and bool(n.op.bias.any()) for n in graph.nodes)


def homogeneous(graph: FloatGraph, levels: int, unit: float = 1.0) -> FloatGraph:
    """The network on one flat input (numel + 1,): the values of a x, and the real e = a * unit for every bias.

    It computes a f(x). levels: the largest a; unit: the real that the code 1 stands for, so that a is itself a code.
    Layers keep their names; a layer with a bias is followed by its sum, ``name.biased``. The given graph is left as it
    is. Raises QuantizationError, naming every layer whose operator does not scale with its input.
    """
    check_scales(graph)
    entry, names = graph.nodes[0], _Names(graph)
    shape = graph.shapes[entry.name]
    numel = math.prod(shape)
    flat = FloatNode(names.fresh(f"{entry.name}.values"), Slice(0, 0, numel), (entry.name,), entry.source)
    values = FloatNode(names.fresh(f"{entry.name}.shaped"), Reshape(shape), (flat.name,), entry.source)
    scale = FloatNode(names.fresh(f"{entry.name}.scale"), Slice(0, numel, numel + 1), (entry.name,), entry.source)
    nodes = [replace(entry, op=Entry((numel + 1,))), flat, *([values] if len(shape) > 1 else []), scale]
    now = {entry.name: values.name if len(shape) > 1 else flat.name}
    for node in graph.nodes[1:]:
        node = replace(node, inputs=tuple(now.get(i, i) for i in node.inputs))
        if not isinstance(node.op, Linear) or not bool(node.op.bias.any()):
            nodes.append(node)
            continue
        expand = Expand(graph.shapes[node.name], _axis(node.op, len(graph.shapes[node.name])))
        weight, none = node.op.bias / unit, torch.zeros_like(node.op.bias)
        spread = FloatSpread(weight, none, levels, expand)
        plain = replace(node, op=replace(node.op, bias=none))
        bias = FloatNode(names.fresh(f"{node.name}.bias"), spread, (scale.name,), node.source)
        total = FloatNode(names.fresh(f"{node.name}.biased"), Add(), (node.name, bias.name), node.source)
        now[node.name] = total.name
        nodes += [plain, bias, total]
    made = FloatGraph(nodes, now.get(graph.output, graph.output))
    made.refresh()
    return made


def _axis(op: Linear, rank: int) -> int:
    """The axis of the output channels, without the batch axis."""
    if isinstance(op, Affine):
        return op.axis
    return rank - 1 if isinstance(op, FloatDense) else 0


def check_scales(graph: FloatGraph) -> None:
    """Raise QuantizationError, naming every layer whose operator does not scale with its input."""
    problems = [f"{node.name!r}{f' ({node.source})' if node.source else ''} {word}" for node, word in _wrong(graph)]
    if problems:
        raise QuantizationError(
            "dynamic quantization needs a network that scales with its input: f(a x) = a f(x), biases apart. "
            f"These layers do not: {'; '.join(problems)}. Use ReLU, max and average pooling and fine-tune, or quantize "
            "statically (dynamic=False)."
        )


def _wrong(graph: FloatGraph) -> Sequence[tuple[FloatNode, str]]:
    found = []
    for node in graph.nodes:
        op = node.op
        if isinstance(op, Clamp):
            if op.lo not in (0.0, -math.inf) or op.hi not in (0.0, math.inf):
                found.append((node, f"clamps to [{op.lo:g}, {op.hi:g}]"))
        elif not isinstance(op, (*_SCALES, *_MOVES)):
            found.append((node, f"is a {op.kind}, whose result does not grow with its input"))
    return found


class _Names:
    """Names that no node has."""

    def __init__(self, graph: FloatGraph) -> None:
        self.taken = {n.name for n in graph.nodes}

    def fresh(self, name: str) -> str:
        made, count = name, 2
        while made in self.taken:
            made, count = f"{name}#{count}", count + 1
        self.taken.add(made)
        return made
