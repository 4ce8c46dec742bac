"""What stands between turned bits and the arithmetic: the interface, standing there with nothing, and clipping.

A guard is set up from the weights as they should be and is kept where the attacker cannot write. It sees codes as they
were read from memory and returns those that are computed with: the same ones, bit for bit, where no bit was turned.
Attacks know it and aim at what it lets through. ``checksums`` has the guards that notice any turned bit, ``guarded``
models and shares that are served behind one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor

from pqi.audit.errors import AuditError
from pqi.audit.memory import Flip, Stored

MAX_SIZE = 1 << 16


class Guard(ABC):
    """Set up for all layers at once; ``settle``, ``gains`` and ``move`` are for one of them.

    size: weights of a group, which are kept together. kept_bits: what is kept for each weight, on average.
    """

    size: int = 1
    kept_bits: float = 0.0

    @abstractmethod
    def settle(self, layer: str, codes: Tensor) -> Tensor:
        """The codes to compute with, of codes as they were read."""

    @abstractmethod
    def gains(self, layer: str, now: Stored, slope: Tensor) -> Tensor:
        """How much the loss rises for each bit turned, or for what ``move`` makes of it; first order, (bits, weights).

        now: the layer as it lies in memory. slope: dL/dcode, of the codes' shape.
        """

    def move(self, flip: Flip, turned: Iterable[Flip]) -> tuple[Flip, ...]:
        """The bits that must be turned together for this one to tell; ``turned`` are turned already."""
        return (flip,)


MakeGuard: TypeAlias = Callable[[Mapping[str, Stored]], Guard]


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
        self.size = sized(size)
        self.kept_bits = 2 * max((layer.bits for layer in layers.values()), default=0) / size
        self._low, self._high = {}, {}
        for name, layer in layers.items():
            groups = Groups(layer.codes.shape, size, interleaved=False)
            rows = groups.rows(layer.codes)
            self._low[name], self._high[name] = groups.each(rows.amin(1)), groups.each(rows.amax(1))

    def settle(self, layer: str, codes: Tensor) -> Tensor:
        """The codes, none outside its group's range."""
        return torch.minimum(torch.maximum(codes, self._low[layer]), self._high[layer])

    def gains(self, layer: str, now: Stored, slope: Tensor) -> Tensor:
        """The slope times what is left of each change."""
        kept = self.settle(layer, now.codes)
        rows = [slope * (self.settle(layer, now.codes + now.change(bit)) - kept) for bit in range(now.bits)]
        return torch.stack([row.flatten() for row in rows])


class Groups:
    """Weights of a layer in groups of ``size``: neighbours, or far from one another (as RADAR interleaves them).

    Interleaved, weight i of n is in group i mod ceil(n / size): the groups then lie across the layer's filters, and no
    filter is lost with one.
    """

    def __init__(self, shape: torch.Size, size: int, interleaved: bool) -> None:
        self.shape, self.size, self.interleaved = shape, size, interleaved
        self.count = -(-shape.numel() // size)

    def rows(self, values: Tensor) -> Tensor:
        """(groups, size); the last places are filled up with zeros."""
        flat = values.flatten()
        flat = torch.cat([flat, flat.new_zeros(self.count * self.size - flat.numel())])
        return flat.view(self.size, self.count).t() if self.interleaved else flat.view(self.count, self.size)

    def flat(self, rows: Tensor) -> Tensor:
        """What ``rows`` was made of, back in the layer's shape."""
        ordered = rows.t() if self.interleaved else rows
        return ordered.reshape(-1)[: self.shape.numel()].view(self.shape)

    def each(self, values: Tensor) -> Tensor:
        """One value a group, for each of its weights, in the layer's shape."""
        return self.flat(values[:, None].expand(-1, self.size))

    def of(self, index: int) -> int:
        """The group of a weight."""
        return index % self.count if self.interleaved else index // self.size

    def members(self, group: int) -> list[int]:
        """The weights of a group."""
        last = self.shape.numel()
        first, step = (group, self.count) if self.interleaved else (group * self.size, 1)
        return [i for i in range(first, first + step * self.size, step) if i < last]


def sized(size: int) -> int:
    """A group's size, checked."""
    if not 1 <= size <= MAX_SIZE:
        raise AuditError(f"groups of {size} weights: 1 to {MAX_SIZE} are possible")
    return size
