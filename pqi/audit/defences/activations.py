"""Which inputs of a mixed set carry a trigger? Asked of what the integer model makes of them.

Three scores, higher for more suspicious; the first two look at the codes that the last layer reads, class by class (the
class that the model gives), for stamped and honest inputs of one class arrive there by different ways:

spectral     the squared projection of an input's codes, less the class's mean, on the direction in which the class
             varies most, over the class's mean of it (Tran, Li, Madry, NeurIPS 2018)
clusters     the codes of a class are parted in two (k-means); how much nearer an input lies to the smaller part, where
             the parts are apart and one is small (after Chen et al., Activation Clustering, 2018: silhouettes)
forms        by how much the class that the integers give leads in the integers, less its lead in the float network,
             in spreads of a score; for a trigger that sleeps in float, and for no other

They need inputs in the clear. A private service sees none, so this is for whoever holds some: a training set, a test
set, a client's own questions. The first two need a class to hold honest inputs too, with stamped ones the fewer, and
some tens of each; they are a ranking within this set, not a verdict on one input. The third needs the float network,
judges each input alone, and a natural bound is 0 with the classes different.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pqi.audit.case import Case
from pqi.audit.errors import AuditError
from pqi.audit.subjects import FLOAT, INTEGERS
from pqi.graph.graph import OUTPUT, IntegerGraph
from pqi.graph.model import IntegerModel, chunks
from pqi.graph.ops import WEIGHTED
from pqi.graph.ranges import lift

Reals = NDArray[np.float64]

HOW = ("spectral", "clusters", "forms")
_FEWEST = 10  # inputs of a class, below which nothing is said of it
_ROUNDS = 30


def suspicion(case: Case, x: NDArray[Any], how: str = "spectral") -> Reals:
    """A score for each input (N, *input shape), float64 (N,); 0 where a class has too few inputs to tell.

    how: one of HOW. case: its float network is read by "forms" alone, its test examples by none.
    """
    if how not in HOW:
        raise AuditError(f"how = {how!r}: choose from {', '.join(HOW)}")
    given = case.subjects[INTEGERS].scores(x)
    labels = given.argmax(axis=1)
    if how == "forms":
        spoken = case.subjects[FLOAT].scores(x)
        return _lead(given, labels) / max(float(given.std()), 1e-12) - _lead(spoken, labels) / max(
            float(spoken.std()), 1e-12
        )
    codes, found = penultimate(case.model, x), np.zeros(len(x))
    for label in np.unique(labels):
        rows = labels == label
        if np.count_nonzero(rows) >= _FEWEST:
            found[rows] = (spectral if how == "spectral" else clusters)(codes[rows])
    return found


def penultimate(model: IntegerModel, x: NDArray[Any]) -> Reals:
    """What the last layer with weights reads, as float64 (N, features), for real inputs (N, *input shape)."""
    last = next((node for node in reversed(model.graph.nodes) if isinstance(node.op, WEIGHTED)), None)
    if last is None:
        raise AuditError("the model has no layer with weights")
    before = last.inputs[0]
    until = next(i for i, node in enumerate(model.graph.nodes) if node.name == before)
    graph = IntegerGraph(model.graph.nodes[: until + 1], before)

    def read(consumer: str, value: torch.Tensor) -> torch.Tensor:
        wraps = model.policy == "calibrated" and consumer != OUTPUT
        return lift(value, model.accumulators[consumer]) if wraps else value

    codes = model.encode(x, on_saturation="silent")
    found: Reals = torch.cat([graph.run(part, read).flatten(1) for part in chunks(graph, codes)]).double().numpy()
    return found


def spectral(codes: Reals) -> Reals:
    """Of one class, (n, features) to (n,): ((codes - mean) v)^2 over its mean, v the first right singular vector."""
    centred = codes - codes.mean(axis=0)
    square = (centred @ np.linalg.svd(centred, full_matrices=False)[2][0]) ** 2
    return np.asarray(square / max(float(square.mean()), 1e-12))


def clusters(codes: Reals) -> Reals:
    """Of one class, (n, features) to (n,): the lead of the smaller of two clusters, weighed by how apart they are.

    The lead is (d_large - d_small) / d, d the distance of the two centres, from -1 to 1. It is weighed by the mean of
    (b - a) / max(a, b), a the distance to an input's own centre and b to the other (a silhouette by centres), and by
    1 - 2 s, s the smaller one's share: halves of a class say nothing.
    """
    centred = codes - codes.mean(axis=0)
    direction = np.linalg.svd(centred, full_matrices=False)[2][0]
    part = centred @ direction > 0  # k-means from the two sides of the widest direction: no draw, one answer
    for _ in range(_ROUNDS):
        if part.all() or not part.any():
            return np.zeros(len(codes))
        centres = np.stack([codes[~part].mean(axis=0), codes[part].mean(axis=0)])
        distance = np.linalg.norm(codes[:, None] - centres, axis=2)
        now = distance[:, 1] < distance[:, 0]
        if (now == part).all():
            break
        part = now
    small = int(np.count_nonzero(part) * 2 <= len(part))
    own, other = distance.min(axis=1), distance.max(axis=1)
    apart = float(np.mean((other - own) / np.maximum(other, 1e-12)))
    fewer = min(float(part.mean()), 1 - float(part.mean()))
    lead = (distance[:, 1 - small] - distance[:, small]) / max(float(np.linalg.norm(centres[0] - centres[1])), 1e-12)
    return np.asarray(lead * apart * (1 - 2 * fewer))


def _lead(scores: Reals, labels: NDArray[np.int64]) -> Reals:
    """By how much the score of a class exceeds that of the best other one, (N,)."""
    rows = np.arange(len(scores))
    others = scores.copy()
    others[rows, labels] = -np.inf
    return np.asarray(scores[rows, labels] - others.max(axis=1))
