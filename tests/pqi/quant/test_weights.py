"""Integer weights: bits per channel, one scale, exact where the network is."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pqi.graph.errors import QuantizationError
from pqi.quant.weights import WeightScheme, exact_unit, integer_scale, integer_weights


@given(seed=st.integers(0, 10_000), bits=st.integers(2, 8), ratio=st.floats(1e-2, 1e4), per_channel=st.booleans())
def test_every_channel_is_a_code_of_the_asked_bits_times_one_number(
    seed: int, bits: int, ratio: float, per_channel: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(5, 3, 2, generator=generator, dtype=torch.float64) * torch.logspace(-1, 1, 5)[:, None, None]
    scheme = WeightScheme(bits, per_channel, 1.0)
    integers = integer_weights("layer", weight, ratio, scheme)
    target = weight * ratio
    reach = target.abs().flatten(1).amax(1) if per_channel else target.abs().max().expand(5)
    for row, wanted, largest in zip(integers, target, reach, strict=True):
        multiplier = max(1, -(-float(largest) // scheme.top))
        assert bool((row % multiplier == 0).all()) and int(row.abs().max()) <= multiplier * scheme.top
        assert float((row - wanted).abs().max()) <= multiplier / 2 + 1e-6


@pytest.mark.parametrize(
    ("weight", "top", "unit"),
    [
        ([[1.0, -1.0], [1.0, 1.0]], 1, 1.0),
        ([[0.25, -0.25], [0.0, 0.25]], 1, 0.25),
        ([[3.0, -7.0], [0.0, 1.0]], 7, 1.0),
        ([[3.0, -7.0], [0.0, 1.0]], 6, None),
        ([[0.5, 0.25]], 127, None),
        ([[0.0, 0.0]], 127, None),
    ],
)
def test_weights_that_are_whole_already_are_recognised(weight: list[list[float]], top: int, unit: float | None) -> None:
    assert exact_unit(torch.tensor(weight, dtype=torch.float64), top) == unit


def test_a_ternary_channel_keeps_its_three_values() -> None:
    weight = torch.tensor([[0.7, -0.7, 0.0]], dtype=torch.float64)
    assert integer_weights("layer", weight, 1000.0, WeightScheme(8, True, 1.0)).tolist() == [[700, -700, 0]]


def test_weights_beyond_the_ring_are_refused_by_layer() -> None:
    weight = torch.ones(1, 1, dtype=torch.float64)
    with pytest.raises(QuantizationError, match="'fc'"):
        integer_weights("fc", weight, 1e12, WeightScheme(8, True, 1.0))
    with pytest.raises(QuantizationError, match="'bn'"):
        integer_scale("bn", weight, 1e12)


def test_whole_weights_stay_whole_under_a_whole_ratio_only() -> None:
    weight = torch.tensor([[3.0, -100.0, 0.0]], dtype=torch.float64)
    scheme = WeightScheme(8, True, 1.0)
    assert integer_weights("layer", weight, 256.0, scheme).tolist() == [[768, -25600, 0]]
    assert integer_weights("layer", weight, 3.4, scheme).tolist() == [[9, -339, 0]]
