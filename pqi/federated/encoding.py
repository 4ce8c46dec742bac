"""How updates become ring vectors: what a user decides (:class:`Encoding`), before it meets a model and its clients.

``Encoding(...).codec(length, clients)`` is the second step: the checked object that encodes and decodes
(:class:`pqi.federated.codec.Codec`), the same at every party of a round.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from pqi.federated.errors import EncodingError
from pqi.federated.privacy.mechanism import Mechanism, mechanism_from

if TYPE_CHECKING:
    from pqi.federated.codec import Codec, DecodedSum

MAX_WEIGHT = 1 << 31
_FEW, _MANY = 3e-5, 3e-4  # share of values beyond the bound between which ``adapted`` leaves it alone
_GROW, _SHRINK = 1.6, 0.85
_NORM_GROW, _NORM_SHRINK = 1.5, 0.95


@dataclass(frozen=True)
class Encoding:
    """What becomes of an update x, a real vector: clipped, scaled, rounded stochastically, taken modulo 2^bits.

        Q(x) = floor(C w x + d) mod 2^bits,    d uniform in [0, 1) for each value,    E[Q] = C w x (before mod)

    clip: bound on the update's Euclidean norm; a longer one is scaled down to it. value_clip: bound on each value's
    magnitude; values beyond it become the bound, and are counted. With value_clip = None (the default) the update is
    *rotated* first (:mod:`pqi.federated.privacy.rotation`), which makes its values alike, and the bound of each is
    ``sigmas`` standard deviations of that: it follows from clip, and at the default of 6 a value is beyond it with
    probability at most 3e-8. clip = None leaves the norm alone and needs a value_clip. The finer bound is the finer
    resolution: the scale C is the largest with which the sum of all clients cannot wrap.

    modulus_bits: of the ring, 2 to 32; what a value costs on the wire. max_weight: clients' weights are integers from 0
    to this (1: unweighted); the mean is weighted. total_weight: what all weights together cannot exceed, if that is
    known to be less than clients times max_weight; it buys resolution, and a sum that exceeds it is refused.
    mechanism: noise for differential privacy; needs a clip, rotates always, and takes no weights. steps: codes from
    zero to a value's bound per unit of weight, if they are not to be chosen (then the proof may refuse them).

    Raises :class:`EncodingError`, naming the field, its value and its bound.
    """

    clip: float | None = 1.0
    value_clip: float | None = None
    modulus_bits: int = 16
    max_weight: int = 1
    total_weight: int | None = None
    mechanism: Mechanism | None = None
    sigmas: float = 6.0
    steps: int | None = None

    def __post_init__(self) -> None:
        _real("clip", self.clip, "bound on an update's Euclidean norm, or None")
        _real("value_clip", self.value_clip, "bound on a value's magnitude, or None to rotate")
        _real("sigmas", self.sigmas, "standard deviations of a rotated value that are kept")
        _whole("modulus_bits", self.modulus_bits, 2, 32)
        _whole("max_weight", self.max_weight, 1, MAX_WEIGHT)
        if self.total_weight is not None:
            _whole("total_weight", self.total_weight, self.max_weight, MAX_WEIGHT * 10_000)
        if self.steps is not None:
            _whole("steps", self.steps, 1, 1 << 31)
        if self.clip is None and self.value_clip is None:
            raise EncodingError("clip and value_clip are both None: at least one has to bound what a client can add")
        if self.mechanism is not None:
            self._check_private()

    def _check_private(self) -> None:
        if not isinstance(self.mechanism, Mechanism):
            raise EncodingError(f"mechanism is {self.mechanism!r}: DistributedDiscreteGaussian(...) or Skellam(...)")
        if self.clip is None:
            raise EncodingError("clip is None: without a bound on an update's norm no noise hides a client")
        for name, plain in (("value_clip", None), ("max_weight", 1), ("total_weight", None), ("steps", None)):
            if getattr(self, name) != plain:
                raise EncodingError(
                    f"{name} is {getattr(self, name)} beside a mechanism: noise is calibrated to rotated, unweighted "
                    f"updates at a scale of its own, so leave it at {plain}"
                )

    @property
    def rotated(self) -> bool:
        """Whether updates are rotated before they are rounded."""
        return self.value_clip is None

    def codec(self, length: int, clients: int, threshold: int = 2, seed: bytes | None = None) -> Codec:
        """The checked encoding of updates of ``length`` values from at most ``clients`` clients.

        threshold: the fewest clients of which a sum is told; noise is calibrated to them. seed: 16 public bytes for the
        rotation, fresh in each round (None draws them; a client's codec is made from the server's ``facts``). Raises
        :class:`WrapError` where sums could wrap, and says what to change.
        """
        from pqi.federated.codec import Codec

        return Codec.of(self, length, clients, threshold, seed)

    def adapted(self, decoded: DecodedSum) -> Encoding:
        """The encoding of the next round, its bounds moved by what the sum of this one tells about clipping.

        value_clip grows by 1.6 where more than 3e-4 of all values were beyond it and shrinks by 0.85 where fewer than
        3e-5 were. clip grows by 1.5 where any update was longer (3 where half of them were), else it shrinks by 0.95.
        Both facts are sums over clients, as the update is. With a mechanism nothing is told, and nothing moves.
        """
        if decoded.clipped_share is None or decoded.shortened_share is None:
            return self
        value_clip, clip = self.value_clip, self.clip
        if value_clip is not None and not _FEW <= decoded.clipped_share <= _MANY:
            value_clip *= _GROW if decoded.clipped_share > _MANY else _SHRINK
        if clip is not None:
            longer = decoded.shortened_share
            clip *= 2 * _NORM_GROW if longer > 0.5 else _NORM_GROW if longer else _NORM_SHRINK
        return replace(self, value_clip=value_clip, clip=clip)

    def facts(self) -> dict[str, Any]:
        """As JSON can hold it; ``from_facts`` reads it back."""
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "mechanism"}
        return {**plain, "mechanism": None if self.mechanism is None else self.mechanism.facts()}

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> Encoding:
        """The checked encoding of ``facts``, which may come from outside."""
        known = {f.name for f in fields(cls)}
        if not isinstance(facts, Mapping) or set(facts) != known:
            raise EncodingError(f"facts of an encoding have the fields {sorted(known)}, not {sorted(facts)}")
        mechanism = facts["mechanism"]
        return cls(**{**facts, "mechanism": None if mechanism is None else mechanism_from(mechanism)})


def _real(name: str, value: object, what: str) -> None:
    if value is None and name != "sigmas":
        return
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not (math.isfinite(value) and 0 < value < 1e150)
    ):
        raise EncodingError(f"{name} is {value!r}: it must be a positive number ({what})")


def _whole(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise EncodingError(f"{name} is {value!r}: it must be an integer from {low} to {high}")
