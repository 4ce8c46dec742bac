"""The plan of a ckks session: parameters, packing, lengths, the error bound. Both sides hold the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import ceil, isfinite, ldexp, log2
from typing import Any

from protocols import circuit as circuits
from protocols.circuit import Circuit
from protocols.ckks.bound import FAILURE_BITS, Reached, Ring, errors, guessed
from protocols.ckks.schedule import AffineStep, PolynomialStep, Schedule, check_widths, depth, schedule
from protocols.errors import BadParameters, Misuse
from protocols.keyed import KeyedCost, Plan
from protocols.lattice.context import CKKS, ID_BYTES, MAX_MODULUS_BITS, SECURITY_BITS, KeySet, Parameters
from protocols.lattice.diagonals import Diagonal
from protocols.lattice.layout import Layout, plan_layout
from protocols.lattice.residues import MAX_BITS, primes

SINGLE, BATCH, BOTH = "single", "batch", "both"
PACKINGS = (BOTH, SINGLE, BATCH)
DEGREES = (4096, 8192, 16384, 32768)
USUAL_BITS = 48
MIN_BITS, MAX_PRIME_BITS = 24, 54
SPECIAL_BITS = 6
RELATIVE_BITS = 16
"""Without a precision asked for: the bound is this far below the proven range, which no data comes near ..."""
USUAL_RELATIVE_BITS = 32
"""... and this far, if wider primes in the same ring can do it."""
MAX_CHUNKS = 8
MAX_PARTS = 4096
_OPTIONS = {"packing", "precision", "norms", "security"}
_FIELDS = {"protocol", "version", "circuit", "degree", "coefficient", "packing", "norms"}


@dataclass(frozen=True)
class Part:
    """What one message of a query carries. samples: first and one past the last."""

    packing: str
    first: int
    last: int


@dataclass(frozen=True, eq=False)
class CkksPlan(Plan):
    """A circuit, ring parameters, how samples are packed, and bounds of the operator norms by affine stage.

    A query of n inputs is cut into parts: one sample each (*single*), or N/2 samples (*batch*, one per slot).
    """

    circuit: Circuit
    parameters: Parameters
    packing: str
    norms: Mapping[str, float]

    def __post_init__(self) -> None:
        check_widths(self.circuit)
        needed, data = depth(self.circuit) + 1, self.parameters.coefficient[:-1]
        if self.packing not in PACKINGS:
            raise BadParameters(f"packing {self.packing!r} is none of {', '.join(PACKINGS)}")
        if self.parameters.scheme != CKKS or len(data) != needed:
            raise BadParameters(f"{len(data)} data primes for a circuit that needs {needed}")
        widths = {q.bit_length() for q in data}
        if len(widths) != 1 or not MIN_BITS <= min(widths) <= MAX_PRIME_BITS or min(data) < 0.9 * 2 ** min(widths):
            raise BadParameters(
                f"data primes of {sorted(widths)} bits; one width from {MIN_BITS} to {MAX_PRIME_BITS} is expected, "
                "and primes close to that power of two"
            )
        if set(self.norms) != {stage.name for stage in self.circuit.affine}:
            raise BadParameters(f"norms of stages {sorted(self.norms)}; those of the affine stages are expected")
        if not all(isfinite(norm) and norm >= 1 for norm in self.norms.values()):
            raise BadParameters("a norm is a finite number of at least 1")
        for packing in (SINGLE, BATCH):
            if self.packing in (packing, BOTH):
                self._judge(packing)

    def _judge(self, packing: str) -> None:
        """Refuses where errors reach the values' own size: names the first stage where they do."""
        for row, stage in zip(self.errors(packing), self.circuit.stages, strict=True):
            if not row.error < ldexp(1.0, stage.bits - 1):
                raise BadParameters(
                    f"stage {row.stage!r}: an error of up to {row.error:.3g} in values of {stage.bits} bits, with "
                    f"primes of {self.ring.prime} bits at N = {self.degree}; {_HELP}"
                )

    @property
    def degree(self) -> int:
        """N; a ciphertext has N/2 slots."""
        return self.parameters.degree

    @property
    def slots(self) -> int:
        """Values of a ciphertext."""
        return self.degree // 2

    @property
    def ring(self) -> Ring:
        """Parameters as errors see them."""
        *data, special = self.parameters.coefficient
        return Ring(self.degree, data[0].bit_length(), special.bit_length())

    @cached_property
    def layout(self) -> Layout | None:
        """Slots of the single packing; None without it."""
        return None if self.packing == BATCH else plan_layout(self.circuit, self.slots)

    @cached_property
    def keys(self) -> KeySet:
        """The evaluation keys: relinearization for polynomials, rotations for the single packing; each for the primes
        that are left where it is first used."""
        steps = next(iter(self._runs.values())).steps
        first = max((step.primes for step in steps if isinstance(step, PolynomialStep)), default=0)
        if self.layout is None:
            return KeySet(self.parameters, bool(first), (), first)
        primes = [step.primes for step in steps if isinstance(step, AffineStep)]
        used = tuple(primes[self.layout.first_use[step]] for step in self.layout.rotations)
        return KeySet(self.parameters, bool(first), self.layout.rotations, first, used)

    @cached_property
    def _runs(self) -> dict[str, Schedule]:
        data, wanted = self.parameters.coefficient[:-1], (SINGLE, BATCH) if self.packing == BOTH else (self.packing,)
        try:
            return {packing: schedule(self.circuit, data, scalars=packing == BATCH) for packing in wanted}
        except (OverflowError, ZeroDivisionError, ValueError):
            raise BadParameters("a polynomial's coefficients are too large, or too uneven, for ckks") from None

    def run(self, packing: str) -> Schedule:
        """Primes and gains of a packing of this plan."""
        if packing not in self._runs:
            raise Misuse(f"this plan has no packing {packing!r}")
        return self._runs[packing]

    def errors(self, packing: str) -> tuple[Reached, ...]:
        """Error bounds after every stage of a packing."""
        return errors(self.run(packing), self.ring, self.norms, self.layout if packing == SINGLE else None)

    @cached_property
    def bounds(self) -> dict[str, float]:
        """Error bound of an answer by packing, in the unit of the circuit's integers."""
        return {packing: self.errors(packing)[-1].error for packing in self._runs}

    @property
    def error_bound(self) -> float:
        """The largest of them."""
        return max(self.bounds.values())

    @property
    def max_batch(self) -> int:
        """Most inputs of one query."""
        return MAX_PARTS if self.packing == SINGLE else MAX_CHUNKS * self.slots

    @cached_property
    def break_even(self) -> int:
        """Fewest inputs of a query that go by the batch packing."""
        if self.layout is None or self.packing != BOTH:
            return 1 if self.packing == BATCH else self.max_batch + 1
        return min(ceil(self._batch_seconds() / self._single_seconds()), self.slots, MAX_PARTS) + 1

    def _single_seconds(self) -> float:
        """One sample on one core: key switches and products, from measurements of SEAL."""
        total, layouts = 0.0, iter(self.layout.stages if self.layout else ())
        for step in self.run(SINGLE).steps:
            switch = _switch_seconds(self.degree, step.primes)
            if step.name in self.norms:
                stage = next(layouts)
                products = int(stage.used.sum()) if isinstance(stage, Diagonal) else len(stage.index)
                total += len(stage.steps) * switch + products * 8e-9 * self.degree * step.primes
            else:
                total += 1.3 * switch
        return total

    def _batch_seconds(self) -> float:
        """A chunk of samples on one core."""
        total, widths = 0.0, iter(self.circuit.affine)
        values = self.circuit.inputs
        for step in self.run(BATCH).steps:
            words = 2.0 * self.degree * step.primes
            if step.name in self.norms:
                stage = next(widths)
                total += words * (stage.inputs * 2.5e-8 + stage.outputs * 4e-8 + float(stage.support.sum()) * 1e-10)
                values = stage.outputs
            else:
                total += values * 1.3 * _switch_seconds(self.degree, step.primes)
        return total

    def packing_of(self, n: int) -> str:
        """How a query of n inputs is packed: what takes the server less time. Raises Misuse outside 1..max_batch."""
        if not 1 <= n <= self.max_batch:
            raise Misuse(f"a query of {n} inputs; this plan serves 1 to {self.max_batch}")
        return BATCH if n >= self.break_even else SINGLE

    def parts(self, n: int) -> list[Part]:
        """The parts of a query, in order."""
        packing = self.packing_of(n)
        size = 1 if packing == SINGLE else self.slots
        return [Part(packing, first, min(first + size, n)) for first in range(0, n, size)]

    def ciphertexts(self, packing: str) -> tuple[int, int]:
        """Ciphertexts of a part's question and answer."""
        if packing == BATCH or self.layout is None:
            return self.circuit.inputs, self.circuit.outputs
        return self.layout.ciphertexts, 1

    def question_sizes(self, packing: str) -> tuple[int, ...]:
        """Bytes of the name of the keys, then of each fresh ciphertext."""
        top = self.parameters.level(self.keys.primes)
        return (ID_BYTES, *(top.fresh_bytes,) * self.ciphertexts(packing)[0])

    def answer_sizes(self, packing: str) -> tuple[int, ...]:
        """Bytes of the name of the keys, then of each ciphertext: at one prime."""
        return (ID_BYTES, *(self.parameters.level(1).ciphertext_bytes,) * self.ciphertexts(packing)[1])

    def cost(self, n: int) -> KeyedCost:
        """Declared bytes."""
        parts = self.parts(n)
        return KeyedCost(
            self.keys.bytes,
            tuple(sum(self.question_sizes(part.packing)) for part in parts),
            tuple(sum(self.answer_sizes(part.packing)) for part in parts),
        )

    def facts(self) -> Mapping[str, str]:
        """Parameters, security, depth, bytes and the error bound, for people."""
        found = {
            "scheme": f"CKKS, N = {self.degree}, {self.slots} slots",
            "security": self.parameters.why,
            "modulus chain": f"{', '.join(str(q.bit_length()) for q in self.parameters.coefficient)} bits "
            "(last: switching)",
            "depth": f"{depth(self.circuit)} divisions by a prime: {len(self.circuit.affine)} affine stages, "
            f"{sum(p.depth for p in self.circuit.polynomials)} ciphertext products",
            "packing": self._packing_fact(),
            "evaluation keys": f"{self.keys.bytes / 1e6:.2f} MB: public key"
            f"{', relinearization' if self.keys.relinearize else ''}, {len(self.keys.rotations)} rotations",
        }
        for packing in self._runs:
            asked, told = sum(self.question_sizes(packing)), sum(self.answer_sizes(packing))
            found[f"{packing} part"] = f"question {asked / 1e3:.1f} kB, answer {told / 1e3:.1f} kB"
        relative = self.circuit.bits - 1 - log2(self.error_bound)
        found["error bound"] = (
            f"{self.error_bound:.4g} in the unit of the integers, 2^-{relative:.1f} of the proven range, except with "
            f"probability 2^-{FAILURE_BITS}; never equality"
        )
        found["errors by stage"] = ", ".join(
            f"{row.stage} {row.error:.2g}" for row in max(map(self.errors, self._runs), key=lambda rows: rows[-1].error)
        )
        return found

    def _packing_fact(self) -> str:
        if self.packing == BOTH:
            return f"single (one sample per ciphertext); batch (one per slot) from {self.break_even} samples on"
        return "one sample per ciphertext" if self.packing == SINGLE else f"one sample per slot, {self.slots} slots"

    def to_json(self) -> dict[str, Any]:
        """Plain data; :func:`read` is the inverse."""
        return {
            "protocol": CKKS,
            "version": 1,
            "circuit": circuits.to_json(self.circuit),
            "degree": self.degree,
            "coefficient": list(self.parameters.coefficient),
            "packing": self.packing,
            "norms": dict(self.norms),
        }


