"""The one server of a keyed protocol: one port, one thread per client, worker processes, alive whatever comes in.

It holds its weights and what clients give it: evaluation keys and ciphertexts. Nothing here or in what it imports can
make, hold or use a secret key.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import safetensors.torch

from pqi.net.channel import Channel
from pqi.net.errors import WrongPeer
from pqi.net.frames import GIB
from pqi.net.link import NONE, Link
from pqi.net.listener import Listener
from pqi.net.tls import context
from pqi.session.budget import BUDGET_FILE, Budget
from pqi.session.bundle import Address, KeyedServerBundle
from pqi.session.errors import BundleError, QueryRefused, SessionError
from pqi.session.keyed.serving import IDLE, KeyedSession
from pqi.session.keyed.workers import Workers
from pqi.session.ledger import peak_rss_bytes
from pqi.session.port import Port
from pqi.session.roles import CLIENT
from pqi.session.serving import Patience
from protocols.keyed import Plan

log = logging.getLogger("pqi.server")


@dataclass(frozen=True)
class KeyedOptions:
    """Bounds of a server.

    workers: processes that compute (None: one per core). max_batch: inputs in one query (None: what the program can
    hold). query_bytes: question and answer of one query. clients: whose evaluation keys are kept at one time, in the
    server and in each worker; of more clients than that, the one longest idle sends its keys again. part_seconds: the
    most that one part of a query may take. link: what to emulate of a network, for measurements; the client must be
    told the same.
    """

    workers: int | None = None
    max_batch: int | None = None
    query_bytes: int = 2 * GIB
    clients: int = 8
    part_seconds: float = 600.0
    max_links: int = 128
    patience: Patience = field(default_factory=Patience)
    link: Link = NONE

    def __post_init__(self) -> None:
        for name in ("workers", "max_batch", "query_bytes", "clients", "part_seconds", "max_links"):
            value = getattr(self, name)
            if value is not None and not value >= (0.1 if name == "part_seconds" else 1):
                raise SessionError(f"option {name} is {value}; it must be at least 1")


class KeyedServer(Port):
    """Start it, and stop it or use it as a context manager.

    bundle: the server's, loaded. listen: (host, port), port 0 for any free one (default: the bundle's address).
    stop: set it to have the start given up.
    Raises BundleError (weights that do not fit), WorkerFailed, WrongPeer (TLS files), CannotListen (port taken).
    """

    def __init__(
        self,
        bundle: KeyedServerBundle,
        *,
        listen: Address | None = None,
        options: KeyedOptions | None = None,
        stop: threading.Event | None = None,
    ) -> None:
        self._bundle, self._options = bundle, options or KeyedOptions()
        self.role, self.patience = bundle.role, self._options.patience
        self.plan, self.query_bytes = bundle.program.plan, self._options.query_bytes
        self.max_batch = _affordable(self.plan, self._options)
        self._sessions: set[str] = set()
        self._lock = threading.Lock()
        self._started = time.monotonic()
        accepting = context(bundle.tls, server_side=True)
        self.budget = Budget(bundle.directory / BUDGET_FILE, bundle.answers_per_client)
        self.workers = Workers(
            json.dumps(bundle.program.to_json()).encode(),
            safetensors.torch.save(dict(bundle.tensors)),
            self._options.workers or _cores(),
            self._options.clients,
            self._options.part_seconds,
        )
        try:
            self.workers.start(stop)
        except QueryRefused as error:
            self.budget.close()
            raise BundleError(f"{bundle.directory}: its weights do not fit its program: {error}") from None
        try:
            self._listener = Listener(
                listen or bundle.addresses[self.role],
                accepting,
                self._serve,
                timeout=self.patience.step,
                max_links=self._options.max_links,
                link=self._options.link,
            )
        except BaseException:
            self.workers.stop()
            self.budget.close()
            raise

    def stop(self) -> None:
        """Break every session and end every worker; clients' keys are gone with them."""
        self.workers.stop()
        self._listener.stop()
        self.budget.close()

    def status(self) -> dict[str, Any]:
        """Public state: nothing about inputs."""
        return {
            "role": self.role,
            "deployment": self._bundle.deployment,
            "digest": self._bundle.program.digest,
            "protocol": self._bundle.program.protocol,
            "workers": len(self.workers.pids),
            "workers_replaced": self.workers.restarts,
            "clients_with_keys": self.workers.clients,
            "sessions": len(self._sessions),
            "max_batch": self.max_batch,
            "answers_per_client": self.budget.limit,
            "uptime_seconds": time.monotonic() - self._started,
            "peak_rss_bytes": peak_rss_bytes() + self.workers.peak_rss_bytes,
        }

    def _converse(self, channel: Channel) -> None:
        session: str = self._greeted(channel, self._bundle, self._bundle.program.digest)["session"]
        if channel.peer != CLIENT:
            raise WrongPeer(f"role {channel.peer!r} has no business with {self.role}")
        channel.limits = IDLE
        with self._lock:
            if session in self._sessions:
                raise QueryRefused(f"session {session[:8]}... is open already")
            self._sessions.add(session)
        try:
            KeyedSession(self, channel, session).run()
        finally:
            with self._lock:
                self._sessions.discard(session)


def _affordable(plan: Plan, options: KeyedOptions) -> int:
    """Inputs of one query: what the plan holds, the options allow, and the limit of bytes leaves room for."""
    most = min(plan.max_batch, options.max_batch or plan.max_batch)
    while most > 1 and (cost := plan.cost(most)).question + cost.answer > options.query_bytes:
        most //= 2
    return most


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
