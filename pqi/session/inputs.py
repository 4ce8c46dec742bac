"""What a client knows of the model's input: enough to check, quantize and refuse, and nothing of the model."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from pqi.graph.errors import InputError, QuantizationError, SaturationWarning
from pqi.quant.quantizer import Quantizer
from pqi.session.errors import BundleError

if TYPE_CHECKING:
    from pqi.graph.model import IntegerModel

ON_SATURATION = ("warn", "error", "silent")


@dataclass(frozen=True)
class InputSpec:
    """Shape of one input, the range [lo, hi] of its integer codes, and the quantizer that makes codes of reals."""

    shape: tuple[int, ...]
    lo: int
    hi: int
    quantizer: Quantizer

    @classmethod
    def of_model(cls, model: IntegerModel) -> InputSpec:
        """The part of a model that its clients hold."""
        node = model.graph.input
        return cls(tuple(node.shape), node.lo, node.hi, model.input_quantizer)

    def encode(self, x: Any, on_saturation: str = "warn") -> torch.Tensor:
        """Codes int64 (N, *shape) of a float batch, code = floor(C x + d) - Z, moved into the calibrated range.

        on_saturation: how values outside that range are told: "warn" (SaturationWarning with their number), "error",
        "silent". Raises InputError on wrong shape, dtype, NaN or infinity.
        """
        if on_saturation not in ON_SATURATION:
            raise InputError(f"on_saturation is {on_saturation!r}; it must be one of {', '.join(ON_SATURATION)}")
        values = self._checked(x)
        try:
            codes, outside = self.quantizer.saturating_codes(values)
        except QuantizationError as error:
            raise InputError(f"the input cannot be quantized: {error}") from None
        if outside and on_saturation != "silent":
            low, high = self.quantizer.value_range
            message = (
                f"{outside} of {values.size} input values lie outside the calibrated range [{low:.6g}, {high:.6g}]; "
                "each is moved to its nearest end. Scale the input as the calibration data were"
            )
            if on_saturation == "error":
                raise InputError(f"{message}. Nothing was sent (on_saturation='error')")
            warnings.warn(message, SaturationWarning, stacklevel=3)
        return torch.from_numpy(codes)

    def _checked(self, x: Any) -> NDArray[np.float64]:
        """x as float64 (N, *shape). Raises InputError: what is wrong, what is needed."""
        try:
            array = x.detach().cpu().numpy() if isinstance(x, torch.Tensor) else np.asarray(x)
        except (TypeError, ValueError) as error:
            raise InputError(f"the input is no array of numbers ({type(error).__name__})") from None
        if array.dtype.kind not in "fiu":
            raise InputError(f"the input has dtype {array.dtype}; real numbers (float or integer) are needed")
        if array.ndim != len(self.shape) + 1 or array.shape[1:] != self.shape:
            hint = ". Add the batch axis: x[None]" if array.shape == self.shape else ""
            wanted = ", ".join(map(str, ("N", *self.shape)))
            raise InputError(f"the input has shape {array.shape}; the model takes ({wanted}){hint}")
        array = array.astype(np.float64)
        wrong = ~np.isfinite(array)
        if wrong.any():
            place = tuple(int(i) for i in np.argwhere(wrong)[0])
            raise InputError(f"the input has {int(wrong.sum())} NaN or infinite values, the first at index {place}")
        return array

    def to_json(self) -> dict[str, Any]:
        """As plain JSON."""
        q = self.quantizer
        return {
            "shape": list(self.shape),
            "lo": self.lo,
            "hi": self.hi,
            "quantizer": {"scale": q.scale, "offset": q.offset, "modulus": q.modulus, "signed": q.signed},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], shape: tuple[int, ...], where: str) -> InputSpec:
        """From JSON, checked against the program's input shape. Raises BundleError that names the field."""
        if data.get("shape") != list(shape):
            raise BundleError(
                f"{where}: field 'input.shape' is {str(data.get('shape'))[:80]}, the program's is {list(shape)}"
            )
        numbers = data.get("quantizer")
        if not isinstance(numbers, dict) or set(numbers) != {"scale", "offset", "modulus", "signed"}:
            raise BundleError(f"{where}: field 'input.quantizer' must hold scale, offset, modulus and signed")
        try:
            quantizer = Quantizer(**numbers)
            lowest, highest = quantizer.code_range
        except (QuantizationError, TypeError) as error:
            raise BundleError(f"{where}: field 'input.quantizer': {error}") from None
        lo, hi = data.get("lo"), data.get("hi")
        if type(lo) is not int or type(hi) is not int or not lo <= lowest <= highest <= hi:
            raise BundleError(
                f"{where}: fields 'input.lo' and 'input.hi' must be integers around {lowest} .. {highest}"
            )
        return cls(tuple(shape), lo, hi, quantizer)

    @property
    def size(self) -> int:
        """Values of one input."""
        return math.prod(self.shape)
