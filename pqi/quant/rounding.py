"""Learned rounding: which of its two nearest levels each weight takes, so that the layer's output errs least.

The nearest level is best for each weight alone; the output's error depends on all of them together, and on the inputs.
For a layer with targets t = w s_x / u between the levels below(t) and above(t), the weights
below + (above - below) h(v) are learned with h(v) = clamp(1.2 sigmoid(v) - 0.1, 0, 1) by Adam, minimizing

    mean (act(y) - act(y'))^2 + lambda mean(1 - |2 h - 1|^beta)

where y is the float layer's output and y' that of the learned weights on what the *integer* network before gives, so
that errors made before are made good where they can be; act is the clamp that reads the accumulator. beta falls from
20 to 2, which lets h move first and drives it to 0 or 1 at last; then it is rounded for good. Additions are learned as
a whole: the error of the sum, in the weights of all its terms.
(AdaRound: Nagel, Amjad, van Baalen, Louizos, Blankevoort: Up or Down?, ICML 2020; sections 3.2 and 3.3.)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from pqi.graph.errors import QuantizationError
from pqi.graph.floating import FloatConv2d, FloatDense, Linear, Sign, Threshold
from pqi.graph.ops import Conv2d, Dense, Op, Requantize
from pqi.quant import soft
from pqi.quant.stages import Calibration, Lowered
from pqi.quant.train.module import real_target
from pqi.quant.walk import Site, Walk

ITERATIONS = 500
SAMPLE_VALUES = 1 << 23  # of the widest layer: 512 inputs of a CIFAR ResNet
_ROWS = 1 << 15  # output positions that a layer learns from ...
_ROW_VALUES = 1 << 25  # ... but never more than 128 MB of their inputs
_BATCH = 1024
_HELD_OUT = 8  # one part in so many judges and is not learned from
_RATE, _WEIGHT = 0.02, 0.1

Progress = Callable[[int, "int | None"], None]


def learn_rounding(
    calibration: Calibration,
    lowered: Lowered,
    *,
    iterations: int = ITERATIONS,
    seed: int = 0,
    progress: Progress | None = None,
) -> Lowered:
    """The lowered graph with every weight at one of its two nearest levels, chosen by what the layer's output needs.

    Needs no labels: float and integer outputs are compared on a bounded part of the calibration sample. iterations:
    steps of Adam per layer. seed: the same seed and thread count give the same weights. progress(layers done, layers
    in all). Layers that a threshold or a sign reads keep their nearest weights: their output has no error to square
    but at the threshold, and networks made for it are exact. A layer also keeps them when what was learned is not
    better on the eighth of the sample that was held out.
    """
    if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 1:
        raise QuantizationError(f"iterations is {iterations!r}: learned rounding needs at least 1")
    generator = torch.Generator().manual_seed(seed)
    walk = Walk(calibration, lowered, SAMPLE_VALUES)
    done, total = 0, len(lowered.grids)
    for site in walk.sites():
        terms = tuple(name for name in site.terms if name in lowered.grids)
        if any(isinstance(reader.op, (Threshold, Sign)) for reader in site.readers):
            learned: dict[str, Op] = {}
        else:
            learned = Reconstruction(walk, site, alike(walk, terms), generator).learned(iterations)
        if learned:
            walk.change(site, learned)
        done += len(terms)
        if progress is not None and terms:
            progress(done, total)
    return walk.result()


def alike(walk: Walk, terms: tuple[str, ...]) -> list[str]:
    """Terms whose channels lie on the axis of the first one's, so that they share output positions."""
    kinds = (Conv2d, Dense)
    return [t for t in terms if type(walk.ops[t]) is type(walk.ops[terms[0]]) and isinstance(walk.ops[t], kinds)]


@dataclass(frozen=True)
class _Term:
    """One layer of a site. columns: its inputs per output position, (rows, groups, K). below, above, target:
    (groups, O / groups, K); now: the weights that are there.
    """

    name: str
    columns: Tensor
    below: Tensor
    above: Tensor
    target: Tensor
    now: Tensor

    def start(self) -> Tensor:
        """v at which the learned weight is the target."""
        return soft.start(soft.place(self.target, self.below, self.above))

    def output(self, rows: Tensor | slice, weight: Tensor) -> Tensor:
        """(rows, O)."""
        x = self.columns[rows]
        if x.shape[1] == 1:
            return x[:, 0] @ weight[0].t()
        return torch.bmm(x.transpose(0, 1), weight.transpose(1, 2)).transpose(0, 1).flatten(1)


