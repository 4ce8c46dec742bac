"""SEAL under one client's keys. Its scale is 1 everywhere; gains are the schedule's affair."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tenseal.sealapi as seal

from protocols.ckks.schedule import PolynomialStep
from protocols.lattice.engine import LatticeEngine


class Engine(LatticeEngine):
    """Homomorphic steps on ciphertexts of one context."""

    def encoded(self, values: Any, primes: int) -> Any:
        """A plaintext of a number in every slot, or of a list of numbers, at a level; rounded to integers."""
        plain = seal.Plaintext()
        self.context.encoder.encode(values, list(self.context.levels[primes].parms_id), 1.0, plain)
        return plain

    def zero(self, primes: int) -> Any:
        """A fresh encryption of zero under the public key."""
        out = seal.Ciphertext()
        self.keys.public.encrypt_zero(list(self.context.levels[primes].parms_id), out)
        out.scale = 1.0
        return out

    def dropped(self, x: Any, primes: int) -> Any:
        """A copy at the level of so many primes; values stay."""
        out = seal.Ciphertext()
        self.seal.mod_switch_to(x, list(self.context.levels[primes].parms_id), out)
        return out

    def divided(self, x: Any) -> Any:
        """The ciphertext divided by its last prime, in place."""
        self.seal.rescale_to_next_inplace(x)
        x.scale = 1.0
        return x

    def rotated(self, x: Any, step: int) -> Any:
        """The row rotated to the left."""
        out = seal.Ciphertext()
        self.seal.rotate_vector(x, step, self.keys.galois, out)
        return out

    def sum_of_products(self, terms: Sequence[tuple[Any, Any]]) -> Any:
        """``sum x_i p_i`` of ciphertexts and plaintexts, at least one."""
        total, product = seal.Ciphertext(), seal.Ciphertext()
        for number, (x, plain) in enumerate(terms):
            self.seal.multiply_plain(x, plain, product if number else total)
            if number:
                self.seal.add_inplace(total, product)
        return total

    def polynomial(self, x: Any, step: PolynomialStep) -> Any:
        """``m(x)`` of the centred form (:mod:`~protocols.ckks.centred`), divided by the step's primes."""
        form = step.form
        square = self.divided(self.product(x, x))
        if form.degree == 2:
            return square
        left, gain = step.primes - 1, step.gain**2 / step.divisors[0]
        if form.u:
            self.seal.add_plain_inplace(square, self.encoded(form.u * gain, left))
        x = self.dropped(x, left)
        if form.degree == 3:
            return self.divided(self.product(square, x))
        total = self.product(square, square)
        scalar = float(round(form.v * gain * gain / step.gain))
        if scalar:
            linear = seal.Ciphertext()
            self.seal.multiply_plain(x, self.encoded(scalar, left), linear)
            self.seal.add_inplace(total, linear)
        return self.divided(total)
