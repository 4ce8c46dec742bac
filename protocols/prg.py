"""Secret randomness: the operating system for seeds, AES-128-CTR for everything derived from them.

Three laws:

1. Nothing else ever makes a share, a mask, a key or a nonce. ``random``, ``numpy.random`` and ``torch.rand`` do not
   appear in this package.
2. A stream position is used once. Who makes material reads through a :class:`protocols.streams.Stream`, whose mark
   never goes back; who uses it claims its items first (:class:`Spent`), in any order. After a crash the key is gone
   with the process, so no position can come again.
3. Keys refuse to be shown: no repr, no truth value, no pickling, no copying.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
from typing import NoReturn

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from torch import Tensor

from protocols import ring
from protocols.errors import Misuse

KEY_BYTES = 16
BLOCK = 16
_ZEROS = bytes(1 << 20)


class Secret:
    """Base of secret-bearing objects: what could print, copy or branch on the secret raises :class:`Misuse`."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: hidden>"

    def _refuse(self, *_: object) -> NoReturn:
        raise Misuse(f"{type(self).__name__} holds a secret: it has no truth value, no copy and no serial form")

    def __bool__(self) -> bool:
        self._refuse()

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        self._refuse()

    def __array__(self, *_: object, **__: object) -> NoReturn:
        self._refuse()

    def __iter__(self) -> NoReturn:
        self._refuse()


class Key(Secret):
    """An AES-128 key. ``Key.fresh()`` draws one from the operating system."""

    __slots__ = ("_raw",)

    def __init__(self, raw: bytes) -> None:
        if len(raw) != KEY_BYTES:
            raise Misuse(f"a key has {KEY_BYTES} bytes, not {len(raw)}")
        self._raw = bytes(raw)

    @classmethod
    def fresh(cls) -> Key:
        """A key from the operating system's generator."""
        return cls(secrets.token_bytes(KEY_BYTES))

    def expose_for_sending(self) -> bytes:
        """The raw bytes, to be put on an encrypted channel to the one party that shares this key."""
        return self._raw


def keystream(key: Key, first_block: int, size: int) -> np.ndarray:
    """``size`` bytes of AES-CTR key stream from block ``first_block`` on (uint8)."""
    out = bytearray(size + BLOCK - 1)  # update_into asks for one spare block less a byte
    counter = first_block.to_bytes(16, "big")
    # Counter mode is the generator here; a nonce would add nothing, since every key is used for one stream.
    engine = Cipher(algorithms.AES(key.expose_for_sending()), modes.CTR(counter)).encryptor()
    view, at = memoryview(out), 0
    while at < size:
        step = min(len(_ZEROS), size - at)
        at += engine.update_into(_ZEROS[:step] if step < len(_ZEROS) else _ZEROS, view[at:])
    return np.frombuffer(out, np.uint8, count=size)


class Spent:
    """Which items of which keys this process has used. Any number of threads; forgets all but the newest keys.

    It is the last line of defence inside a process: what must also hold across processes belongs in a journal.
    """

    _KEPT = 8

    def __init__(self) -> None:
        self._lock, self._items = threading.Lock(), dict[bytes, set[int]]()

    def claim(self, keys: bytes, first: int, n: int) -> None:
        """Mark items ``first .. first+n-1`` as used; raises :class:`Misuse` if one of them was, and then marks none."""
        name, wanted = hashlib.sha256(keys).digest(), range(first, first + n)
        with self._lock:
            taken = self._items.setdefault(name, set())
            if not taken.isdisjoint(wanted):
                raise Misuse(f"one-time material of items {first} .. {first + n - 1} was used before; each serves once")
            taken.update(wanted)
            while len(self._items) > self._KEPT:
                del self._items[next(iter(self._items))]


def writable(data: bytes | bytearray | memoryview) -> np.ndarray:
    """Bytes as uint8 ``(len,)``; of a buffer that may be written to, without a copy (tensors are made of such only)."""
    raw = np.frombuffer(data, np.uint8)
    return raw if raw.flags.writeable else raw.copy()


def blocks_at(key: Key, positions: np.ndarray) -> np.ndarray:
    """AES blocks at scattered counters: uint8 ``(len(positions), 16)``. Same values as :func:`keystream` there."""
    counters = np.zeros((positions.size, 2), ">u8")
    counters[:, 1] = positions
    # One permutation call on distinct counters *is* counter mode, read at scattered places.
    engine = Cipher(algorithms.AES(key.expose_for_sending()), modes.ECB()).encryptor()  # noqa: S305
    out = bytearray(positions.size * BLOCK + BLOCK - 1)
    engine.update_into(counters.tobytes(), out)
    return np.frombuffer(out, np.uint8, count=positions.size * BLOCK).reshape(-1, BLOCK)


class Random:
    """Fresh uniform tensors from one AES-CTR key; for masks that only one party ever knows."""

    def __init__(self, key: Key | None = None) -> None:
        self._key, self._at = Key.fresh() if key is None else key, 0

    def words(self, shape: tuple[int, ...], bits: int) -> Tensor:
        """Uniform ring elements in the ring's word, shape ``shape`` (upper bits uniform too)."""
        dtype = np.dtype(np.int16 if ring.word(bits) is torch.int16 else np.int32)
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        data = keystream(self._key, self._at, size)
        self._at += -(-size // BLOCK)
        return torch.from_numpy(data.view(dtype).reshape(shape))
