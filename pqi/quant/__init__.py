"""Quantization: Q(x) = floor(C x + d) mod p and all that chooses C, d and p. The public names, lazily."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pqi.quant.api import quantize
    from pqi.quant.polynomial.api import to_polynomial
    from pqi.quant.quantizer import Quantizer
    from pqi.quant.scheme import Recipe, Scheme
    from pqi.quant.train.api import finetune
    from pqi.quant.train.loop import Schedule, flip_and_shift, shift
    from pqi.quant.train.wrapping import Wrapping, wraparound

_WHERE = {
    "Quantizer": "pqi.quant.quantizer",
    "Recipe": "pqi.quant.scheme",
    "Schedule": "pqi.quant.train.loop",
    "Scheme": "pqi.quant.scheme",
    "Wrapping": "pqi.quant.train.wrapping",
    "finetune": "pqi.quant.train.api",
    "flip_and_shift": "pqi.quant.train.loop",
    "quantize": "pqi.quant.api",
    "shift": "pqi.quant.train.loop",
    "to_polynomial": "pqi.quant.polynomial.api",
    "wraparound": "pqi.quant.train.wrapping",
}

__all__ = [
    "Quantizer",
    "Recipe",
    "Schedule",
    "Scheme",
    "Wrapping",
    "finetune",
    "flip_and_shift",
    "quantize",
    "shift",
    "to_polynomial",
    "wraparound",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)
