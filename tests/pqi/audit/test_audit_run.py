"""The whole audit: minutes shared out, what cannot run left out by name, and no alarm for a network that is well."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from math import isclose

import numpy as np
import pytest
import torch
from torch import nn

import pqi
from pqi.audit import plan as planning
from pqi.audit import run as running
from pqi.audit.attack import Budget
from pqi.audit.case import Case, Data
from pqi.audit.detection import rests
from pqi.audit.errors import AuditError
from pqi.audit.exported import ExportedModule, as_module
from pqi.audit.plan import KINDS, Speed, Wish, plan
from pqi.audit.run import audit
from pqi.audit.subjects import FLOAT

FAST, SLOW = Speed(1e-7, 1e-7, 1e-7), Speed(1e-2, 1e-2, 1e-2)


def _train(net: nn.Module, data: Data, steps: int, rate: float = 0.01) -> nn.Module:
    optimizer, generator = torch.optim.Adam(net.parameters(), rate), torch.Generator().manual_seed(0)
    x, y = torch.tensor(data.x, dtype=torch.float32), torch.tensor(data.y)
    for _ in range(steps):
        rows = torch.randint(0, len(x), (64,), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
        optimizer.step()
    return net.eval()


@pytest.fixture(scope="module")
def digits() -> Case:
    datasets = pytest.importorskip("sklearn.datasets")
    whole = datasets.load_digits()
    x, y = whole.data / 16, whole.target.astype(np.int64)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = x[order], y[order]
    train, test = Data(x[:1200], y[:1200]), Data(x[1200:], y[1200:], y[1200:] % 3)
    torch.manual_seed(0)
    net = _train(nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)), train, 250)
    return Case(net, pqi.quantize(net, train.x), test, train, "digits")


@pytest.fixture(scope="module")
def images() -> Case:
    generator = np.random.default_rng(0)
    x, y = generator.random((60, 1, 6, 6)), np.arange(60, dtype=np.int64) % 3
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).eval()
    return Case(net, pqi.quantize(net, x), Data(x, y, y % 2), Data(x, y))


def test_a_well_trained_network_gets_a_clean_report(digits: Case) -> None:
    pytest.importorskip("art", reason="the audit's attacks need the extra 'audit'")
    seen = list[tuple[str, float]]()
    found = audit(digits, Wish(minutes=20, quick=True, samples=60), lambda name, share: seen.append((name, share)))
    assert {verdict.family: verdict.status for verdict in found.verdicts} == dict.fromkeys(
        ("fidelity", "adversarial", "backdoor", "bit flips", "privacy", "fairness"), "clean"
    )
    assert found.status == "clean"
    assert not found.failed
    assert {run.attack for run in found.runs} == set(KINDS)
    assert next(run for run in found.runs if run.attack == "square").reason.startswith("it alters images")
    shares = [share for _, share in seen]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_the_same_seed_makes_the_same_findings(digits: Case) -> None:
    wish = Wish(attacks=("fidelity", "membership", "bit-flips"), samples=60, seed=4)
    first, again = (audit(digits, wish) for _ in range(2))
    assert [finding.figures for finding in first.findings] == [finding.figures for finding in again.findings]
    assert first.verdicts == again.verdicts


def test_a_network_that_learnt_its_examples_by_heart_needs_attention() -> None:
    generator = np.random.default_rng(1)
    data = Data(generator.random((120, 20)), generator.integers(0, 3, 120))
    torch.manual_seed(0)
    net = _train(nn.Sequential(nn.Linear(20, 128), nn.ReLU(), nn.Linear(128, 3)), data, 250)
    test = Data(generator.random((120, 20)), generator.integers(0, 3, 120))
    found = audit(Case(net, pqi.quantize(net, data.x), test, data), Wish(attacks=("membership",)))
    assert {v.family: v.status for v in found.verdicts}["privacy"] == "attention"
    assert found.status == "attention"
    assert "area" in next(v.says for v in found.verdicts if v.family == "privacy")


def test_the_minutes_are_shared_out_among_what_can_run(images: Case) -> None:
    jobs, left_out = plan(images, Wish(minutes=2), FAST)
    assert isclose(sum(job.budget.seconds for job in jobs), 120)
    assert {each.name for each in left_out} == set()
    assert {job.name: job.budget.samples for job in jobs}["pgd"] == 500
    quick, _ = plan(images, Wish(quick=True), FAST)
    assert isclose(sum(job.budget.seconds for job in quick), 75)
    assert len(quick) < len(jobs)


def test_a_slow_model_gets_fewer_examples_and_questions_and_a_stated_number_is_kept(images: Case) -> None:
    slow = {job.name: job for job in plan(images, Wish(minutes=1), SLOW)[0]}
    assert slow["pgd"].budget.samples == 30
    assert (slow["square"].budget.samples, slow["square"].budget.queries) == (30, 50)
    assert slow["detection"].arguments["steps"] == 30
    assert slow["fidelity"].budget.samples == len(images.test)
    stated = {job.name: job for job in plan(images, Wish(minutes=1, samples=77, queries=88), SLOW)[0]}
    assert stated["pgd"].budget.samples == 77
    assert (stated["square"].budget.samples, stated["square"].budget.queries) == (77, 88)


def test_what_a_case_lacks_is_said_attack_by_attack(images: Case) -> None:
    bare = replace(images, test=Data(images.test.x, images.test.y), train=None)
    reasons = {each.name: each.reason for each in plan(bare, Wish(), FAST)[1]}
    assert set(reasons) == {"membership", "inversion", "fairness"}
    assert "x_train and y_train" in reasons["membership"]
    assert "array groups" in reasons["fairness"]
    reasons = {each.name: each.reason for each in plan(images, Wish(attacks=("pgd",)), FAST)[1]}
    assert set(reasons) == set(KINDS) - {"pgd"}
    assert set(reasons.values()) == {"not asked for"}


def test_without_the_toolbox_the_rest_is_audited_and_the_extra_is_named(
    images: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "art", None)
    found = audit(images, Wish(attacks=("fidelity", "pgd")))
    reason = next(run.reason for run in found.runs if run.attack == "pgd")
    assert "private-quantized-inference[audit]" in reason
    statuses = {verdict.family: verdict.status for verdict in found.verdicts}
    assert (statuses["fidelity"], statuses["adversarial"]) == ("clean", "not judged")


def test_an_attack_that_fails_is_recorded_and_costs_no_other_its_findings(
    images: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(name: str, **settings: object) -> object:
        if name == "fairness":
            raise ZeroDivisionError("by a library")
        return original(name, **settings)

    original: Callable[..., object] = running.get
    monkeypatch.setattr(running, "get", broken)
    found = audit(images, Wish(attacks=("fidelity", "fairness")))
    assert [run.attack for run in found.failed] == ["fairness"]
    assert found.failed[0].reason == "failed: ZeroDivisionError: by a library"
    assert [finding.attack for finding in found.findings] == ["fidelity"]


def test_attacks_whose_turn_comes_too_late_are_left_out_by_name(images: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "measured", lambda case: FAST)
    found = audit(images, Wish(minutes=1e-9, attacks=("fidelity", "fairness")))
    assert not found.findings
    assert all("minutes were spent" in run.reason for run in found.runs if run.budget is not None)
    assert found.status == "not judged"


def test_an_exported_program_serves_as_the_float_network(images: Case) -> None:
    program = torch.export.export(images.net, (torch.rand(4, 1, 6, 6),))
    net = as_module(program)
    assert net.eval() is net
    x = torch.rand(7, 1, 6, 6, requires_grad=True)
    assert torch.allclose(net(x), images.net(x), atol=1e-6)
    net(x).sum().backward()
    assert x.grad is not None
    assert bool((x.grad != 0).any())
    case = replace(images, net=net)
    assert np.array_equal(case.subjects[FLOAT].labels(images.test.x), images.subjects[FLOAT].labels(images.test.x))
    assert rests(case).keys() == rests(images).keys() != set()


def test_a_program_for_batches_of_any_size_is_asked_as_it_is(images: Case) -> None:
    batch = torch.export.Dim("batch")
    program = torch.export.export(images.net, (torch.rand(4, 1, 6, 6),), dynamic_shapes=({0: batch},))
    net = ExportedModule(program)
    assert net.size is None
    assert net(torch.rand(9, 1, 6, 6)).shape == (9, 3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda case: replace(case, test=Data(case.test.x, case.test.y + 1)), "tells 3 classes apart"),
        (lambda case: replace(case, net=nn.Sequential(nn.Flatten(), nn.Linear(36, 5))), "it must be the one"),
        (lambda case: replace(case, net=nn.Linear(5, 3)), "does not take inputs"),
    ],
)
def test_what_cannot_be_audited_at_all_is_refused(images: Case, change: Callable[[Case], Case], words: str) -> None:
    with pytest.raises(AuditError, match=words):
        audit(change(images), Wish(attacks=("fidelity",)))


def test_a_wish_that_cannot_be_is_refused() -> None:
    with pytest.raises(AuditError, match="there are: fidelity"):
        Wish(attacks=("magic",))
    with pytest.raises(AuditError, match="more than 0"):
        Wish(minutes=0)
    with pytest.raises(AuditError, match="above 0 and at most 1"):
        Wish(strengths=(0.0, 0.1))


def test_every_attack_of_a_plan_can_be_made_with_its_arguments(images: Case) -> None:
    from pqi.audit.attacks import get

    for job in plan(images, Wish(), FAST)[0]:
        made = get(job.name, **job.arguments)
        assert (made.name, made.family) == (job.name, job.family)
        assert isinstance(job.budget, Budget)
