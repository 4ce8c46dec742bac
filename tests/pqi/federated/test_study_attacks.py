"""What a server reads from updates: known answers, and that sums and noise take it away."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pqi.federated.study import inversion, membership
from pqi.federated.study.attacks import infer, invert, matched, one_client, spread
from pqi.federated.study.page import Study, write_page
from pqi.federated.study.split import even_split
from pqi.federated.study.training import Federation, Local, Task, average_floats, mlp
from protocols.errors import BadParameters


def task() -> Task:
    """Ten classes of 5 x 5 images: a pattern each, and noise that only remembering can tell apart."""
    draw = np.random.default_rng(0)
    patterns = draw.random((10, 25))
    labels = np.arange(600) % 10
    images = np.clip(patterns[labels] + 0.8 * draw.normal(size=(600, 25)), 0, 1)
    x, y = torch.from_numpy(images.astype(np.float32)).reshape(-1, 1, 5, 5), torch.from_numpy(labels)
    return Task("patterns", mlp(25, 32), x[:400], y[:400], x[400:], y[400:])


def noisy(updates: np.ndarray, weights: Sequence[int]) -> np.ndarray:
    deviation = float(np.linalg.norm(updates, axis=1).max()) / len(updates)
    return average_floats(updates, weights) + np.random.default_rng(2).normal(0, deviation, updates.shape[1])


def test_the_update_of_one_image_is_that_image_and_noise_hides_it() -> None:
    views = {"one": one_client, "sum": average_floats, "noise": noisy}
    one, summed, hidden = invert(task(), views, clients=10, local=Local(1, 1), images=1, trials=10)
    assert one.similarity.low > 0.999 and one.psnr.mean > 50
    assert one.less.mean == 0 and summed.less.low > 0.1
    assert hidden.leaked.low < 0.1 < hidden.less.low
    assert one.shown.shape == (8, 2, 25) and np.allclose(one.shown[:, 0], one.shown[:, 1], atol=1e-3)


def test_an_update_that_says_nothing_gives_no_candidate_and_no_similarity() -> None:
    found = inversion.candidates(np.zeros(25 * 3 + 3, np.float32), (3, 25))
    reading = inversion.nearest(found, np.full((2, 25), 0.5))
    assert found.shape == (0, 25) and np.array_equal(reading.similarity, [0, 0])
    assert np.allclose(reading.psnr, 10 * np.log10(4))


def test_a_network_that_does_not_begin_with_a_dense_layer_is_refused() -> None:
    with pytest.raises(BadParameters, match="no dense layer with a bias"):
        inversion.first_layer(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(18, 10)))
    assert inversion.first_layer(mlp(25, 32)()) == (32, 25)


def test_a_curve_counts_ties_half_and_its_area_is_the_chance_of_the_right_order() -> None:
    members, others = np.array([3.0, 2.0, 2.0]), np.array([2.0, 1.0])
    wins = sum((m > o) + (m == o) / 2 for m in members for o in others) / 6
    found = membership.curve(members, others)
    assert found.area == pytest.approx(wins)
    assert found.true_at(0.0) == pytest.approx(1 / 3) and found.true_at(1.0) == 1


def test_gradient_scores_are_cosines_with_each_images_own_descent() -> None:
    some, net = task(), mlp(25, 32)()
    before = nn.utils.parameters_to_vector(net.parameters()).detach().numpy().copy()
    x, y = some.train_x[:5], some.train_y[:5]
    nn.functional.cross_entropy(net(x[2:3]), y[2:3]).backward()
    own = -torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None]).numpy()
    scores = membership.gradient_scores(net, before, own, x, y)
    assert scores.shape == (5,) and scores.argmax() == 2
    assert scores[2] == pytest.approx(1, abs=1e-5)


def test_members_of_one_clients_update_are_told_apart_and_less_so_in_a_sum() -> None:
    some = task()
    federation = Federation(some, even_split(some.train_y.numpy(), 20, 0), Local(10, 5, 0.2))
    found = {(f.view, f.score): f for f in infer(federation, {"one": one_client, "sum": average_floats}, (0,))}
    for score in ("loss", "gradient"):
        assert found["one", score].area.low > 0.7
        assert found["sum", score].less.low > 0.1
        assert found["sum", score].curve.true[-1] == 1


def test_members_and_the_others_have_the_same_labels() -> None:
    some = task()
    federation = Federation(some, [np.arange(0, 400, 4), np.arange(1, 400, 4)])
    members, others = matched(federation, 1, np.random.default_rng(0))
    assert set(members) <= set(range(1, 400, 4)) and len(set(others)) == len(others)
    assert torch.equal(some.train_y[members], some.test_y[others])


def test_an_interval_holds_the_mean_and_shrinks_with_trials() -> None:
    values = np.random.default_rng(0).normal(5, 1, 400)
    few, many = spread(values[:20]), spread(values)
    assert few.low < few.mean < few.high and few.mean == pytest.approx(values[:20].mean())
    assert many.high - many.low < few.high - few.low


def test_more_images_than_there_are_is_refused() -> None:
    with pytest.raises(BadParameters, match="10 clients of 50 images are more than the 400"):
        invert(task(), {"one": one_client}, 10, Local(), 50, 1)


def test_the_page_holds_every_figure_and_loads_nothing(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    some, views = task(), {"one <client>": one_client, "sum": average_floats}
    federation = Federation(some, even_split(some.train_y.numpy(), 20, 0), Local(2, 5), per_round=2)
    inverted = {"a step": invert(some, views, 3, Local(1, 1), 1, 3)}
    inferred = {"a round": infer(federation, views, (0,))}
    write_page(tmp_path / "page.html", Study("What & who", {"data": "patterns"}, inverted, inferred))
    page = (tmp_path / "page.html").read_text()
    assert "<h1>What &amp; who</h1>" in page and "one &lt;client&gt;" in page and "one <client>" not in page
    assert page.count("<svg") == 2 and "<script" not in page and "default-src 'none'" in page
    assert all(str(figure) in page for figure in (inverted["a step"][1].leaked, inferred["a round"][3].area))
    assert list(tmp_path.iterdir()) == [tmp_path / "page.html"]
