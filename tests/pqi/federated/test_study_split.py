"""Splits of data among clients."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from pqi.federated.study.split import Indices, dirichlet_split, even_split
from protocols.errors import BadParameters

LABELS = np.random.default_rng(1).integers(0, 10, 1000)


def disjoint_and_whole(parts: Sequence[Indices]) -> bool:
    together = np.concatenate(list(parts))
    return len(together) == len(LABELS) and len(np.unique(together)) == len(LABELS)


def labels_of(parts: Sequence[Indices]) -> float:
    """How many labels a client has, on average."""
    return float(np.mean([len(np.unique(LABELS[part])) for part in parts]))


def test_every_image_is_one_clients_and_the_seed_decides_whose() -> None:
    for split in (
        lambda seed: dirichlet_split(LABELS, 20, 0.3, seed),
        lambda seed: even_split(LABELS, 20, seed),
    ):
        first, again, other = split(0), split(0), split(1)
        assert disjoint_and_whole(first) and len(first) == 20
        assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
        assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_a_small_alpha_leaves_clients_few_labels() -> None:
    assert labels_of(dirichlet_split(LABELS, 20, 0.05, 0)) < 5 < 9 < labels_of(dirichlet_split(LABELS, 20, 100, 0))
    assert labels_of(even_split(LABELS, 20, 0)) > 9.5


def test_nobody_is_left_with_less_than_the_least() -> None:
    assert min(len(part) for part in dirichlet_split(LABELS, 50, 0.05, 0, least=8)) >= 8


def test_a_split_that_cannot_be_is_refused_with_its_numbers() -> None:
    with pytest.raises(BadParameters, match="1000 images cannot be split among 300 clients that need 1200"):
        dirichlet_split(LABELS, 300, 1.0, 0, least=4)
    with pytest.raises(BadParameters, match="alpha = 0 is not above 0"):
        dirichlet_split(LABELS, 3, 0, 0)
    with pytest.raises(BadParameters, match="one label an image"):
        even_split(LABELS.reshape(10, 100), 3, 0)
