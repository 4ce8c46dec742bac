"""Messages that no honest party sends, at the wrong time, twice, or to the wrong one: refused, and nothing changes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import protocols
from protocols.aggregation import Ask, SumClient, SumPlan
from protocols.aggregation_local import sum_here
from protocols.errors import BelowThreshold, Misuse, PeerMisbehaved
from protocols.labels import LABEL_BYTES, labelled
from protocols.pairwise import keys, wire
from protocols.pairwise.wire import STAGES

PAIRWISE = protocols.get_sum("pairwise")
PLAN = PAIRWISE.plan(5, 6, 16, 3)
ROWS = [np.full(6, 1000 * (i + 1), np.uint16) for i in range(5)]
Change = Callable[[bytes], bytes]


class Run:
    """All parties of one run, stepped by hand; asks[stage] and answers[stage] are what was said."""

    def __init__(self, until: str, plan: SumPlan = PLAN) -> None:
        self.plan, self.asks, self.answers = plan, dict[str, Ask](), dict[str, dict[int, bytes]]()
        self.clients: list[SumClient] = [PAIRWISE.client(plan, i) for i in range(plan.clients)]
        self.server = PAIRWISE.server(plan)
        ask = next(self.server)
        self.asks[ask.stage] = ask
        while ask.stage != until:
            self.answers[ask.stage] = {i: self.say(i, ask.stage) for i in range(plan.clients)}
            ask = self.server.send(dict(self.answers[ask.stage]))
            self.asks[ask.stage] = ask

    def say(self, client: int, stage: str, message: bytes | None = None) -> bytes:
        message = self.asks[stage].messages[client] if message is None else message
        if stage == "vectors":
            return self.clients[client].upload(stage, message, ROWS[client])
        return self.clients[client].answer(stage, message)

    def relabelled(self, stage: str, client: int, body: bytes) -> bytes:
        return labelled(self.plan, stage, client, "ask", body)


CHANGES: dict[str, Change] = {
    "empty": lambda m: b"",
    "one byte short": lambda m: m[:-1],
    "one byte long": lambda m: m + b"\0",
    "without its label": lambda m: m[:-LABEL_BYTES],
    "twice its length": lambda m: m + m,
    "a megabyte": lambda m: bytes(1 << 20),
}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("change", CHANGES)
def test_a_client_refuses_a_malformed_message_and_answers_the_true_one_afterwards(stage: str, change: str) -> None:
    run = Run(stage)
    with pytest.raises(PeerMisbehaved, match=f"stage '{stage}'"):
        run.say(1, stage, CHANGES[change](run.asks[stage].messages[1]))
    assert len(run.say(1, stage)) == wire.sizes(PLAN, 4)[stage][1]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("change", CHANGES)
def test_whose_answer_is_malformed_counts_as_dropped(stage: str, change: str, caplog: pytest.LogCaptureFixture) -> None:
    def tamper(at: str, party: int | str, direction: str, message: bytes) -> bytes:
        return CHANGES[change](message) if (at, party, direction) == (stage, 2, "answer") else message

    found = sum_here(PAIRWISE, PAIRWISE.plan(5, 6, 16, 3), ROWS, tamper=tamper)
    assert found.included == ({0, 1, 2, 3, 4} if stage == "unmask" else {0, 1, 3, 4})
    assert found.values.tolist() == [sum(1000 * (i + 1) for i in found.included)] * 6
    assert f"client 2 is left out in stage '{stage}'" in caplog.text


@settings(max_examples=30)
@given(st.data(), st.sampled_from(STAGES), st.integers(0, 300))
def test_any_length_is_survived_by_the_server(data: st.DataObject, stage: str, length: int) -> None:
    noise = data.draw(st.binary(min_size=length, max_size=length))

    def tamper(at: str, party: int | str, direction: str, message: bytes) -> bytes:
        return noise if (at, party, direction) == (stage, 4, "answer") else message

    found = sum_here(PAIRWISE, PAIRWISE.plan(5, 6, 16, 3), ROWS, tamper=tamper)
    assert found.values.tolist() == [sum(1000 * (i + 1) for i in found.included)] * 6


@pytest.mark.parametrize("until", STAGES)
@pytest.mark.parametrize("said", STAGES)
def test_a_client_answers_no_stage_but_the_one_that_is_due(until: str, said: str) -> None:
    if said == until:
        return
    run, later = Run(until), Run(said)
    with pytest.raises(PeerMisbehaved, match=f"asked for stage '{said}', but waits for '{until}'"):
        run.say(0, said, later.asks[said].messages[0])
    run.say(0, until)


@pytest.mark.parametrize("stage", STAGES)
def test_a_duplicated_question_is_refused_restored_or_not(stage: str) -> None:
    run = Run(stage)
    run.say(3, stage)
    for _ in range(2):
        with pytest.raises(PeerMisbehaved, match=r"answered (once|twice)"):
            run.say(3, stage)
        run.clients[3] = PAIRWISE.restore_client(PLAN, 3, run.clients[3].expose_state())


def test_a_client_uploads_once_and_unmasks_once() -> None:
    run = Run("unmask")
    with pytest.raises(PeerMisbehaved, match="waits for 'unmask'"):
        run.say(0, "vectors")
    run.say(0, "unmask")
    everybody_dropped = run.relabelled("unmask", 0, b"\0")
    for message in (run.asks["unmask"].messages[0], everybody_dropped):
        with pytest.raises(PeerMisbehaved, match="this run is over"):
            run.say(0, "unmask", message)


@pytest.mark.parametrize("stage", STAGES)
def test_a_message_to_another_client_is_refused(stage: str) -> None:
    run = Run(stage)
    with pytest.raises(PeerMisbehaved, match="misrouted"):
        run.say(0, stage, run.asks[stage].messages[1])


@pytest.mark.parametrize("stage", STAGES)
def test_a_message_of_another_run_is_refused(stage: str) -> None:
    run, other = Run(stage), Run(stage, PAIRWISE.plan(5, 6, 16, 3))
    with pytest.raises(PeerMisbehaved, match="another session"):
        run.say(0, stage, other.asks[stage].messages[0])


@pytest.mark.parametrize("stage", STAGES)
def test_a_late_answer_or_anothers_answer_leaves_its_sender_out(stage: str) -> None:
    before = STAGES[max(0, STAGES.index(stage) - 1)]
    run, plan = Run(stage), PLAN
    answers = {i: run.say(i, stage) for i in range(5)}
    answers[0] = answers[1] if stage == before else run.answers[before][0]
    if stage == "unmask":
        with pytest.raises(StopIteration) as end:
            run.server.send(answers)
        assert end.value.value.values.tolist() == [15000] * 6
    else:
        assert set(run.server.send(answers).messages) == {1, 2, 3, 4}
    assert plan.threshold == 3


def test_answers_of_nobody_who_was_asked_are_not_read() -> None:
    run = Run("shares")
    answers = {i: run.say(i, "shares") for i in range(5)}
    assert set(run.server.send({**answers, 17: b"", "helper": b""}).messages) == set(range(5))


@pytest.mark.parametrize("stage", ["shares", "vectors", "unmask"])
def test_a_client_refuses_to_go_on_with_too_few(stage: str) -> None:
    run = Run(stage)
    sizes = {"shares": 64, "vectors": 92, "unmask": 0}
    alone = run.relabelled(stage, 0, b"\x01" + bytes(range(sizes[stage])))
    with pytest.raises(PeerMisbehaved, match="1 neighbours are left besides client 0, and 3 are needed"):
        run.say(0, stage, alone)


@pytest.mark.parametrize("stage", ["vectors", "unmask"])
def test_nobody_joins_later(stage: str) -> None:
    """Client 4 was gone before: naming it asks for a share of it, or for a mask that it does not have."""
    plan = PLAN
    run = Run("keys")
    run.answers["keys"] = {i: run.say(i, "keys") for i in range(4)}
    ask = run.server.send(dict(run.answers["keys"]))
    while ask.stage != stage:
        run.asks[ask.stage] = ask
        ask = run.server.send({i: run.say(i, ask.stage) for i in range(4)})
    body = ask.messages[0][:-LABEL_BYTES]
    with pytest.raises(PeerMisbehaved, match=r"clients \[4\] were not there before"):
        run.say(0, stage, labelled(plan, stage, 0, "ask", bytes([body[0] | 8]), body[1:]))
    with pytest.raises(PeerMisbehaved, match="bits behind its end"):
        run.say(0, stage, labelled(plan, stage, 0, "ask", bytes([body[0] | 16]), body[1:]))


def test_of_each_client_a_share_of_one_secret_is_given_up() -> None:
    run = Run("unmask")
    held = run.clients[0]._state.held  # type: ignore[attr-defined]
    answer = run.say(0, "unmask", run.relabelled("unmask", 0, b"\x03"))  # 1 and 2 arrived, 3 and 4 did not
    given_up = wire.cut(memoryview(answer)[1:-LABEL_BYTES], 32)
    assert given_up == [held[0][1], held[1][1], held[2][1], held[3][0], held[4][0]]
    assert not run.clients[0]._state.held  # type: ignore[attr-defined]


def test_keys_that_agree_on_zero_and_copied_keys_leave_their_client_out() -> None:
    for wrong in (bytes(32), b"\x01" + bytes(31), None):
        run = Run("keys")
        answers = {i: run.say(i, "keys") for i in range(5)}
        key = answers[0][32:64] if wrong is None else wrong
        answers[4] = key + answers[4][32:]
        assert set(run.server.send(answers).messages) == {0, 1, 2, 3}


def test_a_client_refuses_two_equal_keys_and_keys_that_agree_on_zero() -> None:
    run = Run("shares")
    body = run.asks["shares"].messages[0][:-LABEL_BYTES]
    with pytest.raises(PeerMisbehaved, match="two of the public keys are the same"):
        run.say(0, "shares", run.relabelled("shares", 0, body[:33] + body[1:33] + body[65:]))
    with pytest.raises(PeerMisbehaved, match="small order"):
        run.say(0, "shares", run.relabelled("shares", 0, body[:1] + bytes(32) + body[33:]))
    run.say(0, "shares")


def test_sealed_shares_that_do_not_open_are_not_given_up_and_the_others_are_enough() -> None:
    def tamper(at: str, party: int | str, direction: str, message: bytes) -> bytes:
        # What client 0 sealed to client 1 is spoilt on its way.
        spoilt = (at, party, direction) == ("shares", 0, "answer")
        return bytes([message[0] ^ 1]) + message[1:] if spoilt else message

    for missing, included in ((None, range(5)), ({"vectors": {0}}, range(1, 5)), ({"unmask": {4}}, range(5))):
        found = sum_here(PAIRWISE, PAIRWISE.plan(5, 6, 16, 3), ROWS, missing, tamper)
        assert found.values.tolist() == [sum(1000 * (i + 1) for i in included)] * 6
    with pytest.raises(BelowThreshold, match="2 holders of client 0's shares are left, and 3 are needed"):
        sum_here(PAIRWISE, PAIRWISE.plan(5, 6, 16, 3), ROWS, {"vectors": {0, 4}, "unmask": set()}, tamper)


def test_sealed_shares_are_bound_to_session_sender_and_receiver() -> None:
    key, plain = bytes(16), b"two shares"
    sealed = keys.seal(key, plain, PLAN.session, 1, 2)
    assert keys.unseal(key, sealed, PLAN.session, 1, 2) == plain
    for session, sender, receiver in ((bytes(16), 1, 2), (PLAN.session, 2, 1), (PLAN.session, 1, 3)):
        assert keys.unseal(key, sealed, session, sender, receiver) is None
    assert keys.seal(key, plain, PLAN.session, 1, 2) != sealed


@pytest.mark.parametrize("missing", [{}, {"vectors": {0}}])
def test_a_changed_share_gives_no_sum_rather_than_a_wrong_one(missing: dict[str, set[int]]) -> None:
    def tamper(at: str, party: int | str, direction: str, message: bytes) -> bytes:
        if (at, party, direction) != ("unmask", 1, "answer"):
            return message
        return message[:33] + bytes([message[33] ^ 1]) + message[34:]  # its share of client 0

    with pytest.raises(PeerMisbehaved, match="shares of client 0's secret do not give what it advertised"):
        sum_here(PAIRWISE, PAIRWISE.plan(5, 6, 16, 3), ROWS, missing, tamper)


def test_shares_of_strangers_are_refused() -> None:
    run = Run("keys")
    ask = run.server.send({i: run.say(i, "keys") for i in range(4)})
    while ask.stage != "unmask":
        run.asks[ask.stage] = ask
        ask = run.server.send({i: run.say(i, ask.stage) for i in range(4)})
    run.asks["unmask"] = ask
    answers = {i: run.say(i, "unmask") for i in range(4)}
    answers[0] = labelled(PLAN, "unmask", 0, "answer", bytes([15]), bytes(32 * 5))
    with pytest.raises(StopIteration) as end:
        run.server.send(answers)
    assert end.value.value.values.tolist() == [10000] * 6


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.zeros(5, np.uint16), r"unsigned integers \(6,\)"),
        (np.zeros((6, 1), np.uint16), r"unsigned integers \(6,\)"),
        (np.zeros(6, np.int16), "not int16"),
        (np.zeros(6, np.float32), "not float32"),
        (np.full(6, 1 << 16, np.uint32), r"not below 2\^16"),
    ],
)
def test_a_vector_of_another_shape_or_kind_is_not_uploaded(values: np.ndarray, reason: str) -> None:
    run = Run("vectors")
    with pytest.raises(Misuse, match=reason):
        run.clients[0].upload("vectors", run.asks["vectors"].messages[0], values)
    run.say(0, "vectors")


def test_upload_and_answer_are_not_confused() -> None:
    run = Run("vectors")
    with pytest.raises(Misuse, match=r"answered by upload\(\)"):
        run.clients[0].answer("vectors", run.asks["vectors"].messages[0])
    with pytest.raises(Misuse, match="not in 'keys'"):
        run.clients[0].upload("keys", b"", ROWS[0])
    with pytest.raises(PeerMisbehaved, match="asked for stage 'tea'"):
        run.clients[0].answer("tea", b"")


def test_a_state_of_another_client_run_or_form_is_refused() -> None:
    for stage in STAGES:
        run = Run(stage)
        state = run.clients[0].expose_state()
        PAIRWISE.restore_client(PLAN, 0, state)
        for plan, number, data, reason in (
            (PLAN, 1, state, "not the state of client 1"),
            (PAIRWISE.plan(5, 6, 16, 3), 0, state, "not the state of client 0"),
            (PLAN, 0, state[:-5], "cut off or changed"),
            (PLAN, 0, b"[]", "cut off or changed"),
            (PLAN, 0, state.replace(stage.encode(), b"tea"), "lacks what its stage needs"),
        ):
            with pytest.raises(Misuse, match=reason):
                PAIRWISE.restore_client(plan, number, data)


def test_numbers_outside_the_run_are_refused() -> None:
    with pytest.raises(Misuse, match="client 5 of 5"):
        PAIRWISE.client(PLAN, 5)


def test_a_client_and_its_state_show_nothing() -> None:
    client = Run("vectors").clients[0]
    for secret in (client, client._state):  # type: ignore[attr-defined]
        assert "hidden" in repr(secret)
        with pytest.raises(Misuse):
            bool(secret)
