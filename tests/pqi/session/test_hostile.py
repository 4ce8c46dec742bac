"""A server outlives everything that a visitor, a client, a dealer or another server can send it."""

from __future__ import annotations

import base64
import logging
import math
import secrets
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from sessionkit import QUICK, Deployment, deployment, inputs, small_model

import pqi.program
import pqi.session.sharing
from pqi.net.authority import Authority, issue, make_private_directory, write_private
from pqi.net.channel import Channel, exchange
from pqi.net.errors import BadFrame, ConnectionLost, NetError, PeerReported, WrongPeer
from pqi.net.frames import FrameType, Limits, encode_control
from pqi.net.hello import Hello, greet
from pqi.net.tls import TlsFiles, context, dial
from pqi.session.bundle import load_client, load_dealer, load_server
from pqi.session.conversation import Conversation
from pqi.session.errors import QueryFailed
from pqi.session.journal import audit
from pqi.session.material import new_id
from pqi.session.server import ServerOptions
from protocols import ring
from protocols.rounds import PartyId

OPTIONS = ServerOptions(max_batch=8, pool_items=24, max_links=24, patience=replace(QUICK, pool=15.0))


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with deployment(tmp_path_factory.mktemp("hostile"), options=OPTIONS) as made:
        yield made


@pytest.fixture(autouse=True)
def the_service_still_answers(running: Deployment) -> Iterator[None]:
    yield
    model, x = small_model(), inputs(3, seed=secrets.randbelow(1000))
    with running.client() as client:
        assert torch.equal(client.predict(x).integers, model.integers(model.encode(x)))


def reach(running: Deployment, server: str, role: str, tls: Path | None = None) -> Channel:
    """A genuine TLS connection in a role; what is said over it is up to the test."""
    files = TlsFiles.in_directory(tls or running.directory / role / "tls")
    address = running.servers[server].address
    return Channel(*dial(address, context(files, server_side=False), server, 5), Limits(1 << 20, 1 << 24))


def introduced(running: Deployment, server: str, role: str, session: str | None = None, client: str = "") -> Channel:
    channel = reach(running, server, role)
    bundle = load_client(running.directory / "client")
    greet(channel, Hello(role, bundle.deployment, bundle.program.digest, session or new_id(), client), 5)
    return channel


def refused(channel: Channel, says: str) -> None:
    """The server states the cause and closes."""
    with channel, pytest.raises(PeerReported, match=says):
        while True:
            channel.receive_control(10, "a refusal")


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n\r\n", b"", bytes(100), b"\x16\x03\x01\xff\xff" + bytes(5000)])
def test_bytes_that_are_not_tls_end_that_connection_only(running: Deployment, data: bytes) -> None:
    for server in running.servers.values():
        with socket.create_connection(server.address) as sock:
            sock.sendall(data)


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"PQIF" + bytes(8),
        b"PQIF\x01\x02\x00\x00\xff\xff\xff\xff",
        b"PQIF\x01\x01\x00\x00\x00\xff\xff\xff",
        b"PQIF\x01\x01\x00\x00\x00\x00\x00\x02{}",
        b"PQIF\x01\x01\x00",
    ],
)
def test_garbage_inside_tls_ends_that_connection_only(running: Deployment, data: bytes) -> None:
    for server in running.servers:
        with reach(running, server, "client") as channel:
            channel._sock.write(data)
            channel._sock.flush()
            channel._sock.shutdown(socket.SHUT_WR)
            with pytest.raises(NetError):
                channel.receive_control(10, "anything")


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ({"kind": "query", "query": 1}, "'n' of message 'query' is missing"),
        ({"kind": "query", "query": 1, "n": 0}, "'n' .* is outside 1"),
        ({"kind": "query", "query": 1, "n": -5}, "is outside"),
        ({"kind": "query", "query": 1, "n": 1.5}, "not an integer"),
        ({"kind": "query", "query": 1, "n": True}, "not an integer"),
        ({"kind": "query", "query": 1, "n": 10**30}, "is outside"),
        ({"kind": "query", "query": 1, "n": 9}, "over this server's limit of 8"),
        ({"kind": "query", "query": "1", "n": 1}, "'query' of message 'query' is missing or not an integer"),
        ({"kind": "use", "query": 1, "n": 1}, "message 'use' while this side waits for a query"),
        ({"kind": "epoch", "epoch": "0" * 32}, "message 'epoch'"),
        ({"kind": "x" * 5000}, "message 'xxx"),
    ],
)
def test_a_message_out_of_place_or_out_of_bounds_is_refused_with_the_reason(
    running: Deployment, message: dict[str, Any], says: str
) -> None:
    for server in running.servers:
        channel = introduced(running, server, "client")
        channel.send_control(message, 5, "a bad message")
        refused(channel, says)


