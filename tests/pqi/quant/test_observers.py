"""Observers and calibration data."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pqi.graph.capture import capture
from pqi.graph.errors import CalibrationWarning, QuantizationError
from pqi.quant import quantize
from pqi.quant.calibrate import calibration_batch, observe_ranges
from pqi.quant.observers import MinMax, Percentile
from tests import networks


def seen(percentile: float, *batches: torch.Tensor) -> tuple[float, float]:
    observer = Percentile(percentile)
    for batch in batches:
        observer.see(batch)
    return observer.range()


def test_min_max_is_the_range_over_all_batches() -> None:
    observer = MinMax()
    for batch in (torch.tensor([1.0, 2.0]), torch.tensor([]), torch.tensor([-3.0])):
        observer.see(batch)
    assert observer.range() == (-3.0, 2.0)


@settings(deadline=None)
@given(seed=st.integers(0, 1000), percentile=st.sampled_from([90.0, 99.0, 99.9, 100.0]), one_sided=st.booleans())
def test_the_share_left_outside_is_the_one_asked_for(seed: int, percentile: float, one_sided: bool) -> None:
    x = torch.randn(20_000, generator=torch.Generator().manual_seed(seed))
    x = x.relu() if one_sided else x
    lo, hi = seen(percentile, *x.split(3000))
    outside = float(((x < lo) | (x > hi)).double().mean())
    assert outside <= 1 - percentile / 100 + 1e-9
    width = 2 * float(x.abs().max()) / 4096 * 2  # two bins of the histogram, whose reach may have doubled past the data
    inside = float(((x < lo + width) | (x > hi - width)).double().mean())
    assert inside >= (1 - percentile / 100) * 0.9 or percentile == 100.0
    assert lo >= float(x.min()) and hi <= float(x.max()) + 1e-6


def test_one_outlier_does_not_set_the_range() -> None:
    x = torch.rand(100_000, generator=torch.Generator().manual_seed(0))
    lo, hi = seen(99.99, x, torch.tensor([1000.0]))
    assert lo == 0.0 or lo >= 0.0
    assert hi < 2.0


def test_a_histogram_that_grew_is_the_histogram_of_all_data() -> None:
    small, large = torch.linspace(0, 1, 1001), torch.linspace(0, 37, 1001)
    grown, whole = seen(95, small, large), seen(95, torch.cat([large, small]))
    assert grown[1] == pytest.approx(whole[1], rel=2e-3)


def test_memory_does_not_grow_with_the_data() -> None:
    observer = Percentile(99)
    size = observer.counts.numel()
    for scale in (1.0, 1e3, 1e6, 1e-3):
        observer.see(torch.randn(100) * scale)
    assert observer.counts.numel() == size and int(observer.counts.sum()) == 400


def test_all_zero_data_have_a_range_of_zero() -> None:
    assert seen(99.9, torch.zeros(10)) == (0.0, 0.0)
    lo, hi = seen(50.5, torch.zeros(1000), torch.tensor([4.0]))
    assert lo == 0.0 and hi < 0.01


def test_an_observer_that_saw_nothing_says_so() -> None:
    with pytest.raises(QuantizationError, match="no values"):
        MinMax().range()
    with pytest.raises(QuantizationError, match="percentile is 20"):
        Percentile(20)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (np.zeros((0, 20)), "empty"),
        (np.zeros((9, 0)), "empty"),
        (np.ones((9, 20)), "constant"),
        (np.where(np.eye(20) > 0, np.nan, 1.0)[3:], "sample 0 has NaN"),
        (np.array([[1.0, 2.0], [np.inf, 1.0]]), "sample 1"),
        (np.arange(9.0), "batch axis"),
        (np.ones((9, 2), dtype=complex), "dtype"),
        (np.ones((9, 2), dtype=bool), "dtype"),
    ],
)
def test_data_that_cannot_calibrate_are_refused_with_what_to_do(data: np.ndarray, says: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(QuantizationError, match=says):
        quantize(networks.mlp(), data)


def test_few_samples_are_a_warning() -> None:
    with pytest.warns(CalibrationWarning, match="only 2 calibration samples"):
        calibration_batch(np.random.default_rng(0).random((2, 20)))


def test_batches_of_calibration_see_every_sample_and_tell_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(50, 20, generator=torch.Generator().manual_seed(0))
    graph = capture(networks.mlp(), x)
    whole = observe_ranges(graph, x, graph.shapes, None)
    monkeypatch.setattr("pqi.quant.calibrate._BATCH_VALUES", 32 * 7)
    steps: list[tuple[int, int]] = []
    parts = observe_ranges(graph, x, graph.shapes, None, lambda done, total: steps.append((done, total)))
    assert steps == [(min(7 * i, 50), 50) for i in range(1, 9)]
    assert all(parts[name] == pytest.approx(whole[name], rel=1e-5) for name in whole)


def test_a_layer_that_overflows_on_the_data_is_named() -> None:
    x = torch.full((9, 20), 1e30)
    x[0] = 0
    net = networks.mlp()
    with torch.no_grad():
        net[0].weight.fill_(1e30)
    with pytest.raises(QuantizationError, match="NaN or infinity"):
        quantize(net, x)