_HELP = (
    "fewer stages, polynomials of lower degree, narrower weights or inputs help, and so do declared norms "
    "(options: what Ckks().declare(circuit, weights) gives); bfv is exact"
)


def _switch_seconds(degree: int, count: int) -> float:
    return 1.23e-9 * degree * log2(degree) * (count + 1) ** 2


def make(circuit: Circuit, options: Mapping[str, Any]) -> CkksPlan:
    """The smallest ring that reaches the precision.

    options: ``packing`` (both, single, batch); ``precision``: the error bound asked for, in the unit of the integers
    (default: 2^-16 of the proven range, 2^-32 where the same ring can); ``norms``: bounds of operator norms by stage;
    ``security`` (128).
    """
    unknown = set(options) - _OPTIONS
    if unknown:
        raise BadParameters(
            f"ckks has no option {', '.join(sorted(map(str, unknown)))}; there are: {', '.join(sorted(_OPTIONS))}"
        )
    packing, security = options.get("packing", BOTH), options.get("security", SECURITY_BITS)
    if packing not in PACKINGS:
        raise BadParameters(f"packing {packing!r} is none of {', '.join(PACKINGS)}")
    if type(security) is not int or not 1 <= security <= SECURITY_BITS:
        raise BadParameters(f"security {security!r}: ckks gives {SECURITY_BITS} bits, and neither more nor less")
    asked = options.get("precision")
    if asked is not None and (type(asked) not in (int, float) or not 0 < asked < float("inf")):
        raise BadParameters(f"precision {asked!r} is no positive number")
    check_widths(circuit)
    norms = _norms(circuit, options.get("norms"))
    if asked is not None:
        return _choose(circuit, packing, norms, float(asked), float(asked))
    target, usual = (ldexp(1.0, circuit.bits - 1 - relative) for relative in (RELATIVE_BITS, USUAL_RELATIVE_BITS))
    return _choose(circuit, packing, norms, target, usual)


