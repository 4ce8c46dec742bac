"""The private answers: every role a process of its own, over TLS, asked again and again; and whether they hold."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

import pqi.program
from pqi.measure.plain import decisions, right
from pqi.measure.spread import Spread
from pqi.measure.subject import Subject
from pqi.program.circuits import Model
from pqi.program.keyed import KeyedProgram, compile_keyed
from pqi.session.client import Answer
from pqi.session.ledger import OwnLedger, peak_rss_bytes, peak_rss_of
from pqi.session.local import LocalService, local
from pqi.session.roles import CLIENT, DEALER
from protocols import KEYED
from protocols.api import SecurityStatement
from protocols.cost import Cost

_POOL = 256


@dataclass(frozen=True)
class Asked:
    """What is asked of every protocol. queries: how many batches. network: what programs on shares are planned for."""

    batch: int
    queries: int
    network: str = "lan"

    @property
    def samples(self) -> int:
        """Inputs in all."""
        return self.batch * self.queries


@dataclass(frozen=True)
class Figures:
    """What one batch costs: seconds by who spends them, bytes by where they go.

    seconds: whole (the client's clock), offline and server (the slower server's), encrypt and decrypt (the client under
    a key; encrypting includes nothing of the keys). keys_*: once a session. offline_bytes: dealt, by role;
    online_bytes: between the servers, by role; question_bytes, answer_bytes: from and to the client, all servers.
    """

    seconds: Mapping[str, Spread]
    keys_seconds: float
    keys_bytes: int
    question_bytes: int
    answer_bytes: int
    offline_bytes: Mapping[str, int]
    online_bytes: Mapping[str, int]
    exchanges: int
    queries: int


@dataclass(frozen=True)
class Truth:
    """Whether the private answers are what they should be, over all samples.

    equal: share of answers of which every integer is the reference's; None under an approximate protocol, for which no
    value may be further from the reference's than error_bound. as_declared: whether every byte was declared beforehand.
    """

    equal: float | None
    largest_error: float
    error_bound: float
    same_decisions: float
    accuracy: float | None
    as_declared: bool
    noise_left: float | None

    @property
    def held(self) -> bool:
        """Exact where that is promised, within the bound where not, every byte declared."""
        exact = self.largest_error <= self.error_bound if self.equal is None else self.equal == 1.0
        return exact and self.as_declared


@dataclass(frozen=True)
class Run:
    """One protocol, one batch size. model: which of the subject's models was computed. facts: of the keyed plan."""

    protocol: str
    model: str
    asked: Asked
    figures: Figures
    truth: Truth
    roles: tuple[str, ...]
    peak_rss_mb: Mapping[str, float]
    security: SecurityStatement
    facts: Mapping[str, str]


@dataclass(frozen=True)
class _Reply:
    """One prediction: the answer, the client's seconds, and the sizes of the queries it went as."""

    answer: Answer
    seconds: float
    sizes: tuple[int, ...]


Served: TypeAlias = pqi.program.Program | KeyedProgram


def run(subject: Subject, protocol: str, asked: Asked) -> Run:
    """Start every role, ask, compare, end. Raises what compiling raises: ProgramError, MeasureError."""
    model = subject.model(protocol)
    program = _program(model, protocol, asked.network)
    x = subject.inputs(asked.samples)
    options: dict[str, int | float] = {"max_batch": asked.batch}
    if protocol not in KEYED:
        options["pool_items"] = max(_POOL, 2 * asked.batch)
    with local(model, protocol, network=asked.network, server_options=options) as service:
        first = _ask(service, x[: asked.batch])  # makes keys and connections, warms everything up
        replies = []
        for at in range(0, asked.samples, asked.batch):
            service.await_items(asked.batch)  # dealing ahead is nobody's waiting
            replies.append(_ask(service, x[at : at + asked.batch]))
        memory = _memory(service, replies[-1].answer)
    facts = program.plan.facts() if isinstance(program, KeyedProgram) else {}
    kind = "polynomial" if model is subject.polynomial else "integer"
    figures = _figures(first, replies)
    truth = _truth(subject, model, program, np.concatenate([x[: asked.batch], x]), [first, *replies])
    return Run(protocol, kind, asked, figures, truth, tuple(memory), memory, program.security, facts)


def _program(model: Model, protocol: str, network: str) -> Served:
    if protocol in KEYED:
        return compile_keyed(model, protocol)
    return pqi.program.compile(model, protocol, network)  # type: ignore[arg-type]


