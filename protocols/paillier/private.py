"""The secret key: two primes. Exists at the client alone; nothing that a server imports imports this module.

Keys are made and ciphertexts read by ``phe``. Its powers are GMP's, or Python's: both take a time that depends on the
key, so decryption is for a machine whose clock only its owner can read finely.
"""

from __future__ import annotations

import secrets
from typing import Any

from phe.paillier import PaillierPrivateKey, generate_paillier_keypair

from protocols.paillier import numbers
from protocols.paillier.public import ID_BYTES, PublicKey
from protocols.prg import Secret


class PrivateKey(Secret):
    """``n = p q``; p and q of ``key_bits / 2`` bits, from the operating system's randomness."""

    def __init__(self, key_bits: int) -> None:
        public, private = generate_paillier_keypair(n_length=key_bits)
        self._private: PaillierPrivateKey = private
        self._p, self._q = numbers.big(private.p), numbers.big(private.q)
        self._p_square, self._q_square = self._p * self._p, self._q * self._q
        self._p_inverse = numbers.inverse(self._p_square, self._q_square)
        self.public = PublicKey(numbers.big(public.n), secrets.token_bytes(ID_BYTES))

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
