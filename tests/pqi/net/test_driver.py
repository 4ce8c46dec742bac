from __future__ import annotations

import pytest
from netkit import Pair, together

from pqi.net.driver import Meter, drive
from pqi.net.errors import BadFrame, ConnectionLost, PeerReported, Timeout
from pqi.net.frames import HEADER_BYTES
from protocols.errors import Misuse
from protocols.rounds import PartyId, Round, Steps

P0, P1 = PartyId.P0, PartyId.P1


def swap(other: PartyId, messages: list[bytes]) -> Steps[bytes]:
    got = b""
    for index, message in enumerate(messages):
        received = yield Round({other: message}, (other,), f"layer{index}")
        got += received[other]
    return got


def one_way(other: PartyId, message: bytes) -> Steps[None]:
    yield Round({other: message}, (), "one way")


def listen(other: PartyId) -> Steps[bytes]:
    received = yield Round({}, (other,), "one way")
    return received[other]


def test_the_same_generators_run_over_tls_and_the_meter_counts_payload_to_the_byte(pair: Pair) -> None:
    a, b = pair
    meters = Meter(), Meter()
    got = together(
        lambda: drive(swap(P1, [b"abc", b"", b"x" * 100_000]), {P1: a}, meters[0], 5),
        lambda: drive(swap(P0, [b"12345", b"6", b""]), {P0: b}, meters[1], 5),
    )
    assert got == [b"123456", b"abc" + b"x" * 100_000]
    assert meters[0].exchanges == meters[1].exchanges == 3
    assert meters[0].sent == meters[1].received == {P1: 100_003} or meters[1].received == {P0: 100_003}
    assert (meters[0].sent, meters[0].received) == ({P1: 100_003}, {P1: 6})
    assert (meters[1].sent, meters[1].received) == ({P0: 6}, {P0: 100_003})
    assert meters[0].overhead == 6 * HEADER_BYTES == a.sent_overhead + a.received_overhead
    assert meters[0].steps["layer2"].sent == 100_000
    assert meters[0].to_json()["steps"]["layer0"]["received"] == 5


def test_a_one_way_message_is_one_exchange(pair: Pair) -> None:
    a, b = pair
    meters = Meter(), Meter()
    got = together(
        lambda: drive(one_way(P1, b"hello"), {P1: a}, meters[0], 5), lambda: drive(listen(P0), {P0: b}, meters[1], 5)
    )
    assert got == [None, b"hello"]
    assert [meter.exchanges for meter in meters] == [1, 1]


def test_a_round_to_a_party_without_a_channel_is_misuse(pair: Pair) -> None:
    with pytest.raises(Misuse, match="'one way' talks to DEALER"):
        drive(one_way(PartyId.DEALER, b""), {P1: pair[0]}, Meter(), 5)


def test_a_silent_peer_is_named_with_the_step(pair: Pair) -> None:
    with pytest.raises(Timeout, match="waiting for server_b: step 'one way'"):
        drive(listen(P1), {P1: pair[0]}, Meter(), 0.2)


def test_a_lost_peer_is_named_with_the_step_and_the_generator_is_closed(pair: Pair) -> None:
    a, b = pair
    ended = []

    def watched() -> Steps[bytes]:
        try:
            return (yield from listen(P1))
        finally:
            ended.append(True)

    b.close()
    with pytest.raises(ConnectionLost, match="connection to server_b lost during step 'one way'"):
        drive(watched(), {P1: a}, Meter(), 5)
    assert ended


def test_the_peers_own_account_replaces_the_awaited_message(pair: Pair) -> None:
    a, b = pair
    b.send_control({"kind": "error", "cause": "out of items"}, 5, "an error")
    with pytest.raises(PeerReported, match="server_b reports: out of items"):
        drive(listen(P1), {P1: a}, Meter(), 5)


def test_a_control_message_in_the_midst_of_a_protocol_is_refused(pair: Pair) -> None:
    a, b = pair
    b.send_control({"kind": "hello"}, 5, "an odd message")
    with pytest.raises(BadFrame, match="message 'hello' while this side waits for step 'one way'"):
        drive(listen(P1), {P1: a}, Meter(), 5)


def test_progress_hears_every_label(pair: Pair) -> None:
    a, b = pair
    labels: list[str] = []
    together(
        lambda: drive(swap(P1, [b"a", b"b"]), {P1: a}, Meter(), 5, labels.append),
        lambda: drive(swap(P0, [b"a", b"b"]), {P0: b}, Meter(), 5),
    )
    assert labels == ["layer0", "layer1"]
