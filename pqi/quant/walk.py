"""The float graph and the integer graph on the same inputs, layer by layer, while the integer one may still change.

For the stages that look at the data again after lowering: each value is computed once, from layers that are already
final, and dropped as soon as nobody needs it; so all layers together cost one run of each graph.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pqi.graph.floating import FloatNode
from pqi.graph.graph import IntegerGraph
from pqi.graph.ops import WEIGHTED, Add, Op
from pqi.graph.ops.base import Shape
from pqi.quant.stages import Calibration, Lowered

_CHUNK_VALUES = 1 << 20


@dataclass(frozen=True)
class Site:
    """One accumulator that somebody reads: a linear node, or an addition with its terms.

    name: of the node whose value it is. terms: the nodes with weights that make it. readers: the float nodes that
    read it. The value n stands for the real (n - offset) * scale.
    """

    name: str
    terms: tuple[str, ...]
    readers: tuple[FloatNode, ...]
    scale: float | Tensor
    offset: int


class Walk:
    """Both graphs on some of the calibration sample.

    floats, integers: the values that are alive, (m, ...), float32 and int64. ops: the integer operators, changeable
    through ``change``. values: the sample is cut so that the widest layer has at most so many of them.
    """

    def __init__(self, calibration: Calibration, lowered: Lowered, values: int) -> None:
        self.lowered = lowered
        self.graph = calibration.placed.graph
        self.readers = self.graph.consumers()
        self.ops: dict[str, Op] = {n.name: n.op for n in lowered.graph.nodes}
        widest = max(math.prod(shape) for shape in self.graph.shapes.values())
        sample = calibration.sample[: max(1, values // widest)].to(torch.float32)
        codes = torch.from_numpy(calibration.quantizer.saturating_codes(sample)[0])
        entry = self.graph.nodes[0].name
        self.floats: dict[str, Tensor] = {entry: sample}
        self.integers: dict[str, Tensor] = {entry: codes}
        self.known = self.graph.by_name()

    def sites(self) -> Iterator[Site]:
        """Run both graphs; stop at every site, when its terms, their inputs and its own value are at hand."""
        last = self._last_use()
        for index, node in enumerate(self.graph.nodes):
            if index:
                self._evaluate(node)
            if self._is_site(node):
                yield self._site(node)
            for name in [n for n in self.floats if last[n] <= index]:
                del self.floats[name], self.integers[name]

    def change(self, site: Site, ops: dict[str, Op]) -> None:
        """Put other operators in place of terms of the site, and compute its integers anew."""
        self.ops.update(ops)
        for name in dict.fromkeys((*ops, site.name)):
            self._integers(self.known[name])

    def shape(self, name: str) -> Shape:
        """The shape of a value without the batch axis."""
        return self.graph.shapes[name]

    def result(self) -> Lowered:
        """The lowered graph with the operators as they are now."""
        nodes = tuple(replace(n, op=self.ops[n.name]) for n in self.lowered.graph.nodes)
        return replace(self.lowered, graph=IntegerGraph(nodes, self.lowered.graph.output))

    def _last_use(self) -> dict[str, int]:
        """Until when values are needed: what an addition's terms read stays until the addition is done."""
        place = {n.name: i for i, n in enumerate(self.graph.nodes)}
        last = {name: place[name] for name in place}
        for node in reversed(self.graph.nodes):
            until = max([place[node.name], *(place[r.name] for r in self.readers[node.name] if isinstance(r.op, Add))])
            for name in node.inputs:
                last[name] = max(last[name], until)
        return last

    def _evaluate(self, node: FloatNode) -> None:
        self.floats[node.name] = torch.cat(in_parts(node.op, [self.floats[i] for i in node.inputs]))
        self._integers(node)

    def _integers(self, node: FloatNode) -> None:
        inputs = [self.integers[i] for i in node.inputs]
        self.integers[node.name] = torch.cat(in_parts(self.ops[node.name], inputs))

    def _is_site(self, node: FloatNode) -> bool:
        if not isinstance(self.ops[node.name], (*WEIGHTED, Add)):
            return False
        return not any(isinstance(r.op, Add) for r in self.readers[node.name])

    def _site(self, node: FloatNode) -> Site:
        inputs = node.inputs if isinstance(node.op, Add) else (node.name,)
        return Site(
            node.name,
            tuple(name for name in inputs if isinstance(self.ops[name], WEIGHTED)),
            tuple(self.readers[node.name]),
            self.lowered.scales[node.name],
            self.lowered.offsets.get(node.name, 0),
        )


def in_parts(op: Op, inputs: list[Tensor]) -> list[Tensor]:
    """The operator on parts of the batch: windows of a convolution need several times its input's memory."""
    size = max(1, _CHUNK_VALUES // max(1, max(x[0].numel() for x in inputs)))
    return [op.evaluate(parts) for parts in zip(*(torch.split(x, size) for x in inputs), strict=True)]


def channel_means(value: Tensor, axis: int) -> Tensor:
    """Means over all axes but one, float64 (C,)."""
    return value.movedim(axis, 0).flatten(1).mean(1, dtype=torch.float64)
