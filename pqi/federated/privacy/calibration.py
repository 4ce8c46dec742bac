"""The scale of noisy codes: as fine as the ring allows, with a sum that leaves it with probability at most 2^-40."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from pqi.federated.bounds import room
from pqi.federated.errors import WrapError
from pqi.federated.privacy.mechanism import FAILURE_BITS, MAX_DEVIATION, Mechanism, Sensitivity
from pqi.federated.privacy.rotation import spread

MAX_CLIP_CODES = 1 << 30
_WORST = 4  # rounding may at most double the sensitivity: its square, at most four times


@dataclass(frozen=True)
class Noise:
    """One round's noise in codes. clip_codes: A, what the clip is in codes. value_codes: where values are clipped.

    variance: of one client's noise. honest: clients whose noise is counted on. tail: bound on all clients' noise in
    every sum, but for probability 2^-40. sensitivity: of one client's rounded codes.
    """

    mechanism: Mechanism
    clip_codes: int
    value_codes: int
    variance: Fraction
    honest: int
    tail: int
    sensitivity: Sensitivity

    def record(self) -> dict[str, Any]:
        """Public numbers for a round's record."""
        return {
            **self.mechanism.facts(),
            "clip_codes": self.clip_codes,
            "variance_per_client": str(self.variance),
            "honest_clients_at_least": self.honest,
            "noise_bound": self.tail,
            "wrap_probability": f"2^-{FAILURE_BITS}",
            "l2_sensitivity_squared": self.sensitivity.l2_squared,
        }


def calibrated(mechanism: Mechanism, bits: int, length: int, clients: int, threshold: int, sigmas: float) -> Noise:
    """The noise at the finest scale for which ``clients value_codes + tail <= 2^(bits-1) - 1``.

    A finer scale makes rounding matter less beside the clip; noise grows with it. Raises :class:`WrapError` where no
    scale fits, or only one so coarse that rounding would more than double the sensitivity.
    """
    honest = mechanism.honest(threshold)

    def at(clip_codes: int) -> Noise:
        value = min(clip_codes, math.floor(sigmas * clip_codes * spread(length)) + 1)
        variance = mechanism.variance(clip_codes, honest)
        tail = mechanism.tail(variance, clients, length)
        return Noise(mechanism, clip_codes, value, variance, honest, tail, Sensitivity.rounded(clip_codes, length))

    def fits(clip_codes: int) -> bool:
        noise = at(clip_codes)
        narrow = noise.variance <= MAX_DEVIATION**2
        return narrow and clients * noise.value_codes + noise.tail <= room(bits)

    low, high = 0, min(MAX_CLIP_CODES, room(bits)) + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    found = at(max(low, 1))
    if not low or found.sensitivity.l2_squared > _WORST * low**2:
        state = "no scale keeps" if not low else "only a scale whose rounding doubles the sensitivity would keep"
        raise WrapError(
            f"{state} the sum of {clients} noisy updates of {length} values within a ring of modulus_bits = {bits} "
            f"(room {room(bits)}, noise {found.tail} at a clip of {found.clip_codes} codes): use more modulus_bits, a "
            f"smaller noise_multiplier (now {mechanism.noise_multiplier:g}), or a threshold nearer to all clients"
        )
    return found
