"""Federated averaging in one process: every client's training, and any way to average what they send.

Runs that differ in the averaging alone see the same images in the same order from the same start, so that their
accuracies can be compared pair by pair.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (as everybody writes it)
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from pqi.demo.digits import load_digits
from pqi.federated.study.split import Indices

Vector = NDArray[np.float32]


@dataclass(frozen=True)
class Task:
    """A network and its images. x: float32, 0 to 1, ``(N, ...)``; y: int64 ``(N,)``. build: seeded by the caller."""

    name: str
    build: Callable[[], nn.Module]
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor


@dataclass(frozen=True)
class Local:
    """How a client trains: SGD in batches of ``batch`` for ``epochs`` passes over what it has."""

    epochs: int = 1
    batch: int = 32
    rate: float = 0.1


class Averaging(Protocol):
    """Averages the clients' updates: float32 ``(clients, parameters)`` and images per client; ``(parameters,)``."""

    def __call__(self, updates: NDArray[np.float32], weights: Sequence[int]) -> Vector:
        """The weighted mean."""
        ...


@dataclass
class History:
    """A run. accuracies: after each round, 0 to 1. vector: the global model's parameters at the end."""

    vector: Vector
    accuracies: list[float] = field(default_factory=list)


def mlp(inputs: int, hidden: int) -> Callable[[], nn.Module]:
    """A network with one hidden layer for ten classes."""
    return lambda: nn.Sequential(nn.Flatten(), nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, 10))


def digits_task(hidden: int = 48) -> Task:
    """scikit-learn's 8 x 8 digits: 1347 to train, 450 to test. Raises DemoError without scikit-learn."""
    d = load_digits()
    x, y = (torch.from_numpy(part) for part in (d.train_x / 16, d.train_y))
    return Task("digits", mlp(64, hidden), x, y, torch.from_numpy(d.test_x / 16), torch.from_numpy(d.test_y))


def start(task: Task, seed: int) -> nn.Module:
    """The network that every client starts from. The caller's random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return task.build()


def to_vector(net: nn.Module) -> Vector:
    """All parameters in a row, a copy."""
    found: Vector = parameters_to_vector(net.parameters()).detach().numpy().copy()
    return found


def from_vector(net: nn.Module, vector: Vector) -> nn.Module:
    """The network with these parameters, in place."""
    vector_to_parameters(torch.from_numpy(vector.astype(np.float32)), net.parameters())
    return net


def local_update(net: nn.Module, vector: Vector, x: Tensor, y: Tensor, local: Local, seed: Sequence[int]) -> Vector:
    """What training on x, y changes of ``vector``: (parameters after) - (parameters before). net: room to work in."""
    from_vector(net, vector).train()
    order = np.random.default_rng(seed)
    parameters = list(net.parameters())
    for _ in range(local.epochs):
        for index in torch.split(torch.from_numpy(order.permutation(len(x))), local.batch):
            gradients = torch.autograd.grad(F.cross_entropy(net(x[index]), y[index]), parameters)
            with torch.no_grad():
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter.sub_(local.rate * gradient)
    return to_vector(net) - vector


def accuracy(net: nn.Module, vector: Vector, x: Tensor, y: Tensor) -> float:
    """The share of right answers of the network with these parameters."""
    with torch.no_grad():
        return float((from_vector(net, vector).eval()(x).argmax(1) == y).float().mean())


@dataclass(frozen=True)
class Federation:
    """Clients with their images. parts: indices into the task's training images, one array a client.

    per_round: how many of them take part in a round, chosen anew from the seed; None: all.
    """

    task: Task
    parts: Sequence[Indices]
    local: Local = Local()
    seed: int = 0
    per_round: int | None = None

    def chosen(self, number: int) -> list[int]:
        """Who takes part in that round."""
        if self.per_round is None:
            return list(range(len(self.parts)))
        draw = np.random.default_rng((self.seed, number, len(self.parts)))
        return sorted(draw.choice(len(self.parts), self.per_round, replace=False).tolist())

    def updates(self, vector: Vector, number: int) -> tuple[NDArray[np.float32], list[int]]:
        """What the chosen clients would send in round ``number``, and how many images each has."""
        net, chosen = start(self.task, self.seed), self.chosen(number)
        found = np.empty((len(chosen), len(vector)), np.float32)
        for row, client in enumerate(chosen):
            x, y = self.task.train_x[self.parts[client]], self.task.train_y[self.parts[client]]
            found[row] = local_update(net, vector, x, y, self.local, (self.seed, number, client))
        return found, [len(self.parts[client]) for client in chosen]

    def train(self, rounds: int, average: Averaging, each: Callable[[int, float], None] | None = None) -> History:
        """Rounds of federated averaging. each: told the round and the accuracy on the test images."""
        net = start(self.task, self.seed)
        history = History(to_vector(net))
        for number in range(rounds):
            history.vector = history.vector + average(*self.updates(history.vector, number))
            history.accuracies.append(accuracy(net, history.vector, self.task.test_x, self.task.test_y))
            if each is not None:
                each(number + 1, history.accuracies[-1])
        return history


def average_floats(updates: NDArray[np.float32], weights: Sequence[int]) -> Vector:
    """Plain federated averaging: ``sum_i n_i u_i / sum_i n_i``. The server sees every update."""
    shares = np.asarray(weights, np.float64) / sum(weights)
    found: Vector = (shares @ updates).astype(np.float32)
    return found
