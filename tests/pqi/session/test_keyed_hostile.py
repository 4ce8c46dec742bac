"""The server of a keyed protocol outlives what it is sent and the deaths of its workers; others are served."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keyedkit
import pytest
from keyedkit import BREAKS, DIES, MAGIC, Deployment, affine_model, deployment, inputs, options, same, starting_with

from pqi.net.channel import Channel
from pqi.net.errors import NetError, PeerReported
from pqi.net.frames import MIB, Limits
from pqi.net.hello import Hello, greet
from pqi.net.tls import TlsFiles, context, dial
from pqi.session.bundle import load_client, load_server
from pqi.session.errors import BundleError, QueryFailed, SessionError
from pqi.session.keyed.server import KeyedOptions, KeyedServer
from pqi.session.keyed.words import KEY_CHUNK
from pqi.session.material import new_id
from protocols.errors import PeerMisbehaved

KEYS = KEY_CHUNK + 100
GOOD = MAGIC + b"t" * 16 + bytes(KEYS - len(MAGIC) - 16)


@pytest.fixture(scope="module", autouse=True)
def protocols_of_the_kit() -> Iterator[None]:
    with keyedkit.registered():
        yield


@pytest.fixture(scope="module")
def running(protocols_of_the_kit: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with deployment(tmp_path_factory.mktemp("hostile"), bounds=options(max_batch=8), key_bytes=KEYS) as made:
        yield made


@pytest.fixture(autouse=True)
def another_client_is_served(running: Deployment) -> Iterator[None]:
    """One that was there before and stays connected."""
    with running.client() as client:
        client.predict(inputs(1))
        yield
        answer = client.predict(inputs(3))
        assert same(answer, affine_model(), inputs(3))
        assert answer.ledger.own is not None and answer.ledger.own.key_bytes == 0


def introduced(running: Deployment, role: str = "client") -> Channel:
    files = TlsFiles.in_directory(running.directory / role / "tls")
    secured = dial(running.server.address, context(files, server_side=False), "server_a", 5)
    channel = Channel(*secured, Limits(1 << 20, 1 << 26))
    bundle = load_client(running.directory / "client")
    greet(channel, Hello(role, bundle.deployment, bundle.program.digest, new_id()), 5)
    return channel


def with_keys(running: Deployment, keys: bytes = GOOD) -> Channel:
    """A connection over which keys were sent, whole."""
    channel = introduced(running)
    channel.send_control({"kind": "keys", "query": 0, "length": len(keys)}, 5, "keys")
    for at in range(0, len(keys), KEY_CHUNK):
        channel.send_binary(keys[at : at + KEY_CHUNK], 5, "keys")
    return channel


def known(running: Deployment, n: int = 1) -> Channel:
    """A connection with good keys, and "ready" for a query of n."""
    channel = with_keys(running)
    channel.receive_control(10, "word", "keys-known")
    channel.send_control({"kind": "query", "query": 1, "n": n}, 5, "a query")
    channel.receive_control(10, "ready", "ready")
    return channel


def refused(channel: Channel, says: str) -> None:
    """The server states the cause and closes."""
    with channel, pytest.raises(PeerReported, match=says):
        while True:
            channel.receive_control(10, "a refusal")


@pytest.mark.parametrize("length", [0, KEYS - 1, KEYS + 1, 1 << 32])
def test_keys_of_another_length_are_refused_before_a_byte_of_them_is_taken(running: Deployment, length: int) -> None:
    channel = introduced(running)
    channel.send_control({"kind": "keys", "query": 0, "length": length}, 5, "keys")
    refused(channel, f"evaluation keys of {length} bytes; this program's have {KEYS}. Nothing was taken")


@pytest.mark.parametrize("length", [None, -1, True, "many", 1 << 40])
def test_a_length_that_is_none_is_refused(running: Deployment, length: Any) -> None:
    channel = introduced(running)
    channel.send_control({"kind": "keys", "query": 0, "length": length}, 5, "keys")
    refused(channel, "field 'length' of message 'keys'")


def test_a_frame_of_keys_that_is_too_large_is_refused_from_its_header(running: Deployment) -> None:
    channel = introduced(running)
    channel.send_control({"kind": "keys", "query": 0, "length": KEYS}, 5, "keys")
    channel._sock.write(b"PQIF\x01\x02\x00\x00\xff\xff\xff\xff")
    channel._sock.flush()
    refused(channel, "a binary frame of 4294967295 bytes; the limit on this link is")


def test_keys_cut_into_other_frames_are_refused_with_both_lengths(running: Deployment) -> None:
    channel = introduced(running)
    channel.send_control({"kind": "keys", "query": 0, "length": KEYS}, 5, "keys")
    channel.send_binary(GOOD[:10], 5, "keys")
    refused(channel, f"10 bytes for its evaluation keys; {KEY_CHUNK} are declared")


@pytest.mark.parametrize("keys", [bytes(KEYS), b"\xff" * KEYS, GOOD[:-1] + b"\1"])
def test_keys_of_wrong_parameters_are_refused_with_the_protocol_s_reason(running: Deployment, keys: bytes) -> None:
    refused(with_keys(running, keys), "these are no keys of this plan")


def test_a_query_without_keys_is_answered_with_a_wish_for_them(running: Deployment) -> None:
    with introduced(running) as channel:
        channel.send_control({"kind": "query", "query": 1, "n": 1}, 5, "a query")
        assert channel.receive_control(5, "a wish")["kind"] == "keys-wanted"


@pytest.mark.parametrize("length", [0, 1, 63, 65, MIB])
def test_a_part_of_another_length_is_refused_before_it_is_read(running: Deployment, length: int) -> None:
    channel = known(running)
    channel.send_binary(bytes(length), 5, "a part")
    refused(channel, f"{length} bytes.*(64 are declared|the limit on this link is 64)")


def test_a_question_under_another_key_is_refused(running: Deployment) -> None:
    channel = known(running)
    channel.send_binary(b"u" * 16 + bytes(48), 5, "a part")
    refused(channel, "a question that was encrypted under another key")


def test_a_failure_in_one_part_ends_a_query_whose_other_parts_were_good(running: Deployment) -> None:
    channel = known(running, 8)
    channel.send_binary(b"t" * 16 + bytes(48 * 4), 5, "a good part")
    channel.send_binary(b"u" * 16 + bytes(48 * 4), 5, "a bad part")
    refused(channel, "encrypted under another key")


def test_a_control_message_where_a_part_is_due_is_refused(running: Deployment) -> None:
    channel = known(running)
    channel.send_control({"kind": "query", "query": 2, "n": 1}, 5, "another query")
    refused(channel, "message 'query' while this side waits for part 1 of 1 of query 1")


def test_a_client_that_falls_silent_in_a_question_is_given_up_with_the_reason(running: Deployment) -> None:
    refused(known(running), "timed out after 3 s waiting for client: part 1 of 1 of query 1")


def test_a_client_that_vanishes_in_a_question_or_in_its_keys_costs_nothing(running: Deployment) -> None:
    known(running, 2).close()
    channel = introduced(running)
    channel.send_control({"kind": "keys", "query": 0, "length": KEYS}, 5, "keys")
    channel.close()


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ({"kind": "query", "query": 1, "n": 0}, "'n' .* is outside 1"),
        ({"kind": "query", "query": 1, "n": 9}, "a batch of 9 is over this server's limit of 8"),
        ({"kind": "query", "query": -1, "n": 1}, "'query' .* is outside 0"),
        ({"kind": "query", "n": 1}, "'query' of message 'query' is missing"),
        ({"kind": "credit"}, "message 'credit' while this side waits for a query"),
    ],
)
def test_a_message_that_is_not_allowed_is_refused_by_field(
    running: Deployment, message: dict[str, Any], says: str
) -> None:
    channel = introduced(running)
    channel.send_control(message, 5, "a message")
    refused(channel, says)


def test_a_payload_out_of_place_is_refused_from_its_header(running: Deployment) -> None:
    channel = introduced(running)
    channel.send_binary(bytes(100), 5, "a gift")
    refused(channel, "a binary frame of 100 bytes; the limit on this link is 1")


def test_query_numbers_must_rise(running: Deployment) -> None:
    channel = known(running)
    channel.send_binary(b"t" * 16 + bytes(48), 5, "a part")
    channel.receive_control(10, "the result", "result")
    assert len(channel.receive_binary(5, "the answer")) == 16 + 3 * 48
    channel.send_control({"kind": "query", "query": 1, "n": 1}, 5, "the same number again")
    refused(channel, "query 1 follows query 1; numbers must rise")


def test_the_server_has_no_business_with_itself(running: Deployment) -> None:
    refused(introduced(running, "server_a"), "role 'server_a' has no business with server_a")


def test_an_answer_that_is_none_is_an_error_and_not_an_answer(
    running: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that gives back what another client was answered: found by the client, as far as its protocol can."""
    with running.client() as client, running.client() as other:
        client.predict(inputs(1))
        other.predict(inputs(1))
        monkeypatch.setattr(client._talk._holder, "tag", other._talk._holder.tag)
        with pytest.raises(QueryFailed, match="encrypted under another key"):
            client.predict(inputs(1))


