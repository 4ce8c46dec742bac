"""The dealer and the parties of a whole list of steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from protocols import api, devices, streams
from protocols.additive2.clamp import ClampKernel, SignKernel
from protocols.additive2.kernel import Dealing, Kernel, Party
from protocols.additive2.lift import LiftKernel
from protocols.additive2.linear import LinearKernel, OpenKernel
from protocols.additive2.material import Layout, PartyKeys, PartyMaterial, epoch_keys
from protocols.additive2.noise import NoiseKernel
from protocols.additive2.quick import QuickClampKernel
from protocols.additive2.select import MaximumKernel, ReluKernel
from protocols.additive2.shift import ShiftKernel
from protocols.additive2.table import FusedTableKernel, TableKernel
from protocols.errors import Misuse
from protocols.prg import Secret
from protocols.protocol import NamedStep
from protocols.rounds import PartyId, Steps

KERNELS: dict[type[api.Step], Kernel[Any]] = {
    api.Open: OpenKernel(),
    api.Linear: LinearKernel(),
    api.Shift: ShiftKernel(),
    api.Table: TableKernel(),
    api.FusedTable: FusedTableKernel(),
    api.Clamp: ClampKernel(),
    api.QuickClamp: QuickClampKernel(),
    api.Lift: LiftKernel(),
    api.Sign: SignKernel(),
    api.Relu: ReluKernel(),
    api.Maximum: MaximumKernel(),
    api.Noise: NoiseKernel(),
}


def layout(steps: Sequence[NamedStep]) -> Layout:
    """Where every field of a list of steps lies; the same for the dealer and both parties."""
    fields: dict[str, Any] = {}
    for name, step, _ in steps:
        fields |= KERNELS[type(step)].all_fields(step, name)
    return Layout(fields)


class Dealer(Secret):
    """Makes items. Holds weight masks and tables; never sees an input, a weight or online traffic.

    operands: prepared masks B of linear steps and tables, by name. One dealer object is one epoch: fresh keys, items
    from 0 upwards, each dealt once. epoch: the secret of an epoch begun elsewhere (:meth:`expose_epoch`), for those who
    deal parts of it; what is dealt depends on it and on the item's number alone. device: where it deals.
    """

    def __init__(
        self,
        steps: Sequence[NamedStep],
        operands: Mapping[str, Any],
        epoch: bytes | None = None,
        device: torch.device = devices.CPU,
    ) -> None:
        self._steps, self._operands, self._layout = list(steps), operands, layout(steps)
        self.keys = epoch_keys(epoch)
        blocks = self._layout.stream_blocks
        self._streams = {p: streams.Stream(k.stream, blocks[p], device) for p, k in self.keys.items()}
        self._device = device

    @property
    def record_bytes(self) -> int:
        """Bytes per item for P1."""
        return self._layout.record_bytes

    def expose_epoch(self) -> bytes:
        """All keys of the epoch, for the dealer's own workers over private channels."""
        return b"".join(keys.expose_for_sending() for keys in self.keys.values())

    def deal(self, first: int, n: int) -> memoryview:
        """P1's corrections for items ``first .. first+n-1``; raises :class:`Misuse` if one of them was dealt before."""
        expanded = {p: s.take(first, n) for p, s in self._streams.items()}
        d = Dealing(self._layout, self.keys, expanded, first, self._device)
        d.operands = self._operands
        for name, step, inputs in self._steps:
            KERNELS[type(step)].deal(step, name, inputs, d)
        record = devices.to_host(d.record) if isinstance(d.record, Tensor) else d.record
        return record.reshape(-1).data  # where it lies: it can be hundreds of megabytes


@dataclass(frozen=True, repr=False, eq=False)
class Ready(Secret):
    """A party with its material expanded for n items: everything offline is done. Good for one run."""

    party: Party
    material: dict[str, Any]

    @property
    def n(self) -> int:
        """Items."""
        n: int = self.party.n
        return n


def prepare_party(
    steps: Sequence[NamedStep],
    where: Layout,
    party: PartyId,
    keys: PartyKeys,
    operands: Mapping[str, Any],
    first: int,
    n: int,
    corrections: bytes | bytearray | memoryview,
    device: torch.device = devices.CPU,
) -> Ready:
    """A party's offline work for items ``first .. first+n-1``: expand, unpack, and the products ``E . r``.

    The caller guarantees that these items were never prepared before; the corrections are P1's only.
    """
    stream = streams.records(keys.stream, where.stream_blocks[party], first, n, device)
    material = PartyMaterial(where, party, stream, keys.tables, first, corrections, device)
    p = Party(party, material, operands)
    return Ready(p, {name: KERNELS[type(step)].prepare(step, name, inputs, p) for name, step, inputs in steps})


def run_step(ready: Ready, name: str, step: api.Step, x: Tensor) -> Steps[Tensor]:
    """Online part of one step; its material is spent afterwards, whatever happens."""
    if name not in ready.material:
        raise Misuse(f"step {name!r} was already run with this material, or was never prepared")
    return (yield from KERNELS[type(step)].run(step, name, ready.party, ready.material.pop(name), x))
