"""What every attack is: who attacks, what it may cost, and findings with intervals."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeAlias

from pqi.audit.case import Case
from pqi.audit.errors import AuditError
from pqi.audit.statistics import Estimate

FAMILIES = ("fidelity", "adversarial", "backdoor", "bit flips", "privacy", "fairness")
KNOWS = ("labels", "scores", "weights", "training data", "nothing")
CHANGES = ("inputs", "training", "calibration", "rounding", "memory", "nothing")

Progress: TypeAlias = Callable[[int, int], None]


@dataclass(frozen=True)
class Threat:
    """Who attacks. knows: what of the model; changes: what it can alter; goal: in one sentence; source: the paper."""

    knows: str
    changes: str
    goal: str
    source: str

    def __post_init__(self) -> None:
        if self.knows not in KNOWS or self.changes not in CHANGES:
            raise AuditError(f"threat knows {self.knows!r} (of {KNOWS}) and changes {self.changes!r} (of {CHANGES})")


@dataclass(frozen=True)
class Budget:
    """What an attack may cost. samples: examples it is measured on. queries: questions an example. seed: of its draws.

    seconds: a soft limit, looked at between steps; an attack that stops early says so in its findings.
    """

    samples: int = 500
    queries: int = 1000
    seconds: float = 300.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("samples", "queries", "seconds"):
            if not getattr(self, name) > 0:
                raise AuditError(f"budget: {name} = {getattr(self, name)} must be positive")

    def clock(self) -> Clock:
        """Starts counting."""
        return Clock(self.seconds)


class Clock:
    """Time since it was made, against a limit."""

    def __init__(self, seconds: float) -> None:
        self._from, self._limit = time.perf_counter(), seconds

    @property
    def seconds(self) -> float:
        """How long it has run."""
        return time.perf_counter() - self._from

    @property
    def is_over(self) -> bool:
        """Whether the limit is passed."""
        return self.seconds > self._limit


@dataclass(frozen=True)
class Curve:
    """A line to be drawn: x and y (points,), and the interval of y where there is one."""

    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    x_name: str = ""
    y_name: str = ""


@dataclass(frozen=True)
class Finding:
    """What one attack did to one form of the network.

    subject: "float", "straight-through", "integers", or what else was looked at. figures: by name, each with its
    interval. curves: by name. budget, seed: how to do it again; ``settings`` holds what else decides the outcome.
    stopped_early: the budget's seconds ran out.
    Raises AuditError for a family that is none of ``FAMILIES``: no verdict would look at it.
    """

    attack: str
    family: str
    subject: str
    threat: Threat
    budget: Budget
    figures: Mapping[str, Estimate]
    curves: Mapping[str, Curve] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    stopped_early: bool = False
    remark: str = ""

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise AuditError(f"{self.attack!r} is of family {self.family!r}; there are: {', '.join(FAMILIES)}")


class Attack(ABC):
    """One attack. A subclass is one file; its settings are its constructor's arguments."""

    name: ClassVar[str]
    family: ClassVar[str]
    threat: ClassVar[Threat]

    @abstractmethod
    def run(self, case: Case, budget: Budget, progress: Progress | None = None) -> tuple[Finding, ...]:
        """One finding for each form of the network that was attacked; the case is left as it is."""

    def finding(self, subject: str, budget: Budget, clock: Clock, **fields: Any) -> Finding:
        """A finding of this attack, with the time on the clock."""
        return Finding(
            attack=self.name,
            family=self.family,
            subject=subject,
            threat=self.threat,
            budget=budget,
            seconds=clock.seconds,
            **fields,
        )
