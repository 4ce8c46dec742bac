"""Calibration: run data through the float graph in batches and observe the values that will become codes."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pqi.graph.errors import CalibrationWarning, QuantizationError
from pqi.graph.floating import FloatGraph
from pqi.quant.observers import MinMax, Observer, Percentile

FEW_SAMPLES = 8
_BATCH_VALUES = 1 << 22  # of the widest layer: 16 MB of float32 at a time

Progress = Callable[[int, int], None]


def calibration_batch(data: Any) -> Tensor:
    """The calibration data as a float tensor (N, ...); refused with the reason if they cannot calibrate anything."""
    x = data.detach().cpu() if isinstance(data, Tensor) else torch.from_numpy(np.ascontiguousarray(np.asarray(data)))
    if x.is_complex() or x.dtype == torch.bool:
        raise QuantizationError(f"calibration data have dtype {x.dtype}: real numbers are needed")
    x = x.to(torch.float32)
    if x.ndim < 2:
        raise QuantizationError(f"calibration data have shape {tuple(x.shape)}: (N, ...) with a batch axis is needed")
    if x.numel() == 0:
        raise QuantizationError(
            f"calibration data are empty (shape {tuple(x.shape)}): give some hundred typical inputs"
        )
    if not bool(torch.isfinite(x).all()):
        bad = int((~torch.isfinite(x)).flatten(1).any(1).nonzero()[0])
        raise QuantizationError(f"calibration sample {bad} has NaN or infinite values: remove or repair such samples")
    if float(x.min()) == float(x.max()):
        raise QuantizationError(
            f"calibration data are constant ({float(x.min()):g} everywhere): give inputs like those the model will see"
        )
    if x.shape[0] < FEW_SAMPLES:
        warnings.warn(
            f"only {x.shape[0]} calibration samples: ranges from so few are a guess. Some hundred are usual.",
            CalibrationWarning,
            stacklevel=4,
        )
    return x


def make_observer(percentile: float | None) -> Observer:
    """An observer at the percentile; None means the smallest and largest value."""
    return MinMax() if percentile is None else Percentile(percentile)


def observe_ranges(
    graph: FloatGraph, data: Tensor, names: Iterable[str], percentile: float | None, progress: Progress | None = None
) -> dict[str, tuple[float, float]]:
    """Range of each named value over the data; ``progress(samples done, samples in all)`` is called per batch."""
    observers = {name: make_observer(percentile) for name in names}

    def look(name: str, value: Tensor) -> None:
        if name in observers:
            observers[name].see(value)
            if not bool(torch.isfinite(value).all()):
                raise QuantizationError(f"layer {name!r} computes NaN or infinity on the calibration data")

    widest = max(math.prod(shape) for shape in graph.shapes.values())
    done = 0
    for batch in torch.split(data, max(1, _BATCH_VALUES // max(widest, 1))):
        graph.run(batch, look)
        done += len(batch)
        if progress is not None:
            progress(done, len(data))
    return {name: observer.range() for name, observer in observers.items()}
