"""The first words on every link: who, which wire version, which deployment, which program. Nothing in them is secret.

The dialling side speaks first, the accepting side always answers, and both compare every field: a party that holds
another split, another model or another release is found by both before any share, key or correction moves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pqi.net.channel import Channel
from pqi.net.errors import BadFrame, HandshakeMismatch
from pqi.net.frames import WIRE_VERSION, take_hex, take_text

SESSION_DIGITS = 32
DIGEST_DIGITS = 64


@dataclass(frozen=True)
class Hello:
    """What one side states about itself.

    deployment: drawn at the split (32 hex digits). digest: of the program (64 hex digits).
    session: the client's random 128-bit session id (32 hex digits), or that of the link (dealer).
    client: fingerprint of the client's certificate as server A sees it (peer links only).
    """

    role: str
    deployment: str
    digest: str
    session: str
    client: str = ""

    def to_message(self) -> dict[str, Any]:
        """As a control message."""
        return {
            "kind": "hello",
            "protocol": WIRE_VERSION,
            "role": self.role,
            "deployment": self.deployment,
            "digest": self.digest,
            "session": self.session,
            "client": self.client,
        }


def greet(channel: Channel, mine: Hello, timeout: float, **facts: str) -> dict[str, Any]:
    """The dialling side: state ``mine``, hear the other side, compare. Returns the other side's message.

    facts: further public words for the acceptor.
    Raises HandshakeMismatch (field and both values), PeerReported, BadFrame, ConnectionLost, Timeout.
    """
    channel.send_control({**mine.to_message(), **facts}, timeout, "the handshake")
    theirs = channel.receive_control(timeout, "its hello", "hello")
    compare(mine, theirs, channel.peer)
    return theirs


def hear(channel: Channel, timeout: float) -> dict[str, Any]:
    """The accepting side, first half: the dialler's hello, its fields well-formed but not yet compared."""
    message = channel.receive_control(timeout, "its hello", "hello")
    take_hex(message, "session", SESSION_DIGITS, channel.peer)
    if client := take_text(message, "client", channel.peer, DIGEST_DIGITS):
        take_hex(message, "client", DIGEST_DIGITS, channel.peer)
        if channel.peer == "client":
            raise BadFrame(channel.peer, f"a client that vouches for a certificate ({client[:8]}...)")
    return message


def answer(channel: Channel, mine: Hello, theirs: Mapping[str, Any], timeout: float, **facts: int) -> None:
    """The accepting side, second half: answer even a stranger's hello, so that both sides see the difference.

    facts: further public numbers for the dialler (limits of this server).
    """
    channel.send_control({**mine.to_message(), **facts}, timeout, "the handshake")
    compare(mine, theirs, channel.peer)


def compare(mine: Hello, theirs: Mapping[str, Any], peer: str) -> None:
    """Raise HandshakeMismatch at the first field in which the two sides differ."""
    expected = {
        "protocol": WIRE_VERSION,
        "role": peer,  # the certificate's word; what the peer says must agree with it
        "deployment": mine.deployment,
        "digest": mine.digest,
        "session": mine.session,
    }
    for field, value in expected.items():
        if theirs.get(field) != value:
            raise HandshakeMismatch(peer, field, value, theirs.get(field))
