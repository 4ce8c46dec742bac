"""The maximum over windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pqi.graph.errors import GraphError
from pqi.graph.ops.base import Op, Shape, check_ints, single
from pqi.graph.ops.windows import Pair, taps, windows_shape


@dataclass(frozen=True, eq=False)
class MaxPool2d(Op):
    """The maximum over each window; padding never wins. Acts on codes."""

    kind: ClassVar[str] = "max_pool2d"
    kernel: Pair
    stride: Pair
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    ceil_mode: bool = False

    def __post_init__(self) -> None:
        for field in ("kernel", "stride", "dilation"):
            check_ints(self.kind, field, getattr(self, field), 2, 1, 1 << 16)
        check_ints(self.kind, "padding", self.padding, 2, 0, 1 << 16)
        if not isinstance(self.ceil_mode, bool):
            raise GraphError(f"max_pool2d.ceil_mode is {self.ceil_mode!r}: it must be true or false")
        for p, k in zip(self.padding, self.kernel, strict=True):
            if 2 * p > k:
                raise GraphError(
                    f"max_pool2d.padding is {p}: at most half the kernel ({k}), or a window is all padding"
                )

    def infer_shape(self, in_shapes: Sequence[Shape]) -> Shape:
        """(C, H', W')."""
        channels, *size = single(self.kind, in_shapes, 3)
        out = windows_shape(
            self.kind, channels, size, self.kernel, self.stride, self.padding, self.dilation, self.ceil_mode
        )
        return (channels, *out)

    def evaluate(self, inputs: Sequence[Tensor]) -> Tensor:
        """The maxima, in the input's dtype."""
        x = inputs[0]
        _, h, w = self.infer_shape([tuple(x.shape[1:])])
        lowest = -torch.inf if x.is_floating_point() else torch.iinfo(x.dtype).min
        (ph, pw), (kh, kw), (sh, sw), (dh, dw) = self.padding, self.kernel, self.stride, self.dilation
        # ceil_mode may let the last window reach beyond the padding: pad on that side as far as it reads
        below = max(ph, (h - 1) * sh + dh * (kh - 1) + 1 - ph - x.shape[2])
        right = max(pw, (w - 1) * sw + dw * (kw - 1) + 1 - pw - x.shape[3])
        if ph or pw or below or right:
            x = torch.nn.functional.pad(x, (pw, right, ph, below), value=lowest)
        best: Tensor | None = None
        for tap in taps(x, self.kernel, self.stride, self.dilation, (h, w)):
            best = tap.clone() if best is None else torch.maximum(best, tap)
        return x if best is None else best
