"""A scale for each input, chosen by the client and known to it alone.

A static quantizer gives a quiet input few of its codes. Here the client multiplies each input x by the largest integer
j in 1..J at which its loudest value still fits, encodes j x as ever, Q(j x) = floor(C j x + d), and appends the code j
itself. The network is homogeneous (see ``pqi.quant.homogeneous``): where it adds b it adds j b, so it computes j f(x),
and the client, who knows j, divides. Servers hold shares of the codes of j x and of j; nothing in shape, size or time
depends on j.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pqi.graph.errors import QuantizationError
from pqi.quant.quantizer import Quantizer

Integers = NDArray[np.int64]
Reals = NDArray[np.float64]


@dataclass(frozen=True)
class DynamicScale:
    """How inputs of ``shape`` (without the batch axis) become codes (numel + 1,): those of j x, and j in 1..``levels``.

    Raises QuantizationError naming the field, its value and its bound.
    """

    shape: tuple[int, ...]
    levels: int

    def __post_init__(self) -> None:
        whole = isinstance(self.shape, tuple) and all(type(n) is int and n >= 1 for n in self.shape)
        if not whole or not self.shape:
            raise QuantizationError(f"dynamic.shape is {self.shape!r}: it must be a tuple of positive integers")
        if type(self.levels) is not int or self.levels < 1:
            raise QuantizationError(f"dynamic.levels is {self.levels!r}: it must be a positive integer")

    @property
    def codes(self) -> int:
        """Codes of one input: one for each value, and the scale's."""
        return math.prod(self.shape) + 1

    def check(self, quantizer: Quantizer) -> None:
        """Refuse a quantizer whose codes cannot hold every scale, or that does not send zero to zero."""
        one_scale(quantizer)
        if quantizer.zero_point != 0:
            raise QuantizationError(f"dynamic: the input quantizer has zero point {quantizer.zero_point}, not 0")
        top = quantizer.code_range[1]
        if self.levels > top:
            raise QuantizationError(
                f"dynamic.levels is {self.levels}, the input's largest code {top}: at most {top} scales are possible. "
                "Use more input_bits for quieter inputs."
            )

    def factors(self, x: ArrayLike, quantizer: Quantizer) -> Integers:
        """j for each input of x (N, *shape): the largest in 1..J with C j max|x| <= top, int64 (N,).

        max|x| is over the values that the codes can hold: the positive ones, if codes are unsigned. An input that is
        all zero gets J; one too loud for any scale gets 1, and its values saturate.
        """
        values = np.asarray(x, dtype=np.float64)
        flat = values.reshape(len(values), math.prod(values.shape[1:]))
        peak = np.abs(flat) if quantizer.signed else np.maximum(flat, 0.0)
        with np.errstate(over="ignore", divide="ignore"):
            loudest = peak.max(1, initial=0.0) * one_scale(quantizer)
            wanted = np.where(loudest > 0, quantizer.code_range[1] / loudest, np.inf)
        return np.asarray(np.clip(np.floor(wanted), 1, self.levels), dtype=np.int64)

    def encode(self, x: ArrayLike, quantizer: Quantizer) -> tuple[Integers, int]:
        """Codes int64 (N, numel + 1) of finite x (N, *shape), and how many of its values were moved into the range."""
        values = np.asarray(x, dtype=np.float64)
        flat, factors = values.reshape(len(values), self.codes - 1), self.factors(values, quantizer)
        with np.errstate(over="ignore"):
            scaled = np.clip(flat * factors[:, None], -_FINITE, _FINITE)
        codes, outside = quantizer.saturating_codes(scaled)
        return np.concatenate([codes, factors[:, None]], 1), outside

    def decode(self, integers: ArrayLike, codes: ArrayLike, output_scale: float) -> Reals:
        """integers * output_scale / j, each input's answer by its own j: the last of its codes (N, numel + 1)."""
        answers, factors = np.asarray(integers, dtype=np.float64), np.asarray(codes, dtype=np.float64)[:, -1]
        return answers * output_scale / factors.reshape(-1, *([1] * (answers.ndim - 1)))

    def to_json(self) -> dict[str, Any]:
        """As plain JSON."""
        return {"shape": list(self.shape), "levels": self.levels}

    @classmethod
    def from_json(cls, data: Any) -> DynamicScale:
        """From plain JSON. Raises QuantizationError that names the field."""
        if not isinstance(data, Mapping) or set(data) != {"shape", "levels"} or not isinstance(data["shape"], list):
            raise QuantizationError("dynamic must hold shape, a list, and levels, and nothing else")
        return cls(tuple(data["shape"]), data["levels"])


_FINITE = float(np.finfo(np.float64).max)


def one_scale(quantizer: Quantizer) -> float:
    """C, which is one number where inputs are scaled dynamically."""
    if isinstance(quantizer.scale, tuple):
        raise QuantizationError("dynamic: the input quantizer must have one scale for the whole tensor")
    return quantizer.scale
