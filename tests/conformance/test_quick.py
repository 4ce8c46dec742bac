"""The clamp of fewer exchanges and the lift between rings, at every protocol: equal to ``clear`` and to their price."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import protocols
from protocols import api
from protocols.errors import BadParameters
from tests.conformance.battery import check, values

PROTOCOLS = sorted(protocols.CATALOGUE)
BATCHES = (0, 1, 7)
N = 29

pytestmark = pytest.mark.parametrize("protocol", PROTOCOLS)


def fits(ring: int, shift: int, bits: int) -> bool:
    code = min(bits, ring - shift - 1)
    return ring - shift - code <= 6 and shift + code <= 28


@pytest.mark.parametrize("ring", range(4, 33))
def test_a_quick_clamp_equals_its_definition(protocol: str, ring: int) -> None:
    for shift in sorted({0, 1, 2, ring // 3, ring // 2, ring - 2}):
        for bits in sorted({1, 3, 6, 8, max(1, ring - shift - 1)}):
            if fits(ring, shift, bits):
                step = api.QuickClamp((N,), ring, shift, bits, -3, 9 if ring % 2 else 20)
                for n in BATCHES:
                    check(protocol, step, values(ring, (n, N), shift), ring, step.ring_out)


@pytest.mark.parametrize("ring", [3, 4, 6, 8])
def test_a_quick_clamp_is_right_on_every_value_of_a_ring(protocol: str, ring: int) -> None:
    """Three times each, under different masks; the ends of the ring among them, where a borrow reaches around."""
    every = torch.arange(-(1 << ring - 1), 1 << ring - 1).repeat(3, 1)
    for shift in range(ring - 1):
        for bits in range(1, ring - shift):
            if fits(ring, shift, bits):
                check(protocol, api.QuickClamp((every.shape[1],), ring, shift, bits, 5, 13), every, ring, 13)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_quick_clamp_on_any_values_equals_its_definition(protocol: str, data: st.DataObject) -> None:
    ring = data.draw(st.integers(2, 30), "ring")
    options = [(s, b) for s in range(ring - 1) for b in range(1, ring) if fits(ring, s, b)]
    shift, bits = data.draw(st.sampled_from(options), "shift, bits")
    top = 1 << (ring - 1)
    x = data.draw(st.lists(st.integers(-top, top - 1), min_size=1, max_size=20), "x")
    step = api.QuickClamp((len(x),), ring, shift, bits, data.draw(st.integers(-99, 99)), data.draw(st.integers(1, 32)))
    check(protocol, step, torch.tensor([x]), ring, step.ring_out)


def test_a_quick_clamp_takes_one_exchange_less_than_a_clamp(protocol: str) -> None:
    backend = protocols.get(protocol)
    for ring, shift, bits in ((21, 10, 6), (16, 8, 4), (12, 2, 4)):
        quick, digits = (
            backend.cost(kind((800,), ring, shift, bits, 0, 18), 1) for kind in (api.QuickClamp, api.Clamp)
        )
        assert quick.exchanges == max(0, digits.exchanges - 1)
        assert digits.dealt_bits <= quick.dealt_bits <= 2 * digits.dealt_bits


@pytest.mark.parametrize("bits", range(2, 32))
def test_a_lift_keeps_the_value(protocol: str, bits: int) -> None:
    half = 1 << (bits - 1)
    for low in (0, -(half // 2), 3):
        for ring_out in {bits + 1, 32}:
            for n in BATCHES:
                x = low + (values(bits, (n, N), low & 7) & (half - 1))
                out = check(protocol, api.Lift((N,), bits, low, ring_out), x, bits, ring_out)
                assert torch.equal(out.want, x & ((1 << ring_out) - 1))


def test_a_lift_is_right_on_every_value_under_every_mask(protocol: str) -> None:
    x = torch.arange(8).repeat(400, 1)
    check(protocol, api.Lift((8,), 4, 0, 9), x, 4, 9)


def test_a_lift_to_a_smaller_ring_and_a_quick_clamp_far_below_its_ring_are_refused(protocol: str) -> None:
    with pytest.raises(BadParameters, match="as it is"):
        api.Lift((3,), 8, 0, 8)
    if protocol == "additive2":
        with pytest.raises(BadParameters, match=r"8 bits above the code; at most 6.*clamp to more bits"):
            protocols.get(protocol).cost(api.QuickClamp((3,), 20, 8, 4, 0, 20), 1)
