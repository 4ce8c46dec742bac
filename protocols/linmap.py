"""Linear maps of integer tensors mod 2^k: dense, convolution, per-channel scaling. Geometry only; weights come apart.

The same map applies public, shared or masked weights to public, shared or masked values: protocols differ in *what*
they multiply, never in how. Products run on int8 units (see :mod:`protocols.ring`), im2col moves bytes, and nothing
passes through floating point.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from protocols import native, ring, units
from protocols.errors import Misuse
from protocols.units import UnitConvolution, UnitDense

Shape = tuple[int, ...]


class LinearMap(ABC):
    """``z = W . x mod 2^k`` for one item or a batch; bilinear in (W, x)."""

    @property
    @abstractmethod
    def in_shape(self) -> Shape:
        """Shape of x without the batch axis."""

    @property
    @abstractmethod
    def out_shape(self) -> Shape:
        """Shape of z without the batch axis."""

    @property
    @abstractmethod
    def weight_shape(self) -> Shape:
        """Shape of W."""

    @abstractmethod
    def prepare(self, weight: Tensor, bits: int) -> Any:
        """Weights in the form :meth:`apply` wants (done once per model)."""

    @abstractmethod
    def apply(self, prepared: Any, x: Tensor, bits: int, add: Tensor | None = None) -> Tensor:
        """``W . x (+ add) mod 2^bits``: x ``(n, *in_shape)`` -> ``(n, *out_shape)`` in the ring's word.

        add: words that broadcast over the result.
        """

    def check(self, weight: Tensor) -> None:
        """Refuse a weight of another shape."""
        if tuple(weight.shape) != self.weight_shape:
            raise Misuse(f"{self!r} takes weights of shape {self.weight_shape}, not {tuple(weight.shape)}")


@dataclass(frozen=True)
class DenseMap(LinearMap):
    """``z[..., o] = sum_i W[o, i] x[..., i]`` on the last axis; ``lead`` are the axes before it (without the batch)."""

    outputs: int
    inputs: int
    lead: Shape = ()

    @property
    def in_shape(self) -> Shape:
        """``(*lead, inputs)``."""
        return (*self.lead, self.inputs)

    @property
    def out_shape(self) -> Shape:
        """``(*lead, outputs)``."""
        return (*self.lead, self.outputs)

    @property
    def weight_shape(self) -> Shape:
        """``(outputs, inputs)``."""
        return (self.outputs, self.inputs)

    def prepare(self, weight: Tensor, bits: int) -> list[Tensor] | UnitDense:
        """W for the compiled products; without them, its stacked digits."""
        self.check(weight)
        if native.products() is not None and weight.device.type == "cpu":
            return units.dense(weight, bits)
        return ring.stack_weights(weight, bits)

    def apply(self, prepared: list[Tensor] | UnitDense, x: Tensor, bits: int, add: Tensor | None = None) -> Tensor:
        """By digits: rows of x become columns, so that all D digit blocks stand below each other."""
        n = x.shape[0]
        rows = n * prod(self.lead)
        if isinstance(prepared, UnitDense):
            more = None if add is None else add.expand(n, *self.out_shape).reshape(rows, self.outputs)
            flat = ring.to_word(x, bits).reshape(rows, self.inputs)
            return prepared.apply(flat, self.outputs, bits, more).reshape(n, *self.out_shape)
        d = ring.digits(x.reshape(rows, self.inputs), bits)
        columns = d.transpose(1, 2).reshape(d.shape[0] * self.inputs, rows)
        z = ring.product(prepared, columns, bits).t().reshape(n, *self.out_shape)
        return z if add is None else z + add


@dataclass(frozen=True)
class ConvMap(LinearMap):
    """Two-dimensional cross-correlation with stride, zero padding, dilation and groups, as ``torch.nn.Conv2d``."""

    channels: int
    height: int
    width: int
    outputs: int
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @property
    def in_shape(self) -> Shape:
        """``(channels, height, width)``."""
        return (self.channels, self.height, self.width)

    @property
    def out_size(self) -> tuple[int, int]:
        """Rows and columns of the result."""
        size = (self.height, self.width)
        a, b = (
            (size[i] + 2 * self.padding[i] - self.dilation[i] * (self.kernel[i] - 1) - 1) // self.stride[i] + 1
            for i in (0, 1)
        )
        return a, b

    @property
    def out_shape(self) -> Shape:
        """``(outputs, rows, columns)``."""
        return (self.outputs, *self.out_size)

    @property
    def weight_shape(self) -> Shape:
        """``(outputs, channels/groups, *kernel)``."""
        return (self.outputs, self.channels // self.groups, *self.kernel)

    @property
    def _depthwise(self) -> bool:
        return self.groups == self.channels == self.outputs

    def prepare(self, weight: Tensor, bits: int) -> Any:
        """W for the compiled products; without them, stacked digits per group. Words for a depthwise map."""
        self.check(weight)
        if self._depthwise:
            return ring.to_word(weight, bits)
        if native.products() is not None and weight.device.type == "cpu":
            return units.convolution(self, ring.to_word(weight, bits), bits)
        per_group = self.outputs // self.groups
        flat = weight.reshape(self.groups, per_group, -1)
        return [ring.stack_weights(flat[g], bits) for g in range(self.groups)]

    def apply(self, prepared: Any, x: Tensor, bits: int, add: Tensor | None = None) -> Tensor:
        """By digits: im2col on bytes, then one product per digit shift for the whole batch."""
        if self._depthwise:
            return self._taps(prepared, ring.to_word(x, bits), bits, add)
        if isinstance(prepared, UnitConvolution):
            return prepared.apply(self, ring.to_word(x, bits), bits, add)
        n, (rows, cols) = x.shape[0], self.out_size
        d = ring.digits(x, bits)  # (D, n, C, H, W)
        part = self.channels // self.groups
        outs = []
        for g, weights in enumerate(prepared):
            columns = self._columns(d[:, :, g * part : (g + 1) * part])
            outs.append(ring.product(weights, columns, bits))
        z = torch.cat(outs) if len(outs) > 1 else outs[0]
        z = z.reshape(self.outputs, n, rows, cols).transpose(0, 1)
        return z.contiguous() if add is None else z + add

    def _columns(self, d: Tensor) -> Tensor:
        """im2col on digits ``(D, n, c, H, W)`` -> int8 ``(D*c*kh*kw, n*rows*cols)``."""
        digits, n, c = d.shape[:3]
        rows, cols = self.out_size
        if self.kernel == (1, 1) and self.stride == (1, 1) and self.padding == (0, 0):
            return d.transpose(1, 2).reshape(digits * c, n * rows * cols)
        view = _windows(self, _padded(self, d))
        return view.permute(0, 2, 3, 4, 1, 5, 6).reshape(digits * c * prod(self.kernel), n * rows * cols)

    def _taps(self, weight: Tensor, x: Tensor, bits: int, add: Tensor | None) -> Tensor:
        """Depthwise map: one multiply-add in word arithmetic per kernel position."""
        out = torch.zeros((x.shape[0], *self.out_shape), dtype=ring.word(bits), device=x.device)
        if (fast := native.products()) is not None and x.device.type == "cpu":
            more = (torch.zeros_like(out[:1]) if add is None else add).expand(out.shape).numpy()
            geometry = [np.array(g) for g in (self.stride, self.padding, self.dilation)]
            for i, image in enumerate(x.contiguous().numpy()):
                fast.depthwise(image, weight[:, 0].numpy(), *geometry, more[i], out.numpy()[i])
            return out
        view = _windows(self, _padded(self, x.unsqueeze(0)))[0]
        for i in range(self.kernel[0]):
            for j in range(self.kernel[1]):
                out += view[:, :, i, j] * weight[:, 0, i, j, None, None]
        return out if add is None else out + add


def _padded(m: ConvMap, d: Tensor) -> Tensor:
    if m.padding == (0, 0):
        return d.contiguous()
    return F.pad(d, (m.padding[1], m.padding[1], m.padding[0], m.padding[0]))


def _windows(m: ConvMap, d: Tensor) -> Tensor:
    """Strided view ``(D, n, c, kh, kw, rows, cols)`` of padded values ``(D, n, c, H', W')``."""
    s = d.stride()
    rows, cols = m.out_size
    return d.as_strided(
        (*d.shape[:3], *m.kernel, rows, cols),
        (*s[:3], s[3] * m.dilation[0], s[4] * m.dilation[1], s[3] * m.stride[0], s[4] * m.stride[1]),
    )


@dataclass(frozen=True)
class ScaleMap(LinearMap):
    """``z[c, ...] = W[c] x[c, ...]``: one factor per channel."""

    shape: Shape

    @property
    def in_shape(self) -> Shape:
        """Any shape; channels first."""
        return self.shape

    @property
    def out_shape(self) -> Shape:
        """Same as the input's."""
        return self.shape

    @property
    def weight_shape(self) -> Shape:
        """``(channels,)``."""
        return (self.shape[0],)

    def prepare(self, weight: Tensor, bits: int) -> Tensor:
        """Words, shaped to broadcast over what follows the channel."""
        self.check(weight)
        return ring.to_word(weight, bits).reshape(-1, *([1] * (len(self.shape) - 1)))

    def apply(self, prepared: Tensor, x: Tensor, bits: int, add: Tensor | None = None) -> Tensor:
        """Word products."""
        z = ring.to_word(x, bits) * prepared
        return z if add is None else z + add


MAPS: dict[str, type[LinearMap]] = {"dense": DenseMap, "conv": ConvMap, "scale": ScaleMap}
