"""Server B's stock of corrections: filled ahead of time, bounded in memory and on disk, every item taken once.

Items wait in the order in which they will be taken: first those in memory, then, if there is room on disk, sealed ones
(:mod:`pqi.session.spill`). As memory becomes free, the next sealed ones are read back ahead of their turn. Who fills
the pool hears at once when items were taken or are waited for (:meth:`Pool.attend`).

A pool *on demand* keeps nothing ahead: it orders what the query in turn lacks, and no more.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pqi.session.errors import MaterialMissing, SessionError, SpillFailed
from pqi.session.spill import Spill

log = logging.getLogger("pqi.server")
_ENDLESS = 1 << 60
_ON_DEMAND = 1 << 16  # the most items of one query where nothing is kept ahead

_SOON = 0.1  # of a query's patience: items that are expected within it can be claimed before they are here

Corrections = bytes | memoryview
Claim = Callable[[str, int], None]


@dataclass(frozen=True)
class Taken:
    """Items [first, first + n) of an epoch, out of the pool for good; claimed: before they came."""

    epoch: str
    first: int
    n: int
    corrections: Corrections = field(repr=False)
    claimed: bool = False


@dataclass(eq=False)
class _Held:
    """Items [first, first + n) that arrived together; data is None while they wait on disk."""

    first: int
    n: int
    data: memoryview | None = field(repr=False)


@dataclass(frozen=True)
class SpillRoom:
    """Where items may wait when memory is full, and the most bytes of disk they may take."""

    folder: Path
    max_bytes: int


class Pool:
    """Server B's corrections of the current epoch, first in first out; bounded in items and in bytes.

    record_bytes: bytes of one item. memory_items: the most items held in memory or on their way there, but for the
    message that is being taken in. max_items: 0 for a pool on demand. room: disk for more; None keeps all in memory.
    """

    def __init__(self, record_bytes: int, max_items: int, max_bytes: int, room: SpillRoom | None = None) -> None:
        self.record_bytes, self.on_demand = record_bytes, max_items == 0
        most = max_items or _ON_DEMAND
        self.memory_items = max(1, min(most, max_bytes // record_bytes if record_bytes else most))
        self._room = room if record_bytes and not self.on_demand else None
        self._bells: list[Callable[[], None]] = []
        self._changed = threading.Condition()
        self._turn = threading.Lock()  # one query waits at a time, so that a large one is not starved by small ones
        self._epoch = ""
        self._chunks: deque[_Held] = deque()
        self._spill: Spill | None = None
        self._spilling = False  # whether more may go to disk
        self._limit = self.memory_items  # the most items this epoch could ever order
        self._first = 0  # number of the next item to be taken
        self._next = 0  # number of the next item to arrive
        self._reading = _ENDLESS  # number of the oldest item on disk that the query in turn reads
        self._linked = False
        self._wanted = 0  # items that the query in turn waits for
        self._pace = math.inf  # seconds for an item when one was last waited for in this epoch

    # ------------------------------------------------------------------ what is there

    @property
    def level(self) -> int:
        """Items that can be taken now."""
        with self._changed:
            return max(0, min(self._limit, self._next - self._first))

    @property
    def capacity(self) -> int:
        """The most items held ahead or on their way, in memory and on disk."""
        with self._changed:
            return 0 if self.on_demand else self._capacity()

    @property
    def spilled(self) -> int:
        """Items that wait on disk."""
        with self._changed:
            return sum(held.n for held in self._chunks if held.data is None)

    @property
    def held_bytes(self) -> int:
        """Bytes of corrections in memory."""
        with self._changed:
            return self._in_memory() * self.record_bytes

    @property
    def epoch(self) -> str:
        """The current epoch, or an empty text."""
        with self._changed:
            return self._epoch

    # ------------------------------------------------------------------ epochs

    def begin(self, epoch: str, *, endless: bool = False) -> None:
        """Burn what is left of the old epoch and begin a new one. endless: items are mere numbers, nothing is dealt."""
        spill = self._open_spill(epoch)
        with self._changed:
            before, self._spill, self._spilling = self._spill, spill, spill is not None
            self._epoch, self._first, self._next, self._linked = epoch, 0, _ENDLESS if endless else 0, not endless
            self._limit, self._pace = self._capacity(), math.inf
            self._chunks.clear()
            self._ring()
            self._changed.notify_all()
        if before is not None:
            before.close()

    def close(self) -> None:
        """Burn everything; room on disk goes back. The pool can begin again."""
        with self._changed:
            spill, self._spill, self._spilling, self._epoch = self._spill, None, False, ""
            self._chunks.clear()
            self._first = self._next
            self._ring()
        if spill is not None:
            spill.close()

    def unlink(self, epoch: str) -> None:
        """The dealer's link of ``epoch`` is gone. Delivered items stay usable until a new epoch burns them."""
        with self._changed:
            if self._epoch == epoch:
                self._linked = False

    def burn(self, epoch: str) -> None:
        """Burn what is left of ``epoch``, if it is the current one."""
        with self._changed:
            if self._epoch == epoch:
                self._chunks.clear()
                self._first = self._next
                self._ring()

    # ------------------------------------------------------------------ for the thread that fills it

    def attend(self, ring: Callable[[], None], on: bool = True) -> None:
        """Call ``ring``, which must be quick, whenever :meth:`room` may have grown; not any more if not ``on``."""
        with self._changed:
            if on:
                self._bells.append(ring)
            else:
                self._bells.remove(ring)

    def room(self, epoch: str) -> int:
        """Items that could be ordered now; -1 when the epoch is over. Small gaps wait until they are worth an order."""
        with self._changed:
            if self._epoch != epoch:
                return -1
            level = self._next - self._first
            if self.on_demand:
                return max(0, self._wanted - level) if self._wanted else 0
            free = max(0, min(self._capacity() - level, self._disk_end() - self._next))
            return free if free >= max(1, self.memory_items // 8) or level < self._wanted else 0

    def add(self, epoch: str, first: int, n: int, corrections: Corrections) -> None:
        """Put n items behind the last one, on disk if memory is full.

        Raises SessionError unless number and length are exactly what is due. A disk that fails costs nothing but the
        room on it: the items stay in memory.
        """
        with self._changed:
            self._check(epoch, first, n, len(corrections))
            spill = self._spill if self._spilling else None
            ends = self._parts(first, n)
        view = memoryview(corrections)
        arrived = [_Held(first, n, view)]
        if spill is not None and ends[0] < ends[1]:
            try:
                arrived = self._partly_on_disk(spill, first, n, ends, view)
            except SpillFailed as error:
                self._give_up_disk(epoch, error)
        with self._changed:
            self._check(epoch, first, n, len(corrections))
            self._next += n
            if self.record_bytes:
                self._chunks.extend(arrived)
                self._drop_spent()
            self._changed.notify_all()

    def prefetch(self, epoch: str) -> bool:
        """Read the next items on disk back while memory has room for them; True if some were."""
        with self._changed:
            spill = self._spill if self._spilling and epoch == self._epoch else None
            held = next((held for held in self._chunks if held.data is None), None)
            free = self.memory_items - self._in_memory()
            if spill is None or held is None or free < 1:
                return False
            first, n = held.first, min(held.n, free)
        data = bytearray(n * self.record_bytes)
        try:
            spill.read_into(first, memoryview(data))
        except SpillFailed as error:
            self._give_up_disk(epoch, error)
            return False
        with self._changed:
            if held in self._chunks:  # else it was taken, or cut, in the meantime
                at = self._chunks.index(held)
                self._chunks[at] = _Held(first, n, memoryview(data))
                if held.n > n:
                    self._chunks.insert(at + 1, _Held(first + n, held.n - n, None))
        return True

    # ------------------------------------------------------------------ for queries

    def take(self, n: int, timeout: float, claim: Claim | None = None) -> Taken:
        """Take the next n items for good; waits up to ``timeout`` seconds for the dealer. Copies nothing if they came
        together in one message.

        claim: called with the epoch and the first number before the items are here, if they are expected soon: what
        must be written and told of them is done meanwhile. From then on they are this query's or nobody's.
        Raises MaterialMissing that says how many of the n are there and whether the dealer is connected, or that items
        on disk could not be read back: those are burnt, as claimed ones are.
        """
        deadline = time.monotonic() + timeout
        if not self._turn.acquire(timeout=timeout):
            raise MaterialMissing(f"the dealer has not delivered: others wait before this query for {timeout:g} s")
        known: tuple[str, int] | None = None
        try:
            expected = self._expected(n, timeout)
            if expected is not None and claim is not None:
                known = expected
                claim(*known)
            with self._changed:
                self._await(n, deadline, timeout, known and known[0])
                epoch, first, spill = self._epoch, self._first, self._spill
                parts = self._pop(n if self.record_bytes else 0)
                self._reading = min((part.first for part in parts if part.data is None), default=_ENDLESS)
            try:
                return Taken(epoch, first, n, self._joined(parts, spill), known is not None)
            finally:
                with self._changed:
                    self._reading = _ENDLESS  # only now may their places on disk be written again
                    if self._epoch == epoch:
                        self._first = max(self._first, first + n)
                    self._wanted = 0
                    self._ring()
        except SpillFailed as error:
            raise MaterialMissing(f"the items of this query are burnt: {error}; ask again") from None
        finally:
            with self._changed:
                self._wanted = 0
                if known is not None and known[0] == self._epoch:
                    self._first = max(self._first, known[1] + n)
                    self._drop_spent()
            self._turn.release()

    # ------------------------------------------------------------------ inside

    def _expected(self, n: int, timeout: float) -> tuple[str, int] | None:
        """A query's turn begins: what it lacks is to be ordered. Epoch and first number if it can be claimed now."""
        with self._changed:
            self._wanted = n
            missing = n - (self._next - self._first) if self._epoch else n
            if missing <= 0:
                return None
            self._ring()
            soon = self._linked and self._pace * missing <= _SOON * timeout
            return (self._epoch, self._first) if soon else None

    def _await(self, n: int, deadline: float, timeout: float, epoch: str | None) -> None:
        """Wait, holding the lock, until n items are there; of this epoch, if it is given."""
        started, missing = time.monotonic(), n - (self._next - self._first)
        while not self._epoch or self._next - self._first < n:
            if epoch is not None and epoch != self._epoch:
                raise MaterialMissing("the dealer began a new epoch before the items of this query came; ask again")
            if (left := deadline - time.monotonic()) <= 0 or not self._changed.wait(left):
                self._pace = math.inf
                raise MaterialMissing(self._explain(n, timeout))
        if missing > 0:
            self._pace = (time.monotonic() - started) / missing

    def _drop_spent(self) -> None:
        """Let go of items that were burnt before they came."""
        while self._chunks and self._chunks[0].first < self._first:
            self._pop(min(self._chunks[0].n, self._first - self._chunks[0].first))

    def _ring(self) -> None:
        for ring in self._bells:
            ring()

    def _capacity(self) -> int:
        return self.memory_items + (self._spill.slots if self._spill is not None and self._spilling else 0)

    def _in_memory(self) -> int:
        return sum(held.n for held in self._chunks if held.data is not None)

    def _parts(self, first: int, n: int) -> tuple[int, int]:
        """Which of n items from ``first`` on belong on disk, [begin, end): those behind others on disk or for which
        memory has no room, unless the disk has none either.
        """
        behind = bool(self._chunks) and self._chunks[-1].data is None
        begin = first + (0 if behind else min(n, max(0, self.memory_items - self._in_memory())))
        slots = 0 if self._spill is None else self._spill.slots
        return begin, max(begin, min(first + n, self._disk_end(), begin + slots))

    def _disk_end(self) -> int:
        """The first item that has no place on disk yet: the oldest one there has to be read before."""
        if not self._spilling:
            return _ENDLESS
        oldest = next((held.first for held in self._chunks if held.data is None), _ENDLESS)
        return min(oldest, self._reading) + (0 if self._spill is None else self._spill.slots)

    def _partly_on_disk(self, spill: Spill, first: int, n: int, ends: tuple[int, int], view: memoryview) -> list[_Held]:
        """Seal items [begin, end); what stays in memory is copied, so that it does not hold the whole message there."""
        begin, end = ends
        at = [(item - first) * self.record_bytes for item in (begin, end)]
        spill.write(begin, view[at[0] : at[1]])
        cut = [
            _Held(first, begin - first, memoryview(bytearray(view[: at[0]]))),
            _Held(begin, end - begin, None),
            _Held(end, first + n - end, memoryview(bytearray(view[at[1] :]))),
        ]
        return [held for held in cut if held.n]

    def _check(self, epoch: str, first: int, n: int, size: int) -> None:
        if epoch != self._epoch:
            raise SessionError(f"corrections of epoch {epoch} arrived, but the current epoch is {self._epoch}")
        if first != self._next or size != n * self.record_bytes:
            raise SessionError(
                f"corrections of items [{first}, {first + n}) with {size} bytes arrived; due were items from "
                f"{self._next} with {n * self.record_bytes} bytes"
            )
        if self._next + n - self._first > self._limit:
            raise SessionError(f"more than the {self._limit} items ordered arrived")

    def _pop(self, n: int) -> list[_Held]:
        parts = []
        while n:
            held = self._chunks.popleft()
            if held.n > n:
                rest = None if held.data is None else held.data[n * self.record_bytes :]
                self._chunks.appendleft(_Held(held.first + n, held.n - n, rest))
                cut = None if held.data is None else held.data[: n * self.record_bytes]
                held = _Held(held.first, n, cut)
            parts.append(held)
            n -= held.n
        return parts

    def _joined(self, parts: Sequence[_Held], spill: Spill | None) -> Corrections:
        if not parts:
            return b""
        if len(parts) == 1 and parts[0].data is not None:
            return parts[0].data
        out = memoryview(bytearray(sum(part.n for part in parts) * self.record_bytes))
        at = 0
        for part in parts:
            end = at + part.n * self.record_bytes
            if part.data is not None:
                out[at:end] = part.data
            elif spill is not None:
                spill.read_into(part.first, out[at:end])
            at = end
        return out

    def _open_spill(self, epoch: str) -> Spill | None:
        if self._room is None:
            return None
        try:
            return Spill(self._room.folder, epoch, self.record_bytes, self._room.max_bytes)
        except SpillFailed as error:
            log.warning("no items will wait on disk: %s", error)
            return None

    def _give_up_disk(self, epoch: str, error: SpillFailed) -> None:
        with self._changed:
            if epoch != self._epoch or not self._spilling:
                return
            self._spilling = False
        log.warning("no more items will wait on disk in this epoch: %s", error)

    def _explain(self, n: int, timeout: float) -> str:
        state = "connected" if self._linked else "not connected; start it, or look at its log"
        level = max(0, self._next - self._first)
        return f"the dealer has not delivered within {timeout:g} s: level {level} of {n} items (dealer {state})"
