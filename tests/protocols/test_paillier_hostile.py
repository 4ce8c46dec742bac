"""Keys, questions, answers and plans that no honest peer sends: refused, with the reason, and nothing else happens."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from paillierkit import Ends, circuit, ends, protocol, weights

from protocols.circuit import Weights, prove
from protocols.errors import BadParameters, Misuse, PeerMisbehaved
from protocols.paillier.public import ID_BYTES

OWN = weights([[1, -2], [3, 4]], [5, 6])
X = np.array([[3, 4]], dtype=np.int64)
WIDTH = 512
Change = Callable[[bytes, int], bytes]


@pytest.fixture(scope="module")
def both() -> Ends:
    return ends(OWN, circuit(OWN))


def with_number(message: bytes, number: int) -> bytes:
    return message[:ID_BYTES] + number.to_bytes(WIDTH, "big") + message[ID_BYTES + WIDTH :]


MESSAGES: dict[str, tuple[Change, str]] = {
    "empty": (lambda m, n: b"", "of 0 bytes"),
    "one byte short": (lambda m, n: m[:-1], "ciphertexts have"),
    "one byte long": (lambda m, n: m + b"\0", "ciphertexts have"),
    "of another key": (lambda m, n: bytes(ID_BYTES) + m[ID_BYTES:], "under another key"),
    "zero": (lambda m, n: with_number(m, 0), r"1 \.\. n\^2 - 1"),
    "n squared": (lambda m, n: with_number(m, n * n), r"1 \.\. n\^2 - 1"),
    "too large": (lambda m, n: with_number(m, (1 << 8 * WIDTH) - 1), r"1 \.\. n\^2 - 1"),
    "a multiple of n": (lambda m, n: with_number(m, 7 * n), "shares a factor"),
}


@pytest.mark.parametrize("case", MESSAGES)
def test_a_malformed_question_is_refused_and_the_server_goes_on(both: Ends, case: str) -> None:
    change, reason = MESSAGES[case]
    (question,) = both.client.encrypt(X)
    with pytest.raises(PeerMisbehaved, match=reason):
        both.server.evaluate(1, 0, change(question, int(both.client._key.public.n)))
    assert both.ask(X).tolist() == [[0, 31]]


@pytest.mark.parametrize("case", MESSAGES)
def test_a_malformed_answer_is_refused(both: Ends, case: str) -> None:
    change, reason = MESSAGES[case]
    (question,) = both.client.encrypt(X)
    answer = both.server.evaluate(1, 0, question)
    with pytest.raises(PeerMisbehaved, match=reason):
        both.client.decrypt(1, [change(answer, int(both.client._key.public.n))])


def test_a_question_under_another_clients_key_is_refused(both: Ends) -> None:
    other = protocol().key_holder(both.plan)
    (question,) = other.encrypt(X)
    with pytest.raises(PeerMisbehaved, match="under another key"):
        both.server.evaluate(1, 0, question)


def test_an_answer_whose_ciphertext_was_changed_is_refused_by_what_it_decrypts_to(both: Ends) -> None:
    (question,) = both.client.encrypt(X)
    answer = both.server.evaluate(1, 0, question)
    number = int.from_bytes(answer[ID_BYTES:], "big")
    square = int(both.client._key.public.square)
    with pytest.raises(PeerMisbehaved, match=r"goes on after its 2 values|proven bits"):
        both.client.decrypt(1, [with_number(answer, number * 3 % square * pow(5, 7, square) % square)])


def test_an_empty_batch_has_no_parts(both: Ends) -> None:
    assert both.ask(np.zeros((0, 2), dtype=np.int64)).shape == (0, 2)
    with pytest.raises(PeerMisbehaved, match="part 0 of a query of 0 parts"):
        both.server.evaluate(0, 0, both.client.encrypt(X)[0])


@pytest.mark.parametrize("part", [-1, 1, 2**40])
def test_a_part_that_the_query_does_not_have_is_refused(both: Ends, part: int) -> None:
    (question,) = both.client.encrypt(X)
    with pytest.raises(PeerMisbehaved, match=f"part {part} of a query of 1 parts"):
        both.server.evaluate(1, part, question)


@pytest.mark.parametrize("n", [-1, 10**9])
def test_a_batch_that_no_query_holds_is_refused(both: Ends, n: int) -> None:
    (question,) = both.client.encrypt(X)
    with pytest.raises(PeerMisbehaved, match=f"a batch of {n}; one query takes up to {both.plan.max_batch}"):
        both.server.evaluate(n, 0, question)
    with pytest.raises(Misuse, match=f"a batch of {n}; one query takes up to {both.plan.max_batch}"):
        both.plan.cost(n)


def test_answers_that_are_missing_or_too_many_are_refused(both: Ends) -> None:
    (question,) = both.client.encrypt(X)
    answer = both.server.evaluate(1, 0, question)
    for answers in ([], [answer, answer]):
        with pytest.raises(PeerMisbehaved, match=f"{len(answers)} answers to a question of 1 parts"):
            both.client.decrypt(1, answers)


def modulus(data: bytes, n: int) -> bytes:
    return data[:ID_BYTES] + n.to_bytes(256, "big")


KEYS: dict[str, tuple[Change, str]] = {
    "empty": (lambda k, n: b"", "a public key of 0 bytes; one of 2048 bits has 272"),
    "short": (lambda k, n: k[:-1], "a public key of 271 bytes"),
    "long": (lambda k, n: k + b"\0", "a public key of 273 bytes"),
    "zero": (lambda k, n: modulus(k, 0), "a modulus of 0 bits where the plan asks for 2048"),
    "of 1024 bits": (lambda k, n: modulus(k, n >> 1024), "a modulus of 1024 bits"),
    "even": (lambda k, n: modulus(k, n - 1), "not a product of two different large primes"),
    "with a small factor": (lambda k, n: modulus(k, 1999 * ((n // 1999) | 1)), "not a product"),
    "a square": (lambda k, n: modulus(k, ((1 << 1023) + (1 << 1022) + 1155 * 2**30 + 1) ** 2), "not a product"),
}


@pytest.mark.parametrize("case", KEYS)
def test_a_malformed_key_is_refused(both: Ends, case: str) -> None:
    change, reason = KEYS[case]
    data = change(both.client.evaluation_keys(), int(both.client._key.public.n))
    with pytest.raises(PeerMisbehaved, match=reason):
        protocol().evaluator(both.plan, {"fc": OWN}, data)


def test_a_key_of_another_size_is_refused(both: Ends) -> None:
    plan = protocol().plan(both.plan.circuit, {"key_bits": 3072})
    with pytest.raises(PeerMisbehaved, match="a public key of 272 bytes; one of 3072 bits has 400"):
        protocol().evaluator(plan, {"fc": OWN}, both.client.evaluation_keys())


WEIGHTS: dict[str, tuple[dict[str, Weights], str]] = {
    "missing": ({}, "missing"),
    "of another shape": ({"fc": weights([[1, 2]], [0])}, "missing or of another shape"),
    "with a bias too many": ({"fc": Weights(OWN.weight, np.array([1, 2, 3], dtype=object))}, "of another shape"),
}


@pytest.mark.parametrize("case", WEIGHTS)
def test_weights_that_do_not_fit_the_plan_are_refused(both: Ends, case: str) -> None:
    given, reason = WEIGHTS[case]
    with pytest.raises(Misuse, match=reason):
        protocol().evaluator(both.plan, given, both.client.evaluation_keys())


def test_a_weight_outside_its_support_is_refused(both: Ends) -> None:
    support = np.array([[True, False], [True, True]])
    plan = protocol().plan(circuit(weights([[1, 0], [3, 4]], [5, 6]), support=support), {"key_bits": 2048})
    with pytest.raises(Misuse, match="a weight where its layer has none"):
        protocol().evaluator(plan, {"fc": OWN}, both.client.evaluation_keys())


CODES: dict[str, tuple[Any, str]] = {
    "floats": (np.zeros((1, 2)), "codes float64"),
    "a vector": (np.zeros(2, dtype=np.int64), r"takes int64 \(n, 2\)"),
    "too wide": (np.zeros((1, 3), dtype=np.int64), r"takes int64 \(n, 2\)"),
    "too low": (np.array([[0, -1]], dtype=np.int64), r"outside 0\.\.255"),
    "too high": (np.array([[256, 0]], dtype=np.int64), r"outside 0\.\.255"),
}


@pytest.mark.parametrize("case", CODES)
def test_codes_that_the_proof_does_not_cover_are_refused(both: Ends, case: str) -> None:
    codes, reason = CODES[case]
    with pytest.raises(Misuse, match=reason):
        both.client.encrypt(codes)


@pytest.mark.parametrize("key_bits", [0, 1024, 2049, 8192, True, "2048", [2048], 2048.0, None])
def test_a_key_size_that_is_not_offered_is_refused(key_bits: Any) -> None:
    with pytest.raises(BadParameters, match="there are 2048, 3072, 4096"):
        protocol().plan(circuit(OWN), {"key_bits": key_bits})


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(BadParameters, match="no option 'slots'"):
        protocol().plan(circuit(OWN), {"slots": 3})


def test_answers_wider_than_a_plaintext_are_refused() -> None:
    own = weights([[1]], [1 << 2100])
    with pytest.raises(BadParameters, match="'fc': answers of 2102 bits do not fit a plaintext of 2048"):
        protocol().plan(circuit(own), {"key_bits": 2048})
    assert protocol().plan(circuit(own), {"key_bits": 3072}).packing.slots == 1


def test_more_inputs_than_a_question_holds_are_refused() -> None:
    support = np.ones((1, 60000), dtype=bool)
    made = prove(0, 1, [("fc", support, Weights(np.ones((1, 60000), np.int64), np.array([0], dtype=object)))])
    with pytest.raises(BadParameters, match=r"60000 inputs.*1024 bytes.*48 MiB.*'bfv'"):
        protocol().plan(made, {"key_bits": 4096})


def test_a_plan_survives_its_journey(both: Ends) -> None:
    plan = protocol().read(json.loads(json.dumps(both.plan.to_json())))
    assert plan.cost(7) == both.plan.cost(7)
    assert plan.to_json() == both.plan.to_json()


@pytest.mark.parametrize(
    "change",
    [
        {"key_bits": 1024},
        {"key_bits": "2048"},
        {"key_bits": None},
        {"circuit": []},
        {"circuit": {}},
        {"circuit": {"low": 0, "high": 1, "stages": []}},
        {"more": 1},
    ],
)
def test_a_plan_that_nobody_made_is_refused(both: Ends, change: dict[str, Any]) -> None:
    with pytest.raises(BadParameters):
        protocol().read({**both.plan.to_json(), **change})
    with pytest.raises(BadParameters, match="has the fields"):
        protocol().read({})


@pytest.mark.parametrize(("key_bits", "strength"), [(2048, 112), (3072, 128), (4096, 152)])
def test_a_plan_says_how_strong_its_key_is(key_bits: int, strength: int) -> None:
    facts = protocol().plan(circuit(OWN), {"key_bits": key_bits}).facts()
    assert f"{strength}-bit security" in facts["security"]
    assert ("take key_bits = 3072" in facts["security"]) == (strength < 128)


def test_the_default_has_128_bits_of_security() -> None:
    assert protocol().plan(circuit(OWN)).key_bits == 3072
