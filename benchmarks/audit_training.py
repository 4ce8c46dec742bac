"""Defences inside training, attacked: adversarial training and the Lipschitz term, on digits and MNIST."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import data
import numpy as np
import torch
from numpy.typing import NDArray
from parts import Part
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

import pqi
from pqi.audit.attack import Budget
from pqi.audit.attacks.pgd import ProjectedGradient
from pqi.audit.attacks.square import Square
from pqi.audit.case import Case, Data
from pqi.audit.defences.adversarial_training import AdversarialTraining
from pqi.audit.defences.lipschitz import Lipschitz
from pqi.audit.defences.training import TrainingDefence
from pqi.audit.estimators import seeded
from pqi.audit.evasion import within
from pqi.audit.statistics import Estimate, paired_difference, share
from pqi.audit.subjects import FLOAT, INTEGERS, STRAIGHT_THROUGH
from pqi.quant.scheme import Recipe, Scheme
from pqi.quant.stages import Lowered
from pqi.quant.train.loop import Schedule

SEED, EPSILON, BETA = 0, 0.1, 1e-3
STRENGTHS = (0.05, EPSILON, 0.15)
GAIN, LOSS = 20.0, 3.0  # points: least gain of robust accuracy at EPSILON, most loss of clean accuracy
SAME = 4.0  # points of agreement that count as no change
FEWER_BITS = 3
NOTES = (
    "Four trainings of the same integers (8-bit weights, 4-bit activations) from the same float network. Robust "
    "accuracy: right on the clean input and on what 20 steps of PGD (crafted on the straight-through form, scored on "
    "the integers) and Square ({queries} questions for scores) make of it, the worse of both, and no better than at a "
    "smaller strength; the float network is attacked by its own gradients and scores. Changes are paired. Agreement: "
    "the trained real weights, once in floating point and once quantized again after training to 8-bit weights and "
    "{bits}-bit activations: on how many test inputs both give the same class, and how far the logits differ (norm of "
    "the difference by that of the float logits). Adversarial training: epsilon {epsilon} of the range, 5 steps, half "
    "of every batch; Lipschitz: beta {beta}. Learning rates, epsilon and beta were chosen on training images of MNIST "
    "that are not used here, and on another split of digits, whose images overlap with this one's. One seed each."
)
TRAININGS: dict[str, tuple[TrainingDefence, ...]] = {
    "plain": (),
    "adversarial": (AdversarialTraining(EPSILON, steps=5, low=0.0, high=1.0),),
    "Lipschitz": (Lipschitz(BETA),),
    "both": (AdversarialTraining(EPSILON, steps=5, low=0.0, high=1.0), Lipschitz(BETA)),
}

Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Problem:
    """Images in [0, 1] and a small network for them; test: what every figure is measured on."""

    name: str
    net: nn.Module
    x: Tensor
    y: Tensor
    test: Data
    schedule: Schedule


@dataclass(frozen=True)
class Measured:
    """Right on clean inputs; right on all of them and on the attacked ones, by strength; same class in few bits."""

    clean: Flags
    robust: tuple[Flags, ...]
    agreed: Flags
    error: float
    seconds: float


def part(small: bool) -> Part:
    columns = ["data", "network", "clean", *(f"robust at {e:g}" for e in STRENGTHS)]
    columns += [f"agreement at {FEWER_BITS} bits", "error of logits", "training, CPU s"]
    queries = 50 if small else 300
    notes = NOTES.format(queries=queries, bits=FEWER_BITS, epsilon=EPSILON, beta=BETA)
    made = Part("Defences in training", notes, columns)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for problem in (digits(small), *(() if small else (mnist(),))):
            measure(made, problem, queries)
    return made


def measure(made: Part, problem: Problem, queries: int) -> None:
    """Rows of one problem, then its claims."""
    found: dict[str, Measured] = {}
    for name, defences in TRAININGS.items():
        started = time.process_time()
        given = (problem.net, problem.x[:500], problem.x, problem.y, Recipe(Scheme(8, activation_bits=4)))
        trained = pqi.finetune(*given, problem.schedule, defences=defences)
        seconds = time.process_time() - started
        case = Case(problem.net, trained.model, problem.test)
        if not found:
            row(made, problem.name, "float, as it was", attacked(case, FLOAT, queries))
        agreed, error = agreement(problem, trained.lowered)
        clean, robust = attacked(case, INTEGERS, queries)
        found[name] = Measured(clean, robust, agreed, error, seconds)
        row(made, problem.name, name, (clean, robust), found[name])
    claims(made, problem.name, found)


def row(
    made: Part, data_name: str, name: str, flags: tuple[Flags, tuple[Flags, ...]], more: Measured | None = None
) -> None:
    clean, robust = flags
    told = ["", "", ""]
    if more is not None:
        told = [percent(share(more.agreed)), f"{more.error:.3f}", f"{more.seconds:.0f}"]
    made.row(data_name, name, *(percent(share(f)) for f in (clean, *robust)), *told)


def claims(made: Part, name: str, found: dict[str, Measured]) -> None:
    at = STRENGTHS.index(EPSILON)
    plain, adversarial, smooth, both = (found[each] for each in TRAININGS)
    for what, defended in (("adversarial training alone", adversarial), ("adversarial training with Lipschitz", both)):
        gain = paired_difference(plain.robust[at], defended.robust[at])
        cost = paired_difference(plain.clean, defended.clean)
        made.claim(
            f"{name}: {what} raises the integers' worst-case robust accuracy at epsilon {EPSILON:g}",
            f"{points(gain)} points for {points(cost)} clean",
            f"at least {GAIN:g}, the interval above 0, for at most {LOSS:g}",
            100 * gain.value >= GAIN and gain.low > 0 and 100 * cost.value >= -LOSS,
        )
    gain, cost = paired_difference(plain.robust[at], smooth.robust[at]), paired_difference(plain.clean, smooth.clean)
    made.claim(
        f"{name}: the Lipschitz term alone does not lower the integers' worst-case robust accuracy at {EPSILON:g}",
        f"{points(gain)} points for {points(cost)} clean",
        f"the interval not all below 0, for at most {LOSS:g}",
        gain.high > 0 and 100 * cost.value >= -LOSS,
    )
    more = paired_difference(smooth.robust[at], adversarial.robust[at])
    made.claim(
        f"{name}: adversarial training does more against what it is trained for than the Lipschitz term",
        f"{points(more)} points at epsilon {EPSILON:g}",
        "the interval above 0",
        more.low > 0,
    )
    change = paired_difference(plain.agreed, smooth.agreed)
    made.claim(
        f"{name}: the Lipschitz term does not change what rounding to {FEWER_BITS} bits does to the answer",
        f"agreement {points(change)} points; error of the logits {plain.error:.3f} without, {smooth.error:.3f} with",
        f"the whole interval within {SAME:g} points either way",
        100 * change.low > -SAME and 100 * change.high < SAME,
    )


def attacked(case: Case, form: str, queries: int) -> tuple[Flags, tuple[Flags, ...]]:
    """Right on clean inputs, and still right after both attacks at each strength; only survivors are attacked on."""
    subject, data_ = case.subjects[form], case.test
    crafted_on = STRAIGHT_THROUGH if form == INTEGERS else form  # the same answers, with gradients, and faster
    clean = subject.labels(case.on_grid(data_.x)) == data_.y
    right, curve = clean.copy(), []
    for strength in STRENGTHS:
        for attack in (ProjectedGradient((strength,)), Square((strength,))):
            left = np.flatnonzero(right)
            if not len(left):
                continue
            rest = data_.take(left)
            with seeded(SEED):
                altered = attack.craft(case, case.subjects[crafted_on], rest, strength, Budget(queries=queries))
            right[left] = subject.labels(within(case, altered, rest.x, strength)) == rest.y
        curve.append(right.copy())
    return clean, tuple(curve)


@torch.no_grad()
def agreement(problem: Problem, lowered: Lowered) -> tuple[Flags, float]:
    """The trained real weights in floating point against themselves in few bits: same class, relative error."""
    net = real_network(problem.net, lowered)
    model = pqi.quantize(net, problem.x[:500], 8, FEWER_BITS)
    floats = net(torch.as_tensor(problem.test.x, dtype=torch.float32)).double()
    integers = torch.as_tensor(model.predict(problem.test.x, "silent"))
    same = (floats.argmax(1) == integers.argmax(1)).numpy()
    return same, float((integers - floats).norm() / floats.norm())


def real_network(net: nn.Module, lowered: Lowered) -> nn.Module:
    """The float network with the real weights that the integers stand for."""
    real = copy.deepcopy(net)
    modules = dict(real.named_modules())
    for node in lowered.graph.nodes:
        if node.name not in lowered.grids:
            continue
        unit, layer = lowered.scales[node.name], modules[node.name]
        layer.weight.data.copy_(node.op.weight * (unit / lowered.scales[node.inputs[0]]))
        layer.bias.data.copy_((node.op.bias - lowered.offsets.get(node.name, 0)) * unit)
    return real


def digits(small: bool) -> Problem:
    """1,000 images of 8 x 8 to train on, 600 to test."""
    images, labels = load_digits(return_X_y=True)
    x, y = torch.from_numpy(images).float().view(-1, 1, 8, 8) / 16, torch.from_numpy(labels).long()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(SEED))
    x, y = x[order], y[order]
    net = fitted(network(1, (12, 24), strides=(1, 2), features=24 * 16), x[:1000], y[:1000], epochs=15, batch=50)
    held = slice(1000, 1100 if small else 1600)
    schedule = Schedule(epochs=3 if small else 12, batch=50, learning_rate=2.0, step_rate=0.02, seed=SEED)
    return Problem("digits", net, x[:1000], y[:1000], Data(x[held].numpy(), y[held].numpy()), schedule)


def mnist() -> Problem:
    """The first 6,000 training images, 500 test images drawn by the seed."""
    (images, labels), (held, truth) = data.load().mnist()
    x, y = torch.from_numpy(images[:6000, None] / np.float32(255)), torch.from_numpy(labels[:6000].astype("int64"))
    net = fitted(network(1, (8, 16), strides=(2, 2), features=16 * 49), x, y, epochs=8, batch=128)
    test = Data(held[:, None] / np.float32(255), truth.astype("int64")).sample(500, SEED)
    schedule = Schedule(epochs=8, batch=128, learning_rate=2.0, step_rate=0.02, seed=SEED)
    return Problem("MNIST", net, x, y, test, schedule)


def network(inputs: int, widths: Sequence[int], strides: Sequence[int], features: int) -> nn.Module:
    """Two convolutions, two dense layers, ReLU between them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        first, second = nn.Conv2d(inputs, widths[0], 3, strides[0], 1), nn.Conv2d(*widths, 3, strides[1], 1)
        last = nn.Linear(features, 32), nn.ReLU(), nn.Linear(32, 10)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Flatten(), *last)


def fitted(net: nn.Module, x: Tensor, y: Tensor, epochs: int, batch: int) -> nn.Module:
    """Trained in floating point, by cross-entropy."""
    optimizer, generator = torch.optim.Adam(net.parameters(), 3e-3), torch.Generator().manual_seed(SEED)
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=generator).split(batch):
            optimizer.zero_grad()
            functional.cross_entropy(net(x[rows]), y[rows]).backward()
            optimizer.step()
    return net.eval()


def percent(estimate: Estimate) -> str:
    return f"{100 * estimate.value:.1f} [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"


def points(estimate: Estimate) -> str:
    return f"{100 * estimate.value:+.1f} [{100 * estimate.low:+.1f}, {100 * estimate.high:+.1f}]"
