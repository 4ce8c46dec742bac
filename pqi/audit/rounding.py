"""Was a model rounded honestly? Asked of the float network, the integer model that came back, and clean inputs.

Each weight of an honest model is one of the two levels around the float weight, mostly the nearer one; where it is the
other one, that serves the layer's output, for this is what learned rounding looks for. Two figures a layer tell that:

away    the share of weights that are not at their nearest level
error   the mean squared error of the layer's output on clean inputs, in units of what nearest rounding's would be:
        1 for nearest rounding, mostly below 1 for learned rounding, and seldom above 2, where learned rounding makes
        good what layers before it did wrong

nearest     all weights, but for what the fit below may err, are at their nearest levels: nobody chose anything
suspicious  a layer's error is far above what any rounding for its sake makes
chosen      neither: learned rounding looks like this, and so does a backdoor of rounding made by someone who knows of
            this audit. He keeps the errors small, and keeps his trigger (measured: ``benchmarks/audit_rounding.py``)

So a rounding by others is to be to the nearest, or to be done again: the backdoor (``pqi.audit.attacks.rounding``) is
nowhere in the float weights.

What an integer stands for is fitted, so that nothing but the model is needed: exactly where weights are at their
nearest levels, to some per cent where many are not and the layer is small, whose errors may then be told up to twice
too large. It can be told of layers whose integers are equally spaced; of others (powers of two, code books), of weights
that were trained after rounding, or moved between layers before it (equalize), integers lie outside the cells next to
the float weights, and nothing is said.

Defences that round otherwise on purpose show in the first figure, and stay below the bound of the second: rounding at
random without bias makes 2, for t (1 - t) is 1/6 on average where min(t, 1 - t)^2 is 1/12.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from pqi.audit.case import Case
from pqi.audit.errors import AuditError
from pqi.audit.memory import Stored, stored
from pqi.audit.statistics import Estimate, rate
from pqi.graph.capture import capture
from pqi.graph.floating import FloatConv2d, FloatDense, Linear
from pqi.graph.rewrite import simplify
from pqi.quant.calibrate import as_the_network_wants
from pqi.quant.place import place

PAYS = 4.0  # times nearest rounding's error of a layer's output, above which its rounding serves something else
NEAREST = 0.005  # the share of weights away from their nearest levels that an imprecise fit may show
_ROUNDED = 0.9  # the share of weights within a cell of their integers, below which the layer was not rounded from these
_SILENT = 1e-5  # of an output's power: errors of nearest rounding below it (10 bits and more) are counted as this
_SLACK = 0.05  # of a cell: what the fitted worth of an integer may be off


@dataclass(frozen=True)
class Rounded:
    """One layer. away: share of weights not at their nearest level. error: of its output, 1 for nearest rounding."""

    away: Estimate
    error: float

    @property
    def is_suspicious(self) -> bool:
        """Whether the rounding costs the layer's output more than it could serve it."""
        return self.error > PAYS


def rounding(case: Case, x: NDArray[Any]) -> dict[str, Rounded]:
    """Both figures of every layer that they can be told of; x: some clean inputs (n, ...), a hundred will do.

    Raises AuditError for inputs of another shape than the model's.
    """
    if tuple(x.shape[1:]) != case.model.input_shape or not len(x):
        raise AuditError(f"inputs are {tuple(x.shape)}, the model takes (n, {case.model.input_shape})")
    given = torch.as_tensor(x, dtype=torch.float32)
    layers, found = stored(case.model), dict[str, Rounded]()
    graph = place(simplify(capture(case.net, as_the_network_wants(case.net, given[:1])))).graph
    ops, inputs = {node.name: node.op for node in graph.nodes}, {node.name: node.inputs for node in graph.nodes}
    fits = {n: fit for n, layer in layers.items() if (fit := _fit(ops.get(n), layer)) is not None}
    read_by: dict[str, list[str]] = {}
    for name in fits:
        read_by.setdefault(inputs[name][0], []).append(name)

    def look(node: str, value: Tensor) -> None:
        for name in read_by.get(node, ()):
            found[name] = fits[name].on(value)

    graph.run(given, look)
    return {name: found[name] for name in layers if name in found}


def suspicious(layers: Mapping[str, Rounded]) -> list[str]:
    """The layers whose rounding does not pay."""
    return [name for name, layer in layers.items() if layer.is_suspicious]


def verdict(layers: Mapping[str, Rounded]) -> str:
    """ "nearest", "suspicious" or "chosen"; "unknown" where nothing could be told of any layer."""
    if not layers:
        return "unknown"
    if suspicious(layers):
        return "suspicious"
    return "nearest" if all(layer.away.value <= NEAREST for layer in layers.values()) else "chosen"


@dataclass(frozen=True)
class _Fit:
    """What rounding did to a layer's weights, and what nearest rounding would have done; in reals of its weights."""

    op: Linear
    done: Tensor
    nearest: Tensor
    away: Estimate

    def on(self, x: Tensor) -> Rounded:
        """Both figures for inputs (n, ...) of the layer."""
        least = max(self._square(x, self.nearest), _SILENT * self._square(x, self.op.weight))
        return Rounded(self.away, self._square(x, self.done) / least if least > 0 else 1.0)

    def _square(self, x: Tensor, change: Tensor) -> float:
        only = replace(self.op, weight=change.to(self.op.weight.dtype), bias=torch.zeros_like(self.op.bias))
        return float(only.evaluate([x]).square().mean(dtype=torch.float64))


def _fit(op: object, layer: Stored) -> _Fit | None:
    if not isinstance(op, (FloatConv2d, FloatDense)) or op.weight.shape != layer.codes.shape:
        return None
    weight, codes, unit = op.weight.detach().to(torch.float64), layer.codes.to(torch.float64), layer.unit
    if not bool((weight * codes).any()):
        return None
    ratio = _ratio(weight / unit, codes)
    target = weight * ratio / unit
    # Weights beyond the last level belong to it: ranges may be chosen narrower than the weights.
    inside = target.clamp(codes.min(), codes.max())
    rest = (inside - codes).abs()
    if float((rest <= 1 + _SLACK).double().mean()) < _ROUNDED:
        return None
    nearest = inside.round()
    away = rate(int((rest > 0.5 + _SLACK).logical_and(nearest != codes).sum()), codes.numel())
    return _Fit(op, (codes - target) * unit / ratio, (nearest - target) * unit / ratio, away)


def _ratio(weight: Tensor, codes: Tensor) -> float:
    """The number by which a layer's weights, in units of their channels, were multiplied before they became codes.

    The one that leaves the least of them outside the cell of their code: least squares alone are off by several
    per cent where codes are few. Looked for around least squares, then closer.
    """
    middle, reach = float(codes.square().sum() / (weight * codes).sum()), 0.3
    flat, wanted, low, high = weight.flatten(), codes.flatten(), codes.min(), codes.max()
    for _ in range(3):
        tried = middle * torch.linspace(1 - reach, 1 + reach, 121, dtype=torch.float64)
        rests = [((flat * ratio).clamp(low, high) - wanted).abs() for ratio in tried]
        outside = torch.stack([torch.relu(rest - 0.5).square().sum() for rest in rests])
        middle, reach = float(tried[outside <= outside.min() * (1 + 1e-9)].mean()), reach / 30
    return middle
