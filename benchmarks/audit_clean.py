"""Clean, well-trained networks under the quick audit: no false alarm."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from audit_fairness import adult
from audit_fairness import trained as trained_on_adult
from data import load
from parts import Part
from torch import nn
from torch.nn import functional

import pqi
from pqi.audit.attack import FAMILIES
from pqi.audit.case import Case, Data
from pqi.audit.plan import Wish
from pqi.audit.rules import ATTENTION, CLEAN, NOT_JUDGED
from pqi.audit.run import Audit, audit
from pqi.audit.statistics import rate

BITS = (8, 6)
MINUTES = 10.0
_COLUMNS = ("network", "seed", "weight bits", "accuracy: float, integers", *FAMILIES, "asked", "broken", "seconds")
_NOTES = (
    "Networks trained as usual, none of which knows its training data much better than what it has not seen; weights "
    "to the nearest, activations of 6 bits. Each is asked what `pqi audit --quick` asks, with as many training as test "
    f"examples for membership; the limit is {MINUTES:g} minutes instead of 1.25, so that the machine's load cuts "
    "nothing short. No rule was changed for these networks."
)


@dataclass(frozen=True, eq=False)
class Task:
    """Data, a network for them, and how to train it."""

    name: str
    train: Data
    test: Data
    build: Callable[[], nn.Module]
    epochs: int
    seeds: tuple[int, ...]

    def trained(self, seed: int) -> nn.Module:
        """Adam under one cycle of the rate, batches of 64."""
        x, y = torch.from_numpy(self.train.x), torch.from_numpy(self.train.y)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = self.build()
            optimizer = torch.optim.Adam(net.parameters(), weight_decay=1e-4)
            steps = self.epochs * -(-len(x) // 64)
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps)
            for _ in range(self.epochs):
                for index in torch.split(torch.randperm(len(x)), 64):
                    optimizer.zero_grad()
                    torch.autograd.backward(functional.cross_entropy(net(x[index]), y[index]))
                    optimizer.step()
                    schedule.step()
        return net.eval()


def part(small: bool) -> Part:
    """A row for each network, seed and bits."""
    made, seen = Part("Clean networks: no false alarm", _NOTES, _COLUMNS), list[Audit]()
    for name, seed, bits, case in _cases(small):
        found = audit(case, Wish(MINUTES, quick=True, seed=seed, samples=40 if small else None))
        seen.append(found)
        made.row(name, seed, bits, *_cells(found))
    _claims(made, seen)
    return made


def _cases(small: bool) -> Iterator[tuple[str, int, int, Case]]:
    for task in _tasks(small):
        for seed in task.seeds[:1] if small else task.seeds:
            net = task.trained(seed)
            for bits in BITS:
                yield task.name, seed, bits, _case(task.name, net, task.train, task.test, bits)
    if not small:
        data = adult()
        for seed, by in ((20, "sex"), (21, "race")):
            net = trained_on_adult(data, seed)
            train = Data(data.x[data.train], data.y[data.train])
            for bits in BITS:
                yield f"Adult perceptron, by {by}", seed, bits, _case("adult", net, train, data.unseen(by), bits)


def _case(name: str, net: nn.Module, train: Data, test: Data, bits: int) -> Case:
    model = pqi.quantize(net, train.x[:1000], weight_bits=bits, input_range=(0, 1))
    return Case(net, model, test, train.sample(len(test), 0), name)


def _tasks(small: bool) -> Iterator[Task]:
    from sklearn.datasets import load_digits

    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))
    x, y = (found.images[order, None] / 16).astype(np.float32), found.target[order].astype(np.int64)
    train, test = Data(x[:1200], y[:1200]), Data(x[1200:], y[1200:])
    yield Task("digits perceptron", train, test, lambda: _perceptron(64), 20, (0, 1, 2))
    if small:
        return
    yield Task("digits convolutions", train, test, lambda: _convolutions(8, 12), 15, (0, 1))
    (x, y), (unseen, truth) = load().mnist()
    train, test = _mnist(x[:20_000], y[:20_000]), _mnist(unseen[:2000], truth[:2000])
    yield Task("MNIST perceptron", train, test, lambda: _perceptron(784), 3, (0, 1))
    yield Task("MNIST convolutions", train, test, lambda: _convolutions(28, 8), 2, (0,))


def _mnist(x: np.ndarray, y: np.ndarray) -> Data:
    return Data((x[:, None] / 255).astype(np.float32), y.astype(np.int64))


def _perceptron(inputs: int) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(inputs, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)
    )


def _convolutions(side: int, channels: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(channels, 2 * channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(2 * channels),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(2 * channels * (side // 4) ** 2, 10),
    )


def _cells(found: Audit) -> list[str]:
    figures = next(f for f in found.findings if f.attack == "fidelity").figures
    accuracies = ", ".join(f"{100 * figures[name].value:.2f} %" for name in ("float accuracy", "accuracy"))
    checks = [check for verdict in found.verdicts for check in verdict.checks]
    broken = "; ".join(f"{check.name}: {check.seen}" for check in checks if check.status == ATTENTION)
    asked = sum(check.status in (CLEAN, ATTENTION) for check in checks)
    return [accuracies, *(v.status for v in found.verdicts), str(asked), broken, f"{found.seconds:.0f}"]


def _claims(made: Part, seen: list[Audit]) -> None:
    clean = sum(found.status == CLEAN for found in seen)
    figure = f"{clean} of {len(seen)} (95 %: at least {100 * rate(clean, len(seen)).low:.0f} %)"
    made.claim("audits of clean networks whose status is clean", figure, "all", clean == len(seen))
    checks = [check for found in seen for verdict in found.verdicts for check in verdict.checks]
    broken = sum(check.status == ATTENTION for check in checks)
    asked = sum(check.status in (CLEAN, ATTENTION) for check in checks)
    made.claim("rules broken by clean networks", f"{broken} of {asked} asked", "none", not broken)
    silent = [v for found in seen for v in found.verdicts if v.status == NOT_JUDGED and not (v.missing or v.checks)]
    without = sum(v.status == NOT_JUDGED for found in seen for v in found.verdicts)
    what = "verdicts not judged, all with the reason (no groups were given)"
    reasons = {reason for found in seen for v in found.verdicts if v.status == NOT_JUDGED for reason in v.missing}
    expected = all("no groups were given" in reason for reason in reasons)
    made.claim(what, f"{without}", "no other reason", not silent and expected)
    failed = sum(len(found.failed) for found in seen)
    made.claim("attacks that failed", str(failed), "none", not failed)
