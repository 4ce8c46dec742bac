"""The plan of a bfv session: parameters, packing, lengths, noise. Both sides hold the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import ceil, prod
from typing import Any

from protocols import circuit as circuits
from protocols.bfv.choose import (
    BATCH,
    BOTH,
    LANES,
    SINGLE,
    Chosen,
    choose,
    seconds,
    settle,
)
from protocols.bfv.noise import FLOOD_BITS
from protocols.bfv.schedule import SPARE_BITS, Schedule
from protocols.circuit import Circuit
from protocols.errors import BadParameters, Misuse
from protocols.keyed import KeyedCost, Plan, Remaining
from protocols.lattice.context import BFV, ID_BYTES, SECURITY_BITS, KeySet, Parameters
from protocols.lattice.layout import Layout

PACKINGS = (BOTH, SINGLE, BATCH)
MAX_CHUNKS = 8
MAX_PARTS = 4096
_FIELDS = {"protocol", "version", "circuit", "degree", "coefficient", "plain", "packing", "rotations"}


@dataclass(frozen=True)
class Part:
    """What one message of a query carries. samples: first and one past the last; prime: which plain prime."""

    packing: str
    first: int
    last: int
    prime: int


@dataclass(frozen=True, eq=False)
class BfvPlan(Plan):
    """A circuit, one set of ring parameters per plain prime, and how samples are packed.

    A query of n inputs is cut into groups (*single*: one sample per row, two rows) or chunks (*batch*: one per slot),
    and each of these into one part per plain prime, group by group. Raises BadParameters where the noise does not fit.
    """

    circuit: Circuit
    parameters: tuple[Parameters, ...]
    packing: str

    def __post_init__(self) -> None:
        plains = [p.plain for p in self.parameters]
        if self.packing not in PACKINGS:
            raise BadParameters(f"packing {self.packing!r} is none of {', '.join(PACKINGS)}")
        shared = {(p.scheme, p.degree, p.coefficient) for p in self.parameters}
        if len(shared) != 1 or self.parameters[0].scheme != BFV or len(set(plains)) != len(plains):
            raise BadParameters(f"plain primes {plains} must differ and share one ring and modulus")
        if not prod(plains) >> self.circuit.bits:
            raise BadParameters(
                f"plain primes of {prod(plains).bit_length()} bits together are too small for answers of "
                f"{self.circuit.bits} bits"
            )
        for run in self.chosen.runs():
            if run.least < SPARE_BITS:
                raise BadParameters(
                    f"the noise budget runs out at stage {run.short.stage!r}: {run.short.bits:.0f} bits would be left "
                    f"of these parameters, at least {SPARE_BITS:.0f} are needed"
                )

    @cached_property
    def chosen(self) -> Chosen:
        """Layout and schedules."""
        return settle(self.circuit, self.packing, self.parameters)

    @property
    def layout(self) -> Layout | None:
        """Slots of the single packing; None without it."""
        return self.chosen.layout

    @property
    def degree(self) -> int:
        """N: slots of a ciphertext."""
        return self.parameters[0].degree

    @cached_property
    def keys(self) -> KeySet:
        """The evaluation keys: relinearization for polynomials, rotations for the single packing."""
        relinearize = bool(self.circuit.polynomials)
        first = max(run.primes[1] for run in self.chosen.runs()) if relinearize else 0
        if self.layout is None:
            return KeySet(self.parameters[0], relinearize, (), first)
        primes, used = self.run(SINGLE).primes, self.layout.first_use
        steps = self.layout.rotations
        return KeySet(self.parameters[0], relinearize, steps, first, tuple(primes[2 * used[step]] for step in steps))

    def run(self, packing: str) -> Schedule:
        """The schedule of a packing of this plan."""
        found = self.chosen.single if packing == SINGLE else self.chosen.batch
        if found is None:
            raise Misuse(f"this plan has no packing {packing!r}")
        return found

    @property
    def max_batch(self) -> int:
        """Most inputs of one query."""
        if self.packing == SINGLE:
            return LANES * (MAX_PARTS // len(self.parameters))
        return MAX_CHUNKS * self.degree

    @cached_property
    def break_even(self) -> int:
        """Fewest inputs of a query that go by the batch packing."""
        if self.packing != BOTH:
            return 1 if self.packing == BATCH else self.max_batch + 1
        alone = seconds(self.circuit, self.degree, self.run(SINGLE), self.layout)
        together = seconds(self.circuit, self.degree, self.run(BATCH), None)
        groups = min(ceil(together / alone), self.degree // LANES, MAX_PARTS // len(self.parameters))
        return LANES * groups + 1

    def packing_of(self, n: int) -> str:
        """How a query of n inputs is packed: what takes the server less time. Raises Misuse outside 1..max_batch."""
        if not 1 <= n <= self.max_batch:
            raise Misuse(f"a query of {n} inputs; this plan serves 1 to {self.max_batch}")
        return BATCH if n >= self.break_even else SINGLE

    def parts(self, n: int) -> list[Part]:
        """The parts of a query, in order."""
        packing = self.packing_of(n)
        size = LANES if packing == SINGLE else self.degree
        return [
            Part(packing, first, min(first + size, n), prime)
            for first in range(0, n, size)
            for prime in range(len(self.parameters))
        ]

    def ciphertexts(self, packing: str) -> tuple[int, int]:
        """Ciphertexts of a part's question and answer."""
        if packing == BATCH or self.layout is None:
            return self.circuit.inputs, self.circuit.outputs
        return self.layout.ciphertexts, 1

    def question_sizes(self, packing: str) -> tuple[int, ...]:
        """Bytes of the name of the keys, then of each fresh ciphertext."""
        top = self.parameters[0].level(self.keys.primes)
        return (ID_BYTES, *(top.fresh_bytes,) * self.ciphertexts(packing)[0])

    def answer_sizes(self, packing: str) -> tuple[int, ...]:
        """Bytes of the name of the keys, then of each ciphertext."""
        final = self.parameters[0].level(self.run(packing).final)
        return (ID_BYTES, *(final.ciphertext_bytes,) * self.ciphertexts(packing)[1])

    def cost(self, n: int) -> KeyedCost:
        """Declared bytes."""
        parts = self.parts(n)
        return KeyedCost(
            self.keys.bytes,
            tuple(sum(self.question_sizes(part.packing)) for part in parts),
            tuple(sum(self.answer_sizes(part.packing)) for part in parts),
        )

    @property
    def noise(self) -> tuple[Remaining, ...]:
        """What the estimate leaves after each stage: of the packing that leaves least."""
        return min(self.chosen.runs(), key=lambda run: run.least).rows

    @property
    def why(self) -> str:
        """The reason for these parameters, for people."""
        first = self.parameters[0]
        return (
            f"answers of {self.circuit.bits} bits need {len(self.parameters)} plain primes of at most "
            f"{max(p.plain.bit_length() for p in self.parameters)} bits; their noise needs {self.keys.primes} "
            f"data primes of {max(first.coefficient).bit_length()} bits, which N = {self.degree} allows"
        )

    def facts(self) -> Mapping[str, str]:
        """Parameters, security, depth, bytes and noise, for people."""
        first, least = self.parameters[0], min(self.chosen.runs(), key=lambda run: run.least)
        rows = ", ".join(f"{row.stage} {row.bits:.0f}" for row in least.rows)
        found = {
            "scheme": f"BFV, N = {self.degree}, plain primes {', '.join(str(p.plain) for p in self.parameters)}",
            "security": first.why,
            "reason": self.why,
            "modulus chain": f"{', '.join(str(q.bit_length()) for q in first.coefficient)} bits (last: switching)",
            "depth": f"{sum(p.depth for p in self.circuit.polynomials)} ciphertext products, "
            f"{len(self.circuit.affine)} affine stages",
            "packing": self._packing_fact(),
            "evaluation keys": f"{self.keys.bytes / 1e6:.2f} MB: public key"
            f"{', relinearization' if self.keys.relinearize else ''}, {len(self.keys.rotations)} rotations",
        }
        for packing in (SINGLE, BATCH):
            if self.packing in (packing, BOTH):
                asked, told = sum(self.question_sizes(packing)), sum(self.answer_sizes(packing))
                found[f"{packing} part"] = f"question {asked / 1e3:.1f} kB, answer {told / 1e3:.1f} kB"
        found["noise left (bits)"] = rows
        found["flooding"] = f"2^{least.flood_bits}, {FLOOD_BITS} bits above the answer's own noise"
        return found

    def _packing_fact(self) -> str:
        if self.packing == BOTH:
            return f"single (one sample per row, two rows); batch (one per slot) from {self.break_even} samples on"
        return "one sample per row, two rows" if self.packing == SINGLE else f"one sample per slot, {self.degree} slots"

    def to_json(self) -> dict[str, Any]:
        """Plain data; :func:`read` is the inverse."""
        return {
            "protocol": BFV,
            "version": 1,
            "circuit": circuits.to_json(self.circuit),
            "degree": self.degree,
            "coefficient": list(self.parameters[0].coefficient),
            "plain": [p.plain for p in self.parameters],
            "packing": self.packing,
            "rotations": list(self.keys.rotations),
        }


