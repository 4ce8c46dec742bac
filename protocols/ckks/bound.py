"""How far an answer can be from the exact one: computed from the plan alone, before anything runs.

Errors of CKKS are random: fresh ciphertexts carry SEAL's noise, every division by a prime and every switch of keys
rounds, and so does writing weights as polynomials. Their variance in a slot follows from N (canonical embedding; Cheon
et al., 2017; Costache, Curtis et al., 2022). It is carried through the circuit to first order:

* an affine stage stretches what it reads by at most its operator norm ``|W|`` (largest singular value). Weights are the
  server's, so that the plan holds a public bound of that norm for each stage, in three leading bits; the server's end
  refuses weights that exceed it.
* a polynomial stretches by at most its slope on the range that the proof allows.

The bound is TAIL standard deviations. A rounding error times the key, in one slot, is the product of two complex normal
variables: it exceeds t deviations with probability about ``sqrt(pi t) exp(-2 t)``, at t = 20 less than 2^-54, for all
slots of an answer and all stages less than 2^-40. Roundings are taken as independent, as is usual; slopes and ranges
are worst cases, so that actual errors are far smaller.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, frexp, hypot, inf, isfinite, ldexp, sqrt

import numpy as np

from protocols.circuit import Affine, Circuit, Integers, Owned
from protocols.ckks.schedule import AffineStep, PolynomialStep, Schedule
from protocols.errors import BadParameters
from protocols.lattice.diagonals import Diagonal
from protocols.lattice.layout import AffineLayout, Layout

TAIL = 20.0
FAILURE_BITS = 40
FLOOD_SHARE = 0.25
"""What hides the answer's own error: uniform noise of this share of the bound (:mod:`~protocols.ckks.server`)."""
_NOISE = 10.5  # variance of SEAL's errors: centred binomial of 21 pairs of bits
_DOUBLE = 2.0**-50
_EXACT_SIZE = 1536


@dataclass(frozen=True)
class Ring:
    """What errors depend on. prime: bits of a data prime; special: bits of the prime of key switching."""

    degree: int
    prime: int
    special: int

    @property
    def key(self) -> float:
        """Non-zero coefficients of the key: two thirds, and a margin of four deviations."""
        return self.degree * 2 / 3 + 4 * sqrt(self.degree * 2 / 9)

    @property
    def fresh(self) -> float:
        """Variance in a slot of a symmetric encryption, encoding included."""
        return self.degree * _NOISE + self.encoded

    @property
    def zero(self) -> float:
        """Of an encryption of zero under the public key."""
        return self.degree * _NOISE * (1 + self.degree * 2 / 3 + self.key)

    @property
    def encoded(self) -> float:
        """Of rounding the coefficients of a plaintext."""
        return self.degree / 12

    @property
    def divided(self) -> float:
        """Of dividing a ciphertext by a prime."""
        return self.degree * (1 + self.key) / 12

    def switched(self, primes: int) -> float:
        """Of switching keys at so many data primes."""
        digits = primes * self.degree * ldexp(1.0, 2 * (self.prime - self.special)) / 12 * _NOISE
        return self.degree * digits + self.divided


@dataclass(frozen=True)
class Reached:
    """A stage and the bound of the error after it, in the circuit's unit."""

    stage: str
    error: float


def errors(run: Schedule, ring: Ring, norms: Mapping[str, float], layout: Layout | None) -> tuple[Reached, ...]:
    """Bounds after every stage; the last one is the answer's. layout: None for batches."""
    deviation, rows = sqrt(ring.fresh) / run.gain_in, []
    layouts = iter(layout.stages) if layout is not None else None
    for step in run.steps:
        if isinstance(step, AffineStep):
            last = step.primes == 2
            shaped = next(layouts) if layouts is not None else None
            deviation = _affine(step, ring, norms[step.name], shaped, deviation, last)
        else:
            deviation = _polynomial(step, ring, deviation)
        rows.append(Reached(step.name, TAIL * deviation if isfinite(deviation) else inf))
    final = run.steps[-1]
    total = rows[-1].error * (1 + FLOOD_SHARE) + 4 * _DOUBLE * final_reach(final)
    return (*rows[:-1], Reached(final.name, total))


def final_reach(step: AffineStep | PolynomialStep) -> float:
    """Bound of the values after a step."""
    return step.reach_out if isinstance(step, AffineStep) else step.reach


