"""What comes from the other side is judged, and what leaves says no more than it must."""

from __future__ import annotations

import copy
import gc
import pickle
import subprocess
import sys
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import pytest
import tenseal.sealapi as seal
from bfvkit import BFV, codes, network

from protocols.bfv.client import BfvKeys
from protocols.bfv.plan import BfvPlan
from protocols.bfv.server import BfvEvaluator
from protocols.bfv.weights import Prepared
from protocols.circuit import Circuit, Owned
from protocols.clear.circuit import define_circuit
from protocols.errors import Misuse, PeerMisbehaved
from protocols.lattice import wire
from protocols.lattice.context import ID_BYTES


@dataclass(frozen=True)
class Session:
    circuit: Circuit
    owned: Owned
    plan: BfvPlan
    holder: BfvKeys
    keys: bytes
    evaluator: BfvEvaluator

    def ask(self, x: Any) -> tuple[list[bytes], list[bytes]]:
        questions = self.holder.encrypt(x)
        return questions, [self.evaluator.evaluate(len(x), i, q) for i, q in enumerate(questions)]


@pytest.fixture(scope="module")
def session() -> Session:
    circuit, owned = network((8, 6, 3), weight_bits=4)
    plan = BFV.plan(circuit)
    holder = BfvKeys(plan)
    keys = holder.evaluation_keys()
    evaluator = BFV.evaluator(plan, owned, keys)
    assert isinstance(evaluator, BfvEvaluator)
    return Session(circuit, owned, plan, holder, keys, evaluator)


@pytest.mark.parametrize("n", [1, 100])
def test_a_question_of_the_wrong_length_is_refused_and_the_server_keeps_serving(session: Session, n: int) -> None:
    good = bytes(session.plan.cost(n).questions[0])
    for wrong in (b"", good[:-1], good + b"\0", good[:ID_BYTES]):
        with pytest.raises(PeerMisbehaved, match=f"part 0 of a question of {n} inputs has {len(wrong)} bytes"):
            session.evaluator.evaluate(n, 0, wrong)
    x = codes(session.circuit, 1)
    _, answers = session.ask(x)
    opened = session.holder.decrypt(1, answers)
    assert np.array_equal(opened.exact, define_circuit(session.circuit, session.owned, x))  # type: ignore[arg-type]


def test_a_question_under_other_keys_is_refused(session: Session) -> None:
    other = BfvKeys(session.plan)
    question = other.encrypt(codes(session.circuit, 1))[0]
    with pytest.raises(PeerMisbehaved, match="names other keys than this session's"):
        session.evaluator.evaluate(1, 0, question)


def test_an_answer_from_another_session_is_refused(session: Session) -> None:
    other = BfvKeys(session.plan)
    _, answers = session.ask(codes(session.circuit, 1))
    with pytest.raises(PeerMisbehaved, match="belongs to another session"):
        other.decrypt(1, answers)


def test_a_residue_out_of_range_is_refused(session: Session) -> None:
    question = bytearray(session.holder.encrypt(codes(session.circuit, 1))[0])
    question[ID_BYTES : ID_BYTES + 64] = b"\xff" * 64
    with pytest.raises(PeerMisbehaved, match="part 0 of a question of 1 inputs is refused"):
        session.evaluator.evaluate(1, 0, bytes(question))


@pytest.mark.parametrize(("n", "part"), [(0, 0), (-1, 0), (1 << 40, 0), (1, -1), (1, 99)])
def test_a_part_that_does_not_exist_is_refused(session: Session, n: int, part: int) -> None:
    with pytest.raises(PeerMisbehaved):
        session.evaluator.evaluate(n, part, b"")


def test_keys_of_another_plan_are_refused(session: Session) -> None:
    circuit, _ = network((40, 6, 3), weight_bits=8)
    foreign = BFV.key_holder(BFV.plan(circuit)).evaluation_keys()
    for wrong in (foreign, session.keys[:-1], session.keys + b"x", b""):
        with pytest.raises(PeerMisbehaved, match="the message of evaluation keys has"):
            BFV.evaluator(session.plan, session.owned, wrong)


def test_keys_out_of_range_are_refused_when_they_arrive(session: Session) -> None:
    keys = bytearray(session.keys)
    keys[ID_BYTES : ID_BYTES + 64] = b"\xff" * 64
    with pytest.raises(PeerMisbehaved, match="public key is refused"):
        BFV.evaluator(session.plan, session.owned, bytes(keys))


def test_keys_that_are_noise_give_no_answer_and_no_crash(session: Session) -> None:
    sizes = session.plan.keys.sizes
    keys = session.keys[: sum(sizes[:2])] + bytes(sum(sizes[2:]))
    evaluator = BFV.evaluator(session.plan, session.owned, keys)
    x = codes(session.circuit, 1)
    answers = [evaluator.evaluate(1, i, q) for i, q in enumerate(session.holder.encrypt(x))]
    with pytest.raises(Exception, match=r"noise budget|more than the") as caught:
        session.holder.decrypt(1, answers)
    assert type(caught.value).__name__ in ("NoiseExhausted", "PeerMisbehaved")


