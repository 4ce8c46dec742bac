"""Calibration data: whatever form they come in, read once, judged on the way."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from pqi.graph.errors import CalibrationWarning, QuantizationError
from pqi.quant import quantize
from pqi.quant.batches import Batches
from pqi.quant.calibrate import calibrate
from pqi.quant.sample import Sample
from tests import networks

X = torch.randn(50, 3, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(50)


class Endless(IterableDataset):  # type: ignore[type-arg]
    """Samples of unknown number."""

    def __iter__(self) -> Iterator[Tensor]:
        return iter(X)


class Arraylike:
    """Something that numpy can view as an array."""

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return X.numpy()


def read(data: Any, limit: int = 1000) -> Tensor:
    return torch.cat(list(Batches(data, limit)))


def read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


FORMS: dict[str, tuple[Callable[[], Any], int | None, bool]] = {
    "tensor": (lambda: X, 50, True),
    "tensor with gradient": (lambda: X.clone().requires_grad_(), 50, True),
    "float64 tensor": (lambda: X.double(), 50, True),
    "array": (lambda: X.numpy(), 50, True),
    "read-only array": (lambda: read_only(X.numpy().copy()), 50, True),
    "big-endian array": (lambda: X.numpy().astype(">f8"), 50, True),
    "view of an array": (lambda: X.flip(0).numpy()[::-1], 50, True),
    "array-like": (Arraylike, 50, True),
    "nested list": (lambda: X.tolist(), 50, True),
    "nested tuple": (lambda: tuple(X.tolist()), 50, True),
    "list of tensors": (lambda: list(X.split(7)), 50, True),
    "list of arrays": (lambda: [part.numpy() for part in X.split(7)], 50, True),
    "tuple of pairs": (lambda: tuple(zip(X.split(7), LABELS.split(7), strict=True)), 50, True),
    "lists of inputs and labels": (
        lambda: [[a, b] for a, b in zip(X.split(7), LABELS.split(7), strict=True)],
        50,
        True,
    ),
    "generator": (lambda: (part for part in X.split(7)), None, False),
    "generator of nested lists": (lambda: (part.tolist() for part in X.split(7)), None, False),
    "empty batches between": (lambda: [X[:0], X[:20], X[:0], torch.zeros(0), X[20:]], 50, True),
    "loader of tensors": (lambda: DataLoader(X, batch_size=8), 50, True),  # type: ignore[arg-type]
    "loader of pairs": (lambda: DataLoader(TensorDataset(X, LABELS), batch_size=8), 50, True),
    "loader of a stream": (lambda: DataLoader(Endless(), batch_size=8), None, True),
}


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("limit", [1, 5, 1000])
def test_all_forms_of_data_give_the_same_samples_in_order(name: str, limit: int) -> None:
    make, total, reiterable = FORMS[name]
    batches = Batches(make(), limit)
    assert (batches.shape, batches.total, batches.reiterable) == ((3, 4), total, reiterable)
    parts = list(batches)
    assert all(p.dtype == torch.float32 and 1 <= len(p) <= limit and not p.requires_grad for p in parts)
    assert torch.equal(torch.cat(parts), X) and batches.total == 50
    assert torch.equal(batches.first(), X[:1])
    if reiterable:
        assert torch.equal(torch.cat(list(batches)), X)
    else:
        with pytest.raises(QuantizationError, match=r"only once .* already: give an array, a list of batches or a D"):
            list(batches)


def test_the_limit_can_be_set_after_the_shape_is_known() -> None:
    batches = Batches(X)
    batches.limit = 20
    assert [len(part) for part in batches] == [20, 20, 10]


def test_looking_at_the_first_sample_reads_one_batch_and_loses_nothing() -> None:
    taken = []

    def source() -> Iterator[Tensor]:
        for number, part in enumerate(X.split(10)):
            taken.append(number)
            yield part

    batches = Batches(source())
    assert batches.shape == (3, 4) and torch.equal(batches.first(), X[:1]) and taken == [0]
    assert torch.equal(torch.cat(list(batches)), X) and taken == [0, 1, 2, 3, 4]


def test_a_pass_given_up_half_way_can_be_repeated() -> None:
    batches = Batches(DataLoader(X, batch_size=8))  # type: ignore[arg-type]
    next(iter(batches))
    assert torch.equal(torch.cat(list(batches)), X)


def test_a_loader_that_drops_its_last_batch_has_fewer_samples() -> None:
    batches = Batches(DataLoader(X, batch_size=8, drop_last=True))  # type: ignore[arg-type]
    assert batches.total == 48 == sum(len(part) for part in batches)
    assert Batches(DataLoader(X, batch_size=None)).total is None  # type: ignore[arg-type]


def test_one_batch_is_held_at_a_time() -> None:
    made: list[weakref.ref[Any]] = []
    most = 0

    def source() -> Iterator[Any]:
        for number in range(40):
            array = np.full((4, 3), float(number))
            made.append(weakref.ref(array))
            yield array

    batches = Batches(source())
    batches.keep(5)
    for _ in batches:
        most = max(most, sum(ref() is not None for ref in made))
    assert most == 1 and batches.total == 160


def test_a_batch_handed_on_shares_no_memory_with_an_array() -> None:
    array = X.numpy().copy()
    for part in Batches(array):
        part.zero_()
    assert np.array_equal(array, X.numpy())


# -- refusals --------------------------------------------------------------------------------------------------------


REFUSED: list[tuple[Any, str]] = [
    (np.zeros((0, 20)), r"are empty \(shape \(0, 20\)\): give some hundred typical inputs"),
    (np.zeros((9, 0)), "are empty"),
    ([], r"are empty \(they gave no samples\): give some hundred"),
    (iter([]), "are empty .* read before"),
    ([X[:0], X[:0]], "are empty"),
    (np.ones((9, 20)), r"are constant \(1 everywhere\): give inputs like those the model will see"),
    ([np.full((9, 2), 3.5), np.full((9, 2), 3.5)], r"constant \(3.5 everywhere"),
    (np.where(np.eye(20) > 0, np.nan, 1.0)[3:], "sample 0 has NaN .* remove or repair"),
    (np.array([[1.0, 2.0], [np.inf, 1.0]]), "sample 1 has"),
    (np.array([[1.0, 2.0], [1e300, 1.0]]), "sample 1 has NaN or infinite values .as float32"),
    ([np.ones((9, 2)), np.array([[1.0, 2.0], [3.0, np.nan]])], "sample 10 has"),
    (np.arange(9.0), r"have shape \(9,\): \(N, ...\) with a batch axis is needed"),
    (torch.tensor(3.0), "batch axis"),
    (7, "batch axis"),
    ([1.0, 2.0], "batch axis"),
    ((X, LABELS), r"data of calibration batch 1 have shape \(50,\): .* batch axis"),
    ([LABELS], "calibration batch 0 have shape .* batch axis"),
    (np.ones((9, 2), dtype=complex), "have dtype complex128: real numbers are needed"),
    (torch.ones((9, 2), dtype=torch.complex64), "dtype torch.complex64"),
    (np.ones((9, 2), dtype=bool), "dtype bool"),
    (torch.ones((9, 2), dtype=torch.bool), "dtype torch.bool"),
    ([[1j, 2.0], [3.0, 4.0]], "dtype complex"),
    (np.array([["a", "b"]]), "dtype <U1"),
    ([X, X > 0], "calibration batch 1 have dtype torch.bool"),
    ([[1.0, 2.0], [3.0]], "cannot be read as an array of numbers"),
    ([X[:10], X[:10, :2]], r"batch 1 have samples of shape \(2, 4\), those before it had \(3, 4\)"),
    ([X[:10], X[:10].flatten(1)], r"batch 1 have samples of shape \(12,\)"),
    ({"image": X}, "calibration data are a dict: give an array"),
    ([{"image": X, "label": LABELS}], r"batch 0 are a dict: give the inputs alone.*\['image', 'label'\]"),
    ([(), ()], "batch 0 are an empty tuple"),
    (["cat", "dog"], "batch 0 are a str: an array"),
    ("images.npy", "calibration data are a str: give an array"),
    (None, "calibration data are a NoneType: give an array .* or an iterable of batches, as a DataLoader"),
    (TensorDataset(X, LABELS), "TensorDataset, which gives single samples: .* DataLoader"),
    ([(X[0], 3), (X[1], 2)], "batch 0 are one sample with its label: batches"),
    ([(X[0], torch.tensor(3))], "one sample with its label"),
]


@pytest.mark.parametrize(("data", "says"), REFUSED)
def test_data_that_cannot_calibrate_are_refused_with_what_to_do(data: Any, says: str) -> None:
    with pytest.raises(QuantizationError, match=says):
        read(data)


def test_data_that_vary_only_between_batches_are_taken() -> None:
    assert len(read([np.zeros((9, 2)), np.ones((9, 2))])) == 18


def test_a_sample_is_counted_over_all_batches_and_chunks() -> None:
    x = X.clone()
    x[37, 2, 1] = torch.nan
    for data in (x, list(x.split(7))):
        with pytest.raises(QuantizationError, match="sample 37 has NaN"):
            read(data, limit=4)


@pytest.mark.parametrize("make", [lambda: X[:7], lambda: iter(X[:7].split(3)), lambda: [X[:7]]])
def test_few_samples_are_a_warning_told_once(make: Callable[[], Any]) -> None:
    batches = Batches(make(), 2)
    with pytest.warns(CalibrationWarning, match=r"only 7 calibration samples: .* Some hundred are usual") as told:
        list(batches)
    assert len(told) == 1
    if batches.reiterable:
        list(batches)


def test_eight_samples_are_enough_to_say_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(read(X[:8])) == 8


# -- the sample that stays -------------------------------------------------------------------------------------------


def test_all_inputs_stay_in_order_when_there_are_no_more_than_asked_for() -> None:
    for size in (50, 51, 1000):
        batches = Batches(iter(X.split(7)))
        kept = batches.keep(size)
        list(batches)
        assert torch.equal(kept.tensor, X)


@given(size=st.integers(1, 40), cut=st.integers(1, 60), limit=st.integers(1, 60))
def test_the_sample_has_its_size_and_order_and_does_not_depend_on_the_cut(size: int, cut: int, limit: int) -> None:
    numbers = torch.arange(50.0).view(50, 1)
    batches, whole = Batches(numbers.split(cut), limit), Sample(size)
    kept = batches.keep(size)
    list(batches)
    whole.see(numbers)
    drawn = kept.tensor.flatten().tolist()
    assert torch.equal(kept.tensor, whole.tensor)
    assert drawn == sorted(set(drawn)) and len(drawn) == size


def test_every_part_of_the_data_is_represented() -> None:
    sample = Sample(1000)
    for part in torch.arange(64_000.0).view(-1, 1).split(640):
        sample.see(part)
    drawn = sample.tensor.flatten().long()
    for part, parts in ((drawn // 8000, 8), (drawn % 8, 8), (drawn % 10, 10), (drawn % 7, 7)):  # sorted, or in turn
        share = torch.bincount(part, minlength=parts).double() * parts / 1000
        assert float(share.min()) > 0.7 and float(share.max()) < 1.3


def test_a_second_pass_draws_the_sample_anew() -> None:
    batches = Batches(X, 8)
    kept = batches.keep(20)
    list(batches)
    first = kept.tensor
    list(batches)
    assert torch.equal(kept.tensor, first) and kept.seen == 50


def test_the_sample_is_a_copy() -> None:
    data = X.clone()
    batches = Batches(data)
    kept = batches.keep(100)
    list(batches)
    data.zero_()
    assert torch.equal(kept.tensor, X)


def test_a_sample_of_nothing_is_refused() -> None:
    for size in (0, -1, 2.5, True):
        with pytest.raises(QuantizationError, match="must be an integer, at least 1"):
            Batches(X).keep(size)  # type: ignore[arg-type]
    with pytest.raises(QuantizationError, match="the sample is empty: iterate over the batches first"):
        _ = Batches(X).keep(3).tensor


# -- as calibration uses them ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("data", "says"), [(np.ones((9, 20)), "constant"), (np.zeros((0, 20)), "empty")])
def test_quantize_refuses_data_that_cannot_calibrate(data: Any, says: str) -> None:
    with pytest.raises(QuantizationError, match=says):
        quantize(networks.mlp(), data)


def test_calibration_sees_every_sample_in_small_batches_and_tells_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(50, 20, generator=torch.Generator().manual_seed(0))
    whole = calibrate(networks.mlp(), x)
    monkeypatch.setattr("pqi.quant.calibrate._BATCH_VALUES", 32 * 7)
    for data, total in ((x, 50), (iter(x.split(7)), None)):
        steps: list[tuple[int, int | None]] = []
        parts = calibrate(networks.mlp(), data, progress=lambda *at, steps=steps: steps.append(at))
        assert steps == [(min(7 * i, 50), total) for i in range(1, 9)]
        assert torch.equal(parts.sample, x)
        for name, observation in parts.seen.items():
            assert observation.count == whole.seen[name].count
            assert observation.range("percentile", 6) == pytest.approx(
                whole.seen[name].range("percentile", 6), rel=1e-5
            )


def test_a_layer_that_overflows_on_the_data_is_named() -> None:
    x = torch.full((9, 20), 1e30)
    x[0] = 0
    net = networks.mlp()
    with torch.no_grad():
        net[0].weight.fill_(1e30)
    with pytest.raises(QuantizationError, match=r"layer '.*' computes NaN or infinity"):
        quantize(net, x)
