"""Parameters of ring learning with errors at 128-bit security, contexts made from them, and evaluation keys.

Security: the homomorphic encryption standard (Albrecht et al., 2018) bounds the bits of the whole coefficient modulus
for a degree N and a ternary secret; SEAL refuses what exceeds it, and so does :class:`Parameters`, before SEAL sees it.

One secret serves several plain moduli (BFV): keys that switch keys do not depend on the plain modulus, so that they
travel once and are read under each context.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import tenseal.sealapi as seal

from protocols.errors import BadParameters
from protocols.lattice import wire
from protocols.lattice.residues import MAX_BITS, is_prime, primes
from protocols.lattice.wire import Level, cut

SECURITY_BITS = 128
MAX_MODULUS_BITS = {1024: 27, 2048: 54, 4096: 109, 8192: 218, 16384: 438, 32768: 881}
ID_BYTES = 16
BFV, CKKS = "bfv", "ckks"


@dataclass(frozen=True)
class Parameters:
    """What makes a context. coefficient: data primes, then the special prime of key switching; plain: 0 for ckks."""

    scheme: str
    degree: int
    coefficient: tuple[int, ...]
    plain: int = 0

    def __post_init__(self) -> None:
        if self.scheme not in (BFV, CKKS) or self.degree not in MAX_MODULUS_BITS:
            raise BadParameters(f"scheme {self.scheme!r} at degree {self.degree}; degrees: {sorted(MAX_MODULUS_BITS)}")
        moduli = self.coefficient
        if len(moduli) < 2 or len(set(moduli)) != len(moduli):
            raise BadParameters(f"{len(moduli)} coefficient primes, {len(set(moduli))} of them different; at least 2")
        for q in (*moduli, *((self.plain,) if self.scheme == BFV else ())):
            if q.bit_length() > MAX_BITS or q % (2 * self.degree) != 1 or not is_prime(q):
                raise BadParameters(f"{q} is no prime of at most {MAX_BITS} bits that is 1 mod {2 * self.degree}")
        if (self.scheme == BFV) != (self.plain > 0) or self.plain >= min(moduli):
            raise BadParameters(f"plain modulus {self.plain} does not fit {self.scheme} with these primes")
        if self.modulus_bits > self.most_bits:
            raise BadParameters(
                f"a coefficient modulus of {self.modulus_bits} bits at degree {self.degree}: for {SECURITY_BITS}-bit "
                f"security, at most {self.most_bits}"
            )

    @property
    def modulus_bits(self) -> int:
        """Bits of the whole coefficient modulus, special prime included: what security depends on."""
        product = 1
        for q in self.coefficient:
            product *= q
        return product.bit_length()

    @property
    def most_bits(self) -> int:
        """The standard's bound on them."""
        return MAX_MODULUS_BITS[self.degree]

    @property
    def why(self) -> str:
        """Security level and its reason, for people."""
        return (
            f"{SECURITY_BITS} bits: modulus of {self.modulus_bits} bits, at most {self.most_bits} at N = {self.degree} "
            "(homomorphic encryption standard, ternary secret)"
        )

    def with_plain(self, plain: int) -> Parameters:
        """The same with another plain modulus."""
        return replace(self, plain=plain)

    def key_level(self) -> Level:
        """The level of keys, nameless: for counting bytes."""
        return Level(self.degree, self.coefficient, (), True)

    def level(self, count: int) -> Level:
        """The level of ``count`` data primes, nameless: for counting bytes."""
        return Level(self.degree, self.coefficient[:count], (), self.scheme == CKKS)


