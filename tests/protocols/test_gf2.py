from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from protocols.additive2 import gf2
from protocols.planes import Builder

VARIABLES = 5
POLYNOMIALS = st.frozensets(
    st.frozensets(st.integers(0, VARIABLES - 1), min_size=1, max_size=4), min_size=1, max_size=6
)


def value(p: gf2.Polynomial, bits: int) -> int:
    return sum(all(bits >> i & 1 for i in term) for term in p) % 2


def every_assignment() -> list[Tensor]:
    """One plane of 32 values for each variable: value x has the bits of x."""
    numbers = torch.arange(1 << VARIABLES)
    bits = [((numbers >> i) & 1).reshape(-1, 8) for i in range(VARIABLES)]
    weights = 1 << torch.arange(8)
    return [(b * weights).sum(1).to(torch.uint8) for b in bits]


@given(p=POLYNOMIALS, q=POLYNOMIALS, mask=st.integers(0, 31), own=st.lists(st.integers(0, 255), min_size=4, max_size=4))
def test_two_shares_of_an_evaluation_add_up_to_the_polynomials_value(
    p: gf2.Polynomial, q: gf2.Polynomial, mask: int, own: list[int]
) -> None:
    polynomials = (p, q)
    opened, needed = gf2.in_products(polynomials), gf2.monomials(polynomials)
    x = every_assignment()
    masks = {i: torch.full((4,), 255 * (mask >> i & 1), dtype=torch.uint8) for i in range(VARIABLES)}
    noise = torch.tensor(own, dtype=torch.uint8)
    public = [x[i] ^ masks[i] for i in opened] or [torch.zeros(4, dtype=torch.uint8)]
    products = []
    for monomial in needed:
        product = torch.full((4,), 255, dtype=torch.uint8)
        for i in monomial:
            product &= masks[i]
        products.append(product)
    shares = []
    for first in (True, False):
        b = Builder()
        read: dict[int, int | None] = {i: b.load(1, i) for i in range(VARIABLES) if i not in opened}
        where = {i: b.load(0, k) for k, i in enumerate(opened)}
        at = {monomial: b.load(2, i) for i, monomial in enumerate(needed)}
        evaluation = gf2.Evaluation(b, where, read, at.__getitem__, first)
        program = b.finish([evaluation.share(each) for each in polynomials])
        bits = torch.stack([plane if first else noise * 0 for plane in x])
        dealt = torch.stack([noise if first else noise ^ each for each in products] or [noise])
        shares.append(program.run(torch.stack(public), bits, dealt))
    got = shares[0] ^ shares[1]
    for each, planes in zip(polynomials, got, strict=True):
        for number in range(1 << VARIABLES):
            assert int(planes[number // 8]) >> (number % 8) & 1 == value(each, number)


@given(p=POLYNOMIALS)
def test_what_occurs_in_products_is_opened_and_nothing_else(p: gf2.Polynomial) -> None:
    assert set(gf2.in_products((p,))) == {i for term in p if len(term) > 1 for i in term}


def test_every_opened_variable_has_a_mask_of_its_own_among_the_dealt_products() -> None:
    chain = gf2.plus(gf2.times(gf2.variable(0), 1), gf2.variable(2))
    assert gf2.monomials((chain,)) == (frozenset({0}), frozenset({1}), frozenset({0, 1}))


def test_sums_and_products_are_those_of_gf2() -> None:
    a, b = gf2.variable(0), gf2.variable(1)
    assert gf2.plus(a, a) == frozenset()
    assert gf2.times(gf2.plus(a, b), 2) == frozenset({frozenset({0, 2}), frozenset({1, 2})})
