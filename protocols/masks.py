"""Masks: key streams of AES-128-CTR, read as words and added up in place.

All streams of a client go over a piece of the vector before the next piece is touched, so main memory is read and
written once, however many streams there are. Where the processor has the instructions, the piece lies in registers and
the streams are never written down (``native/masking.py``). Elsewhere a piece of the total, of the zeros that are
encrypted and of the key stream lie in the second-level cache together.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from protocols import native

PIECE = 128 << 10
_SPARE = 15  # update_into asks for one spare block less a byte
_ZEROS = memoryview(bytes(PIECE))
_START = bytes(16)
_WORTH_A_THREAD = 64 << 20  # bytes of key stream: some milliseconds, where starting a thread takes a fraction of one


def apply(total: np.ndarray, added: Sequence[bytes], taken: Sequence[bytes]) -> None:
    """``total += sum of streams(added) - sum of streams(taken)`` in the word of ``total``, wrapping; in place.

    total: unsigned words ``(length,)``, little-endian. added, taken: keys of 16 bytes, each of its own stream: a key
    belongs to one mask of one run, so every stream starts at block zero. Uses as many threads as torch may.
    """
    if not added and not taken:
        return
    kernel = native.streams()
    if kernel is None:
        _by_pieces(total, added, taken)
    else:
        _in_registers(kernel, total, added, taken)


def _in_registers(kernel: ModuleType, total: np.ndarray, added: Sequence[bytes], taken: Sequence[bytes]) -> None:
    rounds = kernel.schedules(np.frombuffer(b"".join((*added, *taken)), "<u4").reshape(-1, 4))
    tiles, go = total.nbytes // kernel.TILE, kernel.APPLY[total.itemsize]
    data, whole = total.view(np.uint8), tiles * kernel.TILE

    def part(first: int, last: int) -> None:
        go(data, first, last, first // 16, rounds, len(added))

    threads = max(1, min(torch.get_num_threads(), total.nbytes * len(rounds) // _WORTH_A_THREAD))
    cuts = [tiles * i // threads * kernel.TILE for i in range(threads + 1)]
    if threads == 1:
        part(0, whole)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(part, cuts[:-1], cuts[1:]))
    if whole < total.nbytes:
        rest = np.zeros(kernel.TILE, np.uint8)
        rest[: total.nbytes - whole] = data[whole:]
        go(rest, 0, kernel.TILE, whole // 16, rounds, len(added))
        data[whole:] = rest[: total.nbytes - whole]


def _by_pieces(total: np.ndarray, added: Sequence[bytes], taken: Sequence[bytes]) -> None:
    # Counter mode is the generator here; a nonce would add nothing, since every key is used for one stream.
    streams = [
        (Cipher(algorithms.AES(key), modes.CTR(_START)).encryptor().update_into, operation)
        for keys, operation in ((added, np.add), (taken, np.subtract))
        for key in keys
    ]
    room = bytearray(PIECE + _SPARE)
    per_piece = PIECE // total.itemsize
    words = np.frombuffer(room, total.dtype, per_piece)
    for start in range(0, len(total), per_piece):
        piece = total[start : start + per_piece]
        zeros, stream = _ZEROS[: piece.nbytes], words[: len(piece)]
        for expand, operation in streams:
            expand(zeros, room)
            operation(piece, stream, out=piece)
