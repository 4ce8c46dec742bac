"""Shamir's shares: enough give the secret back, whichever they are; refusals."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.errors import Misuse, PeerMisbehaved
from protocols.field import ELEMENT_BYTES, PRIME, decode, encode, fresh, recover, share

ELEMENTS = st.one_of(st.integers(0, PRIME - 1), st.sampled_from([0, 1, PRIME - 1]))


@given(st.data(), st.integers(1, 12))
def test_any_that_are_needed_give_every_secret_back(data: st.DataObject, count: int) -> None:
    hidden = data.draw(st.lists(ELEMENTS, min_size=1, max_size=3))
    points = data.draw(st.lists(st.integers(1, 10_000), min_size=count, max_size=count, unique=True))
    needed = data.draw(st.integers(1, count))
    rows = dict(zip(points, share(hidden, points, needed), strict=True))
    some = data.draw(st.permutations(points))[: data.draw(st.integers(needed, count))]
    for place, secret in enumerate(hidden):
        assert recover(some, [rows[point][place] for point in some]) == secret


def test_one_share_too_few_fits_every_secret() -> None:
    """The line through the share at 1 and any claimed secret is as likely as the true one: it is the only one."""
    (at_one,), (at_two,) = share([5], [1, 2], 2)
    assert recover([1, 2], [at_one, at_two]) == 5
    assert {recover([1, 2], [at_one, other]) for other in range(50)} == {(2 * at_one - o) % PRIME for o in range(50)}


def test_sharing_twice_gives_other_shares() -> None:
    points = [1, 2, 3]
    assert share([7], points, 2) != share([7], points, 2)
    assert share([7], points, 1) == [(7,)] * 3


@given(ELEMENTS)
def test_an_element_travels_as_32_bytes(element: int) -> None:
    assert len(encode(element)) == ELEMENT_BYTES
    assert decode(encode(element)) == element


def test_what_is_no_element_is_refused() -> None:
    with pytest.raises(PeerMisbehaved, match="not below"):
        decode(PRIME.to_bytes(32, "little"))
    with pytest.raises(PeerMisbehaved, match="32 bytes, but 31 came"):
        decode(bytes(31))


def test_fresh_elements_are_in_the_field_and_differ() -> None:
    drawn = [fresh() for _ in range(20)]
    assert len(set(drawn)) == 20
    assert all(0 <= element < PRIME for element in drawn)


@pytest.mark.parametrize(
    ("hidden", "points", "needed", "reason"),
    [
        ([1], [1, 1], 1, "distinct points"),
        ([1], [0, 1], 1, "distinct points"),
        ([1], [], 1, "distinct points"),
        ([1], [1, 2], 3, "3 of 2 shares"),
        ([1], [1, 2], 0, "0 of 2 shares"),
        ([PRIME], [1, 2], 1, "element of the field"),
        ([-1], [1, 2], 1, "element of the field"),
    ],
)
def test_what_cannot_be_shared_is_refused(hidden: list[int], points: list[int], needed: int, reason: str) -> None:
    with pytest.raises(Misuse, match=reason):
        share(hidden, points, needed)


def test_shares_without_a_point_are_refused() -> None:
    with pytest.raises(Misuse, match="2 shares for 1 points"):
        recover([1], [2, 3])
