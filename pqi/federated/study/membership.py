"""Membership inference: was this image among those a client trained on, judged from what the server sees?

The server knows the global model before the round and sees an update ``u``: of one client, or the average of many.
Two scores, of which a higher one says "member":

- *loss*: ``L(v; x, y) - L(v + u; x, y)``: how much the update improved this image. Subtracting the loss before takes
  out how hard the image is (Yeom et al. 2018; Watson et al. 2022).
- *gradient*: the cosine of ``u`` and ``-dL(v; x, y)/dv``: how far the update goes where this image would have pulled
  it; in many dimensions unrelated gradients are nearly orthogonal (Li, Li and Ribeiro 2022).

Members and the others must be of the same labels, else a score tells who has which labels, not which images.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (as everybody writes it)
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from pqi.federated.study.training import Vector, from_vector

Scores = NDArray[np.float64]
_AT_ONCE = 256  # images whose gradients are in memory at the same time


def loss_scores(net: nn.Module, before: Vector, update: Vector, x: Tensor, y: Tensor) -> Scores:
    """The fall of each image's loss, ``(K,)``. The update may be scaled: what counts is the order."""
    with torch.no_grad():
        first = F.cross_entropy(from_vector(net, before).eval()(x), y, reduction="none")
        second = F.cross_entropy(from_vector(net, before + update).eval()(x), y, reduction="none")
    found: Scores = (first - second).double().numpy()
    return found


def gradient_scores(net: nn.Module, before: Vector, update: Vector, x: Tensor, y: Tensor) -> Scores:
    """The cosine between the update and each image's descent direction, ``(K,)``."""
    from_vector(net, before).eval()
    values = {name: parameter.detach() for name, parameter in net.named_parameters()}

    def loss(values: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        logits = functional_call(net, values, (image[None],))
        return F.cross_entropy(logits, label[None])

    towards, found = torch.from_numpy(update.astype(np.float32)), []
    for some, labels in zip(torch.split(x, _AT_ONCE), torch.split(y, _AT_ONCE), strict=True):
        each = vmap(grad(loss), in_dims=(None, 0, 0))(values, some, labels)
        gradients = torch.cat([each[name].flatten(1) for name in values], dim=1)
        found.append(-F.cosine_similarity(gradients, towards[None], dim=1))
    scores: Scores = torch.cat(found).double().numpy()
    return scores


@dataclass(frozen=True)
class Curve:
    """A receiver operating characteristic. false, true: positive rates, ascending, from 0 to 1."""

    false: Scores
    true: Scores

    @property
    def area(self) -> float:
        """The chance that a member scores above another image; 0.5 is a guess."""
        return float(np.sum(np.diff(self.false) * (self.true[1:] + self.true[:-1]) / 2))

    def true_at(self, false: float) -> float:
        """The true-positive rate at this rate of false positives, between points along the line."""
        return float(np.interp(false, self.false, self.true))


def curve(members: Scores, others: Scores) -> Curve:
    """Of scores of members and of the others; ties count half."""
    scores = np.concatenate([members, others])
    order = np.argsort(-scores, kind="stable")
    is_member = np.concatenate([np.ones(len(members)), np.zeros(len(others))])[order]
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    true, false = np.cumsum(is_member)[last] / len(members), np.cumsum(1 - is_member)[last] / len(others)
    return Curve(np.append(0.0, false), np.append(0.0, true))
