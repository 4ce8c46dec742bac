from __future__ import annotations

import secrets
import select
import socket

import pytest
from netkit import Pair, together

from pqi.net.channel import Channel, exchange, receive_any
from pqi.net.errors import BadFrame, ConnectionLost, FrameTooLarge, PeerReported, Timeout, VersionMismatch
from pqi.net.frames import HEADER, MAGIC, WIRE_VERSION, FrameType, Limits, encode_control, header

BIG = 24 << 20


def raw(channel: Channel, data: bytes) -> None:
    """Bytes on the wire below the frames, as a hostile peer would write them."""
    sent = 0
    while sent < len(data):
        try:
            sent += channel._sock.write(data[sent:])
            channel._sock.flush()
        except OSError:
            select.select([], [channel._sock], [], 5)


def test_two_big_messages_cross_without_a_deadlock(pair: Pair) -> None:
    a, b = pair
    left, right = secrets.token_bytes(BIG), secrets.token_bytes(BIG + 1)
    got_a, got_b = together(
        lambda: exchange([(a, FrameType.BINARY, left)], [a], 60, "the swap")[0].payload,
        lambda: exchange([(b, FrameType.BINARY, right)], [b], 60, "the swap")[0].payload,
    )
    assert got_a == right
    assert got_b == left


@pytest.mark.parametrize("size", [0, 1, 11, 12, 16371, 16372, 16373, 16384, 70000])
def test_a_payload_of_any_size_arrives_whole(pair: Pair, size: int) -> None:
    a, b = pair
    payload = secrets.token_bytes(size)
    _, got = together(lambda: a.send_binary(payload, 5, "a payload"), lambda: b.receive_binary(5, "a payload"))
    assert got == payload


def test_frames_keep_their_order_and_kind(pair: Pair) -> None:
    a, b = pair
    frames = [(a, FrameType.CONTROL, encode_control({"kind": "items", "n": 3})), (a, FrameType.BINARY, b"xyz")]
    exchange(frames, [], 5, "two frames in one flight")
    assert b.receive_control(5, "the head", "items")["n"] == 3
    assert b.receive_binary(5, "the body") == b"xyz"


def test_a_frame_that_comes_in_single_bytes_is_put_together(pair: Pair) -> None:
    a, b = pair
    data = header(FrameType.BINARY, 5) + b"hello"
    for byte in data[:-1]:
        raw(a, bytes([byte]))
        assert receive_any([b], 0.001, "the rest") is None
    raw(a, data[-1:] + header(FrameType.BINARY, 0))
    assert b.receive_binary(5, "the first frame") == b"hello"
    assert b.receive_binary(5, "an empty frame behind it") == b""


def test_half_a_frame_times_out_and_names_the_peer_and_what_was_awaited(pair: Pair) -> None:
    a, b = pair
    raw(a, header(FrameType.BINARY, 100) + b"only this")
    with pytest.raises(Timeout, match=r"timed out after 0\.2 s waiting for server_a: the corrections") as caught:
        b.receive_binary(0.2, "the corrections")
    assert caught.value.peer == "server_a"


def test_half_a_frame_and_a_vanished_peer_is_a_lost_connection(pair: Pair) -> None:
    a, b = pair
    raw(a, header(FrameType.BINARY, 100) + b"only this")
    a.close()
    with pytest.raises(ConnectionLost, match="connection to server_a lost during step 'conv1'"):
        b.receive_binary(5, "step 'conv1'")


def test_garbage_is_refused_by_its_magic(pair: Pair) -> None:
    a, b = pair
    raw(a, b"GET / HTTP/1.1\r\n\r\n")
    with pytest.raises(BadFrame, match=r"server_a sent something .*wrong magic"):
        b.receive(5, "a frame")


def test_another_wire_version_is_refused_with_both_numbers(pair: Pair) -> None:
    a, b = pair
    raw(a, HEADER.pack(MAGIC, WIRE_VERSION + 1, FrameType.BINARY, 0, 0))
    with pytest.raises(VersionMismatch, match=f"wire version {WIRE_VERSION + 1}; this side speaks {WIRE_VERSION}"):
        b.receive(5, "a frame")


