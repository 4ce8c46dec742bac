"""Answers with noise: what they cost in accuracy, and what they leave of a copy and of a guess at membership."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from parts import Part
from torch import nn

import pqi
from pqi.audit import attacks
from pqi.audit.attack import Budget
from pqi.audit.attacks.membership import log_odds
from pqi.audit.case import Case, Data
from pqi.audit.defences.outputs import harden
from pqi.audit.statistics import Estimate, bootstrap, roc, share, true_positives_at
from pqi.audit.subjects import IntegerSubject
from pqi.demo.digits import Digits, load_digits, train_network
from pqi.graph.model import IntegerModel
from pqi.measure.networks import digits_mlp

SCALES = (0, 100, 300, 1000, 3000)
ASKED = (100, 1000, 10_000)
AGAIN = 16  # questions about one input, of which an attacker takes the mean
SEED, MEMBERS, WRONG, EPOCHS = 3, 600, 0.2, 150
_COLUMNS = (
    "noise S",
    "accuracy",
    *(f"copy, own {n}" for n in ASKED),
    *(f"copy, noise {n}" for n in ASKED),
    "membership: area",
    "true positives at 1 %",
    f"area, asked {AGAIN} times",
)
_NOTES = (
    "Accuracy and copies: the digits perceptron of pqi bench, its 450 test images; the extraction attack as it is (one "
    "hidden layer of 128, 1000 steps, seed 0; questions from the training data or uniform noise). Membership: the "
    f"threshold attack on a perceptron 64-128-10 trained for {EPOCHS} epochs on {MEMBERS} images of which a fifth have "
    f"wrong labels, so that it remembers them, against {MEMBERS} other images with as many wrong labels: once, and by "
    f"the mean of {AGAIN} answers to the same question. S in units of the answer's integers; 95 % intervals. Noise of "
    "the law that the dealer draws from, seeded."
)


def part(small: bool = False) -> Part:
    made = Part("Answers with noise", _NOTES, _COLUMNS)
    digits = load_digits()
    victim = _victim(digits)
    remembers, pool, members = _remembers(digits, 20 if small else EPOCHS)
    areas: dict[int, tuple[Estimate, Estimate]] = {}
    for scale in (0, 1000) if small else SCALES:
        accuracy, copies = _served(victim, scale, ASKED[:1] if small else ASKED, 50 if small else 1000)
        once, hits = _guessed(remembers, pool, members, scale, 1)
        often, _ = _guessed(remembers, pool, members, scale, AGAIN)
        areas[scale] = once, often
        cells = [f"{100 * e.value:.1f} %" for e in copies]
        cells += [""] * (2 * len(ASKED) - len(cells))
        made.row(scale, _percent(accuracy), *cells, _plain(once), _percent(hits), _plain(often))
    _private(made, victim.model, digits.test_x[: 50 if small else 450])
    without, (once, often) = areas[0][0], areas[1000]
    made.claim(
        "noise of 1000 leaves less of the guess at membership than there was",
        f"area {once.value:.3f} from {without.value:.3f}",
        "less",
        once.value < without.value,
    )
    made.claim(
        f"the mean of {AGAIN} answers gives at least half of that back",
        f"area {often.value:.3f}",
        "half way",
        often.value - once.value >= (without.value - once.value) / 2,
    )
    return made


def _victim(digits: Digits) -> Case:
    net = train_network(digits_mlp, digits)
    model = pqi.quantize(net, calibration=digits.train_x)
    test, train = Data(digits.test_x, digits.test_y), Data(digits.train_x, digits.train_y)
    return Case(net, model, test, train, "digits", 0.0, 16.0)


def _remembers(digits: Digits, epochs: int) -> tuple[IntegerModel, Data, NDArray[np.bool_]]:
    """A network that was trained for too long on labels some of which are wrong; its pool, members first."""
    generator = np.random.default_rng(SEED)
    x, y = np.concatenate([digits.train_x, digits.test_x]), np.concatenate([digits.train_y, digits.test_y])
    rows = generator.permutation(len(x))[: 2 * MEMBERS]
    x, y = x[rows], y[rows].copy()
    wrong = generator.random(len(y)) < WRONG
    y[wrong] = (y[wrong] + generator.integers(1, 10, int(wrong.sum()))) % 10
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
        optimizer = torch.optim.Adam(net.parameters(), 3e-3)
        inside, labels = torch.from_numpy(x[:MEMBERS]), torch.from_numpy(y[:MEMBERS])
        for _ in range(epochs):
            for batch in torch.randperm(MEMBERS).split(32):
                optimizer.zero_grad()
                nn.functional.cross_entropy(net(inside[batch]), labels[batch]).backward()
                optimizer.step()
    model = pqi.quantize(net.eval(), calibration=x[:MEMBERS])
    return model, Data(x, y), np.arange(2 * MEMBERS) < MEMBERS


def _served(victim: Case, scale: int, asked: Sequence[int], steps: int) -> tuple[Estimate, list[Estimate]]:
    """Accuracy of one answer, and the fidelity of copies: own examples, then uniform noise."""
    policy = f"noisy:{scale}" if scale else "scores"
    subject = IntegerSubject(harden(victim.model, policy))
    accuracy = share(subject.labels(victim.test.x) == victim.test.y)
    copies = []
    for inputs in ("own", "noise"):
        attack = attacks.get("extraction", policies=(policy,), asked=asked, inputs=inputs, steps=steps)
        (found,) = attack.run(victim, Budget(samples=450, seed=0))
        copies += [found.figures[f"{policy}: fidelity at {n}"] for n in asked]
    return accuracy, copies


def _guessed(
    model: IntegerModel, pool: Data, members: NDArray[np.bool_], scale: int, times: int
) -> tuple[Estimate, Estimate]:
    """Area and true positives at 1 % of the threshold attack on the mean of ``times`` answers."""
    subject = IntegerSubject(harden(model, ("noisy", scale)) if scale else model, seed=1)
    phi = log_odds(np.mean([subject.scores(pool.x) for _ in range(times)], axis=0), pool.y)
    inside, outside = phi[members], phi[~members]

    def area(score: NDArray[np.float64], mark: NDArray[np.bool_]) -> float:
        return roc(score[mark], score[~mark]).area

    return bootstrap(area, phi, members, seed=0, draws=500), true_positives_at(inside, outside, 0.01)


def _private(made: Part, model: IntegerModel, x: NDArray[np.float32]) -> None:
    """Every role a process: answers less the reference are noise of the law, and every byte is declared."""
    noisy = harden(model, "noisy:300")
    with pqi.local(noisy, server_options={"max_batch": 50}) as service:
        answer = service.predict(x)
    e = np.asarray(answer.integers) - noisy.integers(noisy.encode(x, "silent")).numpy()
    near = 5 * 300 / np.sqrt(2 * e.size)
    cost, before = (pqi.compile(m).cost(1) for m in (noisy, model))
    dealt = sum(answer.ledger.offline_bytes.values())
    made.claim(
        f"{e.size} private scores less the reference: at most 9 S from it, spread as the law's",
        f"at most {np.abs(e).max()}, standard deviation {e.std():.1f}",
        f"S = 300; 2700, and 300 +- {near:.0f}, five standard errors",
        bool(np.abs(e).max() <= 2700 and abs(e.std() - 300) < near),
    )
    made.claim(
        "noise of ten scores: bytes dealt an input, and bytes and exchanges online",
        f"{cost.dealt_bytes - before.dealt_bytes} B, {cost.online_bytes - before.online_bytes} B, "
        f"{cost.exchanges - before.exchanges}",
        f"online nothing, dealt as declared: {len(x)} x {cost.dealt_bytes} B",
        dealt == len(x) * cost.dealt_bytes
        and (cost.online_bytes, cost.exchanges) == (before.online_bytes, before.exchanges),
    )


def _percent(e: Estimate) -> str:
    return f"{100 * e.value:.1f} % ({100 * e.low:.1f}-{100 * e.high:.1f})"


def _plain(e: Estimate) -> str:
    return f"{e.value:.3f} ({e.low:.3f}-{e.high:.3f})"
