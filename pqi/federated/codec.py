"""Encoding and decoding of one round: checked numbers, the same at every client and at the server."""

from __future__ import annotations

import math
import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from pqi.federated.bounds import Digits, check_fits, largest_sum, room, widest_reach
from pqi.federated.coins import Coins
from pqi.federated.encoding import Encoding
from pqi.federated.errors import EncodingError, SumRefused
from pqi.federated.privacy.calibration import Noise, calibrated
from pqi.federated.privacy.rotation import Rotation, spread
from pqi.federated.rounding import added, length_squared, lifted, norm, rounded
from protocols.prg import Secret

SEED_BYTES = 16
MAX_CLIENTS = 10_000
MAX_LENGTH = 1 << 31
_TRIES = 64  # roundings beyond the sensitivity's bound before values are rounded towards zero, which never is


class Encoded(Secret):
    """One client's update as ring elements, not protected yet. values: unsigned ``(vector_length,)``, below 2^bits.

    clipped: how many values were beyond their bound. shortened: whether the update was longer than clip.
    """

    __slots__ = ("clipped", "shortened", "values")

    def __init__(self, values: np.ndarray, clipped: int, shortened: bool) -> None:
        self.values, self.clipped, self.shortened = values, clipped, shortened


@dataclass(frozen=True)
class DecodedSum:
    """What the server learns of a round.

    mean: float64 ``(length,)``, ``sum w_i x_i / sum w_i`` over the clients included. codes: int64 ``(length,)``, the
    exact sum of their codes (and noise), rotated if updates are. total_weight: ``sum w_i``. resolution: of one code
    in the mean. clipped_share: of all values, those beyond their bound; shortened_share: of the clients, those longer
    than clip (None for both under a mechanism: they would not be private). noise: deviation of the noise in each
    value of the mean, 0 without a mechanism.
    """

    mean: np.ndarray
    codes: np.ndarray
    included: int
    total_weight: int
    resolution: float
    clipped_share: float | None
    shortened_share: float | None
    noise: float


