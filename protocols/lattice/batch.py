"""Affine stages on many ciphertexts at once: the same integers times whole vectors of residues.

One sample per slot makes a stage ``y_o = sum_i W[o, i] x_i`` of ciphertexts x_i. As calls to SEAL that is one per
weight; on residues it is a matrix product modulo each prime. A residue is cut into limbs and a weight into digits so
small that a product of double-precision matrices is exact (every sum below 2^53); the parts are put together modulo the
prime. Rows with the same support are one product. The time tells how wide the widest weights are, and no more.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from protocols.circuit import Integers
from protocols.lattice.residues import MAX_SHIFT, Words, added, reduced, shifted

_EXACT = 52
_DIGIT = 24
_COLUMNS = 2048  # a block of values and its temporaries stay in the cache


def product(weight: Integers, support: NDArray[np.bool_], x: Words, moduli: Sequence[int]) -> Words:
    """``W x mod q_j``: weight int64 ``(outputs, inputs)``, x ``(inputs, elements, primes, N)``; a modulus per prime."""
    _, elements, _, degree = x.shape
    out = np.empty((len(weight), *x.shape[1:]), np.uint64)
    groups, digits = _groups(support), _digits(weight)
    for j, prime in enumerate(moduli):
        for element in range(elements):
            for first in range(0, degree, _COLUMNS):
                block = slice(first, first + _COLUMNS)
                out[:, element, j, block] = _block(digits, groups, x[:, element, j, block], prime)
    return out


def _block(digits: list[Integers], groups: list[tuple[Integers, Integers]], x: Words, prime: int) -> Words:
    """Horner over the digits of the weights, highest first."""
    *lower, digit = digits
    total = _limbs(digit, groups, x, prime)
    for digit in reversed(lower):
        total = added(shifted(total, _DIGIT, prime), _limbs(digit, groups, x, prime), prime)
    return total


def _limbs(weight: Integers, groups: list[tuple[Integers, Integers]], x: Words, prime: int) -> Words:
    """Horner over the limbs of the residues, highest first."""
    norm = int(np.abs(weight).sum(1).max()).bit_length()
    limb = min(MAX_SHIFT, _EXACT - norm)
    count = -(-prime.bit_length() // limb)
    limb = -(-prime.bit_length() // count)
    mask = np.uint64((1 << limb) - 1)
    matrix = weight.astype(np.float64)
    blocks = [(rows, columns, matrix[np.ix_(rows, columns)]) for rows, columns in groups]
    total = None
    for number in reversed(range(count)):
        piece = (x >> np.uint64(limb * number) & mask).astype(np.float64)
        sums = np.empty((len(weight), x.shape[1]))
        for rows, columns, block in blocks:
            sums[rows] = block @ (piece if len(columns) == len(piece) else piece[columns])
        part = reduced(sums.astype(np.int64), prime, norm + limb)
        total = part if total is None else added(shifted(total, limb, prime), part, prime)
    return np.zeros((len(weight), x.shape[1]), np.uint64) if total is None else total


def _groups(support: NDArray[np.bool_]) -> list[tuple[Integers, Integers]]:
    """Rows with the same support, and their columns."""
    kinds, kind = np.unique(np.packbits(support, axis=1), axis=0, return_inverse=True)
    rows = [np.flatnonzero(kind.reshape(-1) == i) for i in range(len(kinds))]
    return [(found, np.flatnonzero(support[found[0]])) for found in rows]


def _digits(weight: Integers) -> list[Integers]:
    """Signed digits to the base 2^24, lowest first."""
    out: list[Integers] = []
    while True:
        if int(np.abs(weight).max()) < 1 << _DIGIT:
            return [*out, weight]
        low = (weight + (1 << (_DIGIT - 1)) & ((1 << _DIGIT) - 1)) - (1 << (_DIGIT - 1))
        out.append(low)
        weight = (weight - low) >> _DIGIT
