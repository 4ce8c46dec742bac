"""The server: a strategy around an existing one, which learns the sum of the clients' updates and no update.

The wrapped strategy still says who trains, on what, and what becomes of the average; between the two, the updates are
summed by a protocol of secure sums. It is handed one reply, as if from a single client that had trained to the mean: a
strategy that only uses the weighted mean (FedAvg, FedAvgM, FedAdam, FedAdagrad, FedYogi, FedProx) works as before, and
one that compares clients' updates with each other cannot, and is refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from logging import INFO, WARNING
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common.logger import log
from flwr.serverapp import Grid
from flwr.serverapp import strategy as strategies
from flwr.serverapp.strategy import Result, Strategy

from pqi.federated.codec import DecodedSum
from pqi.federated.encoding import Encoding
from pqi.federated.errors import SumRefused
from pqi.federated.flower.nodes import ClientsOnly, Helpers
from pqi.federated.flower.plan import RoundPlan, propose
from pqi.federated.flower.record import RoundRecord, facts_of, traffic_of
from pqi.federated.flower.round import SecureSum
from pqi.federated.flower.update import fingerprint, moved, parameters
from pqi.federated.flower.wire import BODY, HEAD
from pqi.federated.privacy.accounting import Accountant, Spent
from pqi.federated.privacy.mechanism import Mechanism
from protocols import get_sum
from protocols.aggregation import Sum
from protocols.errors import BadParameters, BelowThreshold, PeerMisbehaved

DEFAULT_CLIP, DEFAULT_DELTA = 10.0, 1e-5
_COMPARING = (
    *("Bulyan", "FedMedian", "FedTrimmedAvg", "FedXgbBagging", "FedXgbCyclic", "Krum", "MultiKrum", "QFedAvg"),
    *("DifferentialPrivacyClientSideAdaptiveClipping", "DifferentialPrivacyClientSideFixedClipping"),
    *("DifferentialPrivacyServerSideAdaptiveClipping", "DifferentialPrivacyServerSideFixedClipping"),
)


@dataclass(frozen=True)
class _Outcome:
    """A round that gave a sum."""

    arrays: ArrayRecord
    metrics: dict[str, float]
    weight: int
    record: RoundRecord


class Private(Strategy):  # type: ignore[misc]
    """A strategy whose clients' updates are summed without being seen: ``Private(FedAvg(), aggregator="pairwise")``.

    The clients run with :func:`pqi.federated.private_updates`.

    strategy: the one to wrap. aggregator: "pairwise", "shares", "paillier", "bfv"; "clear" hides nothing and is for
    comparison. threshold: the fewest clients of which a sum is told, or their share of those invited (two thirds, and
    three at least). clip: bound on an update's Euclidean norm (10); without a mechanism it follows what the sums tell
    about it. modulus_bits: of the ring, what a weight costs on the wire. max_weight: what a client counts at most; 1
    counts all alike. mechanism: noise for differential privacy, with a clip of its own and clients that count alike.
    encoding: an :class:`Encoding` in place of the four. metrics: name -> bound of client metrics to be averaged
    securely as well. helpers: helper's name -> node id (found by asking otherwise). options: the protocol's.
    stage_timeout: seconds to wait for answers in stages without training; the stage with training waits for ``start``'s
    timeout. Who is late is left out. accountant: of the privacy spent by a mechanism's noise; by default one with a
    delta of 1e-5.

    ``rounds`` holds a :class:`RoundRecord` a round. Raises :class:`BadParameters`, :class:`EncodingError`.
    """

    def __init__(
        self,
        strategy: Strategy,
        *,
        aggregator: str = "pairwise",
        threshold: int | float = 2 / 3,
        clip: float | None = None,
        modulus_bits: int = 16,
        max_weight: int | None = None,
        mechanism: Mechanism | None = None,
        encoding: Encoding | None = None,
        metrics: Mapping[str, float] | None = None,
        helpers: Mapping[str, int] | None = None,
        options: Mapping[str, Any] | None = None,
        stage_timeout: float = 120.0,
        accountant: Accountant | None = None,
    ) -> None:
        refused = tuple(getattr(strategies, name) for name in _COMPARING if hasattr(strategies, name))
        if isinstance(strategy, (*refused, Private)):
            raise BadParameters(
                f"{type(strategy).__name__} cannot be wrapped: it works on single clients' updates, which nobody has. "
                f"Wrap a strategy that uses their mean: FedAvg, FedAvgM, FedAdam, FedAdagrad, FedYogi, FedProx"
            )
        self.strategy, self.aggregator, self.metrics = strategy, aggregator, dict(metrics or {})
        self.threshold, self.stage_timeout = threshold, stage_timeout
        self.encoding = _encoding(encoding, clip, modulus_bits, max_weight, mechanism)
        private = self.encoding.mechanism is not None
        self.accountant = accountant or (Accountant(delta=DEFAULT_DELTA) if private else None)
        self.options = dict(options or {})
        self.rounds: list[RoundRecord] = []
        trial = get_sum(aggregator).plan(3, 1, self.encoding.modulus_bits, 3, self.options)
        self._helper_names = tuple(get_sum(aggregator).helpers(trial))
        self._helpers = Helpers(helpers, "train")
        self._timeout = 3600.0
        self._outcome: _Outcome | None = None

    def start(self, grid: Grid, initial_arrays: ArrayRecord, *args: Any, **named: Any) -> Result:
        """As the wrapped strategy's; ``timeout`` is what clients have for training."""
        self._timeout = float(named.get("timeout", args[1] if len(args) > 1 else 3600.0))
        return super().start(grid, initial_arrays, *args, **named)

    def summary(self) -> None:
        """Logs how updates are summed, and the wrapped strategy's summary."""
        log(INFO, "\t├──> Secure sums: %s, threshold %s, %s", self.aggregator, self.threshold, self.encoding)
        self.strategy.summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The whole secure round, over the grid; leaves nothing to send."""
        self._outcome = None
        helpers = self._helpers.find(grid, self._helper_names, self._timeout, self.stage_timeout)
        messages = list(self.strategy.configure_train(server_round, arrays, config, self._clients(grid)))
        if messages:
            self._outcome = self._round(server_round, messages, helpers, grid)
        return []

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """What the wrapped strategy makes of the mean. replies: none; nobody was asked outside of the secure sum."""
        done = self._outcome
        if done is None:
            return None, None
        self._outcome = None
        weight = {getattr(self.strategy, "weighted_by_key", "num-examples"): done.weight}
        content = RecordDict({"arrays": done.arrays, "metrics": MetricRecord({**weight, **done.metrics})})
        reply = Message(content, dst_node_id=0, message_type="train")
        arrays, metrics = self.strategy.aggregate_train(server_round, [reply])
        if arrays is not None:  # averaging turns counters into floats
            kept = {name: array for name, array in done.arrays.items() if np.dtype(array.dtype).kind != "f"}
            arrays = ArrayRecord({name: kept.get(name, array) for name, array in arrays.items()})
        if metrics is not None:
            metrics["clients-included"], metrics["clients-invited"] = done.record.included, done.record.invited
            if done.record.epsilon is not None and done.record.delta is not None:
                metrics["epsilon"], metrics["delta"] = done.record.epsilon, done.record.delta
        return arrays, metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """As the wrapped strategy's, for nodes with data."""
        found: Iterable[Message] = self.strategy.configure_evaluate(server_round, arrays, config, self._clients(grid))
        return found

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """As the wrapped strategy's."""
        return self.strategy.aggregate_evaluate(server_round, replies)

    def _clients(self, grid: Grid) -> Grid:
        return ClientsOnly(grid, self._helpers.nodes.values())

    def _round(
        self, server_round: int, messages: list[Message], helpers: Mapping[str, int], grid: Grid
    ) -> _Outcome | None:
        old, task = _the_task(messages)
        plan = self._plan(len(messages), old, task)
        run = SecureSum(grid, plan, dict(enumerate(messages)), helpers, self.stage_timeout, self._timeout)
        failure, found, decoded, spent = None, None, None, None
        metrics: dict[str, float] = {}
        try:
            found = run.run()
            spent = None if self.accountant is None else self.accountant.spend(plan.codec)
            metrics = self._metrics(plan, found)
            decoded = plan.codec.decode(found.values[: plan.codec.vector_length], found.included)
        except (BelowThreshold, PeerMisbehaved, SumRefused) as error:
            failure = f"{type(error).__name__}: {error}"
        record = self._record(server_round, run, found, decoded, spent, failure)
        self.rounds.append(record)
        log(WARNING if failure else INFO, "%s", record)
        if found is None or decoded is None:
            return None
        self.encoding = self.encoding.adapted(decoded)
        return _Outcome(moved(old, decoded.mean), metrics, decoded.total_weight, record)

    def _plan(self, clients: int, old: ArrayRecord, task: str) -> RoundPlan:
        if clients < 2:
            raise BadParameters(
                f"{clients} client is invited; a sum needs at least two (min_train_nodes, fraction_train)"
            )
        share = self.threshold
        # Of fewer than three a sum says too much for most clients' policies.
        threshold = share if isinstance(share, int) else max(min(3, clients), math.ceil(share * clients - 1e-9))
        weighted_by = str(getattr(self.strategy, "weighted_by_key", "num-examples"))
        shape = parameters(old), clients, threshold, weighted_by, self.metrics, self.options, task
        return propose(self.aggregator, self.encoding, *shape)

    def _metrics(self, plan: RoundPlan, found: Sum) -> dict[str, float]:
        if plan.metrics_codec is None:
            return {}
        means = plan.metrics_codec.decode(found.values[plan.codec.vector_length :], found.included).mean
        return {name: float(mean) * bound for (name, bound), mean in zip(plan.metrics.items(), means, strict=True)}

    def _record(
        self,
        server_round: int,
        run: SecureSum,
        found: Sum | None,
        decoded: DecodedSum | None,
        spent: Spent | None,
        failure: str | None,
    ) -> RoundRecord:
        included = frozenset[int]() if found is None else found.included
        lost = {run.node(party): why for party, why in run.lost.items()}
        told: dict[str, Any] = {**facts_of(run.plan, run.traffic), **traffic_of(run.traffic, included)}
        if decoded is not None:
            weight = decoded.total_weight if run.plan.weighted else None
            told |= {"total_weight": weight, "resolution": decoded.resolution, "noise": decoded.noise}
            told |= {"clipped": decoded.clipped_share, "shortened": decoded.shortened_share}
        if spent is not None:
            told |= {"epsilon": spent.epsilon, "delta": spent.delta, "privacy": spent.facts()}
        return RoundRecord(
            round=server_round,
            included=len(included),
            lost=lost,
            failure=failure,
            **told,
        )


