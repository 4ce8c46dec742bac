"""Answers hardened inside the protocol: what numpy says of the scores, bit for bit, and no more than that."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn

import pqi
import pqi.program as program
from pqi.audit.attacks.extraction import is_linear, linear_copy
from pqi.audit.defences.outputs import Policy, harden, hardened, policy_of
from pqi.audit.errors import AuditError
from pqi.audit.subjects import IntegerSubject
from pqi.graph.graph import IntegerGraph, Node
from pqi.graph.model import IntegerModel
from pqi.graph.ops import Conv2d, Dense, Input, Requantize
from pqi.graph.ranges import prove, proven_accumulators
from pqi.quant.quantizer import Quantizer
from tests.pqi.program.lockstep import run

Ints = NDArray[np.int64]


def identity(classes: int, low: int = -8, high: int = 7) -> IntegerModel:
    """A model whose scores are its codes: every tie there is can be asked for."""
    layer = Dense(torch.eye(classes, dtype=torch.int64), torch.zeros(classes, dtype=torch.int64))
    graph = IntegerGraph((Node("x", Input((classes,), low, high)), Node("scores", layer, ("x",))), "scores")
    quantizer = Quantizer(scale=1.0, offset=0.5, modulus=16)
    return IntegerModel(graph, proven_accumulators(graph, prove(graph)), quantizer, 1.0)


def order(scores: Ints) -> Ints:
    """Classes from best to worst; of equal scores the lower class first."""
    return np.argsort(-scores, axis=1, kind="stable")


def wanted(scores: Ints, policy: Policy) -> Ints:
    told = np.zeros_like(scores)
    k = 1 if policy.kind == "label" else policy.size
    for place in range(k):
        worth = k - place if policy.kind == "ranked" else 1
        told[np.arange(len(scores)), order(scores)[:, place]] = worth
    return told


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_label_top_and_ranks_are_numpys_with_ties_in_the_order_of_the_classes(data: st.DataObject) -> None:
    classes = data.draw(st.integers(2, 9))
    row = st.lists(st.integers(-3, 3) | st.sampled_from([-8, 7]), min_size=classes, max_size=classes)
    codes = np.array(data.draw(st.lists(row, min_size=1, max_size=6)), np.int64)
    size = data.draw(st.integers(1, classes - 1))
    policy = data.draw(st.sampled_from([Policy("label"), Policy("top", size), Policy("ranked", size)]))
    got = harden(identity(classes), policy).integers(torch.from_numpy(codes)).numpy()
    assert np.array_equal(got, wanted(codes, policy))
    if policy.kind == "label":
        assert np.array_equal(got.argmax(1), codes.argmax(1))


@settings(deadline=None, max_examples=60)
@given(bits=st.integers(1, 5), classes=st.integers(1, 4), low=st.integers(-300, -8), high=st.integers(7, 300))
def test_rounded_scores_are_the_floor_of_the_scores_by_a_power_of_two(
    bits: int, classes: int, low: int, high: int
) -> None:
    base = identity(classes, low, high)
    model = harden(base, ("rounded", bits))
    codes = torch.linspace(low, high, 40).long().reshape(-1, 1).repeat(1, classes)
    got, unit = model.integers(codes), round(model.output_scale)
    assert torch.equal(got, codes // unit)
    assert unit & (unit - 1) == 0 and len(got.unique()) <= 1 << bits


def test_rounding_spreads_over_what_a_sample_shows_and_saturates_outside() -> None:
    base = identity(2, -128, 127)
    model = harden(base, ("rounded", 2), sample=torch.tensor([[-8, 7]]))
    assert model.integers(torch.tensor([[-128, 127], [-8, -5], [3, 4]])).tolist() == [[-2, 1], [-2, -2], [0, 1]]
    assert model.output_scale == 4.0


POLICIES = ["label", ("top", 3), ("ranked", 3), ("rounded", 3)]


@pytest.fixture(scope="module")
def made() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 10)).eval()
    return net, torch.randn(40, 12, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("rings", ["proven", "calibrated"])
@pytest.mark.parametrize("answers", POLICIES, ids=str)
def test_hardened_answers_are_exact_in_every_protocol_and_costs_are_declared(
    made: tuple[nn.Module, torch.Tensor], answers: object, rings: str
) -> None:
    net, x = made
    base = pqi.quantize(net, calibration=x, rings=rings)
    model = pqi.quantize(net, calibration=x, rings=rings, answers=answers)
    codes = model.encode(x[:6], "silent")
    scores, policy = base.integers(codes).numpy(), policy_of(answers)
    if policy.kind != "rounded":
        assert np.array_equal(model.integers(codes).numpy(), wanted(scores, policy))
    for protocol, network in (("clear", "lan"), ("additive2", "lan"), ("additive2", "wan")):
        compiled = program.compile(model, protocol, network)
        got = run(model, compiled, codes)
        assert compiled.exact
        assert torch.equal(got.answer, model.integers(codes))
        assert got.dealt == compiled.cost(len(codes)).dealt_bytes
        assert all(got.log.exchanges[p] == compiled.cost(len(codes)).exchanges for p in compiled.parties)


def test_what_reaches_the_client_is_shares_of_the_hardened_answer_and_nothing_else() -> None:
    model = harden(identity(6), "label")
    compiled = program.compile(model)
    codes = torch.tensor([[0, 3, 3, -8, 7, 7]])
    got = run(model, compiled, codes)
    assert compiled.output_shape == (6,) and compiled.output_ring == 2
    assert all(len(share) == 2 for share in got.log.results.values())  # 6 values of 2 bits
    assert got.answer.tolist() == [[0, 0, 0, 0, 1, 0]]


def test_a_private_label_of_ten_classes_costs_four_exchanges_more() -> None:
    net = identity(10, -60_000, 60_000)
    costs = [program.compile(m).cost(1) for m in (net, harden(net, "label"))]
    assert costs[1].exchanges - costs[0].exchanges == 4
    assert costs[1].dealt_bytes - costs[0].dealt_bytes < 1000


@pytest.mark.parametrize("answers", [*POLICIES, ("noisy", 40)], ids=str)
def test_the_policy_is_saved_with_the_model_and_read_from_it(
    made: tuple[nn.Module, torch.Tensor], answers: object, tmp_path: Path
) -> None:
    net, x = made
    model = pqi.quantize(net, calibration=x, answers=answers)
    model.save(tmp_path / "m.pqi")
    again = pqi.load(tmp_path / "m.pqi")
    assert isinstance(again, IntegerModel)
    assert hardened(again) == policy_of(answers)
    assert torch.equal(again.integers(model.encode(x, "silent")), model.integers(model.encode(x, "silent")))
    assert hardened(pqi.quantize(net, calibration=x)) is None


def test_scores_of_another_shape_and_a_convolution_at_the_end_are_hardened_too() -> None:
    layer = Conv2d(torch.tensor([[[[1]]], [[[-1]]], [[[2]]]]), torch.zeros(3, dtype=torch.int64))
    graph = IntegerGraph((Node("x", Input((1, 1, 1), -8, 7)), Node("scores", layer, ("x",))), "scores")
    rings = proven_accumulators(graph, prove(graph))
    base = IntegerModel(graph, rings, Quantizer(scale=1.0, offset=0.5, modulus=16), 1.0)
    codes = torch.tensor([-8, -1, 0, 1, 7]).reshape(-1, 1, 1, 1)
    scores = base.integers(codes)
    assert torch.equal(harden(base, "label").integers(codes).argmax(1), scores.flatten(1).argmax(1))
    model = harden(base, ("rounded", 2))
    assert torch.equal(model.integers(codes), scores // round(model.output_scale))
    assert any(isinstance(n.op, Requantize) for n in model.graph.nodes)
    compiled = program.compile(model)
    assert torch.equal(run(model, compiled, codes).answer, model.integers(codes))


@pytest.mark.parametrize(
    ("wish", "says"),
    [
        ("best", "choose from"),
        ("top", "a number from 1"),
        ("top:x", "whole number"),
        (("top", True), "a number from 1"),
        (("label", 2), "takes no number"),
        (("rounded", 17), "1 to 16"),
        (("noisy", 0), "1 to 65536"),
        ("noisy:2.5", "whole number"),
        ("noisy", "a number from 1"),
        (3, "give a name"),
        (("top", 6), "below 6"),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(wish: object, says: str) -> None:
    with pytest.raises(AuditError, match=says):
        harden(identity(6), wish)


def test_a_hardened_model_is_not_hardened_again_and_one_score_has_no_label() -> None:
    with pytest.raises(AuditError, match="hardened already"):
        harden(harden(identity(6), "label"), "label")
    with pytest.raises(AuditError, match="compares 2 to"):
        harden(identity(1), "label")
    assert policy_of("ranked:3") == Policy("ranked", 3)


# --- noise --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rings", ["proven", "calibrated"])
def test_noisy_answers_are_the_reference_and_noise_within_nine_deviations(
    made: tuple[nn.Module, torch.Tensor], rings: str
) -> None:
    net, x = made
    base = pqi.quantize(net, calibration=x, rings=rings)
    model = pqi.quantize(net, calibration=x, rings=rings, answers=("noisy", 50))
    codes = model.encode(x.repeat(10, 1), "silent")
    if rings == "proven":
        assert torch.equal(model.integers(codes), base.integers(codes))
    assert model.output_scale == base.output_scale
    assert "output" not in model.verify().can_wrap
    for protocol in ("clear", "additive2"):
        compiled = program.compile(model, protocol)
        e = (run(model, compiled, codes).answer - model.integers(codes)).double()
        assert not compiled.exact
        assert float(e.abs().max()) <= compiled.noise == 450
        assert 45 < float(e.std()) < 55  # 4000 draws: nine standard errors


def test_asking_again_gives_fresh_noise_of_which_a_mean_rids_the_client() -> None:
    model = harden(identity(4), ("noisy", 100))
    codes = torch.tensor([[7, -8, 0, 3]]).repeat(2500, 1)
    told = run(model, program.compile(model), codes).answer
    assert len(told.unique(dim=0)) == 2500
    assert float((told.double().mean(0) - codes[0]).abs().max()) < 10  # five times 100 / sqrt(2500)


def test_the_audited_integers_have_the_noise_that_a_client_is_told_from_a_seed() -> None:
    model, x = harden(identity(4), ("noisy", 100)), np.tile([[7.0, -8.0, 0.0, 3.0]], (1000, 1))
    told = IntegerSubject(model, seed=1).scores(x)
    assert np.array_equal(told, IntegerSubject(model, seed=1).scores(x))
    assert not np.array_equal(told, IntegerSubject(model, seed=2).scores(x))
    e = told - model.predict(x)
    assert 93 < e.std() < 107 and np.array_equal(e, np.round(e))
    assert np.array_equal(IntegerSubject(identity(4)).scores(x), identity(4).predict(x))


def test_a_linear_model_with_noise_is_not_copied_by_one_question_a_weight() -> None:
    assert is_linear(identity(4)) and not is_linear(harden(identity(4), ("noisy", 5)))
    with pytest.raises(AuditError, match="none"):
        linear_copy(harden(identity(4), ("noisy", 5)))


def test_a_noisy_model_is_not_hardened_again_and_a_dynamic_one_not_at_all(
    made: tuple[nn.Module, torch.Tensor],
) -> None:
    with pytest.raises(AuditError, match=r"hardened already \(noisy:5\)"):
        harden(harden(identity(6), "noisy:5"), "label")
    net, x = made
    with pytest.raises(AuditError, match="dynamic"):
        pqi.quantize(net, calibration=x, dynamic=64, answers=("noisy", 5))
    assert "at most 45" in Policy("noisy", 5).tells