def test_what_a_key_holder_refuses_reaches_the_caller(running: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_answer(self: object, n: int, answers: list[bytes]) -> Any:
        raise PeerMisbehaved("an answer under another key")

    with running.client() as client:
        monkeypatch.setattr(keyedkit.ToyHolder, "decrypt", no_answer)
        with pytest.raises(QueryFailed, match="an answer under another key"):
            client.predict(inputs(1))
        monkeypatch.undo()


# ---------------------------------------------------------------------- workers


def test_a_worker_that_ends_itself_is_named_its_query_fails_and_another_takes_its_place(
    running: Deployment, caplog: pytest.LogCaptureFixture
) -> None:
    before = running.server.workers.pids
    with running.client() as client:
        with pytest.raises(QueryFailed, match=r"worker 0 \(process \d+\) ended with status 7 in the midst of 'part'"):
            client.predict(starting_with(DIES))
        assert same(client.predict(inputs(2)), affine_model(), inputs(2))
    assert running.server.workers.pids != before
    assert "another takes its place" in caplog.text


def test_a_worker_that_is_killed_between_queries_is_replaced(running: Deployment) -> None:
    (pid,) = running.server.workers.pids
    os.kill(pid, signal.SIGKILL)
    with running.client() as client:
        with pytest.raises(QueryFailed, match="was killed by SIGKILL"):
            client.predict(inputs(2))
        assert same(client.predict(inputs(2)), affine_model(), inputs(2))


def test_an_unforeseen_failure_is_told_without_what_it_quotes(
    running: Deployment, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(0, logging.getLogger().name)
    with running.client() as client, pytest.raises(QueryFailed) as caught:
        client.predict(starting_with(BREAKS))
    assert "an internal error of worker 0 at 'part'; the server's log has the place" in str(caught.value)
    assert "quotes" not in str(caught.value) + caplog.text


def test_a_worker_that_hangs_is_ended_after_the_time_a_part_may_take(tmp_path: Path) -> None:
    with deployment(tmp_path, bounds=options(part_seconds=1.0)) as made, made.client() as client:
        client.predict(inputs(1))
        (pid,) = made.server.workers.pids
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(QueryFailed, match="did not end within 1 s and was killed in the midst of 'part'"):
            client.predict(inputs(1))
        assert same(client.predict(inputs(1)), affine_model(), inputs(1))


def test_while_every_place_is_in_use_a_further_client_is_refused_with_the_reason(tmp_path: Path) -> None:
    made_server = deployment(tmp_path, bounds=options(clients=1), delay=2.0)
    with made_server as made, made.client() as first, made.client() as second:
        thread = threading.Thread(target=first.predict, args=(inputs(1),))
        thread.start()
        deadline = time.monotonic() + 20
        while not any(slot.running and slot.admitted.done() for slot in made.server.workers._slots.values()):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        with pytest.raises(QueryFailed, match="the keys of 1 clients are in use, which is this server's limit"):
            second.predict(inputs(1))
        thread.join(30)
        assert same(second.predict(inputs(1)), affine_model(), inputs(1))


def test_a_query_is_bounded_in_bytes_too(tmp_path: Path) -> None:
    with deployment(tmp_path / "some", bounds=options(query_bytes=500)) as made, made.client() as client:
        answer = client.predict(inputs(4))  # of 800 bytes
        assert same(answer, affine_model(), inputs(4))
        assert answer.ledger.queries == 2
    says = "of 1 inputs have 224 bytes, over this server's limit of 100"
    none = deployment(tmp_path / "none", bounds=options(query_bytes=100))
    with none as made, made.client() as client, pytest.raises(QueryFailed, match=says):
        client.predict(inputs(1))


def test_weights_that_do_not_fit_the_program_keep_a_server_from_starting(tmp_path: Path) -> None:
    keyedkit.make_deployment(tmp_path)
    bundle = load_server(tmp_path / "server_a")
    object.__setattr__(bundle, "tensors", {name: tensor[:1] for name, tensor in bundle.tensors.items()})
    with pytest.raises(BundleError, match=r"its weights do not fit its program.*Split again"):
        KeyedServer(bundle, options=options())


def test_options_that_make_no_sense_are_refused_by_name() -> None:
    for name in ("workers", "max_batch", "clients", "query_bytes", "part_seconds"):
        with pytest.raises(SessionError, match=f"option {name} is 0"):
            KeyedOptions(**{name: 0})


def test_bytes_that_are_no_protocol_end_that_connection_only(running: Deployment) -> None:
    files = TlsFiles.in_directory(running.directory / "client" / "tls")
    for data in (b"GET / HTTP/1.1\r\n\r\n", b"PQIF" + bytes(8), b"PQIF\x01\x01\x00"):
        secured = dial(running.server.address, context(files, server_side=False), "server_a", 5)
        with Channel(*secured, Limits(1 << 20, 1 << 20)) as channel:
            channel._sock.write(data)
            channel._sock.flush()
            channel._sock.shutdown(1)
            with pytest.raises(NetError):
                channel.receive_control(10, "anything")
