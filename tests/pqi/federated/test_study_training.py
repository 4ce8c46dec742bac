"""Federated averaging in one process."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pqi.federated.study.split import dirichlet_split
from pqi.federated.study.training import Federation, Local, average_floats, digits_task, from_vector, start, to_vector


def test_the_mean_of_updates_is_weighted_by_images() -> None:
    updates = np.array([[1.0, 0.0], [4.0, 2.0]], np.float32)
    assert np.allclose(average_floats(updates, [2, 1]), [2.0, 2 / 3])


def test_federated_averaging_learns_digits_and_a_run_repeats_itself() -> None:
    pytest.importorskip("sklearn")
    task = digits_task()
    parts = dirichlet_split(task.train_y.numpy(), 10, 0.5, 0, least=4)
    told: list[int] = []
    federation = Federation(task, parts, Local(2, 16, 0.2), per_round=4)
    first = federation.train(10, average_floats, lambda number, accuracy: told.append(number))
    again = federation.train(10, average_floats)
    assert first.accuracies[-1] > 0.8 and told == list(range(1, 11))
    assert first.accuracies == again.accuracies and np.array_equal(first.vector, again.vector)
    assert federation.chosen(0) != federation.chosen(1) and len(federation.chosen(0)) == 4


def test_a_network_is_the_same_from_the_same_seed_and_leaves_the_callers_random_state() -> None:
    pytest.importorskip("sklearn")
    task = digits_task()
    before = torch.get_rng_state()
    first, again, other = (to_vector(start(task, seed)) for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert np.array_equal(to_vector(from_vector(start(task, 2), first)), first)
