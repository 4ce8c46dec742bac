"""Messages that no honest server or client sends, sent twice, late, cut, or to somebody else."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("flwr", reason="Flower needs Python 3.11 and the extra 'federated'")

from flowerkit import MemoryGrid, array, copied, message_to, moving_app, start_arrays, wait_for_nobody
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.app.error import Error
from flwr.serverapp.strategy import FedAvg

from pqi.federated import Private
from pqi.federated.flower import claims
from pqi.federated.flower.update import fingerprint
from pqi.federated.flower.wire import (
    BODY,
    HEAD,
    Answer,
    Question,
    add_question,
    answer_content,
    take_answer,
    take_question,
)
from protocols.errors import Misuse, PeerMisbehaved

STAGES = ("keys", "shares", "vectors", "unmask")


def run(grid: MemoryGrid, rounds: int = 1, **named: object) -> Private:
    private = wait_for_nobody(Private(FedAvg(fraction_evaluate=0.0), **named))
    private.start(grid, start_arrays(), num_rounds=rounds, timeout=0.0)
    return private


@pytest.mark.parametrize("stage", STAGES)
def test_a_question_that_comes_twice_is_answered_once(stage: str) -> None:
    grid = MemoryGrid(moving_app(), 4)
    again: list[Message] = []

    def twice(node: int, at: str, message: Message) -> Message:
        if node == 102 and at == stage:
            again.append(copied(message))
        return message

    grid.going = twice
    private = run(grid)
    assert private.rounds[0].included == 4 and grid.errors == []
    reply = grid.ask(102, again[0])
    # A first question brings its plan again; for the others, nothing of the run is left.
    assert reply.has_error()
    assert ("is answered once" if stage == "keys" else "in no run of that session") in grid.errors[0]


@pytest.mark.parametrize("stage", STAGES)
def test_two_processes_that_start_from_the_same_saved_state_give_one_answer(stage: str) -> None:
    grid = MemoryGrid(moving_app(), 4)
    second: list[Message] = []

    def race(node: int, at: str, message: Message) -> Message:
        if node == 102 and at == stage:
            saved = copied(grid.nodes[node].state)
            first = grid.ask(node, copied(message))
            grid.nodes[node].state = saved  # the second was handed the state of before
            second.append(grid.ask(node, copied(message)))
            assert not first.has_error()
        return message

    grid.going = race
    run(grid)
    assert second[0].has_error() and f"stage {stage!r} of this run was answered before" in str(second[0].error.reason)


def test_a_restored_state_from_before_does_not_give_a_second_vector_for_other_weights() -> None:
    grid = MemoryGrid(moving_app(), 4)
    kept: dict[str, object] = {}

    def keep(node: int, at: str, message: Message) -> Message:
        if node == 102 and at == "vectors":
            kept["state"], kept["question"] = copied(grid.nodes[node].state), copied(message)
        return message

    grid.going = keep
    run(grid)
    grid.nodes[102].state = kept["state"]
    grid.nodes[102].config["partition-id"] = 3  # other data would give another vector under the same mask
    trained = len(grid.trained)
    assert grid.ask(102, kept["question"]).has_error()
    assert len(grid.trained) == trained


Change = Callable[[Message], Message]


def _head(**changes: object) -> Change:
    def change(message: Message) -> Message:
        message.content[HEAD] = ConfigRecord({**message.content[HEAD], **changes})
        return message

    return change


def _body(data: bytes, stype: str = "pqi.bytes") -> Change:
    def change(message: Message) -> Message:
        message.content[BODY] = ArrayRecord({"payload": Array("uint8", (len(data),), stype, data)})
        return message

    return change


def _failed(message: Message) -> Message:
    message.__dict__.update(_content=None, _error=Error(2, "out of memory"))
    return message


def _without(name: str) -> Change:
    def change(message: Message) -> Message:
        del message.content[name]
        return message

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_head(stage="keys"), "another run or another stage"),
        (_head(session=bytes(16)), "another run or another stage"),
        (_head(session=b"short"), "a session has 16 bytes"),
        (_head(session="text"), "of type bytes"),
        (_head(kind="stage"), "of kind 'answer' was due"),
        (_head(stage=""), "1 to 64 characters"),
        (_without(HEAD), "one is missing"),
        (_without(BODY), "one is missing"),
        (_body(b"x", "numpy.ndarray"), "raw bytes"),
        (_failed, "out of memory"),
    ],
)
def test_an_answer_that_is_none_counts_as_a_dropout_and_is_named(change: Change, reason: str) -> None:
    grid = MemoryGrid(moving_app(), 4)
    grid.coming = lambda node, stage, message: change(message) if (node, stage) == (103, "shares") else message
    (record,) = run(grid).rounds
    assert record.included == 3 and list(record.lost) == [103]
    assert record.lost[103].startswith("shares: ") and reason in record.lost[103]


@pytest.mark.parametrize("aggregator", ["pairwise", "shares", "clear"])
@pytest.mark.parametrize("data", [b"", b"x", b"\xff" * 4096])
def test_a_vector_of_another_length_is_left_out_of_the_sum(aggregator: str, data: bytes) -> None:
    policy = {"aggregators": ("InsecureClear", "pairwise", "shares")}
    helped = {"simulated_helpers": {"aggregator-1": 4}} if aggregator == "shares" else {}
    grid = MemoryGrid(moving_app(**policy, **helped), 5)
    grid.coming = lambda node, stage, message: _body(data)(message) if (node, stage) == (103, "vectors") else message
    private = run(grid, aggregator=aggregator, threshold=3)
    (record,) = private.rounds
    assert record.failure is None and record.included == (3 if aggregator == "shares" else 4)
    assert record.total_weight == sum(100 * k for k in ((1, 2, 4) if helped else (1, 2, 4, 5)))


def test_answers_of_strangers_and_second_answers_are_not_heard() -> None:
    grid = MemoryGrid(moving_app(), 4)
    real = grid.send_and_receive

    def noisy(messages: object, *, timeout: float | None = None) -> list[Message]:
        replies = real(messages, timeout=timeout)
        if not replies:
            return []
        strange = copied(replies[0])
        strange.metadata.__dict__["_src_node_id"] = 999
        late = [_body(b"late")(copied(reply)) for reply in replies]
        return [strange, *replies, *late]

    grid.send_and_receive = noisy  # type: ignore[method-assign]
    (record,) = run(grid).rounds
    assert record.included == 4 and record.lost == {}


def test_the_answer_to_an_earlier_round_is_no_answer_to_this_one() -> None:
    grid = MemoryGrid(moving_app(), 4)
    early: dict[str, Message] = {}

    def replay(node: int, stage: str, message: Message) -> Message:
        if node != 103:
            return message
        if stage in early:
            return early[stage]
        early[stage] = copied(message)
        return message

    grid.coming = replay
    first, second = run(grid, rounds=2).rounds
    assert first.included == 4 and second.included == 3
    assert "another run or another stage" in second.lost[103]


def test_a_newer_run_replaces_an_older_one_and_evaluation_ends_it() -> None:
    grid = MemoryGrid(moving_app(), 4)
    sessions = []

    def stop(node: int, stage: str, message: Message) -> Message | None:
        return None if stage == "unmask" else message

    grid.going = stop
    for _ in range(2):
        run(grid)
        sessions.append({bytes(node.state["pqi.run"]["session"]) for node in grid.nodes.values()})
    assert [len(some) for some in sessions] == [1, 1] and sessions[0] != sessions[1]
    for node in grid.nodes:
        grid.ask(node, Message(RecordDict({"arrays": start_arrays()}), dst_node_id=node, message_type="evaluate"))
    assert all("pqi.run" not in node.state for node in grid.nodes.values())


def test_a_node_that_lost_its_state_says_so_and_is_left_out() -> None:
    grid = MemoryGrid(moving_app(), 4)

    def restart(node: int, stage: str, message: Message) -> Message:
        if (node, stage) == (102, "vectors"):
            grid.nodes[node].state = RecordDict()
        return message

    grid.going = restart
    (record,) = run(grid).rounds
    assert record.included == 3 and "in no run of that session" in record.lost[102]
    assert 102 in grid.trained and len(grid.trained) == 4  # it was asked, and refused before it trained


def test_a_client_cannot_be_asked_to_be_a_helper_nor_a_helper_a_client() -> None:
    grid = MemoryGrid(moving_app(), 5)
    grid.nodes[105].config["pqi-role"] = "aggregator-1"

    def swap(node: int, stage: str, message: Message) -> Message:
        if stage and node in (101, 105):
            changed = dict(message.content[HEAD])
            changed.pop("number", None)
            changed.pop("helper", None)
            changed |= {"helper": "aggregator-1"} if node == 101 else {"number": 1}
            message.content[HEAD] = ConfigRecord(changed)
        return message

    grid.going = swap
    run(grid, aggregator="shares")
    assert "this node is aggregator-1; it was asked to be a client" in grid.errors[0]
    grid.going = lambda node, stage, message: swap(node, stage, message) if node == 101 else message
    private = run(grid, aggregator="shares")
    assert "this node is a client; it was asked to be aggregator-1" in private.rounds[0].lost[101]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_head(number=1.5), "number in 'pqi.head' has to be of type int"),
        (_head(number=True), "has to be of type int, not bool"),
        (_head(upload=1), "upload in 'pqi.head' has to be of type bool"),
        (_head(plan=b"x"), "plan in 'pqi.head' has to be of type str"),
        (_head(stage="x" * 65), "1 to 64 characters"),
        (_head(kind="sum"), "a message of a kind that is not known here"),
        (_without(BODY), "one is missing"),
    ],
)
def test_a_question_that_is_none_is_refused(change: Change, reason: str) -> None:
    grid, content = MemoryGrid(moving_app(), 1), RecordDict()
    add_question(content, Question(bytes(16), "keys", 0, b"abc"))
    grid.ask(101, change(message_to(101, content)))
    assert reason in grid.errors[0]


def test_questions_and_answers_survive_flowers_bytes_and_hide_their_payload_from_print() -> None:
    content = RecordDict({"arrays": start_arrays()})
    question = Question(bytes(range(16)), "vectors", "key-holder", b"secret payload", True, "{}")
    add_question(content, question)
    arrived = copied(content)
    assert take_question(arrived) == question and set(arrived) == {"arrays"}
    answer = Answer(bytes(16), "vectors", b"secret payload")
    assert take_answer(copied(answer_content(answer))) == answer
    assert "secret" not in repr(question) + repr(answer) and "14 bytes" in repr(answer)


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"weight": np.zeros((2, 5), np.float32)}, "given 2 arrays (weight, bias) and returned 1"),
        ({"weight": np.zeros((5, 2), np.float32), "bias": np.zeros(5, np.float32)}, "came back with (5, 2)"),
        ({"weight": np.full((2, 5), np.nan, np.float32), "bias": np.zeros(5, np.float32)}, "not finite"),
        ({"bias": np.zeros(5, np.float32), "weight": np.zeros((2, 5), np.float32)}, "in the same order"),
    ],
)
def test_a_train_function_that_returns_another_model_is_left_out(
    arrays: dict[str, np.ndarray], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import flowerkit

    grid, ordinary = MemoryGrid(moving_app(), 4), flowerkit.ArrayRecord
    grid.nodes[104].config["partition-id"] = 100

    def returned(moved: dict[str, Array]) -> ArrayRecord:
        return ordinary({n: Array(a) for n, a in arrays.items()} if moved["bias"].numpy()[0] > 10 else moved)

    monkeypatch.setattr(flowerkit, "ArrayRecord", returned)
    (record,) = run(grid).rounds
    assert record.included == 3 and reason in record.lost[104]


def test_claims_are_taken_once_and_swept_after_a_day(tmp_path: Path) -> None:
    claims.claim(tmp_path, 1, b"s" * 16, "keys")
    for other in ((2, b"s" * 16, "keys"), (1, b"t" * 16, "keys"), (1, b"s" * 16, "unmask")):
        claims.claim(tmp_path, *other)
    with pytest.raises(PeerMisbehaved, match="stage 'keys' of this run was answered before"):
        claims.claim(tmp_path, 1, b"s" * 16, "keys")
    assert sorted(path.name for path in tmp_path.iterdir()) == [(b"s" * 16).hex(), (b"t" * 16).hex()]
    assert all(path.read_bytes() == b"" for path in tmp_path.glob("*/*"))
    yesterday = time.time() - claims.KEPT_SECONDS - 1
    os.utime(tmp_path / (b"s" * 16).hex(), (yesterday, yesterday))
    claims.claim(tmp_path, 1, b"u" * 16, "keys")
    assert sorted(path.name for path in tmp_path.iterdir()) == [(b"t" * 16).hex(), (b"u" * 16).hex()]


def test_claims_in_somebody_elses_folder_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: own + 1)
    with pytest.raises(Misuse, match="belongs to another user"):
        claims.claim(tmp_path, 1, bytes(16), "keys")
    assert claims.default_folder().name == f"pqi-claims-{own + 1}"


def test_a_fingerprint_survives_flowers_bytes_and_depends_on_every_record() -> None:
    config = {"lr": 0.1, "b": 1, "a": True, "name": "x", "raw": b"y", "many": [1.5, 2.0], "words": ["u", "v"]}
    content = RecordDict({"config": ConfigRecord(config), "arrays": start_arrays()})
    whole = fingerprint(content)
    assert fingerprint(copied(content)) == whole
    for name, value in {"lr": 0.2, "b": 2, "a": False, "name": "z", "raw": b"", "many": [1.5], "words": ["u"]}.items():
        assert fingerprint(RecordDict({**content, "config": ConfigRecord({**config, name: value})})) != whole
    assert fingerprint(RecordDict({**content, "more": ConfigRecord()})) != whole
    other = ArrayRecord({**start_arrays(), "bias": array(np.ones(5, np.float32))})
    assert fingerprint(RecordDict({**content, "arrays": other})) != whole
