"""What a client needs of a program: the shape of question and answer, and the digest that names the whole.

The client's file holds this and nothing of the layers. The digest is a hash over the interface and the hash of the
instructions, so that who holds only the interface can check it, and talks to servers that hold the same program or
to none.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import protocols
from protocols.api import SecurityStatement
from protocols.protocol import Protocol
from protocols.rounds import PartyId


class Spoken:
    """What follows from the name of the protocol."""

    protocol: str

    @cached_property
    def backend(self) -> Protocol:
        """The protocol's object."""
        return protocols.get(self.protocol)

    @property
    def parties(self) -> tuple[PartyId, ...]:
        """Who computes."""
        return self.backend.parties

    @property
    def needs_dealer(self) -> bool:
        """Whether an offline dealer takes part."""
        return self.backend.needs_dealer


@dataclass(frozen=True)
class Interface(Spoken):
    """Question and answer of a program.

    visibilities: of the weights, each that occurs once, in the order of ``protocols.api.VISIBILITIES``.
    instructions_digest: SHA-256 of what lies between, hex. noise: the most by which noise moves an integer of the
    answer, either way; 0 where there is none.
    """

    protocol: str
    input_shape: tuple[int, ...]
    input_ring: int
    output_shape: tuple[int, ...]
    output_ring: int
    exact: bool
    visibilities: tuple[str, ...]
    instructions_digest: str
    noise: int = 0

    @property
    def security(self) -> SecurityStatement:
        """Against whom, and who learns what."""
        return self.backend.statement(self.visibilities, self.noise)

    @cached_property
    def digest(self) -> str:
        """The program's digest: SHA-256 of the interface's canonical JSON, hex."""
        return canonical_digest(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """Plain data without any secret."""
        return {
            "protocol": self.protocol,
            "exact": self.exact,
            "visibilities": list(self.visibilities),
            "input": {"shape": list(self.input_shape), "ring": self.input_ring},
            "output": {"shape": list(self.output_shape), "ring": self.output_ring},
            "instructions_sha256": self.instructions_digest,
            **({"noise": self.noise} if self.noise else {}),
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Interface:
        """An interface from plain data; raises :class:`ProgramError` on anything that is not one."""
        from pqi.program import serial

        return serial.decode_interface(data)


def canonical_digest(data: Any) -> str:
    """SHA-256 of canonical JSON, hex."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
