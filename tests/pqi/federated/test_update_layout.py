from __future__ import annotations

import json

import numpy as np
import pytest

from pqi.federated import EncodingError, Layout


def arrays() -> list[np.ndarray]:
    return [np.arange(6, dtype=np.float32).reshape(2, 3), np.array(2.5, np.float32), np.arange(4, dtype=np.int64)]


def test_arrays_come_back_from_the_flat_vector_as_they_were() -> None:
    layout = Layout.of(arrays())
    flat = layout.flatten(arrays())
    assert layout.length == 11 == flat.size
    assert flat.dtype == np.float32
    back = layout.unflatten(flat.astype(np.float64))
    assert all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in zip(arrays(), back, strict=True))


def test_integers_are_rounded_to_the_nearest_on_the_way_back() -> None:
    assert Layout(((3,),), ("int64",)).unflatten(np.array([0.6, -0.6, 2.4]))[0].tolist() == [1, -1, 2]


def test_one_array_of_float64_makes_the_vector_float64() -> None:
    mixed = [np.zeros(2, np.float32), np.zeros(2)]
    assert Layout.of(mixed).flatten(mixed).dtype == np.float64


def test_facts_cross_the_wire() -> None:
    layout = Layout.of(arrays())
    assert Layout.from_facts(json.loads(json.dumps(layout.facts()))) == layout


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Layout((), ()), "a layout has a shape and a dtype an array"),
        (lambda: Layout(((0,),), ("float32",)), "the layout holds no value"),
        (lambda: Layout(((-1,),), ("float32",)), r"array 0 has shape \(-1,\)"),
        (lambda: Layout(((1,),), ("complex64",)), "array 0 has dtype complex64"),
        (lambda: Layout(((1,),), ("no such",)), "array 0 has dtype no such"),
        (lambda: Layout.of(arrays()).flatten(arrays()[:2]), "2 arrays were given, the layout of this round has 3"),
        (lambda: Layout.of(arrays()).flatten(arrays()[::-1]), r"array 0 has shape \(4,\)"),
        (lambda: Layout.of(arrays()).unflatten(np.zeros(10)), r"the vector has shape \(10,\)"),
        (lambda: Layout.from_facts({"shapes": 3}), "no facts of a layout"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(make, words: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(EncodingError, match=words):
        make()