class Reconstruction:
    """One site: what its output should be at some positions, and what its layers read there."""

    def __init__(self, walk: Walk, site: Site, terms: list[str], generator: torch.Generator) -> None:
        self.walk, self.site, self.generator = walk, site, generator
        self.terms: list[_Term] = []
        if not terms:
            return
        dense = isinstance(walk.ops[terms[0]], Dense)
        values = walk.floats[site.name]
        samples, channels = values.shape[0], values.shape[-1 if dense else 1]
        places = values[0].numel() // channels
        widths = sum(walk.ops[t].tensors()["weight"][0].numel() * _groups(walk.ops[t]) for t in terms)
        rows = max(_BATCH, min(_ROWS, _ROW_VALUES // widths))
        each = min(places, max(1, -(-rows // samples)))
        chosen = torch.rand(samples, places, generator=generator).topk(each, 1).indices
        scale = torch.as_tensor(site.scale, dtype=torch.float32)
        self.want = _at(values, chosen, dense).to(torch.float32) / scale
        self.have = (_at(walk.integers[site.name], chosen, dense) - site.offset).to(torch.float32)
        self.ends = _ends(walk, site)
        self.want.clamp_(*self.ends)
        self.training = max(1, samples - max(1, samples // _HELD_OUT)) * each
        self.terms = [self._term(name, chosen) for name in terms]

    def _term(self, name: str, chosen: Tensor) -> _Term:
        node, op = self.walk.known[name], self.walk.ops[name]
        float_op = node.op
        if not isinstance(float_op, Linear) or not isinstance(op, (Conv2d, Dense)):
            raise QuantizationError(f"layer {name!r} has a grid but is no convolution and no dense layer")
        target = real_target(float_op, self.walk.lowered.graph.by_name[name], self.walk.lowered)
        below, above = self.walk.lowered.grids[name].neighbours(target)
        shape = (_groups(op), op.weight.shape[0] // _groups(op), -1)
        parts = (w.to(torch.float32).reshape(shape) for w in (below, above, target, op.weight))
        return _Term(name, _columns(float_op, self.walk.integers[node.inputs[0]], chosen), *parts)

    def learned(self, iterations: int) -> dict[str, Op]:
        """Operators with better weights; empty if the ones that are there are as good on the held-out part."""
        if not self.terms or self.training >= len(self.want):
            return {}
        rest = slice(self.training, None)
        before = self._error(rest, [term.now for term in self.terms])
        if before == 0.0:
            return {}
        weights = self._learn(iterations)
        if not self._error(rest, weights) < before:
            return {}
        changed: dict[str, Op] = {}
        for term, weight in zip(self.terms, weights, strict=True):
            op = self.walk.ops[term.name]
            if isinstance(op, (Conv2d, Dense)):
                changed[term.name] = replace(op, weight=weight.round().to(torch.int64).view(op.weight.shape))
        return changed

    def _learn(self, iterations: int) -> list[Tensor]:
        everything = slice(0, self.training)
        unit = max(self._error(everything, [term.now for term in self.terms]), 1e-30)
        free = [term.start() for term in self.terms]
        optimizer = torch.optim.Adam(free, lr=_RATE)
        order = torch.empty(0, dtype=torch.int64)
        for step in range(iterations):
            if len(order) < min(_BATCH, self.training):
                order = torch.randperm(self.training, generator=self.generator)
            rows, order = order[:_BATCH], order[_BATCH:]
            shares = [soft.share(v) for v in free]
            weights = [t.below + (t.above - t.below) * h for t, h in zip(self.terms, shares, strict=True)]
            loss = self._squares(rows, weights).mean() / unit
            loss = loss + _WEIGHT * sum((soft.undecided(h, step / iterations) for h in shares), torch.zeros(()))
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
        return [torch.where(soft.share(v) >= 0.5, t.above, t.below) for t, v in zip(self.terms, free, strict=True)]

    def _squares(self, rows: Tensor | slice, weights: list[Tensor]) -> Tensor:
        """Squared errors after the activation, (rows, O), in squared units of the accumulator."""
        out = self.have[rows]
        for term, weight in zip(self.terms, weights, strict=True):
            out = out + term.output(rows, weight - term.now)
        return (out.clamp(*self.ends) - self.want[rows]) ** 2

    @torch.no_grad()
    def _error(self, rows: slice, weights: list[Tensor]) -> float:
        total = self._squares(rows, weights).sum(dtype=torch.float64)
        return float(total) / self.want[rows].numel()


def _ends(walk: Walk, site: Site) -> tuple[float, float]:
    """Where the only reader of the accumulator clamps it, as values n - offset."""
    ops = [walk.ops[reader.name] for reader in site.readers]
    if len(ops) != 1 or not isinstance(ops[0], Requantize):
        return -math.inf, math.inf
    step = 1 << ops[0].shift
    low = step // 2 - site.offset
    return float(low), float(low + ((1 << ops[0].bits) - 1) * step)


def _groups(op: Op) -> int:
    return op.groups if isinstance(op, Conv2d) else 1


def _at(value: Tensor, chosen: Tensor, dense: bool) -> Tensor:
    """(rows, C): a value (m, C, ...), or (m, ..., C) if dense, at chosen positions (m, P)."""
    flat = value.reshape(len(value), -1, value.shape[-1]) if dense else value.flatten(2).transpose(1, 2)
    return flat.gather(1, chosen[:, :, None].expand(-1, -1, flat.shape[2])).flatten(0, 1)


def _columns(op: Linear, codes: Tensor, chosen: Tensor) -> Tensor:
    """(rows, groups, K): what a layer reads at chosen output positions (m, P), float32."""
    if not isinstance(op, FloatConv2d):
        return _at(codes, chosen, isinstance(op, FloatDense)).to(torch.float32)[:, None]
    parts = []
    for x, at in zip(torch.split(codes, 16), torch.split(chosen, 16), strict=True):
        windows = functional.unfold(x.to(torch.float32), op.weight.shape[2:], op.dilation, op.padding, op.stride)
        parts.append(windows.gather(2, at[:, None].expand(-1, windows.shape[1], -1)).transpose(1, 2).flatten(0, 1))
    return torch.cat(parts).view(-1, op.groups, op.weight[0].numel())
