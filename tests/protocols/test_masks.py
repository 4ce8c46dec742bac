"""Key streams added to a vector: compiled or not, on any number of threads, they are the library's."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch

from protocols import masks, native
from protocols.prg import Key, keystream

WORDS = ["<u1", "<u2", "<u4", "<u8"]
KEYS = [bytes([i]) * 16 for i in range(5)]


@pytest.mark.parametrize("words", WORDS)
@pytest.mark.parametrize("length", [1, 100, masks.PIECE // 2 + 3])
@pytest.mark.parametrize("compiled", [True, False])
def test_masks_that_are_added_and_taken_off_leave_nothing(words: str, length: int, compiled: bool) -> None:
    rng = np.random.default_rng(length)
    start = rng.integers(0, np.iinfo(words).max, length, words, True)
    total = start.copy()
    with contextlib.nullcontext() if compiled else native.switched_off():
        masks.apply(total, KEYS[:2], KEYS[2:])
        assert (total != start).mean() > 0.9 or length == 1
        masks.apply(total, KEYS[2:], [])
        masks.apply(total, [], KEYS[:2])
        masks.apply(total, [], [])
    assert total.tolist() == start.tolist()


@pytest.mark.parametrize("words", WORDS)
@pytest.mark.parametrize("length", [1, 63, 512, 70_001])
def test_the_compiled_masks_are_the_streams_of_the_library(words: str, length: int) -> None:
    streams = [keystream(Key(key), 0, length * np.dtype(words).itemsize).view(words) for key in KEYS]
    for size in (0, 2, 5):
        expected = sum(streams[:size], np.full(length, 7, words)) - sum(streams[size:], np.zeros(length, words))
        for context in (contextlib.nullcontext(), native.switched_off()):
            total = np.full(length, 7, words)
            with context:
                masks.apply(total, KEYS[:size], KEYS[size:])
            assert total.tolist() == expected.tolist()


def test_any_number_of_threads_gives_the_same_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    alone, together = np.zeros(30_001, "<u2"), np.zeros(30_001, "<u2")
    masks.apply(alone, KEYS, [])
    monkeypatch.setattr(masks, "_WORTH_A_THREAD", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    masks.apply(together, KEYS, [])
    assert together.tolist() == alone.tolist()
