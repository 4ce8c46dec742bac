"""Both attacks against what a server sees: one client's update, the average of many, and the average with noise.

Every figure is a mean over independent trials with a 95 % interval from 2,000 bootstrap samples of the trials; what a
view changes is told as a difference within the same trials, so that lucky images cancel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from pqi.federated.study import inversion, membership
from pqi.federated.study.training import Federation, Local, Task, Vector, average_floats, local_update, start, to_vector
from protocols.errors import BadParameters

# Of the updates of all clients of a round, and how many images each has, what the server sees. The victim is row 0.
See: TypeAlias = Callable[[NDArray[np.float32], Sequence[int]], Vector]
Values: TypeAlias = NDArray[np.float64]
_GRID = np.concatenate([[0.0, 0.001, 0.003], np.linspace(0.01, 1, 100)])


def one_client(updates: NDArray[np.float32], weights: Sequence[int]) -> Vector:
    """Plain federated averaging from the server's side: the update of one client, as it was sent."""
    found: Vector = updates[0]
    return found


@dataclass(frozen=True)
class Spread:
    """A mean over trials with its 95 % interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} ({self.low:.3f} to {self.high:.3f})"


def spread(values: Values, seed: int = 0) -> Spread:
    """The mean of ``values`` ``(trials,)`` and the 2.5 and 97.5 percentiles of the means of resampled trials."""
    rows = np.random.default_rng(seed).integers(0, len(values), (2000, len(values)))
    low, high = np.percentile(values[rows].mean(1), (2.5, 97.5))
    return Spread(float(values.mean()), float(low), float(high))


@dataclass(frozen=True)
class Inverted:
    """Gradient inversion of one view. similarity: of the victim's images to what was read, correlation over pixels.

    control: the same of images that nobody sent: what choosing the best of many guesses achieves. leaked: similarity
    less control, in the same trials. less: leaked of the first view less leaked of this one. psnr: dB. shown: pairs of
    images of the first trials, ``(k, 2, inputs)``: sent, read.
    """

    view: str
    similarity: Spread
    control: Spread
    leaked: Spread
    less: Spread
    psnr: Spread
    shown: Values


@dataclass(frozen=True)
class Inferred:
    """Membership inference of one view by one score. area: under the curve. less: as in :class:`Inverted`.

    true_at: true positives at 10 % false ones. curve: the mean of the trials' curves.
    """

    view: str
    score: str
    area: Spread
    less: Spread
    true_at: Spread
    curve: membership.Curve


def invert(
    task: Task, views: Mapping[str, See], clients: int, local: Local, images: int, trials: int, seed: int = 0
) -> list[Inverted]:
    """Trials in which ``clients`` clients with ``images`` training images each send one update of a fresh network."""
    if clients * images > len(task.train_x):
        raise BadParameters(f"{clients} clients of {images} images are more than the {len(task.train_x)} there are")
    draw = np.random.default_rng(seed)
    readings: dict[str, list[tuple[inversion.Reading, inversion.Reading]]] = {name: [] for name in views}
    sent: list[inversion.Images] = []
    for trial in range(trials):
        net = start(task, seed + trial)
        before, shape = to_vector(net), inversion.first_layer(net)
        parts = draw.permutation(len(task.train_x))[: clients * images].reshape(clients, images)
        updates = np.stack(
            [
                local_update(net, before, task.train_x[part], task.train_y[part], local, (seed, trial, k))
                for k, part in enumerate(parts)
            ]
        )
        victim = inversion.flat(task.train_x[parts[0]])
        never_sent = inversion.flat(task.test_x[draw.permutation(len(task.test_x))[:images]])
        sent.append(victim)
        for name, see in views.items():
            found = inversion.candidates(see(updates, [images] * clients), shape)
            readings[name].append((inversion.nearest(found, victim), inversion.nearest(found, never_sent)))
    return _inverted(readings, sent)


def _inverted(
    readings: Mapping[str, Sequence[tuple[inversion.Reading, inversion.Reading]]], sent: Sequence[inversion.Images]
) -> list[Inverted]:
    found: list[Inverted] = []
    first: Values | None = None
    for name, pairs in readings.items():
        similarity = np.array([mine.similarity.mean() for mine, _ in pairs])
        control = np.array([other.similarity.mean() for _, other in pairs])
        psnr = np.array([mine.psnr.mean() for mine, _ in pairs])
        leaked = similarity - control
        first = leaked if first is None else first
        shown = np.stack([np.stack([x[0], mine.images[0]]) for x, (mine, _) in zip(sent[:8], pairs, strict=False)])
        figures = [spread(each) for each in (similarity, control, leaked, first - leaked, psnr)]
        found.append(Inverted(name, figures[0], figures[1], figures[2], figures[3], figures[4], shown))
    return found


def infer(federation: Federation, views: Mapping[str, See], rounds: Sequence[int], seed: int = 0) -> list[Inferred]:
    """Every client of some rounds in turn is the victim; members are its images, others as many unseen test images.

    rounds: numbers of the rounds attacked; the model before each is that of plain averaging. Members and others have
    the same labels; images that find no counterpart are left out. A trial is a client in a round.
    """
    scores = {"loss": membership.loss_scores, "gradient": membership.gradient_scores}
    curves: dict[tuple[str, str], list[membership.Curve]] = {(v, s): [] for v in views for s in scores}
    draw, task = np.random.default_rng(seed), federation.task
    net = start(task, federation.seed)
    vector = to_vector(net)
    for number in range(max(rounds) + 1):
        updates, weights = federation.updates(vector, number)
        if number in rounds:
            for row, client in enumerate(federation.chosen(number)):
                order = [row, *(k for k in range(len(weights)) if k != row)]
                arranged, shares = updates[order], [weights[k] for k in order]
                members, others = matched(federation, client, draw)
                x = torch.cat([task.train_x[members], task.test_x[others]])
                y = torch.cat([task.train_y[members], task.test_y[others]])
                for name, see in views.items():
                    seen = see(arranged, shares)
                    for score, judge in scores.items():
                        found = judge(net, vector, seen, x, y)
                        curves[name, score].append(membership.curve(found[: len(members)], found[len(members) :]))
        vector = vector + average_floats(updates, weights)
    return _inferred(curves)


def matched(federation: Federation, client: int, draw: np.random.Generator) -> tuple[Values, Values]:
    """Indices of the client's training images and of as many test images, label by label."""
    task, members, others = federation.task, [], []
    labels = task.train_y[federation.parts[client]].numpy()
    for label in np.unique(labels):
        mine = draw.permutation(federation.parts[client][labels == label])
        unseen = draw.permutation(np.flatnonzero(task.test_y.numpy() == label))
        count = min(len(mine), len(unseen))
        members.append(mine[:count])
        others.append(unseen[:count])
    return np.concatenate(members), np.concatenate(others)


def _inferred(curves: Mapping[tuple[str, str], Sequence[membership.Curve]]) -> list[Inferred]:
    found: list[Inferred] = []
    first: dict[str, Values] = {}
    for (view, score), each in curves.items():
        areas = np.array([curve.area for curve in each])
        mean = np.mean([np.interp(_GRID, curve.false, curve.true) for curve in each], axis=0)
        less = spread(first.setdefault(score, areas) - areas)
        at = spread(np.array([curve.true_at(0.1) for curve in each]))
        found.append(Inferred(view, score, spread(areas), less, at, membership.Curve(_GRID, mean)))
    return found
