"""Rewrites of the float graph that keep its meaning: fold constants into weights, and pool after the activation."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from pqi.graph.floating import (
    Activation,
    Affine,
    Clamp,
    FloatConv2d,
    FloatDense,
    FloatGraph,
    FloatNode,
    Linear,
    Threshold,
)
from pqi.graph.ops import Concat, MaxPool2d, Op, Permute, Reshape

# Elementwise operators change places with these freely, because these only choose or move values
# (the maximum also, since every activation here is monotone).
_TRANSPARENT = (MaxPool2d, Reshape, Permute, Concat)


def simplify(graph: FloatGraph) -> FloatGraph:
    """Fold affine operators into the linear operator before them, move activations up, drop what does nothing.

    Works on the graph in place and returns it; the function computed stays the same (up to float rounding).
    """
    rules = (_fold_affine, _fold_forward, _merge_clamps, _drop_idle, _raise_activation)
    for ruleset in (rules, (*rules, _straighten)):
        graph.refresh()
        while any(rule(graph) for rule in ruleset):
            graph.refresh()
    return graph


def _substitute(graph: FloatGraph, old: str, new: str) -> None:
    """Let every reader of ``old`` read ``new``."""
    graph.nodes = [replace(n, inputs=tuple(new if i == old else i for i in n.inputs)) for n in graph.nodes]
    graph.output = new if graph.output == old else graph.output


def _put(graph: FloatGraph, name: str, node: FloatNode) -> None:
    graph.nodes = [node if n.name == name else n for n in graph.nodes]


def _only_reader(graph: FloatGraph, name: str) -> bool:
    return name != graph.output and len(graph.consumers()[name]) == 1


def _fold_affine(graph: FloatGraph) -> bool:
    """linear, then affine: one linear operator, if nobody else reads the linear one's value."""
    known = graph.by_name()
    for node in graph.nodes:
        if not isinstance(node.op, Affine):
            continue
        before = known[node.inputs[0]]
        if not isinstance(before.op, (Linear, Threshold)) or not _only_reader(graph, before.name):
            continue
        op = _folded(before, node.op, len(graph.shapes[before.name]))
        if op is not None:
            _put(graph, before.name, op)
            _substitute(graph, node.name, before.name)
            return True
    return False


def _fold_forward(graph: FloatGraph) -> bool:
    """affine, then linear: one linear operator, if it alone reads the affine and no zero padding comes between."""
    known = graph.by_name()
    for node in graph.nodes:
        affine = known[node.inputs[0]] if isinstance(node.op, (FloatConv2d, FloatDense)) else node
        if affine is node or not isinstance(affine.op, Affine) or not _only_reader(graph, affine.name):
            continue
        linear = _absorbed(node.op, affine.op, len(graph.shapes[affine.name]))
        if linear is not None:
            _put(graph, node.name, replace(node, op=linear, inputs=affine.inputs))
            return True
    return False


