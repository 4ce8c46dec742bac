"""Cross-layer equalization: the ranges of channels shared out between neighbouring layers, the function unchanged.

For f(x) = W2 relu(W1 x + b1) + b2 and any s_c > 0, relu(s z) = s relu(z) lets row c of (W1, b1) be divided by s_c and
the columns of W2 that read channel c be multiplied by it. With r1_c = max |row c of W1| and r2_c = max |columns c of
W2| the factor s_c = sqrt(r1_c / r2_c) makes both ranges sqrt(r1_c r2_c): no channel is lost in the step of another.
Layers share pairs, so pair after pair is balanced until nothing moves any more.
(Nagel, van Baalen, Blankevoort, Welling: Data-Free Quantization, ICCV 2019, section 4.1.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pqi.graph.floating import AvgPool2d, Clamp, FloatConv2d, FloatDense, FloatGraph, FloatNode, Linear, MaxPool2d
from pqi.graph.ops import Op, Pad, Permute, Reshape, Slice, SumPool2d

_ROUNDS = 200
_STILL = 1e-4  # largest |log s| of a round after which the balance counts as reached
_MOVING = (Reshape, Permute, Slice, Pad)
_POOLS = (MaxPool2d, AvgPool2d, SumPool2d)


@dataclass(frozen=True)
class Pair:
    """Two linear layers of which the second alone reads the first.

    channel: int64, for each input position of the second layer the output channel of the first that it reads; -1 for
    one that it does not read (zeros that were padded).
    """

    first: str
    second: str
    channel: Tensor


def equalized(graph: FloatGraph) -> FloatGraph:
    """A graph of the same function (up to float rounding) whose neighbouring layers have balanced channels.

    Pairs are layer -> (ReLU, pools, reshapes, permutations, slices, padding) -> layer, each value read by one node
    alone: convolutions of any groups and dense layers. Across a clamp with a finite end other than 0 (ReLU6,
    hardtanh), a sign or a threshold nothing is moved, since these do not keep a factor. The graph given is not changed.
    """
    found = pairs(graph)
    ops: dict[str, Linear] = {n.name: n.op for n in graph.nodes if isinstance(n.op, Linear)}
    limits = {pair.first: _largest(ops[pair.first]) for pair in found}
    for _ in range(_ROUNDS if found else 0):
        moved = max(_balance(ops, pair, limits[pair.first]) for pair in found)
        if moved < _STILL:
            break
    result = FloatGraph([replace(n, op=ops.get(n.name, n.op)) for n in graph.nodes], graph.output)
    result.refresh()
    return result


def pairs(graph: FloatGraph) -> list[Pair]:
    """The pairs of layers between which factors can move, in the graph's order."""
    readers, found = graph.consumers(), []
    for node in graph.nodes:
        if isinstance(node.op, (FloatConv2d, FloatDense)):
            pair = _pair_from(graph, readers, node)
            if pair is not None:
                found.append(pair)
    return found


def _pair_from(graph: FloatGraph, readers: dict[str, list[FloatNode]], first: FloatNode) -> Pair | None:
    """Follow a layer's value to the next layer, with the channel that each of its elements belongs to."""
    shape = graph.shapes[first.name]
    axis = 0 if isinstance(first.op, FloatConv2d) else len(shape) - 1
    view = [1] * (len(shape) + 1)
    view[axis + 1] = shape[axis]
    channel: Tensor | None = torch.arange(shape[axis]).view(view).expand(1, *shape)
    node = first
    while channel is not None:
        if node.name == graph.output or len(readers[node.name]) != 1:
            return None
        node = readers[node.name][0]
        if isinstance(node.op, (FloatConv2d, FloatDense)):
            positions = _positions(node.op, channel)
            return None if positions is None else Pair(first.name, node.name, positions)
        channel = _through(node.op, channel, graph.shapes[node.name])
    return None


def _through(op: Op, channel: Tensor, shape: tuple[int, ...]) -> Tensor | None:
    """The channels of an operator's result; None where a factor of the input is no factor of the result."""
    if isinstance(op, Clamp):
        return channel if all(math.isinf(end) or end == 0 for end in (op.lo, op.hi)) else None
    if isinstance(op, _MOVING):
        return op.evaluate([channel + 1]) - 1  # Pad fills in zeros: these become -1, no channel
    if isinstance(op, _POOLS):
        own = _common(channel[0].flatten(1))
        return None if own is None else own[None, :, None, None].expand(1, *shape)
    return None


def _common(channels: Tensor) -> Tensor | None:
    """The one channel in each row, (rows,); None where a row mixes several. Padded zeros mix with all of them."""
    own = channels.amax(1)
    return own if bool(((channels == own[:, None]) | (channels < 0)).all()) else None


def _positions(op: FloatConv2d | FloatDense, channel: Tensor) -> Tensor | None:
    """The channel at each input position of a layer; None where one position reads several."""
    return _common(
        channel[0].flatten(1) if isinstance(op, FloatConv2d) else channel[0].reshape(-1, channel.shape[-1]).t()
    )


def _largest(op: Linear) -> float:
    """max |b_c| + L1 norm of row c: what the largest channel gives on inputs of 1."""
    return float((op.bias.abs() + op.weight.abs().flatten(1).sum(1)).max())


def _balance(ops: dict[str, Linear], pair: Pair, limit: float) -> float:
    """Balance one pair in place of its operators, with no bias above the limit; the largest |log s_c|."""
    first, second = ops[pair.first], ops[pair.second]
    rows = first.weight.abs().flatten(1).amax(1)
    read = pair.channel >= 0
    columns = torch.zeros_like(rows)
    columns.scatter_reduce_(0, pair.channel[read], _column_reach(second)[read], "amax")
    alive = (rows > 0) & (columns > 0)
    factor = torch.where(alive, (rows / columns.where(alive, 1.0)).sqrt(), 1.0)
    # A channel of tiny weights is nearly the constant b: raising its weights must not let b set the layer's range.
    factor = torch.where(alive, torch.maximum(factor, first.bias.abs() / max(limit, 1e-300)), factor)
    ops[pair.first] = first.rescaled(1 / factor, torch.zeros_like(factor))
    each = torch.where(read, factor[pair.channel.clamp(min=0)], 1.0)
    ops[pair.second] = replace(second, weight=second.weight * _per_column(second, each))
    return float(factor.log().abs().max())


def _column_reach(op: Linear) -> Tensor:
    """max |w| over everything that reads one input position, (I,)."""
    if not isinstance(op, FloatConv2d):
        return op.weight.abs().amax(0)
    reach = op.weight.abs().flatten(2).amax(2)
    return reach.view(op.groups, -1, reach.shape[1]).amax(1).flatten()


def _per_column(op: Linear, each: Tensor) -> Tensor:
    """Factors (I,) in a shape that multiplies the weight."""
    if not isinstance(op, FloatConv2d):
        return each
    return each.view(op.groups, -1).repeat_interleave(op.channels // op.groups, 0)[:, :, None, None]
