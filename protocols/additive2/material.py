"""One-time material: what the dealer makes, how it is laid out, and how each party reads it.

Material comes in *items*, numbered from 0 within an *epoch*; an item serves one input through the whole program. Every
step declares fields, and a field is one of

=======  =============================================================================================================
MASK     uniform and unknown to anybody as a whole: P0 expands its part from K_0, P1 from K_1; no traffic
DEALT    shared by the dealer: P0 expands its share from K_0, P1 receives the correction (``bits`` each)
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

from protocols import prg, ring
from protocols.errors import MaterialExhausted, Misuse, PeerMisbehaved
from protocols.rounds import PartyId


class Kind(Enum):
    """How a field reaches the two parties."""

    MASK = "mask"
    DEALT = "dealt"
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
        return 0 if self.kind is Kind.MASK else ring.packed_bytes(self.count * self.entries, self.bits)

    def stream_bytes(self, party: PartyId) -> int:
        """Bytes per item in this party's key stream."""
        expands = self.kind is Kind.MASK or (self.kind is Kind.DEALT and party is PartyId.P0)
        return ring.packed_bytes(self.count, self.bits) if expands else 0

    @property
    def lanes(self) -> int:
        """Entries per AES block of the table stream."""
        return 8 if self.bits <= 16 else 4

    @property
    def table_blocks(self) -> int:
        """AES blocks of one table (0 for other kinds)."""
        return -(-self.entries // self.lanes) if self.kind is Kind.TABLE else 0


FieldKey = tuple[str, str]


class Layout:
    """Where each field of each step lies in an item's record and in the parties' key streams; public."""

    def __init__(self, fields: Mapping[str, Sequence[Field]]) -> None:
        self.fields: dict[FieldKey, Field] = {}
        self.record_at: dict[FieldKey, int] = {}
        self.stream_at: dict[PartyId, dict[FieldKey, int]] = {PartyId.P0: {}, PartyId.P1: {}}
        self.table_at: dict[FieldKey, int] = {}
        record, stream, table = 0, {PartyId.P0: 0, PartyId.P1: 0}, 0
        for step, declared in fields.items():
            for f in declared:
                key = (step, f.name)
                self.fields[key], self.record_at[key], self.table_at[key] = f, record, table
                record += f.record_bytes
                table += f.count * f.table_blocks
                for p in stream:
                    self.stream_at[p][key] = stream[p]
                    stream[p] += f.stream_bytes(p)
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


class PartyMaterial(prg.Secret):
    """One party's material for items ``first .. first+n-1``; every field is read at most once."""

    def __init__(
        self, layout: Layout, party: PartyId, stream: np.ndarray, tables: prg.Key | None, first: int, corrections: bytes
    ) -> None:
        self._layout, self._party, self._stream, self._tables = layout, party, stream, tables
        self._first, self.n = first, stream.shape[0]
        self._spent: set[FieldKey] = set()
        want = self.n * layout.record_bytes if party is PartyId.P1 else 0
        if len(corrections) != want:
            raise MaterialExhausted(
                f"{self.n} items for {party} take {want} dealt bytes, but {len(corrections)} are there; "
                "the dealer runs another program, or has not delivered yet"
            )
        self._record = np.frombuffer(corrections, np.uint8).reshape(self.n, -1) if want else None

    def _key(self, step: str, name: str) -> tuple[FieldKey, Field]:
        key = (step, name)
        if key in self._spent:
            raise Misuse(f"material {name!r} of step {step!r} was already used; one-time material is used once")
        self._spent.add(key)
        return key, self._layout.fields[key]

    def take(self, step: str, name: str) -> Tensor:
        """This party's share of a MASK or DEALT field: ``(n, count)`` in the word of ``bits``."""
        key, f = self._key(step, name)
        if f.kind is Kind.DEALT and self._party is PartyId.P1:
            raw, at, size = self._record, self._layout.record_at[key], f.record_bytes
        else:
            raw, at = self._stream, self._layout.stream_at[self._party][key]
            size = f.stream_bytes(self._party)
        if raw is None or f.count == 0 or self.n == 0:
            return torch.zeros((self.n, f.count), dtype=ring.word(f.bits))
        return ring.unpack(raw[:, at : at + size], f.bits, f.count)

    def read_table(self, step: str, name: str, index: Tensor) -> Tensor:
        """This party's share of one entry of each table, at the public ``index`` ``(n, count)``."""
        key, f = self._key(step, name)
        if index.numel() == 0:
            return torch.zeros((self.n, f.count), dtype=ring.word(f.bits))
        if self._party is PartyId.P1 and self._record is not None:
            at = self._layout.record_at[key]
            rows = ring.unpack(self._record[:, at : at + f.record_bytes], f.bits, f.count * f.entries)
            rows = rows.reshape(self.n, f.count, f.entries)
            return rows.gather(2, index.to(torch.int64).unsqueeze(2)).squeeze(2)
        if self._tables is None:
            raise Misuse("only P0 holds the key of the table stream")
        base = table_positions(self._layout, key, self._first, self.n)
        j = index.numpy().astype(np.int64)
        blocks = prg.blocks_at(self._tables, (base + j // f.lanes).reshape(-1))
        lanes = blocks.view(np.int16 if f.lanes == 8 else np.int32)
        picked = np.take_along_axis(lanes, (j % f.lanes).reshape(-1, 1), 1)
        return torch.from_numpy(picked.reshape(self.n, f.count).astype(np.int16 if f.bits <= 16 else np.int32))


def table_positions(layout: Layout, key: FieldKey, first: int, n: int) -> np.ndarray:
    """First table-stream block of every table of a field: int64 ``(n, count)`` for items ``first .. first+n-1``."""
    f = layout.fields[key]
    items = (np.arange(first, first + n, dtype=np.int64) * layout.table_blocks)[:, None]
    return items + layout.table_at[key] + np.arange(f.count, dtype=np.int64) * f.table_blocks
