"""One client session on a compute server: from the query to the result.

The session's thread speaks with the client and with the other server, and does the work. While it works, another one
gives the client signs of life (:mod:`pqi.session.beats`).

::

    client -> A, B    query: number, n
    B                 takes items [first, first + n) from its pool          (A waits for B's word)
    B                 writes them to its journal, tells A                   (before they come, if they come soon)
    A                 writes them to its journal
    A, B              offline work on the items; answer "ready": epoch, first, n
    client -> A, B    the shares of the input                               (compares both "ready" before)
    A <-> B           the protocol's rounds
    A, B -> client    ledger, share of the result
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from pqi.net.channel import Channel, exchange
from pqi.net.driver import Meter, drive
from pqi.net.errors import ConnectionLost, NetError
from pqi.net.frames import FrameType, encode_control, take_hex, take_int
from pqi.net.listener import describe_unexpected
from pqi.program import PartyRunner
from pqi.session.beats import Beats
from pqi.session.budget import Budget
from pqi.session.errors import QueryRefused, SessionError
from pqi.session.journal import MAX_ITEM, Journal
from pqi.session.ledger import PartyLedger, peak_rss_bytes
from pqi.session.material import EPOCH_DIGITS, EpochKeys
from pqi.session.pool import Pool, Taken
from pqi.session.watch import MemoryWatch
from protocols.errors import ProtocolError
from protocols.rounds import PartyId

log = logging.getLogger("pqi.server")
T = TypeVar("T")
MAX_QUERY = (1 << 53) - 1


@dataclass(frozen=True)
class Patience:
    """Seconds. step: one message of a peer. pool: for the dealer. idle: between queries. beat: signs of life."""

    step: float = 8.0
    pool: float = 6.0
    idle: float = 600.0
    beat: float = 1.0


class Core(Protocol):
    """What a session needs of its server."""

    role: str
    party: PartyId
    runner: PartyRunner
    journal: Journal
    budget: Budget
    watch: MemoryWatch
    keys: EpochKeys
    pool: Pool
    patience: Patience
    max_batch: int
    has_peer: bool

    def open_peer(self, session: str, client: Channel) -> Channel:
        """The channel to the other server for this session."""

    def status(self) -> Mapping[str, Any]:
        """Public state."""


@dataclass(frozen=True)
class Counted:
    """Numbers of the offline part of one query."""

    seconds: float
    wait: float
    received: int


class ClientSession:
    """Serves one client until it leaves or something breaks; a session never outlives an error."""

    def __init__(self, core: Core, channel: Channel, session: str) -> None:
        self._core, self._client, self._session = core, channel, session
        self._peer: Channel | None = None
        self._beats = Beats(channel, core.patience.beat, core.patience.step, self._abandon)
        self._step = "start"
        self._last_query = -1

    def run(self) -> None:
        """Serve queries; on an error tell client and peer the cause, log it, and end."""
        try:
            while self._serve_one():
                pass
        except (NetError, SessionError, ProtocolError) as error:
            self._end(str(error))
        except Exception as error:
            # The message of an unforeseen error may quote a secret: it goes nowhere.
            log.error("%s: session %s: %s", self._core.role, self._session[:8], describe_unexpected(error))
            self._end(f"an internal error of {self._core.role} at {self._step}; its log has the place")
        finally:
            self._beats.close()
            if self._peer is not None:
                self._peer.close()

    def _end(self, cause: str) -> None:
        log.warning("%s: session %s ended: %s", self._core.role, self._session[:8], cause)
        self._client.close_with_cause(cause)
        if self._peer is not None:
            self._peer.close_with_cause(cause)

    def _abandon(self) -> None:
        """Nobody waits for the answer: end the work where it waits for the other server. Any thread."""
        if self._peer is not None:
            self._peer.abort()

    def _serve_one(self) -> bool:
        try:
            message = self._client.receive_control(self._core.patience.idle, "a query", "query", "status")
        except ConnectionLost:
            return False
        if message["kind"] == "status":
            state = {"kind": "status", **self._core.status()}
            self._client.send_control(state, self._core.patience.step, "the status")
            return True
        query = take_int(message, "query", 0, MAX_QUERY, self._client.peer)
        n = take_int(message, "n", 1, MAX_ITEM, self._client.peer)
        if n > self._core.max_batch:
            raise QueryRefused(f"a batch of {n} is over this server's limit of {self._core.max_batch}")
        if query <= self._last_query:
            raise QueryRefused(f"query {query} follows query {self._last_query}; numbers must rise")
        self._core.budget.check(self._client.fingerprint, n)
        self._last_query = query
        self._answer(query, n)
        return True

    def _answer(self, query: int, n: int) -> None:
        step = self._core.patience.step
        taken, prepared, offline = self._with_beats("offline work", lambda: self._prepare(query, n))
        ready = {"kind": "ready", "query": query, "epoch": taken.epoch, "first": taken.first, "n": n}
        self._client.send_control(ready, step, "ready")
        share = self._client.receive_binary(step, f"its input for query {query}")
        meter = Meter()
        started = time.perf_counter()
        result = self._with_beats("online work", lambda: self._online(prepared, share, meter))
        online = time.perf_counter() - started
        ledger = self._ledger(meter, offline, online, len(share), len(result))
        head = {"kind": "result", "query": query, "ledger": ledger.to_json()}
        frames = [
            (self._client, FrameType.CONTROL, encode_control(head)),
            (self._client, FrameType.BINARY, result),
        ]
        exchange(frames, [], step, f"the result of query {query}")
        log.info("%s: session %s query %d: %d items in %.3f s", self._core.role, self._session[:8], query, n, online)

    # ------------------------------------------------------------------ the work

    def _prepare(self, query: int, n: int) -> tuple[Taken, Any, Counted]:
        started = time.perf_counter()
        self._core.watch.before_query()
        taken = self._agree_on_items(query, n)
        agreed = time.perf_counter()
        self._step = "offline work"
        keys = self._core.keys.get(taken.epoch).expose_to_protocol()
        prepared = self._core.runner.prepare(keys, taken.first, n, taken.corrections)
        counted = Counted(time.perf_counter() - agreed, agreed - started, len(taken.corrections))
        return taken, prepared, counted

    def _agree_on_items(self, query: int, n: int) -> Taken:
        """Both servers fix the items of a query and write them down before anything depends on them."""
        core = self._core
        if core.has_peer and self._peer is None:
            self._step = "opening the link between the servers"
            self._peer = core.open_peer(self._session, self._client)
        self._step = "waiting for items"
        if self._peer is not None and core.party is PartyId.P0:
            taken = self._hear_items(self._peer, query, n)
            core.keys.get(taken.epoch)  # known here, or refused before the journal has a row
            core.budget.spend(self._client.fingerprint, n)
            core.journal.use(taken.epoch, taken.first, n, self._session, query)
            return taken

        def claim(epoch: str, first: int) -> None:
            core.budget.spend(self._client.fingerprint, n)
            core.journal.use(epoch, first, n, self._session, query)
            if self._peer is not None:
                word = {"kind": "use", "query": query, "epoch": epoch, "first": first, "n": n}
                self._peer.send_control(word, core.patience.step, "the items of a query")

        taken = core.pool.take(n, core.patience.pool, claim)
        if not taken.claimed:
            claim(taken.epoch, taken.first)
        return taken

    def _hear_items(self, peer: Channel, query: int, n: int) -> Taken:
        patience = self._core.patience.pool + self._core.patience.step
        word = peer.receive_control(patience, f"the items of query {query}", "use")
        theirs = (take_int(word, "query", 0, MAX_QUERY, peer.peer), take_int(word, "n", 1, MAX_ITEM, peer.peer))
        if theirs != (query, n):
            raise QueryRefused(
                f"the servers work on different queries: here number {query} with {n} items, at {peer.peer} number "
                f"{theirs[0]} with {theirs[1]}"
            )
        epoch = take_hex(word, "epoch", EPOCH_DIGITS, peer.peer)
        return Taken(epoch, take_int(word, "first", 0, MAX_ITEM - n, peer.peer), n, b"")

    def _online(self, prepared: Any, share: bytes, meter: Meter) -> bytes:
        channels: dict[PartyId, Channel] = {}
        if self._peer is not None:
            other = PartyId.P1 if self._core.party is PartyId.P0 else PartyId.P0
            channels[other] = self._peer
        steps = self._core.runner.run(prepared, share, meter.lap)
        return drive(steps, channels, meter, self._core.patience.step, self._note)

    def _note(self, label: str) -> None:
        self._step = label

    def _with_beats(self, what: str, work: Callable[[], T]) -> T:
        """Do ``work``, and meanwhile tell the client each second that this side lives, and at which step."""
        self._step = what
        return self._beats.during(lambda: self._step, work)

    def _ledger(self, meter: Meter, offline: Counted, online: float, received: int, sent: int) -> PartyLedger:
        counted = meter.to_json()
        return PartyLedger(
            role=self._core.role,
            queries=1,
            offline_seconds=offline.seconds,
            offline_wait_seconds=offline.wait,
            offline_received=offline.received,
            online_seconds=online,
            online_sent=sum(meter.sent.values()),
            online_received=sum(meter.received.values()),
            exchanges=meter.exchanges,
            overhead_bytes=meter.overhead,
            client_received=received,
            client_sent=sent,
            peak_rss_bytes=peak_rss_bytes(),
            steps=counted["steps"],
        )
