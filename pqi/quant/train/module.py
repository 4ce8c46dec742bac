"""The trainable integer graph: every forward pass computes the integers that the private run will compute.

What is learnt, in the units of the integer graph:

- codes of weights: latent reals of which the nearest level is used, times the channel's multiplier m_c;
- m_c, the step of a channel's weights in accumulator units (LSQ, Esser et al., ICLR 2020, in whole numbers);
- biases, in units of the reader's codes;
- one number g per requantization, by which the step of its codes has grown: a step s becomes s e^g, which is the same
  integer graph with the weights behind it times e^g and those before it times e^-g. So step sizes are learnt while
  shifts and tables stay as they are.

Values are float32 that hold integers: exact up to 2^24.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from pqi.graph.errors import QuantizationError
from pqi.graph.floating import Linear as FloatLinear
from pqi.graph.graph import IntegerGraph, Node
from pqi.graph.ops import WEIGHTED, Add, Conv2d, Dense, Input, Op, Requantize, Scale, Step
from pqi.quant.stages import Calibration, Grid, Lowered
from pqi.quant.train.estimators import level, looked_up, requantized, rounded, stepped

Weights = tuple[Tensor, Tensor]


class LinearNode(nn.Module):
    """Latent weights of one linear node. ``integers`` gives what the graph holds: weight and bias, float32."""

    code: nn.Parameter
    first_step: Tensor
    levels: Tensor
    fixed: Tensor
    bias: nn.Parameter

    def __init__(self, node: Node, target: Tensor, grid: Grid | None, offset: int, shift: int) -> None:
        super().__init__()
        if not isinstance(node.op, WEIGHTED):
            raise QuantizationError(f"{node.name!r} has no weights to train")
        self.offset, self.unit = offset, float(1 << shift)
        self.bias = nn.Parameter((node.op.bias - offset).float() / self.unit)
        self.trained = grid is not None and not isinstance(node.op, Scale)
        if grid is not None and self.trained:
            self.register_buffer("levels", grid.levels.float())
            self.step = nn.Parameter(grid.multiplier.float())
            self.register_buffer("first_step", grid.multiplier.float().view(self._view(target)))
            self.code = nn.Parameter(target.float() / self.first_step)
        else:  # what only changes a value's scale follows the steps on both sides of it
            self.register_buffer("fixed", target.float())

    @staticmethod
    def _view(weight: Tensor) -> tuple[int, ...]:
        return (-1,) + (1,) * (weight.ndim - 1)

    def integers(self, grown_in: Tensor | float, grown_out: Tensor | float) -> Weights:
        """Weight and bias; grown_in, grown_out: g of the codes that are read, and of the codes that are made."""
        ratio = torch.exp(torch.as_tensor(grown_in - grown_out))
        bias = rounded(self.bias * torch.exp(-torch.as_tensor(grown_out)) * self.unit) + self.offset
        if not self.trained:
            return rounded(self.fixed * ratio), bias
        step = rounded(self.step.clamp(min=1.0)).view(self._view(self.code))
        # The latent code belongs to the multiplier that it began with: a learnt step changes what the code must be.
        return level(self.code * ratio * (self.first_step / step), self.levels) * step, bias


class GraphModule(nn.Module, ABC):
    """An integer graph in training: the weights are made once a pass, then values flow as in ``IntegerGraph.run``.

    real: the floating-point type that holds the integers. key: by node name, under which modules, parameters and
    tables are kept: a layer's own name may hold anything.
    """

    graph: IntegerGraph
    real: torch.dtype = torch.float32
    key: dict[str, str]

    def keep(self, graph: IntegerGraph) -> None:
        """Take this graph, name its nodes by position, and hold the tables of its requantizations."""
        self.graph = graph
        self.key = {node.name: str(position) for position, node in enumerate(graph.nodes)}
        for node in graph.nodes:
            if isinstance(node.op, Requantize) and node.op.values is not None:
                self.register_buffer(f"table_{self.key[node.name]}", node.op.values.to(self.real))

    @abstractmethod
    def integers(self) -> dict[str, Weights]:
        """Weight and bias of every linear node, as the forward pass uses them (with their gradients)."""

    def value(self, node: Node, inputs: list[Tensor], weights: Mapping[str, Weights]) -> Tensor:
        """What one node computes: integers all the way; rounding and clamping with straight-through gradients."""
        op = node.op
        if isinstance(op, WEIGHTED):
            return linear(op, inputs[0], *weights[node.name])
        if isinstance(op, Step):
            return stepped(inputs[0])
        if isinstance(op, Requantize):
            index = requantized(inputs[0], op.shift, op.bits)
            if op.values is None:
                return index + op.low if op.low else index
            return looked_up(index, getattr(self, f"table_{self.key[node.name]}"))
        return op.evaluate(inputs)

    def forward(self, codes: Tensor, weights: Mapping[str, Weights] | None = None) -> Tensor:
        """The answer's integers, of type ``real``, for codes (N, *shape)."""
        weights = self.integers() if weights is None else weights
        left = {name: len(readers) for name, readers in self.graph.consumers.items()}
        left[self.graph.output] += 1
        values = {self.graph.nodes[0].name: codes.to(self.real)}
        for node in self.graph.nodes[1:]:
            values[node.name] = self.value(node, [values[i] for i in node.inputs], weights)
            for name in set(node.inputs):
                left[name] -= 1
                if not left[name]:
                    del values[name]
        return values[self.graph.output]


