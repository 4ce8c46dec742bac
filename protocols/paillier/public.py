"""The public key: everything that can be done to ciphertexts without being able to read them.

``c = (1 + n)^m r^n mod n^2 = (1 + n m) r^n mod n^2``, m mod n, r uniform. Whoever has n encrypts, adds (multiplies
ciphertexts) and scales (raises to a power). The first factor is free; ``r^n``, an encryption of zero, is the work.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from protocols.errors import PeerMisbehaved
from protocols.paillier import numbers

ID_BYTES = 16
_SMALL = math.prod(k for k in range(3, 2000, 2) if all(k % d for d in range(3, math.isqrt(k) + 1, 2)))
"""The product of the odd primes below 2000."""


def key_bytes(key_bits: int) -> int:
    """A public key on the wire: its name and n."""
    return ID_BYTES + key_bits // 8


def message_bytes(key_bits: int, count: int) -> int:
    """``count`` ciphertexts on the wire: the name of their key, then numbers below n^2."""
    return ID_BYTES + count * (key_bits // 4)


@dataclass(frozen=True, repr=False)
class PublicKey:
    """n, and 16 random bytes that name the key in every message, so that messages under two keys cannot be mixed."""

    n: Any
    name: bytes

    @property
    def bits(self) -> int:
        """Of the modulus n."""
        return int(self.n).bit_length()

    @cached_property
    def square(self) -> Any:
        """n^2, what ciphertexts are reduced by."""
        return self.n * self.n

    def to_bytes(self) -> bytes:
        """name, then n: ``key_bytes(bits)`` bytes."""
        return self.name + numbers.to_bytes(self.n, self.bits // 8)

    @staticmethod
    def from_bytes(data: bytes, key_bits: int) -> PublicKey:
        """A key from the wire. Raises PeerMisbehaved on a length or a modulus that no honest key has."""
        if len(data) != key_bytes(key_bits):
            raise PeerMisbehaved(f"a public key of {len(data)} bytes; one of {key_bits} bits has {key_bytes(key_bits)}")
        n = numbers.from_bytes(data[ID_BYTES:])
        if int(n).bit_length() != key_bits:
            raise PeerMisbehaved(f"a modulus of {int(n).bit_length()} bits where the plan asks for {key_bits}")
        # A small or repeated factor would let n-th powers miss part of the group, and then blinding is not perfect.
        if n % 2 == 0 or numbers.gcd(n, numbers.big(_SMALL)) != 1 or math.isqrt(int(n)) ** 2 == n:
            raise PeerMisbehaved("the modulus of a public key is not a product of two different large primes")
        return PublicKey(n, bytes(data[:ID_BYTES]))

    def zero(self) -> Any:
        """A fresh encryption of zero: ``r^n mod n^2``, r from the operating system. One serves once."""
        return numbers.power(numbers.random_unit(self.n), self.n, self.square)

    def encrypt(self, m: int, zero: Any) -> Any:
        """``(1 + n m) zero mod n^2`` for a signed m; ``zero`` is an encryption of zero used nowhere else."""
        return (1 + self.n * (m % self.n)) * zero % self.square

    def add(self, ciphertexts: Iterable[Any]) -> Any:
        """An encryption of the sum of what is in them: their product. An encryption of 0, readable, for none."""
        total = numbers.big(1)
        for c in ciphertexts:
            total = total * c % self.square
        return total

    def scale(self, c: Any, factor: int) -> Any:
        """An encryption of ``factor >= 0`` times what is in c, in a time that follows the factor's bits."""
        return numbers.power(c, numbers.big(factor), self.square)

    def write(self, ciphertexts: Sequence[Any]) -> bytes:
        """Ciphertexts as a message: ``message_bytes(bits, count)`` bytes."""
        width = self.bits // 4
        return self.name + b"".join(numbers.to_bytes(c, width) for c in ciphertexts)

    def read(self, data: bytes, count: int, what: str) -> list[Any]:
        """``count`` ciphertexts from a message; ``what`` names it in errors.

        Raises PeerMisbehaved on a wrong length (before anything else is looked at), another key, or a number that is
        no ciphertext: 0, n^2 and above, or one that shares a factor with n.
        """
        expected = message_bytes(self.bits, count)
        if len(data) != expected:
            raise PeerMisbehaved(f"{what} of {len(data)} bytes; {count} ciphertexts have {expected}")
        if data[:ID_BYTES] != self.name:
            raise PeerMisbehaved(f"{what} is under another key than the one of this session")
        width = self.bits // 4
        out = [numbers.from_bytes(data[at : at + width]) for at in range(ID_BYTES, expected, width)]
        common, reduced = numbers.big(1), self.n
        for c in out:
            if not 0 < c < self.square:
                raise PeerMisbehaved(f"{what} holds a number that is no ciphertext: it must lie in 1 .. n^2 - 1")
            common = common * c % reduced
        if numbers.gcd(common, self.n) != 1:
            raise PeerMisbehaved(f"{what} holds a number that is no ciphertext: it shares a factor with the modulus")
        return out