def test_a_payload_where_a_query_is_due_is_refused(running: Deployment) -> None:
    channel = introduced(running, "server_b", "client")
    channel.send_binary(b"share", 5, "a payload")
    refused(channel, "a binary frame while this side waits for a query")


def two_links(running: Deployment, n: int) -> tuple[Channel, Channel]:
    """A client that speaks the protocol by hand, up to both servers being ready for n inputs."""
    session = new_id()
    a, b = (introduced(running, server, "client", session) for server in ("server_a", "server_b"))
    question = encode_control({"kind": "query", "query": 5, "n": n})
    exchange([(a, FrameType.CONTROL, question), (b, FrameType.CONTROL, question)], [], 5, "a query")
    for channel in (a, b):
        while channel.receive_control(10, "ready", "ready", "working")["kind"] != "ready":
            pass
    return a, b


@pytest.mark.parametrize("wrong", [lambda _: 0, lambda _: 1, lambda n: n - 1, lambda n: n + 1, lambda _: 100_000])
def test_a_share_of_a_wrong_length_is_refused_by_both(running: Deployment, wrong: Callable[[int], int]) -> None:
    program = load_server(running.directory / "server_a").program
    size = wrong(ring.packed_bytes(math.prod(program.input_shape), program.input_ring))
    a, b = two_links(running, 1)
    exchange([(a, FrameType.BINARY, bytes(size)), (b, FrameType.BINARY, bytes(size))], [], 5, "bad shares")
    refused(a, "server|bytes|message")
    refused(b, "server|bytes|message")


def test_a_control_message_where_a_share_is_due_is_refused(running: Deployment) -> None:
    a, b = two_links(running, 2)
    for channel in (a, b):
        channel.send_control({"kind": "query", "query": 6, "n": 1}, 5, "no share")
    refused(a, "waits for its input for query 5|server_b")
    refused(b, "waits for its input for query 5|server_a")


def test_a_client_that_vanishes_after_ready_costs_its_items_and_nothing_else(running: Deployment) -> None:
    a, b = two_links(running, 2)
    a.close()
    b.close()


