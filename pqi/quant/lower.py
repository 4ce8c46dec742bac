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
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from pqi.graph.errors import CalibrationWarning, GraphError, QuantizationError
from pqi.graph.floating import (
    Activation,
    AvgPool2d,
    Clamp,
    Entry,
    FloatConv2d,
    FloatDense,
    FloatNode,
    FloatSpread,
    Linear,
    Sign,
    Threshold,
)
from pqi.graph.graph import IntegerGraph, Node
from pqi.graph.ops import Add, Conv2d, Dense, Input, Op, Requantize, Scale, Spread, Step
from pqi.graph.ops.base import MAX_BIAS
from pqi.quant.codes import Codes, activation_levels, code_range
from pqi.quant.memory import Memory
from pqi.quant.scheme import Recipe, Scheme
from pqi.quant.stages import Calibration, Grid, Lowered
from pqi.quant.weights import (
    channel_reach,
    exact_unit,
    integer_scale,
    typical_multiplier,
    weight_grid,
    weight_steps,
)

MAX_SHIFT = 20
_BIAS_PARTS = 256  # parts of an exact unit, where the weights are whole multiples of it but a bias is not


@dataclass
class Accumulator:
    """What is decided about one accumulator: its unit (one number, or one per channel), and what its reader wants."""

    unit: float | Tensor
    shift: int = 0
    offset: int = 0
    reader: Activation | None = None
    factor: int = 1


def lower(calibration: Calibration, recipe: Recipe, memory: Memory | None = None) -> Lowered:
    """The integer graph of a calibrated network under a recipe. Needs no data: recipes can be tried at will.

    memory: handed to every lowering of one calibration, it spares them the fits that they have in common.
    Raises QuantizationError naming the layer whose numbers fit no integers, or a layer that does not exist. Warns
    where a percentile was asked for that too few values can tell.
    """
    work = Lowering(calibration, recipe, memory or Memory())
    _warn_of_few(calibration, work.schemes)
    return work.run()


def _warn_of_few(calibration: Calibration, schemes: Mapping[str, Scheme]) -> None:
    """A CalibrationWarning where a percentile of the user's own is finer than the values that were seen.

    The default is no wish: with few values it is the largest one, which is what few values are good for.
    """
    found = {}
    for name, observation in calibration.seen.items():
        scheme = schemes[name]
        asked = scheme.observer == "percentile" and scheme.percentile != Scheme.percentile
        if asked and (why := observation.too_few_for(scheme.percentile)):
            found[name] = why
    if found:
        name, why = next(iter(found.items()))
        others = f" (and {len(found) - 1} more layers)" if len(found) > 1 else ""
        warnings.warn(
            f"layer {name!r}{others}: percentile {why}. Calibrate with more inputs, ask for a lower percentile, or for "
            "observer='minmax' if the largest value is what you want.",
            CalibrationWarning,
            stacklevel=4,
        )


