"""Which ring each value needs: a proof from the weights, not a hope from the data.

The proof is interval arithmetic, element by element: the input is any integer tensor in the declared range, a linear
operator sends [lo, hi] to W+ [lo, hi] + W- [hi, lo] + b (so the width of the result is governed by the L1 norm of each
output channel's weights), monotone operators send ends to ends.

Only values that someone *reads as integers* must fit: what a Requantize, a Step or the answer consumes, and the codes
that a maximum compares. Everything before is linear, and a linear map may wrap as often as it likes. A Lookup reads a
residue: its ring is a part of its definition, and there is nothing to prove about the value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pqi.graph.errors import RangeError
from pqi.graph.graph import OUTPUT, IntegerGraph, Node
from pqi.graph.ops import READERS, Lookup, MaxPool2d
from pqi.graph.ops.base import Bounds

MAX_RING = 32


@dataclass(frozen=True)
class Ranges:
    """Proven ends of every value (per tensor), the bits they need, and the output channel that decides."""

    lo: dict[str, int] = field(default_factory=dict)
    hi: dict[str, int] = field(default_factory=dict)
    bits: dict[str, int] = field(default_factory=dict)
    channel: dict[str, int] = field(default_factory=dict)


def bits_needed(lo: int, hi: int) -> int:
    """Smallest k >= 1 with -2^(k-1) <= lo and hi <= 2^(k-1) - 1."""
    return max((-lo - 1).bit_length() if lo < 0 else 0, hi.bit_length() if hi > 0 else 0) + 1


def lift(x: Tensor, k: int) -> Tensor:
    """The representative of x mod 2^k in [-2^(k-1), 2^(k-1) - 1]."""
    half = 1 << (k - 1)
    return ((x + half) & ((1 << k) - 1)) - half


def prove(graph: IntegerGraph, accumulators: Mapping[str, int] | None = None) -> Ranges:
    """Ranges of all values for every input in the declared range.

    ``accumulators`` (ring in which each consumer reads its input, the answer under "output") states where values are
    reduced modulo 2^k on purpose: from there on the proof goes on with whatever that reduction can give.
    Raises RangeError naming the layer when int64 could not hold a value.
    """
    rings = accumulators or {}
    result = Ranges()
    alive: dict[str, Bounds] = {}
    last_use = {name: index for index, node in enumerate(graph.nodes) for name in node.inputs}
    for index, node in enumerate(graph.nodes):
        inputs = [alive[name] for name in node.inputs]
        if isinstance(node.op, READERS) and node.name in rings:
            inputs = [_reduced(inputs[0], result.bits[node.inputs[0]], rings[node.name])]
        try:
            lo, hi = node.op.bounds(inputs)
        except RangeError as error:
            raise RangeError(f"layer {node.name!r}{_at(node)}: {error}") from error
        _record(result, node.name, lo, hi)
        alive[node.name] = (lo, hi)
        for name in set(node.inputs):
            if last_use[name] == index:
                del alive[name]
    return result


def _record(result: Ranges, name: str, lo: Tensor, hi: Tensor) -> None:
    result.lo[name], result.hi[name] = int(lo.min()), int(hi.max())
    result.bits[name] = bits_needed(result.lo[name], result.hi[name])
    reach = torch.maximum(-lo - 1, hi)[0]
    per_channel = reach.flatten(1).amax(1) if reach.ndim > 1 else reach
    result.channel[name] = int(per_channel.argmax()) if per_channel.ndim else 0


def _reduced(bounds: Bounds, bits: int, k: int) -> Bounds:
    if bits <= k:
        return bounds
    return torch.full_like(bounds[0], -(1 << (k - 1))), torch.full_like(bounds[1], (1 << (k - 1)) - 1)


def _at(node: Node) -> str:
    return f" ({node.source})" if node.source else ""


def proven_accumulators(graph: IntegerGraph, ranges: Ranges) -> dict[str, int]:
    """The ring in which each consumer (Requantize, Step, Lookup, "output") reads its input.

    As many bits as the proof says; those of its definition for a Lookup.
    """
    return {consumer: ranges.bits[value] for consumer, value in graph.readers().items()} | defined_accumulators(graph)


def defined_accumulators(graph: IntegerGraph) -> dict[str, int]:
    """The ring in which each Lookup reads: 2^bits by definition, whatever the policy and the data."""
    return {node.name: node.op.bits for node in graph.nodes if isinstance(node.op, Lookup)}


def calibrated_accumulators(
    graph: IntegerGraph, ranges: Ranges, seen: Mapping[str, tuple[int, int]], margin_bits: int
) -> dict[str, int]:
    """As proven_accumulators, from the ends ``seen`` on data plus a margin, and never wider than the proof."""
    observed = {
        consumer: min(ranges.bits[value], bits_needed(*seen[consumer]) + margin_bits)
        for consumer, value in graph.readers().items()
    }
    return observed | defined_accumulators(graph)


def refuse_wide(graph: IntegerGraph, accumulators: Mapping[str, int], ranges: Ranges, max_ring: int = MAX_RING) -> None:
    """Raise RangeError, naming every layer, if some value needs more than ``max_ring`` bits."""
    cyclic = [f"{name!r}: k = {k}" for name, k in defined_accumulators(graph).items() if k > max_ring]
    if cyclic:
        raise RangeError(
            f"max_ring is {max_ring}, but these tables are read mod 2^k by definition: {', '.join(cyclic)}. "
            "Use a larger max_ring, or tables of fewer entries."
        )
    problems = []
    for consumer, value in graph.readers().items():
        k = accumulators[consumer]
        if k > max_ring:
            layer = graph.by_name[value]
            problems.append(
                f"layer {value!r}{_at(layer)}, read by {consumer!r}: {k} bits needed, {max_ring} allowed "
                f"(values from {ranges.lo[value]} to {ranges.hi[value]}, decided by channel {ranges.channel[value]})"
            )
    if problems:
        raise RangeError(
            "a value can leave its ring:\n  " + "\n  ".join(problems) + "\nUse fewer weight_bits or activation_bits, a "
            "larger max_ring (at most 32), or ask for rings='calibrated' if wrapping on rare inputs is acceptable."
        )


def rings(graph: IntegerGraph, accumulators: Mapping[str, int], ranges: Ranges) -> dict[str, int]:
    """The ring k of every node's value: the widest of what its consumers demand.

    A Requantize, a Step, a Lookup and the answer demand the k in which they read; a linear or local operator demands
    its own ring of each input; a maximum demands one bit more than the codes it compares (for their difference), and
    its own.
    """
    need: dict[str, int] = {node.name: 1 for node in graph.nodes}
    need[graph.output] = accumulators[OUTPUT]
    for node in reversed(graph.nodes):
        for name in node.inputs:
            if isinstance(node.op, READERS):
                demand = accumulators[node.name]
            elif isinstance(node.op, MaxPool2d):
                demand = max(ranges.bits[name] + 1, need[node.name])
            else:
                demand = need[node.name]
            need[name] = max(need[name], demand)
    return need
