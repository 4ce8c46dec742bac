"""What the tests of encodings and noise share."""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike

from pqi.federated import Codec, Coins
from protocols.prg import Key


def coins(number: int) -> Coins:
    """The same coins in every run: a test over random samples has one outcome."""
    return Coins(Key(number.to_bytes(16, "big")))


class Scripted(Coins):
    """Words from a list, repeated for as many as are asked for."""

    __slots__ = ("words_left",)

    def __init__(self, words: list[int]) -> None:
        super().__init__()
        self.words_left = list(words)

    def words(self, count: int, dtype: DTypeLike) -> np.ndarray:
        word = self.words_left.pop(0) if len(self.words_left) > 1 else self.words_left[0]
        return np.full(count, word, dtype)


def signed(values: np.ndarray, bits: int) -> np.ndarray:
    """Ring elements as signed integers, written out anew."""
    wide = values.astype(np.int64)
    return np.where(wide >= 1 << (bits - 1), wide - (1 << bits), wide)


def summed(codec: Codec, vectors: list[np.ndarray]) -> np.ndarray:
    """What a secure sum gives: the sum in the ring, as uint64."""
    return np.sum([v.astype(np.uint64) for v in vectors], axis=0, dtype=np.uint64) % np.uint64(1 << codec.bits)
