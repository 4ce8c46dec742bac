"""All parties in one thread, in lockstep: results and complete transcripts, without a socket."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from protocols.errors import PeerMisbehaved
from protocols.rounds import PartyId, Received, Round, Steps

T = TypeVar("T")


@dataclass
class Transcript(Generic[T]):
    """What a run produced: each party's result, and everything each party received, in order."""

    results: dict[PartyId, T] = field(default_factory=dict)
    received: dict[PartyId, list[tuple[PartyId, bytes]]] = field(default_factory=dict)
    sent_bytes: dict[PartyId, int] = field(default_factory=dict)
    exchanges: dict[PartyId, int] = field(default_factory=dict)


def simulate(parties: Mapping[PartyId, Steps[T]]) -> Transcript[T]:
    """Run every party's generator to its end.

    In each turn all waiting parties have sent; each is resumed as soon as the messages it expects are there. Raises
    :class:`PeerMisbehaved` if a party waits for a message that nobody will send, or if a message is left unread.
    """
    log: Transcript[T] = Transcript()
    boxes: dict[tuple[PartyId, PartyId], list[bytes]] = {}
    waiting: dict[PartyId, Round] = {}
    for p in parties:
        log.received[p], log.sent_bytes[p], log.exchanges[p] = [], 0, 0

    def advance(p: PartyId, answer: Received | None) -> None:
        try:
            step = parties[p].send(answer)  # type: ignore[arg-type]  # None starts a generator
        except StopIteration as end:
            log.results[p] = end.value
            waiting.pop(p, None)
            return
        waiting[p] = step
        log.exchanges[p] += 1
        for to, message in step.send.items():
            boxes.setdefault((p, to), []).append(bytes(message))
            log.sent_bytes[p] += len(message)

    for p in parties:
        advance(p, None)
    while waiting:
        ready = [p for p, r in waiting.items() if all(boxes.get((q, p)) for q in r.expect)]
        if not ready:
            stuck = {str(p): [str(q) for q in r.expect] for p, r in waiting.items()}
            raise PeerMisbehaved(f"no party can go on; each waits for a message that nobody sends: {stuck}")
        for p in ready:
            answer = {q: boxes[(q, p)].pop(0) for q in waiting[p].expect}
            log.received[p].extend(answer.items())
            advance(p, answer)
    left = {f"{p} to {q}": len(m) for (p, q), m in boxes.items() if m}
    if left:
        raise PeerMisbehaved(f"messages were sent that nobody read: {left}")
    return log