class TrainableGraph(GraphModule):
    """A lowered graph with latent weights; ``forward`` maps codes to the integers of the answer, all float32."""

    def __init__(self, calibration: Calibration, lowered: Lowered) -> None:
        super().__init__()
        self.lowered, graph = lowered, lowered.graph
        self.groups = code_groups(calibration, graph)
        self.read_by = accumulator_readers(graph)
        known = calibration.placed.graph.by_name()
        self.keep(graph)
        grown = sorted({g for g in self.groups.values() if g})
        self.grown = nn.ParameterDict({self.key[g]: nn.Parameter(torch.zeros(())) for g in grown})
        self.linear = nn.ModuleDict()
        for node in graph.nodes:
            if isinstance(node.op, WEIGHTED):
                target = real_target(known[node.name].op, node, lowered)
                reader = graph.by_name.get(self.read_by[node.name])
                shift = reader.op.shift if reader is not None and isinstance(reader.op, Requantize) else 0
                offset = lowered.offsets.get(node.name, 0)
                made = LinearNode(node, target, lowered.grids.get(node.name), offset, shift)
                self.linear[self.key[node.name]] = made

    def integers(self) -> dict[str, Weights]:
        """Weight and bias of every linear node, as the forward pass uses them (with their gradients)."""
        out = {}
        for node in self.graph.nodes:
            if isinstance(node.op, WEIGHTED):
                module = self.linear[self.key[node.name]]
                made = self.groups.get(self.read_by[node.name], "")
                out[node.name] = module.integers(self._grown(self.groups[node.inputs[0]]), self._grown(made))  # type: ignore[operator]
        return out

    def _grown(self, group: str) -> Tensor | float:
        return self.grown[self.key[group]] if group else 0.0

    @torch.no_grad()
    def wanted(self) -> dict[str, Tensor]:
        """The real numbers of which the trained weights are the nearest allowed integers."""
        out = {}
        for node in self.graph.nodes:
            module = self.linear[self.key[node.name]] if isinstance(node.op, WEIGHTED) else None
            if isinstance(module, LinearNode) and module.trained:
                grown = self._grown(self.groups[node.inputs[0]]) - self._grown(
                    self.groups.get(self.read_by[node.name], "")
                )
                out[node.name] = module.code * torch.exp(torch.as_tensor(grown)) * module.first_step
        return out

    @torch.no_grad()
    def lower(self) -> Lowered:
        """The graph with the weights as they are now, exact integers; scales follow the learnt steps."""
        nodes, weights, grids = [], self.integers(), dict(self.lowered.grids)
        for node in self.graph.nodes:
            if isinstance(node.op, WEIGHTED):
                weight, bias = (t.round().to(torch.int64) for t in weights[node.name])
                module = self.linear[self.key[node.name]]
                nodes.append(replace(node, op=replace(node.op, weight=weight, bias=bias)))
                if isinstance(module, LinearNode) and module.trained:
                    step = module.step.clamp(min=1.0).round().to(torch.int64)
                    grids[node.name] = replace(grids[node.name], multiplier=step)
            else:
                nodes.append(node)
        graph = IntegerGraph(tuple(nodes), self.graph.output)
        return replace(self.lowered, graph=graph, grids=grids, scales=self._scales())

    def _scales(self) -> dict[str, float | Tensor]:
        out = {}
        for name, scale in self.lowered.scales.items():
            group = self.groups[name] if name in self.groups else self.groups.get(self.read_by[name], "")
            out[name] = scale * math.exp(float(self._grown(group)))
        return out


def linear(op: Op, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The linear operator with other weights, in floating point."""
    if isinstance(op, Conv2d):
        return nn.functional.conv2d(x, weight, bias, op.stride, op.padding, op.dilation, op.groups)
    if isinstance(op, Dense):
        return nn.functional.linear(x, weight, bias)
    shape = (-1,) + (1,) * (x.ndim - 2)
    return x * weight.view(shape) + bias.view(shape)


def real_target(op: Op, node: Node, lowered: Lowered) -> Tensor:
    """The real numbers that a node's integer weights stand near: w * scale of the input / scale of the result."""
    if not isinstance(op, FloatLinear):
        raise QuantizationError(f"layer {node.name!r} has no float weights")
    unit, read = lowered.scales[node.name], lowered.scales[node.inputs[0]]
    ratio = torch.as_tensor(read / unit, dtype=torch.float64)
    return op.weight * (ratio.view((-1,) + (1,) * (op.weight.ndim - 1)) if ratio.ndim else ratio)


def code_groups(calibration: Calibration, graph: IntegerGraph) -> dict[str, str]:
    """For every value that is made of codes: the requantization whose step it has ("" if its step is fixed)."""
    groups: dict[str, str] = {}
    for node in graph.nodes:
        if isinstance(node.op, Requantize):
            fixed = node.name not in calibration.seen
            groups[node.name] = "" if fixed else calibration.placed.group(node.name)
        elif isinstance(node.op, (Input, Step)):
            groups[node.name] = ""
        elif not isinstance(node.op, (*WEIGHTED, Add)) and node.inputs[0] in groups:
            groups[node.name] = groups[node.inputs[0]]
    return groups


def accumulator_readers(graph: IntegerGraph) -> dict[str, str]:
    """For every accumulator: the requantization or step that reads it, or "" where the answer does."""
    readers: dict[str, str] = {}
    for node in reversed(graph.nodes):
        found = ""
        for reader in graph.consumers[node.name]:
            if isinstance(reader.op, (Requantize, Step)):
                found = reader.name
            elif not isinstance(reader.op, WEIGHTED):
                found = found or readers.get(reader.name, "")
        readers[node.name] = found
    return readers
