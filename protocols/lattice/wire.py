"""SEAL's objects as bytes of exact, declared length, and back, believing nothing.

SEAL writes 64-bit words and compresses them, so that a length depends on what is written. Here a residue modulo a prime
of b bits takes ceil(b/8) bytes, half of a fresh ciphertext is the 64-byte seed it is expanded from, and nothing else is
sent: degree, primes, level and scale are the plan's. What arrives is judged by length first; then SEAL's own stream is
rebuilt from it, and SEAL checks that every residue lies below its prime.

Streams (SEAL 4): an envelope ``5ea1 10 major minor compression 0000 u64 length``, then the members. SEAL reads and
writes files only, so they pass through memory that looks like one.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import tenseal.sealapi as seal
import zstandard

from protocols.errors import BadParameters, Misuse, PeerMisbehaved
from protocols.lattice.residues import Words

SEED_BYTES = 64
_ENVELOPE = struct.Struct("<2sBBBBHQ")
_MAGIC, _MAJOR, _MINORS = b"\x5e\xa1", 4, range(1, 4)
_PLAIN, _ZSTD = 0, 2
_MEMBERS = struct.Struct("<32s?QQQdQ")
_BLAKE2XB = 1
_WORD = 8


@dataclass(frozen=True)
class Level:
    """A modulus of the chain: its primes, SEAL's name for it, and whether ciphertexts there are in NTT form."""

    degree: int
    moduli: tuple[int, ...]
    parms_id: tuple[int, ...]
    ntt: bool

    @property
    def widths(self) -> tuple[int, ...]:
        """Bytes of a residue, per prime."""
        return tuple(-(-q.bit_length() // 8) for q in self.moduli)

    @property
    def polynomial_bytes(self) -> int:
        """Bytes of one ring element."""
        return self.degree * sum(self.widths)

    @property
    def bits(self) -> int:
        """Bits of the modulus."""
        return int(np.prod(np.array(self.moduli, dtype=object))).bit_length()

    @property
    def fresh_bytes(self) -> int:
        """Bytes of a seeded ciphertext: one ring element and the seed of the other."""
        return self.polynomial_bytes + SEED_BYTES

    @property
    def ciphertext_bytes(self) -> int:
        """Bytes of a ciphertext of two ring elements."""
        return 2 * self.polynomial_bytes

    def only(self, primes: int) -> Level:
        """A key level with the first data primes only, and the special prime, which is last."""
        return Level(self.degree, (*self.moduli[:primes], self.moduli[-1]), self.parms_id, self.ntt)

    @property
    def name(self) -> bytes:
        """The parms_id as SEAL writes it."""
        return struct.pack("<4Q", *self.parms_id)


@contextmanager
def refused(what: str) -> Iterator[None]:
    """Whatever SEAL says against something that came from outside is a PeerMisbehaved about ``what``."""
    try:
        yield
    except (RuntimeError, ValueError, IndexError, MemoryError) as error:
        raise PeerMisbehaved(f"{what} is refused: {str(error)[:120]}") from None


def cut(data: bytes, sizes: Sequence[int], what: str) -> list[memoryview]:
    """``data`` in pieces of the declared sizes; PeerMisbehaved unless they add up to its length."""
    if len(data) != sum(sizes):
        raise PeerMisbehaved(f"{what} has {len(data)} bytes; {sum(sizes)} were agreed")
    view, at, out = memoryview(data), 0, []
    for size in sizes:
        out.append(view[at : at + size])
        at += size
    return out


def pack(words: Words, level: Level) -> bytes:
    """Residues ``(primes, degree)`` in whole bytes, prime by prime, little-endian."""
    rows = np.ascontiguousarray(words, "<u8").view(np.uint8).reshape(len(level.moduli), level.degree, _WORD)
    return b"".join(row[:, :width].tobytes() for row, width in zip(rows, level.widths, strict=True))


def unpack(data: memoryview, level: Level) -> Words:
    """The inverse of :func:`pack`; the length is the caller's to check, the range SEAL's."""
    rows = np.zeros((len(level.moduli), level.degree, _WORD), np.uint8)
    at = 0
    for row, width in zip(rows, level.widths, strict=True):
        piece = np.frombuffer(data, np.uint8, count=level.degree * width, offset=at)
        row[:, :width] = piece.reshape(level.degree, width)
        at += level.degree * width
    return rows.view("<u8").reshape(len(level.moduli), level.degree).astype(np.uint64, copy=False)


def dump_fresh(made: Any, level: Level) -> bytes:
    """``Encryptor.encrypt_symmetric(plain)``, the seeded kind -> ``level.fresh_bytes`` bytes."""
    body, seed = _halves(saved(made), level, seeded=True)
    return pack(body[0], level) + seed


def dump(made: Any, level: Level) -> bytes:
    """A ciphertext of two ring elements -> ``level.ciphertext_bytes`` bytes."""
    body, _ = _halves(saved(made), level, seeded=False)
    return pack(body[0], level) + pack(body[1], level)


def load_fresh(context: Any, level: Level, data: memoryview | bytes, what: str, scale: float = 1.0) -> Any:
    """The ciphertext of :func:`dump_fresh`. Raises PeerMisbehaved on a wrong length or residues out of range."""
    return loaded(seal.Ciphertext(), context, envelope(fresh_stream(level, data, what, scale)), what)


def load(context: Any, level: Level, data: memoryview | bytes, what: str, scale: float = 1.0) -> Any:
    """The ciphertext of :func:`dump`. Raises PeerMisbehaved on a wrong length or residues out of range."""
    return loaded(seal.Ciphertext(), context, envelope(full_stream(level, data, what, scale)), what)


def fresh_stream(level: Level, data: memoryview | bytes, what: str, scale: float = 1.0) -> bytes:
    """SEAL's members of a seeded ciphertext."""
    element, seed = cut(bytes(data), (level.polynomial_bytes, SEED_BYTES), what)
    words = unpack(element, level)
    return _members(level, scale) + _array(words) + _seed(bytes(seed))


def full_stream(level: Level, data: memoryview | bytes, what: str, scale: float = 1.0) -> bytes:
    """SEAL's members of a ciphertext of two ring elements."""
    halves = cut(bytes(data), (level.polynomial_bytes,) * 2, what)
    return _members(level, scale) + _array(np.stack([unpack(half, level) for half in halves]))


def residues(ciphertext: Any, level: Level) -> Words:
    """A ciphertext of two ring elements as words ``(2, primes, degree)``."""
    return _halves(saved(ciphertext), level, seeded=False)[0]


def from_residues(context: Any, level: Level, words: Words, scale: float = 1.0) -> Any:
    """The inverse of :func:`residues`, for words made here."""
    stream = envelope(_members(level, scale) + _array(words))
    try:
        return _through(stream, lambda path: _load_into(seal.Ciphertext(), context, path))
    except (RuntimeError, ValueError) as error:
        raise Misuse(f"residues {words.shape} are no ciphertext of this level: {error}") from None


def public_key(context: Any, level: Level, data: memoryview | bytes, what: str) -> Any:
    """A public key from ``level.ciphertext_bytes`` bytes at the key level."""
    return loaded(seal.PublicKey(), context, envelope(full_stream(level, data, what)), what)


def switching_bytes(level: Level, primes: int) -> int:
    """Bytes of one key to switch keys that is used with at most ``primes`` data primes in place."""
    return primes * level.only(primes).fresh_bytes


def switching_streams(made: Any, level: Level, primes: Sequence[int]) -> list[bytes]:
    """Seeded relinearization or Galois keys -> the canonical bytes of each, in the order of SEAL's own table.

    A key to switch keys is one seeded ciphertext at the key level per data prime. Where a ciphertext has fewer primes
    left, SEAL reads only as many of these, and of each only the residues modulo those primes and the special one:
    ``primes`` says how many, key by key, and nothing else is sent.
    """
    stream = memoryview(saved(made))
    (rows,) = struct.unpack_from("<Q", stream, 32)
    at = 40
    out: list[bytes] = []
    size = _ENVELOPE.size + _MEMBERS.size + 2 * _ENVELOPE.size + _WORD + level.degree * len(level.moduli) * _WORD
    size += 1 + SEED_BYTES
    for _ in range(rows):
        (count,) = struct.unpack_from("<Q", stream, at)
        at += _WORD
        if not count:
            continue
        kept, pieces = primes[len(out)], []
        for number in range(kept):
            start = at + number * size
            body, seed = _halves(bytes(stream[start + _ENVELOPE.size : start + size]), level, seeded=True)
            pieces.append(pack(body[0][[*range(kept), -1]], level.only(kept)) + seed)
        out.append(b"".join(pieces))
        at += count * size
    return out


def switching_keys(
    context: Any, level: Level, kind: Any, table: Sequence[tuple[memoryview, int] | None], what: str
) -> Any:
    """Keys of ``kind`` (``seal.RelinKeys``, ``seal.GaloisKeys``) at their rows of SEAL's table.

    table: canonical bytes and how many data primes they serve, or None. What was not sent is filled with zeros.
    """
    stream = [level.name, struct.pack("<Q", len(table))]
    count = len(level.moduli) - 1
    for entry in table:
        stream.append(struct.pack("<Q", 0 if entry is None else count))
        if entry is not None:
            stream += _widened(level, *entry, what)
    return loaded(kind(), context, envelope(b"".join(stream)), what)


def _widened(level: Level, key: memoryview, primes: int, what: str) -> Iterator[bytes]:
    """SEAL's seeded ciphertexts of one key, those and the residues that were not sent being zero."""
    part = level.only(primes)
    pieces = cut(bytes(key), (part.fresh_bytes,) * primes, what)
    for number in range(len(level.moduli) - 1):
        words, seed = np.zeros((len(level.moduli), level.degree), np.uint64), bytes(SEED_BYTES)
        if number < primes:
            words[[*range(primes), -1]] = unpack(pieces[number][: part.polynomial_bytes], part)
            seed = bytes(pieces[number][part.polynomial_bytes :])
        yield envelope(_members(level, 1.0) + _array(words) + _seed(seed))


def envelope(members: bytes) -> bytes:
    """Members behind SEAL's header, uncompressed."""
    head = _ENVELOPE.pack(_MAGIC, _ENVELOPE.size, _MAJOR, _minor(), _PLAIN, 0, _ENVELOPE.size + len(members))
    return head + members


@cache
def _minor() -> int:
    """Minor version of the installed SEAL: it marks its streams with it and reads no other's. Members are equal."""
    _, _, major, minor, _, _, _ = _ENVELOPE.unpack_from(_through(None, seal.Plaintext("1").save))
    if major != _MAJOR or minor not in _MINORS:
        known = f"{_MAJOR}.{_MINORS.start} to {_MAJOR}.{_MINORS.stop - 1}"
        raise BadParameters(f"SEAL {major}.{minor} is installed; the streams known here are those of {known}")
    return int(minor)


def _members(level: Level, scale: float, elements: int = 2) -> bytes:
    return _MEMBERS.pack(level.name, level.ntt, elements, level.degree, len(level.moduli), scale, 1)


def _seed(seed: bytes) -> bytes:
    return envelope(bytes([_BLAKE2XB]) + seed)


def _array(words: Words) -> bytes:
    data = np.ascontiguousarray(words, "<u8")
    return envelope(struct.pack("<Q", data.size) + data.tobytes())


def _halves(members: bytes, level: Level, *, seeded: bool) -> tuple[Words, bytes]:
    """Words ``(1 or 2, primes, degree)`` and the seed, out of SEAL's members of a ciphertext of this side's making."""
    _, ntt, elements, degree, primes, _, _ = _MEMBERS.unpack_from(members)
    count = (1 if seeded else 2) * len(level.moduli) * level.degree
    start = _MEMBERS.size + _ENVELOPE.size + _WORD
    rest = members[start + count * _WORD :]
    expected = (_ENVELOPE.size + 1 + SEED_BYTES) if seeded else 0
    if (elements, degree, primes, ntt) != (2, level.degree, len(level.moduli), level.ntt) or len(rest) != expected:
        raise Misuse(f"a ciphertext of {elements} elements with {primes} primes is not one of this level")
    words = np.frombuffer(members, "<u8", count=count, offset=start).astype(np.uint64, copy=False)
    return words.reshape(-1, len(level.moduli), level.degree), rest[_ENVELOPE.size + 1 :]


def saved(made: Any) -> bytes:
    """SEAL's members of what was made here, decompressed."""
    data: bytes = _through(None, made.save)
    _minor()  # a version that is not known is refused
    _, size, _, _, compression, _, _ = _ENVELOPE.unpack_from(data)
    if compression == _PLAIN:
        return data[size:]
    if compression != _ZSTD:
        raise BadParameters(f"SEAL compresses by method {compression} here; zstd ({_ZSTD}) is expected")
    return zstandard.ZstdDecompressor().decompressobj().decompress(memoryview(data)[size:])


def loaded(target: Any, context: Any, stream: bytes, what: str) -> Any:
    """SEAL's object of the target's kind, out of a stream. Raises PeerMisbehaved where SEAL refuses it."""
    with refused(what):
        return _through(stream, lambda path: _load_into(target, context, path))


def _load_into(target: Any, context: Any, path: str) -> Any:
    target.load(context, path)
    return target


def _through(stream: bytes | None, use: Any) -> Any:
    """``use(path)`` of a file in memory: holding ``stream``, or, with None, to be read after ``use`` wrote it."""
    fd = os.memfd_create("pqi")
    try:
        path = f"/proc/self/fd/{fd}"
        if stream is None:
            use(path)
            size = os.fstat(fd).st_size
            return os.pread(fd, size, 0)
        view = memoryview(stream)
        while len(view):
            view = view[os.write(fd, view) :]
        return use(path)
    finally:
        os.close(fd)