def _absorbed(op: Op, affine: Affine, rank: int) -> Linear | None:
    """W (w x + b) + c as (W w) x + (W b + c); None where that does not hold."""
    if isinstance(op, FloatDense) and affine.axis == rank - 1:
        return replace(op, weight=op.weight * affine.weight, bias=op.bias + op.weight @ affine.bias)
    if not isinstance(op, FloatConv2d) or affine.axis != 0 or (any(op.padding) and bool(affine.bias.any())):
        return None
    # One row per group; every output channel sees the input channels of its own group.
    factor = affine.weight.view(op.groups, -1).repeat_interleave(op.channels // op.groups, 0)[:, :, None, None]
    shift = affine.bias.view(op.groups, -1).repeat_interleave(op.channels // op.groups, 0)[:, :, None, None]
    return replace(op, weight=op.weight * factor, bias=op.bias + (op.weight * shift).sum((1, 2, 3)))


def _folded(before: FloatNode, affine: Affine, rank: int) -> FloatNode | None:
    op = before.op
    if isinstance(op, Threshold):
        return _other_levels(before, op, affine)
    axis = {FloatConv2d: 0, FloatDense: rank - 1, Affine: getattr(op, "axis", 0)}.get(type(op))
    uniform = bool((affine.weight == affine.weight[0]).all() and (affine.bias == affine.bias[0]).all())
    if not isinstance(op, Linear) or (affine.axis != axis and not uniform):
        return None
    factor, shift = affine.weight, affine.bias
    if affine.axis != axis:
        factor, shift = factor[0].expand(op.channels), shift[0].expand(op.channels)
    return replace(before, op=op.rescaled(factor, shift))


def _other_levels(before: FloatNode, op: Threshold, affine: Affine) -> FloatNode | None:
    """(x >= 0) * 2 - 1 in its parts: a threshold whose levels become -1 and 1."""
    pairs = zip(affine.weight.tolist(), affine.bias.tolist(), strict=True)
    levels = {(weight * op.below + bias, weight * op.above + bias) for weight, bias in pairs}
    known = {(-1.0, 1.0): (-1, 1), (0.0, 1.0): (0, 1)}
    if len(levels) != 1 or (level := levels.pop()) not in known:
        return None
    below, above = known[level]
    return replace(before, op=replace(op, below=below, above=above))


def _merge_clamps(graph: FloatGraph) -> bool:
    """A clamp of a clamp is one clamp."""
    known = graph.by_name()
    for node in graph.nodes:
        if not isinstance(node.op, Clamp):
            continue
        before = known[node.inputs[0]]
        if not isinstance(before.op, Clamp):
            continue
        lo, hi = max(node.op.lo, before.op.lo), min(node.op.hi, before.op.hi)
        if (lo, hi) == (before.op.lo, before.op.hi):
            _substitute(graph, node.name, before.name)
            return True
        if lo < hi and _only_reader(graph, before.name):
            _put(graph, before.name, replace(before, op=Clamp(lo, hi)))
            _substitute(graph, node.name, before.name)
            return True
    return False


def _drop_idle(graph: FloatGraph) -> bool:
    """Operators that change nothing: unit affine, endless clamp, reshape to the same shape, concat of one value."""
    for node in graph.nodes:
        if not node.inputs:
            continue
        op, same = node.op, graph.shapes[node.inputs[0]] == graph.shapes[node.name]
        idle = (
            (isinstance(op, Affine) and torch.equal(op.weight, torch.ones_like(op.weight)) and not bool(op.bias.any()))
            or (isinstance(op, Clamp) and math.isinf(op.lo) and math.isinf(op.hi))
            or (isinstance(op, Reshape) and same)
            or (isinstance(op, Permute) and op.axes == tuple(range(len(op.axes))))
            or (isinstance(op, Concat) and len(node.inputs) == 1)
        )
        if idle:
            _substitute(graph, node.name, node.inputs[0])
            return True
    return False


def _straighten(graph: FloatGraph) -> bool:
    """An affine along another axis than the channels': the same along the channels, between two permutations."""
    for node in graph.nodes:
        op = node.op
        if not isinstance(op, Affine) or op.axis == 0:
            continue
        rank, channels = len(graph.shapes[node.name]), graph.shapes[node.name][0]
        if bool((op.weight == op.weight[0]).all() and (op.bias == op.bias[0]).all()):
            uniform = Affine(op.weight[:1].expand(channels).clone(), op.bias[:1].expand(channels).clone())
            _put(graph, node.name, replace(node, op=uniform))
            return True
        swap = list(range(rank))
        swap[0], swap[op.axis] = op.axis, 0
        there = FloatNode(f"{node.name}.there", Permute(tuple(swap)), node.inputs, node.source)
        scaled = FloatNode(f"{node.name}.scaled", replace(op, axis=0), (there.name,), node.source)
        at = next(i for i, n in enumerate(graph.nodes) if n.name == node.name)
        graph.nodes[at : at + 1] = [there, scaled, replace(node, op=Permute(tuple(swap)), inputs=(scaled.name,))]
        return True
    return False


def _raise_activation(graph: FloatGraph) -> bool:
    """pool then activation: activation then pool, so that the maximum compares small codes (also past reshapes)."""
    known = graph.by_name()
    for node in graph.nodes:
        if not isinstance(node.op, Activation):
            continue
        before = known[node.inputs[0]]
        if not isinstance(before.op, _TRANSPARENT) or not _only_reader(graph, before.name):
            continue
        raised = [
            replace(node, name=f"{node.name}.{i}" if i else node.name, inputs=(v,)) for i, v in enumerate(before.inputs)
        ]
        moved = replace(before, inputs=tuple(r.name for r in raised))
        rest = [n for n in graph.nodes if n.name != node.name]
        at = next(i for i, n in enumerate(rest) if n.name == before.name)
        rest[at : at + 1] = [*raised, moved]
        graph.nodes = [
            n
            if n in raised or n is moved
            else replace(n, inputs=tuple(moved.name if i == node.name else i for i in n.inputs))
            for n in rest
        ]
        graph.output = moved.name if graph.output == node.name else graph.output
        return True
    return False
