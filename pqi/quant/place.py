"""Where values become codes: put a requantization in front of every operator that needs one.

Afterwards every value of the float graph is either a *code* (the input, the result of an activation, or either of
them moved or pooled) or an *accumulator* (the result of a linear operator or of an addition), and

1. linear operators and maxima read codes;
2. every activation reads an accumulator that nobody else reads;
3. an addition reads linear operators that nobody else reads (codes enter through an affine of weight 1);
4. values that are only moved or averaged on their way to the answer may stay accumulators (the *tail*).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from pqi.graph.floating import Activation, Affine, AvgPool2d, Clamp, Entry, FloatGraph, FloatNode, Linear
from pqi.graph.ops import Add, Concat, MaxPool2d, Pad, Permute, Reshape, Slice

_TAIL = (Reshape, Permute, Slice, Pad, AvgPool2d, Concat)
_INPUT = "input grid"
_UNIT = "unit grid"


@dataclass
class Placed:
    """The float graph with requantizations, which values are codes, and which clamps must share one scale."""

    graph: FloatGraph
    codes: set[str] = field(default_factory=set)
    tail: set[str] = field(default_factory=set)
    groups: dict[str, str] = field(default_factory=dict)  # clamp -> clamp that stands for its group

    def group(self, name: str) -> str:
        """The representative of a clamp's scale group."""
        while self.groups.get(name, name) != name:
            name = self.groups[name]
        return name


def place(graph: FloatGraph) -> Placed:
    """Insert requantizations; the float function changes by nothing (they are endless clamps until calibrated)."""
    return _Placer(graph).run()


class _Placer:
    def __init__(self, graph: FloatGraph) -> None:
        self.source = graph
        self.readers = graph.consumers()
        self.shapes = dict(graph.shapes)
        self.out: dict[str, FloatNode] = {}
        self.codes: set[str] = set()
        self.tail = self._find_tail()
        self.made: dict[str, str] = {}  # accumulator -> the requantization of it that all its readers share
        self.result = Placed(graph)
        self.grid: dict[str, tuple[str, float]] = {}  # code -> (what fixes its scale, factor)

    def run(self) -> Placed:
        for node in self.source.nodes:
            inputs = self._inputs(node)
            self._emit(replace(node, inputs=inputs), self._is_code(node, inputs))
        graph = FloatGraph(list(self.out.values()), self.source.output)
        graph.refresh()
        kept = set(graph.shapes)
        return replace(self.result, graph=graph, codes=self.codes & kept, tail=self.tail & kept)

    def _find_tail(self) -> set[str]:
        known, tail, todo = self.source.by_name(), set(), [self.source.output]
        while todo:
            node = known[todo.pop()]
            if isinstance(node.op, _TAIL) and not (self.readers[node.name] and node.name == self.source.output):
                tail.add(node.name)
                todo += [i for i in node.inputs if len(self.readers[i]) == 1]
        return tail

    def _is_code(self, node: FloatNode, inputs: Sequence[str]) -> bool:
        if isinstance(node.op, (Entry, Activation)):
            return True
        return not isinstance(node.op, (Linear, Add)) and all(i in self.codes for i in inputs)

    def _emit(self, node: FloatNode, is_code: bool) -> str:
        self.out[node.name] = node
        self.shapes.setdefault(node.name, node.op.infer_shape([self.shapes[i] for i in node.inputs]))
        if is_code:
            self.codes.add(node.name)
            self.grid[node.name] = self._grid_of(node)
        return node.name

    def _grid_of(self, node: FloatNode) -> tuple[str, float]:
        if isinstance(node.op, Entry):
            return _INPUT, 1.0
        if isinstance(node.op, Clamp):
            self.result.groups.setdefault(node.name, node.name)
            return node.name, 1.0
        if isinstance(node.op, Activation):
            return _UNIT, 1.0
        root, factor = self.grid[node.inputs[0]]
        return root, factor / (node.op.divisor if isinstance(node.op, AvgPool2d) else 1)

    def _inputs(self, node: FloatNode) -> tuple[str, ...]:
        if isinstance(node.op, (Linear, MaxPool2d)):
            return tuple(self._as_code(i) for i in node.inputs)
        if isinstance(node.op, Activation):
            (name,) = node.inputs
            alone = name not in self.codes and len(self.readers[name]) == 1 and name != self.source.output
            return (name,) if alone and name not in self.tail else (self._as_accumulator(name, node),)
        if isinstance(node.op, Add):
            return tuple(term for name in node.inputs for term in self._terms(name, node))
        if isinstance(node.op, Concat):
            return self._joined(node)
        return node.inputs if node.name in self.tail else tuple(self._as_code(i) for i in node.inputs)

    def _as_code(self, name: str) -> str:
        """The value itself if it is a code, otherwise its requantization."""
        if name in self.codes:
            return name
        if name not in self.made:
            before = self.out[name]
            fresh = FloatNode(f"{name}.requantize", Clamp(), (name,), before.source)
            self.made[name] = self._emit(fresh, is_code=True)
        return self.made[name]

    def _as_accumulator(self, name: str, reader: FloatNode) -> str:
        """A fresh accumulator with the value of a code (or of an accumulator that has other readers too)."""
        code = self._as_code(name)
        channels = self.shapes[code][0]
        op = Affine(torch.ones(channels, dtype=torch.float64), torch.zeros(channels, dtype=torch.float64))
        label, count = f"{reader.name}.scale", 2
        while label in self.out:
            label, count = f"{reader.name}.scale#{count}", count + 1
        return self._emit(FloatNode(label, op, (code,), reader.source), is_code=False)

    def _terms(self, name: str, add: FloatNode) -> tuple[str, ...]:
        """What an addition reads for one input: a linear operator of its own, or the terms of an inner addition."""
        own = name not in self.codes and len(self.readers[name]) == 1 and name != self.source.output
        if own and add.inputs.count(name) == 1:
            op = self.out[name].op
            if isinstance(op, Add):
                return self.out.pop(name).inputs
            if isinstance(op, Linear):
                return (name,)
        return (self._as_accumulator(name, add),)

    def _joined(self, node: FloatNode) -> tuple[str, ...]:
        """Inputs of a concatenation, brought to one scale."""
        if node.name in self.tail and not all(i in self.codes for i in node.inputs):
            own = [i not in self.codes and len(self.readers[i]) == 1 for i in node.inputs]
            return tuple(i if mine else self._as_accumulator(i, node) for i, mine in zip(node.inputs, own, strict=True))
        codes = [self._as_code(i) for i in node.inputs]
        if len({self.grid[c] for c in codes}) == 1:
            return tuple(codes)
        # Fixed or averaged scales cannot be chosen: such a branch is brought to a scale that can.
        for at, code in enumerate(codes):
            root, factor = self.grid[code]
            if root in (_INPUT, _UNIT) or factor != 1.0:
                codes[at] = self._as_code(self._as_accumulator(code, node))
        first = self.result.group(self.grid[codes[0]][0])
        for code in codes[1:]:
            self.result.groups[self.result.group(self.grid[code][0])] = first
        return tuple(codes)
