"""What a step costs, declared by the step itself and checked against the wire.

An *exchange* is one simultaneous message each way between the compute parties (half a round trip). Bits are counted per
sender, as the payload bytes that cross the wire times eight; the few bits that fill up the last byte of a message are
part of the declaration, so declared and measured figures are equal, not close.
"""

from __future__ import annotations

from dataclasses import dataclass

from protocols.planes import width
from protocols.ring import packed_bytes
from protocols.rounds import PartyId


@dataclass(frozen=True)
class Cost:
    """Communication of one step or of a whole program.

    exchanges: sequential exchanges online. online_bits: payload bits that each compute party sends to the other, or,
    where they differ, that the busier one sends, which is P1. dealt_bits: payload bits that the dealer sends to P1
    beforehand (P0 expands a key and receives nothing). one_way_bits: those of the online bits that P1 sends and P0
    does not.
    """

    exchanges: int = 0
    online_bits: int = 0
    dealt_bits: int = 0
    one_way_bits: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.exchanges + other.exchanges,
            self.online_bits + other.online_bits,
            self.dealt_bits + other.dealt_bits,
            self.one_way_bits + other.one_way_bits,
        )

    @property
    def online_bytes(self) -> int:
        """Payload bytes that each compute party, or the busier one, sends online."""
        return self.online_bits // 8

    def sent_bytes(self, party: PartyId) -> int:
        """Payload bytes that this compute party sends to the other online."""
        return (self.online_bits - (self.one_way_bits if party is PartyId.P0 else 0)) // 8

    @property
    def dealt_bytes(self) -> int:
        """Payload bytes from the dealer to P1."""
        return self.dealt_bits // 8


def message(count: int, bits: int) -> Cost:
    """One exchange in which each party sends ``count`` values of ``bits`` bits."""
    return Cost(exchanges=1, online_bits=8 * packed_bytes(count, bits))


def plane_message(n: int, count: int, bits: int) -> Cost:
    """One exchange of ``bits`` planes of ``count`` values for each of n items; each item's plane fills whole bytes."""
    return Cost(exchanges=1, online_bits=8 * n * bits * width(count))


def one_way(count: int, bits: int) -> Cost:
    """One exchange in which P1 sends ``count`` values of ``bits`` bits and P0 only listens."""
    size = 8 * packed_bytes(count, bits)
    return Cost(exchanges=1, online_bits=size, one_way_bits=size)
