"""The only words in which parties talk.

A party is a plain generator. It yields a :class:`Round`: what it sends to whom, and from whom it waits for one
message. It is resumed with the messages it waited for. It never sees a socket, so the same function runs in the
one-thread simulator, over TLS, and in a test that tampers with a single byte.

Two laws:

1. A driver sends *while* it receives. Two parties that first send and then receive deadlock as soon as their
   messages outgrow the buffers between them.
2. What a party sends may depend on its inputs; *whether*, *when*, *to whom* and *how long* may not.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Round:
    """One exchange as one party sees it.

    send: payload for each receiving party (at most one message each).
    expect: the parties from which exactly one message is awaited before the generator goes on.
    label: the step this round belongs to, for ledgers and error messages; public.
    """

    send: Mapping[PartyId, bytes]
    expect: tuple[PartyId, ...]
    label: str = ""

    def __repr__(self) -> str:
        # Payloads may be shares: lengths only.
        sizes = {str(p): len(m) for p, m in self.send.items()}
        return f"Round({self.label!r}, sends {sizes} bytes, expects {[str(p) for p in self.expect]})"


T = TypeVar("T")
Received: TypeAlias = Mapping[PartyId, bytes]
Steps: TypeAlias = Generator[Round, Received, T]
