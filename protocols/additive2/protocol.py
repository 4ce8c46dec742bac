"""``additive2`` as a protocol: its statement, its roles, how inputs are shared and answers put together."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from protocols import api, devices, ring
from protocols.additive2.compare import MAX_TOP
from protocols.additive2.dealing import KERNELS, Dealer, Ready, layout, prepare_party, run_step
from protocols.additive2.linear import check_part, prepare_operands, share_operands
from protocols.additive2.material import PartyKeys
from protocols.additive2.statement import security_statement
from protocols.api import SecurityStatement, Step
from protocols.cost import Cost
from protocols.errors import Misuse
from protocols.noise import check_law
from protocols.prg import Random, Spent
from protocols.protocol import DealerRole, NamedStep, PartyRole, Protocol
from protocols.rounds import PartyId, Steps


def _digest_operands(steps: Sequence[NamedStep], stored: Mapping[str, Tensor]) -> dict[str, Any]:
    """Stored tensors, where they are to be used, in the form the kernels want: digits for the int8 units, tables and
    laws of noise as they are."""
    out: dict[str, Any] = {}
    for name, step, _ in steps:
        if isinstance(step, api.Linear):
            out |= prepare_operands(name, step, stored)
        elif isinstance(step, (api.Table, api.FusedTable)) and (table := stored.get(f"{name}.table")) is not None:
            bits = step.bits if isinstance(step, api.Table) else step.ring - step.shift
            if table.shape != (step.channels, 1 << bits) or table.dtype is not torch.int64:
                raise Misuse(f"the table of {name!r} must be int64 of shape {(step.channels, 1 << bits)}")
            out[f"{name}.table"] = table
        elif isinstance(step, api.Noise) and (law := stored.get(f"{name}.law")) is not None:
            out[f"{name}.law"] = law
    return out


def _check_laws(steps: Sequence[NamedStep], stored: Mapping[str, Tensor]) -> None:
    """The dealer has a law for every noise. Looked at before it is put on a device, which is not asked for values."""
    for name, step, _ in steps:
        if isinstance(step, api.Noise):
            if f"{name}.law" not in stored:
                raise Misuse(f"the dealer lacks the law of the noise {name!r}; the bundle is of another program")
            check_law(stored[f"{name}.law"], step.bound, name)


def _placed(stored: Mapping[str, Tensor], device: torch.device) -> Mapping[str, Tensor]:
    """What a role stores, on its device."""
    return {name: devices.place(tensor, device) for name, tensor in stored.items()}


class AdditiveDealer(DealerRole):
    """One epoch of the dealer."""

    def __init__(
        self,
        steps: Sequence[NamedStep],
        stored: Mapping[str, Tensor],
        epoch: bytes | None = None,
        device: torch.device = devices.CPU,
    ) -> None:
        check_part(steps, PartyId.DEALER, stored)
        _check_laws(steps, stored)
        self._dealer = Dealer(steps, _digest_operands(steps, _placed(stored, device)), epoch, device)

    def keys_for(self, party: PartyId) -> bytes:
        """K_0 (two keys) or K_1."""
        return self._dealer.keys[party].expose_for_sending()

    def deal(self, first: int, n: int) -> memoryview:
        """Corrections, record after record."""
        return self._dealer.deal(first, n)

    def expose_epoch(self) -> bytes:
        """The keys of P0, of P1 and of the dealer itself."""
        return self._dealer.expose_epoch()


class AdditiveParty(PartyRole):
    """P0 or P1 with its share of the model."""

    def __init__(
        self, steps: Sequence[NamedStep], party: PartyId, stored: Mapping[str, Tensor], device: torch.device
    ) -> None:
        check_part(steps, party, stored)
        self._steps, self._party, self._layout, self._device = list(steps), party, layout(steps), device
        self.operands = _digest_operands(steps, _placed(stored, device))
        self._spent = Spent()

    def prepare(self, keys: bytes, first: int, n: int, corrections: bytes | bytearray | memoryview) -> Ready:
        """Expand and pre-multiply. Raises :class:`Misuse` for an item that this party has prepared before."""
        own = PartyKeys.receive(self._party, keys)
        self._spent.claim(keys, first, n)
        where, operands = self._layout, self.operands
        return prepare_party(self._steps, where, self._party, own, operands, first, n, corrections, self._device)

    def unused_keys(self) -> bytes:
        """Fresh, and thrown away."""
        return PartyKeys.fresh(self._party).expose_for_sending()

    def run_step(self, ready: Ready, name: str, step: Step, x: Tensor) -> Steps[Tensor]:
        """One step online."""
        return run_step(ready, name, step, x)


class Additive2(Protocol):
    """Two compute parties and an offline dealer; exact (unless a stochastic shift is asked for); semi-honest."""

    name: ClassVar[str] = "additive2"
    parties: ClassVar[tuple[PartyId, ...]] = (PartyId.P0, PartyId.P1)
    needs_dealer: ClassVar[bool] = True
    exact: ClassVar[bool] = True
    device_kinds: ClassVar[tuple[str, ...]] = ("cpu", "cuda")
    clamp_headroom: ClassVar[int] = MAX_TOP
    security: ClassVar[SecurityStatement] = security_statement(("shared",))

    def statement(self, visibilities: Collection[str], noise: int = 0) -> SecurityStatement:
        """See :mod:`protocols.additive2.statement`."""
        return security_statement(visibilities, noise)

    def cost(self, step: Step, n: int) -> Cost:
        """As the step's kernel declares it."""
        return KERNELS[type(step)].cost(step, n)

    def record_bytes(self, steps: Sequence[NamedStep]) -> int:
        """From the layout."""
        return layout(steps).record_bytes

    def share_operands(
        self, name: str, step: Step, operands: Mapping[str, Tensor], rng: Random
    ) -> dict[PartyId, dict[str, Tensor]]:
        """Weights as their visibility says; tables and laws of noise go to the dealer alone."""
        if isinstance(step, api.Linear):
            return share_operands(name, step, operands["weight"], operands["bias"], rng)
        return {PartyId.DEALER: {f"{name}.{key}": value for key, value in operands.items()}}

    def dealer(
        self,
        steps: Sequence[NamedStep],
        stored: Mapping[str, Tensor],
        epoch: bytes | None = None,
        device: torch.device = devices.CPU,
    ) -> AdditiveDealer:
        """A new epoch, or one begun elsewhere."""
        return AdditiveDealer(steps, stored, epoch, device)

    def party(
        self,
        steps: Sequence[NamedStep],
        party: PartyId,
        stored: Mapping[str, Tensor],
        device: torch.device = devices.CPU,
    ) -> AdditiveParty:
        """P0 or P1."""
        if party not in self.parties:
            raise Misuse(f"protocol 'additive2' computes at P0 and P1, not at {party}")
        return AdditiveParty(steps, party, stored, device)

    def share_input(self, x: Tensor, bits: int) -> dict[PartyId, Tensor]:
        """``x_0`` uniform from the operating system's randomness, ``x_1 = x - x_0``."""
        first = Random().words(tuple(x.shape), bits)
        return {PartyId.P0: first, PartyId.P1: ring.to_word(x, bits) - first}

    def reconstruct(self, shares: Mapping[PartyId, Tensor], bits: int) -> Tensor:
        """``y_0 + y_1``."""
        return ring.centred(shares[PartyId.P0] + shares[PartyId.P1], bits)
