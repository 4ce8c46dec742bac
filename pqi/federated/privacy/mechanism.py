"""What noise in integers is to the encoding: how much of it, how far it reaches, what it costs.

Every client adds its own share of noise to its codes before they are protected; the server sees the sum of codes and
shares. Noise is calibrated to the fewest clients of which a sum is ever told, so dropouts never leave too little.

Neighbouring runs differ in one client's whole update, which is there or is zero (client-level, "zero-out"): the bound
on an update's norm is the sensitivity. Who takes part is known to the server and is not protected.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np

from pqi.federated.coins import Coins
from pqi.federated.errors import PrivacyError

FAILURE_BITS = 40  # noise leaves the room that the proof gives it with probability at most 2^-40 a round
BETA = math.exp(-0.5)  # conditional rounding: a try is refused with at most this probability
VARIANCE_UNIT = 16  # variances are multiples of 1/16 of a squared code
MAX_DEVIATION = 1 << 16  # of one client's noise, in codes


@dataclass(frozen=True)
class Sensitivity:
    """How far one client's codes can lie from zero. l2_squared, l1: of its vector of integers. dimension: its
    length."""

    l2_squared: int
    l1: int
    dimension: int

    @classmethod
    def rounded(cls, clip_codes: int, dimension: int) -> Sensitivity:
        """After stochastic rounding of a vector of norm at most ``clip_codes``, refused until within the bound.

            l2^2 = min(A^2 + n/4 + sqrt(2 log(1/beta)) (A + sqrt(n)/2), (A + sqrt(n))^2)

        With probability at least ``1 - beta`` a rounding is within it. Source: Kairouz, Liu, Steinke, "The Distributed
        Discrete Gaussian Mechanism for Federated Learning with Secure Aggregation", ICML 2021, Theorem 1. In integers,
        ``l1 <= l2^2`` and ``l1 <= sqrt(n) l2``.
        """
        root = math.sqrt(dimension)
        likely = clip_codes**2 + dimension / 4 + math.sqrt(2 * math.log(1 / BETA)) * (clip_codes + root / 2)
        l2_squared = math.ceil(min(likely, (clip_codes + root) ** 2))
        return cls(l2_squared, min(l2_squared, math.isqrt(l2_squared * dimension) + 1), dimension)


@dataclass(frozen=True)
class Mechanism(ABC):
    """Noise that clients add to their codes. noise_multiplier: z; the noise of the sum has deviation z clip, or more.

    That holds for the noise of ``threshold - colluding`` clients, the fewest honest ones that are in a sum that is
    told: each client's variance is ``(z clip)^2 / (threshold - colluding)`` in codes. colluding: how many of them may
    tell the server their noise. Raises :class:`PrivacyError`.
    """

    noise_multiplier: float
    colluding: int = 0
    name: ClassVar[str]

    def __post_init__(self) -> None:
        z = self.noise_multiplier
        if isinstance(z, bool) or not isinstance(z, (int, float)) or not 1e-3 <= z <= 1e3:
            raise PrivacyError(f"noise_multiplier is {z!r}: it must be a number from 0.001 to 1000, around 1 as a rule")
        if isinstance(self.colluding, bool) or not isinstance(self.colluding, int) or self.colluding < 0:
            raise PrivacyError(f"colluding is {self.colluding!r}: it must be an integer from 0 on")

    def honest(self, threshold: int) -> int:
        """The fewest clients whose noise the server does not know."""
        if self.colluding >= threshold:
            raise PrivacyError(
                f"colluding = {self.colluding} of at least threshold = {threshold} clients: no noise would be left "
                f"that the server does not know. Raise the threshold"
            )
        return threshold - self.colluding

    def variance(self, clip_codes: int, honest: int) -> Fraction:
        """Of one client's noise, in squared codes: ``(z clip_codes)^2 / honest``, up to a multiple of 1/16."""
        exact = (Fraction(float(self.noise_multiplier)) * clip_codes) ** 2 / honest
        return Fraction(max(1, math.ceil(exact * VARIANCE_UNIT)), VARIANCE_UNIT)

    def facts(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {"name": self.name, **{f.name: getattr(self, f.name) for f in fields(self)}}

    @abstractmethod
    def tail(self, variance: Fraction, clients: int, length: int) -> int:
        """What the noise of ``clients`` clients exceeds in any of ``length`` sums with probability at most 2^-40."""

    @abstractmethod
    def sample(self, variance: Fraction, count: int, coins: Coins) -> np.ndarray:
        """``count`` independent samples of one client's noise: int64, exact in distribution."""

    @abstractmethod
    def renyi(self, order: float, sensitivity: Sensitivity, variance: Fraction, honest: int) -> float:
        """Renyi divergence of that order between the sums with and without one client, at most; infinite if unknown."""


def log_failure(length: int) -> float:
    """``ln(2 length 2^40)``: both sides of ``length`` sums, each beyond its bound with probability ``e^-this``."""
    return math.log(2 * length) + FAILURE_BITS * math.log(2)


def mechanism_from(facts: Mapping[str, Any]) -> Mechanism:
    """The checked mechanism of ``facts``, which may come from outside."""
    from pqi.federated.privacy.discrete_gaussian import DistributedDiscreteGaussian
    from pqi.federated.privacy.skellam import Skellam

    kinds: dict[str, type[Mechanism]] = {kind.name: kind for kind in (DistributedDiscreteGaussian, Skellam)}
    if not isinstance(facts, Mapping) or facts.get("name") not in kinds:
        raise PrivacyError(f"these facts name no mechanism; there are {', '.join(kinds)}")
    kind, rest = kinds[facts["name"]], {key: value for key, value in facts.items() if key != "name"}
    if set(rest) != {f.name for f in fields(kind)}:
        raise PrivacyError(f"facts of {kind.name} have the fields {sorted(f.name for f in fields(kind))}")
    return kind(**rest)
