"""The same inputs without privacy: the float network and the integer models, in this process.

Their seconds are taken between the private batches, a few at a time: a machine that is slow for a while is slow for
all, and a ratio compares what was measured side by side.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pqi.demo.measure import threads
from pqi.measure.spread import Spread
from pqi.measure.subject import Subject

_CHUNK = 512
_ONE, _TWO = "float32", "float32 on two threads"
_AT_ONCE, _SHORT = 3, 0.02  # timings in a row of one kind of work, if each takes less than this
_LEAST, _MOST_SECONDS = 3, 3.0  # timings of one kind, and seconds after which there are enough


@dataclass(frozen=True)
class Plain:
    """Seconds for ``batch`` inputs at once, on one thread but for float32_two_threads.

    float32_*: None where the network is not known. integer_seconds: by the model's kind.
    """

    batch: int
    float32_seconds: Spread | None
    integer_seconds: Mapping[str, Spread]
    float32_two_threads: Spread | None = None

    def to_json(self) -> dict[str, Any]:
        """As plain JSON."""
        return {
            "batch": self.batch,
            "float32_seconds": None if self.float32_seconds is None else self.float32_seconds.to_json(),
            "float32_two_threads": None if self.float32_two_threads is None else self.float32_two_threads.to_json(),
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


class Beside:
    """Takes samples of the work without privacy whenever it is asked to. kinds: of integer models (None: all)."""

    def __init__(self, subject: Subject, batch: int, kinds: Collection[str] | None = None) -> None:
        x, net = subject.inputs(batch), subject.floating
        self._batch = batch
        self._work: dict[str, tuple[int, Callable[[], object]]] = {}
        if net is not None:
            # Two threads first: those of a pool look for work for a while, and nothing else is measured meanwhile.
            self._work[_TWO] = 2, lambda: float_answers(net, x)
            self._work[_ONE] = 1, lambda: float_answers(net, x)
        for kind, model in subject.models.items():
            if kinds is None or kind in kinds:
                self._work[kind] = 1, partial(model.predict, x, "silent")
        self._seconds: dict[str, list[float]] = {name: [] for name in self._work}

    def sample(self) -> None:
        """Time each kind of work: once to warm up, then a few times; what has taken long in all is left out."""
        for name, (count, work) in self._work.items():
            seconds = self._seconds[name]
            if len(seconds) >= _LEAST and sum(seconds) > _MOST_SECONDS:
                continue
            with threads(count):
                work()
                began = len(seconds)
                while len(seconds) == began or (len(seconds) < began + _AT_ONCE and seconds[-1] < _SHORT):
                    started = time.perf_counter()
                    work()
                    seconds.append(time.perf_counter() - started)

    def plain(self) -> Plain:
        """What was found; at least one sample is taken."""
        if not all(self._seconds.values()):
            self.sample()
        found = {name: Spread.of(seconds) for name, seconds in self._seconds.items()}
        one, two = found.pop(_ONE, None), found.pop(_TWO, None)
        return Plain(self._batch, one, found, two)


def measure_plain(subject: Subject, batch: int, samples: int = 5) -> Plain:
    """Seconds for ``batch`` inputs at once, with nothing else going on."""
    beside = Beside(subject, batch)
    for _ in range(samples):
        beside.sample()
    return beside.plain()


def measure_accuracy(subject: Subject) -> Accuracies:
    """Of the float network and of every integer model, on all inputs."""
    if subject.y is None:
        return Accuracies(None, dict.fromkeys(subject.models))
    with threads(1):
        parts = [np.ascontiguousarray(subject.x[at : at + _CHUNK]) for at in range(0, len(subject.x), _CHUNK)]
        net, floating = subject.floating, None
        if net is not None:
            floating = right(np.concatenate([float_answers(net, part) for part in parts]), subject.y)
        integer = {
            kind: right(np.concatenate([model.predict(part, "silent") for part in parts]), subject.y)
            for kind, model in subject.models.items()
        }
    return Accuracies(floating, integer)


def float_answers(net: nn.Module, x: NDArray[Any]) -> NDArray[Any]:
    """The float network's answers to x (N, ...)."""
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
