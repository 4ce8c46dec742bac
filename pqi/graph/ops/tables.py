"""What operators with a table of values share: one table for all, or one per channel (axis 1 of the batch)."""

from __future__ import annotations

import torch
from torch import Tensor

from pqi.graph.errors import GraphError
from pqi.graph.ops.base import MAX_WEIGHT, Bounds, Shape, check_tensor


def check_table(kind: str, values: Tensor, bits: int) -> None:
    """Refuse values that are not int64 [2^bits] or [C, 2^bits]."""
    ndim = values.ndim if isinstance(values, Tensor) and values.ndim in (1, 2) else 1
    check_tensor(kind, "values", values, ndim, MAX_WEIGHT)
    if values.shape[-1] != 1 << bits:
        raise GraphError(f"{kind}.values has {values.shape[-1]} entries: 2^{bits} are needed")


def check_channels(kind: str, values: Tensor, shape: Shape) -> None:
    """Refuse an input that has not as many channels as there are tables."""
    if values.ndim == 2 and (not shape or shape[0] != values.shape[0]):
        raise GraphError(f"{kind} has tables for {values.shape[0]} channels, its input is {shape}")


def read(values: Tensor, index: Tensor) -> Tensor:
    """values[index], or values[c, index] with c along axis 1."""
    if values.ndim == 1:
        return values[index]
    channel = torch.arange(index.shape[1]).view((1, -1) + (1,) * (index.ndim - 2))
    return values[channel, index]


def ends(values: Tensor, shape: torch.Size) -> Bounds:
    """The smallest and the largest entry (of each channel's table), for values of the given shape."""
    low, high = values.aminmax(dim=-1)
    per_channel = (-1,) + (1,) * (len(shape) - 2) if values.ndim == 2 else ()
    return low.view(per_channel).expand(shape).clone(), high.view(per_channel).expand(shape).clone()
