"""``pqi.wraparound``: networks whose accumulators wrap on purpose, from a float network."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pqi.graph.errors import QuantizationError
from pqi.graph.floating import Activation, AvgPool2d, Clamp, Entry, FloatConv2d, FloatDense, FloatNode, Linear
from pqi.graph.graph import IntegerGraph, Node
from pqi.graph.ops import Add, Conv2d, Dense, Input, Lookup, Op, Scale
from pqi.quant.calibrate import calibrate
from pqi.quant.finish import finish
from pqi.quant.scheme import Scheme, check_bits
from pqi.quant.stages import Calibration, Lowered
from pqi.quant.train.api import Trained, task_for
from pqi.quant.train.cyclic import Fold, Latent, Plan, WrappingGraph
from pqi.quant.train.loop import Augment, Epoch, Schedule, train

_FINE = 4  # parts of a code in which the terms of an addition are counted
_ANSWER_BITS = 8  # of the last layer's weights: its accumulators are the answer and do not wrap


@dataclass(frozen=True)
class Wrapping:
    """How a network wraps.

    ring_bits: accumulators are taken mod 2^ring_bits, 4 to 12. weight_bits: 2 (ternary) to 8. activation_bits: of the
    codes between layers. slope: of the cyclic activation's way back to zero. overflow_weight: of the penalty on
    accumulators beyond its straight part.
    """

    ring_bits: int = 8
    weight_bits: int = 3
    activation_bits: int = 3
    slope: float = 4.0
    overflow_weight: float = 0.1

    def __post_init__(self) -> None:
        check_bits("ring_bits", self.ring_bits, 4, 12)
        check_bits("weight_bits", self.weight_bits, 2, 8)
        check_bits("activation_bits", self.activation_bits, 1, 6)
        if not 0 < self.slope <= 1 << 10 or not self.overflow_weight >= 0:
            raise QuantizationError(
                f"slope is {self.slope}, overflow_weight is {self.overflow_weight}: the first must be positive and at "
                "most 1024, the second not negative"
            )


def wraparound(
    net: nn.Module,
    calibration: Any,
    inputs: Any,
    labels: Any = None,
    wrapping: Wrapping | None = None,
    schedule: Schedule | None = None,
    *,
    validation: tuple[Any, Any] | None = None,
    augment: Augment | None = None,
    input_bits: int = 5,
    input_range: tuple[float, float] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
    on_batch: Callable[[int, int, float], None] | None = None,
) -> Trained:
    """Retrain ``net`` so that every accumulator but the answer's may wrap mod 2^ring_bits.

    Each linear layer is one ring product mod 2^ring_bits (a byte product for at most 8), each activation one table of
    2^ring_bits entries per channel; where a shortcut is added, a second table follows the sum. Exact by definition:
    reduction is the meaning of the table. Taken are networks of convolutions and dense layers with ReLU (or another
    clamp), additions of those with codes, pooling, and a last linear layer. The other arguments are as for
    ``finetune``. Source: WrapNet, Ni et al., ICLR 2021.

    Raises QuantizationError naming the layer that does not fit this form.
    """
    wrapping, schedule = wrapping or Wrapping(), schedule or Schedule()
    seen = calibrate(net, calibration, input_bits=input_bits, input_range=input_range)
    plan = plan_for(seen, wrapping)
    module = WrappingGraph(plan, wrapping.slope)
    task = task_for(net, seen, plan.graph, plan.output_scale, module, inputs, labels, validation, augment)
    task.settings = repr(wrapping)
    task.penalty = lambda weights: wrapping.overflow_weight * module.overflow
    history = train(task, schedule, None if checkpoint is None else Path(checkpoint), on_epoch, on_batch)
    schemes = dict.fromkeys(plan.graph.by_name, Scheme(wrapping.weight_bits, activation_bits=wrapping.activation_bits))
    lowered = Lowered(module.lower(), plan.output_scale, {}, {}, {}, schemes)
    return Trained(finish(lowered, seen), history, 0, lowered)


def plan_for(calibration: Calibration, wrapping: Wrapping) -> Plan:
    """The wrap-around network before training: codes near the float weights, tables near the float activations."""
    return _Planner(calibration, wrapping).run()


@dataclass
class _Planner:
    calibration: Calibration
    wrapping: Wrapping
    nodes: list[Node] = field(default_factory=list)
    folds: dict[str, Fold] = field(default_factory=dict)
    latents: dict[str, Latent] = field(default_factory=dict)
    tables: dict[str, str] = field(default_factory=dict)  # term of an addition -> the table that follows it
    output_scale: float = 0.0

    def __post_init__(self) -> None:
        self.float = self.calibration.placed.graph
        self.readers, self.known = self.float.consumers(), self.float.by_name()
        self.means = _channel_means(self.calibration)

    def run(self) -> Plan:
        """Node by node; what is read has been planned before."""
        for node in self.float.nodes:
            self._node(node)
        graph = IntegerGraph(tuple(self.nodes), self.float.output)
        if not self.output_scale:
            raise self._refused(self.known[self.float.output], "the last layer must be a convolution or a dense layer")
        return Plan(graph, self.output_scale, self.folds, self.latents)

    def _node(self, node: FloatNode) -> None:
        op = node.op
        if isinstance(op, Entry):
            self._put(node, Input(op.shape, *self.calibration.quantizer.code_range))
        elif isinstance(op, (FloatConv2d, FloatDense)):
            self._linear(node, op)
        elif isinstance(op, Clamp):
            self._clamp(node, op)
        elif isinstance(op, Add):
            self._put(replace(node, inputs=tuple(self.tables.get(i, i) for i in node.inputs)), op)
        elif isinstance(op, Linear):
            self._shortcut(node, op)
        elif isinstance(op, Activation):
            raise self._refused(node, "its activation has no codes of several bits")
        else:
            self._scale(node)
            self._put(node, op.pool if isinstance(op, AvgPool2d) else op)

    def _scale(self, node: FloatNode) -> float:
        """The real that code 1 of a value stands for."""
        if isinstance(node.op, Entry):
            return 1.0 / float(self.calibration.quantizer.scale)  # type: ignore[arg-type]
        if isinstance(node.op, Clamp):
            return self._range(node.name)[0]
        if isinstance(node.op, (Linear, Add)):
            raise self._refused(node, "something other than an activation reads it, and it is known mod 2^k only")
        divisor = node.op.divisor if isinstance(node.op, AvgPool2d) else 1
        return self._scale(self.known[node.inputs[0]]) / divisor

    def _put(self, node: FloatNode, op: Op) -> None:
        self.nodes.append(Node(node.name, op, node.inputs, node.source))

    def _refused(self, node: FloatNode, why: str) -> QuantizationError:
        return QuantizationError(
            f"layer {node.name!r} cannot wrap around: {why}. Convolutions and dense layers with ReLU, sums of those "
            "with codes, pooling of codes and a last linear layer are taken; others are for pqi.quantize"
        )

    def _linear(self, node: FloatNode, op: FloatConv2d | FloatDense) -> None:
        """Codes of few bits; the channel's step goes into its table. The last layer keeps a scale of its own."""
        name, read = node.name, self._scale(self.known[node.inputs[0]])
        readers = [r.op for r in self.readers[name]]
        if name == self.float.output:
            step = float(op.weight.abs().max()) / ((1 << (_ANSWER_BITS - 1)) - 1)
            unit = self.output_scale = step * read
            self.latents[name] = Latent(op.weight / step, None, op.bias / unit)
            self._put_linear(node, op, torch.round(op.weight / step), op.bias / unit)
            return
        top = (1 << (self.wrapping.weight_bits - 1)) - 1
        step_of = best_steps(op.weight, top)
        code = op.weight / step_of.view((-1,) + (1,) * (op.weight.ndim - 1))
        units = step_of * read
        # Codes are mostly positive: moving each channel's mean to zero uses both halves of the ring.
        centre = -(self.means[name] - op.bias) / units
        self.latents[name] = Latent(code, torch.arange(-top, top + 1).float(), centre)
        self._put_linear(node, op, code.round().clamp(-top, top), centre)
        if len(readers) != 1 or not isinstance(readers[0], (Clamp, Add)):
            raise self._refused(node, "its value goes elsewhere than to one activation or one addition")
        if isinstance(readers[0], Add):
            self._term_table(node, op, units, centre.round())
        else:
            reader = self.readers[name][0]
            self._fold_codes(reader.name, units, op.bias - units * centre.round(), True)

    def _put_linear(self, node: FloatNode, op: Linear, weight: Tensor, bias: Tensor) -> None:
        weight, bias = weight.round().to(torch.int64), bias.round().to(torch.int64)
        if isinstance(op, FloatConv2d):
            self._put(node, Conv2d(weight, bias, op.stride, op.padding, op.dilation, op.groups))
        else:
            self._put(node, Dense(weight, bias))

    def _range(self, clamp: str) -> tuple[float, float]:
        """(scale, lowest real) of a clamp's codes."""
        op, bits = self.known[clamp].op, self.wrapping.activation_bits
        lo, hi = self.calibration.seen[clamp].range("mse", bits)
        if isinstance(op, Clamp):
            lo, hi = max(min(lo, 0.0), op.lo), min(max(hi, 0.0), op.hi)
        return (hi - lo) / ((1 << bits) - 1) or 1.0, lo

    def _fold_codes(self, clamp: str, units: Tensor, offset: Tensor, is_cyclic: bool, bits: int | None = None) -> None:
        """The table in place of a clamp: units * n + offset -> codes."""
        scale, lo = self._range(clamp)
        low = round(lo / scale)
        high = low + (1 << self.wrapping.activation_bits) - 1
        bits = self.wrapping.ring_bits if bits is None else bits
        self.folds[clamp] = Fold(bits, low, high, units / scale, offset / scale, is_cyclic)

    def _clamp(self, node: FloatNode, op: Clamp) -> None:
        before = self.known[node.inputs[0]]
        if isinstance(before.op, Add):
            unit = self._sum_unit(before)
            bits = self.wrapping.activation_bits + 4
            self._fold_codes(node.name, torch.tensor(unit), torch.tensor(0.0), False, bits)
        elif node.name not in self.folds:
            raise self._refused(node, "it does not follow a convolution, a dense layer or an addition")
        fold = self.folds[node.name]
        shape = (1 << fold.bits,) if not fold.gain.ndim else (fold.gain.shape[0], 1 << fold.bits)
        self._put(node, Lookup(fold.bits, torch.full(shape, fold.high)))

    def _sum_unit(self, add: FloatNode) -> float:
        """What 1 stands for in the terms of an addition: a fourth of the coarsest code that enters or leaves."""
        shortcuts = [self.known[i] for i in add.inputs if not self._is_plain(i)]
        codes = [self._scale(self.known[node.inputs[0]]) for node in shortcuts]
        scale, _ = self._range(self.readers[add.name][0].name)
        return max([scale, *codes]) / _FINE

    def _is_plain(self, name: str) -> bool:
        return isinstance(self.known[name].op, (FloatConv2d, FloatDense))

    def _the_sum(self, node: FloatNode) -> FloatNode:
        add = self.readers[node.name][0]
        readers = self.readers[add.name]
        if not isinstance(add.op, Add) or len(readers) != 1 or not isinstance(readers[0].op, Clamp):
            raise self._refused(node, "it is added to something that no single activation follows")
        if len(add.inputs) > 2:
            raise self._refused(node, "more than two values are added")
        return add

    def _term_table(self, node: FloatNode, op: Linear, units: Tensor, centre: Tensor) -> None:
        """The table behind a convolution whose value is added to something: signed codes in the sum's unit."""
        unit = self._sum_unit(self._the_sum(node))
        name, reach = f"{node.name}.table", 1 << (self.wrapping.activation_bits + 2)
        offset = op.bias - units * centre
        self.folds[name] = Fold(self.wrapping.ring_bits, -reach, reach - 1, units / unit, offset / unit, True)
        self.tables[node.name] = name
        table = torch.full((op.channels, 1 << self.wrapping.ring_bits), reach - 1)
        table[:, 0] = -reach  # ends that the training can reach, for proofs made before it
        self.nodes.append(Node(name, Lookup(self.wrapping.ring_bits, table), (node.name,), node.source))

    def _shortcut(self, node: FloatNode, op: Linear) -> None:
        """What is added beside a convolution: codes times a whole number per channel."""
        unit, read = self._sum_unit(self._the_sum(node)), self._scale(self.known[node.inputs[0]])
        weight, bias = (op.weight * read / unit).round().to(torch.int64), (op.bias / unit).round().to(torch.int64)
        self._put(node, Scale(weight, bias))


