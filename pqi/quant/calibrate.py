"""Calibration: one pass of data through the float graph, which sees every value that will become codes."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from pqi.graph.capture import capture
from pqi.graph.errors import CalibrationWarning, QuantizationError
from pqi.graph.floating import Clamp, FloatGraph
from pqi.graph.rewrite import simplify
from pqi.quant.batches import Batches
from pqi.quant.equalize import equalized
from pqi.quant.homogeneous import check_scales, has_biases, homogeneous
from pqi.quant.loudness import listen
from pqi.quant.observers import Observation
from pqi.quant.place import place
from pqi.quant.quantizer import Quantizer
from pqi.quant.sample import Sample
from pqi.quant.stages import Calibration, InputRange

KEEP = 1024  # inputs kept for the stages that look again ...
_KEEP_VALUES = 1 << 26  # ... but never more than 256 MB of them
_BATCH_VALUES = 1 << 22  # of the widest layer: 16 MB of float32 at a time

Progress = Callable[[int, "int | None"], None]


def calibrate(
    net: nn.Module | ExportedProgram,
    data: Any,
    *,
    input_bits: int = 8,
    input_range: tuple[float, float] | None = None,
    equalize: bool = False,
    dynamic: bool | int = False,
    keep: int = KEEP,
    progress: Progress | None = None,
) -> Calibration:
    """Capture ``net``, decide where its values become codes, and see what they are on ``data``.

    data: an array or tensor (N, ...), or any iterable of batches (a DataLoader); it is read once, in constant memory.
    input_bits, input_range: of the client's codes (see ``input_quantizer``); data beyond a declared range count as its
    ends. equalize: let neighbouring layers share out their channels' ranges first. dynamic: inputs get scales of their
    own (see ``pqi.quantize``); the data are read once more before, and the network is made homogeneous. keep: how many
    inputs stay at hand for later stages. progress(samples done, samples in all or None): called per batch.
    Raises UnsupportedOperator, or QuantizationError when the data cannot calibrate anything; each says what to do.
    """
    batches = Batches(data)
    graph = simplify(capture(net, as_the_network_wants(net, batches.first())))
    graph = equalized(graph) if equalize else graph
    scaled = None
    if dynamic is not False:
        check_scales(graph)
        scaled = listen(batches, has_biases(graph), dynamic, input_bits, input_range)
        graph = homogeneous(graph, scaled.scale.levels, scaled.unit)
    placed = place(graph)
    widest = max(math.prod(shape) for shape in placed.graph.shapes.values())
    batches.limit = max(1, _BATCH_VALUES // max(widest, 1))
    sample = Sample(min(keep, max(1, _KEEP_VALUES // math.prod(batches.shape))))
    inputs = _Inputs()
    seen = {n.name: Observation() for n in placed.graph.nodes if isinstance(n.op, Clamp)}
    done = 0
    for batch in batches:
        inputs.see(batch)
        # A client's codes saturate at the declared ends: what lies beyond them must not widen any range either.
        within = batch if input_range is None else batch.clamp(*map(float, input_range))
        rows = within if scaled is None else scaled.rows(batch)
        sample.see(rows)
        _look(placed.graph, rows, seen)
        done += len(batch)
        if progress is not None:
            progress(done, batches.total)
    _warn_of_constants(seen)
    if scaled is not None:
        return Calibration(placed, scaled.quantizer, seen, sample.tensor, dynamic=scaled.scale)
    found = InputRange(inputs.lo, inputs.hi, inputs.whole, input_range)
    return Calibration(placed, _quantizer(found, input_bits), seen, sample.tensor, found)


def with_input_bits(calibration: Calibration, bits: int) -> Calibration:
    """The same calibration with a client's quantizer of another width; needs no data."""
    if calibration.inputs is None:
        raise QuantizationError("this calibration does not say what its input range was chosen from: calibrate again")
    return replace(calibration, quantizer=_quantizer(calibration.inputs, bits))


def _quantizer(seen: InputRange, bits: int) -> Quantizer:
    return input_quantizer(seen.lo, seen.hi, seen.whole, bits, seen.declared)


def _look(graph: FloatGraph, batch: Tensor, seen: dict[str, Observation]) -> None:
    def look(name: str, value: Tensor) -> None:
        if name in seen:
            if not bool(torch.isfinite(value).all()):
                raise QuantizationError(f"layer {name!r} computes NaN or infinity on the calibration data")
            seen[name].see(value)

    graph.run(batch, look)


def _warn_of_constants(seen: dict[str, Observation]) -> None:
    ends = {name: observation.range("minmax", 8) for name, observation in seen.items()}
    constant = [name for name, (lo, hi) in ends.items() if lo == hi]
    if constant:
        warnings.warn(
            f"the calibration data leave {constant} constant: their scale is arbitrary. "
            "Give more varied data, or remove layers that never do anything.",
            CalibrationWarning,
            stacklevel=4,
        )


class _Inputs:
    """What the input quantizer is chosen from: the ends, and whether all values are whole."""

    def __init__(self) -> None:
        self.lo, self.hi, self.whole = math.inf, -math.inf, True

    def see(self, batch: Tensor) -> None:
        lo, hi = (float(v) for v in batch.aminmax())
        self.lo, self.hi = min(self.lo, lo), max(self.hi, hi)
        self.whole = self.whole and bool((batch == batch.round()).all())


def input_quantizer(
    lo: float, hi: float, whole: bool, bits: int, declared: tuple[float, float] | None = None
) -> Quantizer:
    """The client's quantizer: the declared range, or [lo, hi] as seen; whole data keep their own grid (C = 1)."""
    if declared is not None:
        lo, hi = (float(v) for v in declared)
        if not (math.isfinite(lo) and math.isfinite(hi) and lo < hi):
            raise QuantizationError(f"input_range is {declared}: two finite numbers, the lower first, are needed")
        return Quantizer.affine(lo, hi, bits)
    half = 1 << (bits - 1)
    # 0 and 1 alone may be black and white of a finer scale: the grid is kept only if it is plainly one of integers.
    if max(-lo, hi) > 1 and whole:
        if lo >= 0 and hi <= 2 * half - 1:
            return Quantizer(1.0, 0.5, 2 * half, None, signed=False)
        if lo >= -half and hi <= half - 1:
            return Quantizer(1.0, 0.5, 2 * half, None, signed=True)
    return Quantizer.affine(lo, hi, bits)


def as_the_network_wants(net: nn.Module | ExportedProgram, example: Tensor) -> Tensor:
    """The example in the dtype of the network's parameters."""
    if isinstance(net, nn.Module):
        for tensor in [*net.parameters(), *net.buffers()]:
            if tensor.is_floating_point():
                return example.to(tensor.device, tensor.dtype)
    return example
