"""What a model is made of, layer by layer: rings, proofs, shifts, weights and operations."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from pqi.graph.graph import OUTPUT, IntegerGraph, Node
from pqi.graph.ops import Conv2d, Dense, MaxPool2d, Requantize, Scale, Step
from pqi.graph.ranges import prove

if TYPE_CHECKING:
    from pqi.graph.model import IntegerModel


@dataclass(frozen=True)
class Row:
    """One layer.

    ring: bits of its value's ring. proven_bits: bits that no input can exceed. wrapped: share seen, if asked. reads,
    shift and index_bits belong to requantizations: ring of what is read, bits dropped of it, and bits left.
    """

    name: str
    op: str
    shape: tuple[int, ...]
    ring: int
    proven_bits: int
    reads: int | None
    shift: int | None
    index_bits: int | None
    weights: int
    macs: int
    activations: int
    wrapped: float | None
    source: str


@dataclass(frozen=True)
class Report:
    """The rows, the totals, and the layer whose accumulator needs the widest ring."""

    rows: tuple[Row, ...]
    policy: str
    widest: str
    output_ring: int
    output_wrapped: float | None

    @property
    def macs(self) -> int:
        """Multiply-accumulates per input."""
        return sum(row.macs for row in self.rows)

    @property
    def activations(self) -> int:
        """Values per input that are requantized, compared or thresholded."""
        return sum(row.activations for row in self.rows)

    @property
    def weights(self) -> int:
        """Weights and biases."""
        return sum(row.weights for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {
            "policy": self.policy,
            "widest_layer": self.widest,
            "output_ring": self.output_ring,
            "output_wrapped": self.output_wrapped,
            "macs": self.macs,
            "activations": self.activations,
            "weights": self.weights,
            "layers": [{**asdict(row), "shape": list(row.shape)} for row in self.rows],
        }

    def __rich__(self) -> Table:
        """A table for the terminal."""
        caption = (
            f"{self.policy} rings; widest read by {self.widest}; answer in {self.output_ring} bits; "
            f"{self.macs:,} multiply-accumulates, {self.activations:,} activations, {self.weights:,} weights. "
            "reads = shift + index bits"
        )
        table = Table(title="Integer model", caption=caption, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
        watched = any(row.wrapped is not None for row in self.rows)
        table.add_column("layer", overflow="fold", min_width=12)
        for title in ("operator", "shape"):
            table.add_column(title, no_wrap=True)
        for title in ["ring", "proof", "reads", "MACs", "values"] + ["wraps"] * watched:
            table.add_column(title, justify="right", no_wrap=True)
        for row in self.rows:
            index = "" if row.reads is None else f"{row.shift}+{row.index_bits}"
            counts = [f"{n:,}" if n else "" for n in (row.macs, row.activations)]
            share = ["" if row.wrapped is None else f"{row.wrapped:.0e}" if row.wrapped else "0"] * watched
            shape = "x".join(map(str, row.shape))
            table.add_row(row.name, row.op, shape, str(row.ring), str(row.proven_bits), index, *counts, *share)
        return table

    def __str__(self) -> str:
        return (
            f"IntegerModel: {len(self.rows)} nodes, {self.policy} rings up to {max(r.ring for r in self.rows)} bits "
            f"(read by {self.widest}), {self.macs:,} MACs, {self.activations:,} activations, {self.weights:,} weights"
        )


def multiply_accumulates(graph: IntegerGraph, node: Node) -> int:
    """Products per input of a linear node."""
    size = math.prod(graph.shapes[node.name])
    if isinstance(node.op, Conv2d):
        return size * math.prod(node.op.weight.shape[1:])
    if isinstance(node.op, Dense):
        return size * node.op.weight.shape[1]
    return size if isinstance(node.op, Scale) else 0


def build_report(model: IntegerModel, wrapped: Mapping[str, float] | None) -> Report:
    """The report of a model; ``wrapped`` is the share of wrapped values per consumer, if it was measured."""
    graph, proof = model.graph, prove(model.graph)
    weights = graph.weight_count()
    rows = []
    for node in graph.nodes:
        op, reads = node.op, model.accumulators.get(node.name)
        shift = op.shift if isinstance(op, Requantize) else 0 if isinstance(op, Step) else None
        reading = isinstance(op, (Requantize, Step))
        rows.append(
            Row(
                name=node.name,
                op=op.kind,
                shape=graph.shapes[node.name],
                ring=model.rings[node.name],
                proven_bits=proof.bits[node.name],
                reads=reads,
                shift=shift,
                index_bits=reads - shift if reads is not None and shift is not None else None,
                weights=weights.get(node.name, 0),
                macs=multiply_accumulates(graph, node),
                activations=math.prod(graph.shapes[node.name]) if reading or isinstance(op, MaxPool2d) else 0,
                wrapped=wrapped[node.name] if wrapped is not None and reading else None,
                source=node.source,
            )
        )
    widest = max(model.accumulators, key=lambda name: model.accumulators[name])
    return Report(
        tuple(rows), model.policy, widest, model.accumulators[OUTPUT], None if wrapped is None else wrapped[OUTPUT]
    )
