"""Unsigned integers of 1 to 64 bits, packed to exactly their bits: ``ceil(count * bits / 8)`` bytes, in numpy alone.

The low 32, 16 and 8 bits lie side by side as little-endian words, as many of them as the width has; the one to seven
bits that are left of each value lie behind, eight values in as many bytes. Widths of 8, 16, 32 and 64 are plain words.
(``ring.pack`` is for tensors of rings up to 32 bits, in planes of bits; here whole vectors travel once.)
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from protocols.errors import Misuse, PeerMisbehaved

MAX_BITS = 64
_WORDS: dict[int, np.dtype[Any]] = {8 * size: np.dtype(f"<u{size}") for size in (1, 2, 4, 8)}


def word(bits: int) -> np.dtype[Any]:
    """The smallest unsigned word (little-endian, of 8, 16, 32 or 64 bits) that holds ``bits`` bits."""
    if not 1 <= bits <= MAX_BITS:
        raise Misuse(f"values of {bits} bits were asked for; words here hold 1 to {MAX_BITS}")
    return _WORDS[next(width for width in _WORDS if width >= bits)]


def packed_bytes(count: int, bits: int) -> int:
    """``ceil(count * bits / 8)``."""
    return -(-count * bits // 8)


def pack_words(values: np.ndarray, bits: int) -> bytes:
    """The low ``bits`` bits of every value; values: unsigned integers ``(count,)`` in any word."""
    own = word(bits)
    if values.ndim != 1 or values.dtype.kind != "u":
        raise Misuse(f"what is packed is a line of unsigned integers, not {values.dtype} {values.shape}")
    if bits in _WORDS:
        return values.astype(own, copy=False).tobytes()
    parts = [(values >> low).astype(_WORDS[width]).tobytes() for low, width in _stretches(bits)]
    low, rest = bits & ~7, bits & 7
    if rest:
        parts.append(_squeeze((values >> low).astype(np.uint8), rest))
    return b"".join(parts)


def unpack_words(data: bytes | bytearray | memoryview, count: int, bits: int) -> np.ndarray:
    """Inverse of :func:`pack_words`: ``(count,)`` in :func:`word` of the width; it may be a view that is read-only.

    Raises :class:`PeerMisbehaved` on a wrong length, and if the last byte's spare bits are not zero.
    """
    own, want = word(bits), packed_bytes(count, bits)
    if len(data) != want:
        raise PeerMisbehaved(f"{count} values of {bits} bits take {want} bytes, but {len(data)} came")
    if bits in _WORDS:
        return np.frombuffer(data, own)
    out, at = np.zeros(count, own), 0
    for low, width in _stretches(bits):
        part = np.frombuffer(data, _WORDS[width], count, at)
        out |= part.astype(own) << low
        at += count * width // 8
    rest = bits & 7
    if rest:
        out |= _spread(np.frombuffer(data, np.uint8, offset=at), count, rest).astype(own) << (bits & ~7)
    return out


@cache
def _stretches(bits: int) -> tuple[tuple[int, int], ...]:
    """The whole words of a value: (first bit, width), widths among 32, 16 and 8."""
    cut, at = [], 0
    for width in (32, 16, 8):
        if bits - at >= width:
            cut.append((at, width))
            at += width
    return tuple(cut)


def _squeeze(values: np.ndarray, bits: int) -> bytes:
    """Bytes of which ``bits`` < 8 bits count, eight to a 64-bit word, moved together in three steps by halves."""
    count = len(values)
    lanes = np.zeros(-(-count // 8), "<u8")
    eight = lanes.view(np.uint8)
    np.bitwise_and(values, (1 << bits) - 1, out=eight[:count])
    for width in (8, 16, 32):
        # Each lane of 2 * width bits has two fields of `kept` bits, `width` apart: the upper one moves down.
        kept = bits * width // 8
        upper = lanes & _comb(width, 2 * width, kept)
        lanes ^= upper
        np.right_shift(upper, width - kept, out=upper)
        lanes |= upper
    return eight.reshape(-1, 8)[:, :bits].tobytes()[: packed_bytes(count, bits)]


def _spread(data: np.ndarray, count: int, bits: int) -> np.ndarray:
    """Inverse of :func:`_squeeze`."""
    spare = len(data) * 8 - count * bits
    if spare and int(data[-1]) >> (8 - spare):
        raise PeerMisbehaved(f"the {spare} spare bits behind {count} values of {bits} bits are not zero")
    lanes = np.zeros(-(-count // 8), "<u8")
    eight, packed = lanes.view(np.uint8).reshape(-1, 8), np.zeros(len(lanes) * bits, np.uint8)
    packed[: len(data)] = data
    eight[:, :bits] = packed.reshape(-1, bits)
    for width in (32, 16, 8):
        kept = bits * width // 8
        upper = lanes & _comb(kept, 2 * width, kept)
        lanes ^= upper
        np.left_shift(upper, width - kept, out=upper)
        lanes |= upper
    return lanes.view(np.uint8)[:count]


@cache
def _comb(first: int, period: int, kept: int) -> Any:
    """``kept`` ones from bit ``first`` of every ``period`` bits of a 64-bit word."""
    return np.uint64(sum(((1 << kept) - 1) << at for at in range(first, 64, period)))
