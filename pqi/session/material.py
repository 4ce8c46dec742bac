"""The keys of epochs in the memory of a server.

Nothing here is ever written to disk. What a broken link, a new epoch or the end of the process leaves over is burnt.
"""

from __future__ import annotations

import secrets
import threading

from pqi.session.errors import MaterialMissing
from protocols.prg import Secret

EPOCH_DIGITS = 32
_KEPT_EPOCHS = 2


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
