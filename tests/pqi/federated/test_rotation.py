from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.linalg import hadamard

from pqi.federated.privacy.rotation import Rotation, block, spread, transform
from protocols import native

LENGTHS = (1, 2, 3, 5, 16, 31, 100, 1 << 13, 20_000, 1 << 15)


def vector(length: int) -> np.ndarray:
    return np.random.default_rng(length).normal(size=length)


@pytest.mark.parametrize("size", [1, 2, 4, 8, 16, 64, 512, 1 << 14, 1 << 15, 1 << 16])
def test_the_transform_is_the_hadamard_matrix_and_equal_in_both_forms(size: int) -> None:
    x = vector(size)
    fast, plain = x.copy(), x.copy()
    transform(fast)
    with native.switched_off():
        transform(plain)
    assert np.array_equal(fast, plain)
    if size <= 512:
        assert np.allclose(fast, hadamard(size) @ x)


@pytest.mark.parametrize("length", LENGTHS)
def test_rotation_keeps_norms_and_is_undone(length: int) -> None:
    x, rotation = vector(length), Rotation(bytes(16), length)
    y = rotation.forward(x)
    assert math.isclose(float(np.linalg.norm(y)), float(np.linalg.norm(x)), rel_tol=1e-12)
    assert np.allclose(rotation.backward(y), x, atol=1e-11)
    with native.switched_off():
        assert np.array_equal(rotation.forward(x), y)
        assert np.allclose(rotation.backward(y), x, atol=1e-11)


@pytest.mark.parametrize("length", [1 << 12, 5000, 8191])
def test_one_large_value_is_spread_over_all_and_stays_within_six_deviations(length: int) -> None:
    x = np.zeros(length)
    x[length // 3] = 1.0
    y = Rotation(b"sixteen bytes!!!", length).forward(x)
    assert float(np.abs(y).max()) <= 6 * spread(length)
    assert np.count_nonzero(y) >= block(length)


def test_signs_follow_from_the_seed() -> None:
    x = vector(64)
    first, second = Rotation(bytes(16), 64).forward(x), Rotation(b"\1" * 16, 64).forward(x)
    assert np.array_equal(first, Rotation(bytes(16), 64).forward(x))
    assert not np.allclose(np.abs(first), np.abs(second))


def test_the_block_is_the_largest_power_of_two_within() -> None:
    assert [block(n) for n in (1, 2, 3, 4, 1000, 1024)] == [1, 2, 2, 4, 512, 1024]
