"""Quantization: Q(x) = floor(C x + d) mod p and all that chooses C, d and p. The public names, lazily."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pqi.quant.api import quantize
    from pqi.quant.quantizer import Quantizer

_WHERE = {"Quantizer": "pqi.quant.quantizer", "quantize": "pqi.quant.api"}

__all__ = ["Quantizer", "quantize"]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)
