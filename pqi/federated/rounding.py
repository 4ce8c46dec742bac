"""Stochastic rounding of reals to integers, and the passes around it, in numpy and compiled form.

For a value v and uniform d in [0, 1), ``floor(v + d)`` is ``floor(v) + 1`` with probability ``v - floor(v)``, else
``floor(v)``: its expectation is v, whatever v is. Here v is first rounded to the nearest multiple of 2^-16, and d is
uniform over the multiples of 2^-16 in [0, 1): so the *rounded v* is rounded without any bias and exactly in
distribution, with 16 random bits a value, and v itself with a bias of at most 2^-17 of a code, whose sign depends on v.
"""

from __future__ import annotations

import importlib
from functools import cache
from types import ModuleType

import numpy as np

from protocols import native

FRACTION_BITS = 16


@cache
def _kernels() -> ModuleType | None:
    try:
        return importlib.import_module("pqi.federated.kernels")
    except (ImportError, RuntimeError):  # no numba, or no folder for its machine code: ``native`` has said so
        return None


def kernels() -> ModuleType | None:
    """The compiled loops, or None where they are missing or switched off (``PQI_NATIVE=off``)."""
    return _kernels() if native.bits() is not None else None


def norm(x: np.ndarray) -> float:
    """The Euclidean norm of x in float64; infinite or not a number if a value is, or beyond 1e154."""
    compiled = kernels()
    if compiled is not None:
        return float(np.sqrt(compiled.squares(x)))
    wide = x.astype(np.float64, copy=False)
    with np.errstate(over="ignore", invalid="ignore"):
        return float(np.sqrt(np.sum(wide * wide)))


def rounded(
    x: np.ndarray, factor: float, limit: float, dither: np.ndarray, mask: int, out: np.ndarray
) -> tuple[np.ndarray, int]:
    """``floor(clip(factor x, -limit, limit) + dither / 2^16) & mask`` as ``out``, and how many values were clipped.

    x: float32 or float64 ``(n,)``. dither: uniform uint16 ``(n,)``. out: integers ``(n,)`` that hold the mask; -1 for
    the mask keeps signed codes. limit below 2^46. A value that is not a number counts as clipped.
    """
    compiled = kernels()
    if compiled is not None:
        return out, int(compiled.rounded(x, factor, limit, dither, mask, out))
    with np.errstate(invalid="ignore"):
        scaled = x.astype(np.float64) * factor
        beyond = int(np.count_nonzero(~(np.abs(scaled) <= limit)))
        fixed = np.floor(np.clip(scaled, -limit, limit) * 2.0**FRACTION_BITS + 0.5).astype(np.int64)
    np.copyto(out, ((fixed + dither) >> FRACTION_BITS) & mask, casting="unsafe")
    return out, beyond


def lifted(words: np.ndarray, bits: int, factor: float) -> tuple[np.ndarray, np.ndarray, bool, int]:
    """Ring elements as signed codes (int64), factor times the codes (float64), whether all were in the ring, largest
    code.

    Codes lie in ``-2^(bits-1) .. 2^(bits-1) - 1``. words: integers ``(n,)``.
    """
    compiled = kernels()
    if compiled is not None:
        codes, reals = np.empty(words.size, np.int64), np.empty(words.size, np.float64)
        seen, largest = compiled.lifted(words, bits, factor, codes, reals)
        return codes, reals, not int(seen) >> bits, int(largest)
    codes, half = words.astype(np.int64), 1 << (bits - 1)
    inside = not int(np.bitwise_or.reduce(codes)) >> bits
    codes = ((codes + half) & ((1 << bits) - 1)) - half
    return codes, codes * factor, inside, int(np.abs(codes).max())


def length_squared(codes: np.ndarray) -> int:
    """The sum of squares of int64 codes, exact while it is below 2^63."""
    compiled = kernels()
    return int(np.dot(codes, codes) if compiled is None else compiled.length_squared(codes))


def added(codes: np.ndarray, noise: np.ndarray, mask: int, out: np.ndarray) -> np.ndarray:
    """``(codes + noise) & mask`` as ``out``."""
    compiled = kernels()
    if compiled is None:
        np.copyto(out, (codes + noise) & mask, casting="unsafe")
    else:
        compiled.added(codes, noise, mask, out)
    return out
