"""A whole aggregation in one process: clients, helpers and server, one after another, without a socket.

This is the plainest driver there is: what it does with messages, every driver does. Tests and simulations use it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from protocols.aggregation import Ask, Party, Server, Sum, SumClient, SumHelper, SumPlan, SumProtocol
from protocols.errors import Misuse

# (stage, party, "ask" or "answer", payload) -> the payload that arrives, or None: nothing does.
Tamper: TypeAlias = Callable[[str, Party, str, bytes], "bytes | None"]


@dataclass
class Traffic:
    """What crossed the wire. sent, received: payload bytes of each client and helper. stages: as the server asked."""

    sent: Counter[Party] = field(default_factory=Counter)
    received: Counter[Party] = field(default_factory=Counter)
    stages: list[str] = field(default_factory=list)


def sum_here(
    protocol: SumProtocol,
    plan: SumPlan,
    vectors: Sequence[np.ndarray] | Mapping[int, np.ndarray],
    missing: Mapping[str, Collection[Party]] | None = None,
    tamper: Tamper | None = None,
    record: Traffic | None = None,
    *,
    restoring: bool = False,
) -> Sum:
    """The server's sum of ``vectors`` (client i holds ``vectors[i]``), by all parties' code in this process.

    missing: stage -> the clients and helpers that are gone from that stage on. tamper: sees every message, and says
    what arrives in its place. record: counts bytes. restoring: every party is put away and restored after each answer.
    Raises what a party raises, :class:`BelowThreshold` among it.
    """
    if len(vectors) != plan.clients:
        raise Misuse(f"{len(vectors)} vectors for a plan of {plan.clients} clients; each has one")
    parties = _Parties(protocol, plan, vectors, restoring)
    gone: set[Party] = set()
    log, server = record if record is not None else Traffic(), protocol.server(plan)
    answers: dict[Party, bytes] | None = None
    while True:
        ask = _next(server, answers)
        if isinstance(ask, Sum):
            return ask
        log.stages.append(ask.stage)
        gone.update((missing or {}).get(ask.stage, ()))
        answers = {}
        for party, payload in ask.messages.items():
            if party in gone:
                continue
            message = payload if tamper is None else tamper(ask.stage, party, "ask", payload)
            if message is None:
                continue
            log.received[party] += len(message)
            answer: bytes | None = parties.answer(party, ask, message)
            if tamper is not None and answer is not None:
                answer = tamper(ask.stage, party, "answer", answer)
            if answer is not None:
                log.sent[party] += len(answer)
                answers[party] = answer


def _next(server: Server, answers: dict[Party, bytes] | None) -> Ask | Sum:
    """The server's next question, or its result. None starts the generator."""
    try:
        return next(server) if answers is None else server.send(answers)
    except StopIteration as end:
        result: Sum = end.value
        return result


class _Parties:
    """Every client and every helper of one run."""

    def __init__(
        self,
        protocol: SumProtocol,
        plan: SumPlan,
        vectors: Sequence[np.ndarray] | Mapping[int, np.ndarray],
        restoring: bool,
    ) -> None:
        self._protocol, self._plan, self._vectors, self._restoring = protocol, plan, vectors, restoring
        self._clients: dict[int, SumClient] = {i: protocol.client(plan, i) for i in range(plan.clients)}
        self._helpers: dict[str, SumHelper] = {name: protocol.helper(plan, name) for name in protocol.helpers(plan)}

    def __repr__(self) -> str:
        return f"<{len(self._clients)} clients, {len(self._helpers)} helpers>"

    def answer(self, party: Party, ask: Ask, message: bytes) -> bytes:
        """One party's answer."""
        if isinstance(party, str):
            helper = self._helpers[party]
            answer = helper.answer(ask.stage, message)
            if self._restoring:
                self._helpers[party] = self._protocol.restore_helper(self._plan, party, helper.expose_state())
            return answer
        client = self._clients[party]
        if ask.upload:
            answer = client.upload(ask.stage, message, self._vectors[party])
        else:
            answer = client.answer(ask.stage, message)
        if self._restoring:
            self._clients[party] = self._protocol.restore_client(self._plan, party, client.expose_state())
        return answer
