"""Observers: what is kept of the values, and the range that each observer chooses from it."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pqi.graph.errors import QuantizationError
from pqi.quant.observers import OBSERVERS, Observation
from pqi.quant.observers.histogram import BINS
from pqi.quant.observers.mse import GridError

WHOLE = ("minmax", "percentile", "mse", "entropy")  # those that do not depend on the batches


def seen(*batches: Tensor) -> Observation:
    observation = Observation()
    for batch in batches:
        observation.see(batch)
    return observation


def percentile(share: float, *batches: Tensor) -> tuple[float, float]:
    return seen(*batches).range("percentile", 6, share)


def normal(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed))


def coding_error(x: Tensor, lo: float, hi: float, bits: int) -> float:
    """Mean squared error of the codes, value by value: the grid of multiples of the step, nearest code, ends kept."""
    lo, hi = min(lo, 0.0), max(hi, 0.0)
    steps = 2**bits - 1
    step = (hi - lo) / steps
    codes = (round(lo / step) + np.arange(steps + 1)) * step
    values = x.double().numpy().ravel()
    return float((np.abs(values[:, None] - codes[None, :]).min(1) ** 2).mean())


DATA: dict[str, Tensor] = {
    "both signs": normal(4000),
    "after relu": normal(4000, 1).relu(),
    "negative": -normal(4000, 2).relu(),
    "away from zero": normal(4000, 3) * 0.2 + 3,
    "lopsided": torch.cat([normal(3000, 4).relu() * 5, -torch.rand(1000, generator=torch.Generator().manual_seed(5))]),
    "long tail": normal(4000, 6) ** 3,
    "uniform": torch.rand(4000, generator=torch.Generator().manual_seed(7)),
    "three values": torch.tensor([0.0, 1.0, 7.0]).repeat(100),
}


def not_tiny(value: float) -> float:
    """The value, or zero for one that float32 loses beside 2^40 (see ``Histogram``)."""
    return value if abs(value) > 2.0**-100 else 0.0


# -- what is kept ----------------------------------------------------------------------------------------------------


def test_min_max_is_the_range_over_all_batches() -> None:
    observation = seen(torch.tensor([1.0, 2.0]), torch.tensor([]), torch.tensor([[-3.0], [0.0]]))
    assert observation.range("minmax", 6) == (observation.lo, observation.hi) == (-3.0, 2.0)
    assert (observation.count, observation.zeros) == (4, 1)
    zero = seen(torch.tensor([-0.0, -1.0])).range("minmax", 6)[1]
    assert math.copysign(1.0, zero) == 1.0


def test_a_moving_average_starts_at_the_first_batch_and_moves_a_tenth_of_the_way() -> None:
    observation = seen(torch.tensor([-1.0, 2.0]), torch.tensor([-3.0, 4.0]), torch.tensor([0.0, 4.0]))
    assert observation.range("moving_average", 6) == pytest.approx((0.9 * (-1.2), 0.9 * 2.2 + 0.4), rel=1e-12)


@settings(deadline=None, max_examples=60)
@given(
    values=st.lists(st.floats(-(2.0**40), 2.0**40, width=32).map(not_tiny), min_size=2, max_size=60),
    cuts=st.lists(st.integers(0, 60), max_size=4),
    seed=st.integers(0, 1000),
)
def test_ranges_do_not_depend_on_how_the_data_are_cut_or_ordered(
    values: list[float], cuts: list[int], seed: int
) -> None:
    x = torch.tensor(values)
    mixed = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))]
    places = sorted({0, len(values), *(min(cut, len(values)) for cut in cuts)})
    parts = [mixed[a:b] for a, b in itertools.pairwise(places)]
    whole, cut = seen(x), seen(*parts)
    assert torch.equal(whole._histogram.counts, cut._histogram.counts) and whole.zeros == cut.zeros
    for observer in WHOLE:
        assert whole.range(observer, 3, 90.0) == cut.range(observer, 3, 90.0)


def test_values_are_counted_in_bins_of_equal_width_that_hold_them() -> None:
    x = torch.cat([normal(5000), torch.tensor([0.0, -0.0, 1.0, -1.0, 4.0, -4.0])])
    edges, counts = seen(*x.split(700)).histogram
    assert np.array_equal(np.histogram(x.double().numpy(), edges)[0], counts)
    assert counts[0] > 0 and counts[-1] > 0 and int(counts.sum()) == len(x)
    assert np.ptp(np.diff(edges)) == 0 and edges[0] <= -4.0 and edges[-1] > 4.0


def test_a_histogram_that_grew_is_the_histogram_of_all_data() -> None:
    small, large = torch.linspace(-1, 1, 1001), torch.linspace(-9, 37, 1001)
    for grown in (seen(small, large), seen(large, small)):
        edges, counts = grown.histogram
        assert np.array_equal(np.histogram(torch.cat([small, large]).double().numpy(), edges)[0], counts)


def test_memory_does_not_grow_with_the_data() -> None:
    observation, sizes = Observation(), set()
    for scale in (1.0, 1e3, 1e6, 1e-3, 1e-40, 3e38):
        observation.see(normal(100).clamp(-1, 1) * scale)
        parts = [*vars(observation).values(), *vars(observation._histogram).values()]
        sizes.add(sum(part.numel() if isinstance(part, Tensor) else 1 for part in parts))
    assert len(sizes) == 1 and sizes.pop() < 2 * BINS + 20
    assert observation.count == int(observation.histogram[1].sum()) == 600


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int32])
def test_other_dtypes_are_seen_as_float32(dtype: torch.dtype) -> None:
    x = torch.arange(-8, 9, dtype=dtype).reshape(1, 17)
    assert seen(x).range("minmax", 4) == (-8.0, 8.0)


def test_what_is_seen_is_not_changed() -> None:
    x = normal(100).requires_grad_()
    before = x.detach().clone()
    seen(x)
    assert torch.equal(x.detach(), before)


# -- every observer --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 12])
@pytest.mark.parametrize("observer", OBSERVERS)
@pytest.mark.parametrize("name", DATA)
def test_a_range_is_finite_ordered_and_within_zero_and_what_was_seen(observer: str, name: str, bits: int) -> None:
    x = DATA[name]
    lo, hi = seen(*x.split(600)).range(observer, bits)
    assert math.isfinite(lo) and math.isfinite(hi) and lo < hi
    assert min(float(x.min()), 0.0) <= lo and hi <= max(float(x.max()), 0.0)
    if observer in ("mse", "entropy"):
        assert lo <= 0 <= hi
        assert lo == 0 or x.min() < 0
        assert hi == 0 or x.max() > 0


@pytest.mark.parametrize("observer", OBSERVERS)
@pytest.mark.parametrize("value", [0.0, 5.0, -2.5, 1e-42, -3e38])
def test_a_constant_value_has_a_range_of_one_point(observer: str, value: float) -> None:
    x = torch.full((10,), value)
    assert seen(x, x).range(observer, 6) == (float(x[0]), float(x[0]))


@pytest.mark.parametrize("observer", OBSERVERS)
@pytest.mark.parametrize("scale", [1e-44, 1e-35, 1e-10, 1e38])
def test_very_small_and_very_large_values_have_ranges(observer: str, scale: float) -> None:
    x = torch.linspace(-1, 3, 500) * scale
    lo, hi = seen(x).range(observer, 4, 99.0)
    assert float(x.min()) <= lo <= 0 < hi <= float(x.max())


@pytest.mark.parametrize("observer", OBSERVERS)
def test_flipping_all_signs_flips_the_range(observer: str) -> None:
    for x in (DATA["after relu"], DATA["long tail"].abs()):
        (lo, hi), (low, high) = (seen(v).range(observer, 4, 99.0) for v in (x, -x))
        assert (-high, -low) == pytest.approx((lo, hi), abs=2 * float(x.max()) / 2048)


def test_an_observation_that_saw_nothing_says_so() -> None:
    for observer in OBSERVERS:
        with pytest.raises(QuantizationError, match="saw no values: give at least one calibration sample"):
            seen(torch.zeros(0, 3)).range(observer, 6)
    with pytest.raises(QuantizationError, match="saw no values"):
        _ = Observation().histogram
    with pytest.raises(QuantizationError, match="saw no values"):
        Observation().too_few_for(99.0)


def test_what_cannot_be_asked_is_refused_with_what_can() -> None:
    observation = seen(normal(10))
    with pytest.raises(QuantizationError, match="observer is 'max': it must be one of minmax, moving_average, perc"):
        observation.range("max", 6)
    for share in (20.0, 50.0, 100.1, math.nan):
        with pytest.raises(QuantizationError, match=f"percentile is {share}: it must be above 50"):
            observation.range("percentile", 6, share)
    for bits in (0, 17, True, 4.0):
        with pytest.raises(QuantizationError, match=f"bits is {bits!r}: it must be an integer from 1 to 16"):
            observation.range("mse", bits)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused_and_not_counted(bad: float) -> None:
    observation = seen(torch.tensor([1.0, 2.0]))
    with pytest.raises(QuantizationError, match="NaN or infinity"):
        observation.see(torch.tensor([0.5, bad, 3.0]))
    assert observation.count == 2 and observation.range("minmax", 6) == (1.0, 2.0)


# -- percentile ------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(seed=st.integers(0, 1000), share=st.sampled_from([90.0, 99.0, 99.9, 100.0]), one_sided=st.booleans())
def test_the_share_left_outside_is_the_one_asked_for(seed: int, share: float, one_sided: bool) -> None:
    x = normal(20_000, seed)
    x = x.relu() if one_sided else x
    lo, hi = percentile(share, *x.split(3000))
    outside = float(((x < lo) | (x > hi)).double().mean())
    assert outside <= 1 - share / 100 + 1e-9
    width = 2 * float(x.abs().max()) / 4096 * 2  # two bins of the histogram, whose reach may have doubled past the data
    inside = float(((x < lo + width) | (x > hi - width)).double().mean())
    assert inside >= (1 - share / 100) * 0.9 or share == 100.0
    assert lo >= float(x.min()) and hi <= float(x.max()) + 1e-6


def test_one_outlier_does_not_set_the_range() -> None:
    x = torch.rand(100_000, generator=torch.Generator().manual_seed(0))
    lo, hi = percentile(99.99, x, torch.tensor([1000.0]))
    assert lo == float(x.min())
    assert hi < 2.0


def test_all_zero_data_have_a_range_of_zero() -> None:
    assert percentile(99.9, torch.zeros(10)) == (0.0, 0.0)
    lo, hi = percentile(50.5, torch.zeros(1000), torch.tensor([4.0]))
    assert lo == 0.0 and hi < 0.01
    edges, counts = seen(torch.zeros(10)).histogram
    assert counts.tolist() == [10] and edges[0] == 0.0 < edges[1]


def test_a_percentile_cuts_off_a_value_exactly_when_there_are_values_enough_for_it() -> None:
    for count, cuts in ((9_999, False), (10_000, True)):
        observation = seen(
            torch.cat([torch.rand(count - 1, generator=torch.Generator().manual_seed(0)), torch.ones(1) * 9])
        )
        assert (observation.range("percentile", 6, 99.99)[1] < 9.0) is cuts
        assert (observation.too_few_for(99.99) is None) is cuts


def test_too_few_values_for_a_percentile_are_told_with_how_many_it_takes() -> None:
    x = torch.linspace(0, 1, 512)
    assert seen(x).too_few_for(99.99) == (
        "99.99 asks for at least 10,000 values, 512 were seen: the range is the largest value"
    )
    assert seen(x - 0.5).too_few_for(99.9) == (
        "99.9 asks for at least 2,000 values of both signs, 512 were seen: the range is the largest value"
    )
    assert seen(x).too_few_for(99.0) is None and seen(x).too_few_for(100.0) is None
    with pytest.raises(QuantizationError, match="percentile is 10"):
        seen(x).too_few_for(10.0)


# -- mean squared error ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 8])
@pytest.mark.parametrize("name", DATA)
def test_no_observer_has_less_squared_error_than_mse(name: str, bits: int) -> None:
    x = DATA[name]
    observation = seen(x)
    found = coding_error(x, *observation.range("mse", bits, 99.0), bits)
    for observer in ("minmax", "percentile", "entropy"):
        other = coding_error(x, *observation.range(observer, bits, 99.0), bits)
        assert found <= other * 1.01 + (2 * float(x.abs().max()) / BINS) ** 2


@pytest.mark.parametrize("bits", [1, 2, 4, 6])
@pytest.mark.parametrize("name", ["after relu", "long tail", "lopsided", "away from zero"])
def test_mse_comes_close_to_the_best_of_a_dense_search(name: str, bits: int) -> None:
    x = DATA[name][::4]
    lows = np.linspace(0, min(float(x.min()), 0.0), 40) if x.min() < 0 else np.zeros(1)
    highs = np.linspace(0, float(x.max()), 41)[1:]
    best = min(coding_error(x, float(a), float(b), bits) for a in lows for b in highs)
    assert coding_error(x, *seen(x).range("mse", bits), bits) <= best * 1.03


def test_the_error_of_a_grid_is_the_mean_over_values_spread_evenly_over_their_bins() -> None:
    counts = np.zeros(2 * BINS)
    counts[BINS - 5 : BINS + 11] = np.arange(16)
    parts = (np.arange(200) + 0.5) / 200
    x = torch.from_numpy(np.concatenate([(np.arange(-5, 11)[i] + parts).repeat(i) for i in range(16)]))
    ends = [(-5.0, 11.0), (-2.0, 7.5), (-0.3, 4.0), (-4.0, 0.6)]
    for bits in (1, 2, 3, 5):
        lo, hi = (np.array(side) for side in zip(*ends, strict=True))
        want = [coding_error(x, a, b, bits) for a, b in ends]
        assert GridError(counts).of(lo, hi, bits) == pytest.approx(want, rel=1e-3, abs=1e-4)


def test_fewer_bits_clip_more() -> None:
    observation = seen(normal(50_000))
    his = [observation.range("mse", bits)[1] for bits in (2, 4, 6, 8)]
    assert his == sorted(his) and his[0] < 2.0 < 3.0 < his[-1]


def test_many_zeros_do_not_move_the_range() -> None:
    x = normal(5000).abs()
    for observer in ("mse", "entropy"):
        assert seen(x, torch.zeros(100_000)).range(observer, 4) == seen(x).range(observer, 4)


# -- entropy ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_entropy_clips_a_long_tail(bits: int) -> None:
    tail = (torch.rand(100_000, generator=torch.Generator().manual_seed(1)) ** -0.3) - 1  # Pareto
    for x in (tail, torch.cat([tail, -tail])):
        lo, hi = seen(x).range("entropy", bits)
        outside = float(((x < lo) | (x > hi)).double().mean())
        assert hi < 0.5 * float(x.max()) and 0 < outside < 0.05
        assert lo == 0 if x.min() >= 0 else lo == pytest.approx(-hi, rel=0.05)


@pytest.mark.parametrize("bits", [2, 4, 6, 8])
def test_entropy_keeps_nearly_all_of_a_uniform_distribution(bits: int) -> None:
    x = torch.rand(100_000, generator=torch.Generator().manual_seed(1))
    assert seen(x).range("entropy", bits)[1] > 0.98
    lo, hi = seen(2 * x - 1).range("entropy", bits)
    assert lo < -0.97 and hi > 0.97


@pytest.mark.parametrize("bits", [1, 2])
def test_entropy_at_few_bits_does_not_throw_nearly_everything_away(bits: int) -> None:
    for x in (normal(500), normal(50_000), normal(5000) * 0.2 + 1):
        lo, hi = seen(x).range("entropy", bits)
        assert float(((x < lo) | (x > hi)).double().mean()) < 0.3


def test_entropy_keeps_the_ends_when_there_are_fewer_filled_bins_than_codes() -> None:
    x = torch.cat([torch.linspace(0, 1, 50), torch.tensor([40.0])])
    assert seen(x).range("entropy", 8) == (0.0, 40.0)
    assert seen(torch.tensor([-1.0, 3.0])).range("entropy", 1) == (-1.0, 3.0)
