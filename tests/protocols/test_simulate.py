from __future__ import annotations

import pytest

from protocols.errors import PeerMisbehaved
from protocols.rounds import PartyId, Round, Steps
from protocols.simulate import simulate

P0, P1 = PartyId.P0, PartyId.P1


def talker(me: PartyId, rounds: int) -> Steps[bytes]:
    peer = P1 if me is P0 else P0
    heard = b""
    for i in range(rounds):
        heard += (yield Round({peer: bytes([i, me])}, (peer,), "talk"))[peer]
    return heard


def test_parties_in_lockstep_hear_each_other_in_order() -> None:
    log = simulate({P0: talker(P0, 3), P1: talker(P1, 3)})
    assert log.results == {P0: b"\x00\x01\x01\x01\x02\x01", P1: b"\x00\x00\x01\x00\x02\x00"}
    assert log.sent_bytes == {P0: 6, P1: 6}
    assert log.exchanges == {P0: 3, P1: 3}


def test_waiting_for_a_message_that_nobody_sends_is_an_error_not_a_hang() -> None:
    with pytest.raises(PeerMisbehaved, match="nobody sends"):
        simulate({P0: talker(P0, 2), P1: talker(P1, 1)})


def test_a_message_that_nobody_reads_is_an_error() -> None:
    def shouter() -> Steps[bytes]:
        yield Round({P1: b"!"}, (), "shout")
        return b""

    with pytest.raises(PeerMisbehaved, match="P0 to P1"):
        simulate({P0: shouter(), P1: talker(P1, 0)})


def test_a_round_shows_lengths_and_no_payload() -> None:
    text = repr(Round({P1: b"secret share"}, (P1,), "open"))
    assert "12" in text
    assert "secret" not in text
