"""From findings to a verdict for each family, by rules that are stated with it.

clean         every rule that could be asked held, or the data do not contradict it
attention     a rule is broken by more than its interval allows for
not judged    nothing was found that a rule of this family could be asked about

Rules ask what *quantization* changed, and about what nobody should accept (a trigger, members that can be told). They
do not say that a network is robust, or fair, in itself. A clean verdict is no proof: the interval beside it says how
large an effect these examples could have hidden. The rules themselves are in ``rules.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pqi.audit import rules
from pqi.audit.attack import FAMILIES, Finding
from pqi.audit.rules import ATTENTION, CLEAN, NOT_JUDGED, TOLD, Check

"""The families that a verdict is given on, in the order in which they are told."""


@dataclass(frozen=True)
class Verdict:
    """One family's. checks: the rules behind it, each with what was seen. missing: attacks not made, and why."""

    family: str
    status: str
    checks: tuple[Check, ...]
    missing: tuple[str, ...] = ()

    @property
    def says(self) -> str:
        """In one sentence: all that needs attention, else the first of what was seen, else what was missing."""
        for status in (ATTENTION, CLEAN, NOT_JUDGED, TOLD):
            told = [check.seen for check in self.checks if check.status == status]
            if told and status == ATTENTION:
                return "; ".join(told)
            if told:
                more = f" ({len(told) - 1} more likewise)" if len(told) > 1 else ""
                return told[0] + more
        return "; ".join(self.missing) or "nothing was tried"


def judge(findings: Sequence[Finding], missing: Mapping[str, tuple[str, ...]] | None = None) -> tuple[Verdict, ...]:
    """A verdict for each family. missing: family -> why attacks brought no findings."""
    made = []
    for family in FAMILIES:
        checks = rules.RULES[family]([finding for finding in findings if finding.family == family])
        made.append(Verdict(family, _gravest(checks), tuple(checks), (missing or {}).get(family, ())))
    return tuple(made)


def overall(verdicts: Sequence[Verdict]) -> str:
    """ "attention" if any family's verdict is; else "clean" if any family's is; else "not judged"."""
    return _among([verdict.status for verdict in verdicts])


def _gravest(checks: Sequence[Check]) -> str:
    return _among([check.status for check in checks])


def _among(statuses: Sequence[str]) -> str:
    return next((status for status in (ATTENTION, CLEAN) if status in statuses), NOT_JUDGED)
