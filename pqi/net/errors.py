"""What can go wrong between two processes; every error names the peer and the cause, none holds a payload.

::

    NetError
    ├── CannotConnect       nothing listens there, or the network does not lead there
    ├── ConnectionLost      the connection broke or was closed by the peer
    ├── Timeout             the peer is there, or seems to be, but was silent too long
    ├── WrongPeer           the certificate is missing, foreign, or of another role
    ├── HandshakeMismatch   both sides are genuine, but hold different programs, deployments or versions
    ├── PeerReported        the peer itself stated why it stops
    └── BadFrame            bytes that are not this protocol
        ├── FrameTooLarge
        └── VersionMismatch
"""

from __future__ import annotations

MAX_CAUSE = 600


class NetError(Exception):
    """Root of every error of the network layer."""


class CannotConnect(NetError):
    """No connection could be made; ``reason`` is the system's word for it."""

    def __init__(self, peer: str, address: str, reason: str) -> None:
        super().__init__(f"cannot connect to {peer} at {address}: {reason}. Is {peer} running, at this address?")
        self.peer, self.address, self.reason = peer, address, reason


class CannotListen(NetError):
    """No port to serve at; ``reason`` is the system's word for it."""

    def __init__(self, address: str, reason: str) -> None:
        super().__init__(
            f"cannot listen at {address}: {reason}. Stop the process that holds it, or name another address"
        )
        self.address, self.reason = address, reason


class ConnectionLost(NetError):
    """The connection to ``peer`` broke while this side was at ``during``."""

    def __init__(self, peer: str, during: str, reason: str = "closed by the other side") -> None:
        super().__init__(f"connection to {peer} lost during {during}: {reason}")
        self.peer, self.during, self.reason = peer, during, reason


class Timeout(NetError):
    """``peer`` did not deliver what this side waited for within ``seconds``."""

    def __init__(self, peer: str, waiting_for: str, seconds: float) -> None:
        super().__init__(f"timed out after {seconds:g} s waiting for {peer}: {waiting_for}")
        self.peer, self.waiting_for, self.seconds = peer, waiting_for, seconds


class WrongPeer(NetError):
    """Whoever is at the other end is not who must be there."""


class HandshakeMismatch(NetError):
    """Two genuine parties that do not belong together; found before any secret moved."""

    def __init__(self, peer: str, field: str, mine: object, theirs: object) -> None:
        super().__init__(
            f"{peer} differs in {field}: this side has {mine!r}, {peer} has {printable(str(theirs), 80)!r}. "
            "Every role must run a bundle of one and the same split."
        )
        self.peer, self.field, self.mine, self.theirs = peer, field, mine, theirs


class PeerReported(NetError):
    """The peer sent an error instead of the message awaited; its words are quoted, not trusted."""

    def __init__(self, peer: str, cause: str) -> None:
        self.peer, self.cause = peer, printable(cause)
        super().__init__(f"{peer} reports: {self.cause}")


class BadFrame(NetError):
    """Bytes or a message that this protocol does not allow at this place."""

    def __init__(self, peer: str, what: str) -> None:
        super().__init__(f"{peer} sent something that is not allowed here: {what}")
        self.peer, self.what = peer, what


class FrameTooLarge(BadFrame):
    """A frame over the limit of its type on this link; refused from its header, before memory is taken."""

    def __init__(self, peer: str, kind: str, length: int, limit: int) -> None:
        super().__init__(peer, f"a {kind} frame of {length} bytes; the limit on this link is {limit}")
        self.length, self.limit = length, limit


class VersionMismatch(BadFrame):
    """A frame of another version of the wire format."""

    def __init__(self, peer: str, mine: int, theirs: int) -> None:
        super().__init__(peer, f"a frame of wire version {theirs}; this side speaks {mine}. Install the same release")
        self.mine, self.theirs = mine, theirs


def printable(text: str, limit: int = MAX_CAUSE) -> str:
    """A peer's words made safe for a log line: printable, one line, bounded."""
    clean = "".join(c if c.isprintable() else "?" for c in text[:limit])
    return clean if len(text) <= limit else clean + "..."
