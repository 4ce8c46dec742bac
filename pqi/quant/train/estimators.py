"""Rounding with a gradient: exact integers forwards, a straight line backwards (Bengio et al., 2013)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class _Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class _Level(torch.autograd.Function):
    """The nearest of sorted levels; the gradient passes between the outer ones."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, levels: Tensor) -> Tensor:
        flat = x.detach().reshape(x.shape[0], -1)
        rows = levels.expand(flat.shape[0], -1).contiguous()
        ctx.save_for_backward((flat >= rows[:, :1]) & (flat <= rows[:, -1:]))
        middles = ((rows[:, 1:] + rows[:, :-1]) / 2).contiguous()
        return rows.gather(1, torch.searchsorted(middles, flat.contiguous())).view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (inside,) = ctx.saved_tensors
        return grad * inside.view_as(grad), None


class _Requantize(torch.autograd.Function):
    """clamp(floor(x * step), 0, top), step = 2^-shift; the gradient is step where nothing was clamped."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: float, top: int) -> Tensor:
        scaled = x * step
        ctx.step = step
        ctx.save_for_backward((scaled >= 0) & (scaled < top + 1))
        return scaled.floor_().clamp_(0, top)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (inside,) = ctx.saved_tensors
        return grad * inside * ctx.step, None, None


class _LookUp(torch.autograd.Function):
    """table[index]; the gradient is a given slope per entry."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, table: Tensor, slope: float) -> Tensor:
        ctx.slope = slope
        return table[x.long()]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad * ctx.slope, None, None


class _Step(torch.autograd.Function):
    """1 where x >= 0, else -1; the gradient passes where |x| is at most ``reach``, as that of x / reach."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        reach = x.abs().mean().clamp(min=1.0) * 2
        ctx.save_for_backward(x.abs() <= reach, reach)
        return (x >= 0).to(x.dtype) * 2 - 1

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        inside, reach = ctx.saved_tensors
        return torch.where(inside, grad / reach, 0.0)


def rounded(x: Tensor) -> Tensor:
    """x to the nearest integer; gradient 1."""
    return _Round.apply(x)  # type: ignore[no-untyped-call,no-any-return]


def level(x: Tensor, levels: Tensor) -> Tensor:
    """x (C, ...) to the nearest of sorted levels (L,) or (C, L); gradient 1 between the outer levels, 0 beyond."""
    return _Level.apply(x, levels)  # type: ignore[no-untyped-call,no-any-return]


def requantized(x: Tensor, shift: int, bits: int) -> Tensor:
    """clamp(floor(x / 2^shift), 0, 2^bits - 1); gradient 2^-shift inside, 0 where clamped."""
    return _Requantize.apply(x, 2.0**-shift, (1 << bits) - 1)  # type: ignore[no-untyped-call,no-any-return]


def looked_up(x: Tensor, table: Tensor) -> Tensor:
    """table[x] for whole x; gradient: the mean slope of the table."""
    slope = float(table[-1] - table[0]) / max(table.shape[0] - 1, 1)
    return _LookUp.apply(x, table, slope)  # type: ignore[no-untyped-call,no-any-return]


def stepped(x: Tensor) -> Tensor:
    """The two-valued sign; gradient as of x over twice its mean magnitude, within that reach."""
    return _Step.apply(x)  # type: ignore[no-untyped-call,no-any-return]
