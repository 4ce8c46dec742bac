"""Eight bytes behind every message of a sum, by which a late, misrouted or foreign one is recognised.

A hash of session, stage, party and direction. It protects from mistakes; against forgers there is the channel.
"""

from __future__ import annotations

import hashlib

from protocols.aggregation import Party, SumPlan
from protocols.errors import PeerMisbehaved

LABEL_BYTES = 8
ASK, ANSWER = "ask", "answer"


def label(plan: SumPlan, stage: str, party: Party, direction: str) -> bytes:
    """The last bytes of a message from the server (``ask``) or to it (``answer``)."""
    return hashlib.sha256(b"\0".join((plan.session, f"{stage} {party} {direction}".encode()))).digest()[:LABEL_BYTES]


def labelled(plan: SumPlan, stage: str, party: Party, direction: str, *parts: bytes | memoryview) -> bytes:
    """A message of these parts, in one piece."""
    return b"".join((*parts, label(plan, stage, party, direction)))


def body(plan: SumPlan, stage: str, party: Party, direction: str, message: bytes) -> memoryview:
    """A message without its label; raises :class:`PeerMisbehaved` if it carries another."""
    view = memoryview(message)
    if bytes(view[-LABEL_BYTES:]) != label(plan, stage, party, direction):
        raise PeerMisbehaved(
            f"stage {str(stage)[:40]!r}: this message ({len(view)} bytes) is not the {direction} of {party!r} in this "
            "stage of this run: it is late, misrouted, truncated or of another session"
        )
    return view[:-LABEL_BYTES]
