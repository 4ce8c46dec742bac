"""Packing to exactly the bits of a value: lengths, every width, refusals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.bitpack import pack_words, packed_bytes, unpack_words, word
from protocols.errors import Misuse, PeerMisbehaved


@given(st.integers(1, 64), st.data())
def test_what_is_packed_takes_its_bits_and_comes_back(bits: int, data: st.DataObject) -> None:
    values = np.array(data.draw(st.lists(st.integers(0, 2**bits - 1), min_size=1, max_size=70)), np.uint64)
    for given_as in (values, values.astype(word(bits))):
        packed = pack_words(given_as, bits)
        assert len(packed) == -(-len(values) * bits // 8) == packed_bytes(len(values), bits)
        back = unpack_words(packed, len(values), bits)
        assert back.dtype == word(bits)
        assert back.tolist() == values.tolist()


@pytest.mark.parametrize("bits", range(1, 65))
def test_only_the_low_bits_of_a_value_travel(bits: int) -> None:
    values = np.arange(19, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    back = unpack_words(pack_words(values, bits), 19, bits)
    assert back.tolist() == [value & (1 << bits) - 1 for value in values.tolist()]


@pytest.mark.parametrize("bits", [1, 8, 13, 20, 64])
@pytest.mark.parametrize("extra", [-1, 1])
def test_another_length_is_refused(bits: int, extra: int) -> None:
    data = bytes(packed_bytes(10, bits) + extra)
    with pytest.raises(PeerMisbehaved, match=f"10 values of {bits} bits take"):
        unpack_words(data, 10, bits)


def test_spare_bits_of_the_last_byte_must_be_zero() -> None:
    data = bytearray(pack_words(np.array([1, 2, 3], np.uint8), 3))
    data[-1] |= 0x80
    with pytest.raises(PeerMisbehaved, match="spare bits behind 3 values"):
        unpack_words(data, 3, 3)


@pytest.mark.parametrize("bits", [0, 65])
def test_widths_outside_1_to_64_are_refused(bits: int) -> None:
    with pytest.raises(Misuse, match="words here hold 1 to 64"):
        pack_words(np.zeros(3, np.uint64), bits)


def test_signed_numbers_and_matrices_are_refused() -> None:
    for wrong in (np.zeros(3, np.int64), np.zeros((3, 3), np.uint64)):
        with pytest.raises(Misuse, match="a line of unsigned integers"):
            pack_words(wrong, 7)