def chain(degree: int, bits: int, *, avoid: tuple[int, ...] = ()) -> tuple[int, ...] | None:
    """Fewest data primes of one size with a product of at least ``bits`` bits, then a special prime; None: not safe."""
    most = MAX_MODULUS_BITS[degree]
    for count in range(1, most // 20 + 1):
        widest = min(MAX_BITS, most // (count + 1))
        need = -(-(bits + 1) // count)  # the largest primes of b bits: all of them together miss less than a bit
        if need > widest:
            continue
        width = min(widest, -(-need // 8) * 8)
        found = primes(degree, width, count + 1, avoid)
        if len(found) == count + 1:
            return (*found[1:], found[0])  # the special prime is the largest: it divides the noise of switching
    return None


class Context:
    """SEAL's context of checked parameters, its levels, and its evaluator and encoder."""

    def __init__(self, parameters: Parameters) -> None:
        self.parameters = parameters
        bfv = parameters.scheme == BFV
        made = seal.EncryptionParameters(seal.SCHEME_TYPE.BFV if bfv else seal.SCHEME_TYPE.CKKS)
        made.set_poly_modulus_degree(parameters.degree)
        made.set_coeff_modulus([seal.Modulus(q) for q in parameters.coefficient])
        if bfv:
            made.set_plain_modulus(parameters.plain)
        self.seal = seal.SEALContext(made, True, seal.SEC_LEVEL_TYPE.TC128)
        if not self.seal.parameters_set():
            raise BadParameters(f"SEAL refuses the parameters: {self.seal.parameters_error_message()}")
        self.evaluator = seal.Evaluator(self.seal)
        self.encoder = seal.BatchEncoder(self.seal) if bfv else seal.CKKSEncoder(self.seal)
        ntt = not bfv
        self.key = Level(parameters.degree, parameters.coefficient, tuple(self.seal.key_parms_id()), True)
        self.levels = {
            len(found.moduli): found for found in _levels(self.seal, parameters.degree, parameters.coefficient, ntt)
        }

    @property
    def top(self) -> Level:
        """Where fresh ciphertexts live: all data primes."""
        return self.levels[len(self.parameters.coefficient) - 1]


def _levels(context: Any, degree: int, moduli: tuple[int, ...], ntt: bool) -> Iterator[Level]:
    data = context.first_context_data()
    while data is not None:
        count = data.chain_index() + 1
        yield Level(degree, moduli[:count], tuple(data.parms_id()), ntt)
        data = data.next_context_data()


@dataclass(frozen=True)
class KeySet:
    """Which evaluation keys a plan needs: relinearization, and rotations of the rows by these steps to the left.

    relinearize_primes, rotation_primes: the most data primes that ciphertexts still have when a key is used; keys for
    late stages are smaller. 0 and (): all primes.
    """

    parameters: Parameters
    relinearize: bool
    rotations: tuple[int, ...]
    relinearize_primes: int = 0
    rotation_primes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        half = self.parameters.degree // 2
        steps = self.rotations
        if list(steps) != sorted(set(steps)) or any(not 0 < step < half for step in steps):
            raise BadParameters(f"rotation steps {steps} are not ascending numbers in 1..{half - 1}")
        used = self.rotation_primes
        if len(used) not in (0, len(steps)) or any(not 1 <= p <= self.primes for p in (*used, self.relinearized)):
            raise BadParameters(f"keys for {used} and {self.relinearized} primes; each is used with 1..{self.primes}")

    @property
    def primes(self) -> int:
        """Data primes: ciphertexts in one switching key."""
        return len(self.parameters.coefficient) - 1

    @property
    def relinearized(self) -> int:
        """Data primes of the relinearization key."""
        return self.relinearize_primes or self.primes

    @cached_property
    def elements(self) -> dict[int, int]:
        """Galois elements of the rotations, 3^step mod 2N, in the order of SEAL's table; and the primes of each key."""
        used = self.rotation_primes or (self.primes,) * len(self.rotations)
        made = zip(self.rotations, used, strict=True)
        return dict(sorted((pow(3, step, 2 * self.parameters.degree), primes) for step, primes in made))

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Bytes of the parts of a key message: name, public key, then one entry per switching key."""
        level = self.parameters.key_level()
        used = [self.relinearized] * self.relinearize + list(self.elements.values())
        return (ID_BYTES, level.ciphertext_bytes, *(wire.switching_bytes(level, primes) for primes in used))

    @property
    def bytes(self) -> int:
        """Length of a key message."""
        return sum(self.sizes)


class EvaluationKeys:
    """The key message, cut into its parts; read under a context with :meth:`under`."""

    def __init__(self, keys: KeySet, message: bytes) -> None:
        self.keys = keys
        name, self._public, *rest = cut(message, keys.sizes, "the message of evaluation keys")
        self.name = bytes(name)
        self._relinearize = rest.pop(0) if keys.relinearize else None
        self._galois = dict(zip(keys.elements, rest, strict=True))

    def under(self, context: Context) -> LoadedKeys:
        """SEAL's objects for one context. Raises PeerMisbehaved on what SEAL refuses."""
        public = wire.public_key(context.seal, context.key, self._public, "the public key")
        relin, galois = None, None
        if self._relinearize is not None:
            table = [(self._relinearize, self.keys.relinearized)]
            relin = wire.switching_keys(context.seal, context.key, seal.RelinKeys, table, "the relinearization key")
        if self._galois:
            rows: list[tuple[memoryview, int] | None] = [None] * context.parameters.degree
            for element, key in self._galois.items():
                rows[(element - 1) // 2] = key, self.keys.elements[element]
            galois = wire.switching_keys(context.seal, context.key, seal.GaloisKeys, rows, "the Galois keys")
        return LoadedKeys(seal.Encryptor(context.seal, public), relin, galois)


@dataclass(frozen=True, repr=False)
class LoadedKeys:
    """SEAL's objects: an encryptor under the public key, relinearization keys and Galois keys (None where unused)."""

    public: Any
    relinearize: Any
    galois: Any
