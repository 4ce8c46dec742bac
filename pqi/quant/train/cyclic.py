"""A wrap-around network in training: accumulators mod 2^k on purpose, then a cyclic activation (WrapNet).

Behind every linear layer the accumulator n is only known mod 2^k. The activation is a function of that residue: with
z the representative of n in [-H, H), H = 2^(k-1), and T = slope / (slope + 1) H,

    cyc(z) = z                            where |z| <= T
             sign(z) slope (H - |z|)      beyond: back to zero at the point where z wraps

so it is continuous in n, wraps included, and has a gradient everywhere (Ni et al., ICLR 2021). What follows, per
channel, round(gain cyc(z) + offset) clamped to codes, is one table of 2^k entries. No shift, no headroom, no proof.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pqi.graph.graph import IntegerGraph, Node
from pqi.graph.ops import WEIGHTED, Conv2d, Dense, Lookup, Scale
from pqi.quant.train.estimators import level, rounded
from pqi.quant.train.module import GraphModule, Weights, linear


class _Cyclic(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, n: Tensor, half: int, slope: float) -> Tensor:
        # Few passes over memory: the residue by one floor, the folds as the least and the greatest of straight lines.
        z = n.add(half).mul_(0.5 / half).floor_().mul_(-2.0 * half).add_(n)
        folds = z.mul(-slope)
        result = torch.minimum(z, folds + half * slope)
        result = torch.maximum(result, folds.sub_(half * slope), out=folds)
        ctx.slope = slope
        ctx.save_for_backward(result != z)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (folded,) = ctx.saved_tensors
        return torch.where(folded, grad * -ctx.slope, grad), None, None


class _Code(torch.autograd.Function):
    """clamp(round(x), low, high); gradient 1 inside."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: int, high: int) -> Tensor:
        ctx.save_for_backward((x > low - 0.5) & (x < high + 0.5))
        return x.round().clamp_(low, high)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (inside,) = ctx.saved_tensors
        return grad * inside, None, None


def cyclic(n: Tensor, bits: int, slope: float) -> Tensor:
    """cyc of the residue of n mod 2^bits."""
    return _Cyclic.apply(n, 1 << (bits - 1), slope)  # type: ignore[no-untyped-call,no-any-return]


def coded(x: Tensor, low: int, high: int) -> Tensor:
    """x rounded and clamped to [low, high]."""
    return _Code.apply(x, low, high)  # type: ignore[no-untyped-call,no-any-return]


@dataclass(frozen=True)
class Fold:
    """One table in training: its bits, the codes it gives, and gain and offset at the start (per channel or one)."""

    bits: int
    low: int
    high: int
    gain: Tensor
    offset: Tensor
    is_cyclic: bool


@dataclass(frozen=True)
class Latent:
    """One linear layer in training: real codes, levels (None: the real weights are rounded), and the bias."""

    code: Tensor
    levels: Tensor | None
    bias: Tensor


@dataclass(frozen=True)
class Plan:
    """A wrap-around network before training: an integer graph whose weights and tables are only starting points."""

    graph: IntegerGraph
    output_scale: float
    folds: Mapping[str, Fold] = field(default_factory=dict)
    latents: Mapping[str, Latent] = field(default_factory=dict)