def make(circuit: Circuit, options: Mapping[str, Any]) -> BfvPlan:
    """A plan of least time. options: ``packing`` (both, single, batch), ``security`` (at most 128: what is given)."""
    unknown = set(options) - {"packing", "security"}
    packing, security = options.get("packing", BOTH), options.get("security", SECURITY_BITS)
    if unknown:
        raise BadParameters(f"bfv has no option {', '.join(sorted(map(str, unknown)))}; there are: packing, security")
    if packing not in PACKINGS:
        raise BadParameters(f"packing {packing!r} is none of {', '.join(PACKINGS)}")
    if type(security) is not int or not 1 <= security <= SECURITY_BITS:
        raise BadParameters(f"security {security!r}: bfv gives {SECURITY_BITS} bits, and neither more nor less")
    return BfvPlan(circuit, choose(circuit, packing), packing)


def read(data: Mapping[str, Any]) -> BfvPlan:
    """A plan from plain data: every prime, the security bound, noise and layout are judged again."""
    if not isinstance(data, Mapping) or set(data) != _FIELDS or data["protocol"] != BFV or data["version"] != 1:
        raise BadParameters(f"not a bfv plan of version 1: fields {sorted(map(str, data))[:12]}")
    degree, coefficient, plain = data["degree"], _integers(data, "coefficient", 44), _integers(data, "plain", 64)
    if type(degree) is not int:
        raise BadParameters(f"degree {str(degree)[:40]!r} is no integer")
    if not isinstance(data["packing"], str) or not isinstance(data["circuit"], Mapping) or not plain:
        raise BadParameters("a bfv plan names a packing, a circuit and plain primes")
    parameters = tuple(Parameters(BFV, degree, coefficient, t) for t in plain)
    plan = BfvPlan(circuits.from_json(data["circuit"]), parameters, data["packing"])
    if _integers(data, "rotations", 64) != plan.keys.rotations:
        raise BadParameters(f"rotations {data['rotations']} are not those of the circuit: {plan.keys.rotations}")
    return plan


def _integers(data: Mapping[str, Any], field: str, most: int) -> tuple[int, ...]:
    values = data[field]
    if not isinstance(values, list) or len(values) > most or any(type(value) is not int for value in values):
        raise BadParameters(f"{field} is no list of at most {most} integers")
    if any(not 0 < value < 1 << 62 for value in values):
        raise BadParameters(f"{field} has values outside 1..2^62")
    return tuple(values)
