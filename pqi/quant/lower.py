"""From the placed and calibrated float graph to the integer graph.

Scales. A code q stands for the real q * s, an accumulator n for n * u. A linear operator multiplies: u = s_x * s_w.
An accumulator that becomes codes of scale s_out by a shift of ``shift`` bits has u = s_out / 2^shift, the same for all
channels and for all terms of an addition; the shift is chosen so that weights keep their bits (see ``weights``).
y = clamp(floor((n + offset) / 2^shift)) + low with offset = 2^(shift-1) - low 2^shift rounds half up; the offset is
folded into a bias. A threshold asks only for the sign, so each channel may keep a unit of its own and the bias is
floored: exact, not rounded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from pqi.graph.errors import GraphError, QuantizationError
from pqi.graph.floating import (
    Activation,
    AvgPool2d,
    Clamp,
    Entry,
    FloatConv2d,
    FloatDense,
    FloatNode,
    Linear,
    Sign,
    Threshold,
)
from pqi.graph.graph import IntegerGraph, Node
from pqi.graph.ops import Add, Conv2d, Dense, Input, Op, Requantize, Scale, Step
from pqi.graph.ops.base import MAX_BIAS
from pqi.quant.place import Placed
from pqi.quant.quantizer import Quantizer
from pqi.quant.weights import WeightScheme, channel_reach, exact_unit, integer_scale, integer_weights

MAX_SHIFT = 20
_BIAS_PARTS = 256  # parts of an exact unit, where the weights are whole multiples of it but a bias is not


@dataclass(frozen=True)
class Range:
    """Codes of one requantization: real ends, scale, lowest code."""

    lo: float
    hi: float
    scale: float

    @property
    def low(self) -> int:
        """The lowest code."""
        return round(self.lo / self.scale)


@dataclass
class Accumulator:
    """What is decided about one accumulator: its unit (one number, or one per channel), and what its reader wants."""

    unit: float | Tensor
    shift: int = 0
    offset: int = 0
    reader: Activation | None = None
    factor: int = 1


@dataclass
class Lowering:
    """The work of one lowering; ``run`` returns the graph and the scale of its output."""

    placed: Placed
    ranges: Mapping[str, tuple[float, float]]
    input_quantizer: Quantizer
    activation_bits: int
    scheme: WeightScheme
    scales: dict[str, float] = field(default_factory=dict)
    clamps: dict[str, Range] = field(default_factory=dict)
    decided: dict[str, Accumulator] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.known = self.placed.graph.by_name()
        self.readers = self.placed.graph.consumers()

    def run(self) -> tuple[IntegerGraph, float]:
        """The integer graph, and the real that the integer 1 of its output stands for."""
        graph = self.placed.graph
        self._code_scales()
        for node in graph.nodes:
            if isinstance(node.op, (Linear, Add)) and node.name not in self.decided:
                self._decide(node)
        nodes = tuple(self._node(node) for node in graph.nodes)
        return IntegerGraph(nodes, graph.output), self._scale_of(graph.output)

    def _code_scales(self) -> None:
        """Scales of all codes; clamps of one group share the widest."""
        graph, steps = self.placed.graph, (1 << self.activation_bits) - 1
        needed: dict[str, float] = {}
        for node in graph.nodes:
            if isinstance(node.op, Clamp):
                lo, hi = self._ends(node, node.op)
                group = self.placed.group(node.name)
                needed[group] = max(needed.get(group, 0.0), (hi - lo) / steps)
        for node in graph.nodes:
            if isinstance(node.op, Clamp):
                scale = needed[self.placed.group(node.name)]
                self.clamps[node.name] = Range(*self._ends(node, node.op), scale)
                self.scales[node.name] = scale
            elif isinstance(node.op, Entry):
                if isinstance(self.input_quantizer.scale, tuple):
                    raise QuantizationError("the input quantizer must have one scale for the whole tensor")
                self.scales[node.name] = 1.0 / self.input_quantizer.scale
            elif isinstance(node.op, Activation):
                self.scales[node.name] = 1.0
            elif node.name in self.placed.codes:
                divisor = node.op.divisor if isinstance(node.op, AvgPool2d) else 1
                self.scales[node.name] = self.scales[node.inputs[0]] / divisor

    def _ends(self, node: FloatNode, op: Clamp) -> tuple[float, float]:
        lo, hi = self.ranges[node.name]
        # Zero is kept inside where the clamp allows it: data rarely show every value that can occur around it.
        lo, hi = max(min(lo, 0.0), op.lo), min(max(hi, 0.0), op.hi)
        if hi <= lo:  # a layer that the data left constant still has to have some scale
            hi = lo + max(abs(lo), 1.0)
        return lo, hi

    # -- accumulators ---------------------------------------------------------------------------------------------

    def _terms(self, node: FloatNode) -> list[FloatNode]:
        return [self.known[i] for i in node.inputs] if isinstance(node.op, Add) else [node]

    def _decide(self, node: FloatNode) -> None:
        """Choose the unit of a linear operator or an addition from who reads it."""
        readers = self.readers[node.name]
        if any(isinstance(r.op, Add) for r in readers):
            return  # a term: decided with its addition
        terms = self._terms(node)
        chosen: Accumulator | None = None
        for reader in readers:
            if isinstance(reader.op, Clamp):
                chosen = self._for_clamp(terms, self.clamps[reader.name])
            elif isinstance(reader.op, Activation):
                chosen = self._for_threshold(terms, reader.op)
        if chosen is None:
            self._decide_tail(node)
            return
        self.decided[node.name] = self.decided[terms[0].name] = chosen
        for term in terms[1:]:  # the first term alone carries what is added for the reader
            self.decided[term.name] = replace(chosen, offset=0, reader=None)

    def _for_clamp(self, terms: list[FloatNode], codes: Range) -> Accumulator:
        typical = min(self._typical(term) for term in terms)
        shift = round(math.log2(codes.scale / typical)) if 0 < typical < math.inf else 0
        shift = min(max(shift, 0), MAX_SHIFT)
        half = 1 << (shift - 1) if shift else 0
        return Accumulator(codes.scale / 2**shift, shift, half - codes.low * (1 << shift))

    def _typical(self, term: FloatNode) -> float:
        """The unit at which most of a term's channels use their weight bits well."""
        if not isinstance(term.op, Linear):
            raise GraphError(f"{term.name!r} is no linear operator")
        plain = isinstance(term.op, (FloatConv2d, FloatDense))
        # An affine's factor of 2^a units is exact to half a code of a bits, whatever bits the weights have.
        units = self.scheme.top * self.scheme.multiplier if plain else float(max(32, 1 << self.activation_bits))
        reach = channel_reach(term.op.weight)
        reach = reach[reach > 0]
        if not reach.numel():
            return math.inf
        typical = float(reach.quantile(0.25)) if self.scheme.per_channel else float(reach.max())
        return typical * self.scales[term.inputs[0]] / units

    def _for_threshold(self, terms: list[FloatNode], op: Activation) -> Accumulator:
        if len(terms) == 1 and isinstance(terms[0].op, Linear):
            unit: float | Tensor = self._unit_per_channel(terms[0])
        else:
            unit = self._common_unit(terms)
        return Accumulator(unit, reader=op, factor=2 if isinstance(op, Sign) else 1)

    def _unit_per_channel(self, term: FloatNode) -> Tensor:
        """Each channel's own unit: the sign does not depend on it."""
        op, scale = term.op, self.scales[term.inputs[0]]
        if not isinstance(op, Linear):
            raise GraphError(f"{term.name!r} is no linear operator")
        top = self.scheme.top
        units = []
        for row in op.weight:
            exact = exact_unit(row, top)
            reach = float(row.abs().max())
            units.append((exact if exact is not None else reach / top if reach else 1.0) * scale)
        return torch.tensor(units, dtype=torch.float64)

    def _common_unit(self, terms: list[FloatNode]) -> float:
        """One unit for all terms: an exact one if there is one, otherwise one at which weights keep their bits."""
        exact, whole = set(), True
        for term in terms:
            if isinstance(term.op, Linear):
                base = exact_unit(term.op.weight, self.scheme.top)
                unit = None if base is None else base * self.scales[term.inputs[0]]
                exact.add(unit)
                bias = term.op.bias / (unit or 1.0)
                whole &= bool(((bias - bias.round()).abs() <= 1e-9 * bias.abs().clamp(min=1)).all())
        if len(exact) == 1 and (only := exact.pop()) is not None:
            return only if whole else only / _BIAS_PARTS
        typical = min(self._typical(term) for term in terms)
        return typical if 0 < typical < math.inf else 1.0

    def _decide_tail(self, node: FloatNode) -> None:
        """Accumulators that are part of the answer: one unit for all of them, seen from the output."""
        members = self._tail_members(self.placed.graph.output, 1.0)
        units = [self._common_unit(self._terms(member)) / factor for member, factor in members]
        finest = min(units)
        for member, factor in members:
            chosen = Accumulator(finest * factor)
            for each in {member.name, *(t.name for t in self._terms(member))}:
                self.decided.setdefault(each, chosen)
        if node.name not in self.decided:
            raise GraphError(f"{node.name!r} is read by nothing that fixes its scale")

    def _tail_members(self, name: str, factor: float) -> list[tuple[FloatNode, float]]:
        """Accumulators behind the output with the divisors on the way; those already decided do not count."""
        node = self.known[name]
        if isinstance(node.op, (Linear, Add)):
            return [] if name in self.decided else [(node, factor)]
        factor *= node.op.divisor if isinstance(node.op, AvgPool2d) else 1
        return [m for i in node.inputs if i not in self.placed.codes for m in self._tail_members(i, factor)]

    def _scale_of(self, name: str) -> float:
        """The real that the integer 1 of a value stands for."""
        if name in self.scales:
            return self.scales[name]
        if name in self.decided:
            unit = self.decided[name].unit
            if isinstance(unit, Tensor):
                raise GraphError(f"the answer {name!r} has one scale per channel")
            return unit
        node = self.known[name]
        return self._scale_of(node.inputs[0]) / (node.op.divisor if isinstance(node.op, AvgPool2d) else 1)

    # -- nodes ----------------------------------------------------------------------------------------------------

    def _node(self, node: FloatNode) -> Node:
        return Node(node.name, self._operator(node), node.inputs, node.source)

    def _operator(self, node: FloatNode) -> Op:
        op = node.op
        if isinstance(op, Entry):
            return Input(op.shape, *self.input_quantizer.code_range)
        if isinstance(op, Linear):
            return self._linear(node, op)
        if isinstance(op, Clamp):
            return self._requantize(node.name, op.hi, node.inputs[0])
        if isinstance(op, Sign):
            return Requantize(0, 2, 0, torch.tensor([-1, 0, 1, 1]))
        if isinstance(op, Threshold):
            return Step() if op.below == -1 else Requantize(0, 1)
        return op.pool if isinstance(op, AvgPool2d) else op

    def _requantize(self, name: str, limit: float, accumulator: str) -> Requantize:
        """The shift and the clamp; a table where codes would pass the clamp's own upper limit."""
        codes, shift = self.clamps[name], self.decided[accumulator].shift
        top = codes.low + (1 << self.activation_bits) - 1
        if math.isinf(limit) or round(limit / codes.scale) >= top:
            return Requantize(shift, self.activation_bits, codes.low)
        table = torch.arange(codes.low, top + 1).clamp(max=round(limit / codes.scale))
        return Requantize(shift, self.activation_bits, 0, table)

    def _linear(self, node: FloatNode, op: Linear) -> Op:
        chosen = self.decided[node.name]
        ratio = self.scales[node.inputs[0]] / chosen.unit
        plain = isinstance(op, (FloatConv2d, FloatDense))
        if plain or isinstance(chosen.unit, Tensor):
            weight = integer_weights(
                node.name, op.weight, ratio, self.scheme if plain else replace(self.scheme, bits=16)
            )
        else:
            weight = integer_scale(node.name, op.weight, float(ratio))
        weight, bias = self._bias(node.name, weight, op.bias / chosen.unit, chosen)
        if isinstance(op, FloatConv2d):
            return Conv2d(weight, bias, op.stride, op.padding, op.dilation, op.groups)
        return Dense(weight, bias) if isinstance(op, FloatDense) else Scale(weight, bias)

    def _bias(self, name: str, weight: Tensor, real: Tensor, chosen: Accumulator) -> tuple[Tensor, Tensor]:
        """Integer bias; for thresholds the exact one, since integer n + b >= 0 exactly when n + floor(b) >= 0."""
        if not bool(torch.isfinite(real).all()) or float(real.abs().max()) >= MAX_BIAS / 4:
            raise QuantizationError(
                f"layer {name!r}: its bias is {float(real.abs().max()):.3g} units of its accumulators. "
                "Its weights are tiny against its bias: check the network, or use more activation bits."
            )
        reader = chosen.reader
        if reader is not None:
            # A bias that is whole in exact arithmetic must not lose that to float64: ties decide at thresholds.
            near = torch.round(real)
            real = torch.where((real - near).abs() <= 1e-9 * near.abs().clamp(min=1), near, real)
        if isinstance(reader, Threshold):
            bias = real.ceil() - 1 if reader.strict else real.floor()
            return weight, bias.to(torch.int64) + (1 if reader.below == 0 else 0)
        if isinstance(reader, Sign):
            # Twice the resolution: a bias between two integers becomes odd, so that the sum is never falsely zero.
            whole = real == real.round()
            doubled = torch.where(whole, 2 * real, 2 * real.floor() + 1)
            return weight * chosen.factor, doubled.to(torch.int64) + 1
        weight, real = weight * chosen.factor, real * chosen.factor
        return weight, torch.round(real).to(torch.int64) + chosen.offset
