"""Small signed integers side by side in one large one: ``m = sum_j v_j 2^(width j)``.

Packing is linear: the sum of packed vectors packs the sum of the vectors, and an integer times a packed vector packs
the product, as long as every *final* value fits its slot; what happens in between, even a wrap around the modulus of
the ciphertexts, does not matter. So a slot is as wide as the largest result, not as the inputs: for weighted sums from
the range proof, for sums of T vectors of b-bit values b + ceil(log2(T)) bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from protocols.errors import BadParameters, Misuse, PeerMisbehaved

GUARD = 1
"""Bits per slot above the proven ones: a result outside its proof is seen there before it can reach a neighbour."""


@dataclass(frozen=True)
class Packing:
    """``slots`` values of ``bits`` signed bits each, in slots of ``bits + GUARD`` bits."""

    bits: int
    slots: int

    @staticmethod
    def fitting(bits: int, modulus_bits: int) -> Packing:
        """As many slots as a modulus of exactly ``modulus_bits`` bits has room for.

        bits: of the largest value that a slot will hold in the end, with its sign. The whole, centred around zero,
        stays below half of the smallest such modulus, 2^(modulus_bits - 1). Raises BadParameters where not one fits.
        """
        slots = (modulus_bits - 1) // (bits + GUARD)
        if bits < 1 or slots < 1:
            raise BadParameters(
                f"values of {bits} bits do not fit a plaintext of {modulus_bits} bits, with a guard bit"
            )
        return Packing(bits, slots)

    @property
    def width(self) -> int:
        """Bits from one slot to the next."""
        return self.bits + GUARD

    def pack(self, values: Sequence[int]) -> int:
        """``sum_j v_j 2^(width j)``, a signed integer. Raises Misuse on too many values, or one that does not fit."""
        half = 1 << (self.bits - 1)
        if len(values) > self.slots:
            raise Misuse(f"{len(values)} values for {self.slots} slots")
        total = 0
        for value in reversed(values):
            if not -half <= value < half:
                raise Misuse(f"a value does not fit the {self.bits} signed bits of a slot")
            total = (total << self.width) + value
        return total

    def unpack(self, number: int, count: int) -> list[int]:
        """The first ``count`` values of a packed (signed) number.

        Raises PeerMisbehaved where a slot is outside its ``bits``, or anything lies beyond the last one.
        """
        half, mask = 1 << (self.bits - 1), (1 << self.width) - 1
        # With an offset in every slot no slot borrows from the next one.
        rest = number + sum(half << (self.width * j) for j in range(count))
        out = []
        for _ in range(count):
            digit = rest & mask
            if digit >= 2 * half:
                raise PeerMisbehaved(f"a decrypted slot holds a value of more than its {self.bits} proven bits")
            out.append(digit - half)
            rest >>= self.width
        if rest:
            raise PeerMisbehaved(f"a decrypted number goes on after its {count} values")
        return out
