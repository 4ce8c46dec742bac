"""The wall clock of one round of secure averaging, by who spends it, beside Flower's own plain averaging."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pqi.federated.encoding import Encoding
from protocols import get_sum
from protocols.aggregation import Ask, Server, Sum, SumPlan
from protocols.aggregation_local import sum_here

Seconds = dict[str, float]
now = time.perf_counter
TOTAL, PATH = "everybody, one after another", "one client, then helper and server"


class Timed:
    """A protocol whose parties are watched: seconds by party (``client``, ``helper``, ``server``)."""

    def __init__(self, name: str) -> None:
        self._inner, self.spent = get_sum(name), defaultdict[str, float](float)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def client(self, plan: SumPlan, number: int) -> Any:
        """A watched client."""
        return _Watched(self.clock("client", lambda: self._inner.client(plan, number)), "client", self)

    def helper(self, plan: SumPlan, name: str) -> Any:
        """A watched helper."""
        return _Watched(self.clock("helper", lambda: self._inner.helper(plan, name)), "helper", self)

    def server(self, plan: SumPlan) -> Server:
        """The watched server."""
        server, answers = self._inner.server(plan), None
        while True:
            try:
                ask: Ask = self.clock("server", lambda: next(server) if answers is None else server.send(answers))  # noqa: B023
            except StopIteration as end:
                result: Sum = end.value
                return result
            answers = yield ask

    def clock(self, who: str, work: Callable[[], Any]) -> Any:
        """Do it and add its seconds."""
        started = now()
        try:
            return work()
        finally:
            self.spent[who] += now() - started


class _Watched:
    def __init__(self, inner: Any, who: str, clock: Timed) -> None:
        self._inner, self._who, self._clock = inner, who, clock

    def answer(self, stage: str, message: bytes) -> bytes:
        found: bytes = self._clock.clock(self._who, lambda: self._inner.answer(stage, message))
        return found

    def upload(self, stage: str, message: bytes, values: np.ndarray) -> bytes:
        found: bytes = self._clock.clock(self._who, lambda: self._inner.upload(stage, message, values))
        return found


@dataclass(frozen=True)
class Row:
    """A way to sum. threshold: the fewest clients; None: more than half. options: the protocol's."""

    protocol: str
    encoding: Encoding
    threshold: int | None = None
    options: dict[str, Any] = field(default_factory=dict)


def private_round(row: Row, updates: np.ndarray, weights: list[int]) -> tuple[Seconds, np.ndarray]:
    """Encode, protect, sum, decode; seconds of each, all clients together, in one process and one after another."""
    clients, length = updates.shape
    started = now()
    threshold = row.threshold or clients // 2 + 1
    codec = row.encoding.codec(length, clients, threshold)
    codes = [codec.encode(update, weight).values for update, weight in zip(updates, weights, strict=True)]
    encoded = now()
    timed = Timed(row.protocol)
    plan = timed.plan(clients, codec.vector_length, codec.bits, threshold, row.options)
    found = sum_here(timed, plan, codes)
    summed = now()
    mean = codec.decode(found.values, found.included).mean
    done = now()
    spent = {who: timed.spent[who] for who in ("client", "helper", "server")}
    return {
        "encode": encoded - started,
        "clients protect": spent["client"],
        "helpers": spent["helper"],
        "server": spent["server"],
        "decode": done - summed,
        TOTAL: done - started,
        # what one round takes where every client has a machine of its own, without the network
        PATH: (encoded - started + spent["client"]) / clients + spent["helper"] + spent["server"] + done - summed,
    }, mean


def plain_round(updates: np.ndarray, weights: list[int]) -> tuple[Seconds, np.ndarray]:
    """Flower's own averaging of the same updates: of its message-based strategies, and of the older ones."""
    from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
    from flwr.server.strategy.aggregate import aggregate
    from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords

    started = now()
    records = [
        RecordDict({"arrays": ArrayRecord({"x": Array(update)}), "metrics": MetricRecord({"num-examples": weight})})
        for update, weight in zip(updates, weights, strict=True)
    ]
    made = now()
    mean = next(iter(aggregate_arrayrecords(records, "num-examples").values())).numpy()
    done = now()
    aggregate([([update], weight) for update, weight in zip(updates, weights, strict=True)])
    older = now()
    return {"make records": made - started, "average records": done - made, "average arrays": older - done}, mean


def smallest(runs: list[Seconds]) -> Seconds:
    """Of each step."""
    return {step: min(run[step] for run in runs) for step in runs[0]}


def medians(runs: list[Seconds]) -> Seconds:
    """Of each step."""
    return {step: statistics.median(run[step] for run in runs) for step in runs[0]}


def measure(
    rows: dict[str, Row], parameters: int, clients: int, runs: int
) -> tuple[dict[str, Seconds], dict[str, dict[str, Any]]]:
    """Plain and private rounds in turn, after one of each to warm up; of every step the median and the smallest.

    Plain averaging is measured three times in a row in every run, of which the
    fastest counts, by whichever of Flower's two functions is the faster: the first call after other work pays for
    memory that the others find ready.
    """
    draw = np.random.default_rng(0)
    updates = draw.normal(0, 1e-3, (clients, parameters)).astype(np.float32)
    weights = [int(w) for w in draw.integers(50, 151, clients)]
    plain, private = list[Seconds](), defaultdict[str, list[Seconds]](list)
    errors = dict[str, float]()
    for _ in range(runs + 1):
        for name, row in rows.items():
            tries = [plain_round(updates, weights) for _ in range(3)]
            plain.append(smallest([seconds for seconds, _ in tries]))
            weighted = row.encoding.max_weight > 1
            seconds, found = private_round(row, updates, weights if weighted else [1] * clients)
            private[name].append(seconds)
            errors[name] = float(np.abs(found - (tries[0][1] if weighted else updates.mean(0))).max())
    found_rows: dict[str, dict[str, Any]] = {}
    for row, each in private.items():
        found_rows[row] = {"median": medians(each[1:]), "smallest": smallest(each[1:]), "error": errors[row]}
    return {"median": medians(plain[1:]), "smallest": smallest(plain[1:])}, found_rows
