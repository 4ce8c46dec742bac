"""Who has which images: clients whose data are unlike each other, as they are in the field.

Seeds here are of data splits that anybody may repeat; they make nothing secret.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from protocols.errors import BadParameters

Indices = NDArray[np.int64]


def dirichlet_split(labels: NDArray[np.int64], clients: int, alpha: float, seed: int, least: int = 1) -> list[Indices]:
    """Each label's images divided among clients in proportions drawn from Dirichlet(alpha, ..., alpha).

    labels: ``(N,)``. alpha: 100 is nearly alike, 0.1 gives most clients two or three labels. Whoever would have fewer
    than ``least`` images gets some of the richest client's. Returns each client's indices, disjoint, N in total.
    Source: Hsu, Qi and Brown 2019, section 3.
    """
    _possible(labels, clients, clients * least)
    if not alpha > 0:
        raise BadParameters(f"alpha = {alpha} is not above 0: it is the concentration of a Dirichlet distribution")
    draw = np.random.default_rng(seed)
    parts: list[list[np.int64]] = [[] for _ in range(clients)]
    for label in np.unique(labels):
        having = draw.permutation(np.flatnonzero(labels == label))
        ends = np.cumsum(draw.dirichlet(np.full(clients, alpha)))[:-1] * len(having)
        for part, some in zip(parts, np.split(having, ends.round().astype(int)), strict=True):
            part.extend(some)
    for part in parts:
        while len(part) < least:
            part.append(max(parts, key=len).pop())
    return [np.sort(np.asarray(part, np.int64)) for part in parts]


def even_split(labels: NDArray[np.int64], clients: int, seed: int) -> list[Indices]:
    """Every client an equal part of every label, as far as it divides; the split that is easiest to learn from."""
    _possible(labels, clients, clients)
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    by_label = shuffled[np.argsort(labels[shuffled], kind="stable")]
    return [np.sort(by_label[k::clients]) for k in range(clients)]


def _possible(labels: NDArray[np.int64], clients: int, needed: int) -> None:
    if labels.ndim != 1:
        raise BadParameters(f"labels have shape {labels.shape}; one label an image, (N,), is needed")
    if clients < 1 or needed > len(labels):
        raise BadParameters(f"{len(labels)} images cannot be split among {clients} clients that need {needed} in all")
