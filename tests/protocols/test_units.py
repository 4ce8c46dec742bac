"""Products on 16-bit and 8-bit units against products by digits, which the ring's own tests hold to integers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from protocols import native, ring
from protocols.linmap import ConvMap, DenseMap, LinearMap
from protocols.units import UnitConvolution, UnitDense

needs_units = pytest.mark.skipif(native.products() is None, reason="this processor has no units for 16-bit products")


def words(shape: tuple[int, ...], bits: int, seed: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randint(-(1 << 31), (1 << 31) - 1, shape, generator=g).to(ring.word(bits))


def same_by_digits(m: LinearMap, n: int, bits: int) -> None:
    weight, x, more = (
        words(m.weight_shape, bits, 1),
        words((n, *m.in_shape), bits, 2),
        words((n, *m.out_shape), bits, 3),
    )
    with native.switched_off():
        by_digits = m.prepare(weight, bits)
    prepared = m.prepare(weight, bits)
    assert isinstance(prepared, (UnitConvolution, UnitDense)) or (isinstance(m, ConvMap) and m.groups == m.channels)
    for add in (None, more, more[:1]):
        with native.switched_off():
            want = m.apply(by_digits, x, bits, add)
        got = m.apply(prepared, x, bits, add)
        assert got.dtype is ring.word(bits)
        assert torch.equal(ring.unsigned(got, bits), ring.unsigned(want, bits))


@needs_units
@pytest.mark.parametrize("bits", [1, 7, 8, 9, 15, 16, 17, 20, 24, 25, 31, 32])
@pytest.mark.parametrize("rows", [1, 2, 9])
def test_dense_maps_equal_those_by_digits(bits: int, rows: int) -> None:
    same_by_digits(DenseMap(130, 77), rows, bits)
    same_by_digits(DenseMap(3, 1, (2, 2)), rows, bits)


@needs_units
@pytest.mark.parametrize("bits", [6, 8, 13, 16, 18, 24, 32])
@given(data=st.data())
def test_convolutions_of_any_geometry_equal_those_by_digits(bits: int, data: st.DataObject) -> None:
    def draw(low: int, high: int) -> int:
        return data.draw(st.integers(low, high))

    groups = data.draw(st.sampled_from([1, 1, 2, 3]))
    kernel, dilation = (draw(1, 4), draw(1, 3)), (draw(1, 2), draw(1, 2))
    padding = (draw(0, 2), draw(0, 2))
    reach = tuple(dilation[i] * (kernel[i] - 1) + 1 for i in (0, 1))
    size = tuple(max(reach[i] - 2 * padding[i], 1) + draw(0, 7) for i in (0, 1))
    m = ConvMap(
        groups * draw(1, 5), size[0], size[1], groups * draw(1, 9), kernel, (draw(1, 3), draw(1, 3)), padding, dilation,
        groups,
    )  # fmt: skip
    same_by_digits(m, draw(1, 3), bits)


@needs_units
@pytest.mark.parametrize("bits", [8, 20, 24])
@pytest.mark.parametrize("n", [1, 5, 70])
def test_small_images_are_computed_side_by_side_and_equal_those_by_digits(bits: int, n: int) -> None:
    m = ConvMap(20, 3, 3, 33, (3, 3), (2, 1), (1, 1))
    prepared = m.prepare(words(m.weight_shape, bits, 1), bits)
    assert prepared.ways[1].together and 5 < prepared.ways[1].images < 70  # a full pass, and one that is not
    same_by_digits(m, n, bits)


@needs_units
@pytest.mark.parametrize("bits", [8, 16, 24])
def test_the_loops_of_other_batches_are_ready_after_a_single_image(bits: int) -> None:
    m = ConvMap(64, 2, 2, 32, (3, 3), (1, 1), (1, 1))
    prepared = m.prepare(words(m.weight_shape, bits, 1), bits)
    m.apply(prepared, words((1, *m.in_shape), bits, 2), bits)
    assert prepared.ready == {way.tile for way in prepared.ways}


@needs_units
@pytest.mark.parametrize("bits", [8, 16, 24])
@pytest.mark.parametrize("stride", [(1, 1), (2, 2), (2, 1)])
def test_depthwise_maps_equal_those_by_words(bits: int, stride: tuple[int, int]) -> None:
    same_by_digits(ConvMap(6, 9, 8, 6, (3, 3), stride, (1, 1), (1, 1), 6), 3, bits)
    same_by_digits(ConvMap(5, 9, 8, 5, (3, 2), stride, (0, 2), (2, 1), 5), 2, bits)


@needs_units
def test_extreme_words_wrap_and_do_not_saturate() -> None:
    for value in (-(1 << 15), (1 << 15) - 1):
        m = DenseMap(1, 4096)
        w = torch.full((1, 4096), value, dtype=torch.int16)
        z = m.apply(m.prepare(w, 16), w.clone(), 16)
        assert int(ring.unsigned(z, 16)) == value * value * 4096 % (1 << 16)


@needs_units
def test_maps_prepared_for_units_that_are_switched_off_say_what_to_do() -> None:
    m = DenseMap(4, 4)
    prepared = m.prepare(words((4, 4), 16, 0), 16)
    with native.switched_off(), pytest.raises(RuntimeError, match="prepare the weights again"):
        m.apply(prepared, words((1, 4), 16, 1), 16)
