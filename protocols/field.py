"""Shamir's secret sharing over the prime field of ``p = 2^255 - 19`` (Shamir 1979, "How to share a secret").

A secret ``s`` in ``0 .. p-1`` is the value at zero of a polynomial of degree ``needed - 1`` whose other coefficients
are uniform. The share of point ``x`` is its value there. Any ``needed`` shares give s; fewer are jointly uniform,
whatever s is. Numbers are Python's, exact: a share is made in about ``0.1 us * needed``.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from functools import lru_cache
from math import prod

from protocols.errors import Misuse, PeerMisbehaved

PRIME = 2**255 - 19
ELEMENT_BYTES = 32


def fresh() -> int:
    """A uniform element, from the operating system."""
    return secrets.randbelow(PRIME)


def encode(element: int) -> bytes:
    """32 bytes, little-endian."""
    return element.to_bytes(ELEMENT_BYTES, "little")


def decode(data: bytes | memoryview) -> int:
    """Inverse of :func:`encode`; raises :class:`PeerMisbehaved` for another length and for numbers from p on."""
    if len(data) != ELEMENT_BYTES:
        raise PeerMisbehaved(f"a share has {ELEMENT_BYTES} bytes, but {len(data)} came")
    if (element := int.from_bytes(data, "little")) >= PRIME:
        raise PeerMisbehaved("a share is not an element of the field: it is not below 2^255 - 19")
    return element


def share(hidden: Sequence[int], points: Sequence[int], needed: int) -> list[tuple[int, ...]]:
    """One row for each point: the shares of all of ``hidden`` there, in their order.

    points: distinct, from 1 on (at zero lies the secret itself). needed: how many rows give the secrets back.
    """
    _distinct(points)
    if not 1 <= needed <= len(points):
        raise Misuse(f"{needed} of {len(points)} shares are to give a secret back; it must be 1 to all of them")
    if not all(0 <= secret < PRIME for secret in hidden):
        raise Misuse("a secret to be shared is an element of the field, 0 .. 2^255 - 20")
    # Highest power first, as Horner's rule reads them; the secret is the last.
    polynomials = [[*(fresh() for _ in range(needed - 1)), secret] for secret in hidden]
    return [tuple(_value(polynomial, point) for polynomial in polynomials) for point in points]


def recover(points: Sequence[int], shares: Sequence[int]) -> int:
    """The secret from as many shares as were needed: ``sum_i shares_i prod_{j != i} x_j / (x_j - x_i)``.

    More than were needed do no harm; with fewer the result means nothing, and is not recognisable as such.
    """
    if len(points) != len(shares):
        raise Misuse(f"{len(shares)} shares for {len(points)} points")
    return sum(weight * value for weight, value in zip(_weights(tuple(points)), shares, strict=True)) % PRIME


def _value(polynomial: Sequence[int], point: int) -> int:
    value = 0
    for coefficient in polynomial:
        value = (value * point + coefficient) % PRIME
    return value


@lru_cache(maxsize=64)
def _weights(points: tuple[int, ...]) -> tuple[int, ...]:
    """Lagrange's weights at zero. Points are small numbers, so their products are taken whole and reduced once."""
    _distinct(points)
    whole = prod(points) % PRIME
    below = [x * prod(other - x for other in points if other != x) % PRIME for x in points]
    return tuple(whole * inverse % PRIME for inverse in _inverses(below))


def _inverses(numbers: Sequence[int]) -> list[int]:
    """Inverses of all by one inversion of their product."""
    before = [1]
    for number in numbers:
        before.append(before[-1] * number % PRIME)
    running, found = pow(before[-1], -1, PRIME), []
    for number, ahead in zip(reversed(numbers), reversed(before[:-1]), strict=True):
        found.append(running * ahead % PRIME)
        running = running * number % PRIME
    return found[::-1]


def _distinct(points: Sequence[int]) -> None:
    if not points or len(set(points)) != len(points) or min(points) < 1 or max(points) >= PRIME:
        raise Misuse("shares belong to distinct points, each from 1 to 2^255 - 20")
