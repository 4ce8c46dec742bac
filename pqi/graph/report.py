"""What a model is made of, layer by layer: rings, proofs, shifts, weights and operations."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from pqi.graph.errors import InputError
from pqi.graph.graph import OUTPUT, IntegerGraph, Node
from pqi.graph.ops import READERS, Conv2d, Dense, Lookup, MaxPool2d, Requantize, Scale, Spread
from pqi.graph.ranges import prove

if TYPE_CHECKING:
    from pqi.graph.model import IntegerModel
    from pqi.graph.polynomial import PolynomialModel


@dataclass(frozen=True)
class Row:
    """One layer.

    ring: bits of its value's ring. proven_bits: bits that no input can exceed. wrapped: share seen, if asked. reads,
    shift and index_bits belong to requantizations: ring of what is read, bits dropped of it, and bits left. cyclic: it
    is a lookup, which reads mod 2^reads by definition, so that ``wrapped`` tells of its work and not of a breach.
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
    cyclic: bool = False

    @property
    def index(self) -> str:
        """What is read, in a few characters: "9+8" bits dropped and looked at, or "mod 2^8"."""
        if self.reads is None:
            return ""
        return f"mod 2^{self.reads}" if self.cyclic else f"{self.shift}+{self.index_bits}"


@dataclass(frozen=True)
class Price:
    """What one protocol would charge for one input: exchanges, bytes each server sends online, bytes dealt before.

    layers: the same three numbers for each layer.
    """

    exchanges: int
    online_bytes: int
    dealt_bytes: int
    layers: Mapping[str, tuple[int, int, int]]


@dataclass(frozen=True)
class Accuracy:
    """On labelled data, as shares: right in integers, right in float (if its answers were given), same top class."""

    samples: int
    integer: float | None
    floating: float | None
    agreement: float | None


