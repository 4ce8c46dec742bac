"""One-time material: what the dealer makes, how it is laid out, and how each party reads it.

Material comes in *items*, numbered from 0 within an *epoch*; an item serves one input through the whole program. Every
step declares fields, and a field is one of

=======  =============================================================================================================
MASK     uniform and unknown to anybody as a whole: P0 expands its part from K_0, P1 from K_1; no traffic
OWN      uniform and known to P1 alone, which expands it from K_1; P0 has no part of it; no traffic
DEALT    shared by the dealer: P0 expands its share from K_0, P1 receives the correction (``bits`` each)
BITS     the same for single bits, xor-shared and laid out as ``bits`` planes of ``count`` values
DEALER   ``bits`` planes of ``count`` uniform bits that the dealer alone knows; no traffic
TABLE    ``entries`` shared values of which one is ever read, at a *public* index: P0 computes that one entry from a
         second key (one AES block), P1 receives all entries
=======  =============================================================================================================

P0 therefore receives nothing but its keys, once per epoch. Keys live in memory only: when a process dies, the epoch
dies with it, and no position of a key stream can ever come again. (TinyTable, Damgård et al. 2017, for the one-time
tables.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
import torch
from torch import Tensor

from protocols import devices, planes, prg, ring, streams
from protocols.errors import MaterialExhausted, Misuse, PeerMisbehaved
from protocols.rounds import PartyId
from protocols.streams import Rows


class Kind(Enum):
    """How a field reaches the two parties."""

    MASK = "mask"
    OWN = "own"
    DEALT = "dealt"
    BITS = "bits"
    DEALER = "dealer"
    TABLE = "table"


@dataclass(frozen=True)
class Field:
    """``count`` values of ``bits`` bits per item (for TABLE: ``count`` tables of ``entries`` values)."""

    name: str
    kind: Kind
    count: int
    bits: int
    entries: int = 1

    @property
    def record_bytes(self) -> int:
        """Bytes per item in the message to P1."""
        if self.kind is Kind.BITS:
            return self.bits * planes.width(self.count)
        if self.kind in (Kind.DEALT, Kind.TABLE):
            return ring.packed_bytes(self.count * self.entries, self.bits)
        return 0

    def stream_bytes(self, party: PartyId) -> int:
        """Bytes per item in this role's key stream: whole words and planes, ready for use as they come."""
        if self.kind not in _EXPANDS[party]:
            return 0
        plain = self.kind in (Kind.BITS, Kind.DEALER)
        return self.bits * planes.width(self.count) if plain else self.count * ring.word(self.bits).itemsize

    @property
    def lanes(self) -> int:
        """Entries per AES block of the table stream."""
        return 8 if self.bits <= 16 else 4

    @property
    def table_blocks(self) -> int:
        """AES blocks of one table (0 for other kinds)."""
        return -(-self.entries // self.lanes) if self.kind is Kind.TABLE else 0


_EXPANDS = {
    PartyId.P0: (Kind.MASK, Kind.DEALT, Kind.BITS),
    PartyId.P1: (Kind.MASK, Kind.OWN),
    PartyId.DEALER: (Kind.DEALER,),
}
FieldKey = tuple[str, str]


class Layout:
    """Where each field of each step lies in an item's record and in the parties' key streams; public."""

    def __init__(self, fields: Mapping[str, Sequence[Field]]) -> None:
        self.fields: dict[FieldKey, Field] = {}
        self.record_at: dict[FieldKey, int] = {}
        self.stream_at: dict[PartyId, dict[FieldKey, int]] = {p: {} for p in _EXPANDS}
        self.table_at: dict[FieldKey, int] = {}
        record, stream, table = 0, dict.fromkeys(_EXPANDS, 0), 0
        for step, declared in fields.items():
            for f in declared:
                key = (step, f.name)
                self.fields[key], self.record_at[key], self.table_at[key] = f, record, table
                record += f.record_bytes
                table += f.count * f.table_blocks
                for p in stream:
                    self.stream_at[p][key] = stream[p]
                    stream[p] += -(-f.stream_bytes(p) // prg.BLOCK) * prg.BLOCK  # words begin at whole blocks
        self.record_bytes, self.table_blocks = record, table
        self.stream_blocks = {p: max(1, -(-size // prg.BLOCK)) for p, size in stream.items()}


@dataclass(frozen=True, repr=False, eq=False)
class PartyKeys(prg.Secret):
    """A party's keys of one epoch: the field stream, and (P0 only) the table stream."""

    stream: prg.Key
    tables: prg.Key | None

    @classmethod
    def fresh(cls, party: PartyId) -> PartyKeys:
        """Keys from the operating system, for a new epoch."""
        return cls(prg.Key.fresh(), prg.Key.fresh() if party is PartyId.P0 else None)

    def expose_for_sending(self) -> bytes:
        """Raw bytes for the encrypted channel to this party."""
        return self.stream.expose_for_sending() + (self.tables.expose_for_sending() if self.tables is not None else b"")

    @classmethod
    def receive(cls, party: PartyId, raw: bytes) -> PartyKeys:
        """Keys as the dealer sent them; raises :class:`PeerMisbehaved` on a wrong length."""
        want = prg.KEY_BYTES * (2 if party is PartyId.P0 else 1)
        if len(raw) != want:
            raise PeerMisbehaved(f"keys for {party} take {want} bytes, but {len(raw)} came")
        tables = prg.Key(raw[prg.KEY_BYTES :]) if party is PartyId.P0 else None
        return cls(prg.Key(raw[: prg.KEY_BYTES]), tables)


def epoch_keys(secret: bytes | None = None) -> dict[PartyId, PartyKeys]:
    """Keys of P0, of P1 and of the dealer itself: fresh, or those of an epoch's secret (their bytes in this order)."""
    if secret is None:
        return {party: PartyKeys.fresh(party) for party in _EXPANDS}
    out, at = {}, 0
    for party in _EXPANDS:
        size = prg.KEY_BYTES * (2 if party is PartyId.P0 else 1)
        out[party] = PartyKeys.receive(party, secret[at : at + size])
        at += size
    if at != len(secret):
        raise Misuse(f"the secret of an epoch has {at} bytes, not {len(secret)}")
    return out


class PartyMaterial(prg.Secret):
    """One party's material for items ``first .. first+n-1``; every field is read at most once.

    It lies on ``device``, where the party's ``stream`` is.
    """

    def __init__(
        self,
        layout: Layout,
        party: PartyId,
        stream: Rows,
        tables: prg.Key | None,
        first: int,
        corrections: bytes | bytearray | memoryview,
        device: torch.device = devices.CPU,
    ) -> None:
        self._layout, self._party, self._stream, self._tables = layout, party, stream, tables
        self._first, self.n, self.device = first, stream.shape[0], device
        self._spent: set[FieldKey] = set()
        want = self.n * layout.record_bytes if party is PartyId.P1 else 0
        if len(corrections) != want:
            raise MaterialExhausted(
                f"{self.n} items for {party} take {want} dealt bytes, but {len(corrections)} are there; "
                "the dealer runs another program, or has not delivered yet"
            )
        raw = prg.writable(corrections)
        record: Rows = raw if device.type == "cpu" else devices.from_host(raw, device)
        self._record = record.reshape(self.n, layout.record_bytes if want else 0)

    def _key(self, step: str, name: str) -> tuple[FieldKey, Field]:
        key = (step, name)
        if key in self._spent:
            raise Misuse(f"material {name!r} of step {step!r} was already used; one-time material is used once")
        self._spent.add(key)
        return key, self._layout.fields[key]

    def take(self, step: str, name: str) -> Tensor:
        """This party's share of a field: words ``(n, count)``; of BITS: planes ``(bits, n * width(count))``."""
        key, f = self._key(step, name)
        if f.kind in (Kind.DEALT, Kind.BITS) and self._party is PartyId.P1:
            raw, at = self._record, self._layout.record_at[key]
            if f.kind is Kind.DEALT and self.n:
                return _unpacked(raw[:, at : at + f.record_bytes], f.bits, f.count)
        else:
            raw, at = self._stream, self._layout.stream_at[self._party][key]
        return as_planes(raw, at, f, self.n) if f.kind is Kind.BITS else as_words(raw, at, f, self.n)

    def read_table(self, step: str, name: str, index: Tensor) -> Tensor:
        """This party's share of one entry of each table, at the public ``index`` ``(n, count)``."""
        key, f = self._key(step, name)
        if index.numel() == 0:
            return torch.zeros((self.n, f.count), dtype=ring.word(f.bits), device=self.device)
        if self._party is PartyId.P1:
            at = self._layout.record_at[key]
            rows = _unpacked(self._record[:, at : at + f.record_bytes], f.bits, f.count * f.entries)
            rows = rows.reshape(self.n, f.count, f.entries)
            return rows.gather(2, index.to(torch.int64).unsqueeze(2)).squeeze(2)
        if self._tables is None:
            raise Misuse("only P0 holds the key of the table stream")
        base = table_positions(self._layout, key, self._first, self.n, self.device)
        j = index.to(torch.int64)
        lanes = streams.blocks_at(self._tables, base + j // f.lanes).view(ring.word(f.bits))
        return lanes.gather(2, (j % f.lanes).unsqueeze(2)).squeeze(2)


def _unpacked(raw: Rows, bits: int, count: int) -> Tensor:
    return ring.unpacked(raw, bits, count) if isinstance(raw, Tensor) else ring.unpack(raw, bits, count)


def as_words(raw: Rows, at: int, f: Field, n: int) -> Tensor:
    """Words ``(n, count)`` that lie in every row of ``raw`` from byte ``at`` on; no copy of a single row."""
    word = ring.word(f.bits)
    if f.count == 0 or n == 0:
        return _nothing(raw, (n, f.count), word)
    part = raw[:, at : at + f.count * word.itemsize]
    if isinstance(part, Tensor):
        return part.contiguous().view(word)
    return torch.from_numpy(np.ascontiguousarray(part).view(np.int16 if word is torch.int16 else np.int32))


def as_planes(raw: Rows, at: int, f: Field, n: int) -> Tensor:
    """Planes ``(bits, n * width)`` that lie in every row of ``raw`` from byte ``at`` on; no copy of a single row."""
    size = planes.width(f.count)
    if f.count == 0 or n == 0:
        return _nothing(raw, (f.bits, n * size), torch.uint8)
    part = raw[:, at : at + f.bits * size].reshape(n, f.bits, size)
    if isinstance(part, Tensor):
        return part.transpose(0, 1).reshape(f.bits, n * size)
    return torch.from_numpy(np.ascontiguousarray(part.swapaxes(0, 1)).reshape(f.bits, n * size))


def _nothing(beside: Rows, shape: tuple[int, int], word: torch.dtype) -> Tensor:
    """Where there are no values."""
    return beside.new_zeros(shape, dtype=word) if isinstance(beside, Tensor) else torch.zeros(shape, dtype=word)


def table_positions(layout: Layout, key: FieldKey, first: int, n: int, device: torch.device) -> Tensor:
    """First table-stream block of every table of a field: int64 ``(n, count)`` for items ``first .. first+n-1``."""
    f = layout.fields[key]
    items = torch.arange(first, first + n, device=device) * layout.table_blocks
    return items.unsqueeze(1) + layout.table_at[key] + torch.arange(f.count, device=device) * f.table_blocks
