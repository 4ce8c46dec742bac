"""What stands between turned bits and the arithmetic: the interface, and standing there with nothing.

A guard is set up from the weights as they should be and is kept where the attacker cannot write. It sees codes as they
were read from memory and returns those that are computed with. Attacks know it and aim at what it lets through.
"""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from pqi.audit.memory import Stored

_PRIME = (1 << 31) - 1


class Guard(ABC):
    """Set up for all layers at once; ``settle`` and ``gains`` are for one of them."""

    @abstractmethod
    def settle(self, layer: str, codes: Tensor) -> Tensor:
        """The codes to compute with, of codes as they were read."""

    @abstractmethod
    def gains(self, layer: str, now: Stored, slope: Tensor) -> Tensor:
        """How much the loss rises for each bit turned, to first order: (bits, weights).

        now: the layer as it lies in memory. slope: dL/dcode, of the codes' shape.
        """


class NoGuard(Guard):
    """Codes are used as they are read."""

    def settle(self, layer: str, codes: Tensor) -> Tensor:
        """The codes."""
        return codes

    def gains(self, layer: str, now: Stored, slope: Tensor) -> Tensor:
        """The slope times the change of each bit."""
        return torch.stack([(slope * now.change(bit)).flatten() for bit in range(now.bits)])


class GroupClipping(Guard):
    """Codes are clipped to the range that their group of ``size`` neighbours had (Li et al., DAC 2020, in integers).

    A turned bit then moves a weight within what is usual around it. Costs two codes kept per group, and a clip of the
    weights before each use, or once after each load.
    """

    def __init__(self, layers: Mapping[str, Stored], size: int = 16) -> None:
        self.size = size
        self._low, self._high = {}, {}
        for name, layer in layers.items():
            spread = _grouped(layer.codes, size)
            shape = layer.codes.shape
            self._low[name] = _spread(spread.amin(1), size, shape)
            self._high[name] = _spread(spread.amax(1), size, shape)

    def settle(self, layer: str, codes: Tensor) -> Tensor:
        """The codes, none outside its group's range."""
        return torch.minimum(torch.maximum(codes, self._low[layer]), self._high[layer])

    def gains(self, layer: str, now: Stored, slope: Tensor) -> Tensor:
        """The slope times what is left of each change."""
        kept = self.settle(layer, now.codes)
        rows = [slope * (self.settle(layer, now.codes + now.change(bit)) - kept) for bit in range(now.bits)]
        return torch.stack([row.flatten() for row in rows])


class GroupChecksums(Guard):
    """A group of ``size`` weights whose keyed sum has changed is computed with as zeros (after RADAR, DATE 2021).

    The sum of a group is sum_i a_i w_i mod 2^31 - 1 with secret a_i: whoever does not know them alters a group unseen
    with probability 2^-31, whatever bits he turns. It costs 31 bits a group and one pass over the weights before each
    use. What is left to the attacker is to have groups of his choice left out, one a bit.
    """

    def __init__(self, layers: Mapping[str, Stored], size: int = 16) -> None:
        self.size = size
        longest = max(layer.codes.numel() for layer in layers.values()) + size
        drawn = np.frombuffer(secrets.token_bytes(8 * longest), np.uint64) % np.uint64(_PRIME)
        self._key = torch.from_numpy(drawn.astype(np.int64))
        self._right = {name: self._sums(layer.codes) for name, layer in layers.items()}

    def _sums(self, codes: Tensor) -> Tensor:
        rows = _grouped(codes, self.size)
        return (rows * self._key[: rows.numel()].view_as(rows) % _PRIME).sum(1) % _PRIME

    def settle(self, layer: str, codes: Tensor) -> Tensor:
        """The codes, zeros in every group that was altered."""
        altered = self._sums(codes) != self._right[layer]
        return torch.where(_spread(altered, self.size, codes.shape), 0, codes)

    def gains(self, layer: str, now: Stored, slope: Tensor) -> Tensor:
        """What leaving out the whole group does; nothing more for a group that is out already."""
        lost = -(slope * self.settle(layer, now.codes))
        by_group = _spread(_grouped(lost, self.size).sum(1), self.size, now.codes.shape).flatten()
        return by_group.expand(now.bits, -1)


def _grouped(codes: Tensor, size: int) -> Tensor:
    """Neighbours in rows of ``size``; the last row is filled up with zeros."""
    flat = codes.flatten()
    return torch.cat([flat, flat.new_zeros(-flat.numel() % size)]).view(-1, size)


def _spread(values: Tensor, size: int, shape: torch.Size) -> Tensor:
    """One value a group, for each of its weights."""
    return values.repeat_interleave(size)[: shape.numel()].view(shape)
