"""Random squares, kept where the scores fall (Andriushchenko et al., ECCV 2020): no gradient, so none to hide."""

from __future__ import annotations

import numpy as np

from pqi.audit.attack import Budget, Threat
from pqi.audit.case import Case, Data
from pqi.audit.errors import AuditError
from pqi.audit.estimators import black_box, toolbox
from pqi.audit.evasion import Evasion, Inputs
from pqi.audit.subjects import FLOAT, INTEGERS, Subject


class Square(Evasion):
    """At most ``budget.queries`` questions an example, each answered with scores, asked of the integers themselves.

    The toolbox asks three times a turn, twice of inputs that it has asked before; those answers are kept, but where
    answers are drawn anew each counts. For inputs of images (C, H, W); others are refused by name.
    """

    name = "square"
    threat = Threat("scores", "inputs", "a wrong class", "Andriushchenko et al., ECCV 2020")
    made_on = (FLOAT, INTEGERS)

    def check(self, case: Case) -> None:
        """Images alone have squares."""
        if len(case.model.input_shape) != 3:
            raise AuditError(f"square alters images (C, H, W); inputs are {case.model.input_shape}")

    def craft(self, case: Case, subject: Subject, data: Data, epsilon: float, budget: Budget) -> Inputs:
        """As its base."""
        turns = max(1, budget.queries - 2 if subject.repeats else budget.queries // 3 - 1)
        attack = toolbox().attacks.evasion.SquareAttack(
            black_box(case, subject), eps=epsilon, max_iter=turns, batch_size=250, verbose=False
        )
        made: Inputs = attack.generate(data.x.astype("float32"), np.eye(case.classes)[data.y])
        return made
