"""Integer weights: which integers each scheme allows, exact where the network is, near where it is not."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pqi.graph.errors import QuantizationError
from pqi.quant.levels import nearest
from pqi.quant.scheme import Scheme
from pqi.quant.stages import Grid
from pqi.quant.weights import exact_unit, fixed_levels, integer_scale, typical_multiplier, weight_grid, weight_steps

ALL: list[tuple[str, int]] = [
    ("symmetric", 2),
    ("symmetric", 4),
    ("symmetric", 8),
    ("affine", 2),
    ("affine", 5),
    ("affine", 8),
    ("ternary", 2),
    ("binary", 1),
    ("power_of_two", 3),
    ("power_of_two", 4),
    ("additive_powers_of_two", 3),
    ("additive_powers_of_two", 5),
    ("codebook", 3),
    ("codebook", 6),
]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def quantized(weight: Tensor, ratio: float, scheme: Scheme) -> tuple[Tensor, Grid]:
    grid, target = weight_grid("layer", weight, ratio, scheme)
    return grid.nearest(target), grid


@given(seed=st.integers(0, 10_000), bits=st.integers(4, 8), ratio=st.floats(1e-2, 1e4), per_channel=st.booleans())
def test_symmetric_channels_are_codes_of_the_asked_bits_times_one_number(
    seed: int, bits: int, ratio: float, per_channel: bool
) -> None:
    weight = normal(5, 3, 2, seed=seed) * torch.logspace(-1, 1, 5)[:, None, None]
    integers, grid = quantized(weight, ratio, Scheme(bits, per_channel=per_channel))
    target, top = weight * ratio, (1 << (bits - 1)) - 1
    reach = target.abs().flatten(1).amax(1) if per_channel else target.abs().max().expand(5)
    assert grid.levels.tolist() == list(range(-top, top + 1))
    for row, wanted, largest, multiplier in zip(integers, target, reach, grid.multiplier.tolist(), strict=True):
        assert multiplier == max(1, -(-float(largest) * (1 - 1e-12) // top))
        assert bool((row % multiplier == 0).all()) and int(row.abs().max()) <= multiplier * top
        assert float((row - wanted).abs().max()) <= multiplier / 2 + 1e-6


@given(seed=st.integers(0, 10_000), bits=st.integers(4, 8), ratio=st.floats(1e-2, 1e4), per_channel=st.booleans())
def test_affine_channels_cover_their_own_range_from_a_whole_zero_point(
    seed: int, bits: int, ratio: float, per_channel: bool
) -> None:
    weight = normal(5, 6, seed=seed) + torch.linspace(-3, 3, 5)[:, None]
    integers, grid = quantized(weight, ratio, Scheme(bits, "affine", per_channel))
    levels = grid.levels if per_channel else grid.levels[None]
    assert levels.shape == (5 if per_channel else 1, 1 << bits) and set(levels.diff(dim=1).unique().tolist()) == {1}
    span = weight.amax(1) - weight.amin(1) if per_channel else (weight.max() - weight.min()).expand(5)
    for row, wanted, width, multiplier in zip(integers, weight * ratio, span, grid.multiplier.tolist(), strict=True):
        assert multiplier == max(1, -(-float(width) * ratio * (1 - 1e-12) // ((1 << bits) - 1)))
        assert float((row - wanted).abs().max()) <= multiplier / 2 + 1e-6


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize(("weights", "bits"), ALL)
def test_every_weight_is_the_nearest_of_the_integers_that_its_channel_may_have(
    weights: str, bits: int, per_channel: bool
) -> None:
    weight = normal(4, 3, 3, 3) * torch.tensor([1.0, 0.3, 3.0, 1.0])[:, None, None, None]
    integers, grid = quantized(weight, 40.0, Scheme(bits, weights, per_channel))
    assert integers.dtype == torch.int64 and integers.shape == weight.shape
    for channel in range(4):
        allowed = grid.row(channel)
        assert len(allowed) <= 1 << bits if weights != "ternary" else len(allowed) == 3
        assert bool((allowed.diff() >= 0).all())
        distance = (weight[channel].reshape(-1, 1) * 40 - allowed).abs()
        chosen = (weight[channel] * 40 - integers[channel]).abs().flatten()
        assert torch.equal(chosen, distance.amin(1))
    if not per_channel:
        assert len(grid.multiplier.unique()) == 1 and grid.levels.ndim == 1


@pytest.mark.parametrize("weights", ["symmetric", "affine", "power_of_two", "additive_powers_of_two", "codebook"])
def test_more_bits_are_nearer(weights: str) -> None:
    weight = normal(8, 200)
    most = {"power_of_two": 4, "additive_powers_of_two": 6}.get(weights, 8)
    errors = []
    for bits in range(2, most + 1):
        integers, _ = quantized(weight, 3000.0, Scheme(bits, weights))
        errors.append(float((integers - weight * 3000).square().mean()))
    assert all(b < a for a, b in itertools.pairwise(errors))


def test_non_uniform_levels_of_four_bits_are_nearer_to_bell_shaped_weights_than_uniform_ones() -> None:
    weight, error = normal(8, 500), {}
    for weights in ("symmetric", "additive_powers_of_two", "codebook"):
        integers, _ = quantized(weight, 3000.0, Scheme(4, weights))
        error[weights] = float((integers - weight * 3000).square().mean())
    assert error["codebook"] < error["additive_powers_of_two"] < error["symmetric"]


def test_the_ternary_step_is_the_best_of_all() -> None:
    rows = normal(6, 9)
    for row, step in zip(rows, weight_steps(rows, Scheme(weights="ternary")), strict=True):
        signs = torch.tensor(list(itertools.product([-1.0, 0.0, 1.0], repeat=9))[1:], dtype=torch.float64)
        signs = signs[signs.abs().sum(1) > 0]
        best = (signs @ row) / signs.abs().sum(1)
        errors = (row - best[:, None] * signs).square().sum(1)
        found = (row - step * nearest(row[None] / step, torch.tensor([-1.0, 0.0, 1.0]).double())[0]).square().sum()
        assert float(found) == pytest.approx(float(errors.min()), rel=1e-12)
        assert float(step) == pytest.approx(abs(float(best[errors.argmin()])), rel=1e-12)


def test_the_binary_step_is_the_mean_magnitude_and_dead_channels_stay_dead() -> None:
    weight = torch.tensor([[1.0, -2.0, 3.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    scheme = Scheme(weights="binary")
    assert weight_steps(weight, scheme).tolist() == [2.0, 0.0]
    assert quantized(weight, 50.0, scheme)[0].tolist() == [[100, -100, 100], [0, 0, 0]]
    assert quantized(0 * weight, 50.0, replace_per_tensor(scheme))[0].tolist() == [[0, 0, 0], [0, 0, 0]]


def replace_per_tensor(scheme: Scheme) -> Scheme:
    return Scheme(scheme.weight_bits, scheme.weights, per_channel=False)


def test_three_bits_cut_an_outlier_off_and_eight_do_not() -> None:
    weight = torch.cat([normal(1, 500), torch.tensor([[6.0]], dtype=torch.float64)], 1)
    assert quantized(weight, 100.0, Scheme(3))[1].multiplier.item() < 200
    assert quantized(weight, 100.0, Scheme(8))[1].multiplier.item() == -(-600 // 127)


# -- exactness -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weight", "scheme", "unit"),
    [
        ([[1.0, -1.0], [1.0, 1.0]], Scheme(2), 1.0),
        ([[0.25, -0.25], [0.0, 0.25]], Scheme(2), 0.25),
        ([[3.0, -7.0], [0.0, 1.0]], Scheme(4), 1.0),
        ([[3.0, -8.0], [0.0, 1.0]], Scheme(4), None),
        ([[0.5, 0.25]], Scheme(8), None),
        ([[0.0, 0.0]], Scheme(8), None),
        ([[0.5, -0.5]], Scheme(weights="binary"), 0.5),
        ([[0.5, 0.0]], Scheme(weights="binary"), None),
        ([[3.0, 0.0]], Scheme(weights="ternary"), 3.0),
        ([[100.0, 115.0]], Scheme(4, "affine"), 1.0),
        ([[100.0, 116.0]], Scheme(4, "affine"), None),
        ([[4.0, -2.0]], Scheme(3, "power_of_two"), 1.0),
        ([[3.0, -2.0]], Scheme(3, "power_of_two"), None),
        ([[3.0, -10.0]], Scheme(4, "additive_powers_of_two"), 1.0),
        ([[3.0, -77.0, 5.0, 1000.0]], Scheme(2, "codebook"), 1.0),
        ([[3.0, -77.0, 5.0, 1000.0, 0.0]], Scheme(2, "codebook"), None),
    ],
)
def test_weights_that_are_levels_already_are_recognised(
    weight: list[list[float]], scheme: Scheme, unit: float | None
) -> None:
    given = torch.tensor(weight, dtype=torch.float64)
    assert exact_unit(given, scheme) == unit
    if unit is not None:
        integers, _ = quantized(given, 256.0 / unit, scheme)
        assert torch.equal(integers, (given * (256 / unit)).long())


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize(("weights", "bits"), [case for case in ALL if case[0] != "binary"])
def test_a_ternary_channel_keeps_its_three_values(weights: str, bits: int, per_channel: bool) -> None:
    weight = torch.tensor([[0.7, -0.7, 0.0]], dtype=torch.float64)
    assert quantized(weight, 1000.0, Scheme(bits, weights, per_channel))[0].tolist() == [[700, -700, 0]]


def test_whole_weights_stay_whole_under_a_whole_ratio_only() -> None:
    weight = torch.tensor([[3.0, -100.0, 0.0]], dtype=torch.float64)
    assert quantized(weight, 256.0, Scheme(8))[0].tolist() == [[768, -25600, 0]]
    assert quantized(weight, 3.4, Scheme(8))[0].tolist() == [[9, -339, 0]]


def test_a_code_book_with_room_for_every_weight_holds_every_weight() -> None:
    weight = torch.tensor([[0.5, -2.25, 0.5, 7.0], [1.0, 1.0, 3.0, 1.0]], dtype=torch.float64)
    assert torch.equal(quantized(weight, 4.0, Scheme(2, "codebook"))[0], (weight * 4).long())


# -- units -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scheme", "units"),
    [
        (Scheme(8), 0.5),
        (Scheme(7), 1.0),
        (Scheme(4), 4.0),
        (Scheme(2), 4.0),
        (Scheme(8, "affine"), 0.5),
        (Scheme(weights="binary"), 4.0),
        (Scheme(3, "power_of_two"), 4.0),
        (Scheme(4, "power_of_two"), 64 / 65),
        (Scheme(6, "additive_powers_of_two"), 64 / 101),
        (Scheme(4, "codebook"), 1.0),
        (Scheme(4, multiplier=7.5), 7.5),
    ],
)
def test_a_typical_channel_s_largest_weight_has_about_64_units(scheme: Scheme, units: float) -> None:
    assert typical_multiplier(scheme) == units
    levels = fixed_levels(scheme)
    if levels is not None and scheme.multiplier is None:
        assert int(levels[-1]) * units <= 65


@pytest.mark.parametrize(("weights", "bits"), ALL)
def test_steps_follow_the_weights(weights: str, bits: int) -> None:
    scheme, weight = Scheme(bits, weights), normal(3, 40)
    weight[1] = 0
    steps = weight_steps(weight, scheme)
    assert float(steps[1]) == 0 and float(steps[0]) > 0 < float(steps[2])
    assert torch.allclose(weight_steps(weight * 7, scheme), steps * 7, rtol=1e-12)


@pytest.mark.parametrize(("weights", "bits"), ALL)
def test_weights_beyond_the_ring_are_refused_by_layer(weights: str, bits: int) -> None:
    weight = torch.ones(1, 1, dtype=torch.float64)
    for ratio in (1e12, float("inf"), float("nan")):
        with pytest.raises(QuantizationError, match="'fc'"):
            weight_grid("fc", weight, ratio, Scheme(bits, weights))


def test_factors_beyond_the_ring_are_refused_by_layer() -> None:
    with pytest.raises(QuantizationError, match="'bn'"):
        integer_scale("bn", torch.ones(1, 1, dtype=torch.float64), 1e12)


# -- grids -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [torch.tensor([-2, 0, 1, 5]), torch.tensor([[-2, 0, 1, 5], [0, 1, 1, 3]])])
def test_a_grid_knows_the_neighbours_of_any_number(levels: Tensor) -> None:
    grid = Grid(levels, torch.tensor([3, 2]))
    target = torch.tensor([[-100.0, -6.0, -1.6, 2.0, 14.9, 99.0], [-1.0, 0.0, 0.9, 1.0, 4.9, 7.0]])
    below, above = grid.neighbours(target)
    for channel in range(2):
        allowed = grid.row(channel).tolist()
        for x, a, b in zip(target[channel].tolist(), below[channel].tolist(), above[channel].tolist(), strict=True):
            assert a == max([v for v in allowed if v <= x], default=allowed[0])
            assert b == min([v for v in allowed if v > x], default=allowed[-1])


def test_of_two_equally_near_weights_the_lower_is_taken() -> None:
    grid = Grid(torch.tensor([-1, 0, 1]), torch.tensor([2]))
    assert grid.nearest(torch.tensor([[-1.0, 1.0, 1.1]])).tolist() == [[-2, 0, 2]]


def test_affine_levels_and_code_books_wait_for_the_weights() -> None:
    assert fixed_levels(Scheme(4, "affine")) is None and fixed_levels(Scheme(4, "codebook")) is None
    assert fixed_levels(Scheme(weights="binary")) is not None
