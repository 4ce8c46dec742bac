"""The polynomial network as a trainable module: latent weights, rounded to codes with a straight-through gradient.

Nothing but weights and inputs is rounded: there is no requantization under encryption, so the forward pass in real
numbers, with rounded weights, is the integer network up to the rounding of biases, which are counted in tiny units.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from pqi.graph.errors import QuantizationError
from pqi.graph.floating import AvgPool2d, Entry, FloatGraph, FloatNode, Linear, Square
from pqi.quant.polynomial.form import JOINING, MOVING, is_sign
from pqi.quant.train.estimators import rounded
from pqi.quant.train.wrapping import best_steps


class Student(nn.Module):
    """A polynomial graph with trainable weights and biases.

    unit: the real that code 1 of the input stands for. bits: of each linear layer's weights. ``steps`` (layer -> real
    that weight code 1 stands for) is empty until ``quantize``: the weights are real numbers before.
    """

    def __init__(self, graph: FloatGraph, unit: float, bits: Mapping[str, int], sample: Tensor) -> None:
        super().__init__()
        self.graph, self.unit, self.bits = graph, unit, dict(bits)
        self.steps: dict[str, float] = {}
        self.scales: dict[str, float] = {}
        self.index = {n.name: str(i) for i, n in enumerate(graph.nodes) if isinstance(n.op, Linear)}
        self.latent, self.bias = nn.ParameterDict(), nn.ParameterDict()
        self.sizes, self.reach = self._look(sample)
        for node in graph.nodes:
            if isinstance(node.op, Linear):
                key, weight = self.index[node.name], node.op.weight
                self.scales[node.name] = 1.0 if is_sign(node.op) else float(weight.square().mean().sqrt()) or 1.0
                self.latent[key] = nn.Parameter((weight / self.scales[node.name]).float(), not is_sign(node.op))
                self.bias[key] = nn.Parameter((node.op.bias / self.sizes[node.name]).float())

    def _look(self, sample: Tensor) -> tuple[dict[str, float], dict[str, float]]:
        """On a sample: the root mean square of every linear layer's value, the reach of what is squared."""
        sizes, reach = {}, {}
        squared = {n.inputs[0]: n.name for n in self.graph.nodes if isinstance(n.op, Square)}
        linear = {n.name for n in self.graph.nodes if isinstance(n.op, Linear)}

        def look(name: str, value: Tensor) -> None:
            if name in linear:
                sizes[name] = float(value.square().mean().sqrt()) or 1.0
            if name in squared:
                reach[squared[name]] = float(value.abs().max()) or 1.0

        self.graph.run(sample, look)
        return sizes, reach

    def quantize(self) -> None:
        """From here on weights are codes times a step per layer, of least squared error for the weights as they are."""
        weights = {name: (w.detach(), b.detach()) for name, (w, b) in self.weights().items()}
        steps = {}
        for node in self._linear():
            top = self.top(node.name)
            weight = weights[node.name][0]
            steps[node.name] = 1.0 if is_sign(node.op) else float(best_steps(weight.reshape(1, -1), top)[0])
        self.steps = self._joined(steps)
        with torch.no_grad():
            for name, step in self.steps.items():
                self.latent[self.index[name]].copy_(weights[name][0] / step)
                self.scales[name] = step

    @torch.no_grad()
    def coarsen(self, factor: float) -> None:
        """Let every weight code stand for ``factor`` times as much, so that codes become smaller."""
        for node in self._linear():
            if not is_sign(node.op):
                self.steps[node.name] *= factor
                self.scales[node.name] *= factor
                self.latent[self.index[node.name]].div_(factor)

    def top(self, name: str) -> int:
        """The largest code of a layer's weights; the smallest is its negative."""
        return max((1 << (self.bits[name] - 1)) - 1, 1)

    def _linear(self) -> list[FloatNode]:
        return [node for node in self.graph.nodes if isinstance(node.op, Linear)]

    def _joined(self, steps: dict[str, float]) -> dict[str, float]:
        """Steps made coarser where layers' values are added or concatenated: those need one unit."""
        degree: dict[str, int] = {}
        for node in self.graph.nodes:
            degrees = {degree[name] for name in node.inputs} or {1}
            degree[node.name] = max(degrees) * (2 if isinstance(node.op, Square) else 1)
            if len(degrees) > 1:
                raise _unjoinable(node)
            if isinstance(node.op, JOINING):
                units = self.units(steps)
                coarsest = max(units[name] for name in node.inputs)
                for name in dict.fromkeys(node.inputs):
                    layer, power = self._source(name, node)
                    steps[layer] *= (coarsest / units[name]) ** (1 / power)
        units = self.units(steps)
        for node in self.graph.nodes:
            given = [units[name] for name in node.inputs]
            if isinstance(node.op, JOINING) and max(given) > min(given) * (1 + 1e-9):
                raise _unjoinable(node)
        return steps

    def _source(self, name: str, join: FloatNode) -> tuple[str, int]:
        """The linear layer that a joined value's unit hangs on, and to which power."""
        known, power = self.graph.by_name(), 1
        node = known[name]
        while isinstance(node.op, (Square, *MOVING)) or is_sign(node.op):
            power *= 2 if isinstance(node.op, Square) else 1
            node = known[node.inputs[0]]
        if not isinstance(node.op, Linear):
            raise _unjoinable(join)
        return node.name, power

    def units(self, steps: Mapping[str, float] | None = None) -> dict[str, float]:
        """The real that integer 1 of every value stands for."""
        steps = self.steps if steps is None else steps
        units: dict[str, float] = {}
        for node in self.graph.nodes:
            before = units[node.inputs[0]] if node.inputs else self.unit
            if isinstance(node.op, Linear):
                units[node.name] = before * steps[node.name]
            elif isinstance(node.op, Square):
                units[node.name] = before**2
            else:
                units[node.name] = before / node.op.divisor if isinstance(node.op, AvgPool2d) else before
        return units

    def weights(self) -> dict[str, tuple[Tensor, Tensor]]:
        """(weight, bias) of every linear layer as real numbers, rounded to codes once there are steps."""
        found = {}
        for name, key in self.index.items():
            latent = self.latent[key]
            if self.steps:
                latent = rounded(latent.clamp(-self.top(name), self.top(name)))
            found[name] = latent * self.scales[name], self.bias[key] * self.sizes[name]
        return found

    def codes(self, name: str) -> Tensor:
        """The integer weights of a layer, int64."""
        top = self.top(name)
        codes: Tensor = self.latent[self.index[name]].detach().clamp(-top, top).round().to(torch.int64)
        return codes

    def forward(self, codes: Tensor, weights: Mapping[str, tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """(answer, strain) for codes (N, ...): the answer in real numbers.

        strain: the mean square of how far what is squared lies beyond the calibrated reach, relative to it; a parabola
        grows without bound out there, and training is to keep clear of it.
        """
        values = {self.graph.nodes[0].name: codes * self.unit}
        strain = torch.zeros((), dtype=codes.dtype)
        for node in self.graph.nodes[1:]:
            inputs = [values[name] for name in node.inputs]
            if isinstance(node.op, Square):
                strain = strain + (inputs[0].abs() / self.reach[node.name] - 1).clamp(min=0).square().mean()
            op = node.op
            if isinstance(op, Linear):
                op = replace(op, weight=weights[node.name][0], bias=weights[node.name][1])
            values[node.name] = op.evaluate(inputs)
        return values[self.graph.output], strain

    def bound(self, low: int, high: int, weights: Mapping[str, tuple[Tensor, Tensor]]) -> Tensor:
        """log2 of what each output can reach, in its integers, for codes in [low, high]: the proof, with a gradient."""
        ends: dict[str, tuple[Tensor, Tensor]] = {}
        for node in self.graph.nodes:
            ends[node.name] = self._ends(node, [ends[name] for name in node.inputs], low, high, weights)
        lo, hi = ends[self.graph.output]
        reach: Tensor = torch.log2(torch.maximum(-lo, hi) / self.units()[self.graph.output] + 1.0)
        return reach

    def _ends(
        self,
        node: FloatNode,
        given: list[tuple[Tensor, Tensor]],
        low: int,
        high: int,
        weights: Mapping[str, tuple[Tensor, Tensor]],
    ) -> tuple[Tensor, Tensor]:
        op = node.op
        if isinstance(op, Entry):
            whole = torch.ones(1, *op.shape, dtype=torch.float64)
            return whole * (low * self.unit), whole * (high * self.unit)
        if isinstance(op, Square):
            (lo, hi) = given[0]
            least = torch.minimum(lo.square(), hi.square())
            return torch.where((lo < 0) & (hi > 0), 0.0, least), torch.maximum(lo.square(), hi.square())
        if isinstance(op, Linear):
            (lo, hi), (weight, bias) = given[0], weights[node.name]
            up = replace(op, weight=weight.clamp(min=0), bias=bias)
            down = replace(op, weight=weight.clamp(max=0), bias=torch.zeros_like(bias))
            both = up.evaluate([torch.cat([lo, hi])]) + down.evaluate([torch.cat([hi, lo])])
            return both[:1], both[1:]
        return op.evaluate([lo for lo, _ in given]), op.evaluate([hi for _, hi in given])


def _unjoinable(node: FloatNode) -> QuantizationError:
    return QuantizationError(
        f"layer {node.name!r} joins values of different origin or degree, which have no common unit under encryption: "
        "join results of linear layers with equally many squares before them, or use pqi.quantize and protocol "
        "additive2, which serves connections that skip layers"
    )
