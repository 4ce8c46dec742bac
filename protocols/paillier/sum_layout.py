"""How vectors lie in ciphertexts that are to be summed, and how the sum is hidden from who decrypts it.

A slot holds one value of each client: their sum over the integers lies below ``clients 2^bits <= 2^b``, with
``b = bits + ceil(log2(clients))``. The server adds a mask r to every slot before the key holder decrypts, r uniform in
``[0, 2^(b + HIDING_BITS) - 2^b)``: the slot then stays below ``2^(b + HIDING_BITS)``, and what the key holder sees
differs from a value that has nothing to do with the sum by a statistical distance of at most ``2^-HIDING_BITS`` and a
little. The key holder returns it modulo 2^bits, and so the server learns the sum modulo 2^bits and not the integer
behind it, which would count wrap-arounds (of signed values: the negative ones).

A mask uniform modulo n would hide perfectly and take no room. But then the sum could be reduced by nobody but the
server, who would have seen it whole.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from protocols.aggregation import SumPlan
from protocols.errors import BadParameters
from protocols.paillier.packing import Packing
from protocols.paillier.plan import DEFAULT_KEY_BITS, KEY_BITS
from protocols.paillier.public import key_bytes, message_bytes

OPTION = "key_bits"
HIDING_BITS = 40


@dataclass(frozen=True)
class SumLayout:
    """Slots and lengths of one plan. Raises BadParameters on a key size that is not served."""

    plan: SumPlan

    def __post_init__(self) -> None:
        if type(self.key_bits) is not int or self.key_bits not in KEY_BITS:
            raise BadParameters(f"{OPTION} = {str(self.key_bits)[:20]}; there are {', '.join(map(str, KEY_BITS))}")

    @property
    def key_bits(self) -> int:
        """Of the modulus n."""
        bits: int = self.plan.options.get(OPTION, DEFAULT_KEY_BITS)
        return bits

    @property
    def sum_bits(self) -> int:
        """b: the sum of all clients' values in a slot lies below 2^b."""
        return self.plan.bits + (self.plan.clients - 1).bit_length()

    @property
    def packing(self) -> Packing:
        """Slots for masked sums; the packing is one of signed numbers, so a bit more than these have."""
        return Packing.fitting(self.sum_bits + HIDING_BITS + 1, self.key_bits)

    @property
    def ciphertexts(self) -> int:
        """Of one vector."""
        return -(-self.plan.length // self.packing.slots)

    @property
    def key_bytes(self) -> int:
        """The public key on the wire."""
        return key_bytes(self.key_bits)

    @property
    def message_bytes(self) -> int:
        """A vector's ciphertexts on the wire."""
        return message_bytes(self.key_bits, self.ciphertexts)

    def plaintexts(self, values: list[int]) -> Iterator[int]:
        """``length`` values as the numbers that are encrypted."""
        packing = self.packing
        for first in range(0, len(values), packing.slots):
            yield packing.pack(values[first : first + packing.slots])

    def residues(self, plaintexts: list[int]) -> np.ndarray:
        """Decrypted numbers as slots modulo 2^bits: uint64 ``(length,)``.

        Raises PeerMisbehaved where a slot holds more than masked sums can: some client has encrypted another thing
        than a vector.
        """
        packing, values, modulus = self.packing, list[int](), (1 << self.plan.bits) - 1
        for number in plaintexts:
            values += packing.unpack(number, min(packing.slots, self.plan.length - len(values)))
        return np.array([value & modulus for value in values], np.uint64)

    def masks(self) -> list[int]:
        """A fresh mask for every slot, from the operating system."""
        bound = (1 << (self.sum_bits + HIDING_BITS)) - (1 << self.sum_bits)
        return [secrets.randbelow(bound) for _ in range(self.plan.length)]
