"""The randomised Hadamard rotation: any update's values become alike, so that one small bound fits them all.

For n a power of two, ``y = H D x / sqrt(n)``: D is a diagonal of random signs, H the Walsh-Hadamard matrix. Each
value of y is a sum of ``+-x_j / sqrt(n)``, so by Hoeffding's inequality

    Pr[ |y_j| > t |x| / sqrt(n) ]  <=  2 exp(-t^2 / 2),

whatever x is: at t = 6 it is 3.1e-8. Where n is no power of two, nothing is padded: with p the largest power of two
below n, the first p values are rotated and then the last p ones, with fresh signs. A product of two orthogonal maps
is orthogonal, and every value that leaves was last touched by a rotation of p values of norm at most ``|x|``: the bound
holds with p for n. Signs are public and must not be chosen by who chooses x: the seed is fresh in each round.

Source: Suresh, Yu, Kumar, McMahan, "Distributed Mean Estimation with Limited Communication", ICML 2017, and the
flattening of Kairouz, Liu, Steinke 2021.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from pqi.federated.rounding import kernels
from protocols.prg import Key, keystream


def block(length: int) -> int:
    """p: the largest power of two that is at most ``length``."""
    return 1 << (length.bit_length() - 1)


def spread(length: int) -> float:
    """The deviation of a rotated value of an update of norm 1, at most: ``1 / sqrt(p)``."""
    return 1.0 / math.sqrt(block(length))


@dataclass(frozen=True)
class Rotation:
    """An orthogonal map of ``length`` values, given by 16 public bytes; norms stay as they are, but for float
    rounding."""

    seed: bytes
    length: int
    _signs: np.ndarray = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        each = -(-block(self.length) // 8)
        signs = keystream(Key(self.seed), 0, 2 * each).reshape(2, each)
        object.__setattr__(self, "_signs", signs)

    def forward(self, x: np.ndarray) -> np.ndarray:
        """The rotated vector, of x's dtype; x stays as it is. Two passes where the length is no power of two."""
        p, out = block(self.length), np.array(x)
        for which, part in enumerate(self._parts(out)):
            signed(part, self._signs[which], p**-0.5)
            transform(part)
        return out

    def backward(self, y: np.ndarray) -> np.ndarray:
        """The vector whose rotation is y: H and D are their own inverses, up to scale."""
        p, out = block(self.length), np.array(y)
        for which, part in reversed(list(enumerate(self._parts(out)))):
            transform(part)
            signed(part, self._signs[which], p**-0.5)
        return out

    def _parts(self, x: np.ndarray) -> list[np.ndarray]:
        p = block(self.length)
        return [x] if p == self.length else [x[:p], x[self.length - p :]]


def signed(x: np.ndarray, bits: np.ndarray, factor: float) -> None:
    """``x_i`` becomes ``factor x_i``, or ``-factor x_i`` where bit i of ``bits`` is set; in place."""
    scale, compiled = x.dtype.type(factor), kernels()
    if compiled is not None:
        compiled.signed(x, bits, scale, x)
        return
    x *= scale
    np.negative(x, out=x, where=np.unpackbits(bits, bitorder="little")[: x.size].astype(bool))


def transform(x: np.ndarray) -> None:
    """The Walsh-Hadamard transform of a power of two of values, unscaled, in place."""
    compiled = kernels()
    if compiled is not None:
        compiled.hadamard(x)
        return
    half = x.size // 2
    while half:
        pairs = x.reshape(-1, 2, half)
        total = pairs[:, 0] + pairs[:, 1]
        np.subtract(pairs[:, 0], pairs[:, 1], out=pairs[:, 1])
        pairs[:, 0] = total
        half //= 2
