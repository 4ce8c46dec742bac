"""Flower in one process, with every message made into the bytes that Flower would send, counted, and read back.

Flower's SecAgg+ (its own workflow and client mod, unchanged) and ``pqi``'s strategy and mod run over the same grid, so
that their bytes are counted in the same way: every object that Flower makes of a message's ``RecordDict`` and pushes or
pulls (records, arrays, chunks), both ways, without what the transport adds to either.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.app.metadata import Metadata
from flwr.client import NumPyClient
from flwr.client.mod import secaggplus_mod
from flwr.clientapp import ClientApp
from flwr.common import ndarrays_to_parameters, parameters_to_ndarrays
from flwr.compat.common.recorddict_compat import arrayrecord_to_parameters, parameters_to_arrayrecord
from flwr.server import ServerConfig
from flwr.server.client_manager import SimpleClientManager
from flwr.server.compat.grid_client_proxy import GridClientProxy
from flwr.server.compat.legacy_context import LegacyContext
from flwr.server.strategy import FedAvg
from flwr.server.workflow import SecAggPlusWorkflow
from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD, Key
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.task_identity import TaskIdentity

RUN = 1
App = Callable[[Message, Context], Message]


@dataclass
class Wire:
    """Bytes of contents by node: to it and from it."""

    down: Counter[int] = field(default_factory=Counter)
    up: Counter[int] = field(default_factory=Counter)

    def per_client(self, nodes: Iterable[int]) -> dict[str, float]:
        """Means over these nodes."""
        some = list(nodes)
        down, up = (float(np.mean([count[node] for node in some])) for count in (self.down, self.up))
        return {"down": down, "up": up, "both": down + up}


class OneProcess(Grid):
    """Nodes of one process behind Flower's interface of a grid. apps: by node number; each keeps its own context."""

    def __init__(self, apps: dict[int, App], node_config: dict[int, dict[str, Any]] | None = None) -> None:
        configs = node_config or {}
        self.apps, self.wire, self._numbers = apps, Wire(), itertools.count(1)
        self.contexts = {
            node: Context(RUN, node, {"partition-id": k, **configs.get(node, {})}, RecordDict(), {})
            for k, node in enumerate(apps)
        }
        self._replies: dict[str, Message] = {}
        TaskIdentity.run_id = TaskIdentity.task_id = RUN  # as a process that runs a ServerApp has them
        TaskIdentity.node_id = 0

    def set_run(self, run: Any) -> None:
        """There is one run."""

    @property
    def run(self) -> Any:
        """There is nothing to know of it."""
        return None

    def create_message(self, *args: Any, **named: Any) -> Message:
        """Messages are made by their class."""
        raise NotImplementedError("messages are made by their class")

    def get_node_ids(self) -> list[int]:
        """Every node."""
        return list(self.apps)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Runs each node's app at once."""
        names = []
        for message in messages:
            reply = self._deliver(message)
            names.append(f"m{next(self._numbers)}")
            self._replies[names[-1]] = reply
        return names

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """The replies that are there."""
        return [self._replies.pop(name) for name in list(message_ids) if name in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Every message answered, one node after another."""
        return self.pull_messages(self.push_messages(messages))

    def _deliver(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        content, length = carried(message.content)
        self.wire.down[node] += length
        arrived = _message(content, message.metadata, f"q{next(self._numbers)}", 0, node, "")
        reply = self.apps[node](arrived, self.contexts[node])
        if reply.has_error():
            return reply
        content, length = carried(reply.content)
        self.wire.up[node] += length
        return _message(content, message.metadata, f"a{next(self._numbers)}", node, 0, arrived.metadata.message_id)


def carried(content: RecordDict) -> tuple[RecordDict, int]:
    """A content made into bytes and back, and how many bytes."""
    objects = {name: part.deflate() for name, part in get_all_nested_objects(content).items()}
    length = sum(map(len, objects.values()))
    return inflate_object_from_contents(content.object_id, objects), length  # which empties the dictionary


def _message(content: RecordDict, like: Metadata, name: str, source: int, target: int, reply_to: str) -> Message:
    metadata = Metadata(
        run_id=RUN,
        message_id=name,
        src_node_id=source,
        dst_node_id=target,
        reply_to_message_id=reply_to,
        group_id=like.group_id,
        created_at=time.time(),
        ttl=like.ttl,
        message_type=like.message_type,
    )
    return Message(metadata=metadata, content=content)


class _Fixed(NumPyClient):
    """A client that has trained already: it sends the same arrays and weight whatever it is asked."""

    def __init__(self, arrays: list[np.ndarray], weight: int) -> None:
        self._arrays, self._weight = arrays, weight

    def fit(self, parameters: list[np.ndarray], config: dict[str, Any]) -> tuple[list[np.ndarray], int, dict[str, Any]]:
        """As it was made."""
        return self._arrays, self._weight, {}


@dataclass(frozen=True)
class SecAggPlus:
    """One round of Flower's SecAgg+. bytes: per client. error: largest difference from the weighted mean."""

    bytes: dict[str, float]
    error: float
    seconds: float


def secagg_plus(
    model: list[np.ndarray], updates: list[list[np.ndarray]], weights: list[int], shares: int | float, threshold: Any
) -> SecAggPlus:
    """One round by Flower's own workflow and mod; ``updates`` are the arrays that each client sends after training."""
    logging.getLogger("flwr").setLevel(logging.ERROR)
    nodes = [1000 + k for k in range(len(updates))]

    def app(arrays: list[np.ndarray], weight: int) -> ClientApp:
        return ClientApp(client_fn=lambda _: _Fixed(arrays, weight).to_client(), mods=[secaggplus_mod])

    grid = OneProcess({node: app(*each) for node, each in zip(nodes, zip(updates, weights, strict=True), strict=True)})
    strategy = FedAvg(fraction_fit=1.0, min_fit_clients=len(nodes), min_available_clients=len(nodes))
    manager = SimpleClientManager()
    for node in nodes:
        manager.register(GridClientProxy(node, grid, RUN))
    context = LegacyContext(Context(RUN, 0, {}, RecordDict(), {}), ServerConfig(1), strategy, manager)
    context.state.array_records[MAIN_PARAMS_RECORD] = parameters_to_arrayrecord(ndarrays_to_parameters(model), True)
    context.state.config_records[MAIN_CONFIGS_RECORD] = ConfigRecord({Key.CURRENT_ROUND: 1})
    started = time.perf_counter()
    SecAggPlusWorkflow(shares, threshold, max_weight=float(max(weights)))(grid, context)
    seconds = time.perf_counter() - started
    result = parameters_to_ndarrays(arrayrecord_to_parameters(context.state.array_records[MAIN_PARAMS_RECORD], True))
    error = 0.0
    for place, array in enumerate(result):
        mean = sum(w * u[place] for w, u in zip(weights, updates, strict=True)) / sum(weights)
        error = max(error, float(np.abs(mean - array).max()))
    return SecAggPlus(grid.wire.per_client(nodes), error, seconds)


@dataclass(frozen=True)
class PrivateRound:
    """One round of ``pqi.federated.Private``: bytes per client, error as of :class:`SecAggPlus`, seconds."""

    bytes: dict[str, float]
    error: float
    seconds: float


def private_round(
    aggregator: str, model: list[np.ndarray], updates: list[list[np.ndarray]], weights: list[int], clip: float
) -> PrivateRound:
    """One round of the same clients by ``pqi``'s strategy and mod, over the same grid, weighted as plain FedAvg."""
    from flwr.app import Array, ArrayRecord, MetricRecord
    from flwr.serverapp.strategy import FedAvg as MessageFedAvg

    import pqi.federated
    from protocols import get_sum

    logging.getLogger("flwr").setLevel(logging.ERROR)
    mod = pqi.federated.private_updates()

    def app(arrays: list[np.ndarray], weight: int) -> App:
        made = ClientApp(mods=[mod])

        @made.train()
        def train(message: Message, context: Context) -> Message:
            moved = ArrayRecord({name: Array(a) for name, a in zip(message.content["arrays"], arrays, strict=True)})
            content = RecordDict({"arrays": moved, "metrics": MetricRecord({"num-examples": weight})})
            return Message(content, reply_to=message)

        return made

    nodes = [1000 + k for k in range(len(updates))]
    apps: dict[int, App] = {
        node: app(*each) for node, each in zip(nodes, zip(updates, weights, strict=True), strict=True)
    }
    protocol = get_sum(aggregator)
    names = protocol.helpers(protocol.plan(len(nodes), 1, 16, len(nodes)))
    helpers = {name: 1 + k for k, name in enumerate(names)}
    apps |= dict.fromkeys(helpers.values(), pqi.federated.helper_app())
    grid = OneProcess(apps, {node: {"pqi-role": name} for name, node in helpers.items()})
    strategy = pqi.federated.Private(
        MessageFedAvg(min_available_nodes=len(nodes), min_train_nodes=len(nodes), fraction_evaluate=0.0),
        aggregator=aggregator,
        encoding=pqi.federated.Encoding(clip=clip, max_weight=max(weights), total_weight=sum(weights)),
        helpers=helpers,
    )
    arrays = ArrayRecord({f"a{k}": Array(array) for k, array in enumerate(model)})
    started = time.perf_counter()
    result = strategy.start(grid, arrays, num_rounds=1)
    seconds = time.perf_counter() - started
    error = 0.0
    for place, array in enumerate(result.arrays.values()):
        mean = sum(w * u[place] for w, u in zip(weights, updates, strict=True)) / sum(weights)
        error = max(error, float(np.abs(mean - array.numpy()).max()))
    return PrivateRound(grid.wire.per_client(nodes), error, seconds)
