"""A server's end of the dealer's link: an epoch's keys, then (server B) corrections against credits.

::

    dealer -> A   epoch, keys of A           A -> dealer   epoch known
    dealer -> B   epoch, keys of B           B -> dealer   epoch known      (only after A's answer)
    B -> dealer   credit: n more items       dealer -> B   items [first, first + n), corrections
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from pqi.net.channel import Channel, receive_any
from pqi.net.errors import BadFrame
from pqi.net.frames import KIB, Limits, take_hex, take_int
from pqi.session.journal import MAX_ITEM, Journal
from pqi.session.material import EPOCH_DIGITS, EpochKeys, KeyBytes, Pool

log = logging.getLogger("pqi.server")

MAX_KEYS = 4 * KIB
CHUNK_ITEMS = 64
CHUNK_BYTES = 32 << 20
_TICK = 0.02  # seconds between two looks at a full pool


def chunk_items(record_bytes: int) -> int:
    """The most items in one message of corrections: bounded in items and in bytes, at least one."""
    return max(1, min(CHUNK_ITEMS, CHUNK_BYTES // record_bytes if record_bytes else CHUNK_ITEMS))


def supply_limits(record_bytes: int) -> Limits:
    """Frame limits of a dealer's link."""
    return Limits(control=16 * KIB, binary=max(MAX_KEYS, chunk_items(record_bytes) * record_bytes))


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
        while not stopping():
            if pool is None:
                _expect_silence(channel)
            elif not _refill(channel, pool, epoch, timeout):
                return
    finally:
        if pool is not None:
            pool.unlink(epoch)


def _expect_silence(channel: Channel) -> None:
    """Server A hears nothing more on this link; its end is the news."""
    if receive_any([channel], 1.0, "the end of the epoch") is not None:
        raise BadFrame(channel.peer, "a message after the keys of an epoch; server_a awaits none")


def _refill(channel: Channel, pool: Pool, epoch: str, timeout: float) -> bool:
    """Order what the pool has room for and take it in; False when a newer epoch has replaced this one."""
    room = pool.room(epoch)
    if room < 0:
        return False
    if room == 0:
        if receive_any([channel], _TICK, "the end of the epoch") is not None:
            raise BadFrame(channel.peer, "items that nobody ordered")
        return True
    order = min(room, 4 * chunk_items(pool.record_bytes))
    channel.send_control({"kind": "credit", "epoch": epoch, "items": order}, timeout, "an order of items")
    while order > 0:
        got = _take_in(channel, pool, epoch, order)
        if got == 0:
            return False
        order -= got
    return True


def _take_in(channel: Channel, pool: Pool, epoch: str, order: int) -> int:
    """One message of corrections into the pool; 0 when the epoch is over. The dealer may work as long as it needs."""
    while (event := receive_any([channel], 1.0, "corrections")) is None:
        if pool.room(epoch) < 0:
            return 0
    message = channel.as_control(event[1], "corrections")
    if message["kind"] != "items" or take_hex(message, "epoch", EPOCH_DIGITS, channel.peer) != epoch:
        raise BadFrame(channel.peer, "a message other than items of the current epoch")
    n = take_int(message, "n", 1, order, channel.peer)
    first = take_int(message, "first", 0, MAX_ITEM - n, channel.peer)
    corrections = b"" if pool.record_bytes == 0 else channel.receive_binary(60.0, "the bytes of announced items")
    pool.add(epoch, first, n, corrections)
    return n
