"""One-time material in the memory of a server: keys of epochs (both servers) and the pool of corrections (server B).

Nothing here is ever written to disk. What a broken link, a new epoch or the end of the process leaves over is burnt.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import deque
from dataclasses import dataclass, field

from pqi.session.errors import MaterialMissing, SessionError
from protocols.prg import Secret

EPOCH_DIGITS = 32
_KEPT_EPOCHS = 2
_ENDLESS = 1 << 60


def new_id() -> str:
    """128 random bits from the operating system, as 32 hexadecimal digits: epochs, sessions, deployments."""
    return secrets.token_hex(16)


class KeyBytes(Secret):
    """A party's keys of one epoch. Refuses repr, truth value, copies and pickling; lives in memory only."""

    __slots__ = ("_raw",)

    def __init__(self, raw: bytes) -> None:
        self._raw = raw

    def expose_to_protocol(self) -> bytes:
        """The bytes, for the one call that computes with them, or the one message that brings them to their party."""
        return self._raw


class EpochKeys:
    """The keys of the newest epochs. Two are kept: a query may still run on the old one when a new one arrives."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._keys: dict[str, KeyBytes] = {}

    def add(self, epoch: str, keys: KeyBytes) -> None:
        """Keep the keys of a new epoch and drop the oldest."""
        with self._lock:
            self._keys[epoch] = keys
            while len(self._keys) > _KEPT_EPOCHS:
                del self._keys[next(iter(self._keys))]

    def get(self, epoch: str) -> KeyBytes:
        """The keys of an epoch. Raises MaterialMissing if this process never had them, or has dropped them."""
        with self._lock:
            if epoch not in self._keys:
                raise MaterialMissing(
                    f"epoch {epoch} is unknown here (restarted, or the dealer is making a new epoch); ask again"
                )
            return self._keys[epoch]

    @property
    def newest(self) -> str:
        """The newest epoch, or an empty text."""
        with self._lock:
            return next(reversed(self._keys), "")


@dataclass(frozen=True)
class Taken:
    """Items [first, first + n) of an epoch, out of the pool for good. Corrections stay out of the representation."""

    epoch: str
    first: int
    n: int
    corrections: bytes = field(repr=False)


class Pool:
    """Server B's corrections of the current epoch, first in first out; bounded in items and in bytes.

    record_bytes: bytes of one item. capacity: the most items held or on their way.
    """

    def __init__(self, record_bytes: int, max_items: int, max_bytes: int) -> None:
        self.record_bytes = record_bytes
        self.capacity = max(1, min(max_items, max_bytes // record_bytes if record_bytes else max_items))
        self._changed = threading.Condition()
        self._turn = threading.Lock()  # one query waits at a time, so that a large one is not starved by small ones
        self._epoch = ""
        self._chunks: deque[memoryview] = deque()
        self._first = 0  # number of the next item to be taken
        self._next = 0  # number of the next item to arrive
        self._linked = False
        self._wanted = 0  # items that the query in turn waits for

    @property
    def level(self) -> int:
        """Items that can be taken now."""
        with self._changed:
            return min(self.capacity, self._next - self._first)

    @property
    def epoch(self) -> str:
        """The current epoch, or an empty text."""
        with self._changed:
            return self._epoch

    def begin(self, epoch: str, *, endless: bool = False) -> None:
        """Burn what is left of the old epoch and begin a new one. endless: items are mere numbers, nothing is dealt."""
        with self._changed:
            self._epoch, self._first, self._next, self._linked = epoch, 0, _ENDLESS if endless else 0, not endless
            self._chunks.clear()

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

    def room(self, epoch: str) -> int:
        """Items to order now; -1 when the epoch is over. Small gaps wait until they are worth an order."""
        with self._changed:
            if self._epoch != epoch:
                return -1
            level = self._next - self._first
            worth = self.capacity - level >= max(1, self.capacity // 8) or level < self._wanted
            return self.capacity - level if worth else 0

    def add(self, epoch: str, first: int, n: int, corrections: bytes) -> None:
        """Put n items behind the last one. Raises SessionError unless number and length are exactly what is due."""
        with self._changed:
            if epoch != self._epoch:
                raise SessionError(f"corrections of epoch {epoch} arrived, but the current epoch is {self._epoch}")
            if first != self._next or len(corrections) != n * self.record_bytes:
                raise SessionError(
                    f"corrections of items [{first}, {first + n}) with {len(corrections)} bytes arrived; due were "
                    f"items from {self._next} with {n * self.record_bytes} bytes"
                )
            if self._next + n - self._first > self.capacity:
                raise SessionError(f"more than the {self.capacity} items ordered arrived")
            self._next += n
            if corrections:
                self._chunks.append(memoryview(corrections))
            self._changed.notify_all()

    def take(self, n: int, timeout: float) -> Taken:
        """Take the next n items for good; waits up to ``timeout`` seconds for the dealer.

        Raises MaterialMissing that says how many of the n are there and whether the dealer is connected.
        """
        deadline = time.monotonic() + timeout
        if not self._turn.acquire(timeout=timeout):
            raise MaterialMissing(f"the dealer has not delivered: others wait before this query for {timeout:g} s")
        try:
            with self._changed:
                self._wanted = n
                while not self._epoch or self._next - self._first < n:
                    left = deadline - time.monotonic()
                    if left <= 0 or not self._changed.wait(left):
                        raise MaterialMissing(self._explain(n, timeout))
                first = self._first
                self._first += n
                return Taken(self._epoch, first, n, self._cut(n * self.record_bytes))
        finally:
            self._wanted = 0
            self._turn.release()

    def _cut(self, size: int) -> bytes:
        pieces = []
        while size:
            chunk = self._chunks.popleft()
            if len(chunk) > size:
                self._chunks.appendleft(chunk[size:])
                chunk = chunk[:size]
            pieces.append(chunk)
            size -= len(chunk)
        return b"".join(pieces)

    def _explain(self, n: int, timeout: float) -> str:
        state = "connected" if self._linked else "not connected; start it, or look at its log"
        return (
            f"the dealer has not delivered within {timeout:g} s: level {self._next - self._first} of {n} items "
            f"(dealer {state})"
        )
