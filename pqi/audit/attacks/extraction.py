"""Extraction: what an honest-but-curious client makes of the answers it is entitled to.

Encryption and sharing hide weights, not answers. A client asks, keeps question and answer, and trains a substitute on
them (Tramer et al., USENIX Security 2016; Orekondy et al., Knockoff Nets, CVPR 2019). Fidelity is the share of unseen
inputs on which the substitute's class is the victim's. It is measured at growing numbers of questions, under each
policy of answers (:mod:`pqi.audit.defences.outputs`), so that the owner sees what a policy and a limit on questions are
worth. The victim is the integer model, which is what the private service answers, bit for bit; where answers have noise
it is asked with noise, and its class is the one without.

Of a linear model with exact scores no training is needed: d + 1 questions give every weight (:func:`linear_copy`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pqi.audit.attack import Attack, Budget, Clock, Curve, Finding, Progress, Threat
from pqi.audit.case import Case
from pqi.audit.defences.outputs import Policy, harden, hardened, policy_of
from pqi.audit.errors import AuditError
from pqi.audit.statistics import Estimate, share
from pqi.audit.subjects import INTEGERS, IntegerSubject
from pqi.graph.model import IntegerModel
from pqi.graph.ops import READERS, MaxPool2d

Reals = NDArray[np.float64]
Substitute = Callable[[int, int], nn.Module]
ASKED = (100, 300, 1000, 3000, 10_000)
POLICIES = ("scores", "rounded:4", "ranked:3", "top:3", "label")
INPUTS = ("own", "noise")
_SCORED = ("scores", "rounded", "noisy")  # policies whose answers are numbers to be matched
_BATCH, _RATE = 64, 3e-3
_SAMPLE = 512  # inputs over whose scores rounded ones are spread


@dataclass(frozen=True, eq=False)
class Copy:
    """A linear model as extracted: answer = weight codes + bias, int64 (C, d) and (C,), and the questions it took."""

    weight: Tensor
    bias: Tensor
    questions: int


class Extraction(Attack):
    """A substitute for each policy and number of questions.

    policies: as ``pqi.quantize(answers=...)`` takes them. asked: numbers of questions. inputs: "own", examples like the
    training data (mixtures of two, beyond as many as there are), or "noise", uniform over the range of inputs.
    substitute(values of an input, classes): an untrained network for flat inputs; by default one hidden layer of 128.
    steps: of training.
    """

    name = "extraction"
    family = "privacy"
    threat = Threat("scores", "nothing", "a copy of the model, from its answers", "Orekondy et al., CVPR 2019")

    def __init__(
        self,
        policies: Sequence[Any] = POLICIES,
        asked: Sequence[int] = ASKED,
        inputs: str = "own",
        substitute: Substitute | None = None,
        steps: int = 1000,
    ) -> None:
        if inputs not in INPUTS:
            raise AuditError(f"inputs = {inputs!r}: choose from {', '.join(INPUTS)}")
        if not asked or min(asked) < 2 or steps < 1:
            raise AuditError(f"asked = {tuple(asked)}, steps = {steps}: two questions and one step are the least")
        self.policies, self.asked = tuple(policy_of(p) for p in policies), tuple(sorted(asked))
        self.inputs, self.steps = inputs, steps
        self.substitute = substitute or hidden_layer

    def run(self, case: Case, budget: Budget, progress: Progress | None = None) -> tuple[Finding, ...]:
        """One finding, of the integers. A model hardened already is attacked under its own policy alone."""
        clock, test = budget.clock(), case.test.sample(budget.samples, budget.seed)
        own = hardened(case.model)
        policies = [p for p in self.policies if p.size < case.classes or p.kind in _SCORED] if own is None else [own]
        questions = self._questions(case, budget.seed)
        truth = case.model.predict(test.x, "silent").reshape(len(test), -1).argmax(1)
        if own is not None and own.kind == "top":
            raise AuditError("the model tells its best classes without order: there is no class to be faithful to")
        figures: dict[str, Estimate] = {}
        curves: dict[str, Curve] = {}
        early, done = False, 0
        for policy in policies:
            answers = self._answers(case, policy, questions, own)
            found: list[Estimate] = []
            for n in self.asked:
                if early := early or clock.is_over:
                    break
                guess = self._copied(questions[:n], answers[:n], policy, test.x, budget.seed)
                found.append(share(guess == truth))
                figures[f"{policy}: fidelity at {n}"] = found[-1]
                done += 1
                if progress is not None:
                    progress(done, len(policies) * len(self.asked))
            if found:
                curves[str(policy)] = _curve(self.asked, found)
        remark = "" if own is None else f"the model's answers are hardened: {own}"
        return (self._finding(case, budget, clock, figures, curves, early, remark),)

    def _finding(
        self,
        case: Case,
        budget: Budget,
        clock: Clock,
        figures: dict[str, Estimate],
        curves: dict[str, Curve],
        early: bool,
        remark: str,
    ) -> Finding:
        if is_linear(case.model) and any(p.kind == "scores" for p in self.policies):
            n = linear_copy(case.model).questions
            figures["scores: questions for an exact copy"] = Estimate(n, n, n, n)
        settings = {"inputs": self.inputs, "steps": self.steps, "asked": list(self.asked)}
        more = {"figures": figures, "curves": curves, "settings": settings, "stopped_early": early, "remark": remark}
        return self.finding(INTEGERS, budget, clock, **more)

    def _questions(self, case: Case, seed: int) -> Reals:
        """As many as the largest budget, on the client's grid; those of a smaller budget come first."""
        generator, n = np.random.default_rng(seed), max(self.asked)
        shape = case.model.input_shape
        if self.inputs == "noise":
            return case.on_grid(generator.uniform(case.low, case.high, (n, *shape)))
        if case.train is None:
            raise AuditError("inputs = 'own' takes training data as the client's own: give the case some, or 'noise'")
        x = case.train.x[generator.permutation(len(case.train))[:n]]
        if len(x) < n:
            pairs, weight = generator.integers(0, len(x), (2, n - len(x))), generator.random(n - len(x))
            weight = weight.reshape(-1, *[1] * len(shape))
            x = np.concatenate([x, weight * x[pairs[0]] + (1 - weight) * x[pairs[1]]])
        return case.on_grid(x)

    def _answers(self, case: Case, policy: Policy, questions: Reals, own: Policy | None) -> Reals:
        """What the client is told, float64 (n, classes)."""
        model = case.model
        if own is None:
            model = harden(model, policy, model.encode(questions[:_SAMPLE], "silent"))
        return IntegerSubject(model).scores(questions)

    def _copied(self, x: Reals, told: Reals, policy: Policy, test: NDArray[Any], seed: int) -> NDArray[np.int64]:
        """The substitute's classes on the test inputs."""
        flat = torch.as_tensor(x.reshape(len(x), -1), dtype=torch.float32)
        middle, spread = flat.mean(), flat.std().clamp(min=1e-9)
        target = torch.as_tensor(_targets(told, policy), dtype=torch.float32)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = self.substitute(flat.shape[1], target.shape[1])
            _fit(net, (flat - middle) / spread, target, policy.kind, self.steps)
        with torch.no_grad():
            asked = torch.as_tensor(test.reshape(len(test), -1), dtype=torch.float32)
            guess: NDArray[np.int64] = net.eval()((asked - middle) / spread).argmax(1).numpy()
        return guess