def _choose(circuit: Circuit, packing: str, norms: Mapping[str, float], target: float, usual: float) -> CkksPlan:
    """The smallest ring that reaches the target; in it, the narrowest primes that reach ``usual``, or the widest."""
    best: CkksPlan | None = None
    refusal: BadParameters | None = None
    for degree in DEGREES:
        for parameters in _candidates(degree, depth(circuit) + 1):
            try:
                plan = CkksPlan(circuit, parameters, packing, norms)
            except BadParameters as error:
                refusal = error
                continue
            best = plan if best is None or plan.error_bound < best.error_bound else best
            if plan.error_bound <= usual:
                return plan
        if best is not None and best.error_bound <= target:
            return best
    if best is None:
        raise refusal or BadParameters(
            f"stage {circuit.stages[-1].name!r}: {depth(circuit)} divisions by primes of {MIN_BITS} bits or more "
            f"exceed what N = {DEGREES[-1]}, the largest ring, can hold; {_HELP}"
        )
    rows = max((best.errors(kind) for kind in best.bounds), key=lambda found: found[-1].error)
    lost = max(zip(rows, circuit.stages, strict=True), key=lambda pair: log2(pair[0].error) - pair[1].bits)[1]
    raise BadParameters(
        f"an error of at most {target:.4g} cannot be promised: the best parameters (N = {best.degree}, primes of "
        f"{best.ring.prime} bits) give {best.error_bound:.4g}, most of it by stage {lost.name!r}; {_HELP}"
    )


