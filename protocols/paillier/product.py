"""An encrypted vector times a matrix of plain integers: ``prod_i c_i^(w_oi)`` for every row o.

All powers of a row share their squarings (E. Straus, *Addition chains of vectors*, 1964): each ciphertext has a table
of its first 2^window powers, made once for all rows, and every weight is read ``window`` bits at a time. Weights are
shifted up by 2^(bits-1) so that none is negative; one inverse per set of columns takes the shift out again.

What time tells: which weights may be non-zero (the support, public), and how many bits the largest weight has, rounded
up to 8 and then to whole windows. Not more: zero weights and zero digits are multiplied like all others, and all
entries of a table carry a secret encryption of zero, so that none of them is a short number such as 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protocols.circuit import Integers
from protocols.paillier import numbers
from protocols.paillier.public import PublicKey

_LEAST_BITS = 8
_WINDOWS = range(1, 7)


class Matrix:
    """Rows of weights as digits, ready to be used as exponents. Holds the weights: never shown."""

    def __init__(self, support: NDArray[np.bool_], weight: Integers) -> None:
        own = weight.astype(object)
        widest = max(int(own.max()), -int(own.min()) - 1, 0).bit_length()
        self._bits = max(_LEAST_BITS, widest + 1)  # with the sign
        self.window = min(_WINDOWS, key=lambda w: _products(support, self._bits, w))
        patterns, self._pattern = np.unique(support, axis=0, return_inverse=True)
        self._patterns = [np.flatnonzero(row).tolist() for row in patterns]
        self._rows = [self._digits(own[o], np.flatnonzero(support[o])) for o in range(len(support))]

    def __repr__(self) -> str:
        return f"Matrix of {len(self._rows)} rows"

    def _digits(self, row: NDArray[np.object_], columns: NDArray[np.intp]) -> list[list[tuple[int, int]]]:
        """Per window, highest first: (column, digit) for every column of the support."""
        shifted = [(int(i), int(row[i]) + (1 << (self._bits - 1))) for i in columns]
        mask = (1 << self.window) - 1
        places = range(-(-self._bits // self.window) - 1, -1, -1)
        return [[(i, (u >> (self.window * place)) & mask) for i, u in shifted] for place in places]

    def times(self, key: PublicKey, ciphertexts: Sequence[Any], zero: Any) -> list[Any]:
        """Encryptions of ``W x``, one per row, from encryptions of x.

        zero: an encryption of zero that the key holder has never seen; the results carry powers of it and must be
        blinded by fresh ones before they leave.
        """
        square = key.square
        tables = [self._table(c, zero, square) for c in ciphertexts]
        shifts = [self._undo(key, [ciphertexts[i] for i in columns]) for columns in self._patterns]
        return [
            self._row(digits, tables, square) * shifts[int(pattern)] % square
            for digits, pattern in zip(self._rows, self._pattern.reshape(-1), strict=True)
        ]

    def _table(self, c: Any, zero: Any, square: Any) -> list[Any]:
        out = [zero]
        for _ in range((1 << self.window) - 1):
            out.append(out[-1] * c % square)
        return out

    def _undo(self, key: PublicKey, ciphertexts: Sequence[Any]) -> Any:
        """``prod_i c_i^(-2^(bits-1))``."""
        return numbers.inverse(key.scale(key.add(ciphertexts), 1 << (self._bits - 1)), key.square)

    def _row(self, digits: list[list[tuple[int, int]]], tables: list[list[Any]], square: Any) -> Any:
        total = numbers.big(1)
        for place, window in enumerate(digits):
            if place:
                for _ in range(self.window):
                    total = total * total % square
            for i, digit in window:
                total = total * tables[i][digit] % square
        return total


def _products(support: NDArray[np.bool_], bits: int, window: int) -> int:
    """Products mod n^2 that tables of ``window`` bits ask for."""
    outputs, inputs = support.shape
    digits = -(-bits // window)
    return int(inputs * ((1 << window) - 1) + digits * support.sum() + outputs * bits)