def test_a_client_that_stays_silent_after_ready_is_given_up_with_the_reason(
    running: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    for server in running.servers.values():
        monkeypatch.setattr(server, "patience", replace(QUICK, step=0.6))
    a, b = two_links(running, 1)
    refused(a, "timed out after 0.6 s waiting for client: its input for query 5|server_b")
    refused(b, "timed out after 0.6 s waiting for client: its input for query 5|server_a|lost")


@pytest.mark.parametrize("party", [PartyId.P0, PartyId.P1])
def test_query_numbers_must_rise(running: Deployment, party: PartyId) -> None:
    with running.client() as client:
        client.predict(inputs(1))
        channel = client._talk._links.pop(party)
        channel.send_control({"kind": "query", "query": 1, "n": 1}, 5, "the same number again")
        refused(channel, "query 1 follows query 1; numbers must rise")


def test_servers_asked_different_questions_refuse(running: Deployment) -> None:
    session = new_id()
    a, b = (introduced(running, server, "client", session) for server in ("server_a", "server_b"))
    a.send_control({"kind": "query", "query": 1, "n": 2}, 5, "a query")
    b.send_control({"kind": "query", "query": 1, "n": 3}, 5, "another")
    refused(a, "the servers work on different queries: here number 1 with 2 items")
    b.close()


def test_one_session_id_serves_one_connection(running: Deployment) -> None:
    session = new_id()
    with introduced(running, "server_b", "client", session):
        refused(introduced(running, "server_b", "client", session), r"session .* is open already")


def test_a_second_client_cannot_take_part_in_the_session_of_a_first(running: Deployment, tmp_path: Path) -> None:
    other = another_client(running, tmp_path)
    session = new_id()
    bundle = load_client(running.directory / "client")
    a = introduced(running, "server_a", "client", session)
    b = reach(running, "server_b", "client", other)
    greet(b, Hello("client", bundle.deployment, bundle.program.digest, session), 5)
    for channel in (a, b):
        channel.send_control({"kind": "query", "query": 1, "n": 1}, 5, "a query")
    refused(b, "the two servers see different client certificates")
    a.close()


def another_client(running: Deployment, tmp_path: Path) -> Path:
    home = running.directory / "authority"
    key = serialization.load_pem_private_key((home / "ca_key.pem").read_bytes(), None)
    certificate, private = issue(
        Authority(x509.load_pem_x509_certificate((home / "ca.pem").read_bytes()), key), "client"
    )
    make_private_directory(tmp_path / "tls")
    for name, data in (("ca.pem", (home / "ca.pem").read_bytes()), ("cert.pem", certificate), ("key.pem", private)):
        write_private(tmp_path / "tls" / name, data)
    return tmp_path / "tls"


def test_a_client_cannot_vouch_for_a_certificate(running: Deployment) -> None:
    bundle = load_client(running.directory / "client")
    mine = Hello("client", bundle.deployment, bundle.program.digest, new_id(), client="a" * 64)
    with reach(running, "server_b", "client") as channel, pytest.raises(NetError):
        greet(channel, mine, 5)


def test_a_role_that_lies_about_itself_is_found_out(running: Deployment) -> None:
    bundle = load_client(running.directory / "client")
    for claimed in ("dealer", "server_a"):
        with reach(running, "server_b", "client") as channel:
            mine = Hello(claimed, bundle.deployment, bundle.program.digest, new_id())
            greet(channel, mine, 5)  # the server answers, finds the lie, and closes
            refused(channel, "client differs in role: this side has 'client', client has")


def test_server_a_has_no_business_with_itself(running: Deployment) -> None:
    refused(introduced(running, "server_a", "server_a"), "role 'server_a' has no business with server_a")


def test_a_link_between_servers_that_nobody_claims_is_closed(
    running: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running.servers["server_b"], "patience", replace(QUICK, step=0.3))
    refused(introduced(running, "server_b", "server_a", client="b" * 64), "waiting for the client's own connection")


def test_an_epoch_sent_twice_is_refused_and_the_real_dealer_recovers(running: Deployment) -> None:
    epochs = len(running.epochs)
    old = running.epochs[-1]
    channel = introduced(running, "server_b", "dealer")
    exchange(
        [
            (channel, FrameType.CONTROL, encode_control({"kind": "epoch", "epoch": old})),
            (channel, FrameType.BINARY, bytes(16)),
        ],
        [],
        5,
        "an old epoch",
    )
    refused(channel, "was begun before")
    assert len(running.epochs) == epochs


@pytest.mark.parametrize(
    ("keys", "message", "says"),
    [
        (b"", {"kind": "epoch", "epoch": "f" * 32}, "keys of 0 bytes"),
        (bytes(16), {"kind": "epoch", "epoch": "F" * 32}, "'epoch' .* is not 32 hexadecimal digits"),
        (bytes(16), {"kind": "items", "epoch": "f" * 32}, "message 'items' while this side waits for a new epoch"),
    ],
)
def test_a_dealer_out_of_order_is_refused(running: Deployment, keys: bytes, message: dict[str, Any], says: str) -> None:
    channel = introduced(running, "server_b", "dealer")
    exchange(
        [(channel, FrameType.CONTROL, encode_control(message)), (channel, FrameType.BINARY, keys)], [], 5, "an epoch"
    )
    refused(channel, says)


@pytest.mark.parametrize(
    "word",
    [
        {"first": 1, "n": 1},
        {"first": 0, "n": 0},
        {"first": 0, "n": 1000},
        {"first": 0, "n": 2},
        {"first": 0, "n": 1, "epoch": "0" * 32},
        {"first": 0, "n": 1, "kind": "gift"},
    ],
)
def test_items_that_were_not_ordered_end_the_epoch_and_a_new_one_begins(
    running: Deployment, word: dict[str, Any]
) -> None:
    epochs, epoch = len(running.epochs), new_id()
    channel = introduced(running, "server_b", "dealer")
    head = encode_control({"kind": "epoch", "epoch": epoch})
    exchange([(channel, FrameType.CONTROL, head), (channel, FrameType.BINARY, bytes(48))], [], 5, "an epoch")
    channel.receive_control(5, "its answer", "epoch-known")
    assert channel.receive_control(5, "an order", "credit")["items"] > 0
    record = load_dealer(running.directory / "dealer").program.record_bytes
    body = encode_control({"kind": "items", "epoch": epoch, **word})
    exchange([(channel, FrameType.CONTROL, body), (channel, FrameType.BINARY, bytes(record))], [], 5, "items")
    with channel, pytest.raises((PeerReported, ConnectionLost)):
        channel.receive_control(10, "a refusal")
    # The intruder's epoch has pushed the dealer's aside; the dealer hears it and begins another.
    running.await_epoch(epochs + 1)


def test_visitors_that_only_hold_the_line_are_hung_up_on(running: Deployment) -> None:
    address = running.servers["server_b"].address
    lines = [socket.create_connection(address) for _ in range(12)]
    try:
        with running.client() as client:
            client.predict(inputs(1))
        for line in lines:
            line.settimeout(10)
            assert line.recv(1) == b""
    finally:
        for line in lines:
            line.close()


def test_a_crowd_beyond_all_places_is_turned_away_and_the_places_come_back(
    running: Deployment, caplog: pytest.LogCaptureFixture
) -> None:
    address = running.servers["server_a"].address
    lines = [socket.create_connection(address) for _ in range(60)]
    threading.Event().wait(0.5)
    for line in lines:
        line.close()
    assert "connection turned away: all places are taken" in caplog.text
    threading.Event().wait(0.5)


def leaks(text: str, secret: bytes) -> bool:
    """Whether a stretch of a secret stands in a text in any of the usual spellings."""
    for start in range(0, max(1, len(secret) - 8), 4):
        piece = secret[start : start + 8]
        numbers = ", ".join(map(str, piece))
        if any(
            form in text for form in (piece.hex(), repr(piece)[2:-1], base64.b64encode(piece[:6]).decode(), numbers)
        ):
            return True
    return False


def test_no_key_and_no_share_is_in_a_log_or_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything logged at the lowest level, through success and failure, is searched for every secret that moved."""
    moved: list[bytes] = []
    watch(monkeypatch, pqi.program.Dealer, "new_epoch", lambda keys: moved.extend(keys))
    watch(monkeypatch, pqi.program.Dealer, "deal", lambda data: moved.append(data[:64]))
    encode = pqi.session.sharing.encode_input

    def spy(program: Any, codes: torch.Tensor) -> dict[PartyId, bytes]:
        shares = encode(program, codes)
        moved.extend(shares.values())
        return shares

    monkeypatch.setattr(pqi.session.sharing, "encode_input", spy)
    lines: list[str] = []
    handler = logging.Handler(0)
    handler.emit = lambda record: lines.append(handler.format(record))  # type: ignore[method-assign]
    root = logging.getLogger()
    before = root.level
    root.addHandler(handler)
    root.setLevel(0)
    try:
        with deployment(tmp_path, options=OPTIONS) as made, made.client() as client:
            client.predict(inputs(8))
            monkeypatch.setattr(pqi.program.PartyRunner, "run", broken)
            with pytest.raises(QueryFailed) as caught:
                client.predict(inputs(8))
            lines.append(str(caught.value) + repr(caught.value))
    finally:
        root.removeHandler(handler)
        root.setLevel(before)
    text = "\n".join(lines)
    assert "internal error of server" in text
    assert len(moved) >= 7
    assert not any(leaks(text, secret) for secret in moved)


def broken(_self: object, _prepared: object, message: bytes) -> Any:
    raise RuntimeError(f"an unforeseen failure that quotes {message!r} and {message.hex()}")


def watch(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, note: Callable[[Any], None]) -> None:
    original = getattr(owner, name)

    def wrapped(*arguments: Any) -> Any:
        result = original(*arguments)
        note(result)
        return result

    monkeypatch.setattr(owner, name, wrapped)


def test_a_leak_would_be_found() -> None:
    secret = secrets.token_bytes(40)
    assert all(leaks(f"x{form}y", secret) for form in (secret.hex(), repr(secret), str(list(secret))))


def test_the_client_refuses_servers_that_are_ready_with_different_items(
    running: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    gather = Conversation._gather

    def twisted(self: Conversation, links: Any, kind: str) -> Any:
        got = gather(self, links, kind)
        if kind == "ready":
            got[PartyId.P1]["first"] += 1
        return got

    monkeypatch.setattr(Conversation, "_gather", twisted)
    exchanged = pqi.session.sharing.exchange
    sent: list[FrameType] = []

    def watched(sends: Any, *rest: Any) -> Any:
        sent.extend(kind for _, kind, _ in sends)
        return exchanged(sends, *rest)

    monkeypatch.setattr(pqi.session.sharing, "exchange", watched)
    with running.client() as client, pytest.raises(QueryFailed, match="ready with different material"):
        client.predict(inputs(1))
    monkeypatch.undo()
    assert sent == [FrameType.CONTROL, FrameType.CONTROL]  # the two questions, and no share


def test_wrong_roles_and_bad_frames_are_kinds_of_network_errors() -> None:
    assert issubclass(WrongPeer, NetError)
    assert issubclass(BadFrame, NetError)


def test_after_all_this_no_item_was_used_twice(running: Deployment) -> None:
    for role in ("server_a", "server_b"):
        audit(running.directory / role / "journal.sqlite")
