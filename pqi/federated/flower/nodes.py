"""Which Flower node plays which part: clients with data, and helpers without.

A helper node says so when it is asked (``pqi-role`` in its own node config, see :mod:`pqi.federated.flower.mod`). The
app's strategy must never send it a model to train, so it samples from a grid that shows clients only.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

from flwr.app import Message
from flwr.serverapp import Grid

from pqi.federated.flower.wire import role_in, roll_call
from protocols.errors import BadParameters, PeerMisbehaved

_PAUSE = 1.0  # between two roll calls, while a helper's node is still starting


class ClientsOnly(Grid):  # type: ignore[misc]
    """A grid without its helper nodes; everything else is passed on."""

    def __init__(self, grid: Grid, hidden: Iterable[int]) -> None:
        self._grid, self._hidden = grid, frozenset(hidden)

    def set_run(self, run: Any) -> None:
        """As the grid behind."""
        self._grid.set_run(run)

    @property
    def run(self) -> Any:
        """As the grid behind."""
        return self._grid.run

    def create_message(self, *args: Any, **named: Any) -> Message:
        """As the grid behind."""
        return self._grid.create_message(*args, **named)

    def get_node_ids(self) -> list[int]:
        """The nodes that are no helpers."""
        return [node for node in self._grid.get_node_ids() if node not in self._hidden]

    def get_nodes(self) -> list[Any]:
        """The nodes that are no helpers, with what Flower knows of them."""
        return [node for node in self._grid.get_nodes() if node.node_id not in self._hidden]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """As the grid behind."""
        return list(self._grid.push_messages(messages))

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """As the grid behind."""
        return list(self._grid.pull_messages(message_ids))

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """As the grid behind."""
        return list(self._grid.send_and_receive(messages, timeout=timeout))


class Helpers:
    """The helpers' nodes: named beforehand, or found by asking every node once.

    known: helper's name -> node id, for a federation that names them; nobody is asked for a name that is in here.
    """

    def __init__(self, known: Mapping[str, int] | None, message_type: str) -> None:
        self._nodes = dict(known or {})
        self._asked: set[int] = set(self._nodes.values())
        self._type = message_type

    @property
    def nodes(self) -> dict[str, int]:
        """helper's name -> node id, as far as known."""
        return dict(self._nodes)

    def find(self, grid: Grid, names: tuple[str, ...], wait: float, answer: float) -> dict[str, int]:
        """Node ids of the helpers; raises :class:`BadParameters` that says who is missing and how to start it.

        wait: seconds until all have to be connected. answer: seconds that nodes have to say who they are.
        """
        deadline = time.monotonic() + wait
        while set(names) - set(self._nodes):
            self._ask(grid, min(answer, max(deadline - time.monotonic(), 0.0)))
            if time.monotonic() >= deadline:
                break
            if set(names) - set(self._nodes):
                time.sleep(_PAUSE)
        missing = [name for name in names if name not in self._nodes]
        if missing:
            raise BadParameters(
                f"no connected node plays the helper {missing[0]!r}; start one with "
                f"flower-supernode --node-config 'pqi-role=\"{missing[0]}\"' (in a simulation: "
                f"private_updates(simulated_helpers={{{missing[0]!r}: <partition id>}}))"
            )
        return {name: self._nodes[name] for name in names}

    def _ask(self, grid: Grid, timeout: float) -> None:
        fresh = [node for node in grid.get_node_ids() if node not in self._asked]
        messages = [Message(roll_call(), dst_node_id=node, message_type=self._type) for node in fresh]
        if not messages:
            return
        for reply in grid.send_and_receive(messages, timeout=timeout):
            node = reply.metadata.src_node_id
            if node not in fresh or node in self._asked:
                continue
            try:
                role = role_in(reply)
            except PeerMisbehaved:
                role = None
            # A node without an answer of ours may still have no mod, or be slow: it is asked again next time.
            if role is not None:
                self._asked.add(node)
            if role:
                self._book(role, node)

    def _book(self, role: str, node: int) -> None:
        if role in self._nodes:
            raise BadParameters(
                f"two nodes say that they are the helper {role!r}: {self._nodes[role]} and {node}; stop one of them, "
                f"or name the right one: Private(..., helpers={{{role!r}: <node id>}})"
            )
        self._nodes[role] = node
