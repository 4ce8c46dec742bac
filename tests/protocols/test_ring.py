from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from protocols import ring
from protocols.errors import BadParameters, PeerMisbehaved

BITS = st.integers(1, 32)
NUMBERS = st.lists(st.integers(-(1 << 40), 1 << 40), max_size=70)


@given(bits=BITS, numbers=NUMBERS)
def test_packing_keeps_every_residue_and_takes_the_declared_bytes(bits: int, numbers: list[int]) -> None:
    x = torch.tensor(numbers, dtype=torch.int64)
    packed = ring.pack(x, bits)
    assert packed.nbytes == ring.packed_bytes(len(numbers), bits)
    back = ring.unsigned(ring.unpack(packed.tobytes(), bits, len(numbers)), bits)
    assert back.tolist() == [v % (1 << bits) for v in numbers]


@given(bits=BITS, count=st.integers(0, 1000))
def test_packing_wastes_less_than_a_byte_for_each_of_at_most_seven_planes(bits: int, count: int) -> None:
    exact = -(-bits * count // 8)
    assert exact <= ring.packed_bytes(count, bits) <= exact + 6
    assert ring.packed_bytes(8 * count, bits) == bits * count


@pytest.mark.parametrize("bits", range(1, 33))
def test_rows_pack_one_by_one_as_they_pack_together(bits: int) -> None:
    x = torch.arange(-30, 30).reshape(4, 15)
    rows = ring.pack(x, bits)
    assert rows.shape == (4, ring.packed_bytes(15, bits))
    assert all(np.array_equal(rows[i], ring.pack(x[i], bits)) for i in range(4))


def test_a_message_of_the_wrong_length_is_refused_with_both_lengths() -> None:
    with pytest.raises(PeerMisbehaved, match=r"10 values of 12 bits take 18 bytes, but 14 came"):
        ring.unpack(bytes(14), 12, 10)


@given(bits=BITS, numbers=NUMBERS)
def test_balanced_digits_stand_for_their_number(bits: int, numbers: list[int]) -> None:
    x = ring.to_word(torch.tensor(numbers, dtype=torch.int64), bits)
    d = ring.digits(x, bits)
    assert d.dtype is torch.int8
    total = sum(d[i].to(torch.int64) << (8 * i) for i in range(d.shape[0]))
    assert ((total - x.to(torch.int64)) % (1 << bits) == 0).all()


@pytest.mark.parametrize("bits", range(1, 33))
@pytest.mark.parametrize(
    ("rows", "inner", "columns"), [(1, 1, 1), (4, 1, 6), (5, 17, 9), (3, 300, 2), (0, 4, 3), (3, 0, 2)]
)
def test_products_on_byte_units_equal_integer_products(bits: int, rows: int, inner: int, columns: int) -> None:
    g = torch.Generator().manual_seed(bits)
    a = torch.randint(-(1 << 20), 1 << 20, (rows, inner), generator=g)
    b = torch.randint(-(1 << 20), 1 << 20, (inner, columns), generator=g)
    weights = ring.stack_weights(ring.to_word(a, bits), bits)
    digits = ring.digits(ring.to_word(b, bits), bits).reshape(-1, columns)
    z = ring.product(weights, digits, bits)
    assert torch.equal(ring.unsigned(z, bits).to(torch.int64), (a @ b) & ((1 << bits) - 1))


def test_a_processor_whose_units_saturate_gets_the_same_products(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = torch.randint(-(1 << 20), 1 << 20, (5, 40)), torch.randint(-(1 << 20), 1 << 20, (40, 3))
    weights, digits = ring.stack_weights(a.int(), 24), ring.digits(b.int(), 24).reshape(-1, 3)
    fast = ring.product(weights, digits, 24)
    monkeypatch.setattr(ring, "_units_are_exact", lambda _: False)
    assert torch.equal(ring.product(weights, digits, 24), fast)


def test_extreme_digits_do_not_saturate() -> None:
    a, b = torch.full((1, 4096), -128), torch.full((4096, 1), -128)
    z = ring.product(ring.stack_weights(a.to(torch.int16), 8), ring.digits(b.to(torch.int16), 8).reshape(-1, 1), 8)
    assert int(ring.unsigned(z, 8)) == (128 * 128 * 4096) % 256


@pytest.mark.parametrize("bits", [0, 33, -1])
def test_a_ring_that_fits_no_word_is_refused(bits: int) -> None:
    with pytest.raises(BadParameters, match="between 1 and 32"):
        ring.word(bits)


@given(bits=BITS, number=st.integers(-(1 << 40), 1 << 40))
def test_the_centred_representative_is_the_nearest_to_zero(bits: int, number: int) -> None:
    c = int(ring.centred(torch.tensor(number), bits))
    assert (c - number) % (1 << bits) == 0
    assert -(1 << (bits - 1)) <= c < 1 << (bits - 1)


@pytest.mark.parametrize(
    ("rows", "inner", "columns"), [(1, 3, 1), (1, 8, 1), (4, 8, 1), (1, 2, 3), (5, 3, 2), (1, 9, 4)]
)
def test_byte_products_are_exact_whatever_the_strides_of_a_slice(rows: int, inner: int, columns: int) -> None:
    g = torch.Generator().manual_seed(1)
    store = torch.randint(-128, 128, (4096,), dtype=torch.int8, generator=g)
    lefts = [store.as_strided((rows, inner), strides) for strides in ((inner, 1), (inner + 3, 1), (1, rows), (7, 2))]
    rights = [
        store.as_strided((inner, columns), strides, 100)
        for strides in ((columns, 1), (1, inner), (1, 2), (1, 7), (columns + 2, 1), (3, 5), (2, 1))
    ]
    for w in lefts:
        for x in rights:
            assert torch.equal(ring.byte_product(w, x), w.to(torch.int32) @ x.to(torch.int32))


@given(bits=BITS, numbers=NUMBERS)
def test_an_opened_value_is_the_sum_of_both_shares_less_both_masks(bits: int, numbers: list[int]) -> None:
    share = ring.to_word(torch.tensor(numbers, dtype=torch.int64), bits)
    mask = torch.flip(share, [0]) * 5
    message = ring.pack_difference(share, mask, bits)
    assert np.array_equal(message, ring.pack(share - mask, bits))
    opened = ring.unpack_sum(message.data, bits, share, mask)
    assert torch.equal(ring.unsigned(opened, bits), ring.unsigned(2 * (share - mask), bits))
