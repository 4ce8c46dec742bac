"""The secret key: two primes. Exists at the client alone; nothing that a server imports imports this module.

Keys are made and ciphertexts read by ``phe``. Its powers are GMP's, or Python's: both take a time that depends on the
key, so decryption is for a machine whose clock only its owner can read finely.
"""

from __future__ import annotations

import secrets
from typing import Any

from phe.paillier import PaillierPrivateKey, PaillierPublicKey, generate_paillier_keypair

from protocols.errors import Misuse
from protocols.paillier import numbers
from protocols.paillier.public import ID_BYTES, PublicKey
from protocols.prg import Secret


class PrivateKey(Secret):
    """``n = p q``; p and q of ``key_bits / 2`` bits, from the operating system's randomness.

    kept: the same key again, from :meth:`expose_for_keeping`.
    """

    def __init__(self, key_bits: int, kept: bytes | None = None) -> None:
        if kept is None:
            public, private = generate_paillier_keypair(n_length=key_bits)
            name = secrets.token_bytes(ID_BYTES)
        else:
            public, private, name = _again(key_bits, kept)
        self._private: PaillierPrivateKey = private
        self._p, self._q = numbers.big(private.p), numbers.big(private.q)
        self._p_square, self._q_square = self._p * self._p, self._q * self._q
        self._p_inverse = numbers.inverse(self._p_square, self._q_square)
        self.public = PublicKey(numbers.big(public.n), name)

    def expose_for_keeping(self) -> bytes:
        """The key's name and its primes, for the holder's own memory only."""
        half = self.public.bits // 16
        return self.public.name + numbers.to_bytes(self._p, half) + numbers.to_bytes(self._q, half)

    def zero(self) -> Any:
        """As ``PublicKey.zero``, four times faster.

        ``r^n mod p^2 = (r^q mod p)^p mod p^2``, and r^q mod p is uniform as r is, since q and p - 1 are coprime: so
        draw a mod p and b mod q at once, and put ``a^p mod p^2`` and ``b^q mod q^2`` together.
        """
        a = numbers.power(numbers.random_unit(self._p), self._p, self._p_square)
        b = numbers.power(numbers.random_unit(self._q), self._q, self._q_square)
        return a + self._p_square * ((b - a) * self._p_inverse % self._q_square)

    def decrypt(self, c: Any) -> int:
        """The plaintext, in ``(-n/2, n/2]``, of a number in 1 .. n^2 - 1 that is coprime to n."""
        m, n = int(self._private.raw_decrypt(int(c))), int(self.public.n)
        return m if 2 * m <= n else m - n


def _again(key_bits: int, kept: bytes) -> tuple[PaillierPublicKey, PaillierPrivateKey, bytes]:
    half = key_bits // 16
    if len(kept) != ID_BYTES + 2 * half:
        raise Misuse(f"a kept key of {len(kept)} bytes; one of {key_bits} bits has {ID_BYTES + 2 * half}")
    p, q = (int.from_bytes(kept[at : at + half], "big") for at in (ID_BYTES, ID_BYTES + half))
    public = PaillierPublicKey(p * q)
    return public, PaillierPrivateKey(public, p, q), kept[:ID_BYTES]
