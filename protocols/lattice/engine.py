"""SEAL under one client's keys: the steps that both schemes take alike."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import tenseal.sealapi as seal

from protocols.lattice.context import Context, LoadedKeys


class LatticeEngine(ABC):
    """Homomorphic steps on ciphertexts of one context."""

    def __init__(self, context: Context, keys: LoadedKeys) -> None:
        self.context, self.keys = context, keys
        self.seal = context.evaluator

    @abstractmethod
    def rotated(self, x: Any, step: int) -> Any:
        """Every row rotated to the left, as a new ciphertext."""

    def folded(self, x: Any, folds: Sequence[int]) -> Any:
        """The sum over tiles: the row rotated by each step is added, in place."""
        for step in folds:
            self.seal.add_inplace(x, self.rotated(x, step))
        return x

    def product(self, x: Any, y: Any) -> Any:
        """``x y``, relinearized; under ckks not yet divided."""
        out = seal.Ciphertext()
        if x is y:
            self.seal.square(x, out)
        else:
            self.seal.multiply(x, y, out)
        self.seal.relinearize_inplace(out, self.keys.relinearize)
        return out
