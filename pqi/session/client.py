"""The thin client: quantizes, shares, asks both servers, adds up their answers. Holds no part of the model."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray

from pqi.net.channel import Channel, Outgoing, exchange, receive_any
from pqi.net.errors import BadFrame, ConnectionLost, NetError, PeerReported, Timeout, printable
from pqi.net.frames import GIB, KIB, FrameType, Limits, encode_control, take_hex, take_int, take_text
from pqi.net.hello import Hello, greet
from pqi.net.tls import context, dial
from pqi.program import Interface, decode_output, encode_input
from pqi.quant.inputs import decode_answer
from pqi.session.bundle import load_client
from pqi.session.config import load_config
from pqi.session.errors import AnswersDisagree, QueryFailed, SessionError
from pqi.session.journal import MAX_ITEM
from pqi.session.ledger import Ledger, PartyLedger, total
from pqi.session.material import EPOCH_DIGITS, new_id
from pqi.session.roles import CLIENT, SERVERS
from protocols.errors import ProtocolError
from protocols.rounds import PartyId

_GRACE_SECONDS = 0.3  # after a first failure: how long the other servers are heard for the true cause
_LIMITS = Limits(control=8 << 20, binary=GIB)
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Answer:
    """values: real numbers (N, *output_shape). integers: the exact int64 answer. ledger: what it cost."""

    values: NDArray[np.float64]
    integers: torch.Tensor
    ledger: Ledger = field(repr=False)


class Client:
    """Asks a deployment privately. ``config``: path of its client.toml. Close it, or use it as a context manager.

    Connections are made when first needed, and made anew after a failure. One query at a time; calls from several
    threads wait for each other. Raises BundleError, WrongPeer (TLS files).
    """

    def __init__(self, config: str | Path) -> None:
        self._config = load_config(config)
        self._bundle = load_client(self._config.bundle)
        self._addresses = {**self._bundle.addresses, **self._config.addresses}
        self._context = context(self._config.tls, server_side=False)
        self._lock = threading.Lock()
        self._links: dict[PartyId, Channel] = {}
        self._batch = 1
        self._query = 0

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def program(self) -> Interface:
        """Question and answer of what the servers compute: shapes, rings, exactness, who learns what."""
        return self._bundle.program

    def close(self) -> None:
        """Close the connections. A later prediction opens them again."""
        with self._lock:
            self._drop()

    def predict(self, x: Any, *, progress: Progress | None = None, on_saturation: str = "warn") -> Answer:
        """The private answer for a float batch x (N, *input_shape).

        Of a dynamic model, each input is scaled on its own and its answer scaled back here: no server learns how.
        Batches over the servers' limit go as several queries; ``progress(done, of)`` hears of each. An empty batch is
        answered here. Raises InputError before anything is sent; QueryFailed with the party, the step and the cause.
        """
        codes = self._bundle.input.encode(x, on_saturation)
        samples, started = len(codes), time.perf_counter()
        answers: list[torch.Tensor] = []
        parts: list[PartyLedger] = []
        with self._lock:
            done = 0
            while done < samples:
                integers, ledgers = self._ask(codes[done:])
                answers.append(integers)
                parts += ledgers
                done += len(integers)
                if progress is not None:
                    progress(done, samples)
        shape = (0, *self.program.output_shape)
        integers = torch.cat(answers) if answers else torch.zeros(shape, dtype=torch.int64)
        values = decode_answer(integers.numpy(), self._bundle.output_scale, self._bundle.input.dynamic, codes)
        return Answer(values, integers, Ledger(total(parts), samples, len(answers), time.perf_counter() - started))

    def status(self) -> dict[str, dict[str, Any]]:
        """The public state of every server: epoch, level of the pool, whether the dealer is there, memory."""
        with self._lock:
            try:
                links = self._connected()
                frames: list[Outgoing] = [_control(channel, {"kind": "status"}) for channel in links.values()]
                timeout = self._config.timeout
                exchange(frames, [], timeout, "a question for the status")
                return {c.peer: _facts(c.receive_control(timeout, "its status", "status")) for c in links.values()}
            except (NetError, SessionError) as error:
                self._fail("the status is not known", error)
            except BaseException:
                self._drop()
                raise

    # ------------------------------------------------------------------ one query

    def _ask(self, codes: torch.Tensor) -> tuple[torch.Tensor, list[PartyLedger]]:
        """One query for as many of the codes as one query may hold."""
        self._query += 1
        try:
            links = self._connected()
            batch = codes[: self._batch]
            return self._query_servers(links, batch)
        except (NetError, SessionError, ProtocolError) as error:
            self._fail(f"query {self._query} failed", error)
        except BaseException:
            self._drop()  # the conversation is broken off in the middle: it cannot be taken up again
            raise

    def _query_servers(
        self, links: Mapping[PartyId, Channel], codes: torch.Tensor
    ) -> tuple[torch.Tensor, list[PartyLedger]]:
        query, n, timeout = self._query, len(codes), self._config.timeout
        question = {"kind": "query", "query": query, "n": n}
        exchange([_control(channel, question) for channel in links.values()], [], timeout, f"query {query}")
        self._check_ready(self._gather(links, "ready"), n)
        # Nothing of the input has left this process up to here. Each server gets its share and no more.
        shares = encode_input(self.program, codes)
        frames = [(channel, FrameType.BINARY, shares[party]) for party, channel in links.items()]
        exchange(frames, [], timeout, f"the input of query {query}")
        heads = self._gather(links, "result")
        bodies = exchange([], list(links.values()), timeout, f"the result of query {query}")
        results = {
            party: channel.as_binary(body, "the result")
            for (party, channel), body in zip(links.items(), bodies, strict=True)
        }
        ledgers = [PartyLedger.from_message(heads[p].get("ledger"), links[p].peer) for p in links]
        return decode_output(self.program, n, results), ledgers

    def _check_ready(self, ready: Mapping[PartyId, dict[str, Any]], n: int) -> None:
        seen = {}
        for party, message in ready.items():
            peer = SERVERS[party]
            epoch = take_hex(message, "epoch", EPOCH_DIGITS, peer)
            seen[peer] = (epoch, take_int(message, "first", 0, MAX_ITEM, peer), take_int(message, "n", n, n, peer))
        if len(set(seen.values())) != 1:
            raise AnswersDisagree(f"the servers are ready with different material: {seen}. Nothing was sent")

    def _gather(self, links: Mapping[PartyId, Channel], kind: str) -> dict[PartyId, dict[str, Any]]:
        """One message of ``kind`` from every server; signs of life in between keep the wait going."""
        got: dict[PartyId, dict[str, Any]] = {}
        names = {channel: party for party, channel in links.items()}
        now = time.monotonic()
        heard = dict.fromkeys(names, now)
        step = dict.fromkeys(names, "")
        while len(got) < len(links):
            waiting = [channel for channel, party in names.items() if party not in got]
            quiet = min(waiting, key=heard.__getitem__)
            left = heard[quiet] + self._config.timeout - time.monotonic()
            event = receive_any(waiting, max(left, 0.0), f"{kind!r} for query {self._query}")
            if event is None:
                last = f", last heard at {step[quiet]}" if step[quiet] else ""
                raise Timeout(quiet.peer, f"{kind!r} for query {self._query}{last}", self._config.timeout)
            channel, frame = event
            message = channel.as_control(frame, f"{kind!r} for query {self._query}")
            heard[channel] = time.monotonic()
            if message["kind"] == "working":
                step[channel] = printable(take_text(message, "step", channel.peer))
            elif message["kind"] != kind or take_int(message, "query", 0, MAX_ITEM, channel.peer) != self._query:
                raise BadFrame(channel.peer, f"message {message['kind'][:40]!r} instead of {kind!r} for this query")
            else:
                got[names[channel]] = message
        return got

    # ------------------------------------------------------------------ connections

    def _connected(self) -> Mapping[PartyId, Channel]:
        """Open connections to every server: the ones at hand if they are up, or all of them anew."""
        if self._links and all(channel.is_quiet() for channel in self._links.values()):
            return self._links
        self._drop()
        session, deadline = new_id(), time.monotonic() + self._config.timeout
        batches = []
        mine = Hello(CLIENT, self._bundle.deployment, self.program.digest, session)
        for party in self.program.parties:
            role = SERVERS[party]
            timeout = max(0.1, deadline - time.monotonic())  # one budget for all: a silent server costs it once
            secured, identity = dial(self._addresses[role], self._context, role, timeout)
            channel = self._links[party] = Channel(secured, identity, Limits(64 * KIB, 1))
            theirs = greet(channel, mine, timeout)
            batches.append(take_int(theirs, "max_batch", 1, MAX_ITEM, role))
            channel.limits = _LIMITS
        self._batch = min(batches)
        return self._links

    def _drop(self) -> None:
        for channel in self._links.values():
            channel.close()
        self._links = {}

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
        self._drop()
        raise QueryFailed(what, tuple(causes)) from error


def _peer_of(error: NetError) -> str:
    return str(getattr(error, "peer", ""))


def _facts(message: Mapping[str, Any]) -> dict[str, Any]:
    """A status with nothing in it but numbers and printable texts."""
    facts: dict[str, Any] = {}
    for name, value in message.items():
        if isinstance(value, int | float | str):
            facts[printable(name, 40)] = printable(value) if isinstance(value, str) else value
    return facts


def _control(channel: Channel, message: Mapping[str, Any]) -> Outgoing:
    return channel, FrameType.CONTROL, encode_control(message)
