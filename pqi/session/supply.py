"""A server's end of the dealer's link: an epoch's keys, then (server B) corrections against credits.

::

    dealer -> A   epoch, keys of A           A -> dealer   epoch known
    dealer -> B   epoch, keys of B           B -> dealer   epoch known      (only after A's answer)
    B -> dealer   credit: n more items       dealer -> B   items [first, first + n), corrections in one or more frames

Credits are what holds the dealer back: it makes nothing that was not ordered. New ones go out while items of old ones
are still on their way, so that the dealer never waits while the pool has room; and at once when a query takes items or
waits for them, for the pool then rings this link's bell.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from pqi.net.channel import Channel, receive_any
from pqi.net.errors import BadFrame
from pqi.net.frames import KIB, MIB, Frame, Limits, take_hex, take_int
from pqi.net.waiting import Bell
from pqi.session.journal import MAX_ITEM, Journal
from pqi.session.material import EPOCH_DIGITS, EpochKeys, KeyBytes
from pqi.session.pool import Corrections, Pool

log = logging.getLogger("pqi.server")

MAX_KEYS = 4 * KIB
CHUNK_ITEMS = 64
CHUNK_BYTES = 8 * MIB
FRAME_BYTES = 32 * MIB
ORDER_BYTES = 256 * MIB  # on their way at most, but for two items of any size
_ORDER_CHUNKS = 32
_LOOK_SECONDS = 0.5  # between two looks at whether this server is stopping
_WORD_SECONDS = 60.0
_AWAITED = "the bytes of announced items"


def chunk_items(record_bytes: int) -> int:
    """The most items in one message of corrections: bounded in items and in bytes, at least one."""
    return max(1, min(CHUNK_ITEMS, CHUNK_BYTES // record_bytes if record_bytes else CHUNK_ITEMS))


def order_items(record_bytes: int) -> int:
    """The most items ordered and not yet here."""
    chunk = chunk_items(record_bytes)
    return max(2 * chunk, min(_ORDER_CHUNKS * chunk, ORDER_BYTES // record_bytes if record_bytes else MAX_ITEM))


def pieces(corrections: Corrections) -> list[memoryview]:
    """A message of corrections cut into frames; nothing is copied."""
    view = memoryview(corrections)
    return [view[at : at + FRAME_BYTES] for at in range(0, len(view), FRAME_BYTES)]


def supply_limits(record_bytes: int) -> Limits:
    """Frame limits of a dealer's link."""
    return Limits(16 * KIB, max(MAX_KEYS, min(FRAME_BYTES, chunk_items(record_bytes) * record_bytes)))


def receive_epochs(
    channel: Channel, journal: Journal, keys: EpochKeys, pool: Pool | None, timeout: float, stopping: Callable[[], bool]
) -> None:
    """Serve a dealer's link until it breaks. pool: server B's; None on server A, which gets keys only.

    Raises NetError, JournalError, SessionError; whatever happens, what was delivered stays valid until the next epoch.
    """
    message = channel.receive_control(timeout, "a new epoch", "epoch")
    epoch = take_hex(message, "epoch", EPOCH_DIGITS, channel.peer)
    secret = channel.receive_binary(timeout, "the keys of the epoch")
    if not 0 < len(secret) <= MAX_KEYS:
        raise BadFrame(channel.peer, f"keys of {len(secret)} bytes; between 1 and {MAX_KEYS} are possible")
    journal.begin_epoch(epoch)
    keys.add(epoch, KeyBytes(secret))
    if pool is not None:
        pool.begin(epoch)
    channel.send_control({"kind": "epoch-known", "epoch": epoch}, timeout, "the answer to a new epoch")
    log.info("epoch %s begun", epoch[:8])
    try:
        if pool is not None:
            _Supply(channel, pool, epoch, timeout).run(stopping)
        while pool is None and not stopping():
            _expect_silence(channel)
    finally:
        if pool is not None:
            pool.unlink(epoch)


