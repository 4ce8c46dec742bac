"""What is audited, checked once: a float network, the integer model made from it, and the data that both are asked."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from pqi.audit.errors import AuditError
from pqi.audit.subjects import FloatSubject, IntegerSubject, StraightThroughSubject, Subject
from pqi.graph.model import IntegerModel


@dataclass(frozen=True, eq=False)
class Data:
    """Examples: x float (N, *input shape), y int64 (N,) classes; groups: int64 (N,) or None, for fairness."""

    x: NDArray[Any]
    y: NDArray[np.int64]
    groups: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        if not len(self.x) or len(self.x) != len(self.y):
            raise AuditError(f"{len(self.x)} inputs and {len(self.y)} labels: as many of each are needed, not none")
        if self.groups is not None and len(self.groups) != len(self.x):
            raise AuditError(f"{len(self.x)} inputs and {len(self.groups)} groups: one of each an example")
        if not np.isfinite(self.x).all():
            raise AuditError("inputs hold NaN or infinity")
        if self.y.min() < 0:
            raise AuditError(f"labels begin at {self.y.min()}: classes are numbered from 0")

    def __len__(self) -> int:
        return len(self.x)

    def take(self, rows: Any) -> Data:
        """Those rows."""
        return Data(self.x[rows], self.y[rows], None if self.groups is None else self.groups[rows])

    def sample(self, n: int, seed: int) -> Data:
        """n examples (all, if there are fewer), drawn without replacement."""
        if n >= len(self):
            return self
        return self.take(np.sort(np.random.default_rng(seed).choice(len(self), n, replace=False)))


@dataclass(frozen=True, eq=False)
class Case:
    """One audit's subject matter. test: unseen examples. train: those it was trained with, where they are at hand.

    low, high: what an input's values can be; adversarial inputs stay inside and are put on the client's grid.
    """

    net: nn.Module
    model: IntegerModel
    test: Data
    train: Data | None = None
    name: str = "model"
    low: float = field(default=0.0)
    high: float = field(default=1.0)

    def __post_init__(self) -> None:
        for what, data in (("test", self.test), ("train", self.train)):
            if data is not None and tuple(data.x.shape[1:]) != self.model.input_shape:
                raise AuditError(f"{what} inputs are {data.x.shape[1:]}, the model takes {self.model.input_shape}")
        if not self.low < self.high:
            raise AuditError(f"inputs from {self.low} to {self.high}: low must be below high")
        outside = (self.test.x < self.low - 1e-6) | (self.test.x > self.high + 1e-6)
        if outside.any():
            seen = f"{self.test.x.min():.4g} to {self.test.x.max():.4g}"
            raise AuditError(f"test inputs run from {seen}, outside {self.low} to {self.high}: give their true range")

    @cached_property
    def subjects(self) -> dict[str, Subject]:
        """The three forms by name: float, straight-through, integers."""
        found = (FloatSubject(self.net), StraightThroughSubject(self.model), IntegerSubject(self.model))
        return {subject.name: subject for subject in found}

    @property
    def classes(self) -> int:
        """How many classes the model tells apart."""
        return int(np.prod(self.model.output_shape))

    def on_grid(
        self, x: NDArray[Any], around: NDArray[Any] | None = None, reach: float = np.inf
    ) -> NDArray[np.float64]:
        """The inputs that the client's codes of x stand for: what an attack must survive to be one.

        around, reach: stay within reach of these inputs (largest difference of a value), one code nearer where the
        grid would leave it.
        """
        scale = np.asarray(self.model.input_quantizer.scale)
        codes = self.model.encode(np.clip(x, self.low, self.high), on_saturation="silent").numpy()
        if around is not None:
            gap = codes / scale - around
            codes = np.where(np.abs(gap) > reach, codes - np.sign(gap).astype(np.int64), codes)
        return np.asarray(codes / scale, np.float64)

    def with_model(self, model: IntegerModel) -> Case:
        """The same case with another integer model: a defended one, another bit width."""
        return replace(self, model=model)
