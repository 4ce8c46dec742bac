"""How far each example drives a network: the largest magnitude at every place whose range calibration will choose."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pqi.graph.capture import capture
from pqi.graph.floating import Clamp
from pqi.graph.rewrite import simplify
from pqi.quant.calibrate import as_the_network_wants
from pqi.quant.place import place

INPUT = "input"
_LEAST = 1e-12
_PART = 128


class Extremes:
    """A network's places: its input, and every value that will become codes.

    net: left as it is. example: one input or more (n, ...), for their shape.
    """

    def __init__(self, net: nn.Module, example: Tensor) -> None:
        self._graph = place(simplify(capture(net, as_the_network_wants(net, example[:1])))).graph
        self.places = (INPUT, *(node.name for node in self._graph.nodes if isinstance(node.op, Clamp)))

    def logarithms(self, x: Tensor) -> Tensor:
        """log max |value| of each example at each place, (n, places) for inputs (n, ...); has a gradient."""
        values, found = {self._graph.nodes[0].name: x}, [_most(x)]
        for node in self._graph.nodes[1:]:
            values[node.name] = node.op.evaluate([values[name] for name in node.inputs])
            if isinstance(node.op, Clamp):
                found.append(_most(values[node.name]))
        return torch.stack(found, dim=1)

    @torch.no_grad()
    def of(self, x: Tensor) -> Tensor:
        """The same without gradients, in parts."""
        return torch.cat([self.logarithms(part) for part in torch.split(x, _PART)])


def _most(value: Tensor) -> Tensor:
    return value.flatten(1).abs().amax(1).clamp(min=_LEAST).log()
