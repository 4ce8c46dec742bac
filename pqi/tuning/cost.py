"""What a program costs, and which of it a search makes small.

Bytes and exchanges are the declared ones, which equal those on the wire. Seconds are an estimate for one input asked
alone: exchanges * round trip / 2 + 8 * online bytes / bandwidth + what the servers compute.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from pqi.graph.errors import QuantizationError
from pqi.graph.model import IntegerModel
from pqi.graph.ops import READERS, MaxPool2d
from pqi.graph.report import multiply_accumulates
from pqi.program import Program
from pqi.program.network import Profile

QUANTITIES = ("offline_bytes", "online_bytes", "exchanges", "seconds")

# Measured with both servers on two cores, AVX-512 with VNNI, batches over TLS on loopback: ResNet-20 (40.6 million
# multiply-accumulates, 188,416 activations) in 44 ms an image, a binarised MLP (36.8 million, 12,288) in 2.7 ms. One
# pair of rates that fits both to a factor of two; activations are what counts.
SECONDS_PER_MAC = 3e-11
SECONDS_PER_ACTIVATION = 2.2e-7


@dataclass(frozen=True)
class Bill:
    """What one input costs. offline_bytes: dealt to server B. online_bytes: each server to the other. exchanges: one
    after the other. seconds: estimated, online.
    """

    offline_bytes: int
    online_bytes: int
    exchanges: int
    seconds: float


def bill(model: IntegerModel, program: Program, network: Profile) -> Bill:
    """The bill of a compiled model for one input: the declared cost of its program, and an estimate of the time."""
    cost = program.cost(1)
    graph = model.graph
    macs = sum(multiply_accumulates(graph, node) for node in graph.nodes)
    activations = 0
    for node in graph.nodes:
        if isinstance(node.op, READERS) or isinstance(node.op, MaxPool2d):  # noqa: SIM101 (a union, to the type checker)
            activations += math.prod(graph.shapes[node.name])
    seconds = cost.exchanges * network.round_trip / 2 + 8 * cost.online_bytes / network.bandwidth
    seconds += macs * SECONDS_PER_MAC + activations * SECONDS_PER_ACTIVATION
    return Bill(cost.dealt_bytes, cost.online_bytes, cost.exchanges, seconds)


@dataclass(frozen=True)
class Objective:
    """A weighted sum of quantities of a bill; ``Objective.of("offline_bytes")`` is the plain case.

    weights: quantity -> factor, at least 0 and not all 0; units are the user's affair ("offline_bytes": 1,
    "exchanges": 500 says that an exchange is worth 500 dealt bytes).
    """

    weights: Mapping[str, float]

    def __post_init__(self) -> None:
        unknown = sorted(set(self.weights) - set(QUANTITIES))
        if unknown or not self.weights:
            raise QuantizationError(f"objective names {unknown or 'nothing'}: it is made of {', '.join(QUANTITIES)}")
        bad = {name: w for name, w in self.weights.items() if not (math.isfinite(w) and w >= 0)}
        if bad or not any(self.weights.values()):
            raise QuantizationError(f"objective has weights {dict(self.weights)}: numbers of at least 0, not all 0")

    @staticmethod
    def of(spec: str | Mapping[str, float] | Objective) -> Objective:
        """From a quantity's name, from text such as ``offline_bytes=1,exchanges=500``, or from a mapping."""
        if isinstance(spec, Objective):
            return spec
        if not isinstance(spec, str):
            return Objective(dict(spec))
        weights: dict[str, float] = {}
        for part in spec.split(","):
            name, equals, factor = (word.strip() for word in part.partition("="))
            try:
                weights[name] = float(factor) if equals else 1.0
            except ValueError:
                raise QuantizationError(f"objective {spec!r}: {factor!r} is no number") from None
        return Objective(weights)

    @property
    def name(self) -> str:
        """In words: the quantity, or the sum."""
        if len(self.weights) == 1:
            return next(iter(self.weights))
        return " + ".join(f"{factor:g} {name}" for name, factor in self.weights.items())

    def value(self, of: Bill) -> float:
        """The number to be made small."""
        if len(self.weights) == 1:
            return float(getattr(of, next(iter(self.weights))))
        return float(sum(factor * getattr(of, name) for name, factor in self.weights.items()))
