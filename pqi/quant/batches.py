"""Calibration data: any array or iterable of batches, judged while it is read once, in constant memory."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator
from numbers import Number
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from pqi.graph.errors import CalibrationWarning, QuantizationError
from pqi.quant.sample import Sample

FEW_SAMPLES = 8
LIMIT = 256
_ADVICE = "give some hundred typical inputs"


class Batches:
    """Calibration data as float32 CPU tensors (n, ...) with n >= 1, all of one shape per sample.

    data: an array or tensor (N, ...), nested lists of numbers, or an iterable of batches, as a DataLoader or a list of
    arrays. A batch is an array (n, ...), or a tuple or list whose first element is one (labels may follow).
    limit: at most so many samples are yielded at a time. shape: of one sample. total: how many samples there are, if
    that is known before (always after a whole pass). reiterable: whether the data can be read more than once.

    Raises QuantizationError: nothing in it, no real numbers, no batch axis (at construction, as far as the first batch
    shows it); while iterating, samples of another shape, NaN or infinity; at the end of the first whole pass, data that
    are constant everywhere. There, too, CalibrationWarning tells that there were fewer than 8 samples.
    """

    def __init__(self, data: Any, limit: int = LIMIT) -> None:
        self.limit = limit
        self.total: int | None = None
        self._source: Iterable[Any]
        _refuse_single_samples(data)
        if _is_array(data):
            whole = _plain(data, "calibration data")
            _check_shape(whole, "calibration data")
            self._source, self.total, self._one_array = (whole,), len(whole), True
        elif isinstance(data, Iterable) and not isinstance(data, (str, bytes, dict)):
            self._source, self.total, self._one_array = data, _samples_in(data), False
        else:
            raise QuantizationError(
                f"calibration data are {_kind(data)}: give an array (N, ...) or an iterable of batches, as a DataLoader"
            )
        iterator = iter(self._source)
        self.reiterable = iterator is not self._source
        self._iterator: Iterator[Any] | None = iterator  # of the first pass, begun by looking at its first batch
        self._judged = False
        self._kept: Sample | None = None
        self._opened: tuple[int, Any] | None = self._open(iterator)

    def _open(self, iterator: Iterator[Any]) -> tuple[int, Any]:
        """(number, array) of the first batch that holds samples: it says what a sample looks like."""
        for number, item in enumerate(iterator):
            array = _array_of(item, self._place(number))
            if len(array):
                _check_shape(array, self._place(number))
                self.shape = tuple(int(n) for n in array.shape[1:])
                self._first = _floats(array[:1]).clone()
                return number, array
        raise QuantizationError(
            f"calibration data are empty (they gave no samples): {_ADVICE}. A generator that was read before is empty."
        )

    def first(self) -> Tensor:
        """The first sample, (1, ...), whatever was read before or after."""
        return self._first

    def keep(self, samples: int) -> Sample:
        """A random sample of at most so many inputs, filled by the next pass and drawn anew by each later one."""
        self._kept = Sample(samples)
        return self._kept

    def __iter__(self) -> Iterator[Tensor]:
        """One pass."""
        if self._iterator is None and not self.reiterable:
            raise QuantizationError(
                "the calibration data can be read only once (they come from a generator) and were read already: "
                "give an array, a list of batches or a DataLoader"
            )
        iterator, self._iterator = self._iterator, None
        return self._pass(self._arrays(iterator))

    def _arrays(self, opened: Iterator[Any] | None) -> Iterator[tuple[int, Any]]:
        """(number, array) of every batch; the first pass goes on where ``_open`` stopped."""
        start = 0
        if opened is not None and self._opened is not None:
            number, array = self._opened
            start, self._opened = number + 1, None
            yield number, array
            del array  # or the first batch would stay in memory to the end
        for number, item in enumerate(iter(self._source) if opened is None else opened, start):
            yield number, _array_of(item, self._place(number))

    def _pass(self, arrays: Iterator[tuple[int, Any]]) -> Iterator[Tensor]:
        done, lo, hi = 0, math.inf, -math.inf
        if self._kept is not None:
            self._kept.clear()
        for number, array in arrays:
            if len(array) and tuple(array.shape[1:]) != self.shape:
                raise QuantizationError(
                    f"{self._place(number)} have samples of shape {tuple(array.shape[1:])}, those before it had "
                    f"{self.shape}: every sample must have one shape"
                )
            for start in range(0, len(array), max(1, self.limit)):
                x = _floats(array[start : start + max(1, self.limit)])
                low, high = (float(v) for v in x.aminmax())
                if not (math.isfinite(low) and math.isfinite(high)):
                    _refuse_infinite(x, done)
                lo, hi, done = min(lo, low), max(hi, high), done + len(x)
                if self._kept is not None:
                    self._kept.see(x)
                yield x
        self.total = done
        self._judge(done, lo, hi)

    def _judge(self, samples: int, lo: float, hi: float) -> None:
        """What only the end shows; told once."""
        if self._judged:
            return
        if lo == hi:
            raise QuantizationError(
                f"calibration data are constant ({lo:g} everywhere): give inputs like those the model will see"
            )
        self._judged = True
        if samples < FEW_SAMPLES:
            warnings.warn(
                f"only {samples} calibration samples: ranges from so few are a guess. Some hundred are usual.",
                CalibrationWarning,
                stacklevel=4,
            )

    def _place(self, number: int) -> str:
        """How messages call a batch."""
        return "calibration data" if self._one_array else f"the data of calibration batch {number}"


def _is_array(data: Any) -> bool:
    """Whether data are one array: a tensor, anything that numpy can view as an array, or nested lists of numbers."""
    if isinstance(data, (list, tuple)):
        inner = data
        while isinstance(inner, (list, tuple)) and len(inner):
            inner = inner[0]
        return isinstance(inner, Number)
    return isinstance(data, Tensor) or hasattr(data, "__array__") or isinstance(data, Number)


def _array_of(item: Any, place: str) -> Any:
    """The inputs of one batch as an array or tensor (n, ...): the batch itself or the first of a tuple or list."""
    if isinstance(item, (tuple, list)) and not _is_array(item):
        if not item:
            raise QuantizationError(f"{place} are an empty {type(item).__name__}: its first element must be the inputs")
        labels = item[1] if len(item) > 1 else None
        if isinstance(labels, Number) or (isinstance(labels, (Tensor, np.generic, np.ndarray)) and labels.ndim == 0):
            raise QuantizationError(
                f"{place} are one sample with its label: batches (n, ...) are needed. Use DataLoader(data, 64)"
            )
        item = item[0]
    if not _is_array(item):
        advice = "an array (n, ...), or a tuple that begins with one, is needed"
        if isinstance(item, dict):
            advice = (
                f"give the inputs alone, as (batch[key] for batch in loader) does. Its keys: {sorted(map(str, item))}"
            )
        raise QuantizationError(f"{place} are {_kind(item)}: {advice}")
    array = _plain(item, place)
    if array.ndim < 2 and len(array):
        _check_shape(array, place)
    return array


def _plain(data: Any, place: str) -> Any:
    """A tensor or numpy array of real numbers with at least one axis; the data are not copied if they are one."""
    try:
        array = data.detach() if isinstance(data, Tensor) else np.asarray(data)
    except (TypeError, ValueError) as error:
        raise QuantizationError(f"{place} cannot be read as an array of numbers ({error})") from None
    real = (
        not array.is_complex() and array.dtype != torch.bool if isinstance(array, Tensor) else array.dtype.kind in "fiu"
    )
    if not real:
        raise QuantizationError(f"{place} have dtype {array.dtype}: real numbers are needed")
    if array.ndim == 0:
        _check_shape(array, place)
    return array


def _check_shape(array: Any, place: str) -> None:
    shape = tuple(array.shape)
    if len(shape) < 2:
        raise QuantizationError(f"{place} have shape {shape}: (N, ...) with a batch axis is needed")
    if 0 in shape:
        raise QuantizationError(f"{place} are empty (shape {shape}): {_ADVICE}")


def _floats(array: Any) -> Tensor:
    """float32 on the CPU; an array's own memory is never handed on writable."""
    if isinstance(array, Tensor):
        return array.to("cpu", torch.float32)
    with np.errstate(over="ignore"):  # beyond float32 becomes infinity, which is refused by name
        return torch.from_numpy(np.array(array, dtype=np.float32))


def _refuse_infinite(x: Tensor, before: int) -> None:
    bad = before + int((~torch.isfinite(x)).flatten(1).any(1).nonzero()[0])
    raise QuantizationError(
        f"calibration sample {bad} has NaN or infinite values (as float32): remove or repair such samples"
    )


def _refuse_single_samples(data: Any) -> None:
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        raise QuantizationError(
            f"calibration data are a {type(data).__name__}, which gives single samples: give batches, "
            "as DataLoader(data, batch_size=64) does"
        )


def _samples_in(data: Any) -> int | None:
    """How many samples an iterable will give, if that can be known without reading it."""
    try:
        if isinstance(data, (list, tuple)):
            return sum(
                len(_array_of(item, f"the data of calibration batch {number}")) for number, item in enumerate(data)
            )
        if isinstance(data, DataLoader) and data.batch_size is not None:
            samples = len(data.sampler)  # type: ignore[arg-type]
            return samples // data.batch_size * data.batch_size if data.drop_last else samples
    except TypeError:  # an iterable data set without a length
        return None
    return None


def _kind(value: Any) -> str:
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"
