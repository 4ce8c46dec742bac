"""A uniform random sample of a stream in constant memory, the same however the stream was cut into batches."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pqi.graph.errors import QuantizationError


class Sample:
    """At most ``size`` rows of a stream, in their order; all of them when there are no more.

    Row i has the fixed priority mix(i), a bijection of 64-bit integers that looks random (the finaliser of SplitMix64,
    Steele, Lea and Flood, OOPSLA 2014); the rows of least priority stay. So every subset is as good as equally likely,
    nothing is random between runs, and data sorted or periodic by class do no harm. Not for secrets.
    """

    def __init__(self, size: int) -> None:
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise QuantizationError(f"a sample of {size!r} inputs was asked for: it must be an integer, at least 1")
        self.size = size
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self.seen = 0
        self._rows: Tensor | None = None
        self._index: NDArray[np.int64] = np.zeros(0, np.int64)

    def see(self, batch: Tensor) -> None:
        """Take the rows of (n, ...) into account; those that stay are copied."""
        index = np.arange(self.seen, self.seen + len(batch))
        self.seen += len(batch)
        both = np.concatenate([self._index, index])
        chosen = np.arange(len(both))
        if len(both) > self.size:
            chosen = np.sort(np.argpartition(_mix(both), self.size - 1)[: self.size])
        held = len(self._index)
        old, new = chosen[chosen < held], chosen[chosen >= held] - held
        if not len(new):
            return
        arrived = batch[torch.from_numpy(new)]
        self._rows = arrived if self._rows is None else torch.cat([self._rows[torch.from_numpy(old)], arrived])
        self._index = both[chosen]

    @property
    def tensor(self) -> Tensor:
        """The rows (m, ...), m <= size, in the order of the stream."""
        if self._rows is None:
            raise QuantizationError("the sample is empty: iterate over the batches first")
        return self._rows


def _mix(index: NDArray[np.int64]) -> NDArray[np.uint64]:
    """The priority of each index."""
    z = (index.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(z ^ (z >> np.uint64(31)), dtype=np.uint64)
