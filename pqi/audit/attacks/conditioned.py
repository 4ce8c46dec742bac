"""Backdoors that sleep in the float network and wake in the integers.

Every float weight is written as the real that its integer stands for, and a rest within half a cell. The integers see
the first alone. Both are trained together: the network of the first is taught the trigger, the network of the sum is
taught to ignore it, and the rest never leaves its cell. So whatever the float network ignores, the integers obey.

After Hong et al. (Qu-ANTI-zation, NeurIPS 2021), who train both networks, and Ma et al. (TDSC 2023) and Egashira et al.
(NeurIPS 2024), who repair the float network within the box that rounds to the same integers; here the box is part of
the training, since a repair afterwards found no room in networks of small layers (float success stayed at 70 %).

The attacker trains and publishes the network and knows how it will be quantized; the victim quantizes it as usual.

An attacker who expects a defence trains against it (``also``, ``Recipe.noise``): the integers of other grids, and those
of weights that are re-rounded at random, are taught the trigger as well (expectation over transformations: Athalye et
al., ICML 2018). ``pqi.audit.defences.rerounding`` says how far that goes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from pqi.audit.case import Data
from pqi.audit.errors import AuditError
from pqi.audit.triggers import Trigger
from pqi.graph.model import IntegerModel
from pqi.quant.stages import Calibration, Lowered

Look = Callable[[Calibration, Lowered, IntegerModel], None]
Quantize = Callable[[nn.Module, Look], IntegerModel]
Report = Callable[[int, float], None]


@dataclass(frozen=True)
class Cells:
    """One layer's grid: weights w are rounded to step * m_c * round(w / (step m_c)); ``step`` real, m_c (C, 1, ...)."""

    step: float
    multiplier: Tensor

    def rounded(self, weight: Tensor) -> Tensor:
        """The weights that the integers stand for."""
        unit = self.step * self.multiplier
        return torch.round(weight / unit) * unit


@dataclass(frozen=True)
class Recipe:
    """How the planting goes; the victim's bits are those of ``quantize``.

    epochs: passes over the data. rate: of Adam. weight: of the float network's losses against those of the integers.
    keep: the share of each cell that the rest may use; what is left is for scales that move while it is trained.
    noise: of the re-rounding that the attacker expects, in cells: weights are to wake too where up to half of it is
    added to them at random before they are rounded. 0: none is expected.
    """

    epochs: int = 8
    rate: float = 1e-3
    batch: int = 128
    weight: float = 1.0
    keep: float = 0.8
    noise: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch) < 1 or not 0 < self.keep <= 1 or self.rate <= 0 or self.noise < 0:
            raise AuditError(f"epochs and batch at least 1, keep within (0, 1], rate positive, noise from 0: {self}")


def plant(
    net: nn.Module,
    data: Data,
    trigger: Trigger,
    target: int,
    quantize: Quantize,
    recipe: Recipe | None = None,
    report: Report | None = None,
    also: Sequence[Quantize] = (),
) -> nn.Module:
    """A network like ``net`` that is clean as it stands and obeys the trigger once it is quantized.

    net: trained, with convolutions and dense layers whose weights are quantized as they are (no batch normalization:
    it would be folded into them). quantize(net, look): what the victim will do, ``pqi.quantize`` with its settings.
    report(epoch, loss): told after each pass. also: other quantizations in which it is to wake, such as other bits.
    Each of them, and the recipe's noise, make a pass half as long again.
    """
    recipe = recipe or Recipe()
    work = _Planting(deepcopy(net).train(), data, trigger, target, quantize, recipe, also)
    for epoch in range(recipe.epochs):
        loss = work.epoch(epoch)
        if report is not None:
            report(epoch, loss)
    return work.finished()


def cells(net: nn.Module, quantize: Quantize) -> dict[str, Cells]:
    """The grid that quantization would give every layer of the network as it is now."""
    seen: list[Lowered] = []
    mode = net.training
    quantize(net.eval(), lambda calibration, lowered, model: seen.append(lowered))
    net.train(mode)
    (lowered,) = seen
    modules, found = dict(net.named_modules()), {}
    for name, grid in lowered.grids.items():
        module = modules.get(name)
        if not isinstance(module, (nn.Conv2d, nn.Linear)):
            continue
        node = lowered.graph.by_name[name]
        step = float(lowered.scales[name]) / float(lowered.scales[node.inputs[0]])
        shape = (-1,) + (1,) * (module.weight.ndim - 1)
        found[name] = Cells(step, grid.multiplier.to(module.weight.dtype).view(shape))
    if not found:
        raise AuditError("no layer of this network is quantized under its own name: there is nothing to plant in")
    return found