def hidden_layer(values: int, classes: int) -> nn.Module:
    """One hidden layer of 128 with ReLU."""
    return nn.Sequential(nn.Linear(values, 128), nn.ReLU(), nn.Linear(128, classes))


def _targets(told: Reals, policy: Policy) -> Reals:
    """What the substitute learns: scores in units of their spread; of the others, what was told."""
    if policy.kind not in _SCORED:
        return told
    centred = told - told.mean(axis=1, keepdims=True)
    return np.asarray(centred / max(float(centred.std()), 1e-12), np.float64)


def _loss(kind: str, out: Tensor, told: Tensor) -> Tensor:
    """Squared error of scores; else minus the log likelihood of what was told.

    Of an order, that of Plackett and Luce (1975): the best of all, then the best of the rest, and so on. Of a set
    without order, that of its classes in equal shares.
    """
    if kind in _SCORED:
        return nn.functional.mse_loss(out, told)
    if kind != "ranked":
        return nn.functional.cross_entropy(out, told / told.sum(1, keepdim=True))
    total, left = out.new_zeros(()), out
    for place in range(int(told.max()), 0, -1):
        chosen = (told == place).to(torch.int64).argmax(1)
        total = total + nn.functional.cross_entropy(left, chosen)
        left = left.scatter(1, chosen[:, None], -1e9)
    return total


def _fit(net: nn.Module, x: Tensor, target: Tensor, kind: str, steps: int) -> None:
    optimizer = torch.optim.Adam(net.parameters(), _RATE, weight_decay=1e-5)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = _RATE * (1 - step / steps)
        rows = torch.randint(0, len(x), (min(_BATCH, len(x)),))
        loss = _loss(kind, net(x[rows]), target[rows])
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()


def _curve(asked: Sequence[int], found: Sequence[Estimate]) -> Curve:
    return Curve(
        x=list(asked[: len(found)]),
        y=[e.value for e in found],
        low=[e.low for e in found],
        high=[e.high for e in found],
        x_name="questions",
        y_name="fidelity",
    )


def is_linear(model: IntegerModel) -> bool:
    """Whether the answer is an affine function of the codes, read in rings that cannot wrap and without noise."""
    curved = any(isinstance(node.op, (*READERS, MaxPool2d)) for node in model.graph.nodes)
    return not curved and model.policy == "proven" and model.dynamic is None and model.noise is None


def linear_copy(model: IntegerModel) -> Copy:
    """Every weight of a linear model from d + 1 answers: f(c) and f(c + e_i) for one c, e_i the unit vectors.

    Exact: answers are integers. Raises AuditError if the model is not linear, for then it is no copy.
    """
    if not is_linear(model):
        raise AuditError("only an affine function is told whole by d + 1 answers, and this model is none")
    node = model.graph.input
    size = int(np.prod(node.shape))
    base = torch.full((1, size), node.lo)
    steps = base + torch.eye(size, dtype=torch.int64) * min(1, node.hi - node.lo)
    answers = model.integers(torch.cat([base, steps]).reshape(-1, *node.shape)).flatten(1)
    weight = (answers[1:] - answers[:1]).T
    return Copy(weight, answers[0] - weight @ base[0], size + 1)
