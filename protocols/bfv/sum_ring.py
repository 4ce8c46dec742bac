"""The ring of sums under BFV: plaintexts modulo ``t = 2^bits``, a value a coefficient, the least modulus that will do.

Adding ciphertexts adds coefficients modulo t, and t is the ring's own modulus: nothing is wasted on room for sums, and
a mask uniform modulo t hides the sum perfectly. (Slots would want a prime t; sums need no slots.)

What else the key holder sees is noise. That of the clients' encryptions is theirs, drawn afresh, and says nothing
about values; but scaling a message m to ``round(q m / t)`` leaves a rounding error, at most 1/2 for every vector and
the mask, which depends on m. The server floods it with noise uniform in ``[-2^F, 2^F)``, 2^F so large that the
statistical distance is at most ``2^-HIDING_BITS`` a value. With E the largest noise in all, decryption takes
``q >= 2 t E``, and one bit more to be seen to be right: q is the smallest product of primes of whole bytes that is.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cached_property
from math import ceil, log2
from typing import Any

import numpy as np
import tenseal.sealapi as seal

from protocols.aggregation import SumPlan
from protocols.bfv.noise import DEVIATIONS, Model
from protocols.errors import BadParameters
from protocols.lattice import wire
from protocols.lattice.context import ID_BYTES, MAX_MODULUS_BITS
from protocols.lattice.residues import Words, primes
from protocols.lattice.wire import Level

HIDING_BITS = 40
MAX_BITS = 59
DEGREES = (4096, 8192)
_SPECIAL_BITS = 17  # it only divides the noise of a public key away
_WIDEST = 7  # bytes of a prime
_COUNT = struct.Struct("<32xQ")
_HEAD = struct.Struct("<32xQd")


@dataclass(frozen=True)
class SumRing:
    """Degree, primes and lengths of one plan. Raises BadParameters for rings wider than BFV can hold here."""

    plan: SumPlan

    def __post_init__(self) -> None:
        if self.plan.bits > MAX_BITS:
            raise BadParameters(
                f"bits = {self.plan.bits}: sums under 'bfv' go up to {MAX_BITS}, SEAL's widest plain modulus; protocol "
                "'shares' or 'pairwise' sums up to 64"
            )
        if not any(self._moduli(degree) for degree in DEGREES):
            raise BadParameters(
                f"sums of {self.plan.bits} bits from {self.plan.clients} clients fit no ring under 'bfv'"
            )

    @cached_property
    def degree(self) -> int:
        """N: values in a ciphertext."""
        return next(degree for degree in DEGREES if self._moduli(degree))

    @cached_property
    def moduli(self) -> tuple[int, ...]:
        """Data primes, then the special prime."""
        return self._moduli(self.degree)

    @property
    def plain(self) -> int:
        """t."""
        return 1 << self.plan.bits

    @property
    def flood_bits(self) -> int:
        """F: ``(clients + 1) / 2 / 2^(F + 1) <= 2^-HIDING_BITS``."""
        return HIDING_BITS - 1 + ceil(log2((self.plan.clients + 1) / 2))

    @property
    def ciphertexts(self) -> int:
        """Of one vector."""
        return -(-self.plan.length // self.degree)

    @property
    def data(self) -> Level:
        """The level of ciphertexts, nameless: for counting bytes."""
        return Level(self.degree, self.moduli[:-1], (), False)

    @property
    def message_bytes(self) -> int:
        """A vector's ciphertexts on the wire, behind the name of their key."""
        return ID_BYTES + self.ciphertexts * self.data.ciphertext_bytes

    @property
    def key_bytes(self) -> int:
        """The public key on the wire, behind its name."""
        return ID_BYTES + Level(self.degree, self.moduli, (), True).ciphertext_bytes

    def _moduli(self, degree: int) -> tuple[int, ...]:
        """The fewest bytes of data primes, then a special prime; () where the standard's bound is exceeded."""
        (special, *_) = primes(degree, _SPECIAL_BITS, 1)
        need = self._needed(degree, special)
        for size in range(3, MAX_MODULUS_BITS[degree] // 8):
            count = -(-size // _WIDEST)
            widths = [size // count + (i < size % count) for i in range(count)]
            found = [primes(degree, 8 * width, count)[widths[:i].count(width)] for i, width in enumerate(widths)]
            if sum(map(log2, found)) >= need:
                bits = np.prod(np.array([*found, special], object)).bit_length()
                return (*found, special) if bits <= MAX_MODULUS_BITS[degree] else ()
        return ()

    def _needed(self, degree: int, special: int) -> float:
        """Bits of q: those of ``4 t E``."""
        model, vectors = Model(degree, self.plain, (), log2(special)), self.plan.clients + 1
        one = log2(4.0 ** (model.zero - model.special) + 4.0**model.rounding) / 2
        own = 2.0 ** (one + log2(vectors) / 2 + DEVIATIONS)
        return self.plan.bits + 2 + log2(2.0**self.flood_bits + own + vectors / 2)


class SumContext:
    """SEAL's context of a ring, the levels of keys and ciphertexts, and plaintexts as coefficients."""

    def __init__(self, ring: SumRing) -> None:
        made = seal.EncryptionParameters(seal.SCHEME_TYPE.BFV)
        made.set_poly_modulus_degree(ring.degree)
        made.set_coeff_modulus([seal.Modulus(q) for q in ring.moduli])
        made.set_plain_modulus(ring.plain)
        self.ring, self.seal = ring, seal.SEALContext(made, True, seal.SEC_LEVEL_TYPE.TC128)
        if not self.seal.parameters_set():
            raise BadParameters(f"SEAL refuses the parameters: {self.seal.parameters_error_message()}")
        self.evaluator = seal.Evaluator(self.seal)
        self.key = Level(ring.degree, ring.moduli, tuple(self.seal.key_parms_id()), True)
        self.top = Level(ring.degree, ring.moduli[:-1], tuple(self.seal.first_parms_id()), False)

    def encryptor(self, public: bytes, what: str) -> Any:
        """SEAL's encryptor under a public key from the wire. Raises PeerMisbehaved on what SEAL refuses."""
        return seal.Encryptor(self.seal, wire.public_key(self.seal, self.key, public, what))

    def plaintext(self, values: np.ndarray) -> Any:
        """Up to N values below t as the first coefficients."""
        words = np.ascontiguousarray(values, "<u8")
        array = wire.envelope(struct.pack("<Q", words.size) + words.tobytes())
        stream = wire.envelope(_HEAD.pack(words.size, 1.0) + array)
        return wire.loaded(seal.Plaintext(), self.seal, stream, "a plaintext made here")

    def coefficients(self, plain: Any) -> Words:
        """All N coefficients: SEAL leaves out zeros at the end."""
        members = wire.saved(plain)
        (count,) = _COUNT.unpack_from(members)
        out = np.zeros(self.ring.degree, np.uint64)
        out[:count] = np.frombuffer(members, "<u8", count, len(members) - 8 * count)
        return out
