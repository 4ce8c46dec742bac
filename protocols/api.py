"""What a protocol offers: the primitives (steps), its security statement, and the shape of every protocol.

A *step* says what is computed, in terms of integer tensors mod 2^k; it is public and holds no secret. ``clear`` defines
what each step means; every exact protocol computes the same integers without showing them. Notation: ``<x>_k`` is a
value of the ring Z_{2^k} in whatever form the protocol keeps it, ``lift_k`` its centred representative.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod

from protocols.errors import BadParameters
from protocols.linmap import LinearMap, Shape
from protocols.ring import MAX_BITS


@dataclass(frozen=True)
class SecurityStatement:
    """Printed wherever results are printed: against whom, and who learns what."""

    adversary: str
    learns: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """One primitive; ``shape`` is the shape of its result for one item (the batch axis comes in front)."""

    shape: Shape

    @property
    def count(self) -> int:
        """Values per item in the result."""
        return prod(self.shape)

    def _ring(self, name: str, bits: int, least: int = 1) -> None:
        if not least <= bits <= MAX_BITS:
            raise BadParameters(f"{type(self).__name__}: {name} = {bits} is outside {least}..{MAX_BITS} bits")


VISIBILITIES = ("shared", "owned", "public")


@dataclass(frozen=True)
class Open(Step):
    """Make ``<x>_ring`` ready as the right factor of linear maps (masked opening under sharing; identity in clear).

    to: ``both``, for maps of shared weights, or ``P0`` alone, for maps of weights that P0 owns.
    """

    ring: int
    to: str = "both"

    def __post_init__(self) -> None:
        self._ring("ring", self.ring)
        if self.to not in ("both", "P0"):
            raise BadParameters(f"Open: to = {self.to!r}; a value is opened to 'both' or to 'P0'")


@dataclass(frozen=True)
class Linear(Step):
    """``z = W . x + b mod 2^ring``. W and b are the step's operands: ``weight``, and ``bias`` in a shape that
    broadcasts over the result.

    visibility: who may know W and b. ``shared``: no party; x comes opened to both. ``owned``: P0 alone; x comes opened
    to P0. ``public``: everybody; x comes as it is, without an Open in front.
    """

    ring: int
    map: LinearMap
    visibility: str = "shared"

    def __post_init__(self) -> None:
        self._ring("ring", self.ring)
        if self.visibility not in VISIBILITIES:
            raise BadParameters(
                f"Linear: visibility = {self.visibility!r}; weights are {', '.join(VISIBILITIES[:-1])} or "
                f"{VISIBILITIES[-1]}"
            )

    @property
    def opened_to(self) -> str | None:
        """To whom the Open in front opens x; None: there is none in front."""
        return {"shared": "both", "owned": "P0", "public": None}[self.visibility]


@dataclass(frozen=True)
class Shift(Step):
    """``<z>_ring -> <floor(lift(z) / 2^shift)>_(ring - shift)``.

    rounding: ``exact``, or ``stochastic`` (the result may be one higher, with probability (z mod 2^shift + 1) /
    2^shift; costs nothing; not bit-exact).
    """

    ring: int
    shift: int
    rounding: str = "exact"

    def __post_init__(self) -> None:
        self._ring("ring", self.ring, 2)
        if not 1 <= self.shift < self.ring:
            raise BadParameters(f"Shift: shift = {self.shift} must be between 1 and ring - 1 = {self.ring - 1}")
        if self.rounding not in ("exact", "stochastic"):
            raise BadParameters(f"Shift: rounding = {self.rounding!r} is neither 'exact' nor 'stochastic'")


@dataclass(frozen=True)
class Table(Step):
    """``<x>_bits -> <T[c][x mod 2^bits]>_ring_out``; operand ``table``: int64 ``(channels, 2^bits)``, one or all."""

    bits: int
    ring_out: int
    channels: int = 1

    def __post_init__(self) -> None:
        _table_fits(self, self.bits)


@dataclass(frozen=True)
class FusedTable(Step):
    """``<z>_ring -> <T[c][floor(z / 2^shift)]>_ring_out``: exact shift and table in one; index of ring - shift bits."""

    ring: int
    shift: int
    ring_out: int
    channels: int = 1

    def __post_init__(self) -> None:
        self._ring("ring", self.ring, 2)
        if not 1 <= self.shift <= 12 or self.shift >= self.ring:
            raise BadParameters(
                f"FusedTable: shift = {self.shift} must be in 1..12 and below the ring's {self.ring} bits"
            )
        _table_fits(self, self.ring - self.shift)


def _table_fits(step: Table | FusedTable, bits: int) -> None:
    step._ring("ring_out", step.ring_out)
    if not 1 <= bits <= 12:
        raise BadParameters(
            f"{type(step).__name__}: an index of {bits} bits asks for 2^{bits} entries; at most 12 bits are offered. "
            "Clamp first, or use comparison by digits"
        )
    if step.channels not in (1, step.shape[0] if step.shape else 1):
        raise BadParameters(f"{type(step).__name__}: {step.channels} tables for {step.shape[0]} channels")


@dataclass(frozen=True)
class Clamp(Step):
    """``<z>_ring -> <low + clamp(floor(lift(z) / 2^shift), 0, 2^bits - 1)>_ring_out``: requantization with ReLU.

    Where ``bits >= ring - shift - 1`` the upper clamp is idle and this is ReLU with an exact shift.
    """

    ring: int
    shift: int
    bits: int
    low: int
    ring_out: int

    def __post_init__(self) -> None:
        self._ring("ring", self.ring, 2)
        self._ring("ring_out", self.ring_out)
        if not 0 <= self.shift < self.ring:
            raise BadParameters(f"Clamp: shift = {self.shift} must be between 0 and ring - 1 = {self.ring - 1}")
        self._ring("bits", self.bits)


@dataclass(frozen=True)
class QuickClamp(Clamp):
    """The same as Clamp, with one exchange less and more material."""


@dataclass(frozen=True)
class Lift(Step):
    """``<x>_bits -> <x>_ring_out`` for x known to lie in ``low .. low + 2^(bits-1) - 1``: half of the ring is empty."""

    bits: int
    low: int
    ring_out: int

    def __post_init__(self) -> None:
        self._ring("bits", self.bits, 2)
        self._ring("ring_out", self.ring_out)
        if self.ring_out <= self.bits:
            raise BadParameters(
                f"Lift: from {self.bits} to {self.ring_out} bits; a share is one mod every smaller ring as it is"
            )


@dataclass(frozen=True)
class Sign(Step):
    """``<z>_ring -> <1 if lift(z) >= 0 else -1>_ring_out``."""

    ring: int
    ring_out: int

    def __post_init__(self) -> None:
        self._ring("ring", self.ring, 2)
        self._ring("ring_out", self.ring_out)


@dataclass(frozen=True)
class Relu(Step):
    """``<x>_bits -> <max(lift(x), 0)>_ring_out`` by sign-and-select; a table of 2^bits bits decides the sign."""

    bits: int
    ring_out: int

    def __post_init__(self) -> None:
        self._ring("ring_out", self.ring_out)
        if not 2 <= self.bits <= 12:
            raise BadParameters(f"Relu: values of {self.bits} bits; between 2 and 12 are offered, more by Clamp")


@dataclass(frozen=True)
class Maximum(Step):
    """Maximum over the last axis of ``<x>_ring_out`` ``(n, *shape, width)``; values are signed, of ``bits`` bits."""

    width: int
    bits: int
    ring_out: int

    def __post_init__(self) -> None:
        self._ring("bits + 1", self.bits + 1, 2)
        self._ring("ring_out", self.ring_out)
        if self.ring_out < self.bits + 1:
            raise BadParameters(
                f"Maximum: differences of {self.bits}-bit values take {self.bits + 1}; the ring has {self.ring_out}"
            )
        if self.width < 1:
            raise BadParameters(f"Maximum: a window of {self.width} values has no maximum")


@dataclass(frozen=True)
class Noise(Step):
    """``<x>_ring -> <x + e>_ring``, e fresh for every value and known to no compute party: what makes a result inexact.

    Operand ``law``: int64 (2 bound + 1,), the public law of e over -bound .. bound (see :mod:`protocols.noise`). So the
    result is exact but for its noise, which no value leaves by more than ``bound``.
    """

    ring: int
    bound: int

    def __post_init__(self) -> None:
        self._ring("ring", self.ring, 2)
        if not 1 <= self.bound < 1 << (self.ring - 1):
            raise BadParameters(
                f"Noise: bound = {self.bound} must be from 1 to {(1 << (self.ring - 1)) - 1}, for the ring of "
                f"{self.ring} bits holds no other noise"
            )


STEPS: dict[str, type[Step]] = {
    step.__name__: step
    for step in (Open, Linear, Shift, Table, FusedTable, Clamp, QuickClamp, Lift, Sign, Relu, Maximum, Noise)
}