def test_answers_of_wrong_number_or_length_are_refused(session: Session) -> None:
    _, answers = session.ask(codes(session.circuit, 1))
    with pytest.raises(PeerMisbehaved, match="answers to a question of"):
        session.holder.decrypt(1, answers[:-1])
    with pytest.raises(PeerMisbehaved, match=r"the answer to samples 0\.\.0, plain prime 0 has"):
        session.holder.decrypt(1, [answers[0][:-1], *answers[1:]])


def test_an_answer_that_the_circuit_cannot_give_is_refused(session: Session) -> None:
    final = session.plan.run("single").final
    plain, ciphertext = seal.Plaintext(), seal.Ciphertext()
    answers, most = [], prod(parameters.plain for parameters in session.plan.parameters) // 2
    for index in range(len(session.plan.parameters)):
        made = session.holder._contexts[index]
        made.encoder.encode([most % made.parameters.plain] * session.plan.degree, plain)
        session.holder._secret.encryptor(index).encrypt_symmetric(plain, ciphertext)
        made.evaluator.mod_switch_to_inplace(ciphertext, list(made.levels[final].parms_id))
        answers.append(session.holder._secret.name + wire.dump(ciphertext, made.levels[final]))
    with pytest.raises(PeerMisbehaved, match=f"more than the {session.circuit.bits} bits"):
        session.holder.decrypt(1, answers)


def test_the_same_input_never_gives_the_same_question_or_answer(session: Session) -> None:
    x = codes(session.circuit, 1)
    (first, *_), (again, *_) = session.ask(x), session.ask(x)
    for one, other in zip(first, again, strict=True):
        assert one[:ID_BYTES] == other[:ID_BYTES]
        assert np.mean(np.frombuffer(one[ID_BYTES:], "u1") == np.frombuffer(other[ID_BYTES:], "u1")) < 0.3
    question = first[0]
    one, other = (session.evaluator.evaluate(1, 0, question) for _ in range(2))
    assert np.mean(np.frombuffer(one[ID_BYTES:], "u1") == np.frombuffer(other[ID_BYTES:], "u1")) < 0.3


@pytest.mark.parametrize("n", [1, 2, 40])
def test_slots_beyond_the_answer_hold_nothing_but_random_values(session: Session, n: int) -> None:
    _, answers = session.ask(codes(session.circuit, n))
    part, context = session.plan.parts(n)[0], session.holder._contexts[0]
    level = context.levels[session.plan.run(part.packing).final]
    _, body, *_ = wire.cut(answers[0], session.plan.answer_sizes(part.packing), "an answer")
    plain = seal.Plaintext()
    session.holder._decryptors[0].decrypt(wire.load(context.seal, level, body, "an answer"), plain)
    slots = np.array(context.encoder.decode_uint64(plain)).reshape(2, -1)
    unused = slots.reshape(-1)[n:] if part.packing == "batch" else slots[:, session.circuit.outputs :].reshape(-1)
    if part.packing == "single" and n == 1:
        unused = np.concatenate([unused, slots[1, : session.circuit.outputs]])
    t = context.parameters.plain
    counts = np.bincount((unused * 8 // t).astype(np.int64), minlength=8)
    assert np.abs(counts - len(unused) / 8).max() < 6 * (len(unused) / 8) ** 0.5


def test_a_server_never_loads_what_makes_or_holds_a_secret_key() -> None:
    code = (
        "import sys; from protocols.bfv.protocol import Bfv; import protocols.bfv.server; Bfv(); "
        "print(*[m for m in ('protocols.bfv.client', 'protocols.lattice.secret') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == ""


def test_nothing_that_the_server_holds_is_a_secret_key(session: Session) -> None:
    secret_kinds = (seal.SecretKey, seal.KeyGenerator, seal.Decryptor, BfvKeys)
    seen: set[int] = set()
    todo: list[Any] = [session.evaluator]
    while todo:
        item = todo.pop()
        if id(item) in seen or isinstance(item, type):
            continue
        seen.add(id(item))
        assert not isinstance(item, secret_kinds)
        todo += [held for held in gc.get_referents(item) if not isinstance(held, type) and not callable(held)]
    assert len(seen) > 20


def test_ends_refuse_to_be_shown_copied_or_pickled(session: Session) -> None:
    prepared = session.evaluator._prepared
    assert isinstance(prepared, Prepared)
    assert repr(session.holder) == "<BfvKeys: hidden>"
    assert repr(prepared) == "<Prepared: hidden>"
    for thing in (session.holder, prepared):
        for show in (pickle.dumps, copy.copy, bool):
            with pytest.raises(Misuse):
                show(thing)  # type: ignore[operator]


def test_no_error_quotes_the_input(session: Session) -> None:
    secret = np.full((1, session.circuit.inputs), 777777)
    with pytest.raises(Misuse) as caught:
        session.holder.encrypt(secret)
    assert "777777" not in str(caught.value)
