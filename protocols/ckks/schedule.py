"""Primes and gains: at which modulus each stage runs, and how a value of the circuit shows in a slot.

A slot holds ``gain x`` for a value x of the circuit; the gain is this side's own book-keeping, exact in double
precision, and SEAL's scale stays 1. Every product of a ciphertext with weights, scalars or itself is followed by a
division by the last prime of the modulus, so that all stages run at about the same size:

* an affine stage multiplies with ``W gain_out q / gain_in`` and divides by q: whatever the prime, the new gain is the
  power of two that was wished for. What it wishes for is the largest at which the values that the proof allows stay
  within ``2^d`` (d: bits of a prime) all through the polynomial that follows.
* a polynomial of gain g on its input leaves g^2/q, g^3/q^2 or g^4/q^3, the weights of the next stage absorb it.

An answer must fit half of the last prime, with room for what hides the other slots: ``2^(d-3)``.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import frexp, ldexp, sqrt

from protocols.circuit import Affine, Circuit, Polynomial
from protocols.ckks.centred import Centred, centred
from protocols.errors import BadParameters

MAX_VALUE_BITS = 240
MAX_CODE_BITS = 53
ANSWER_ROOM = 3
_LEAST_SCALAR = 1 << 12


@dataclass(frozen=True)
class AffineStep:
    """An affine stage. primes: data primes before its division. prime: what it divides by.

    gain_in: of the values it reads, where these are ``(p(x) - tail)`` of the polynomial before (negative where its lead
    is); gain_out: of ``y + shift``. scalar: what batches multiply ``W x`` with; gain_out is then
    ``scalar gain_in / prime``. reach_in, reach_out: bounds of the values, in the circuit's unit.
    """

    name: str
    primes: int
    prime: int
    gain_in: float
    gain_out: float
    tail: float
    shift: float
    reach_in: float
    reach_out: float
    scalar: float = 0.0

    @property
    def factor(self) -> float:
        """What a weight becomes: slots are multiplied with ``factor W``."""
        return self.gain_out * self.prime / self.gain_in


@dataclass(frozen=True)
class PolynomialStep:
    """A polynomial. divisors: the primes it divides by, in order. gain: of its centred input; gain_out: of m(x')."""

    name: str
    primes: int
    divisors: tuple[int, ...]
    form: Centred
    gain: float
    gain_out: float
    reach: float


Step = AffineStep | PolynomialStep


@dataclass(frozen=True)
class Schedule:
    """Steps of a packing. gain_in: of the question's codes; gain_out: of the answer's values."""

    steps: tuple[Step, ...]
    gain_in: float
    gain_out: float


def depth(circuit: Circuit) -> int:
    """Divisions by a prime."""
    return len(circuit.affine) + sum(stage.depth for stage in circuit.polynomials)


def check_widths(circuit: Circuit) -> None:
    """Raises BadParameters where values or coefficients are too wide for the book-keeping in double precision."""
    if max(abs(circuit.low), abs(circuit.high)).bit_length() > MAX_CODE_BITS:
        raise BadParameters(f"inputs in {circuit.low}..{circuit.high}: ckks serves codes of {MAX_CODE_BITS} bits")
    for stage in circuit.stages:
        widest = max(abs(c).bit_length() for c in stage.coefficients) if isinstance(stage, Polynomial) else 0
        if max(stage.bits, widest) > MAX_VALUE_BITS:
            raise BadParameters(
                f"stage {stage.name!r}: values of {stage.bits} bits, coefficients of {widest}; ckks serves up to "
                f"{MAX_VALUE_BITS}. Use narrower weights or fewer stages"
            )


def schedule(circuit: Circuit, data: tuple[int, ...], *, scalars: bool) -> Schedule:
    """Primes and gains of a circuit over the data primes; scalars: integer weights and one scalar, as batches do.

    Raises BadParameters that names a stage whose values are too wide or too uneven.
    """
    bits = min(q.bit_length() for q in data)
    reach: float = max(abs(circuit.low), abs(circuit.high), 1)
    gain = first = below(ldexp(1.0, bits) / reach)
    left, tail, steps = len(data), 0.0, list[Step]()
    for number, stage in enumerate(circuit.stages):
        if isinstance(stage, Affine):
            follows = circuit.stages[number + 1] if number + 1 < len(circuit.stages) else None
            step = _affine(stage, follows, data, left, gain, tail, reach, scalars)
            steps.append(step)
            gain, left, reach = step.gain_out, left - 1, step.reach_out
        else:
            made = _polynomial(stage, data, left, gain, reach)
            steps.append(made)
            tail = made.form.tail
            gain, left, reach = made.gain_out / made.form.lead, left - stage.depth, ldexp(1.0, stage.bits - 1)
    return Schedule(tuple(steps), first, gain)


def _affine(
    stage: Affine,
    follows: Polynomial | Affine | None,
    data: tuple[int, ...],
    left: int,
    gain_in: float,
    tail: float,
    reach_in: float,
    scalars: bool,
) -> AffineStep:
    prime, bits = data[left - 1], min(q.bit_length() for q in data)
    reach, shift = ldexp(1.0, stage.bits - 1), 0.0
    if isinstance(follows, Polynomial):
        form = centred(follows)
        shift = form.shift
        reach += abs(shift)
        divisors = tuple(data[left - 2 - i] for i in range(follows.depth))
        gain_out = below(_widest(form, reach, divisors, ldexp(1.0, bits)))
    else:
        gain_out = below(ldexp(1.0, bits - ANSWER_ROOM) / reach)
    scalar = gain_out * prime / gain_in
    if scalars:
        scalar = float(round(scalar))
        gain_out = scalar * gain_in / prime
        if abs(scalar) < _LEAST_SCALAR:
            raise BadParameters(
                f"stage {stage.name!r}: its values grow from {reach_in:.3g} to {reach:.3g}, by more than a prime of "
                f"{bits} bits can undo; narrower weights, or more bits of precision, help"
            )
    return AffineStep(stage.name, left, prime, gain_in, gain_out, tail, shift, reach_in, reach, scalar)


def _polynomial(stage: Polynomial, data: tuple[int, ...], left: int, gain: float, reach: float) -> PolynomialStep:
    form = centred(stage)
    divisors = tuple(data[left - 1 - i] for i in range(stage.depth))
    square = gain * gain / divisors[0]
    gain_out = square if form.degree == 2 else square * (gain if form.degree == 3 else square) / divisors[1]
    return PolynomialStep(stage.name, left, divisors, form, gain, gain_out, reach)


def _widest(form: Centred, reach: float, divisors: tuple[int, ...], room: float) -> float:
    """The largest gain at which input, inner square and result of a polynomial stay within ``room``."""
    gain = min(room / reach, sqrt(divisors[0] * room / form.inner(reach)))
    if form.degree == 3:
        gain = min(gain, (divisors[0] * divisors[1] * room / form.reach(reach)) ** (1 / 3))
    if form.degree == 4:
        gain = min(gain, sqrt(divisors[0] * sqrt(divisors[1] * room / form.reach(reach))))
    return gain


def below(value: float) -> float:
    """The largest power of two that is no larger."""
    return ldexp(0.5, frexp(value)[1])
