"""The privacy spent: Renyi divergences added up over rounds, told as (epsilon, delta).

A round's divergence at order alpha is the mechanism's (:meth:`Mechanism.renyi`); those of several rounds add up, even
where a round depends on earlier ones. The conversion to (epsilon, delta) is ``dp_accounting``'s (Proposition 12 of
Canonne, Kamath, Steinke 2020), of the extra ``federated``.

What is assumed, and said in every record: neighbouring runs differ in one client's whole update, there or zero; who
takes part is no secret; at least ``threshold - colluding`` clients of each sum keep their noise to themselves; noise
leaves the ring with probability at most 2^-40 a round, which is a matter of the sum's value and not of privacy.

Sampling: a server that runs the rounds knows who takes part, so *against it* sampling clients amplifies nothing, and
``Accountant()`` counts every round in full. ``Accountant(sampled=q)`` is for who sees the published models alone and
not who took part, where each client took part in each round with probability q, independently of others:

    (a - 1) e'(a) = log( (1 - q)^(a-1) (a q - q + 1) + C(a,2) q^2 (1 - q)^(a-2) exp(e(2))
                         + 3 sum_{l=3}^{a} C(a,l) (1 - q)^(a-l) q^l exp((l - 1) e(l)) )

at whole orders a. Source: Zhu, Wang, "Poisson Subsampled Renyi Differential Privacy", ICML 2019, Theorem 5.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from pqi.federated.codec import Codec
from pqi.federated.errors import MissingExtra, PrivacyError
from pqi.federated.privacy.calibration import Noise

FRACTIONAL = tuple(1 + x / 10 for x in range(1, 100) if x % 10)
WHOLE = (*range(2, 64), 80, 96, 128, 192, 256, 512, 1024)
ORDERS = tuple(sorted((*FRACTIONAL, *map(float, WHOLE))))


@dataclass(frozen=True)
class Spent:
    """What rounds so far have cost a client. epsilon is infinite where a round had no noise.

    mechanism: of the last round. noise_multiplier: deviation of the sum's noise (of honest clients) by the bound on an
    update's norm, rounding left out. order: at which the divergences were converted. sampled: 1 where every round
    counts in full. assumed: in words.
    """

    mechanism: str
    noise_multiplier: float
    rounds: int
    epsilon: float
    delta: float
    order: float
    sampled: float
    honest: int
    assumed: str

    def facts(self) -> dict[str, Any]:
        """As JSON can hold it, for a round's record; an infinite epsilon is None, since JSON has no such number."""
        return {**asdict(self), "epsilon": self.epsilon if math.isfinite(self.epsilon) else None}


class Accountant:
    """Adds up what rounds cost. delta: fixed, well below one by the number of clients. sampled: see this module.

    ``spend(codec)`` books a round, before its sum is told; ``spent()`` converts all booked so far. Raises
    :class:`PrivacyError` for a delta or a fraction out of range, :class:`MissingExtra` without ``dp_accounting``.
    """

    def __init__(self, delta: float, sampled: float = 1.0) -> None:
        if isinstance(delta, bool) or not isinstance(delta, (int, float)) or not 0 < delta < 1:
            raise PrivacyError(f"delta is {delta!r}: it must lie between 0 and 1, far below 1 by the number of clients")
        if isinstance(sampled, bool) or not isinstance(sampled, (int, float)) or not 0 < sampled <= 1:
            raise PrivacyError(f"sampled is {sampled!r}: the fraction of clients in a round lies in (0, 1]")
        self.delta, self.sampled = float(delta), float(sampled)
        _converter()  # says now, not after a round was trained, that the package is missing
        self._total: list[float] = [0.0] * len(ORDERS)
        self._rounds, self._honest = 0, 0
        self._last: Noise | None = None

    def spend(self, codec: Codec, rounds: int = 1) -> Spent:
        """Book rounds with this codec, and tell what all rounds together have cost."""
        noise = codec.noise
        if noise is None:
            self._total = [math.inf] * len(ORDERS)
        else:
            cost = self._costs(noise)
            self._total = [total + rounds * one for total, one in zip(self._total, cost, strict=True)]
            self._honest = noise.honest if self._last is None else min(self._honest, noise.honest)
        self._last, self._rounds = noise, self._rounds + rounds
        return self.spent()

    def spent(self) -> Spent:
        """What the rounds booked so far have cost."""
        known = [(a, r) for a, r in zip(ORDERS, self._total, strict=True) if math.isfinite(r)]
        epsilon, order = math.inf, 0.0
        if not self._rounds:
            epsilon = 0.0
        elif known:
            epsilon, order = _converter()([a for a, _ in known], [r for _, r in known], self.delta)
        return Spent(
            mechanism="none" if self._last is None else self._last.mechanism.name,
            noise_multiplier=0.0 if self._last is None else multiplier(self._last),
            rounds=self._rounds,
            epsilon=float(epsilon),
            delta=self.delta,
            order=float(order),
            sampled=self.sampled,
            honest=self._honest,
            assumed=self._assumed(),
        )

    def _costs(self, noise: Noise) -> list[float]:
        def plain(order: float) -> float:
            return noise.mechanism.renyi(order, noise.sensitivity, noise.variance, noise.honest)

        if self.sampled == 1:
            return [plain(order) for order in ORDERS]
        return [min(plain(order), amplified(self.sampled, order, plain)) for order in ORDERS]

    def _assumed(self) -> str:
        who = (
            "every round counts in full, also against the server"
            if self.sampled == 1
            else f"a fraction {self.sampled:g} of clients a round, drawn independently, unknown: not against the server"
        )
        return (
            f"client-level (one update there or zero); at least {self._honest} clients of a sum keep their noise; {who}"
        )


def multiplier(noise: Noise) -> float:
    """Deviation of the honest clients' noise in the sum by the bound on an update's norm, both in codes."""
    return math.sqrt(noise.honest * float(noise.variance)) / noise.clip_codes


def amplified(q: float, order: float, plain: Callable[[float], float]) -> float:
    """Divergence of a round in which each client takes part with probability q: this module's formula.

    Infinite at orders that are not whole, and above 256, where the sum is long and another order is the better one.
    """
    a = int(order)
    if a != order or not 2 <= a <= 256:
        return math.inf
    log_q, log_rest = math.log(q), math.log1p(-q)
    terms = [(a - 1) * log_rest + math.log(a * q - q + 1)]
    for chosen in range(2, a + 1):
        log_choose = math.lgamma(a + 1) - math.lgamma(chosen + 1) - math.lgamma(a - chosen + 1)
        weight = log_choose + chosen * log_q + (a - chosen) * log_rest + (math.log(3) if chosen > 2 else 0.0)
        terms.append(weight + (chosen - 1) * plain(float(chosen)))
    top = max(terms)
    return (top + math.log(math.fsum(math.exp(term - top) for term in terms))) / (a - 1)


def _converter() -> Callable[[list[float], list[float], float], tuple[float, float]]:
    try:
        from dp_accounting.rdp import compute_epsilon
    except ImportError:
        raise MissingExtra(
            "dp_accounting is not installed, which turns Renyi divergences into (epsilon, delta): install the extra, "
            "pip install 'private-quantized-inference[federated]'"
        ) from None
    converted: Callable[[list[float], list[float], float], tuple[float, float]] = compute_epsilon
    return converted
