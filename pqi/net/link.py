"""Emulated links: a real network's latency and bandwidth between roles that live on one machine.

A role that sends over an emulated link writes in front of each frame the moment at which the frame's last byte would
be there: every direction of a connection is a line that carries ``bits_per_second``, one frame after the other, and
whatever enters it comes out half a round trip later. The receiving role takes the frame in as usual and hands it out
at that moment. Both read the same clock of the one machine, nobody stands between them, and neither the processor nor
the TLS below is slowed: what a network costs is added to what the work costs, and overlaps with it, as on a network.

What is not emulated: loss, jitter, and the slow start of a connection that has been idle (it counts as warm).
"""

from __future__ import annotations

import math
import struct
import time
from dataclasses import dataclass

STAMP = struct.Struct("!Q")  # in front of a frame's header: CLOCK_MONOTONIC in nanoseconds
_NS = 1_000_000_000
# Bytes on an Ethernet line for 1448 bytes of a TCP stream: headers of Ethernet, IP and TCP with time stamps.
_FRAMING = 1514 / 1448


@dataclass(frozen=True)
class Link:
    """A network between two roles.

    rtt_seconds: the round trip, which ping shows; a message takes half of it, and so does one simultaneous exchange,
    in which both sides send and then wait. bits_per_second: of the line, headers included, in each direction of each
    connection; with one client, a pair of roles has one connection. math.inf: as fast as this machine.
    """

    name: str
    rtt_seconds: float
    bits_per_second: float

    def __post_init__(self) -> None:
        if not self.name or not self.name.isprintable() or "," in self.name:
            raise ValueError(f"name {self.name!r} of a link must be printable and without a comma")
        if not 0 <= self.rtt_seconds <= 10:
            raise ValueError(f"rtt_seconds of link {self.name!r} is {self.rtt_seconds}; it must lie in 0 .. 10")
        if not self.bits_per_second >= 1e3:
            raise ValueError(f"bits_per_second of link {self.name!r} is {self.bits_per_second}; at least 1000 it is")

    @property
    def emulated(self) -> bool:
        """False for a link that changes nothing."""
        return self.rtt_seconds > 0 or math.isfinite(self.bits_per_second)

    def seconds(self, payload: int) -> float:
        """What one exchange of ``payload`` bytes each way takes at least: half a round trip, and the line's time."""
        return self.rtt_seconds / 2 + self.line_seconds(payload)

    def line_seconds(self, count: int) -> float:
        """How long ``count`` bytes of a TCP stream occupy the line."""
        return 8 * count * _FRAMING / self.bits_per_second

    def connect(self) -> None:
        """Take the time of two round trips: TCP's, then TLS's."""
        if self.rtt_seconds:
            time.sleep(2 * self.rtt_seconds)

    def __str__(self) -> str:
        """The text that :meth:`parse` reads."""
        return f"{self.name},{self.rtt_seconds!r},{self.bits_per_second!r}"

    @classmethod
    def parse(cls, given: str | Link | None) -> Link:
        """A link from "lan", "wan", "none", "NAME,ROUND_TRIP_SECONDS,BITS_PER_SECOND", a link, or None (none).

        Raises ValueError that shows the text.
        """
        if given is None or isinstance(given, Link):
            return given or NONE
        known = {link.name: link for link in (LAN, WAN, NONE)}
        if given in known:
            return known[given]
        try:
            name, rtt, rate = given.split(",")
            numbers = float(rtt), float(rate)
        except ValueError:
            raise ValueError(
                f"link {given[:80]!r} is none of {', '.join(known)} and not NAME,ROUND_TRIP_SECONDS,BITS_PER_SECOND"
            ) from None
        return cls(name, *numbers)


NONE = Link("none", 0.0, math.inf)
LAN = Link("lan", 1e-3, 1e9)
WAN = Link("wan", 40e-3, 100e6)


class Line:
    """The sending end of one direction of a connection over an emulated link."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._delay = round(link.rtt_seconds / 2 * _NS)
        self._free = 0  # when the line has carried what was sent so far

    def stamp(self, count: int) -> bytes:
        """For ``count`` bytes that leave now: when the last of them is at the other end."""
        self._free = max(self._free, time.monotonic_ns()) + math.ceil(self._link.line_seconds(count) * _NS)
        return STAMP.pack(self._free + self._delay)
