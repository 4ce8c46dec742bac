"""What a client has with its servers whatever the protocol: connections, who is awaited, and how a failure is told."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray

from pqi.net.channel import Channel, Outgoing, exchange, receive_any
from pqi.net.errors import BadFrame, ConnectionLost, NetError, PeerReported, Timeout, printable
from pqi.net.frames import GIB, KIB, FrameType, Limits, encode_control, take_int, take_text
from pqi.net.hello import Hello, greet
from pqi.net.tls import context, dial
from pqi.session.bundle import ClientBundle, KeyedClientBundle
from pqi.session.config import ClientConfig
from pqi.session.errors import QueryFailed, SessionError
from pqi.session.journal import MAX_ITEM
from pqi.session.ledger import OwnLedger, PartyLedger
from pqi.session.material import new_id
from pqi.session.roles import CLIENT, SERVERS
from protocols.circuit import Wide
from protocols.errors import ProtocolError
from protocols.rounds import PartyId

_GRACE_SECONDS = 0.3  # after a first failure: how long the other servers are heard for the true cause
LIMITS = Limits(control=8 << 20, binary=GIB)


@dataclass(frozen=True)
class Asked:
    """The answers to one query of n inputs.

    integers: exact, (n, *output_shape); None of an approximate protocol. approximate: float64 in units of the integers.
    error_bound: in the same unit. own: what the query cost the client itself.
    """

    n: int
    integers: torch.Tensor | Wide | None
    approximate: NDArray[np.float64] | None
    error_bound: float
    parties: list[PartyLedger]
    own: OwnLedger | None = None


class Conversation(ABC):
    """Connections to every server of a program, made when first needed, made anew after a failure. One thread."""

    def __init__(self, config: ClientConfig, bundle: ClientBundle | KeyedClientBundle) -> None:
        self.timeout = config.timeout
        self._bundle = bundle
        self._network = config.link
        self._addresses = {**bundle.addresses, **config.addresses}
        self._context = context(config.tls, server_side=False)
        self._links: dict[PartyId, Channel] = {}
        self._batch = 1
        self._query = 0

    @abstractmethod
    def _query_servers(self, links: Mapping[PartyId, Channel], codes: torch.Tensor) -> Asked:
        """One query for codes that one query may hold."""

    def ask(self, codes: torch.Tensor) -> Asked:
        """One query for as many of the codes as one query may hold. Raises QueryFailed."""
        self._query += 1
        try:
            links = self._connected()
            return self._query_servers(links, codes[: self._batch])
        except (NetError, SessionError, ProtocolError) as error:
            self._fail(f"query {self._query} failed", error)
        except BaseException:
            self.drop()  # the conversation is broken off in the middle: it cannot be taken up again
            raise

    def status(self) -> dict[str, dict[str, Any]]:
        """The public state of every server. Raises QueryFailed."""
        try:
            links = self._connected()
            frames: list[Outgoing] = [control(channel, {"kind": "status"}) for channel in links.values()]
            exchange(frames, [], self.timeout, "a question for the status")
            return {c.peer: _facts(c.receive_control(self.timeout, "its status", "status")) for c in links.values()}
        except (NetError, SessionError) as error:
            self._fail("the status is not known", error)
        except BaseException:
            self.drop()
            raise

    def drop(self) -> None:
        """Close the connections."""
        for channel in self._links.values():
            channel.close()
        self._links = {}

    def _gather(self, links: Mapping[PartyId, Channel], *kinds: str) -> dict[PartyId, dict[str, Any]]:
        """One message of ``kinds`` from every server; signs of life in between keep the wait going."""
        got: dict[PartyId, dict[str, Any]] = {}
        names = {channel: party for party, channel in links.items()}
        now, what = time.monotonic(), " or ".join(map(repr, kinds))
        heard = dict.fromkeys(names, now)
        step = dict.fromkeys(names, "")
        while len(got) < len(links):
            waiting = [channel for channel, party in names.items() if party not in got]
            quiet = min(waiting, key=heard.__getitem__)
            left = heard[quiet] + self.timeout - time.monotonic()
            event = receive_any(waiting, max(left, 0.0), f"{what} for query {self._query}")
            if event is None:
                last = f", last heard at {step[quiet]}" if step[quiet] else ""
                raise Timeout(quiet.peer, f"{what} for query {self._query}{last}", self.timeout)
            channel, frame = event
            message = channel.as_control(frame, f"{what} for query {self._query}")
            heard[channel] = time.monotonic()
            if message["kind"] == "working":
                step[channel] = printable(take_text(message, "step", channel.peer))
            elif message["kind"] not in kinds or take_int(message, "query", 0, MAX_ITEM, channel.peer) != self._query:
                raise BadFrame(channel.peer, f"message {message['kind'][:40]!r} instead of {what} for this query")
            else:
                got[names[channel]] = message
        return got

    def _connected(self) -> Mapping[PartyId, Channel]:
        """Open connections to every server: the ones at hand if they are up, or all of them anew."""
        if self._links and all(channel.is_quiet() for channel in self._links.values()):
            return self._links
        self.drop()
        session, deadline = new_id(), time.monotonic() + self.timeout
        batches, program = [], self._bundle.program
        mine = Hello(CLIENT, self._bundle.deployment, program.digest, session)
        for party in program.parties:
            role = SERVERS[party]
            timeout = max(0.1, deadline - time.monotonic())  # one budget for all: a silent server costs it once
            secured, identity = dial(self._addresses[role], self._context, role, timeout, self._network)
            channel = self._links[party] = Channel(secured, identity, Limits(64 * KIB, 1), self._network)
            theirs = greet(channel, mine, timeout)
            batches.append(take_int(theirs, "max_batch", 1, MAX_ITEM, role))
            channel.limits = LIMITS
        self._batch = min(batches)
        return self._links

    def _fail(self, what: str, error: Exception) -> NoReturn:
        """Give up with every cause that can be had: a server often knows better what broke."""
        causes = [error]
        deadline = time.monotonic() + _GRACE_SECONDS
        silent = {c for c in self._links.values() if not (isinstance(error, NetError) and _peer_of(error) == c.peer)}
        while silent and (left := deadline - time.monotonic()) > 0:
            for channel in list(silent):
                with suppress(Timeout, BadFrame, ConnectionLost):
                    try:
                        event = receive_any([channel], left / len(silent), "its account of the failure")
                        if event is not None and event[1].kind is FrameType.CONTROL:
                            channel.as_control(event[1], "its account of the failure")
                            continue  # a sign of life: the account may follow
                    except PeerReported as report:
                        if not any(str(cause) in str(report) for cause in causes):  # else it is an echo
                            causes.append(report)
                silent.discard(channel)
        self.drop()
        raise QueryFailed(what, tuple(causes)) from error


def control(channel: Channel, message: Mapping[str, Any]) -> Outgoing:
    """A control message to be sent."""
    return channel, FrameType.CONTROL, encode_control(message)


def _peer_of(error: NetError) -> str:
    return str(getattr(error, "peer", ""))


def _facts(message: Mapping[str, Any]) -> dict[str, Any]:
    """A status with nothing in it but numbers and printable texts."""
    facts: dict[str, Any] = {}
    for name, value in message.items():
        if isinstance(value, int | float | str):
            facts[printable(name, 40)] = printable(value) if isinstance(value, str) else value
    return facts
