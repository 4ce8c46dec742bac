from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols import ring
from protocols.additive2 import gf2

POLYNOMIALS = st.frozensets(st.frozensets(st.integers(0, 4), min_size=1, max_size=4), max_size=6)


def value(p: gf2.Polynomial, bits: int) -> int:
    return sum(all(bits >> i & 1 for i in term) for term in p) % 2


@settings(deadline=None)
@given(p=POLYNOMIALS, q=POLYNOMIALS)
def test_the_selected_parity_is_the_predicate_under_its_mask(p: gf2.Polynomial, q: gf2.Polynomial) -> None:
    e = gf2.expand(5, {"p": p, "q": q})
    for x in range(32):
        for masks in (0, 7, 21, 31):
            opened = x ^ masks
            for name, polynomial in (("p", p), ("q", q)):
                for own in (0, 1):
                    words = [int(lane[masks]) for lane in e.deal]
                    at = e.mask_at[name]
                    words[at // gf2.LANE] |= own << (at % gf2.LANE)
                    picked = 0
                    for lane, table in e.select[name]:
                        picked ^= words[lane] & int(table[opened])
                    got = int(ring.parity(torch.tensor([picked]))) ^ (
                        int(e.public[opened]) >> e.predicates.index(name) & 1
                    )
                    assert got == value(polynomial, x) ^ own


def test_sums_and_products_are_those_of_gf2() -> None:
    a, b = gf2.variable(0), gf2.variable(1)
    assert gf2.plus(a, a) == frozenset()
    assert gf2.times(gf2.plus(a, b), 2) == frozenset({frozenset({0, 2}), frozenset({1, 2})})
