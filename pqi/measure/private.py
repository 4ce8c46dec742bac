"""The private answers: every role a process of its own, over TLS, asked again and again; and whether they hold."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pqi.program
from pqi.measure.layers import Layer, Offline, layers, measure_offline
from pqi.measure.plain import Beside, Plain
from pqi.measure.spread import Spread
from pqi.measure.subject import Subject
from pqi.measure.supply import Reins
from pqi.measure.truth import Reply, Served, Truth, compare
from pqi.program.circuits import Model
from pqi.program.keyed import KeyedProgram, compile_keyed
from pqi.session.ledger import OwnLedger, peak_rss_bytes, peak_rss_of
from pqi.session.local import LocalService, local
from pqi.session.roles import CLIENT, DEALER
from protocols import KEYED
from protocols.api import SecurityStatement

_WARMING = 2  # batches: the first makes connections, the second meets caches as they will be
_STEP_SECONDS = 60.0  # one message of a peer; a large layer under a shaped link takes its time
_LONGEST_DEALING = 3.0  # seconds; a server waits twice as long for the dealer before it gives up


@dataclass(frozen=True)
class Asked:
    """What is asked of every protocol. queries: how many batches. network: what programs on shares are planned for.

    link: the network to emulate between roles (None: loopback as it is). weights: who may know them, on shares.
    on_demand: batches of which nothing is dealt before they are asked. profile: measure dealing and preparing layer by
    layer, too.
    """

    batch: int
    queries: int
    network: str = "lan"
    link: str | None = None
    weights: str | Mapping[str, str] = "shared"
    on_demand: int = 3
    profile: bool = False

    @property
    def samples(self) -> int:
        """Inputs in all, but for those of which nothing is dealt ahead."""
        return self.batch * self.queries


@dataclass(frozen=True)
class Figures:
    """What one batch costs: seconds by who spends them, bytes by where they go.

    seconds: whole (the client's clock), offline and server (the slower server's), encrypt and decrypt (the client under
    a key; encrypting includes nothing of the keys), deal (with the pool empty, from the dealer's start to the arrival
    at server B) and total (the client's clock where nothing is kept ahead: its question makes server B order exactly
    this batch, and nothing else is dealt meanwhile; offline and online). keys_*: once a session.
    offline_bytes: dealt, by role; online_bytes: between the servers, by role; question_bytes, answer_bytes: from and to
    the client, all servers.
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
class Run:
    """One protocol, one batch size. model: which of the subject's models was computed. facts: of the keyed plan.

    plain: the same batch without privacy, measured in between. layers, offline: where the time goes; () and None where
    it was not asked, or where there are no layers.
    """

    protocol: str
    model: str
    asked: Asked
    figures: Figures
    truth: Truth
    roles: tuple[str, ...]
    peak_rss_mb: Mapping[str, float]
    security: SecurityStatement
    facts: Mapping[str, str]
    plain: Plain | None = None
    layers: tuple[Layer, ...] = ()
    offline: Offline | None = None


@dataclass
class _Replies:
    """Predictions. timed: those asked with a full pool and a dealer at rest, which figures are of; on_demand: those
    of which nothing was dealt before, by another deployment."""

    subject: Subject
    service: LocalService
    warming: list[Reply] = field(default_factory=list)
    timed: list[Reply] = field(default_factory=list)
    on_demand: list[Reply] = field(default_factory=list)
    deal: list[float] = field(default_factory=list)

    def ask(self, at: int, n: int) -> Reply:
        """One prediction of n inputs on the client's clock."""
        sizes: list[int] = []
        x = self.subject.inputs(n, at)
        started = time.perf_counter()
        hear = lambda done, _: sizes.append(done - sum(sizes))  # noqa: E731
        answer = self.service.predict(x, on_saturation="silent", progress=hear)
        return Reply(answer, time.perf_counter() - started, tuple(sizes), at)

    @property
    def every(self) -> list[Reply]:
        """All of them: none may be wrong."""
        return [*self.warming, *self.timed, *self.on_demand]


