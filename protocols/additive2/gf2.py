"""Products of masked bits: predicates over GF(2) whose variables are opened under one-time masks.

A predicate P is an xor of products of bits x_i that the parties hold xor-shared. What occurs in a product is opened as
``x^_i = x_i xor m_i``; what occurs alone is not opened at all. The dealer shares products of masks, the *monomials*
``M_T = prod_{i in T} m_i``. With F(P, C) a share of ``P(x) * M_C``,

    F(x_i P1 xor P0, C) = F(P0, C) xor x^_i F(P1, C) xor F(P1, C + {i}),      F(1, C) = M_C,

so one exchange is enough for any predicate, whatever its degree (multi-input products as in ABY2.0, Patra et al.,
USENIX Security 2021). Shares of equal F are computed once. Everything acts on planes of bits (:mod:`protocols.planes`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache

from protocols.planes import Builder

Monomial = frozenset[int]
Polynomial = frozenset[Monomial]
ONE: Polynomial = frozenset({frozenset[int]()})


def times(p: Polynomial, variable: int) -> Polynomial:
    """``variable * p`` for a p without that variable."""
    return frozenset(m | {variable} for m in p)


def plus(p: Polynomial, q: Polynomial) -> Polynomial:
    """``p xor q``."""
    return p ^ q


def variable(i: int) -> Polynomial:
    """The polynomial ``x_i``."""
    return frozenset({frozenset({i})})


def in_products(polynomials: tuple[Polynomial, ...]) -> tuple[int, ...]:
    """The variables that have to be opened."""
    return tuple(sorted({i for p in polynomials for m in p if len(m) > 1 for i in m}))


def _split(p: Polynomial) -> tuple[int, Polynomial, Polynomial]:
    """``p = x_i p1 xor p0`` for the last variable of p: (i, p1, p0). Later variables gate earlier ones."""
    i = max(max(m) for m in p if m)
    return i, frozenset(m - {i} for m in p if i in m), frozenset(m for m in p if i not in m)


@cache
def monomials(polynomials: tuple[Polynomial, ...]) -> tuple[Monomial, ...]:
    """The products of masks that evaluating the polynomials needs; every opened variable's own mask is one."""
    opened = set(in_products(polynomials))
    needed = {frozenset({i}) for i in opened}
    seen: set[tuple[Polynomial, Monomial]] = set()
    stack = [(p, frozenset[int]()) for p in polynomials]
    while stack:
        p, c = stack.pop()
        p = frozenset(m for m in p if not (len(m) == 1 and not m <= opened))
        if (p, c) in seen or not p:
            continue
        seen.add((p, c))
        if p == ONE:
            needed |= {c} if c else set()
            continue
        i, with_i, without = _split(p)
        stack += [(without, c), (with_i, c), (with_i, c | {i})]
    return tuple(sorted(needed, key=lambda m: (len(m), sorted(m))))


class Evaluation:
    """Shares of polynomials inside a program.

    opened: plane of x^_i. read: this party's share of an x_i that is not opened. dealt: its share of a monomial.
    first: whether it adds public constants.
    """

    def __init__(
        self,
        builder: Builder,
        opened: Mapping[int, int],
        read: Mapping[int, int | None],
        dealt: Callable[[Monomial], int],
        first: bool,
    ) -> None:
        self._builder, self._opened, self._read, self._dealt, self._first = builder, opened, read, dealt, first
        self._known: dict[tuple[Polynomial, Monomial], int | None] = {}

    def share(self, p: Polynomial, c: Monomial = frozenset()) -> int | None:
        """F(p, c)."""
        if not p:
            return None
        if (p, c) not in self._known:
            self._known[p, c] = self._made(p, c)
        return self._known[p, c]

    def _made(self, p: Polynomial, c: Monomial) -> int | None:
        if p == ONE:
            if c:
                return self._dealt(c)
            return self._builder.ones() if self._first else None
        i, with_i, without = _split(p)
        rest = self.share(without, c)
        if i not in self._opened:
            return self._builder.xor(rest, self._read[i])
        rest = self._builder.xor(rest, self.share(with_i, c | {i}))
        return self._builder.fma(rest, self._opened[i], self.share(with_i, c))


def deal_products(builder: Builder, masks: Mapping[int, int], needed: tuple[Monomial, ...]) -> list[int | None]:
    """The dealer's planes of ``needed`` (sorted by size), from the planes of single masks."""
    made: dict[Monomial, int | None] = {}

    def product(t: Monomial) -> int | None:
        if t not in made:
            i = max(t)
            made[t] = masks[i] if len(t) == 1 else builder.land(masks[i], product(t - {i}))
        return made[t]

    return [product(t) for t in needed]