def _candidates(degree: int, count: int) -> Iterator[Parameters]:
    """Parameters with so many data primes: of the usual width, then of the widest that is safe."""
    most = (MAX_MODULUS_BITS[degree] - SPECIAL_BITS) // (count + 1)
    widths = {min(most, USUAL_BITS), min(most, MAX_PRIME_BITS)}
    for width in sorted(w for w in widths if w >= MIN_BITS):
        special = min(width + SPECIAL_BITS, MAX_BITS)
        data = primes(degree, width, count)
        if len(data) == count:
            yield Parameters(CKKS, degree, (*data, *primes(degree, special, 1)))


def _norms(circuit: Circuit, given: Any) -> dict[str, float]:
    found = guessed(circuit)
    if given is None:
        return found
    if not isinstance(given, Mapping) or not set(given) <= set(found):
        raise BadParameters(f"norms are numbers by affine stage: {', '.join(found)}")
    for name, value in given.items():
        if type(value) not in (int, float) or not 1 <= value < float("inf"):
            raise BadParameters(f"stage {name!r}: a norm is a finite number of at least 1")
        found[name] = float(value)
    return found


def read(data: Mapping[str, Any]) -> CkksPlan:
    """A plan from plain data: every prime, the security bound, gains, errors and layout are judged again."""
    if not isinstance(data, Mapping) or set(data) != _FIELDS or data["protocol"] != CKKS or data["version"] != 1:
        raise BadParameters(f"not a ckks plan of version 1: fields {sorted(map(str, data))[:12]}")
    degree, coefficient = data["degree"], data["coefficient"]
    if type(degree) is not int or not isinstance(coefficient, list) or len(coefficient) > 64:
        raise BadParameters("a ckks plan has an integer degree and a list of at most 64 primes")
    if any(type(q) is not int or not 0 < q < 1 << 62 for q in coefficient):
        raise BadParameters("coefficient has values that are no integers in 1..2^62")
    if not isinstance(data["packing"], str) or not isinstance(data["circuit"], Mapping):
        raise BadParameters("a ckks plan names a packing and a circuit")
    circuit = circuits.from_json(data["circuit"])
    if not isinstance(data["norms"], Mapping) or len(data["norms"]) != len(circuit.affine):
        raise BadParameters("a ckks plan has one norm per affine stage")
    return CkksPlan(
        circuit, Parameters(CKKS, degree, tuple(coefficient)), data["packing"], _norms(circuit, data["norms"])
    )