def run(subject: Subject, protocol: str, asked: Asked) -> Run:
    """Start every role, ask, compare, end. Raises what compiling raises: ProgramError, MeasureError."""
    model = subject.model(protocol)
    program = compiled(model, protocol, asked)
    kind = "polynomial" if model is subject.polynomial else "integer"
    beside = Beside(subject, asked.batch, (kind,))
    how: dict[str, Any] = {} if isinstance(program, KeyedProgram) else {"weights": asked.weights}
    how |= {"network": asked.network, "link": asked.link}
    options = _options(program, asked.batch)
    with local(model, protocol, server_options=options, **how) as service:
        replies = _Replies(subject, service)
        with Reins(service, asked.batch) as dealer:
            _ask_all(replies, dealer, beside, asked)
        memory = _memory(service, replies.timed[-1])
    if asked.on_demand and replies.deal and max(replies.deal) < _LONGEST_DEALING:
        with local(model, protocol, server_options=options | {"pool_items": 0}, **how) as service:
            replies.service = service
            _ask_on_demand(replies, asked)
    offline, by_layer = _offline(model, program, asked)
    ledgers = [reply.answer.ledger for reply in replies.timed]
    whole = isinstance(program, pqi.program.Program) and all(ledger.queries == 1 for ledger in ledgers)
    return Run(
        protocol,
        kind,
        asked,
        _figures(replies),
        compare(subject, model, program, replies.every),
        tuple(memory),
        memory,
        program.security,
        program.plan.facts() if isinstance(program, KeyedProgram) else {},
        beside.plain(),
        layers(program, asked.batch, ledgers, by_layer) if whole else (),  # type: ignore[arg-type]
        offline,
    )


def compiled(model: Model, protocol: str, asked: Asked) -> Served:
    """The program that the servers will run."""
    if protocol in KEYED:
        return compile_keyed(model, protocol)
    return pqi.program.compile(model, protocol, asked.network, weights=asked.weights)  # type: ignore[arg-type]


def _options(program: Served, batch: int) -> dict[str, int | float]:
    """Of the servers: a batch is one query, and the pool holds exactly one."""
    options: dict[str, int | float] = {"max_batch": batch}
    if not isinstance(program, KeyedProgram):
        room = 2 + (program.record_bytes * batch >> 20)
        options |= {"pool_items": batch, "pool_mib": room, "batch_mib": room, "timeout": _STEP_SECONDS}
    return options


def _ask_all(replies: _Replies, dealer: Reins, beside: Beside, asked: Asked) -> None:
    """Some batches to make keys and connections and to warm up; then as asked, what is plain in between."""
    for _ in range(_WARMING):
        dealer.refill()
        replies.warming.append(replies.ask(0, asked.batch))
    for at in range(0, asked.samples, asked.batch):
        dealt = dealer.refill()
        if dealt is not None:
            replies.deal.append(dealt)
        replies.timed.append(replies.ask(at, asked.batch))
        beside.sample()  # while the dealer is held still


def _ask_on_demand(replies: _Replies, asked: Asked) -> None:
    """Some batches to warm up, then those that are timed from an empty pool to the answer."""
    for _ in range(_WARMING):
        replies.warming.append(replies.ask(0, asked.batch))
    for at in range(asked.on_demand):
        replies.on_demand.append(replies.ask(at % asked.queries * asked.batch, asked.batch))


def _offline(model: Model, program: Served, asked: Asked) -> tuple[Offline | None, Mapping[str, Offline]]:
    if not asked.profile or isinstance(program, KeyedProgram) or not program.needs_dealer:
        return None, {}
    return measure_offline(model, program, asked.batch)  # type: ignore[arg-type]


def _figures(replies: _Replies) -> Figures:
    ledgers = [reply.answer.ledger for reply in replies.timed]
    seconds = {
        "whole": Spread.of([reply.seconds for reply in replies.timed]),
        "offline": Spread.of([ledger.offline_seconds for ledger in ledgers]),
        "server": Spread.of([ledger.online_seconds for ledger in ledgers]),
    }
    own = [ledger.own for ledger in ledgers if ledger.own is not None]
    if own:
        seconds["encrypt"] = Spread.of([each.encrypt_seconds for each in own])
        seconds["decrypt"] = Spread.of([each.decrypt_seconds for each in own])
    if replies.deal:
        seconds["deal"] = Spread.of(replies.deal)
    if replies.on_demand:
        seconds["total"] = Spread.of([reply.seconds for reply in replies.on_demand])
    keys, last = replies.warming[0].answer.ledger.own or OwnLedger(), ledgers[-1]
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


def _memory(service: LocalService, reply: Reply) -> dict[str, float]:
    """Peak memory of every role, MB: servers report their own, the system knows the dealer's; the client is here."""
    found = {role: party.peak_rss_bytes / 1e6 for role, party in reply.answer.ledger.parties.items()}
    if DEALER in service.processes:
        dealer = peak_rss_of(service.processes[DEALER].pid)
        found |= {} if dealer is None else {DEALER: dealer / 1e6}
    return {**found, CLIENT: peak_rss_bytes() / 1e6}
