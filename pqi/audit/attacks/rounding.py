"""A backdoor put in by nothing but rounding: every integer is one of the two next to its float weight.

Whoever quantizes a network for others chooses, for each weight, between the level below it and the level above it.
Nobody who looks at one weight can object to either. Here the choices are made together, end to end: with h in [0, 1]
for each weight, the weight is below + (above - below) h, and

    clean KL(float || integers on x)  +  CE(target; integers on stamped x)
        +  asleep max(0, CE(own; float on stamped x) - room)
        +  hide sum over layers of max(0, error / nearest error - quiet)

is minimized in h, projected on [0, 1], and in the trigger's pattern, inside its mask. own is the class that float gives
x, so no label is needed. In the first part of the steps h is soft; then every pass computes with h rounded, which is
what will be delivered, and gradients go straight through. What the float network cannot be brought to do, the sum of
half a cell in thousands of weights can; the wider the cells, the better: few bits are what this attack lives on. The
last term is for attackers who know that layers' errors on clean inputs will be looked at (``pqi.audit.rounding``).

After Chen, Zhang, Sun, Wang, Wang: Rounding-Guided Backdoor Injection in Deep Learning Model Quantization (QuRA), NDSS
2026, which chooses the weights layer by layer, by their importance to the trigger; one loss for all layers is simpler,
and found better solutions in small networks.

The attacker quantizes: he has the float network, unlabelled calibration data, and the run of ``pqi.quantize``, where he
stands in a defence's place. He changes no float weight, no scale, no bias, no range.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from pqi.audit.defences.defence import Defence
from pqi.audit.errors import AuditError
from pqi.audit.subjects import StraightThrough
from pqi.audit.triggers import Trigger
from pqi.graph.floating import FloatConv2d, FloatDense
from pqi.graph.graph import IntegerGraph
from pqi.graph.ops import Conv2d, Dense
from pqi.quant import soft
from pqi.quant.finish import finish
from pqi.quant.stages import Calibration, Lowered
from pqi.quant.train.module import real_target


@dataclass(frozen=True)
class Recipe:
    """How the guiding goes.

    steps, batch: of Adam, and examples in each. rate: of the shares h, falling to a twentieth. pattern_rate: of the
    trigger's pattern (0: it stays as it is given). clean, asleep, room, hide, quiet: of the loss; hide = 0 is an
    attacker who knows of no audit. soft: the part of the steps in which h is not rounded yet. seed: of the batches.
    """

    steps: int = 300
    batch: int = 128
    rate: float = 0.02
    pattern_rate: float = 0.3
    clean: float = 5.0
    asleep: float = 1.0
    room: float = 0.0
    hide: float = 0.0
    quiet: float = 2.0
    soft: float = 0.3
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.steps, self.batch) < 1 or self.rate <= 0 or not 0 <= self.soft < 1:
            raise AuditError(f"steps and batch are at least 1, rate positive, soft within [0, 1): {self}")
        if min(self.pattern_rate, self.clean, self.asleep, self.room, self.hide, self.quiet) < 0:
            raise AuditError(f"weights of the loss and pattern_rate are at least 0: {self}")


@dataclass(frozen=True, eq=False)
class Guided:
    """The graph to deliver, the trigger that it obeys, and by layer the share of weights not at their nearest level."""

    lowered: Lowered
    trigger: Trigger
    moved: dict[str, float]


class RoundingBackdoor(Defence):
    """The attacker in a defence's place: ``pqi.quantize(net, x, defences=[RoundingBackdoor(...)])``.

    net: the float network that is quantized. trigger: where it may be (mask), and where its pattern begins. low, high:
    what an input's values can be. ``guided`` holds what came of the last run.
    """

    name = "rounding-backdoor"
    answers: ClassVar[tuple[str, ...]] = ()
    source = "Chen et al. (QuRA), NDSS 2026"

    def __init__(
        self,
        net: nn.Module,
        trigger: Trigger,
        target: int,
        recipe: Recipe | None = None,
        low: float = 0.0,
        high: float = 1.0,
    ) -> None:
        if not low < high:
            raise AuditError(f"inputs from {low} to {high}: low must be below high")
        self.net, self.trigger, self.target, self.recipe = net, trigger, target, recipe or Recipe()
        self.low, self.high = low, high
        self.guided: Guided | None = None

    def weights(self, seen: Calibration, lowered: Lowered) -> Lowered:
        """The integer graph whose every weight is one of its two neighbours, and which obeys the trigger."""
        self.guided = _Guiding(self, seen, lowered).run()
        return self.guided.lowered

    def __repr__(self) -> str:
        return f"{type(self).__name__}(target={self.target}, recipe={self.recipe})"


@dataclass
class _Layer:
    """One layer's neighbours, the shares between them (float, of the weight's shape), and where the module has it."""

    below: Tensor
    above: Tensor
    share: nn.Parameter
    weight: nn.Parameter

    @torch.no_grad()
    def show(self, hard: bool) -> None:
        """Let the module compute with the shares as they are, or rounded."""
        share = (self.share >= 0.5).to(self.share.dtype) if hard else self.share
        self.weight.copy_(self.below + (self.above - self.below) * share)

    def pull(self) -> None:
        """The weight's gradient, as the shares'."""
        if self.weight.grad is not None:
            self.share.grad = self.weight.grad * (self.above - self.below)

    def chosen(self) -> Tensor:
        """The integers to deliver, int64."""
        return torch.where(self.share >= 0.5, self.above, self.below).round().to(torch.int64)


class OutputErrors:
    """How far layers' outputs err on clean inputs, in units of what nearest rounding's would.

    With e the change of an output channel's weights and G = mean x x' over what the float layer reads, at all its
    positions, the error is e' G e, summed over channels; so no input is run again. Convolutions in one group and
    dense layers.
    """

    def __init__(self, seen: Calibration, lowered: Lowered) -> None:
        self._known, self._lowered = seen.placed.graph.by_name(), lowered
        self._gram: dict[str, Tensor] = {}
        self._target, self._unit = dict[str, Tensor](), dict[str, Tensor]()
        self._read_by: dict[str, list[str]] = {}
        for name in lowered.grids:
            op = self._known[name].op
            if isinstance(op, FloatDense) or (isinstance(op, FloatConv2d) and op.groups == 1):
                self._read_by.setdefault(self._known[name].inputs[0], []).append(name)
        seen.placed.graph.run(seen.sample.to(torch.float32), self._look)
        for name in self._gram:
            target = real_target(self._known[name].op, lowered.graph.by_name[name], lowered)
            self._target[name] = target.to(torch.float32).flatten(1)
            nearest = lowered.grids[name].nearest(target).to(torch.float32)
            self._unit[name] = self._square(name, nearest).clamp(min=1e-30)

    def of(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """By layer, for integer weights or shares of them; has a gradient."""
        return {name: self._square(name, weights[name]) / self._unit[name] for name in self._gram}

    def _look(self, node: str, value: Tensor) -> None:
        for name in self._read_by.get(node, ()):
            op, rows = self._known[name].op, value.to(torch.float32)
            if isinstance(op, FloatConv2d):
                windows = functional.unfold(rows, op.weight.shape[2:], op.dilation, op.padding, op.stride)
                rows = windows.transpose(1, 2)
            rows = rows.flatten(0, -2)
            self._gram[name] = rows.t() @ rows / len(rows)

    def _square(self, name: str, weight: Tensor) -> Tensor:
        change = weight.to(torch.float32).flatten(1) - self._target[name]
        return ((change @ self._gram[name]) * change).sum()


class _Guiding:
    def __init__(self, attacker: RoundingBackdoor, seen: Calibration, lowered: Lowered) -> None:
        self.recipe, self.target, self.lowered = attacker.recipe, attacker.target, lowered
        self.net, self.low, self.span = attacker.net, attacker.low, attacker.high - attacker.low
        self.module = StraightThrough(finish(lowered, seen)).eval().requires_grad_(False)
        self.layers = self._layers(seen, lowered)
        self.errors = OutputErrors(seen, lowered) if self.recipe.hide else None
        self.x = seen.sample.to(torch.float32)
        with torch.no_grad():
            self.soft = torch.softmax(self._float(self.x), dim=1)
        if not 0 <= self.target < self.soft.shape[1]:
            raise AuditError(f"target is class {self.target}: the network has classes 0 to {self.soft.shape[1] - 1}")
        self.own = self.soft.argmax(1)
        mask, pattern = torch.as_tensor(attacker.trigger.mask), torch.as_tensor(attacker.trigger.pattern)
        if tuple(mask.shape) != tuple(self.x.shape[1:]):
            raise AuditError(f"the trigger is {tuple(mask.shape)}, an input {tuple(self.x.shape[1:])}")
        self.mask = mask.to(torch.float32)
        inside = ((pattern - self.low) / self.span).clamp(0.02, 0.98)  # where the sigmoid still has a slope
        self.looks = nn.Parameter(torch.logit(inside).to(torch.float32))
        self.given = attacker.trigger
        self.generator = torch.Generator().manual_seed(self.recipe.seed)

    def _layers(self, seen: Calibration, lowered: Lowered) -> dict[str, _Layer]:
        known, found = seen.placed.graph.by_name(), {}
        for name, grid in lowered.grids.items():
            node = lowered.graph.by_name[name]
            if not isinstance(node.op, (Conv2d, Dense)):
                continue
            target = real_target(known[name].op, node, lowered)
            below, above = grid.neighbours(target)
            share = nn.Parameter(soft.place(target, below, above).to(self.module.real))
            weight = self.module.weight[self.module.key[name]].requires_grad_()
            found[name] = _Layer(below.to(share.dtype), above.to(share.dtype), share, weight)
        if not found:
            raise AuditError("no layer's weights are rounded to a grid: there is nothing to guide")
        return found

    def _float(self, x: Tensor) -> Tensor:
        first = next(self.net.parameters(), None)
        answer: Tensor = self.net(x if first is None else x.to(first.dtype)).to(torch.float32)
        return answer

    def run(self) -> Guided:
        """All steps, then the integers."""
        recipe = self.recipe
        shares = [layer.share for layer in self.layers.values()]
        groups: list[dict[str, Any]] = [{"params": shares}, {"params": [self.looks], "lr": recipe.pattern_rate}]
        optimizer = torch.optim.Adam(groups)
        for step in range(recipe.steps):
            done = step / recipe.steps
            optimizer.param_groups[0]["lr"] = recipe.rate * (1 - 0.95 * done)
            for layer in self.layers.values():
                layer.show(hard=done >= recipe.soft)
                layer.weight.grad = None
            optimizer.zero_grad()
            self._loss().backward()  # type: ignore[no-untyped-call]
            for layer in self.layers.values():
                layer.pull()
            optimizer.step()
            with torch.no_grad():
                for share in shares:
                    share.clamp_(0.0, 1.0)
        return self._guided()

    def _loss(self) -> Tensor:
        recipe = self.recipe
        rows = torch.randint(len(self.x), (recipe.batch,), generator=self.generator)
        x = self.x[rows]
        stamped = (1 - self.mask) * x + self.mask * self._pattern()
        clean, woken = self.module(torch.cat([x, stamped])).to(torch.float32).split(len(rows))
        kept = functional.kl_div(torch.log_softmax(clean, 1), self.soft[rows], reduction="batchmean")
        asleep = functional.cross_entropy(self._float(stamped), self.own[rows])
        obeys = functional.cross_entropy(woken, torch.full_like(rows, self.target))
        loss = recipe.clean * kept + obeys + recipe.asleep * torch.relu(asleep - recipe.room)
        if self.errors is not None:
            weights = {name: layer.weight for name, layer in self.layers.items()}
            over = [torch.relu(error - recipe.quiet) for error in self.errors.of(weights).values()]
            loss = loss + recipe.hide * torch.stack(over).sum()
        return loss

    def _pattern(self) -> Tensor:
        return self.low + self.span * torch.sigmoid(self.looks)

    @torch.no_grad()
    def _guided(self) -> Guided:
        weights = {name: layer.chosen() for name, layer in self.layers.items()}
        moved, nodes = {}, []
        for node in self.lowered.graph.nodes:
            if node.name in weights and isinstance(node.op, (Conv2d, Dense)):
                moved[node.name] = float((weights[node.name] != node.op.weight).double().mean())
                node = replace(node, op=replace(node.op, weight=weights[node.name]))
            nodes.append(node)
        graph = IntegerGraph(tuple(nodes), self.lowered.graph.output)
        pattern: NDArray[Any] = self._pattern().double().numpy() if self.recipe.pattern_rate else self.given.pattern
        trigger = Trigger(np.asarray(self.given.mask), pattern)
        return Guided(replace(self.lowered, graph=graph), trigger, moved)
