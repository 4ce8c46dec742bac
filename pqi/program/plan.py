"""Which primitives serve a requantization: bytes against exchanges.

Three exact ways lead from an accumulator ``<z>_k`` to a code: a comparison by digits (few bytes, three exchanges), a
fused one-time table (two exchanges, 2^(t+1) entries for an index of t = k - shift bits), and, for codes that go
through a table of values, a clamp by digits and then a table over the code's few bits. ``lan`` takes the fewest
bytes, ``wan`` the fewest exchanges as long as a value costs at most ``WAN_TABLE_BITS`` to deal. ``stochastic``
rounding shifts for free, is not bit-exact, and says so.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from pqi.program.errors import ProgramError
from protocols import api

NETWORKS = ("lan", "wan")
ROUNDINGS = ("exact", "stochastic")
WAN_TABLE_BITS = 16384


@dataclass(frozen=True)
class Demand:
    """A requantization to be planned: ``<z>_ring -> <V[clamp(floor(z / 2^shift), 0, 2^bits - 1)]>_ring_out``.

    tables: 0 when V[i] = low + i, else the number of tables (1, or one per channel).
    """

    shape: tuple[int, ...]
    ring: int
    shift: int
    bits: int
    low: int
    tables: int
    ring_out: int
    headroom: int  # bits above the code that one clamp of the protocol can look at

    def fits(self) -> bool:
        """Whether one clamp is enough."""
        return self.ring - self.shift - min(self.bits, self.ring - self.shift - 1) <= self.headroom


def requantization(d: Demand, network: str, rounding: str) -> list[tuple[str, api.Step]]:
    """Steps in order, each with the suffix of its name; the last one's name is the node's own."""
    if network not in NETWORKS or rounding not in ROUNDINGS:
        raise ProgramError(f"network = {network!r}, rounding = {rounding!r}: choose from {NETWORKS} and {ROUNDINGS}")
    if rounding == "stochastic" and d.shift:
        t = d.ring - d.shift
        first: list[tuple[str, api.Step]] = [("shift", api.Shift(d.shape, d.ring, d.shift, "stochastic"))]
        return first + _exact(replace(d, ring=t, shift=0), network)
    return _exact(d, network)


def _exact(d: Demand, network: str) -> list[tuple[str, api.Step]]:
    index = d.ring - d.shift
    if network == "wan" and index <= 10:
        if not d.shift and (1 << index) * d.ring_out <= WAN_TABLE_BITS:
            return [("", api.Table(d.shape, index, d.ring_out, max(1, d.tables)))]
        if 1 <= d.shift <= 10 and (2 << index) * d.ring_out + (1 << d.shift) <= WAN_TABLE_BITS:
            return [("", api.FusedTable(d.shape, d.ring, d.shift, d.ring_out, max(1, d.tables)))]
    return _by_digits(d)


def _by_digits(d: Demand) -> list[tuple[str, api.Step]]:
    """Clamp, in stages if the bits above the code do not fit in one top digit; then the table of values, if any."""
    steps: list[tuple[str, api.Step]] = []
    while not d.fits():
        # Clamping to more bits first never changes the final clamp, and what is left has a narrow ring.
        wider = d.ring - d.shift - d.headroom
        steps.append((f"clamp{len(steps)}", api.Clamp(d.shape, d.ring, d.shift, wider, 0, wider + 1)))
        d = replace(d, ring=wider + 1, shift=0)
    if not d.tables:
        return [*steps, ("", api.Clamp(d.shape, d.ring, d.shift, d.bits, d.low, d.ring_out))]
    steps.append(("codes", api.Clamp(d.shape, d.ring, d.shift, d.bits, 0, d.bits)))
    return [*steps, ("", api.Table(d.shape, d.bits, d.ring_out, d.tables))]
