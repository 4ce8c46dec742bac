"""Random precision: integer models of several bit widths of one network, and one of them drawn for each question.

What fools one width often leaves another alone: each rounds a network elsewhere. An attacker who cannot tell which
width will answer must fool them all (Sen et al., EMPIR, ICLR 2020; Fu et al., Double-Win Quant, ICML 2021). It is no
more than that: who attacks their mean (``Expectation``) attacks all of them, and what such an attack leaves is the
figure that counts.

Every answer is exact: it equals that of the model that was drawn, bit for bit, and says which one it was.

Served in private it is one program for each width, and who draws decides everything:

- the client must not. A hostile one takes the width that its input fools;
- nor may it be told the width before its input is committed, for it could break off and ask until it likes the draw.
  So its input must be shared in a ring that serves every width (the widest: a share mod 2^K is one mod 2^k), and the
  servers draw afterwards, together or one of them where both are honest about it;
- afterwards it may know; it must, to read the answer in the right scale.

A deployment of this library holds one program (``pqi.session.bundle``), and clients choose the deployment that they
ask. So random precision cannot be served by it as a defence; here it is computed, attacked and priced.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pqi.audit.case import Case
from pqi.audit.defences.price import Price, price
from pqi.audit.errors import AuditError
from pqi.audit.statistics import Estimate, bootstrap, share
from pqi.audit.subjects import Reals, StraightThrough, Subject
from pqi.graph.model import IntegerModel

NAME = "random precision"


@dataclass(frozen=True, eq=False)
class Drawn:
    """answers: float64 (N, *output shape). widths: int64 (N,), which model gave each."""

    answers: Reals
    widths: NDArray[np.int64]


class RandomPrecision:
    """Integer models by width; ``predict`` draws one for each input, all equally likely.

    models: at least two, of one input shape, one client's grid and one answer shape; the keys are their names, such as
    bits. seed: None for the operating system's randomness, which is what a defence needs; a number for experiments.
    Raises AuditError where the models cannot stand for one another.
    """

    def __init__(self, models: Mapping[int, IntegerModel], seed: int | None = None) -> None:
        if len(models) < 2:
            raise AuditError(f"{len(models)} model(s): random precision draws among at least 2")
        first = next(iter(models.values()))
        for width, model in models.items():
            if model.dynamic is not None:
                raise AuditError(f"the model of width {width} is dynamic: quantize with dynamic=False")
            if (model.input_shape, model.output_shape) != (first.input_shape, first.output_shape):
                raise AuditError(f"the model of width {width} is {model!r}, the first {first!r}: shapes must agree")
            if model.input_quantizer != first.input_quantizer:
                raise AuditError(
                    f"the model of width {width} takes codes of {model.input_quantizer}, the first of "
                    f"{first.input_quantizer}: give all the same input_bits and input_range"
                )
        self.models = dict(models)
        self.widths = tuple(self.models)
        self._generator = None if seed is None else np.random.default_rng(seed)

    def draw(self, n: int) -> NDArray[np.int64]:
        """A width for each of n questions, int64 (n,)."""
        if self._generator is not None:
            return np.asarray(self._generator.choice(self.widths, n), np.int64)
        return np.array([secrets.choice(self.widths) for _ in range(n)], np.int64)

    def predict(self, x: NDArray[Any], on_saturation: str = "warn") -> Drawn:
        """Answers for inputs (N, *input shape), each by the model of its width, and the widths."""
        drawn = self.draw(len(x))
        answers = np.empty((len(x), *next(iter(self.models.values())).output_shape))
        for width in np.unique(drawn):
            rows = drawn == width
            answers[rows] = self.models[int(width)].predict(x[rows], on_saturation)
        return Drawn(answers, drawn)

    def prices(self, case: Case) -> dict[int, Price]:
        """What each width costs beside ``case.model``; a question costs their mean."""
        return {width: price(case, model) for width, model in self.models.items()}


class Expectation(nn.Module):
    """The mean of the widths' scores, with the mean of their straight-through gradients (Athalye et al., ICML 2018).

    Its softmax is the geometric mean of the widths' softmax, so its cross-entropy falls where all are fooled. A pass
    costs one of every width.
    """

    def __init__(self, models: Sequence[IntegerModel]) -> None:
        super().__init__()
        self.forms = nn.ModuleList(StraightThrough(model) for model in models)

    def forward(self, x: Tensor) -> Tensor:
        """Scores (N, classes) for inputs (N, *input shape)."""
        return torch.stack([form(x).to(torch.float64) for form in self.forms]).mean(0)


class RandomPrecisionSubject(Subject):
    """The defended service under attack: asked, it draws anew each time; its gradient is that of ``Expectation``."""

    name = NAME

    def __init__(self, defence: RandomPrecision) -> None:
        self.defence = defence
        self.module = Expectation(list(defence.models.values())).eval()

    @property
    def repeats(self) -> bool:
        """The same question may be answered by another width."""
        return False

    def _scores(self, x: NDArray[Any]) -> Reals:
        return self.defence.predict(x, "silent").answers.reshape(len(x), -1)


def over_draws(right: NDArray[np.bool_], seed: int = 0) -> tuple[Estimate, Estimate]:
    """Robust accuracy when each question is drawn, and when the attacker may ask until a draw is fooled.

    right: bool (widths, n), whether each width is right on each altered input. The first is exact over the draws (the
    mean over widths, all being equally likely) with a bootstrap interval over examples; the second is the share on
    which every width is right.
    """
    expected = bootstrap(lambda rows: float(rows.mean()), right.mean(axis=0), seed=seed)
    return expected, share(np.asarray(right.all(axis=0)))
