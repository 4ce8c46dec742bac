"""Items that wait on disk when memory is full: noise to everybody but the process that wrote them.

Every record is sealed with AES-256-GCM under a key that is drawn for one epoch and never leaves this process's memory.
The nonce is the number of the item and of the block in it, and an item is written once, so no nonce comes twice. The
file is removed from its folder the moment it is opened: when the process ends, however it ends, the system takes the
space back, and what a disk still holds of it cannot be read by anybody.
"""

from __future__ import annotations

import os
import tempfile
import threading
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from pqi.session.errors import SpillFailed
from protocols.errors import Misuse
from protocols.prg import Secret

BLOCK_BYTES = 4 << 20  # sealed at a time, so that a large item needs little memory beyond its own
_KEY_BITS = 256
_TAG_BYTES = 16


class Spill(Secret):
    """Room on disk for ``slots`` items of one epoch. Items come in rising order; item i lies in slot i mod ``slots``.

    The space is taken when this is made, so that a full disk is found then and not in the midst of a delivery. One
    thread writes; others may read what nobody overwrites: keep items that are awaited within ``slots`` of each other.
    Raises SpillFailed if the folder cannot be used, the disk is too full, or ``max_bytes`` holds not one item.
    """

    def __init__(self, folder: Path, epoch: str, record_bytes: int, max_bytes: int) -> None:
        self._record, self._context = record_bytes, epoch.encode()
        self._slot = record_bytes + _TAG_BYTES * -(-record_bytes // BLOCK_BYTES)
        self.slots = max_bytes // self._slot
        if self.slots < 1:
            raise SpillFailed(f"{max_bytes} bytes on disk hold not one item, which takes {self._slot}")
        self._aead = AESGCM(AESGCM.generate_key(_KEY_BITS))
        self._next = 0
        self._open = threading.Lock()  # held around every access: a closed file's descriptor may be another file's
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 (kept open: see ``close``)
        except OSError as error:
            raise SpillFailed(f"folder {folder} cannot be used: {error.strerror}") from None
        try:
            _reserve(self._file.fileno(), self.slots * self._slot)
        except OSError as error:
            self._file.close()
            raise SpillFailed(f"{self.slots * self._slot} bytes in {folder}: {error.strerror}") from None

    def write(self, first: int, data: bytes | memoryview) -> None:
        """Seal items from number ``first`` on, record after record. Raises SpillFailed; then none of them counts."""
        if first < self._next:
            raise Misuse(f"item {first} would be sealed under a nonce that may be spent: items below {self._next} are")
        view = memoryview(data)
        count = len(view) // self._record
        self._next = first + count  # before the first block: after a failure these nonces are spent as well
        try:
            for i in range(count):
                self._seal(first + i, view[i * self._record : (i + 1) * self._record])
        except (OSError, ValueError) as error:
            raise SpillFailed(f"items from {first} on were not written: {_why(error)}") from None

    def read_into(self, first: int, out: memoryview) -> None:
        """Unseal items from number ``first`` on into ``out``. Raises SpillFailed if one is unreadable or altered."""
        try:
            for i in range(len(out) // self._record):
                self._unseal(first + i, out[i * self._record : (i + 1) * self._record])
        except InvalidTag:
            raise SpillFailed(f"items from {first} on were altered on disk") from None
        except (OSError, ValueError) as error:
            raise SpillFailed(f"items from {first} on were not read: {_why(error)}") from None

    def close(self) -> None:
        """Give the space back; what was not read is lost. Closing twice is harmless. Any thread."""
        with self._open:
            self._file.close()

    def _seal(self, item: int, record: memoryview) -> None:
        at = (item % self.slots) * self._slot
        for block, start in enumerate(range(0, self._record, BLOCK_BYTES)):
            sealed = self._aead.encrypt(_nonce(item, block), record[start : start + BLOCK_BYTES], self._context)
            with self._open:
                _write_all(self._file.fileno(), sealed, at)
            at += len(sealed)

    def _unseal(self, item: int, record: memoryview) -> None:
        at = (item % self.slots) * self._slot
        for block, start in enumerate(range(0, self._record, BLOCK_BYTES)):
            size = min(BLOCK_BYTES, self._record - start) + _TAG_BYTES
            with self._open:
                sealed = _read_all(self._file.fileno(), size, at)
            record[start : start + BLOCK_BYTES] = self._aead.decrypt(_nonce(item, block), sealed, self._context)
            at += size


def _nonce(item: int, block: int) -> bytes:
    """96 bits, once each: item numbers rise within an epoch, blocks within an item, and keys are fresh per epoch."""
    return item.to_bytes(8, "big") + block.to_bytes(4, "big")


def _reserve(descriptor: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
    else:
        os.truncate(descriptor, size)


def _write_all(descriptor: int, data: bytes, at: int) -> None:
    view = memoryview(data)
    while view:
        done = os.pwrite(descriptor, view, at)
        view, at = view[done:], at + done


def _read_all(descriptor: int, size: int, at: int) -> bytes:
    pieces = []
    while size:
        piece = os.pread(descriptor, size, at)
        if not piece:
            raise OSError(0, "the file is shorter than it was")
        pieces.append(piece)
        size, at = size - len(piece), at + len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _why(error: Exception) -> str:
    if isinstance(error, OSError):
        return str(error.strerror).lower()
    return "the epoch is over"  # only a closed file raises ValueError here
