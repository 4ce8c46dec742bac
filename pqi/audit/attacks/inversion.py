"""What does the network think a class looks like? An image of each class, from nothing but the network.

| form | what the attacker has | how the image is found |
|---|---|---|
| float | the weights | gradient ascent on p_y from a blank input (MIFace, Fredrikson et al., CCS 2015) |
| straight-through | the integer weights | the same, gradients taken straight through every rounding |
| integers | answers | the same ascent, gradients from answers to random inputs around the image (below) |

By answers alone the gradient of f = log p_y at x is estimated from pairs x +- s u, u standard normal (n, d):

    g = sum_j (f(x + s u_j) - f(x - s u_j)) u_j / (2 s n)        (Nesterov, Spokoiny, 2017)

Of a model hardened to give labels, f takes two values: pairs tell something only where the answer changes among them.
The attacker knows the input's range and shape and no prior: no generator, no images of the kind.

How near an image is: its correlation with the mean of the class's training examples, less the largest with another
class's ("margin"), and whether an independent network takes it for its class ("recognised"). Both are of the class, not
of a person: a class mean is no training example unless a class is one person.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from pqi.audit.attack import Attack, Budget, Finding, Progress, Threat
from pqi.audit.case import Case, Data
from pqi.audit.errors import AuditError
from pqi.audit.estimators import seeded, toolbox, white_box
from pqi.audit.statistics import Estimate, bootstrap, share
from pqi.audit.subjects import FLOAT, INTEGERS, STRAIGHT_THROUGH, FloatSubject, Subject

Reals = NDArray[np.float64]
_WITHOUT_END = 1e30  # the toolbox stops where 1 - p_y exceeds its threshold: every image gets all its steps


class Inversion(Attack):
    """An image of every class, from float, straight-through and integers; see this module.

    steps, rate: of the ascent by weights. questions: pairs asked at each step of the ascent by answers; budget.queries
    is of all pairs of one class. spread: s, in shares of the input's range. stride: the step's length by answers, as
    the largest change of a value, in the same shares. judge: an independent network trained on other data.
    """

    name = "inversion"
    family = "privacy"
    threat = Threat("weights", "nothing", "what the training examples of a class look like", "Fredrikson et al., 2015")

    def __init__(
        self,
        steps: int = 100,
        rate: float = 0.1,
        questions: int = 100,
        spread: float = 0.1,
        stride: float = 0.05,
        judge: nn.Module | None = None,
    ) -> None:
        if min(steps, questions) < 1 or not (rate > 0 and 0 < spread <= 1 and 0 < stride <= 1):
            raise AuditError(
                f"steps = {steps} and questions = {questions} are at least 1, rate = {rate} positive, "
                f"spread = {spread} and stride = {stride} within (0, 1]"
            )
        self.steps, self.rate, self.questions = steps, rate, questions
        self.spread, self.stride, self.judge = spread, stride, judge

    def run(self, case: Case, budget: Budget, progress: Progress | None = None) -> tuple[Finding, ...]:
        """One finding a form: margin, correlation, and recognition where there is a judge."""
        if case.train is None:
            raise AuditError("inversion compares with the training examples: give the case its training data")
        found = []
        for done, name in enumerate((FLOAT, STRAIGHT_THROUGH, INTEGERS)):
            clock = budget.clock()
            images = self.images(case, name, budget)
            knows = "scores" if name == INTEGERS else "weights"
            finding = self.finding(
                name,
                budget,
                clock,
                figures=figures(images, case.train, self.judge, budget.seed),
                settings={k: v for k, v in vars(self).items() if k != "judge"} | {"judge": self.judge is not None},
            )
            found.append(replace(finding, threat=replace(self.threat, knows=knows)))
            if progress is not None:
                progress(done + 1, 3)
        return tuple(found)

    def images(self, case: Case, form: str, budget: Budget) -> Reals:
        """(classes, *input shape), within the input's range."""
        subject = case.subjects[form]
        with seeded(budget.seed):
            return self._by_answers(case, subject, budget) if form == INTEGERS else self._by_weights(case, subject)

    def _by_weights(self, case: Case, subject: Subject) -> Reals:
        if subject.module is None:
            raise AuditError(f"the {subject.name} form has no gradient: it is inverted by its answers")
        toolbox()
        from art.attacks.inference.model_inversion import MIFace

        confident = FloatSubject(nn.Sequential(subject.module, nn.Softmax(dim=1)))
        attack = MIFace(
            white_box(case, confident),
            max_iter=self.steps,
            window_length=1,
            threshold=_WITHOUT_END,
            learning_rate=self.rate * (case.high - case.low),
            batch_size=case.classes,
            verbose=False,
        )
        blank = np.full((case.classes, *case.model.input_shape), case.low, np.float32)
        return np.asarray(attack.infer(blank, np.arange(case.classes)), np.float64)

    def _by_answers(self, case: Case, subject: Subject, budget: Budget) -> Reals:
        generator, width = np.random.default_rng(budget.seed), case.high - case.low
        shape, made = case.model.input_shape, []
        for y in range(case.classes):
            image = np.full(shape, case.low, np.float64)
            for _ in range(max(1, budget.queries // self.questions)):
                u = generator.standard_normal((self.questions, *shape))
                moved = self.spread * width * u
                f = _log_share(subject.scores(np.concatenate([image + moved, image - moved])), y)
                gradient = np.tensordot(f[: self.questions] - f[self.questions :], u, axes=1)
                largest = np.abs(gradient).max()
                if largest > 0:
                    step = self.stride * width * gradient / largest
                    image = np.clip(image + step, case.low, case.high)
            made.append(image)
        return np.stack(made)


def figures(images: Reals, train: Data, judge: nn.Module | None, seed: int) -> Mapping[str, Estimate]:
    """Margin and correlation with their intervals over classes; the share that the judge recognises."""
    classes = len(images)
    means = np.stack([train.x[train.y == y].mean(axis=0) for y in range(classes)])
    near = correlations(images, means)
    own = np.diag(near)
    others = np.where(np.eye(classes, dtype=bool), -np.inf, near).max(axis=1)
    found = {
        "margin": bootstrap(_mean, own - others, seed=seed),
        "correlation": bootstrap(_mean, own, seed=seed),
        "nearest is its class": share(own > others),
    }
    if judge is not None:
        found["recognised"] = share(FloatSubject(judge).labels(images) == np.arange(classes))
    return found


def correlations(images: Reals, means: NDArray[Any]) -> Reals:
    """(images, means): Pearson's, over values; 0 for an image that is one value throughout."""
    one, other = (np.reshape(each, (len(each), -1)).astype(np.float64) for each in (images, means))
    one, other = (each - each.mean(axis=1, keepdims=True) for each in (one, other))
    norms = np.outer(np.linalg.norm(one, axis=1), np.linalg.norm(other, axis=1))
    return np.asarray(np.divide(one @ other.T, norms, out=np.zeros_like(norms), where=norms > 1e-12), np.float64)


def _log_share(scores: Reals, y: int) -> Reals:
    """log p_y of logits (N, classes)."""
    top = scores.max(axis=1, keepdims=True)
    return np.asarray(scores[:, y] - top[:, 0] - np.log(np.exp(scores - top).sum(axis=1)), np.float64)


def _mean(values: Reals) -> float:
    return float(values.mean())
