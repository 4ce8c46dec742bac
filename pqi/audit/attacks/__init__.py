"""One attack a file; a new one is a file and a line here."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from pqi.audit.attack import Attack
from pqi.audit.errors import AuditError

CATALOGUE = {
    "extraction": "pqi.audit.attacks.extraction:Extraction",
    "fidelity": "pqi.audit.attacks.fidelity:Fidelity",
    "detection": "pqi.audit.attacks.detection:Signs",
    "fairness": "pqi.audit.attacks.fairness:Fairness",
    "fgsm": "pqi.audit.attacks.fgsm:FastGradientSign",
    "pgd": "pqi.audit.attacks.pgd:ProjectedGradient",
    "apgd-ce": "pqi.audit.attacks.apgd:AutoProjectedCrossEntropy",
    "apgd-dlr": "pqi.audit.attacks.apgd:AutoProjectedLogitRatio",
    "square": "pqi.audit.attacks.square:Square",
    "hopskipjump": "pqi.audit.attacks.hopskipjump:HopSkipJumpLabels",
    "transfer": "pqi.audit.attacks.transfer:Transfer",
    "differential": "pqi.audit.attacks.differential:DifferentialEvasion",
    "bit-flips": "pqi.audit.attacks.bitflips:ProgressiveBitFlips",
    "inversion": "pqi.audit.attacks.inversion:Inversion",
    "membership": "pqi.audit.attacks.membership:Membership",
    "share-flips": "pqi.audit.attacks.shareflips:RandomShareFlips",
    "targeted-bit-flips": "pqi.audit.attacks.bitflips:TargetedBitFlips",
}


def get(name: str, **settings: Any) -> Attack:
    """The attack of that name with its settings; raises AuditError that lists the names there are."""
    if name not in CATALOGUE:
        raise AuditError(f"there is no attack {name!r}; there are: {', '.join(sorted(CATALOGUE))}")
    module, _, cls = CATALOGUE[name].partition(":")
    made: Attack = getattr(import_module(module), cls)(**settings)
    return made