@dataclass(frozen=True)
class Codec:
    """An :class:`Encoding` for updates of ``length`` values from at most ``clients`` clients; ``Codec.of`` makes it.

    value_bound: B, on a value's magnitude after clipping (and rotation). reach: codes from zero to B per unit of
    weight; the scale of the codes is ``C = reach / B``. magnitude: proven bound on a sum of codes (``bounds.py``).
    noise: the mechanism's numbers, or None.
    """

    encoding: Encoding
    length: int
    clients: int
    threshold: int
    seed: bytes
    value_bound: float
    reach: Fraction
    magnitude: int
    noise: Noise | None

    @classmethod
    def of(cls, encoding: Encoding, length: int, clients: int, threshold: int = 2, seed: bytes | None = None) -> Codec:
        """As ``encoding.codec``."""
        for name, value, low, high in (
            ("length", length, 1, MAX_LENGTH),
            ("clients", clients, 1, MAX_CLIENTS),
            ("threshold", threshold, 1, clients),
        ):
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise EncodingError(f"{name} is {value!r}: it must be an integer from {low} to {high}")
        seed = secrets.token_bytes(SEED_BYTES) if seed is None else bytes(seed)
        if len(seed) != SEED_BYTES:
            raise EncodingError(f"seed has {len(seed)} bytes; it is {SEED_BYTES} public ones, fresh in each round")
        bits, noise = encoding.modulus_bits, None
        if encoding.mechanism is not None and encoding.clip is not None:
            noise = calibrated(encoding.mechanism, bits, length, clients, threshold, encoding.sigmas)
            bound, reach = noise.value_codes / noise.clip_codes * encoding.clip, Fraction(noise.value_codes)
            magnitude = clients * noise.value_codes
        else:
            bound, total = _value_bound(encoding, length), _total(encoding, clients)
            pinned = encoding.steps is not None
            reach = Fraction(encoding.steps or 0) if pinned else widest_reach(bits, clients, encoding.max_weight, total)
            magnitude = largest_sum(reach, clients, encoding.max_weight, total)
            if pinned:
                check_fits(magnitude, 0, bits, clients, room(bits) // math.ceil(reach * encoding.max_weight))
        codec = cls(encoding, length, clients, threshold, seed, bound, reach, magnitude, noise)
        if codec.vector_length > MAX_LENGTH:
            raise EncodingError(f"the vector has {codec.vector_length} values, {MAX_LENGTH} is the most")
        return codec

    @property
    def scale(self) -> float:
        """C: codes per unit of an update's value and unit of weight."""
        return float(self.reach) / self.value_bound

    @property
    def bits(self) -> int:
        """Of the ring."""
        return self.encoding.modulus_bits

    @property
    def vector_length(self) -> int:
        """Ring elements of an encoded update: its values, and without a mechanism the digits of three counts."""
        return self.length + sum(digits.count for digits in self._counts)

    @property
    def _counts(self) -> tuple[Digits, ...]:
        """Digits of a client's weight, of its values beyond the bound, of whether its update was shortened."""
        if self.noise is not None:
            return ()
        return tuple(Digits(top, self.clients, self.bits) for top in (self.encoding.max_weight, self.length, 1))

    @property
    def _rotation(self) -> Rotation | None:
        return Rotation(self.seed, self.length) if self.encoding.rotated else None

    def encode(self, update: np.ndarray, weight: int = 1, coins: Coins | None = None) -> Encoded:
        """Ring elements of one client's update, float32 or float64 ``(length,)``, of this weight.

        coins: None draws fresh ones (tests pass their own). Cost of a million float32 values, one core: about a
        millisecond, three if rotated. Raises :class:`EncodingError` for another shape, a weight that is out of range,
        NaN or infinity; nothing was encoded then.
        """
        x = self._checked(update, weight)
        length, shortened, factor = norm(x), False, 1.0
        if not math.isfinite(length):
            raise EncodingError(
                "the update holds NaN or infinity (or values whose squares overflow): it is not encoded"
            )
        if self.encoding.clip is not None and length > self.encoding.clip:
            shortened, factor = True, self.encoding.clip / length
        rotation, coins = self._rotation, Coins() if coins is None else coins
        x = x if rotation is None else rotation.forward(x)
        if self.noise is not None:
            return Encoded(*self._noisy(x, factor * self.scale, self.noise, coins), shortened)
        limit = self.reach * weight
        out = np.empty(self.vector_length, _dtype(self.bits))
        dither = coins.words(self.length, np.uint16)
        mask, kept = (1 << self.bits) - 1, min(float(limit), float(math.ceil(limit)))
        _, clipped = rounded(x, factor * self.scale * weight, kept, dither, mask, out[: self.length])
        counts = zip(self._counts, (weight, clipped if weight else 0, int(shortened)), strict=True)
        out[self.length :] = [digit for digits, number in counts for digit in digits.write(number)]
        return Encoded(out, clipped, shortened)

    def decode(self, values: np.ndarray, included: Collection[int] | int) -> DecodedSum:
        """The mean that a sum of encodings stands for. included: the clients whose vectors were summed, or how many.

        values: integers ``(vector_length,)``, each below 2^bits. The integers are exact: ``codes`` is the sum of the
        clients' signed codes, for every set of clients that the codec was made for (with a mechanism: except with
        probability 2^-40). Raises :class:`SumRefused` for what is not a sum of this round.
        """
        count = included if isinstance(included, int) else len(included)
        self._check_sum(values, count)
        told, at = list[int](), self.length
        for digits in self._counts:
            told.append(digits.read(values[at : at + digits.count]))
            at += digits.count
        weight, clipped, shortened = told or (count, None, None)
        self._check_told(weight, clipped, shortened, count)
        step = 1.0 / (self.scale * weight)
        codes, mean, inside, largest = lifted(values[: self.length], self.bits, step)
        if not inside:
            raise SumRefused(f"a value of the sum is not within 0 .. 2^{self.bits} - 1")
        if self.noise is None and largest > self.magnitude:
            raise SumRefused(
                f"a code of the sum is {largest}, encodings sum to {self.magnitude} at most: it is none of them"
            )
        rotation = self._rotation
        return DecodedSum(
            mean=mean if rotation is None else rotation.backward(mean),
            codes=codes,
            included=count,
            total_weight=weight,
            resolution=step,
            clipped_share=None if clipped is None else clipped / (count * self.length),
            shortened_share=None if shortened is None else shortened / count,
            noise=0.0 if self.noise is None else math.sqrt(float(self.noise.variance) * count) * step,
        )

    def facts(self) -> dict[str, Any]:
        """What a client needs to make the same codec, as JSON can hold it."""
        plain = {"length": self.length, "clients": self.clients, "threshold": self.threshold}
        return {"encoding": self.encoding.facts(), **plain, "seed": self.seed.hex()}

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> Codec:
        """The codec of ``facts``, which come from the server: all numbers are derived and proven anew."""
        try:
            encoding, seed = Encoding.from_facts(facts["encoding"]), bytes.fromhex(facts["seed"])
            return cls.of(encoding, facts["length"], facts["clients"], facts["threshold"], seed)
        except (KeyError, TypeError, AttributeError) as error:
            raise EncodingError(f"these are no facts of a codec: {error!r}") from None

    def record(self) -> dict[str, Any]:
        """The proof's public numbers, for a round's record."""
        return {
            "modulus_bits": self.bits,
            "clients": self.clients,
            "scale": self.scale,
            "value_bound": self.value_bound,
            "codes_to_the_bound": float(self.reach),
            "largest_sum": self.magnitude,
            "room": room(self.bits),
            "rotated": self.encoding.rotated,
            "noise": None if self.noise is None else self.noise.record(),
        }

    def _checked(self, update: np.ndarray, weight: int) -> np.ndarray:
        if not isinstance(update, np.ndarray) or update.shape != (self.length,) or update.dtype.kind != "f":
            shape = getattr(update, "shape", type(update).__name__)
            raise EncodingError(f"the update is {shape}: floats of shape ({self.length},) are encoded here")
        if isinstance(weight, bool) or not isinstance(weight, (int, np.integer)):
            raise EncodingError(f"weight is {weight!r}: it must be an integer")
        low = 0 if self.noise is None else 1  # a client of weight 0 adds no noise's worth of hiding to a private sum
        if not low <= weight <= self.encoding.max_weight:
            raise EncodingError(f"weight is {weight}: it must be from {low} to max_weight = {self.encoding.max_weight}")
        wide = np.float32 if update.dtype == np.float32 else np.float64
        return np.ascontiguousarray(update, dtype=wide)

    def _noisy(self, x: np.ndarray, factor: float, noise: Noise, coins: Coins) -> tuple[np.ndarray, int]:
        """Conditional rounding, then the client's own noise: ring elements, and how many values were clipped."""
        codes, limit = np.empty(self.length, np.int64), float(noise.value_codes)
        for _ in range(_TRIES):
            _, clipped = rounded(x, factor, limit, coins.words(self.length, np.uint16), -1, codes)
            if length_squared(codes) <= noise.sensitivity.l2_squared:
                break
        else:
            codes[:] = np.trunc(np.clip(x.astype(np.float64) * factor, -limit, limit))
        drawn = noise.mechanism.sample(noise.variance, self.length, coins)
        return added(codes, drawn, (1 << self.bits) - 1, np.empty(self.length, _dtype(self.bits))), clipped

    def _check_sum(self, values: np.ndarray, count: int) -> None:
        if not isinstance(values, np.ndarray) or values.shape != (self.vector_length,) or values.dtype.kind not in "iu":
            shape = getattr(values, "shape", type(values).__name__)
            raise SumRefused(f"the sum is {shape}: integers of shape ({self.vector_length},) are decoded here")
        if int(np.bitwise_or.reduce(values[self.length :], initial=0)) >> self.bits:
            raise SumRefused(f"a count in the sum is not within 0 .. 2^{self.bits} - 1")
        fewest = 1 if self.noise is None else self.threshold
        if not fewest <= count <= self.clients:
            why = "the noise is calibrated to no fewer" if count < fewest else "more could have wrapped"
            raise SumRefused(f"{count} clients are included, this codec is for {fewest} to {self.clients}: {why}")

    def _check_told(self, weight: int, clipped: int | None, shortened: int | None, count: int) -> None:
        if self.noise is not None:
            return
        most = min(_total(self.encoding, self.clients), count * self.encoding.max_weight)
        if weight > most:
            raise SumRefused(
                f"the weights of {count} clients sum to {weight}, at most {most} was declared (max_weight, "
                f"total_weight): the values may have wrapped, so nothing is decoded. Declare a larger one"
            )
        if weight == 0:
            raise SumRefused(f"the weights of all {count} clients are zero: there is nothing to average")
        if (clipped or 0) > count * self.length or (shortened or 0) > count:
            raise SumRefused("the sum is none that encodings of this round can have: a party added something else")


def _total(encoding: Encoding, clients: int) -> int:
    most = clients * encoding.max_weight
    return most if encoding.total_weight is None else min(most, encoding.total_weight)


def _value_bound(encoding: Encoding, length: int) -> float:
    if encoding.value_clip is not None:
        return encoding.value_clip if encoding.clip is None else min(encoding.value_clip, encoding.clip)
    if encoding.clip is None:
        raise EncodingError("clip and value_clip are both None: at least one has to bound what a client can add")
    return encoding.clip * min(1.0, encoding.sigmas * spread(length))


def _dtype(bits: int) -> type[np.uint16] | type[np.uint32]:
    return np.uint16 if bits <= 16 else np.uint32