@dataclass(frozen=True)
class Report:
    """The rows, the totals, the layer that needs the widest ring, prices by protocol, accuracy if asked.

    noise: the most by which noise moves an integer of a private answer; 0 where there is none. Accuracy is without.
    """

    rows: tuple[Row, ...]
    policy: str
    widest: str
    output_ring: int
    output_wrapped: float | None
    prices: Mapping[str, Price]
    accuracy: Accuracy | None
    noise: int = 0

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
            "noise": self.noise,
            "macs": self.macs,
            "activations": self.activations,
            "weights": self.weights,
            "prices": {name: asdict(price) for name, price in self.prices.items()},
            "accuracy": None if self.accuracy is None else asdict(self.accuracy),
            "layers": [{**asdict(row), "shape": list(row.shape)} for row in self.rows],
        }

    def _words(self) -> str:
        """Prices and accuracy, a line each."""
        lines = [
            f"{name}: {p.exchanges} exchanges, {p.online_bytes:,} B each way online, {p.dealt_bytes:,} B dealt an input"
            for name, p in self.prices.items()
        ]
        if self.accuracy is not None:
            lines.append(accuracy_line(self.accuracy))
        if self.noise:
            without = ", of which the accuracy knows nothing" if self.accuracy is not None else ""
            lines.append(f"private answers have noise, at most {self.noise:,} on every integer{without}")
        return "\n".join(lines)

    def _of_lookups(self) -> str:
        """A word on the cyclic tables, if there are any."""
        count = sum(row.cyclic for row in self.rows)
        if not count:
            return ""
        who, where = ("1 lookup reads", "it wraps") if count == 1 else (f"{count} lookups read", "they wrap")
        return f". {who} mod 2^k by definition: no breach where {where}"

    def __rich__(self) -> Table:
        """A table for the terminal."""
        caption = (
            f"{self.policy} rings; widest read by {self.widest}; answer in {self.output_ring} bits; "
            f"{self.macs:,} multiply-accumulates, {self.activations:,} activations, {self.weights:,} weights. "
            f"reads = shift + index bits{self._of_lookups()}\n{self._words()}"
        )
        table = Table(title="Integer model", caption=caption, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
        table.title_justify = table.caption_justify = "left"
        watched = any(row.wrapped is not None for row in self.rows)
        table.add_column("layer", overflow="fold", min_width=12)
        for title in ("operator", "shape"):
            table.add_column(title, no_wrap=True)
        for title in ["ring", "proof", "reads", "MACs", "values"] + ["wraps"] * watched:
            table.add_column(title, justify="right", no_wrap=True)
        for row in self.rows:
            counts = [f"{n:,}" if n else "" for n in (row.macs, row.activations)]
            share = ["" if row.wrapped is None else _share(row.wrapped)] * watched
            shape = "x".join(map(str, row.shape))
            table.add_row(row.name, row.op, shape, str(row.ring), str(row.proven_bits), row.index, *counts, *share)
        return table

    def __str__(self) -> str:
        return (
            f"IntegerModel: {len(self.rows)} nodes, {self.policy} rings up to {max(r.ring for r in self.rows)} bits "
            f"(read by {self.widest}), {self.macs:,} MACs, {self.activations:,} activations, {self.weights:,} weights"
        )


def _share(x: float) -> str:
    """0, 3e-07, 42%: small ones by their magnitude, which is what matters of accidents."""
    return "0" if not x else f"{x:.0e}" if x < 0.01 else f"{x:.0%}"


def accuracy_line(a: Accuracy | None) -> str:
    """A line on the accuracy; empty if none was measured."""
    if a is None:
        return ""
    shares = {"integer": a.integer, "float": a.floating, "same top class": a.agreement}
    found = ", ".join(f"{name} {share:.2%}" for name, share in shares.items() if share is not None)
    change = ""
    if a.integer is not None and a.floating is not None:
        change = f", change {100 * (a.integer - a.floating):+.2f} points"
    return f"accuracy on {a.samples:,} inputs: {found}{change}"


def multiply_accumulates(graph: IntegerGraph, node: Node) -> int:
    """Products per input of a linear node."""
    size = math.prod(graph.shapes[node.name])
    if isinstance(node.op, Conv2d):
        return size * math.prod(node.op.weight.shape[1:])
    if isinstance(node.op, Dense):
        return size * node.op.weight.shape[1]
    if isinstance(node.op, Spread):
        return node.op.weight.shape[0]
    return size if isinstance(node.op, Scale) else 0


def compare_answers(
    model: IntegerModel | PolynomialModel, data: Any, labels: Any, float_answers: Any
) -> Accuracy | None:
    """Accuracy of the integer model beside the float network's on one batch; None with nothing to compare."""
    if labels is None and float_answers is None:
        return None
    if data is None:
        raise InputError("labels or float_answers were given without the data that they belong to")
    if len(model.output_shape) != 1:
        raise InputError(f"answers have shape {model.output_shape}: one vector of classes is needed for an accuracy")
    top = model.predict(data, "silent").argmax(1)
    truth = None if labels is None else np.asarray(labels)
    theirs = None if float_answers is None else np.asarray(float_answers)
    wanted = (("labels", truth, top.shape), ("float_answers", theirs, (len(top), *model.output_shape)))
    for name, given, shape in wanted:
        if given is not None and given.shape != shape:
            raise InputError(f"{name} have shape {given.shape}; for these data {shape} is needed")
    floating = None if theirs is None else theirs.argmax(1)
    return Accuracy(
        len(top),
        None if truth is None else float((top == truth).mean()),
        None if truth is None or floating is None else float((floating == truth).mean()),
        None if floating is None else float((floating == top).mean()),
    )


def build_report(
    model: IntegerModel, wrapped: Mapping[str, float] | None, prices: Mapping[str, Price], accuracy: Accuracy | None
) -> Report:
    """The report of a model; ``wrapped`` is the share of wrapped values per consumer, if it was measured."""
    graph, proof = model.graph, prove(model.graph)
    weights = graph.weight_count()
    rows = []
    for node in graph.nodes:
        op, reads = node.op, model.accumulators.get(node.name)
        reading = isinstance(op, READERS)
        shift = op.shift if isinstance(op, Requantize) else 0 if reading else None
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
                cyclic=isinstance(op, Lookup),
            )
        )
    widest = max(model.accumulators, key=lambda name: model.accumulators[name])
    answer_wrapped = None if wrapped is None else wrapped[OUTPUT]
    bound = 0 if model.noise is None else model.noise.bound
    ring = model.accumulators[OUTPUT]
    return Report(tuple(rows), model.policy, widest, ring, answer_wrapped, prices, accuracy, bound)