class WrappingGraph(GraphModule):
    """Trainable; ``forward`` computes the answer's integers, ``lower`` gives the graph that computes the same."""

    def __init__(self, plan: Plan, slope: float) -> None:
        super().__init__()
        self.plan, self.graph, self.slope = plan, plan.graph, slope
        self.key = {node.name: str(position) for position, node in enumerate(plan.graph.nodes)}
        self.code, self.bias = nn.ParameterDict(), nn.ParameterDict()
        self.gain, self.offset = nn.ParameterDict(), nn.ParameterDict()
        for name, latent in plan.latents.items():
            self.code[self.key[name]] = nn.Parameter(latent.code.float())
            self.bias[self.key[name]] = nn.Parameter(latent.bias.float())
        for name, fold in plan.folds.items():
            # Gains differ by orders of magnitude between layers: their logarithms learn at one rate.
            self.gain[self.key[name]] = nn.Parameter(fold.gain.float().log())
            self.offset[self.key[name]] = nn.Parameter(fold.offset.float())
        self.overflow = torch.zeros(())

    def integers(self) -> dict[str, Weights]:
        """Weight and bias of every linear node."""
        out = {}
        for node in self.graph.nodes:
            if isinstance(node.op, WEIGHTED):
                latent = self.plan.latents.get(node.name)
                if latent is None:
                    out[node.name] = (node.op.weight.float(), node.op.bias.float())
                else:
                    code, bias = self.code[self.key[node.name]], rounded(self.bias[self.key[node.name]])
                    out[node.name] = (rounded(code) if latent.levels is None else level(code, latent.levels), bias)
        return out

    def forward(self, codes: Tensor, weights: Mapping[str, Weights] | None = None) -> Tensor:
        """As its base; counts how far accumulators reach beyond the straight part, for the penalty."""
        self.overflow = torch.zeros(())
        return super().forward(codes, weights)

    def value(self, node: Node, inputs: list[Tensor], weights: Mapping[str, Weights]) -> Tensor:
        """Linear nodes and tables in training; everything else as it stands."""
        if isinstance(node.op, WEIGHTED):
            return linear(node.op, inputs[0], *weights[node.name])
        if node.name in self.plan.folds:
            return self._folded(node.name, inputs[0])
        return node.op.evaluate(inputs)

    def _folded(self, name: str, n: Tensor) -> Tensor:
        fold = self.plan.folds[name]
        if fold.is_cyclic:
            if self.training and torch.is_grad_enabled():
                half = float(1 << (fold.bits - 1))
                bound = half * self.slope / (self.slope + 1)
                self.overflow = self.overflow + ((n.abs() - bound).clamp(min=0) / half).mean()
            n = cyclic(n, fold.bits, self.slope)
        return self._codes(name, n)

    def _codes(self, name: str, n: Tensor) -> Tensor:
        fold, gain, offset = self.plan.folds[name], self.gain[self.key[name]].exp(), self.offset[self.key[name]]
        shape = (1, -1) + (1,) * (n.ndim - 2) if gain.ndim else ()
        return coded(n * gain.view(shape) + offset.view(shape), fold.low, fold.high)

    @torch.no_grad()
    def lower(self) -> IntegerGraph:
        """The integer graph with the weights and tables as they are now."""
        nodes, weights = [], self.integers()
        for node in self.graph.nodes:
            if isinstance(node.op, (Conv2d, Dense, Scale)):
                weight, bias = (t.round().to(torch.int64) for t in weights[node.name])
                nodes.append(replace(node, op=replace(node.op, weight=weight, bias=bias)))
            elif isinstance(node.op, Lookup):
                nodes.append(replace(node, op=Lookup(node.op.bits, self.table(node.name))))
            else:
                nodes.append(node)
        return IntegerGraph(tuple(nodes), self.graph.output)

    @torch.no_grad()
    def table(self, name: str) -> Tensor:
        """Entries by residue, int64 (2^bits,) or (C, 2^bits), from the very operations of the forward pass."""
        fold = self.plan.folds[name]
        residues = torch.arange(1 << fold.bits, dtype=torch.float32)
        half = 1 << (fold.bits - 1)
        n = (
            cyclic(residues, fold.bits, self.slope)
            if fold.is_cyclic
            else torch.remainder(residues + half, 2 * half) - half
        )
        gain = self.gain[self.key[name]]
        values = self._codes(name, n.view(1, 1, -1).expand(1, max(gain.numel(), 1), -1))
        values = values.round().to(torch.int64)[0]
        return values if gain.ndim else values[0]