@pytest.mark.parametrize(("kind", "reserved", "what"), [(9, 0, "unknown type 9"), (2, 7, "reserved field is 7")])
def test_an_unknown_type_or_a_used_reserved_field_is_refused(pair: Pair, kind: int, reserved: int, what: str) -> None:
    a, b = pair
    raw(a, HEADER.pack(MAGIC, WIRE_VERSION, kind, reserved, 0))
    with pytest.raises(BadFrame, match=what):
        b.receive(5, "a frame")


def test_an_oversized_frame_is_refused_from_its_header(pair: Pair) -> None:
    a, b = pair
    b.limits = Limits(control=100, binary=1000)
    raw(a, header(FrameType.BINARY, 1001))
    with pytest.raises(FrameTooLarge, match="a binary frame of 1001 bytes; the limit on this link is 1000"):
        b.receive(5, "a frame")


def test_an_oversized_frame_of_this_side_is_refused_before_a_byte_leaves(pair: Pair) -> None:
    a, b = pair
    a.limits = Limits(control=100, binary=10)
    with pytest.raises(FrameTooLarge, match="this side"):
        a.send_binary(bytes(11), 5, "too much")
    assert b.is_quiet()


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"nonsense",
        b"[1]",
        b'{"n":1}',
        b'{"kind":5}',
        b'{"kind":"x","n":NaN}',
        b"[" * 100_000,
        b'"\xff"',
        b"1" * 9000,
    ],
)
def test_a_control_frame_that_is_not_an_object_with_a_kind_is_refused(pair: Pair, payload: bytes) -> None:
    a, b = pair
    a.send(FrameType.CONTROL, payload, 5, "nonsense")
    with pytest.raises(BadFrame, match="server_a"):
        b.receive_control(5, "a message")


def test_an_error_message_is_raised_as_the_peers_words_made_printable(pair: Pair) -> None:
    a, b = pair
    a.send_control({"kind": "error", "cause": "no\x1b[31m items\n" + "x" * 5000}, 5, "an error")
    with pytest.raises(PeerReported, match=r"server_a reports: no\?\[31m items\?x") as caught:
        b.receive_binary(5, "a share")
    assert len(str(caught.value)) < 700


def test_a_cause_sent_before_the_close_reaches_a_peer_that_was_still_sending(pair: Pair) -> None:
    a, b = pair
    payload = bytes(BIG)

    def refuse() -> None:
        b.limits = Limits(binary=10)
        with pytest.raises(FrameTooLarge):
            b.receive(5, "a frame")
        b.close_with_cause("that is too much")

    def send_and_hear() -> None:
        a.send_binary(payload, 20, "much")
        a.receive_binary(5, "an answer")

    sent, _ = together(send_and_hear, refuse)
    assert isinstance(sent, PeerReported)
    assert sent.cause == "that is too much"


def test_an_abort_from_another_thread_ends_a_wait(pair: Pair) -> None:
    a, _ = pair
    waited, _ = together(lambda: a.receive(30, "nothing"), a.abort)
    assert isinstance(waited, ConnectionLost)


def test_a_closed_channel_says_so_and_is_not_quiet(pair: Pair) -> None:
    a, b = pair
    assert a.is_quiet()
    a.close()
    a.close()
    assert not a.is_quiet()
    with pytest.raises(ConnectionLost, match="this side has closed it"):
        a.send_binary(b"x", 1, "anything")
    with pytest.raises(ConnectionLost):
        b.receive(5, "anything")
    assert not b.is_quiet()


def test_a_peer_that_does_not_read_times_out_under_a_big_send(pair: Pair) -> None:
    a, _ = pair
    with pytest.raises(Timeout, match="server_b: room to send much"):
        a.send_binary(bytes(BIG), 0.3, "much")


def test_one_late_channel_of_several_is_named(pair: Pair, keys: object) -> None:
    a, b = pair
    b.send_binary(b"here", 5, "one message")
    assert a.receive_binary(5, "one message") == b"here"
    with pytest.raises(Timeout) as caught:
        exchange([(a, FrameType.BINARY, b"mine")], [a], 0.2, "step 'relu'")
    assert caught.value.peer == "server_b"
    assert "step 'relu'" in str(caught.value)


def test_small_messages_leave_without_delay(pair: Pair) -> None:
    for channel in pair:
        assert channel._sock.raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_no_representation_of_a_frame_shows_its_payload(pair: Pair) -> None:
    a, b = pair
    a.send_binary(b"a secret share", 5, "a share")
    frame = b.receive(5, "a share")
    assert "secret" not in repr(frame)
    assert "secret" not in repr(b)
