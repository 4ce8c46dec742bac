"""A Flower federation in one thread: a grid whose nodes are called in turn; all messages go through Flower's own bytes.

Nothing is shared between the nodes or with the server: messages and saved states are written out and read back, so
what a test sees is what machines would exchange.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.app.error import Error
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.task_identity import TaskIdentity

from pqi.federated import Private, private_updates
from pqi.federated.flower.wire import HEAD

CLAIMS = tempfile.mkdtemp()
atexit.register(shutil.rmtree, CLAIMS, ignore_errors=True)

# (node, stage, message) -> the message that arrives, or None: nothing does. Stage is empty for Flower's own messages.
Fault = Callable[[int, str, Message], "Message | None"]


def copied(thing: Any) -> Any:
    """An object of Flower's, through its bytes."""
    objects = {name: part.deflate() for name, part in get_all_nested_objects(thing).items()}
    return inflate_object_from_contents(thing.object_id, objects)


def stage_of(message: Message) -> str:
    if not message.has_content() or HEAD not in message.content.config_records:
        return ""
    return str(message.content.config_records[HEAD].get("stage", ""))


@dataclass
class Node:
    """One SuperNode: its configuration and what its apps saved."""

    app: ClientApp
    config: dict[str, Any]
    state: RecordDict = field(default_factory=RecordDict)


class MemoryGrid(Grid):
    """Nodes are numbered from 101. going: what happens to messages on their way; coming: to replies."""

    def __init__(self, app: ClientApp, nodes: int, configs: dict[int, dict[str, Any]] | None = None) -> None:
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
        self.nodes: dict[int, Node] = {}
        for place in range(nodes):
            config = {"partition-id": place, "num-partitions": nodes} | (configs or {}).get(place, {})
            self.nodes[101 + place] = Node(app, config)
        self.going: Fault = lambda node, stage, message: message
        self.coming: Fault = lambda node, stage, message: message
        self.seen: list[tuple[str, int, str]] = []
        self.errors: list[str] = []
        self.trained: list[int] = []
        self.run_config: dict[str, Any] = {}
        self._message = 0

    def set_run(self, run: Any) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Any:
        raise NotImplementedError

    def create_message(self, *args: Any, **named: Any) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> list[int]:
        return list(self.nodes)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        raise NotImplementedError

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        raise NotImplementedError

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        replies = []
        for message in messages:
            node, stage = message.metadata.dst_node_id, stage_of(message)
            arriving = self.going(node, stage, copied(message))
            if arriving is None:
                continue
            self.seen.append((arriving.metadata.message_type, node, stage))
            if arriving.has_content() and "arrays" in arriving.content and arriving.metadata.message_type == "train":
                self.trained.append(node)
            reply = self.coming(node, stage, self.ask(node, arriving))
            if reply is not None:
                replies.append(reply)
        return replies

    def ask(self, node: int, message: Message) -> Message:
        """One message handled by a node, as a SuperNode does: saved state in, saved state out, errors as replies."""
        here = self.nodes[node]
        self._message += 1
        message.metadata.__dict__["_message_id"] = f"m{self._message}"
        context = Context(1, node, dict(here.config), copied(here.state), dict(self.run_config))
        try:
            reply = here.app(message, context)
            here.state = copied(context.state)
            reply = copied(reply)
        except Exception as broken:
            reply = Message(Error(2, f"{type(broken)}: {broken}"), reply_to=message)
        if reply.has_error():
            self.errors.append(str(reply.error.reason))
        return reply


def array(values: np.ndarray) -> Array:
    return Array(np.asarray(values))


def start_arrays() -> ArrayRecord:
    """A model of two arrays, 15 numbers."""
    weight = np.linspace(-1, 1, 10, dtype=np.float32).reshape(2, 5)
    return ArrayRecord({"weight": array(weight), "bias": array(np.zeros(5, np.float32))})


def moving_app(**policy: Any) -> ClientApp:
    """Node k of the partition moves every number by 0.1 (k + 1); it has 100 (k + 1) examples and a loss of k + 1."""
    app = ClientApp(mods=[private_updates(claims=tempfile.mkdtemp(dir=CLAIMS), **policy)])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        if "fails" in context.node_config:
            raise ValueError(context.node_config["fails"])
        step = int(context.node_config["partition-id"]) + 1
        arrays = message.content["arrays"]
        moved = {name: array(old.numpy() + np.float32(0.1 * step)) if old.dtype == "float32" else array(old.numpy() + 1)
                 for name, old in arrays.items()}  # fmt: skip
        metrics = MetricRecord({"num-examples": 100 * step, "loss": float(step), "secret": 4711})
        return Message(RecordDict({"arrays": ArrayRecord(moved), "metrics": metrics}), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        metrics = MetricRecord({"num-examples": 10, "accuracy": 0.5})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


def wait_for_nobody(strategy: Private) -> Private:
    """The strategy, for a grid that answers at once."""
    strategy.stage_timeout = 0.0
    return strategy


def message_to(node: int, content: RecordDict) -> Message:
    """A message of type train, as a strategy makes it."""
    return Message(content, dst_node_id=node, message_type="train")
