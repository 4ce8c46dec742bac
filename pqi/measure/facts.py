"""How large a network is, counted in its integer graph."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from pqi.graph.model import IntegerModel
from pqi.graph.ops import Lookup, MaxPool2d, Requantize, Scale, Step
from pqi.graph.report import multiply_accumulates


@dataclass(frozen=True)
class Facts:
    """Per input. macs: multiply-accumulates of convolutions and dense layers; scalings: of single values by a constant,
    where two scales meet. relus: values that are clamped below and rescaled (a ReLU, or a step, or a table in its
    place). maxima: comparisons in max-pooling. parameters: weights and biases after batch norm has been folded in.
    """

    macs: int
    scalings: int
    relus: int
    maxima: int
    parameters: int

    def __str__(self) -> str:
        parts = [(f"{_short(self.macs)} MACs", self.macs), (f"{self.relus:,} ReLUs", self.relus)]
        parts += [(f"{self.maxima:,} comparisons in max-pooling", self.maxima)]
        return ", ".join([text for text, count in parts if count] + [f"{_short(self.parameters)} parameters"])

    def to_json(self) -> dict[str, Any]:
        """As plain JSON."""
        return dict(self.__dict__)


def facts(model: IntegerModel) -> Facts:
    """Count in the graph: per node the size of its value times the work that each entry takes."""
    graph = model.graph
    sizes = {name: math.prod(shape) for name, shape in graph.shapes.items()}
    scaling = {n.name for n in graph.nodes if isinstance(n.op, Scale)}
    weights = graph.weight_count()
    return Facts(
        macs=sum(multiply_accumulates(graph, n) for n in graph.nodes if n.name not in scaling),
        scalings=sum(sizes[name] for name in scaling),
        relus=sum(sizes[n.name] for n in graph.nodes if isinstance(n.op, (Requantize, Step, Lookup))),
        maxima=sum(sizes[n.name] * (math.prod(n.op.kernel) - 1) for n in graph.nodes if isinstance(n.op, MaxPool2d)),
        parameters=sum(count for name, count in weights.items() if name not in scaling),
    )


def _short(count: int) -> str:
    """40.6 M, 1.81 G."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return str(count)
