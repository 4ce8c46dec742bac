"""The whole audit of one case: planned, made attack by attack, judged.

    from pqi.audit.case import Case, Data
    from pqi.audit.plan import Wish
    from pqi.audit.run import audit

    found = audit(Case(net, model, Data(x, y)), Wish(quick=True))
    found.status, [(verdict.family, verdict.status) for verdict in found.verdicts]

No attack can end an audit: what cannot be made of this case is left out with the reason, what fails otherwise is
recorded as failed, and the rest goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any, TypeAlias

from pqi.audit.attack import Budget, Finding
from pqi.audit.attacks import get
from pqi.audit.case import Case
from pqi.audit.errors import AuditError
from pqi.audit.plan import Job, LeftOut, Wish, plan
from pqi.audit.subjects import FLOAT
from pqi.audit.verdicts import Verdict, judge, overall

Say: TypeAlias = Callable[[str, float], None]
"""Called with what is being done and the share of the whole that is done."""


@dataclass(frozen=True)
class Run:
    """One attack: what it was asked, what it found. reason: why there are no findings, or "". failed: unexpectedly."""

    attack: str
    family: str
    budget: Budget | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
    reason: str = ""
    failed: bool = False
    seconds: float = 0.0


@dataclass(frozen=True)
class Audit:
    """What was found. status: "clean", "attention" or "not judged", of the verdicts together."""

    name: str
    wish: Wish
    runs: tuple[Run, ...]
    verdicts: tuple[Verdict, ...]
    facts: Mapping[str, Any]
    started: str
    seconds: float

    @property
    def status(self) -> str:
        """The gravest of its verdicts."""
        return overall(self.verdicts)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Of all attacks, in the order in which they were made."""
        return tuple(finding for run in self.runs for finding in run.findings)

    @property
    def failed(self) -> tuple[Run, ...]:
        """Attacks that ended unexpectedly."""
        return tuple(run for run in self.runs if run.failed)


def audit(case: Case, wish: Wish | None = None, say: Say | None = None) -> Audit:
    """Attack the case within the wish's minutes, and judge what was found family by family.

    Raises AuditError where nothing could be audited at all: answers that are not one score a class, labels that are no
    class, a dynamic model.
    """
    wish, began = wish or Wish(), time.perf_counter()
    started = datetime.now(timezone.utc).isoformat(timespec="seconds")
    _refuse(case)
    if say is not None:
        say("measuring speed", 0.0)
    jobs, left_out = plan(case, wish)
    runs = []
    for done, job in enumerate(jobs):
        runs.append(_made(case, job, wish, began, jobs[done:], _teller(say, job, done, len(jobs))))
    runs += [_left_out(each) for each in left_out]
    verdicts = judge(tuple(f for run in runs for f in run.findings), _reasons(runs))
    return Audit(case.name, wish, tuple(runs), verdicts, _facts(case), started, time.perf_counter() - began)


def _refuse(case: Case) -> None:
    if len(case.model.output_shape) != 1 or case.classes < 2:
        raise AuditError(f"answers are {case.model.output_shape}: an audit needs one score for each of several classes")
    if int(case.test.y.max()) >= case.classes:
        raise AuditError(f"labels reach {case.test.y.max()}, but the model tells {case.classes} classes apart, from 0")
    try:
        answers = case.subjects[FLOAT].scores(case.test.x[:2]).shape
    except RuntimeError as error:
        raise AuditError(f"the float network does not take inputs {case.model.input_shape}: {error}") from error
    if answers[1:] != case.model.output_shape:
        raise AuditError(
            f"the float network answers {answers[1:]}, the integer model {case.model.output_shape}: it must be the one "
            "that the model was made of"
        )


def _made(case: Case, job: Job, wish: Wish, began: float, waiting: tuple[Job, ...], tell: Any) -> Run:
    """The attack; its soft limit is its own seconds and what those before it left over."""
    remaining = wish.seconds - (time.perf_counter() - began)
    share = job.budget.seconds / sum(each.budget.seconds for each in waiting)
    if remaining <= 0:
        reason = f"the {wish.seconds / 60:.3g} minutes were spent before its turn; give more"
        return Run(job.name, job.family, job.budget, job.arguments, reason=reason)
    seconds = max(remaining * share, min(job.budget.seconds, remaining))
    budget = Budget(job.budget.samples, job.budget.queries, seconds, job.budget.seed)
    start = time.perf_counter()
    findings, reason, failed = tuple[Finding, ...](), "", False
    tell(0, 1)
    try:
        findings = get(job.name, **job.arguments).run(case, budget, tell)
    except AuditError as error:
        reason = str(error)
    except Exception as error:  # one attack's fault, or a library's, must not cost the findings of all others
        reason, failed = f"failed: {type(error).__name__}: {error}", True
    tell(1, 1)
    return Run(job.name, job.family, budget, job.arguments, findings, reason, failed, time.perf_counter() - start)


def _teller(say: Say | None, job: Job, done: int, jobs: int) -> Callable[[int, int], None]:
    def tell(step: int, steps: int) -> None:
        if say is not None:
            say(job.name, (done + min(1.0, step / max(steps, 1))) / jobs)

    return tell


def _left_out(each: LeftOut) -> Run:
    return Run(each.name, each.family, reason=each.reason)


def _reasons(runs: list[Run]) -> dict[str, tuple[str, ...]]:
    """Why attacks of each family brought nothing."""
    found: dict[str, tuple[str, ...]] = {}
    for run in runs:
        if run.reason:
            found[run.family] = (*found.get(run.family, ()), f"{run.attack}: {run.reason}")
    return found


def _facts(case: Case) -> dict[str, Any]:
    groups = case.test.groups
    return {
        "input shape": list(case.model.input_shape),
        "classes": case.classes,
        "test examples": len(case.test),
        "training examples": 0 if case.train is None else len(case.train),
        "groups": 0 if groups is None else len(set(groups.tolist())),
        "range": [case.low, case.high],
        "one code": 1 / float(case.model.input_quantizer.scale),  # type: ignore[arg-type]
    }
