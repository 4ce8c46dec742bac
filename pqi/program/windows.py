"""The windows of a max-pool as a last axis, on shares."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F  # noqa: N812
from torch import Tensor

Pair = tuple[int, int]


@dataclass(frozen=True)
class Windows:
    """``(n, C, H, W) -> (n, C, H', W', kh * kw)``; what lies outside is ``padding_value``, which never wins a maximum.

    The padding value is public: one party holds it, the other holds zero.
    """

    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    size: Pair  # rows and columns of windows: H', W'
    padding_value: int

    def apply(self, x: Tensor, adds_constants: bool) -> Tensor:
        """Cut the windows: a view, where no padding is needed and windows lie along one axis."""
        (kh, kw), (sh, sw), (ph, pw), (dh, dw) = self.kernel, self.stride, self.padding, self.dilation
        h, w = self.size
        below = max(0, (h - 1) * sh + dh * (kh - 1) + 1 - ph - x.shape[2])
        right = max(0, (w - 1) * sw + dw * (kw - 1) + 1 - pw - x.shape[3])
        if ph or pw or below or right:
            x = F.pad(x, (pw, right, ph, below), value=self.padding_value if adds_constants else 0)
        x = x.contiguous()
        a, b, c, d = x.stride()
        if kh == 1 or kw == 1:
            along = d * dw if kh == 1 else c * dh
            return x.as_strided((*x.shape[:2], h, w, kh * kw), (a, b, c * sh, d * sw, along))
        return x.as_strided((*x.shape[:2], h, w, kh, kw), (a, b, c * sh, d * sw, c * dh, d * dw)).flatten(4)
