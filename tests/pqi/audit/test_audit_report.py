"""An audit written down: complete JSON, and one page that needs nothing beside it."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from pqi.audit.attack import Budget, Curve, Finding, Threat
from pqi.audit.plan import Wish
from pqi.audit.report.record import how_to_repeat, plain, record
from pqi.audit.run import Audit, Run
from pqi.audit.statistics import Estimate
from pqi.audit.subjects import FLOAT, INTEGERS
from pqi.audit.verdicts import judge

THREAT = Threat("weights", "inputs", "a wrong class", "a paper <b>")
LINE = ["pqi", "audit", "a model.pqi", "--seed", "3"]


def _estimate(value: float) -> Estimate:
    return Estimate(value, value - 0.05, value + 0.05, 200)


def _finding(attack: str, family: str, subject: str, figures: dict[str, Estimate], **more: object) -> Finding:
    return Finding(attack, family, subject, THREAT, Budget(seed=3), figures, **more)  # type: ignore[arg-type]


def _line(values: tuple[float, ...], name: str) -> Curve:
    low, high = [v - 0.05 for v in values], [v + 0.05 for v in values]
    return Curve([i / 100 for i in range(len(values))], values, low, high, "epsilon", name)


def _changed() -> dict[str, object]:
    counts = {3: {"changed": 2, "turned wrong": 1, "turned right": 1}}
    return {"groups": {3: 200}, "changed by group": counts, "changed": {"row": [1234, 1250], "group": [3, 3]}}


def _findings() -> list[Finding]:
    robust = {"clean accuracy": _estimate(0.9), "robust accuracy": _estimate(0.4)}
    made = []
    for form in (FLOAT, INTEGERS):
        curves = {"robust accuracy": _line((0.9, 0.6, 0.4), "robust accuracy")}
        made.append(_finding("pgd", "adversarial", form, robust, curves=curves))
        walk = {"evaded by distance": Curve((0.1, 0.5), (0.0, 1.0), x_name="L2", y_name="evaded")}
        made.append(_finding("hopskipjump", "adversarial", form, {"median L2": _estimate(0.5)}, curves=walk))
        figures = {"threshold: area": _estimate(0.5), "threshold: true positives at 0.001": Estimate(0.0, 0, 0.02, 200)}
        roc = {"threshold": Curve((0.0, 0.5, 1.0), (0.0, 0.6, 1.0))}
        settings = {"members": 200, "others": 200}
        made.append(_finding("membership", "privacy", form, figures, curves=roc, settings=settings))
        gaps = {"gap of accuracies": _estimate(0.1), "change of gap of accuracies": _estimate(0.0)}
        made.append(_finding("fairness", "fairness", form, gaps, settings=_changed() if form == INTEGERS else {}))
    apart = {"driven apart": _line((0.1, 0.2), "driven apart")}
    made.append(_finding("differential", "adversarial", INTEGERS, {"driven apart": _estimate(0.2)}, curves=apart))
    signs = {name: _estimate(value) for name, value in (("agreement", 0.99), ("rounding", 0.01), ("trigger", 0.02))}
    settings = {
        "bounds": {"rounding": 0.08, "trigger": 0.5},
        "remarks": {"rounding": "distance", "trigger": "what one change turns"},
        "least agreement": 0.95,
        "trigger": {"class": 2, "mask": np.eye(4)[None].tolist(), "pattern": np.ones((1, 4, 4)).tolist()},
    }
    made.append(_finding("detection", "backdoor", INTEGERS, signs, settings=settings))
    bits = {"bits turned": Estimate(3, 3, 3, 100), "accuracy before": _estimate(0.9), "accuracy after": _estimate(0.1)}
    fall = {"accuracy": _line((0.9, 0.5, 0.3, 0.1), "accuracy")}
    made.append(_finding("bit-flips", "bit flips", INTEGERS, bits, curves=fall, settings={"reaches chance": True}))
    return made


@pytest.fixture
def audit() -> Audit:
    findings = tuple(_findings())
    runs = [
        Run(name, family, Budget(200, 50, 9.0, 3), {"steps": 7}, tuple(f for f in findings if f.attack == name))
        for name, family in dict.fromkeys((f.attack, f.family) for f in findings)
    ]
    runs += [Run("square", "adversarial", reason="it alters <images>"), Run("fidelity", "fidelity", reason="odd")]
    facts = {"classes": 10, "input shape": [64], "range": [0.0, 1.0]}
    verdicts = judge(findings, {"fidelity": ("fidelity: odd",)})
    return Audit(
        "a <model>", Wish(seed=3, samples=200), tuple(runs), verdicts, facts, "2026-01-01T00:00:00+00:00", 12.0
    )


class _Page(HTMLParser):
    """Tags that are open, what the page would load, its pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.open, self.loads, self.pictures = list[str](), list[str](), 0

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.pictures += tag == "svg"
        self.loads += [tag] if tag in ("script", "link", "img", "iframe", "image") else []
        self.loads += [v for k, v in attributes if k in ("src", "href", "xlink:href") and v and not v.startswith("#")]
        if tag in ("table", "div", "ul", "svg", "h2", "p"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("table", "div", "ul", "svg", "h2", "p"):
            assert self.open.pop() == tag


def test_the_record_is_json_with_all_that_making_it_again_takes(audit: Audit) -> None:
    found = json.loads(json.dumps(record(audit, LINE, {"model": "m, SHA-256 00"}), allow_nan=False))
    assert (found["format"], found["version"], found["status"]) == ("pqi-audit", 1, "clean")
    assert found["command"] == LINE
    assert found["sources"] == {"model": "m, SHA-256 00"}
    assert (found["budget"]["seed"], found["budget"]["samples"], found["budget"]["seconds"]) == (3, 200, 600)
    assert {"pqi", "python", "torch", "numpy"} <= set(found["versions"])
    pgd = next(each for each in found["attacks"] if each["attack"] == "pgd")
    assert pgd["findings"][0]["figures"]["robust accuracy"] == {
        "value": 0.4, "low": pytest.approx(0.35), "high": pytest.approx(0.45), "n": 200
    }  # fmt: skip
    assert pgd["findings"][1]["curves"]["robust accuracy"]["y"] == [0.9, 0.6, 0.4]
    assert {each["attack"]: each["reason"] for each in found["attacks"]}["square"] == "it alters <images>"
    assert {each["family"]: each["status"] for each in found["verdicts"]}["fidelity"] == "not judged"


def test_how_to_repeat_an_attack_is_python_that_makes_it(audit: Audit) -> None:
    from pqi.audit.attacks.pgd import ProjectedGradient

    line = how_to_repeat(audit.runs[0])
    assert line == "attacks.get('pgd', steps=7).run(case, Budget(200, 50, seconds=9, seed=3))"
    made, _, rest = line.partition(".run(case, ")
    from pqi.audit import attacks

    attack = eval(made, {"attacks": attacks})  # noqa: S307
    assert isinstance(attack, ProjectedGradient)
    assert attack.steps == 7
    assert eval(rest[:-1], {"Budget": Budget}) == Budget(200, 50, 9, 3)  # noqa: S307
    assert how_to_repeat(Run("square", "adversarial", reason="no")) == ""


def test_numbers_that_are_none_are_null_and_numpy_s_are_python_s() -> None:
    assert plain({"a": float("nan"), 2: np.int64(3), "c": (np.float32(0.5), np.array([1, 2]))}) == {
        "a": None, "2": 3, "c": [0.5, [1, 2]]
    }  # fmt: skip


def test_the_page_is_whole_loads_nothing_and_draws_every_family(audit: Audit, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from pqi.audit.report.page import write_html

    write_html(tmp_path / "a.html", audit, LINE, {"model": "m, SHA-256 00"})
    text = (tmp_path / "a.html").read_text()
    page = _Page()
    page.feed(text)
    assert not page.open
    assert not page.loads
    # Robustness; driven apart and distances; signs; trigger; bits; members; groups.
    assert page.pictures == 7
    assert [path.name for path in tmp_path.iterdir()] == ["a.html"]


def test_the_page_says_what_was_asked_seen_and_left_out(audit: Audit) -> None:
    pytest.importorskip("matplotlib")
    from pqi.audit.report.page import page

    text = page(audit, LINE)
    assert "Audit of a &lt;model&gt;" in text
    assert "it alters &lt;images&gt;" in text
    assert "pqi audit &#x27;a model.pqi&#x27; --seed 3" in text
    assert "McNemar" not in text  # fidelity was not tried, so no rule of it is claimed
    assert "Members cannot be told at 0.1 % false positives" in text
    assert "steps=7" in text


def test_two_pages_of_one_audit_are_equal(audit: Audit) -> None:
    pytest.importorskip("matplotlib")
    from pqi.audit.report.page import page

    assert page(audit, LINE) == page(audit, LINE)


def test_whose_answers_changed_is_counted_by_group_and_named_by_row(audit: Audit) -> None:
    page = pytest.importorskip("pqi.audit.report.page").page(audit)
    assert "<td>3</td><td>200</td><td>2</td><td>1</td><td>1</td>" in page
    assert "Rows of the test data that changed, 2 of 2: 1234, 1250." in page
