"""Q(x) = floor(C x + d) mod p: the one formula by which reals become integers here.

C = 1/scale; d = Z + 1/2 rounds half up, with Z the integer zero point; p is the modulus: 2^k for shares, a prime for
homomorphic encryption, anything at least 2. The inverse is x ~ (lift(q) - Z) / C, where ``lift`` picks the
representative of q: centred, in [-floor(p/2), ceil(p/2) - 1], if signed; in [0, p - 1] if not.

C x + d is computed in float64 (one product, one sum, each rounded once as IEEE 754 says); everything after the floor
is exact integer arithmetic.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from pqi.graph.errors import QuantizationError

Integers = NDArray[np.int64]
Reals = NDArray[np.float64]
MAX_MODULUS = 1 << 62  # codes and their differences stay inside int64
_EXACT = 2.0**52  # beyond it float64 has no halves: the floor of C x + d would be a guess


@dataclass(frozen=True)
class Quantizer:
    """The numbers of Q(x) = floor(C x + d) mod p.

    scale: C, one positive number, or one per index of ``axis``. offset: d, likewise. modulus: p >= 2. axis: the axis of
    x along which scale and offset vary (None: per tensor). signed: whether lift is centred.
    Raises QuantizationError, naming the field, its value and its bound.
    """

    scale: float | tuple[float, ...]
    offset: float | tuple[float, ...]
    modulus: int
    axis: int | None = None
    signed: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.modulus, bool) or not isinstance(self.modulus, int) or not 2 <= self.modulus <= MAX_MODULUS:
            raise QuantizationError(f"modulus p is {self.modulus!r}: it must be an integer from 2 to 2^62")
        if self.axis is not None and (isinstance(self.axis, bool) or not isinstance(self.axis, int)):
            raise QuantizationError(f"axis is {self.axis!r}: it must be an integer, or None for one scale per tensor")
        if not isinstance(self.signed, bool):
            raise QuantizationError(f"signed is {self.signed!r}: it must be True or False")
        lengths = set()
        for name, value in (("scale C", self.scale), ("offset d", self.offset)):
            if isinstance(value, tuple):
                lengths.add(len(value))
            for number in value if isinstance(value, tuple) else (value,):
                if isinstance(number, bool) or not isinstance(number, (int, float)) or not math.isfinite(number):
                    raise QuantizationError(f"{name} contains {number!r}: it must be finite real numbers")
                if name == "scale C" and number <= 0:
                    raise QuantizationError(f"{name} contains {number}: it must be positive (C = 1 / step)")
        if lengths and self.axis is None:
            raise QuantizationError("scale or offset is a tuple, so axis must say along which axis it varies")
        if self.axis is not None and (len(lengths) != 1 or 0 in lengths):
            raise QuantizationError(
                f"axis {self.axis} is set: scale and offset must hold one number per index (or one)"
            )

    def quantize(self, x: ArrayLike | Tensor) -> Integers:
        """floor(C x + d) mod p, int64 in [0, p), of x's shape. Refuses NaN, infinity and a wrong axis length."""
        return np.asarray(np.mod(self._floors(x), self.modulus), dtype=np.int64)

    def lift(self, q: ArrayLike | Tensor) -> Integers:
        """The representative of q mod p: centred if signed, in [0, p) if not. Exact; q may be any integers."""
        codes = _integers(q)
        shift = self.modulus // 2 if self.signed else 0
        # Reduce before the shift: q itself may lie at the edge of int64.
        return np.asarray(np.mod(np.mod(codes, self.modulus) + shift, self.modulus) - shift, dtype=np.int64)

    def dequantize(self, q: ArrayLike | Tensor) -> Reals:
        """(lift(q) - Z) / C with Z = d - 1/2: the middle of the interval of reals that q stands for."""
        lifted = self.lift(q).astype(np.float64)
        scale, offset = self._broadcast(lifted.shape)
        return np.asarray((lifted - (offset - 0.5)) / scale, dtype=np.float64)

    def saturating_codes(self, x: ArrayLike | Tensor) -> tuple[Integers, int]:
        """floor(C x + d) - Z with the floor clamped to the representatives instead of reduced, and how many it moved.

        This is what a client does with its input: real zero becomes code 0, and a value outside the range becomes
        the nearest end rather than wrapping round to the other one.
        """
        low = -(self.modulus // 2) if self.signed else 0
        high = low + self.modulus - 1
        floors = self._floors(x, (low - 1.0, high + 1.0))
        kept = np.clip(floors, low, high)
        return np.asarray(kept - self.zero_point, dtype=np.int64), int(np.count_nonzero(kept != floors))

    @property
    def zero_point(self) -> int:
        """Z = d - 1/2; defined when d is one number and Z an integer."""
        if isinstance(self.offset, tuple) or float(self.offset - 0.5) != math.floor(self.offset - 0.5):
            raise QuantizationError(f"offset d is {self.offset}: only d = Z + 1/2 with an integer Z has a zero point")
        return math.floor(self.offset - 0.5)

    @property
    def code_range(self) -> tuple[int, int]:
        """Ends of ``saturating_codes``."""
        low = -(self.modulus // 2) if self.signed else 0
        return low - self.zero_point, low + self.modulus - 1 - self.zero_point

    @property
    def value_range(self) -> tuple[float, float]:
        """The reals that the ends of ``code_range`` stand for (per tensor quantizers)."""
        if isinstance(self.scale, tuple):
            raise QuantizationError("a quantizer with one scale per channel has no single value range")
        return self.code_range[0] / self.scale, self.code_range[1] / self.scale

    def _floors(self, x: ArrayLike | Tensor, limits: tuple[float, float] | None = None) -> Integers:
        """floor(C x + d), of C x + d moved between the limits if any are given."""
        values = np.asarray(x.detach().cpu().numpy() if isinstance(x, Tensor) else x)
        if values.dtype.kind not in "fiu":
            raise QuantizationError(f"x has dtype {values.dtype}: real numbers are needed")
        values = values.astype(np.float64)
        if not np.isfinite(values).all():
            bad = tuple(int(i) for i in np.argwhere(~np.isfinite(values))[0])
            raise QuantizationError(f"x has a NaN or infinite value at index {bad}: Q is defined on finite reals only")
        scale, offset = self._broadcast(values.shape)
        with np.errstate(over="ignore"):
            scaled = values * scale + offset
        scaled = scaled if limits is None else np.clip(scaled, *limits)
        if values.size and float(np.abs(scaled).max()) >= _EXACT:
            raise QuantizationError(
                f"|C x + d| reaches {float(np.abs(scaled).max()):.3g}: below 2^52 it is exact. Use a smaller scale C."
            )
        return np.asarray(np.floor(scaled), dtype=np.int64)

    def _broadcast(self, shape: tuple[int, ...]) -> tuple[Reals, Reals]:
        """C and d shaped to multiply a tensor of the given shape."""
        scale, offset = np.asarray(self.scale, np.float64), np.asarray(self.offset, np.float64)
        if self.axis is None:
            return scale, offset
        if not -len(shape) <= self.axis < len(shape):
            raise QuantizationError(f"axis {self.axis} does not exist in a tensor of shape {shape}")
        length = shape[self.axis]
        view = [1] * len(shape)
        view[self.axis] = length
        for name, value in (("scale C", scale), ("offset d", offset)):
            if value.ndim and value.shape[0] != length:
                raise QuantizationError(
                    f"{name} holds {value.shape[0]} numbers, axis {self.axis} of the tensor {shape} has length {length}"
                )
        return (scale.reshape(view) if scale.ndim else scale), (offset.reshape(view) if offset.ndim else offset)

    @classmethod
    def symmetric(cls, reach: float | tuple[float, ...], bits: int, axis: int | None = None) -> Quantizer:
        """Signed codes of ``bits`` bits for [-reach, reach] (a tuple and an axis: per channel): Z = 0, p = 2^bits."""
        _check_bits(bits)
        top = (1 << (bits - 1)) - 1 if bits > 1 else 1
        reaches = reach if isinstance(reach, tuple) else (reach,)
        for number in reaches:
            if not (math.isfinite(number) and number > 0):
                raise QuantizationError(f"reach is {number}: it must be positive and finite (is the tensor all zero?)")
        scales = tuple(top / float(number) for number in reaches)
        return cls(scales if isinstance(reach, tuple) else scales[0], 0.5, 1 << bits, axis, signed=True)

    @classmethod
    def affine(cls, low: float, high: float, bits: int) -> Quantizer:
        """Unsigned codes of ``bits`` bits for [low, high], widened to contain 0, so that real 0 is exactly a code.

        The zero point is an integer and both ends are representable to within half a step.
        """
        _check_bits(bits)
        if not (math.isfinite(low) and math.isfinite(high) and low <= high):
            raise QuantizationError(f"the range is [{low}, {high}]: two finite numbers, the lower first, are needed")
        low, high = min(low, 0.0), max(high, 0.0)
        if low == high:
            raise QuantizationError("the range is [0, 0]: a tensor that is always zero has no scale")
        top = (1 << bits) - 1
        floor, ceiling = int(low < 0), top - int(high > 0)
        if floor > ceiling:
            raise QuantizationError(f"1 bit cannot hold both signs of [{low}, {high}]: use at least 2 bits")
        zero = min(max(round(-low * top / (high - low)), floor), ceiling)
        # The rounded zero point leaves a little less room on one side: the step grows until both ends fit.
        step = max(high / (top - zero) if high > 0 else 0.0, -low / zero if low < 0 else 0.0)
        return cls(1.0 / step, zero + 0.5, 1 << bits, None, signed=False)


def _check_bits(bits: Any) -> None:
    if isinstance(bits, bool) or not isinstance(bits, int) or not 1 <= bits <= 32:
        raise QuantizationError(f"bits is {bits!r}: it must be an integer from 1 to 32")


def _integers(q: ArrayLike | Tensor) -> Integers:
    codes = np.asarray(q.detach().cpu().numpy() if isinstance(q, Tensor) else q)
    if codes.dtype.kind not in "iu":
        raise QuantizationError(f"codes have dtype {codes.dtype}: integers are needed")
    return codes.astype(np.int64)
