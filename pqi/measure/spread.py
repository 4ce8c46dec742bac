"""A quantity that was measured several times: the median, and how far the measurements lie apart."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Spread:
    """Of ``runs`` measurements: the median, the least and the largest."""

    median: float
    low: float
    high: float
    runs: int

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        """From at least one measurement."""
        return Spread(statistics.median(values), min(values), max(values), len(values))

    def to_json(self) -> dict[str, Any]:
        """As plain JSON."""
        return dict(self.__dict__)
