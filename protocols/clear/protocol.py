"""``clear`` as a protocol: one server that sees everything. No secrecy; for reference and debugging."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from protocols import ring
from protocols.api import SecurityStatement, Step
from protocols.clear.define import define
from protocols.cost import Cost
from protocols.devices import CPU
from protocols.errors import BadParameters, Misuse
from protocols.prg import Random
from protocols.protocol import NamedStep, PartyRole, Protocol
from protocols.rounds import PartyId, Steps


class ClearServer(PartyRole):
    """Computes on plaintext values with plaintext operands."""

    def __init__(self, stored: Mapping[str, Tensor]) -> None:
        self.operands: dict[str, dict[str, Tensor]] = {}
        for key, value in stored.items():
            step, _, operand = key.rpartition(".")
            self.operands.setdefault(step, {})[operand] = value

    def prepare(self, keys: bytes, first: int, n: int, corrections: bytes | bytearray | memoryview) -> None:
        """Nothing to prepare."""
        return

    def unused_keys(self) -> bytes:
        """There are none."""
        return b""

    def run_step(self, ready: None, name: str, step: Step, x: Tensor) -> Steps[Tensor]:
        """The definition itself."""
        yield from ()
        return define(step, x, self.operands.get(name, {}))


class Clear(Protocol):
    """One party, no dealer, no cost, no secrecy."""

    name: ClassVar[str] = "clear"
    parties: ClassVar[tuple[PartyId, ...]] = (PartyId.P0,)
    needs_dealer: ClassVar[bool] = False
    exact: ClassVar[bool] = True
    clamp_headroom: ClassVar[int] = ring.MAX_BITS
    security: ClassVar[SecurityStatement] = SecurityStatement(
        adversary="nobody: this is plaintext computation, for reference and debugging only",
        learns={"server A": "everything: the model, the input and the answer", "client": "its answer"},
    )

    def cost(self, step: Step, n: int) -> Cost:
        """Nothing is exchanged."""
        return Cost()

    def record_bytes(self, steps: Sequence[NamedStep]) -> int:
        """Nothing is dealt."""
        return 0

    def share_operands(
        self, name: str, step: Step, operands: Mapping[str, Tensor], rng: Random
    ) -> dict[PartyId, dict[str, Tensor]]:
        """Operands as they are."""
        return {PartyId.P0: {f"{name}.{key}": value for key, value in operands.items()}}

    def party(
        self, steps: Sequence[NamedStep], party: PartyId, stored: Mapping[str, Tensor], device: torch.device = CPU
    ) -> ClearServer:
        """The server; what defines the results is computed on the processor."""
        if device.type != "cpu":
            raise BadParameters(f"protocol 'clear' computes on the cpu only, not on {device}; additive2 computes there")
        if party is not PartyId.P0:
            raise Misuse(f"protocol 'clear' has one party, P0; not {party}")
        return ClearServer(stored)

    def share_input(self, x: Tensor, bits: int) -> dict[PartyId, Tensor]:
        """The value itself."""
        return {PartyId.P0: ring.to_word(x, bits)}

    def reconstruct(self, shares: Mapping[PartyId, Tensor], bits: int) -> Tensor:
        """The value itself."""
        return ring.centred(shares[PartyId.P0], bits)
