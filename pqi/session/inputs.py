"""What a client knows of the model's input: enough to check, quantize and refuse, and nothing of the model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from pqi.graph.errors import QuantizationError
from pqi.quant.dynamic import DynamicScale
from pqi.quant.inputs import encode_batch
from pqi.quant.quantizer import Quantizer
from pqi.session.errors import BundleError

if TYPE_CHECKING:
    from pqi.graph.model import IntegerModel
    from pqi.graph.polynomial import PolynomialModel


@dataclass(frozen=True)
class InputSpec:
    """Shape of one input, the range [lo, hi] of its integer codes, and the quantizer that makes codes of reals.

    dynamic: how each input gets a scale of its own, which no server learns (None: all have the quantizer's).
    """

    shape: tuple[int, ...]
    lo: int
    hi: int
    quantizer: Quantizer
    dynamic: DynamicScale | None = None

    @classmethod
    def of_model(cls, model: IntegerModel | PolynomialModel) -> InputSpec:
        """The part of a model that its clients hold."""
        node, dynamic = model.graph.input, getattr(model, "dynamic", None)
        return cls(tuple(model.input_shape), node.lo, node.hi, model.input_quantizer, dynamic)

    def encode(self, x: Any, on_saturation: str = "warn") -> torch.Tensor:
        """As the model's own ``encode`` (see :func:`pqi.quant.inputs.encode_batch`); warnings point at who predicts."""
        return encode_batch(x, self.shape, self.quantizer, on_saturation, 3, self.dynamic)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON."""
        q = self.quantizer
        return {
            "shape": list(self.shape),
            "lo": self.lo,
            "hi": self.hi,
            "quantizer": {"scale": q.scale, "offset": q.offset, "modulus": q.modulus, "signed": q.signed},
            **({} if self.dynamic is None else {"dynamic": self.dynamic.to_json()}),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], shape: tuple[int, ...], where: str) -> InputSpec:
        """From JSON, checked against ``shape``, the program's input. Raises BundleError that names the field."""
        try:
            dynamic = DynamicScale.from_json(data["dynamic"]) if "dynamic" in data else None
        except QuantizationError as error:
            raise BundleError(f"{where}: field 'input.dynamic': {error}") from None
        own = shape if dynamic is None else dynamic.shape
        if data.get("shape") != list(own) or shape != (own if dynamic is None else (dynamic.codes,)):
            raise BundleError(
                f"{where}: field 'input.shape' is {str(data.get('shape'))[:80]}, the program's is {list(shape)}"
            )
        numbers = data.get("quantizer")
        if not isinstance(numbers, dict) or set(numbers) != {"scale", "offset", "modulus", "signed"}:
            raise BundleError(f"{where}: field 'input.quantizer' must hold scale, offset, modulus and signed")
        try:
            quantizer = Quantizer(**numbers)
            lowest, highest = quantizer.code_range
            if dynamic is not None:
                dynamic.check(quantizer)
        except (QuantizationError, TypeError) as error:
            raise BundleError(f"{where}: field 'input.quantizer': {error}") from None
        lo, hi = data.get("lo"), data.get("hi")
        if type(lo) is not int or type(hi) is not int or not lo <= lowest <= highest <= hi:
            raise BundleError(
                f"{where}: fields 'input.lo' and 'input.hi' must be integers around {lowest} .. {highest}"
            )
        return cls(own, lo, hi, quantizer, dynamic)

    @property
    def size(self) -> int:
        """Values of one input."""
        return math.prod(self.shape)
