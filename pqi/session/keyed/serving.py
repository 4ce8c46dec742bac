"""One client session on the server of a keyed protocol: its keys, then its queries. See ``words`` for what is said.

The session's thread owns the client's channel: it takes in the parts of a question and hands each to the workers while
the next one arrives, and gives a sign of life while they compute.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from typing import Any, Protocol, TypeVar

from pqi.net.channel import Channel, exchange
from pqi.net.errors import ConnectionLost, NetError
from pqi.net.frames import KIB, FrameType, Limits, encode_control, take_int
from pqi.net.listener import describe_unexpected
from pqi.session.budget import Budget
from pqi.session.errors import QueryRefused, SessionError
from pqi.session.journal import MAX_ITEM
from pqi.session.keyed.process import Done
from pqi.session.keyed.words import (
    CONTROL_BYTES,
    KEYS,
    KEYS_KNOWN,
    KEYS_WANTED,
    MAX_KEYS,
    receive_exact,
    receive_keys,
)
from pqi.session.keyed.workers import Slot, Workers
from pqi.session.ledger import PartyLedger, peak_rss_bytes
from pqi.session.serving import MAX_QUERY, Patience
from protocols.errors import ProtocolError
from protocols.keyed import KeyedCost, Plan

log = logging.getLogger("pqi.server")
IDLE = Limits(control=16 * KIB, binary=1)
T = TypeVar("T")


class Core(Protocol):
    """What a session needs of its server."""

    role: str
    plan: Plan
    workers: Workers
    budget: Budget
    patience: Patience
    max_batch: int
    query_bytes: int

    def status(self) -> Mapping[str, Any]:
        """Public state."""


class KeyedSession:
    """Serves one client until it leaves or something breaks; a session never outlives an error."""

    def __init__(self, core: Core, channel: Channel, session: str) -> None:
        self._core, self._client, self._session = core, channel, session
        self._slot: Slot | None = None
        self._step = "start"
        self._last_query = -1

    def run(self) -> None:
        """Serve queries; on an error tell the client the cause, log it, and end."""
        try:
            while self._serve_one():
                pass
        except (NetError, SessionError, ProtocolError) as error:
            self._end(str(error))
        except Exception as error:
            # The message of an unforeseen error may quote what must not be told: it goes nowhere.
            log.error("%s: session %s: %s", self._core.role, self._session[:8], describe_unexpected(error))
            self._end(f"an internal error of {self._core.role} at {self._step}; its log has the place")
        finally:
            if self._slot is not None:
                self._core.workers.forget(self._slot)

    def _end(self, cause: str) -> None:
        log.warning("%s: session %s ended: %s", self._core.role, self._session[:8], cause)
        self._client.close_with_cause(cause)

    def _serve_one(self) -> bool:
        self._client.limits = IDLE
        try:
            message = self._client.receive_control(self._core.patience.idle, "a query", "query", "status", KEYS)
        except ConnectionLost:
            return False
        if message["kind"] == "status":
            state = {"kind": "status", **self._core.status()}
            self._client.send_control(state, self._core.patience.step, "the status")
            return True
        query = take_int(message, "query", 0, MAX_QUERY, self._client.peer)
        if message["kind"] == KEYS:
            self._take_keys(query, take_int(message, "length", 0, MAX_KEYS, self._client.peer))
            return True
        n = take_int(message, "n", 1, MAX_ITEM, self._client.peer)
        if n > self._core.max_batch:
            raise QueryRefused(f"a batch of {n} is over this server's limit of {self._core.max_batch}")
        if query <= self._last_query:
            raise QueryRefused(f"query {query} follows query {self._last_query}; numbers must rise")
        self._core.budget.check(self._client.fingerprint, n)
        self._answer(query, n)
        return True

    def _take_keys(self, query: int, length: int) -> None:
        declared = self._core.plan.cost(1).keys
        if length != declared:
            raise QueryRefused(f"evaluation keys of {length} bytes; this program's have {declared}. Nothing was taken")
        if self._slot is not None:
            self._core.workers.forget(self._slot)
            self._slot = None
        self._step = "its evaluation keys"
        keys = receive_keys(self._client, length, self._core.patience.step)
        self._slot = self._core.workers.admit(keys)
        self._with_beats([self._slot.admitted], "evaluation keys")
        known = {"kind": KEYS_KNOWN, "query": query}
        self._client.send_control(known, self._core.patience.step, "word that the keys are known")
        log.info("%s: session %s: evaluation keys of %d bytes", self._core.role, self._session[:8], length)

    def _answer(self, query: int, n: int) -> None:
        core, cost = self._core, self._core.plan.cost(n)
        if (size := cost.question + cost.answer) > core.query_bytes:
            raise QueryRefused(
                f"question and answer of {n} inputs have {size} bytes, over this server's limit of {core.query_bytes}; "
                "ask for fewer at a time"
            )
        slot = self._slot
        if slot is None or not core.workers.hold(slot):
            wanted = {"kind": KEYS_WANTED, "query": query}
            self._client.send_control(wanted, core.patience.step, "word that keys are needed")
            return
        self._last_query = query
        try:
            core.budget.spend(self._client.fingerprint, n)
            started, done = self._compute(slot, query, n, cost)
        finally:
            core.workers.release(slot)
        seconds = time.perf_counter() - started
        self._send(query, done, self._ledger(cost, done, seconds))
        log.info("%s: session %s query %d: %d inputs in %.3f s", core.role, self._session[:8], query, n, seconds)

    def _compute(self, slot: Slot, query: int, n: int, cost: KeyedCost) -> tuple[float, list[Done]]:
        """Take in the question, have every part computed; when the first part had arrived, and the results."""
        step = self._core.patience.step
        self._step = "taking in a question"
        self._client.send_control({"kind": "ready", "query": query, "n": n}, step, "ready")
        futures, started = [], 0.0
        for part, size in enumerate(cost.questions):
            what = f"part {part + 1} of {len(cost.questions)} of query {query}"
            question = receive_exact(self._client, size, step, what)
            started = started or time.perf_counter()
            futures.append(self._core.workers.submit(slot, n, part, question))
        done = self._with_beats(futures, "computing")
        if (lengths := tuple(len(each.result) for each in done)) != cost.answers:
            raise SessionError(f"workers gave answers of {lengths} bytes; {cost.answers} are declared")
        return started, done

    def _send(self, query: int, done: Sequence[Done], ledger: PartyLedger) -> None:
        self._step = "sending the answer"
        self._client.limits = Limits(CONTROL_BYTES, max([1, *(len(each.result) for each in done)]))
        head = encode_control({"kind": "result", "query": query, "ledger": ledger.to_json()})
        frames = [(self._client, FrameType.CONTROL, head)]
        frames += [(self._client, FrameType.BINARY, each.result) for each in done]
        exchange(frames, [], self._core.patience.step, f"the result of query {query}")

    def _with_beats(self, futures: Sequence[Future[T]], what: str) -> list[T]:
        """Wait for what the workers do, and tell the client each second that this side lives, and how far it is."""
        self._step, waiting = what, set(futures)
        while waiting:
            done, waiting = wait(waiting, self._core.patience.beat, FIRST_EXCEPTION)
            for future in done:
                if future.cancelled():
                    raise QueryRefused(f"{self._core.role} is stopping")
                future.result()  # the first failure is told at once
            if waiting:
                step = f"{what}: {len(futures) - len(waiting)} of {len(futures)} parts"
                self._client.send_control({"kind": "working", "step": step}, self._core.patience.step, "a sign of life")
        return [future.result() for future in futures]

    def _ledger(self, cost: KeyedCost, done: Sequence[Done], seconds: float) -> PartyLedger:
        steps = {
            f"part {i}": {
                "exchanges": 0,
                "sent": len(each.result),
                "received": size,
                "compute_seconds": each.seconds,
                "network_seconds": 0.0,
            }
            for i, (each, size) in enumerate(zip(done, cost.questions, strict=True))
        }
        return PartyLedger(
            role=self._core.role,
            queries=1,
            offline_seconds=0.0,
            offline_wait_seconds=0.0,
            offline_received=0,
            online_seconds=seconds,
            online_sent=0,
            online_received=0,
            exchanges=0,
            overhead_bytes=0,
            client_received=cost.question,
            client_sent=sum(len(each.result) for each in done),
            peak_rss_bytes=peak_rss_bytes() + self._core.workers.peak_rss_bytes,
            steps=steps,
        )