def _ask(service: LocalService, x: NDArray[Any]) -> _Reply:
    sizes: list[int] = []
    started = time.perf_counter()
    answer = service.predict(x, on_saturation="silent", progress=lambda done, _: sizes.append(done - sum(sizes)))
    return _Reply(answer, time.perf_counter() - started, tuple(sizes))


def _figures(first: _Reply, replies: Sequence[_Reply]) -> Figures:
    ledgers = [reply.answer.ledger for reply in replies]
    seconds = {
        "whole": Spread.of([reply.seconds for reply in replies]),
        "offline": Spread.of([ledger.offline_seconds for ledger in ledgers]),
        "server": Spread.of([ledger.online_seconds for ledger in ledgers]),
    }
    own = [ledger.own for ledger in ledgers if ledger.own is not None]
    if own:
        seconds["encrypt"] = Spread.of([each.encrypt_seconds for each in own])
        seconds["decrypt"] = Spread.of([each.decrypt_seconds for each in own])
    keys, last = first.answer.ledger.own or OwnLedger(), ledgers[-1]
    return Figures(
        seconds=seconds,
        keys_seconds=keys.key_seconds,
        keys_bytes=keys.key_bytes,
        question_bytes=sum(party.client_received for party in last.parties.values()),
        answer_bytes=sum(party.client_sent for party in last.parties.values()),
        offline_bytes=last.offline_bytes,
        online_bytes=last.online_bytes,
        exchanges=last.exchanges,
        queries=last.queries,
    )


def _truth(subject: Subject, model: Model, program: Served, x: NDArray[Any], replies: Sequence[_Reply]) -> Truth:
    """Compare every answer, the warming one too, with the integer model's to the same inputs x."""
    answers = [reply.answer for reply in replies]
    values, expected = np.concatenate([answer.values for answer in answers]), model.predict(x, "silent")
    known = [own.noise_left for answer in answers if (own := answer.ledger.own) and own.noise_left is not None]
    labels = None if subject.y is None else np.take(subject.y, range(len(x)), mode="wrap")
    again = len(answers[0].values)
    return Truth(
        equal=_equal(answers, model.integers(model.encode(x, "silent"))),
        largest_error=float(np.abs(values - expected).max()),
        error_bound=max(answer.error_bound for answer in answers),
        same_decisions=float((decisions(values) == decisions(expected)).mean()),
        accuracy=right(values[again:], labels),
        as_declared=all(_as_declared(program, reply, k == 0) for k, reply in enumerate(replies)),
        noise_left=min(known) if known else None,
    )


def _equal(answers: Sequence[Answer], reference: Any) -> float | None:
    """The share of answers whose every integer is the reference's; None where there are no integers."""
    got = [np.asarray(answer.integers) for answer in answers if answer.integers is not None]
    if len(got) < len(answers):
        return None
    flat = [part.reshape(len(reference), -1) for part in (np.concatenate(got), np.asarray(reference))]
    return float((flat[0] == flat[1]).all(1).mean())


def _as_declared(program: Served, reply: _Reply, first: bool) -> bool:
    """Whether the bytes of one prediction are, to the byte, what the program declares for its queries."""
    ledger = reply.answer.ledger
    if isinstance(program, KeyedProgram):
        (party,) = ledger.parties.values()
        costs, own = [program.cost(n) for n in reply.sizes], ledger.own or OwnLedger()
        return (
            party.client_received == sum(cost.question for cost in costs)
            and party.client_sent == sum(cost.answer for cost in costs)
            and own.key_bytes == (costs[0].keys if first else 0)
        )
    total = sum((program.cost(n) for n in reply.sizes), Cost())
    sent, dealt = set(ledger.online_bytes.values()), sum(ledger.offline_bytes.values())
    return (ledger.exchanges, sent, dealt) == (total.exchanges, {total.online_bytes}, total.dealt_bytes)


def _memory(service: LocalService, answer: Answer) -> dict[str, float]:
    """Peak memory of every role, MB: servers report their own, the system knows the dealer's; the client is here."""
    found = {role: party.peak_rss_bytes / 1e6 for role, party in answer.ledger.parties.items()}
    if DEALER in service.processes:
        dealer = peak_rss_of(service.processes[DEALER].pid)
        found |= {} if dealer is None else {DEALER: dealer / 1e6}
    return {**found, CLIENT: peak_rss_bytes() / 1e6}
