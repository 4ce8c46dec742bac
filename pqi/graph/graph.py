"""The integer graph: nodes in the order in which they can be computed, checked once, then only read."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from pqi.graph.errors import GraphError
from pqi.graph.ops import READERS, Input, Op, Shape
from pqi.graph.ops.base import MAX_ELEMENTS

OUTPUT = "output"  # the name under which the reader of the result stands among the consumers
MAX_NODES = 10_000
MAX_TOTAL = 1 << 29  # values of all nodes together, for one input


@dataclass(frozen=True)
class Node:
    """One operator with its name, the names of its inputs, and the place in the user's code that it comes from."""

    name: str
    op: Op
    inputs: tuple[str, ...] = ()
    source: str = ""


class IntegerGraph:
    """Nodes in topological order; the first is the only Input; ``output`` names the node whose value is the answer.

    ``shapes`` gives every value's shape without the batch axis. The constructor checks everything (names, order,
    number of inputs, shapes) and raises GraphError; a constructed graph is consistent.
    """

    def __init__(self, nodes: tuple[Node, ...], output: str) -> None:
        self.nodes = tuple(nodes)
        self.output = output
        self.shapes: dict[str, Shape] = {}
        if not self.nodes or not isinstance(self.nodes[0].op, Input):
            raise GraphError("the first node of a graph must be its input")
        if len(self.nodes) > MAX_NODES:
            raise GraphError(f"{len(self.nodes)} nodes; a graph has at most {MAX_NODES}")
        for position, node in enumerate(self.nodes):
            self._admit(node, position)
        total = sum(math.prod(shape) for shape in self.shapes.values())
        if total > MAX_TOTAL:
            raise GraphError(f"the graph computes {total} values for one input; at most {MAX_TOTAL} are allowed")
        if output not in self.shapes:
            raise GraphError(f"the output {output!r} is not the name of a node")
        self.by_name: dict[str, Node] = {node.name: node for node in self.nodes}
        self.consumers: dict[str, tuple[Node, ...]] = dict.fromkeys(self.shapes, ())
        for node in self.nodes:
            for name in dict.fromkeys(node.inputs):
                self.consumers[name] = (*self.consumers[name], node)

    def _admit(self, node: Node, position: int) -> None:
        if not node.name or node.name == OUTPUT or node.name in self.shapes:
            raise GraphError(f"node {position} is named {node.name!r}: names are unique, not empty and not {OUTPUT!r}")
        if position and isinstance(node.op, Input):
            raise GraphError(f"node {node.name!r} is a second input; a graph has one")
        missing = [name for name in node.inputs if name not in self.shapes]
        if missing:
            raise GraphError(f"node {node.name!r} reads {missing}, which no earlier node computes")
        least, most = node.op.inputs_needed
        if len(node.inputs) < least or (most is not None and len(node.inputs) > most):
            raise GraphError(f"node {node.name!r} ({node.op.kind}) has {len(node.inputs)} inputs")
        try:
            shape = node.op.infer_shape([self.shapes[name] for name in node.inputs])
        except GraphError as error:
            raise GraphError(f"node {node.name!r}: {error}") from error
        if math.prod(shape) > MAX_ELEMENTS:
            raise GraphError(f"node {node.name!r} has shape {shape}: more than {MAX_ELEMENTS} values")
        self.shapes[node.name] = shape

    @property
    def input(self) -> Input:
        """The input operator."""
        op = self.nodes[0].op
        if not isinstance(op, Input):  # the constructor has seen to it; this tells the type checker
            raise GraphError("the first node of a graph must be its input")
        return op

    def readers(self) -> dict[str, str]:
        """Who consumes accumulators and which: {consumer's name: name of its input}, the answer under "output"."""
        found = {n.name: n.inputs[0] for n in self.nodes if isinstance(n.op, READERS)}
        return {**found, OUTPUT: self.output}

    def run(self, codes: Tensor, before_reading: Callable[[str, Tensor], Tensor] | None = None) -> Tensor:
        """The exact integer result for a batch of codes (N, *input shape), int64.

        ``before_reading(consumer, value)`` may observe or reduce the value that a Requantize, a Step, a Lookup or the
        output is about to read. Values are dropped as soon as nobody needs them any more.
        """
        left = {name: len(readers) for name, readers in self.consumers.items()}
        left[self.output] += 1
        values: dict[str, Tensor] = {self.nodes[0].name: codes}
        for node in self.nodes[1:]:
            inputs = [values[name] for name in node.inputs]
            if before_reading is not None and isinstance(node.op, READERS):
                inputs = [before_reading(node.name, inputs[0])]
            values[node.name] = node.op.evaluate(inputs)
            for name in set(node.inputs):
                left[name] -= 1
                if not left[name]:
                    del values[name]
        answer = values[self.output]
        return answer if before_reading is None else before_reading(OUTPUT, answer)

    def weight_count(self) -> dict[str, int]:
        """Number of weights of each node that has any."""
        counts = {n.name: sum(t.numel() for t in _weights(n.op).values()) for n in self.nodes}
        return {name: count for name, count in counts.items() if count}


def _weights(op: Op) -> Mapping[str, Tensor]:
    return {k: t for k, t in op.tensors().items() if k in ("weight", "bias")}
