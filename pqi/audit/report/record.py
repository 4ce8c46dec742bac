"""An audit as JSON: complete, versioned, with everything that making it again takes.

Numbers that are none (an interval of which no draw was left) are null. ``how_to_repeat`` of an attack is Python that
makes its findings again from the same files; its seconds are a soft limit that can only cut it short.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from pqi.audit.attack import Budget, Curve, Finding
from pqi.audit.run import Audit, Run
from pqi.demo.measure import machine, versions

FORMAT, VERSION = "pqi-audit", 1
_LIBRARIES = ("adversarial-robustness-toolbox", "fairlearn", "matplotlib", "scikit-learn", "torch", "numpy")


def record(audit: Audit, command: Sequence[str] = (), sources: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The audit as plain JSON. command: the command line; sources: files and names it was made of."""
    made = {
        "format": FORMAT,
        "version": VERSION,
        "name": audit.name,
        "status": audit.status,
        "verdicts": [{**asdict(verdict), "says": verdict.says} for verdict in audit.verdicts],
        "facts": audit.facts,
        "command": list(command),
        "sources": dict(sources or {}),
        "budget": {**asdict(audit.wish), "seconds": audit.wish.seconds, "strengths": audit.wish.epsilons},
        "attacks": [_run(run) for run in audit.runs],
        "started": audit.started,
        "seconds": audit.seconds,
        "versions": {**versions(), **_installed()},
        "machine": machine(),
    }
    found: dict[str, Any] = plain(made)
    return found


def _run(run: Run) -> dict[str, Any]:
    return {
        "attack": run.attack,
        "family": run.family,
        "reason": run.reason,
        "failed": run.failed,
        "seconds": run.seconds,
        "arguments": run.arguments,
        "budget": None if run.budget is None else asdict(run.budget),
        "how_to_repeat": how_to_repeat(run),
        "findings": [_finding(finding) for finding in run.findings],
    }


def how_to_repeat(run: Run) -> str:
    """Python that makes a run's findings again, of a ``case`` of the same files; "" for what did not run."""
    if run.budget is None:
        return ""
    settings = "".join(f", {name}={value!r}" for name, value in run.arguments.items())
    return f"attacks.get({run.attack!r}{settings}).run(case, {_budget(run.budget)})"


def _budget(budget: Budget) -> str:
    return f"Budget({budget.samples}, {budget.queries}, seconds={budget.seconds:.0f}, seed={budget.seed})"


def _finding(finding: Finding) -> dict[str, Any]:
    return {
        "subject": finding.subject,
        "threat": asdict(finding.threat),
        "figures": {name: figure.as_json() for name, figure in finding.figures.items()},
        "curves": {name: _curve(curve) for name, curve in finding.curves.items()},
        "settings": finding.settings,
        "seconds": finding.seconds,
        "stopped_early": finding.stopped_early,
        "remark": finding.remark,
    }


def _curve(curve: Curve) -> dict[str, Any]:
    return {name: list(value) if not isinstance(value, str) else value for name, value in asdict(curve).items()}


def plain(value: Any) -> Any:
    """As JSON has it: names are strings, sequences lists, numpy's numbers Python's, NaN and infinity null."""
    if isinstance(value, Mapping):
        return {str(name): plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def _installed() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
