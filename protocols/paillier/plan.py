"""What both ends know: key size, how samples share plaintexts, how many bytes go where."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from protocols import circuit as circuits
from protocols.circuit import Affine, Circuit
from protocols.errors import BadParameters, Misuse
from protocols.keyed import KeyedCost, Plan
from protocols.paillier.packing import Packing
from protocols.paillier.public import key_bytes, message_bytes

KEY_BITS = {2048: 112, 3072: 128, 4096: 152}
"""Bits of the modulus -> security strength in bits (NIST SP 800-57 part 1, table 2; 4096: SP 800-56B, appendix D)."""
DEFAULT_KEY_BITS = 3072
MAX_PARTS = 64
MAX_MESSAGE = 48 << 20
MAX_QUESTION = 256 << 20


@dataclass(frozen=True, eq=False)
class PaillierPlan(Plan):
    """A circuit of one affine stage under a key of ``key_bits``.

    Samples of a batch go to *groups* of up to ``packing.slots``; a group is a part of the query: one ciphertext per
    input, sample s in slot s. Its answer puts several outputs into one ciphertext where they fit: output j of a
    ciphertext in slots ``j g .. j g + g - 1`` for a group of g samples.
    """

    circuit: Circuit
    key_bits: int

    def __post_init__(self) -> None:
        if type(self.key_bits) is not int or self.key_bits not in KEY_BITS:
            raise BadParameters(f"key_bits = {str(self.key_bits)[:20]}; there are {', '.join(map(str, KEY_BITS))}")
        if self.circuit.polynomials:
            stage = self.circuit.polynomials[0]
            raise BadParameters(
                f"stage {stage.name!r} is a polynomial of degree {stage.degree}, and Paillier ciphertexts can be added "
                "but not multiplied with each other: it serves one affine map (linear and logistic models). Protocols "
                "'bfv' and 'ckks' serve polynomials"
            )
        if self.bits + 2 > self.key_bits:
            raise BadParameters(
                f"stage {self.stage.name!r}: answers of {self.bits} bits do not fit a plaintext of {self.key_bits}"
            )
        if message_bytes(self.key_bits, self.circuit.inputs) > MAX_MESSAGE:
            raise BadParameters(
                f"stage {self.stage.name!r}: {self.circuit.inputs} inputs, of which each takes a ciphertext of "
                f"{self.key_bits // 4} bytes, are more than the {MAX_MESSAGE >> 20} MiB of one question. 'bfv' puts "
                "thousands of inputs into one ciphertext"
            )

    @property
    def stage(self) -> Affine:
        """The one stage."""
        return self.circuit.affine[0]

    @property
    def bits(self) -> int:
        """Signed bits of the widest value that is ever in a slot: an answer, or an input where all weights are tiny."""
        low, high = self.circuit.low, self.circuit.high
        ends = max(-low - 1 if low < 0 else low, -high - 1 if high < 0 else high)
        return max(self.circuit.bits, ends.bit_length() + 1)

    @cached_property
    def packing(self) -> Packing:
        """Slots of one plaintext."""
        return Packing.fitting(self.bits, self.key_bits)

    @property
    def max_batch(self) -> int:
        """Samples that fit the parts of one query."""
        question = message_bytes(self.key_bits, self.circuit.inputs)
        return self.packing.slots * max(1, min(MAX_PARTS, MAX_QUESTION // question))

    def groups(self, n: int) -> tuple[int, ...]:
        """Samples per part of a batch of n: as few parts as can be, of about equal size."""
        if not 0 <= n <= self.max_batch:
            raise Misuse(f"a batch of {n}; one query takes up to {self.max_batch} inputs")
        parts = -(-n // self.packing.slots)
        return tuple(n // parts + (part < n % parts) for part in range(parts))

    def outputs_together(self, group: int) -> int:
        """Outputs in one answer ciphertext.

        Moving one output up by its slots takes ``width * group`` squarings, at most half of what blinding a ciphertext
        of its own takes, and saves the client a decryption: it pays wherever two fit.
        """
        return min(self.circuit.outputs, self.packing.slots // group)

    def answers(self, group: int) -> int:
        """Ciphertexts in the answer to a group."""
        return -(-self.circuit.outputs // self.outputs_together(group))

    def cost(self, n: int) -> KeyedCost:
        """Exact: what crosses the wire has these lengths."""
        groups = self.groups(n)
        return KeyedCost(
            key_bytes(self.key_bits),
            tuple(message_bytes(self.key_bits, self.circuit.inputs) for _ in groups),
            tuple(message_bytes(self.key_bits, self.answers(group)) for group in groups),
        )

    def to_json(self) -> dict[str, Any]:
        """Circuit and key size; everything else follows."""
        return {"key_bits": self.key_bits, "circuit": circuits.to_json(self.circuit)}

    def facts(self) -> Mapping[str, str]:
        """In the order in which a person asks."""
        one, full, slots = self.cost(1), self.cost(self.packing.slots), self.packing.slots
        few, many = self.answers(1), self.answers(slots)
        return {
            "key": f"{self.key_bits}-bit modulus, made and kept by the client; {one.keys} bytes of public key",
            "security": _strength(self.key_bits),
            "circuit": f"one affine map, {self.circuit.inputs} -> {self.circuit.outputs}; depth 0, no products of "
            "ciphertexts, no noise: nothing can run out",
            "answers": f"{self.circuit.bits} signed bits by proof, exact",
            "slots": f"{slots} samples of {self.packing.width} bits (with a guard bit) in one plaintext",
            "made ahead": f"encryptions of zero, each used once: {self.circuit.inputs} a question at the client, "
            f"{few if few == many else f'{few} to {many}'} an answer at the server",
            "one sample": f"question {one.question} bytes, answer {one.answer} bytes",
            f"{slots} samples": f"question {full.question} bytes, answer {full.answer} bytes",
        }


def _strength(key_bits: int) -> str:
    strength = KEY_BITS[key_bits]
    reason = f"factoring a modulus of {key_bits} bits: {strength}-bit security (NIST SP 800-57)"
    return reason + ("" if strength >= 128 else "; 128 bits take key_bits = 3072")


def read_plan(data: Mapping[str, Any]) -> PaillierPlan:
    """The inverse of ``PaillierPlan.to_json``; raises BadParameters."""
    if not isinstance(data, Mapping) or set(data) != {"key_bits", "circuit"}:
        raise BadParameters("a Paillier plan has the fields key_bits and circuit, no others")
    if type(data["key_bits"]) is not int or not isinstance(data["circuit"], Mapping):
        raise BadParameters("a Paillier plan has an integer key_bits and a circuit")
    return PaillierPlan(circuits.from_json(data["circuit"]), data["key_bits"])
