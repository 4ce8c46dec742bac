from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import pytest
from netkit import Pair, connect, files, together
from test_channel import raw

from pqi.net.channel import Channel, exchange, receive_any
from pqi.net.errors import BadFrame, ConnectionLost, Timeout
from pqi.net.frames import HEADER_BYTES, FrameType, encode_control, header
from pqi.net.link import LAN, NONE, STAMP, WAN, Line, Link

SLOW = Link("slow", 0.04, 1e8)
Joined = Callable[[Link], Pair]


@pytest.fixture
def joined(keys: Path) -> Iterator[Joined]:
    """Makes the two ends of a connection over a link."""
    with ExitStack() as ends:

        def join(link: Link) -> Pair:
            a, b = connect(files(keys, "server_a"), files(keys, "server_b"), "server_b", link=link)
            assert isinstance(a, Channel)
            assert isinstance(b, Channel)
            return ends.enter_context(a), ends.enter_context(b)

        yield join


def swap(channel: Channel, payload: bytes) -> memoryview:
    return exchange([(channel, FrameType.BINARY, payload)], [channel], 10, "the swap")[0].payload


def test_the_profiles_are_what_they_are_said_to_be() -> None:
    assert (LAN.rtt_seconds, LAN.bits_per_second) == (0.001, 1e9)
    assert (WAN.rtt_seconds, WAN.bits_per_second) == (0.040, 1e8)
    assert LAN.emulated
    assert WAN.emulated
    assert not NONE.emulated


def test_a_link_reads_back_as_it_was_written() -> None:
    for link in (LAN, WAN, NONE, Link("adsl", 1 / 3, 1.5e6)):
        assert Link.parse(str(link)) == link
    assert [Link.parse(given) for given in ("lan", "wan", "none", None, SLOW)] == [LAN, WAN, NONE, NONE, SLOW]


@pytest.mark.parametrize(
    "text", ["", "moon", "a,1", "a,b,c", "a,1,2,3", "a,-1,1e6", "a,11,1e6", "a,0.1,10", "a,nan,1e6"]
)
def test_a_link_that_is_none_is_refused_with_its_text_or_its_value(text: str) -> None:
    with pytest.raises(ValueError, match="link"):
        Link.parse(text)


def test_an_exchange_is_half_a_round_trip_and_the_lines_time() -> None:
    assert WAN.seconds(0) == 0.020
    assert WAN.line_seconds(1448) == 8 * 1514 / 1e8
    assert NONE.seconds(10**9) == 0


def test_what_leaves_at_once_arrives_one_after_the_other() -> None:
    line, link = Line(SLOW), SLOW
    before = time.monotonic_ns()
    arrivals = [STAMP.unpack(line.stamp(125_000))[0] for _ in range(20)]
    each = link.line_seconds(125_000) * 1e9
    assert arrivals[0] >= before + each + link.rtt_seconds / 2 * 1e9
    assert all(later - earlier >= math.floor(each) for earlier, later in pairwise(arrivals))


def test_a_question_and_its_answer_never_take_less_than_a_round_trip(joined: Joined) -> None:
    a, b = joined(SLOW)

    def ask() -> float:
        started = time.monotonic()
        a.send_binary(b"question", 5, "a question")
        a.receive_binary(5, "the answer")
        return time.monotonic() - started

    took, _ = together(ask, lambda: b.send_binary(b.receive_binary(5, "a question"), 5, "the answer"))
    assert isinstance(took, float)
    assert took >= SLOW.rtt_seconds


def test_two_exchanges_in_a_row_never_take_less_than_a_round_trip(joined: Joined) -> None:
    a, b = joined(SLOW)

    def twice(channel: Channel) -> float:
        started = time.monotonic()
        swap(channel, b"one")
        swap(channel, b"two")
        return time.monotonic() - started

    took = together(lambda: twice(a), lambda: twice(b))
    assert all(isinstance(each, float) and each >= SLOW.rtt_seconds for each in took)


