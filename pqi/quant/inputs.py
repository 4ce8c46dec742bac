"""From a user's batch to codes: the one place where inputs are judged, for the reference and for the client alike."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pqi.graph.errors import InputError, QuantizationError, SaturationWarning
from pqi.quant.dynamic import DynamicScale
from pqi.quant.quantizer import Quantizer

ON_SATURATION = ("warn", "error", "silent")


def encode_batch(
    x: Any,
    shape: tuple[int, ...],
    quantizer: Quantizer,
    on_saturation: str = "warn",
    stacklevel: int = 2,
    dynamic: DynamicScale | None = None,
) -> Tensor:
    """Codes int64 (N, *shape) of a float batch: floor(C x + d) - Z, moved into the quantizer's range.

    dynamic: each input gets a scale of its own, and the codes are (N, numel + 1); see :class:`DynamicScale`.
    on_saturation: how values outside that range are told: "warn" (a SaturationWarning with their share), "error"
    (InputError) or "silent". stacklevel: as of ``warnings.warn``, seen from the caller.
    Raises InputError on a wrong shape, a dtype that is not real numbers, NaN or infinity.
    """
    if on_saturation not in ON_SATURATION:
        raise InputError(f"on_saturation is {on_saturation!r}: it must be one of {', '.join(ON_SATURATION)}")
    values = _real_batch(x, shape)
    try:
        codes, outside = dynamic.encode(values, quantizer) if dynamic else quantizer.saturating_codes(values)
    except QuantizationError as error:
        raise InputError(f"the input cannot be quantized: {error}") from None
    if outside and on_saturation != "silent":
        low, high = quantizer.value_range
        share = f"{outside} of {values.size} input values ({outside / values.size:.3%})"
        found = f"{share} lie outside the calibrated range [{low:.6g}, {high:.6g}]"
        advice = "Scale the input as the calibration data were, or quantize with a wider input_range."
        if on_saturation == "error":
            raise InputError(f"{found}. Nothing was computed or sent. {advice}")
        warnings.warn(f"{found} and were moved to its nearest end. {advice}", SaturationWarning, stacklevel + 1)
    return torch.from_numpy(codes)


def _real_batch(x: Any, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """x as float64 (N, *shape); refused with the reason otherwise."""
    try:
        array = x.detach().cpu().numpy() if isinstance(x, Tensor) else np.asarray(x)
    except (TypeError, ValueError) as error:
        raise InputError(f"the input is no array of numbers ({type(error).__name__})") from None
    if array.dtype.kind not in "fiu":
        raise InputError(f"the input has dtype {array.dtype}: real numbers (float or integer) are needed")
    if array.ndim != len(shape) + 1 or array.shape[1:] != shape:
        wanted = f"({', '.join(map(str, ('N', *shape)))})"
        hint = " Add the batch axis: x[None]." if array.shape == shape else ""
        raise InputError(f"the input has shape {array.shape}: {wanted} is needed.{hint}")
    array = array.astype(np.float64)
    if not np.isfinite(array).all():
        nans, infinities = int(np.isnan(array).sum()), int(np.isinf(array).sum())
        first = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        raise InputError(
            f"the input has {nans} NaN and {infinities} infinite values, the first at index {first}: "
            "clean the data before asking"
        )
    return array


def decode_answer(
    integers: Any, output_scale: float, dynamic: DynamicScale | None = None, codes: Any = None
) -> NDArray[np.float64]:
    """Real numbers of an integer answer: integers * output_scale, divided by each input's own scale if it has one.

    codes: what was asked, (N, numel + 1); needed with ``dynamic`` alone. Raises InputError where it is missing.
    """
    if dynamic is None:
        return np.asarray(integers, dtype=np.float64) * output_scale
    if codes is None or len(codes) != len(integers):
        raise InputError("each answer of a dynamic model is decoded by its input's own scale: give the codes, too")
    return dynamic.decode(integers, codes, output_scale)
