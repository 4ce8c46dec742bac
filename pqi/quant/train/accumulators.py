"""The ring as a constraint of training: what every accumulator can reach, as a penalty and as a repair.

A value behind a linear operator reaches at most  hi = sum over w > 0 of w x_hi + sum over w < 0 of w x_lo + bias,
and lo with the ends exchanged (interval arithmetic; the same proof as in ``pqi.graph.ranges``). So a ring of k bits
bounds the weights' L1 norms (A2Q, Colbert et al., ICCV 2023). Training feels a penalty where a channel leaves the
bound; what rounding leaves over at the end is repaired by moving the codes that lose least towards zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pqi.graph.errors import RangeError
from pqi.graph.graph import OUTPUT, IntegerGraph, Node
from pqi.graph.ops import WEIGHTED, Add, Requantize, Scale, Step
from pqi.graph.ranges import Ranges, prove
from pqi.quant.stages import Grid, Lowered

_ROUNDS = 64  # of the repair; each moves at least one code of every channel that is still too wide
Weights = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Term:
    """One linear operator of an accumulator, and the ends of the codes that it reads."""

    name: str
    lo: float
    hi: float


@dataclass(frozen=True)
class Accumulator:
    """What one consumer reads: a sum of linear operators."""

    consumer: str
    terms: tuple[Term, ...]


def accumulators(graph: IntegerGraph, ranges: Ranges) -> tuple[Accumulator, ...]:
    """Every accumulator that is a linear operator, or an addition of some; the rest is left to the proof."""
    found = []
    for consumer, value in graph.readers().items():
        reader = graph.by_name.get(consumer)
        if consumer != OUTPUT and not isinstance(reader.op if reader else None, (Requantize, Step)):
            continue
        node = graph.by_name[value]
        parts = [graph.by_name[i] for i in node.inputs] if isinstance(node.op, Add) else [node]
        if all(isinstance(part.op, WEIGHTED) for part in parts):
            found.append(Accumulator(consumer, tuple(_term(part, ranges) for part in parts)))
    return tuple(found)


def _term(node: Node, ranges: Ranges) -> Term:
    read = node.inputs[0]
    # Padding adds zeros, so zero lies inside every range that a window can see.
    return Term(node.name, float(min(ranges.lo[read], 0)), float(max(ranges.hi[read], 0)))


def reach(accumulator: Accumulator, weights: Mapping[str, Weights]) -> Weights:
    """(lo, hi) of an accumulator, per output channel."""
    lo: Tensor | float = 0.0
    hi: Tensor | float = 0.0
    for term in accumulator.terms:
        weight, bias = weights[term.name]
        flat = weight.reshape(weight.shape[0], -1)
        up, down = flat.clamp(min=0).sum(1), flat.clamp(max=0).sum(1)
        lo = lo + up * term.lo + down * term.hi + bias
        hi = hi + up * term.hi + down * term.lo + bias
    return torch.as_tensor(lo), torch.as_tensor(hi)


def penalty(found: tuple[Accumulator, ...], weights: Mapping[str, Weights], ring: int) -> Tensor:
    """How far all channels lie outside [-2^(ring-1), 2^(ring-1) - 1], in units of that bound, summed."""
    top = float(1 << (ring - 1))
    total = torch.zeros(())
    for accumulator in found:
        lo, hi = reach(accumulator, weights)
        total = total + ((hi - (top - 1)).clamp(min=0) + (-top - lo).clamp(min=0)).sum() / top
    return total


def repaired(lowered: Lowered, ring: int, wanted: Mapping[str, Tensor]) -> tuple[Lowered, int]:
    """The lowered graph with every accumulator inside the ring, and how many codes had to move.

    wanted: the reals that the integer weights were rounded from. In a channel that is too wide, codes of the guilty
    sign move one level towards zero, those first whose rounding had moved them away from it. Raises RangeError naming
    the layer where biases and fixed factors alone leave the ring.
    """
    graph, moved = lowered.graph, 0
    for _ in range(_ROUNDS):
        ranges, readers = prove(graph), graph.readers()
        changes: dict[str, Tensor] = {}
        for accumulator in accumulators(graph, ranges):
            if ranges.bits[readers[accumulator.consumer]] <= ring:
                continue
            for name, weight, count in _narrower(graph, lowered.grids, accumulator, ring, wanted):
                changes[name] = weight
                moved += count
        if not changes:
            return replace(lowered, graph=graph), moved
        nodes = [
            replace(n, op=replace(n.op, weight=changes[n.name])) if n.name in changes and isinstance(n.op, WEIGHTED)
            else n
            for n in graph.nodes
        ]  # fmt: skip
        graph = IntegerGraph(tuple(nodes), graph.output)
    raise RangeError(f"weights could not be brought inside rings of {ring} bits: use a wider max_ring")


def _narrower(
    graph: IntegerGraph,
    grids: Mapping[str, Grid],
    accumulator: Accumulator,
    ring: int,
    wanted: Mapping[str, Tensor],
) -> Iterator[tuple[str, Tensor, int]]:
    """New weights for the widest trainable term of an accumulator that leaves the ring."""
    ops = {t.name: graph.by_name[t.name].op for t in accumulator.terms}
    weights = {name: (op.weight, op.bias) for name, op in ops.items() if isinstance(op, WEIGHTED)}
    lo, hi = reach(accumulator, weights)
    top = 1 << (ring - 1)
    over, under = hi - (top - 1), -top - lo
    if not bool(((over > 0) | (under > 0)).any()):
        return
    trained = [t for t in accumulator.terms if t.name in grids and not isinstance(ops[t.name], Scale)]
    if not trained:
        raise RangeError(
            f"what {accumulator.consumer!r} reads leaves a ring of {ring} bits by its bias or its fixed factors alone "
            f"(from {int(lo.min())} to {int(hi.max())}): use a wider max_ring or fewer activation bits"
        )
    term = trained[0]
    weight, count = weights[term.name][0].clone(), 0
    for channel in ((over > 0) | (under > 0)).nonzero().flatten().tolist():
        levels = grids[term.name].row(channel)
        excess = (float(over[channel]), float(under[channel]))
        count += _shrink(weight[channel], wanted[term.name][channel], levels, term, *excess)
    if not count:
        raise RangeError(
            f"layer {term.name!r} has no weight left to shrink and its channel still leaves a ring of {ring} bits: "
            "its bias is too large. Use a wider max_ring or fewer activation bits"
        )
    yield term.name, weight, count


def _shrink(row: Tensor, wanted: Tensor, levels: Tensor, term: Term, over: float, under: float) -> int:
    """Move codes of one channel towards zero, in place, until both ends fit or every code moved once."""
    flat, real = row.view(-1), wanted.reshape(-1)
    at = torch.searchsorted(levels, flat)
    inner = torch.where(flat > 0, levels[(at - 1).clamp(min=0)], levels[(at + 1).clamp(max=len(levels) - 1)])
    freed = (flat - inner).abs()
    # A positive weight counts x_hi towards the top and -x_lo towards the bottom; a negative one the other way round.
    to_top = torch.where(flat > 0, term.hi, -term.lo) * freed
    to_bottom = torch.where(flat > 0, -term.lo, term.hi) * freed
    movable = inner.abs() < flat.abs()
    price = (inner - real).abs() - (flat - real).abs()
    moved = 0
    for index in torch.argsort(price.masked_fill(~movable, torch.inf), stable=True).tolist():
        if not bool(movable[index]) or (over <= 0 and under <= 0):
            break
        if (over > 0 and float(to_top[index]) > 0) or (under > 0 and float(to_bottom[index]) > 0):
            flat[index] = inner[index]
            over, under, moved = over - float(to_top[index]), under - float(to_bottom[index]), moved + 1
    return moved