def test_bytes_never_take_less_than_the_line_needs(joined: Joined) -> None:
    a, b = joined(Link("narrow", 0.0, 1e7))
    started = time.monotonic()
    together(lambda: a.send_binary(bytes(250_000), 10, "much"), lambda: b.receive_binary(10, "much"))
    assert time.monotonic() - started >= 8 * 250_000 / 1e7


def test_connecting_takes_two_round_trips(joined: Joined) -> None:
    started = time.monotonic()
    joined(SLOW)
    assert time.monotonic() - started >= 2 * SLOW.rtt_seconds


@pytest.mark.parametrize("size", [0, 1, 16363, 16364, 16365, 300_000])
def test_what_is_said_arrives_unchanged_and_in_order(joined: Joined, size: int) -> None:
    a, b = joined(Link("quick", 0.002, 1e10))
    left, right = secrets.token_bytes(size), secrets.token_bytes(size + 1)
    got = together(lambda: swap(a, left), lambda: swap(b, right))
    assert got == [right, left]
    frames = [(a, FrameType.CONTROL, encode_control({"kind": "items"})), (a, FrameType.BINARY, left)]
    exchange(frames, [], 5, "two frames in one flight")
    assert b.receive_control(5, "the head", "items") == {"kind": "items"}
    assert b.receive_binary(5, "the body") == left


def test_the_counters_are_those_of_a_connection_without_a_link(joined: Joined) -> None:
    a, b = joined(Link("quick", 0.002, 1e10))
    together(lambda: swap(a, b"abc"), lambda: swap(b, b""))
    assert (a.sent_overhead, a.received_overhead, b.sent_overhead, b.received_overhead) == (HEADER_BYTES,) * 4


def test_a_frame_under_way_is_not_there_yet_and_the_channel_not_quiet(joined: Joined) -> None:
    a, b = joined(Link("far", 4.0, math.inf))
    a.send_binary(b"later", 5, "a message")
    assert receive_any([b], 0.05, "a message") is None
    assert not b.is_quiet()


def test_a_message_later_than_the_time_out_is_late(joined: Joined) -> None:
    a, b = joined(Link("far", 4.0, math.inf))
    a.send_binary(b"later", 5, "a message")
    with pytest.raises(Timeout, match="waiting for server_a: a message"):
        b.receive(0.2, "a message")


def test_a_moment_that_never_comes_is_a_time_out(joined: Joined) -> None:
    a, b = joined(SLOW)
    raw(a, STAMP.pack((1 << 64) - 1) + header(FrameType.BINARY, 1) + b"x")
    with pytest.raises(Timeout, match="waiting for server_a: a message"):
        b.receive(0.2, "a message")


def test_an_abort_ends_the_wait_for_a_frame_under_way(joined: Joined) -> None:
    a, b = joined(Link("far", 8.0, math.inf))
    a.send_binary(b"later", 5, "a message")

    def abort() -> None:
        time.sleep(0.1)
        b.abort()

    waited, _ = together(lambda: b.receive(30, "a message"), abort)
    assert isinstance(waited, ConnectionLost)


def test_a_message_still_goes_out_while_one_is_under_way(joined: Joined) -> None:
    a, b = joined(SLOW)
    big = secrets.token_bytes(12 << 20)
    a.send_binary(b"first", 5, "a message")
    got_b, got_a = together(
        lambda: exchange([(b, FrameType.BINARY, big)], [b], 10, "the swap")[0].payload,
        lambda: a.receive_binary(10, "much"),
    )
    assert (got_b, got_a) == (b"first", big)


def test_an_end_that_was_told_of_no_link_refuses_the_first_frame(keys: Path, joined: Joined) -> None:
    a, b = joined(NONE)
    a._line = Line(SLOW)
    a.send_binary(b"x", 5, "a message")
    with pytest.raises(BadFrame, match="wrong magic"):
        b.receive(5, "a message")
