"""Bits of stored weights: what turning one does, that the attack finds the harmful ones, what guards leave of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import pqi
from pqi.audit import attacks
from pqi.audit.attack import Budget
from pqi.audit.case import Case, Data
from pqi.audit.defences.checksums import GroupChecksums
from pqi.audit.defences.guards import GroupClipping
from pqi.audit.errors import AuditError
from pqi.audit.memory import Flip, stored, turned
from pqi.graph.ops import Dense

BUDGET = Budget(samples=200, seed=1)


@pytest.fixture(scope="module")
def case() -> Case:
    generator = np.random.default_rng(0)
    centres = generator.random((5, 20))
    y = generator.integers(0, 5, 500)
    x = np.clip(centres[y] + generator.normal(0, 0.3, (500, 20)), 0, 1)
    torch.manual_seed(0)
    relu, hidden = nn.ReLU(), [nn.Linear(16, 16) for _ in range(2)]
    net = nn.Sequential(nn.Linear(20, 16), relu, hidden[0], relu, hidden[1], relu, nn.Linear(16, 5))
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(80):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(torch.tensor(x, dtype=torch.float32)), torch.tensor(y)).backward()
        optimizer.step()
    return Case(net, pqi.quantize(net, x), Data(x, y.astype(np.int64)))


def test_codes_times_multipliers_are_the_weights(case: Case) -> None:
    for node in case.model.graph.nodes:
        if isinstance(node.op, Dense):
            layer = stored(case.model)[node.name]
            assert torch.equal(layer.weight(layer.codes), node.op.weight)
            assert int(layer.codes.min()) >= -(1 << (layer.bits - 1))
            assert int(layer.codes.max()) < 1 << (layer.bits - 1)


@given(index=st.integers(0, 23), bit=st.integers(0, 7))
def test_a_bit_turned_twice_is_as_it_was_and_once_is_what_is_foretold(case: Case, index: int, bit: int) -> None:
    name = next(iter(stored(case.model)))
    flip = Flip(name, index, bit)
    before, after = stored(case.model)[name], stored(turned(case.model, [flip]))[name]
    weight = before.weight(before.codes).clone()
    weight.view(-1)[index] += (before.change(bit) * before.unit).view(-1)[index]
    assert torch.equal(after.weight(after.codes), weight)
    again = turned(case.model, [flip, flip])
    x = case.test.x[:20]
    assert np.array_equal(again.predict(x), case.model.predict(x))


def test_a_few_chosen_bits_ruin_a_model_that_as_many_random_ones_leave_alone(case: Case) -> None:
    (found,) = attacks.get("bit-flips", most=6, batch=64).run(case, BUDGET)
    assert found.figures["accuracy before"].value > 0.95
    assert found.figures["accuracy after"].value < 0.5
    generator, layers = np.random.default_rng(2), stored(case.model)
    name = next(iter(layers))
    flips = {Flip(name, int(generator.integers(256)), int(generator.integers(7))) for _ in range(6)}
    labels = turned(case.model, flips).predict(case.test.x).argmax(1)
    assert np.mean(labels == case.test.y) > 0.8


@pytest.mark.parametrize("guard", [lambda layers: GroupClipping(layers, 4), lambda layers: GroupChecksums(layers, 4)])
def test_a_guard_that_the_attack_knows_still_leaves_more_of_the_accuracy(case: Case, guard: object) -> None:
    bare, guarded = (
        attacks.get("bit-flips", most=6, batch=64, guard=g).run(case, BUDGET)[0].figures for g in (None, guard)
    )
    assert guarded["accuracy after"].value > bare["accuracy after"].value + 0.2
    assert guarded["accuracy before"] == bare["accuracy before"]


def test_checksums_leave_out_the_group_of_any_turned_bit_and_no_other(case: Case) -> None:
    layers = stored(case.model)
    guard, name = GroupChecksums(layers, 8), next(iter(layers))
    codes = layers[name].codes
    for bit in range(8):
        altered = codes.clone()
        altered.view(-1)[13] += layers[name].change(bit).view(-1)[13]
        settled = guard.settle(name, altered).view(-1)
        assert not settled[8:16].any()
        assert torch.equal(torch.cat([settled[:8], settled[16:]]), torch.cat([codes.view(-1)[:8], codes.view(-1)[16:]]))
    assert torch.equal(guard.settle(name, codes), codes)


def test_clipping_leaves_codes_alone_that_nobody_altered(case: Case) -> None:
    layers = stored(case.model)
    guard = GroupClipping(layers, 8)
    assert all(torch.equal(guard.settle(name, layer.codes), layer.codes) for name, layer in layers.items())


def test_chosen_inputs_are_given_chosen_classes_while_others_keep_theirs(case: Case) -> None:
    (found,) = attacks.get("targeted-bit-flips", victims=4, most=10, batch=40).run(case, BUDGET)
    assert found.figures["fell"].value >= 0.75
    assert found.figures["accuracy left"].value > 0.5


def test_bits_that_do_not_exist_are_refused(case: Case) -> None:
    name = next(iter(stored(case.model)))
    for flip in (Flip("nowhere", 0, 0), Flip(name, 10**6, 0), Flip(name, 0, 8)):
        with pytest.raises(AuditError):
            turned(case.model, [flip])


def test_an_attack_without_examples_left_to_judge_by_is_refused(case: Case) -> None:
    with pytest.raises(AuditError, match="more than the batch of 5000"):
        attacks.get("bit-flips", batch=5000).run(case, BUDGET)
