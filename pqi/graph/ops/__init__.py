"""Operators of the integer graph: one frozen record each. A new operator is a class and one line of the catalogue."""

from __future__ import annotations

from pqi.graph.ops.add import Add
from pqi.graph.ops.base import Bounds, Op, Shape
from pqi.graph.ops.concat import Concat
from pqi.graph.ops.conv2d import Conv2d
from pqi.graph.ops.dense import Dense
from pqi.graph.ops.expand import Expand
from pqi.graph.ops.lookup import Lookup
from pqi.graph.ops.max_pool2d import MaxPool2d
from pqi.graph.ops.noise import Noise
from pqi.graph.ops.offset import Offset
from pqi.graph.ops.pad import Pad
from pqi.graph.ops.permute import Permute
from pqi.graph.ops.polynomial import Polynomial
from pqi.graph.ops.requantize import Requantize
from pqi.graph.ops.reshape import Reshape
from pqi.graph.ops.scale import Scale
from pqi.graph.ops.slice import Slice
from pqi.graph.ops.source import Input
from pqi.graph.ops.spread import Spread
from pqi.graph.ops.step import Step
from pqi.graph.ops.sum_pool2d import SumPool2d
from pqi.graph.ops.tournament import Pairwise, Standing

CATALOGUE: dict[str, type[Op]] = {
    op.kind: op
    for op in (
        Input,
        Conv2d,
        Dense,
        Scale,
        Spread,
        Add,
        Requantize,
        Step,
        Lookup,
        MaxPool2d,
        SumPool2d,
        Concat,
        Reshape,
        Permute,
        Slice,
        Pad,
        Expand,
        Polynomial,
        Offset,
        Pairwise,
        Standing,
        Noise,
    )
}

# The operators that read an accumulator as an integer: each has a ring of its own in which it does so.
READERS: tuple[type[Op], ...] = (Requantize, Step, Lookup)

# Not for rings: a product of two values, and constants of any size. Protocols with keys compute them (PolynomialModel).
WIDE: tuple[type[Op], ...] = (Polynomial, Offset)

# Operators with weights: each is one ring product.
WEIGHTED = (Conv2d, Dense, Scale)

__all__ = [
    "CATALOGUE",
    "READERS",
    "WEIGHTED",
    "WIDE",
    "Add",
    "Bounds",
    "Concat",
    "Conv2d",
    "Dense",
    "Expand",
    "Input",
    "Lookup",
    "MaxPool2d",
    "Noise",
    "Offset",
    "Op",
    "Pad",
    "Pairwise",
    "Permute",
    "Polynomial",
    "Requantize",
    "Reshape",
    "Scale",
    "Shape",
    "Slice",
    "Spread",
    "Standing",
    "Step",
    "SumPool2d",
]
