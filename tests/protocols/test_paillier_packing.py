"""Packing is linear, exact at its limits, and notices what does not belong; sums of many parties use nothing else."""

from __future__ import annotations

import secrets

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.errors import BadParameters, Misuse, PeerMisbehaved
from protocols.paillier.packing import Packing
from protocols.paillier.private import PrivateKey


@settings(deadline=None)
@given(bits=st.integers(1, 70), data=st.data())
def test_what_is_packed_is_unpacked(bits: int, data: st.DataObject) -> None:
    packing = Packing.fitting(bits, 2048)
    value = st.integers(-(1 << (bits - 1)), (1 << (bits - 1)) - 1)
    values = data.draw(st.lists(value, max_size=packing.slots))
    assert packing.unpack(packing.pack(values), len(values)) == values


@given(bits=st.integers(1, 2046))
def test_a_full_number_stays_below_half_of_the_smallest_modulus(bits: int) -> None:
    packing = Packing.fitting(bits, 2048)
    half = 1 << (bits - 1)
    for value in (-half, half - 1):
        assert 2 * abs(packing.pack([value] * packing.slots)) < 1 << 2047


def test_a_weighted_sum_of_packed_vectors_packs_the_weighted_sum() -> None:
    packing = Packing.fitting(10, 2048)
    a, b = packing.pack([1, -2, 3]), packing.pack([-100, 50, 0])
    assert packing.unpack(7 * a - 5 * b, 3) == [507, -264, 21]


@pytest.mark.parametrize("count", [0, 2])
def test_a_number_that_goes_on_after_its_values_is_refused(count: int) -> None:
    packing = Packing.fitting(8, 2048)
    with pytest.raises(PeerMisbehaved, match=f"goes on after its {count} values"):
        packing.unpack(packing.pack([1, 2, 3]), count)


def test_a_slot_outside_its_proof_is_refused_before_it_reaches_its_neighbour() -> None:
    packing = Packing.fitting(8, 2048)
    for value in (128, -129):
        with pytest.raises(PeerMisbehaved, match="more than its 8 proven bits"):
            packing.unpack(value + (1 << packing.width), 2)


def test_values_that_do_not_fit_are_refused() -> None:
    packing = Packing(8, 2)
    with pytest.raises(Misuse, match="3 values for 2 slots"):
        packing.pack([1, 2, 3])
    for value in (128, -129):
        with pytest.raises(Misuse, match="8 signed bits"):
            packing.pack([value])
    with pytest.raises(BadParameters, match="2047 bits do not fit a plaintext of 2048"):
        Packing.fitting(2047, 2048)


def test_the_vectors_of_many_parties_add_up_under_one_key() -> None:
    """Additive aggregation: everyone encrypts under the public key, anyone multiplies, the key holder reads the sum."""
    parties, bits = 5, 8
    packing = Packing.fitting(bits + (parties - 1).bit_length(), 2048)
    key = PrivateKey(2048)
    vectors = [[secrets.randbelow(256) - 128 for _ in range(packing.slots)] for _ in range(parties)]
    sent = [key.public.encrypt(packing.pack(v), key.public.zero()) for v in vectors]
    total = packing.unpack(key.decrypt(key.public.add(sent)), packing.slots)
    assert total == [sum(column) for column in zip(*vectors, strict=True)]
