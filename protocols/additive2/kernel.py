"""What a step looks like from inside: its material, its cost, how the dealer makes it, how a party runs it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from protocols import api, devices, planes, prg, ring, streams
from protocols.additive2.material import (
    Field,
    FieldKey,
    Layout,
    PartyKeys,
    PartyMaterial,
    as_planes,
    as_words,
    table_positions,
)
from protocols.cost import Cost
from protocols.errors import PeerMisbehaved
from protocols.rounds import PartyId, Round, Steps
from protocols.streams import Rows

S = TypeVar("S", bound=api.Step)


class Party:
    """One compute party during one run: its material, its part of the model, and its voice."""

    def __init__(self, party: PartyId, material: PartyMaterial, operands: Mapping[str, Any]) -> None:
        self.id, self.material, self.operands = party, material, operands
        self.peer = PartyId.P1 if party is PartyId.P0 else PartyId.P0
        self.n, self.device = material.n, material.device
        self.masks: dict[str, Tensor] = {}  # share of the mask of each opened value, by the name of its Open step

    @property
    def first(self) -> bool:
        """Whether this party adds the public constants."""
        return self.id is PartyId.P0

    def open(self, label: str, share: Tensor, bits: int, mask: Tensor | None = None) -> Steps[Tensor]:
        """Open an additively shared value mod 2^bits, less the shared mask: one exchange, ``bits`` each way."""
        x = share.reshape(-1)
        y = None if mask is None else mask.reshape(-1)
        message = ring.pack(x, bits) if y is None else ring.pack_difference(x, y, bits)
        received = (yield Round({self.peer: message.data}, (self.peer,), label))[self.peer]
        opened = (
            x + ring.unpack(received, bits, len(x), x.device) if y is None else ring.unpack_sum(received, bits, x, y)
        )
        return opened.reshape(share.shape)

    def swap_planes(self, label: str, share: Tensor) -> Steps[Tensor]:
        """Exchange planes ``(bits, width)`` and return the peer's: one exchange, one bit each way for a value's bit."""
        message = devices.to_host(share).data.cast("B") if share.numel() else b""
        received = yield Round({self.peer: message}, (self.peer,), label)
        raw = prg.writable(received[self.peer])
        if raw.size != share.numel():
            raise PeerMisbehaved(f"{label}: {share.numel()} bytes of planes were due, but {raw.size} came")
        return devices.from_host(raw, share.device).reshape(share.shape)

    def open_planes(self, label: str, share: Tensor) -> Steps[Tensor]:
        """Open xor-shared planes: one exchange."""
        other = yield from self.swap_planes(label, share)
        return share ^ other


class Dealing(prg.Secret):
    """The dealer's side of items ``first .. first+n-1``: reads all streams and fills P1's records, where those lie."""

    def __init__(
        self,
        layout: Layout,
        keys: Mapping[PartyId, PartyKeys],
        expanded: Mapping[PartyId, Rows],
        first: int,
        device: torch.device = devices.CPU,
    ) -> None:
        self._layout, self._keys, self._streams, self._first = layout, keys, expanded, first
        self.n, self.device = expanded[PartyId.P0].shape[0], device
        # zeros: whatever a step left unwritten must not be what this process had in its memory
        self.record = streams.zeros(self.n, layout.record_bytes, device)
        self.masks: dict[str, Tensor] = {}
        self.operands: Mapping[str, Any] = {}

    def _share(self, party: PartyId, key: FieldKey, f: Field) -> Tensor:
        if not f.stream_bytes(party):
            return torch.zeros((self.n, f.count), dtype=ring.word(f.bits), device=self.device)
        return as_words(self._streams[party], self._layout.stream_at[party][key], f, self.n)

    def mask(self, step: str, name: str) -> Tensor:
        """The value of a MASK field, ``r = r_0 + r_1``, or of an OWN field, ``r = r_1``: ``(n, count)``."""
        key = (step, name)
        f = self._layout.fields[key]
        return self._share(PartyId.P0, key, f) + self._share(PartyId.P1, key, f)

    def give(self, step: str, name: str, value: Tensor) -> None:
        """Share ``value`` additively mod 2^bits: P0's share is in its stream, P1's becomes ``value - share``."""
        f = self._layout.fields[(step, name)]
        self._write(step, name, ring.to_word(value, f.bits) - self._share(PartyId.P0, (step, name), f))

    def give_lines(self, step: str, name: str, parts: int, made: Callable[[Tensor], Tensor]) -> None:
        """Share ``parts`` lines of all items' values: ``made`` turns P0's lines into P1's, the values less P0's."""
        f = self._layout.fields[(step, name)]
        first = planes.lines(self._share(PartyId.P0, (step, name), f), parts)
        second = made(first).reshape(parts, self.n, -1) if first.numel() else first.reshape(parts, self.n, 0)
        self._write(step, name, second.transpose(0, 1).reshape(self.n, f.count))

    def own(self, step: str, name: str) -> Tensor:
        """Planes of a DEALER field: ``(bits, n * width(count))`` uniform bits that nobody else knows."""
        key = (step, name)
        at = self._layout.stream_at[PartyId.DEALER][key]
        return as_planes(self._streams[PartyId.DEALER], at, self._layout.fields[key], self.n)

    def give_planes(self, step: str, name: str, made: Callable[[Tensor], Tensor]) -> None:
        """Xor-share planes: ``made`` turns P0's planes into P1's, which are the value's xor P0's."""
        key = (step, name)
        f, at = self._layout.fields[key], self._layout.record_at[key]
        if not f.record_bytes or not self.n:
            return
        first = as_planes(self._streams[PartyId.P0], self._layout.stream_at[PartyId.P0][key], f, self.n)
        rows = made(first).reshape(f.bits, self.n, planes.width(f.count))
        target = self.record[:, at : at + f.record_bytes].reshape(self.n, *rows.shape[::2])
        if isinstance(target, Tensor):
            target.copy_(rows.transpose(0, 1))
        else:
            target[...] = rows.numpy().swapaxes(0, 1)

    def give_table(self, step: str, name: str, tables: Tensor) -> None:
        """Share tables ``(n, count, entries)``; the entries of P0 are computed here once, by P0 only where it reads."""
        key = (step, name)
        f = self._layout.fields[key]
        secret = self._keys[PartyId.P0].tables
        if secret is None or tables.numel() == 0:
            return
        base = table_positions(self._layout, key, self._first, self.n, self.device)
        blocks = base.unsqueeze(2) + torch.arange(f.table_blocks, device=self.device)
        own = streams.blocks_at(secret, blocks).view(ring.word(f.bits)).flatten(2)[..., : f.entries]
        self._write(step, name, (ring.to_word(tables, f.bits) - own).flatten(1))

    def _write(self, step: str, name: str, value: Tensor) -> None:
        key = (step, name)
        f, at = self._layout.fields[key], self._layout.record_at[key]
        if value.numel():
            if isinstance(self.record, Tensor):
                self.record[:, at : at + f.record_bytes] = ring.packed(value, f.bits)
            else:
                self.record[:, at : at + f.record_bytes] = ring.pack(value, f.bits)


class Kernel(ABC, Generic[S]):
    """How ``additive2`` computes one kind of step. Stateless; shares are ``(n, count)``."""

    @abstractmethod
    def fields(self, step: S) -> tuple[Field, ...]:
        """Material per item."""

    def parts(self, step: S) -> list[tuple[str, Kernel[Any], api.Step]]:
        """Steps that this one is made of, by suffix of its name; their fields and costs are added to its own."""
        return []

    @abstractmethod
    def online(self, step: S, n: int) -> Cost:
        """Exchanges and bits for a batch of n (``dealt_bits`` left at 0: they follow from the fields)."""

    @abstractmethod
    def deal(self, step: S, name: str, inputs: tuple[str, ...], d: Dealing) -> None:
        """Fill this step's fields for all items of ``d``."""

    @abstractmethod
    def prepare(self, step: S, name: str, inputs: tuple[str, ...], p: Party) -> Any:
        """The party's offline work: read the material, compute what does not depend on the input."""

    @abstractmethod
    def run(self, step: S, name: str, p: Party, ready: Any, x: Tensor) -> Steps[Tensor]:
        """The online part: ``x`` is the party's share of the step's input."""

    def cost(self, step: S, n: int) -> Cost:
        """Everything this step costs for a batch of n, its parts included."""
        own = self.online(step, n) + Cost(dealt_bits=8 * n * sum(f.record_bytes for f in self.fields(step)))
        return sum((kernel.cost(sub, n) for _, kernel, sub in self.parts(step)), own)

    def all_fields(self, step: S, name: str) -> dict[str, tuple[Field, ...]]:
        """Fields of this step and of its parts, by the name under which they are dealt."""
        out = {name: self.fields(step)}
        for part, kernel, sub in self.parts(step):
            out |= kernel.all_fields(sub, f"{name}/{part}")
        return out