def _expect_silence(channel: Channel) -> None:
    """Server A hears nothing more on this link; its end is the news."""
    if receive_any([channel], 1.0, "the end of the epoch") is not None:
        raise BadFrame(channel.peer, "a message after the keys of an epoch; server_a awaits none")


class _Supply:
    """Keeps a pool full for one epoch: orders what it has room for, takes in what comes."""

    def __init__(self, channel: Channel, pool: Pool, epoch: str, timeout: float) -> None:
        self._channel, self._pool, self._epoch, self._timeout = channel, pool, epoch, timeout
        self._chunk, self._most = chunk_items(pool.record_bytes), order_items(pool.record_bytes)
        self._worth = 1 if pool.on_demand else min(self._chunk, max(1, pool.memory_items // 8))
        self._bell = Bell()
        self._due = 0  # items ordered that are not here yet
        self._told = 0  # quarters of the pool that the log knows of

    def run(self, stopping: Callable[[], bool]) -> None:
        """Until ``stopping``, a newer epoch, or the end of the link (ConnectionLost)."""
        self._pool.attend(self._bell.ring)
        try:
            while not stopping() and self._order():
                frame = self._news()
                if frame is not None and not self._due:
                    raise BadFrame(self._channel.peer, "items that nobody ordered")
                if frame is not None:
                    self._take_in(frame)
        finally:
            self._pool.attend(self._bell.ring, False)
            self._bell.close()

    def _news(self) -> Frame | None:
        """What the dealer sends; None when the pool has changed, or something was read back from disk, or in vain."""
        awaited = "corrections" if self._due else "the end of the epoch"
        event = receive_any([self._channel], 0.0, awaited)
        if event is None and not self._pool.prefetch(self._epoch):
            event = receive_any([self._channel], _LOOK_SECONDS, awaited, self._bell)
        return None if event is None else event[1]

    def _order(self) -> bool:
        """Send a credit if one is worth it; False when a newer epoch has replaced this one."""
        room = self._pool.room(self._epoch)
        if room < 0:
            return False
        credit = min(room, self._most) - self._due
        if credit > 0 and (not self._due or credit >= self._worth):
            word = {"kind": "credit", "epoch": self._epoch, "items": credit}
            self._channel.send_control(word, self._timeout, "an order of items")
            self._due += credit
        return True

    def _take_in(self, frame: Frame) -> None:
        """One message of corrections into the pool."""
        channel, record = self._channel, self._pool.record_bytes
        message = channel.as_control(frame, "corrections")
        if message["kind"] != "items" or take_hex(message, "epoch", EPOCH_DIGITS, channel.peer) != self._epoch:
            raise BadFrame(channel.peer, "a message other than items of the current epoch")
        n = take_int(message, "n", 1, min(self._due, self._chunk), channel.peer)
        first = take_int(message, "first", 0, MAX_ITEM - n, channel.peer)
        self._pool.add(self._epoch, first, n, receive_pieces(channel, n * record))
        self._due -= n
        quarters = 4 * self._pool.level // max(1, self._pool.capacity)
        if quarters > self._told and not self._pool.on_demand:
            self._told = quarters
            log.info("epoch %s: %d of %d items ready", self._epoch[:8], self._pool.level, self._pool.capacity)


def receive_pieces(channel: Channel, size: int) -> Corrections:
    """The frames of one message of ``size`` bytes. What came in one frame is not copied; of several, one at a time is
    in memory beside the whole. Raises BadFrame if a frame has another length than is due.
    """
    if size <= FRAME_BYTES:
        return _piece(channel, size) if size else b""
    whole = memoryview(bytearray(size))
    for at in range(0, size, FRAME_BYTES):
        due = min(FRAME_BYTES, size - at)
        whole[at : at + due] = _piece(channel, due)
    return whole


def _piece(channel: Channel, due: int) -> memoryview:
    piece = channel.as_view(channel.receive(_WORD_SECONDS, _AWAITED), _AWAITED)
    if len(piece) != due:
        raise BadFrame(channel.peer, f"{len(piece)} bytes of corrections where {due} were due")
    return piece
