"""Where a circuit runs in the modulus chain: the noise after every stage, which primes are dropped when, and the flood.

Dropping a prime divides modulus and noise alike. It costs next to nothing once the noise has outgrown the prime, and
what follows is cheaper; so primes go as soon as that holds. Before an answer leaves, it is drowned in noise of
2^40 times the bound of its own (*flooding*), so that what the client decrypts says nothing beyond the integers; then
all primes go that decryption can spare.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, inf, log2

from protocols.bfv import noise
from protocols.bfv.noise import Model
from protocols.circuit import Affine, Circuit
from protocols.keyed import Remaining
from protocols.lattice.layout import Layout

SPARE_BITS = 1.0
FLOOD_STAGE = "flooding of the answer"
_OUTGROWN = 4.0


@dataclass(frozen=True)
class Schedule:
    """primes: data primes while each stage runs. flood_primes, flood_bits: where and how wide the flood is.

    final: data primes of the answer. rows: what the estimate leaves after every stage, and at the end.
    """

    primes: tuple[int, ...]
    flood_primes: int
    flood_bits: int
    final: int
    rows: tuple[Remaining, ...]

    @property
    def least(self) -> float:
        """The least that is left after any stage, in bits."""
        return min(row.bits for row in self.rows)

    @property
    def short(self) -> Remaining:
        """The first stage after which too little is left; the last stage if all leave enough."""
        return next((row for row in self.rows if row.bits < SPARE_BITS), self.rows[-1])


def schedule(model: Model, circuit: Circuit, layout: Layout | None, *, drop: bool = True) -> Schedule:
    """The run of a circuit packed by ``layout`` (None: one sample per slot). drop: whether primes may go on the way."""
    deviation, primes, at = model.fresh, len(model.data), []
    rows = [Remaining("fresh", model.left(deviation, primes))]
    for number, stage in enumerate(circuit.stages):
        while drop and primes > 1 and _outgrown(model, deviation, primes):
            primes -= 1
            deviation = model.dropped(deviation, model.data[primes])
        at.append(primes)
        if not isinstance(stage, Affine):
            deviation = noise.polynomial(model, stage, deviation, primes)
        elif layout is not None:
            deviation = noise.single(model, layout.stages[number // 2], deviation, primes)
        else:
            deviation = noise.batch(model, stage, deviation, reach(circuit) if number == 0 else inf)
        rows.append(Remaining(stage.name, model.left(deviation, primes), f"{primes} primes"))
    return _finish(model, deviation, tuple(at), rows, drop=drop)


def reach(circuit: Circuit) -> float:
    """log2 of the largest L1 norm of a row of the first stage: its outputs span less than 2^bits over the inputs."""
    span = circuit.high - circuit.low
    return circuit.affine[0].bits - log2(span) if span else inf


def _outgrown(model: Model, deviation: float, primes: int) -> bool:
    return deviation - model.data[primes - 1] >= model.switching(primes - 1) + _OUTGROWN


def _finish(model: Model, deviation: float, at: tuple[int, ...], rows: list[Remaining], *, drop: bool) -> Schedule:
    """Re-randomise and flood at the smallest modulus that holds the flood, then drop what can be spared."""
    primes = at[-1]
    while drop and primes > 1:
        below = model.dropped(deviation, model.data[primes - 1])
        if _flooded(model, below, primes - 1)[2] < SPARE_BITS + 1:
            break
        primes, deviation = primes - 1, below
    flood_primes, (flood_bits, flooded, left) = primes, _flooded(model, deviation, primes)
    rows.append(Remaining(FLOOD_STAGE, left, f"{primes} primes, uniform below 2^{flood_bits}"))
    while drop and primes > 1 and model.left(model.dropped(flooded, model.data[primes - 1]), primes - 1) >= SPARE_BITS:
        primes -= 1
        flooded = model.dropped(flooded, model.data[primes])
    rows.append(Remaining("answer", model.left(flooded, primes), f"{primes} primes"))
    return Schedule(at, flood_primes, flood_bits, primes, tuple(rows))


def _flooded(model: Model, deviation: float, primes: int) -> tuple[int, float, float]:
    """Bits of the flood, the deviation that stands for it, and what is left."""
    own = noise.total(deviation, model.zero)
    bits = ceil(own + noise.DEVIATIONS) + noise.FLOOD_BITS
    flooded = bits + 0.1 - noise.DEVIATIONS  # a flood is uniform: its bound is its end, not ten deviations
    return bits, flooded, model.left(flooded, primes)
