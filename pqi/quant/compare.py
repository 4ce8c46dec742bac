"""Float, fake-quantized and integer network side by side, layer by layer: where does the answer go wrong?

For each layer the signal-to-noise ratio 10 log10(sum f^2 / sum (f - q)^2) in dB, of float values f and the reals q that
the codes or accumulators stand for, q = (n - offset) * scale; for each range of codes, what falls off its ends; for
each ring, what wraps. One pass over the data in parts: memory does not grow with their number.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pqi.graph.errors import GraphError, InputError, QuantizationError
from pqi.graph.floating import Clamp, Entry, FloatNode, Linear
from pqi.graph.graph import OUTPUT
from pqi.graph.model import IntegerModel
from pqi.quant.comparison import DROP_DB, LOW_DB, Accuracies, Comparison, Layer, Weights
from pqi.quant.fake import fake_quantized, number, reading_offsets, spread
from pqi.quant.gauges import CodeGauge, NoiseGauge, RingGauge, counted, decibels, histogram
from pqi.quant.loudness import Normalised
from pqi.quant.stages import Calibration, Grid, Lowered

_CHUNK_VALUES = 1 << 19  # of the widest layer, three times: 12 MB at most
_WEIGHT_BINS = 128
_FEW_LEVELS = 64

Progress = Callable[[int, "int | None"], None]


def compare(
    calibration: Calibration,
    lowered: Lowered,
    model: IntegerModel,
    x: Any,
    labels: Any = None,
    progress: Progress | None = None,
    *,
    low_db: float = LOW_DB,
    drop_db: float = DROP_DB,
) -> Comparison:
    """What float, fake-quantized and integer network make of the inputs x, at every layer.

    calibration, lowered, model: what ``calibrate``, ``lower`` (improved or not) and ``finish`` gave. x: a float batch
    (N, *input_shape), not necessarily the one that calibrated. labels: its N classes, for accuracies.
    progress(inputs done, inputs in all): called per part. low_db, drop_db: when a layer diverges
    (``Comparison.first_diverging``).
    With ``quantize``: ``kept = []; pqi.quantize(net, x, look=lambda *stages: kept.extend(stages)); compare(*kept, x)``.
    Raises InputError on x or labels that do not fit, GraphError when the three stages are not of one network.
    """
    inputs = _batch(x, model)
    classes = _classes(labels, inputs, model)
    run = _Run(calibration, lowered, model)
    size = max(1, _CHUNK_VALUES // max(math.prod(shape) for shape in lowered.graph.shapes.values()))
    tops = []
    for start in range(0, len(inputs), size):
        tops.append(run.part(inputs[start : start + size]))
        if progress is not None:
            progress(min(start + size, len(inputs)), len(inputs))
    layers = tuple(run.layer(node) for node in calibration.placed.graph.nodes)
    accuracies = _accuracies(torch.cat(tops, 1), classes) if len(model.output_shape) == 1 else None
    return Comparison(
        len(inputs), model.policy, layers, run.rings[OUTPUT].result(), accuracies, float(low_db), float(drop_db)
    )


def _batch(x: Any, model: IntegerModel) -> Tensor:
    values = x.detach().cpu() if isinstance(x, Tensor) else torch.from_numpy(np.array(x))
    if tuple(values.shape[1:]) != model.input_shape or values.ndim != len(model.input_shape) + 1 or not len(values):
        wanted = ", ".join(map(str, ("N", *model.input_shape)))
        raise InputError(f"the inputs to compare on have shape {tuple(values.shape)}: ({wanted}), N > 0, is needed")
    return values


def _classes(labels: Any, inputs: Tensor, model: IntegerModel) -> NDArray[np.int64] | None:
    if labels is None:
        return None
    if len(model.output_shape) != 1:
        raise InputError(f"answers have shape {model.output_shape}: one vector of classes is needed for an accuracy")
    array = np.asarray(labels)
    if array.shape != (len(inputs),) or array.dtype.kind not in "iu":
        raise InputError(
            f"labels have shape {array.shape} and dtype {array.dtype}: {len(inputs)} integers are needed, one for "
            "each input"
        )
    return array.astype(np.int64)


def _accuracies(tops: Tensor, classes: NDArray[np.int64] | None) -> Accuracies:
    """tops: int64 (3, N), the top classes of float, fake-quantized and integer network."""
    right = [None] * 3 if classes is None else [float((t == torch.from_numpy(classes)).double().mean()) for t in tops]
    agree = [float((t == tops[0]).double().mean()) for t in tops[1:]]
    return Accuracies(right[0], right[1], right[2], agree[0], agree[1])


class _Run:
    """Three networks in step; each value is dropped as soon as nobody needs it."""

    def __init__(self, calibration: Calibration, lowered: Lowered, model: IntegerModel) -> None:
        self.calibration, self.lowered, self.model = calibration, lowered, model
        if list(model.graph.shapes.items()) != list(lowered.graph.shapes.items()):
            raise GraphError("the model is not made of this lowered graph: names or shapes of their layers differ")
        self.graph = calibration.placed.graph
        self.fake = fake_quantized(calibration, lowered).by_name()
        self.integers = model.graph.by_name
        self.offsets = reading_offsets(calibration, lowered)
        self.noises = {node.name: NoiseGauge() for node in self.graph.nodes}
        self.rings = {consumer: RingGauge(model, consumer, read) for consumer, read in model.graph.readers().items()}
        self.codes = {
            node.name: CodeGauge(calibration, lowered, node, self.integers[node.name])
            for node in self.graph.nodes
            if isinstance(node.op, (Clamp, Entry))
        }
        # Whoever reads an accumulator reads it alone; only the answer may be a code that others read too.
        alone = not model.graph.consumers[model.graph.output]
        readers = model.graph.readers().items()
        self.reader = {read: consumer for consumer, read in readers if consumer != OUTPUT or alone}
        self.last = {name: at for at, node in enumerate(self.graph.nodes) for name in (node.name, *node.inputs)}
        self.last[self.graph.output] = len(self.graph.nodes)

    @torch.no_grad()
    def part(self, x: Tensor) -> Tensor:
        """Take one part into account; the top classes of the three networks (3, n), or nothing to speak of."""
        floats: dict[str, Tensor] = {}
        fakes: dict[str, Tensor] = {}
        integers: dict[str, Tensor] = {}
        answers: list[Tensor] = []
        codes, x = self.model.encode(x, "silent"), self._as_the_network_reads(x)
        for at, node in enumerate(self.graph.nodes):
            name = node.name
            if at:
                floats[name] = node.op.evaluate([floats[i] for i in node.inputs])
                fakes[name] = self.fake[name].op.evaluate([fakes[i] for i in node.inputs])
                integers[name] = self.integers[name].op.evaluate([integers[i] for i in node.inputs])
            else:
                floats[name], fakes[name] = x.to(torch.float32), self.fake[name].op.evaluate([x])
                integers[name] = codes
            if name in self.codes:
                self.codes[name].see(floats[name], integers[name], x if not at else integers.get(node.inputs[0]))
            if name in self.reader:
                integers[name] = self.rings[self.reader[name]].read(integers[name])
            self._measure(node, floats[name], fakes[name], integers[name])
            if name == self.graph.output:
                if name not in self.reader:
                    integers[name] = self.rings[OUTPUT].read(integers[name])
                answers = [values[name] for values in (floats, fakes, integers)]
            for done in [n for n in floats if self.last[n] <= at]:
                del floats[done], fakes[done], integers[done]
        return torch.stack([a.argmax(1) for a in answers]) if answers[0].ndim == 2 else torch.empty(3, 0)

    def _as_the_network_reads(self, x: Tensor) -> Tensor:
        """The reals that the client's codes stand for, before any rounding: x, or of a dynamic model j x and j."""
        dynamic = self.model.dynamic
        return x if dynamic is None else Normalised(self.model.input_quantizer, dynamic, quiet=False).rows(x)

    def _measure(self, node: FloatNode, floating: Tensor, fake: Tensor, integer: Tensor) -> None:
        if not bool(torch.isfinite(floating).all()):
            raise QuantizationError(f"layer {node.name!r} computes NaN or infinity on these inputs")
        scale = spread(self.lowered.scales[node.name], node, integer.ndim)
        real = (integer - self.offsets.get(node.name, 0)).to(torch.float64) * scale
        self.noises[node.name].see(floating.to(torch.float64), fake, real)

    def layer(self, node: FloatNode) -> Layer:
        """What was found about one layer."""
        name, noise = node.name, self.noises[node.name]
        grid = self.lowered.grids.get(name)
        weights = None
        if isinstance(node.op, Linear) and grid is not None:
            weights = self._weights(node, node.op, grid)
        return Layer(
            name=name,
            op=self.integers[name].op.kind,
            shape=tuple(self.graph.shapes[name]),
            inputs=node.inputs,
            source=node.source,
            fake_db=decibels(noise.floats, noise.of_fake),
            integer_db=decibels(noise.floats, noise.of_integer),
            rings_db=decibels(noise.fakes, noise.of_rings),
            codes=self.codes[name].result() if name in self.codes else None,
            weights=weights,
            read=self.rings[name].result() if name in self.rings else None,
        )

    def _weights(self, node: FloatNode, op: Linear, grid: Grid) -> Weights:
        """Weights in steps of their grid: the float ones, and the integers that took their place."""
        integers = self.integers[node.name].op.tensors()["weight"].to(torch.float64)
        shape = (-1,) + (1,) * (integers.ndim - 1)
        unit = torch.as_tensor(self.lowered.scales[node.name], dtype=torch.float64)
        ratio = (number(self.lowered.scales[node.inputs[0]], node.inputs[0]) / unit).expand(integers.shape[0])
        target = op.weight.to(torch.float64) * ratio.view(shape)
        error = ((target - integers) / ratio.view(shape)).square().sum()
        steps = grid.multiplier.to(torch.float64).view(shape)
        levels = grid.levels if grid.levels.ndim == 1 else grid.levels[0]
        low, high = float(grid.levels.min()), float(grid.levels.max())
        together = math.ceil(
            (high - low + 1) / _WEIGHT_BINS
        )  # whole steps in a bin: no bin has more levels than others
        bins = math.ceil((high - low + 1) / together)
        edges = low - 0.5 + together * torch.arange(bins + 1, dtype=torch.float64)
        return Weights(
            self.lowered.schemes[node.name].weight_bits,
            tuple(float(v) for v in levels) if len(levels) <= _FEW_LEVELS else (),
            histogram(edges, counted(target / steps, edges)),
            histogram(edges, counted(integers / steps, edges)),
            decibels(float(op.weight.to(torch.float64).square().sum()), float(error)),
        )
