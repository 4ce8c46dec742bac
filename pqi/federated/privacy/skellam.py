"""The Skellam mechanism: every client adds the difference of two Poisson variables to each of its codes.

``Poisson(v/2) - Poisson(v/2)`` has variance v, and a sum of h such variables is one of variance ``mu = h v``: dropouts
leave the law what it is. The divergence between sums with and without one client is, at whole orders alpha > 1,

    alpha l2^2 / (2 mu) + min( ((2 alpha - 1) l2^2 + 6 l1) / (4 mu^2),  3 l1 / (2 mu) ).

Source: Agarwal, Kairouz, Liu, "The Skellam Mechanism for Differentially Private Federated Learning", NeurIPS 2021,
Theorem 3.5 and Corollary 3.6, in steps of the codes.
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
class Poisson(Law):
    """``Pr[X = k] = e^-rate rate^k / k!``. rate: a fraction from 1/32 to 2^31."""

    rate: Fraction

    def __post_init__(self) -> None:
        if not Fraction(1, 32) <= self.rate <= MAX_DEVIATION**2 // 2:
            raise PrivacyError(f"rate = {float(self.rate):g} of the Poisson law is not within 1/32 .. 2^31")

    def weights(self, precision: int, tail: int) -> Weights:
        """Relative to the mode m = floor(rate): ``w_(k+1) = w_k rate / (k + 1)``, ``w_(k-1) = w_k k / rate``.

        Away from the mode both factors are at most 1, so each step adds at most one unit to the error. Above K the
        weights sum to at most ``w_K rate / (K + 1 - rate) <= w_K rate``, below K to at most ``K w_K``.
        """
        a, b, mode = self.rate.numerator, self.rate.denominator, math.floor(self.rate)
        small = max(1 << (precision - tail), 1)
        above, k, w = [1 << precision], mode, 1 << precision
        while (w + k - mode) * a >= small * b:
            k += 1
            w = w * a // (b * k)
            above.append(w)
        steps_up, left_above = k - mode, -(-(w + k - mode) * a // b)
        below, k, w = list[int](), mode, 1 << precision
        while k and (w + mode - k) * k >= small:
            w = w * k * b // a
            k -= 1
            below.append(w)
        left_below = (w + mode - k) * k
        return Weights(k, below[::-1] + above, max(steps_up, mode - k), left_below, left_above)


@lru_cache(maxsize=8)
def sampler(rate: Fraction) -> Sampler:
    """The sampler of ``Poisson(rate)``; the last few are kept."""
    return Sampler(Poisson(rate))


@dataclass(frozen=True)
class Skellam(Mechanism):
    """Skellam noise of every client. See this module for the law and :class:`Mechanism` for the fields.

    Cost: some 10 to 20 milliseconds a million samples, after a table of about 17 sigma entries was made once.
    """

    name: ClassVar[str] = "skellam"

    def tail(self, variance: Fraction, clients: int, length: int) -> int:
        """``L/3 + sqrt(L^2/9 + 2 n v L)`` with ``L = ln(2 length 2^40)``.

        ``ln E exp(t X) = n v (cosh t - 1) <= n v t^2 / (2 (1 - t/3))`` for t in (0, 3), and Bernstein's inequality
        follows.
        """
        log = log_failure(length)
        return math.ceil(log / 3 + math.sqrt(log**2 / 9 + 2 * clients * float(variance) * log)) + 1

    def sample(self, variance: Fraction, count: int, coins: Coins) -> np.ndarray:
        """As :meth:`Mechanism.sample`: the difference of two exact Poisson samples."""
        poisson = sampler(variance / 2)
        first = poisson.sample(count, coins)
        first -= poisson.sample(count, coins)
        return first

    def renyi(self, order: float, sensitivity: Sensitivity, variance: Fraction, honest: int) -> float:
        """This module's bound; infinite at orders that are not whole numbers above 1, for which it is not proven."""
        if order != int(order) or order < 2:
            return math.inf
        mu, l2_squared, l1 = honest * float(variance), sensitivity.l2_squared, sensitivity.l1
        correction = min(((2 * order - 1) * l2_squared + 6 * l1) / (4 * mu**2), 3 * l1 / (2 * mu))
        return order * l2_squared / (2 * mu) + correction
