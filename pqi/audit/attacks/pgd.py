"""Many projected steps along the gradient's sign (Madry et al., ICLR 2018)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pqi.audit.attack import Budget, Threat
from pqi.audit.case import Case, Data
from pqi.audit.estimators import toolbox, white_box
from pqi.audit.evasion import DEFAULT_STRENGTHS, Evasion, Inputs
from pqi.audit.subjects import Subject


class ProjectedGradient(Evasion):
    """``steps`` steps of epsilon / 4 from ``starts`` random places in the ball; cross-entropy.

    On a quantized network its gradients are those of training, straight through every rounding; where they mislead, the
    figure flatters the network. Read it beside ``square``, which needs none.
    """

    name = "pgd"
    threat = Threat("weights", "inputs", "a wrong class", "Madry et al., ICLR 2018")

    def __init__(self, strengths: Sequence[float] = DEFAULT_STRENGTHS, steps: int = 20, starts: int = 1) -> None:
        super().__init__(strengths)
        self.steps, self.starts = steps, starts

    def craft(self, case: Case, subject: Subject, data: Data, epsilon: float, budget: Budget) -> Inputs:
        """As its base."""
        attack = toolbox().attacks.evasion.ProjectedGradientDescentPyTorch(
            white_box(case, subject),
            eps=epsilon,
            eps_step=epsilon / 4,
            max_iter=self.steps,
            num_random_init=self.starts,
            batch_size=250,
            verbose=False,
        )
        made: Inputs = attack.generate(data.x.astype("float32"), data.y)
        return made

    def settings(self) -> dict[str, Any]:
        """Steps and starts."""
        return {"steps": self.steps, "starts": self.starts}
