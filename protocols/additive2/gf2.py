"""Products of masked bits: predicates over GF(2) whose variables are opened under one-time masks.

Each variable x_i is opened as ``x^_i = x_i xor m_i``. A predicate P is an xor of products of variables. Expanding
``prod_{i in S} (x^_i xor m_i)`` turns P into an xor of *dealt* mask monomials ``prod_{i in T} m_i`` with coefficients
that are public once the x^ are open. So a party's share of P(x) is the parity of its dealt word under a public
selection: one gather and one population count per value, however many products P has (multi-input products as in
ABY2.0).

A predicate's value is never opened bare: every predicate carries one more dealt bit, its own mask, which is always
selected; what the parties open is ``P(x) xor mask``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

Monomial = frozenset[int]
Polynomial = frozenset[Monomial]

LANE = 32


def times(p: Polynomial, variable: int) -> Polynomial:
    """``variable * p`` for a p without that variable."""
    return frozenset(m | {variable} for m in p)


def plus(p: Polynomial, q: Polynomial) -> Polynomial:
    """``p xor q``."""
    return p ^ q


def variable(i: int) -> Polynomial:
    """The polynomial ``x_i``."""
    return frozenset({frozenset({i})})


@dataclass(frozen=True)
class Expansion:
    """Predicates expanded over their masks.

    The dealt word holds one mask per predicate, then the products of masks (at ``mask_at[p]`` is p's own).
    select[p]: pairs of a 32-bit lane and its coefficients, int32 ``2^variables``, for the lanes that p needs.
    public: int32 ``2^variables``, bit i the part of predicate i without any mask. deal[lane]: int32 ``2^variables``,
    the products of each assignment of the masks.
    """

    variables: int
    predicates: tuple[str, ...]
    bits: int
    select: Mapping[str, tuple[tuple[int, Tensor], ...]]
    public: Tensor
    deal: tuple[Tensor, ...]
    mask_at: Mapping[str, int]

    @property
    def lanes(self) -> list[int]:
        """Bits in each 32-bit lane of the dealt word."""
        return [min(LANE, self.bits - at) for at in range(0, self.bits, LANE)]


def expand(variables: int, predicates: Mapping[str, Polynomial]) -> Expansion:
    """Tabulate everything for ``2^variables`` opened indices (done once per kind of comparison)."""
    # The masks come first: predicates of few products then read the first lane only.
    mask_at = {name: i for i, name in enumerate(predicates)}
    monomials: dict[Monomial, int] = {}
    for p in predicates.values():
        for term in sorted(p, key=sorted):
            for size in range(1, len(term) + 1):
                for chosen in combinations(sorted(term), size):
                    monomials.setdefault(frozenset(chosen), len(predicates) + len(monomials))
    bits = len(monomials) + len(predicates)
    index = np.arange(1 << variables)
    columns = [(index >> i) & 1 for i in range(variables)]
    lanes = -(-bits // LANE)
    select, public = {}, np.zeros(1 << variables, np.int32)
    for i, (name, p) in enumerate(predicates.items()):
        words, free = _coefficients(p, monomials, columns, lanes)
        words[mask_at[name] // LANE] |= np.uint32(1 << (mask_at[name] % LANE))
        public |= free.astype(np.int32) << i
        select[name] = tuple((i, _signed(w)) for i, w in enumerate(words) if w.any())
    deal = [np.zeros(1 << variables, np.uint32) for _ in range(lanes)]
    for t, at in monomials.items():
        deal[at // LANE] |= _product(columns, t).astype(np.uint32) << np.uint32(at % LANE)
    return Expansion(
        variables, tuple(predicates), bits, select, torch.from_numpy(public), tuple(_signed(w) for w in deal), mask_at
    )


def _coefficients(
    p: Polynomial, monomials: Mapping[Monomial, int], columns: list[np.ndarray], lanes: int
) -> tuple[list[np.ndarray], np.ndarray]:
    """Coefficient of every mask monomial, bit-packed by lane, and the mask-free part, at every opened index."""
    words = [np.zeros(columns[0].size if columns else 1, np.uint32) for _ in range(lanes)]
    free = np.zeros(words[0].size, np.int64)
    for term in p:
        for size in range(len(term) + 1):
            for t in combinations(sorted(term), size):
                opened = _product(columns, term - set(t), words[0].size)
                if not t:
                    free ^= opened
                    continue
                at = monomials[frozenset(t)]
                words[at // LANE] ^= opened.astype(np.uint32) << np.uint32(at % LANE)
    return words, free


def _product(columns: list[np.ndarray], chosen: Monomial, size: int | None = None) -> np.ndarray:
    out = np.ones(size if size is not None else columns[0].size, np.int64)
    for i in chosen:
        out &= columns[i]
    return out


def _signed(w: np.ndarray) -> Tensor:
    return torch.from_numpy(w.view(np.int32).copy())
