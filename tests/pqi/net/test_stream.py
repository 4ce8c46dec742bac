from __future__ import annotations

import secrets
import socket
import time
from collections.abc import Callable

import numpy as np
import pytest
from netkit import Pair, together

from pqi.net.channel import exchange, receive_any
from pqi.net.errors import ConnectionLost
from pqi.net.frames import FrameType, Payload
from pqi.net.stream import FLIGHT, RECORD
from pqi.net.waiting import Watch, nap, wait


def crossing(pair: Pair, left: Payload, right: Payload) -> list[object]:
    a, b = pair
    return together(
        lambda: exchange([(a, FrameType.BINARY, left)], [a], 20, "the swap")[0].payload,
        lambda: exchange([(b, FrameType.BINARY, right)], [b], 20, "the swap")[0].payload,
    )


@pytest.mark.parametrize("size", [RECORD - 1, RECORD, FLIGHT - 1, FLIGHT, FLIGHT + 1, 5 * FLIGHT + 3])
def test_messages_around_a_record_and_a_flight_cross_whole(pair: Pair, size: int) -> None:
    left, right = secrets.token_bytes(size), secrets.token_bytes(size)
    assert crossing(pair, left, right) == [right, left]


@pytest.mark.parametrize(
    "kind", [bytes, bytearray, memoryview, lambda data: np.frombuffer(data, np.uint8), lambda d: memoryview(d)[:]]
)
def test_whatever_lies_in_one_piece_can_be_sent(pair: Pair, kind: Callable[[bytes], Payload]) -> None:
    data = secrets.token_bytes(40_000)
    assert crossing(pair, kind(data), kind(b"")) == [b"", data]


def test_words_are_sent_as_their_bytes_and_counted_as_such(pair: Pair) -> None:
    words = np.arange(5000, dtype=np.int32).reshape(50, 100)
    assert crossing(pair, words, memoryview(words)) == [words.tobytes()] * 2


def test_an_array_with_gaps_is_refused_before_a_byte_leaves(pair: Pair) -> None:
    a, b = pair
    with pytest.raises(TypeError, match="contiguous"):
        a.send_binary(np.zeros(100, np.uint8)[::2], 5, "gaps")
    assert b.is_quiet()


def test_a_received_payload_is_the_readers_own_to_keep_and_to_change(pair: Pair) -> None:
    a, b = pair
    a.send_binary(b"one", 5, "a message")
    first = b.receive(5, "a message").payload
    a.send_binary(b"two", 5, "a message")
    second = b.receive(5, "a message").payload
    assert (first, second) == (b"one", b"two")
    first[:] = b"new"
    a.send_binary(b"six", 5, "a message")
    assert (b.receive(5, "a message").payload, first, second) == (b"six", b"new", b"two")


def test_many_frames_that_arrive_at_once_are_taken_one_by_one(pair: Pair) -> None:
    a, b = pair
    messages = [secrets.token_bytes(n * 37) for n in range(200)]
    exchange([(a, FrameType.BINARY, message) for message in messages], [], 5, "many frames")
    assert [b.receive_binary(5, "a frame") for _ in messages] == messages


def test_bytes_changed_on_the_way_end_the_connection(pair: Pair) -> None:
    a, b = pair
    a._sock.raw.send(b"\x17\x03\x03\x00\x20" + bytes(32))  # a TLS record that nobody sealed
    with pytest.raises(ConnectionLost, match="the other side ended TLS"):
        b.receive(5, "a frame")


def test_an_end_in_the_midst_of_a_record_is_a_lost_connection(pair: Pair) -> None:
    a, b = pair
    a._sock.raw.send(b"\x17\x03\x03\x00\x20" + bytes(7))
    a.close()
    with pytest.raises(ConnectionLost, match="server_a lost during a frame"):
        b.receive(5, "a frame")


@pytest.mark.parametrize("spin", [0.0, 50e-6, 0.01])
def test_an_exchange_is_the_same_with_and_without_looking_again(pair: Pair, spin: float) -> None:
    for channel in pair:
        channel.spin = spin
    assert [crossing(pair, b"x" * n, b"y" * n) for n in range(20)] == [[b"y" * n, b"x" * n] for n in range(20)]


def test_the_first_of_several_channels_is_heard(pair: Pair) -> None:
    a, b = pair
    a.send_binary(b"to b", 5, "a message")
    event = receive_any([a, b], 5, "a message")
    assert event is not None
    assert event[0] is b


def test_a_wait_ends_with_its_event_or_with_its_time() -> None:
    left, right = socket.socketpair()
    with left, right:
        watches = Watch(left.fileno()), Watch(right.fileno())
        for masks in ({watches[0]: 1}, {watches[0]: 1, watches[1]: 1}):
            assert not wait(masks, 0.01, 0.0)
            assert not wait(masks, 0.01, 0.001)
        assert wait({watches[0]: 4}, 5, 0.0)
        right.send(b"x")
        assert wait({watches[0]: 1}, 5, 0.0)
        assert wait({watches[0]: 1, watches[1]: 1}, 5, 0.001)


@pytest.mark.parametrize("seconds", [-1.0, 0.0, 1e-5, 2e-3])
def test_a_nap_is_never_shorter_than_it_should_be(seconds: float) -> None:
    started = time.monotonic()
    nap(seconds)
    assert time.monotonic() - started >= seconds
