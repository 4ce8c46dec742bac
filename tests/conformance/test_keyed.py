"""One battery for every protocol under a client's key: equal to the definition, and as long on the wire as declared."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

import protocols
from protocols.circuit import Circuit, Integers, Weights, prove
from protocols.clear.circuit import define_circuit
from protocols.errors import BadParameters, Misuse, PeerMisbehaved, ProtocolError
from protocols.keyed import Evaluator, KeyHolder, Opened, Plan

PROTOCOLS = sorted(protocols.KEYED)
BATCHES = (1, 2, 7)
DAMAGES = (lambda m: b"", lambda m: m[:-1], lambda m: m + b"\0", lambda m: bytes(len(m)), lambda m: b"\xff" * len(m))


@dataclass
class Ends:
    circuit: Circuit
    weights: dict[str, Weights]
    plan: Plan
    holder: KeyHolder
    evaluator: Evaluator


def stages(depth: int, seed: int) -> tuple[Circuit, dict[str, Weights]]:
    """A circuit with a sparse first map and ``depth`` polynomials."""
    g = np.random.default_rng(seed)
    widths, made, own = [9, 6, 5, 4][: depth + 2], [], {}
    for level, (i, o) in enumerate(pairwise(widths)):
        support = g.random((o, i)) < 0.6 if level == 0 else np.ones((o, i), dtype=np.bool_)
        support[:, 0] = True
        weight = np.where(support, g.integers(-7, 8, (o, i)), 0).astype(np.int64)
        own[f"map{level}"] = Weights(weight, g.integers(-100, 100, o).astype(object))
        made.append((f"map{level}", support, own[f"map{level}"]))
        if level < depth:
            made.append((f"act{level}", (3, -1, 2) if level else (0, 0, 1)))
    return prove(-8, 7, made), own  # type: ignore[arg-type]


@cache
def ends(protocol: str, depth: int = -1) -> Ends:
    backend = protocols.get_keyed(protocol)
    depth = min(backend.max_degree - 1, 1) if depth < 0 else depth
    circuit, weights = stages(depth, 5)
    plan = backend.plan(circuit)
    holder = backend.key_holder(plan)
    return Ends(circuit, weights, plan, holder, backend.evaluator(plan, weights, holder.evaluation_keys()))


def inputs(n: int, seed: int = 0) -> Integers:
    x = np.random.default_rng(seed).integers(-8, 8, (n, 9))
    x[:1], x[1:2] = -8, 7  # the ends of the range
    return x


def ask(e: Ends, x: Integers) -> tuple[Opened, list[bytes], list[bytes]]:
    questions = e.holder.encrypt(x)
    answers = [e.evaluator.evaluate(len(x), part, question) for part, question in enumerate(questions)]
    return e.holder.decrypt(len(x), answers), questions, answers


@pytest.mark.parametrize("n", BATCHES)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_answer_is_the_definition_s_and_the_wire_is_as_declared(protocol: str, n: int) -> None:
    e, x = ends(protocol), inputs(n)
    opened, questions, answers = ask(e, x)
    want = define_circuit(e.circuit, e.weights, x)
    if protocols.get_keyed(protocol).exact:
        assert opened.exact is not None
        assert opened.exact.shape == want.shape
        assert (opened.exact == want).all()
        assert opened.error_bound == 0
    else:
        assert opened.exact is None
        assert opened.error_bound > 0
        assert opened.approximate.shape == want.shape
        assert (np.abs(opened.approximate - want.astype(float)) <= opened.error_bound).all()
    cost = e.plan.cost(n)
    assert tuple(map(len, questions)) == cost.questions
    assert tuple(map(len, answers)) == cost.answers
    assert len(e.holder.evaluation_keys()) == cost.keys


@pytest.mark.parametrize("protocol", [p for p in PROTOCOLS if p != "paillier"])
def test_two_polynomials_deep_is_served_as_well(protocol: str) -> None:
    e, x = ends(protocol, 2), inputs(3, 1)
    opened, _, _ = ask(e, x)
    want = define_circuit(e.circuit, e.weights, x)
    if opened.exact is not None:
        assert (opened.exact == want).all()
    else:
        assert (np.abs(opened.approximate - want.astype(float)) <= opened.error_bound).all()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_plan_survives_json_and_serves_the_other_end(protocol: str) -> None:
    e, backend = ends(protocol), protocols.get_keyed(protocol)
    plain = json.loads(json.dumps(e.plan.to_json()))
    read = backend.read(plain)
    assert read.to_json() == plain
    assert read.cost(3) == e.plan.cost(3)
    other = backend.evaluator(read, e.weights, e.holder.evaluation_keys())
    question = e.holder.encrypt(inputs(1))
    answer = [other.evaluate(1, part, message) for part, message in enumerate(question)]
    assert np.allclose(e.holder.decrypt(1, answer).approximate, ask(e, inputs(1))[0].approximate, rtol=1e-3)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_same_input_never_looks_the_same_and_neither_does_its_answer(protocol: str) -> None:
    e, x = ends(protocol), inputs(1)
    _, first, first_answers = ask(e, x)
    _, second, second_answers = ask(e, x)
    assert all(a != b for a, b in zip(first, second, strict=True))
    assert all(a != b for a, b in zip(first_answers, second_answers, strict=True))
    again = [e.evaluator.evaluate(1, part, message) for part, message in enumerate(first)]
    assert all(a != b for a, b in zip(again, first_answers, strict=True))  # not the circuit's own randomness alone


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_questions_keys_and_answers_are_refused(protocol: str, damage: Any) -> None:
    e, backend = ends(protocol), protocols.get_keyed(protocol)
    questions = e.holder.encrypt(inputs(1))
    with pytest.raises(PeerMisbehaved):
        e.evaluator.evaluate(1, 0, damage(questions[0]))
    blob = damage(e.holder.evaluation_keys())
    with pytest.raises(PeerMisbehaved):  # keys in range and yet nonsense show at the first question
        backend.evaluator(e.plan, e.weights, blob).evaluate(1, 0, questions[0])
    answers = [e.evaluator.evaluate(1, part, message) for part, message in enumerate(questions)]
    with pytest.raises(ProtocolError):
        e.holder.decrypt(1, [damage(answers[0]), *answers[1:]])
    assert ask(e, inputs(1))[0].approximate.shape == (1, e.circuit.outputs)  # and it goes on serving


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_another_client_s_ciphertexts_are_refused_on_both_ends(protocol: str) -> None:
    e, backend = ends(protocol), protocols.get_keyed(protocol)
    stranger = backend.key_holder(e.plan)
    with pytest.raises(PeerMisbehaved, match="key"):
        e.evaluator.evaluate(1, 0, stranger.encrypt(inputs(1))[0])
    _, _, answers = ask(e, inputs(1))
    with pytest.raises(PeerMisbehaved, match="key"):
        stranger.decrypt(1, answers)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_parts_and_batches_outside_the_plan_are_refused(protocol: str) -> None:
    e = ends(protocol)
    questions = e.holder.encrypt(inputs(1))
    with pytest.raises(ProtocolError):
        e.evaluator.evaluate(1, len(questions), questions[0])
    with pytest.raises(ProtocolError):
        e.evaluator.evaluate(e.plan.max_batch + 1, 0, questions[0])
    with pytest.raises(ProtocolError):
        e.holder.encrypt(np.full((1, 9), 8, dtype=np.int64))  # beyond the declared range
    with pytest.raises(ProtocolError):
        e.holder.encrypt(np.zeros((1, 8), dtype=np.int64))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_who_holds_the_key_does_not_show_or_leave_it(protocol: str) -> None:
    holder = ends(protocol).holder
    with pytest.raises(Misuse):
        copy.copy(holder)
    with pytest.raises(Misuse):
        pickle.dumps(holder)
    assert "hidden" in repr(holder)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "damage", [lambda d: d.clear(), lambda d: d.update(circuit=[]), lambda d: d.update(circuit={})]
)
def test_a_plan_that_is_none_is_refused(protocol: str, damage: Any) -> None:
    plain = json.loads(json.dumps(ends(protocol).plan.to_json()))
    damage(plain)
    with pytest.raises(BadParameters):
        protocols.get_keyed(protocol).read(plain)


def test_paillier_names_the_polynomial_that_it_cannot_serve_and_who_can() -> None:
    circuit, _ = stages(1, 5)
    with pytest.raises(BadParameters, match=r"'act0'.*bfv"):
        protocols.get_keyed("paillier").plan(circuit)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_facts_and_the_security_statement_name_who_learns_what(protocol: str) -> None:
    backend, plan = protocols.get_keyed(protocol), ends(protocol).plan
    assert "semi-honest" in backend.security.adversary
    assert any("client" in role for role in backend.security.learns)
    assert any("server" in role for role in backend.security.learns)
    assert all(isinstance(value, str) and value for value in plan.facts().values())
