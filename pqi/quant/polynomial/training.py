"""The training loop of polynomial networks: first in real numbers, then with rounded weights; the best epoch stays."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from pqi.graph.errors import QuantizationError
from pqi.graph.floating import FloatGraph
from pqi.quant.calibrate import Progress
from pqi.quant.polynomial.student import Student
from pqi.quant.train.loop import Augment

_HELD = 0.1  # of the data, to choose the epoch by ...
_MOST_HELD = 5000  # ... but no more than this
_MANY = 500  # rows kept aside: of so many, the share of right classes is a measure
_STRAIN = 1.0  # weight of the penalty on values beyond the calibrated reach
_BITS = 0.1  # weight of the penalty on bits beyond the ones asked for ...
_MARGIN = 0.3  # ... less this many: not every output ends exactly where the penalty does
_HALVINGS = 8  # of steps that are too fine: by 2^(1/8) at a time
_CHUNK = 1000
_TEMPERATURE = 2.0


@dataclass(frozen=True)
class Plan:
    """How to train. rate: largest change of a weight in a step, as a share of the layer's root mean square weight."""

    epochs: int
    batch: int
    rate: float
    labels_weight: float
    seed: int
    answer_bits: int | None


@dataclass
class Data:
    """Inputs (N, ...), labels (N,) or None, and how an input becomes codes (as float32) and may be altered."""

    inputs: Tensor
    labels: Tensor | None
    encode: Callable[[Tensor], Tensor]
    low: int
    high: int
    augment: Augment | None = None


