"""The proof that a sum of clients' codes cannot leave its ring, in integers, and numbers told through sums of digits.

A value v is coded as ``floor(v + d)`` with d in [0, 1), so its code lies between ``floor(v)`` and ``ceil(v)``. A
client of weight w keeps ``|v| <= reach w``, so its code is at most ``ceil(reach w)`` in magnitude: the one step that
rounding can add is in it. Over at most n clients whose weights sum to at most T, with ``reach = a / b`` in lowest
terms,

    sum ceil(reach w_i)  <=  sum (reach w_i + (b - 1) / b)  <=  reach T + n (b - 1) / b,

and also at most ``n ceil(reach W)`` where no weight is above W. The ring of k bits holds ``-2^(k-1) .. 2^(k-1) - 1``:
the sum is read back exactly if the smaller of the two, and the noise's bound on top, is at most ``2^(k-1) - 1``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from pqi.federated.errors import WrapError


def room(bits: int) -> int:
    """The largest magnitude of either sign that a ring of these bits holds: ``2^(bits-1) - 1``."""
    return (1 << (bits - 1)) - 1


def largest_sum(reach: Fraction, clients: int, max_weight: int, total_weight: int) -> int:
    """The bound of this module on the magnitude of a sum of codes; integer arithmetic throughout."""
    by_total = reach * total_weight + clients * Fraction(reach.denominator - 1, reach.denominator)
    return min(math.floor(by_total), clients * math.ceil(reach * max_weight))


def widest_reach(bits: int, clients: int, max_weight: int, total_weight: int) -> Fraction:
    """The largest reach that this module can prove: codes at a value's bound per unit of weight.

    Whole, ``floor(room / T)``, where that is the larger; else ``(room - n) / T``, which gives up one code a client.
    Raises :class:`WrapError` where not even a client of the largest weight would have one code on either side of zero.
    """
    reach = max(Fraction(room(bits) // total_weight), Fraction(room(bits) - clients, total_weight))
    if reach * max_weight < 1:
        wanted = (clients + -(-total_weight // max_weight)).bit_length() + 1
        raise WrapError(
            f"{clients} clients of total weight {total_weight} do not fit a ring of modulus_bits = {bits}: one "
            f"client's codes would have less than one step on either side of zero. Use modulus_bits = {wanted} or "
            f"more, fewer clients, or a smaller total_weight"
        )
    return reach


def check_fits(magnitude: int, noise: int, bits: int, clients: int, largest_clients: int) -> None:
    """Raise :class:`WrapError` if codes up to ``magnitude`` and noise up to ``noise`` can leave the ring together."""
    if magnitude + noise > room(bits):
        extra = f" and the noise {noise}" if noise else ""
        raise WrapError(
            f"the sum of {clients} clients' codes can reach {magnitude}{extra}, a ring of modulus_bits = {bits} holds "
            f"{room(bits)}: use at most {largest_clients} clients, fewer steps, or modulus_bits = "
            f"{(magnitude + noise).bit_length() + 1}"
        )


@dataclass(frozen=True)
class Digits:
    """A number from 0 to ``largest`` as ring elements whose sums over at most ``clients`` clients cannot wrap.

    Base ``2^g`` with ``clients (2^g - 1) < 2^bits``; the sum of the numbers is read from the sums of the digits,
    carries and all. Raises :class:`WrapError` where not even binary digits can be summed.
    """

    largest: int
    clients: int
    bits: int

    def __post_init__(self) -> None:
        if self.step < 1:
            raise WrapError(
                f"{self.clients} clients cannot be counted in a ring of modulus_bits = {self.bits}: use "
                f"modulus_bits = {self.clients.bit_length()} or more, or fewer clients"
            )

    @property
    def step(self) -> int:
        """g, the bits of a digit."""
        return (((1 << self.bits) - 1) // self.clients + 1).bit_length() - 1

    @property
    def count(self) -> int:
        """How many digits."""
        return max(1, -(-self.largest.bit_length() // self.step))

    def write(self, number: int) -> list[int]:
        """The digits, lowest first."""
        return [(number >> (self.step * i)) & ((1 << self.step) - 1) for i in range(self.count)]

    def read(self, digits: np.ndarray) -> int:
        """The number that these sums of digits stand for."""
        return sum(int(digit) << (self.step * i) for i, digit in enumerate(digits))
