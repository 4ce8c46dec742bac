"""Inputs crafted on one form, scored on another: does quantization stop what was made against the float network?"""

from __future__ import annotations

from pqi.audit.attack import Threat
from pqi.audit.attacks.pgd import ProjectedGradient
from pqi.audit.subjects import FLOAT, INTEGERS, STRAIGHT_THROUGH


class Transfer(ProjectedGradient):
    """Projected gradients on the float network scored on the integers, and the other way round.

    The attacker of the private service who holds some float copy of the network, or the published float weights.
    """

    name = "transfer"
    threat = Threat("weights", "inputs", "a wrong class by the other form", "Gupta and Ajanthan, AAAI 2022")

    def scored_on(self, made_on: str) -> tuple[str, ...]:
        """The other form."""
        return (INTEGERS,) if made_on == FLOAT else (FLOAT,) if made_on == STRAIGHT_THROUGH else ()