class Trainer:
    """Trains a student to answer as the labels and the float network say."""

    def __init__(
        self, student: Student, teacher: FloatGraph, data: Data, plan: Plan, progress: Progress | None
    ) -> None:
        self.student, self.teacher, self.data, self.plan, self.progress = student, teacher, data, plan, progress
        order = torch.randperm(len(data.inputs), generator=torch.Generator().manual_seed(plan.seed))
        held = min(int(len(order) * _HELD), _MOST_HELD)
        # So few that none can be spared: the epoch is chosen by the data that it was trained on.
        self.held, self.rows = (order[:held], order[held:]) if held >= 10 else (order, order)
        answers = [teacher.run(x) for x in torch.split(data.inputs, _CHUNK)]
        self.answers = torch.cat(answers)
        self.spread = float(self.answers.std()) or 1.0
        self.classes = self.answers.ndim == 2 and self.answers.shape[1] > 1

    def run(self, warm: int, accept: Callable[[], bool]) -> bool:
        """Train in place: ``warm`` epochs in real numbers, the rest with codes; then take the best acceptable epoch.

        accept: whether the student as it is would do. Returns whether any epoch did.
        """
        for _ in self._epochs(range(warm), warm):
            pass
        self.student.quantize()
        self._coarsen()
        best, kept = (-math.inf, -math.inf), None
        epochs = self._epochs(range(warm, self.plan.epochs), self.plan.epochs - warm)
        for _ in itertools.chain([warm], epochs):  # rounding alone may be the best that there is
            score = self._score()
            if score > best and accept():
                best, kept = score, copy.deepcopy(self.student.state_dict())
        if kept is not None:
            self.student.load_state_dict(kept)
        return kept is not None

    @torch.no_grad()
    def _coarsen(self) -> None:
        """Steps so large that training begins within the bits that are asked for; it is penalised for leaving them."""
        for _ in range(_HALVINGS * 32):
            if self.plan.answer_bits is None or float(self._excess(self.student.weights()).max()) == 0:
                return
            self.student.coarsen(2 ** (1 / _HALVINGS))

    def _excess(self, weights: Mapping[str, tuple[Tensor, Tensor]]) -> Tensor:
        """Bits of every output beyond what is asked for, less a margin; with a gradient."""
        bits = 0 if self.plan.answer_bits is None else self.plan.answer_bits
        bound = self.student.bound(self.data.low, self.data.high, weights).float()
        return (bound - bits + 1 + _MARGIN).clamp(min=0)

    def _epochs(self, epochs: range, length: int) -> Iterator[int]:
        """One epoch after the other, with a rate that rises in the first twentieth and falls as a cosine."""
        optimizer = torch.optim.Adam(self._groups())
        parameters = [p for p in self.student.parameters() if p.requires_grad]
        for epoch in epochs:
            generator = torch.Generator().manual_seed(self.plan.seed * 1_000_003 + epoch + 1)
            parts = torch.split(self.rows[torch.randperm(len(self.rows), generator=generator)], self.plan.batch)
            for at, rows in enumerate(parts):
                done = (epoch - epochs.start + at / len(parts)) / length
                share = min((done + 1e-3) / 0.05, 1.0) * 0.5 * (1 + math.cos(math.pi * done)) + 1e-3
                for group in optimizer.param_groups:
                    group["lr"] = group["base"] * share
                loss = self._loss(rows, generator)
                if not bool(torch.isfinite(loss)):
                    raise QuantizationError("the loss is no longer finite: lower learning_rate")
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
                self._keep_inside()
            if self.progress is not None:
                self.progress(epoch + 1, self.plan.epochs)
            yield epoch

    def _groups(self) -> list[dict[str, object]]:
        groups: list[dict[str, object]] = []
        for p in self.student.parameters():
            if p.requires_grad:
                base = self.plan.rate * max(float(p.detach().square().mean().sqrt()), 0.1)
                groups.append({"params": [p], "lr": base, "base": base})
        return groups

    @torch.no_grad()
    def _keep_inside(self) -> None:
        """Latent codes beyond the largest one would have no gradient to come back."""
        if self.student.steps:
            for name, key in self.student.index.items():
                top = self.student.top(name)
                self.student.latent[key].clamp_(-top, top)

    def _loss(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        x, target = self.data.inputs[rows], self.answers[rows]
        if self.data.augment is not None:
            x = self.data.augment(x, generator)
            target = self.teacher.run(x)
        weights = self.student.weights()
        answer, strain = self.student(self.data.encode(x), weights)
        loss: Tensor = _STRAIN * strain + self._error(answer, target, rows)
        if self.plan.answer_bits is not None and self.student.steps:
            excess = self._excess(weights)
            loss = loss + _BITS * (excess + excess.square()).mean()
        return loss

    def _error(self, answer: Tensor, target: Tensor, rows: Tensor) -> Tensor:
        labels, share = self.data.labels, self.plan.labels_weight
        squared = ((answer - target) / self.spread).square().mean()
        if not self.classes:
            if labels is None:
                return squared
            hard = functional.binary_cross_entropy_with_logits(answer.flatten(), labels[rows].to(answer.dtype))
            return share * hard + (1 - share) * squared
        t = _TEMPERATURE
        soft = functional.kl_div(
            functional.log_softmax(answer / t, 1),
            functional.log_softmax(target / t, 1),
            reduction="batchmean",
            log_target=True,
        )
        if labels is None:
            return t * t * soft + 0.1 * squared
        mixed: Tensor = (1 - share) * t * t * soft + share * functional.cross_entropy(answer, labels[rows])
        return mixed

    @torch.no_grad()
    def _score(self) -> tuple[float, float]:
        """(share of right classes, - error) on the rows kept aside; of few rows the error alone says something."""
        weights, right, error = self.student.weights(), 0, 0.0
        for rows in torch.split(self.held, _CHUNK):
            answer, _ = self.student(self.data.encode(self.data.inputs[rows]), weights)
            error += float(self._error(answer, self.answers[rows], rows)) * len(rows)
            truth = self.data.labels[rows] if self.data.labels is not None else top_class(self.answers[rows])
            right += int((top_class(answer) == truth).sum())
        return right / len(self.held) if len(self.held) >= _MANY else 0.0, -error


def top_class(answer: Tensor) -> Tensor:
    """The class that an answer stands for: of the largest of several numbers, or by the sign of a single one."""
    flat = answer.flatten(1)
    return flat.argmax(1) if flat.shape[1] > 1 else (flat[:, 0] > 0).long()