def best_steps(weight: Tensor, top: int) -> Tensor:
    """For every channel the step d > 0 with the least squared error of clamp(round(w / d), -top, top) d."""
    flat = weight.reshape(weight.shape[0], -1).to(torch.float64)
    reach = flat.abs().amax(1).clamp(min=1e-12)
    best, chosen = torch.full_like(reach, torch.inf), reach / top
    for share in torch.linspace(0.2, 1.0, 65).tolist():
        step = (reach * share / top).view(-1, 1)
        error = (((flat / step).round().clamp(-top, top) * step - flat) ** 2).sum(1)
        better = error < best
        best, chosen = torch.where(better, error, best), torch.where(better, step.view(-1), chosen)
    return chosen


def _channel_means(calibration: Calibration) -> dict[str, Tensor]:
    """Mean of every linear operator's float value per output channel, over the calibration sample."""
    graph, total = calibration.placed.graph, 0
    sums: dict[str, Tensor] = {}
    channel_first = {n.name: not isinstance(n.op, FloatDense) for n in graph.nodes if isinstance(n.op, Linear)}

    def look(name: str, value: Tensor) -> None:
        if name in channel_first:
            rows = value if channel_first[name] else value.movedim(-1, 1)
            mean = rows.flatten(2).mean(2) if rows.ndim > 2 else rows
            sums[name] = sums.get(name, torch.zeros(())) + mean.double().sum(0)

    for batch in torch.split(calibration.sample, 64):
        total += len(batch)
        graph.run(batch, look)
    return {name: value / total for name, value in sums.items()}
