"""What comes from the other side and is none of this plan or these keys is refused, and the server goes on serving."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import numpy as np
import pytest
from ckkskit import Session, error, network, session

from protocols.ckks.protocol import Ckks
from protocols.errors import BadParameters, Misuse, PeerMisbehaved


@pytest.fixture(scope="module")
def ends() -> Session:
    return session(*network([6, 4, 2]), packing="single")


@pytest.fixture(scope="module")
def question(ends: Session) -> bytes:
    (asked,) = ends.client.encrypt(ends.inputs(1))
    return asked


def out_of_range(message: bytes) -> bytes:
    return message[:16] + b"\xff" * 4096 + message[16 + 4096 :]


CHANGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda message: b"",
    "truncated": lambda message: message[:-1],
    "oversized": lambda message: message + b"\0",
    "doubled": lambda message: message + message,
    "of other keys": lambda message: bytes(16) + message[16:],
    "with residues out of range": out_of_range,
}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_question_that_is_none_is_refused_and_the_next_one_served(ends: Session, question: bytes, kind: str) -> None:
    with pytest.raises(PeerMisbehaved):
        ends.server.evaluate(1, 0, CHANGES[kind](question))
    opened, exact = ends.answer(ends.inputs(1))
    assert error(opened, exact) <= opened.error_bound


def test_a_question_of_zeros_is_refused_or_answered_but_never_a_foreign_error(ends: Session, question: bytes) -> None:
    zeros = question[:16] + bytes(len(question) - 16)
    try:
        answer = ends.server.evaluate(1, 0, zeros)
    except PeerMisbehaved:
        return
    assert len(answer) == ends.plan.cost(1).answer


@pytest.mark.parametrize(("n", "part"), [(0, 0), (1, 1), (1, -1), (10**9, 0)])
def test_parts_that_are_none_are_refused(ends: Session, question: bytes, n: int, part: int) -> None:
    with pytest.raises(PeerMisbehaved):
        ends.server.evaluate(n, part, question)


@pytest.mark.parametrize("kind", [kind for kind in CHANGES if kind != "of other keys"])
def test_evaluation_keys_that_are_none_are_refused(ends: Session, kind: str) -> None:
    keys = CHANGES[kind](ends.client.evaluation_keys())
    with pytest.raises(PeerMisbehaved):
        Ckks().evaluator(ends.plan, ends.weights, keys)


def test_keys_of_another_plan_are_refused_by_length(ends: Session) -> None:
    other = session(*network([6, 2]), packing="batch")
    with pytest.raises(PeerMisbehaved, match="bytes"):
        Ckks().evaluator(ends.plan, ends.weights, other.client.evaluation_keys())


def test_a_question_of_another_client_is_refused(ends: Session) -> None:
    (asked,) = Ckks().key_holder(ends.plan).encrypt(ends.inputs(1))
    with pytest.raises(PeerMisbehaved, match="other keys"):
        ends.server.evaluate(1, 0, asked)


@pytest.mark.parametrize("kind", CHANGES)
def test_an_answer_that_is_none_is_refused(ends: Session, question: bytes, kind: str) -> None:
    answer = ends.server.evaluate(1, 0, question)
    with pytest.raises(PeerMisbehaved):
        ends.client.decrypt(1, [CHANGES[kind](answer)])


def test_an_answer_of_noise_is_refused_as_beyond_the_circuits_values(ends: Session, question: bytes) -> None:
    answer = ends.server.evaluate(1, 0, question)
    half = (len(answer) - 16) // 2
    swapped = answer[:16] + answer[16 + half :] + answer[16 : 16 + half]
    with pytest.raises(PeerMisbehaved, match="beyond"):
        ends.client.decrypt(1, [swapped])


def test_a_wrong_number_of_answers_is_refused(ends: Session) -> None:
    with pytest.raises(PeerMisbehaved, match="0 answers"):
        ends.client.decrypt(1, [])


def test_inputs_outside_the_circuit_are_misuse_of_this_side(ends: Session) -> None:
    for x in (np.zeros((1, 5), np.int64), np.zeros((1, 6)), np.full((1, 6), 16), np.full((1, 6), -1)):
        with pytest.raises(Misuse):
            ends.client.encrypt(x)


def test_keys_and_weights_refuse_to_be_shown_or_copied(ends: Session) -> None:
    for held in (ends.client, ends.server._prepared):
        assert "hidden" in repr(held)
        for use in (pickle.dumps, copy.copy, copy.deepcopy, bool):
            with pytest.raises(Misuse):
                use(held)
    assert repr(ends.server) == "<CkksEvaluator>"


def test_the_servers_end_has_no_secret_key(ends: Session) -> None:
    names = {name for part in (ends.server, ends.server._engine, ends.server._engine.keys) for name in vars(part)}
    assert not [name for name in names if "secret" in name or "decrypt" in name]


def test_a_plan_of_another_protocol_is_misuse() -> None:
    with pytest.raises(Misuse, match="cannot work by"):
        Ckks().key_holder(object())  # type: ignore[arg-type]


def test_weights_of_another_shape_are_refused(ends: Session) -> None:
    other = network([6, 5, 2])[1]
    with pytest.raises(BadParameters, match="'linear0'"):
        Ckks().evaluator(ends.plan, other, ends.client.evaluation_keys())