@dataclass
class Lowering:
    """The work of one lowering."""

    calibration: Calibration
    recipe: Recipe
    memory: Memory
    scales: dict[str, float] = field(default_factory=dict)
    clamps: dict[str, Codes] = field(default_factory=dict)
    decided: dict[str, Accumulator] = field(default_factory=dict)
    grids: dict[str, Grid] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.placed = self.calibration.placed
        self.known = self.placed.graph.by_name()
        self.readers = self.placed.graph.consumers()
        plain = [n.name for n in self.placed.graph.nodes if _is_plain(n)]
        self.recipe.check_layers({n.name: _kind(n) for n in self.placed.graph.nodes})
        ends = {plain[0], plain[-1]} if plain else set()
        self.schemes: dict[str, Scheme] = {name: self.recipe.of(name, name in ends) for name in self.known}

    def run(self) -> Lowered:
        """The integer graph and the reals that its integers stand for."""
        graph = self.placed.graph
        self._code_scales()
        for node in graph.nodes:
            if isinstance(node.op, (Linear, Add)) and node.name not in self.decided:
                self._decide(node)
        nodes = tuple(self._node(node) for node in graph.nodes)
        scale = self._scale_of(graph.output)
        if isinstance(scale, Tensor):
            raise GraphError(f"the answer {graph.output!r} has one scale per channel")
        return Lowered(
            graph=IntegerGraph(nodes, graph.output),
            output_scale=scale,
            scales={name: self._scale_of(name) for name in self.known},
            offsets={name: chosen.offset for name, chosen in self.decided.items() if chosen.offset},
            grids=self.grids,
            schemes=self.schemes,
        )

    def _code_scales(self) -> None:
        """Scales of all codes; clamps of one group share the widest."""
        graph = self.placed.graph
        needed: dict[str, float] = {}
        ends: dict[str, tuple[float, float]] = {}
        for node in graph.nodes:
            if isinstance(node.op, Clamp):
                scheme, group = self.schemes[node.name], self.placed.group(node.name)
                self._refuse_mixed(node.name, group)
                lo, hi = ends[node.name] = code_range(self.calibration.seen[node.name], scheme, node.op)
                needed[group] = max(needed.get(group, 0.0), (hi - lo) / ((1 << scheme.grid_bits) - 1))
        for node in graph.nodes:
            if isinstance(node.op, Clamp):
                scheme, scale = self.schemes[node.name], needed[self.placed.group(node.name)]
                levels = activation_levels(self.calibration.seen[node.name], scheme, *ends[node.name], scale)
                self.clamps[node.name] = Codes(*ends[node.name], scale, scheme.grid_bits, levels)
                self.scales[node.name] = scale
            elif isinstance(node.op, Entry):
                if isinstance(self.calibration.quantizer.scale, tuple):
                    raise QuantizationError("the input quantizer must have one scale for the whole tensor")
                self.scales[node.name] = 1.0 / self.calibration.quantizer.scale
            elif isinstance(node.op, Activation):
                self.scales[node.name] = 1.0
            elif node.name in self.placed.codes:
                divisor = node.op.divisor if isinstance(node.op, AvgPool2d) else 1
                self.scales[node.name] = self.scales[node.inputs[0]] / divisor

    def _refuse_mixed(self, name: str, group: str) -> None:
        """Codes that a concatenation joins have one scale: a finer grid for some of them is not their own affair."""
        mine, other = self.schemes[name], self.schemes[group]
        same = (mine.activations, mine.activation_bits) == (other.activations, other.activation_bits)
        if not same and {mine.activations, other.activations} != {"uniform"}:
            raise QuantizationError(
                f"layers {name!r} ({mine.activations}, {mine.activation_bits} bits) and {group!r} "
                f"({other.activations}, {other.activation_bits} bits) are joined by a concatenation, so their codes "
                "are on one grid: give them the same activations and activation_bits, or uniform ones."
            )

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

    def _for_clamp(self, terms: list[FloatNode], codes: Codes) -> Accumulator:
        typical = min(self._typical(term, codes.bits) for term in terms)
        tops = [term.op.top for term in terms if isinstance(term.op, FloatSpread)]
        if tops:  # the error of a rounded factor, half a unit, counts up to top times: a quarter of a code
            typical = min(typical, codes.scale / (2 * max(tops)))
        shift = round(math.log2(codes.scale / typical)) if 0 < typical < math.inf else 0
        shift = min(max(shift, 0), MAX_SHIFT)
        half = 1 << (shift - 1) if shift else 0
        return Accumulator(codes.scale / 2**shift, shift, half - codes.low * (1 << shift))

    def _typical(self, term: FloatNode, bits: int) -> float:
        """The unit at which most of a term's channels use their weight bits well, for a reader of ``bits`` bits."""
        if not isinstance(term.op, Linear):
            raise GraphError(f"{term.name!r} is no linear operator")
        if isinstance(term.op, FloatSpread):
            return math.inf  # it takes what the others want
        if _is_plain(term):
            scheme = self.schemes[term.name]
            weight, units = term.op.weight, typical_multiplier(scheme)
            steps = self.memory.get((term.name, *scheme.weight_key), lambda: weight_steps(weight, scheme))
        else:  # an affine's factor of 2^a units is exact to half a code of a bits, whatever bits the weights have
            steps, units = channel_reach(term.op.weight), float(max(32, 1 << bits))
        steps = steps[steps > 0]
        return float(steps.quantile(0.25)) * self.scales[term.inputs[0]] / units if steps.numel() else math.inf

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
        scheme = self._weight_scheme(term)
        steps = weight_steps(op.weight, replace(scheme, per_channel=True))
        exact = [exact_unit(row, scheme) for row in op.weight.unsqueeze(1)]
        units = [(float(step) or 1.0) if unit is None else unit for step, unit in zip(steps, exact, strict=True)]
        return torch.tensor(units, dtype=torch.float64) * scale

    def _weight_scheme(self, term: FloatNode) -> Scheme:
        """What a linear operator's weights may be; factors of an affine keep all that a ring can hold."""
        scheme = self.schemes[term.name]
        return scheme if _is_plain(term) else replace(scheme, weight_bits=12, weights="symmetric", multiplier=None)

    def _common_unit(self, terms: list[FloatNode]) -> float:
        """One unit for all terms: an exact one if there is one, otherwise one at which weights keep their bits."""
        exact, whole = set(), True
        for term in terms:
            if isinstance(term.op, FloatSpread):
                whole = False
            elif isinstance(term.op, Linear):
                base = exact_unit(term.op.weight, self._weight_scheme(term))
                unit = None if base is None else base * self.scales[term.inputs[0]]
                exact.add(unit)
                bias = term.op.bias / (unit or 1.0)
                whole &= bool(((bias - bias.round()).abs() <= 1e-9 * bias.abs().clamp(min=1)).all())
        if len(exact) == 1 and (only := exact.pop()) is not None:
            return only if whole else only / _BIAS_PARTS
        typical = min(self._typical(term, self.schemes[term.name].activation_bits) for term in terms)
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

    def _scale_of(self, name: str) -> float | Tensor:
        """The real that the integer 1 of a value stands for."""
        if name in self.scales:
            return self.scales[name]
        if name in self.decided:
            chosen = self.decided[name]
            return chosen.unit / chosen.factor
        node = self.known[name]
        return self._scale_of(node.inputs[0]) / (node.op.divisor if isinstance(node.op, AvgPool2d) else 1)

    # -- nodes ----------------------------------------------------------------------------------------------------

    def _node(self, node: FloatNode) -> Node:
        return Node(node.name, self._operator(node), node.inputs, node.source)

    def _operator(self, node: FloatNode) -> Op:
        op = node.op
        if isinstance(op, Entry):
            return Input(op.shape, *self.calibration.quantizer.code_range)
        if isinstance(op, Linear):
            return self._linear(node, op)
        if isinstance(op, Clamp):
            return self.clamps[node.name].requantize(self.decided[node.inputs[0]].shift, op.hi)
        if isinstance(op, Sign):
            return Requantize(0, 2, 0, torch.tensor([-1, 0, 1, 1]))
        if isinstance(op, Threshold):
            return Step() if op.below == -1 else Requantize(0, 1)
        return op.pool if isinstance(op, AvgPool2d) else op

    def _linear(self, node: FloatNode, op: Linear) -> Op:
        chosen = self.decided[node.name]
        ratio = self.scales[node.inputs[0]] / chosen.unit
        if _is_plain(node) or isinstance(chosen.unit, Tensor):
            real, scheme = op.weight, self._weight_scheme(node)
            by = tuple(ratio.tolist()) if isinstance(ratio, Tensor) else ratio
            grid, weight = self.memory.get(
                (node.name, by, *scheme.weight_key), lambda: _on_grid(*weight_grid(node.name, real, ratio, scheme))
            )
            self.grids[node.name] = replace(grid, multiplier=grid.multiplier * chosen.factor)
        else:
            weight = integer_scale(node.name, op.weight, float(ratio))
        weight, bias = self._bias(node.name, weight, op.bias / chosen.unit, chosen)
        if isinstance(op, FloatConv2d):
            return Conv2d(weight, bias, op.stride, op.padding, op.dilation, op.groups)
        if isinstance(op, FloatSpread):
            return Spread(weight, bias, op.top, op.expand.shape, op.expand.axis)
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


def _is_plain(node: FloatNode) -> bool:
    """Whether the scheme's weights are for it: a layer's weights, not factors of an affine."""
    return isinstance(node.op, (FloatConv2d, FloatDense))


def _kind(node: FloatNode) -> str:
    """Which fields of a scheme the node reads."""
    return "weights" if _is_plain(node) else "codes" if isinstance(node.op, Clamp) else "nothing"


def _on_grid(grid: Grid, target: Tensor) -> tuple[Grid, Tensor]:
    return grid, grid.nearest(target)
