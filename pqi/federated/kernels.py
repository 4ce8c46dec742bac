"""Compiled loops of the encoding; ``rounding.py`` and ``privacy/rotation.py`` hold their numpy forms."""

# mypy: disable-error-code="call-arg,var-annotated,misc"
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators, allow-any-generics

from __future__ import annotations

import numpy as np
from numba import njit

CHUNK = 1 << 13  # float32 values of a transform that are worked on at a time: they stay in the first-level cache
FRACTION = 65536.0


@njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})
def squares(x):
    """The sum of squares, in float64; not a number or infinite if a value is."""
    total = 0.0
    for i in range(x.size):
        value = np.float64(x[i])
        total += value * value
    return total


@njit(cache=True, nogil=True)
def rounded(x, factor, limit, dither, mask, out):
    """Codes of x into ``out``; returns how many values were beyond the limit. See ``rounding.rounded``."""
    beyond = 0
    for i in range(x.size):
        scaled = np.float64(x[i]) * factor
        kept = min(max(scaled, -limit), limit)
        beyond += not abs(scaled) <= limit
        out[i] = ((np.int64(np.floor(kept * FRACTION + 0.5)) + np.int64(dither[i])) >> 16) & mask
    return beyond


@njit(cache=True, nogil=True)
def lifted(words, bits, factor, codes, reals):
    """Signed representatives of ring elements, and ``factor`` times them. See ``rounding.lifted``."""
    half, mask = np.int64(1) << (bits - 1), (np.int64(1) << bits) - 1
    seen, largest = np.int64(0), np.int64(0)
    for i in range(words.size):
        word = np.int64(words[i])
        code = ((word + half) & mask) - half
        seen |= word
        largest = max(largest, abs(code))
        codes[i] = code
        reals[i] = code * factor
    return seen, largest


@njit(cache=True, nogil=True)
def length_squared(codes):
    """The sum of squares of int64, exact."""
    total = np.int64(0)
    for i in range(codes.size):
        total += codes[i] * codes[i]
    return total


@njit(cache=True, nogil=True)
def added(codes, noise, mask, out):
    """``(codes + noise) & mask``."""
    for i in range(codes.size):
        out[i] = (codes[i] + noise[i]) & mask


@njit(cache=True, nogil=True)
def signed(x, bits, factor, out):
    """``out_i = -x_i factor`` where bit i (the lowest of a byte first) is set, else ``x_i factor``."""
    for i in range(x.size):
        value = x[i] * factor
        out[i] = -value if (bits[i >> 3] >> (i & 7)) & 1 else value


@njit(cache=True, nogil=True)
def _two_stages(x, start, stop, half):
    """Stages of strides ``half`` and ``half / 2`` in one pass, on blocks of ``2 half`` values."""
    quarter = half // 2
    for block in range(start, stop, 2 * half):
        a, b = x[block : block + quarter], x[block + quarter : block + half]
        c, d = x[block + half : block + half + quarter], x[block + half + quarter : block + 2 * half]
        for i in range(quarter):
            p, q, r, s = a[i] + c[i], b[i] + d[i], a[i] - c[i], b[i] - d[i]
            a[i], b[i], c[i], d[i] = p + q, p - q, r + s, r - s


@njit(cache=True, nogil=True)
def _one_stage(x, start, stop, half):
    for block in range(start, stop, 2 * half):
        for i in range(block, block + half):
            x[i], x[i + half] = x[i] + x[i + half], x[i] - x[i + half]


@njit(cache=True, nogil=True)
def hadamard(x):
    """The Walsh-Hadamard transform of x in place, unscaled; a power of two of values. Strides go down, half to 1."""
    half = x.size // 2
    while half >= CHUNK:
        if half // 2 >= CHUNK:
            _two_stages(x, 0, x.size, half)
            half //= 4
        else:
            _one_stage(x, 0, x.size, half)
            half //= 2
    span = 2 * half
    if span < 2:
        return
    for start in range(0, x.size, span):
        stride = half
        while stride >= 8:
            if stride >= 16:
                _two_stages(x, start, start + span, stride)
                stride //= 4
            else:
                _one_stage(x, start, start + span, stride)
                stride //= 2
        if stride == 4:
            _last_three(x, start, start + span)
        else:
            while stride >= 1:
                _one_stage(x, start, start + span, stride)
                stride //= 2


@njit(cache=True, nogil=True)
def _last_three(x, start, stop):
    """Stages of strides 4, 2 and 1 in one pass."""
    for i in range(start, stop, 8):
        a, b, c, d = x[i] + x[i + 4], x[i + 1] + x[i + 5], x[i + 2] + x[i + 6], x[i + 3] + x[i + 7]
        e, f, g, h = x[i] - x[i + 4], x[i + 1] - x[i + 5], x[i + 2] - x[i + 6], x[i + 3] - x[i + 7]
        p, q, r, s = a + c, b + d, a - c, b - d
        t, u, v, w = e + g, f + h, e - g, f - h
        x[i], x[i + 1], x[i + 2], x[i + 3] = p + q, p - q, r + s, r - s
        x[i + 4], x[i + 5], x[i + 6], x[i + 7] = t + u, t - u, v + w, v - w


@njit(cache=True, nogil=True)
def looked_up(words, bounds, guide, shift, out):
    """``out_i = number of bounds <= words_i``; guide: the same number for the first word of each of its cells.

    Returns how many words equal a bound.
    """
    last, equal = bounds.size, 0
    for i in range(words.size):
        word = words[i]
        at = guide[word >> shift]
        while at < last and bounds[at] <= word:
            at += 1
        out[i] = at
        if at > 0 and bounds[at - 1] == word:
            equal += 1
    return equal