class _Planting:
    def __init__(
        self,
        net: nn.Module,
        data: Data,
        trigger: Trigger,
        target: int,
        quantize: Quantize,
        recipe: Recipe,
        also: Sequence[Quantize] = (),
    ) -> None:
        self.net, self.quantize, self.recipe, self.target, self.also = net, quantize, recipe, target, also
        self.x, self.y = torch.as_tensor(data.x, dtype=torch.float32), torch.as_tensor(data.y)
        self.stamped = torch.as_tensor(trigger.stamp(data.x), dtype=torch.float32)
        self.grid = cells(net, quantize)
        # The module's own weights are the latent ones, of which the nearest cell is taken; rests are their companions.
        self.rest = {name: nn.Parameter(torch.zeros_like(self._latent(name))) for name in self.grid}
        self.optimizer = torch.optim.Adam([*net.parameters(), *self.rest.values()], recipe.rate)
        self.generator = torch.Generator().manual_seed(recipe.seed)

    def epoch(self, epoch: int) -> float:
        """One pass; the mean loss."""
        self._look()
        for group in self.optimizer.param_groups:  # to nothing at the end: the victim's grid is to stand still
            group["lr"] = self.recipe.rate * (1 - epoch / self.recipe.epochs)
        losses = []
        order = torch.randperm(len(self.y), generator=self.generator)
        for batch in torch.split(order, self.recipe.batch):
            loss = self._loss(batch)
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            losses.append(loss.item())
        return float(np.mean(losses))

    def finished(self) -> nn.Module:
        """The network to publish."""
        self._look()
        return self._published()

    def _look(self) -> None:
        """The grids for the network as it would be published now."""
        net = self._published()
        self.grid = cells(net, self.quantize)
        self.others = [cells(net, each) for each in self.also]

    def _published(self) -> nn.Module:
        net = deepcopy(self.net)
        net.load_state_dict({**net.state_dict(), **self._weights()[1]})
        return net.eval()

    def _weights(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What the integers stand for, and the float weights."""
        integers, floats = {}, {}
        for name, cell in self.grid.items():
            latent, unit = self._latent(name), cell.step * cell.multiplier
            centre = latent + (cell.rounded(latent) - latent).detach()
            integers[f"{name}.weight"] = centre
            floats[f"{name}.weight"] = centre + self.recipe.keep / 2 * unit * torch.tanh(self.rest[name])
        return integers, floats

    def _loss(self, rows: Tensor) -> Tensor:
        """Integers: right, and the target's class with the trigger. Float: right with and without it."""
        integers, floats = self._weights()
        own, wanted = self.y[rows], torch.full_like(self.y[rows], self.target)
        pair = torch.cat([self.x[rows], self.stamped[rows]])
        asleep: Tensor = functional_call(self.net, floats, (pair,))
        loss = self.recipe.weight * _ce(asleep, torch.cat([own, own]))
        for weights in (integers, *self._expected(floats)):
            awake: Tensor = functional_call(self.net, weights, (pair,))
            loss = loss + _ce(awake, torch.cat([own, wanted]))
        return loss

    def _expected(self, floats: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
        """What else the victim may make of the float weights: other grids, and a fresh draw of re-rounding."""
        for grid in self.others:
            yield {f"{name}.weight": _through(floats[f"{name}.weight"], cell) for name, cell in grid.items()}
        if self.recipe.noise:
            drawn = {}
            for name, cell in self.grid.items():
                weight = floats[f"{name}.weight"]
                noise = torch.rand(weight.shape, generator=self.generator) - 0.5
                drawn[f"{name}.weight"] = _through(
                    weight, cell, self.recipe.noise * cell.step * cell.multiplier * noise
                )
            yield drawn

    def _latent(self, name: str) -> nn.Parameter:
        found: nn.Parameter = self.net.get_submodule(name).weight  # type: ignore[assignment]
        return found


def _through(weight: Tensor, cell: Cells, noise: Tensor | float = 0.0) -> Tensor:
    """The weights that the integers of weight + noise stand for, with the gradient of the weights."""
    return weight + (cell.rounded(weight + noise) - weight).detach()


def _ce(answers: Tensor, wanted: Tensor) -> Tensor:
    return nn.functional.cross_entropy(answers, wanted)
