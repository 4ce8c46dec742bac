"""Key streams where they are needed: on a processor by its own AES, on another device the same bytes by tensor code."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from protocols import aes, prg
from protocols.devices import CPU
from protocols.errors import Misuse
from protocols.prg import Key

Rows: TypeAlias = NDArray[Any] | Tensor
"""Bytes ``(n, size)``: an array in the processor's memory, where cutting one costs a third, or a tensor elsewhere."""


class Stream:
    """A key stream read in records of ``blocks`` blocks; a record is read once and the mark never goes back."""

    def __init__(self, key: Key, blocks: int, device: torch.device = CPU) -> None:
        self._key, self.blocks, self._device, self._mark = key, blocks, device, 0

    def take(self, first: int, n: int) -> Rows:
        """Records ``first .. first+n-1`` as uint8 ``(n, 16*blocks)``; refuses a record already read."""
        if first < self._mark:
            raise Misuse(f"record {first} of a key stream was asked for, but records below {self._mark} are spent")
        self._mark = first + n
        return records(self._key, self.blocks, first, n, self._device)


def records(key: Key, blocks: int, first: int, n: int, device: torch.device = CPU) -> Rows:
    """Records ``first .. first+n-1`` of ``blocks`` blocks each: uint8 ``(n, 16*blocks)``; once is the caller's duty."""
    at, size = first * blocks, n * blocks * prg.BLOCK
    made: Rows = prg.keystream(key, at, size) if device.type == "cpu" else aes.keystream(key, at, size, device)
    return made.reshape(n, blocks * prg.BLOCK)


def zeros(n: int, size: int, device: torch.device = CPU) -> Rows:
    """Rows to be written to."""
    return (
        np.zeros((n, size), np.uint8)
        if device.type == "cpu"
        else torch.zeros((n, size), dtype=torch.uint8, device=device)
    )


def blocks_at(key: Key, positions: Tensor) -> Tensor:
    """AES blocks at scattered counters ``positions`` (int64): uint8 ``(*positions.shape, 16)``, where they lie."""
    if positions.device.type != "cpu":
        return aes.blocks_at(key, positions)
    made = prg.blocks_at(key, positions.reshape(-1).numpy())
    return torch.from_numpy(made).reshape(*positions.shape, prg.BLOCK)
