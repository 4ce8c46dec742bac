"""One step along the sign of the gradient (Goodfellow, Shlens, Szegedy, ICLR 2015)."""

from __future__ import annotations

from pqi.audit.attack import Budget, Threat
from pqi.audit.case import Case, Data
from pqi.audit.estimators import toolbox, white_box
from pqi.audit.evasion import Evasion, Inputs
from pqi.audit.subjects import Subject


class FastGradientSign(Evasion):
    """x + epsilon sign(dL/dx), L the cross-entropy. Weak on purpose: what falls to it falls to anything."""

    name = "fgsm"
    threat = Threat("weights", "inputs", "a wrong class", "Goodfellow et al., ICLR 2015")

    def craft(self, case: Case, subject: Subject, data: Data, epsilon: float, budget: Budget) -> Inputs:
        """As its base."""
        attack = toolbox().attacks.evasion.FastGradientMethod(white_box(case, subject), eps=epsilon, batch_size=250)
        made: Inputs = attack.generate(data.x.astype("float32"), data.y)
        return made
