"""Which ring, which primes: the parameters of least time among those whose noise fits.

The modulus of the integers is a product of plain primes, one independent ciphertext each: many small ones need little
noise budget, hence a small ring; few large ones need fewer ciphertexts. Times are those of SEAL on one core, as a
formula in N and the number k of coefficient primes, fitted to measurements; only their ratios matter here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, log2, prod, sqrt

from protocols.bfv import noise
from protocols.bfv.noise import Model
from protocols.bfv.schedule import SPARE_BITS, Schedule, schedule
from protocols.circuit import Circuit, Polynomial
from protocols.errors import BadParameters
from protocols.lattice.context import BFV, MAX_MODULUS_BITS, Parameters, chain
from protocols.lattice.diagonals import Diagonal
from protocols.lattice.layout import Layout, plan_layout
from protocols.lattice.residues import MAX_BITS, primes

DEGREES = (4096, 8192, 16384, 32768)
SINGLE, BATCH, BOTH = "single", "batch", "both"
MAX_PLAIN_BITS = 50
CORES = 2
LANES = 2
_BYTE_SECONDS = 1e-8
_PER_WIDTH = 16


@dataclass(frozen=True)
class Chosen:
    """parameters: one per plain prime. single, batch: schedule of each packing that is served."""

    parameters: tuple[Parameters, ...]
    layout: Layout | None
    single: Schedule | None
    batch: Schedule | None

    def runs(self) -> list[Schedule]:
        """The schedules there are."""
        return [run for run in (self.single, self.batch) if run is not None]


def choose(circuit: Circuit, packing: str) -> tuple[Parameters, ...]:
    """Parameters of least time. Raises BadParameters: which stage is too much, by how many bits, and what helps."""
    best, least = None, float("inf")
    for degree in DEGREES:
        for parameters, found in _fitting(circuit, packing, degree):
            seconds = _price(circuit, packing, parameters, found)
            if seconds < least:
                best, least = parameters, seconds
    if best is None:
        raise _refusal(circuit, packing)
    return best


def settle(circuit: Circuit, packing: str, parameters: tuple[Parameters, ...]) -> Chosen:
    """Layout and schedules that follow from parameters; the largest plain prime decides for all."""
    first = max(parameters, key=lambda p: p.plain)
    model = model_of(first)
    layout = None if packing == BATCH else plan_layout(circuit, first.degree // LANES)
    return Chosen(
        parameters,
        layout,
        None if layout is None else schedule(model, circuit, layout),
        None if packing == SINGLE else schedule(model, circuit, None),
    )


def model_of(parameters: Parameters) -> Model:
    """Parameters as the noise sees them."""
    *data, special = (log2(q) for q in parameters.coefficient)
    return Model(parameters.degree, parameters.plain, tuple(data), special)


def plain_primes(degree: int, bits: int, product_bits: int) -> tuple[int, ...] | None:
    """Fewest primes of at most ``bits`` bits, 1 mod 2N, with a product above 2^product_bits; of these the smallest."""
    least = (2 * degree).bit_length()
    pool = [t for width in range(bits, least - 1, -1) for t in primes(degree, width, _PER_WIDTH)]
    count = next((m for m in range(1, len(pool) + 1) if prod(pool[:m]) >> product_bits), None)
    if count is None:
        return None
    first = max(i for i in range(len(pool) - count + 1) if prod(pool[i : i + count]) >> product_bits)
    return tuple(pool[first : first + count])


def seconds(circuit: Circuit, degree: int, run: Schedule, layout: Layout | None) -> float:
    """Time of one part on one core: one sample per lane, or with no layout a whole chunk of samples."""
    pairs = zip(circuit.stages, run.primes, strict=True)
    return float(sum(_stage_seconds(circuit, number, degree, k, layout) for number, (_, k) in enumerate(pairs)))


def _stage_seconds(circuit: Circuit, number: int, degree: int, k: int, layout: Layout | None) -> float:
    stage = circuit.stages[number]
    transform = degree * log2(degree) * k
    rotate = 1.23e-9 * degree * log2(degree) * (k + 1) ** 2
    product = 6.9e-9 * degree * k
    if isinstance(stage, Polynomial):
        copies = 1 if layout else circuit.affine[number // 2].outputs
        return copies * (stage.degree - 1) * (2.03e-8 * transform + rotate)
    if layout is None:
        words = 2 * degree * k
        return words * (stage.inputs * 2.5e-8 + stage.outputs * 4e-8 + float(stage.support.sum()) * 1e-10)
    planned = layout.stages[number // 2]
    if isinstance(planned, Diagonal):
        used, turned = int(planned.used.sum()), planned.babies + planned.giants
    else:
        used, turned = len(planned.index), len(planned.index) + 1
    return used * product + len(planned.steps) * rotate + turned * 2e-9 * transform


def _price(circuit: Circuit, packing: str, parameters: tuple[Parameters, ...], found: Chosen) -> float:
    """Seconds until an answer with all cores, and a little for every byte; a larger batch must be worth its wait."""
    degree, parts = parameters[0].degree, len(parameters)
    run = found.batch if packing == BATCH else found.single
    if run is None:
        raise BadParameters(f"packing {packing!r} has no schedule")
    sent = circuit.inputs if found.layout is None else found.layout.ciphertexts
    back = circuit.outputs if found.layout is None else 1
    size = parts * (
        sent * parameters[0].level(len(parameters[0].coefficient) - 1).fresh_bytes
        + back * parameters[0].level(run.final).ciphertext_bytes
    )
    price = ceil(parts / CORES) * seconds(circuit, degree, run, found.layout) + size * _BYTE_SECONDS
    return price / sqrt(degree) if packing == BATCH else price


def _fitting(circuit: Circuit, packing: str, degree: int) -> Iterator[tuple[tuple[Parameters, ...], Chosen]]:
    """Parameters of this degree whose noise fits, one candidate per number of plain primes."""
    seen: set[int] = set()
    try:
        layout = None if packing == BATCH else plan_layout(circuit, degree // LANES)
    except BadParameters:
        return
    for width in range((2 * degree).bit_length(), MAX_PLAIN_BITS + 1):
        plains = plain_primes(degree, width, circuit.bits)
        if plains is None or len(plains) in seen:
            continue
        seen.add(len(plains))
        need = _needed(circuit, packing, layout, degree, max(plains))
        for extra in (0, 4, 8):  # a chain of many primes loses fractions of a bit at each
            moduli = chain(degree, need + extra, avoid=plains)
            if moduli is None or min(moduli) <= max(plains):
                break
            parameters = tuple(Parameters(BFV, degree, moduli, t) for t in plains)
            found = settle(circuit, packing, parameters)
            if all(run.least >= SPARE_BITS for run in found.runs()):
                yield parameters, found
                break


def _needed(circuit: Circuit, packing: str, layout: Layout | None, degree: int, plain: int) -> int:
    """Bits of data modulus that a circuit needs: minus what is left of a modulus of no bits."""
    return ceil(SPARE_BITS - min(run.least for run in _flat(circuit, packing, layout, degree, plain, 0.0)))


def _flat(
    circuit: Circuit, packing: str, layout: Layout | None, degree: int, plain: int, bits: float
) -> list[Schedule]:
    """Schedules with all primes in place to the end, at a modulus of so many bits in eight primes."""
    model = Model(degree, plain, (bits / 8,) * 8, bits / 8)
    wanted = [] if packing == BATCH else [layout]
    wanted += [] if packing == SINGLE else [None]
    return [schedule(model, circuit, packed, drop=False) for packed in wanted]


def _refusal(circuit: Circuit, packing: str) -> BadParameters:
    """Why no parameters fit, for the best of the largest ring."""
    degree = DEGREES[-1]
    layout = None if packing == BATCH else plan_layout(circuit, degree // LANES)
    most = MAX_MODULUS_BITS[degree] - MAX_BITS
    tries = []
    for width in range((2 * degree).bit_length(), MAX_PLAIN_BITS + 1):
        plains = plain_primes(degree, width, circuit.bits)
        if plains:
            tries.append((_needed(circuit, packing, layout, degree, max(plains)), max(plains)))
    if not tries:
        return BadParameters(
            f"answers of {circuit.bits} bits exceed every product of plain primes; use narrower weights"
        )
    need, plain = min(tries)
    worst = min(_flat(circuit, packing, layout, degree, plain, float(most)), key=lambda run: run.least)
    return BadParameters(
        f"the noise budget runs out at stage {worst.short.stage!r}: N = {degree}, the largest ring, has {most} bits at "
        f"{noise.FLOOD_BITS}-bit flooding and 128-bit security, and this circuit needs {need}, {need - most} more; "
        f"fewer bits of weights or inputs (answers have {circuit.bits} bits), fewer stages or polynomials of lower "
        "degree help, or the protocol additive2, which has no depth limit"
    )