def _encoding(
    encoding: Encoding | None,
    clip: float | None,
    modulus_bits: int,
    max_weight: int | None,
    mechanism: Mechanism | None,
) -> Encoding:
    if encoding is not None:
        if (clip, modulus_bits, max_weight, mechanism) != (None, 16, None, None):
            raise BadParameters(
                "encoding is given beside clip, modulus_bits, max_weight or mechanism; it says them all"
            )
        return encoding
    if mechanism is not None and clip is None:
        raise BadParameters("mechanism is given without clip: the noise is as large as the clip asks for, so choose it")
    if max_weight is None:
        max_weight = 1000 if mechanism is None else 1
    bound = DEFAULT_CLIP if clip is None else clip
    return Encoding(clip=bound, modulus_bits=modulus_bits, max_weight=max_weight, mechanism=mechanism)


def _the_task(messages: list[Message]) -> tuple[ArrayRecord, str]:
    """The one model in the strategy's messages, and the fingerprint of all that they say.

    Raises :class:`BadParameters` if they do not say the same to every client.
    """
    nodes = {message.metadata.dst_node_id for message in messages}
    if len(nodes) != len(messages):
        raise BadParameters("the wrapped strategy sends two messages to one node; a client is in a sum once")
    contents = {id(message.content): message.content for message in messages}.values()
    prints = {fingerprint(content) for content in contents}
    if len(prints) != 1:
        raise BadParameters(
            "the wrapped strategy sends different models or configurations to different clients: one that trains while "
            "others do not would show in the sum, so clients refuse it"
        )
    models = list(messages[0].content.array_records.values())
    if len(models) != 1:
        raise BadParameters(f"the wrapped strategy's messages hold {len(models)} ArrayRecords; it is one, the model")
    if any(name in messages[0].content for name in (HEAD, BODY)):
        raise BadParameters(f"the records {HEAD!r} and {BODY!r} in a message are this package's")
    return models[0], prints.pop()
