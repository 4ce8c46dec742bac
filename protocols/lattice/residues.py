"""Arithmetic modulo primes below 2^60 on whole arrays of uint64, and secret integers wider than a word."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from protocols.errors import Misuse

Words: TypeAlias = NDArray[np.uint64]

MAX_BITS = 60
MAX_SHIFT = 32
_BASES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37)


def is_prime(n: int) -> bool:
    """Miller-Rabin with the first twelve primes as bases: no error below 3.3e24 (Sorenson and Webster, 2015)."""
    if n < 2 or any(n % base == 0 for base in _BASES):
        return n in _BASES
    twos = (n - 1 & 1 - n).bit_length() - 1
    for base in _BASES:
        x = pow(base, n - 1 >> twos, n)
        if x in (1, n - 1):
            continue
        for _ in range(twos - 1):
            x = x * x % n
            if x == n - 1:
                break
        else:
            return False
    return True


@lru_cache(maxsize=512)
def primes(degree: int, bits: int, count: int, avoid: tuple[int, ...] = ()) -> tuple[int, ...]:
    """The ``count`` largest primes of ``bits`` bits that are 1 mod 2 ``degree``; all where there are fewer."""
    found: list[int] = []
    step = 2 * degree
    candidate = ((1 << bits) - 2) // step * step + 1
    while len(found) < count and candidate >= 1 << (bits - 1) and candidate > 1:
        if candidate not in avoid and is_prime(candidate):
            found.append(candidate)
        candidate -= step
    return tuple(found)


def shifted(x: Words, bits: int, prime: int) -> Words:
    """``x 2^bits mod prime`` for x below the prime, bits up to 32.

    The quotient is below 2^32, so that a double knows it to one unit; the remainder is then right modulo 2^64.
    """
    if bits > MAX_SHIFT or prime >> MAX_BITS:
        raise Misuse(f"a shift by {bits} bits mod a prime of {prime.bit_length()} bits; {MAX_SHIFT}, {MAX_BITS} served")
    quotient = (x.astype(np.float64) * (float(1 << bits) / prime)).astype(np.uint64)
    rest = (x << np.uint64(bits)) - quotient * np.uint64(prime)
    return _settled(rest, prime)


def _settled(rest: Words, prime: int) -> Words:
    """Numbers in (-prime, 2 prime), negative ones modulo 2^64, brought into [0, prime)."""
    rest = np.where(rest >> np.uint64(63), rest + np.uint64(prime), rest)
    return np.where(rest >= np.uint64(prime), rest - np.uint64(prime), rest)


def added(x: Words, y: Words, prime: int) -> Words:
    """``x + y mod prime`` for both below the prime."""
    total = x + y
    return np.where(total >= np.uint64(prime), total - np.uint64(prime), total)


def reduced(x: NDArray[np.int64], prime: int, bits: int = 63) -> Words:
    """Signed words below 2^bits modulo a prime."""
    if 1 << bits <= prime:
        return np.where(x < 0, x + prime, x).astype(np.uint64)
    return np.mod(x, prime).astype(np.uint64)


def flood(bits: int, count: int, moduli: Sequence[int]) -> Words:
    """Secret integers, uniform in [-2^bits, 2^bits), modulo every prime: ``(len(moduli), count)``; from the system."""
    limbs = -(-(bits + 1) // MAX_SHIFT)
    drawn = np.frombuffer(os.urandom(4 * limbs * count), "<u4").reshape(limbs, count).astype(np.uint64)
    drawn[0] &= np.uint64((1 << (bits + 1 - MAX_SHIFT * (limbs - 1))) - 1)
    out = np.empty((len(moduli), count), np.uint64)
    for row, prime in zip(out, moduli, strict=True):
        total = np.zeros(count, np.uint64)
        for limb in drawn:
            total = added(shifted(total, MAX_SHIFT, prime), limb % np.uint64(prime), prime)
        low = np.full(count, (-(1 << bits)) % prime, np.uint64)
        row[:] = added(total, low, prime)
    return out


def uniform(bound: int, count: int) -> NDArray[np.int64]:
    """Secret integers uniform in [0, bound), bound below 2^62: words from the system, those past a multiple refused."""
    taken = np.empty(0, np.int64)
    limit = (1 << 62) // bound * bound
    while len(taken) < count:
        words = np.frombuffer(os.urandom(8 * (count - len(taken) + 8)), "<u8") >> np.uint64(2)
        taken = np.concatenate([taken, (words[words < limit] % np.uint64(bound)).astype(np.int64)])
    return taken[:count]
