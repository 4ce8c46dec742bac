"""A float network in polynomial form: linear layers and squares, and nothing else.

An activation f becomes the parabola of least squares over what calibration saw of its input z, channel by channel,

    f(z) ~ a z^2 + b z + c = sign(a) u^2 + k,    u = sqrt(|a|) (z + h),    h = b / 2a,    k = c - a h^2

so that a square alone remains: sqrt(|a|) and h go into the layer before, k and the sign into the one behind. A parabola
is kept from being nearly straight, |h| <= 3 standard deviations of z: the square must do something that training uses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pqi.graph.errors import QuantizationError
from pqi.graph.floating import (
    Activation,
    Affine,
    AvgPool2d,
    Clamp,
    Entry,
    FloatConv2d,
    FloatDense,
    FloatGraph,
    FloatNode,
    Smooth,
    Square,
)
from pqi.graph.ops import Add, Concat, MaxPool2d, Op, Pad, Permute, Reshape, Slice
from pqi.graph.rewrite import simplify
from pqi.quant.batches import Batches

ACTIVATIONS = ("fitted", "square")
LINEAR = (FloatConv2d, FloatDense, Affine)
MOVING = (Reshape, Permute, Slice, Pad, AvgPool2d)
JOINING = (Add, Concat)
_SHARE = (
    0.1  # of the whole tensor's statistics in each channel's: a channel that calibration hardly moved has a fit, too
)
_STRAIGHT = 3.0  # largest |h|, in standard deviations of the tensor


@dataclass(frozen=True)
class Moments:
    """Per channel: means of z^0 ... z^4, float64 (C, 5), and of f(z) z^0 ... f(z) z^2, float64 (C, 3)."""

    powers: Tensor
    products: Tensor


def refuse_others(graph: FloatGraph, activation: str) -> None:
    """Raise QuantizationError naming every layer without a polynomial form, and what would serve it."""
    problems = []
    for node in graph.nodes:
        why = _problem(node, activation)
        if why:
            problems.append(f"layer {node.name!r}{f' ({node.source})' if node.source else ''} {why}")
    last = _last(graph)
    if isinstance(last.op, (Clamp, Smooth)) and not problems:
        problems.append(
            f"layer {last.name!r} is an activation at the very end: leave it out and apply it to the decoded answer"
        )
    if problems:
        raise QuantizationError("the network has no polynomial form:\n  " + "\n  ".join(problems))


def _problem(node: FloatNode, activation: str) -> str:
    op = node.op
    if isinstance(op, MaxPool2d):
        return "is a maximum: use average pooling, or pqi.quantize and protocol additive2, which computes maxima"
    if isinstance(op, Activation) and not isinstance(op, Clamp):
        return (
            f"is a {op.kind}, which no parabola follows: use relu or a square, or pqi.quantize and protocol additive2, "
            "which computes signs"
        )
    if isinstance(op, (Clamp, Smooth)) and activation == "square":
        name = op.function if isinstance(op, Smooth) else "clamp (a relu or the like)"
        return f"is a {name}, but activation='square' keeps the squares that a network has: use activation='fitted'"
    if not isinstance(op, (Entry, Square, Clamp, Smooth, *LINEAR, *MOVING, *JOINING)):
        return f"is a {op.kind}: use pqi.quantize and protocol additive2"
    return ""


def _last(graph: FloatGraph) -> FloatNode:
    """The node that computes the answer's values, before they are moved."""
    known = graph.by_name()
    node = known[graph.output]
    while isinstance(node.op, MOVING):
        node = known[node.inputs[0]]
    return node


def activations(graph: FloatGraph) -> list[FloatNode]:
    """The activations that need a parabola."""
    return [node for node in graph.nodes if isinstance(node.op, (Clamp, Smooth))]