def _affine(
    step: AffineStep, ring: Ring, norm: float, layout: AffineLayout | None, deviation: float, last: bool
) -> float:
    """Deviation after an affine stage."""
    read = abs(step.gain_in) * (step.reach_in + abs(step.tail))
    made = ring.encoded + (ring.zero if last else 0.0)
    if layout is not None:
        babies = layout.babies - 1 if isinstance(layout, Diagonal) else 0
        deviation = hypot(deviation, sqrt(babies * ring.switched(step.primes)) / abs(step.gain_in))
        tiles = 1 << len(layout.folds)
        products = int(layout.used.sum()) if isinstance(layout, Diagonal) else len(layout.index)
        double = norm * step.factor * _DOUBLE
        made += tiles * products * read * read * (ring.encoded + double * double)
        made += tiles * len(layout.steps) * ring.switched(step.primes)
    double = abs(step.gain_out) * step.reach_out * _DOUBLE
    own = sqrt(made / step.prime**2 + ring.divided + double * double)
    return hypot(norm * deviation, own / abs(step.gain_out))


def _polynomial(step: PolynomialStep, ring: Ring, deviation: float) -> float:
    """Deviation after a polynomial."""
    form, reach = step.form, step.reach + TAIL * deviation
    new = sqrt(ring.switched(step.primes) / step.divisors[0] ** 2 + ring.divided)
    if form.degree > 2:
        inner = new / (step.gain**2 / step.divisors[0])
        stretch = reach if form.degree == 3 else 2 * form.inner(reach)
        again = sqrt(ring.switched(step.primes - 1) / step.divisors[1] ** 2 + ring.divided + 1)
        carried = hypot(stretch * inner, again / abs(step.gain_out))
    else:
        carried = new / abs(step.gain_out)
    return abs(form.lead) * hypot(form.slope(reach) * deviation, carried)


def guessed(circuit: Circuit) -> dict[str, float]:
    """Bounds of the operator norms where nothing was declared: from the proven bits, generously.

    Rows of a stage spread their input's range to at most the output's, so that ``sum |w| <= 2^bits / range`` where the
    inputs have about one range (to a factor of four); ``|W| <= sqrt(outputs) max_row sum |w|``.
    """
    found, spread = {}, float(max(1, circuit.high - circuit.low))
    for number, stage in enumerate(circuit.affine):
        if number:
            spread = ldexp(1.0, circuit.polynomials[number - 1].bits - 3)
        found[stage.name] = rounded(max(1.0, ldexp(1.0, stage.bits) / spread * sqrt(stage.outputs)))
    return found


def declared(circuit: Circuit, weights: Owned) -> dict[str, float]:
    """What a plan may hold of weights: a bound of each stage's operator norm, rounded up to three leading bits."""
    return {stage.name: rounded(max(1.0, operator_norm(weights[stage.name].weight))) for stage in circuit.affine}


def rounded(value: float) -> float:
    """Up to three leading bits."""
    mantissa, exponent = frexp(value)
    return ldexp(ceil(mantissa * 8), exponent - 3)


def operator_norm(weight: Integers) -> float:
    """The largest singular value of a matrix, or a bound of it for large ones: ``sqrt(|W|_1 |W|_inf)``, ``|W|_F``."""
    matrix = weight.astype(np.float64)
    absolute = np.abs(matrix)
    simple = min(sqrt(absolute.sum(0).max() * absolute.sum(1).max()), float(np.linalg.norm(matrix)))
    if min(matrix.shape) > _EXACT_SIZE:
        return simple
    gram = matrix @ matrix.T if matrix.shape[0] < matrix.shape[1] else matrix.T @ matrix
    return min(simple, sqrt(max(0.0, float(np.linalg.eigvalsh(gram)[-1]))) * (1 + 1e-6))


def check_norms(circuit: Circuit, weights: Owned, norms: Mapping[str, float]) -> None:
    """Raises BadParameters where weights exceed the plan's norms: its error bound would not be theirs."""
    for stage in circuit.affine:
        if isinstance(stage, Affine) and operator_norm(weights[stage.name].weight) > norms[stage.name]:
            raise BadParameters(
                f"stage {stage.name!r}: the operator norm of these weights exceeds the plan's {norms[stage.name]:g}, "
                "and its error bound would not hold; plan with the options that Ckks().declare(circuit, weights) gives"
            )
