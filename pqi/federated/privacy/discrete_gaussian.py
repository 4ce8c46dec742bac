"""The distributed discrete Gaussian: every client adds ``N_Z(0, sigma^2)`` to each of its codes.

``Pr[X = k]`` is proportional to ``exp(-k^2 / (2 sigma^2))`` over the integers. A sum of such variables is none
itself, but close to one: with h clients of variance sigma^2 each, every value's law is within a factor ``e^tau`` of
``N_Z(0, h sigma^2)``,

    tau = 10 sum_{k=1}^{h-1} exp(-2 pi^2 sigma^2 k / (k + 1)),

which is below 1e-30 from sigma = 3 on. The divergence between sums with and without one client is that of concentrated
differential privacy, ``alpha eps^2 / 2`` at every order alpha, with

    eps^2 = min( l2^2 / (h sigma^2) + 2 tau l1 / (sqrt(h) sigma) + tau^2 n,  (l2 / (sqrt(h) sigma) + tau sqrt(n))^2 ).

Source: Kairouz, Liu, Steinke, "The Distributed Discrete Gaussian Mechanism for Federated Learning with Secure
Aggregation", ICML 2021, Theorem 1 and its general form with l1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import ClassVar

import numpy as np

from pqi.federated.coins import Coins
from pqi.federated.errors import PrivacyError
from pqi.federated.privacy.inversion import Law, Sampler, Weights
from pqi.federated.privacy.mechanism import MAX_DEVIATION, Mechanism, Sensitivity, log_failure


@dataclass(frozen=True)
class DiscreteGaussian(Law):
    """``N_Z(0, variance)``. variance: a fraction from 1/16 to 2^32, in squared steps."""

    variance: Fraction

    def __post_init__(self) -> None:
        if not Fraction(1, 16) <= self.variance <= MAX_DEVIATION**2:
            raise PrivacyError(
                f"variance = {float(self.variance):g} of the discrete Gaussian is not within 1/16 .. 2^32: its table "
                f"would be too long, or its noise nothing"
            )

    def weights(self, precision: int, tail: int) -> Weights:
        """``w_k = exp(-k^2 / (2 v))`` by ``w_(k+1) = w_k r_k``, ``r_(k+1) = r_k exp(-1/v)``, all at most 1.

        A product of two numbers below 1 that are too low by a and b is too low by at most a + b, and one step of the
        fixed point for its own rounding: that is the error kept here. Beyond K, where K^2 >= v, the weights sum to
        at most ``w_K r / (1 - r) <= w_K 2 v / (2 K + 1) <= K w_K`` on each side.
        """
        half = Fraction(1, 2) / self.variance
        ratio, ratio_error = inverse_exponential(half, precision)
        fall, fall_error = inverse_exponential(2 * half, precision)
        side, w, error, k = [1 << precision], 1 << precision, 0, 0
        small = max(1 << (precision - tail), 1)
        while k * k < self.variance or (w + error) * k >= small:
            w, error = (w * ratio) >> precision, error + ratio_error + 1
            ratio, ratio_error = (ratio * fall) >> precision, ratio_error + fall_error + 1
            k += 1
            side.append(w)
            if error * k >= small:  # the fixed point is too coarse for this tail: certify with a finer one
                return self.weights(2 * precision, tail)
        left = (w + error) * k
        return Weights(-k, side[:0:-1] + side, error, left, left)


def inverse_exponential(x: Fraction, precision: int) -> tuple[int, int]:
    """``exp(-x)`` for a fraction x in (0, 16] in units of ``2^-precision``, too low by at most the second number.

    ``exp(x)`` is summed by its series, whose terms are all positive, and divided into one.
    """
    a, b = x.numerator, x.denominator
    unit = 1 << precision
    term, total, j = unit, 0, 0
    while term:
        total += term
        j += 1
        term = term * a // (b * j)
    # A term is too low by e_j <= e_(j-1) x / j + 1, which is at most exp(x); so is the first one left out, and the rest
    # behind it is a geometric series of ratio below 1/2 (by then j > 2 x): all of it at most (j + 2) exp(x).
    error = (j + 2) * ((total >> precision) + 2)
    low = unit * unit // (total + error)
    return low, unit * unit // total - low + 2


@lru_cache(maxsize=8)
def sampler(variance: Fraction) -> Sampler:
    """The sampler of ``N_Z(0, variance)``; the last few are kept."""
    return Sampler(DiscreteGaussian(variance))


@dataclass(frozen=True)
class DistributedDiscreteGaussian(Mechanism):
    """Discrete Gaussian noise of every client. See this module for the law and :class:`Mechanism` for the fields.

    Cost: some 5 to 10 milliseconds a million samples, after a table of about 24 sigma entries was made once.
    """

    name: ClassVar[str] = "distributed_discrete_gaussian"

    def tail(self, variance: Fraction, clients: int, length: int) -> int:
        """``sqrt(2 n sigma^2 ln(2 length 2^40))``: a discrete Gaussian is sub-Gaussian with its own sigma^2 (Canonne
        et al.)."""
        return math.ceil(math.sqrt(2 * clients * float(variance) * log_failure(length))) + 1

    def sample(self, variance: Fraction, count: int, coins: Coins) -> np.ndarray:
        """As :meth:`Mechanism.sample`, by :mod:`pqi.federated.privacy.inversion`."""
        return sampler(variance).sample(count, coins)

    def renyi(self, order: float, sensitivity: Sensitivity, variance: Fraction, honest: int) -> float:
        """``order eps^2 / 2`` with this module's eps."""
        tau, deviation = gap(float(variance), honest), math.sqrt(honest * float(variance))
        l2, l1, n = math.sqrt(sensitivity.l2_squared) / deviation, sensitivity.l1 / deviation, sensitivity.dimension
        return order / 2 * min(l2**2 + 2 * tau * l1 + tau**2 * n, (l2 + tau * math.sqrt(n)) ** 2)


def gap(variance: float, clients: int) -> float:
    """tau: how far the sum of ``clients`` discrete Gaussians is from one, as the logarithm of a ratio."""
    return 10 * sum(math.exp(-2 * math.pi**2 * variance * k / (k + 1)) for k in range(1, clients))
