"""The only words in which parties talk.

A party is a plain generator. It yields a :class:`Round`: what it sends to whom, and from whom it waits for one
message. It is resumed with the messages it waited for. It never sees a socket, so the same function runs in the
one-thread simulator, over TLS, and in a test that tampers with a single byte.

Two laws:

1. A driver sends *while* it receives. Two parties that first send and then receive deadlock as soon as their
   messages outgrow the buffers between them.
2. What a party sends may depend on its inputs; *whether*, *when*, *to whom* and *how long* may not.

Rounds of independent steps can be joined: the joined round sends the messages of its parts one after the other, and
each part's answer is cut out again by its length, which law 2 makes public.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TypeAlias, TypeVar


class PartyId(IntEnum):
    """Who can speak in a protocol: two compute parties, the dealer of offline material, the owner of the input."""

    P0 = 0
    P1 = 1
    DEALER = 2
    CLIENT = 3

    def __str__(self) -> str:
        return self.name


# Bytes that lie in one piece; where they were received, the receiver's own and read-only.
Message: TypeAlias = bytes | bytearray | memoryview


@dataclass(frozen=True)
class Round:
    """One exchange as one party sees it.

    send: payload for each receiving party (at most one message each).
    expect: the parties from which exactly one message is awaited before the generator goes on.
    label: the step this round belongs to, for ledgers and error messages; public.
    sizes: bytes awaited from a party, where that is not what is sent to it.
    parts: the rounds that this one joins; empty for a round of one step.
    """

    send: Mapping[PartyId, Message]
    expect: tuple[PartyId, ...]
    label: str = ""
    sizes: Mapping[PartyId, int] = field(default_factory=dict)
    parts: tuple[Round, ...] = ()

    def awaited(self, party: PartyId) -> int | None:
        """Bytes that ``party`` is to send: as declared, or else as many as it is sent; None where neither tells."""
        if party in self.sizes:
            return self.sizes[party]
        return len(self.send[party]) if party in self.send else None

    def __repr__(self) -> str:
        # Payloads may be shares: lengths only.
        sizes = {str(p): len(m) for p, m in self.send.items()}
        return f"Round({self.label!r}, sends {sizes} bytes, expects {[str(p) for p in self.expect]})"


T = TypeVar("T")
Received: TypeAlias = Mapping[PartyId, Message]
Steps: TypeAlias = Generator[Round, Received, T]
