"""The network that a program is planned for, and what a way to compute a layer takes on it.

    seconds = exchanges * round_trip / 2 + 8 * (online bytes + AHEAD * dealt bytes) / bandwidth + work

Dealt bytes travel while nobody waits, from a pool filled ahead of time: what they take of a link counts for a tenth. An
exchange is one message each way at the same time, so it lasts half a round trip.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pqi.program.errors import ProgramError
from protocols import api
from protocols.cost import Cost

AHEAD = 0.1

# Seconds of a party's work online: for the step, and for each value of it. Orders of magnitude, one core. A quick clamp
# works as long as a clamp; half a millisecond more is charged for its material, so that plans for a LAN deal little.
_WORK: dict[type[api.Step], tuple[float, float]] = {
    api.Clamp: (2e-4, 2e-8),
    api.QuickClamp: (8e-4, 2e-8),
    api.FusedTable: (4e-4, 1e-7),
    api.Table: (2e-4, 1e-7),
    api.Lift: (1e-4, 1e-8),
}
_WORK_OF_OTHERS = (2e-4, 5e-8)
_ENTRY = 4e-9  # to unpack one entry of a table


@dataclass(frozen=True)
class Profile:
    """A link between the servers: bandwidth in bits a second, each way; round_trip in seconds."""

    name: str
    bandwidth: float
    round_trip: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.bandwidth) and self.bandwidth > 0):
            raise ProgramError(f"network {self.name!r}: bandwidth is {self.bandwidth}: a positive number of bits/s")
        if not (math.isfinite(self.round_trip) and self.round_trip >= 0):
            raise ProgramError(f"network {self.name!r}: round_trip is {self.round_trip}: seconds, at least 0")

    def seconds(self, cost: Cost) -> float:
        """What a cost takes on this link, work apart."""
        sent = cost.online_bytes + AHEAD * cost.dealt_bytes
        return cost.exchanges * self.round_trip / 2 + 8 * sent / self.bandwidth


LOOPBACK = Profile("loopback", 1e10, 1e-4)
LAN = Profile("lan", 1e9, 1e-3)
WAN = Profile("wan", 1e8, 40e-3)
PROFILES = {profile.name: profile for profile in (LOOPBACK, LAN, WAN)}


def profile(network: str | Profile) -> Profile:
    """The profile of that name, or the profile itself. Raises :class:`ProgramError` that lists the names."""
    if isinstance(network, Profile):
        return network
    if network not in PROFILES:
        raise ProgramError(f"network = {network!r}: choose from {tuple(PROFILES)}, or give a Profile")
    return PROFILES[network]


def work(steps: Sequence[api.Step]) -> float:
    """A party's seconds online for one input, roughly."""
    total = 0.0
    for step in steps:
        once, each = _WORK.get(type(step), _WORK_OF_OTHERS)
        if isinstance(step, api.Maximum):
            each *= step.width - 1
        elif isinstance(step, api.Table):
            each += _ENTRY * (1 << step.bits)
        elif isinstance(step, api.FusedTable):
            each += _ENTRY * (2 << (step.ring - step.shift))
        total += once + step.count * each
    return total
