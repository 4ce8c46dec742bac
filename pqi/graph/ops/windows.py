"""Sliding windows over the two last axes: how many there are, and what they see."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from torch import Tensor

from pqi.graph.errors import GraphError
from pqi.graph.ops.base import MAX_ELEMENTS

Pair = tuple[int, int]


def window_count(size: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool = False) -> int:
    """Number of windows along one axis (PyTorch's rule: with ceil_mode the last window must begin inside)."""
    reach = size + 2 * padding - dilation * (kernel - 1) - 1
    if reach < 0:
        return 0
    count = (reach + (stride - 1 if ceil_mode else 0)) // stride + 1
    if ceil_mode and (count - 1) * stride >= size + padding:
        count -= 1
    return count


def windows_shape(
    kind: str,
    channels: int,
    size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int] = (1, 1),
    ceil_mode: bool = False,
) -> tuple[int, int]:
    """Output height and width of a two-axis window operator; refused when no window fits."""
    h, w = (
        window_count(n, k, s, p, d, ceil_mode)
        for n, k, s, p, d in zip(size, kernel, stride, padding, dilation, strict=True)
    )
    if h < 1 or w < 1:
        raise GraphError(f"{kind}: a window of {tuple(kernel)} (dilation {tuple(dilation)}) does not fit {tuple(size)}")
    padded = channels * math.prod(n + 2 * p for n, p in zip(size, padding, strict=True))
    if padded > MAX_ELEMENTS:
        raise GraphError(f"{kind}: a padded input of {padded} values; at most {MAX_ELEMENTS} are allowed")
    return h, w


def taps(x: Tensor, kernel: Pair, stride: Pair, dilation: Pair, out_hw: tuple[int, int]) -> Iterator[Tensor]:
    """One view [N, C, H', W'] for every position in the window; x is already padded."""
    for a in range(kernel[0]):
        for b in range(kernel[1]):
            rows = slice(a * dilation[0], a * dilation[0] + (out_hw[0] - 1) * stride[0] + 1, stride[0])
            cols = slice(b * dilation[1], b * dilation[1] + (out_hw[1] - 1) * stride[1] + 1, stride[1])
            yield x[..., rows, cols]
