"""What a comparison keeps of each layer while the data go by: sums of squares, ends, counts in fixed bins."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pqi.graph.errors import GraphError
from pqi.graph.floating import Clamp, Entry, FloatNode
from pqi.graph.graph import OUTPUT, Node
from pqi.graph.model import IntegerModel
from pqi.graph.ops import Lookup, Requantize
from pqi.graph.ranges import bits_needed, lift
from pqi.quant.comparison import Accumulated, Codes, Histogram
from pqi.quant.fake import number
from pqi.quant.stages import Calibration, Lowered

BINS = 96
_ROUNDING = 1e-24  # of the signal's power: no more than float64 itself loses


class NoiseGauge:
    """Sums of squares: of signals, and of differences."""

    def __init__(self) -> None:
        self.floats = self.fakes = self.of_fake = self.of_integer = self.of_rings = 0.0

    def see(self, floating: Tensor, fake: Tensor, integer: Tensor) -> None:
        """Reals of one part in the float, the fake-quantized and the integer network."""
        self.floats += float(floating.square().sum())
        self.fakes += float(fake.square().sum())
        self.of_fake += float((floating - fake).square().sum())
        self.of_integer += float((floating - integer).square().sum())
        self.of_rings += float((fake - integer).square().sum())


class RingGauge:
    """What one consumer reads: its ends, and how much of it leaves the ring."""

    def __init__(self, model: IntegerModel, consumer: str, read: str) -> None:
        self.ring = model.accumulators[consumer]
        self.proof = model.ranges.lo[read], model.ranges.hi[read]
        op = model.graph.by_name[consumer].op if consumer != OUTPUT else None
        self.requantize = op if isinstance(op, Requantize) else None
        self.cyclic = isinstance(op, Lookup)
        self.reduces = model.policy == "calibrated" and not self.cyclic
        self.low, self.high, self.wrapped, self.total = 0, 0, 0, 0

    def read(self, value: Tensor) -> Tensor:
        """The value as it is read: reduced where the model says so by definition."""
        low, high = (int(v) for v in value.aminmax())
        self.low, self.high = min(self.low, low), max(self.high, high)
        reduced = lift(value, self.ring)
        self.wrapped += int((reduced != value).sum())
        self.total += value.numel()
        return reduced if self.reduces else value

    def result(self) -> Accumulated:
        """The record."""
        needed, op = bits_needed(self.low, self.high), self.requantize
        return Accumulated(
            self.ring,
            max(needed - op.shift, op.bits + 1) if op is not None else None,  # a signed index needs the one more
            self.proof,
            bits_needed(*self.proof),
            (self.low, self.high),
            needed,
            self.wrapped / max(self.total, 1),
            self.cyclic,
        )


class CodeGauge:
    """The codes of the input or of one requantization, and the float values that they stand for."""

    def __init__(self, calibration: Calibration, lowered: Lowered, node: FloatNode, integer: Node) -> None:
        self.name, self.op, self.quantizer = node.name, integer.op, calibration.quantizer
        self.scale = number(lowered.scales[node.name], node.name)
        scheme = lowered.schemes[node.name]
        self.observer, self.percentile, self.bits = scheme.observer, scheme.percentile, scheme.activation_bits
        if isinstance(self.op, Requantize):
            last = (1 << self.op.bits) - 1
            plain = torch.arange(self.op.low, self.op.low + last + 1)
            self.levels = (
                plain if self.op.values is None else torch.tensor(sorted(set(self.op.values.flatten().tolist())))
            )
            seen = calibration.seen[node.name]
            ends = seen.lo, seen.hi
        elif isinstance(node.op, Entry):
            low, high = calibration.quantizer.code_range
            self.levels = torch.arange(low, high + 1)
            ends = (float(calibration.sample.min()), float(calibration.sample.max()))
            self.observer, self.bits = "", (high - low).bit_length()
        else:
            raise GraphError(f"{node.name!r} is {integer.op.kind} in integers and {node.op.kind} in float")
        first, top = float(self.levels[0]) * self.scale, float(self.levels[-1]) * self.scale
        # A network that clamps there itself loses nothing to the end of the codes.
        half = (top - first) / max(2 * (len(self.levels) - 1), 1) if len(self.levels) > 1 else self.scale / 2
        lo, hi = (node.op.lo, node.op.hi) if isinstance(node.op, Clamp) else (-math.inf, math.inf)
        self.low_counts, self.high_counts = lo < first - half, hi > top + half
        self.edges = torch.linspace(min(first, ends[0]), max(top, ends[1]), BINS + 1, dtype=torch.float64)
        self.floats = torch.zeros(BINS, dtype=torch.int64)
        self.used = torch.zeros(len(self.levels), dtype=torch.int64)
        self.lowest, self.highest = math.inf, -math.inf
        self.below = self.above = self.total = 0

    def see(self, floating: Tensor, codes: Tensor, read: Tensor | None) -> None:
        """Float values, the integer model's codes for them, and the accumulator (of the input: the reals) read."""
        if read is None:
            raise GraphError(f"{self.name!r} reads nothing")
        low, high = (float(v) for v in floating.aminmax())
        self.lowest, self.highest = min(self.lowest, low), max(self.highest, high)
        self.floats += counted(floating.to(torch.float64), self.edges)
        self.used += torch.bincount(torch.searchsorted(self.levels, codes.flatten()), minlength=len(self.levels))
        if isinstance(self.op, Requantize):
            index, last = read >> self.op.shift, (1 << self.op.bits) - 1
            below, above = index < 0, index > last
        else:
            index = torch.floor(read.to(torch.float64) / self.scale + 0.5)
            below, above = index < self.levels[0], index > self.levels[-1]
        self.below += int(below.sum()) if self.low_counts else 0
        self.above += int(above.sum()) if self.high_counts else 0
        self.total += codes.numel()

    def result(self) -> Codes:
        """The record."""
        return Codes(
            self.bits,
            tuple(float(v) * self.scale for v in self.levels),
            tuple(int(n) for n in self.used),
            histogram(self.edges, self.floats),
            self.lowest,
            self.highest,
            self.below / self.total,
            self.above / self.total,
            self.observer,
            self.percentile,
        )


def counted(values: Tensor, edges: Tensor) -> Tensor:
    """How many values fall between even edges; those beyond count for the outermost bins. int64 (bins,)."""
    bins, low, high = len(edges) - 1, float(edges[0]), float(edges[-1])
    width = (high - low) / bins
    at = torch.floor((values.flatten() - low) / width).clamp(0, bins - 1).to(torch.int64)
    return torch.bincount(at, minlength=bins)


def histogram(edges: Tensor, counts: Tensor) -> Histogram:
    """The record."""
    return Histogram(tuple(float(e) for e in edges), tuple(int(n) for n in counts))


def decibels(signal: float, noise: float) -> float | None:
    """10 log10(signal / noise): infinite without noise (or with float64's own), None without signal."""
    if noise <= signal * _ROUNDING:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else None
