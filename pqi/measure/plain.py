"""The same inputs without privacy: the float network and the integer models, on one thread of this process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pqi.demo.measure import threads
from pqi.measure.spread import Spread, timed
from pqi.measure.subject import Subject

_CHUNK = 512


@dataclass(frozen=True)
class Plain:
    """Seconds for ``batch`` inputs at once. float32_seconds: None where the network is not known."""

    batch: int
    float32_seconds: Spread | None
    integer_seconds: Mapping[str, Spread]

    def to_json(self) -> dict[str, Any]:
        """As plain JSON."""
        return {
            "batch": self.batch,
            "float32_seconds": None if self.float32_seconds is None else self.float32_seconds.to_json(),
            "integer_seconds": {kind: seconds.to_json() for kind, seconds in self.integer_seconds.items()},
        }


@dataclass(frozen=True)
class Accuracies:
    """Shares of all the subject's inputs whose decision is right; None where it is not known."""

    floating: float | None
    integer: Mapping[str, float | None]

    def to_json(self) -> dict[str, Any]:
        """As plain JSON."""
        return {"float": self.floating, "integer": dict(self.integer)}


def measure_plain(subject: Subject, batch: int) -> Plain:
    """Seconds for ``batch`` inputs at once. One thread: for networks of this size more are no faster."""
    x, net = subject.inputs(batch), subject.floating
    with threads(1):
        floating = None if net is None else timed(lambda: _floats(net, x))
        integer = {kind: timed(partial(model.predict, x, "silent")) for kind, model in subject.models.items()}
    return Plain(batch, floating, integer)


def measure_accuracy(subject: Subject) -> Accuracies:
    """Of the float network and of every integer model, on all inputs."""
    with threads(1):
        parts = [np.ascontiguousarray(subject.x[at : at + _CHUNK]) for at in range(0, len(subject.x), _CHUNK)]
        net, floating = subject.floating, None
        if net is not None:
            floating = right(np.concatenate([_floats(net, part) for part in parts]), subject.y)
        integer = {
            kind: right(np.concatenate([model.predict(part, "silent") for part in parts]), subject.y)
            for kind, model in subject.models.items()
        }
    return Accuracies(floating, integer)


def _floats(net: nn.Module, x: NDArray[Any]) -> NDArray[Any]:
    with torch.inference_mode():
        answer: NDArray[Any] = net(torch.from_numpy(x).float()).numpy()
    return answer


def decisions(answers: NDArray[Any]) -> NDArray[np.int64]:
    """The class of every answer (N, classes); of a single output, whether it is above 0."""
    flat = answers.reshape(len(answers), -1)
    found: NDArray[np.int64] = (flat[:, 0] > 0).astype(np.int64) if flat.shape[1] == 1 else flat.argmax(1)
    return found


def right(answers: NDArray[Any], labels: NDArray[Any] | None) -> float | None:
    """The share of right decisions."""
    if labels is None or not len(answers):
        return None
    return float((decisions(answers) == labels[: len(answers)]).mean())
