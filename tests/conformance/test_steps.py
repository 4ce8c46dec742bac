"""Every primitive, rings of 4 to 32 bits, ragged shapes, batches of 0, 1 and 7, extreme values: equal to ``clear``."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import protocols
from protocols import api
from protocols.linmap import ConvMap, DenseMap, LinearMap, ScaleMap
from protocols.noise import WHOLE
from tests.conformance.battery import check, check_cost, run, values

PROTOCOLS = sorted(protocols.CATALOGUE)
RINGS = range(4, 33)
BATCHES = (0, 1, 7)
N = 29

pytestmark = pytest.mark.parametrize("protocol", PROTOCOLS)


def headroom_fits(protocol: str, ring: int, shift: int, bits: int) -> bool:
    return ring - shift - min(bits, ring - shift - 1) <= protocols.get(protocol).clamp_headroom


@pytest.mark.parametrize("ring", RINGS)
def test_clamp_with_exact_shift_equals_its_definition(protocol: str, ring: int) -> None:
    for shift in sorted({0, 1, ring // 2, ring - 2, ring - 1}):
        for bits in sorted({1, 3, 6, max(1, ring - shift - 1), ring}):
            if headroom_fits(protocol, ring, shift, bits):
                step = api.Clamp((N,), ring, shift, bits, -3, 9 if ring % 2 else 20)
                for n in BATCHES:
                    check(protocol, step, values(ring, (n, N), shift), ring, step.ring_out)


@pytest.mark.parametrize("ring", RINGS)
def test_exact_shift_equals_its_definition(protocol: str, ring: int) -> None:
    for shift in sorted({1, 2, ring // 2, ring - 1, min(8, ring - 1), min(9, ring - 1)}):
        for n in BATCHES:
            check(protocol, api.Shift((N,), ring, shift), values(ring, (n, N), shift), ring, ring - shift)


@pytest.mark.parametrize("ring", RINGS)
def test_sign_equals_its_definition(protocol: str, ring: int) -> None:
    for n in BATCHES:
        check(protocol, api.Sign((N,), ring, 5), values(ring, (n, N)), ring, 5)


@pytest.mark.parametrize("ring", range(4, 13))
def test_tables_equal_their_definition(protocol: str, ring: int) -> None:
    for channels in (1, 3):
        for ring_out in (7, 19, 32):
            table = values(16, (channels, 1 << ring), ring_out)
            for n in BATCHES:
                step = api.Table((3, 5), ring, ring_out, channels)
                check(protocol, step, values(ring, (n, 3, 5)), ring, ring_out, {"table": table})


@pytest.mark.parametrize("ring", RINGS)
def test_fused_shift_and_table_equals_its_definition(protocol: str, ring: int) -> None:
    for shift in {1, 5, 12}:
        index = ring - shift
        if 1 <= index <= 9:
            step = api.FusedTable((3, 5), ring, shift, 17, 3)
            operands = {"table": values(16, (3, 1 << index), shift)}
            for n in BATCHES:
                check(protocol, step, values(ring, (n, 3, 5)), ring, 17, operands)


@pytest.mark.parametrize("bits", range(4, 13))
def test_relu_by_sign_and_select_equals_its_definition(protocol: str, bits: int) -> None:
    for ring_out in (3, bits, 18, 32):
        for n in BATCHES:
            check(protocol, api.Relu((N,), bits, ring_out), values(bits, (n, N)), bits, ring_out)


@pytest.mark.parametrize("bits", range(4, 32))
def test_maximum_equals_its_definition(protocol: str, bits: int) -> None:
    ring = min(32, bits + 2)
    for width in (1, 2, 3, 9):
        for n in BATCHES:
            check(protocol, api.Maximum((5,), width, bits, ring), values(bits, (n, 5, width)), ring, ring)


@pytest.mark.parametrize("ring", RINGS)
def test_noise_of_one_value_is_added_to_every_value(protocol: str, ring: int) -> None:
    """Of noise that is no chance the definition is exact; the law of all other noise is in tests/protocols."""
    top = (1 << (ring - 1)) - 1
    for bound, e in ((1, -1), (min(9, top), 0), (min(700, top), min(700, top))):
        law = torch.where(torch.arange(-bound, bound + 1) >= e, WHOLE, 0)
        for n in BATCHES:
            x = values(ring, (n, 3, 5))
            out = check(protocol, api.Noise((3, 5), ring, bound), x, ring, ring, {"law": law})
            assert torch.equal(out.got, (x + e) & ((1 << ring) - 1))


MAPS: list[tuple[LinearMap, tuple[int, ...]]] = [
    (DenseMap(5, 13), (5,)),
    (DenseMap(1, 1), (1,)),
    (DenseMap(6, 1), (6,)),
    (DenseMap(2, 1, (5,)), (2,)),
    (ConvMap(1, 4, 5, 3, (1, 1)), (3, 1, 1)),
    (ConvMap(2, 4, 5, 4, (1, 1), (2, 1), (0, 0), (1, 1), 2), (4, 1, 1)),
    (DenseMap(4, 3, (2,)), (4,)),
    (ScaleMap((3, 4)), (3, 1)),
    (ConvMap(3, 9, 7, 5, (3, 2), (2, 1), (1, 2), (1, 2)), (5, 1, 1)),
    (ConvMap(4, 8, 7, 6, (3, 3), (1, 1), (1, 1), (1, 1), 2), (6, 1, 1)),
    (ConvMap(4, 7, 7, 4, (3, 3), (2, 2), (1, 1), (1, 1), 4), (4, 1, 1)),
    (ConvMap(4, 5, 6, 7, (1, 1)), (7, 1, 1)),
]


@pytest.mark.parametrize("ring", RINGS)
@pytest.mark.parametrize("visibility", api.VISIBILITIES)
def test_linear_maps_equal_their_definition(protocol: str, visibility: str, ring: int) -> None:
    for m, bias in MAPS:
        operands = {"weight": values(ring, m.weight_shape, 1), "bias": values(ring, bias, 2)}
        for n in BATCHES:
            step = api.Linear(m.out_shape, ring, m, visibility)
            check(protocol, step, values(ring, (n, *m.in_shape)), ring, ring, operands)


@pytest.mark.parametrize("visibility", api.VISIBILITIES)
def test_a_value_in_a_wider_ring_serves_a_narrower_map(protocol: str, visibility: str) -> None:
    m = DenseMap(3, 4)
    operands = {"weight": values(9, (3, 4)), "bias": values(9, (3,))}
    out = run(protocol, api.Linear((3,), 11, m, visibility), values(20, (2, 4)), 20, 11, operands)
    assert torch.equal(out.got, out.want)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_clamp_on_any_values_equals_its_definition(protocol: str, data: st.DataObject) -> None:
    ring = data.draw(st.integers(2, 32), "ring")
    shift = data.draw(st.integers(0, ring - 1), "shift")
    bits = data.draw(st.integers(1, ring).filter(lambda b: headroom_fits(protocol, ring, shift, b)), "bits")
    top = 1 << (ring - 1)
    x = data.draw(st.lists(st.integers(-top, top - 1), min_size=1, max_size=20), "x")
    step = api.Clamp((len(x),), ring, shift, bits, data.draw(st.integers(-99, 99)), data.draw(st.integers(1, 32)))
    check(protocol, step, torch.tensor([x]), ring, step.ring_out)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_convolution_equals_its_definition(protocol: str, data: st.DataObject) -> None:
    small = st.integers(1, 3)
    groups = data.draw(small)
    kernel, stride = data.draw(st.tuples(small, small)), data.draw(st.tuples(small, small))
    padding, dilation = data.draw(st.tuples(*[st.integers(0, 2)] * 2)), data.draw(st.tuples(small, small))
    least = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    h, w = (data.draw(st.integers(m, m + 4)) for m in least)
    m = ConvMap(groups * data.draw(small), h, w, groups * data.draw(small), kernel, stride, padding, dilation, groups)
    ring = data.draw(st.integers(4, 32))
    operands = {"weight": values(ring, m.weight_shape, 3), "bias": values(ring, (m.outputs, 1, 1), 4)}
    x = values(ring, (data.draw(st.integers(0, 3)), *m.in_shape), 5)
    step = api.Linear(m.out_shape, ring, m, data.draw(st.sampled_from(api.VISIBILITIES), "visibility"))
    check(protocol, step, x, ring, ring, operands)


def test_stochastic_shift_is_the_floor_or_one_more(protocol: str) -> None:
    for ring, shift in ((6, 2), (16, 7), (20, 11), (32, 31)):
        out = run(protocol, api.Shift((N,), ring, shift, "stochastic"), values(ring, (7, N)), ring, ring - shift)
        off = (out.got - out.want) & ((1 << (ring - shift)) - 1)
        assert ((off == 0) | (off == 1)).all()
        check_cost(out)
        assert out.cost.exchanges == 0
        assert out.dealt == 0
