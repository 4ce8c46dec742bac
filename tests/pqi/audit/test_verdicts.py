"""Verdicts: what is broken is named, what chance explains is left alone, too little is not judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from math import comb, isclose
from typing import Any

import numpy as np
import pytest

from pqi.audit.attack import Budget, Curve, Finding, Threat
from pqi.audit.rules import chance_of, difference
from pqi.audit.statistics import Estimate, mcnemar, paired_difference, rate, roc, share, true_positives_at
from pqi.audit.subjects import FLOAT, INTEGERS, STRAIGHT_THROUGH
from pqi.audit.verdicts import Verdict, judge, overall

_FAMILY = {
    "fidelity": "fidelity",
    "bit-flips": "bit flips",
    "membership": "privacy",
    "detection": "backdoor",
    "fairness": "fairness",
}


def _finding(attack: str, subject: str, figures: Mapping[str, Estimate], **more: Any) -> Finding:
    family = _FAMILY.get(attack, "adversarial")
    return Finding(attack, family, subject, Threat("nothing", "nothing", "", ""), Budget(), figures, **more)


def _of(family: str, findings: Sequence[Finding]) -> Verdict:
    return next(verdict for verdict in judge(findings) if verdict.family == family)


def _fidelity(before: np.ndarray, after: np.ndarray) -> Finding:
    p = mcnemar(before, after)
    figures = {"agreement": share(before == after), "float accuracy": share(before), "accuracy": share(after)}
    figures |= {"accuracy change": paired_difference(before, after), "p of no change": Estimate(p, p, p, len(before))}
    return _finding("fidelity", INTEGERS, figures)


def _right(n: int, wrong: int, first: int = 0) -> np.ndarray:
    flags = np.ones(n, bool)
    flags[first : first + wrong] = False
    return flags


def test_accuracy_that_is_lost_needs_attention_and_what_chance_explains_does_not() -> None:
    assert _of("fidelity", [_fidelity(_right(1000, 20), _right(1000, 60))]).status == "attention"
    assert _of("fidelity", [_fidelity(_right(1000, 20), _right(1000, 22, 3))]).status == "clean"
    assert _of("fidelity", [_fidelity(_right(1000, 60), _right(1000, 20))]).status == "clean"
    assert _of("fidelity", [_fidelity(_right(20, 0), _right(20, 20))]).status == "not judged"


def test_a_loss_within_half_a_point_is_tolerated_however_many_examples_prove_it() -> None:
    verdict = _of("fidelity", [_fidelity(_right(50_000, 500), _right(50_000, 650))])
    assert verdict.status == "clean"
    assert "-0.3" in verdict.says


def _robust(attack: str, scored: str, crafted: str, hits: Sequence[int], n: int = 200) -> Finding:
    shares = [rate(k, n) for k in hits]
    curve = Curve((0.0, 0.01, 0.02), *([getattr(e, end) for e in shares] for end in ("value", "low", "high")))
    figures = {"clean accuracy": shares[0], "robust accuracy": shares[-1]}
    return _finding(attack, scored, figures, curves={"robust accuracy": curve}, settings={"crafted on": crafted})


def _pgd(on_float: Sequence[int], on_integers: Sequence[int]) -> list[Finding]:
    return [_robust("pgd", FLOAT, FLOAT, on_float), _robust("pgd", INTEGERS, STRAIGHT_THROUGH, on_integers)]


def test_integers_that_are_easier_to_fool_need_attention() -> None:
    verdict = _of("adversarial", _pgd((195, 180, 120), (195, 178, 60)))
    assert verdict.status == "attention"
    assert "epsilon 0.02" in verdict.says
    assert _of("adversarial", _pgd((195, 180, 120), (195, 178, 116))).status == "clean"


def test_the_strongest_attack_on_each_form_is_what_is_compared() -> None:
    weak = [*_pgd((195, 180, 120), (195, 180, 120)), _robust("square", INTEGERS, INTEGERS, (195, 100, 10))]
    assert _of("adversarial", weak).status == "attention"
    both = [*weak, _robust("square", FLOAT, FLOAT, (195, 100, 10))]
    assert {c.name: c.status for c in _of("adversarial", both).checks}["easier to fool"] == "clean"


def test_gradients_that_flatter_the_integers_are_suspected_of_masking() -> None:
    findings = [*_pgd((195, 20, 2), (195, 190, 185)), _robust("transfer", INTEGERS, FLOAT, (195, 30, 4))]
    checks = {check.name: check.status for check in _of("adversarial", findings).checks}
    assert checks == {"easier to fool": "clean", "gradient masking": "attention"}
    honest = [*_pgd((195, 20, 2), (195, 20, 2)), _robust("square", INTEGERS, INTEGERS, (195, 60, 40))]
    assert _of("adversarial", honest).status == "clean"


def test_labels_alone_that_reach_further_in_integers_need_attention() -> None:
    def walks(integers: float) -> list[Finding]:
        pairs = ((FLOAT, 1.0), (INTEGERS, integers))
        return [_finding("hopskipjump", s, {"median L2": Estimate(v, v - 0.1, v + 0.1, 50)}) for s, v in pairs]

    assert _of("adversarial", walks(0.5)).status == "attention"
    assert _of("adversarial", walks(0.95)).status == "clean"


def _signs(trigger: Estimate, agreement: Estimate, rounding: float = 0.01) -> Finding:
    bounds, remarks = {"rounding": 0.08, "trigger": 0.5}, {"rounding": "distance", "trigger": "what one change turns"}
    figures = {"agreement": agreement, "rounding": Estimate(rounding, rounding - 0.02, rounding + 0.02, 4000)}
    settings = {"bounds": bounds, "remarks": remarks, "least agreement": 0.95}
    return _finding("detection", INTEGERS, {**figures, "trigger": trigger}, settings=settings)


def test_a_trigger_that_wakes_or_weights_held_at_edges_need_attention() -> None:
    assert _of("backdoor", [_signs(rate(95, 100), rate(99, 100))]).status == "attention"
    assert _of("backdoor", [_signs(rate(2, 100), rate(99, 100), rounding=0.2)]).status == "attention"
    assert _of("backdoor", [_signs(rate(2, 100), rate(99, 100))]).status == "clean"


def test_a_sign_whose_interval_reaches_below_its_bound_is_no_alarm() -> None:
    checks = {c.name: c.status for c in _of("backdoor", [_signs(rate(6, 10), rate(99, 100))]).checks}
    assert checks == {"rounding": "clean", "trigger": "not judged"}


def test_forms_that_disagree_on_clean_inputs_are_not_judged_for_backdoors() -> None:
    verdict = _of("backdoor", [_signs(rate(95, 100), rate(80, 100))])
    assert verdict.status == "not judged"
    assert "agree on 80.0 %" in verdict.says


def _flips(bits: int, falls: bool) -> Finding:
    figures = {"bits turned": Estimate(bits, bits, bits, 100), "accuracy before": rate(95, 100)}
    figures["accuracy after"] = rate(10 if falls else 60, 100)
    return _finding("bit-flips", INTEGERS, figures, settings={"reaches chance": falls})


def test_one_bit_that_brings_a_network_to_chance_needs_attention_and_the_number_is_told_otherwise() -> None:
    assert _of("bit flips", [_flips(1, True)]).status == "attention"
    verdict = _of("bit flips", [_flips(12, True)])
    assert verdict.status == "clean"
    assert verdict.says.startswith("12 chosen bits")
    assert "above chance" in _of("bit flips", [_flips(40, False)]).says
    assert _of("bit flips", [_flips(0, True)]).status == "not judged"


def _membership(inside: np.ndarray, outside: np.ndarray) -> list[Finding]:
    found = roc(inside, outside)
    figures = {
        "threshold: area": Estimate(found.area, found.area - 0.03, found.area + 0.03, len(inside) + len(outside)),
        "threshold: true positives at 0.001": true_positives_at(inside, outside, 0.001),
    }
    curves = {"threshold": Curve(found.false_positives.tolist(), found.true_positives.tolist())}
    settings = {"members": len(inside), "others": len(outside)}
    return [_finding("membership", s, figures, curves=curves, settings=settings) for s in (FLOAT, INTEGERS)]


def test_members_that_stand_out_need_attention() -> None:
    generator = np.random.default_rng(0)
    inside = np.concatenate([generator.normal(0, 1, 270), generator.normal(9, 1, 30)])
    verdict = _of("privacy", _membership(inside, generator.normal(0, 1, 300)))
    assert verdict.status == "attention"
    assert "threshold on integers: 11.3 %" in verdict.says


def test_scores_that_tell_nothing_raise_no_alarm_in_200_audits() -> None:
    alarms = 0
    for seed in range(200):
        generator = np.random.default_rng(seed)
        verdict = _of("privacy", _membership(generator.normal(0, 1, 300), generator.normal(0, 1, 300)))
        alarms += verdict.status == "attention"
    assert alarms <= 4


def test_the_interval_alone_would_have_raised_an_alarm_where_chance_does() -> None:
    inside, outside = np.arange(100.0), np.arange(100.0) - 3.5  # three members above every other example
    assert true_positives_at(inside, outside, 0.001).low > 0.001
    assert _of("privacy", _membership(inside, outside)).status == "clean"


@pytest.mark.parametrize("false", [0, 1])
def test_the_chance_of_members_above_all_others_is_that_of_counting_orders(false: int) -> None:
    members, others = 4, 3
    for found in range(members + 1):
        hits = 0
        for places in combinations(range(members + others), members):  # ranks of members, 0 the highest
            rest = [rank for rank in range(members + others) if rank not in places]
            hits += sum(rank < rest[false] for rank in places) >= found
        assert isclose(chance_of(found, members, others, false), hits / comb(members + others, members))


def _groups(change: float, name: str = "gap of accuracies", n: int = 800) -> list[Finding]:
    """A change of so much, give or take half a point, of a figure whose own interval is three points either way."""
    before, after = (Estimate(v, v - 0.03, v + 0.03, n) for v in (0.3, 0.3 + change))
    told = {name: after, f"change of {name}": Estimate(change, change - 0.005, change + 0.005, n)}
    return [_finding("fairness", FLOAT, {name: before}), _finding("fairness", INTEGERS, told)]


def test_a_gap_that_grew_by_more_than_a_point_for_sure_needs_attention_and_no_other_does() -> None:
    assert _of("fairness", _groups(0.02)).status == "attention"
    assert _of("fairness", _groups(0.014)).status == "clean"
    assert _of("fairness", _groups(-0.2)).status == "clean"
    assert _of("fairness", _groups(-0.02, "worst group's accuracy")).status == "attention"
    assert _of("fairness", _groups(0.02, "worst group's accuracy")).status == "clean"
    assert _of("fairness", _groups(0.2, n=29)).status == "not judged"


def test_private_answers_beside_the_others_change_no_verdict() -> None:
    private = _finding("fairness", "private", {"private answers equal": Estimate(1.0, 0.99, 1.0, 400)})
    assert _of("fairness", [*_groups(0.02), private]).status == "attention"
    assert _of("fairness", [*_groups(0.0), private]).status == "clean"


def test_a_figure_outside_its_own_interval_does_not_make_a_difference_sure() -> None:
    found = difference(Estimate(0.3, 0.32, 0.5, 100), Estimate(0.28, 0.2, 0.3, 100))
    assert found.low < found.value < found.high


def test_families_without_findings_are_not_judged_and_say_why() -> None:
    verdicts = judge([], {"privacy": ("membership: no training examples were given",)})
    assert {verdict.status for verdict in verdicts} == {"not judged"}
    assert next(v for v in verdicts if v.family == "privacy").says == "membership: no training examples were given"
    assert overall(verdicts) == "not judged"


def test_one_family_that_needs_attention_decides_the_whole() -> None:
    verdicts = judge([_fidelity(_right(1000, 20), _right(1000, 21)), _flips(1, True)])
    assert overall(verdicts) == "attention"
    assert overall(judge([_flips(9, True)])) == "clean"
