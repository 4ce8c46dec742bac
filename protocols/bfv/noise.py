"""How noise grows: high-probability bounds, so that parameters are chosen, and circuits refused, before anything runs.

A ciphertext at modulus q under plain modulus t satisfies ``(t/q) (c_0 + c_1 s) = m + v mod t``; it decrypts while every
coefficient of v is below 1/2. Tracked is E = v q / t through its standard deviation per coefficient (its log2, for E
can have hundreds of bits); the bound is ten deviations. What is left of the budget is ``log2(q) - log2(2 t |E|)`` bits,
less one, since SEAL counts whole bits.

Each step multiplies or adds variances as for independent terms (Costache, Laine, Player: ESORICS 2020), with cautions:

* plaintexts and scalars are as large as they can be mod t, unless the circuit's proof bounds the weights;
* a sum of rotations of one ciphertext (a fold) doubles the deviation: a coefficient that the automorphism fixes does;
* products of ciphertexts get two bits: powers of the secret are not independent (Biasioli et al., 2023).

Tests hold every bound against the noise that SEAL measures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, log2

from protocols.circuit import Affine, Polynomial
from protocols.lattice.diagonals import Diagonal
from protocols.lattice.layout import AffineLayout

DEVIATIONS = log2(10)
FLOOD_BITS = 40
_FRESH = 11.0  # variance of a centred binomial of 21 pairs, and the rounding of the message
_PRODUCT = 4.0


@dataclass(frozen=True)
class Model:
    """Parameters as the noise sees them: N, t, the bits of every data prime and of the special prime."""

    degree: int
    plain: int
    data: tuple[float, ...]
    special: float

    @property
    def fresh(self) -> float:
        """log2 of the deviation of a fresh symmetric ciphertext."""
        return log2(_FRESH) / 2

    @property
    def rounding(self) -> float:
        """Of ``r_0 + r_1 s`` with rounding errors r: what modulus switching adds."""
        return log2((1 + self.degree * 2 / 3) / 12) / 2

    @property
    def zero(self) -> float:
        """Of a public-key encryption of zero, before SEAL divides it by a prime: at most."""
        return log2(_FRESH + 2 * _FRESH * self.degree * 2 / 3) / 2

    @property
    def half(self) -> float:
        """log2(t/2): the largest scalar, and the largest coefficient of a plaintext."""
        return log2(self.plain) - 1

    def modulus(self, primes: int) -> float:
        """log2(q) of a level."""
        return sum(self.data[:primes])

    def left(self, noise: float, primes: int) -> float:
        """Budget in whole bits as SEAL measures it, at a level: at least ``log2(q) - log2(2 t |E|) - 1``."""
        return self.modulus(primes) - log2(self.plain) - 2 - noise - DEVIATIONS

    def switching(self, primes: int) -> float:
        """Of switching keys: ``sum_j D_j e_j / p`` over the residues D_j < q_j, and the rounding."""
        ratio = 2.0 ** (2 * (max(self.data[:primes]) - self.special))
        return log2(primes * self.degree * _FRESH / 3 * ratio + 4.0**self.rounding) / 2

    def plain_product(self, noise: float) -> float:
        """Times a plaintext with coefficients up to t/2: ``sqrt(N) t/2``."""
        return noise + self.half + log2(self.degree) / 2

    def product(self, x: float, y: float) -> float:
        """Of ``x y``, relinearization apart: ``K_x E_y + K_y E_x`` with K of deviation ``t sqrt(N/18)``."""
        factor = log2(self.plain) + log2(self.degree / 18 + 1) / 2 + log2(self.degree) / 2
        return factor + total(x, y, independent=False) + log2(_PRODUCT) / 2

    def dropped(self, noise: float, bits: float) -> float:
        """After modulus switching by a prime of so many bits."""
        return total(noise - bits, self.rounding)


def total(*deviations: float, independent: bool = True) -> float:
    """log2 of the deviation of a sum, from log2s: root of squares, or plain sum where terms are not independent."""
    power = 2.0 if independent else 1.0
    top = max(deviations)
    if top == -inf:
        return top
    return top + log2(sum(2.0 ** (power * (d - top)) for d in deviations)) / power


def single(model: Model, stage: AffineLayout, noise: float, primes: int) -> float:
    """An affine stage by slots, at a level."""
    switch = model.switching(primes)
    if isinstance(stage, Diagonal):
        # The b-th copy was rotated b times; every diagonal takes one product, every giant step one rotation.
        rotated = total(noise, switch + log2(max(1, stage.babies - 1)) / 2)
        out = model.plain_product(rotated) + log2(int(stage.used.sum())) / 2
        out = total(out, switch + log2(max(1, stage.giants - 1)) / 2)
    else:
        out = model.plain_product(noise) + log2(len(stage.index)) / 2
    for _ in stage.folds:
        out = total(out + 1, switch)
    return out


def batch(model: Model, stage: Affine, noise: float, reach: float) -> float:
    """An affine stage by scalars: times the largest L1 norm of a row, log2 ``reach`` where the proof bounds it."""
    widest = max(1, int(stage.support.sum(1).max()))
    return noise + max(0.0, min(reach, model.half + log2(widest)))


def polynomial(model: Model, stage: Polynomial, noise: float, primes: int) -> float:
    """``sum c_i x^i``: x^2, x^3 = x^2 x, x^4 = (x^2)^2, each relinearized; then scalars."""
    switch = model.switching(primes)
    square = total(model.product(noise, noise), switch)
    powers = {1: noise, 2: square}
    if stage.degree >= 3:
        powers[3] = total(model.product(square, noise), switch)
    if stage.degree == 4:
        powers[4] = total(model.product(square, square), switch)
    terms = [
        powers[i] + log2(scalar) for i, scalar in enumerate(scalars(stage.coefficients, model.plain)) if i and scalar
    ]
    return total(*terms, independent=False) if terms else model.zero


def scalars(coefficients: Sequence[int], plain: int) -> list[int]:
    """Sizes of coefficients, centred mod t."""
    return [min(c % plain, -c % plain) for c in coefficients]
