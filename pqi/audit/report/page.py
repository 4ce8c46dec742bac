"""An audit as one HTML file: it loads nothing, runs nothing, and can be opened offline or sent by mail."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pqi.audit.attack import Finding
from pqi.audit.plan import ASKS
from pqi.audit.report import pictures
from pqi.audit.report.record import how_to_repeat, record
from pqi.audit.rules import Check
from pqi.audit.run import Audit, Run
from pqi.audit.verdicts import Verdict
from pqi.webpage import END, begin, text, write

_STYLE = """th, td { text-align: left; vertical-align: top; padding: 0.2rem 0.8rem 0.2rem 0; white-space: normal;
 overflow-wrap: anywhere; }
th, .rules td:nth-child(-n+2) { white-space: nowrap; }
.attention { color: #a00000; font-weight: 600; }
.clean { color: #006d3c; font-weight: 600; }
.unjudged { color: #777; font-weight: 600; }
code { font-size: 0.8rem; overflow-wrap: anywhere; }
"""
_ROWS_SHOWN = 20
_QUESTIONS = {
    "fidelity": "Does the integer model answer as the float network does?",
    "adversarial": "Is it easier to fool by altered inputs than the float network?",
    "backdoor": "Does a trigger work in the integers that does not work in float?",
    "bit flips": "How many bits turned in memory make it guess?",
    "privacy": "Can it be told whether an example was in the training set, and what does a class look like?",
    "fairness": "Did quantization widen a gap between groups?",
}
_OVERALL = {
    "clean": "Nothing that was looked at needs attention.",
    "attention": "Something needs attention.",
    "not judged": "Nothing could be judged.",
}


def write_html(
    path: str | Path, audit: Audit, command: Sequence[str] = (), sources: Mapping[str, Any] | None = None
) -> None:
    """Write the page, whole or not at all. Raises MeasureError without matplotlib, OSError on an unwritable file."""
    write(path, page(audit, command, sources))


def page(audit: Audit, command: Sequence[str] = (), sources: Mapping[str, Any] | None = None) -> str:
    """The page as text: verdicts, then each family's rules, pictures and figures, then how to make it again."""
    title = f"Audit of {audit.name}"
    parts = [begin(title, _STYLE), _summary(audit)]
    for verdict in audit.verdicts:
        parts.append(_family(audit, verdict))
    parts += [_made(audit), _again(audit, command, sources), END]
    return "".join(parts)


def _summary(audit: Audit) -> str:
    rows = [[text(verdict.family), _mark(verdict.status), text(verdict.says)] for verdict in audit.verdicts]
    return (
        f"<p>{_mark(audit.status, _OVERALL[audit.status])} A verdict is on what quantization changed, within the "
        "intervals below; clean is no proof that there is nothing.</p>\n"
        + _table(("family", "verdict", "what was seen"), rows, "rules")
    )


def _family(audit: Audit, verdict: Verdict) -> str:
    """The question, the rules, the pictures, the figures, and what was not tried."""
    findings = [finding for finding in audit.findings if finding.family == verdict.family]
    parts = [f"<h2>{text(verdict.family.capitalize())}: {_mark(verdict.status)}</h2>\n"]
    parts.append(f"<p>{text(_QUESTIONS[verdict.family])}</p>\n")
    if verdict.checks:
        parts.append(
            _table(("rule", "", "what was seen", "bound"), [_check(check) for check in verdict.checks], "rules")
        )
    parts += [f"<div class=wide>{picture}</div>\n" for picture in _pictures(audit, verdict.family, findings) if picture]
    parts += [_changes(finding) for finding in findings if "changed by group" in finding.settings]
    if findings:
        parts.append(_figures(findings))
    parts += [f"<p class=soft>Not made: {text(reason)}.</p>\n" for reason in verdict.missing]
    return "".join(parts)


def _check(check: Check) -> list[str]:
    return [text(check.name), _mark(check.status), text(check.seen), text(check.rule)]


def _pictures(audit: Audit, family: str, findings: list[Finding]) -> list[str]:
    if family == "adversarial":
        return [pictures.robustness(findings), pictures.apart(findings)]
    if family == "backdoor":
        return [pictures.signs(findings), pictures.trigger(findings)]
    if family == "bit flips":
        return [pictures.bit_flips(findings, int(audit.facts["classes"]))]
    if family == "privacy":
        return [pictures.membership(findings)]
    return [pictures.fairness(findings)] if family == "fairness" else []


def _figures(findings: Iterable[Finding]) -> str:
    rows = []
    for finding in findings:
        where = finding.settings.get("crafted on", finding.subject)
        form = finding.subject if where == finding.subject else f"{finding.subject} (crafted on {where})"
        for name, figure in finding.figures.items():
            cut = "the seconds ran out" if finding.stopped_early else ""
            rows.append([text(cell) for cell in (finding.attack, form, name, str(figure), f"{figure.n:,}", cut)])
    return _table(("attack", "form", "figure", "value [95 % interval]", "examples", ""), rows)


def _changes(finding: Finding) -> str:
    """Whose answers quantization changed: counts by group, and the rows of some in the test data."""
    rows = []
    for group, counts in finding.settings["changed by group"].items():
        cells = (group, finding.settings["groups"][group], *counts.values())
        rows.append([text(f"{cell:,}") for cell in cells])
    named = finding.settings["changed"]["row"]
    total = sum(counts["changed"] for counts in finding.settings["changed by group"].values())
    shown = ", ".join(map(str, named[:_ROWS_SHOWN]))
    words = f"Rows of the test data that changed, {min(len(named), _ROWS_SHOWN)} of {total:,}: {shown}."
    head = ("group", "examples", "answers changed", "right to wrong", "wrong to right")
    return _table(head, rows) + (f"<p class=soft>{text(words)}</p>\n" if named else "")


def _made(audit: Audit) -> str:
    """What was run, with which budget and how long; what was not, and why."""
    rows = [[text(cell) for cell in _line(run)] for run in audit.runs]
    head = ("attack", "examples", "questions", "seed", "took", "limit", "remark")
    return f"<h2>What was run</h2>\n{_table(head, rows)}"


def _line(run: Run) -> tuple[str, ...]:
    if run.budget is None:
        return (run.attack, "", "", "", "", "", run.reason)
    budget = run.budget
    asked = f"{budget.queries:,}" if run.attack in ASKS else ""
    numbers = (f"{budget.samples:,}", asked, str(budget.seed), f"{run.seconds:.1f} s")
    return (run.attack, *numbers, f"{budget.seconds:.0f} s", run.reason)


def _again(audit: Audit, command: Sequence[str], sources: Mapping[str, Any] | None) -> str:
    """The command, the files, the versions, and Python for each attack alone."""
    kept = record(audit, command, sources)
    rows = [("command", shlex.join(command))] if command else []
    rows += [(name, _joined(value)) for name, value in kept["sources"].items()]
    rows += [(name, _joined(value)) for name, value in kept["facts"].items()]
    rows += [
        ("budget", f"{audit.wish.seconds / 60:.3g} minutes, {audit.seconds:.0f} s taken; seed {audit.wish.seed}"),
        ("started", audit.started),
        ("versions", _joined(kept["versions"])),
        ("machine", _joined(kept["machine"])),
    ]
    facts = _table(("", ""), [[text(name), text(value)] for name, value in rows])
    lines = "".join(f"<li><code>{text(how_to_repeat(run))}</code></li>\n" for run in audit.runs if run.findings)
    return (
        f"<h2>How to make it again</h2>\n{facts}<p>Each attack alone, on a <code>case = Case(net, model, Data(x, y))"
        "</code> of the same files (<code>from pqi.audit import attacks</code>; Case and Data are in "
        "<code>pqi.audit.case</code>, Budget in <code>pqi.audit.attack</code>). Seconds are a limit that can only cut "
        f"an attack short.</p>\n<ul>\n{lines}</ul>\n"
    )


def _joined(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {each}" for name, each in value.items())
    return " to ".join(map(str, value)) if isinstance(value, (list, tuple)) and len(value) == 2 else str(value)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    """Cells are HTML already."""
    top = "".join(f"<th>{text(name)}</th>" for name in head)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>\n" for row in rows)
    return f'<div class=wide><table class="{kind}">\n<tr>{top}</tr>\n{body}</table></div>\n'


def _mark(status: str, words: str = "") -> str:
    kind = {"clean": "clean", "attention": "attention"}.get(status, "unjudged")
    return f'<span class="{kind}">{text(words or status)}</span>'