def measure(graph: FloatGraph, batches: Batches) -> dict[str, Moments]:
    """One pass: what each activation's input was, by the activation's name."""
    found = {node.name: node for node in activations(graph)}
    sums: dict[str, tuple[Tensor, Tensor]] = {}
    count = 0

    def look(name: str, value: Tensor) -> None:
        for node in found.values():
            if node.inputs[0] == name:
                axis = channel_axis(graph, name) + 1
                rows = value.movedim(axis, 0).flatten(1).double()
                if not bool(torch.isfinite(rows).all()):
                    raise QuantizationError(f"layer {name!r} computes NaN or infinity on the calibration data")
                f = node.op.evaluate([rows])
                powers = torch.stack([(rows**i).mean(1) for i in range(5)], 1)
                products = torch.stack([(f * rows**i).mean(1) for i in range(3)], 1)
                old = sums.get(node.name, (torch.zeros(()), torch.zeros(())))
                sums[node.name] = old[0] + powers * len(value), old[1] + products * len(value)

    for batch in batches:
        graph.run(batch, look)
        count += len(batch)
    return {name: Moments(powers / count, products / count) for name, (powers, products) in sums.items()}


def channel_axis(graph: FloatGraph, name: str) -> int:
    """The axis of a value that counts as its channels: the first of images, the last of anything else."""
    rank = len(graph.shapes[name])
    return 0 if rank == 3 else rank - 1


def parabola(moments: Moments) -> tuple[Tensor, Tensor, Tensor]:
    """(a, h, k), each (C,): a (z + h)^2 + k is f's parabola of least squares, channel by channel."""
    powers = (1 - _SHARE) * moments.powers + _SHARE * moments.powers.mean(0)
    products = (1 - _SHARE) * moments.products + _SHARE * moments.products.mean(0)
    spread = float((powers[:, 2].mean() - powers[:, 1].mean() ** 2).clamp(min=0).sqrt()) or 1.0
    scale = spread ** torch.arange(5, dtype=torch.float64)
    s, t = powers / scale, products / scale[:3]
    left = torch.stack([torch.stack([s[:, 4 - i - j] for j in range(3)], 1) for i in range(3)], 1)
    left = left + 1e-6 * torch.eye(3, dtype=torch.float64)
    a, b, _ = torch.linalg.solve(left, t.flip(1)).unbind(1)
    least = torch.maximum(b.abs() / (2 * _STRAIGHT), torch.full_like(b, 1e-3))
    a = torch.where(a < 0, -1.0, 1.0) * torch.maximum(a.abs(), least)
    # With a given, b and c are fitted again; then h keeps to its limit, and k is what is left of the mean.
    variance = (s[:, 2] - s[:, 1] ** 2).clamp(min=1e-9)
    right = t - a[:, None] * s[:, 2:]
    b = (right[:, 1] - s[:, 1] * right[:, 0]) / variance
    h = (b / (2 * a)).clamp(-_STRAIGHT, _STRAIGHT)
    k = t[:, 0] - a * (s[:, 2] + 2 * h * s[:, 1] + h * h)
    return a / spread**2, h * spread, k


def with_squares(graph: FloatGraph, moments: Mapping[str, Moments]) -> FloatGraph:
    """The graph with every activation replaced by its parabola, constants folded into the layers around."""
    nodes: list[FloatNode] = []
    for node in graph.nodes:
        if node.name not in moments:
            nodes.append(node)
            continue
        a, h, k = parabola(moments[node.name])
        root, axis = a.abs().sqrt(), channel_axis(graph, node.inputs[0])
        before = FloatNode(f"{node.name}.in", Affine(root, root * h, axis), node.inputs, node.source)
        square = FloatNode(f"{node.name}.square", Square(), (before.name,), node.source)
        nodes += [before, square, replace(node, op=Affine(torch.sign(a), k, axis), inputs=(square.name,))]
    return simplify(FloatGraph(nodes, graph.output))


def is_sign(op: Op) -> bool:
    """Whether an operator only adds a constant and may change the sign: it has no weights to quantize."""
    return isinstance(op, Affine) and bool((op.weight.abs() == 1).all())
