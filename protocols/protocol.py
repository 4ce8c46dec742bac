"""What every protocol is: who computes, what it can do, what it costs, and its roles."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from protocols.api import SecurityStatement, Step
from protocols.cost import Cost
from protocols.devices import CPU
from protocols.errors import Misuse
from protocols.prg import Random
from protocols.rounds import PartyId, Steps

NamedStep = tuple[str, Step, tuple[str, ...]]
"""A step, its name in the program, and the names of the steps whose results it takes."""


class DealerRole(ABC):
    """Makes one-time material; one object is one epoch with fresh keys."""

    @abstractmethod
    def keys_for(self, party: PartyId) -> bytes:
        """Secret key bytes for a party, to be sent over an encrypted channel once."""

    @abstractmethod
    def deal(self, first: int, n: int) -> bytes | memoryview:
        """P1's corrections for items ``first .. first+n-1``; each item is dealt once."""

    @abstractmethod
    def expose_epoch(self) -> bytes:
        """All keys of the epoch, for workers of the dealer that make parts of it: same secret and items, same bytes."""


class PartyRole(ABC):
    """A compute party with its part of the model. operands: that part, by step, as steps use it; its own affair."""

    operands: Mapping[str, Any]

    @abstractmethod
    def prepare(self, keys: bytes, first: int, n: int, corrections: bytes | bytearray | memoryview) -> Any:
        """Offline work for items ``first .. first+n-1``; the result is good for one run."""

    @abstractmethod
    def unused_keys(self) -> bytes:
        """Keys of an epoch that nobody deals, for a rehearsal."""

    @abstractmethod
    def run_step(self, ready: Any, name: str, step: Step, x: Tensor) -> Steps[Tensor]:
        """Online part of one step on this party's form of x."""


class Protocol(ABC):
    """A way to compute steps. Stateless; roles are made from it."""

    name: ClassVar[str]
    parties: ClassVar[tuple[PartyId, ...]]
    needs_dealer: ClassVar[bool]
    exact: ClassVar[bool]
    device_kinds: ClassVar[tuple[str, ...]] = ("cpu",)  # kinds of devices that its roles compute on
    clamp_headroom: ClassVar[int]  # how many bits above the code one Clamp can look at; compilers stage wider ones
    security: ClassVar[SecurityStatement]

    def statement(self, visibilities: Collection[str], noise: int = 0) -> SecurityStatement:
        """Against whom, and who learns what, where the weights are of these visibilities (``security``: shared).

        noise: the bound of the noise in answers; 0, if there is none.
        """
        return self.security

    @abstractmethod
    def cost(self, step: Step, n: int) -> Cost:
        """Declared cost of a step for a batch of n."""

    @abstractmethod
    def record_bytes(self, steps: Sequence[NamedStep]) -> int:
        """Dealt bytes per item for P1."""

    @abstractmethod
    def share_operands(
        self, name: str, step: Step, operands: Mapping[str, Tensor], rng: Random
    ) -> dict[PartyId, dict[str, Tensor]]:
        """Model owner: a step's operands (int64) -> what each role stores."""

    @abstractmethod
    def party(
        self, steps: Sequence[NamedStep], party: PartyId, stored: Mapping[str, Tensor], device: torch.device = CPU
    ) -> PartyRole:
        """A compute party from what its bundle stores, which is put on ``device``; all its work is done there."""

    def dealer(
        self,
        steps: Sequence[NamedStep],
        stored: Mapping[str, Tensor],
        epoch: bytes | None = None,
        device: torch.device = CPU,
    ) -> DealerRole:
        """The dealer of a new epoch, from what its bundle stores; or of one begun elsewhere, from its secret."""
        raise Misuse(f"protocol {self.name!r} has no dealer")

    @abstractmethod
    def share_input(self, x: Tensor, bits: int) -> dict[PartyId, Tensor]:
        """Input owner: x (int64) -> each compute party's form of ``<x>_bits``."""

    @abstractmethod
    def reconstruct(self, shares: Mapping[PartyId, Tensor], bits: int) -> Tensor:
        """Receiver: the parties' shares of ``<y>_bits`` -> centred int64."""
