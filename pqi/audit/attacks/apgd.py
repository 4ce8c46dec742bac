"""Projected gradients that choose their own steps, under two losses (Croce and Hein, ICML 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from pqi.audit.attack import Budget, Threat
from pqi.audit.case import Case, Data
from pqi.audit.errors import AuditError
from pqi.audit.estimators import toolbox, white_box
from pqi.audit.evasion import DEFAULT_STRENGTHS, Evasion, Inputs
from pqi.audit.subjects import Subject

_THREAT = Threat("weights", "inputs", "a wrong class", "Croce and Hein, ICML 2020")


class _AutoProjected(Evasion):
    threat = _THREAT
    loss: ClassVar[str]

    def __init__(self, strengths: Sequence[float] = DEFAULT_STRENGTHS, steps: int = 20, starts: int = 1) -> None:
        super().__init__(strengths)
        self.steps, self.starts = steps, starts

    def craft(self, case: Case, subject: Subject, data: Data, epsilon: float, budget: Budget) -> Inputs:
        """As its base."""
        attack = toolbox().attacks.evasion.AutoProjectedGradientDescent(
            white_box(case, subject),
            eps=epsilon,
            eps_step=epsilon / 2,
            max_iter=self.steps,
            nb_random_init=self.starts,
            batch_size=250,
            loss_type=self.loss,
            verbose=False,
        )
        made: Inputs = attack.generate(data.x.astype("float32"), data.y)
        return made

    def settings(self) -> dict[str, Any]:
        """Steps, starts and loss."""
        return {"steps": self.steps, "starts": self.starts, "loss": self.loss}


class AutoProjectedCrossEntropy(_AutoProjected):
    """With the cross-entropy."""

    name = "apgd-ce"
    loss = "cross_entropy"


class AutoProjectedLogitRatio(_AutoProjected):
    """With the difference of logits ratio, which scaling the logits cannot flatten; defined for 3 classes and more."""

    name = "apgd-dlr"
    loss = "difference_logits_ratio"

    def check(self, case: Case) -> None:
        """The ratio needs a third class."""
        if case.classes < 3:
            raise AuditError(f"apgd-dlr divides by the third largest logit; there are {case.classes}: use apgd-ce")
