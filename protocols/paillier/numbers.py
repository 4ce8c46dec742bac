"""Arithmetic on integers of thousands of bits: by GMP where gmpy2 is installed, by Python where not. Same integers."""

from __future__ import annotations

import math
import secrets
from typing import Any

try:
    import gmpy2 as _gmp
except ModuleNotFoundError:  # three to ten times slower, nothing else changes
    _gmp = None

HAVE_GMP = _gmp is not None


def big(value: int) -> Any:
    """The value in the form that computes fastest; behaves as an int."""
    return value if _gmp is None else _gmp.mpz(value)


def power(base: Any, exponent: Any, modulus: Any) -> Any:
    """``base^exponent mod modulus``. Other threads run meanwhile where GMP does the work."""
    if _gmp is None:
        return pow(base, exponent, modulus)
    with _gmp.context(allow_release_gil=True):
        return _gmp.powmod(base, exponent, modulus)


def inverse(value: Any, modulus: Any) -> Any:
    """``value^-1 mod modulus`` for a value that is coprime to the modulus."""
    return pow(value, -1, modulus) if _gmp is None else _gmp.invert(value, modulus)


def gcd(a: Any, b: Any) -> int:
    """The greatest common divisor."""
    return math.gcd(a, b) if _gmp is None else int(_gmp.gcd(a, b))


def random_unit(modulus: int) -> Any:
    """Uniform in 1 .. modulus - 1, from the operating system.

    For a modulus of two secret primes it is a unit but with a chance below 2^-1000, and finding one that is not would
    be factoring.
    """
    return big(1 + secrets.randbelow(int(modulus) - 1))


def to_bytes(value: Any, length: int) -> bytes:
    """Big-endian, of exactly ``length`` bytes."""
    return int(value).to_bytes(length, "big")


def from_bytes(data: bytes) -> Any:
    """The inverse of :func:`to_bytes`."""
    return big(int.from_bytes(data, "big"))
