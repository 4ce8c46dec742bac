"""SEAL under one client's keys and one plain prime: what both packings compute with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tenseal.sealapi as seal
from numpy.typing import NDArray

from protocols.bfv.noise import scalars
from protocols.bfv.schedule import Schedule
from protocols.bfv.weights import constant
from protocols.errors import Misuse
from protocols.lattice import wire
from protocols.lattice.context import Context, LoadedKeys
from protocols.lattice.engine import LatticeEngine
from protocols.lattice.residues import flood, uniform


class Engine(LatticeEngine):
    """Homomorphic steps on ciphertexts of one context."""

    def __init__(self, context: Context, keys: LoadedKeys) -> None:
        super().__init__(context, keys)
        self.plain = context.parameters.plain

    def dropped(self, x: Any, primes: int) -> Any:
        """The ciphertext at the level of so many primes, in place."""
        target = self.context.levels[primes].parms_id
        if tuple(x.parms_id()) != target:
            self.seal.mod_switch_to_inplace(x, list(target))
        return x

    def zero(self, primes: int) -> Any:
        """A fresh encryption of zero under the public key."""
        out = seal.Ciphertext()
        self.keys.public.encrypt_zero(list(self.context.levels[primes].parms_id), out)
        return out

    def rotated(self, x: Any, step: int) -> Any:
        """Both rows rotated to the left."""
        out = seal.Ciphertext()
        self.seal.rotate_rows(x, step, self.keys.galois, out)
        return out

    def transformed(self, x: Any) -> Any:
        """A copy in NTT form, where products with plaintexts are cheap."""
        out = seal.Ciphertext()
        self.seal.transform_to_ntt(x, out)
        return out

    def sum_of_products(self, terms: Sequence[tuple[Any, Any]], dummy: Any, primes: int) -> Any:
        """``sum x_i p_i`` of NTT ciphertexts and plaintexts, back in coefficient form.

        A plaintext of None is zero; it is multiplied like any other, by a dummy, so that time does not tell.
        """
        total, product = None, seal.Ciphertext()
        for x, plain in terms:
            self.seal.multiply_plain(x, dummy if plain is None else plain, product)
            if plain is None:
                continue
            if total is None:
                total, product = product, seal.Ciphertext()
            else:
                self.seal.add_inplace(total, product)
        if total is None:
            return self.zero(primes)
        self.seal.transform_from_ntt_inplace(total)
        return total

    def polynomial(self, x: Any, coefficients: Sequence[int], primes: int) -> Any:
        """``sum c_i x^i`` slot by slot, coefficients mod t."""
        sizes = scalars(coefficients, self.plain)
        degree = max((i for i, size in enumerate(sizes) if size), default=0)
        powers = {1: x}
        for i in range(2, degree + 1):
            if i == 3 or sizes[i] or (i == 2 and degree > 2):
                powers[i] = self.product(powers[i - 1] if i == 3 else powers[i // 2], powers[1 if i == 3 else i // 2])
        total = None
        for i, size in enumerate(sizes):
            if i and size:
                term = self._scaled(powers[i], coefficients[i])
                if total is None:
                    total = term
                else:
                    self.seal.add_inplace(total, term)
        if total is None:
            total = self.zero(primes)
        if sizes[0]:
            self.seal.add_plain_inplace(total, constant(coefficients[0], self.plain))
        return total

    def _scaled(self, x: Any, scalar: int) -> Any:
        """``c x`` as a new ciphertext, for c other than 0 mod t."""
        out = seal.Ciphertext()
        if scalar % self.plain == 1:
            self.seal.mod_switch_to(x, list(x.parms_id()), out)
        elif scalar % self.plain == self.plain - 1:
            self.seal.negate(x, out)
        else:
            self.seal.multiply_plain(x, constant(scalar, self.plain), out)
        return out

    def finished(self, x: Any, used: NDArray[np.bool_], run: Schedule) -> bytes:
        """The answer: random values where nothing is owed, fresh randomness, the flood, the smallest modulus.

        used: bool ``(N,)``, the slots that the client may read. After this a ciphertext tells its key's owner nothing
        but those slots: its first half is a fresh sample of ring learning with errors, its noise the flood's.
        """
        if x.is_transparent():
            raise Misuse("a result does not depend on the question; nothing was sent")
        if not used.all():
            values = np.where(used, 0, uniform(self.plain, used.size))
            filler = seal.Plaintext()
            self.context.encoder.encode(values.tolist(), filler)
            self.seal.add_plain_inplace(x, filler)
        self.dropped(x, run.flood_primes)
        level = self.context.levels[run.flood_primes]
        self.seal.add_inplace(x, self.zero(run.flood_primes))
        drawn = flood(run.flood_bits, level.degree, level.moduli)
        noise = wire.from_residues(self.context.seal, level, np.stack([drawn, np.zeros_like(drawn)]))
        self.seal.add_inplace(x, noise)
        self.dropped(x, run.final)
        return wire.dump(x, self.context.levels[run.final])
