"""A compute server: one port, one thread per connection, alive whatever comes in."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pqi.net.channel import Channel
from pqi.net.errors import ConnectionLost, Timeout, WrongPeer
from pqi.net.frames import GIB, KIB, MIB, Limits
from pqi.net.hello import Hello, greet
from pqi.net.link import NONE, Link
from pqi.net.listener import Listener
from pqi.net.tls import context, dial
from pqi.program import PartyRunner
from pqi.session.budget import BUDGET_FILE, Budget
from pqi.session.bundle import Address, ServerBundle
from pqi.session.errors import BundleError, QueryRefused, SessionError
from pqi.session.journal import DEFAULT_BLOCK, Journal
from pqi.session.ledger import peak_rss_bytes
from pqi.session.material import EpochKeys, KeyBytes, new_id
from pqi.session.place import place_of
from pqi.session.pool import Pool, SpillRoom
from pqi.session.port import Port
from pqi.session.roles import CLIENT, DEALER, SERVER_A, SERVERS
from pqi.session.serving import ClientSession, Patience
from pqi.session.supply import receive_epochs, supply_limits
from pqi.session.watch import MemoryWatch
from protocols.errors import ProtocolError
from protocols.rounds import PartyId

log = logging.getLogger("pqi.server")
JOURNAL_FILE = "journal.sqlite"
SPILL_FOLDER = "spill"
_PEER_LIMITS = Limits(control=64 * KIB, binary=2 * GIB)


@dataclass(frozen=True)
class ServerOptions:
    """Bounds of a server.

    max_batch, batch_bytes: inputs in one query, and the dealt bytes they may consume (what a query holds in memory is
    a small multiple of it). pool_items, pool_bytes: corrections kept ahead in memory; pool_items = 0 keeps none, the
    dealer is asked when a query comes. spill_bytes: disk for more of them, sealed, in the bundle's folder; 0 for none.
    reserve: journal block, in items. check_memory: look at the weights in memory before every so many queries (0:
    never).
    device: where it computes, cpu, cuda or cuda:N; the other server may have another, for no byte depends on it.
    link: what to emulate of a network, for measurements; every role must be told the same.
    """

    max_batch: int = 64
    batch_bytes: int = 128 << 20
    max_links: int = 128
    pool_items: int = 256
    pool_bytes: int = 1 << 30
    spill_bytes: int = 0
    reserve: int = DEFAULT_BLOCK
    check_memory: int = 0
    patience: Patience = field(default_factory=Patience)
    device: str = "cpu"
    link: Link = NONE

    def __post_init__(self) -> None:
        for name in ("max_batch", "batch_bytes", "max_links", "pool_bytes", "reserve"):
            if getattr(self, name) < 1:
                raise SessionError(f"option {name} is {getattr(self, name)}; it must be at least 1")
        zeros = {"spill_bytes": "no disk", "pool_items": "no material ahead", "check_memory": "no look at the memory"}
        for name, means in zeros.items():
            if getattr(self, name) < 0:
                raise SessionError(f"option {name} is {getattr(self, name)}; it must be at least 0, which is {means}")


@dataclass
class PeerLink:
    """A connection of server A that waits at server B for the client session of the same id."""

    channel: Channel
    client: str
    epoch: str
    claimed: threading.Event = field(default_factory=threading.Event)
    finished: threading.Event = field(default_factory=threading.Event)


class ComputeServer(Port):
    """Server A or B of a deployment. Start it, and stop it or use it as a context manager.

    bundle: this role's, loaded. listen: (host, port), port 0 for any free one (default: the bundle's address).
    journal: path of the record of used items (default: in the bundle's folder).
    Raises SessionError (device), BundleError, JournalError, WrongPeer (TLS files), CannotListen (port taken).
    """

    def __init__(
        self,
        bundle: ServerBundle,
        *,
        listen: Address | None = None,
        journal: Path | None = None,
        options: ServerOptions | None = None,
    ) -> None:
        self._bundle, self._options = bundle, options or ServerOptions()
        program = bundle.program
        self.role, self.party = bundle.role, bundle.party
        self.patience = self._options.patience
        self.has_peer = len(program.parties) > 1
        self.runner = _runner(bundle, place_of(self._options.device, program.protocol))
        self.watch = MemoryWatch(self.role, self.runner, self._options.check_memory)
        self.keys = EpochKeys()
        takes = program.needs_dealer and self.party is PartyId.P1
        record = program.record_bytes if takes else 0
        spill = self._options.spill_bytes
        room = SpillRoom(bundle.directory / SPILL_FOLDER, spill) if spill else None
        self.pool = Pool(record, self._options.pool_items, self._options.pool_bytes, room)
        affordable = max(1, self._options.batch_bytes // record) if record else self._options.max_batch
        self.max_batch = min(self._options.max_batch, affordable, self.pool.memory_items if takes else affordable)
        self._sessions: set[str] = set()
        self._dealers = 0
        self._links: dict[str, PeerLink] = {}
        self._changed = threading.Condition()
        self._started = time.monotonic()
        self._dialling = context(bundle.tls, server_side=False) if self.has_peer and self.party is PartyId.P0 else None
        accepting = context(bundle.tls, server_side=True)
        self.journal = Journal(journal or bundle.directory / JOURNAL_FILE, self._options.reserve)
        try:
            self.budget = Budget(bundle.directory / BUDGET_FILE, bundle.answers_per_client)
        except BaseException:
            self.journal.close()
            raise
        try:
            if not program.needs_dealer:
                self._supply_self()
            self._listener = Listener(
                listen or bundle.addresses[self.role],
                accepting,
                self._serve,
                timeout=self.patience.step,
                max_links=self._options.max_links,
                link=self._options.link,
            )
        except BaseException:
            self.journal.close()
            self.budget.close()
            raise

    def stop(self) -> None:
        """Break every session and close the journal; unused material is burnt with the process's memory."""
        with self._changed:
            links = list(self._links.values())
        for link in links:
            link.claimed.set()
            link.finished.set()
        self._listener.stop()
        self.pool.close()
        self.journal.close()
        self.budget.close()

    def status(self) -> dict[str, Any]:
        """Public state: nothing secret, nothing about inputs."""
        return {
            "role": self.role,
            "deployment": self._bundle.deployment,
            "digest": self._bundle.program.digest,
            "epoch": self.keys.newest,
            "level": self.pool.level,
            "capacity": self.pool.capacity,
            "spilled": self.pool.spilled,
            "pool_bytes": self.pool.held_bytes,
            "dealer": self._dealers > 0,
            "sessions": len(self._sessions),
            "max_batch": self.max_batch,
            "answers_per_client": self.budget.limit,
            "words_put_right": self.watch.repaired,
            "uptime_seconds": time.monotonic() - self._started,
            "peak_rss_bytes": peak_rss_bytes(),
        }

    # ------------------------------------------------------------------ one connection

    def _converse(self, channel: Channel) -> None:
        theirs = self._greeted(channel, self._bundle, self._bundle.program.digest)
        session: str = theirs["session"]
        if channel.peer == CLIENT:
            self._serve_client(channel, session)
        elif channel.peer == DEALER and self._bundle.program.needs_dealer:
            self._serve_dealer(channel)
        elif channel.peer == SERVER_A and self.party is PartyId.P1:
            self._serve_peer(channel, session, theirs)
        else:
            raise WrongPeer(f"role {channel.peer!r} has no business with {self.role}")

    def _serve_client(self, channel: Channel, session: str) -> None:
        size = math.prod(self._bundle.program.input_shape)
        # The ledger that goes with a result has a row per step: tens of kilobytes for a network of fifty layers.
        channel.limits = Limits(control=MIB, binary=self.max_batch * size * 8 + MIB)
        with self._changed:
            if session in self._sessions:
                raise QueryRefused(f"session {session[:8]}... is open already")
            self._sessions.add(session)
        try:
            ClientSession(self, channel, session).run()
        finally:
            with self._changed:
                self._sessions.discard(session)
                link = self._links.pop(session, None)
            if link is not None:
                link.finished.set()

    def _serve_dealer(self, channel: Channel) -> None:
        takes = self.party is PartyId.P1
        channel.limits = supply_limits(self._bundle.program.record_bytes if takes else 0)
        pool = self.pool if takes else None
        with self._changed:
            self._dealers += 1
        try:
            receive_epochs(channel, self.journal, self.keys, pool, self.patience.step, lambda: self._listener.stopping)
        except ConnectionLost as error:
            log.info("%s: the dealer left: %s", self.role, error.reason)
        finally:
            with self._changed:
                self._dealers -= 1

    def _serve_peer(self, channel: Channel, session: str, theirs: Mapping[str, Any]) -> None:
        """Server A's link waits here for its session; its thread keeps it registered until the session is over."""
        channel.limits = _PEER_LIMITS
        link = PeerLink(channel, str(theirs["client"]), str(theirs.get("epoch", "")))
        with self._changed:
            if session in self._links:
                raise QueryRefused(f"session {session[:8]}... has a link between the servers already")
            self._links[session] = link
            self._changed.notify_all()
        if not link.claimed.wait(2 * self.patience.step):
            with self._changed:
                unclaimed = not link.claimed.is_set() and self._links.pop(session, None) is not None
            if unclaimed:
                raise Timeout("the client's own connection", f"session {session[:8]}...", 2 * self.patience.step)
        link.finished.wait()

    # ------------------------------------------------------------------ for sessions

    def open_peer(self, session: str, client: Channel) -> Channel:
        """The channel to the other server for one session: A dials, B waits for A.

        Raises NetError; WrongPeer if A's client of this session is another one than B's.
        """
        return self._dial_peer(session, client) if self.party is PartyId.P0 else self._claim_peer(session, client)

    def _dial_peer(self, session: str, client: Channel) -> Channel:
        other = SERVERS[PartyId.P1]
        if self._dialling is None:
            raise SessionError(f"{self.role} has no other server to dial")
        address, link = self._bundle.addresses[other], self._options.link
        channel = Channel(*dial(address, self._dialling, other, self.patience.step, link), Limits(16 * KIB, 1), link)
        try:
            mine = Hello(self.role, self._bundle.deployment, self._bundle.program.digest, session, client.fingerprint)
            greet(channel, mine, self.patience.step, epoch=self.keys.newest)
        except BaseException:
            channel.close()
            raise
        channel.limits = _PEER_LIMITS
        return channel

    def _claim_peer(self, session: str, client: Channel) -> Channel:
        deadline = time.monotonic() + self.patience.step
        with self._changed:
            while session not in self._links:
                left = deadline - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    raise Timeout(SERVERS[PartyId.P0], "its link for this session", self.patience.step)
            link = self._links[session]
            link.claimed.set()
        if link.client != client.fingerprint:
            raise WrongPeer("the two servers see different client certificates in one session")
        if link.epoch != (epoch := self.pool.epoch):
            # Server A has lost this epoch's keys (a restart): its items can never be used; wait for the next epoch.
            self.pool.burn(epoch)
        return link.channel

    def _supply_self(self) -> None:
        """Without a dealer items are numbers only: one epoch, counted by this server."""
        epoch = new_id()
        self.journal.begin_epoch(epoch)
        self.keys.add(epoch, KeyBytes(b""))
        self.pool.begin(epoch, endless=True)


def _runner(bundle: ServerBundle, device: torch.device) -> PartyRunner:
    try:
        return PartyRunner(bundle.program, bundle.party, dict(bundle.tensors), device)
    except Exception as error:
        # Only the protocols' own messages are known to quote no value.
        why = str(error) if isinstance(error, ProtocolError) else type(error).__name__
        raise BundleError(f"{bundle.directory}: its tensors do not fit its program: {why}. Split again") from None
