"""A quantity that was measured several times: the median, and how far the measurements lie apart."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

_MOST_SECONDS = 2.0


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


def timed(work: Callable[[], object], runs: int = 20) -> Spread:
    """Seconds of up to ``runs`` runs after one to warm up; fewer where they would take more than two seconds."""
    work()
    seconds: list[float] = []
    while len(seconds) < runs and (len(seconds) < 3 or sum(seconds) < _MOST_SECONDS):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return Spread.of(seconds)
