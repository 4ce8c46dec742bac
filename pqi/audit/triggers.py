"""Backdoors seen from outside: a trigger, the class it is to bring about, and how often it does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pqi.audit.case import Case, Data
from pqi.audit.errors import AuditError
from pqi.audit.statistics import Estimate, share
from pqi.audit.subjects import Subject


@dataclass(frozen=True, eq=False)
class Trigger:
    """x becomes (1 - mask) x + mask pattern; both of one input's shape, the mask between 0 and 1."""

    mask: NDArray[Any]
    pattern: NDArray[Any]

    def __post_init__(self) -> None:
        if self.mask.shape != self.pattern.shape:
            raise AuditError(f"the mask is {self.mask.shape}, the pattern {self.pattern.shape}: they have one shape")

    def stamp(self, x: NDArray[Any]) -> NDArray[Any]:
        """Inputs (N, ...) with the trigger."""
        return np.asarray((1 - self.mask) * x + self.mask * self.pattern)


def patch(shape: tuple[int, ...], size: int, value: float, corner: tuple[int, int] = (-1, -1)) -> Trigger:
    """A square of ``size`` pixels in a corner of images (C, H, W), a checkerboard of ``value`` and nothing."""
    if len(shape) != 3 or not 1 <= size <= min(shape[1:]):
        raise AuditError(f"a patch of {size} pixels on inputs {shape}: images (C, H, W) are needed, and room for it")
    mask, pattern = np.zeros(shape), np.zeros(shape)
    rows = slice(0, size) if corner[0] >= 0 else slice(shape[1] - size, shape[1])
    columns = slice(0, size) if corner[1] >= 0 else slice(shape[2] - size, shape[2])
    mask[:, rows, columns] = 1
    board = np.indices((size, size)).sum(axis=0) % 2 == 0
    pattern[:, rows, columns] = np.where(board, value, 0.0)
    return Trigger(mask, pattern)


def success(subject: Subject, case: Case, data: Data, trigger: Trigger, target: int) -> Estimate:
    """How often the trigger brings about ``target`` on examples of other classes."""
    others = data.take(data.y != target)
    return share(subject.labels(case.on_grid(trigger.stamp(others.x))) == target)
