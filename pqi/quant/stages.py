"""What the stages of a quantization hand on: Calibration, then Lowered; the model comes last."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pqi.graph.graph import IntegerGraph
from pqi.quant.dynamic import DynamicScale
from pqi.quant.levels import around
from pqi.quant.observers import Observation
from pqi.quant.place import Placed
from pqi.quant.quantizer import Quantizer
from pqi.quant.scheme import Scheme


@dataclass(frozen=True)
class InputRange:
    """What the client's quantizer is chosen from: the ends seen, whether all values are whole, the declared ends."""

    lo: float
    hi: float
    whole: bool
    declared: tuple[float, float] | None = None


@dataclass(frozen=True)
class Calibration:
    """A captured network, where its values become codes, and what calibration saw there.

    placed: the float graph with requantizations. quantizer: the client's. seen: what each requantization's value
    was. sample: some inputs (m, ...), kept for stages that look again. inputs: what the quantizer was chosen from.
    dynamic: how each input is scaled on its own; sample then holds scaled inputs, with their scales.
    Lowering it with another recipe needs no data.
    """

    placed: Placed
    quantizer: Quantizer
    seen: Mapping[str, Observation]
    sample: Tensor
    inputs: InputRange | None = None
    dynamic: DynamicScale | None = None


@dataclass(frozen=True)
class Grid:
    """The integer weights that a linear layer may have: level * multiplier[c] for output channel c.

    levels: int64, sorted, (L,) or (C, L). multiplier: int64 (C,), at least 1.
    """

    levels: Tensor
    multiplier: Tensor

    def nearest(self, target: Tensor) -> Tensor:
        """The allowed integers nearest to a real target (C, ...), int64; of two equally near ones the lower."""
        below, above = self.neighbours(target)
        return torch.where(target - below > above - target, above, below)

    def neighbours(self, target: Tensor) -> tuple[Tensor, Tensor]:
        """The allowed integers below and above each target (both the end where the target lies beyond it)."""
        steps = self.multiplier.view(-1, 1)
        flat = target.reshape(target.shape[0], -1).to(torch.float64) / steps
        below, above = around(flat, self.levels.to(torch.float64))
        return (below.to(torch.int64) * steps).view(target.shape), (above.to(torch.int64) * steps).view(target.shape)

    def row(self, channel: int) -> Tensor:
        """The allowed integers of one output channel, int64 (L,), sorted."""
        levels = self.levels if self.levels.ndim == 1 else self.levels[channel]
        return levels * self.multiplier[channel]


@dataclass(frozen=True)
class Lowered:
    """An integer graph before its rings are chosen, and what its integers stand for.

    scales: the real that integer 1 of each node's value stands for (a number, or float64 (C,) per channel); a value n
    of a node with an offset stands for (n - offset) * scale. offsets: what was added for the reader's rounding.
    grids: which weights the linear nodes may have. schemes: what each node got.
    """

    graph: IntegerGraph
    output_scale: float
    scales: Mapping[str, float | Tensor]
    offsets: Mapping[str, int]
    grids: Mapping[str, Grid]
    schemes: Mapping[str, Scheme]
